package bustest

import (
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// Faults say what a bus does to frames. The zero value does nothing to them.
type Faults struct {
	Seed uint64

	// How likely each is, 0 to 1. At most one happens to a frame.
	Lose, Double, Reorder, Garble float64
	// How likely it is that a connection is cut before, within or after a frame; each
	// kind is a third of it. Only for a Proxy.
	Cut float64

	From string            // only what this end sends; "": all
	Only func(Record) bool // only these; nil: all

	// Exactly decides on each frame, if it is set, and the numbers above do not. What
	// From and Only leave out passes.
	Exactly func(Record) Verdict

	// Hold is how long a swapped frame waits for the next one; 0: 50 ms. In a Relay it is
	// also when the second of a doubled one comes; 0: at once.
	Hold time.Duration
}

func (f *Faults) hold() time.Duration {
	if f.Hold <= 0 {
		return 50 * time.Millisecond
	}
	return f.Hold
}

// judge depends on nothing but the seed, who sent the frame, and its number.
func (f *Faults) judge(r Record) Verdict {
	switch {
	case f.From != "" && r.From != f.From, f.Only != nil && !f.Only(r):
		return Pass
	case f.Exactly != nil:
		return f.Exactly(r)
	}
	x := f.random(r, 0).Float64()
	for _, c := range [...]struct {
		likely float64
		Verdict
	}{{f.Lose, Lose}, {f.Double, Double}, {f.Reorder, Swap}, {f.Garble, Garble}, {f.Cut / 3, Cut}, {f.Cut / 3, CutInner}, {f.Cut / 3, CutAfter}} {
		if x < c.likely {
			return c.Verdict
		}
		x -= c.likely
	}
	return Pass
}

func (f *Faults) random(r Record, purpose uint64) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(r.From))
	return rand.New(rand.NewPCG(f.Seed^h.Sum64(), uint64(r.N)<<8|purpose))
}

// garble changes a bit of what r carries.
func (f *Faults) garble(r Record) []byte {
	b := append([]byte(nil), r.Data...)
	if len(b) > 0 {
		random := f.random(r, 1)
		b[random.IntN(len(b))] ^= 1 << random.IntN(8)
	}
	return b
}
