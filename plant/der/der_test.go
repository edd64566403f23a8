package der_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/plant/der"
)

// in runs a test with its own clock, on a plant that is discharging 38 kW, by a
// set-point of its own if byOwn, and tells what was told.
func in(t *testing.T, setPoint bool, run func(t *testing.T, f *fake, c *der.Config, told *diary)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := scenario{found: func(f *fake) {
			f.own = 38_000
			if setPoint {
				f.set(f.controls, sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Number("WSet", 38_000))
			}
		}}
		f, c := s.plant(t)
		var told diary
		c.Progress = told.write
		run(t, f, &c, &told)
	})
}

// diary is what was told, also by the keeper's goroutine.
type diary struct {
	mu   sync.Mutex
	text string
}

func (d *diary) write(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.text += text + "\n"
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text
}

func open(t *testing.T, c *der.Config) *der.DER {
	t.Helper()
	d, err := der.New(*c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refuses demands an error that says all of these.
func refuses(t *testing.T, err error, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func contains(t *testing.T, told *diary, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(told.String(), want) {
			t.Errorf("was told\n%s, want %q in it", told, want)
		}
	}
}

// TestRamp watches the power: it goes down and up by at most 10 % of the rated power
// in a second, and Quiesce returns at rest.
func TestRamp(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		found := f.state()
		d := open(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		steepest, done := 0.0, make(chan struct{})
		go func() {
			defer close(done)
			for last := math.NaN(); ctx.Err() == nil; {
				f.mu.Lock()
				f.flow()
				now := f.commanded()
				f.mu.Unlock()
				if !math.IsNaN(last) {
					steepest = max(steepest, math.Abs(now-last))
				}
				last = now
				time.Sleep(999 * time.Millisecond)
			}
		}()
		must(t, d.Quiesce(t.Context()))
		if f.w > rated/100 {
			t.Errorf("got %.0f W, want at most 1 %%", f.w)
		}
		contains(t, told, "found Fake BESS 0001: set-point 38.0 kW\n", "ramp down: set-point 28.0 kW\n", "ramp down: set-point 0 W\n", "at rest for 3s: ")
		must(t, d.Resume(t.Context()))
		contains(t, told, "ramp up: set-point 8000 W\n", "ramp up: set-point 38.0 kW\n")
		asFound(t, f, *c, found)
		cancel()
		<-done
		if steepest > rated/10 || steepest == 0 {
			t.Errorf("the set-point moved by %.0f W in a second, want some, and at most %d W", steepest, rated/10)
		}
	})
}

// TestKeeper: while the process lives the plant stays at rest, far longer than the
// dead-man's time; when it ends, the dead-man has its time.
func TestKeeper(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		d := open(t, c)
		must(t, d.Quiesce(t.Context()))
		for range 600 {
			time.Sleep(6 * time.Second)
			if got := commands(f); got != 0 {
				t.Fatalf("it is told to do %.0f W", got)
			}
		}
		must(t, d.Close())
		time.Sleep(deadMan * 3 / 4 * 9 / 10)
		if got := commands(f); got != 0 {
			t.Errorf("just closed: it is told to do %.0f W", got)
		}
		time.Sleep(deadMan)
		if got := commands(f); got != 38_000 {
			t.Errorf("after the dead-man: it is told to do %.0f W", got)
		}
	})
}

// TestKeeperFails: three attempts of the keeper may fail.
func TestKeeperFails(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		d := open(t, c)
		must(t, d.Quiesce(t.Context()))
		began := time.Now()
		f.mu.Lock()
		f.unreadable = func() error {
			if time.Since(began) < deadMan/2+time.Second {
				return errors.New("no answer")
			}
			return nil
		}
		f.mu.Unlock()
		time.Sleep(20 * time.Minute)
		if got := commands(f); got != 0 {
			t.Errorf("it is told to do %.0f W", got)
		}
		contains(t, told, "no answer; trying again in 1m15s")
		must(t, d.Resume(t.Context()))
	})
}

