package inbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// inlineEnvelope is the greatest envelope, in bytes, that Put verifies before it
// returns; larger ones are verified in the background.
const inlineEnvelope = 512 << 10

// SetEnvelope gives the signed envelope of a Bare offer. It is verified at once and
// kept for Begin. Errors have the code of Verify or Judge, or are the disk's.
func (b *Inbox) SetEnvelope(signed []byte) error {
	m, err := b.judge(signed)
	if err != nil {
		return fmt.Errorf("take the manifest: %w", err)
	}
	return b.change("take a manifest", func() error { return b.setEnvelope(signed, m) })
}

func (b *Inbox) setEnvelope(signed []byte, m *ota.Manifest) error {
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
	b.drop(span{at, at + int64(len(p))}, nil)
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
