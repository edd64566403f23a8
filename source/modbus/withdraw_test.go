package modbus_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// giver is a stand-in for the update manager: it gives up what it has in hand when the test lets it.
type giver struct {
	r      *rig
	answer chan error // nil: it gives the release up
	asked  []string
}

func (g *giver) withdraw(ctx context.Context, digest string) error {
	g.asked = append(g.asked, digest)
	select {
	case err := <-g.answer:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return fmt.Errorf("withdraw: %w", ctx.Err())
	}
	g.r.manager(func(h *api.CheckinRequest) { h.UpdateDigest, h.State, h.Status = "", ota.Idle, ota.StatusAborted })
	return g.r.box.Report(ctx, ota.Report{ID: "1", Digest: digest, Version: "1.1.0", Result: ota.Aborted, Code: ota.ErrInternal, Reason: "aborted by a person"})
}

// asking is a device that was asked to install a release, and whose manager is at it.
func asking(t *testing.T, state ota.State, status ota.Status) (*rig, *master, *giver) {
	t.Helper()
	rel := newRelease(t)
	g := &giver{answer: make(chan error, 1)}
	r := newRigHolding(t, rel, func(c *modbus.Config) { c.Withdraw = g.withdraw })
	g.r = r
	m := r.master("192.0.2.1")
	m.push(rel.Bundle)
	m.do(m.with(profile.Install))
	r.manager(func(h *api.CheckinRequest) {
		h.State, h.Status, h.Reason = state, status, "state of charge 22.0 %, want at least 30 %"
		if state != ota.Idle {
			h.UpdateDigest = rel.Manifest.Digest
		}
	})
	return r, m, g
}

// TestAbortOfAnInstallation: ABORT in each state of the update manager. It is answered at once, and until
// the manager has answered the result is busy.
func TestAbortOfAnInstallation(t *testing.T) {
	for _, c := range []struct {
		state  ota.State
		status ota.Status
		shown  profile.State
		late   bool
	}{
		{ota.Idle, ota.StatusChecking, profile.WaitSafe, false}, // it may be about to take it
		{ota.Available, ota.StatusUpdateAvailable, profile.WaitSafe, false},
		{ota.Fetching, ota.StatusDownloading, profile.Installing, false},
		{ota.Staged, ota.StatusReadyToApply, profile.WaitSafe, false},
		{ota.Activating, ota.StatusApplying, profile.Installing, true},
		{ota.Activating, ota.StatusRebooting, profile.RebootPending, true},
		{ota.Trial, ota.StatusTrial, profile.Trial, true},
		{ota.Soak, ota.StatusTrial, profile.Trial, true},
		{ota.RollBack, ota.StatusRollingBack, profile.RebootPending, true},
	} {
		t.Run(string(c.state)+" "+c.status.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, m, g := asking(t, c.state, c.status)
				if s := m.status(); s.State != c.shown {
					t.Fatalf("got %v, want %v", s.State, c.shown)
				}
				abort := m.with(profile.Abort)
				abort.Seq = 500
				if c.late {
					for range 2 { // the same again is answered again
						if e, s := m.command(abort), m.status(); e != bus.DeviceBusy || s.Result != profile.Busy || s.State != c.shown || s.Seq != 500 {
							t.Errorf("got %v, %v, %v, number %d, want %v, %v, %v, number 500", e, s.Result, s.State, s.Seq, bus.DeviceBusy, profile.Busy, c.shown)
						}
					}
					if reason := m.display().Reason; !strings.Contains(reason, "too late") {
						t.Errorf("got the reason %q, want that it is too late", reason)
					}
					if len(g.asked) != 0 || !r.box.State().Asked {
						t.Errorf("the manager was asked %d times, and the inbox has %+v", len(g.asked), r.box.State())
					}
					return
				}
				m.do(abort)
				synctest.Wait()
				if s := m.status(); s.Result != profile.Busy || s.State != c.shown || s.Session != m.session {
					t.Errorf("at once: got %v, %v, session %d, want %v, %v, %d", s.Result, s.State, s.Session, profile.Busy, c.shown, m.session)
				}
				m.do(abort) // the answer was lost
				g.answer <- nil
				synctest.Wait()
				s := m.status()
				if s.Result != profile.OK || s.State != profile.Aborted || s.Session != 0 || s.Seq != 500 || m.display().Reason != "aborted by a person" {
					t.Errorf("then: got %v, %v, session %d, number %d, %q, want %v, %v, none, 500, and who it was", s.Result, s.State, s.Session, s.Seq, m.display().Reason, profile.OK, profile.Aborted)
				}
				if len(g.asked) != 1 || g.asked[0] != r.release.Manifest.Digest {
					t.Errorf("the manager was asked for %q, want once for %s", g.asked, r.release.Manifest.Digest)
				}
				notOffered(t, r.src)
				// What was taken back can be sent again.
				m.push(r.release.Bundle)
				m.do(m.with(profile.Install))
				if s := m.status(); s.State != profile.WaitSafe || s.Result != profile.OK {
					t.Errorf("pushed again: got %v, %v, want %v, %v", s.State, s.Result, profile.WaitSafe, profile.OK)
				}
			})
		})
	}
}

