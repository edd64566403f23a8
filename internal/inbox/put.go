package inbox

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"syscall"
)

// Put takes the bytes of the transfer from offset on. The same bytes again are no
// error, in every phase in which they are there. It does not wait until they are on the
// medium. Of bytes that are only in part before [State.Until] that part may be
// taken although it returns [ErrEarly].
//
// The bytes that complete the envelope are verified before it returns, unless that is very
// large. If it does not hold, the error wraps [ErrPhase] and has the code of Verify or
// Judge; so has that of every later Put.
//
// Pieces in an order that leaves more than 65,536 gaps are [ErrRange].
func (b *Inbox) Put(offset int64, p []byte) error {
	err := b.change("take a piece of a pushed release", func() error { return b.put(offset, p) })
	if err != nil {
		return fmt.Errorf("take %d bytes at %d: %w", len(p), offset, err)
	}
	return nil
}

func (b *Inbox) put(offset int64, p []byte) error {
	switch {
	case b.closed:
		return errClosed
	case b.s.Phase == Empty:
		return ErrNone
	case b.s.Phase == Failed:
		return fmt.Errorf("%w: %w", ErrPhase, b.err)
	case b.s.Phase == Ended:
		return ErrPhase
	case offset < 0 || offset > b.s.Size || int64(len(p)) > b.s.Size-offset:
		return fmt.Errorf("%w: %d bytes", ErrRange, b.s.Size)
	}
	if b.m != nil && !b.got.has(0, b.head) { // the disk lost it, and it is at hand
		if err := b.take(0, head(b.signed)); err != nil {
			return err
		}
	}
	for at := b.base + offset; len(p) > 0; {
		until := b.until()
		if at >= until {
			return ErrEarly
		}
		n := min(int64(len(p)), until-at)
		if err := b.take(at, p[:n]); err != nil {
			return err
		}
		if b.s.Phase == Opening {
			if err := b.openEnvelope(); err != nil {
				return fmt.Errorf("%w: %w", ErrPhase, err)
			}
		}
		at, p = at+n, p[n:]
	}
	return nil
}

// take writes what is not there yet of the bytes of the spooled file from at on.
func (b *Inbox) take(at int64, p []byte) error {
	end := at + int64(len(p))
	if err := b.compare(at, p); err != nil {
		return err
	}
	if b.got.has(at, end) {
		return nil
	}
	if !b.got.room(at, end) {
		return fmt.Errorf("%w: there are %d gaps already, send the pieces in order", ErrRange, maxSpans)
	}
	if err := b.leaveRoom(end - at); err != nil {
		return b.spaceError(diskError("write to the spooled file", err))
	}
	if err := b.openData(); err != nil {
		return b.spaceError(diskError("make the spooled file", err))
	}
	err := b.got.within(at, end, func(gap span, there bool) error {
		if there {
			return nil
		}
		n, err := b.data.WriteAt(p[gap.from-at:gap.to-at], gap.from)
		if err == nil && int64(n) != gap.to-gap.from {
			err = io.ErrShortWrite
		}
		return err
	})
	if err == nil {
		err = b.record(b.cells(at, p))
	}
	if err != nil {
		return b.spaceError(diskError("write to the spooled file", err))
	}
	b.update(func() {
		b.got.add(at, end)
		b.settle()
	})
	b.hull = cover(b.hull, span{at, end})
	b.dirty(end - at)
	b.enqueue(at, end)
	return nil
}

// leaveRoom returns an error if n more bytes would take what the rest of the agent needs: it
// must be able to keep its record and its evidence whatever comes over a bus. What was free when
// the transfer began may be gone hours later, or be taken by the transfer on another bus.
func (b *Inbox) leaveRoom(n int64) error {
	if b.room < n {
		free, err := b.cfg.FS.Free(b.cfg.Dir)
		if err != nil {
			return err
		}
		if free < n+reserve/2 {
			return fmt.Errorf("%d bytes are free in %s, want %d after it: %w", free, b.cfg.Dir, reserve/2, syscall.ENOSPC)
		}
		b.room = max(n, min(free-reserve/2, roomStep))
	}
	b.room -= n
	return nil
}

// roomStep is how many bytes are written between two looks at what is free.
const roomStep = 1 << 20

