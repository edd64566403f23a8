package ota_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

func TestNoReboot(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.Change = func(m *ota.Manifest) { m.NoReboot = true }
		got := live(t, d)
		wantRunning(t, d, "1.0.0")
		if got.Status != ota.StatusApplying || len(d.Source.Reports) != 0 {
			t.Errorf("status %s with reports %v, want APPLYING and none: nothing is proven", got.Status, d.Source.Reports)
		}
		powerCycle(t, d, otatest.DropAll) // somebody restarts the device
		live(t, d)
		wantRunning(t, d, "1.0.1")
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
	})
}

// TestFailingSuspendIsNotTriedInATightLoop: before the restart as well as before
// the check, with a pause in between, and the application resumed each time.
func TestFailingSuspendIsNotTriedInATightLoop(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		suspends, resumes := 0, 0
		configure(d, func(c *ota.Config) {
			c.Hooks.Suspend = func(context.Context) error { suspends++; return errors.New("PCS does not answer") }
			c.Hooks.Resume = func(context.Context) error { resumes++; return nil }
		})
		got := live(t, d)
		if suspends < 2 || suspends > 40 || resumes != suspends {
			t.Errorf("%d suspends and %d resumes in 23 minutes, want about 20 and as many", suspends, resumes)
		}
		if !strings.Contains(got.Reason, "PCS does not answer") {
			t.Errorf("reason %q", got.Reason)
		}
		wantRunning(t, d, "1.0.0")
	})
}

// TestResumeIsTriedUntilItWorks: no plant stays quiesced because one command did
// not get through.
func TestResumeIsTriedUntilItWorks(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var first, last time.Time
		configure(d, func(c *ota.Config) {
			c.CheckInterval = 0
			c.Hooks.Resume = func(context.Context) error {
				if first.IsZero() {
					first = time.Now()
				}
				if last = time.Now(); last.Sub(first) < time.Minute {
					return errors.New("bus busy")
				}
				d.Suspended = false
				return nil
			}
		})
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if took := last.Sub(first); took < time.Minute || took > 75*time.Second {
			t.Errorf("resumed %v after the first try, want soon after 1m0s", took)
		}
	})
}

// TestRestartThatNeverComes: a device that says it restarts and does not is told
// again, and meanwhile nothing else happens.
func TestRestartThatNeverComes(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		asked := 0
		config := d.Config
		d.Config = func(c *ota.Config) { config(c); c.RollbackTimeout = 5 * time.Minute; c.Slots = &deaf{c.Slots, &asked} }
		live(t, d)
		if asked < 2 || asked > 6 {
			t.Errorf("asked %d times in 23 minutes, want about every 5 minutes", asked)
		}
		wantRunning(t, d, "1.0.0")
	})
}

type deaf struct {
	ota.Slots
	asked *int
}

func (s *deaf) Reboot(context.Context) error { *s.asked++; return nil }

// A Resume that failed may have resumed all the same, or half: before the
// restart the application must be suspended anew.
func TestNoRestartWithoutSuspendAfterAFailedResume(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		refused := false
		configure(d, func(c *ota.Config) {
			c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
				if at == ota.AtRestart && !refused {
					refused = true
					return ota.ErrNotNow
				}
				return nil
			}
			c.Hooks.Resume = func(context.Context) error {
				d.Suspended = false // it did it, and the answer was lost
				if d.Running.Version == "1.0.0" {
					return errors.New("bus busy")
				}
				return nil
			}
			boot := c.Slots
			c.Slots = &wrapped{Slots: boot, reboot: func(next func() error) error {
				if !d.Suspended {
					d.Faults = append(d.Faults, "the device restarts, and the plant is not quiesced")
				}
				return next()
			}}
		})
		live(t, d)
		wantRunning(t, d, "1.0.1")
	})
}

// A release that takes effect at the next restart must not leave the plant
// quiesced until then.
func TestNoRebootDoesNotStayQuiesced(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Suspend = ota.SuspendBeforeCheck })
		d.Source.Change = func(m *ota.Manifest) { m.NoReboot = true }
		got := live(t, d)
		if got.Status != ota.StatusApplying || d.Suspended {
			t.Errorf("%s, suspended %v, want APPLYING and resumed while it waits", got.Status, d.Suspended)
		}
	})
}

// Waiting for the next restart writes nothing.
func TestNoRebootTriesOnce(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		tries := 0
		configure(d, func(c *ota.Config) {
			c.Slots = &wrapped{Slots: c.Slots, try: func(next func() error) error { tries++; return next() }}
		})
		d.Source.Change = func(m *ota.Manifest) { m.NoReboot = true }
		live(t, d)
		if tries != 1 {
			t.Errorf("told the bootloader %d times in 23 minutes, want once: every time wears its flash", tries)
		}
	})
}

// The agent is stopped while the plant is quiesced.
func TestStopResumes(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		ctx, cancel := context.WithCancel(t.Context())
		configure(d, func(c *ota.Config) {
			c.Suspend = ota.SuspendBeforeCheck
			c.Hooks.Progress = func(done, _ int64) {
				if done > 9000 {
					cancel()
				}
			}
			c.Hooks.Resume = func(ctx context.Context) error {
				if ctx.Err() != nil { // as every command over a bus does
					return ctx.Err()
				}
				d.Suspended = false
				return nil
			}
		})
		d.Live(ctx, 23*time.Minute)
		if d.Suspended {
			t.Error("the agent was stopped, and the plant stays quiesced until somebody starts it again")
		}
	})
}

// The try cannot be taken back, and the gate says no: the plant works on.
func TestTryThatCannotBeTakenBackDoesNotQuiesce(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		tries := 0
		configure(d, func(c *ota.Config) {
			c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
				if at == ota.AtRestart {
					return ota.ErrNotNow
				}
				return nil
			}
			c.Slots = &wrapped{Slots: c.Slots, good: func(func() error) error { return errors.New("environment is read-only") },
				try: func(next func() error) error { tries++; return next() }}
		})
		live(t, d)
		if d.Suspended {
			t.Error("quiesced, although nothing can go on")
		}
		if tries > 100 {
			t.Errorf("told the bootloader %d times", tries)
		}
	})
}

// Mark good cannot be written: the plant does not wait for that.
func TestOldFirmwareResumesThoughMarkGoodFails(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		config := d.Config
		d.Config = func(c *ota.Config) {
			config(c)
			c.Hooks.Suspend = func(context.Context) error { d.Suspended = true; return nil }
			if d.Boots > 2 {
				d.Suspended = true // a set point in the inverter, which did not restart
				c.Slots = &wrapped{Slots: c.Slots, good: func(func() error) error { return errors.New("read-only") }}
			}
		}
		live(t, d)
		wantRunning(t, d, "1.0.0")
		if d.Suspended {
			t.Error("the old firmware runs, and the plant is quiesced for as long as the bootloader's variables cannot be written")
		}
	}, otatest.NewFirmware("1.0.1", 21000, true, false))
}
