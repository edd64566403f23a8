package can

import (
	"context"
	"sync"
	"time"
)

// queueLen is how many received frames wait for their reader: a quarter of a second
// of a full bus at 500 kbit/s.
const queueLen = 1024

// queue keeps frames between the goroutine that reads a link and those that call
// Receive. Whoever reads the link is never held up: the oldest frame is dropped,
// because the newest says more about the battery.
type queue struct {
	filters Filters

	mu     sync.Mutex
	frames []Frame
	err    error // of the link, after the frames; sticky
	once   error // reported once, in between
	echo   *echo
	stats  Stats
	wake   chan struct{} // closed and replaced when something is new
}

func newQueue(filters Filters, echoes bool) *queue {
	q := &queue{filters: filters, wake: make(chan struct{})}
	if echoes {
		q.echo = new(echo)
	}
	return q
}

func (q *queue) signal() {
	close(q.wake)
	q.wake = make(chan struct{})
}

func (q *queue) push(f Frame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Received++
	if q.echo != nil && q.echo.came(f, time.Now()) {
		q.stats.Echoes++
		return
	}
	if !q.filters.Match(f) {
		return
	}
	if len(q.frames) == queueLen {
		q.frames = q.frames[1:]
		q.stats.Lost++
	}
	q.frames = append(q.frames, f)
	q.signal()
}

// report makes one Receive return err, before the frames that wait.
func (q *queue) report(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.once = err
	q.signal()
}

// end makes Receive return err for ever, after the frames that wait. The first
// error stays.
func (q *queue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
		q.signal()
	}
}

func (q *queue) ended() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

func (q *queue) pop(ctx context.Context) (Frame, error) {
	for {
		q.mu.Lock()
		if err := q.once; err != nil {
			q.once = nil
			q.mu.Unlock()
			return Frame{}, err
		}
		if len(q.frames) > 0 {
			f := q.frames[0]
			q.frames = q.frames[1:]
			q.mu.Unlock()
			return f, nil
		}
		err, wake := q.err, q.wake
		q.mu.Unlock()
		if err != nil {
			return Frame{}, err
		}
		select {
		case <-ctx.Done():
			return Frame{}, ctx.Err()
		case <-wake:
		}
	}
}

// waiting reports whether pop has a frame.
func (q *queue) waiting() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.frames) > 0
}

// count changes the statistics.
func (q *queue) count(change func(*Stats)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	change(&q.stats)
}

func (q *queue) read() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stats
}

// sent remembers an own frame, so that its echo is known. It is called before the
// frame is written: the echo may be there before the write returns.
func (q *queue) sent(f Frame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Sent++
	if q.echo != nil {
		q.echo.add(f, time.Now())
	}
}

// echo knows the frames that were sent a moment ago.
type echo struct {
	own []ownFrame
}

type ownFrame struct {
	Frame
	until time.Time
}

// An echo comes within a round trip. After echoWithin the same frame is from
// somebody else.
const (
	echoWithin = time.Second
	echoMost   = 256
)

func (e *echo) add(f Frame, now time.Time) {
	if len(e.own) == echoMost {
		e.own = e.own[1:]
	}
	e.own = append(e.own, ownFrame{f, now.Add(echoWithin)})
}

func (e *echo) came(f Frame, now time.Time) bool {
	for i, own := range e.own {
		if own.Frame == f && now.Before(own.until) {
			e.own = append(e.own[:i], e.own[i+1:]...)
			return true
		}
	}
	return false
}

// defaultPace is in frames/s: a third of what a bus at 500 kbit/s can carry, so that
// the battery's own frames get through, and less than a buffer of an adapter holds.
const defaultPace = 1000

// pace spaces out what is sent on links where no controller does it.
type pace struct {
	gap time.Duration

	mu   sync.Mutex
	next time.Time
}

// newPace takes frames/s; 0 is defaultPace, negative no pace at all.
func newPace(perSecond int) *pace {
	if perSecond < 0 {
		return &pace{}
	}
	if perSecond == 0 {
		perSecond = defaultPace
	}
	return &pace{gap: time.Second / time.Duration(perSecond)}
}

// wait returns when it is this caller's turn.
func (p *pace) wait(ctx context.Context) error {
	if p.gap == 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	now := time.Now()
	turn := p.next
	if turn.Before(now) {
		turn = now
	}
	p.next = turn.Add(p.gap)
	p.mu.Unlock()
	if turn.Equal(now) {
		return ctx.Err()
	}
	timer := time.NewTimer(turn.Sub(now))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
