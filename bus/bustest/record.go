package bustest

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// Record is something that went over a bus, as one end sent it.
type Record struct {
	From string // the end that sent it
	N    int    // how many of that end came before it
	// Conn numbers the connection on which it came, of a Proxy; 0 elsewhere.
	Conn int

	Frame can.Frame // on a CAN bus
	Data  []byte    // elsewhere: a frame of Modbus RTU with its CRC, of Modbus TCP with its header, a line of SLCAN with its end, a PDU

	Queued  time.Time // when its sender handed it over, as far as the bus can tell
	At      time.Time // when the last of it came out at the other end, or would have
	Verdict Verdict   // what became of it
}

func (r Record) String() string {
	what := fmt.Sprintf("% X", r.Data)
	if r.Frame != (can.Frame{}) {
		what = r.Frame.String()
	}
	return fmt.Sprintf("%s #%d %s %s", r.From, r.N, r.Verdict, what)
}

// Verdict is what becomes of a frame.
type Verdict string

// Verdicts. The zero value is Pass.
const (
	Pass   Verdict = ""
	Lose   Verdict = "lost"
	Double Verdict = "doubled"
	Swap   Verdict = "swapped" // comes after the next of the same direction, or after Faults.Hold
	// Garble changes a bit of it. On a CAN bus, where nothing damaged gets through, the
	// frame is followed by an error frame and sent again.
	Garble Verdict = "damaged"
	// Cut breaks the connection instead of passing it on, and CutAfter right after. Only
	// a Proxy does that; elsewhere they mean Lose and Pass.
	Cut      Verdict = "cut before"
	CutInner Verdict = "cut within" // half of it gets through
	CutAfter Verdict = "cut after"
)

// arrives says whether a receiver got what was sent.
func (v Verdict) arrives() bool {
	switch v {
	case Pass, Double, Swap, CutAfter:
		return true
	}
	return false
}

// Tap keeps what went over buses, in the order in which it came out of them. The zero
// Tap is ready; nil keeps nothing.
type Tap struct {
	mu      sync.Mutex
	records []Record
}

func (t *Tap) add(r Record) {
	if t == nil {
		return
	}
	r.Data = slices.Clone(r.Data)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = append(t.records, r)
}

// Records returns what there is until now.
func (t *Tap) Records() []Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.records)
}
