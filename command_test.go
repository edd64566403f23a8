package ota_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

func TestConsent(t *testing.T) {
	manual := func(c *ota.Config) { c.Automatic = false }
	t.Run("check, install, apply", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { manual(c); c.StartupDelay = -1 })
			background(t, d, func(m *ota.Manager) {
				for _, step := range []struct {
					name string
					call func() *ota.Call
					want ota.Status
				}{
					{"check", m.Check, ota.StatusUpdateAvailable},
					{"install", m.Install, ota.StatusReadyToApply},
				} {
					if err := step.call().Wait(t.Context()); err != nil {
						t.Fatalf("%s: %v", step.name, err)
					}
					synctest.Wait()
					time.Sleep(9 * time.Minute)
					if got := m.Snapshot(); got.Status != step.want {
						t.Fatalf("after %s: %s, want %s", step.name, got.Status, step.want)
					}
				}
				m.Apply()
			})
			wantRunning(t, d, "1.0.1")
			wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
		})
	})
	t.Run("install without a check before", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { manual(c); c.StartupDelay = -1 })
			background(t, d, func(m *ota.Manager) {
				if err := m.Install().Wait(t.Context()); err != nil {
					t.Error(err)
				}
			})
			wantRunning(t, d, "1.0.0")
		})
	})
	t.Run("mandatory does not wait for a person", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, manual)
			d.Source.Change = func(m *ota.Manifest) { m.Mandatory = true }
			live(t, d)
			wantRunning(t, d, "1.0.1")
		})
	})
	t.Run("apply with nothing there", func(t *testing.T) {
		err := command(func(d *otatest.Device) {}, (*ota.Manager).Apply)(t)
		if !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("got %v, want ErrNoUpdate", err)
		}
	})
	t.Run("a refusal answers the command, and the update follows by itself", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			safe := time.Now().Add(5 * time.Minute)
			configure(d, func(c *ota.Config) {
				manual(c)
				c.StartupDelay = -1
				c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error {
					if time.Now().Before(safe) {
						return &ota.Refusal{Code: ota.ErrBatteryLow, Reason: "22 %"}
					}
					return nil
				}
			})
			background(t, d, func(m *ota.Manager) {
				if err := m.Install().Wait(t.Context()); !errors.Is(err, ota.ErrBatteryLow) || !errors.Is(err, ota.ErrNotNow) {
					t.Errorf("install: %v, want BATTERY_LOW", err)
				}
				m.Apply()
			})
			wantRunning(t, d, "1.0.1")
		})
	})
}

func TestAbort(t *testing.T) {
	for _, c := range []struct {
		name string
		at   func(d *otatest.Device, m func() *ota.Manager, abort func()) // arranges the abort
	}{
		{"while available", func(d *otatest.Device, m func() *ota.Manager, abort func()) {
			configure(d, func(c *ota.Config) { c.Automatic = false })
			time.AfterFunc(5*time.Minute, abort)
		}},
		{"while downloading", func(d *otatest.Device, m func() *ota.Manager, abort func()) {
			configure(d, func(c *ota.Config) {
				c.Hooks.Progress = func(done, _ int64) {
					if done > 9000 {
						abort()
					}
				}
			})
		}},
		{"while the source is silent", func(d *otatest.Device, m func() *ota.Manager, abort func()) {
			configure(d, func(c *ota.Config) { c.Source = &slowSource{&d.Source, time.Minute} })
			time.AfterFunc(5*time.Minute, abort)
		}},
		{"while staged", func(d *otatest.Device, m func() *ota.Manager, abort func()) {
			configure(d, func(c *ota.Config) {
				c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
					if at == ota.BeforeRestart {
						return ota.ErrNotNow
					}
					return nil
				}
			})
			time.AfterFunc(5*time.Minute, abort)
		}},
		{"while waiting for the next restart", func(d *otatest.Device, m func() *ota.Manager, abort func()) {
			d.Source.Change = func(m *ota.Manifest) { m.NoReboot = true }
			time.AfterFunc(5*time.Minute, abort)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				calls := make(chan *ota.Call, 100)
				c.at(d, d.Manager, func() { calls <- d.Manager().Abort() })
				seen := statuses(d)
				live(t, d)
				if len(calls) == 0 {
					t.Fatal("never came to the abort")
				}
				call := <-calls
				if err := call.Wait(t.Context()); err != nil {
					t.Errorf("abort: %v", err)
				}
				wantRunning(t, d, "1.0.0")
				wantReport(t, d, ota.Aborted, ota.ErrInternal, "aborted by a person")
				if !slices.Contains(*seen, "ABORTED") {
					t.Errorf("statuses %v, want ABORTED among them", *seen)
				}
				powerCycle(t, d, otatest.DropAll)
				wantRunning(t, d, "1.0.0")
			})
		})
	}
	t.Run("with nothing under way", func(t *testing.T) {
		if err := command(func(*otatest.Device) {}, (*ota.Manager).Abort)(t); !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("got %v, want ErrNoUpdate", err)
		}
	})
	t.Run("in the trial", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			var call *ota.Call
			d.AtStart = func(m *ota.Manager) {
				if d.Running.Version == "1.0.1" {
					call = m.Abort()
				}
			}
			live(t, d)
			if err := call.Wait(t.Context()); !errors.Is(err, ota.ErrBusy) {
				t.Errorf("got %v, want ErrBusy", err)
			}
			wantRunning(t, d, "1.0.1")
		})
	})
}

