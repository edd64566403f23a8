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

// What a person can do in a soak.
func TestCommandsInASoak(t *testing.T) {
	refused := func(s *soak, c *ota.Config) { c.Gate, c.Hooks.Suspend = s.opens(8*time.Minute), nil }
	for _, test := range []struct {
		name    string
		change  func(s *soak, c *ota.Config)
		act     func(m *ota.Manager) *ota.Call // 3 minutes after the soak began
		want    error
		running string
		result  ota.Result
		code    ota.ErrorCode
		reason  string
		took    time.Duration // until the record says idle, or the restart; 0: whenever
	}{
		{"confirm", nil, (*ota.Manager).Confirm, nil, "1.0.1", ota.Succeeded, ota.ErrNone, "", 3 * time.Minute},
		{"confirm, with a symptom", func(s *soak, c *ota.Config) { c.Symptom = s.from(170*time.Second, forever) },
			(*ota.Manager).Confirm, nil, "1.0.1", ota.Succeeded, ota.ErrNone, "", 3 * time.Minute},
		{"confirm what was to be left", func(s *soak, c *ota.Config) { refused(s, c); c.Symptom = s.from(0, forever) },
			(*ota.Manager).Confirm, nil, "1.0.1", ota.Succeeded, ota.ErrNone, "", 3 * time.Minute},
		{"roll back", nil, (*ota.Manager).RollBack, nil, "1.0.0", ota.RolledBack, ota.ErrNone, "a person asked for it", 0},
		{"roll back, and the gate says no", refused, (*ota.Manager).RollBack, ota.ErrBMSUnsafe, "1.0.0", ota.RolledBack, ota.ErrNone, "a person asked for it", 0},
		{"roll back what is left already", func(s *soak, c *ota.Config) { refused(s, c); c.Symptom = s.from(0, forever) },
			(*ota.Manager).RollBack, ota.ErrBMSUnsafe, "1.0.0", ota.RolledBack, ota.ErrValidation, "rack 3 is hot", 0},
		{"abort", nil, (*ota.Manager).Abort, ota.ErrBusy, "1.0.1", ota.Succeeded, ota.ErrNone, "", 10 * time.Minute},
		{"check", nil, (*ota.Manager).Check, ota.ErrBusy, "1.0.1", ota.Succeeded, ota.ErrNone, "", 10 * time.Minute},
		{"install", nil, (*ota.Manager).Install, ota.ErrBusy, "1.0.1", ota.Succeeded, ota.ErrNone, "", 10 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var s *soak
				s = soaking(d, func(c *ota.Config) {
					if test.change != nil {
						test.change(s, c)
					}
				})
				var got error
				over := make(chan struct{})
				d.AtStart = func(m *ota.Manager) {
					if d.Running.Version != "1.0.1" {
						return
					}
					go func() {
						<-time.After(3 * time.Minute)
						call := test.act(m)
						ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
						defer cancel()
						got = call.Wait(ctx)
						close(over)
					}()
				}
				live(t, d)
				<-over
				restarted := errors.Is(got, ota.ErrStopped) || errors.Is(got, context.DeadlineExceeded) // the device was gone before the answer
				if test.want == nil && got != nil && !(restarted && test.running == "1.0.0") || test.want != nil && !errors.Is(got, test.want) {
					t.Errorf("got %v, want %v", got, test.want)
				}
				wantRunning(t, d, test.running)
				wantReport(t, d, test.result, test.code, test.reason)
				if test.took > 0 {
					s.wantEnd(t, test.took)
				}
				if d.Suspended {
					t.Error("still quiesced")
				}
			})
		})
	}
}

// Confirm in the trial marks good, and the soak follows: they prove different things.
func TestConfirmInTheTrialIsWatchedOn(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		s := soaking(d, func(c *ota.Config) { c.Healthy = nil })
		answered := make(chan error, 1)
		d.AtStart = func(m *ota.Manager) {
			if d.Running.Version == "1.0.1" {
				call := m.Confirm()
				go func() { answered <- call.Wait(context.Background()) }()
			}
		}
		live(t, d)
		if err := <-answered; err != nil {
			t.Error(err)
		}
		s.wantEnd(t, 10*time.Minute)
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
	})
}