// compare returns ErrConflict if other bytes than those of p are there. Bytes that
// cannot be read any more are forgotten, so that they are written again.
func (b *Inbox) compare(at int64, p []byte) error {
	var lost []span
	err := b.got.within(at, at+int64(len(p)), func(part span, there bool) error {
		if !there {
			return nil
		}
		want := p[part.from-at : part.to-at]
		got := make([]byte, len(want))
		if n, err := b.data.ReadAt(got, part.from); n < len(got) {
			b.cfg.Log.Warn("what was received cannot be read, and is taken again", "offset", part.from, "bytes", len(got), "error", err)
			lost = append(lost, part)
			return nil
		}
		if !bytes.Equal(got, want) {
			return ErrConflict
		}
		return nil
	})
	for _, part := range lost {
		b.drop(part, nil)
	}
	return err
}

// cells returns the journal's entries for the bytes from at on: one for each chunk, so
// that each can be forgotten alone.
func (b *Inbox) cells(at int64, p []byte) []byte {
	var out []byte
	for len(p) > 0 {
		n := int64(len(p))
		if b.lay != nil && at >= b.lay.head {
			n = min(n, b.lay.at(at).to-at)
		} else if b.lay != nil {
			n = min(n, b.lay.head-at)
		}
		out = appendCell(out, cellRange, crc32.ChecksumIEEE(p[:n]), at, n)
		at, p = at+n, p[n:]
	}
	return out
}

// openData opens the spooled file, which is made with the first bytes that come.
func (b *Inbox) openData() error {
	if b.data != nil {
		return nil
	}
	f, err := b.cfg.FS.OpenFile(b.dataName(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	b.data, b.names = f, true
	return nil
}

// spaceError says that a full disk will not stay full, if that is so.
func (b *Inbox) spaceError(err error) error {
	if len(b.garbage) > 0 && errors.Is(err, syscall.ENOSPC) {
		b.wake()
		return fmt.Errorf("%w: space is being freed", ErrEarly)
	}
	return err
}

// drop forgets bytes that are there, so that they are asked for again. State shows why, unless that is nil.
func (b *Inbox) drop(part span, why error) {
	var p []byte
	for at := part.from; at < part.to; at += maxWholeCell {
		p = appendCell(p, cellDrop, 0, at, min(part.to-at, maxWholeCell))
	}
	if err := b.record(p); err != nil {
		b.rewrite = true // or the bytes would be there again after a restart
	}
	b.changes++
	if b.lay != nil {
		for at := max(part.from, b.lay.head); at < part.to; {
			c := b.lay.at(at)
			b.checked[c.n] = unchecked
			at = c.to
		}
	}
	b.update(func() {
		b.got.remove(part.from, part.to)
		b.settle()
		if why != nil {
			b.err = why
		}
	})
	b.wake()
}

// Has reports whether all bytes from offset on are there. Bytes that are not of what
// comes never are.
func (b *Inbox) Has(offset, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil || offset < 0 || size < 0 || offset > b.s.Size || size > b.s.Size-offset {
		return false
	}
	return b.got.has(b.base+offset, b.base+offset+size)
}

// ReadAt reads what was received, for those who compare; bytes that are not there are
// zero. It implements [io.ReaderAt]. Behind the end of what comes it is [io.EOF].
func (b *Inbox) ReadAt(p []byte, offset int64) (n int, err error) {
	err = b.change("read what was received", func() error {
		n, err = b.readAt(p, offset)
		return err
	})
	return n, err
}

func (b *Inbox) readAt(p []byte, offset int64) (int, error) {
	size := b.s.Size
	switch b.s.Phase {
	case Empty, Ended, Failed:
		return 0, ErrNone
	}
	switch {
	case b.closed:
		return 0, errClosed
	case offset < 0:
		return 0, fmt.Errorf("read at %d: %w", offset, ErrRange)
	case offset >= size:
		return 0, io.EOF
	}
	n := min(int64(len(p)), size-offset)
	from := b.base + offset
	err := b.got.within(from, from+n, func(part span, there bool) error {
		q := p[part.from-from : part.to-from]
		if !there {
			clear(q)
			return nil
		}
		if k, err := b.data.ReadAt(q, part.from); k < len(q) {
			return diskError(fmt.Sprintf("read %d bytes at %d", len(q), part.from-b.base), err)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
