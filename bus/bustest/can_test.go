package bustest_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
)

// TestBits: the longest that frames can be, as ISO 11898-1 and others have computed it, and
// that all are within the bounds.
func TestBits(t *testing.T) {
	for _, c := range []struct {
		f     can.Frame
		worst int
	}{
		{can.Standard(0x7E8, 0x21, 1, 2, 3, 4, 5, 6, 7), 135},
		{can.Extended(0x18DAF110, 1, 2, 3, 4, 5, 6, 7, 8), 160},
		{can.Standard(0), 55},
		{can.Frame{ID: 1, Remote: true, Len: 8}, 55},
	} {
		if got := bustest.WorstBits(c.f); got != c.worst {
			t.Errorf("%v: at most %d bits, want %d", c.f, got, c.worst)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		f := can.Frame{ID: random.Uint32N(can.MaxStandard + 1), Len: uint8(random.IntN(9))}
		least := 47 + 8*int(f.Len)
		if random.IntN(2) == 0 {
			f.ID, f.Extended, least = random.Uint32N(can.MaxExtended+1), true, least+20
		}
		for i := range f.Len {
			f.Data[i] = byte(random.Uint32()) * byte(random.IntN(2)) // many zeros, for stuff bits
		}
		if got := bustest.Bits(f); got < least || got > bustest.WorstBits(f) {
			t.Fatalf("%v: %d bits, want %d to %d", f, got, least, bustest.WorstBits(f))
		}
	}
}

func receive(t *testing.T, bus can.Bus, want ...can.Frame) {
	t.Helper()
	for i, want := range want {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		got, err := bus.Receive(ctx)
		cancel()
		if err != nil || got != want {
			t.Errorf("frame %d: got %v, %v, want %v", i, got, err, want)
		}
	}
}

// TestArbitration: of what waits, the lowest identifier goes first, in the order that
// ISO 11898-1 gives equal ones; each takes as long as its bits do.
func TestArbitration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := bustest.NewCAN(bustest.CANConfig{})
		defer bus.Close()
		listener := bus.Join("listener")
		first := can.Standard(0x7FF, 1)
		order := []can.Frame{
			can.Standard(0x100, 1, 2, 3), {ID: 0x100, Remote: true}, can.Extended(0x100<<18, 4),
			{ID: 0x100 << 18, Extended: true, Remote: true}, can.Extended(0x100<<18|1, 5), can.Standard(0x101), can.Standard(0x7FE, 6),
		}
		busy := bus.Join("busy")
		busy.Send(t.Context(), first)
		synctest.Wait() // it has the bus, and keeps it
		var want time.Duration
		for i := range order {
			f := order[len(order)-1-i]
			if err := bus.Join("x").Send(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			want += bus.Time(f)
		}
		begin := time.Now()
		receive(t, listener, first)
		receive(t, listener, order...)
		if got := time.Since(begin) - bus.Time(first); got != want {
			t.Errorf("%d frames took %v, want %v", len(order), got, want)
		}
		if use := bus.Use("x"); use.Frames != len(order) || use.Busy != want || use.Waited != want+bus.Time(first) {
			t.Errorf("x: %+v, want %d frames, busy %v", use, len(order), want)
		}
		if got := bus.Load(begin, time.Now()); got != 1 {
			t.Errorf("load: got %g, want 1", got)
		}
	})
}

// TestBroadcastIsNotLate: a node that fills the bus with frames of lower priority does not
// hold the battery up for longer than one of its frames; one of higher priority does.
func TestBroadcastIsNotLate(t *testing.T) {
	for id, late := range map[uint32]bool{0x7E0: false, 0x010: true} {
		synctest.Test(t, func(t *testing.T) {
			bus := bustest.NewCAN(bustest.CANConfig{Worst: true})
			defer bus.Close()
			cycle := []can.Frame{can.Standard(0x351, 1, 2, 3, 4, 5, 6, 7, 8), can.Standard(0x355, 1, 2, 3, 4), can.Standard(0x356, 1, 2, 3, 4, 5, 6)}
			stop := bus.Broadcast("BMS", 100*time.Millisecond, cycle...)
			defer stop()
			flood := bus.Join("tester")
			f := can.Standard(id, 0x21, 1, 2, 3, 4, 5, 6, 7)
			for begin := time.Now(); time.Since(begin) < 2*time.Second; {
				if err := flood.Send(t.Context(), f); err != nil {
					t.Fatal(err)
				}
			}
			most := bus.Time(f)
			for _, f := range cycle {
				most += bus.Time(f)
			}
			use := bus.Use("BMS")
			if got := use.Waited > most; got != late {
				t.Errorf("id %#x: frames waited for up to %v, want more than %v: %v", id, use.Waited, most, late)
			}
			if got := use.Missed > 0; got != late {
				t.Errorf("id %#x: %d frames were late by a period, want some: %v", id, use.Missed, late)
			}
			share := bus.Share("tester", 10*time.Millisecond)
			if share < 0.99 {
				t.Errorf("id %#x: the tester had %g of the bus, want all for a while", id, share)
			}
		})
	}
}