// TestKeeperYields: the keeper does not arm what somebody else has set.
func TestKeeperYields(t *testing.T) {
	for _, other := range []sunspec.Setting{sunspec.Number("WSet", 7000), sunspec.Number("WSet", 38_000), sunspec.Symbolic("WSetEna", "DISABLED")} {
		in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			d := open(t, c)
			must(t, d.Quiesce(t.Context()))
			f.mu.Lock()
			f.set(f.controls, other)
			f.mu.Unlock()
			f.disk.Arm(otatest.Cut{})
			time.Sleep(4 * time.Minute)
			if n := f.disk.Effects(); n != 0 {
				t.Errorf("%s: it wrote %d times, want none", other.Path, n)
			}
			contains(t, told, "the dead-man is not armed any more: another controller")
		})
	}
}

// TestTwice: what counts is what was found the first time, in this process and in
// the next, half-way and at rest.
func TestTwice(t *testing.T) {
	for _, setPoint := range []bool{false, true} {
		for _, within := range []time.Duration{500 * time.Millisecond, 2500 * time.Millisecond, time.Minute} {
			in(t, setPoint, func(t *testing.T, f *fake, c *der.Config, told *diary) {
				found := f.state()
				ctx, cancel := context.WithTimeout(t.Context(), within)
				defer cancel()
				d := open(t, c)
				if err := d.Quiesce(ctx); (err == nil) != (within == time.Minute) {
					t.Fatal(err)
				}
				must(t, d.Quiesce(t.Context()))
				d.Close()
				f.greatest = 0
				next := open(t, c)
				must(t, next.Quiesce(t.Context()))
				if got := f.most(); got != 0 {
					t.Errorf("at rest, and quiesced again, it did %.0f W", got)
				}
				must(t, next.Resume(t.Context()))
				asFound(t, f, *c, found)
				must(t, next.Resume(t.Context()))
				asFound(t, f, *c, found)
			})
		}
	}
}

// TestAfterTheDeadMan: a Quiesce that comes after the dead-man had struck, and after
// the operator has set something else, finds that.
func TestAfterTheDeadMan(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		d := open(t, c)
		must(t, d.Quiesce(t.Context()))
		d.Close()
		time.Sleep(deadMan + time.Second)
		if got := commands(f); got != 38_000 {
			t.Errorf("after the dead-man: it is told to do %.0f W", got)
		}
		f.set(f.controls, sunspec.Number("WSet", 12_345))
		next := open(t, c)
		must(t, next.Quiesce(t.Context()))
		must(t, next.Resume(t.Context()))
		if got := f.state(); got["704 WSet"] != 12_345 || got["704 WSetRvrtTms"] != 0 || got["704 WSetRvrt"] != -77 {
			t.Errorf("got %v", got)
		}
	})
}

// TestNothingToResume: without a Quiesce before it, Resume does not even ask the plant.
func TestNothingToResume(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		f.unreadable = func() error { return errors.New("it was asked") }
		must(t, open(t, c).Resume(t.Context()))
		if n := f.disk.Effects(); n != 0 {
			t.Errorf("got %d effects, want none", n)
		}
	})
}

// TestAnotherController: what somebody else has set meanwhile stays, and our dead-man
// does not undo it.
func TestAnotherController(t *testing.T) {
	for name, other := range map[string][]sunspec.Setting{
		"a set-point":   {sunspec.Number("WSet", 5_555)},
		"none":          {sunspec.Symbolic("WSetEna", "DISABLED")},
		"other unit":    {sunspec.Symbolic("WSetMod", "W_MAX_PCT"), sunspec.Number("WSetPct", 5)},
		"more, charges": {sunspec.Number("WSet", -10_000)},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
				found := f.state()
				d := open(t, c)
				must(t, d.Quiesce(t.Context()))
				f.set(f.controls, other...)
				want := maps.Clone(f.state())
				for _, path := range []string{"704 WSetRvrtTms", "704 WSetEnaRvrt", "704 WSetRvrt", "704 WSetPctRvrt"} {
					want[path] = found[path]
				}
				must(t, d.Resume(t.Context()))
				asFound(t, f, *c, want)
				contains(t, told, "another controller has changed the set-point")
				time.Sleep(2 * deadMan)
				asFound(t, f, *c, want)
			})
		})
	}
	t.Run("its dead-man", func(t *testing.T) {
		in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			d := open(t, c)
			must(t, d.Quiesce(t.Context()))
			f.set(f.controls, sunspec.Number("WSetRvrtTms", 42))
			must(t, d.Resume(t.Context()))
			contains(t, told, "another controller has changed WSetRvrtTms to 42")
			if got := f.state()["704 WSetRvrtTms"]; got != 42 {
				t.Errorf("WSetRvrtTms is %d, want 42", got)
			}
		})
	})
	t.Run("while quiescing", func(t *testing.T) {
		in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			time.AfterFunc(4500*time.Millisecond, func() { f.set(f.controls, sunspec.Number("WSet", 20_000)) })
			refuses(t, open(t, c).Quiesce(t.Context()), "another controller has changed the set-point")
		})
	})
}

