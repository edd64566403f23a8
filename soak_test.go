package ota_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

// A soak is a device whose new firmware is watched for 10 minutes, and what was seen.
type soak struct {
	d        *otatest.Device
	begun    time.Time    // when the soak was first in the record
	saved    []ota.Record // while the new firmware ran
	last     ota.Record   // as it is stored
	ended    time.Time    // when the record first said idle after that
	restarts []time.Time  // that the new firmware asked for
	moments  []ota.Moment // of questions to the gate by the new firmware
	suspends int          // by the new firmware
}

// soaking gives d a soak of 10 minutes. The gate allows everything, unless change, which
// is called at starts of the new firmware only, says otherwise.
func soaking(d *otatest.Device, change func(*ota.Config)) *soak {
	s := &soak{d: d}
	configure(d, func(c *ota.Config) {
		c.SoakTime = 10 * time.Minute
		c.Store = soakStore{c.Store, s}
		if d.Running.Version == v100.Version {
			return
		}
		if change != nil {
			change(c)
		}
		gate, suspend := c.Gate, c.Hooks.Suspend
		c.Gate = func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
			s.moments = append(s.moments, at)
			return gate(ctx, m, at)
		}
		if suspend != nil {
			c.Hooks.Suspend = func(ctx context.Context) error { s.suspends++; return suspend(ctx) }
		}
		c.Slots = &wrapped{Slots: c.Slots, reboot: func(next func() error) error {
			s.restarts = append(s.restarts, time.Now())
			return next()
		}}
	})
	return s
}

// soakStore notes what is saved.
type soakStore struct {
	ota.Store
	s *soak
}

func (st soakStore) Save(r ota.Record) error {
	err := st.Store.Save(r)
	s := st.s
	s.last = r
	if s.d.Running.Version != v100.Version {
		s.saved = append(s.saved, r)
	}
	switch {
	case r.State == ota.Soak && s.begun.IsZero():
		s.begun = time.Now()
	case r.State == ota.Idle && !s.begun.IsZero() && s.ended.IsZero():
		s.ended = time.Now()
	}
	return err
}

func (s *soak) wantEnd(t *testing.T, want time.Duration) {
	t.Helper()
	if got := s.ended.Sub(s.begun); s.begun.IsZero() || got != want {
		t.Errorf("the soak took %v, want %v", got, want)
	}
}

// from returns a Symptom that is there from begin to end after the soak began.
func (s *soak) from(begin, end time.Duration) func(context.Context) error {
	return func(context.Context) error {
		if at := time.Since(s.begun); at >= begin && at < end {
			return errors.New("rack 3 is hot")
		}
		return nil
	}
}

const forever = 1000 * time.Hour

func never(context.Context, *ota.Manifest, ota.Moment) error {
	return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "discharging at 80 kW"}
}

// Success is said when the soak is over, to the second, and nothing before that closes
// the way back. The plant is at work meanwhile, and no other update begins.
func TestSoak(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.Change = func(m *ota.Manifest) { m.SecurityVersion = 1 }
		var s *soak
		quiesced, wrong := 0, []string{}
		s = soaking(d, func(c *ota.Config) {
			c.Symptom = func(context.Context) error {
				if d.Suspended {
					quiesced++
				}
				n := d.Manager().Snapshot()
				if at := time.Since(s.begun); at > time.Second && (n.Status != ota.StatusTrial || n.State != ota.Soak || !n.CanRollBack || n.Last != nil ||
					at.Seconds() == 190 && n.Reason != "marked good, watched for 3m9s of 10m0s") {
					wrong = append(wrong, fmt.Sprintf("%v: %s %s %q", at, n.Status, n.State, n.Reason))
				}
				if len(d.Source.Reports) > 0 {
					wrong = append(wrong, "reported in the soak")
				}
				return nil
			}
		})
		got := live(t, d)
		s.wantEnd(t, 10*time.Minute)
		wantRunning(t, d, "1.0.1")
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
		if quiesced > 0 || len(wrong) > 0 {
			t.Errorf("%d times quiesced in the soak, and shown: %q", quiesced, wrong)
		}
		n := 0
		for _, r := range s.saved {
			if r.State != ota.Soak {
				continue
			}
			if n++; r.SecurityVersion != 0 || r.Running.Version != "1.0.0" || r.Last != nil || len(r.Unsent) > 0 || !r.Good {
				t.Errorf("saved %+v: the way back is closed, or the end is told", r)
			}
		}
		if n < 10 || n > 14 {
			t.Errorf("saved %d times in the soak of 10 minutes, want about once a minute", n)
		}
		if s.last.SecurityVersion != 1 || s.last.Running.Version != "1.0.1" || got.Previous != "1.0.0" || s.last.Good || s.last.Soaked != 0 {
			t.Errorf("ended with %+v and previous %q", s.last, got.Previous)
		}
	})
}

