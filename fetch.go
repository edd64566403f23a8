package ota

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"
)

const (
	syncEvery    = 16 << 20 // bytes between syncs: what a power cut can cost
	readBackSize = 1 << 20
)

// fetch brings every image of the release into the other slot and reads it back.
// It goes on where an earlier attempt ended: the slot itself says how far that
// is, because every chunk that is in it can be verified.
func (m *Manager) fetch(ctx context.Context, r *Record) error {
	if m.asked != r.Attempt { // after a restart of the process, or a transfer that ended, perhaps hours ago
		if err := m.ask(ctx, *r, BeforeWrite, StatusUpdateAvailable); err != nil {
			return err
		}
	}
	m.asked = "" // the yes is for this transfer
	if m.cfg.Suspend == SuspendBeforeCheck {
		if err := m.suspend(ctx, r); err != nil {
			m.failed(err)
			return err
		}
	}
	if m.started != r.Attempt {
		m.started = r.Attempt
		if m.cfg.Hooks.Started != nil {
			m.cfg.Hooks.Started(r.Release)
		}
	}
	m.set(StatusDownloading, nil)
	ctx, done := m.interruptible(ctx, r)
	defer done()
	m.imagesDone(0)
	m.paceBytes, m.paceTook = 0, 0
	var before int64
	for i := range r.Release.Images {
		im := &r.Release.Images[i]
		if err := m.fetchImage(ctx, r, im, before); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			} else if err = (imageError{i + 1, err}); !giveUp(err) {
				m.failed(err)
				m.checkDue = true // the release may have been replaced or withdrawn
			}
			return fmt.Errorf("fetch %s of release %s: %w", im.Component, r.Release.Version, err)
		}
		before += im.Size
		m.imagesDone(i + 1)
	}
	m.verified = r.Digest + " " + r.Slot
	return nil
}

// An imageError is what went wrong with image n of the release, from 1.
type imageError struct {
	n   int
	err error
}

func (e imageError) Error() string { return e.err.Error() }
func (e imageError) Unwrap() error { return e.err }

func (m *Manager) fetchImage(ctx context.Context, r *Record, im *Image, before int64) error {
	t := &transfer{m: m, r: r, im: im, before: before, buf: make([]byte, im.ChunkSize)}
	m.enter(StatusDownloading) // also after the image before was verified
	if err := t.open(ctx); err != nil {
		return err
	}
	defer func() { t.slot.Close() }()
	if err := t.run(ctx); err != nil {
		return err
	}
	m.set(StatusVerifying, nil)
	return m.readBack(ctx, t.slot, im)
}

// A transfer carries one image from the source into its slot.
type transfer struct {
	m      *Manager
	r      *Record
	im     *Image
	slot   Slot
	before int64 // bytes of the images before this one
	have   int64 // verified and written, from the start
	synced int64
	seen   int64  // verified in a source that has the image at hand, from the start
	buf    []byte // one chunk
}

// open opens the slot, and finds how far it is. After a failed write or sync
// nobody knows what the medium holds, so that it is opened again.
func (t *transfer) open(ctx context.Context) error {
	if t.slot != nil {
		t.slot.Close()
	}
	s, err := t.m.cfg.Slots.Open(ctx, t.im.Component, t.r.Slot)
	if err != nil {
		return fmt.Errorf("open slot %s: %w", t.r.Slot, err)
	}
	t.slot = s
	if c := s.Capacity(); t.im.Size > c {
		return fmt.Errorf("%w: image is %d bytes, slot %s holds %d", ErrInsufficientSpace, t.im.Size, t.r.Slot, c)
	}
	return t.findStart(ctx)
}

// findStart finds how much of the image is already in the slot.
func (t *transfer) findStart(ctx context.Context) error {
	t.have = 0
	for t.have < t.im.Size {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		chunk := t.chunk(t.have)
		if n, err := t.slot.ReadAt(chunk, t.have); n < len(chunk) || err != nil && err != io.EOF {
			break // a part that cannot be read is a part that is not there
		}
		if sha256.Sum256(chunk) != t.want(t.have) {
			break
		}
		t.have += int64(len(chunk))
	}
	t.synced = t.have
	t.progress()
	return nil
}

// chunk is the buffer for the chunk at an offset.
func (t *transfer) chunk(at int64) []byte { return t.buf[:min(t.im.ChunkSize, t.im.Size-at)] }

