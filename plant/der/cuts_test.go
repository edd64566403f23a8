package der_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/plant/der"
)

const deadMan = 5 * time.Minute

func config(f *fake) der.Config {
	return der.Config{Registers: f, File: "/state/plant-converter", FS: f.disk, DeadMan: deadMan}
}

// A scenario is a plant as it is found.
type scenario struct {
	name   string
	found  func(*fake)
	config func(*der.Config)
}

var scenarios = []scenario{
	{name: "no set-point, discharging", found: func(f *fake) { f.own = 38_000 }},
	{name: "no set-point, charging", found: func(f *fake) { f.own = -20_500 }},
	{name: "no set-point, at rest", found: func(f *fake) {}},
	{name: "no set-point, in percent", found: func(f *fake) {
		f.own = 25_000
		f.set(f.controls, sunspec.Symbolic("WSetMod", "W_MAX_PCT"))
	}},
	{name: "no set-point, percent not there", found: func(f *fake) {
		f.own = 25_000
		f.set(f.controls, sunspec.Symbolic("WSetMod", "W_MAX_PCT"), sunspec.Missing("WSetPct"), sunspec.Missing("WSetPctRvrt"))
	}},
	{name: "discharging by set-point", found: func(f *fake) {
		f.set(f.controls, sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Number("WSet", 35_500))
	}},
	{name: "charging by set-point", found: func(f *fake) {
		f.own = 60_000
		f.set(f.controls, sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Number("WSet", -31_234))
	}},
	{name: "held at 0", found: func(f *fake) {
		f.own = 60_000
		f.set(f.controls, sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Number("WSet", 0))
	}},
	{name: "set-point in percent", found: func(f *fake) {
		f.set(f.controls, sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Symbolic("WSetMod", "W_MAX_PCT"), sunspec.Number("WSetPct", 22.5))
	}},
	{name: "ramps by itself", found: func(f *fake) {
		f.slew = rated / 10
		f.set(f.controls, sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Number("WSet", 50_000), sunspec.Number("WRmp", 10))
	}},
	{name: "under somebody else's dead-man", found: func(f *fake) {
		f.set(f.controls, sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Number("WSet", 20_000), sunspec.Number("WSetRvrt", 500),
			sunspec.Symbolic("WSetEnaRvrt", "ENABLED"), sunspec.Number("WSetRvrtTms", 900))
	}},
	{name: "contactors", found: func(f *fake) {
		f.set(f.controls, sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Number("WSet", 10_000))
	}, config: func(c *der.Config) { c.OpenContactors = true }},
	{name: "standby by 715", found: func(f *fake) { f.own = 10_000 },
		config: func(c *der.Config) { c.Control, c.DeadMan, c.NoDeadMan = der.Standby715, 0, true }},
	{name: "standby by 802", found: func(f *fake) { f.own = 10_000 },
		config: func(c *der.Config) { c.Control, c.DeadMan, c.NoDeadMan = der.Standby802, 0, true }},
	{name: "no dead-man", found: func(f *fake) {
		f.own = 12_000
		f.set(f.controls, sunspec.Missing("WSetRvrtTms"), sunspec.Missing("WSetRvrt"))
	}, config: func(c *der.Config) { c.DeadMan, c.NoDeadMan = 0, true }},
}

// plant is a fake that has come to where the scenario finds it.
func (s scenario) plant(t testing.TB) (*fake, der.Config) {
	f := newFake(t)
	s.found(f)
	f.w = f.commanded()
	f.greatest = 0
	f.flow()
	c := config(f)
	if s.config != nil {
		s.config(&c)
	}
	return f, c
}

// process is one life of the agent: it does what do says, until the cut that is armed.
func process(t testing.TB, c der.Config, do func(context.Context, *der.DER) error) (err error, cut bool) {
	t.Helper()
	d, err := der.New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(*otatest.PowerCut); !ok {
				panic(r)
			}
			cut = true
		}
	}()
	defer d.Close()
	return do(t.Context(), d), false
}

func quiesce(ctx context.Context, d *der.DER) error { return d.Quiesce(ctx) }
func resume(ctx context.Context, d *der.DER) error  { return d.Resume(ctx) }
func both(ctx context.Context, d *der.DER) error {
	if err := d.Quiesce(ctx); err != nil {
		return err
	}
	return d.Resume(ctx)
}

// asFound demands that everything is as it was found, and that nothing is remembered.
func asFound(t testing.TB, f *fake, c der.Config, want map[string]int64) {
	t.Helper()
	want = maps.Clone(want)
	got := f.state()
	if c.Control == der.Standby715 && got["715 OpCtl"] == 3 { // EXIT_STANDBY, which is the way back to START
		want["715 OpCtl"] = 3
	}
	for path, v := range want {
		if got[path] != v {
			t.Errorf("%s: got %d, found was %d", path, got[path], v)
		}
	}
	if _, err := f.disk.Stat(c.File); err == nil {
		t.Errorf("%s is still there", c.File)
	}
}

// commands is what the plant is told to do.
func commands(f *fake) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flow()
	return f.commanded()
}

func (f *fake) most() float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.greatest
}

var cutKinds = []otatest.Cut{
	{How: otatest.Before, Agent: true}, {How: otatest.After, Agent: true}, {How: otatest.Torn, Agent: true, Seed: 1},
	{How: otatest.Before, Rest: otatest.DropAll}, {How: otatest.After, Rest: otatest.DropAll}, {How: otatest.After, Rest: otatest.KeepAll},
	{How: otatest.Torn, Rest: otatest.Subset, Seed: 2},
}

