package isotp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// TestEveryFrame loses, doubles and delays every single frame of a PDU, in both
// directions: what comes out is the PDU, or nothing and an error; and the next PDU works.
func TestEveryFrame(t *testing.T) {
	for _, c := range []struct {
		n      int
		config Config
	}{{7, Config{}}, {20, Config{}}, {300, Config{BlockSize: 8}}, {300, Config{BlockSize: 1}}, {62, Config{STmin: 20 * time.Millisecond}}} {
		synctest.Test(t, func(t *testing.T) {
			frames, answers := faulty(t, c.n, c.config, arrives, 0, false)
			if want := 1 + (c.n+6-6)/7; c.n > 7 && frames != want {
				t.Errorf("%d bytes took %d frames, want %d", c.n, frames, want)
			}
			for _, what := range []verdict{lost, doubled, late} {
				for i := range frames {
					faulty(t, c.n, c.config, what, i, false)
				}
				for i := range answers {
					faulty(t, c.n, c.config, what, i, true)
				}
			}
		})
	}
}

// faulty sends a PDU with one fault, and another one without. It returns how many frames
// were sent in both directions.
func faulty(t *testing.T, n int, c Config, what verdict, at int, answer bool) (frames, answers int) {
	t.Helper()
	name := fmt.Sprintf("%d bytes, blocks of %d, fault %d at %d (answers %v)", n, c.BlockSize, what, at, answer)
	a, b := line()
	faults := a
	if answer {
		faults = b
	}
	faults.fate = func(i int, _ can.Frame) verdict {
		if i == at {
			return what
		}
		return arrives
	}
	ma, mb := NewMux(a), NewMux(b)
	defer ma.Close()
	defer mb.Close()
	sender, err := ma.Open(Normal(0x7E0, 0x7E8), c)
	if err != nil {
		t.Fatal(err)
	}
	receiver, err := mb.Open(Normal(0x7E8, 0x7E0), c)
	if err != nil {
		t.Fatal(err)
	}
	want := pdu(n, at)
	sendErr := sender.Send(t.Context(), want)
	time.Sleep(20 * time.Millisecond) // what is late comes
	synctest.Wait()
	a.mu.Lock()
	frames = a.sent
	a.mu.Unlock()
	b.mu.Lock()
	answers = b.sent
	b.mu.Unlock()
	faults.mu.Lock()
	faults.fate = nil
	faults.mu.Unlock()

	next := pdu(n, at+1)
	if err := sender.Send(t.Context(), next); err != nil {
		t.Fatalf("%s: the next one: %v", name, err)
	}
	var got [][]byte
	var errs []error
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		pdu, err := receiver.Receive(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		got = append(got, pdu)
	}
	single := n <= 7
	if len(got) == 0 || !bytes.Equal(got[len(got)-1], next) {
		t.Fatalf("%s: the next one did not come: %v", name, errs)
	}
	for _, pdu := range got[:len(got)-1] {
		if !bytes.Equal(pdu, want) {
			t.Fatalf("%s: got % X, which nobody sent", name, pdu)
		}
	}
	switch whole := len(got) - 1; {
	case whole == 0 && !single && sendErr == nil && len(errs) == 0:
		t.Fatalf("%s: it was lost, and nobody was told", name)
	case whole == 0 && what == arrives, whole > 1 && !(single && what == doubled):
		t.Fatalf("%s: got the PDU %d times", name, whole)
	case whole == 1 && len(errs) > 1:
		t.Fatalf("%s: got the PDU and %v", name, errs)
	}
	return frames, answers
}

