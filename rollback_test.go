package ota_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

func TestRollBackByAPerson(t *testing.T) {
	t.Run("to the factory image and no further", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			got := live(t, d)
			if !got.CanRollBack || got.Previous != "1.0.0" {
				t.Errorf("can roll back: %v (%s) to %q, want 1.0.0", got.CanRollBack, got.WhyNot, got.Previous)
			}
			d.Source.Reports = nil
			background(t, d, func(m *ota.Manager) { m.RollBack() })
			wantRunning(t, d, "1.0.0")
			wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
			if got := d.Manager().Snapshot(); len(got.Skipped) != 1 || got.Skipped[0].Version != "1.0.1" {
				t.Errorf("skipped %+v, want 1.0.1: it would come back at once", got.Skipped)
			}
		})
	})
	t.Run("asks the gate", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			live(t, d)
			configure(d, func(c *ota.Config) {
				c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error {
					return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "50 °C"}
				}
			})
			var err error
			background(t, d, func(m *ota.Manager) { err = m.RollBack().Wait(t.Context()) })
			if !errors.Is(err, ota.ErrBMSUnsafe) {
				t.Errorf("got %v, want BMS_UNSAFE", err)
			}
			wantRunning(t, d, "1.0.1")
		})
	})
	t.Run("not below the security version", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			d.Source.Change = func(m *ota.Manifest) { m.SecurityVersion = 1 }
			got := live(t, d)
			if got.CanRollBack || !strings.Contains(got.WhyNot, "security version 0") {
				t.Errorf("can roll back: %v, why not %q", got.CanRollBack, got.WhyNot)
			}
			var err error
			background(t, d, func(m *ota.Manager) { err = m.RollBack().Wait(t.Context()) })
			if err == nil {
				t.Error("rolled back below the security version")
			}
		})
	})
	t.Run("not when nothing is there", func(t *testing.T) {
		if err := command(func(*otatest.Device) {}, (*ota.Manager).RollBack)(t); err == nil || !strings.Contains(err.Error(), "no image that ran well") {
			t.Errorf("got %v", err)
		}
	})
}

// TestLateFallback: long after a release was marked good, the bootloader finds it
// unreadable and goes back. That is told, and the release is not taken again.
func TestLateFallback(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		live(t, d)
		d.Source.Reports = nil
		image := d.Backend.Image(d.Disk, "B")
		d.Known[1].Boots = false
		_ = image
		slots, err := d.Backend.Slots(d.Disk, d.Boot(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := slots.Try(t.Context(), "A"); err != nil { // what such a bootloader does for itself
			t.Fatal(err)
		}
		powerCycle(t, d, otatest.KeepAll)
		live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.Lost, ota.ErrInternal, "although slot B with version 1.0.1 was marked good")
	})
}

// The bootloader's variables cannot be written any more. A restart alone
// leaves firmware that was not marked good.
func TestUnhealthyFirmwareIsLeftThoughTryFails(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		tries := 0
		configure(d, func(c *ota.Config) {
			c.Slots = &wrapped{Slots: c.Slots, try: func(next func() error) error {
				if d.Booted == "B" {
					tries++
					return errors.New("environment is read-only")
				}
				return next()
			}}
		})
		live(t, d)
		wantRunning(t, d, "1.0.0")
		if tries > 60 {
			t.Errorf("%d tries in 23 minutes", tries)
		}
	}, otatest.NewFirmware("1.0.1", 21000, true, false))
}

// A running firmware's own security version holds for a return as well.
func TestRollBackNotBelowTheRunningSecurityVersion(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		live(t, d)
		configure(d, func(c *ota.Config) { c.SecurityVersion = 1 }) // what 1.0.1 says about itself
		if got := live(t, d); got.CanRollBack {
			t.Error("can roll back to security version 0 from 1")
		}
	})
}

// The device stays in firmware that it could not leave: one update, one report.
func TestNoReturnIsReportedOnce(t *testing.T) {
	v102 := otatest.NewFirmware("1.0.2", 21000, true, false)
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.Firmware = v101
		live(t, d)
		d.Source.Reports, d.Source.Firmware = nil, v102
		configure(d, func(c *ota.Config) {
			c.Slots = &wrapped{Slots: c.Slots, try: func(next func() error) error {
				if d.Running.Version == "1.0.2" { // the bootloader is stuck on the new slot
					return c.Slots.MarkGood(t.Context())
				}
				return next()
			}}
		})
		live(t, d)
		var got []string
		for _, r := range d.Source.Reports {
			got = append(got, fmt.Sprintf("%s %s: %s", r.Version, r.Result, r.Reason))
		}
		if len(got) != 1 {
			t.Errorf("%d reports: %s", len(got), strings.Join(got, "\n"))
		}
	}, v101, v102)
}