// TestDuringAWithdrawal: nothing that could concern what is being taken back is done meanwhile.
func TestDuringAWithdrawal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, m, g := asking(t, ota.Available, ota.StatusUpdateAvailable)
		m.do(m.with(profile.Abort))
		for _, c := range []profile.Command{offer(profile.Open, r.release.Bundle), offer(profile.Resume, r.release.Bundle), offer(profile.Open, r.release.Bundle[:9000]),
			m.with(profile.CloseAll), m.with(profile.Install), m.with(profile.Abort), m.with(profile.Precheck), m.with(profile.Rollback), m.with(profile.Confirm), m.with(profile.VerifyFile)} {
			if e, s := m.command(c), m.status(); e != bus.DeviceBusy || s.Result != profile.Busy || s.RetryAfter != 1000 || s.State != profile.WaitSafe {
				t.Errorf("%v: got %v, %v, again after %d ms, %v, want %v, %v, 1000, %v", c.Code, e, s.Result, s.RetryAfter, s.State, bus.DeviceBusy, profile.Busy, profile.WaitSafe)
			}
		}
		if e := r.master("192.0.2.2").command(offer(profile.Open, r.release.Bundle)); e != bus.DeviceBusy {
			t.Errorf("another master: got %v, want %v", e, bus.DeviceBusy)
		}
		g.answer <- nil
		synctest.Wait()
		if s := m.status(); s.State != profile.Aborted || len(g.asked) != 1 {
			t.Errorf("got %v, and the manager was asked %d times, want %v, once", s.State, len(g.asked), profile.Aborted)
		}
	})
}

// TestWithdrawalThatFails: the manager moved on meanwhile, does not answer, or the disk does not.
func TestWithdrawalThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		answer error
		want   profile.Result
		reason string
	}{
		"too late after all": {fmt.Errorf("withdraw release 1.1.0: %w: the restart is under way", ota.ErrBusy), profile.BadParameter, "too late"},
		"the disk":           {fmt.Errorf("keep the report: %w", ota.ErrFlashWrite), profile.Storage, "keep the report"},
		"restarting":         {fmt.Errorf("withdraw: %w: the device is restarting", ota.ErrStopped), profile.Internal, "restarting"},
		"no answer":          {nil, profile.Timeout, "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, m, g := asking(t, ota.Staged, ota.StatusReadyToApply)
				m.do(m.with(profile.Abort))
				if c.answer != nil {
					g.answer <- c.answer
				} else {
					pause(30 * time.Second)
				}
				synctest.Wait()
				if s := m.status(); s.Result != c.want || s.State != profile.WaitSafe || s.Session != m.session || !strings.Contains(m.display().Reason, c.reason) {
					t.Errorf("got %v, %v, session %d, %q, want %v, %v, %d, %q", s.Result, s.State, s.Session, m.display().Reason, c.want, profile.WaitSafe, m.session, c.reason)
				}
				if st := r.box.State(); !st.Asked || st.Phase != inbox.Requested {
					t.Errorf("the inbox has %+v, want that the installation is still asked for", st)
				}
				m.do(m.with(profile.Abort)) // another try
				g.answer <- nil
				synctest.Wait()
				if s := m.status(); s.State != profile.Aborted || s.Result != profile.OK {
					t.Errorf("the second time: got %v, %v, want %v, %v", s.State, s.Result, profile.Aborted, profile.OK)
				}
			})
		})
	}
}