// Where rollback is switched off, a symptom is shown, and nothing is done about it; what
// was decided before that is given up. A success is not said while it is there.
func TestSymptomWithoutRollback(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var s *soak
		gone := 20 * time.Minute
		s = soaking(d, func(c *ota.Config) {
			c.NoRollback = !s.begun.IsZero() && time.Since(s.begun) > time.Minute
			c.Gate, c.Hooks.Suspend = never, nil
			c.Symptom = func(ctx context.Context) error { return s.from(0, gone)(ctx) }
		})
		if err := d.Live(t.Context(), 5*time.Minute); err != nil { // decided, and held by the gate
			t.Fatal(err)
		}
		if got := d.Manager().Snapshot(); got.Status != ota.StatusRollingBack || s.last.Reason == "" {
			t.Fatalf("%s with reason %q in the record, want ROLLING_BACK", got.Status, s.last.Reason)
		}
		if err := d.Live(t.Context(), 13*time.Minute); err != nil {
			t.Fatal(err)
		}
		if got := d.Manager().Snapshot(); got.Status != ota.StatusTrial || !strings.Contains(got.Reason, "rollback is switched off: rack 3 is hot") ||
			got.Code != ota.ErrValidation || s.last.Reason != "" {
			t.Errorf("%s %s %q, %q in the record", got.Status, got.Code.Name(), got.Reason, s.last.Reason)
		}
		live(t, d)
		wantRunning(t, d, "1.0.1")
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
		if took := s.ended.Sub(s.begun); took < gone || len(s.restarts) != 0 {
			t.Errorf("ended after %v with %d restarts, want none and %v", took, len(s.restarts), gone)
		}
	})
}

// Soaks were switched off while one was under way: it ends well at once. A decision to
// go back stays.
func TestSoakSwitchedOff(t *testing.T) {
	for _, decided := range []bool{false, true} {
		device(t, func(t *testing.T, d *otatest.Device) {
			var s *soak
			s = soaking(d, func(c *ota.Config) {
				c.Gate, c.Hooks.Suspend = s.opens(5*time.Minute), nil
				if decided {
					c.Symptom = s.from(0, forever)
				}
			})
			if err := d.Live(t.Context(), 3*time.Minute); err != nil {
				t.Fatal(err)
			}
			config := d.Config
			d.Config = func(c *ota.Config) { config(c); c.SoakTime, c.Symptom = 0, nil }
			live(t, d)
			if decided {
				wantRunning(t, d, "1.0.0")
				wantReport(t, d, ota.RolledBack, ota.ErrValidation, "rack 3 is hot")
				return
			}
			wantRunning(t, d, "1.0.1")
			wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
			s.wantEnd(t, 3*time.Minute)
		})
	}
}

// A return to the previous release is not watched again: it ran well before.
func TestReturnIsNotSoaked(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		soaking(d, nil)
		live(t, d)
		s := soaking(d, nil)
		d.Source.Reports = nil
		background(t, d, func(m *ota.Manager) { m.RollBack() })
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
		if !s.begun.IsZero() {
			t.Error("watched again")
		}
	})
}

func TestSoakConfig(t *testing.T) {
	for _, test := range []struct {
		soak, symptom time.Duration
		want          string
	}{{0, 0, ""}, {time.Hour, time.Minute, ""}, {-1, 0, "SoakTime is -1ns"}, {0, -1, "SymptomTime is -1ns"}} {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.SoakTime, c.SymptomTime = test.soak, test.symptom })
			err := d.Live(t.Context(), time.Second)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("soak %v, symptom %v: got %v, want %q", test.soak, test.symptom, err, test.want)
			}
		})
	}
}
