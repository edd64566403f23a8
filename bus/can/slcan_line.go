package can

import (
	"context"
	"fmt"
	"io"
	"sync"
)

const (
	cr  = '\r'
	bel = '\a' // the adapter's no; it ends a line as CR does
)

// lineMost is in bytes: T, 8 digits, length, 16 digits of data, 4 of time, and some.
const lineMost = 40

// lines cuts a stream into lines, wherever reads have split it.
type lines struct {
	buf     [lineMost]byte
	n       int
	tooLong bool
	dropped uint64 // lines that were too long
}

// add takes a byte and reports whether it ended a line. The line is valid until the
// next call.
func (l *lines) add(b byte) ([]byte, bool) {
	switch {
	case b == cr || b == bel:
		line := l.buf[:l.n]
		tooLong := l.tooLong
		l.n, l.tooLong = 0, false
		if tooLong {
			l.dropped++
			return nil, b == bel // a no is a no, whatever stood before it
		}
		return line, true
	case b == '\n' && l.n == 0: // of terminals that end lines with both
	case l.n == lineMost:
		l.tooLong = true
	default:
		l.buf[l.n] = b
		l.n++
	}
	return nil, false
}

// parseLine reads tIIILDD.., TIIIIIIIILDD.., rIIIL and RIIIIIIIIL, with or without
// the four digits of an adapter's clock. It accepts nothing that is longer or shorter.
func parseLine(line []byte) (Frame, bool) {
	var f Frame
	if len(line) == 0 {
		return f, false
	}
	digits := 3
	switch line[0] {
	case 't':
	case 'r':
		f.Remote = true
	case 'T':
		f.Extended, digits = true, 8
	case 'R':
		f.Extended, f.Remote, digits = true, true, 8
	default:
		return Frame{}, false
	}
	rest := line[1:]
	if len(rest) < digits+1 {
		return Frame{}, false
	}
	for _, c := range rest[:digits] {
		n, ok := unhex(c)
		if !ok {
			return Frame{}, false
		}
		f.ID = f.ID<<4 | uint32(n)
	}
	length, ok := unhex(rest[digits])
	if !ok || length > MaxLen {
		return Frame{}, false
	}
	f.Len, rest = length, rest[digits+1:]
	want := 2 * int(length)
	if f.Remote {
		want = 0
	}
	if len(rest) != want && len(rest) != want+4 {
		return Frame{}, false
	}
	for i, c := range rest {
		n, ok := unhex(c)
		if !ok {
			return Frame{}, false
		}
		if i < want {
			f.Data[i/2] = f.Data[i/2]<<4 | n
		}
	}
	return f, f.Validate() == nil
}

// appendLine writes a valid frame, with CR.
func appendLine(b []byte, f Frame) []byte {
	switch {
	case f.Extended && f.Remote:
		b = fmt.Appendf(b, "R%08X%d", f.ID, f.Len)
	case f.Extended:
		b = fmt.Appendf(b, "T%08X%d%X", f.ID, f.Len, f.Data[:f.Len])
	case f.Remote:
		b = fmt.Appendf(b, "r%03X%d", f.ID, f.Len)
	default:
		b = fmt.Appendf(b, "t%03X%d%X", f.ID, f.Len, f.Data[:f.Len])
	}
	return append(b, cr)
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// writer lets a context end the wait for a write that cannot be interrupted: serial
// ports have no deadlines. What was begun is still written in one piece.
type writer struct {
	jobs  chan job
	done  chan struct{}
	close func()
}

type job struct {
	b   []byte
	err chan error
}

func newWriter(w io.Writer) *writer {
	t := &writer{jobs: make(chan job), done: make(chan struct{})}
	t.close = sync.OnceFunc(func() { close(t.done) })
	go func() {
		for {
			select {
			case j := <-t.jobs:
				j.err <- writeOne(w, j.b)
			case <-t.done:
				return
			}
		}
	}()
	return t
}

func writeOne(w io.Writer, b []byte) (err error) {
	defer crashes.Load().Catch("write to a CAN adapter", func(e error) { err = e })
	_, err = w.Write(b)
	return err
}

func (t *writer) do(ctx context.Context, b []byte) error {
	j := job{b, make(chan error, 1)}
	select {
	case t.jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.done:
		return ErrClosed
	}
	select {
	case err := <-j.err:
		if err != nil {
			return fmt.Errorf("write to the CAN adapter: %w: %w", ErrDown, err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.done:
		return ErrClosed
	}
}
