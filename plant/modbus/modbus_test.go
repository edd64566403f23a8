package modbus_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	busmodbus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/plant/modbus"
)

var _ modbus.Bus = (*busmodbus.Client)(nil)

// fake is a plant in memory: a fake. Register 0 is a set-point in W, 1 and 2 are plain,
// 3 a command register that reads 0, 4 reads back with its highest bit set; the input
// register 100 is the power, which gets to the set-point at 5,000 W in a second.
type fake struct {
	disk    *otatest.Disk // every write is an effect of it
	regs    map[uint16]uint16
	w       float64
	at      time.Time
	ignores uint16 // a register that keeps its value; 0: none
	silent  bool
	single  int    // writes with function 6
	later   func() // happens 3 s after at
}

func newFake() *fake {
	return &fake{disk: otatest.NewDisk(), regs: map[uint16]uint16{0: 20_000, 1: 11, 2: 22, 3: 0, 4: 0x8004}, w: 20_000, at: time.Now()}
}

func (f *fake) flow() {
	most := 5000 * time.Since(f.at).Seconds()
	f.at = time.Now()
	f.w += max(-most, min(most, float64(int16(f.regs[0]))-f.w))
}

func (f *fake) ReadHolding(_ context.Context, unit byte, address, count uint16) (values []uint16, err error) {
	if unit != 1 || f.silent {
		return nil, errors.New("no answer")
	}
	if f.later != nil && time.Since(f.at) > 3*time.Second {
		f.later()
	}
	for i := range count {
		values = append(values, f.regs[address+i])
	}
	return values, nil
}

func (f *fake) ReadInput(ctx context.Context, unit byte, address, count uint16) ([]uint16, error) {
	if unit != 1 || address != 100 || count != 1 || f.silent {
		return nil, errors.New("no answer")
	}
	f.flow()
	return []uint16{uint16(int16(math.Round(f.w)))}, nil
}

func (f *fake) WriteRegister(ctx context.Context, unit byte, address, value uint16) error {
	f.single++
	return f.WriteRegisters(ctx, unit, address, []uint16{value})
}

func (f *fake) WriteRegisters(_ context.Context, unit byte, address uint16, values []uint16) error {
	if unit != 1 || f.silent {
		return errors.New("no answer")
	}
	return f.disk.Effect(fmt.Sprint("write ", address), func() {
		f.flow()
		for i, v := range values {
			switch at := address + uint16(i); {
			case at == 3 || at == f.ignores && at != 0:
			case at == 4:
				f.regs[at] = v | 0x8000
			default:
				f.regs[at] = v
			}
		}
	})
}

func config(f *fake, told *strings.Builder) modbus.Config {
	return modbus.Config{
		Bus: f, File: "/state/plant-modbus", FS: f.disk,
		Progress: func(text string) {
			if told != nil {
				told.WriteString(text + "\n")
			}
		},
		Quiesce: []modbus.Step{
			{Unit: 1, Address: 1, Values: []uint16{111, 222}, Single: true},
			{Unit: 1, Address: 3, Values: []uint16{7}, Command: true},
			{Unit: 1, Address: 4, Values: []uint16{5}, Expect: []uint16{0x8005}},
			{Unit: 1, Address: 0, Values: []uint16{0}, Wait: &modbus.Condition{Unit: 1, Address: 100, Input: true, Signed: true, Min: -100, Max: 100, For: 2 * time.Second}},
		},
		Resume: []modbus.Step{
			{Unit: 1, Address: 0},
			{Unit: 1, Address: 4, Values: []uint16{4}, Expect: []uint16{0x8004}},
			{Unit: 1, Address: 3, Values: []uint16{8}, Command: true},
			{Unit: 1, Address: 1, Single: true},
		},
	}
}

