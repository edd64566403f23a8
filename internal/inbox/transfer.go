package inbox

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// inlineEnvelope is the greatest envelope, in bytes, that Put verifies before it
// returns; larger ones are verified in the background.
const inlineEnvelope = 512 << 10

// errClosed says that Close was called.
var errClosed = fmt.Errorf("the inbox is closed: %w", fs.ErrClosed)

// SetEnvelope gives the signed envelope of a Bare offer. It is verified at once and
// kept for Begin. Errors have the code of Verify or Judge, or are the disk's.
func (b *Inbox) SetEnvelope(signed []byte) error {
	m, err := b.judge(signed)
	if err != nil {
		return fmt.Errorf("take the manifest: %w", err)
	}
	b.op.Lock()
	defer b.op.Unlock()
	if b.closed {
		return errClosed
	}
	if bytes.Equal(signed, b.offered) {
		return nil
	}
	// Written without a sync: its signature says whether it is whole.
	f, err := b.cfg.FS.OpenFile(filepath.Join(b.cfg.Dir, envelopeName), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.WriteAt(signed, 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return diskError("keep the manifest", err)
	}
	b.offered, b.offeredM = bytes.Clone(signed), m
	return nil
}

// judge verifies an envelope, and asks whether the release is for this unit.
func (b *Inbox) judge(signed []byte) (*ota.Manifest, error) {
	m, err := b.cfg.Verify(signed)
	if err != nil {
		return nil, withCode(err, ota.ErrValidation)
	}
	if b.cfg.Judge != nil {
		if err := b.cfg.Judge(m); err != nil {
			return m, withCode(err, ota.ErrIncompatible)
		}
	}
	return m, nil
}

func withCode(err error, code ota.ErrorCode) error {
	if _, ok := errors.AsType[ota.ErrorCode](err); ok || errors.Is(err, ota.ErrNotNow) {
		return err
	}
	return coded(code, "%w", err)
}

// mends reports whether err may be gone by itself.
func mends(err error) bool {
	return errors.Is(err, ota.ErrNotNow) || errors.Is(err, ota.ErrConnectivity) || errors.Is(err, ota.ErrServer)
}

// Begin starts the transfer of o, or goes on with it if that is what is there, in
// whatever phase, with two exceptions: what Failed, or Ended otherwise than well, is begun
// anew. Anything else that is there is removed, unless the manager has it in hand
// ([ErrBusy]). resumed says whether it goes on.
//
// Offers are the same if size and SHA256 are; of Bare ones the envelope too, if another was
// set. A SHA256 of zeros says that the sender does not know it: then it is not compared
// at the end, and the hashes in the manifest decide alone.
//
// Errors: [ErrRange] for a size that nothing can have, [ota.ErrInsufficientSpace],
// [ota.ErrValidation] for a Bare offer whose size is not that of the manifest's images,
// [ErrEarly] for a Bare offer without an envelope.
func (b *Inbox) Begin(o Offer) (resumed bool, err error) {
	b.op.Lock()
	defer b.op.Unlock()
	if b.closed {
		return false, errClosed
	}
	if b.same(o) {
		return true, nil
	}
	if b.inHand() {
		return false, ErrBusy
	}
	if err := b.acceptable(o); err != nil {
		return false, fmt.Errorf("begin a transfer of %d bytes: %w", o.Size, err)
	}
	s := state{Format: 1, Phase: Opening, Size: o.Size, SHA256: o.SHA256, Bare: o.Bare, File: b.nextFile(), Last: b.s.Last}
	if o.Bare {
		s.Phase, s.Version, s.Digest = Receiving, b.offeredM.Version, b.offeredM.Digest
	}
	if err := b.begin(&s); err != nil {
		return false, fmt.Errorf("begin a transfer of %d bytes: %w", o.Size, err)
	}
	if !o.Bare {
		return false, nil
	}
	b.update(func() { b.holds(b.offered, b.offeredM); b.base = b.head })
	if err := b.take(0, head(b.signed)); err != nil {
		b.fail(err)
		return false, fmt.Errorf("begin a transfer of %d bytes: %w", o.Size, err)
	}
	return false, nil
}

// same reports whether o is what is there, and worth going on with.
func (b *Inbox) same(o Offer) bool {
	switch b.s.Phase {
	case Empty, Failed:
		return false
	case Ended:
		if b.s.Outcome.Result != ota.Succeeded {
			return false
		}
		return b.s.offer() == o && (!o.Bare || b.offeredM == nil || b.offeredM.Digest == b.s.Digest)
	}
	return b.s.offer() == o && (!o.Bare || b.offered == nil || bytes.Equal(b.offered, b.signed))
}

// inHand reports whether the manager has what is there in hand.
func (b *Inbox) inHand() bool {
	switch b.s.Phase {
	case Empty, Ended, Failed:
		return false
	}
	return b.s.Digest != "" && b.cfg.InHand != nil && b.cfg.InHand() == b.s.Digest
}

// acceptable returns why o cannot be received, or nil.
func (b *Inbox) acceptable(o Offer) error {
	need := o.Size
	switch {
	case o.Size < 1 || !o.Bare && o.Size <= int64(bundle.HeaderSize):
		return fmt.Errorf("%w: no release is that small", ErrRange)
	case o.Size > b.cfg.Max:
		return coded(ota.ErrInsufficientSpace, "at most %d bytes are received here", b.cfg.Max)
	case o.Bare && b.offered == nil:
		return ErrEarly
	case o.Bare && o.Size != b.offeredM.Size():
		return coded(ota.ErrValidation, "the manifest's images have %d", b.offeredM.Size())
	case o.Bare:
		if _, err := b.judge(b.offered); err != nil {
			return err
		}
		need += int64(bundle.HeaderSize + len(b.offered))
	}
	free, err := b.cfg.FS.Free(b.cfg.Dir)
	if err != nil {
		return diskError("look for space", err)
	}
	for _, g := range b.garbage {
		free += g.size
	}
	if b.data != nil {
		if size, err := b.data.Size(); err == nil {
			free += min(size, b.got.total) // what is a hole in the file occupies nothing
		}
	}
	if free < need+reserve {
		return coded(ota.ErrInsufficientSpace, "%d bytes are free for it in %s, want %d", free, b.cfg.Dir, need+reserve)
	}
	return nil
}

// begin makes s, in which no byte is there, what is there.
func (b *Inbox) begin(s *state) error {
	if err := b.write(cellBegin, s); err != nil {
		return err
	}
	b.discard()
	b.update(func() { b.s = *s })
	return nil
}

// discard forgets all bytes. Their file is removed later.
func (b *Inbox) discard() {
	if b.data != nil {
		b.garbage = append(b.garbage, rubbish{name: b.dataName(), size: b.got.total, f: b.data})
		b.data = nil
	}
	b.queue, b.checked, b.wrong = nil, nil, nil
	b.unsynced, b.hull, b.judgeAt, b.verifyAt = 0, span{}, time.Time{}, time.Time{}
	b.update(func() {
		b.gen++
		b.base, b.head, b.got, b.signed, b.m, b.lay, b.verified, b.err = 0, 0, set{}, nil, nil, nil, 0, nil
	})
	b.wake()
}

func (b *Inbox) dataName() string { return b.fileName(b.s.File) }

func (b *Inbox) fileName(n int64) string {
	return filepath.Join(b.cfg.Dir, dataPrefix+strconv.FormatInt(n, 10))
}

// nextFile returns the number of the next transfer's file: none that is there, so that
// a power cut cannot mix the bytes of two.
func (b *Inbox) nextFile() int64 {
	n := b.s.File
	if b.data != nil {
		n++
	}
	for slices.ContainsFunc(b.garbage, func(g rubbish) bool { return g.name == b.fileName(n) }) {
		n++
	}
	return n
}

// holds makes the release of a verified envelope that of the transfer.
func (b *Inbox) holds(signed []byte, m *ota.Manifest) {
	b.signed, b.m, b.lay = signed, m, newLayout(signed, m)
	b.head = b.lay.head
	b.s.Version, b.s.Digest = m.Version, m.Digest
	b.checked = make([]byte, b.lay.chunks)
	b.err = nil
}

// fail ends the transfer for ever.
func (b *Inbox) fail(err error) {
	b.cfg.Log.Error("a pushed release is refused", "version", b.s.Version, "error", err)
	s := b.s
	s.Phase, s.Asked, s.Code, s.Reason = Failed, false, int(ota.CodeOf(err)), err.Error()
	if len(s.Reason) > maxReason {
		s.Reason = s.Reason[:maxReason]
	}
	s.File = b.nextFile() // this one's is removed
	if werr := b.write(cellBegin, &s); werr != nil {
		b.cfg.Log.Error("cannot keep why a pushed release was refused", "error", werr)
	}
	b.discard()
	b.update(func() { b.s, b.err = s, err })
}

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
	b.op.Lock()
	defer b.op.Unlock()
	if err := b.put(offset, p); err != nil {
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
		b.drop(part)
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

// drop forgets bytes that are there, so that they are asked for again.
func (b *Inbox) drop(part span) {
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
	})
	b.wake()
}

