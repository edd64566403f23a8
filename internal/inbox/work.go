package inbox

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

const (
	syncBytes  = 1 << 20          // bytes between syncs
	syncAfter  = 5 * time.Second  // time between syncs
	judgePause = 5 * time.Second  // between two questions whether a release fits
	diskPause  = 10 * time.Second // after something that the disk did not do
	maxWrong   = 3                // times that a chunk may have another hash
	readStep   = 1 << 20          // bytes read at once where nothing else says
)

// What is known of a chunk.
const (
	unchecked byte = iota
	queued
	rightChunk
)

// run does what takes long, until Close.
func (b *Inbox) run() {
	defer close(b.done)
	for {
		var due <-chan time.Time // not collected before it is due, which is 10 s at most
		if wait := b.work(); wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-b.kick:
		case <-due:
		case <-b.quit:
			b.step(b.sync)
			return
		}
	}
}

func (b *Inbox) stopped() bool {
	select {
	case <-b.quit:
		return true
	default:
		return false
	}
}

// work does all that is due, and returns how long it can wait: 0 until it is called.
func (b *Inbox) work() time.Duration {
	for !b.stopped() {
		var todo func()
		var wait time.Duration
		b.inside("look for what is due", func() { todo, wait = b.next(time.Now()) })
		if todo == nil {
			return wait
		}
		b.step(todo)
	}
	return 0
}

// next returns what is due, or when something will be.
func (b *Inbox) next(now time.Time) (todo func(), wait time.Duration) {
	due := func(at time.Time) bool {
		if d := at.Sub(now); d > 0 {
			if wait == 0 || d < wait {
				wait = d
			}
			return false
		}
		return true
	}
	switch {
	case !b.judgeAt.IsZero() && due(b.judgeAt):
		return b.judgeAgain, 0
	case !b.since.IsZero() && (b.urgent || b.unsynced >= syncBytes || due(b.since.Add(syncAfter))) && due(b.syncPause):
		return b.sync, 0
	case len(b.queue) > 0:
		return b.check, 0
	case b.rewrite && due(b.rewriteAt), b.journalSize > b.compactAt && due(b.rewriteAt):
		return b.compact, 0
	case len(b.garbage) > 0 && b.garbage[0].safe && due(b.garbageAt):
		return b.sweep, 0
	case b.s.Phase == Verifying && due(b.verifyAt):
		return b.verify, 0
	}
	return nil, wait
}

// dirty notes that n bytes, or the journal alone, are not synced.
func (b *Inbox) dirty(n int64) {
	first := b.since.IsZero()
	if first {
		b.since = time.Now()
	}
	b.unsynced += n
	if first || b.unsynced >= syncBytes {
		b.wake()
	}
}

func cover(a, b span) span {
	if a.from == a.to {
		return b
	}
	return span{min(a.from, b.from), max(a.to, b.to)}
}

// judgeAgain verifies an envelope that Put did not.
func (b *Inbox) judgeAgain() {
	var gen int
	var signed []byte
	b.inside("look for a manifest", func() { gen, signed = b.gen, b.signed })
	m, err := b.judge(signed)
	b.inside("take a manifest", func() {
		if b.gen == gen && b.s.Phase == Opening {
			_ = b.judged(m, err) // it is in State
		}
	})
}

