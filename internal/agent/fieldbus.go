package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/gate"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/inbox"
	sourcecan "github.com/interlock-energy/ota/source/can"
	sourcemodbus "github.com/interlock-energy/ota/source/modbus"
)

// ModbusServer configures package source/modbus: the device as a Modbus server to which a
// master writes a bundle. At least one of Listen, TLS and Serial is given.
type ModbusServer struct {
	Listen string           `yaml:"listen"` // host:port of plain TCP
	TLS    *ModbusServerTLS `yaml:"tls"`
	Serial *Serial          `yaml:"serial"` // an RTU line

	DeviceID     int     `yaml:"device_id"`     // the unit; the specification's name; default 1
	FunctionCode int     `yaml:"function_code"` // 16 or 21, the only way to write; the specification's name; default: both
	RegisterAddr *uint16 `yaml:"register_addr"` // of the map; the specification's name; default 0xE000

	AllowPlain bool     `yaml:"allow_plain"` // writes on plain TCP, from Allow
	Allow      []string `yaml:"allow"`       // addresses and networks

	IdleTimeout Duration `yaml:"idle_timeout"`
	Window      int      `yaml:"window"`   // blocks
	MaxFile     int64    `yaml:"max_file"` // bytes of a bundle
	Consent     bool     `yaml:"consent"`  // INSTALL counts as a person's consent
}

// ModbusServerTLS is Modbus over TLS, with certificates on both sides.
type ModbusServerTLS struct {
	Listen   string   `yaml:"listen"` // host:port, usually 802
	CAFile   string   `yaml:"ca_file"`
	CertFile string   `yaml:"cert_file"`
	KeyFile  string   `yaml:"key_file"`
	Roles    []string `yaml:"roles"` // that may write
}

// CANServer configures package source/can: the device as a UDS server to which a tester
// writes a bundle. One of Interface, SLCAN and TCP is given.
type CANServer struct {
	Interface string `yaml:"interface"` // of Linux, for example can0
	SLCAN     *SLCAN `yaml:"slcan"`     // a serial adapter
	TCP       string `yaml:"tcp"`       // host:port of a converter
	Bitrate   int    `yaml:"bitrate"`   // of the bus; default 500000

	Address       int    `yaml:"address"`        // of this device in 29-bit identifiers; default 0x10
	TesterAddress int    `yaml:"tester_address"` // default 0xF1
	Priority      int    `yaml:"priority"`       // of 29-bit identifiers; the specification's name; default 6
	CANID         uint32 `yaml:"can_id"`         // of requests, instead of these; the specification's name
	AnswerID      uint32 `yaml:"answer_id"`

	BusShare  int      `yaml:"bus_share"`  // %
	BlockSize int      `yaml:"block_size"` // frames for a flow control frame
	STmin     Duration `yaml:"st_min"`

	TesterFiles []string `yaml:"tester_files"` // public keys of those who may write
	AllowOpen   bool     `yaml:"allow_open"`   // everybody on the bus may
	MaxFile     int64    `yaml:"max_file"`     // bytes of a bundle
	Consent     bool     `yaml:"consent"`      // a request to install counts as a person's consent
}

// where is for people.
func (s *ModbusServer) where() string {
	var ways []string
	if s.Listen != "" {
		ways = append(ways, "tcp "+s.Listen)
	}
	if s.TLS != nil {
		ways = append(ways, "tls "+s.TLS.Listen)
	}
	if s.Serial != nil {
		ways = append(ways, "rtu "+s.Serial.Device)
	}
	return strings.Join(ways, ", ")
}

// where is for people.
func (s *CANServer) where() string {
	if s.SLCAN != nil {
		return s.SLCAN.Device
	}
	return orDefault(s.Interface, s.TCP)
}

// consents reports whether who pushes a release and asks for its installation counts as the
// person whose consent is needed where updates are not automatic.
func (s *Source) consents() bool {
	return s.Modbus != nil && s.Modbus.Consent || s.CANBus != nil && s.CANBus.Consent
}

// newInbox opens what was received over a bus of this kind, or, for a check of the
// configuration, only says where it is.
func (a *Agent) newInbox(kind, version string, most int64, consents, check bool) (*inbox.Inbox, error) {
	if most < 0 {
		return nil, fmt.Errorf("max_file is %d, want more than 0", most)
	}
	if check {
		return new(inbox.Inbox), nil
	}
	var box *inbox.Inbox
	box, err := inbox.Open(inbox.Config{Dir: inboxDir(a.cfg.StateDir, kind), Max: most, Verify: a.verify, Log: a.log, Now: a.now, Crashes: &a.crashes,
		Judge: func(m *ota.Manifest) error { return a.judgePushed(m, version, consents) },
		InHand: func() string {
			if a.record.Load() == nil && box != nil { // not known yet: it may be this one
				return box.State().Digest
			}
			return a.inHand()
		}})
	if err != nil {
		return nil, err
	}
	return box, nil
}

