package inbox

import (
	"math/rand/v2"
	"testing"
)

// The set is compared with a map of bytes.
func TestSet(t *testing.T) {
	const size = 200
	r := rand.New(rand.NewPCG(1, 2))
	var s set
	var want [size]bool
	for n := range 20_000 {
		from := r.Int64N(size)
		to := from + r.Int64N(min(30, size-from)+1)
		switch r.IntN(5) {
		case 0, 1:
			s.add(from, to)
			for i := from; i < to; i++ {
				want[i] = true
			}
		case 2:
			s.remove(from, to)
			for i := from; i < to; i++ {
				want[i] = false
			}
		case 3: // by its parts
			next := from
			_ = s.within(from, to, func(x span, there bool) error {
				if x.from != next || x.from >= x.to || x.to > to {
					t.Fatalf("step %d: part %v of %d to %d", n, x, from, to)
				}
				for next = x.from; next < x.to; next++ {
					if want[next] != there {
						t.Fatalf("step %d: byte %d: got %v", n, next, there)
					}
				}
				return nil
			})
			if next != to {
				t.Fatalf("step %d: the parts end at %d, want %d", n, next, to)
			}
		}
		checkSet(t, &s, want[:], from, to)
	}
}

func checkSet(t *testing.T, s *set, want []bool, from, to int64) {
	t.Helper()
	total, all, missing := int64(0), true, from
	for i, there := range want {
		if there {
			total++
		}
		if int64(i) >= from && int64(i) < to && !there {
			all = false
		}
	}
	for missing < int64(len(want)) && want[missing] {
		missing++
	}
	if s.total != total || s.has(from, to) != all || s.missing(from) != missing {
		t.Fatalf("%v: got total %d, has %v, missing %d, want %d, %v, %d", s.spans, s.total, s.has(from, to), s.missing(from), total, all, missing)
	}
	for i, x := range s.spans {
		if x.from >= x.to || i > 0 && s.spans[i-1].to >= x.from {
			t.Fatalf("%v: not in order, or not joined", s.spans)
		}
	}
}

// A full set still takes what does not make it larger.
func TestSetRoom(t *testing.T) {
	var s set
	for i := range int64(maxSpans) {
		s.add(10*i, 10*i+5)
	}
	for _, tt := range []struct {
		from, to int64
		want     bool
	}{{6, 8, false}, {5, 6, true}, {9, 10, true}, {5, 10, true}, {10 * maxSpans, 10*maxSpans + 1, false}, {10*maxSpans - 5, 10 * maxSpans, true}, {100, 200, true}} {
		if got := s.room(tt.from, tt.to); got != tt.want {
			t.Errorf("room for %d to %d: got %v, want %v", tt.from, tt.to, got, tt.want)
		}
	}
}
