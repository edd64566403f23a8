package awsiot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// offer is a job and its release, as far as they were read. Of the document only the
// addresses change from one answer of the service to the next.
type offer struct {
	key
	doc    *document
	signed []byte
	man    *ota.Manifest
}

// read returns the release of an execution. A [verdict] says that it never has one.
func (s *Source) read(ctx context.Context, x *execution) (*offer, error) {
	doc, err := parseDocument(x.Document, s.cfg.AllowPlain)
	if err != nil {
		return nil, reject(ota.ErrValidation, "%v", err)
	}
	o := &offer{key: x.key(), doc: doc}
	switch last := s.offer; {
	case last != nil && last.key == o.key:
		o.signed = last.signed // with fresh addresses
	case doc.afr != nil:
		o.signed, err = s.received(o)
	case doc.bundle != "":
		o.signed, err = s.readBundle(ctx, doc.bundle)
	default:
		o.signed, err = s.readManifest(ctx, doc.manifest)
	}
	if err != nil {
		return o, err
	}
	if o.man, err = s.cfg.Verify(o.signed); err != nil {
		o.man = nil
		if errors.Is(err, ota.ErrValidation) {
			return o, reject(ota.ErrValidation, "%v", err)
		}
		return o, fmt.Errorf("verify the manifest: %w", err)
	}
	if err := doc.agrees(o.man); err != nil {
		return o, reject(ota.ErrValidation, "%v", err)
	}
	return o, nil
}

// readBundle reads the envelope of the bundle at u, in two requests.
func (s *Source) readBundle(ctx context.Context, u string) ([]byte, error) {
	head, size, err := s.fetch(ctx, u, 0, int64(bundle.HeaderSize), int64(bundle.HeaderSize))
	if err != nil {
		return nil, err
	}
	n, err := bundle.ParseHeader(head)
	if err != nil {
		return nil, reject(ota.ErrValidation, "the file that the job names is no bundle: %v", err)
	}
	if end := int64(bundle.HeaderSize + n); size >= 0 && size < end {
		return nil, reject(ota.ErrValidation, "the bundle that the job names is cut short: it has %d bytes, its envelope ends at %d", size, end)
	}
	signed, _, err := s.fetch(ctx, u, int64(bundle.HeaderSize), int64(n), int64(n))
	return signed, err
}

func (s *Source) readManifest(ctx context.Context, u string) ([]byte, error) {
	signed, size, err := s.fetch(ctx, u, 0, -1, ota.MaxManifestSize)
	if errors.Is(err, errTooLong) {
		return nil, reject(ota.ErrValidation, "the manifest that the job names has more than %d bytes", ota.MaxManifestSize)
	}
	if err == nil && size >= 0 && int64(len(signed)) != size {
		return nil, coded(ota.ErrConnectivity, "read the manifest: got %d bytes, want %d", len(signed), size)
	}
	return signed, err
}

var errTooLong = errors.New("the answer is too long")

// fetch reads length bytes of u from offset on, or all if length is negative, at most limit.
func (s *Source) fetch(ctx context.Context, u string, offset, length, limit int64) ([]byte, int64, error) {
	body, size, err := s.cfg.HTTP.Fetch(ctx, u, offset, length)
	if err != nil {
		return nil, 0, err
	}
	defer body.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(body, limit+1)); err != nil {
		return nil, 0, networkError(err)
	}
	if int64(b.Len()) > limit {
		return nil, 0, coded(ota.ErrServer, "read from byte %d: %w: more than %d bytes", offset, errTooLong, limit)
	}
	if length >= 0 && int64(b.Len()) != length {
		return nil, 0, coded(ota.ErrConnectivity, "read from byte %d: got %d bytes, want %d", offset, b.Len(), length)
	}
	return b.Bytes(), size, nil
}

// networkError gives an error that has no code that of a broken connection.
func networkError(err error) error {
	if _, ok := errors.AsType[ota.ErrorCode](err); ok {
		return err
	}
	return &codedError{ota.ErrConnectivity, err}
}

// errChanged: what the manager wants is not the release of a job.
var errChanged = coded(ota.ErrServer, "no job offers this release now; check again")

// errTakenBack ends a download whose job is over.
var errTakenBack = coded(ota.ErrServer, "the job is over; check again")

// Open implements [ota.Source]. The first call for a release tells its job that it is in
// progress. If the addresses have expired, the job is asked once for new ones, and the
// download goes on at the same offset. While the addresses work, it needs no connection to
// the broker.
func (s *Source) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	r, err := s.openImage(ctx, m, im, offset)
	if err != nil {
		return nil, fmt.Errorf("download %s of %s from byte %d: %w", im.Component, m.Version, offset, err)
	}
	return r, nil
}

