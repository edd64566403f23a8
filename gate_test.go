package ota_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

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

// Quiescing is what makes the gate say no (the ramp, a relay): the plant
// must not be switched once a second.
func TestRefusalAtTheRestartIsNotATightLoop(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		suspends, writes := 0, 0
		configure(d, func(c *ota.Config) {
			c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
				if at == ota.AtRestart {
					return ota.ErrNotNow
				}
				return nil
			}
			c.Hooks.Suspend = func(context.Context) error { suspends++; return nil }
			c.Slots = &wrapped{Slots: c.Slots, try: func(next func() error) error { writes++; return next() }}
		})
		live(t, d)
		if suspends > 100 {
			t.Errorf("quiesced %d times and told the bootloader %d times in 23 minutes", suspends, writes)
		}
	})
}

// A gate's error is a refusal whatever it wraps, also after a restart of the agent in mid-download.
func TestGateErrorNeverEndsAnUpdate(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		broken := false
		d.Source.CutAt = []int64{9000}
		configure(d, func(c *ota.Config) {
			c.Retries = -1
			c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error {
				if broken {
					return fmt.Errorf("parse the reading: %w", ota.ErrValidation)
				}
				return nil
			}
			c.Hooks.Failed = func(error) {
				if !broken {
					broken = true
					panic(&otatest.PowerCut{Cut: otatest.Cut{Agent: true}})
				}
			}
		})
		live(t, d)
		if got := d.Manager().Snapshot(); len(got.Skipped) > 0 {
			t.Errorf("%s %q, skipped %+v", got.Status, got.Reason, got.Skipped)
		}
	})
}

// An agent that died after the gate's yes asks anew, before it
// quiesces anything.
func TestDeadAgentAsksAnewBeforeItQuiesces(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		suspends := 0
		configure(d, func(c *ota.Config) {
			c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
				if at == ota.BeforeRestart && suspends > 0 {
					return ota.ErrNotNow
				}
				return nil
			}
			c.Hooks.Suspend = func(context.Context) error {
				if suspends++; suspends == 1 {
					panic(agentDies)
				}
				return nil
			}
		})
		live(t, d)
		wantRunning(t, d, "1.0.0")
		if suspends != 1 {
			t.Errorf("quiesced %d times, the gate says no since the first", suspends)
		}
	})
}

// With no ValidationTime the first yes is enough.
func TestFirstYesIsEnough(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		asked := 0
		configure(d, func(c *ota.Config) { c.Healthy = func(context.Context) error { asked++; return nil } })
		live(t, d)
		if asked != 1 {
			t.Errorf("asked %d times, want once", asked)
		}
	})
}

// An agent that died in mid-download asks before it writes on.
func TestDeadAgentAsksAnewBeforeItWrites(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		died := false
		configure(d, func(c *ota.Config) {
			c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error {
				if died {
					return ota.ErrNotNow
				}
				return nil
			}
			c.Hooks.Progress = func(done, _ int64) {
				if done > 9000 && !died {
					died = true
					panic(agentDies)
				}
			}
		})
		live(t, d)
		if d.Source.Sent > 14000 {
			t.Errorf("%d bytes fetched, the gate says no since 12288", d.Source.Sent)
		}
	})
}
