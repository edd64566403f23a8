package simulate

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/sunspec"
)

// FuzzCommand: whatever is typed is refused, or can be done.
func FuzzCommand(f *testing.F) {
	for _, s := range []string{"soc 22", "soc=22", "current -2.5", "temperature 46", "soh 95", "contactors open", "fault frozen silent",
		"clear", "clear frozen", "soc NaN", "soc 1e999", "temperature 1e308", "temperature -60", "fault", "10s soc=22; 20s clear", "-1s clear", ";;", "9999999h clear"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		s, err := newSystem(Config{})
		if err != nil {
			t.Fatal(err)
		}
		do := func(c Command) {
			if err := s.Do(c); err != nil {
				t.Errorf("%q was accepted, and then %v", line, err)
			}
			if _, err := s.frames(); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			if err := s.update(); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
		if c, err := Parse(line); err == nil {
			do(c)
		}
		steps, err := ParseScript(line)
		for i, step := range steps {
			if i > 0 && step.After < steps[i-1].After || step.After < 0 || err != nil {
				t.Errorf("%q: step %d at %v, %v", line, i, step.After, err)
			}
			do(step.Do)
		}
	})
}

// FuzzWrite: whatever is written, the answer is an exception that is meant, and the
// battery stays one: finite, within its limits, and readable.
func FuzzWrite(f *testing.F) {
	s, err := newSystem(Config{})
	if err != nil {
		f.Fatal(err)
	}
	r := s.registers
	for _, at := range []uint16{r.controls.Address + 22, r.controls.Address + 24, r.controls.Address + 31, r.controls.Address + 49,
		r.control.Address + 8, r.base.Address + 19, r.base.Address + 50, 40000, 0, 65535} {
		f.Add(at, []byte{0, 1})
		f.Add(at, []byte{0xFF, 0xFF})
		f.Add(at, []byte{0xFF, 0xFF, 0xFF, 0xFF})
		f.Add(at, []byte{0, 0, 0, 1, 0xFF, 0xFF})
		f.Add(at, []byte{0, 1, 0, 1, 0, 0, 0x75, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 60})
	}
	f.Fuzz(func(t *testing.T, address uint16, data []byte) {
		values := make([]uint16, min(len(data)/2, modbus.MaxWriteRegisters))
		for i := range values {
			values[i] = binary.BigEndian.Uint16(data[2*i:])
		}
		if len(values) == 0 || int(address)+len(values) > 0x10000 {
			return // which the server refuses by itself
		}
		s, err := newSystem(Config{})
		if err != nil {
			t.Fatal(err)
		}
		err = wire{s}.WriteRegisters(context.Background(), address, values)
		if err != nil && !errors.Is(err, modbus.IllegalAddress) && !errors.Is(err, modbus.IllegalValue) {
			t.Errorf("write %04x at %d: %v", values, address, err)
		}
		d, err := sunspec.Discover(context.Background(), wire{s}, sunspec.Search{})
		if err != nil || len(d.Models) != 9 {
			t.Fatalf("write %04x at %d: the map is %v, %v", values, address, d, err)
		}
		m := s.Measure()
		if math.Abs(m.ACPower) > 100_000 || !(math.Abs(m.Current) < 200) || !(m.Voltage > 500 && m.Voltage < 800) {
			t.Errorf("write %04x at %d: got %v W, %v A, %v V", values, address, m.ACPower, m.Current, m.Voltage)
		}
	})
}
