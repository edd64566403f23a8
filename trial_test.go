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

func TestTrial(t *testing.T) {
	t.Run("must be healthy without a break", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			var up, good time.Time
			configure(d, func(c *ota.Config) {
				c.ValidationTime, c.RollbackTimeout = 30*time.Second, 2*time.Minute
				c.Healthy = func(context.Context) error {
					if since := time.Since(up); since > 20*time.Second && since < 22*time.Second {
						return errors.New("a frame was missed")
					}
					return nil
				}
				c.Hooks.Event = func(s ota.Status, _ ota.ErrorCode) {
					if s == ota.StatusComplete {
						good = time.Now()
					}
				}
			})
			d.AtStart = func(*ota.Manager) { up = time.Now() }
			live(t, d)
			if got := good.Sub(up); got < 51*time.Second || got > 53*time.Second {
				t.Errorf("marked good %v after the start, want 22 s + 30 s", got)
			}
		})
	})
	t.Run("without a health check only a person marks good", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.Healthy = nil })
			d.AtStart = func(m *ota.Manager) {
				if d.Running.Version == "1.0.1" {
					m.Confirm()
				}
			}
			live(t, d)
			wantRunning(t, d, "1.0.1")
		})
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.Healthy = nil })
			live(t, d)
			wantRunning(t, d, "1.0.0")
			wantReport(t, d, ota.RolledBack, ota.ErrValidation, "not confirmed")
		})
	})
	t.Run("a person rolls back", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.Healthy = nil })
			d.AtStart = func(m *ota.Manager) {
				if d.Running.Version == "1.0.1" {
					m.RollBack()
				}
			}
			live(t, d)
			wantRunning(t, d, "1.0.0")
			wantReport(t, d, ota.RolledBack, ota.ErrNone, "a person asked for it")
		})
	})
	t.Run("an image that is not what was sent", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			d.Source.Change = func(m *ota.Manifest) { m.Version = "1.0.9" }
			live(t, d)
			wantRunning(t, d, "1.0.0")
			wantReport(t, d, ota.RolledBack, ota.ErrValidation, "reports version 1.0.1, want 1.0.9")
		})
	})
	t.Run("an agent that crashes in every trial does not keep it alive", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			starts := 0
			configure(d, func(c *ota.Config) {
				c.Healthy = func(context.Context) error {
					if starts++; starts < 20 {
						panic(&otatest.PowerCut{Cut: otatest.Cut{Agent: true}})
					}
					return nil
				}
			})
			live(t, d)
			wantRunning(t, d, "1.0.0")
			if starts > 10 {
				t.Errorf("started %d times in the trial", starts)
			}
		})
	})
}

func TestFailedReleaseIsSkipped(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		got := live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.Failed, ota.ErrValidation, "did not stay up")
		if len(got.Skipped) != 1 || got.Skipped[0].Version != "1.0.1" || !strings.Contains(got.Reason, "did not stay up") {
			t.Errorf("skipped %+v with reason %q, want 1.0.1 and why", got.Skipped, got.Reason)
		}
		sent, boots := d.Source.Sent, d.Boots
		live(t, d)
		if d.Source.Sent != sent || d.Boots != boots {
			t.Errorf("%d more bytes and %d more boots for a release that failed", d.Source.Sent-sent, d.Boots-boots)
		}
		d.Known[1].Boots, d.Known[1].Healthy = true, true // as if the cause was elsewhere
		background(t, d, func(m *ota.Manager) { m.Install() })
		wantRunning(t, d, "1.0.1") // a person may try again
	}, otatest.NewFirmware("1.0.1", 21000, false, false))
	device(t, func(t *testing.T, d *otatest.Device) {
		live(t, d)
		// The same version, signed anew, is another release.
		d.Known[1].Boots, d.Known[1].Healthy = true, true
		d.Source.Change = func(m *ota.Manifest) { m.Notes = "built again" }
		live(t, d)
		wantRunning(t, d, "1.0.1")
	}, otatest.NewFirmware("1.0.1", 21000, false, false))
}

// TestLost: the bootloader forgets what it was told to try, and cannot say
// whether it tried. Lost is not failed; it is tried again, but not for ever.
func TestLost(t *testing.T) {
	for _, c := range []struct {
		losses  int
		version string
		result  ota.Result
	}{{1, "1.0.1", ota.Succeeded}, {2, "1.0.1", ota.Succeeded}, {3, "1.0.0", ota.Lost}} {
		t.Run(fmt.Sprintf("lost %d times", c.losses), func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				losses := c.losses
				config := d.Config
				d.Config = func(cfg *ota.Config) { config(cfg); cfg.Slots = &forgetful{cfg.Slots, &losses} }
				live(t, d)
				wantRunning(t, d, c.version)
				if got := d.Source.Reports; len(got) != 1 || got[0].Result != c.result {
					t.Errorf("reported %+v, want one %q", got, c.result)
				}
				if c.result == ota.Lost && !strings.Contains(d.Source.Reports[0].Reason, "nothing says") {
					t.Errorf("reason %q", d.Source.Reports[0].Reason)
				}
			})
		})
	}
}

