package inbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

// Latest implements [ota.Source]: the release after Request, otherwise
// [ota.ErrNoUpdate]. It is verified once more, because keys and unit may have changed.
func (b *Inbox) Latest(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ota.ErrConnectivity, err)
	}
	b.mu.Lock()
	phase, signed, gen := b.s.Phase, b.signed, b.gen
	broken := b.broken
	b.mu.Unlock()
	if broken != nil {
		return nil, fmt.Errorf("offer the pushed release: %w", broken)
	}
	if phase != Requested {
		return nil, ota.ErrNoUpdate
	}
	_, err := b.judge(signed)
	b.mu.Lock()
	if b.gen == gen {
		b.err = err
	}
	b.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("offer the pushed release: %w", err)
	}
	return bytes.Clone(signed), nil
}

// Open implements [ota.Source]. The reader is an [io.Seeker].
func (b *Inbox) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (_ io.ReadCloser, err error) {
	defer b.cfg.Crashes.Catch("open a pushed image", func(e error) { err = coded(ota.ErrConnectivity, "%w", e) })
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ota.ErrConnectivity, err)
	}
	b.mu.Lock()
	phase, digest, signed, gen, file, broken := b.s.Phase, b.s.Digest, b.signed, b.gen, b.s.File, b.broken
	b.mu.Unlock()
	if broken != nil {
		return nil, coded(ota.ErrConnectivity, "open image %s: %w", im.Component, broken)
	}
	if digest != m.Digest || phase != Verified && phase != Requested {
		return nil, coded(ota.ErrConnectivity, "open image %s: release %s with digest %s is not in the inbox: push it again", im.Component, m.Version, m.Digest)
	}
	lay := newLayout(signed, m)
	r := &reader{b: b, ctx: ctx, gen: gen, lay: lay}
	for _, p := range lay.images {
		if p.im.Component == im.Component && p.im.Size == im.Size && p.im.SHA256 == im.SHA256 {
			r.place = p
		}
	}
	if r.place.im == nil {
		return nil, coded(ota.ErrServer, "open image %s: release %s has no such image", im.Component, m.Version)
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, coded(ota.ErrServer, "open image %s: %w", im.Component, err)
	}
	r.f, err = b.cfg.FS.OpenFile(b.fileName(file), os.O_RDONLY|durable.Direct, 0)
	if err != nil {
		b.doubt(gen, err)
		return nil, coded(ota.ErrConnectivity, "open image %s: %w", im.Component, err)
	}
	return r, nil
}

// reader reads an image, chunk by chunk, and compares each with its hash: what has rotted is
// asked for again.
type reader struct {
	b     *Inbox
	ctx   context.Context // of Source.Open, which says that it ends a Read
	gen   int
	lay   *layout
	place place
	f     durable.File
	at    int64 // in the image
	buf   []byte
	rest  []byte // of buf: the bytes from at on
	close sync.Once
}

func (r *reader) Read(p []byte) (n int, err error) {
	defer r.b.cfg.Crashes.Catch("read a pushed image", func(e error) { n, err = 0, coded(ota.ErrConnectivity, "%w", e) })
	if err := r.ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", ota.ErrConnectivity, err)
	}
	if r.at == r.place.im.Size {
		return 0, io.EOF
	}
	if len(r.rest) == 0 {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n = copy(p, r.rest)
	r.rest = r.rest[n:]
	r.at += int64(n)
	return n, nil
}

