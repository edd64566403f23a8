package overcan_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
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
// the tester, in words, and how many blocks were sent.
func sentAgain(log []pdu) (again []string, blocks int) {
	records := make([]bustest.Record, len(log)) // in the order in which the tester saw them
	for i, p := range log {
		records[i] = bustest.Record{From: map[bool]string{true: "tester", false: "device"}[p.fromTester], Data: p.data}
		if !p.passed {
			records[i].Verdict = bustest.Lose
		}
	}
	_, blocks, again = bustest.AgainUDS(records, "tester", 0)
	return again, blocks
}

func isLine(err error) bool { return errors.Is(err, push.ErrLine) }