func (s *Source) openImage(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	if offset < 0 || offset > im.Size {
		return nil, coded(ota.ErrInternal, "the image has %d bytes", im.Size)
	}
	if offset == im.Size {
		return http.NoBody, nil
	}
	o, err := s.begin(ctx, m, false)
	if err != nil {
		return nil, err
	}
	body, err := s.openOffer(ctx, o, m, im, offset)
	if errors.Is(err, ErrExpired) {
		if o, err = s.begin(ctx, m, true); err != nil {
			return nil, fmt.Errorf("get new addresses: %w", err)
		}
		body, err = s.openOffer(ctx, o, m, im, offset)
	}
	return body, err
}

// begin returns the offer of m with its job in progress. Fresh asks the service again.
func (s *Source) begin(ctx context.Context, m *ota.Manifest, fresh bool) (*offer, error) {
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.give()
	h := s.record.Hand
	if h != nil && h.Final != nil {
		return nil, errChanged
	}
	if o := s.offer; !fresh && o != nil && h != nil && o.key == h.key && h.Digest == m.Digest && h.confirmed {
		return o, nil
	}
	if err := s.line.wait(ctx); err != nil {
		return nil, err
	}
	x, err := s.pending(ctx)
	if err != nil {
		return nil, err
	}
	if x == nil {
		return nil, errChanged
	}
	o, err := s.read(ctx, x)
	if _, ok := errors.AsType[*verdict](err); ok {
		return nil, errChanged // the next check says so to the job
	}
	if errors.Is(err, ota.ErrNoUpdate) {
		return nil, coded(ota.ErrConnectivity, "%v", err) // the file is still on its way
	}
	if err != nil {
		return nil, err
	}
	if o.man.Digest != m.Digest {
		return nil, errChanged
	}
	if err := s.hold(x, o); err != nil {
		return nil, err
	}
	return o, s.start(ctx, x)
}

// start tells the job in hand that it is in progress, unless it knows.
func (s *Source) start(ctx context.Context, x *execution) error {
	if !s.record.Hand.Started {
		r := s.record.clone() // first, so that what the service believes is never more than what is known here
		r.Hand.Started = true
		if err := s.save(r); err != nil {
			return err
		}
	}
	h := s.record.Hand
	if x.Status == inProgress {
		h.confirmed = true
		return nil
	}
	err := s.jobs.update(ctx, h.key, x.VersionNumber, inProgress, details{"state": "STARTED", "version": h.Release, "running": s.cfg.Version}.bounded(), s.cfg.StepTimeout)
	if r, ok := errors.AsType[*Refused](err); ok && r.gone() {
		if err := s.lose(r.Error()); err != nil {
			return err
		}
		return errTakenBack
	}
	if err != nil {
		return fmt.Errorf("tell job %s that it is in progress: %w", h.Job, err)
	}
	h.version, h.confirmed = x.VersionNumber+1, true
	s.stir()
	s.cfg.Log.Info("a job is in progress", "job", h.Job, "execution", h.Execution, "version", h.Release)
	return nil
}

// openOffer opens the bytes of an image.
func (s *Source) openOffer(ctx context.Context, o *offer, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	if o.doc.afr != nil {
		return s.openReceived(ctx, o, m, im, offset)
	}
	u, start, size := o.doc.images[im.Component], int64(0), im.Size
	if o.doc.bundle != "" {
		var err error
		if start, err = bundle.ImageOffset(len(o.signed), m, im.Component); err != nil {
			return nil, coded(ota.ErrInternal, "%w", err)
		}
		u, size = o.doc.bundle, bundle.Size(len(o.signed), m)
	}
	if u == "" {
		return nil, coded(ota.ErrServer, "the job says no address for it")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	body, total, err := s.cfg.HTTP.Fetch(ctx, u, start+offset, im.Size-offset)
	if err != nil {
		cancel(nil)
		return nil, networkError(err)
	}
	if total >= 0 && total != size {
		body.Close()
		cancel(nil)
		return nil, coded(ota.ErrServer, "what is at the job's address has %d bytes, want %d", total, size)
	}
	r := &reader{s: s, body: body, left: im.Size - offset, digest: m.Digest, ctx: ctx, cancel: cancel}
	s.mu.Lock()
	s.readers[r] = struct{}{}
	s.mu.Unlock()
	return r, nil
}

// reader reads a part of an image, and never more, until its job is over.
type reader struct {
	s      *Source
	body   io.ReadCloser
	left   int64
	digest string
	ctx    context.Context // ends with the job; a reader has no other way to hear of it
	cancel context.CancelCauseFunc
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(context.Cause(r.ctx), errTakenBack):
		return n, errTakenBack
	case errors.Is(err, io.EOF) && r.left == 0:
		return n, io.EOF
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("%d bytes before the end: %w", r.left, io.ErrUnexpectedEOF)
	}
	return n, networkError(err)
}

func (r *reader) Close() error {
	r.s.mu.Lock()
	delete(r.s.readers, r)
	r.s.mu.Unlock()
	defer r.cancel(nil)
	return r.body.Close()
}

// stopReaders ends what is being read of a release.
func (s *Source) stopReaders(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.readers {
		if r.digest == digest {
			r.cancel(errTakenBack)
		}
	}
}
