package inbox

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

// errStopped says that a verification is of no use any more.
var errStopped = errors.New("the transfer was given up")

// verify reads all of the file from the medium, and compares it with the manifest and
// the offer. What is wrong is asked for again.
func (b *Inbox) verify() {
	b.sync()
	var gen int
	var name string
	var lay *layout
	var signed []byte
	var offer Offer
	ok := b.inside("look at what is to be verified", func() { gen, name, lay, signed, offer = b.gen, b.dataName(), b.lay, b.signed, b.s.offer() })
	switch {
	case !ok:
		return
	case lay == nil:
		b.holdsAgain(gen, signed)
		return
	}
	v := &verification{b: b, gen: gen, lay: lay, signed: signed, bare: offer.Bare}
	err := v.run(name)
	b.inside("take what the verification said", func() {
		if b.gen != gen || b.s.Phase != Verifying || errors.Is(err, errStopped) {
			return
		}
		switch want := offer.SHA256; {
		case err != nil && ota.CodeOf(err) == ota.ErrValidation:
			b.fail(err)
		case err != nil:
			b.later(err)
		case !b.full() || v.bad > 0:
			why := b.err
			if err := b.advance(Receiving, b.s.Asked); err != nil {
				b.later(err)
				return
			}
			b.update(func() { b.err = why; b.settle() })
		case want != (ota.Hash{}) && v.stream != want:
			b.fail(coded(ota.ErrValidation, "all that came is what the manifest says, but has SHA-256 %s, and the offer said %s: send the hash of what is sent", v.stream, want))
		default:
			b.proven(gen)
		}
	})
}

// holdsAgain verifies the manifest of a release that was verified by an earlier life of the process.
func (b *Inbox) holdsAgain(gen int, signed []byte) {
	m, err := b.judge(signed)
	b.inside("take a manifest", func() {
		switch {
		case b.gen != gen || b.s.Phase != Verifying:
		case err != nil && mends(err):
			b.later(err)
		case err != nil:
			b.fail(err)
		default:
			b.update(func() { b.holds(signed, m) })
		}
	})
}

// later tries to verify again in a while.
func (b *Inbox) later(err error) {
	b.verifyAt = time.Now().Add(diskPause)
	b.update(func() { b.err = err })
	b.wake()
}

// proven says, for good, that the release is what was signed. It unlocks op while it syncs.
func (b *Inbox) proven(gen int) {
	s := b.s
	s.Phase = Verified
	if s.Asked {
		s.Phase = Requested
	}
	err := b.write(cellState, &s)
	if err == nil {
		err = b.unlocked(b.journal.Sync)
		if b.gen != gen || b.s.Phase != Verifying {
			return
		}
		if err != nil {
			b.rewrite = true
			err = diskError("sync the journal", err)
		}
	}
	if err != nil {
		b.later(err)
		return
	}
	s.Last = b.s.Last // the manager may have reported another release
	b.update(func() { b.s, b.verified, b.err = s, 0, nil })
	b.cfg.Log.Info("a pushed release is whole, and what was signed", "version", s.Version, "digest", s.Digest)
	if s.Phase == Requested {
		select {
		case b.woke <- struct{}{}:
		default:
		}
	}
}

// unlocked does what takes long without op, which is held before and after.
func (b *Inbox) unlocked(f func() error) error {
	b.op.Unlock()
	defer b.op.Lock()
	return f()
}

// A verification reads a spooled file once.
type verification struct {
	b      *Inbox
	gen    int
	lay    *layout
	signed []byte
	bare   bool
	stream ota.Hash // of all that came
	bad    int      // chunks
}

