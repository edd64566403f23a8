package awsiot

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/source/awsiot/stream"
)

// receiving is the file of a FreeRTOS OTA job on its way into Dir. It is signed as a
// whole, so that its job can be offered to the manager only when all of it is there; until
// then Latest says that there is nothing, and when it is, the manager is woken.
type receiving struct {
	busy  sync.Mutex // held while the spool is written
	spool afrSpool
	work  chan *task // has room for one
	task  *task      // the last one; under the source's turn
}

// task is one file to receive.
type task struct {
	key
	doc    *afrJob
	cancel context.CancelFunc
	ctx    context.Context // ends with the job

	mu     sync.Mutex
	done   bool
	signed []byte
	err    error
	have   int64
}

func (s *Source) newReceiving() *receiving {
	return &receiving{work: make(chan *task, 1), spool: afrSpool{FS: s.cfg.FS, Dir: filepath.Join(s.cfg.Dir, "awsiot-spool"), Max: s.cfg.SpoolSize,
		Code: s.cfg.CodeSigning, Keys: s.cfg.Verify, ImageVersion: s.cfg.ImageVersion}}
}

// received returns the envelope of the file of a job, or ota.ErrNoUpdate until it is there.
// The caller has the turn.
func (s *Source) received(o *offer) ([]byte, error) {
	f := o.doc.afr.Files[0]
	if s.cfg.SpoolSize < 0 {
		return nil, reject(ota.ErrIncompatible, "this device takes no FreeRTOS OTA jobs; name a bundle in the job document")
	}
	if f.Size > s.cfg.SpoolSize {
		return nil, reject(ota.ErrInsufficientSpace, "the file of the job has %d bytes, and this device has room for %d", f.Size, s.cfg.SpoolSize)
	}
	t := s.afr.task
	if t == nil || t.key != o.key {
		t = s.receiveAnew(o)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.doc = o.doc.afr // fresh addresses
	switch {
	case !t.done && s.record.Hand != nil && s.record.Hand.key == o.key && s.record.Hand.Digest != "":
		// It was offered before: to say that there is nothing would take it back, and with it a person's consent.
		return nil, coded(ota.ErrConnectivity, "its file is received again, %d of %d bytes are here", t.have, f.Size)
	case !t.done:
		return nil, coded(ota.ErrNoUpdate, "%d of %d bytes of its file are here", t.have, f.Size)
	case t.err != nil:
		return nil, reject(ota.CodeOf(t.err), "%v", t.err)
	}
	return t.signed, nil
}

// receiveAnew has the file of a job received, in place of what was being received. The
// caller has the turn.
func (s *Source) receiveAnew(o *offer) *task {
	if s.afr.task != nil {
		s.afr.task.cancel()
	}
	t := &task{key: o.key, doc: o.doc.afr}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	s.afr.task = t
	select {
	case <-s.afr.work: // the one before has not begun, and is not wanted any more
	default:
	}
	s.afr.work <- t
	return t
}

// openReceived opens a part of an image that is in the spool. If the spool has not got it
// any more, it is received again.
func (s *Source) openReceived(ctx context.Context, o *offer, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	r, err := s.afr.spool.open(m, im, offset)
	if err == nil {
		return r, nil
	}
	if errors.Is(err, errSpoolDamaged) {
		if err := s.take(ctx); err != nil {
			return nil, err
		}
		s.offer = nil
		s.receiveAnew(o)
		s.give()
	}
	return nil, networkError(err)
}

// forget removes what was received for an execution that is over.
func (s *Source) forget(k key) {
	t := s.afr.task
	if t != nil && t.key != k {
		return
	}
	if t != nil {
		t.cancel()
		s.afr.task = nil
	}
	s.afr.busy.Lock() // whoever writes there was just told to stop
	defer s.afr.busy.Unlock()
	if err := s.afr.spool.discard(); err != nil {
		s.cfg.Log.Warn("the file of a job that is over stays for now", "job", k.Job, "error", err)
	}
}

// receiveAll receives what is asked for until ctx ends.
func (s *Source) receiveAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-s.afr.work:
			stop := context.AfterFunc(ctx, t.cancel)
			s.receive(t.ctx, t)
			stop()
		}
	}
}

func (s *Source) receive(ctx context.Context, t *task) {
	opened, again := 0, false // opened: how often, for the file as it is in the spool; 0: not by this process
	for pause := s.cfg.MinBackoff; ctx.Err() == nil; pause = min(2*pause, s.cfg.MaxBackoff) {
		t.mu.Lock()
		f := t.doc.Files[0]
		t.mu.Unlock()
		s.afr.busy.Lock()
		signed, err := s.afr.spool.receive(ctx, f, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			if opened++; offset == 0 {
				opened = 1
			} else if opened == 1 {
				opened = 2 // the beginning is from an earlier process
			}
			return s.openAFR(ctx, t, offset)
		}, func(done, total int64) {
			t.mu.Lock()
			t.have = done
			t.mu.Unlock()
		})
		s.afr.busy.Unlock()
		certain := false
		switch ota.CodeOf(err) {
		case ota.ErrValidation, ota.ErrIncompatible, ota.ErrInsufficientSpace:
			certain = true
		}
		if ota.CodeOf(err) == ota.ErrValidation && opened != 1 && !again {
			// In parts, before and after the object was replaced, it is nobody's file.
			s.cfg.Log.Warn("the file of a job, which came in parts, is not what was signed; it is received once more from the beginning", "job", t.Job, "error", err)
			again = true
			continue
		}
		if err == nil || certain {
			t.mu.Lock()
			t.done, t.signed, t.err = true, signed, err
			t.mu.Unlock()
			signal(s.wake)
			return
		}
		if ctx.Err() != nil {
			return
		}
		s.cfg.Log.Warn("the file of a job did not come, trying again", "job", t.Job, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(jitter(pause)):
		}
	}
}

// openAFR opens the file of a job, by HTTP if it can be had so, else out of its stream. If
// that is not there any more, the job is asked once where it is now.
func (s *Source) openAFR(ctx context.Context, t *task, offset int64) (io.ReadCloser, error) {
	open := func() (io.ReadCloser, error) {
		t.mu.Lock()
		doc := t.doc
		t.mu.Unlock()
		f := doc.Files[0]
		if doc.HTTP && f.URL != "" {
			if err := checkURL("update_data_url", f.URL, s.cfg.AllowPlain); err != nil {
				return nil, coded(ota.ErrValidation, "%w", err)
			}
			body, size, err := s.cfg.HTTP.Fetch(ctx, f.URL, offset, f.Size-offset)
			if err == nil && size >= 0 && size != f.Size {
				body.Close()
				return nil, coded(ota.ErrServer, "what is at the job's address has %d bytes, want %d", size, f.Size)
			}
			return body, err
		}
		return stream.Open(ctx, s.line, stream.Options{Thing: s.cfg.Thing, Stream: doc.Stream, FileID: f.ID, Size: f.Size, Offset: offset})
	}
	r, err := open()
	if !errors.Is(err, ErrExpired) && !errors.Is(err, stream.ErrStale) {
		return r, err
	}
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	x, err := s.jobs.describe(ctx, t.Job)
	s.give()
	if err != nil {
		return nil, err
	}
	if x == nil || x.key() != t.key {
		signal(s.look)
		return nil, errTakenBack
	}
	doc, err := parseDocument(x.Document, s.cfg.AllowPlain)
	if err != nil || doc.afr == nil {
		return nil, coded(ota.ErrServer, "the job has another document than before")
	}
	t.mu.Lock()
	t.doc = doc.afr
	t.mu.Unlock()
	return open()
}
