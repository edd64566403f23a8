package ota_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

// An agent that died while it quiesced the application resumes it, though the gate
// now says no: the record said so before Suspend was called.
func TestAgentThatDiedInSuspendResumes(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		died, resumed := false, 0
		configure(d, func(c *ota.Config) {
			c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
				if died && at != ota.BeforeWrite {
					return ota.ErrNotNow
				}
				return nil
			}
			c.Hooks.Suspend = func(context.Context) error {
				died = true
				panic(agentDies)
			}
			c.Hooks.Resume = func(context.Context) error { resumed++; return nil }
		})
		live(t, d)
		wantRunning(t, d, "1.0.0")
		if resumed != 1 {
			t.Errorf("resumed %d times, want once", resumed)
		}
	})
}

// The same before a check, where nothing but the record tells.
func TestAgentThatDiedInSuspendBeforeACheckResumes(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		died := false
		configure(d, func(c *ota.Config) {
			c.Suspend = ota.SuspendBeforeCheck
			if suspend := c.Hooks.Suspend; !died {
				c.Hooks.Suspend = func(ctx context.Context) error {
					if err := suspend(ctx); err != nil {
						return err
					}
					died = true
					panic(agentDies)
				}
				return
			}
			c.StartupDelay, c.CheckInterval = -1, 0 // no check that would resume it by the way
		})
		live(t, d)
		if !died || d.Suspended {
			t.Errorf("died %v, still suspended %v", died, d.Suspended)
		}
	})
}

// Nothing is called a success while the bootloader cannot be told so.
func TestNoSuccessWithoutMarkGood(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		failures, early := 0, 0
		configure(d, func(c *ota.Config) {
			c.Slots = &wrapped{Slots: c.Slots, good: func(next func() error) error {
				early += len(d.Source.Reports)
				if d.Booted == "B" && failures < 5 {
					failures++
					return syscall.EIO
				}
				return next()
			}}
		})
		live(t, d)
		wantRunning(t, d, "1.0.1")
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
		if failures != 5 || early != 0 {
			t.Errorf("marking good failed %d times, and %d reports were out, want 5 and 0", failures, early)
		}
	})
}

// The power goes after the slot was marked good and before that is in the record, and
// the firmware is not healthy any more at the next start: the device goes back all the
// same.
func TestUnhealthyAfterMarkGoodGoesBack(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		marked := false
		configure(d, func(c *ota.Config) {
			c.Healthy = func(context.Context) error {
				if marked {
					return errors.New("no frames from the battery")
				}
				return nil
			}
		})
		d.OnCall = func(call string) {
			if call == "save idle" && d.Booted == "B" && !marked {
				marked = true
				d.Disk.PowerOff(otatest.DropAll, 0)
				panic(&otatest.PowerCut{})
			}
		}
		live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.RolledBack, ota.ErrValidation, "not healthy")
	})
}

// A staged release is compared again with the security version that the device has had
// by the time of the restart.
func TestSecurityVersionOfAStagedRelease(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Automatic = false })
		background(t, d, func(m *ota.Manager) {
			if err := m.Install().Wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
		configure(d, func(c *ota.Config) { c.SecurityVersion = 1 })
		live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.Failed, ota.ErrIncompatible, "security version 0")
		if slices.ContainsFunc(d.Events, func(e string) bool { return strings.HasPrefix(e, "Suspend") }) {
			t.Error("the application was quiesced for it")
		}
	})
}

// The newest copy of the record is damaged while the plant is quiesced, and the older one
// says nothing of it: the plant is resumed all the same.
func TestDamagedRecordDoesNotLeaveThePlantQuiesced(t *testing.T) {
	for _, test := range []struct {
		name string
		dies func(d *otatest.Device, s *soak) // after Suspend; nil: it goes on to the restart
		soak bool
	}{
		{"at the restart", nil, false},
		{"the agent dies before the restart", func(*otatest.Device, *soak) { panic(agentDies) }, false},
		{"the agent dies on the way out of a soak", func(*otatest.Device, *soak) { panic(agentDies) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var s *soak
				st := &older{}
				starts := 0
				s = soaking(d, nil)
				config := d.Config
				d.Config = func(c *ota.Config) {
					config(c)
					if c.SoakTime = 0; test.soak {
						c.SoakTime = 10 * time.Minute
					}
					c.Symptom = s.from(0, forever)
					st.Store, c.Store = c.Store, st
					suspend := c.Hooks.Suspend
					c.Hooks.Suspend = func(ctx context.Context) error {
						err := suspend(ctx)
						if st.damaged || test.soak && d.Booted == "A" {
							return err
						}
						st.damaged = true
						starts++
						if test.dies != nil {
							test.dies(d, s)
						}
						return err
					}
					if st.damaged { // nothing more happens that would resume it by the way
						c.NoRollback = test.soak
						c.Gate = never
						c.Hooks.Suspend = func(context.Context) error { return errors.New("PCS does not answer") }
					}
				}
				live(t, d)
				if d.Suspended || starts != 1 {
					t.Errorf("still quiesced: %v, after %d faults", d.Suspended, starts)
				}
			})
		})
	}
}

// older is a store whose newest copy gets lost once it is damaged: the next Load returns the one before.
type older struct {
	ota.Store
	before, last  ota.Record
	damaged, read bool
}

func (o *older) Save(r ota.Record) error {
	o.before, o.last = o.last, r
	return o.Store.Save(r)
}

func (o *older) Load() (ota.Record, error) {
	if o.damaged && !o.read {
		o.read = true
		return o.before, nil
	}
	return o.Store.Load()
}