// run returns an error that has the code ErrValidation if the release will never be right.
func (v *verification) run(name string) error {
	f, err := v.b.cfg.FS.OpenFile(name, os.O_RDONLY|durable.Direct, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return v.gone(err)
	}
	if err != nil {
		return diskError("verify what was received", err)
	}
	defer f.Close() // only read: nothing can be lost
	sum := sha256.New()
	if err := v.envelope(f, sum); err != nil {
		return err
	}
	for i := range v.lay.images {
		if err := v.image(f, &v.lay.images[i], sum); err != nil {
			return err
		}
	}
	sum.Sum(v.stream[:0])
	return nil
}

// gone asks for everything again, except the envelope of a Bare transfer.
func (v *verification) gone(err error) error {
	b := v.b
	return b.change("ask for everything again", func() error {
		if b.gen != v.gen {
			return errStopped
		}
		b.cfg.Log.Error("what was received is gone from the disk, and is asked for again", "error", err)
		if b.data != nil {
			_ = b.data.Close() // nothing in it has a name any more
			b.data = nil
		}
		b.drop(span{0, b.base + b.s.Size}, diskError("verify what was received", err))
		if err := b.take(0, head(b.signed)); err != nil {
			return err
		}
		v.bad++
		return nil
	})
}

// envelope compares what comes before the images with what was verified. If that has
// rotted, it is written again: it is at hand.
func (v *verification) envelope(f durable.File, sum hash.Hash) error {
	want := head(v.signed)
	if !v.bare {
		sum.Write(want)
	}
	got := make([]byte, len(want))
	n, err := f.ReadAt(got, 0)
	b := v.b
	return b.change("compare the manifest", func() error {
		if b.gen != v.gen {
			return errStopped
		}
		if n < len(got) || !bytes.Equal(got, want) || !b.got.has(0, b.lay.head) {
			b.cfg.Log.Warn("the manifest has rotted on the disk, and is written again", "error", err)
			b.drop(span{0, int64(len(want))}, nil)
			if err := b.take(0, want); err != nil {
				return err
			}
			return diskError("verify the manifest on the disk", errors.New("it was not what was received, and is written again"))
		}
		return nil
	})
}

// image compares all chunks of an image, and asks for those again that are wrong.
func (v *verification) image(f durable.File, p *place, sum hash.Hash) error {
	whole := sha256.New()
	buf := make([]byte, min(p.im.ChunkSize, p.im.Size))
	before := v.bad
	for k := range p.im.Chunks {
		if v.b.stopped() {
			return errStopped
		}
		c := v.lay.of(*p, k)
		part := buf[:c.to-c.from]
		n, err := f.ReadAt(part, c.from)
		if n == len(part) {
			err = nil
		} else if err == nil {
			err = io.ErrUnexpectedEOF
		}
		if err == nil {
			whole.Write(part)
			sum.Write(part)
		}
		if err := v.chunk(c, part, err); err != nil {
			return err
		}
	}
	if got := ota.Hash(whole.Sum(nil)); v.bad == before && got != p.im.SHA256 {
		return coded(ota.ErrValidation, "image %s has the chunks that the manifest says, but SHA-256 %s, and not %s: sign it anew", p.im.Component, got, p.im.SHA256)
	}
	return nil
}

func (v *verification) chunk(c chunk, part []byte, err error) error {
	ok := err == nil && ota.Hash(sha256.Sum256(part)) == c.want
	b := v.b
	return b.change("compare a chunk", func() error {
		if b.gen != v.gen || b.s.Phase != Verifying {
			return errStopped
		}
		if ok {
			b.mu.Lock() // not a change worth waking anybody for each chunk
			b.verified = c.to - b.base
			b.mu.Unlock()
			return nil
		}
		v.bad++
		if !b.got.has(c.from, c.to) { // it was found already
			return nil
		}
		b.reject(c, err)
		if b.gen != v.gen {
			return errStopped
		}
		return nil
	})
}

// sized says of a file that is too short what it is.
func sized(f durable.File, want int64) error {
	size, err := f.Size()
	if err == nil && size < want {
		err = fmt.Errorf("it has %d bytes, want %d: %w", size, want, io.ErrUnexpectedEOF)
	}
	return err
}
