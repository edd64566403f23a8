package modbus

import (
	"context"
	"net"
	"net/netip"

	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// door is the handler of one listener or line. It knows who comes in by it, and which
// part of the map is asked for; what is then done is elsewhere.
type door struct {
	s    *Source
	line string // "tcp", "tls", or the path of a serial line
}

var _ interface {
	bus.HoldingReader
	bus.HoldingWriter
	bus.InputReader
	bus.FileReader
	bus.FileWriter
} = door{}

// A peer is a master as far as it can be told: a new connection from the same address
// is the same master, for connections get cut.
type peer struct {
	line string
	addr netip.Addr // not valid on a serial line
	role string     // proven by TLS
}

func (p peer) String() string {
	text := p.line
	if p.addr.IsValid() {
		text += " " + p.addr.String()
	}
	if p.role != "" {
		text += " (" + p.role + ")"
	}
	return text
}

// who says who asks, and refuses those that ask for another unit.
func (d door) who(call bus.Call) (peer, error) {
	p := peer{line: d.line, role: call.Role}
	if call.Transport == bus.RTU {
		return p, nil // only our own unit gets here
	}
	if call.Unit != d.s.cfg.Unit && call.Unit != 0 && call.Unit != 255 {
		return p, bus.GatewayPath
	}
	p.addr = addrOf(call.Remote)
	return p, nil
}

// addrOf is the address without the port, and an IPv4 address as such.
func addrOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// mayWrite says whether a master may write at all.
func (s *Source) mayWrite(p peer) bool {
	switch p.line {
	case string(bus.TLS):
		for _, role := range s.cfg.Roles {
			if p.role == role {
				return true
			}
		}
		return false
	case string(bus.TCP):
		return s.cfg.AllowPlain && within(s.cfg.Allow, p.addr)
	}
	return !s.cfg.ForbidRTU
}

func (s *Source) mayRead(p peer) bool {
	onLine := p.line != string(bus.TCP) && p.line != string(bus.TLS)
	return onLine || len(s.cfg.ReadFrom) == 0 || within(s.cfg.ReadFrom, p.addr) || s.mayWrite(p)
}

// ReadHolding implements FC 3, and the reading half of FC 23.
func (d door) ReadHolding(_ context.Context, call bus.Call, address uint16, dst []uint16) error {
	p, err := d.who(call)
	if err != nil {
		return err
	}
	if !d.s.mayRead(p) {
		return bus.IllegalFunction
	}
	at := int(address) - int(*d.s.cfg.Base)
	if at < 0 || at+len(dst) > profile.Size {
		return bus.IllegalAddress
	}
	var registers [profile.Size]uint16
	d.s.registers(p, registers[:], at, at+len(dst))
	copy(dst, registers[at:])
	return nil
}

// ReadInput implements FC 4, which reads the same.
func (d door) ReadInput(ctx context.Context, call bus.Call, address uint16, dst []uint16) error {
	return d.ReadHolding(ctx, call, address, dst)
}

// WriteHolding implements FC 16, and the writing half of FC 23: a command or a block,
// whole. One register, as FC 6 writes it, is neither.
func (d door) WriteHolding(_ context.Context, call bus.Call, address uint16, values []uint16) error {
	p, err := d.who(call)
	if err != nil {
		return err
	}
	at := int(address) - int(*d.s.cfg.Base)
	command := at >= profile.OffsetCommand && at < profile.OffsetCommand+profile.CommandSize
	data := at >= profile.OffsetData && at < profile.OffsetData+profile.DataSize
	switch {
	case !d.s.mayWrite(p):
		d.s.turnAway(p, at, values)
		return bus.IllegalFunction
	case !command && !data:
		return bus.IllegalAddress
	case command && at != profile.OffsetCommand, data && at != profile.OffsetData:
		return bus.IllegalValue
	case command:
		return d.s.command(p, values)
	case !d.s.takes(bus.WriteRegisters):
		return bus.IllegalFunction
	}
	return d.s.block(p, values)
}

// ReadFile implements FC 20.
func (d door) ReadFile(_ context.Context, call bus.Call, file, record uint16, dst []uint16) error {
	p, err := d.who(call)
	if err != nil {
		return err
	}
	if !d.s.mayRead(p) {
		return bus.IllegalFunction
	}
	return d.s.readFile(p, file, record, dst)
}

// WriteFile implements FC 21.
func (d door) WriteFile(_ context.Context, call bus.Call, file, record uint16, values []uint16) error {
	p, err := d.who(call)
	if err != nil {
		return err
	}
	if !d.s.takes(bus.WriteFile) {
		return bus.IllegalFunction
	}
	if !d.s.mayWrite(p) {
		d.s.turnAway(p, -1, nil)
		return bus.IllegalFunction
	}
	return d.s.writeFile(p, file, record, values)
}
