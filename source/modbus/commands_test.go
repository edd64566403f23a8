package modbus_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// TestMapIsRead: every row of the map, by functions 3 and 4; what is between the rows is
// writes are all ways in which a master can write something, and what an allowed one is
// TestWhatIsWritten: each way to write gets the documented exception, from a master with
// phases bring a device to each phase of a transfer; the master has the session, if there
// is one.
var phases = []struct {
	name  string
	state profile.State
	reach func(t *testing.T, r *rig, m *master)
}{
	{"nothing begun", profile.Idle, func(t *testing.T, r *rig, m *master) {}},
	{"opening", profile.Opening, func(t *testing.T, r *rig, m *master) { m.open(offer(profile.Open, r.release.Bundle)) }},
	{"receiving", profile.Receiving, func(t *testing.T, r *rig, m *master) {
		m.open(offer(profile.Open, r.release.Bundle))
		for s := m.status(); s.State == profile.Opening; s = m.status() {
			m.block(r.release.Bundle, s.Missing)
		}
	}},
	{"received", profile.Received, func(t *testing.T, r *rig, m *master) {
		m.open(offer(profile.Open, r.release.Bundle))
		m.send(r.release.Bundle)
		m.until(profile.Received)
	}},
	{"verified", profile.Verified, func(t *testing.T, r *rig, m *master) { m.push(r.release.Bundle) }},
	{"in the manager's hand", profile.Installing, func(t *testing.T, r *rig, m *master) {
		m.push(r.release.Bundle)
		m.do(m.with(profile.Install))
		r.manager(func(h *api.CheckinRequest) {
			h.Status, h.UpdateDigest = ota.StatusDownloading, r.release.Manifest.Digest
		})
	}},
	{"proven", profile.Confirmed, func(t *testing.T, r *rig, m *master) {
		m.push(r.release.Bundle)
		m.do(m.with(profile.Install))
		if err := r.src.Report(t.Context(), ota.Report{ID: "1", Digest: r.release.Manifest.Digest, Version: "1.1.0", Result: ota.Succeeded}); err != nil {
			t.Fatal(err)
		}
	}},
	{"failed", profile.Failed, func(t *testing.T, r *rig, m *master) {
		m.open(offer(profile.Open, r.release.Bundle))
		m.registersOf(0, bytes.Repeat([]byte{1}, 224))
	}},
	{"aborted", profile.Aborted, func(t *testing.T, r *rig, m *master) {
		m.open(offer(profile.Open, r.release.Bundle))
		m.do(m.with(profile.Abort))
	}},
}

