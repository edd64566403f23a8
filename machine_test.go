package ota_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

func TestWhatFitsADevice(t *testing.T) {
	in1999 := time.Date(1999, 9, 9, 0, 0, 0, 0, time.UTC) // the bubble's clock starts in 2000
	for _, c := range []struct {
		name   string
		offer  func(*ota.Manifest)
		config func(*ota.Config)
		code   ota.ErrorCode // ErrNone: it is taken
		want   string
	}{
		{"a newer version", func(m *ota.Manifest) {}, nil, ota.ErrNone, ""},
		{"the running version", func(m *ota.Manifest) { m.Version = "1.0.0" }, nil, ota.ErrNoUpdate, "is running"},
		{"the running version, other build", func(m *ota.Manifest) { m.Version = "1.0.0+5" }, nil, ota.ErrNoUpdate, "is running"},
		{"an older version", func(m *ota.Manifest) { m.Version = "0.9.9" }, nil, ota.ErrIncompatible, "older than the running 1.0.0"},
		{"a pre-release of the running version", func(m *ota.Manifest) { m.Version = "1.0.0-rc.1" }, nil, ota.ErrIncompatible, "older"},
		{"an older version that may", func(m *ota.Manifest) { m.Version, m.AllowDowngrade = "0.9.9", true }, nil, ota.ErrNone, ""},
		{"another product", func(m *ota.Manifest) { m.Product = "pcs" }, nil, ota.ErrIncompatible, "for product pcs, this is test"},
		{"another hardware", func(m *ota.Manifest) { m.Hardware = []string{"rev-a", "rev-b"} }, func(c *ota.Config) { c.Hardware = "rev-c" }, ota.ErrIncompatible, "rev-c"},
		{"our hardware among others", func(m *ota.Manifest) { m.Hardware = []string{"rev-a", "rev-b"} }, func(c *ota.Config) { c.Hardware = "rev-b" }, ota.ErrNone, ""},
		{"hardware not known here", func(m *ota.Manifest) { m.Hardware = []string{"rev-a"} }, nil, ota.ErrIncompatible, "rev-a"},
		{"a lower security version", func(m *ota.Manifest) { m.SecurityVersion = 2 }, func(c *ota.Config) { c.SecurityVersion = 3 }, ota.ErrIncompatible, "security version 2, and this device has had 3"},
		{"a lower security version that may go down", func(m *ota.Manifest) { m.Version, m.AllowDowngrade = "0.9", true }, func(c *ota.Config) { c.SecurityVersion = 1 }, ota.ErrIncompatible, "never goes back"},
		{"an equal security version", func(m *ota.Manifest) { m.SecurityVersion = 3 }, func(c *ota.Config) { c.SecurityVersion = 3 }, ota.ErrNone, ""},
		{"from too old a version", func(m *ota.Manifest) { m.MinVersion = "1.0.0.1" }, nil, ota.ErrIncompatible, "updates from 1.0.0.1 or newer, this runs 1.0.0"},
		{"from just old enough a version", func(m *ota.Manifest) { m.MinVersion = "1.0" }, nil, ota.ErrNone, ""},
		{"expired", func(m *ota.Manifest) { m.Created, m.Expires = in1999, in1999.Add(time.Hour) }, nil, ota.ErrValidation, "expired on 1999-09-09T01:00:00Z"},
		{"expired by the build time only", func(m *ota.Manifest) {
			m.Created, m.Expires = m.Created.AddDate(-9, 0, 0), time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC)
		},
			func(c *ota.Config) { c.BuildTime = time.Date(2091, 1, 1, 0, 0, 0, 0, time.UTC) }, ota.ErrValidation, "expired"},
		{"not expired yet", func(m *ota.Manifest) { m.Expires = time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC) }, nil, ota.ErrNone, ""},
		{"a component that is not here", func(m *ota.Manifest) { m.Images[0].Component = "pcs" }, nil, ota.ErrIncompatible, "pcs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				configure(d, func(cfg *ota.Config) {
					cfg.StartupDelay, cfg.Automatic, cfg.CheckInterval = -1, false, 0
					if c.config != nil {
						c.config(cfg)
					}
				})
				d.Source.Change = c.offer
				var err error
				background(t, d, func(m *ota.Manager) { err = m.Check().Wait(t.Context()) })
				if ota.CodeOf(err) != c.code || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v (%s), want %s with %q", err, ota.CodeOf(err).Name(), c.code.Name(), c.want)
				}
				if d.Source.Sent != 0 {
					t.Errorf("%d bytes were fetched by a check", d.Source.Sent)
				}
			})
		})
	}
}