// openEnvelope looks whether header and envelope are there, and verifies them. The
// error is why the transfer has failed.
func (b *Inbox) openEnvelope() error {
	if b.head == 0 && b.got.has(0, int64(bundle.HeaderSize)) {
		h := make([]byte, bundle.HeaderSize)
		if err := b.reread(h, 0); err != nil {
			return nil // it is asked for again
		}
		n, err := bundle.ParseHeader(h)
		if end := int64(bundle.HeaderSize + n); err == nil && end >= b.s.Size {
			err = coded(ota.ErrValidation, "the manifest ends at byte %d, and all that comes has %d: the file was cut", end, b.s.Size)
		}
		if err != nil {
			b.fail(err)
			return err
		}
		b.update(func() { b.head = int64(bundle.HeaderSize + n) })
	}
	if b.head == 0 || b.signed != nil || !b.got.has(0, b.head) {
		return nil
	}
	signed := make([]byte, b.head-int64(bundle.HeaderSize))
	if err := b.reread(signed, int64(bundle.HeaderSize)); err != nil {
		return nil
	}
	b.update(func() { b.signed = signed })
	if len(signed) > inlineEnvelope {
		b.judgeAt = time.Now()
		b.wake()
		return nil
	}
	m, err := b.judge(signed)
	return b.judged(m, err)
}

