package overmodbus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/otatest"
	sourcemodbus "github.com/interlock-energy/ota/source/modbus"
)

// waiting is a device that was asked to install the release, and whose manager takes its time to give it up;
// and then a fault that comes later. Refuse is what the manager says instead; nil: it gives it up.
func waiting(t *testing.T, release *otatest.SignedRelease, f *push.File, refuse error, set func(*rig)) (g *rig, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	g = newRig(t, release, func(r *rig) {
		r.change = append(r.change, func(c *sourcemodbus.Config) {
			box := c.Inbox
			c.Withdraw = func(ctx context.Context, digest string) error {
				asked.Add(1)
				if digest != release.Manifest.Digest {
					t.Errorf("another release is taken back: %s", digest)
				}
				select {
				case <-time.After(2 * time.Second):
				case <-ctx.Done():
					return ctx.Err()
				}
				if refuse != nil {
					return refuse
				}
				return box.Report(ctx, ota.Report{ID: "1", Digest: digest, Version: "1.1.0", Result: ota.Aborted, Reason: "aborted by a person"})
			}
		})
		if set != nil {
			set(r)
		}
	})
	if err := g.persist(f, 4); err != nil {
		t.Fatal(err)
	}
	if err := g.inbox().Request(); err != nil {
		t.Fatal(err)
	}
	return g, asked
}

// At every request of an --abort the request, or its answer, gets lost, or the agent restarts: it is taken
// back all the same, and another call finds nothing.
func TestAbortAtEveryRequest(t *testing.T) {
	release, f := file(t, 2500)
	for _, serial := range []int{0, 115200} {
		for _, fault := range []string{"answer lost", "request lost", "agent restarts"}[:max(1, 3-serial)] {
			for at := range 12 {
				bubble(t, fmt.Sprintf("%d baud, %s, %d", serial, fault, at), func(t *testing.T) {
					var mu sync.Mutex
					armed, n, hit := false, 0, false
					restarted := make(chan struct{})
					var g *rig
					g, _ = waiting(t, release, f, nil, func(r *rig) {
						r.serial = serial
						r.faults = bustest.Faults{Exactly: func(rec bustest.Record) bustest.Verdict {
							mu.Lock()
							defer mu.Unlock()
							if !armed || hit {
								return bustest.Pass
							}
							if master := rec.From == bustest.Master; master != (fault == "request lost" || fault == "agent restarts") {
								return bustest.Pass
							}
							if n++; n <= at {
								return bustest.Pass
							}
							hit = true
							if fault == "agent restarts" {
								go func() {
									defer close(restarted)
									g.restart(3 * time.Second)
								}()
							}
							return bustest.Lose
						}}
					})
					defer g.end()
					mu.Lock()
					armed = true
					mu.Unlock()
					d := g.master(4)
					defer d.Close()
					was, err := push.Withdraw(t.Context(), d, push.Options{Timeout: 10 * time.Minute})
					for range 10 {
						if !errors.Is(err, push.ErrLine) {
							break
						}
						<-time.After(time.Second) // nobody was there: a person asks again
						was, err = push.Withdraw(t.Context(), d, push.Options{Timeout: 10 * time.Minute})
					}
					if err != nil || was.Version != "1.1.0" {
						t.Errorf("got %v, %+v, want 1.1.0 taken back", err, was)
					}
					mu.Lock()
					if fault == "agent restarts" && hit {
						mu.Unlock()
						<-restarted
						mu.Lock()
					}
					armed = false
					mu.Unlock()
					if st := g.inbox().State(); st.Phase != inbox.Ended || st.Outcome.Result != ota.Aborted {
						t.Errorf("the inbox has %+v, want what was aborted", st)
					}
					if _, err := push.Withdraw(t.Context(), d, push.Options{Timeout: 10 * time.Minute}); !errors.Is(err, push.ErrNothing) {
						t.Errorf("again: got %v, want %v", err, push.ErrNothing)
					}
				})
			}
		}
	}
}

// What cannot be taken back, or not now, is said in the device's words.
func TestAbortRefused(t *testing.T) {
	release, f := file(t, 2500)
	late := fmt.Errorf("withdraw release 1.1.0: %w: the restart into it is under way or done", ota.ErrBusy)
	bubble(t, "the manager moves on", func(t *testing.T) {
		g, _ := waiting(t, release, f, late, nil)
		defer g.end()
		d := g.master(4)
		defer d.Close()
		if _, err := push.Withdraw(t.Context(), d, push.Options{}); !errors.Is(err, push.ErrTooLate) || !strings.Contains(err.Error(), "the restart into it is under way") {
			t.Errorf("got %v, want %v and why", err, push.ErrTooLate)
		}
	})
	bubble(t, "it is being activated", func(t *testing.T) {
		g, asked := waiting(t, release, f, nil, nil)
		defer g.end()
		g.manager(ota.StatusApplying, func(h *api.CheckinRequest) { h.State = ota.Activating })
		time.AfterFunc(20*time.Second, func() {
			g.manager(ota.StatusRebooting, func(h *api.CheckinRequest) { h.State = ota.Activating })
		})
		d := g.master(4)
		defer d.Close()
		if _, err := push.Withdraw(t.Context(), d, push.Options{}); !errors.Is(err, push.ErrTooLate) || asked.Load() != 0 {
			t.Errorf("got %v, and the manager was asked %d times, want %v, never", err, asked.Load(), push.ErrTooLate)
		}
	})
	bubble(t, "a restart that is called off", func(t *testing.T) {
		g, _ := waiting(t, release, f, nil, nil)
		defer g.end()
		g.manager(ota.StatusApplying, func(h *api.CheckinRequest) { h.State = ota.Activating })
		time.AfterFunc(20*time.Second, func() {
			g.manager(ota.StatusReadyToApply, func(h *api.CheckinRequest) { h.State = ota.Staged })
		})
		d := g.master(4)
		defer d.Close()
		if _, err := push.Withdraw(t.Context(), d, push.Options{}); err != nil {
			t.Errorf("got %v, want it taken back", err)
		}
	})
	bubble(t, "another master has the session", func(t *testing.T) {
		g, _ := waiting(t, release, f, nil, func(r *rig) {
			r.change = append(r.change, func(c *sourcemodbus.Config) { c.IdleTimeout = 20 * time.Second })
		})
		defer g.end()
		g.mu.Lock()
		g.from = 10
		g.mu.Unlock()
		began := time.Now()
		d := g.master(4)
		defer d.Close()
		if _, err := push.Withdraw(t.Context(), d, push.Options{}); err != nil || time.Since(began) < 15*time.Second || time.Since(began) > 40*time.Second {
			t.Errorf("got %v after %v, want it taken back as soon as the other master has been silent for 20 s", err, time.Since(began))
		}
	})
}