// TestNewestTimeIsALowerBound: a device whose clock went back to 1970 still knows
// that a release expired, from the newest release it has seen.
func TestNewestTimeIsALowerBound(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Automatic = false })
		d.Source.Change = func(m *ota.Manifest) { m.Created = time.Date(2094, 1, 1, 0, 0, 0, 0, time.UTC) }
		live(t, d) // knows 2094 from here on, whatever its clock says
		d.Source.Change = func(m *ota.Manifest) {
			m.Version, m.Expires = "1.0.2", time.Date(2093, 1, 1, 0, 0, 0, 0, time.UTC)
		}
		var err error
		background(t, d, func(m *ota.Manager) { err = m.Check().Wait(t.Context()) })
		if !errors.Is(err, ota.ErrValidation) {
			t.Errorf("got %v, want ErrValidation", err)
		}
	})
}

func TestGate(t *testing.T) {
	// The battery becomes unsafe just before the n-th question, for a minute.
	asked := []ota.Moment{ota.BeforeWrite, ota.BeforeRestart, ota.AtRestart, ota.AtRestart}
	for n := range asked {
		t.Run(fmt.Sprintf("unsafe from question %d on", n+1), func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var got []ota.Moment
				var unsafe time.Time
				restarts := 0
				configure(d, func(c *ota.Config) {
					c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
						got = append(got, at)
						if len(got) == n+1 {
							unsafe = time.Now()
						}
						if !unsafe.IsZero() && time.Since(unsafe) < time.Minute {
							return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "47 °C"}
						}
						return nil
					}
				})
				d.AtStart = func(*ota.Manager) {
					restarts++
					if restarts == 2 && time.Since(unsafe) < time.Minute {
						t.Errorf("restarted %v after the battery became unsafe", time.Since(unsafe))
					}
				}
				live(t, d)
				wantRunning(t, d, "1.0.1")
				if !slices.Equal(got[:n+1], asked[:n+1]) {
					t.Errorf("asked %v, want %v first", got, asked[:n+1])
				}
				if restarts != 2 {
					t.Errorf("%d starts, want 2", restarts)
				}
			})
		})
	}
}

func TestGateFailsClosed(t *testing.T) {
	for _, c := range []struct {
		name string
		gate ota.Gate
		want ota.ErrorCode
	}{
		{"plain error", func(context.Context, *ota.Manifest, ota.Moment) error { return errors.New("bus off") }, ota.ErrBMSUnsafe},
		{"panic", func(context.Context, *ota.Manifest, ota.Moment) error { panic("nil map") }, ota.ErrNone},
		{"canceled", func(context.Context, *ota.Manifest, ota.Moment) error { return context.Canceled }, ota.ErrBMSUnsafe},
		{"deadline", func(context.Context, *ota.Manifest, ota.Moment) error { return context.DeadlineExceeded }, ota.ErrBMSUnsafe},
		{"NotNow without a code", func(context.Context, *ota.Manifest, ota.Moment) error { return ota.ErrNotNow }, ota.ErrNone},
	} {
		t.Run(c.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				configure(d, func(cfg *ota.Config) { cfg.Gate = c.gate })
				got := live(t, d)
				if got.Status != ota.StatusUpdateAvailable || got.Code != c.want || got.Reason == "" {
					t.Errorf("got %s %s %q, want UPDATE_AVAILABLE %s and a reason", got.Status, got.Code.Name(), got.Reason, c.want.Name())
				}
				if d.Source.Sent != 0 {
					t.Errorf("%d bytes were fetched", d.Source.Sent)
				}
			})
		})
	}
}

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

func TestNoReboot(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.Change = func(m *ota.Manifest) { m.NoReboot = true }
		got := live(t, d)
		wantRunning(t, d, "1.0.0")
		if got.Status != ota.StatusApplying || len(d.Source.Reports) != 0 {
			t.Errorf("status %s with reports %v, want APPLYING and none: nothing is proven", got.Status, d.Source.Reports)
		}
		d.Disk.PowerOff(otatest.DropAll, 0) // somebody restarts the device
		d.Disk.PowerOn()
		if err := d.PowerOn(); err != nil {
			t.Fatal(err)
		}
		live(t, d)
		wantRunning(t, d, "1.0.1")
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
	})
}

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

