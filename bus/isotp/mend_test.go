package isotp

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// With Mend, a consecutive frame that comes twice or after the next one breaks nothing.
func TestMend(t *testing.T) {
	for _, c := range []struct {
		n      int
		config Config
	}{{20, Config{Mend: true}}, {62, Config{Mend: true, BlockSize: 1}}, {300, Config{Mend: true, BlockSize: 8}}, {65, Config{Mend: true, Unpadded: true}}} {
		for _, what := range []verdict{doubled, late} {
			for i := 1; i <= c.n/7; i++ {
				synctest.Test(t, func(t *testing.T) {
					a, b := line()
					a.fate = func(n int, _ can.Frame) verdict {
						if n == i {
							return what
						}
						return arrives
					}
					sender := channel(t, a, Normal(0x7E0, 0x7E8), c.config)
					receiver := channel(t, b, Normal(0x7E8, 0x7E0), c.config)
					for seed := range 2 {
						want := pdu(c.n, seed)
						if err := sender.Send(t.Context(), want); err != nil {
							t.Fatalf("%d bytes, fault %d at %d: %v", c.n, what, i, err)
						}
						gets(t, receiver, want)
					}
					if s := receiver.Stats(); s.Broken != 0 {
						t.Errorf("%d bytes, fault %d at %d: %+v", c.n, what, i, s)
					}
				})
			}
		}
	}
}

// frames of a PDU behind its first one.
func consecutives(w format, pdu []byte) (frames []part) {
	_, n := w.first(pdu)
	for sn := byte(1); n < len(pdu); sn++ {
		f, more := w.consecutive(sn, pdu[n:])
		p, _ := parse(&f, w.offset())
		p.data = slices.Clone(p.data)
		frames, n = append(frames, p), n+more
	}
	return frames
}

// mending is a receiver that has taken the first frame of a PDU, and told the peer to go on.
func mending(t *testing.T, pdu []byte, c Config) (receiver, format, time.Time) {
	t.Helper()
	c.Mend = true
	s, err := c.settings()
	if err != nil {
		t.Fatal(err)
	}
	w := newFormat(Normal(0x7E0, 0x7E8), s)
	r := receiver{settings: s, gaps: s.timer(s.NCr)}
	now := time.Unix(0, 0)
	f, _ := w.first(pdu)
	p, _ := parse(&f, 0)
	r.frame(now, p)
	r.told(now)
	return r, w, now
}

// told sends the flow control that is due.
func (r *receiver) told(now time.Time) {
	if _, turn, due := r.due(); due {
		r.sent(now, turn, nil)
	}
}

// Any faults at all frames of a PDU: what comes out is the PDU or nothing.
func TestMendNothingElse(t *testing.T) {
	want := pdu(40, 1) // five frames behind the first
	kinds := []verdict{arrives, lost, doubled, late}
	runs, whole := 0, 0
	for n := range 4 * 4 * 4 * 4 * 4 {
		r, w, now := mending(t, want, Config{})
		var held *part
		for i, p := range consecutives(w, want) {
			what := kinds[n>>(2*i)&3]
			switch {
			case what == lost:
				continue
			case what == late && held == nil:
				held = &p
				continue
			case what == doubled:
				r.frame(now, p)
			}
			r.frame(now, p)
			if held != nil {
				r.frame(now, *held)
				held = nil
			}
		}
		if held != nil {
			r.frame(now, *held)
		}
		runs++
		for {
			one, ok := r.take()
			if !ok {
				break
			}
			if one.err == nil && !bytes.Equal(one.pdu, want) {
				t.Fatalf("faults %05o: got % X, want % X", n, one.pdu, want)
			}
			if one.err == nil {
				whole++
			}
		}
	}
	t.Logf("%d ways to disturb, %d of them mended", runs, whole)
	if whole < 100 {
		t.Errorf("got %d PDUs of %d, want at least 100: losses cannot be mended, the rest can", whole, runs)
	}
}

// What looks like it and is not breaks the PDU, as without Mend.
func TestNotMended(t *testing.T) {
	want := pdu(60, 1)
	for name, disturb := range map[string]func(r *receiver, now time.Time, frames []part){
		"two too early": func(r *receiver, now time.Time, f []part) { r.frame(now, f[0]); r.frame(now, f[3]) },
		"one is missing": func(r *receiver, now time.Time, f []part) {
			r.frame(now, f[0])
			r.frame(now, f[2])
			r.frame(now, f[3])
		},
		"the same number, other bytes": func(r *receiver, now time.Time, f []part) {
			r.frame(now, f[0])
			other := f[1]
			other.sn = f[0].sn
			r.frame(now, other)
		},
		"two that claim to be the one after the next": func(r *receiver, now time.Time, f []part) {
			r.frame(now, f[1])
			other := f[0]
			other.sn = f[1].sn
			r.frame(now, other)
		},
		"before the peer was told to go on": func(r *receiver, now time.Time, f []part) {
			r.owe(proceed)
			r.frame(now, f[1])
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, now := mending(t, want, Config{})
			disturb(&r, now, consecutives(w, want))
			one, ok := r.take()
			if !ok || !errors.Is(one.err, ErrSequence) {
				t.Errorf("got %v, want %v", one.err, ErrSequence)
			}
		})
	}
}