// TestDamaged: what was remembered is lost. The device's own dead-man knows it; where
// there is none, nothing is guessed.
func TestDamaged(t *testing.T) {
	spoil := func(f *fake, c *der.Config) {
		file, err := f.disk.OpenFile(c.File, os.O_RDWR, 0)
		if err == nil {
			_, err = file.WriteAt([]byte("7"), 100)
		}
		if err != nil {
			panic(err)
		}
		file.Close()
	}
	for _, setPoint := range []bool{false, true} {
		in(t, setPoint, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			found := f.state()
			d := open(t, c)
			must(t, d.Quiesce(t.Context()))
			spoil(f, c)
			refuses(t, d.Quiesce(t.Context()), "damaged", "resume first")
			must(t, d.Resume(t.Context()))
			for _, path := range []string{"704 WSetRvrt", "704 WSetPctRvrt", "704 WSetEnaRvrt"} {
				found[path] = f.state()[path] // without effect: no time is set
			}
			asFound(t, f, *c, found)
			contains(t, told, "its dead-man knows what was found")
		})
	}
	t.Run("after the dead-man", func(t *testing.T) {
		in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			d := open(t, c)
			must(t, d.Quiesce(t.Context()))
			d.Close()
			spoil(f, c)
			time.Sleep(deadMan + time.Minute)
			f.disk.Arm(otatest.Cut{})
			must(t, d.Resume(t.Context()))
			if n := f.disk.Effects(); n != 2 || commands(f) != 38_000 {
				t.Errorf("got %d effects and %.0f W, want the file removed, and what was found", n, commands(f))
			}
		})
	})
	t.Run("held at 0 by somebody else", func(t *testing.T) {
		in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			d := open(t, c)
			must(t, d.Quiesce(t.Context()))
			d.Close()
			spoil(f, c)
			f.set(f.controls, sunspec.Number("WSetRvrtTms", 0))
			f.reverts = time.Time{}
			must(t, d.Resume(t.Context()))
			if got := commands(f); got != 0 {
				t.Errorf("it is told to do %.0f W", got)
			}
		})
	})
	for name, change := range map[string]func(*der.Config){
		"no dead-man": func(c *der.Config) { c.DeadMan, c.NoDeadMan = 0, true },
		"contactors":  func(c *der.Config) { c.OpenContactors = true },
		"standby":     func(c *der.Config) { c.Control, c.DeadMan, c.NoDeadMan = der.Standby802, 0, true },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
				change(c)
				d := open(t, c)
				must(t, d.Quiesce(t.Context()))
				spoil(f, c)
				f.disk.Arm(otatest.Cut{})
				refuses(t, d.Resume(t.Context()), "damaged", "by hand", "/state/plant-converter")
				if n := f.disk.Effects(); n != 0 {
					t.Errorf("got %d effects, want none", n)
				}
			})
		})
	}
}

