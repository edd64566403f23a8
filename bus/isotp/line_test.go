package isotp

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// fate says what becomes of the frame with this number, from 0, that an end sends.
type fate func(n int, f can.Frame) verdict

type verdict int

const (
	arrives verdict = iota
	lost
	doubled
	late // comes after the next one, or after a while if there is none
)

// end is a fake: one end of a line that takes no time, with faults on request.
type end struct {
	other *end
	in    chan can.Frame
	done  chan struct{}
	close sync.Once

	mu     sync.Mutex
	fate   fate
	sent   int
	log    []can.Frame // what was sent
	held   []can.Frame
	stuck  chan struct{} // if not nil, Send waits for it
	errs   chan error    // what Receive is to return next
	refuse error         // what Send is to return
}

func line() (a, b *end) {
	a, b = newEnd(), newEnd()
	a.other, b.other = b, a
	return a, b
}

func newEnd() *end {
	return &end{in: make(chan can.Frame, 100_000), done: make(chan struct{}), errs: make(chan error, 100)}
}

func (e *end) Receive(ctx context.Context) (can.Frame, error) {
	select {
	case err := <-e.errs:
		return can.Frame{}, err
	default:
	}
	select {
	case f := <-e.in:
		return f, nil
	case err := <-e.errs:
		return can.Frame{}, err
	case <-ctx.Done():
		return can.Frame{}, ctx.Err()
	case <-e.done:
		return can.Frame{}, can.ErrClosed
	}
}

func (e *end) Send(ctx context.Context, f can.Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	e.mu.Lock()
	stuck, refuse := e.stuck, e.refuse
	e.mu.Unlock()
	if stuck != nil {
		select {
		case <-stuck:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if refuse != nil {
		return refuse
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.log = append(e.log, f)
	what := arrives
	if e.fate != nil {
		what = e.fate(e.sent, f)
	}
	e.sent++
	switch what {
	case lost:
		return nil
	case late:
		e.held = append(e.held, f)
		time.AfterFunc(10*time.Millisecond, func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.release()
		})
		return nil
	case doubled:
		e.other.in <- f
	}
	e.other.in <- f
	e.release()
	return nil
}

func (e *end) release() {
	for _, f := range e.held {
		e.other.in <- f
	}
	e.held = nil
}

func (e *end) Close() error {
	e.close.Do(func() { close(e.done) })
	return nil
}

// behave makes Send wait for stuck, if not nil, and then return refuse, if not nil.
func (e *end) behave(stuck chan struct{}, refuse error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stuck, e.refuse = stuck, refuse
}

// says makes the end send a frame as candump writes it.
func (e *end) says(t *testing.T, frames ...string) {
	t.Helper()
	for _, s := range frames {
		f, err := can.Parse(s)
		if err == nil {
			err = e.Send(t.Context(), f)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// hears takes the next frames from the line.
func (e *end) hears(t *testing.T, want ...string) {
	t.Helper()
	for _, want := range want {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		f, err := e.Receive(ctx)
		cancel()
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		if got := f.String(); got != want {
			t.Fatalf("got frame %s, want %s", got, want)
		}
	}
}

// silent checks that nothing else was sent.
func (e *end) silent(t *testing.T) {
	t.Helper()
	select {
	case f := <-e.in:
		t.Errorf("got frame %v, want none", f)
	default:
	}
}

// channel is one with a Mux of its own.
func channel(t *testing.T, bus can.Bus, a Address, c Config) *Channel {
	t.Helper()
	m := NewMux(bus)
	t.Cleanup(func() { m.Close() })
	conn, err := m.Open(a, c)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// pdu is of n bytes, none of which is where it would be in a mix of frames; it is another one for each seed.
func pdu(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed*31 + 1)
	}
	return b
}

// gets receives what it should.
func gets(t *testing.T, c Conn, want []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	got, err := c.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, % .20X.., want %d, % .20X..", len(got), got, len(want), want)
	}
}