// FuzzMend: whatever frames come, each part of a PDU that comes out was in a frame with its
// number, after the first frame of that PDU.
func FuzzMend(f *testing.F) {
	w := format{id: 0x7E0, filled: true}
	frames := consecutives(w, pdu(40, 1))
	var script []byte
	for _, i := range []int{0, 0, 2, 1, 4, 3} {
		script = append(append(script, frames[i].sn), frames[i].data...)
	}
	f.Add(byte(0), byte(40), script)
	f.Add(byte(1), byte(20), []byte{1, 1, 2, 3, 4, 5, 6, 7, 2, 1, 2, 3, 4, 5, 6, 7, 2, 9, 9, 9, 9, 9, 9, 9})
	f.Fuzz(func(t *testing.T, shape, size byte, script []byte) {
		first := pdu(max(8, int(size)), 3)
		r, _, now := mending(t, first, Config{BlockSize: int(shape & 7)})
		said := map[byte][][]byte{}
		for len(script) >= 8 {
			p := part{kind: consecutive, sn: script[0] & 0x0F, data: script[1:8]}
			if script[0]&0x80 != 0 {
				p.data = p.data[:script[0]>>4&7]
			}
			said[p.sn] = append(said[p.sn], p.data)
			r.frame(now, p)
			if script[0]&0x40 == 0 {
				r.told(now)
			}
			script = script[8:]
		}
		one, ok := r.take()
		if !ok || one.err != nil {
			return
		}
		if len(one.pdu) != len(first) || !bytes.Equal(one.pdu[:6], first[:6]) {
			t.Fatalf("got %d bytes, want %d", len(one.pdu), len(first))
		}
		sn := byte(1)
		for rest := one.pdu[6:]; len(rest) > 0; sn++ {
			n := min(7, len(rest))
			if !slices.ContainsFunc(said[sn&0x0F], func(b []byte) bool { return bytes.HasPrefix(b, rest[:n]) }) {
				t.Fatalf("% X was in no frame of number %d", rest[:n], sn&0x0F)
			}
			rest = rest[n:]
		}
	})
}

// A timer that adapts is the standard's until it has run out once; then it follows the
// peer, and a peer that has become slow gets what it needs.
func TestAdaptFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus, peer := line()
		conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{Adapt: true})
		send := func(after time.Duration) error { // flow control; negative: it never comes
			done := make(chan error, 1)
			go func() { done <- conn.Send(t.Context(), text2) }()
			if after < 0 {
				return <-done
			}
			time.Sleep(after)
			synctest.Wait()
			peer.says(t, "7E8#300000")
			return <-done
		}
		began := time.Now()
		took := func() time.Duration { d := time.Since(began); began = time.Now(); return d.Round(time.Millisecond) }
		for range 20 {
			if err := send(999 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		for range 50 {
			if err := send(2 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		took()
		var got []string
		for range 6 {
			if err := send(-1); !errors.Is(err, ErrTimeout) {
				t.Fatalf("got %v, want %v", err, ErrTimeout)
			}
			got = append(got, took().String())
		}
		if want := "[1s 100ms 200ms 200ms 400ms 400ms]"; fmt.Sprint(got) != want {
			t.Errorf("flow control was waited for %v, want %v", got, want)
		}
		for tries := 1; ; tries++ {
			if err := send(700 * time.Millisecond); err == nil {
				break
			}
			if tries == 3 {
				t.Fatal("a peer that takes 700 ms is not waited for after three more attempts")
			}
		}
		if err := send(700 * time.Millisecond); err != nil {
			t.Errorf("and the next time: %v", err)
		}
	})
}

func TestAdaptNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus, peer := line()
		conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{Adapt: true})
		var got []string
		for i := range 12 {
			whole := i < 10
			peer.says(t, "7E8#1014303132333435")
			synctest.Wait()
			time.Sleep(3 * time.Millisecond)
			peer.says(t, "7E8#2136373839414243")
			if whole {
				time.Sleep(3 * time.Millisecond)
				peer.says(t, "7E8#224445464748494A")
				gets(t, conn, text2)
				continue
			}
			began := time.Now()
			if _, err := conn.Receive(t.Context()); !errors.Is(err, ErrTimeout) {
				t.Errorf("got %v, want %v", err, ErrTimeout)
			}
			got = append(got, time.Since(began).Round(time.Millisecond).String())
		}
		if want := "[1s 100ms]"; fmt.Sprint(got) != want {
			t.Errorf("the next frame was waited for %v, want %v", got, want)
		}
	})
}