// TestInterleaving: PDUs of many channels, several testers with physical and functional
// addresses, cross each other on two Muxes in any order and come out whole and in order.
func TestInterleaving(t *testing.T) {
	pairs := []Address{
		Normal(0x7E0, 0x7E8), Normal(0x7E1, 0x7E9), Fixed29(0x10, 0xF1), Fixed29(0x10, 0xF2), Fixed29(0x11, 0xF1),
		Normal(0x600, 0x601).WithBytes(1, 2), Normal(0x600, 0x601).WithBytes(2, 1), Normal29(0x600, 0x601),
		Functional(0x7DF), Functional29(0x33, 0xF1), Functional29(0x33, 0xF2),
	}
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			a, b := line()
			ma, mb := NewMux(a), NewMux(b)
			defer ma.Close()
			defer mb.Close()
			var all sync.WaitGroup
			for i, address := range pairs {
				config := func() Config {
					return Config{BlockSize: r.IntN(6), STmin: time.Duration(r.IntN(3)) * 100 * time.Microsecond, Unpadded: r.IntN(2) == 0,
						FrameTime: time.Duration(1 + r.IntN(1000)), FramesPerSecond: r.IntN(3) * (500 + r.IntN(10_000))}
				}
				one, err := ma.Open(address, config())
				if err != nil {
					t.Fatal(err)
				}
				other, err := mb.Open(address.Peer(), config())
				if err != nil {
					t.Fatal(err)
				}
				var pdus [][]byte
				for j := range 10 {
					n := 1 + r.IntN(6)
					if !address.functional {
						n = 1 + r.IntN(200)
					}
					pdus = append(pdus, pdu(n, i*100+j))
				}
				directions := [][2]*Channel{{one, other}, {other, one}}
				if address.functional {
					directions = directions[:1]
				}
				for _, d := range directions {
					all.Go(func() {
						for _, pdu := range pdus {
							if err := d[0].Send(t.Context(), pdu); err != nil {
								t.Errorf("seed %d: %v", seed, err)
							}
						}
					})
					all.Go(func() {
						for _, want := range pdus {
							got, err := d[1].Receive(t.Context())
							if err != nil || !bytes.Equal(got, want) {
								t.Errorf("seed %d, %v: got % X, %v, want % X", seed, d[1].address, got, err, want)
								return
							}
						}
					})
				}
			}
			all.Wait()
		})
	}
}