type forgetful struct {
	ota.Slots
	losses *int
}

func (f *forgetful) Try(ctx context.Context, slot string) error {
	if *f.losses > 0 {
		*f.losses--
		return nil
	}
	return f.Slots.Try(ctx, slot)
}

func TestOtherBuildOfTheSameVersionIsTheSame(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		live(t, d)
		configure(d, func(c *ota.Config) { c.Version += "+build.7" })
		if got := live(t, d); !got.CanRollBack {
			t.Errorf("cannot roll back: %s", got.WhyNot)
		}
	})
}

// A health check that hangs must not hold up the way back.
func TestHealthyThatHangsIsNotHealthy(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		end := make(chan struct{})
		defer close(end)
		configure(d, func(c *ota.Config) {
			c.Healthy = func(context.Context) error { <-end; return nil } // a driver that does not know ctx
		})
		d.AtStart = func(m *ota.Manager) {
			if d.Running.Version == "1.0.1" {
				time.AfterFunc(10*time.Minute, func() {
					if d.Running.Version == "1.0.1" {
						t.Error("still on trial after 10 minutes, want back after 1 minute")
						select {
						case end <- struct{}{}:
						default:
						}
					}
				})
			}
		}
		live(t, d)
		wantRunning(t, d, "1.0.0")
	})
}

// The new firmware cannot write the record: it must not stay for ever unproven.
func TestFirmwareThatCannotSaveIsLeft(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if d.Booted == "B" && strings.Contains(effect, "/data/record") {
				return otatest.Fault{Err: syscall.EROFS}
			}
			return otatest.Fault{}
		}
		live(t, d)
		wantRunning(t, d, "1.0.0")
		if d.Suspended {
			t.Error("still quiesced")
		}
	})
}

// RollbackTimeout holds if HealthInterval is longer.
func TestRollbackTimeoutShorterThanHealthInterval(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var up, down time.Time
		configure(d, func(c *ota.Config) { c.HealthInterval, c.RollbackTimeout = 10*time.Minute, time.Minute })
		d.AtStart = func(*ota.Manager) {
			if d.Running.Version == "1.0.1" {
				up = time.Now()
			} else if !up.IsZero() && down.IsZero() {
				down = time.Now()
			}
		}
		live(t, d)
		if took := down.Sub(up); took > 2*time.Minute {
			t.Errorf("went back after %v, want 1m0s", took)
		}
	}, otatest.NewFirmware("1.0.1", 21000, true, false))
}

// A staged slot that somebody else booted is on trial.
func TestStagedSlotBootedByHandIsOnTrial(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Automatic = false })
		background(t, d, func(m *ota.Manager) { m.Install().Wait(t.Context()) })
		slots, err := d.Backend.Slots(d.Disk, d.Boot(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := slots.Try(t.Context(), "B"); err != nil {
			t.Fatal(err)
		}
		powerCycle(t, d, otatest.KeepAll)
		var marks []ota.State
		configure(d, func(c *ota.Config) {
			c.Slots = bootloader{Slots: c.Slots, marks: &marks, state: func() ota.State { return d.Manager().Snapshot().State }}
		})
		live(t, d)
		wantRunning(t, d, "1.0.1")
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
		if want := []ota.State{ota.Trial}; !slices.Equal(marks, want) {
			t.Errorf("marked good in states %q, want %q: nothing before it is proven", marks, want)
		}
	})
}

// A trial that the power ended three times has failed, also where
// the bootloader cannot tell.
func TestCrashInTheTrialIsAFailureNotALoss(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) {
			c.Slots = silentSlots{c.Slots}
			c.Healthy = func(context.Context) error {
				d.Disk.PowerOff(otatest.KeepAll, 0)
				panic(&otatest.PowerCut{})
			}
		})
		live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.Failed, ota.ErrValidation, "did not stay up")
	})
}

type silentSlots struct{ ota.Slots }

func (s silentSlots) Booted(ctx context.Context) (ota.Boot, error) {
	b, err := s.Slots.Booted(ctx)
	b.FellBack = false
	return b, err
}

// Five starts are allowed; without rollback any number.
func TestStartsInOneTrial(t *testing.T) {
	for _, c := range []struct {
		crashes    int
		noRollback bool
		want       string
	}{{4, false, "1.0.1"}, {5, false, "1.0.0"}, {9, true, "1.0.1"}} {
		device(t, func(t *testing.T, d *otatest.Device) {
			crashes := c.crashes
			configure(d, func(cfg *ota.Config) {
				cfg.NoRollback = c.noRollback
				cfg.Healthy = func(context.Context) error {
					if crashes--; crashes >= 0 {
						panic(agentDies)
					}
					return nil
				}
			})
			live(t, d)
			wantRunning(t, d, c.want)
		})
	}
}
