package modbus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// TestRateOfOpen: five at once, then one every two seconds.
func TestRateOfOpen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		r := newRig(t, rel)
		m := r.master("192.0.2.1")
		for i := range 5 {
			m.do(offer(profile.Open, rel.Bundle[i:]))
		}
		id := m.status().Session
		if e := m.command(offer(profile.Open, rel.Bundle)); e != bus.DeviceBusy || m.status().Result != profile.Busy || m.status().RetryAfter != 2000 {
			t.Errorf("the sixth OPEN: got %v, %v, again after %d ms, want %v, %v, 2000", e, m.status().Result, m.status().RetryAfter, bus.DeviceBusy, profile.Busy)
		}
		if s := m.status(); s.Session != id {
			t.Errorf("the session is %d, want %d: the refused OPEN has no effect", s.Session, id)
		}
		pause(2*time.Second - time.Millisecond)
		if e := m.command(offer(profile.Open, rel.Bundle)); e != bus.DeviceBusy || m.status().RetryAfter != 1 {
			t.Errorf("1 ms too early: got %v, again after %d ms, want %v, 1", e, m.status().RetryAfter, bus.DeviceBusy)
		}
		pause(time.Millisecond)
		m.do(offer(profile.Open, rel.Bundle))
		if e := m.command(offer(profile.Open, rel.Bundle)); e != bus.DeviceBusy {
			t.Errorf("a second one: got %v, want %v", e, bus.DeviceBusy)
		}
	})
}

// received lives on.
func TestIdle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		r := newRig(t, rel, func(c *modbus.Config) { c.IdleTimeout = 10 * time.Second })
		m, second := r.master("192.0.2.1"), r.master("192.0.2.2")
		m.open(offer(profile.Open, rel.Bundle))
		m.block(rel.Bundle, 0)
		first := m.session
		pause(10*time.Second - time.Millisecond)
		if s := m.status(); s.Session != first || s.IdleLeft != 1 {
			t.Errorf("1 ms before: got session %d and %d s left, want %d and 1", s.Session, s.IdleLeft, first)
		}
		if e := second.command(offer(profile.Resume, rel.Bundle)); e != bus.DeviceBusy || second.status().RetryAfter != 1 {
			t.Errorf("another master 1 ms before: got %v, again after %d ms, want %v, 1", e, second.status().RetryAfter, bus.DeviceBusy)
		}
		for range 2 { // this counts, the reading did not; and so does a block that is there already
			if e := m.block(rel.Bundle, 1); e != 0 {
				t.Fatal(e)
			}
			pause(10*time.Second - time.Millisecond)
			if s := m.status(); s.Session != first {
				t.Fatalf("1 ms before it again: got session %d, want %d", s.Session, first)
			}
		}
		for range 10 {
			m.status()
		}
		pause(time.Millisecond)
		if s := m.status(); s.Session != 0 || s.IdleLeft != 0 || s.Received != 2 {
			t.Errorf("after it: got session %d, %d s, %d blocks, want 0, 0, 2", s.Session, s.IdleLeft, s.Received)
		}
		if e := m.block(rel.Bundle, 2); e != bus.IllegalValue || m.status().Result != profile.NoSession {
			t.Errorf("a block after it: got %v, %v, want %v, %v", e, m.status().Result, bus.IllegalValue, profile.NoSession)
		}
		// The other one may, and the first is told.
		second.open(offer(profile.Resume, rel.Bundle))
		if second.session == first {
			t.Error("the next session has the number of the last")
		}
		if s := second.status(); s.Received != 2 {
			t.Errorf("resumed: got %d blocks, want 2", s.Received)
		}
		if e := m.block(rel.Bundle, 2); e != bus.DeviceBusy {
			t.Errorf("a block of the first master: got %v, want %v", e, bus.DeviceBusy)
		}
		second.send(rel.Bundle)
		// OPEN again by the number that was answered before the session was dropped, is
		// done, for its answer is no longer true.
		pause(11 * time.Second)
		again := offer(profile.Resume, rel.Bundle)
		again.Seq = second.seq
		second.do(again)
		if s := second.status(); s.Session == 0 {
			t.Error("a repeated RESUME after the timeout has no session")
		}
	})
}

// TestVerifyingIsNotIdle: while the device works there is nothing to write.
func TestVerifyingIsNotIdle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		r := newRig(t, rel, func(c *modbus.Config) { c.IdleTimeout = time.Second })
		m := r.master("192.0.2.1")
		m.push(rel.Bundle)
		if s := m.status(); s.Session != m.session {
			t.Fatalf("verified: got session %d, want %d", s.Session, m.session)
		}
		m.do(m.with(profile.Install))
	})
}

// TestLongVerification: neither does time run while the verification takes an hour, and
// after it the master has its time anew.
func TestLongVerification(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, m, disk := onBadDisk(t)
		m.send(r.release.Bundle)
		pause(30 * time.Second)
		disk.slow.Store(true)
		m.do(m.with(profile.CloseAll))
		for s := m.status(); s.State == profile.Verifying; s = m.status() {
			if s.Session != m.session || s.IdleLeft != 60 {
				t.Fatalf("verifying: got session %d for %d s, want %d for 60", s.Session, s.IdleLeft, m.session)
			}
			pause(59 * time.Second)
		}
		disk.slow.Store(false)
		if s := m.status(); s.State != profile.Verified || s.Session != m.session {
			t.Fatalf("after it: got %v and session %d, want VERIFIED and %d", s.State, s.Session, m.session)
		}
		m.do(m.with(profile.Install))
	})
}