func TestStagedImageIsVerifiedAgain(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Automatic = false })
		background(t, d, func(m *ota.Manager) {
			if err := m.Install().Wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
		sent := d.Source.Sent
		if err := d.Disk.Rot("/device/b/controller.img", 9000); err != nil {
			t.Fatal(err)
		}
		configure(d, nil)
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if again := d.Source.Sent - sent; again <= 0 || again >= int64(len(v101.Image)) {
			t.Errorf("%d bytes fetched again, want the part from the damaged chunk on", again)
		}
	})
}

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
		slots, err := d.Backend.Slots(d.Disk, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := slots.Try(t.Context(), "A"); err != nil { // what such a bootloader does for itself
			t.Fatal(err)
		}
		d.Disk.PowerOff(otatest.KeepAll, 0)
		d.Disk.PowerOn()
		if err := d.PowerOn(); err != nil {
			t.Fatal(err)
		}
		live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.Lost, ota.ErrInternal, "although slot B with version 1.0.1 was marked good")
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
				d.Disk.PowerOff(otatest.DropAll, 0)
				d.Disk.PowerOn()
				if err := d.PowerOn(); err != nil {
					t.Fatal(err)
				}
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

func TestResumedDownloadFetchesNothingTwice(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.CutAt = []int64{100, 5000, 5001, 12288, 20999}
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if limit := int64(len(v101.Image) + 5*otatest.ChunkSize); d.Source.Sent > limit {
			t.Errorf("fetched %d bytes, want at most %d", d.Source.Sent, limit)
		}
	})
}

func TestReportIsKeptUntilTaken(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "report") {
				return otatest.Fault{Err: errors.New("no carrier"), Did: len(d.Source.Reports) == 0}
			}
			return otatest.Fault{}
		}
		if got := live(t, d); got.Unsent != 1 {
			t.Fatalf("%d reports kept, want 1", got.Unsent)
		}
		first := d.Source.Reports[0]
		d.Disk.OnEffect = nil
		if got := live(t, d); got.Unsent != 0 {
			t.Errorf("%d reports kept, want 0", got.Unsent)
		}
		if got := d.Source.Reports[len(d.Source.Reports)-1]; got != first {
			t.Errorf("delivered again as %+v, first as %+v", got, first)
		}
	})
}

func TestNewerReleaseTakesThePlaceOfAWaitingOne(t *testing.T) {
	v102 := otatest.NewFirmware("1.0.2", 21000, true, true)
	device(t, func(t *testing.T, d *otatest.Device) {
		var end time.Time
		configure(d, func(c *ota.Config) {
			c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
				if at == ota.BeforeRestart && time.Now().Before(end) {
					return ota.ErrNotNow
				}
				return nil
			}
		})
		d.Source.Firmware = v101
		end = time.Now().Add(time.Hour)
		live(t, d)
		d.Source.Firmware = v102
		if err := d.Live(t.Context(), 2*time.Hour); err != nil {
			t.Fatal(err)
		}
		wantRunning(t, d, "1.0.2")
	}, v101, v102)
}

func TestFullMediumMends(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "write /device/b") {
				return otatest.Fault{Err: syscall.ENOSPC}
			}
			return otatest.Fault{}
		}
		if got := live(t, d); got.Status != ota.StatusFailed || got.Code != ota.ErrInsufficientSpace || got.State != ota.Fetching {
			t.Errorf("got %s %s in state %s, want FAILED INSUFFICIENT_SPACE in fetching", got.Status, got.Code.Name(), got.State)
		}
		d.Disk.OnEffect = nil
		live(t, d)
		wantRunning(t, d, "1.0.1")
	})
}

func TestWithdrawnRelease(t *testing.T) {
	for _, c := range []struct {
		name    string
		source  error
		version string
	}{
		{"a stick was pulled out: what is staged stays", ota.ErrNoUpdate, "1.0.1"},
		{"the server says so: what is staged is dropped", fmt.Errorf("%w: %w", ota.ErrNoUpdate, ota.ErrWithdrawn), "1.0.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				safe := time.Now().Add(time.Hour)
				configure(d, func(cfg *ota.Config) {
					cfg.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
						if at != ota.BeforeWrite && time.Now().Before(safe) {
							return ota.ErrNotNow
						}
						return nil
					}
				})
				if s := live(t, d); s.Status != ota.StatusReadyToApply {
					t.Fatalf("%s, want READY_TO_APPLY", s.Status)
				}
				d.Source.Err = c.source
				if err := d.Live(t.Context(), 2*time.Hour); err != nil {
					t.Fatal(err)
				}
				wantRunning(t, d, c.version)
			})
		})
	}
}