// reread reads bytes that are there. If that cannot be, they are forgotten.
func (b *Inbox) reread(p []byte, at int64) error {
	n, err := b.data.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	b.cfg.Log.Warn("what was received cannot be read, and is asked for again", "offset", at, "bytes", len(p), "error", err)
	b.drop(span{at, at + int64(len(p))})
	return err
}

// judged acts on what judge said of the envelope. The error is why the transfer has failed.
func (b *Inbox) judged(m *ota.Manifest, err error) error {
	if err != nil && mends(err) {
		b.judgeAt = time.Now().Add(judgePause)
		b.update(func() { b.err = err })
		b.wake()
		return nil
	}
	if err == nil {
		if want := b.head + m.Size(); want != b.base+b.s.Size {
			err = coded(ota.ErrValidation, "all that comes has %d bytes, and the bundle has %d: the file was cut, or something hangs on it", b.s.Size, want)
		}
	}
	if err != nil {
		if m != nil {
			b.update(func() { b.s.Version, b.s.Digest = m.Version, m.Digest })
		}
		b.fail(err)
		return err
	}
	b.accept(m)
	s := b.s
	if err := b.write(cellState, &s); err != nil { // then it is verified again after a restart
		b.cfg.Log.Warn("cannot keep that a pushed manifest holds", "error", err)
	}
	b.cfg.Log.Info("a release is being pushed", "version", m.Version, "digest", m.Digest, "bytes", b.s.Size)
	return nil
}