// TestCommandsInStates: each command in each state. What a command may not do there is
// refused without an effect; nothing but INSTALL makes the manager look.
func TestCommandsInStates(t *testing.T) {
	type outcome struct {
		e      bus.Exception
		result profile.Result
		state  profile.State // after it; same: as before
	}
	const same = profile.State(1000)
	ok := outcome{0, profile.OK, same}
	none, not := outcome{3, profile.NoSession, same}, outcome{3, profile.BadParameter, same}
	rel := newRelease(t)
	other := key.Release(t, "1.2.0", 9000)
	for _, c := range []struct {
		name    string
		command func(m *master) profile.Command
		want    []outcome // in the order of the phases
	}{
		{"OPEN", func(m *master) profile.Command { return offer(profile.Open, rel.Bundle) }, []outcome{{0, 0, profile.Opening}, ok, ok, ok, ok, ok, ok, {0, 0, profile.Opening}, {0, 0, profile.Opening}}},
		{"OPEN of another", func(m *master) profile.Command { return offer(profile.Open, other.Bundle) }, []outcome{{0, 0, profile.Opening}, ok, {0, 0, profile.Opening}, {0, 0, profile.Opening}, {0, 0, profile.Opening}, {6, profile.Busy, same}, {0, 0, profile.Opening}, {0, 0, profile.Opening}, {0, 0, profile.Opening}}},
		{"RESUME", func(m *master) profile.Command { return offer(profile.Resume, rel.Bundle) }, []outcome{none, ok, ok, ok, ok, ok, ok, {0, profile.BadSignature, same}, none}},
		{"RESUME of another", func(m *master) profile.Command { return offer(profile.Resume, other.Bundle) }, []outcome{none, none, none, none, none, none, none, none, none}},
		{"CLOSE", func(m *master) profile.Command { return m.with(profile.CloseAll) }, []outcome{none, not, not, {0, 0, profile.Verified}, ok, ok, ok, not, none}},
		{"INSTALL", func(m *master) profile.Command { return m.with(profile.Install) }, []outcome{none, not, not, not, {0, 0, profile.WaitSafe}, ok, not, not, none}},
		{"ABORT", func(m *master) profile.Command { return m.with(profile.Abort) }, []outcome{none, {0, 0, profile.Aborted}, {0, 0, profile.Aborted}, {0, 0, profile.Aborted}, {0, 0, profile.Aborted}, {6, profile.Busy, same}, ok, {0, 0, profile.Aborted}, none}},
		{"CONFIRM", func(m *master) profile.Command { return m.with(profile.Confirm) }, []outcome{ok, ok, ok, ok, ok, ok, ok, {0, profile.BadSignature, same}, ok}},
		{"PRECHECK", func(m *master) profile.Command { return m.with(profile.Precheck) }, []outcome{ok, ok, ok, ok, ok, ok, ok, ok, ok}},
		{"ROLLBACK", func(m *master) profile.Command { return m.with(profile.Rollback) }, slices.Repeat([]outcome{{1, profile.NotAllowed, same}}, 9)},
		{"VERIFY_FILE", func(m *master) profile.Command {
			return profile.Command{Code: profile.VerifyFile, Session: m.session, Arg: 1}
		}, []outcome{none, {3, profile.BadHash, same}, {3, profile.BadHash, same}, {3, profile.BadHash, same}, {3, profile.BadHash, same}, {3, profile.BadHash, same}, {3, profile.BadHash, same}, {3, profile.BadHash, same}, none}},
		{"VERIFY_FILE of none", func(m *master) profile.Command {
			return profile.Command{Code: profile.VerifyFile, Session: m.session, Arg: 0x10001}
		}, []outcome{none, not, not, not, not, not, not, not, none}},
		{"command 0", func(m *master) profile.Command { return m.with(0) }, slices.Repeat([]outcome{not}, 9)},
		{"command 10", func(m *master) profile.Command { return m.with(10) }, slices.Repeat([]outcome{not}, 9)},
	} {
		for i, phase := range phases {
			t.Run(c.name+", "+phase.name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					r := newRigHolding(t, rel, func(c *modbus.Config) { c.Precheck = func(context.Context) error { return nil } })
					m := r.master("192.0.2.1")
					phase.reach(t, r, m)
					before := m.status()
					if before.State != phase.state {
						t.Fatalf("got %v, want %v", before.State, phase.state)
					}
					drain(r.src)
					_, wasOffered := r.src.Latest(t.Context())
					e := m.command(c.command(m))
					synctest.Wait()
					s, want := m.status(), c.want[i]
					if want.state == same {
						want.state = phase.state
					}
					if e != want.e || s.Result != want.result || s.State != want.state || s.Seq != m.seq {
						t.Errorf("got %v, %v, %v, number %d, want %v, %v, %v, number %d", e, s.Result, s.State, s.Seq, want.e, want.result, want.state, m.seq)
					}
					if want.e != 0 && (s.Session != before.Session || s.Received != before.Received) {
						t.Errorf("a refused command has changed %+v into %+v", before, s)
					}
					if _, err := r.src.Latest(t.Context()); err == nil && wasOffered != nil && c.name != "INSTALL" {
						t.Error("the release is offered, and nobody asked for the installation")
					}
				})
			})
		}
	}
}

// newRigHolding makes a device whose inbox knows what its manager has in hand.
func newRigHolding(t *testing.T, rel *otatest.SignedRelease, change ...func(*modbus.Config)) *rig {
	t.Helper()
	r := &rig{t: t, fs: otatest.NewDisk(), dir: "/var/inbox", release: rel}
	r.inHand = func() string { return r.state().UpdateDigest }
	r.head.Head = api.Head{Device: "bess-7", Product: "bess", Version: "1.0.0"}
	r.start(change...)
	t.Cleanup(func() { r.stop() })
	return r
}

func drain(src *modbus.Source) {
	select {
	case <-src.Wake():
	default:
	}
}

