package ota_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

// The bootloader, or the restart, does not do what it is asked for the way out of a soak:
// the plant is quiesced for it once a minute at most, and once only while the bootloader
// would not be told.
func TestWayOutThatDoesNotWork(t *testing.T) {
	for _, test := range []struct {
		name     string
		slots    func(s *soak, next ota.Slots) ota.Slots
		running  string
		result   ota.Result
		reason   string
		suspends [2]int
	}{
		{"the bootloader is not told for 5 minutes", func(s *soak, next ota.Slots) ota.Slots {
			return &wrapped{Slots: next, try: func(next func() error) error {
				if time.Since(s.begun) < 5*time.Minute {
					return syscall.EROFS
				}
				return next()
			}}
		}, "1.0.0", ota.RolledBack, "rack 3 is hot", [2]int{2, 2}},
		{"the old image is damaged", func(s *soak, next ota.Slots) ota.Slots {
			return &wrapped{Slots: next, try: func(func() error) error { return fmt.Errorf("%w: bad checksum", ota.ErrValidation) }}
		}, "1.0.1", ota.Failed, "rack 3 is hot; and the device did not return to slot A in 3 tries", [2]int{1, 1}},
		{"the restart is refused for 5 minutes", func(s *soak, next ota.Slots) ota.Slots {
			return &wrapped{Slots: next, reboot: func(next func() error) error {
				if time.Since(s.begun) < 5*time.Minute {
					return syscall.EPERM
				}
				return next()
			}}
		}, "1.0.0", ota.RolledBack, "rack 3 is hot", [2]int{5, 8}},
		{"the restart does not come for 5 minutes", func(s *soak, next ota.Slots) ota.Slots {
			return &wrapped{Slots: next, reboot: func(next func() error) error {
				if time.Since(s.begun) < 5*time.Minute {
					return nil
				}
				return next()
			}}
		}, "1.0.0", ota.RolledBack, "rack 3 is hot", [2]int{3, 5}},
		{"the bootloader forgets it", func(s *soak, next ota.Slots) ota.Slots {
			return &wrapped{Slots: next, try: func(func() error) error { return nil }}
		}, "1.0.1", ota.Failed, "did not return to slot A in 3 tries", [2]int{3, 3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var s *soak
				s = soaking(d, func(c *ota.Config) {
					c.Symptom, c.Gate = s.from(0, forever), never
					c.Slots = test.slots(s, c.Slots)
				})
				got := live(t, d)
				wantRunning(t, d, test.running)
				wantReport(t, d, test.result, ota.ErrValidation, test.reason)
				if s.suspends < test.suspends[0] || s.suspends > test.suspends[1] {
					t.Errorf("quiesced %d times, want %d to %d", s.suspends, test.suspends[0], test.suspends[1])
				}
				if d.Suspended || got.State != ota.Idle || len(got.Skipped) != 1 {
					t.Errorf("suspended %v in state %s, skipped %v", d.Suspended, got.State, got.Skipped)
				}
				powerCycle(t, d, otatest.DropAll)
				wantRunning(t, d, test.running)
			})
		})
	}
}

// An agent that crashes in the soak again and again is a symptom; the power that goes,
// and the restarts of the device, are none.
func TestStartsInASoak(t *testing.T) {
	for _, test := range []struct {
		crashes int
		power   bool
		none    bool // of rollbacks
		want    string
	}{{crashes: 4, want: "1.0.1"}, {crashes: 5, want: "1.0.0"}, {crashes: 5, none: true, want: "1.0.1"}, {crashes: 12, power: true, want: "1.0.1"}} {
		t.Run(fmt.Sprintf("%+v", test), func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				crashes := test.crashes
				soaking(d, func(c *ota.Config) {
					c.NoRollback = test.none
					c.Symptom = func(context.Context) error {
						if crashes--; crashes >= 0 && test.power {
							d.Disk.PowerOff(otatest.KeepAll, 0)
							panic(&otatest.PowerCut{})
						} else if crashes >= 0 {
							panic(agentDies)
						}
						return nil
					}
				})
				live(t, d)
				wantRunning(t, d, test.want)
				if test.want == "1.0.0" {
					wantReport(t, d, ota.RolledBack, ota.ErrValidation, "the agent started 6 times in one boot of the soak")
				} else {
					wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
				}
			})
		})
	}
}