// bubble runs one case with its own clock.
func bubble(t *testing.T, name string, run func(t *testing.T)) bool {
	t.Helper()
	synctest.Test(t, run)
	if t.Failed() {
		t.Logf("in: %s", name)
	}
	return !t.Failed()
}

// TestCuts ends the process, or the power of the controller, at every single write to
// the plant and to the disk, of Quiesce and of Resume, and starts a process that
// resumes; and ends that too, at every one of its writes. The plant survives. It must
// be as it was found, and never have been told to do more than it did.
func TestCuts(t *testing.T) {
	single, double := 0, 0
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			for _, kind := range cutKinds {
				for at := 1; ; at++ {
					fell := false
					second := 0 // the recovery's write that is cut too; 0: none
					for again := true; again; second++ {
						again = false
						ok := bubble(t, fmt.Sprintf("%v at %d, then at %d", kind, at, second), func(t *testing.T) {
							f, c := s.plant(t)
							found, most := f.state(), math64(f.w)
							kind.At = at
							f.disk.Arm(kind)
							err, cut := process(t, c, both)
							fell = cut
							if !cut {
								if err != nil {
									t.Fatal(err)
								}
								asFound(t, f, c, found)
								return
							}
							f.disk.PowerOn()
							if second > 0 {
								f.disk.Arm(otatest.Cut{At: second, How: otatest.After, Agent: true})
								if _, again = process(t, c, resume); again {
									double++
									f.disk.PowerOn()
								}
								f.disk.Arm(otatest.Cut{})
							} else {
								single++
								again = kind.How == otatest.After && (kind.Agent || kind.Rest == otatest.DropAll)
							}
							if err, _ := process(t, c, resume); err != nil {
								t.Fatalf("the next process: %v", err)
							}
							asFound(t, f, c, found)
							if got := f.most(); got > most+1 {
								t.Errorf("it was told to do %.0f W, and did %.0f W before", got, most)
							}
						})
						if !ok {
							return
						}
					}
					if !fell {
						break
					}
				}
			}
		})
	}
	fmt.Printf("plant/der: %d cuts of Quiesce and Resume, and %d in the recovery from one\n", single, double)
}

func math64(v float64) float64 { return max(v, -v) }

// TestDeadMan ends the process at every write of Quiesce, and no other ever starts:
// after the dead-man's time the plant does what it did. A process that starts at last
// cleans up.
func TestDeadMan(t *testing.T) {
	count := 0
	for _, s := range scenarios {
		if _, c := s.plant(t); c.NoDeadMan || c.OpenContactors {
			continue // which have none, or one that cannot close contactors
		}
		for _, onTime := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, starts on time: %v", s.name, onTime), func(t *testing.T) {
				for at, fell := 1, true; fell; at++ {
					ok := bubble(t, fmt.Sprint("after write ", at), func(t *testing.T) {
						f, c := s.plant(t)
						f.onTime = onTime
						found, most, command := f.state(), math64(f.w), commands(f)
						f.disk.Arm(otatest.Cut{At: at, How: otatest.After, Agent: true})
						err, cut := process(t, c, quiesce)
						if fell = cut; err != nil {
							t.Fatal(err)
						}
						f.disk.PowerOn()
						if !cut && commands(f) != 0 {
							t.Errorf("quiesced, it is told to do %.0f W, want 0", commands(f))
						}
						time.Sleep(deadMan + time.Minute)
						count++
						if got := commands(f); math64(got-command) > 1 {
							t.Errorf("after the dead-man: it is told to do %.0f W, want %.0f W", got, command)
						}
						if got := f.state()["704 WSetEna"]; got != found["704 WSetEna"] {
							t.Errorf("after the dead-man: WSetEna is %d, want %d", got, found["704 WSetEna"])
						}
						if err, _ := process(t, c, resume); err != nil {
							t.Fatal(err)
						}
						asFound(t, f, c, found)
						if got := f.most(); got > most+1 {
							t.Errorf("it was told to do %.0f W, and did %.0f W before", got, most)
						}
					})
					if !ok {
						return
					}
				}
			})
		}
	}
	fmt.Printf("plant/der: %d deaths of the controller that only the dead-man mends\n", count)
}

// TestFaults lets every write fail once, without being done and with it ("failed but
// did it"), while the process lives. It resumes, as the manager does, and may fail
// once more.
func TestFaults(t *testing.T) {
	count := 0
	broken := errors.New("connection lost")
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			for _, did := range []bool{false, true} {
				for at, fell := 1, true; fell; at++ {
					ok := bubble(t, fmt.Sprintf("write %d, did it: %v", at, did), func(t *testing.T) {
						f, c := s.plant(t)
						found := f.state()
						fell = false
						failed := ""
						f.disk.OnEffect = func(n int, effect string) otatest.Fault {
							if n != at {
								return otatest.Fault{}
							}
							fell, failed = true, effect
							return otatest.Fault{Err: broken, Did: did}
						}
						f.disk.Arm(otatest.Cut{})
						err, _ := process(t, c, both)
						if fell {
							count++
						}
						if fell != (err != nil) && !(did && failed == "mkdir /state") { // which is looked at, and is there
							t.Errorf("fault in %q: got error %v", failed, err)
						}
						f.disk.OnEffect = nil
						if err, _ := process(t, c, resume); err != nil {
							t.Fatal(err)
						}
						asFound(t, f, c, found)
					})
					if !ok {
						return
					}
				}
			}
		})
	}
	fmt.Printf("plant/der: %d writes that fail\n", count)
}
