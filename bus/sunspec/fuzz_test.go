package sunspec

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"
)

// FuzzWalk gives any bytes to everything that reads. It must end, with short
// reads and not too many of them, and whatever comes out is a finite number or none.
func FuzzWalk(f *testing.F) {
	im, models := plant(f)
	seed := func(registers []uint16) {
		var bytes []byte
		for _, r := range registers {
			bytes = binary.BigEndian.AppendUint16(bytes, r)
		}
		f.Add(bytes)
	}
	whole := im.Registers()
	seed(whole)
	seed(whole[:len(whole)-40])
	for _, id := range []uint16{714, 802, 803, 804} { // each alone, and with a wrong length
		b, err := im.Block(models[id])
		if err != nil {
			f.Fatal(err)
		}
		one := slices.Concat([]uint16{marker0, marker1}, b.Registers, []uint16{endModel})
		seed(one)
		one[3] -= 7
		seed(one)
		one[3] = 0xFFFF
		seed(one)
	}
	f.Add([]byte("SunS"))

	f.Fuzz(func(t *testing.T, bytes []byte) {
		regs := &fakeDevice{base: 40000}
		for ; len(bytes) >= 2 && len(regs.registers) < 25536; bytes = bytes[2:] {
			regs.registers = append(regs.registers, binary.BigEndian.Uint16(bytes))
		}
		d, err := Discover(t.Context(), regs, Search{})
		if regs.most > MaxRead || regs.reads > 3+2*65 {
			t.Fatalf("got %d reads of up to %d registers", regs.reads, regs.most)
		}
		if err != nil {
			return
		}
		for _, m := range d.Models {
			regs.reads = 0
			b, err := d.Read(t.Context(), regs, m)
			if most := passes * (2 + (int(m.Length)+2+MaxRead-1)/MaxRead); regs.most > MaxRead || regs.reads > most {
				t.Fatalf("read %d: got %d reads of up to %d registers, want at most %d", m.ID, regs.reads, regs.most, most)
			}
			if err != nil || Define(m.ID) == nil {
				continue
			}
			every(t, b)
		}
		b, err := ReadBattery(t.Context(), regs, d)
		if err != nil {
			return
		}
		quantities := append([]Quantity{b.SoC, b.SoH, b.V, b.A, b.W, b.TempMin, b.TempMax, b.CellMin, b.CellMax, b.Capacity}, append(b.OtherA, b.OtherSoC...)...)
		for _, q := range quantities {
			if math.IsInf(q.Value, 0) || math.IsNaN(q.Value) != (q.Why != "") || math.IsNaN(q.Value) != (q.Model == 0) {
				t.Errorf("got %+v", q)
			}
		}
	})
}

// every reads each point in every way, and writes it.
func every(t *testing.T, b Block) {
	paths := func(prefix string, points []Point) {
		for _, p := range points {
			path := prefix + p.Name
			if v := b.Float(path); math.IsInf(v, 0) {
				t.Errorf("%d %s: got %v", b.Model.ID, path, v)
			}
			_, _ = b.Enum(path)
			_, _ = b.Bits(path)
			_, _ = b.Integer(path)
			_, _ = b.Text(path)
			if w, err := b.SetFloat(path, 57.5); err == nil && (w.Address < b.Model.Address || int(w.Address)+len(w.Values) > int(b.Model.Address)+len(b.Registers)) {
				t.Errorf("%d %s: got %v outside of the model", b.Model.ID, path, w)
			}
		}
	}
	d := Define(b.Model.ID)
	paths("", d.Points)
	for _, g := range d.Groups {
		if !g.Repeats {
			paths(g.Name+".", g.Points)
			continue
		}
		n, _ := b.Repeats(g.Name)
		for _, i := range []int{1, n, n + 1} {
			paths(Path(g.Name, max(1, i), ""), g.Points)
		}
	}
}