// sync brings to the medium first the bytes and then what the journal says of them.
func (b *Inbox) sync() {
	var data, journal durable.File
	var gen, garbage int
	var hull span
	due, names := false, false
	b.inside("look for what is to be synced", func() {
		if due = !b.since.IsZero(); !due {
			return
		}
		data, journal, gen, hull, names, garbage = b.data, b.journal, b.gen, b.hull, b.names, len(b.garbage)
		b.since, b.unsynced, b.hull, b.urgent, b.names = time.Time{}, 0, span{}, false, false
	})
	if !due {
		return
	}
	var dataErr, err error
	if data != nil && hull.from < hull.to {
		dataErr = data.Sync()
	}
	if journal != nil {
		err = journal.Sync()
	}
	if err == nil && names {
		err = b.cfg.FS.SyncDir(b.cfg.Dir)
	}
	b.inside("note what was synced", func() {
		if err == nil && journal == b.journal {
			b.journalSize = roundUp(b.journalSize)
		}
		if err == nil && !b.rewrite {
			for i := range b.garbage[:garbage] {
				b.garbage[i].safe = true
			}
			b.recalled = false // the name of a journal that was written anew is on the medium, too
		}
		if dataErr == nil && err == nil {
			return
		}
		b.syncPause = time.Now().Add(diskPause)
		b.cfg.Log.Error("what was received cannot be synced", "error", errors.Join(dataErr, err))
		if err != nil {
			b.rewrite, b.names = true, b.names || names
		}
		if b.gen != gen {
			return
		}
		if dataErr != nil { // nobody knows what of it is on the medium, and a second sync would not tell
			b.drop(hull, diskError("sync what was received", dataErr))
		}
	})
}

// enqueue has the chunks that are whole between two offsets compared with their hashes.
func (b *Inbox) enqueue(from, to int64) {
	if b.lay == nil {
		return
	}
	for at := max(from, b.lay.head); at < to; {
		c := b.lay.at(at)
		if b.checked[c.n] == unchecked && b.got.has(c.from, c.to) {
			b.checked[c.n] = queued
			b.queue = append(b.queue, c.n)
			b.wake()
		}
		at = c.to
	}
}

// check compares the next chunk with its hash in the manifest.
func (b *Inbox) check() {
	var c chunk
	var gen int
	var data durable.File // nil: there is nothing to compare
	b.inside("look for the next chunk", func() {
		if len(b.queue) == 0 {
			return
		}
		n := b.queue[0]
		b.queue = b.queue[1:]
		if b.checked[n] == queued {
			c, gen, data = b.lay.chunk(n), b.gen, b.data
		}
	})
	if data == nil {
		return
	}
	buf := make([]byte, c.to-c.from)
	k, err := data.ReadAt(buf, c.from)
	if k == len(buf) {
		err = nil
	} else if err == nil {
		err = io.ErrUnexpectedEOF
	}
	b.inside("take a chunk", func() {
		switch {
		case b.gen != gen || b.checked[c.n] != queued || !b.got.has(c.from, c.to):
		case err == nil && ota.Hash(sha256.Sum256(buf)) == c.want:
			b.checked[c.n] = rightChunk
		default:
			b.reject(c, err)
		}
	})
}

// reject forgets a chunk that is not what the manifest says, so that it is asked for
// again. After maxWrong times the transfer has failed: these bytes will never be right.
func (b *Inbox) reject(c chunk, err error) {
	where := fmt.Sprintf("chunk %d of image %s (bytes %d to %d of what comes)", b.ordinal(c), c.im.Component, c.from-b.base, c.to-b.base-1)
	switch {
	case err != nil:
		err = diskError("read "+where, err)
	default:
		err = coded(ota.ErrValidation, "%s has another SHA-256 than the manifest says", where)
		if b.wrong == nil {
			b.wrong = map[int]int{}
		}
		b.wrong[c.n]++
	}
	if b.wrong[c.n] >= maxWrong {
		b.fail(coded(ota.ErrValidation, "%w, for the %dth time", err, b.wrong[c.n]))
		return
	}
	b.cfg.Log.Warn("a part of a pushed release is wrong, and asked for again", "error", err)
	b.drop(span{c.from, c.to}, err)
}

// ordinal returns which chunk of its image c is, from 1 on.
func (b *Inbox) ordinal(c chunk) int {
	n := c.n + 1
	for _, p := range b.lay.images {
		if p.im == c.im {
			n -= p.first
		}
	}
	return n
}

// sweep removes a file that nobody needs any more.
func (b *Inbox) sweep() {
	var g rubbish
	ok := b.inside("look for what is of no use", func() {
		g = b.garbage[0] // only this goroutine takes something out
		b.garbage[0].f = nil
	})
	if !ok {
		return
	}
	if g.f != nil {
		_ = g.f.Close() // its content is of no use
	}
	err := b.cfg.FS.Remove(g.name)
	b.inside("note what was removed", func() {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.garbageAt = time.Now().Add(diskPause)
			b.cfg.Log.Warn("what is of no use any more cannot be removed", "error", err)
			return
		}
		b.garbage = slices.Clone(b.garbage[1:])
		b.update(func() {}) // who waits for space looks again
	})
}