// judgePushed says why a release that comes over a bus is not for this device. What has no code
// is no judgement of the release, as a bootloader that does not answer: it is asked again.
func (a *Agent) judgePushed(m *ota.Manifest, version string, consents bool) error {
	if why, skipped := a.skippedWhy(m.Digest); skipped && !consents {
		return fmt.Errorf("%w: release %s is not taken again, unless a person on the device asks for it: %s", ota.ErrIncompatible, m.Version, why)
	}
	err := a.judgeJob(m, version)
	if _, coded := errors.AsType[ota.ErrorCode](err); err != nil && !coded && !errors.Is(err, ota.ErrNotNow) {
		return fmt.Errorf("%w: %w", ota.ErrNotNow, err)
	}
	return err
}

// precheck says whether the gate would say yes to m now, without the time for which that
// has to last, and without any effect on an update that waits. m may be nil.
func (a *Agent) precheck(ctx context.Context, m *ota.Manifest) error {
	defer a.alive.enter("asking the gate for a bus")()
	if a.windows != nil {
		if err := a.windows(ctx, m, ota.BeforeWrite); err != nil {
			return err
		}
	}
	if a.guard == nil {
		return gate.NoBattery(ctx, m, ota.BeforeWrite)
	}
	ctx, cancel := context.WithTimeout(ctx, pollTimeout) // a battery that hangs is no reason to restart the device
	defer cancel()
	return a.guard.Would(ctx, m)
}

// newCANServer makes a source of kind canbus.
func (a *Agent) newCANServer(c *CANServer, version string, check bool) (src ota.Source, err error) {
	box, err := a.newInbox("canbus", version, c.MaxFile, c.Consent, check)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && !check {
			_ = box.Close() // nobody has written to it
		}
	}()
	p := a.newPushed(box, nil, check)
	p.bus = "canbus"
	cfg := sourcecan.Config{Priority: c.Priority, ID: c.CANID, AnswerID: c.AnswerID,
		Bitrate: c.Bitrate, BlockSize: c.BlockSize, STmin: time.Duration(c.STmin), Share: c.BusShare, AllowOpen: c.AllowOpen,
		Inbox: box, MaxSize: c.MaxFile, State: a.checkin, Precheck: a.precheckFor(box), Withdraw: p.withdraw, StateDir: filepath.Join(a.cfg.StateDir, "canbus"),
		Evidence: a.evidenceHash, Log: a.log, Now: a.now, Crashes: &a.crashes}
	if cfg.Link, err = a.canLink(c); err != nil {
		return nil, err
	}
	if c.SLCAN != nil {
		cfg.Bitrate = orDefault(c.Bitrate, c.SLCAN.Bitrate)
	}
	for _, b := range []struct {
		key   string
		given int
		to    *byte
	}{{"address", c.Address, &cfg.Device}, {"tester_address", c.TesterAddress, &cfg.Tester}} {
		if b.given < 0 || b.given > 255 {
			return nil, fmt.Errorf("%s is %d, want 1 to 255", b.key, b.given)
		}
		*b.to = byte(b.given)
	}
	if cfg.Testers, err = sourcecan.LoadTesters(c.TesterFiles...); err != nil {
		return nil, fmt.Errorf("tester_files: %w", err)
	}
	server, err := sourcecan.New(cfg)
	if err != nil {
		return nil, err
	}
	p.serve, p.trouble = server.Run, server.Trouble
	return p, nil
}

// canLink is the source's way to its bus.
func (a *Agent) canLink(c *CANServer) (link sourcecan.Link, err error) {
	if err := oneWay(c.Interface, c.SLCAN, c.TCP); err != nil {
		return link, err
	}
	if c.Interface != "" {
		link.Interface = c.Interface
		return link, nil
	}
	if c.SLCAN != nil {
		if other := a.onLine(c.SLCAN.Device, "canbus"); other != "" {
			return link, fmt.Errorf("slcan.device: %s uses %s, too; %s", other, c.SLCAN.Device, oneOwner)
		}
	}
	link.Shared, err = a.adapters.share("source canbus", c.SLCAN, c.TCP, c.Bitrate)
	link.Baud = a.adapters.speed(c.SLCAN)
	return link, err
}

// oneOwner is why two protocols cannot have the same serial line.
const oneOwner = "a serial line has one owner, so give one of them another line, or take the other out of the configuration"

// precheckFor is precheck for the release in box.
func (a *Agent) precheckFor(box *inbox.Inbox) func(context.Context) error {
	return func(ctx context.Context) error {
		var m *ota.Manifest
		if signed := box.Envelope(); signed != nil {
			m, _ = a.verify(signed) // one that does not verify any more is refused elsewhere
		}
		return a.precheck(ctx, m)
	}
}