// TestShare: windows of several lengths over a pattern that is known.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := bustest.NewCAN(bustest.CANConfig{Worst: true})
		defer bus.Close()
		n := bus.Join("n")
		f := can.Standard(1, 1, 2, 3, 4, 5, 6, 7, 8) // 270 µs
		for range 10 {
			for range 4 {
				n.Send(t.Context(), f)
			}
			time.Sleep(2160 * time.Microsecond) // 1080 of these busy
		}
		for window, want := range map[time.Duration]float64{270 * time.Microsecond: 1, 1080 * time.Microsecond: 1, 2160 * time.Microsecond: 0.5, 1620 * time.Microsecond: 2. / 3, 21600 * time.Microsecond: 0.5} {
			if got := bus.Share("n", window); got < want-1e-9 || got > want+1e-9 {
				t.Errorf("in %v: got %g, want %g", window, got, want)
			}
		}
	})
}

// TestCANFaults: each verdict does what it says, to the frame that it is for.
func TestCANFaults(t *testing.T) {
	a, b, c := can.Standard(0x10, 1), can.Standard(0x10, 2), can.Standard(0x10, 3)
	for verdict, want := range map[bustest.Verdict][]can.Frame{
		bustest.Pass: {a, b, c}, bustest.Lose: {a, c}, bustest.Double: {a, b, b, c}, bustest.Swap: {a, c, b}, bustest.Garble: {a, b, c},
	} {
		synctest.Test(t, func(t *testing.T) {
			tap := new(bustest.Tap)
			bus := bustest.NewCAN(bustest.CANConfig{Tap: tap, Faults: bustest.Faults{From: "one", Exactly: func(r bustest.Record) bustest.Verdict {
				if r.N == 1 {
					return verdict
				}
				return bustest.Pass
			}}})
			defer bus.Close()
			one, two := bus.Join("one"), bus.Join("two")
			begin := time.Now()
			for _, f := range []can.Frame{a, b, c} {
				if err := one.Send(t.Context(), f); err != nil {
					t.Fatal(err)
				}
			}
			receive(t, two, want...)
			extra := time.Duration(0)
			if verdict == bustest.Garble {
				extra = bus.Time(b) + 23*2*time.Microsecond
			}
			if got, want := time.Since(begin), bus.Time(a)+bus.Time(b)+bus.Time(c)+extra; got != want {
				t.Errorf("%q: took %v, want %v", verdict, got, want)
			}
			time.Sleep(time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if f, err := two.Receive(ctx); err == nil {
				t.Errorf("%q: %v came too", verdict, f)
			}
			if records := tap.Records(); records[1].Verdict != verdict || records[1].Frame != b {
				t.Errorf("%q: the tap has %v", verdict, records)
			}
		})
	}
}

// TestSwappedLast: a frame that no other follows comes late.
func TestSwappedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := bustest.NewCAN(bustest.CANConfig{Faults: bustest.Faults{Reorder: 1, Hold: 30 * time.Millisecond}})
		defer bus.Close()
		one, two := bus.Join("one"), bus.Join("two")
		f := can.Standard(1)
		begin := time.Now()
		one.Send(t.Context(), f)
		receive(t, two, f)
		if got, want := time.Since(begin), bus.Time(f)+30*time.Millisecond; got != want {
			t.Errorf("after %v, want %v", got, want)
		}
	})
}

// TestSameSeedSameFaults: with the likelihood that was asked for.
func TestSameSeedSameFaults(t *testing.T) {
	const n = 5000
	verdicts := func(seed uint64) (list []bustest.Verdict) {
		synctest.Test(t, func(t *testing.T) {
			tap := new(bustest.Tap)
			bus := bustest.NewCAN(bustest.CANConfig{Tap: tap, Faults: bustest.Faults{Seed: seed, Lose: 0.1, Double: 0.1, Reorder: 0.1}})
			defer bus.Close()
			one := bus.Join("one")
			for range n {
				one.Send(t.Context(), can.Standard(1))
			}
			time.Sleep(time.Second)
			for _, r := range tap.Records() {
				list = append(list, r.Verdict)
			}
		})
		return list
	}
	one, two, other := verdicts(7), verdicts(7), verdicts(8)
	count, differ := map[bustest.Verdict]int{}, 0
	for i := range one {
		if one[i] != two[i] {
			t.Fatalf("frame %d: %q and %q with the same seed", i, one[i], two[i])
		}
		if one[i] != other[i] {
			differ++
		}
		count[one[i]]++
	}
	for _, v := range []bustest.Verdict{bustest.Lose, bustest.Double, bustest.Swap} {
		if count[v] < n/10-100 || count[v] > n/10+100 {
			t.Errorf("%q: %d of %d, want a tenth", v, count[v], n)
		}
	}
	if len(one) != n || differ < n/10 {
		t.Errorf("%d frames, %d differ with another seed", len(one), differ)
	}
}

// TestNodeEnds: contexts, Close, Break and the end of the bus.
func TestNodeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := bustest.NewCAN(bustest.CANConfig{})
		one, two := bus.Join("one"), bus.Join("two")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := one.Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Receive: %v, want that of the context", err)
		}
		one.Break(can.ErrBusOff)
		if _, err := one.Receive(t.Context()); !errors.Is(err, can.ErrBusOff) {
			t.Errorf("Receive: %v, want off the bus", err)
		}
		two.Send(t.Context(), can.Standard(1))
		receive(t, one, can.Standard(1))
		two.Close()
		if err := two.Send(t.Context(), can.Standard(1)); !errors.Is(err, can.ErrClosed) {
			t.Errorf("Send: %v, want closed", err)
		}
		if err := one.Send(t.Context(), can.Standard(0x800)); err == nil {
			t.Error("a frame that is none was sent")
		}
		bus.Close()
		if _, err := one.Receive(t.Context()); !errors.Is(err, can.ErrDown) {
			t.Errorf("Receive: %v, want down", err)
		}
	})
}
