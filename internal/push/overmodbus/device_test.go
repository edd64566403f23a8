package overmodbus_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overmodbus"
	sourcemodbus "github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// The states and results of package push are those of the profile, by number.
func TestNumbers(t *testing.T) {
	for want, got := range map[profile.State]push.State{profile.Idle: push.Idle, profile.Opening: push.Opening, profile.Receiving: push.Receiving,
		profile.Received: push.Received, profile.Verifying: push.Verifying, profile.Verified: push.Verified, profile.WaitSafe: push.WaitSafe,
		profile.Installing: push.Installing, profile.RebootPending: push.Restarting, profile.Trial: push.Trial, profile.Confirmed: push.Confirmed,
		profile.RolledBack: push.RolledBack, profile.Failed: push.Failed, profile.Aborted: push.Aborted} {
		if uint16(got) != uint16(want) {
			t.Errorf("%v: got %d, want %d", want, got, want)
		}
	}
	for r := range profile.Internal + 1 {
		known := !strings.HasPrefix(r.String(), "result ")
		if got := !strings.HasPrefix(push.Result(r).String(), "result "); got != known {
			t.Errorf("result %d: package push knows it: %v, want %v", r, got, known)
		}
	}
	for r, want := range map[profile.Result]ota.ErrorCode{profile.BadSignature: ota.ErrValidation, profile.BadHash: ota.ErrValidation,
		profile.Incompatible: ota.ErrIncompatible, profile.TooOld: ota.ErrIncompatible, profile.LowCharge: ota.ErrBatteryLow,
		profile.StaleData: ota.ErrBMSUnsafe, profile.NotAllowed: ota.ErrAuthentication, profile.NoSpace: ota.ErrInsufficientSpace, profile.Storage: ota.ErrFlashWrite} {
		if got := push.Result(r).Code(); got != want {
			t.Errorf("%v: got %v, want %v", r, got, want)
		}
	}
}

// manager is a stand-in for the manager: it says what the agent's machine would, and
// reports to the inbox how the update ended.
func (g *rig) manager(status ota.Status, set func(*api.CheckinRequest)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.head.Status = status
	g.head.UpdateVersion, g.head.UpdateDigest = "1.1.0", g.release.Manifest.Digest
	if set != nil {
		set(&g.head)
	}
}

// The whole way: sent, installed, restarted, on trial, proven; and pushed again, which
// sends nothing.
func TestRunToTheEnd(t *testing.T) {
	release, f := file(t, 9000)
	bubble(t, "proven", func(t *testing.T) {
		g := newRig(t, release, nil)
		defer g.end()
		var states []push.State
		var trial push.Status
		proven := make(chan error, 1)
		d := g.master(4)
		defer d.Close()
		go func() {
			proven <- push.Run(t.Context(), d, f, push.Options{Tell: func(e push.Event) {
				if e.Kind == push.KindState {
					states = append(states, e.Status.State)
				}
				if s := e.Status; s != nil && s.State == push.Trial {
					trial = *s
				}
			}})
		}()
		for g.inbox().State().Phase != inbox.Requested {
			<-time.After(time.Second)
		}
		g.manager(ota.StatusReadyToApply, func(h *api.CheckinRequest) {
			h.Code, h.Reason = ota.ErrBatteryLow, "state of charge 22.0 %, want at least 30 %"
		})
		<-time.After(time.Minute)
		g.manager(ota.StatusRebooting, func(h *api.CheckinRequest) { h.Code, h.Reason = 0, "" })
		<-time.After(2 * time.Second)
		g.restart(40 * time.Second)
		g.manager(ota.StatusTrial, func(h *api.CheckinRequest) {
			h.Version, h.Course = "1.1.0", ota.Course{Try: 2, SecondsLeft: 42, ImagesDone: 1}
		})
		<-time.After(time.Minute)
		g.manager(ota.StatusIdle, nil)
		r := ota.Report{ID: "1", Version: "1.1.0", Digest: release.Manifest.Digest, Result: ota.Succeeded, Time: time.Now()}
		if err := g.inbox().Report(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if err := <-proven; err != nil {
			t.Errorf("got %v, want nil", err)
		}
		t.Log(states)
		if trial.Left != 42*time.Second || trial.Attempt != 2 || trial.ImagesDone != 1 || trial.ImagesFailed != 0 {
			t.Errorf("on trial: got %+v, want 42 s left of the second try, and one image", trial)
		}
		for i, want := range []push.State{push.WaitSafe, push.Restarting, push.Trial, push.Confirmed} {
			if at := len(states) - 4 + i; at < 0 || states[at] != want {
				t.Errorf("got the states %v, want them to end with waiting, restarting, on trial, proven", states)
				break
			}
		}
		before, _ := g.sent()
		if err := push.Run(t.Context(), g.master(4), f, push.Options{}); err != nil {
			t.Errorf("pushed again: got %v, want nil: it is proven already", err)
		}
		if after, _ := g.sent(); after != before {
			t.Errorf("pushed again: got %d blocks sent, want none", after-before)
		}
	})
}

// A gate that does not know is not a gate that says yes.
func TestPrecheck(t *testing.T) {
	release, _ := file(t, 3000)
	for _, tt := range []struct {
		name  string
		gate  error
		check func(error) bool
	}{
		{"yes", nil, func(err error) bool { return err == nil }},
		{"no", &ota.Refusal{Code: ota.ErrBatteryLow, Reason: "state of charge 22.0 %, want at least 30 %"}, func(err error) bool {
			return errors.Is(err, ota.ErrNotNow) && errors.Is(err, ota.ErrBatteryLow) && strings.Contains(err.Error(), "22.0 %")
		}},
		{"not known", errors.New("read the battery: no answer"), func(err error) bool {
			return errors.Is(err, ota.ErrNotNow) && strings.Contains(err.Error(), "no answer")
		}},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			g := newRig(t, release, func(g *rig) {
				g.change = append(g.change, func(c *sourcemodbus.Config) {
					c.Precheck = func(ctx context.Context) error { <-time.After(700 * time.Millisecond); return tt.gate }
				})
			})
			defer g.end()
			d := g.master(1)
			defer d.Close()
			if _, err := d.Identify(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := d.Precheck(t.Context()); !tt.check(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// What a device does not take ends the transfer at once, with the reason.
func TestRefusals(t *testing.T) {
	release, f := file(t, 9000)
	other, _ := file(t, 9000) // signed by somebody else
	for _, tt := range []struct {
		name string
		set  func(*rig)
		is   error
		most int // blocks that were sent
	}{
		{"another key", func(g *rig) { g.release = other }, ota.ErrValidation, 6},
		{"writes are not allowed", func(g *rig) {
			g.change = append(g.change, func(c *sourcemodbus.Config) { c.AllowPlain, c.Allow = false, nil })
		}, ota.ErrAuthentication, 0},
		{"too large", func(g *rig) {
			g.change = append(g.change, func(c *sourcemodbus.Config) { c.MaxSize = 4096 })
		}, ota.ErrInsufficientSpace, 0},
		{"function 21 only", func(g *rig) {
			g.change = append(g.change, func(c *sourcemodbus.Config) { c.Functions = []modbus.Function{modbus.WriteFile} })
		}, ota.ErrAuthentication, 2},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			g := newRig(t, release, tt.set)
			defer g.end()
			if err := g.send(t.Context(), f, 4); !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %v", err, tt.is)
			} else {
				t.Log(err)
			}
			if got, _ := g.sent(); got > tt.most {
				t.Errorf("got %d blocks sent, want at most %d", got, tt.most)
			}
		})
	}
}

// Nobody there, and somebody who speaks no such profile.
func TestNotADevice(t *testing.T) {
	for _, tt := range []struct {
		name string
		unit byte
		is   error
		text string
	}{{"no profile", 1, nil, "base address"}, {"silent", 7, push.ErrLine, ""}} {
		bubble(t, tt.name, func(t *testing.T) {
			wire := bustest.NewWire(bustest.WireConfig{Baud: 9600})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				done <- (&modbus.Server{Handler: new(modbus.Memory), Baud: 9600}).ServeRTU(ctx, wire.Join("slave"), 1)
			}()
			d, err := overmodbus.New(overmodbus.Config{Client: modbus.NewRTU(wire.Join("master"), modbus.Config{Baud: 9600}), Unit: tt.unit})
			if err != nil {
				t.Fatal(err)
			}
			_, err = d.Identify(ctx)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v and the text %q", err, tt.is, tt.text)
			}
			t.Log(err)
			d.Close()
			cancel()
			<-done
		})
	}
}

