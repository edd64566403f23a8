package modbus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// DefaultRole is the role that may write if no others are named. The security
// specification leaves the names to the vendor.
const DefaultRole = "Updater"

// New returns a source that serves once Run is called. It opens nothing.
func New(cfg Config) (*Source, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("configure Modbus source: %w", err)
	}
	s := &Source{cfg: cfg, addresses: map[bus.Transport]*address{bus.TCP: newAddress(), bus.TLS: newAddress()}}
	s.opens = bucket{every: cfg.OpenEvery, burst: cfg.OpenBurst}
	caps := profile.CapReadBack | profile.CapResume | profile.CapPipelining
	if s.takes(bus.WriteRegisters) {
		caps |= profile.CapBlocks | profile.CapExchange
	}
	if s.takes(bus.WriteFile) {
		caps |= profile.CapFiles
	}
	if !cfg.AllowPlain {
		caps |= profile.CapSecure
	}
	s.identity = profile.Identity{Version: profile.Version, Caps: caps, BlockSize: profile.BlockSize, Window: uint16(cfg.Window),
		IdleTimeout: uint16(cfg.IdleTimeout / time.Second), Components: uint16(cfg.Components), MaxSize: uint32(cfg.MaxSize)}
	return s, nil
}

// takes says whether bytes may be written by a function.
func (s *Source) takes(f bus.Function) bool { return slices.Contains(s.cfg.Functions, f) }

// complete checks cfg and fills in what is left out.
func (cfg *Config) complete() error {
	switch {
	case cfg.Inbox == nil:
		return errors.New("Inbox is missing; it keeps what is received")
	case cfg.State == nil:
		return errors.New("State is missing; masters read there how the update stands")
	case cfg.Listen == "" && cfg.ListenTLS == "" && len(cfg.Lines) == 0:
		return errors.New("nobody could ask: give an address to listen on, or a serial line")
	}
	if err := cfg.access(); err != nil {
		return err
	}
	if err := cfg.numbers(); err != nil {
		return err
	}
	for _, l := range cfg.Lines {
		if err := l.Validate(); err != nil {
			return fmt.Errorf("serial line %s: %w", l.Path, err)
		}
	}
	if len(cfg.Functions) == 0 {
		cfg.Functions = []bus.Function{bus.WriteRegisters, bus.WriteFile}
	}
	for _, f := range cfg.Functions {
		if f != bus.WriteRegisters && f != bus.WriteFile {
			return fmt.Errorf("function code %d: bytes are written by %d or %d", byte(f), byte(bus.WriteRegisters), byte(bus.WriteFile))
		}
	}
	if cfg.NetListen == nil {
		cfg.NetListen = func(ctx context.Context, address string) (net.Listener, error) {
			return new(net.ListenConfig).Listen(ctx, "tcp", address)
		}
	}
	if cfg.OpenLine == nil {
		cfg.OpenLine = func(l Line) (io.ReadWriteCloser, error) { return serial.Open(l.Config) }
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return nil
}

// access checks who may do what. What is not certain is refused here, not later.
func (cfg *Config) access() error {
	switch {
	case cfg.ListenTLS != "" && cfg.TLS == nil:
		return errors.New("ListenTLS is given without TLS: certificates are missing")
	case cfg.ListenTLS != "" && cfg.TLS.ClientAuth != tls.RequireAndVerifyClientCert:
		return errors.New("TLS does not require certificates of clients, which carry their roles")
	case cfg.ListenTLS != "" && cfg.TLS.MinVersion != 0 && cfg.TLS.MinVersion < tls.VersionTLS12:
		return errors.New("TLS is allowed below version 1.2, which the security specification forbids")
	case cfg.AllowPlain && len(cfg.Allow) == 0:
		return errors.New("plain TCP may write, but no addresses are named from which; Modbus itself knows nobody")
	case !cfg.AllowPlain && len(cfg.Allow) > 0:
		return errors.New("addresses are named that may write over plain TCP, which is not allowed; allow plain, or leave them out")
	}
	for _, p := range slices.Concat(cfg.Allow, cfg.ReadFrom) {
		if !p.IsValid() {
			return errors.New("one of the allowed networks is empty or not valid")
		}
	}
	if cfg.Roles == nil {
		cfg.Roles = []string{DefaultRole}
	}
	if slices.Contains(cfg.Roles, "") {
		return errors.New("one of the roles is empty, which would be every certificate without a role")
	}
	return nil
}

func (cfg *Config) numbers() error {
	if cfg.Base == nil {
		base := uint16(profile.Base)
		cfg.Base = &base
	}
	base, unit := int64(*cfg.Base), int64(cfg.Unit)
	window, components, burst := int64(cfg.Window), int64(cfg.Components), int64(cfg.OpenBurst)
	idle, every := int64(cfg.IdleTimeout), int64(cfg.OpenEvery)
	for _, n := range []struct {
		name           string
		v              *int64
		def, low, high int64
		show           func(int64) string
	}{
		{"unit", &unit, 1, 1, 247, nil},
		{"base address", &base, 0, 0, 1<<16 - profile.Size, nil},
		{"window", &window, 32, 1, 1000, nil},
		{"greatest transfer in bytes", &cfg.MaxSize, 256 << 20, 1, math.MaxUint32, nil},
		{"number of components", &components, 1, 1, 1000, nil},
		{"burst of OPEN", &burst, 5, 1, 1000, nil},
		{"idle timeout", &idle, int64(time.Minute), int64(time.Second), int64(time.Hour), span},
		{"time between two OPEN", &every, int64(2 * time.Second), int64(time.Millisecond), int64(time.Hour), span},
	} {
		if *n.v == 0 {
			*n.v = n.def
		}
		if n.show == nil {
			n.show = func(v int64) string { return fmt.Sprint(v) }
		}
		if *n.v < n.low || *n.v > n.high {
			return fmt.Errorf("%s is %s, want %s to %s", n.name, n.show(*n.v), n.show(n.low), n.show(n.high))
		}
	}
	cfg.Unit = byte(unit)
	cfg.Window, cfg.Components, cfg.OpenBurst = int(window), int(components), int(burst)
	cfg.IdleTimeout, cfg.OpenEvery = time.Duration(idle), time.Duration(every)
	return nil
}

func span(v int64) string { return time.Duration(v).String() }

// within says whether one of the networks holds an address.
func within(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}