func (t *transfer) want(at int64) Hash { return t.im.Chunks[at/t.im.ChunkSize] }

func (t *transfer) progress() { t.m.progress(t.before+t.have, t.r.Release) }

// paceAfter is how long images must have been written before it is told from that how long
// the rest takes: the first chunks are read ahead, and go into a cache.
const paceAfter = 2 * time.Second

// pace notes that a chunk took so long to be read and written, and tells when all are
// there if the rest takes as long as those of this attempt so far. Images that were there
// before, or are looked at before anything is written, say nothing about that.
func (t *transfer) pace(bytes int, took time.Duration) {
	m := t.m
	m.paceBytes, m.paceTook = m.paceBytes+int64(bytes), m.paceTook+took
	if m.paceTook < paceAfter {
		return
	}
	rest := t.r.Release.Size() - t.before - t.have
	m.readyAt(time.Now().Add(time.Duration(float64(m.paceTook) / float64(m.paceBytes) * float64(rest))))
}

// run transfers until the image is whole. Failures in a row without a new chunk
// in between are counted; a pause lies between them.
func (t *transfer) run(ctx context.Context) error {
	for failures, damages := 0, 0; ; {
		had, synced := t.have, t.synced
		err := t.stream(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if t.have > had {
			failures, t.m.backoff = 0, 0
		}
		failures++
		// What was written counts only once it is synced: a medium that loses it
		// would be written for ever.
		if t.synced > synced {
			damages = 0
		}
		if CodeOf(err) == ErrFlashWrite {
			damages++
		}
		if max(failures, damages) > t.m.cfg.Retries || errors.Is(err, ErrInsufficientSpace) || errors.Is(err, ErrAuthentication) {
			return err
		}
		t.m.cfg.Log.Info("transfer broke off, trying again", "component", t.im.Component, "at", t.have, "of", t.im.Size, "error", err)
		if !t.m.sleep(ctx, t.m.jitter(t.m.cfg.RetryDelay)) {
			return context.Cause(ctx)
		}
		if CodeOf(err) == ErrFlashWrite {
			if err := t.open(ctx); err != nil {
				return err
			}
		}
	}
}

// stream opens the source once and takes what it gives, up to a synced image. A
// chunk is verified before it is written; nothing else writes to a slot.
func (t *transfer) stream(ctx context.Context) error {
	if t.have == t.im.Size {
		return t.sync()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := fmt.Errorf("%w: no byte for %v", ErrConnectivity, t.m.cfg.StallTimeout)
	watch := time.AfterFunc(t.m.cfg.StallTimeout, func() { cancel(stalled) })
	defer watch.Stop()
	src, err := t.m.cfg.Source.Open(ctx, t.r.Release, t.im, t.have)
	if err != nil {
		return t.readError(ctx, fmt.Errorf("open at %d: %w", t.have, sourceError(err)))
	}
	defer src.Close()
	stop := context.AfterFunc(ctx, func() { src.Close() }) // for readers that do not watch ctx
	defer stop()
	in := &watchedReader{r: src, timer: watch, limit: t.m.cfg.StallTimeout}
	if s, ok := src.(io.Seeker); ok {
		if err := t.look(ctx, in, s); err != nil {
			return err
		}
	}
	defer t.m.readyAt(time.Time{}) // whatever comes next, it is no writing at this pace
	for began := time.Now(); t.have < t.im.Size; began = time.Now() {
		chunk, err := t.read(ctx, in, t.have)
		if err != nil {
			return err
		}
		if _, err := t.slot.WriteAt(chunk, t.have); err != nil {
			return fmt.Errorf("write slot %s at %d: %w", t.r.Slot, t.have, flashError(err))
		}
		t.have += int64(len(chunk))
		if t.have-t.synced >= syncEvery {
			if err := t.sync(); err != nil {
				return err
			}
		}
		t.pace(len(chunk), time.Since(began))
		t.progress()
	}
	return t.sync()
}

// look verifies the rest of an image that is at hand before anything is written:
// what is damaged on a stick shall not cost the old image in the slot. What is
// written is verified once more on its way, because a medium can change.
func (t *transfer) look(ctx context.Context, in io.Reader, s io.Seeker) error {
	if t.seen == t.im.Size {
		return nil
	}
	t.seen = max(t.seen, t.have)
	move := func(n int64) error {
		if _, err := s.Seek(n, io.SeekCurrent); err != nil {
			return t.readError(ctx, fmt.Errorf("seek: %w", sourceError(err)))
		}
		return nil
	}
	if err := move(t.seen - t.have); err != nil {
		return err
	}
	for t.seen < t.im.Size {
		chunk, err := t.read(ctx, in, t.seen)
		if err != nil {
			return err
		}
		t.seen += int64(len(chunk))
	}
	return move(t.have - t.seen)
}

// read reads the chunk at an offset, and verifies it.
func (t *transfer) read(ctx context.Context, in io.Reader, at int64) ([]byte, error) {
	chunk := t.chunk(at)
	if n, err := io.ReadFull(in, chunk); err != nil {
		return nil, t.readError(ctx, fmt.Errorf("read at %d: %w", at+int64(n), sourceError(err)))
	}
	if got := Hash(sha256.Sum256(chunk)); got != t.want(at) {
		return nil, fmt.Errorf("%w: chunk at %d: SHA-256 is %s, the manifest says %s", ErrValidation, at, got, t.want(at))
	}
	return chunk, nil
}

func (t *transfer) sync() error {
	if err := t.slot.Sync(t.have); err != nil {
		return fmt.Errorf("sync slot %s at %d: %w", t.r.Slot, t.have, flashError(err))
	}
	t.synced = t.have
	return nil
}

// readError prefers the reason for which the transfer was broken off to the
// error that this caused in the reader.
func (t *transfer) readError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// watchedReader restarts the stall timer at every byte.
type watchedReader struct {
	r     io.Reader
	timer *time.Timer
	limit time.Duration
	empty int // reads in a row without a byte
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	switch {
	case n < 0 || n > len(p):
		return 0, fmt.Errorf("the source's reader returned %d bytes for %d", n, len(p))
	case n > 0:
		w.timer.Reset(w.limit)
		w.empty = 0
	case err == nil:
		if w.empty++; w.empty >= 100 { // as bufio does; it would spin for ever
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// verifyStaged makes sure that the staged images are still what was verified,
// unless this very process has read them back already: something may have
// written to the slot while no agent was running.
func (m *Manager) verifyStaged(ctx context.Context, r Record) error {
	key := r.Digest + " " + r.Slot
	if m.verified == key {
		return nil
	}
	m.set(StatusVerifying, nil)
	for i := range r.Release.Images {
		im := &r.Release.Images[i]
		s, err := m.cfg.Slots.Open(ctx, im.Component, r.Slot)
		if err != nil {
			return fmt.Errorf("open slot %s for %s: %w", r.Slot, im.Component, err)
		}
		err = m.readBack(ctx, s, im)
		s.Close()
		if err != nil {
			return fmt.Errorf("verify slot %s: %w", r.Slot, imageError{i + 1, err})
		}
	}
	m.verified = key
	return nil
}

// readBack compares what is on the medium with the manifest. The chunks were
// verified one by one on the way in; this is the proof that they arrived.
func (m *Manager) readBack(ctx context.Context, s Slot, im *Image) error {
	sha := sha256.New()
	var md hash.Hash
	if im.MD5 != "" && m.cfg.VerifyMD5 {
		md = md5.New()
	}
	buf := make([]byte, min(readBackSize, (im.Size+4095)&^4095))
	for at := int64(0); at < im.Size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b := buf[:min(int64(len(buf)), im.Size-at)]
		n, err := s.ReadAt(b, at)
		if n < len(b) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%w: read back %s at %d of %d: %w", ErrFlashWrite, im.Component, at+int64(n), im.Size, err)
		}
		sha.Write(b)
		if md != nil {
			md.Write(b)
		}
		at += int64(n)
	}
	if got := Hash(sha.Sum(nil)); got != im.SHA256 {
		return fmt.Errorf("%w: %s reads back with SHA-256 %s, want %s", ErrFlashWrite, im.Component, got, im.SHA256)
	}
	if md != nil {
		if got := hex.EncodeToString(md.Sum(nil)); got != im.MD5 {
			return fmt.Errorf("%w: %s has MD5 %s, the manifest says %s", ErrValidation, im.Component, got, im.MD5)
		}
	}
	return nil
}
