package modbus_test

import (
	"bytes"
	"testing"

	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// told with a session and without.
var writes = map[string]struct {
	do                   func(m *master, b []byte) error
	with, without, other bus.Exception
}{
	"a block":               {func(m *master, b []byte) error { return m.raw(0x100, m.registers(b, 2, nil)) }, 0, 3, 6},
	"the last block":        {func(m *master, b []byte) error { return m.raw(0x100, m.registers(b, uint32((len(b)-1)/224), nil)) }, 0, 3, 6},
	"a block with one byte": {func(m *master, b []byte) error { return m.registersOf(2, b[448:449]) }, 0, 3, 6},
	"the block after the last": {func(m *master, b []byte) error {
		return m.registersOf(uint32((len(b)+223)/224), []byte{1})
	}, 3, 3, 6},
	"a block over the end": {func(m *master, b []byte) error {
		return m.registersOf(uint32((len(b)-1)/224), make([]byte, 224))
	}, 3, 3, 6},
	"block 2^32-1":             {func(m *master, b []byte) error { return m.registersOf(1<<32-1, []byte{1}) }, 3, 3, 6},
	"a block with other bytes": {func(m *master, b []byte) error { return m.registersOf(3, bytes.Repeat([]byte{0xA5}, 224)) }, 3, 3, 6},
	"a wrong CRC-32": {func(m *master, b []byte) error {
		return m.raw(0x100, m.registers(b, 2, func(r []uint16) { r[5] ^= 1 }))
	}, 3, 3, 3},
	"a wrong session": {func(m *master, b []byte) error {
		return m.raw(0x100, m.registers(b, 2, func(r []uint16) { r[0] ^= 1 }))
	}, 3, 3, 6},
	"a length of 0": {func(m *master, b []byte) error { return m.raw(0x100, m.registers(b, 2, func(r []uint16) { r[3] = 0 })) }, 3, 3, 3},
	"a length of 225": {func(m *master, b []byte) error {
		return m.raw(0x100, m.registers(b, 2, func(r []uint16) { r[3] = 225 }))
	}, 3, 3, 3},
	"half a block": {func(m *master, b []byte) error { return m.raw(0x100, m.registers(b, 2, nil)[:60]) }, 3, 3, 3},
	"a block, not at its place": {func(m *master, b []byte) error {
		return m.raw(0x101, (&profile.Block{Session: m.session, Number: 2, Data: b[448:450]}).Append(nil))
	}, 3, 3, 3},
	"half a command":           {func(m *master, b []byte) error { return m.raw(0x20, make([]uint16, 29)) }, 3, 3, 3},
	"the end of a command":     {func(m *master, b []byte) error { return m.raw(0x3D, []uint16{0}) }, 3, 3, 3},
	"more than a command":      {func(m *master, b []byte) error { return m.raw(0x20, make([]uint16, 31)) }, 3, 3, 3},
	"a command without number": {func(m *master, b []byte) error { return m.raw(0x20, append([]uint16{9}, make([]uint16, 29)...)) }, 3, 3, 3},
	"the identity":             {func(m *master, b []byte) error { return m.raw(0x02, []uint16{1}) }, 2, 2, 2},
	"the status":               {func(m *master, b []byte) error { return m.raw(0x40, make([]uint16, 32)) }, 2, 2, 2},
	"the display":              {func(m *master, b []byte) error { return m.raw(0x60, []uint16{1}) }, 2, 2, 2},
	"what is after the map":    {func(m *master, b []byte) error { return m.raw(profile.Size, []uint16{1}) }, 2, 2, 2},
	"what is before the map":   {func(m *master, b []byte) error { return m.raw(-1, []uint16{1}) }, 2, 2, 2},
	"function 6, the command": {func(m *master, b []byte) error {
		return m.c.WriteRegister(m.t.Context(), m.unit, m.base+0x20, 1)
	}, 3, 3, 3},
	"function 6, data":   {func(m *master, b []byte) error { return m.c.WriteRegister(m.t.Context(), m.unit, m.base+0x100, 1) }, 3, 3, 3},
	"function 6, status": {func(m *master, b []byte) error { return m.c.WriteRegister(m.t.Context(), m.unit, m.base+0x40, 1) }, 2, 2, 2},
	"function 5":         {func(m *master, b []byte) error { return m.c.WriteCoil(m.t.Context(), m.unit, m.base, true) }, 1, 1, 1},
	"function 15":        {func(m *master, b []byte) error { return m.c.WriteCoils(m.t.Context(), m.unit, m.base, []bool{true}) }, 1, 1, 1},
	"function 22":        {func(m *master, b []byte) error { return m.c.MaskWrite(m.t.Context(), m.unit, m.base+0x20, 0, 1) }, 1, 1, 1},
	"function 24":        {func(m *master, b []byte) error { _, err := m.c.ReadFIFO(m.t.Context(), m.unit, m.base); return err }, 1, 1, 1},
	"function 1":         {func(m *master, b []byte) error { _, err := m.c.ReadCoils(m.t.Context(), m.unit, m.base, 1); return err }, 1, 1, 1},
	"function 2": {func(m *master, b []byte) error {
		_, err := m.c.ReadDiscreteInputs(m.t.Context(), m.unit, m.base, 1)
		return err
	}, 1, 1, 1},

	"records": {func(m *master, b []byte) error { return m.records(1, 100, b[200:400]) }, 0, 3, 6},
	"the last record": {func(m *master, b []byte) error {
		f, r := profile.Place(int64((len(b) - 1) &^ 1))
		return m.records(f, r, b[(len(b)-1)&^1:])
	}, 0, 3, 6},
	"a record over the end": {func(m *master, b []byte) error {
		f, r := profile.Place(int64((len(b)-1)&^1) + 2)
		return m.records(f, r, []byte{1, 2})
	}, 2, 3, 6},
	"records over the end": {func(m *master, b []byte) error {
		f, r := profile.Place(int64((len(b) - 1) &^ 1))
		return m.records(f, r, make([]byte, 10))
	}, 2, 3, 6},
	"a file after the last":       {func(m *master, b []byte) error { return m.records(0xEFFF, 0, []byte{1, 2}) }, 2, 3, 6},
	"records with other bytes":    {func(m *master, b []byte) error { return m.records(1, 400, bytes.Repeat([]byte{0xA5}, 20)) }, 3, 3, 6},
	"the bitmap":                  {func(m *master, b []byte) error { return m.records(0xF002, 0, []byte{1, 2}) }, 2, 2, 2},
	"the evidence":                {func(m *master, b []byte) error { return m.records(0xF003, 0, []byte{1, 2}) }, 2, 2, 2},
	"no file":                     {func(m *master, b []byte) error { return m.records(0xF004, 0, []byte{1, 2}) }, 2, 2, 2},
	"a manifest without a length": {func(m *master, b []byte) error { return m.records(0xF001, 2, []byte{1, 2}) }, 6, 6, 6},
	"half of its length":          {func(m *master, b []byte) error { return m.records(0xF001, 0, []byte{0, 0}) }, 3, 3, 6},
	"a manifest of 0 bytes":       {func(m *master, b []byte) error { return m.records(0xF001, 0, []byte{0, 0, 0, 0}) }, 3, 3, 6},
	"a manifest of 4 GB":          {func(m *master, b []byte) error { return m.records(0xF001, 0, []byte{0xFF, 0xFF, 0xFF, 0xFF}) }, 3, 3, 6},
	"more manifest than announced": {func(m *master, b []byte) error {
		return m.records(0xF001, 0, []byte{0, 0, 0, 1, 7, 0, 7, 0})
	}, 2, 2, 6},
}

func (m *master) raw(at int, registers []uint16) error {
	return m.c.WriteRegisters(m.t.Context(), m.unit, uint16(int(m.base)+at), registers)
}

// registers is block n of b, changed.
func (m *master) registers(b []byte, n uint32, change func([]uint16)) []uint16 {
	block := profile.Block{Session: m.session, Number: n, Data: piece(b, n)}
	registers := block.Append(nil)
	if change != nil {
		change(registers)
	}
	return registers
}

func (m *master) registersOf(n uint32, data []byte) error {
	block := profile.Block{Session: m.session, Number: n, Data: data}
	return m.raw(0x100, block.Append(nil))
}

func (m *master) records(file, record uint16, b []byte) error {
	return m.c.WriteFile(m.t.Context(), m.unit, file, record, profile.Registers(nil, b))
}

// a session, without one, while another has one, and from one that may not write.
func TestWhatIsWritten(t *testing.T) {
	rel := newRelease(t)
	// half is a device that has the manifest and blocks 0 to 9 or so.
	half := func(t *testing.T) (*rig, *master) {
		r := newRig(t, rel)
		m := r.master("192.0.2.1")
		m.open(offer(profile.Open, rel.Bundle))
		for s := m.status(); s.State == profile.Opening; s = m.status() {
			if s.Window > 0 {
				m.block(rel.Bundle, s.Missing)
			}
		}
		return r, m
	}
	for name, w := range writes {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, m := half(t)
				before := m.status()
				if got := exception(t, w.do(m, rel.Bundle)); got != w.with {
					t.Errorf("with a session: got %v, want %v", got, w.with)
				}
				after := m.status()
				if w.with != 0 && (after.Received != before.Received || after.State != before.State || after.Session != before.Session) {
					t.Errorf("what was refused has changed the status from %+v to %+v", before, after)
				}
				// Another master is told that this one writes, and has changed nothing.
				second := r.master("192.0.2.2")
				second.session = m.session
				if got := exception(t, w.do(second, rel.Bundle)); got != w.other {
					t.Errorf("while another has the session: got %v, want %v", got, w.other)
				}
				if w.other == bus.DeviceBusy {
					if s := second.status(); s.Result != profile.Busy || s.Session != 0 || s.RetryAfter == 0 {
						t.Errorf("while another has the session: got %+v, want the result busy, no session, and when to try again", s)
					}
				}
				if s := m.status(); s.Session != m.session {
					t.Errorf("the first master has session %d, want %d", s.Session, m.session)
				}
				// One that may not write.
				stranger := r.master("198.51.100.1")
				stranger.session = m.session
				if got := exception(t, w.do(stranger, rel.Bundle)); got != bus.IllegalFunction {
					t.Errorf("from an address that may not write: got %v, want %v", got, bus.IllegalFunction)
				}
				if w.without != 1 && stranger.status().Result != profile.NotAllowed {
					t.Errorf("from an address that may not write: got %v, want %v", stranger.status().Result, profile.NotAllowed)
				}
				if s := m.status(); s.Result == profile.NotAllowed {
					t.Error("the first master reads what the stranger was told")
				}
			})
			bubble(t, func(t *testing.T) {
				r := newRig(t, rel)
				m := r.master("192.0.2.1")
				m.session = 77
				if got := exception(t, w.do(m, rel.Bundle)); got != w.without {
					t.Errorf("without a session: got %v, want %v", got, w.without)
				}
				if st := r.box.State(); st.Phase != inbox.Empty || st.Received != 0 {
					t.Errorf("without a session something got into the inbox: %+v", st)
				}
			})
		})
	}
}
