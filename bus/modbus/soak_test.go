package modbus

import (
	"context"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var soak = flag.Duration("soak", 2*time.Second, "for how long TestSoak hammers a server")

// TestSoak hammers a server on a socket of this machine with mutated requests, from more
// connections than it wants. Good clients are answered all the time, and in the end
// nothing is left of the others: no goroutine, no memory.
func TestSoak(t *testing.T) {
	m := new(Memory)
	m.SetHolding(1, 0, make([]uint16, 200)...)
	server := &Server{Handler: m, MaxConnections: 16, IdleTimeout: 2 * time.Second, WriteTimeout: time.Second}
	good, l := loopback(t, server, Config{Timeout: 5 * time.Second})
	if _, err := good.ReadHolding(t.Context(), 1, 0, 125); err != nil {
		t.Fatal(err)
	}
	goroutines, heap := runtime.NumGoroutine(), heapInUse()

	ctx, cancel := context.WithTimeout(t.Context(), *soak)
	defer cancel()
	var sent, conns, answered atomic.Int64
	var group sync.WaitGroup
	for attacker := range uint64(8) {
		group.Go(func() {
			random := rand.New(rand.NewPCG(attacker, 1))
			for ctx.Err() == nil {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					continue
				}
				conns.Add(1)
				conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
				if random.IntN(3) > 0 { // the others read nothing
					go io.Copy(io.Discard, conn)
				}
				for range random.IntN(100) {
					n, err := conn.Write(mutated(random))
					sent.Add(int64(n))
					if err != nil {
						break
					}
				}
				conn.Close()
			}
		})
	}
	for ctx.Err() == nil {
		// Asking often keeps the place; if it is lost all the same, the client connects again.
		if _, err := good.ReadHolding(t.Context(), 1, 0, 125); err == nil {
			answered.Add(1)
		}
	}
	group.Wait()
	t.Logf("%d connections sent %d bytes; a good client was answered %d times meanwhile", conns.Load(), sent.Load(), answered.Load())
	if answered.Load() == 0 {
		t.Error("a good client was never answered")
	}
	c, err := Dial(t.Context(), l.Addr().String(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadHolding(t.Context(), 1, 0, 125); err != nil {
		t.Errorf("a good client, afterwards: %v", err)
	}
	c.Close()
	settled(t, "goroutines", goroutines+4, runtime.NumGoroutine)
	settled(t, "bytes of heap", heap+1<<20, heapInUse)
}

// settled waits until a number is no more than it was, which it becomes at the latest
// when the idle timeout has passed; the test's own timeout is the limit.
func settled(t *testing.T, what string, most int, now func() int) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for tries := 0; now() > most; tries++ {
		if tries > 1000 {
			t.Errorf("%d %s are left, want at most %d", now(), what, most)
			return
		}
		<-tick.C
	}
}

func heapInUse() int {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}

// mutated is a request of the specification with some of it changed.
func mutated(random *rand.Rand) []byte {
	v := spec[random.IntN(len(spec))]
	b := AppendTCP(nil, uint16(random.Uint32()), 1, v.encoded)
	switch random.IntN(6) {
	case 0: // as it is
	case 1, 2:
		for range 1 + random.IntN(3) {
			b[random.IntN(len(b))] = byte(random.Uint32())
		}
	case 3: // in the PDU only, so that the stream goes on
		b[headerSize+random.IntN(len(b)-headerSize)] ^= 1 << random.IntN(8)
	case 4:
		b = b[:random.IntN(len(b))]
	case 5:
		b = slices.Concat(b, b[:random.IntN(len(b))])
	}
	return b
}