// A symptom that is there for 30 s without a break rolls back, in the same second; one
// that comes and goes does not, and neither does anything else become a success
// while it is there.
func TestSymptoms(t *testing.T) {
	const half = 30 * time.Second
	for _, test := range []struct {
		name    string
		symptom func(s *soak) func(context.Context) error
		version string
		took    time.Duration
		code    ota.ErrorCode
		reason  string
	}{
		{"for 29.999 s", func(s *soak) func(context.Context) error {
			return s.from(time.Minute, time.Minute+half-time.Millisecond)
		},
			"1.0.1", 10 * time.Minute, ota.ErrNone, ""},
		{"for 30 s", func(s *soak) func(context.Context) error {
			return s.from(time.Minute, time.Minute+half+time.Millisecond)
		},
			"1.0.0", time.Minute + half, ota.ErrValidation, "rack 3 is hot"},
		{"from the start", func(s *soak) func(context.Context) error { return s.from(0, forever) },
			"1.0.0", half, ota.ErrValidation, "rack 3 is hot"},
		{"for 29 s of every 30", func(s *soak) func(context.Context) error {
			return func(context.Context) error {
				if int(time.Since(s.begun).Seconds())%30 != 0 {
					return errors.New("rack 3 is hot")
				}
				return nil
			}
		}, "1.0.1", 10 * time.Minute, ota.ErrNone, ""},
		{"over the end", func(s *soak) func(context.Context) error {
			return s.from(10*time.Minute-10*time.Second, 10*time.Minute+5*time.Second)
		}, "1.0.1", 10*time.Minute + 5*time.Second, ota.ErrNone, ""},
		{"at the end", func(s *soak) func(context.Context) error { return s.from(10*time.Minute, forever) },
			"1.0.0", 10*time.Minute + half, ota.ErrValidation, "rack 3 is hot"},
		{"with another reason each time", func(s *soak) func(context.Context) error {
			n := 0
			return func(context.Context) error { n++; return fmt.Errorf("%w: reason %d", ota.ErrFlashWrite, n) }
		}, "1.0.0", half, ota.ErrFlashWrite, ": reason 3"},
		{"without a text", func(s *soak) func(context.Context) error {
			return func(context.Context) error { return errors.New("") }
		}, "1.0.0", half, ota.ErrValidation, "a symptom without a text"},
		{"slow, and none", func(s *soak) func(context.Context) error {
			return func(ctx context.Context) error { <-time.After(half - time.Second); return ctx.Err() }
		}, "1.0.1", 0, ota.ErrNone, ""},
		{"no answer for 31 s", func(s *soak) func(context.Context) error {
			return func(ctx context.Context) error { <-time.After(half + time.Second); return nil }
		}, "1.0.0", 0, ota.ErrValidation, "not answered in 30s"},
		{"no answer before its context ends", func(s *soak) func(context.Context) error {
			return func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}, "1.0.0", 0, ota.ErrValidation, "not answered in 30s"},
		{"none, and an agent that has nothing to ask", func(s *soak) func(context.Context) error { return nil },
			"1.0.1", 10 * time.Minute, ota.ErrNone, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var s *soak
				left := time.Time{}
				s = soaking(d, func(c *ota.Config) { c.Symptom = test.symptom(s) })
				live(t, d)
				wantRunning(t, d, test.version)
				if test.version == "1.0.1" {
					if wantReport(t, d, ota.Succeeded, ota.ErrNone, ""); test.took > 0 {
						s.wantEnd(t, test.took)
					}
					return
				}
				wantReport(t, d, ota.RolledBack, test.code, test.reason)
				if len(s.restarts) != 1 {
					t.Fatalf("%d restarts, want 1", len(s.restarts))
				}
				if left = s.restarts[0]; test.took > 0 && left.Sub(s.begun) != test.took || left.Sub(s.begun) > 33*time.Second+test.took {
					t.Errorf("left after %v, want %v", left.Sub(s.begun), test.took)
				}
				if got := d.Manager().Snapshot(); len(got.Skipped) != 1 || got.Slot != "A" || d.Suspended {
					t.Errorf("skipped %v in slot %s, suspended %v", got.Skipped, got.Slot, d.Suspended)
				}
			})
		})
	}
}