// accept lets the images of m come.
func (b *Inbox) accept(m *ota.Manifest) {
	b.judgeAt = time.Time{}
	b.update(func() {
		b.holds(b.signed, m)
		b.s.Phase = Receiving
		b.settle()
	})
	b.enqueue(b.head, b.base+b.s.Size)
}

// Has reports whether all bytes from offset on are there. Bytes that are not of what
// comes never are.
func (b *Inbox) Has(offset, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if offset < 0 || size < 0 || offset > b.s.Size || size > b.s.Size-offset {
		return false
	}
	return b.got.has(b.base+offset, b.base+offset+size)
}

// ReadAt reads what was received, for those who compare; bytes that are not there are
// zero. It implements [io.ReaderAt]. Behind the end of what comes it is [io.EOF].
func (b *Inbox) ReadAt(p []byte, offset int64) (int, error) {
	b.op.Lock()
	defer b.op.Unlock()
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

// Envelope returns the envelope that was verified, nil if none was: that of the
// transfer, or else that of SetEnvelope.
func (b *Inbox) Envelope() []byte {
	b.op.Lock()
	defer b.op.Unlock()
	if b.m != nil {
		return bytes.Clone(b.signed)
	}
	if b.s.Phase == Empty || b.s.Phase == Ended || b.s.Phase == Failed {
		return bytes.Clone(b.offered)
	}
	return nil
}

// Finish says that all was sent, and begins to verify it in the background: the phase is
// Verifying and then Verified, or Receiving if something turned out to be wrong on the disk, or
// Failed. Called again, it does nothing. [ErrMissing] says that pieces are missing.
func (b *Inbox) Finish() error {
	b.op.Lock()
	defer b.op.Unlock()
	switch b.s.Phase {
	case Empty:
		return ErrNone
	case Failed:
		return fmt.Errorf("%w: %w", ErrPhase, b.err)
	case Opening, Receiving:
		if b.closed {
			return errClosed
		}
		return fmt.Errorf("%w: %d of %d bytes are there", ErrMissing, max(b.got.total-b.base, 0), b.s.Size)
	case Received:
		if b.closed {
			return errClosed
		}
		return b.advance(Verifying, b.s.Asked)
	}
	return nil
}

// advance brings the transfer to a phase, and says so in the journal.
func (b *Inbox) advance(to Phase, asked bool) error {
	s := b.s
	s.Phase, s.Asked = to, asked
	if err := b.write(cellState, &s); err != nil {
		return err
	}
	b.update(func() { b.s, b.verified = s, 0 })
	return nil
}

// Request asks for the installation: from now on the manager is offered the release.
// Before the phase is Verified it is [ErrPhase]. Called again, it only wakes the manager.
func (b *Inbox) Request() error {
	b.op.Lock()
	defer b.op.Unlock()
	switch b.s.Phase {
	case Empty:
		return ErrNone
	case Verified:
		if b.closed {
			return errClosed
		}
		if err := b.advance(Requested, true); err != nil {
			return err
		}
		b.cfg.Log.Info("the installation of a pushed release is requested", "version", b.s.Version, "digest", b.s.Digest)
	case Requested:
	default:
		return fmt.Errorf("%w: it is %s", ErrPhase, b.s.Phase)
	}
	select {
	case b.woke <- struct{}{}:
	default:
	}
	return nil
}

// Drop gives up the transfer and frees its space, unless the manager has it in hand
// ([ErrBusy]). How an update ended stays.
func (b *Inbox) Drop() error {
	b.op.Lock()
	defer b.op.Unlock()
	switch {
	case b.closed:
		return errClosed
	case b.s.Phase == Empty || b.s.Phase == Ended:
		return nil
	case b.inHand():
		return ErrBusy
	}
	return b.begin(&state{Format: 1, Phase: Empty, File: b.nextFile(), Last: b.s.Last})
}
