package der

import (
	"testing"

	"github.com/interlock-energy/ota/plant/internal/memory"
)

// TestLadder walks every ladder down and up: each rung is on it, no step is greater
// than allowed, and both ends are reached.
func TestLadder(t *testing.T) {
	for _, l := range []ladder{{0, 1}, {1, 1}, {10, 3}, {9, 3}, {2, 7}, {-10, 3}, {-9, 3}, {38_000, 10_000}, {-31_234, 10_000}, {5, 5}} {
		rungs := map[int64]bool{l.From: true}
		v, n := l.From, 0
		for ; v != 0 && n < 100; n++ {
			next := l.down(v)
			if abs(next) >= abs(v) || abs(v-next) > l.Step || next != 0 && (next < 0) != (l.From < 0) {
				t.Errorf("%v: %d down to %d", l, v, next)
			}
			v = next
			rungs[v] = true
		}
		for ; v != l.From && n < 200; n++ {
			next := l.up(v)
			if abs(next) <= abs(v) || abs(v-next) > l.Step || !rungs[next] {
				t.Errorf("%v: %d up to %d", l, v, next)
			}
			v = next
		}
		for v := -abs(l.From) - 12; v <= abs(l.From)+12; v++ {
			if l.has(v) != rungs[v] {
				t.Errorf("%v: has %d: %v, want %v", l, v, l.has(v), rungs[v])
			}
		}
	}
}

// FuzzFound: whatever is in the file, with a sum that fits, is refused or leads to
// ladders that end.
func FuzzFound(f *testing.F) {
	f.Add([]byte(`{"device":"","at":"2026-01-02T03:04:05Z","control":"704","points":{"WSet":38000,"WSetEna":1,"WSetRvrt":0},"set":"WSet","revert":"WSetRvrt","ladder":{"from":38000,"step":10000},"dead_man":300}`))
	f.Add([]byte(`{"control":"715","points":{"OpCtl":1}}`))
	f.Add([]byte(`{"control":"704","points":{"WSetPct":-1000,"WSetEna":0},"set":"WSetPct","revert":"WSetPctRvrt","scale":-1,"ladder":{"from":-225,"step":0}}`))
	f.Add([]byte(`{"control":"704","points":{"WSet":-9223372036854775808,"WSetEna":1},"set":"WSet","revert":"WSetRvrt","ladder":{"from":-9223372036854775808,"step":1}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var v found
		c := &converter{d: &DER{}}
		if memory.Decode(memory.Sealed(body), &v) != nil || v.check(c) != nil || v.Control != SetPoint {
			return
		}
		l := v.Ladder
		if at := l.From; at != 0 && (abs(l.down(at)) >= abs(at) || !l.has(l.down(at))) {
			t.Errorf("%v: down to %d", l, l.down(at))
		}
		if l.From != 0 && (abs(l.up(0)) == 0 || !l.has(l.up(0)) || l.up(l.From) != l.From) {
			t.Errorf("%v: up to %d", l, l.up(0))
		}
		for scale := int64(-10); scale <= 10; scale++ {
			w := v
			if err := w.rescale(scale); err == nil && (w.Ladder.Step <= 0 || abs(w.Ladder.From) > 1<<31 || scale != v.Scale && abs(w.Points[v.Set]) > 1<<31) {
				t.Errorf("scale %d: %+v", scale, w)
			}
		}
		_ = v.String()
	})
}