// A device that is restarted every 10 minutes ends a soak of 2 hours all the same, and
// not early.
func TestSoakOverRestarts(t *testing.T) {
	for _, power := range []bool{false, true} {
		device(t, func(t *testing.T, d *otatest.Device) {
			var s *soak
			var up time.Time
			s = soaking(d, func(c *ota.Config) {
				c.SoakTime, up = 2*time.Hour, time.Now()
				c.Symptom = func(context.Context) error {
					if time.Since(up) < 10*time.Minute {
						return nil
					}
					if power {
						d.Disk.PowerOff(otatest.DropAll, 0)
						panic(&otatest.PowerCut{})
					}
					panic(agentDies)
				}
			})
			if !power { // five starts of the agent, and then it stays
				starts, config := 0, d.Config
				d.Config = func(c *ota.Config) {
					if config(c); d.Running.Version == "1.0.1" {
						if starts++; starts > 4 {
							c.Symptom = nil
						}
					}
				}
			}
			if err := d.Live(t.Context(), 3*time.Hour); err != nil {
				t.Fatal(err)
			}
			wantRunning(t, d, "1.0.1")
			wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
			if took := s.ended.Sub(s.begun); took < 2*time.Hour || took > 2*time.Hour+20*time.Minute {
				t.Errorf("power %v: the soak took %v, want 2 h and at most 72 s more for each restart", power, took)
			}
		})
	}
}

// The decision to go back is not forgotten over a power cut, although the symptom is
// gone, and what was quiesced for it is resumed by the next start.
func TestDecisionSurvives(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var s *soak
		died, resumed := time.Time{}, time.Time{}
		s = soaking(d, func(c *ota.Config) {
			c.Symptom = s.from(0, 30*time.Second+time.Millisecond)
			c.Gate = s.opens(5 * time.Minute)
			if suspend := c.Hooks.Suspend; died.IsZero() {
				c.Hooks.Suspend = func(ctx context.Context) error {
					if err := suspend(ctx); err != nil {
						return err
					}
					<-time.After(time.Second)
					died = time.Now()
					d.Disk.PowerOff(otatest.DropAll, 0)
					panic(&otatest.PowerCut{})
				}
				return
			}
			c.Hooks.Suspend = func(context.Context) error { return errors.New("PCS does not answer") }
			resume := c.Hooks.Resume
			c.Hooks.Resume = func(ctx context.Context) error {
				if resumed.IsZero() {
					resumed = time.Now()
				}
				return resume(ctx)
			}
		})
		live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.RolledBack, ota.ErrValidation, "rack 3 is hot")
		if got := s.restarts[0].Sub(s.begun); got < 5*time.Minute {
			t.Errorf("left after %v, without a quiesced plant or a yes", got)
		}
		if died.IsZero() || resumed.Sub(died) > time.Second {
			t.Errorf("resumed %v after the cut, want at once", resumed.Sub(died))
		}
	})
}

// The plant is not resumed for the soak before the record knows of the soak: the record
// of a trial leads back without asking anybody.
func TestSoakIsSavedBeforeThePlantResumes(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var s *soak
		s = soaking(d, func(c *ota.Config) {
			resume := c.Hooks.Resume
			c.Hooks.Resume = func(ctx context.Context) error {
				if s.begun.IsZero() {
					t.Error("resumed before the soak is in the record")
				}
				return resume(ctx)
			}
		})
		full := 3 // saves that fail
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if d.Booted == "B" && strings.HasPrefix(effect, "write /data/record") && d.Manager().Snapshot().Status == ota.StatusTrial && full > 0 {
				full--
				return otatest.Fault{Err: syscall.ENOSPC}
			}
			return otatest.Fault{}
		}
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if full > 0 || s.begun.IsZero() {
			t.Errorf("%d faults left", full)
		}
	})
}