// While another master is at work, this one waits, and says so. A session to which nobody
// writes ends, and what it has brought counts if it is of the same file.
func TestOccupied(t *testing.T) {
	release, f := file(t, 9000)
	bubble(t, "until idle", func(t *testing.T) {
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		g := newRig(t, release, func(g *rig) {
			g.change = append(g.change, func(c *sourcemodbus.Config) { c.IdleTimeout = 20 * time.Second })
			g.faults = bustest.Faults{From: bustest.Master, Exactly: func(r bustest.Record) bustest.Verdict {
				if r.N == 30 {
					leave() // the first master goes, in the middle
					return bustest.Cut
				}
				return bustest.Pass
			}}
		})
		defer g.end()
		if err := g.send(ctx, f, 1); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v from the first master, want it to leave", err)
		}
		g.mu.Lock()
		g.from = 10
		g.mu.Unlock()
		begin := time.Now()
		trouble := ""
		d := g.master(4)
		defer d.Close()
		err := push.Run(t.Context(), d, f, push.Options{StageOnly: true, Tell: func(e push.Event) {
			if e.Kind == push.KindTrouble {
				trouble = e.Error
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 19*time.Second || took > 50*time.Second {
			t.Errorf("got the file in after %v, want to wait for the idle timeout of 20 s", took)
		}
		if !strings.Contains(trouble, "another master") {
			t.Errorf("got the trouble %q, want it to name another master", trouble)
		}
		g.whole(f)
	})
}

// A text that changes while the display is read comes whole, as it was or as it is.
func TestTextsAreNotTorn(t *testing.T) {
	release, f := file(t, 2000)
	bubble(t, "another reason at each request", func(t *testing.T) {
		reasons := [2]string{"the update manager is about to look at it", strings.Repeat("x", 150)}
		var asked atomic.Int32
		g := newRig(t, release, func(g *rig) {
			g.change = append(g.change, func(c *sourcemodbus.Config) {
				c.State = func() api.CheckinRequest {
					h := g.state()
					h.Status, h.UpdateVersion, h.UpdateDigest = ota.StatusReadyToApply, "1.1.0", release.Manifest.Digest
					h.Reason = reasons[asked.Add(1)%2]
					return h
				}
			})
		})
		defer g.end()
		if err := g.send(t.Context(), f, 4); err != nil {
			t.Fatal(err)
		}
		if err := g.inbox().Request(); err != nil {
			t.Fatal(err)
		}
		d := g.master(4)
		defer d.Close()
		if _, err := d.Identify(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 8 {
			s, err := d.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if s.Reason != reasons[0] && s.Reason != reasons[1] {
				t.Errorf("got %q, want one of %q", s.Reason, reasons)
			}
			asked.Add(int32(len(s.Reason) % 3)) // so that each of its requests meets either
		}
	})
}
