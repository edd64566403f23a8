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
		if suspends < 2 || suspends > 7 { // after about 1, 2, 4, 8 ... minutes
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

// TestGateInTheLastSecond: everything around the restart is slow, and the battery
// becomes unsafe at every single step. The last thing before the restart is a yes, not
// older than a second, of a battery that was safe when it was asked.
func TestGateInTheLastSecond(t *testing.T) {
	steps := 1 // until a run has fewer
	for at := 1; at <= steps; at++ {
		device(t, func(t *testing.T, d *otatest.Device) {
			n, restarts := 0, 0
			var unsafe, yes time.Time
			safe := func() bool { return unsafe.IsZero() || time.Since(unsafe) >= 3*time.Minute }
			// step is something that takes long, before or after which the battery may change.
			step := func(took time.Duration) {
				if n++; n == at {
					unsafe = time.Now()
				}
				time.Sleep(took)
				if n++; n == at {
					unsafe = time.Now()
				}
			}
			configure(d, func(c *ota.Config) {
				c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error {
					step(300 * time.Millisecond) // the link to the battery is slow
					if !safe() {
						return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "47 °C"}
					}
					yes = time.Now()
					step(300 * time.Millisecond)
					return nil
				}
				c.Hooks.Suspend = func(context.Context) error { step(40 * time.Second); return nil }
				c.Hooks.Resume = func(context.Context) error { step(20 * time.Second); return nil }
				c.Hooks.Finished = func(*ota.Manifest) { step(30 * time.Second) }
				c.Slots = &wrapped{Slots: c.Slots,
					try:  func(next func() error) error { step(20 * time.Second); return next() },
					good: func(next func() error) error { step(5 * time.Second); return next() },
					reboot: func(next func() error) error {
						restarts++
						if age := time.Since(yes); age > time.Second {
							t.Errorf("step %d: the gate's yes was %v old at the restart", at, age)
						}
						if !safe() && unsafe.Before(yes) {
							t.Errorf("step %d: restarted %v after the battery became unsafe, which the gate could know", at, time.Since(unsafe))
						}
						return next()
					}}
			})
			live(t, d)
			wantRunning(t, d, "1.0.1")
			if restarts != 1 {
				t.Errorf("step %d: %d restarts, want 1", at, restarts)
			}
			steps = max(steps, n)
		})
	}
	t.Logf("unsafe at each of %d steps", steps)
}

// A gate that answers after more than a second has not said yes to the restart.
func TestSlowYesIsNone(t *testing.T) {
	for took, want := range map[time.Duration]string{time.Second: "1.0.1", time.Second + time.Millisecond: "1.0.0"} {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) {
				c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
					if at == ota.AtRestart {
						time.Sleep(took)
					}
					return nil
				}
			})
			got := live(t, d)
			wantRunning(t, d, want)
			if want == "1.0.0" && (got.Code != ota.ErrBMSUnsafe || !strings.Contains(got.Reason, "the gate's yes took 1.001s")) {
				t.Errorf("got %s %q, want the reason", got.Code.Name(), got.Reason)
			}
		})
	}
}

// TestYesToWriteIsForOneTransfer: a transfer that ended for lack of a source does not
// begin again minutes or hours later on the strength of the yes from before.
func TestYesToWriteIsForOneTransfer(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		unsafe := time.Now().Add(30 * time.Second) // the check is at 10 s, the second transfer a minute after the first
		configure(d, func(c *ota.Config) {
			c.Retries = -1
			c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error {
				if time.Now().After(unsafe) {
					return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "47 °C"}
				}
				return nil
			}
		})
		d.Source.CutAt = []int64{0}
		wrote := 0
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "write /device/b/") {
				wrote++
			}
			return otatest.Fault{}
		}
		got := live(t, d)
		if wrote != 0 {
			t.Errorf("%d writes to the slot, although the battery was unsafe before the first", wrote)
		}
		if got.State != ota.Fetching || got.Code != ota.ErrBMSUnsafe {
			t.Errorf("got %s %s, want that the transfer waits for the battery", got.State, got.Code.Name())
		}
	})
}
