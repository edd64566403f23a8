package modbus

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/crash"
)

// line reads a serial line all the time, so that waiting for bytes can be given up
// without a deadline of the line's own, and what nobody waits for does not pile up in
// the system and come later.
type line struct {
	rwc   io.ReadWriteCloser
	ready chan struct{} // something is new: bytes, or the end

	mu   sync.Mutex
	buf  [4 * maxRTU]byte
	n    int
	last time.Time // when bytes came or went last
	err  error
}

func newLine(rwc io.ReadWriteCloser) *line {
	l := &line{rwc: rwc, ready: make(chan struct{}, 1), last: time.Now()}
	go l.pump()
	return l
}

// pump ends when the line does, which Close brings about.
func (l *line) pump() {
	defer (*crash.Log)(nil).Catch("read a serial line", func(err error) { l.close(err); l.put(nil, err) })
	var b [maxRTU]byte
	for {
		n, err := l.rwc.Read(b[:])
		l.put(b[:n], err)
		if err != nil {
			return
		}
	}
}

// put takes what was read.
func (l *line) put(b []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(b) > len(l.buf)-l.n {
		l.n = 0 // nobody has listened for four frames: this is noise
	}
	l.n += copy(l.buf[l.n:], b)
	if len(b) > 0 {
		l.last = time.Now()
	}
	if err != nil && l.err == nil {
		l.err = err
	}
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// take moves what has arrived into dst.
func (l *line) take(dst []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := copy(dst, l.buf[:l.n])
	l.n = copy(l.buf[:], l.buf[n:l.n])
	if n == 0 {
		return 0, l.err
	}
	return n, nil
}

// lastByte is when bytes came or went last.
func (l *line) lastByte() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// settle waits until nothing has come or gone for so long, counted from since at the
// earliest, and forgets what did. A line that is never quiet is an error after the time
// that limit gives.
func (l *line) settle(ctx context.Context, since time.Time, wait, limit time.Duration) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	begin := time.Now()
	for {
		from := l.lastByte()
		if from.Before(since) {
			from = since
		}
		left := wait - time.Since(from)
		if left <= 0 {
			var b [4 * maxRTU]byte
			_, err := l.take(b[:])
			return err
		}
		if time.Since(begin) > limit {
			return fmt.Errorf("wait for silence: something has been talking on the line for %v; look for a second master, a wrong speed or missing termination", limit)
		}
		timer.Reset(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// write sends a frame; one that does not get through breaks the line, which is closed,
// for nobody knows which half of it went.
func (l *line) write(ctx context.Context, frame []byte, limit time.Duration) error {
	frame = append([]byte(nil), frame...) // the line may hold on to it after we gave up
	done := make(chan error, 1)
	go func() {
		defer (*crash.Log)(nil).Catch("write to a serial line", func(err error) { done <- err })
		_, err := l.rwc.Write(frame)
		done <- err
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var err error
	select {
	case err = <-done:
		l.mu.Lock()
		l.last = time.Now()
		l.mu.Unlock()
		if err == nil {
			return nil
		}
	case <-timer.C:
		err = fmt.Errorf("the line takes no bytes: %d were not sent in %v", len(frame), limit)
	case <-ctx.Done():
		err = ctx.Err()
	}
	l.close(err)
	return err
}

// close closes the line and says why, unless something else did before.
func (l *line) close(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	l.rwc.Close()
}

func (l *line) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil
}