// TestRefusals is what Quiesce does not take for done, and what it says.
func TestRefusals(t *testing.T) {
	controls := func(s ...sunspec.Setting) func(f *fake, c *der.Config) {
		return func(f *fake, c *der.Config) { f.set(f.controls, s...) }
	}
	for _, test := range []struct {
		name   string
		change func(f *fake, c *der.Config)
		want   []string
		writes bool // it may have written before it refused
	}{
		{"the power does not go down", func(f *fake, c *der.Config) { f.stuck = true },
			[]string{"wait for rest: not done within 3m0s: ", "701 W 38.0 kW, want at most 500 W", "802 A 47.5 A, want at most 1 A", "714 Prt[1].DCA 47.5 A"}, true},
		{"the set-point is ignored", func(f *fake, c *der.Config) { f.ignores = "704 WSet" },
			[]string{"WSet is 38000, want 33000 after 1.5s; the device does not take it"}, true},
		{"enabling is ignored", func(f *fake, c *der.Config) {
			f.set(f.controls, sunspec.Symbolic("WSetEna", "DISABLED"))
			f.ignores = "704 WSetEna"
		}, []string{"take over at", "WSetEna is 0, want 1"}, true},
		{"the dead-man is ignored", func(f *fake, c *der.Config) { f.ignores = "704 WSetRvrtTms" },
			[]string{"arm the dead-man", "WSetRvrtTms is 0, want 300"}, true},
		{"the dead-man does not start", func(f *fake, c *der.Config) { f.noRevert = true },
			[]string{"704 WSetRvrtRem is 0 s, want about 300 s"}, true},
		{"no dead-man", controls(sunspec.Missing("WSetRvrtTms")), []string{"704 WSetRvrtTms: it is not implemented, so the converter has no dead-man"}, false},
		{"nowhere to revert to", controls(sunspec.Missing("WSetRvrt")), []string{"704 WSetRvrt: it is not implemented"}, false},
		{"no set-point", controls(sunspec.Missing("WSet")), []string{"704 WSet", "use another control"}, false},
		{"nothing to enable", controls(sunspec.Missing("WSetEna")), []string{"704 WSetEna: it is not implemented"}, false},
		{"local, 715", func(f *fake, c *der.Config) { f.set(f.ctl, sunspec.Symbolic("LocRemCtl", "LOCAL")) }, []string{"715 LocRemCtl is LOCAL"}, false},
		{"local, 802", func(f *fake, c *der.Config) { f.set(f.battery, sunspec.Symbolic("LocRemCtl", "LOCAL")) }, []string{"802 LocRemCtl is LOCAL"}, false},
		{"rated power unknown", func(f *fake, c *der.Config) {
			f.set(f.battery, sunspec.Missing("WChaRteMax"), sunspec.Missing("WDisChaRteMax"))
		}, []string{"the rated power is not known"}, false},
		{"nothing measures current", func(f *fake, c *der.Config) {
			c.Timeout = time.Minute
			f.blind = true
		}, []string{"nothing measures the battery's current"}, true},
		{"contactors weld", func(f *fake, c *der.Config) { c.OpenContactors, f.welded = true, true },
			[]string{"open the contactors: not done within 3m0s: 802 State is 3 CONNECTED"}, true},
		{"contactors cannot be told", func(f *fake, c *der.Config) {
			c.OpenContactors = true
			f.set(f.battery, sunspec.Missing("SetOp"))
		}, []string{"look at the contactors: read 802 SetOp", "configure that they stay closed"}, false},
		{"standby is ignored", func(f *fake, c *der.Config) {
			c.Control, c.DeadMan, c.NoDeadMan, f.ignores = der.Standby715, 0, true, "715 OpCtl"
		}, []string{"enter standby: write 715: OpCtl is 1, want 2"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
				f.set(f.battery, sunspec.Number("WChaRteMax", rated/2)) // half of what it is, so that a step is 5 kW
				test.change(f, c)
				found := f.state()
				f.disk.Arm(otatest.Cut{})
				d := open(t, c)
				err := d.Quiesce(t.Context())
				refuses(t, err, append(test.want, "quiesce converter: ")...)
				if n := f.disk.Effects(); !test.writes && n != 0 {
					t.Errorf("got %d effects, want none", n)
				}
				f.mu.Lock()
				f.stuck, f.ignores, f.noRevert, f.unreadable = false, "", false, nil
				f.mu.Unlock()
				must(t, d.Resume(t.Context()))
				asFound(t, f, *c, found)
			})
		})
	}
}

// TestSlowButRight: a device may take a second until what was written reads back, and
// an answer may be lost while it comes to rest.
func TestSlowButRight(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		found := f.state()
		f.takes = 950 * time.Millisecond
		d := open(t, c)
		began, lost := time.Now(), 0
		f.unreadable = func() error {
			if at := time.Since(began); at > 13*time.Second && lost < 2 {
				lost++
				return errors.New("no answer")
			}
			return nil
		}
		must(t, d.Quiesce(t.Context()))
		if lost == 0 {
			t.Error("no answer was lost")
		}
		contains(t, told, "wait for rest: ", "no answer")
		must(t, d.Resume(t.Context()))
		asFound(t, f, *c, found)
	})
}