// TestOpenIsChecked: what OPEN and RESUME must not say.
func TestOpenIsChecked(t *testing.T) {
	rel := newRelease(t)
	for name, c := range map[string]struct {
		change func(*profile.Command)
		want   profile.Result
	}{
		"a session":       {func(c *profile.Command) { c.Session = 1 }, profile.BadParameter},
		"one component":   {func(c *profile.Command) { c.Component = profile.TypeController }, profile.BadParameter},
		"an index":        {func(c *profile.Command) { c.Index = 1 }, profile.BadParameter},
		"no format":       {func(c *profile.Command) { c.Format = 0 }, profile.BadParameter},
		"format 3":        {func(c *profile.Command) { c.Format = 3 }, profile.BadParameter},
		"unknown flags":   {func(c *profile.Command) { c.Flags = 2 }, profile.BadParameter},
		"no bytes":        {func(c *profile.Command) { c.Size = 0 }, profile.BadParameter},
		"too few bytes":   {func(c *profile.Command) { c.Size = 12 }, profile.BadParameter},
		"no hash":         {func(c *profile.Command) { c.SHA256 = [32]byte{} }, profile.BadParameter},
		"too many bytes":  {func(c *profile.Command) { c.Size = 1_000_001 }, profile.NoSpace},
		"4 GB":            {func(c *profile.Command) { c.Size = 1<<32 - 1 }, profile.NoSpace},
		"without the way": {func(c *profile.Command) { c.Format = profile.FormatBare }, profile.BadParameter},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, rel, func(c *modbus.Config) {
					c.MaxSize, c.Functions = 1_000_000, []bus.Function{bus.WriteRegisters}
				})
				m := r.master("192.0.2.1")
				command := offer(profile.Open, rel.Bundle)
				c.change(&command)
				if e := m.command(command); e != bus.IllegalValue || m.status().Result != c.want {
					t.Errorf("got %v, %v, want %v, %v", e, m.status().Result, bus.IllegalValue, c.want)
				}
				if err := m.records(0xF001, 0, make([]byte, 10)); exception(t, err) != bus.IllegalFunction {
					t.Errorf("function 21, which is not configured: got %v, want %v", err, bus.IllegalFunction)
				}
				if st := r.box.State(); st.Phase != inbox.Empty {
					t.Errorf("the inbox has %+v", st)
				}
			})
		})
	}
}

// TestSameNumber: a command that is repeated, because its answer got lost, is not done
// again, whatever connection it comes from.
func TestSameNumber(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		asked := 0
		r := newRig(t, rel, func(c *modbus.Config) { c.Precheck = func(context.Context) error { asked++; return nil } })
		m := r.master("192.0.2.1")
		open := offer(profile.Open, rel.Bundle)
		open.Seq = 7
		for range 20 { // more than the rate of OPEN allows
			m.do(open)
			m = r.master("192.0.2.1")
		}
		m.session = m.status().Session
		if e := r.master("192.0.2.2").command(open); e != bus.DeviceBusy {
			t.Errorf("the same from another master: got %v, want %v", e, bus.DeviceBusy)
		}
		wrong := m.with(profile.Abort)
		wrong.Session, wrong.Seq = m.session^1, 7
		if e := m.command(wrong); e != bus.IllegalValue || m.status().Result != profile.NoSession || m.status().State != profile.Opening {
			t.Errorf("ABORT of another session: got %v, %v, %v, want %v, %v, OPENING", e, m.status().Result, m.status().State, bus.IllegalValue, profile.NoSession)
		}
		check := m.with(profile.Precheck)
		check.Seq = 8
		for range 3 {
			m.do(check)
			synctest.Wait()
		}
		if asked != 1 {
			t.Errorf("the gate was asked %d times, want once", asked)
		}
		check.Seq = 9
		m.do(check)
		synctest.Wait()
		if asked != 2 {
			t.Errorf("with another number the gate was asked %d times in all, want twice", asked)
		}
		// A refusal is repeated too.
		bad := m.with(profile.Install)
		bad.Seq = 10
		for range 2 {
			if e := m.command(bad); e != bus.IllegalValue || m.status().Result != profile.BadParameter {
				t.Errorf("INSTALL too early: got %v, %v, want %v, %v", e, m.status().Result, bus.IllegalValue, profile.BadParameter)
			}
		}
		abort := m.with(profile.Abort)
		abort.Seq = 11
		for range 2 {
			m.do(abort)
		}
		// The number of another command is no repetition.
		open.Seq = 11
		m.do(open)
		if s := m.status(); s.State != profile.Opening || s.Seq != 11 {
			t.Errorf("got %v, number %d, want OPENING, 11", s.State, s.Seq)
		}
	})
}

