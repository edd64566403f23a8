package modbus_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/crash"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// rig is a device with this source, and with whatever manager the test makes up.
type rig struct {
	t       *testing.T
	fs      durable.FS
	dir     string
	release *otatest.SignedRelease
	judge   func(*ota.Manifest) error
	inHand  func() string
	crashes *crash.Log // of a test that panics on purpose; nil: a panic ends it

	box  *inbox.Inbox
	src  *modbus.Source
	hub  *hub
	stop func()

	mu   sync.Mutex
	head api.CheckinRequest
}

// newRig makes a device on a disk in memory, which takes the releases of the key of r,
// and lets 192.0.2.0/24 write over plain TCP.
func newRig(t *testing.T, r *otatest.SignedRelease, change ...func(*modbus.Config)) *rig {
	t.Helper()
	return newRigJudging(t, r, nil, change...)
}

// newRigJudging makes one that looks at what a release is for.
func newRigJudging(t *testing.T, r *otatest.SignedRelease, judge func(*ota.Manifest) error, change ...func(*modbus.Config)) *rig {
	t.Helper()
	rig := &rig{t: t, fs: otatest.NewDisk(), dir: "/var/inbox", release: r, judge: judge}
	rig.head.Head = api.Head{Device: "bess-7", Product: "bess", Version: "1.0.0"}
	rig.start(change...)
	t.Cleanup(func() { rig.stop() })
	return rig
}

func (r *rig) start(change ...func(*modbus.Config)) {
	r.t.Helper()
	var err error
	quiet := slog.New(slog.DiscardHandler)
	r.box, err = inbox.Open(inbox.Config{FS: r.fs, Dir: r.dir, Verify: r.release.Verify, Judge: r.judge, InHand: r.inHand, Log: quiet, Crashes: r.crashes})
	if err != nil {
		r.t.Fatal(err)
	}
	r.hub = newHub()
	cfg := modbus.Config{Listen: "device:502", Inbox: r.box, State: r.state, Log: quiet, Crashes: r.crashes,
		AllowPlain: true, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		NetListen: func(context.Context, string) (net.Listener, error) { return r.hub, nil }}
	for _, f := range change {
		f(&cfg)
	}
	if r.src, err = modbus.New(cfg); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.src.Run(ctx) }()
	box := r.box
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		if err := box.Close(); err != nil {
			r.t.Error(err)
		}
	})
}

// restart is the end of the agent's process, and its next life.
func (r *rig) restart(change ...func(*modbus.Config)) {
	r.t.Helper()
	r.stop()
	r.start(change...)
}

func (r *rig) state() api.CheckinRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head
}

// manager sets what the manager says of itself.
func (r *rig) manager(set func(*api.CheckinRequest)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set(&r.head)
}

// hub is a network in memory on which those who connect say who they are.
type hub struct {
	conns chan net.Conn
	done  chan struct{}
	close sync.Once
}

func newHub() *hub { return &hub{conns: make(chan net.Conn), done: make(chan struct{})} }

func (h *hub) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *hub) Close() error   { h.close.Do(func() { close(h.done) }); return nil }
func (h *hub) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 200), Port: 502} }

// dial connects from an address.
func (h *hub) dial(from string) (io.ReadWriteCloser, error) {
	ours, theirs := net.Pipe()
	select {
	case h.conns <- remote{theirs, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 40000))}:
		return ours, nil
	case <-h.done:
		return nil, errors.New("nobody listens")
	}
}

// remote is a connection that says where it comes from.
type remote struct {
	net.Conn
	addr net.Addr
}

func (c remote) RemoteAddr() net.Addr { return c.addr }

// master is a Modbus master that keeps to the profile, written from its table.
type master struct {
	t       *testing.T
	c       *bus.Client
	unit    byte
	base    uint16
	seq     uint16
	session uint16
}

// master connects from an address.
func (r *rig) master(from string) *master {
	r.t.Helper()
	c := bus.NewTCP(nil, bus.Config{Window: 16, Timeout: time.Minute,
		Redial: func(context.Context) (io.ReadWriteCloser, error) { return r.hub.dial(from) }})
	r.t.Cleanup(func() { c.Close() })
	return &master{t: r.t, c: c, unit: 1, base: profile.Base, seq: 100}
}

// exception is what err says, 0 for nil.
func exception(t *testing.T, err error) bus.Exception {
	t.Helper()
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[bus.Exception](err)
	if !ok {
		t.Fatalf("got %v, want an exception or nil", err)
	}
	return e
}

