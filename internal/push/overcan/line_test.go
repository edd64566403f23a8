package overcan_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
)

// line is a fake: it carries PDUs between a tester and a device without frames, and loses
// or doubles those that its fault says. Both ends may be closed and opened again, as after
// a restart of either.
type line struct {
	fault func(n int, fromTester bool, pdu []byte) verdict // nil: all pass

	mu     sync.Mutex
	n      int // PDUs of both directions
	tester *end
	device *end
	log    []pdu
}

type verdict int

const (
	pass verdict = iota
	lose
	double
)

// pdu is what the line saw.
type pdu struct {
	fromTester bool
	data       []byte
	passed     bool
}

func (p pdu) String() string {
	arrow := map[bool]string{true: "->", false: "<-"}[p.fromTester]
	lost := map[bool]string{false: " LOST"}[p.passed]
	return fmt.Sprintf("%s % X (%d bytes)%s", arrow, p.data[:min(len(p.data), 12)], len(p.data), lost)
}

// end is an end of a line: a uds.Conn.
type end struct {
	line       *line
	fromTester bool
	in         chan []byte
	done       chan struct{}
	once       sync.Once
}

// open makes an end, instead of the one that was there.
func (l *line) open(tester bool) *end {
	e := &end{line: l, fromTester: tester, in: make(chan []byte, 1024), done: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if tester {
		l.tester = e
	} else {
		l.device = e
	}
	return e
}

// wireTime is how long a PDU takes: some time must pass, so that nothing depends on order.
const wireTime = time.Millisecond

// Send implements uds.Conn.
func (e *end) Send(ctx context.Context, data []byte) error {
	select {
	case <-e.done:
		return can.ErrClosed
	case <-time.After(wireTime):
	}
	l := e.line
	l.mu.Lock()
	n := l.n
	l.n++
	l.mu.Unlock()
	times := 1
	if l.fault != nil { // it may stop or start one of the ends
		times = map[verdict]int{pass: 1, lose: 0, double: 2}[l.fault(n, e.fromTester, data)]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	peer := l.tester
	if e.fromTester {
		peer = l.device
	}
	passed := times > 0 && peer != nil
	if passed {
		select {
		case <-peer.done:
			passed = false
		default:
		}
	}
	l.log = append(l.log, pdu{e.fromTester, append([]byte(nil), data...), passed})
	for range times {
		if passed {
			peer.in <- append([]byte(nil), data...)
		}
	}
	return nil
}

// Receive implements uds.Conn.
func (e *end) Receive(ctx context.Context) ([]byte, error) {
	select {
	case b := <-e.in:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.done:
		return nil, can.ErrClosed
	}
}

// Close implements uds.Conn.
func (e *end) Close() error {
	e.once.Do(func() { close(e.done) })
	return nil
}

// sentAgain returns what of the file was sent again after its acknowledgement had got to
// the tester, in words. It follows 34 and 36: where a transfer goes on, and what each
// block of it brings.
func sentAgain(log []pdu) (again []string, blocks int) {
	type span struct{ begin, end int64 }
	var acked []span
	var next, address int64 // offset of the next new block; of the last 34
	var counter byte        // of the next new block
	var open *span          // block that waits for its answer
	started, download := false, false
	for _, p := range log {
		d := p.data
		switch {
		case p.fromTester && d[0] == byte(uds.RequestDownload):
			address = int64(d[3])<<24 | int64(d[4])<<16 | int64(d[5])<<8 | int64(d[6])
			download, open = true, nil
		case !p.fromTester && p.passed && d[0] == 0x74 && download:
			next, counter, started, download = address, 1, true, false
		case p.fromTester && d[0] == byte(uds.TransferData) && started:
			blocks++
			s := span{next, next + int64(len(d)-2)}
			if open != nil && d[1] != counter { // the same again
				s = *open
			} else {
				next, counter = s.end, counter+1
			}
			open = &s
			for _, a := range acked {
				if s.begin < a.end && a.begin < s.end {
					again = append(again, fmt.Sprintf("bytes %d to %d, of which %d to %d were acknowledged", s.begin, s.end, a.begin, a.end))
				}
			}
		case !p.fromTester && p.passed && d[0] == 0x76 && open != nil && d[1] == counter-1:
			acked, open = append(acked, *open), nil
		case p.fromTester && d[0] != byte(uds.TesterPresent):
			open = nil
		}
	}
	return again, blocks
}

// The checker itself must see what it is for.
func TestSentAgain(t *testing.T) {
	begin := func(at byte) []pdu {
		return []pdu{{true, []byte{0x34, 0, 0x44, 0, 0, 0, at, 0, 0, 0, 9}, true}, {false, []byte{0x74, 0x20, 0, 7}, true}}
	}
	block := func(n, length byte) pdu { return pdu{true, append([]byte{0x36, n}, make([]byte, length)...), true} }
	answer := func(n byte, passed bool) pdu { return pdu{false, []byte{0x76, n}, passed} }
	join := func(parts ...[]pdu) (all []pdu) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	for name, tt := range map[string]struct {
		log  []pdu
		want int
	}{
		"in order":            {join(begin(0), []pdu{block(1, 5), answer(1, true), block(2, 4), answer(2, true)}), 0},
		"answer lost":         {join(begin(0), []pdu{block(1, 5), answer(1, false), block(1, 5), answer(1, true), block(2, 4)}), 0},
		"resumed behind":      {join(begin(0), []pdu{block(1, 5), answer(1, true)}, begin(5), []pdu{block(1, 4)}), 0},
		"acknowledged, again": {join(begin(0), []pdu{block(1, 5), answer(1, true)}, begin(0), []pdu{block(1, 5)}), 1},
		"a part again":        {join(begin(0), []pdu{block(1, 5), answer(1, true)}, begin(4), []pdu{block(1, 5)}), 1},
		"same counter again":  {join(begin(0), []pdu{block(1, 5), answer(1, true), block(1, 5)}), 0}, // a new block with a wrong counter: refused, not written
	} {
		if got, _ := sentAgain(tt.log); len(got) != tt.want {
			t.Errorf("%s: got %q, want %d", name, got, tt.want)
		}
	}
}

func isLine(err error) bool { return errors.Is(err, push.ErrLine) }
