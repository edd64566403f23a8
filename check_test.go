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

// A source whose wake channel is closed.
func TestClosedWakeChannel(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		n := 0
		ctx, cancel := context.WithCancel(t.Context())
		d.Source.Withdrawn = true
		configure(d, func(c *ota.Config) {
			c.Source = closedWaker{&d.Source}
			c.Hooks.CheckStart = func() bool {
				if n++; n > 200 {
					cancel()
				}
				return true
			}
		})
		d.Live(ctx, 23*time.Minute)
		if n > 20 {
			t.Errorf("checked %d times in %v", n, 23*time.Minute)
		}
	})
}

type closedWaker struct{ *otatest.Source }

func (closedWaker) Wake() <-chan struct{} { c := make(chan struct{}); close(c); return c }

// A check whose result could not be saved is done again.
func TestCheckIsDoneAgainAfterAFailedSave(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.CheckInterval = 0 })
		checked, failed := false, false
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if d.Manager() != nil && d.Manager().Snapshot().Status == ota.StatusUpdateAvailable {
				checked = true
			}
			if checked && !failed && strings.Contains(effect, "/data/record") {
				failed = true
				return otatest.Fault{Err: syscall.EIO}
			}
			return otatest.Fault{}
		}
		live(t, d)
		if !failed {
			t.Fatal("nothing was failed")
		}
		wantRunning(t, d, "1.0.1")
	})
}

// An expired release is not begun, however long it has been known.
func TestWaitingReleaseExpires(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Automatic = false })
		year := func(y int) time.Time { return time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC) }
		d.Source.Change = func(m *ota.Manifest) { m.Expires = year(2010) }
		live(t, d)
		configure(d, func(c *ota.Config) { c.BuildTime = year(2011) }) // the clock was set, months have gone by
		live(t, d)
		wantRunning(t, d, "1.0.0")
	})
}

// A release that no longer fits what runs is not begun.
func TestWaitingReleaseThatNoLongerFits(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Automatic = false })
		live(t, d)
		configure(d, func(c *ota.Config) { c.Version, c.SecurityVersion = "1.0.5", 3 }) // a technician was here
		live(t, d)
		if d.Source.Sent != 0 || d.Boots > 1 {
			t.Errorf("1.0.1 with security version 0 was installed over 1.0.5 with 3; %d boots", d.Boots)
		}
	})
}

// An Abort of a check says what it did.
func TestAbortOfACheck(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		failed := 0
		configure(d, func(c *ota.Config) {
			c.StartupDelay, c.CheckInterval = -1, 0
			c.Source = &mutedSource{&d.Source}
			c.Hooks.Failed = func(error) { failed++ }
		})
		background(t, d, func(m *ota.Manager) {
			check := m.Check()
			time.Sleep(10 * time.Second)
			if err := m.Abort().Wait(t.Context()); err != nil {
				t.Errorf("abort of a check under way: %v", err)
			}
			if err := check.Wait(t.Context()); !errors.Is(err, ota.ErrAborted) {
				t.Errorf("check: %v, want ErrAborted", err)
			}
			if got := m.Snapshot().Status; got == ota.StatusFailed {
				t.Errorf("status %s after an abort", got)
			}
		})
	})
}

type mutedSource struct{ *otatest.Source }

func (s *mutedSource) Latest(ctx context.Context) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestSourceThatNeverAnswers(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Source, c.CheckInterval = &hangingSource{Source: &d.Source}, 0 })
		got := live(t, d)
		if got.Status != ota.StatusFailed || got.Code != ota.ErrConnectivity {
			t.Errorf("got %s %s, want FAILED CONNECTIVITY", got.Status, got.Code.Name())
		}
	})
}

func TestReleaseKeepsItsNameOverARestart(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Automatic = false })
		before := live(t, d)
		d.Source.Err = errors.New("no route")
		after := live(t, d)
		if before.Update == nil || after.Update == nil || after.Update.Digest != before.Update.Digest || after.Update.Digest == "" {
			t.Errorf("before the restart %+v, after it %+v", before.Update, after.Update)
		}
	})
}
