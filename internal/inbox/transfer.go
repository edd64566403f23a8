package inbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// errClosed says that Close was called.
var errClosed = fmt.Errorf("the inbox is closed: %w", fs.ErrClosed)

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
	err = b.change("begin a transfer", func() error {
		resumed, err = b.offers(o)
		return err
	})
	return resumed, err
}

func (b *Inbox) offers(o Offer) (resumed bool, err error) {
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
		s.Phase, s.Version, s.Digest, s.Images = Receiving, b.offeredM.Version, b.offeredM.Digest, len(b.offeredM.Images)
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
	err := b.write(cellBegin, s)
	if errors.Is(err, syscall.ENOSPC) && b.data != nil {
		// What is given up makes room for saying so. Should that fail all the same, what the old
		// journal says is not there any more: nothing has the CRC, or the hash, that it had.
		if terr := b.data.Truncate(0); terr != nil {
			return errors.Join(err, terr)
		}
		b.drop(span{0, b.base + b.s.Size}, nil)
		err = b.write(cellBegin, s)
	}
	if err != nil {
		return err
	}
	b.discard(*s, nil)
	return nil
}

// discard forgets all bytes, and makes s the state, at once: nobody sees the one without the
// other. Their file is removed later.
func (b *Inbox) discard(s state, err error) {
	if b.data != nil {
		b.garbage = append(b.garbage, rubbish{name: b.dataName(), size: b.got.total, f: b.data})
		b.data = nil
	}
	b.queue, b.checked, b.wrong = nil, nil, nil
	b.room, b.unsynced, b.hull, b.judgeAt, b.verifyAt = 0, 0, span{}, time.Time{}, time.Time{}
	b.update(func() {
		b.gen++
		b.base, b.head, b.got, b.signed, b.m, b.lay, b.verified = 0, 0, set{}, nil, nil, nil, 0
		b.s, b.err = s, err
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
	b.s.Version, b.s.Digest, b.s.Images = m.Version, m.Digest, len(m.Images)
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
	b.discard(s, err)
}

// Envelope returns the envelope that was verified, nil if none was: that of the
// transfer, or else that of SetEnvelope. It must not be changed. It is not copied: whoever may
// read it, in pieces of a few bytes, must not cost the memory of all of it each time.
func (b *Inbox) Envelope() (signed []byte) {
	b.inside("read the manifest", func() {
		switch {
		case b.m != nil:
			signed = b.signed
		case b.s.Phase == Empty || b.s.Phase == Ended || b.s.Phase == Failed:
			signed = b.offered
		}
	})
	return signed
}

// Finish says that all was sent, and begins to verify it in the background: the phase is
// Verifying and then Verified, or Receiving if something turned out to be wrong on the disk, or
// Failed. Called again, it does nothing. [ErrMissing] says that pieces are missing.
func (b *Inbox) Finish() error { return b.change("begin to verify", b.finish) }

func (b *Inbox) finish() error {
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
func (b *Inbox) Request() error { return b.change("ask for the installation", b.request) }

func (b *Inbox) request() error {
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
// ([ErrBusy]). How an update ended stays. What was asked to be installed is given up on the medium
// when Drop returns nil: no power cut brings back what somebody was told to be taken back.
func (b *Inbox) Drop() error { return b.drops("") }

// DropRelease is Drop if the transfer is that of the release with this digest, and [ErrNone] if another
// one has begun: it is for who has looked before, and not held on to anything since.
func (b *Inbox) DropRelease(digest string) error {
	if digest == "" {
		return ErrNone
	}
	return b.drops(digest)
}

// drops drops what is there, or only the release with the digest.
func (b *Inbox) drops(digest string) error {
	return b.change("give a transfer up", func() error { return b.dropNow(digest) })
}

func (b *Inbox) dropNow(digest string) error {
	switch {
	case b.closed:
		return errClosed
	case b.recalled, b.rewrite && (digest != "" || b.s.Asked): // what is on the medium may still ask for it
		b.wake()
		return diskError("give a transfer up", errRewritten)
	case digest != "" && b.s.Digest != digest:
		return ErrNone
	case b.s.Phase == Empty || b.s.Phase == Ended:
		return nil
	case b.inHand():
		return ErrBusy
	}
	asked := b.s.Asked
	if err := b.begin(&state{Format: 1, Phase: Empty, File: b.nextFile(), Last: b.s.Last}); err != nil || !asked {
		return err
	}
	err := b.syncJournal()
	b.recalled = err != nil
	return err
}