// TestLost: a plant that does not answer is resumed later, from what is remembered.
func TestLost(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		found := f.state()
		d := open(t, c)
		must(t, d.Quiesce(t.Context()))
		f.unreadable = func() error { return errors.New("no route to host") }
		refuses(t, d.Resume(t.Context()), "resume converter: ", "no route to host")
		f.unreadable = nil
		must(t, d.Resume(t.Context()))
		asFound(t, f, *c, found)
	})
}

// TestOtherDevice: what was found at one device is not written to another.
func TestOtherDevice(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		d := open(t, c)
		must(t, d.Quiesce(t.Context()))
		d.Close()
		f.set(f.common, sunspec.Text("SN", "0002"))
		f.disk.Arm(otatest.Cut{})
		refuses(t, d.Resume(t.Context()), `it is "Fake BESS 0002", and was "Fake BESS 0001"`, "remove the file")
		refuses(t, d.Quiesce(t.Context()), `it is "Fake BESS 0002"`)
		if n := f.disk.Effects(); n != 0 {
			t.Errorf("got %d effects, want none", n)
		}
	})
}

// TestRescaled: the converter's new firmware counts in tens of watts.
func TestRescaled(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		d := open(t, c)
		must(t, d.Quiesce(t.Context()))
		f.set(f.controls, sunspec.Raw("WSet_SF", 1), sunspec.Raw("WSetRvrt", 3800))
		must(t, d.Resume(t.Context()))
		if got := commands(f); got != 38_000 || f.most() > 38_000 {
			t.Errorf("it is told to do %.0f W and did %.0f W, want 38000", got, f.most())
		}
	})
}

// TestStoppedStaysStopped: a converter that was stopped is neither put to standby nor
// started afterwards.
func TestStoppedStaysStopped(t *testing.T) {
	in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
		c.Control, c.DeadMan, c.NoDeadMan = der.Standby715, 0, true
		f.set(f.ctl, sunspec.Symbolic("OpCtl", "STOP"))
		d := open(t, c)
		must(t, d.Quiesce(t.Context()))
		must(t, d.Resume(t.Context()))
		if got := f.state()["715 OpCtl"]; got != 0 {
			t.Errorf("OpCtl is %d, want 0", got)
		}
	})
}

// TestContactorsOfOthers: contactors that the battery management has opened meanwhile
// are not closed, and those that were open before stay so.
func TestContactorsOfOthers(t *testing.T) {
	t.Run("opened meanwhile", func(t *testing.T) {
		in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			c.OpenContactors = true
			d := open(t, c)
			must(t, d.Quiesce(t.Context()))
			f.set(f.battery, sunspec.Symbolic("SetOp", "CONNECT"))
			refuses(t, d.Resume(t.Context()), "the battery management or a person has opened them")
			if got := f.state()["802 State"]; got != 1 || commands(f) != 0 {
				t.Errorf("State is %d, and it is told to do %.0f W", got, commands(f))
			}
		})
	})
	t.Run("open before", func(t *testing.T) {
		in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			c.OpenContactors = true
			f.set(f.battery, sunspec.Symbolic("SetOp", "DISCONNECT"), sunspec.Symbolic("State", "DISCONNECTED"))
			found := f.state()
			d := open(t, c)
			must(t, d.Quiesce(t.Context()))
			must(t, d.Resume(t.Context()))
			asFound(t, f, *c, found)
		})
	})
}

