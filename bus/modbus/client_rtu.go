package modbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// rtuLink is a serial line with units on it, of which one is asked at a time.
type rtuLink struct {
	config Config
	turn   chan struct{} // one place
	closed chan struct{}
	frames framer        // guarded by turn
	wait   time.Duration // silence before the next request, and
	since  time.Time     // from when on; guarded by turn

	mu   sync.Mutex
	line *line // nil: none yet
}

func newRTU(rwc io.ReadWriteCloser, c Config) *rtuLink {
	r := &rtuLink{config: c, turn: make(chan struct{}, 1), closed: make(chan struct{})}
	r.frames.lengths = func(b []byte) (int, int) { return rtuAnswer(b), unknown }
	if rwc != nil {
		r.line = newLine(rwc)
	}
	return r
}

func (r *rtuLink) broadcasts() bool { return true }
func (r *rtuLink) heard() uint64    { return 0 }
func (r *rtuLink) silent(uint64)    {} // the line is fine: it is the unit that is not there

func (r *rtuLink) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.closed:
		return
	default:
	}
	close(r.closed)
	if r.line != nil {
		r.line.close(ErrClosed)
	}
}

func (r *rtuLink) open(ctx context.Context) (*line, error) {
	r.mu.Lock()
	l := r.line
	r.mu.Unlock()
	if l != nil && !l.broken() {
		return l, nil
	}
	select {
	case <-r.closed:
		return nil, ErrClosed
	default:
	}
	if r.config.Redial == nil {
		if l != nil {
			return nil, fmt.Errorf("%w: the line broke: %w", errNoWay, l.err)
		}
		return nil, fmt.Errorf("%w, and no way to open a line: set Config.Redial", errNoWay)
	}
	rwc, err := redial(ctx, r.config, r.closed)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.closed:
		rwc.Close()
		return nil, ErrClosed
	default:
	}
	r.line = newLine(rwc)
	return r.line, nil
}

func (r *rtuLink) exchange(ctx context.Context, c *call) error {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return ctx.Err()
	case <-r.closed:
		return ErrClosed
	}
	l, err := r.open(ctx)
	if err != nil {
		return err
	}
	if err := l.settle(ctx, r.since, max(r.wait, silence(r.config.Baud)), r.config.Timeout+r.wait); err != nil {
		return err
	}
	defer func() { r.since = time.Now() }()
	var b [maxRTU]byte
	request := AppendRTU(b[:0], c.unit, c.request)
	onWire := charTime(r.config.Baud) * time.Duration(len(request))
	c.sent = true
	if err := l.write(ctx, request, r.config.Timeout+onWire); err != nil {
		return err
	}
	r.wait = onWire + r.config.Turnaround
	if c.unit == 0 {
		if r.config.Echo {
			return r.hear(ctx, l, request, nil, onWire+r.config.Timeout)
		}
		return nil
	}
	limit := r.config.Timeout + onWire + charTime(r.config.Baud)*maxRTU
	if !r.config.Echo {
		request = nil
	}
	if err := r.hear(ctx, l, request, c, limit); err != nil {
		return err
	}
	r.wait = 0
	return nil
}

// hear waits for the echo of a request, if any, and then for the answer, if c is given.
// What is on the line beside that is passed over.
func (r *rtuLink) hear(ctx context.Context, l *line, echo []byte, c *call, limit time.Duration) error {
	r.frames.reset()
	end := time.Now().Add(limit)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	unfit := error(nil)
	for {
		var b [maxRTU]byte
		n, err := l.take(b[:])
		if err != nil {
			return err
		}
		rest := b[:n]
		for len(echo) > 0 && len(rest) > 0 {
			if echo[0] != rest[0] {
				return fmt.Errorf("%w: the echo is not what was sent: got %#02x, want %#02x; two are talking, or the adapter does not echo", ErrNoAnswer, rest[0], echo[0])
			}
			echo, rest = echo[1:], rest[1:]
		}
		if len(echo) == 0 && c == nil {
			return nil
		}
		r.frames.put(rest)
		silent := time.Since(l.lastByte()) >= quiet
		for frame := r.frames.next(silent); frame != nil; frame = r.frames.next(silent) {
			if frame[0] != c.unit || Function(frame[1])&^failed != Function(c.request[0]) {
				continue // another unit's, or late
			}
			c.size = copy(c.answer[:], frame[1:])
			_, err := ParseAnswer(c.request, c.answer[:c.size])
			if !errors.Is(err, ErrAnswer) {
				return nil
			}
			unfit = err // perhaps it is only late
		}
		if n > 0 {
			continue
		}
		now := time.Now()
		if !now.Before(end) {
			if unfit != nil {
				return unfit
			}
			return fmt.Errorf("%w in %v", ErrNoAnswer, limit)
		}
		next := end
		if r.frames.n > 0 && !silent {
			if t := l.lastByte().Add(quiet); t.Before(next) {
				next = t
			}
		}
		timer.Reset(next.Sub(now))
		select {
		case <-l.ready:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