// TestMemory: what a channel holds does not grow with what a peer announces, begins and
// breaks, and frames for nobody take none.
func TestMemory(t *testing.T) {
	bus, _ := line()
	m := NewMux(bus)
	defer m.Close()
	c, err := m.Open(Normal(0x7E0, 0x7E8), Config{MaxPDU: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	announce := can.Standard(0x7E8, 0x10, 0, 0, 0x0F, 0xFF, 0xFF, 1, 2) // almost 1 MiB
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 10_000 {
		m.distribute(&announce)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 100_000 {
		t.Errorf("10,000 announcements of a MiB hold %d bytes", grown)
	}
	c.mu.Lock()
	if got := len(c.rx.results); got != 1 {
		t.Errorf("%d errors wait, want the last one only", got)
	}
	c.mu.Unlock()
	other := can.Standard(0x355, 1, 2, 3)
	if got := testing.AllocsPerRun(1000, func() { m.distribute(&other) }); got != 0 {
		t.Errorf("a frame for nobody takes %v allocations, want none", got)
	}
	stray := can.Standard(0x7E8, 0x40, 2, 3)
	if got := testing.AllocsPerRun(1000, func() { m.distribute(&stray) }); got != 0 {
		t.Errorf("a stray frame takes %v allocations, want none", got)
	}
}

// FuzzReceive feeds a receiver frames and pauses. A PDU comes out only if the same bytes
// came in one after the other: a naive reader of the same frames says which those are.
func FuzzReceive(f *testing.F) {
	add := func(frames ...string) {
		var b []byte
		for _, s := range frames {
			frame, err := can.Parse("7E0#" + s)
			if err != nil {
				f.Fatal(err)
			}
			b = append(append(b, frame.Len), frame.Bytes()...)
		}
		for _, shape := range []byte{0, 1, 2, 0xFF} {
			f.Add(shape, b)
		}
	}
	add("023E80")
	add("1014303132333435", "2136373839414243", "224445464748494A")
	add("1014303132333435", "2136373839414243", "2136373839414243", "224445464748494A")
	add("1014303132333435", "1014303132333435", "2136373839414243", "013E", "224445464748494A")
	add("1000000010003031", "21363738394142", "22363738394142")
	add("10000000FFFF3031", "10000000FFFFFFFF", "1000FFFFFFFF0000", "1FFF000000000000", "300000", "31", "F0")
	f.Fuzz(func(t *testing.T, shape byte, script []byte) {
		s, err := Config{MaxPDU: 100 + int(shape&0x0F)*500, BlockSize: int(shape >> 4), WFTmax: int(shape&3) - 1}.settings()
		if err != nil {
			t.Fatal(err)
		}
		r := receiver{settings: s, offset: int(shape & 1), only: shape == 0xFF}
		now := time.Unix(0, 0)
		said := naive{full: can.MaxLen - r.offset}
		for len(script) > 0 {
			op := script[0]
			script = script[1:]
			n := min(int(op&0x0F), len(script), can.MaxLen)
			frame := can.Standard(0x7E0, script[:n]...)
			script = script[n:]
			now = now.Add(time.Duration(op>>6) * 400 * time.Millisecond)
			if op&0x10 != 0 {
				_, turn, due := r.due()
				if due {
					r.sent(now, turn, map[bool]error{true: can.ErrDown}[op&0x20 != 0])
				}
			}
			if op&0x30 == 0x20 {
				r.expire(now)
				said.check(t, &r)
				continue
			}
			p, ok := parse(&frame, r.offset)
			if !ok || p.kind == flow {
				continue
			}
			said.frame(frame.Bytes()[r.offset:])
			r.frame(now, p)
			if got, most := r.bytes+cap(r.buf), 4*s.MaxPDU+defaultMaxPDU; got > most {
				t.Fatalf("it holds %d bytes, want at most %d", got, most)
			}
			if len(r.results) > 2*queueMost+1 || r.waits > s.WFTmax || len(r.buf) > s.MaxPDU {
				t.Fatalf("%d results, %d waits, %d bytes", len(r.results), r.waits, len(r.buf))
			}
			if op&0x08 != 0 {
				said.check(t, &r)
			}
		}
		said.check(t, &r)
	})
}

// naive remembers the PDUs that frames may mean, whoever takes them.
type naive struct {
	whole [][]byte
	began []byte
	size  int
	sn    byte
	full  int // bytes of a frame that is not the last
}

func (n *naive) frame(b []byte) {
	switch b[0] >> 4 {
	case 0:
		n.whole = append(n.whole, b[1:1+b[0]&0x0F])
		n.began = nil
	case 1:
		n.size, n.began, n.sn = int(b[0]&0x0F)<<8|int(b[1]), append([]byte{}, b[2:]...), 1
		if n.size == 0 {
			n.size, n.began = int(b[2])<<24|int(b[3])<<16|int(b[4])<<8|int(b[5]), append([]byte{}, b[6:]...)
		}
	case 2:
		if n.began == nil || b[0]&0x0F != n.sn {
			return
		}
		if len(b) < n.full && len(n.began)+len(b)-1 < n.size {
			return // too short to be in the middle
		}
		n.began = append(n.began, b[1:]...)
		n.sn = (n.sn + 1) % 16
		if len(n.began) >= n.size {
			n.whole = append(n.whole, n.began[:n.size])
			n.began = nil
		}
	}
}

// check takes all results: PDUs must be among those, in their order.
func (n *naive) check(t *testing.T, r *receiver) {
	t.Helper()
	for {
		one, ok := r.take()
		if !ok {
			break
		}
		if (one.pdu == nil) == (one.err == nil) {
			t.Fatalf("a result with % X and %v", one.pdu, one.err)
		}
		if one.err != nil {
			continue
		}
		for len(n.whole) > 0 && !bytes.Equal(n.whole[0], one.pdu) {
			n.whole = n.whole[1:]
		}
		if len(n.whole) == 0 {
			t.Fatalf("got % X, which was not said in this order", one.pdu)
		}
		n.whole = n.whole[1:]
	}
	if r.bytes != 0 {
		t.Fatalf("no results, and they hold %d bytes", r.bytes)
	}
}