// TestIdle: a session lives for the idle timeout, to the millisecond, and what was
// TestManyStrangers: those who are turned away cost bounded memory, and each is told its
// TestBackground: PRECHECK and ROLLBACK are answered at once, however long they take.
func TestBackground(t *testing.T) {
	bubble(t, func(t *testing.T) {
		verdict := make(chan error)
		question := func(ctx context.Context) error {
			select {
			case err := <-verdict:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		rel := newRelease(t)
		r := newRig(t, rel, func(c *modbus.Config) { c.Precheck, c.Rollback = question, question })
		m := r.master("192.0.2.1")
		for _, c := range []struct {
			code   profile.Code
			answer error
			result profile.Result
			safety profile.Safety
			reason string
		}{
			{profile.Precheck, nil, profile.OK, 0, ""},
			{profile.Precheck, &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "51 °C; 12 A", Causes: []ota.Cause{ota.CauseTemperatureHigh, ota.CauseCurrent}}, profile.Temperature, profile.TemperatureHigh | profile.CurrentHigh, "51 degC; 12 A"},
			{profile.Precheck, errors.New("no such battery"), profile.Internal, 0, "no such battery"},
			{profile.Rollback, nil, profile.OK, 0, ""},
			{profile.Rollback, ota.ErrBusy, profile.Busy, 0, "busy with an update"},
		} {
			m.do(profile.Command{Code: c.code})
			if s := m.status(); s.Result != profile.Busy || s.State != profile.Idle {
				t.Errorf("%v: at once: got %v, %v, want %v, IDLE", c.code, s.Result, s.State, profile.Busy)
			}
			if e := m.command(profile.Command{Code: c.code}); e != bus.DeviceBusy || m.status().RetryAfter == 0 {
				t.Errorf("%v, a second one meanwhile: got %v, want %v", c.code, e, bus.DeviceBusy)
			}
			verdict <- c.answer
			synctest.Wait()
			// The second one was refused, which is the result of the last command; another
			// begins when the first is done.
			m.do(profile.Command{Code: c.code})
			verdict <- c.answer
			synctest.Wait()
			s := m.status()
			if s.Result != c.result || s.Safety != c.safety || m.display().Reason != c.reason {
				t.Errorf("%v, answered with %v: got %v, %v, %q, want %v, %v, %q", c.code, c.answer, s.Result, s.Safety.Names(), m.display().Reason, c.result, c.safety.Names(), c.reason)
			}
		}
		m.do(profile.Command{Code: profile.Precheck})
		pause(30 * time.Second)
		synctest.Wait()
		if s := m.status(); s.Result != profile.Timeout {
			t.Errorf("no answer: got %v, want %v", s.Result, profile.Timeout)
		}
	})
}

// TestDryRun: everything but the installation.
func TestDryRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		asked := 0
		r := newRig(t, rel, func(c *modbus.Config) {
			c.Precheck = func(context.Context) error { asked++; return nil }
			c.Installing = func() { t.Error("the installation was asked for") }
		})
		m := r.master("192.0.2.1")
		dry := offer(profile.Open, rel.Bundle)
		dry.Flags = profile.FlagDryRun
		m.open(dry)
		m.send(rel.Bundle)
		m.do(m.with(profile.CloseAll))
		m.until(profile.Verified)
		m.do(m.with(profile.Install))
		synctest.Wait()
		if s := m.status(); s.State != profile.Verified || s.Result != profile.OK || asked != 1 {
			t.Errorf("after INSTALL: got %v, %v, and the gate was asked %d times, want VERIFIED, ok, once", s.State, s.Result, asked)
		}
		notOffered(t, r.src)
		// The same in a session without the flag.
		m.open(offer(profile.Resume, rel.Bundle))
		install := m.with(profile.Install)
		install.Flags = profile.FlagDryRun
		m.do(install)
		synctest.Wait()
		notOffered(t, r.src)
	})
}

// TestLineIsOpenedAgain: a listener or line that is not there yet, or breaks, is tried