func (m *master) status() profile.Status {
	m.t.Helper()
	registers, err := m.c.ReadHolding(m.t.Context(), m.unit, m.base+profile.OffsetStatus, profile.StatusSize)
	if err != nil {
		m.t.Fatal(err)
	}
	s, err := profile.DecodeStatus(registers)
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m *master) display() profile.Display {
	m.t.Helper()
	var registers []uint16
	for i := range uint16(2) {
		some, err := m.c.ReadInput(m.t.Context(), m.unit, m.base+profile.OffsetDisplay+80*i, 80)
		if err != nil {
			m.t.Fatal(err)
		}
		registers = append(registers, some...)
	}
	d, err := profile.DecodeDisplay(registers)
	if err != nil {
		m.t.Fatal(err)
	}
	return d
}

// command gives a command with the next number.
func (m *master) command(c profile.Command) bus.Exception {
	m.t.Helper()
	if c.Seq == 0 {
		m.seq++
		c.Seq = m.seq
	}
	registers := make([]uint16, profile.CommandSize)
	c.Encode(registers)
	return exception(m.t, m.c.WriteRegisters(m.t.Context(), m.unit, m.base+profile.OffsetCommand, registers))
}

// do gives a command that has to be taken.
func (m *master) do(c profile.Command) {
	m.t.Helper()
	if e := m.command(c); e != 0 {
		m.t.Fatalf("%v: got %v and %v, want no exception", c.Code, e, m.status().Result)
	}
}

func offer(code profile.Code, b []byte) profile.Command {
	return profile.Command{Code: code, Component: profile.TypeBundle, Size: uint32(len(b)), Format: profile.FormatBundle, SHA256: sha256.Sum256(b)}
}

func bare(code profile.Code, b []byte) profile.Command {
	c := offer(code, b)
	c.Format = profile.FormatBare
	return c
}

// open opens a session for b, or finds it again.
func (m *master) open(c profile.Command) {
	m.t.Helper()
	m.do(c)
	s := m.status()
	if m.session = s.Session; m.session == 0 || s.Seq != m.seq {
		m.t.Fatalf("%v: got session %d, command %d, want a session, command %d", c.Code, s.Session, s.Seq, m.seq)
	}
}

func piece(b []byte, n uint32) []byte {
	from := int(n) * profile.BlockSize
	return b[from:min(from+profile.BlockSize, len(b))]
}

func (m *master) block(b []byte, n uint32) bus.Exception {
	m.t.Helper()
	block := profile.Block{Session: m.session, Number: n, Data: piece(b, n)}
	return exception(m.t, m.c.WriteRegisters(m.t.Context(), m.unit, m.base+profile.OffsetData, block.Append(nil)))
}

// send writes all blocks of b from the first missing one on, as the window allows.
func (m *master) send(b []byte) {
	m.t.Helper()
	for s := m.status(); s.Missing < s.Blocks; s = m.status() {
		if s.Window == 0 {
			if s.State == profile.Failed {
				m.t.Fatalf("the transfer failed: %v, %s", s.Result, m.display().Reason)
			}
			pause(10 * time.Millisecond) // the envelope is being verified
			continue
		}
		for n := s.Missing; n < min(s.Missing+uint32(s.Window), s.Blocks); n++ {
			if e := m.block(b, n); e != 0 {
				m.t.Fatalf("block %d of %d: got %v, want no exception", n, s.Blocks, e)
			}
		}
	}
}

// until reads the status until a state.
func (m *master) until(want profile.State) profile.Status {
	m.t.Helper()
	for range 3000 {
		s := m.status()
		if s.State == want {
			return s
		}
		if s.State == profile.Failed {
			m.t.Fatalf("the transfer failed: %v, %s; want %v", s.Result, m.display().Reason, want)
		}
		pause(10 * time.Millisecond)
	}
	m.t.Fatalf("got %v for long, want %v", m.status().State, want)
	return profile.Status{}
}

func (m *master) with(code profile.Code) profile.Command {
	return profile.Command{Code: code, Session: m.session}
}

// push brings b to VERIFIED.
func (m *master) push(b []byte) {
	m.t.Helper()
	m.open(offer(profile.Open, b))
	m.send(b)
	m.do(m.with(profile.CloseAll))
	m.until(profile.Verified)
}

// bubble runs a test in simulated time.
func bubble(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

var (
	signing sync.Once
	key     otatest.SigningKey // of all releases here but those of the suite
)

func newRelease(t *testing.T, sizes ...int) *otatest.SignedRelease {
	t.Helper()
	if len(sizes) == 0 {
		sizes = []int{20_001, 5_000}
	}
	signing.Do(func() { key = otatest.NewSigningKey(t) })
	return key.Release(t, "1.1.0", sizes...)
}

// pause lets simulated time pass in a bubble, and other goroutines work outside of one.
func pause(d time.Duration) { <-time.After(d) }
