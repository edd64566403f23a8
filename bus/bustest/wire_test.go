package bustest_test

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
)

// TestWireTakesItsTime: bytes come one by one, each when its last bit is over.
func TestWireTakesItsTime(t *testing.T) {
	for _, c := range []struct {
		config bustest.WireConfig
		n      int
		want   time.Duration // of the last
		first  time.Duration
	}{
		{bustest.WireConfig{}, 96, 110 * time.Millisecond, 1145833 * time.Nanosecond},
		{bustest.WireConfig{Baud: 115200}, 1152, 110 * time.Millisecond, 95486 * time.Nanosecond},
		{bustest.WireConfig{Baud: 9600, CharBits: 10}, 960, time.Second, 1041666 * time.Nanosecond},
		{bustest.WireConfig{Burst: 8}, 96, 110 * time.Millisecond, 9166666 * time.Nanosecond},
		{bustest.WireConfig{Burst: 62, Latency: 16 * time.Millisecond}, 14, 17145833 * time.Nanosecond, 17145833 * time.Nanosecond},
		{bustest.WireConfig{Burst: 62, Latency: 16 * time.Millisecond}, 16, 33187500 * time.Nanosecond, 17145833 * time.Nanosecond},
		{bustest.WireConfig{Baud: 115200, Burst: 62, Latency: 16 * time.Millisecond}, 124, 11840278 * time.Nanosecond, 5920139 * time.Nanosecond},
		{bustest.WireConfig{Queue: -1}, 96, 110 * time.Millisecond, 1145833 * time.Nanosecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := bustest.Pair(c.config)
			defer a.Close()
			defer b.Close()
			sent := make([]byte, c.n)
			for i := range sent {
				sent[i] = byte(i * 7)
			}
			begin := time.Now()
			wrote := make(chan time.Duration, 1)
			go func() {
				a.Write(sent)
				wrote <- time.Since(begin)
			}()
			got := make([]byte, c.n)
			if _, err := b.Read(got[:1]); err != nil || near(time.Since(begin), c.first) != nil {
				t.Errorf("%+v: the first byte after %v, %v, want %v", c.config, time.Since(begin), err, c.first)
			}
			if _, err := io.ReadFull(b, got[1:]); err != nil || near(time.Since(begin), c.want) != nil {
				t.Errorf("%+v: the last byte after %v, %v, want %v", c.config, time.Since(begin), err, c.want)
			}
			if !bytes.Equal(got, sent) {
				t.Errorf("%+v: other bytes came", c.config)
			}
			want := time.Duration(0)
			if c.config.Queue < 0 {
				want = c.want
			}
			if got := <-wrote; near(got, want) != nil {
				t.Errorf("%+v: Write took %v, want %v", c.config, got, want)
			}
			if use := a.Use(); use.Bytes != c.n || near(use.Busy, a.Wire().Time(c.n)) != nil || use.Garbled+use.Lost > 0 {
				t.Errorf("%+v: %+v", c.config, use)
			}
		})
	}
}

// near allows for a nanosecond that rounding takes from each byte.
func near(got, want time.Duration) error {
	if d := got - want; d < -2*time.Microsecond || d > 2*time.Microsecond {
		return io.ErrShortBuffer
	}
	return nil
}

// TestWireCollision: what two ends send at once nobody hears as it was, and what is beside
// it in time is heard.
func TestWireCollision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bustest.NewWire(bustest.WireConfig{})
		a, b, c := w.Join("a"), w.Join("b"), w.Join("c")
		heard := map[string]*[]byte{}
		for name, e := range map[string]*bustest.End{"a": a, "b": b, "c": c} {
			all := new([]byte)
			heard[name] = all
			go func() {
				buf := make([]byte, 16)
				for {
					n, err := e.Read(buf)
					*all = append(*all, buf[:n]...)
					if err != nil {
						return
					}
				}
			}()
		}
		a.Write([]byte{1, 2, 3, 4})
		time.Sleep(w.Time(2) + w.Time(1)/2) // in the middle of a's third byte
		b.Write([]byte{5, 6, 7})
		time.Sleep(time.Second)
		synctest.Wait()
		if got := *heard["b"]; len(got) != 4 || got[0] != 1 || got[1] != 2 || got[2] == 3 || got[3] == 4 {
			t.Errorf("b heard %v, want 1, 2 and two damaged bytes", got)
		}
		if got := *heard["a"]; len(got) != 3 || got[0] == 5 || got[1] == 6 || got[2] != 7 {
			t.Errorf("a heard %v, want two damaged bytes and 7", got)
		}
		if got := len(*heard["c"]); got != 7 {
			t.Errorf("c heard %d bytes, want 7", got)
		}
		if a.Use().Garbled != 2 || b.Use().Garbled != 2 {
			t.Errorf("garbled: %d and %d, want 2 and 2", a.Use().Garbled, b.Use().Garbled)
		}
		a.Close()
		b.Close()
		c.Close()
	})
}

// TestWireTurnaround: another end waits for the line to change over; the same does not.
func TestWireTurnaround(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bustest.Pair(bustest.WireConfig{Turnaround: 5 * time.Millisecond})
		defer a.Close()
		defer b.Close()
		one := make([]byte, 1)
		a.Write([]byte{1})
		b.Read(one)
		begin := time.Now()
		b.Write([]byte{2})
		a.Read(one)
		if got, want := time.Since(begin), 5*time.Millisecond+a.Wire().Time(1); near(got, want) != nil {
			t.Errorf("the answer after %v, want %v", got, want)
		}
		begin = time.Now()
		b.Write([]byte{3})
		a.Read(one)
		if got, want := time.Since(begin), a.Wire().Time(1); near(got, want) != nil {
			t.Errorf("one more after %v, want %v", got, want)
		}
	})
}

// TestWireEnds: Close ends what waits, of that end alone; its name may join again.
func TestWireEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bustest.NewWire(bustest.WireConfig{Queue: -1})
		a, b := w.Join("a"), w.Join("b")
		failed := make(chan error)
		go func() {
			_, err := a.Read(make([]byte, 1))
			failed <- err
		}()
		synctest.Wait()
		a.Close()
		if err := <-failed; err == nil {
			t.Error("a Read outlived Close")
		}
		if _, err := a.Write([]byte{1}); err == nil {
			t.Error("a Write after Close did not fail")
		}
		a = w.Join("a")
		go a.Write([]byte{9})
		one := make([]byte, 1)
		if _, err := b.Read(one); err != nil || one[0] != 9 {
			t.Errorf("after joining again: got %v, %v, want 9", one, err)
		}
		if a.Use().Bytes != 1 {
			t.Errorf("%+v, want one byte", a.Use())
		}
		a.Close()
		b.Close()
	})
}