// One question at a time, and none is put before the one before has ended.
func TestSymptomThatHangsIsAskedOnce(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var asked atomic.Int32
		end := make(chan struct{})
		defer close(end)
		var s *soak
		s = soaking(d, func(c *ota.Config) {
			c.Gate, c.Hooks.Suspend = never, nil
			c.Symptom = func(context.Context) error { asked.Add(1); <-end; return nil } // a driver that does not know ctx
		})
		got := live(t, d)
		if asked.Load() != 1 || got.State != ota.Soak || !strings.Contains(got.Reason, "not answered in 30") || len(s.restarts) != 0 {
			t.Errorf("asked %d times; %s %q", asked.Load(), got.State, got.Reason)
		}
	})
}

func TestSymptomThatPanics(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		soaking(d, func(c *ota.Config) {
			c.Symptom = func(context.Context) error { panic("nil map") }
		})
		if err := d.Live(t.Context(), 23*time.Minute); err == nil || !strings.Contains(err.Error(), "nil map") {
			t.Errorf("got %v, want the panic", err)
		}
	})
}

// The way out of a soak restarts a controller at work: only a quiesced plant or a gate
// that says yes, at this moment and for its dwell time, let it.
func TestWayOutOfASoak(t *testing.T) {
	half := errors.New("the contactor does not answer")
	for _, test := range []struct {
		name   string
		change func(s *soak, c *ota.Config)
		// after the soak began; 30 s is at once
		min, max time.Duration
		suspends [2]int
		asked    []ota.Moment // the last ones
		waits    string       // in the reason meanwhile
	}{
		{"quiesced, and the gate says no", func(s *soak, c *ota.Config) { c.Gate = never }, 30 * time.Second, 30 * time.Second, [2]int{1, 1}, nil, ""},
		{"nothing to quiesce, and the gate says yes", func(s *soak, c *ota.Config) { c.Hooks.Suspend = nil },
			30 * time.Second, 30 * time.Second, [2]int{}, []ota.Moment{ota.BeforeRestart, ota.AtRestart}, ""},
		{"nothing to quiesce, and the gate says no for a while", func(s *soak, c *ota.Config) {
			c.Hooks.Suspend = nil
			c.Gate = s.opens(5 * time.Minute)
		}, 5 * time.Minute, 5*time.Minute + time.Second, [2]int{}, []ota.Moment{ota.BeforeRestart, ota.AtRestart}, "rack 3 is hot; going back waits: discharging at 80 kW"},
		{"the gate says no at the last moment", func(s *soak, c *ota.Config) {
			c.Hooks.Suspend = nil
			open := s.opens(5 * time.Minute)
			c.Gate = func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
				if at == ota.AtRestart {
					return open(ctx, m, at)
				}
				return nil
			}
		}, 5 * time.Minute, 7 * time.Minute, [2]int{}, []ota.Moment{ota.BeforeRestart, ota.AtRestart}, "discharging at 80 kW"},
		{"quiescing does not work, and the gate says yes", func(s *soak, c *ota.Config) {
			c.Hooks.Suspend = func(context.Context) error { s.d.Suspended = true; return half }
		}, 30 * time.Second, 30 * time.Second, [2]int{1, 1}, []ota.Moment{ota.BeforeRestart, ota.AtRestart}, ""},
		{"quiescing does not work for a while, and the gate says no", func(s *soak, c *ota.Config) {
			c.Gate = never
			suspend := c.Hooks.Suspend
			c.Hooks.Suspend = func(ctx context.Context) error {
				if time.Since(s.begun) < 5*time.Minute {
					s.d.Suspended = true
					return half
				}
				return suspend(ctx)
			}
		}, 5 * time.Minute, 7 * time.Minute, [2]int{4, 8}, nil, "does not answer; discharging at 80 kW"},
	} {
		t.Run(test.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var s *soak
				quiet := 0
				var reasons []string
				s = soaking(d, func(c *ota.Config) {
					c.Symptom = s.from(0, time.Minute) // what was decided is done, though the symptom goes
					test.change(s, c)
					gate := c.Gate
					c.Gate = func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
						if d.Suspended && len(s.moments) > 0 {
							quiet++
						}
						reasons = append(reasons, d.Manager().Snapshot().Reason)
						return gate(ctx, m, at)
					}
				})
				live(t, d)
				wantRunning(t, d, "1.0.0")
				wantReport(t, d, ota.RolledBack, ota.ErrValidation, "rack 3 is hot")
				if len(s.restarts) != 1 {
					t.Fatalf("%d restarts, want 1", len(s.restarts))
				}
				if got := s.restarts[0].Sub(s.begun); got < test.min || got > test.max {
					t.Errorf("left after %v, want %v to %v", got, test.min, test.max)
				}
				if s.suspends < test.suspends[0] || s.suspends > test.suspends[1] {
					t.Errorf("quiesced %d times, want %d to %d", s.suspends, test.suspends[0], test.suspends[1])
				}
				if got := s.moments[max(0, len(s.moments)-len(test.asked)):]; len(test.asked) > 0 && !slices.Equal(got, test.asked) {
					t.Errorf("asked %v last, want %v", got, test.asked)
				}
				if test.waits != "" && !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(r, test.waits) }) {
					t.Errorf("shown %q, want one with %q", reasons[max(0, len(reasons)-3):], test.waits)
				}
				if d.Suspended {
					t.Error("still quiesced")
				}
				if quiet > 12 {
					t.Errorf("%d questions while it was quiesced: it waits so", quiet)
				}
			})
		})
	}
}

