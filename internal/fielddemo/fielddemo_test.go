package fielddemo

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The lines wait far more than they compute, so all are at work at once.
func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "8")
	os.Exit(m.Run())
}

// TestOverTheFieldBus pushes a release over each kind of line. The line is bad, the laptop
// is killed when a third of the blocks was sent, and the agent, without a warning,
// when two thirds were. The device ends proven, and no block that was acknowledged is
// sent again.
func TestOverTheFieldBus(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute; make field-demo runs it")
	}
	w := newWorkshop(t)
	for _, tt := range []struct {
		name string
		make func(t *testing.T) line
	}{
		{"Modbus TCP", func(t *testing.T) line { return plainTCP(t, 1) }},
		{"Modbus TLS", func(t *testing.T) line { return secure(t, 2) }},
		{"Modbus RTU 9600", func(t *testing.T) line { return rtu(t, 3, 9600) }},
		{"Modbus RTU 115200", func(t *testing.T) line { return rtu(t, 4, 115200) }},
		{"CAN over SLCAN", func(t *testing.T) line { return slcan(t, w, 5) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			l := tt.make(t)
			d := w.newDevice(t, l.source)
			d.status("the factory's firmware", runs("1.0.0"))
			args := append(l.to, l.bundle)

			first := d.push(args...)
			blocks := w.blocks(t, l)
			first.until(t, "a third of the blocks", func() bool { return l.sent() >= blocks/3 })
			first.kill()
			again := d.push(args...)
			again.until(t, "two thirds of the blocks", func() bool { return l.sent() >= 2*blocks/3 })
			d.kill()
			d.start()
			again.wait(t)
			d.status("the new firmware, proven", runs("1.1.0"))

			if twice := l.again(); len(twice) > 0 {
				t.Errorf("sent again after they were acknowledged: %v", twice)
			}
			fmt.Printf("%-18s %5d of %5d seen on the tap, device proven after %.1f s\n", tt.name, l.sent(), blocks, time.Since(start).Seconds())
		})
	}
}

// blocks is how many the bundle has on this line, in its unit.
func (w *workshop) blocks(t *testing.T, l line) int {
	t.Helper()
	info, err := os.Stat(filepath.Join(w.dir, l.bundle))
	if err != nil {
		t.Fatal(err)
	}
	return (int(info.Size()) + l.unit - 1) / l.unit
}