// TestTakeOver: the same master goes on at once, from a new connection or with a RESUME.
func TestTakeOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		r := newRig(t, rel)
		m := r.master("192.0.2.1")
		m.open(offer(profile.Open, rel.Bundle))
		m.block(rel.Bundle, 0)
		id := m.session
		next := r.master("192.0.2.1") // another connection
		next.session = id
		if e := next.block(rel.Bundle, 1); e != 0 {
			t.Errorf("a block from a new connection: %v", e)
		}
		next.seq = 500
		next.open(offer(profile.Resume, rel.Bundle))
		if next.session != id {
			t.Errorf("RESUME: got session %d, want %d", next.session, id)
		}
		next.open(offer(profile.Open, rel.Bundle))
		if next.session != id || next.status().Received != 2 {
			t.Errorf("OPEN of the same: got session %d and %d blocks, want %d and 2", next.session, next.status().Received, id)
		}
		// What the old connection still sends is of the same session, and harmless.
		if e := m.block(rel.Bundle, 1); e != 0 {
			t.Errorf("the old connection: %v", e)
		}
		next.open(offer(profile.Open, rel.Bundle[:9000]))
		if e := m.block(rel.Bundle, 2); e != bus.IllegalValue {
			t.Errorf("the old connection, after another transfer has begun: got %v, want %v", e, bus.IllegalValue)
		}
	})
}

// own reason as long as it is remembered.
func TestManyStrangers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		r := newRig(t, rel)
		m := r.master("192.0.2.1")
		m.open(offer(profile.Open, rel.Bundle))
		for i := range 12 {
			s := r.master(fmt.Sprintf("198.51.100.%d", i+1))
			command := offer(profile.Open, rel.Bundle)
			command.Seq = uint16(1000 + i)
			if e := s.command(command); e != bus.IllegalFunction || s.status().Result != profile.NotAllowed || s.status().Seq != uint16(1000+i) {
				t.Errorf("stranger %d: got %v, %v, number %d", i, e, s.status().Result, s.status().Seq)
			}
			s.c.Close()
		}
		if s := m.status(); s.Result != profile.OK || s.Session != m.session || s.Seq != m.seq {
			t.Errorf("the master reads %+v", s)
		}
		first := r.master("198.51.100.1")
		if s := first.status(); s.Result == profile.NotAllowed {
			t.Error("the first of twelve strangers is still remembered")
		}
	})
}

// again, and ends nothing.
func TestLineIsOpenedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		var tries []time.Time
		hang := &deadLine{make(chan struct{})}
		r := newRig(t, rel, func(c *modbus.Config) {
			c.Lines = []modbus.Line{{}}
			c.Lines[0].Path = "/dev/ttyRS485"
			c.OpenLine = func(modbus.Line) (io.ReadWriteCloser, error) {
				tries = append(tries, time.Now())
				if len(tries) < 4 {
					return nil, errors.New("no adapter")
				}
				return hang, nil
			}
		})
		began := time.Now()
		pause(8 * time.Second)
		synctest.Wait()
		var after []time.Duration
		for _, at := range tries {
			after = append(after, at.Sub(began))
		}
		if want := []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}; !slices.Equal(after, want) {
			t.Errorf("tries after %v, want %v", after, want)
		}
		if s := r.master("192.0.2.1").status(); s.State != profile.Idle {
			t.Errorf("TCP meanwhile: got %v, want IDLE", s.State)
		}
		hang.Close()
		pause(time.Minute)
		synctest.Wait()
		if len(tries) < 5 {
			t.Error("a line that broke was not opened again")
		}
	})
}

// deadLine is a serial line on which nothing comes, until it breaks.
type deadLine struct{ broken chan struct{} }

func (l *deadLine) Read([]byte) (int, error)    { <-l.broken; return 0, io.ErrUnexpectedEOF }
func (l *deadLine) Write(b []byte) (int, error) { return len(b), nil }
func (l *deadLine) Close() error {
	select {
	case <-l.broken:
	default:
		close(l.broken)
	}
	return nil
}

// A master that begins to count anew means another command, and hears no answer of yesterday.
func TestSameNumberMuchLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		asked := 0
		r := newRig(t, rel, func(c *modbus.Config) {
			c.IdleTimeout = 10 * time.Second
			c.Precheck = func(context.Context) error { asked++; return nil }
		})
		m := r.master("192.0.2.1")
		for i, tt := range []struct {
			after time.Duration
			asked int
		}{{0, 1}, {9 * time.Second, 1}, {time.Second, 2}} {
			pause(tt.after)
			m.do(profile.Command{Code: profile.Precheck, Seq: 1})
			synctest.Wait()
			if asked != tt.asked {
				t.Errorf("command %d: the gate was asked %d times in all, want %d", i+1, asked, tt.asked)
			}
		}
	})
}

// The answer of the gate to a PRECHECK does not hide why the update has ended since then.
func TestPrecheckAndTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		r := newRig(t, rel, func(c *modbus.Config) { c.Precheck = func(context.Context) error { return nil } })
		m := r.master("192.0.2.1")
		m.push(rel.Bundle)
		m.do(m.with(profile.Install))
		m.do(m.with(profile.Precheck))
		synctest.Wait()
		if s := m.status(); s.State != profile.WaitSafe || s.Result != profile.OK {
			t.Errorf("asked: got %v, %v, want WAIT_SAFE, ok", s.State, s.Result)
		}
		err := r.src.Report(t.Context(), ota.Report{ID: "1", Digest: rel.Manifest.Digest, Version: "1.1.0", Result: ota.Failed, Code: ota.ErrFlashWrite, Reason: "worn out"})
		if err != nil {
			t.Fatal(err)
		}
		if s := m.status(); s.State != profile.Failed || s.Result != profile.Storage {
			t.Errorf("ended: got %v, %v, want FAILED, storage", s.State, s.Result)
		}
	})
}