// Firmware that the device could not leave is kept, although the bootloader still
// calls it a trial: more restarts would not help.
func TestNoReturnIsNoTrialForEver(t *testing.T) {
	broken := otatest.NewFirmware("1.0.1", 21000, true, false)
	device(t, func(t *testing.T, d *otatest.Device) {
		var marks []ota.State
		restarts, left := 0, false
		configure(d, func(c *ota.Config) {
			slots := c.Slots
			stuck := func() bool { return d.Running.Version == "1.0.1" }
			c.Slots = bootloader{marks: &marks, trial: stuck() && !left, state: func() ota.State {
				left = left || stuck()
				return d.Manager().Snapshot().State
			}, Slots: &wrapped{Slots: slots,
				try: func(next func() error) error {
					if stuck() {
						return slots.MarkGood(t.Context())
					}
					return next()
				},
				reboot: func(next func() error) error {
					if stuck() {
						restarts++
					}
					return next()
				}}}
		})
		live(t, d)
		if want := []ota.State{ota.Idle, ota.Idle}; !slices.Equal(marks, want) || restarts != 3 {
			t.Errorf("marked good in states %q after %d restarts, want %q after 3", marks, restarts, want)
		}
	}, broken)
}

// A failing restart out of a failed trial is not tried, and written, every second.
func TestFailingRestartInRollBackIsNotATightLoop(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		tries := 0
		configure(d, func(c *ota.Config) {
			c.Slots = &wrapped{Slots: c.Slots,
				try: func(next func() error) error {
					if d.Booted == "B" {
						tries++
					}
					return next()
				},
				reboot: func(next func() error) error {
					if d.Booted == "B" {
						return errors.New("no permission")
					}
					return next()
				}}
		})
		live(t, d)
		if tries > 100 {
			t.Errorf("told the bootloader %d times in 23 minutes", tries)
		}
	}, otatest.NewFirmware("1.0.1", 21000, true, false))
}

// Until the gate has said yes, the way back stays open.
func TestWayBackStaysOpenUntilTheFirstByte(t *testing.T) {
	v102 := otatest.NewFirmware("1.0.2", 21000, true, true)
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.Firmware = v101
		live(t, d)
		d.Source.Firmware = v102
		configure(d, func(c *ota.Config) {
			c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error { return ota.ErrNotNow }
		})
		if got := live(t, d); got.State != ota.Available || !got.CanRollBack {
			t.Errorf("state %s, can roll back %v (%s)", got.State, got.CanRollBack, got.WhyNot)
		}
	}, v101, v102)
}

// Once a byte may have been written, the other slot is no way back.
func TestNoWayBackIntoAHalfWrittenSlot(t *testing.T) {
	v102 := otatest.NewFirmware("1.0.2", 21000, true, true)
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.Firmware = v101
		live(t, d)
		d.Source.Firmware = v102
		configure(d, func(c *ota.Config) {
			c.Hooks.Progress = func(done, _ int64) {
				if done > 9000 {
					d.Manager().Abort()
				}
			}
		})
		if got := live(t, d); got.CanRollBack || got.Previous != "" {
			t.Errorf("can roll back %v to %q, and slot A is half written", got.CanRollBack, got.Previous)
		}
	}, v101, v102)
}

// The old slot is marked good again, because the new one may have been.
func TestRollBackMarksTheOldSlotGood(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		marked := 0
		configure(d, func(c *ota.Config) {
			c.Slots = &wrapped{Slots: c.Slots, good: func(next func() error) error {
				if d.Booted == "A" {
					marked++
				}
				return next()
			}}
		})
		live(t, d)
		if marked == 0 {
			t.Error("slot A was not marked good after the rollback")
		}
	}, otatest.NewFirmware("1.0.1", 21000, true, false))
}

// A device on its way down is not told again every second.
func TestRollBackWaitsForTheRestart(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		asked := 0
		configure(d, func(c *ota.Config) {
			c.RollbackTimeout = 5 * time.Minute
			c.Slots = &wrapped{Slots: c.Slots, reboot: func(next func() error) error {
				if d.Booted == "B" {
					asked++
					return nil
				}
				return next()
			}}
		})
		live(t, d)
		if asked < 2 || asked > 6 {
			t.Errorf("asked %d times in 18 minutes, want about every 5", asked)
		}
	}, otatest.NewFirmware("1.0.1", 21000, true, false))
}

// A previous image that is damaged is no way back.
func TestRollBackToADamagedImage(t *testing.T) {
	v102 := otatest.NewFirmware("1.0.2", 21000, true, true)
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.Firmware = v101
		live(t, d)
		d.Source.Firmware = v102
		live(t, d)
		d.Source.Reports = nil
		if err := d.Disk.Rot("/device/b/controller.img", 9000); err != nil {
			t.Fatal(err)
		}
		background(t, d, func(m *ota.Manager) { m.RollBack() })
		wantRunning(t, d, "1.0.2")
		wantReport(t, d, ota.Failed, ota.ErrFlashWrite, "previous image is damaged")
		if got := d.Manager().Snapshot(); got.CanRollBack {
			t.Error("can roll back into a damaged image")
		}
	}, v101, v102)
}