func open(t *testing.T, c modbus.Config) *modbus.List {
	t.Helper()
	l, err := modbus.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refuses(t *testing.T, err error, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func asFound(t *testing.T, f *fake, want map[uint16]uint16) {
	t.Helper()
	if !maps.Equal(f.regs, want) {
		t.Errorf("got %v, found was %v", f.regs, want)
	}
	if _, err := f.disk.Stat("/state/plant-modbus"); err == nil {
		t.Error("something is still remembered")
	}
}

func TestList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told strings.Builder
		f := newFake()
		found := maps.Clone(f.regs)
		l := open(t, config(f, &told))
		began := time.Now()
		must(t, l.Quiesce(t.Context()))
		if took := time.Since(began); took < 6*time.Second || math.Abs(f.w) > 100 {
			t.Errorf("took %s, and %.0f W flow; want the time of the ramp and 2 s of rest", took, f.w)
		}
		if f.regs[1] != 111 || f.regs[2] != 222 || f.regs[4] != 0x8005 || f.single != 2 {
			t.Errorf("got %v, and %d single writes", f.regs, f.single)
		}
		must(t, l.Quiesce(t.Context()))
		must(t, l.Resume(t.Context()))
		asFound(t, f, found)
		if !strings.Contains(told.String(), "write back [20000] to unit 1, address 0\n") {
			t.Errorf("was told\n%s", told.String())
		}
		f.silent = true // without a Quiesce the bus is not asked
		must(t, l.Resume(t.Context()))
	})
}

// TestCuts ends the process at every write, and the next one's Resume too.
func TestCuts(t *testing.T) {
	count := 0
	process := func(t *testing.T, f *fake, do func(*modbus.List) error) (err error, cut bool) {
		l := open(t, config(f, nil))
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(*otatest.PowerCut); !ok {
					panic(r)
				}
				cut = true
			}
		}()
		return do(l), false
	}
	for _, kind := range []otatest.Cut{{How: otatest.Before, Agent: true}, {How: otatest.After, Agent: true}, {How: otatest.After, Rest: otatest.DropAll}, {How: otatest.Torn, Rest: otatest.Subset, Seed: 3}} {
		for at, fell := 1, true; fell; at++ {
			for second, again := 0, true; again; second++ {
				synctest.Test(t, func(t *testing.T) {
					f := newFake()
					found := maps.Clone(f.regs)
					kind.At = at
					f.disk.Arm(kind)
					var err error
					err, fell = process(t, f, func(l *modbus.List) error {
						if err := l.Quiesce(t.Context()); err != nil {
							return err
						}
						return l.Resume(t.Context())
					})
					again = fell
					must(t, err)
					f.disk.PowerOn()
					if second > 0 && fell {
						f.disk.Arm(otatest.Cut{At: second, How: otatest.After, Agent: true})
						_, again = process(t, f, func(l *modbus.List) error { return l.Resume(t.Context()) })
						f.disk.PowerOn()
					}
					err, _ = process(t, f, func(l *modbus.List) error { return l.Resume(t.Context()) })
					must(t, err)
					asFound(t, f, found)
					count++
				})
				if t.Failed() {
					t.Fatalf("cut %v at %d, then at %d", kind, at, second)
				}
			}
		}
	}
	fmt.Printf("plant/modbus: %d runs with cuts\n", count)
}

// TestFailures is what is no success, and what it says; Resume puts things right.
func TestFailures(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(f *fake, c *modbus.Config)
		want   []string
	}{
		{"a register keeps its value", func(f *fake, c *modbus.Config) { f.ignores = 2 }, []string{"step 1: write [111 222] to unit 1, address 1: it reads [111 22] after 1.5s"}},
		{"it never comes to rest", func(f *fake, c *modbus.Config) { c.Quiesce[3].Values = []uint16{500} },
			[]string{"step 4: wait for unit 1, address 100: not so within 1m0s: it is 500, want -100 to 100"}},
		{"there is no such unit", func(f *fake, c *modbus.Config) { c.Quiesce[3].Wait.Unit = 9 }, []string{"not so within 1m0s: no answer"}},
		{"another's cannot be read", func(f *fake, c *modbus.Config) {
			c.Quiesce = append(c.Quiesce, modbus.Step{Unit: 9, Address: 5, Values: []uint16{1}})
		}, []string{"step 5, find what is there: read unit 9, address 5: no answer"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				found := maps.Clone(f.regs)
				c := config(f, nil)
				test.change(f, &c)
				l := open(t, c)
				refuses(t, l.Quiesce(t.Context()), append(test.want, "quiesce plant: ")...)
				f.ignores = 0
				must(t, l.Resume(t.Context()))
				asFound(t, f, found)
			})
		})
	}
}

