package isotp

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/bus/crash/crashtest"
)

func TestMain(m *testing.M) { crashtest.Main(m) }

// TestPanicInFrame breaks the receiver on purpose in the middle of a PDU: that PDU and what waits are lost, and
// told once; the next ones come.
func TestPanicInFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := crashtest.Expected()
		bus, peer := line()
		conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{Crashes: log})
		peer.says(t, "7E8#0131", "7E8#1014303132333435")
		peer.hears(t, "7E0#300000CCCCCCCCCC")
		conn.mu.Lock()
		close(conn.ready) // to close it again panics
		conn.mu.Unlock()
		peer.says(t, "7E8#2136373839414243", "7E8#224445464748494A")
		synctest.Wait()
		if _, err := conn.Receive(t.Context()); !errors.Is(err, crash.Err) {
			t.Errorf("got %v, want one that wraps crash.Err", err)
		}
		if _, n := log.Last(); n != 1 {
			t.Errorf("%d crashes are noted, want 1", n)
		}
		if s := conn.Stats(); s.Broken != 1 {
			t.Errorf("%d PDUs are counted as broken, want 1", s.Broken)
		}
		worksAfter(t, conn, peer)
	})
}

// crashingBus is a fake link that panics once in each direction.
type crashingBus struct {
	can.Bus
	receives, sends *bool
}

func (b crashingBus) once(done *bool) {
	if !*done {
		*done = true
		panic("on purpose")
	}
}

func (b crashingBus) Receive(ctx context.Context) (can.Frame, error) {
	b.once(b.receives)
	return b.Bus.Receive(ctx)
}

func (b crashingBus) Send(ctx context.Context, f can.Frame) error {
	b.once(b.sends)
	return b.Bus.Send(ctx, f)
}

// TestPanicOfBus: a link that panics is one that is lost, and asked again.
func TestPanicOfBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := crashtest.Expected()
		bus, peer := line()
		mux := newMux(crashingBus{bus, new(bool), new(bool)}, log)
		defer mux.Close()
		conn, err := mux.Open(Normal(0x7E0, 0x7E8), Config{Crashes: log})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * again)
		peer.says(t, "7E8#1014303132333435") // the flow control frame panics
		synctest.Wait()
		for n := 0; ; n++ {
			if _, err = conn.Receive(t.Context()); errors.Is(err, crash.Err) && !errors.Is(err, can.ErrDown) || n == 2 {
				break
			}
		}
		if !errors.Is(err, crash.Err) {
			t.Errorf("got %v, want one that wraps crash.Err", err)
		}
		worksAfter(t, conn, peer)
		if _, n := log.Last(); n != 2 {
			t.Errorf("%d crashes are noted, want 2", n)
		}
	})
}