// newModbusServer makes a source of kind modbus.
func (a *Agent) newModbusServer(c *ModbusServer, version string, check bool) (src ota.Source, err error) {
	box, err := a.newInbox("modbus", version, c.MaxFile, c.Consent, check)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && !check {
			_ = box.Close() // nobody has written to it
		}
	}()
	p := a.newPushed(box, nil, check)
	p.bus = "modbus"
	cfg := sourcemodbus.Config{Listen: c.Listen, Base: c.RegisterAddr, AllowPlain: c.AllowPlain, IdleTimeout: time.Duration(c.IdleTimeout),
		Window: c.Window, MaxSize: c.MaxFile, Components: max(1, len(a.components())), Inbox: box, State: a.checkin, Precheck: a.precheckFor(box),
		Withdraw: p.withdraw, Evidence: a.lastEvidence, Log: a.log, Now: a.now, Crashes: &a.crashes}
	if c.DeviceID < 0 || c.DeviceID > 247 {
		return nil, fmt.Errorf("device_id is %d, want 1 to 247", c.DeviceID)
	}
	cfg.Unit = byte(c.DeviceID)
	switch c.FunctionCode {
	case 0:
	case 16, 21:
		cfg.Functions = []modbus.Function{modbus.Function(c.FunctionCode)}
	default:
		return nil, fmt.Errorf("function_code is %d, want 16 or 21, or nothing for both", c.FunctionCode)
	}
	if cfg.Allow, err = prefixes(c.Allow); err != nil {
		return nil, err
	}
	if t := c.TLS; t != nil {
		cfg.ListenTLS, cfg.Roles = orDefault(t.Listen, ":802"), t.Roles
		if cfg.TLS, err = t.config(); err != nil {
			return nil, err
		}
	}
	if c.Serial != nil {
		if c.Serial.Device == "" {
			return nil, errors.New("serial.device is missing, for example /dev/ttyS1")
		}
		if other := a.onLine(c.Serial.Device, "modbus"); other != "" {
			return nil, fmt.Errorf("serial.device: %s uses %s, too; %s", other, c.Serial.Device, oneOwner)
		}
		cfg.Lines = []sourcemodbus.Line{{Config: c.Serial.config()}}
	}
	if c.Consent {
		cfg.Rollback = func(ctx context.Context) error {
			return a.CommandBy(control.Peer{Bus: "modbus"}, control.RollBack).Wait(ctx)
		}
	}
	server, err := sourcemodbus.New(cfg)
	if err != nil {
		return nil, err
	}
	p.serve, p.trouble = server.Run, server.Trouble
	return p, nil
}

// prefixes reads addresses and networks.
func prefixes(list []string) (out []netip.Prefix, err error) {
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			one, oneErr := netip.ParseAddr(s)
			if oneErr != nil {
				return nil, fmt.Errorf("allow: %q is neither an address nor a network such as 192.168.1.0/24", s)
			}
			p = netip.PrefixFrom(one, one.BitLen())
		}
		out = append(out, p)
	}
	return out, nil
}

func (t *ModbusServerTLS) config() (*tls.Config, error) {
	pair, pool, err := readTLS("tls", t.CAFile, t.CertFile, t.KeyFile)
	if err != nil {
		return nil, err
	}
	config, err := modbus.ServerTLS(pair, pool)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return config, nil
}

// onLine names what else in the configuration uses a serial device in a way that cannot be shared;
// "": nothing. of is the source that asks. Users of an adapter on CAN share it.
func (a *Agent) onLine(device, of string) string {
	device = realPath(device)
	if slices.Contains(a.links.devices(), device) {
		return "a Modbus client of the plant"
	}
	if of != "canbus" {
		if user := a.adapters.user(device); user != "" {
			return user
		}
	}
	for _, s := range a.cfg.allSources() {
		switch {
		case of != "modbus" && s.Modbus != nil && s.Modbus.Serial != nil && realPath(s.Modbus.Serial.Device) == device:
			return "source modbus"
		case of != "canbus" && s.CANBus != nil && s.CANBus.SLCAN != nil && realPath(s.CANBus.SLCAN.Device) == device:
			return "source canbus"
		}
	}
	return ""
}

// evidenceHash is the head of what is written down about the last update, "" if nothing is.
func (a *Agent) evidenceHash() string {
	if h := a.evidenceHead(); h != nil {
		return h.Hash
	}
	return ""
}

// lastEvidence is all of it. It is asked for in small pieces, so it is read from the disk only
// if it has grown.
func (a *Agent) lastEvidence() []byte {
	h := a.evidenceHead()
	if h == nil || h.File == "" {
		return nil
	}
	e := &a.shownEvidence
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hash != h.Hash {
		b, err := a.EvidenceFile(h.File)
		if err != nil {
			return nil
		}
		e.hash, e.data = h.Hash, b
	}
	return e.data
}

// shownEvidence is a file of evidence as it was when hash was its head.
type shownEvidence struct {
	mu   sync.Mutex // of its own: the disk may hang
	hash string
	data []byte
}