func TestConfig(t *testing.T) {
	f := newFake(t)
	for want, change := range map[string]func(*der.Config){
		"no connection":           func(c *der.Config) { c.Registers = nil },
		"want an absolute path":   func(c *der.Config) { c.File = "state" },
		`the control is "705"`:    func(c *der.Config) { c.Control = "705" },
		"is to have none":         func(c *der.Config) { c.NoDeadMan = true },
		"has no dead-man in":      func(c *der.Config) { c.Control = der.Standby802 },
		"the dead-man is 0s":      func(c *der.Config) { c.DeadMan = 0 },
		"the dead-man is 29s":     func(c *der.Config) { c.DeadMan = 29 * time.Second },
		"the dead-man is 25h":     func(c *der.Config) { c.DeadMan = 25 * time.Hour },
		"rated power NaN W":       func(c *der.Config) { c.RatedW = math.NaN() },
		"rest at -1 W":            func(c *der.Config) { c.MaxW = -1 },
		"and +Inf A":              func(c *der.Config) { c.MaxA = math.Inf(1) },
		"the ramp is 101 %/s":     func(c *der.Config) { c.Ramp = 101 },
		"the ramp is NaN %/s":     func(c *der.Config) { c.Ramp = math.NaN() },
		"poll -1ns, timeout 3m0s": func(c *der.Config) { c.Poll = -1 },
	} {
		c := config(f)
		change(&c)
		_, err := der.New(c)
		refuses(t, err, "configure the quiescing of converter: ", want)
	}
}

// ExampleDER is what an agent does. The battery is simulated, and at rest.
func ExampleDER() {
	battery := sunspec.NewImage(40000)
	ac, _ := battery.Add(701, 0)
	controls, _ := battery.Add(704, 0)
	base, _ := battery.Add(802, 0)
	battery.Set(ac, sunspec.Number("W", 0))
	battery.Set(controls, sunspec.Symbolic("WSetEna", "DISABLED"), sunspec.Symbolic("WSetMod", "WATTS"), sunspec.Number("WSet", 5000),
		sunspec.Number("WSetRvrt", 0), sunspec.Symbolic("WSetEnaRvrt", "DISABLED"), sunspec.Number("WSetRvrtTms", 0))
	battery.Set(base, sunspec.Number("A", 0))

	dir, _ := os.MkdirTemp("", "")
	defer os.RemoveAll(dir)
	converter, err := der.New(der.Config{
		Registers: battery, // in real life a modbus.Unit
		File:      dir + "/plant-converter",
		DeadMan:   10 * time.Minute,
		RatedW:    50_000,
		Settle:    time.Millisecond,
		Poll:      time.Millisecond,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	show := func(err error) {
		b, _ := battery.Block(controls)
		enabled, _ := b.Enum("WSetEna")
		fmt.Println(err, enabled.Name, b.Float("WSet"), "W, dead-man", b.Float("WSetRvrtTms"), "s")
	}
	show(converter.Quiesce(context.Background()))
	// ... the controller restarts here ...
	show(converter.Resume(context.Background()))
	// Output:
	// <nil> ENABLED 0 W, dead-man 600 s
	// <nil> DISABLED 5000 W, dead-man 0 s
}

// TestSettle: a swing through rest is no rest, in neither direction.
func TestSettle(t *testing.T) {
	for _, swing := range []float64{20_000, -20_000} {
		in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			c.Settle = 10 * time.Second
			d := open(t, c)
			f.stuck = true
			began := time.Now()
			for s := range 29 { // 4 s at rest, 1 s not, the last from 24 to 25
				time.AfterFunc(time.Duration(s)*time.Second, func() {
					f.mu.Lock()
					defer f.mu.Unlock()
					f.w = 0
					if s%5 == 4 {
						f.w = swing
					}
				})
			}
			must(t, d.Quiesce(t.Context()))
			if took := time.Since(began); took < 35*time.Second {
				t.Errorf("%.0f W: at rest after %s, want 10 s after the last swing, at 25 s", swing, took)
			}
		})
	}
}

// TestDisarmedLast: until the set-point is back the dead-man runs, so that it mends
// what a Resume that dies cannot.
func TestDisarmedLast(t *testing.T) {
	for at, fell := 1, true; fell; at++ {
		in(t, true, func(t *testing.T, f *fake, c *der.Config, told *diary) {
			f.own = 5000
			err, _ := process(t, *c, quiesce)
			must(t, err)
			f.disk.Arm(otatest.Cut{At: at, How: otatest.After, Agent: true})
			_, fell = process(t, *c, resume)
			f.disk.PowerOn()
			time.Sleep(deadMan + time.Minute)
			if got := commands(f); got != 38_000 {
				t.Errorf("died at write %d of Resume, after the dead-man: it is told to do %.0f W", at, got)
			}
			_, _ = process(t, *c, resume)
		})
	}
}
