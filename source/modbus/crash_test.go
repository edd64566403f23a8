package modbus_test

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/bus/crash/crashtest"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

func TestMain(m *testing.M) { crashtest.Main(m) }

// TestPanicInEveryRequest panics at every call that a request makes to the agent, many of them while a lock is
// held: the master gets exception 4, other masters and the next request are served, and the manager is answered.
func TestPanicInEveryRequest(t *testing.T) {
	rel := newRelease(t)
	received := func(m *master) {
		m.open(offer(profile.Open, rel.Bundle))
		m.send(rel.Bundle)
		m.until(profile.Received)
	}
	verified := func(m *master) { m.push(rel.Bundle) }
	begun := func(m *master) { m.open(offer(profile.Open, rel.Bundle)) }
	nothing := func(*master) {}
	for _, c := range []struct {
		name    string
		before  func(m *master)
		request func(m *master) error
	}{
		{"read the status", begun, func(m *master) error {
			_, err := m.c.ReadHolding(m.t.Context(), 1, profile.Base+profile.OffsetStatus, profile.StatusSize)
			return err
		}},
		{"read the display", begun, func(m *master) error {
			_, err := m.c.ReadInput(m.t.Context(), 1, profile.Base+profile.OffsetDisplay, 80)
			return err
		}},
		{"OPEN", nothing, func(m *master) error { return m.sends(offer(profile.Open, rel.Bundle)) }},
		{"RESUME", begun, func(m *master) error { return m.sends(offer(profile.Resume, rel.Bundle)) }},
		{"a block", begun, func(m *master) error { return m.raw(profile.OffsetData, m.registers(rel.Bundle, 0, nil)) }},
		{"CLOSE", received, func(m *master) error { return m.sends(m.with(profile.CloseAll)) }},
		{"INSTALL", verified, func(m *master) error { return m.sends(m.with(profile.Install)) }},
		{"ABORT", verified, func(m *master) error { return m.sends(m.with(profile.Abort)) }},
		{"PRECHECK", verified, func(m *master) error { return m.sends(m.with(profile.Precheck)) }},
		{"VERIFY_FILE", received, func(m *master) error {
			return m.sends(profile.Command{Code: profile.VerifyFile, Session: m.session, Arg: 1, Arg2: crc32.ChecksumIEEE(rel.Bundle[:profile.FileSize])})
		}},
		{"records", begun, func(m *master) error { return m.records(1, 0, rel.Bundle[:10]) }},
		{"records of the evidence", begun, func(m *master) error {
			_, err := m.c.ReadFile(m.t.Context(), 1, profile.FileEvidence, 0, 10)
			return err
		}},
		{"the manifest", begun, func(m *master) error {
			return m.records(profile.FileManifest, 0, append([]byte{0, 0, 0, 100}, make([]byte, 36)...))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			crashed := 0
			for n, fell := 1, true; fell; n++ {
				synctest.Test(t, func(t *testing.T) {
					var f crashtest.Fuse
					r := newRig(t, rel)
					r.stop()
					r.crashes = crashtest.Expected()
					r.start(func(cfg *modbus.Config) {
						cfg.State = func() api.CheckinRequest { f.Burn(); return r.state() }
						cfg.Now = func() time.Time { f.Burn(); return time.Now() }
						cfg.Precheck = func(context.Context) error { f.Burn(); return nil }
						cfg.Installing = f.Burn
						cfg.Evidence = func() []byte { f.Burn(); return []byte("{}") }
					})
					m, other := r.master("192.0.2.1"), r.master("192.0.2.2")
					c.before(m)
					f.Arm(n)
					err := c.request(m)
					synctest.Wait() // for what is answered in the background
					fell = f.Arm(0) == 0
					_, all := r.crashes.Last()
					if fell != (all == 1) || err != nil && !errors.Is(err, bus.DeviceFailure) || err != nil && !fell {
						t.Fatalf("call %d: got %v, %d crashes are noted", n, err, all)
					}
					crashed += all
					for _, who := range []*master{m, other} {
						who.status()
						who.display()
					}
					if s := m.status(); s.Result == profile.Busy {
						t.Errorf("call %d: what has crashed still runs", n)
					}
					if _, err := r.src.Latest(t.Context()); err != nil && !errors.Is(err, ota.ErrNoUpdate) {
						t.Errorf("call %d: Latest: got %v", n, err)
					}
					m.seq++
					if e := m.command(offer(profile.Open, rel.Bundle)); e != 0 {
						t.Errorf("call %d: OPEN after it: exception %d", n, e)
					}
				})
				if t.Failed() {
					return
				}
			}
			if crashed == 0 {
				t.Error("nothing has panicked: the test has lost its object")
			}
		})
	}
}

// sends sends a command.
func (m *master) sends(c profile.Command) error {
	m.seq++
	c.Seq = m.seq
	registers := make([]uint16, profile.CommandSize)
	c.Encode(registers)
	return m.raw(profile.OffsetCommand, registers)
}

// TestBrokenInbox: masters see that nothing goes any more, and the manager gets nothing.
func TestBrokenInbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rel := newRelease(t)
		r := newRig(t, rel)
		r.stop()
		r.crashes = crashtest.Expected()
		r.start()
		m := r.master("192.0.2.1")
		m.push(rel.Bundle)
		r.stop()
		r.inHand = func() string { panic("on purpose") }
		r.start()
		m = r.master("192.0.2.1")
		if e := m.command(m.with(profile.Precheck)); e != bus.IllegalFunction {
			t.Fatalf("got exception %d", e)
		}
		if e := m.command(offer(profile.Open, []byte("another bundle"))); e != bus.DeviceFailure {
			t.Errorf("OPEN: got exception %d, want 4", e)
		}
		s := m.status()
		if s.State != profile.Failed || s.Result != profile.Internal || m.display().Reason == "" {
			t.Errorf("got state %v, result %v, %q; want that it has failed, and why", s.State, s.Result, m.display().Reason)
		}
		if _, err := r.src.Latest(t.Context()); !errors.Is(err, inbox.ErrBroken) {
			t.Errorf("Latest: got %v, want %v", err, inbox.ErrBroken)
		}
		r.inHand = nil
		r.restart()
		m = r.master("192.0.2.1")
		if s := m.status(); s.State != profile.Verified {
			t.Errorf("after a restart: got state %v, want what the disk says", s.State)
		}
	})
}

// TestTrouble: a listener that panics, or cannot listen, is said to be in trouble until it is opened again.
func TestTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rel := newRelease(t)
		r := newRig(t, rel)
		r.stop()
		r.crashes = crashtest.Expected()
		tries := 0
		r.start(func(cfg *modbus.Config) {
			listen := cfg.NetListen
			cfg.NetListen = func(ctx context.Context, address string) (net.Listener, error) {
				switch tries++; tries {
				case 1:
					panic("on purpose")
				case 2:
					return nil, io.ErrUnexpectedEOF
				}
				return listen(ctx, address)
			}
		})
		synctest.Wait()
		for _, want := range []error{crash.Err, io.ErrUnexpectedEOF} {
			if err := r.src.Trouble(); !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		if err := r.src.Trouble(); err != nil {
			t.Errorf("after it: got %v", err)
		}
		r.master("192.0.2.1").status()
	})
}