// TestAbortByWhoLostTheSession: a master that has restarted, or never saw the bundle, reads what RESUME
// needs. Who may write, and when, is as for everything else.
func TestAbortByWhoLostTheSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, m, g := asking(t, ota.Available, ota.StatusUpdateAvailable)
		g.answer <- nil
		second := r.master("192.0.2.2")
		there := func() profile.Offer {
			registers, err := second.c.ReadHolding(t.Context(), 1, profile.Base+profile.OffsetOffer, profile.OfferSize)
			if err != nil {
				t.Fatal(err)
			}
			o, err := profile.DecodeOffer(registers)
			if err != nil {
				t.Fatal(err)
			}
			return o
		}
		o := there()
		want := offer(profile.Open, r.release.Bundle)
		if o != (profile.Offer{Size: want.Size, Format: profile.FormatBundle, SHA256: want.SHA256}) {
			t.Fatalf("got %+v, want what was offered", o)
		}
		resume := profile.Command{Code: profile.Resume, Component: profile.TypeBundle, Size: o.Size, Format: o.Format, SHA256: o.SHA256}
		if e := second.command(second.with(profile.Abort)); e != bus.DeviceBusy {
			t.Errorf("ABORT while another master has the session: got %v, want %v", e, bus.DeviceBusy)
		}
		if e := second.command(resume); e != bus.DeviceBusy {
			t.Errorf("RESUME while another master has the session: got %v, want %v", e, bus.DeviceBusy)
		}
		pause(time.Minute)
		second = r.master("192.0.2.2") // the device hangs up on who is silent for a minute
		if e, s := second.command(second.with(profile.Abort)), second.status(); e != bus.IllegalValue || s.Result != profile.NoSession {
			t.Errorf("ABORT without a session: got %v, %v, want %v, %v", e, s.Result, bus.IllegalValue, profile.NoSession)
		}
		stranger := r.master("198.51.100.1")
		if e := stranger.command(resume); e != bus.IllegalFunction || len(g.asked) != 0 {
			t.Errorf("a stranger: got %v, want %v", e, bus.IllegalFunction)
		}
		second.open(resume)
		second.do(second.with(profile.Abort))
		synctest.Wait()
		if s := m.status(); s.State != profile.Aborted {
			t.Errorf("got %v, want %v", s.State, profile.Aborted)
		}
		if err := r.box.Drop(); err != nil || there() == (profile.Offer{}) {
			t.Errorf("%v: what has ended is no longer shown", err)
		}
		m.open(offer(profile.Open, r.release.Bundle))
		m.do(m.with(profile.Abort))
		if o := there(); o != (profile.Offer{}) {
			t.Errorf("with nothing there: got %+v, want nothing", o)
		}
	})
}

// TestAbortOfWhatHasEnded: it changes nothing, also later, when another release has taken the place of the one
// that was installed.
func TestAbortOfWhatHasEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, m, _ := asking(t, ota.Idle, ota.StatusIdle)
		report := func(id, digest string) {
			if err := r.box.Report(t.Context(), ota.Report{ID: id, Digest: digest, Version: "1.1.0", Result: ota.Succeeded}); err != nil {
				t.Fatal(err)
			}
		}
		report("1", r.release.Manifest.Digest)
		m.do(m.with(profile.Abort))
		if s := m.status(); s.State != profile.Confirmed {
			t.Errorf("got %v, want %v", s.State, profile.Confirmed)
		}
		report("2", "another")
		if s := m.status(); s.State != profile.Idle {
			t.Errorf("after another release: got %v, want %v", s.State, profile.Idle)
		}
	})
}