// opens returns a gate that says no until at after the soak began.
func (s *soak) opens(at time.Duration) ota.Gate {
	return func(ctx context.Context, m *ota.Manifest, moment ota.Moment) error {
		if time.Since(s.begun) < at {
			return never(ctx, m, moment)
		}
		return nil
	}
}

// Nothing is forced: with neither a quiesced plant nor a yes, the device stays for ever,
// at work, and takes no other release.
func TestNoWayOutIsForced(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var s *soak
		s = soaking(d, func(c *ota.Config) {
			c.Symptom = s.from(0, forever)
			c.Gate = never
			c.Hooks.Suspend = func(context.Context) error { return errors.New("PCS does not answer") }
		})
		for range 3 {
			if err := d.Live(t.Context(), 24*time.Hour); err != nil {
				t.Fatal(err)
			}
			powerCycle(t, d, otatest.DropAll)
		}
		got := d.Manager().Snapshot()
		if got.State != ota.Soak || got.Status != ota.StatusRollingBack || d.Suspended || len(s.restarts) != 0 || len(d.Source.Reports) != 0 {
			t.Errorf("%s %s, suspended %v, %d restarts, %d reports", got.State, got.Status, d.Suspended, len(s.restarts), len(d.Source.Reports))
		}
		if s.suspends < 2000 || s.suspends > 72*60*2 {
			t.Errorf("quiesced %d times in 3 days, want about once a minute", s.suspends)
		}
	})
}
