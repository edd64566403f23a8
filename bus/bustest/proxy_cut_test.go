package bustest_test

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
)

// TestProxyCutsBothWays: what was on its way when the other direction was cut is lost with
// the connection, and is not on the tap as if it had been sent later.
func TestProxyCutsBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 10 * time.Millisecond
		frame := func(n byte) []byte { return []byte{0, n, 0, 0, 0, 2, 1, 7} }
		front, back := bustest.NewNetwork(0), bustest.NewNetwork(0)
		tap := new(bustest.Tap)
		proxy := bustest.NewProxy(front, func(ctx context.Context) (net.Conn, error) { return back.Dial(ctx) }, bustest.ProxyConfig{Delay: delay, Tap: tap,
			Faults: bustest.Faults{From: bustest.Slave, Exactly: func(bustest.Record) bustest.Verdict { return bustest.CutAfter }}})
		go func() { // answers the first request, which is cut 20 ms after it was sent
			c, err := back.Accept()
			if err != nil {
				return
			}
			io.ReadFull(c, make([]byte, len(frame(1))))
			c.Write(frame(1))
			io.Copy(io.Discard, c)
		}()
		c, err := front.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.Write(frame(1))
		<-time.After(15 * time.Millisecond)
		c.Write(frame(2)) // would be passed on after 25 ms
		if _, err := io.ReadAll(c); err != nil && err != io.ErrClosedPipe {
			t.Log(err)
		}
		<-time.After(time.Second)
		proxy.Close()
		back.Close()
		c.Close()
		n := 0
		for _, r := range tap.Records() {
			if r.From == bustest.Master {
				n++
			}
		}
		if n != 1 {
			t.Errorf("got %d requests on the tap, want the one before the cut: %v", n, tap.Records())
		}
	})
}