// compact writes the journal anew, beside the old one.
func (b *Inbox) compact() {
	var changes int
	var size int64
	var snap *snapshot // nil: there is nothing to write
	b.inside("look at the journal", func() {
		if b.journal == nil {
			b.rewrite = false
			return
		}
		b.journalSize = roundUp(b.journalSize)
		changes, size = b.changes, b.journalSize
		snap = &snapshot{s: b.s, spans: slices.Clone(b.got.spans), lay: b.lay, checked: slices.Clone(b.checked), data: b.data}
	})
	if snap == nil {
		return
	}
	p, err := snap.journal()
	var f durable.File
	if err == nil {
		f, err = b.writeNew(p)
	}
	b.inside("take a new journal", func() {
		if err == nil && b.changes != changes { // it says what is no longer so
			err = errChanged
		}
		if err == nil {
			// What came in the meantime. It is synced with what comes next.
			tail := make([]byte, b.journalSize-size)
			var n int
			if n, err = b.journal.ReadAt(tail, size); n == len(tail) {
				_, err = f.WriteAt(tail, int64(len(p)))
			}
			p = append(p, tail...)
		}
		if err == nil {
			err = b.cfg.FS.Rename(filepath.Join(b.cfg.Dir, journalNew), filepath.Join(b.cfg.Dir, journalName))
		}
		if err != nil {
			if f != nil {
				_ = f.Close() // it is of no use
			}
			if !errors.Is(err, errChanged) {
				b.rewriteAt = time.Now().Add(diskPause)
				b.cfg.Log.Warn("the journal cannot be written anew", "error", err)
			}
			return
		}
		_ = b.journal.Close() // the new one has all that it has
		b.journal, b.journalSize, b.compactAt = f, int64(len(p)), 2*int64(len(p))+compactAfter
		b.frozen, b.rewrite, b.urgent, b.names = false, false, true, true
		b.dirty(0)
	})
}

var errChanged = errors.New("the state has changed")

// writeNew writes and syncs the file that is to be the journal.
func (b *Inbox) writeNew(p []byte) (durable.File, error) {
	name := filepath.Join(b.cfg.Dir, journalNew)
	if err := b.cfg.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := b.cfg.FS.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.WriteAt(p, 0); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// A snapshot is what a new journal says.
type snapshot struct {
	s       state
	spans   []span
	lay     *layout
	checked []byte
	data    durable.File
}

// journal returns the shortest journal.
func (s *snapshot) journal() ([]byte, error) {
	p, err := encodeState(cellBegin, &s.s)
	if err != nil {
		return nil, err
	}
	var whole span
	flush := func() {
		for at := whole.from; at < whole.to; at += maxWholeCell {
			p = appendCell(p, cellWhole, 0, at, min(whole.to-at, maxWholeCell))
		}
		whole = span{}
	}
	buf := make([]byte, 0, readStep)
	for _, x := range s.spans {
		for at := x.from; at < x.to; {
			end := min(x.to, at+readStep)
			if s.lay != nil && at < s.lay.head {
				end = min(end, s.lay.head)
			} else if s.lay != nil {
				c := s.lay.at(at)
				end = min(x.to, c.to)
				if s.checked[c.n] == rightChunk && at == c.from && end == c.to {
					if whole.to != at {
						flush()
						whole = span{at, at}
					}
					whole.to, at = end, end
					continue
				}
			}
			flush()
			part := buf[:end-at]
			if n, err := s.data.ReadAt(part, at); n < len(part) {
				return nil, errors.Join(fmt.Errorf("read %d bytes at %d", len(part), at), err)
			}
			p = appendCell(p, cellRange, crc32.ChecksumIEEE(part), at, end-at)
			at = end
		}
	}
	flush()
	return append(p, make([]byte, roundUp(int64(len(p)))-int64(len(p)))...), nil
}