// TestReplacedReleaseIsNoticed: a download that breaks because the server has
// another release now looks again, even if nothing else would make it.
func TestReplacedReleaseIsNoticed(t *testing.T) {
	v102 := otatest.NewFirmware("1.0.2", 21000, true, true)
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) {
			c.CheckInterval, c.Retries = 0, -1
			c.Hooks.Progress = func(done, _ int64) {
				if done > 9000 && d.Source.Firmware.Version == "1.0.1" {
					d.Source.Firmware, d.Source.CutAt = v102, []int64{d.Source.Sent}
				}
			}
		})
		d.Source.Firmware = v101
		live(t, d)
		wantRunning(t, d, "1.0.2")
	}, v101, v102)
}

// TestFailingSync: after a sync that failed nobody knows what is on the medium,
// so the slot is read again past the cache, and only what is missing is fetched.
func TestFailingSync(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		failures := 2
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "sync /device/b/") && failures > 0 {
				failures--
				return otatest.Fault{Err: syscall.EIO}
			}
			return otatest.Fault{}
		}
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

// TestReportsGoOutWhileAnUpdateWaits: the end of one update is told even if the
// next one waits for days.
func TestReportsGoOutWhileAnUpdateWaits(t *testing.T) {
	v102 := otatest.NewFirmware("1.0.2", 21000, true, true)
	device(t, func(t *testing.T, d *otatest.Device) {
		offline := true
		d.Source.Firmware = v101
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if offline && strings.HasPrefix(effect, "report") {
				return otatest.Fault{Err: errors.New("no carrier")}
			}
			return otatest.Fault{}
		}
		live(t, d)
		configure(d, func(c *ota.Config) {
			c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error { return ota.ErrNotNow }
		})
		d.Source.Firmware, offline = v102, false
		if got := live(t, d); got.Status != ota.StatusUpdateAvailable || got.Unsent != 0 {
			t.Errorf("%s with %d unsent reports, want UPDATE_AVAILABLE and none", got.Status, got.Unsent)
		}
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
	}, v101, v102)
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

func TestOtherBuildOfTheSameVersionIsTheSame(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		live(t, d)
		configure(d, func(c *ota.Config) { c.Version += "+build.7" })
		if got := live(t, d); !got.CanRollBack {
			t.Errorf("cannot roll back: %s", got.WhyNot)
		}
	})
}

// TestStoppingIsNoFailure: an agent that is stopped while it checks or downloads
// reports no failure, and leaves nothing quiesced.
func TestStoppingIsNoFailure(t *testing.T) {
	for _, c := range []struct {
		name   string
		source func(*otatest.Device) ota.Source
	}{
		{"while it checks", func(d *otatest.Device) ota.Source { return &hangingSource{Source: &d.Source} }},
		{"while it downloads", func(d *otatest.Device) ota.Source { return &slowSource{&d.Source, time.Hour} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				configure(d, func(cfg *ota.Config) { cfg.Source, cfg.Suspend = c.source(d), ota.SuspendBeforeCheck })
				if err := d.Live(t.Context(), 30*time.Second); err != nil {
					t.Fatal(err)
				}
				if d.Suspended || slices.ContainsFunc(d.Events, func(e string) bool { return strings.HasPrefix(e, "Failed") }) {
					t.Errorf("suspended %v after %v", d.Suspended, d.Events)
				}
			})
		})
	}
}

type hangingSource struct{ ota.Source }

func (s *hangingSource) Latest(ctx context.Context) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestSourceDoesNotJudge: whatever code a source gives its errors, it cannot make
// a device skip a release.
func TestSourceDoesNotJudge(t *testing.T) {
	for _, code := range []ota.ErrorCode{ota.ErrValidation, ota.ErrFlashWrite, ota.ErrIncompatible, ota.ErrInsufficientSpace, ota.ErrInternal, ota.ErrNoUpdate} {
		t.Run(code.Name(), func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				left := 6
				configure(d, func(c *ota.Config) { c.Source = &rottenSource{&d.Source, code, &left} })
				live(t, d)
				wantRunning(t, d, "1.0.1")
			})
		})
	}
}

type rottenSource struct {
	*otatest.Source
	code ota.ErrorCode
	left *int
}

func (s *rottenSource) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	if *s.left--; *s.left >= 0 {
		return nil, fmt.Errorf("read the stick: %w", s.code)
	}
	return s.Source.Open(ctx, m, im, offset)
}