// In a soak the record cannot be written any more, nor read: firmware that was marked good
// is no reason to restart a plant at work, though the bootloader goes on saying at
// this boot that it is on trial.
func TestSoakThatCannotSave(t *testing.T) {
	for _, reads := range []bool{true, false} {
		device(t, func(t *testing.T, d *otatest.Device) {
			var marks []ota.State
			s := soaking(d, func(c *ota.Config) {
				c.Slots = bootloader{Slots: c.Slots, marks: &marks, trial: true, state: func() ota.State { return "" }}
			})
			faults := 0
			broken := func(name string) bool {
				if s.begun.IsZero() || time.Since(s.begun) < 30*time.Second || !strings.Contains(name, "/data/record") {
					return false
				}
				faults++
				return true
			}
			d.Disk.OnRead = func(name string, _ int64, _ []byte) error {
				if !reads && broken(name) {
					return syscall.EIO
				}
				return nil
			}
			d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
				if broken(effect) {
					return otatest.Fault{Err: syscall.EROFS}
				}
				return otatest.Fault{}
			}
			live(t, d)
			wantRunning(t, d, "1.0.1")
			if len(s.restarts) != 0 || d.Suspended || faults == 0 {
				t.Errorf("record readable: %v: %d restarts, suspended %v, %d faults", reads, len(s.restarts), d.Suspended, faults)
			}
		})
	}
}

// The old slot boots, although the new one was marked good: that is told, once.
func TestOldSlotBootsInTheSoak(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, nil)
		s := soaking(d, nil)
		if err := d.Live(t.Context(), 5*time.Minute); err != nil {
			t.Fatal(err)
		}
		if s.begun.IsZero() || !s.ended.IsZero() {
			t.Fatal("the device is not in the soak")
		}
		slots, err := d.Backend.Slots(d.Disk, d.Boot(), nil)
		if err == nil {
			err = slots.Try(t.Context(), "A")
		}
		if err != nil {
			t.Fatal(err)
		}
		powerCycle(t, d, otatest.KeepAll)
		got := live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.RolledBack, ota.ErrInternal, "slot A booted in the soak, although slot B with version 1.0.1 was marked good")
		if len(got.Skipped) != 1 || got.State != ota.Idle || d.Suspended {
			t.Errorf("%s, skipped %v, suspended %v", got.State, got.Skipped, d.Suspended)
		}
		powerCycle(t, d, otatest.DropAll)
		live(t, d)
		wantRunning(t, d, "1.0.0") // and stays
		if len(d.Source.Reports) != 1 {
			t.Errorf("%d reports, want 1", len(d.Source.Reports))
		}
	})
}

// The slot is marked good once at every start in a soak: some bootloaders count those.
func TestSoakKeepsTheSlotGood(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var marks []ota.State
		cuts := 2
		soaking(d, func(c *ota.Config) {
			c.Slots = bootloader{Slots: c.Slots, marks: &marks, trial: cuts < 2, state: func() ota.State { return d.Manager().Snapshot().State }}
			c.Symptom = func(context.Context) error {
				if cuts--; cuts >= 0 {
					d.Disk.PowerOff(otatest.DropAll, 0)
					panic(&otatest.PowerCut{})
				}
				return nil
			}
		})
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if want := []ota.State{ota.Trial, ota.Soak, ota.Soak, ota.Soak}; !slices.Equal(marks, want) {
			t.Errorf("marked good in states %q, want %q: after the trial, at two starts, and at the end", marks, want)
		}
	})
}

// A way out that the gate calls off at the last moment leaves no try behind: a power cut
// while the device waits boots what it boots, and not the old slot by chance.
func TestWayOutIsTakenBack(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var s *soak
		s = soaking(d, func(c *ota.Config) {
			c.Hooks.Suspend, c.Symptom = nil, s.from(0, forever)
			c.Gate = func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
				if at == ota.AtRestart {
					return never(ctx, m, at)
				}
				return nil
			}
		})
		if err := d.Live(t.Context(), 5*time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := len(s.moments); n == 0 || !slices.Contains(s.moments, ota.AtRestart) {
			t.Fatalf("asked %v, want the way out to be tried", s.moments)
		}
		powerCycle(t, d, otatest.DropAll)
		wantRunning(t, d, "1.0.1")
	})
}
