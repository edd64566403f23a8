package sunspec

import (
	"context"
	"errors"
	"testing"
)

var errException2 = errors.New("exception 2: illegal data address")

// fakeDevice is a fake of a Modbus device: registers from a base on, and an
// exception for everything else. It is not made of an Image, so that maps can be
// wrong in ways that an Image is not.
type fakeDevice struct {
	base      int
	registers []uint16
	before    func(read int, address, count uint16) // called before every read; read counts from 1
	short     bool                                  // answers come with a register too few
	deaf      bool                                  // writes are accepted and not kept
	writeErr  error                                 // returned by writes, after they were done

	reads  int
	most   uint16 // the longest read
	writes []Write
}

func (d *fakeDevice) ReadHolding(_ context.Context, address, count uint16) ([]uint16, error) {
	d.reads++
	d.most = max(d.most, count)
	if d.before != nil {
		d.before(d.reads, address, count)
	}
	from := int(address) - d.base
	if from < 0 || from+int(count) > len(d.registers) {
		return nil, errException2
	}
	answer := append([]uint16(nil), d.registers[from:from+int(count)]...)
	if d.short {
		answer = answer[1:]
	}
	return answer, nil
}

func (d *fakeDevice) WriteRegisters(_ context.Context, address uint16, values []uint16) error {
	d.writes = append(d.writes, Write{address, append([]uint16(nil), values...)})
	from := int(address) - d.base
	if from < 0 || from+len(values) > len(d.registers) {
		return errException2
	}
	if !d.deaf {
		copy(d.registers[from:], values)
	}
	return d.writeErr
}

// fakeOf is a device with the registers of an image.
func fakeOf(im *Image) *fakeDevice { return &fakeDevice{base: int(im.base), registers: im.Registers()} }

// plant is an image of a system with everything: a battery of one string of 13
// modules, a converter with ports to a battery and to a PV field, and controls.
func plant(t testing.TB) (*Image, map[uint16]Model) {
	t.Helper()
	im := NewImage(40000)
	models := map[uint16]Model{}
	for _, c := range []struct {
		id       uint16
		repeats  int
		settings []Setting
	}{
		{1, 0, []Setting{Text("Mn", "Acme"), Text("Md", "Block 200"), Text("Vr", "1.4.2"), Text("SN", "4711")}},
		{701, 0, []Setting{Symbolic("InvSt", "RUNNING"), Bits("Alrm"), Number("W", -1600), Number("TmpCab", 31.5)}},
		{704, 0, []Setting{
			Symbolic("WSetEna", "DISABLED"), Symbolic("WSetMod", "WATTS"), Number("WSet", 0), Number("WSetRvrt", 0),
			Symbolic("WSetEnaRvrt", "DISABLED"), Number("WSetRvrtTms", 0), Number("WSetRvrtRem", 0), Number("WRmp", 10),
		}},
		{713, 0, settings713},
		{714, 2, []Setting{
			Symbolic("Prt[1].PrtTyp", "PV"), Number("Prt[1].DCA", 11), Number("Prt[1].Tmp", 60), Bits("Prt[1].DCAlrm"),
			Symbolic("Prt[2].PrtTyp", "ESS"), Number("Prt[2].DCA", -2.4), Number("Prt[2].DCV", 665), Number("Prt[2].DCW", -1600),
			Number("Prt[2].Tmp", 33), Bits("Prt[2].DCAlrm"),
		}},
		{715, 0, []Setting{Symbolic("LocRemCtl", "REMOTE"), Number("DERHb", 99), Number("ControllerHb", 0), Number("AlarmReset", 0), Symbolic("OpCtl", "START")}},
		{802, 0, settings802},
		{803, 1, settings803},
		{804, 13, settings804()},
	} {
		m, err := im.Add(c.id, c.repeats)
		if err != nil {
			t.Fatal(err)
		}
		if err := im.Set(m, c.settings...); err != nil {
			t.Fatal(err)
		}
		models[c.id] = m
	}
	return im, models
}

func settings804() []Setting {
	s := []Setting{
		Number("Idx", 1), Bits("St", "STRING_ENABLED", "CONTACTOR_STATUS"), Number("SoC", 57.5), Number("A", -2.5), Number("V", 665.6),
		Number("CellVMax", 3.342), Number("CellVMin", 3.318), Number("ModTmpMax", 28.7), Number("ModTmpMin", 24.1), Bits("Evt1"),
	}
	for i := range 13 {
		s = append(s, Number(Path("module", i+1, "ModCellTmpMax"), 28.7), Number(Path("module", i+1, "ModCellTmpMin"), 24.1))
	}
	return s
}

func discover(t testing.TB, regs Registers) *Device {
	t.Helper()
	d, err := Discover(t.Context(), regs, Search{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