// fill reads the chunk that holds the next byte.
func (r *reader) fill() error {
	c := r.lay.at(r.place.start + r.at)
	if r.buf == nil {
		r.buf = make([]byte, min(r.place.im.ChunkSize, r.place.im.Size))
	}
	buf := r.buf[:c.to-c.from]
	if n, err := r.f.ReadAt(buf, c.from); n < len(buf) {
		if errors.Is(err, os.ErrClosed) {
			return coded(ota.ErrConnectivity, "read image %s at %d: %w", c.im.Component, r.at, err)
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		r.b.doubt(r.gen, err)
		return coded(ota.ErrServer, "read image %s at %d: %w", c.im.Component, r.at, err)
	}
	if got := ota.Hash(sha256.Sum256(buf)); got != c.want {
		err := coded(ota.ErrServer, "read image %s: chunk at %d has SHA-256 %s, want %s", c.im.Component, c.from-r.place.start, got, c.want)
		r.b.doubt(r.gen, err)
		return err
	}
	r.rest = buf[r.place.start+r.at-c.from:]
	return nil
}

// Seek implements [io.Seeker], within the image.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.place.im.Size
	}
	if offset < 0 || offset > r.place.im.Size {
		return 0, fmt.Errorf("seek to byte %d: %w: the image has %d bytes", offset, ota.ErrInternal, r.place.im.Size)
	}
	r.at, r.rest = offset, nil
	return offset, nil
}

// Close may be called at any time, also during a Read, and again.
func (r *reader) Close() error {
	var err error
	r.close.Do(func() { err = r.f.Close() })
	return err
}

// doubt begins to verify again what was verified, because a reader found it damaged.
func (b *Inbox) doubt(gen int, err error) {
	b.inside("doubt a pushed release", func() {
		if b.closed || b.gen != gen || b.s.Phase != Verified && b.s.Phase != Requested {
			return
		}
		b.cfg.Log.Warn("a pushed release is damaged on the disk, and verified again", "version", b.s.Version, "error", err)
		if err := b.advance(Verifying, b.s.Asked); err != nil {
			b.cfg.Log.Error("cannot begin to verify", "error", err)
		}
	})
}

// Report implements [ota.Reporter]: it is kept, for good, for whoever asks on the bus. If
// it is about what is offered, or says that what comes runs already, the transfer
// has Ended. A transfer that has ended well is Empty again once another release runs, by
// whatever way, so that nobody takes for proven what does not run any more; and if the same
// release is lost later, that is its outcome.
func (b *Inbox) Report(ctx context.Context, r ota.Report) error {
	return b.change("keep how an update ended", func() error { return b.report(r) })
}

func (b *Inbox) report(r ota.Report) error {
	if b.closed {
		return errClosed
	}
	if b.s.Last != nil && b.s.Last.ID == r.ID {
		return nil
	}
	s := b.s
	s.Last = shorten(r)
	kind := uint32(cellState)
	ours := r.Digest != "" && r.Digest == s.Digest && (s.Asked || r.Result == ota.Succeeded)
	switch s.Phase {
	case Empty, Ended, Failed:
		ours = false
	}
	if ours {
		kind, s.Phase, s.Asked, s.Outcome = cellBegin, Ended, false, s.Last
		s.File = b.nextFile()
	}
	if s.Phase == Ended && !ours {
		switch {
		case r.Digest == s.Digest:
			s.Outcome = s.Last
		case r.Result == ota.Succeeded && s.Outcome.Result == ota.Succeeded:
			kind, s = cellBegin, state{Format: 1, Phase: Empty, File: s.File, Last: s.Last}
		}
	}
	if err := b.keep(kind, &s); err != nil {
		return fmt.Errorf("keep the report of release %s: %w", r.Version, err)
	}
	if ours {
		b.discard(s, nil)
	} else {
		b.update(func() { b.s = s })
	}
	return nil
}

// keep writes a state and syncs it. After an error the journal is written anew, so that the next
// call can succeed.
func (b *Inbox) keep(kind uint32, s *state) error {
	if b.rewrite {
		b.wake()
		return errRewritten
	}
	if err := b.write(kind, s); err != nil {
		return err
	}
	return b.syncJournal()
}

var errRewritten = errors.New("the journal is being written anew")

// syncJournal brings to the medium what was written last. After an error the journal is written anew.
func (b *Inbox) syncJournal() error {
	err := b.journal.Sync()
	if err == nil && b.names {
		err = b.cfg.FS.SyncDir(b.cfg.Dir)
	}
	if err != nil {
		b.rewrite = true
		b.wake()
		return diskError("sync the journal", err)
	}
	return nil
}

// Wake implements [ota.Waker].
func (b *Inbox) Wake() <-chan struct{} { return b.woke }