// TestMask waits for bits among others.
func TestMask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := config(f, nil)
		c.Quiesce = []modbus.Step{{Wait: &modbus.Condition{Unit: 1, Address: 5, Mask: 0x0F00, Min: 0x0300, Max: 0x0300, Within: 10 * time.Second}}}
		c.Resume = c.Quiesce
		f.regs[5] = 0xA2A5
		refuses(t, open(t, c).Quiesce(t.Context()), "it is 512, want 768 to 768")
		f.later = func() { // 3 s from now
			f.regs[5] = 0xA3A5
		}
		f.at = time.Now()
		must(t, open(t, c).Quiesce(t.Context()))
	})
}

// TestOthers: what somebody else has written meanwhile stays.
func TestOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told strings.Builder
		f := newFake()
		l := open(t, config(f, &told))
		must(t, l.Quiesce(t.Context()))
		f.regs[0] = 777
		must(t, l.Resume(t.Context()))
		if f.regs[0] != 777 || !strings.Contains(told.String(), "another controller has changed unit 1, address 0 to [777]") {
			t.Errorf("got %d, and was told\n%s", f.regs[0], told.String())
		}
	})
}

// TestDamaged: values that were found are not guessed; a list that names all of its
// values does without.
func TestDamaged(t *testing.T) {
	for _, named := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			c := config(f, nil)
			if named {
				c.Resume = []modbus.Step{{Unit: 1, Address: 0, Values: []uint16{20_000}}}
			}
			l := open(t, c)
			must(t, l.Quiesce(t.Context()))
			file, err := f.disk.OpenFile(c.File, os.O_RDWR, 0)
			must(t, err)
			must(t, file.Truncate(90))
			refuses(t, l.Quiesce(t.Context()), "damaged", "resume first")
			f.disk.Arm(otatest.Cut{})
			err = l.Resume(t.Context())
			if named {
				must(t, err)
				if f.regs[0] != 20_000 {
					t.Errorf("got %d", f.regs[0])
				}
				return
			}
			refuses(t, err, "damaged", "by hand, and remove the file /state/plant-modbus")
			if n := f.disk.Effects(); n != 0 {
				t.Errorf("got %d effects, want none", n)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	step := modbus.Step{Unit: 1, Address: 1, Values: []uint16{1}}
	for want, change := range map[string]func(*modbus.Config){
		"there is no bus":                   func(c *modbus.Config) { c.Bus = nil },
		"want an absolute path":             func(c *modbus.Config) { c.File = "" },
		"got 0 steps to quiesce":            func(c *modbus.Config) { c.Quiesce = nil },
		"and 0 to resume":                   func(c *modbus.Config) { c.Resume = nil },
		"step 1 of quiesce: it writes noth": func(c *modbus.Config) { c.Quiesce = []modbus.Step{{Unit: 1}} },
		"nothing is found there": func(c *modbus.Config) {
			c.Quiesce, c.Resume = []modbus.Step{step}, []modbus.Step{{Unit: 1, Address: 2}}
		},
		"it writes 124 registers":   func(c *modbus.Config) { c.Quiesce[0].Values = make([]uint16, 124) },
		"registers at 65535":        func(c *modbus.Config) { c.Quiesce[0].Address = 65535 },
		"expects 2 to read back":    func(c *modbus.Config) { c.Quiesce[3].Expect = []uint16{1, 2} },
		"a command without a value": func(c *modbus.Config) { c.Quiesce[3].Values, c.Quiesce[3].Command = nil, true },
		"waits for 101 to 100":      func(c *modbus.Config) { c.Quiesce[3].Wait.Min = 101 },
		"the poll time is -1ns":     func(c *modbus.Config) { c.Poll = -1 },
	} {
		c := config(newFake(), nil)
		change(&c)
		_, err := modbus.New(c)
		refuses(t, err, "configure the quiescing of plant: ", want)
	}
}