// An Abort that comes before the first byte, not during the transfer.
func TestAbortBetweenGateAndTransfer(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var call *ota.Call
		var asked, ended time.Time
		configure(d, func(c *ota.Config) {
			c.Source = &slowSource{&d.Source, 30 * time.Second}
			c.Hooks.Started = func(*ota.Manifest) {
				if call == nil {
					call, asked = d.Manager().Abort(), time.Now()
					go func(call *ota.Call) { call.Wait(t.Context()); ended = time.Now() }(call)
				}
			}
		})
		live(t, d)
		synctest.Wait()
		if took := ended.Sub(asked); took > time.Minute {
			t.Errorf("the abort took %v, %d bytes were fetched meanwhile", took, d.Source.Sent)
		}
		wantRunning(t, d, "1.0.0")
	})
}

// A return to the previous release that waits for the gate can be aborted.
func TestAbortOfAWaitingRollBack(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		live(t, d)
		d.Source.Reports = nil
		configure(d, func(c *ota.Config) {
			c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error { return ota.ErrNotNow }
		})
		var err error
		background(t, d, func(m *ota.Manager) {
			m.RollBack().Wait(t.Context())
			err = m.Abort().Wait(t.Context())
		})
		if err != nil {
			t.Errorf("abort: %v", err)
		}
		wantReport(t, d, ota.Aborted, ota.ErrInternal, "aborted by a person")
		if got := d.Manager().Snapshot(); !got.CanRollBack || got.Previous != "1.0.0" {
			t.Errorf("can roll back: %v to %q, want as before", got.CanRollBack, got.Previous)
		}
	})
}

// Two commands at once each get their own answer.
func TestCommandsAtOnce(t *testing.T) {
	v102 := otatest.NewFirmware("1.0.2", 21000, true, true)
	t.Run("install and a check that finds something newer", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.Automatic, c.StartupDelay, c.CheckInterval = false, -1, 0 })
			d.Source.Firmware = v101
			background(t, d, func(m *ota.Manager) {
				if err := m.Check().Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				d.Source.Firmware = v102
				check, install := m.Check(), m.Install()
				check.Wait(t.Context())
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				if err := install.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("install was never answered: %s", m.Snapshot().Reason)
				}
			})
		}, v101, v102)
	})
	t.Run("check and roll back", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			live(t, d)
			configure(d, func(c *ota.Config) {
				c.StartupDelay, c.CheckInterval = -1, 0
				c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error { return ota.ErrNotNow }
			})
			background(t, d, func(m *ota.Manager) {
				check, back := m.Check(), m.RollBack()
				back.Wait(t.Context())
				if err := check.Wait(t.Context()); err == nil {
					t.Error("check says that there is a release, and nobody looked")
				}
			})
		})
	})
}

// An abort that was saved, while the try could not be taken
// back, counts after the power cut, whichever slot comes up.
func TestAbortHoldsOverAPowerCut(t *testing.T) {
	for _, lost := range []bool{true, false} {
		device(t, func(t *testing.T, d *otatest.Device) {
			stuck := true
			config := d.Config
			d.Config = func(c *ota.Config) {
				config(c)
				c.Slots = &wrapped{Slots: c.Slots,
					good: func(next func() error) error {
						if stuck {
							return errors.New("read-only")
						}
						return next()
					},
					try: func(next func() error) error {
						if lost {
							return nil
						}
						return next()
					}}
			}
			d.Source.Change = func(m *ota.Manifest) { m.NoReboot = true }
			abort := time.AfterFunc(5*time.Minute, func() { d.Manager().Abort() })
			defer abort.Stop()
			live(t, d)
			stuck, lost = false, false
			powerCycle(t, d, otatest.KeepAll)
			live(t, d)
			wantRunning(t, d, "1.0.0")
			wantReport(t, d, ota.Aborted, ota.ErrInternal, "aborted")
		})
	}
}

func TestCommandsThatDoNotFit(t *testing.T) {
	t.Run("confirm with nothing on trial", func(t *testing.T) {
		if err := command(func(*otatest.Device) {}, (*ota.Manager).Confirm)(t); err == nil || !strings.Contains(err.Error(), "no firmware is on trial") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("abort while the restart is under way", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			asked := 0
			config := d.Config
			d.Config = func(c *ota.Config) { config(c); c.Slots = &deaf{c.Slots, &asked} }
			calls := make(chan *ota.Call, 1)
			time.AfterFunc(30*time.Second, func() { calls <- d.Manager().Abort() })
			if err := d.Live(t.Context(), 50*time.Second); err != nil {
				t.Fatal(err)
			}
			if err := (<-calls).Wait(t.Context()); !errors.Is(err, ota.ErrBusy) {
				t.Errorf("got %v, want ErrBusy", err)
			}
		})
	})
	t.Run("check on the way back", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			live(t, d)
			configure(d, func(c *ota.Config) {
				c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error { return ota.ErrNotNow }
			})
			background(t, d, func(m *ota.Manager) {
				m.RollBack()
				if err := m.Check().Wait(t.Context()); !errors.Is(err, ota.ErrBusy) {
					t.Errorf("got %v, want ErrBusy", err)
				}
			})
		})
	})
}
