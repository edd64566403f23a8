package can_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/bus/crash/crashtest"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can/profile"
)

func TestMain(m *testing.M) { crashtest.Main(m) }

// TestPanicInEveryRequest panics at every call that the requests of a transfer make to the agent: the tester is
// told, and back in the default session; and the next tester brings the release to its end.
func TestPanicInEveryRequest(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 600)
	for n, fell := 1, true; fell; n++ {
		synctest.Test(t, func(t *testing.T) {
			var f crashtest.Fuse
			log := crashtest.Expected()
			r := newRig(t, rel.Verify, func(r *rig) {
				r.config.Crashes, r.box.Crashes = log, log
				state := r.config.State
				r.config.State = func() api.CheckinRequest { f.Burn(); return state() }
				r.config.Precheck = func(context.Context) error { f.Burn(); return nil }
				r.config.Requested = func(string, string) { f.Burn() }
				r.config.Evidence = func() string { f.Burn(); return "" }
			})
			x := r.tester()
			f.Arm(n)
			x.transfer(r, rel.Bundle, log)
			synctest.Wait()
			_, all := log.Last()
			if fell = f.Arm(0) == 0; fell != (all == 1) {
				t.Fatalf("call %d: %d crashes are noted", n, all)
			}
			if _, err := r.Latest(t.Context()); err != nil && !errors.Is(err, ota.ErrNoUpdate) {
				t.Errorf("call %d: Latest: got %v", n, err)
			}
			if got := x.read(profile.DIDSession)[0]; fell && got != 1 {
				t.Errorf("call %d: session %d after the panic, want the default one", n, got)
			}
			x.leave()
			next := r.tester()
			next.push(r, rel.Bundle, 2000)
			r.offered(rel)
		})
		if t.Failed() {
			return
		}
		if !fell && n < 8 {
			t.Errorf("a transfer makes %d calls: the test has lost its object", n-1)
		}
	}
}

// transfer sends the requests of a transfer, until one makes the device panic: that one has the code for it.
func (x *tester) transfer(r *rig, b []byte, log *crash.Log) {
	x.t.Helper()
	var seed []byte
	for i, request := range []func() []byte{
		func() []byte { return []byte{0x10, 3} },
		func() []byte { return []byte{0x31, 1, 2, 3} },
		func() []byte { return []byte{0x10, 2} },
		func() []byte { return []byte{0x27, 1} },
		func() []byte {
			sig, err := profile.SignSeed(r.key, "bess-7", seed[2:])
			if err != nil {
				x.t.Fatal(err)
			}
			return append([]byte{0x27, 2}, sig...)
		},
		func() []byte { return []byte{0x22, 0xFD, 1, 0xFD, 4, 0xF1, 0x95} },
		func() []byte { return announcement(b) },
		func() []byte { return download(0, len(b)) },
		func() []byte { return append([]byte{0x36, 1}, b[:len(b)/2]...) },
		func() []byte { return append([]byte{0x36, 2}, b[len(b)/2:]...) },
		func() []byte { return []byte{0x37} },
		func() []byte { return []byte{0x31, 1, 2, 2} },
		func() []byte { return []byte{0x31, 1, 0xFF, 1} },
		func() []byte { return []byte{0x22, 0xFD, 0x0A} },
		func() []byte { return []byte{0x11, 1} },
		func() []byte { return []byte{0x31, 1, 0xF0, 1} },
	} {
		pdu := request()
		answer := x.raw(pdu)
		if i == 3 {
			seed = answer
		}
		if _, all := log.Last(); all == 0 {
			continue
		}
		if len(answer) != 3 || answer[0] != 0x7F || answer[2] != 0x10 && answer[2] != 0x72 {
			x.t.Errorf("% X panicked: got % X, want code 10 or 72", pdu[:min(len(pdu), 8)], answer)
		}
		return
	}
}

// TestBrokenInbox: a tester hears that nothing goes any more, and the manager gets nothing.
func TestBrokenInbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 4096)
		crashes := true
		r := newRig(t, rel.Verify, func(r *rig) {
			r.box.Crashes = crashtest.Expected()
			r.box.Now = func() time.Time {
				if crashes && r.inbox != nil {
					panic("on purpose")
				}
				return time.Now()
			}
		})
		x := r.tester()
		x.enter(r)
		if got := x.raw(announcement(rel.Bundle)); len(got) != 3 || got[0] != 0x7F || got[2] != 0x72 {
			t.Errorf("announce: got % X, want code 72", got)
		}
		if got := x.deviceState(); got != profile.Failed {
			t.Errorf("got state %v, want %v", got, profile.Failed)
		}
		if _, err := r.Latest(t.Context()); !errors.Is(err, inbox.ErrBroken) {
			t.Errorf("Latest: got %v, want %v", err, inbox.ErrBroken)
		}
		crashes = false
		r.stop()
		r.start()
		next := r.tester()
		next.push(r, rel.Bundle, 2000)
		r.offered(rel)
	})
}

// TestTrouble: a bus that panics, or is not there, is said to be in trouble until it is opened again.
func TestTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		r := newRig(t, nil, func(r *rig) {
			r.config.Crashes = crashtest.Expected()
			r.config.Link.Open = func(context.Context) (bus.Bus, error) {
				switch tries++; tries {
				case 1:
					panic("on purpose")
				case 2:
					return nil, bus.ErrDown
				}
				return r.bus.Join("device"), nil
			}
		})
		for _, want := range []error{crash.Err, bus.ErrDown} {
			if err := r.Trouble(); !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		if err := r.Trouble(); err != nil {
			t.Errorf("after it: got %v", err)
		}
		r.tester().want("10 03", "50 03")
	})
}
