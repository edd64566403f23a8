package https

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Bounds of what the server may wish for the next check.
const (
	minPoll = time.Second
	maxPoll = 7 * 24 * time.Hour
)

// offer is the server's last answer to a check-in.
type offer struct {
	etag   string
	signed []byte             // nil: nothing for this device
	images map[ota.Hash]place // only under the source's lock
}

// place is where an image is.
type place struct {
	url  *url.URL
	etag string // seen at the first download; "" before
}

func (s *Source) latestServer(ctx context.Context) ([]byte, error) {
	o, err := s.checkIn(ctx, "check in", true)
	if err != nil {
		return nil, err
	}
	if o.signed == nil {
		return nil, &Error{Op: "check in", Code: ota.ErrNoUpdate, Err: ota.ErrWithdrawn}
	}
	return slices.Clone(o.signed), nil
}

// checkIn makes one check-in. With cached, a server that has nothing else to
// say answers 304, and the last answer stands.
func (s *Source) checkIn(ctx context.Context, op string, cached bool) (offer, error) {
	s.mu.Lock()
	last, state := s.offer, s.state
	s.mu.Unlock()

	var in api.CheckinRequest
	if state != nil {
		in = state()
	}
	in.Skipped = slices.Clone(in.Skipped[max(0, len(in.Skipped)-maxSkipped):])
	for i := range in.Skipped {
		in.Skipped[i].Reason = cut(in.Skipped[i].Reason, maxSkippedReason)
	}
	in.Head = trim(in.Head)
	in.Device, in.Product, in.Hardware, in.Agent = s.cfg.Device, s.cfg.Product, s.cfg.Hardware, s.cfg.Agent
	if in.Version == "" {
		in.Version = s.cfg.Version
	}
	header := http.Header{}
	if cached && last.etag != "" {
		header.Set("If-None-Match", last.etag)
	}
	var out api.CheckinResponse
	resp, err := s.post(ctx, op, api.PathCheckin, header, in, &out)
	if err != nil {
		return offer{}, err
	}
	s.notePoll(resp, out.PollSeconds)
	if resp.StatusCode == http.StatusNotModified {
		if header.Get("If-None-Match") == "" {
			return offer{}, serverError(op, "the server answered 304 to a request without If-None-Match")
		}
		return last, nil
	}
	o := offer{etag: resp.Header.Get("ETag")}
	if out.Release != nil {
		if o.images, err = s.places(out.Release); err != nil {
			return offer{}, serverError(op, "offer of %s: %w", clean(out.Release.Version, 64), err)
		}
		o.signed = out.Release.Signed
	}
	s.mu.Lock()
	s.offer = o
	s.mu.Unlock()
	return o, nil
}

// places returns where the images of an offer are.
func (s *Source) places(r *api.ReleaseOffer) (map[ota.Hash]place, error) {
	if len(r.Signed) == 0 {
		return nil, errors.New("it has no signed manifest")
	}
	if len(r.Signed) > ota.MaxManifestSize {
		return nil, fmt.Errorf("its signed manifest has %d bytes, want at most %d", len(r.Signed), ota.MaxManifestSize)
	}
	if len(r.Images) == 0 || len(r.Images) > ota.MaxImages {
		return nil, fmt.Errorf("it has %d images, want 1 to %d", len(r.Images), ota.MaxImages)
	}
	images := make(map[ota.Hash]place, len(r.Images))
	for _, im := range r.Images {
		u, err := s.offered(im.URL)
		if err != nil {
			return nil, fmt.Errorf("address of %q: %w", clean(im.Component, 64), err)
		}
		images[im.SHA256] = place{url: u}
	}
	return images, nil
}

// offered resolves an address in an offer. One that begins with a slash is below
// the server's URL, path included: a server behind a proxy does not know where
// devices see it.
func (s *Source) offered(ref string) (*url.URL, error) {
	if strings.HasPrefix(ref, "/") && !strings.HasPrefix(ref, "//") {
		ref = "." + ref
	}
	return s.follow(s.base.JoinPath("/"), ref)
}

func (s *Source) notePoll(resp *http.Response, inBody int) {
	seconds := int64(inBody)
	if n, err := strconv.ParseInt(resp.Header.Get(api.HeaderPoll), 10, 32); err == nil {
		seconds = n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.poll = 0
	if seconds > 0 {
		s.poll = max(minPoll, time.Duration(min(seconds, int64(maxPoll/time.Second)))*time.Second)
	}
}

// openServer downloads from where the last offer said. If that is not known, or
// does not work any more, it checks in once for a new address.
func (s *Source) openServer(ctx context.Context, op string, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	p, known := s.placeOf(im.SHA256)
	for fresh := false; ; {
		if !known {
			if _, err := s.checkIn(ctx, op+": get an address", false); err != nil {
				return nil, err
			}
			if p, known = s.placeOf(im.SHA256); !known {
				return nil, &Error{Op: op, Code: ota.ErrServer, Err: errChanged}
			}
			fresh = true
		}
		b, err := s.open(ctx, op, span{url: p.url, start: offset, end: im.Size, total: im.Size, etag: p.etag})
		if err == nil {
			s.noteETag(im.SHA256, p, b.etag)
			return b, nil
		}
		if fresh || !expired(err) {
			return nil, err
		}
		known = false
	}
}

func (s *Source) placeOf(h ota.Hash) (place, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.offer.images[h]
	return p, ok
}

// noteETag remembers an image's ETag for the next part, unless its place has
// changed meanwhile.
func (s *Source) noteETag(h ota.Hash, p place, etag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.offer.images[h]; ok && now.url.String() == p.url.String() {
		s.offer.images[h] = place{p.url, etag}
	}
}

// expired reports whether a new address may help.
func expired(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone,
		http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		return true
	}
	return errors.Is(err, errChanged)
}

// ErrRejected is a report that the server will never take, because of what it says.
// It is for the caller to log it and to go on with the next, which waits behind it.
var ErrRejected = errors.New("the server does not take it, now or later")

// Report implements [ota.Reporter]. It returns nil once the server has stored r.
// A source of another kind has nobody to tell: that is [errors.ErrUnsupported],
// so that the report is kept. Such a source is better given to the manager as
// struct{ ota.Source }{s}, which is no reporter.
func (s *Source) Report(ctx context.Context, r ota.Report) error {
	op := "report " + r.ID
	if s.cfg.Kind != Server {
		return &Error{Op: op, Code: ota.ErrInternal, Err: fmt.Errorf("a source of kind %s has nobody to report to: %w", s.cfg.Kind, errors.ErrUnsupported)}
	}
	r.Reason = cut(r.Reason, 4*maxReason) // the server keeps less
	var out api.ReportsResponse
	if _, err := s.post(ctx, op, api.PathReports, nil, api.ReportsRequest{Device: s.cfg.Device, Reports: []ota.Report{r}}, &out); err != nil {
		return err
	}
	if slices.Contains(out.Stored, r.ID) {
		return nil
	}
	for _, no := range out.Rejected {
		if no.ID == r.ID {
			return serverError(op, "%w: %s", ErrRejected, clean(no.Error, 300))
		}
	}
	return serverError(op, "the server answered without saying that it is stored")
}

// Status tells the server what the device is doing, as far as that works now. A
// source of another kind has nobody to tell, and returns nil.
func (s *Source) Status(ctx context.Context, u api.StatusUpdate) error {
	if s.cfg.Kind != Server {
		return nil
	}
	u.Device, u.Product, u.Hardware, u.Agent = s.cfg.Device, s.cfg.Product, s.cfg.Hardware, s.cfg.Agent
	u.Head = trim(u.Head)
	_, err := s.post(ctx, "send status", api.PathStatus, nil, u, nil)
	return err
}

// What a check-in says at most, so that nothing the device has to say can keep
// it from checking in.
const (
	maxSkipped = 100
	maxSignals = 100
	maxReason  = 1000 // bytes

	// maxSkippedReason in bytes, six times as many in JSON at worst, times maxSkipped
	// leaves room in api.MaxRequestSize.
	maxSkippedReason = 300
)

// cut returns at most n bytes of s. JSON replaces what is left of a letter.
func cut(s string, n int) string { return s[:min(len(s), n)] }

// trim takes from h what JSON or the server could not take.
func trim(h api.Head) api.Head {
	h.Reason = cut(h.Reason, maxReason)
	h.Signals = slices.DeleteFunc(slices.Clone(h.Signals), func(g ota.Signal) bool {
		return math.IsNaN(g.Value) || math.IsInf(g.Value, 0) // a sensor that does not know
	})
	h.Signals = h.Signals[:min(len(h.Signals), maxSignals)]
	return h
}

func (s *Source) apiURL(path string) *url.URL { return s.base.JoinPath(path) }

// post sends in and reads the answer into out, if it is not nil. It returns
// answers with a status below 300, and 304, which has no body.
func (s *Source) post(ctx context.Context, op, path string, header http.Header, in, out any) (*http.Response, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, &Error{Op: op, Code: ota.ErrInternal, Err: err}
	}
	if len(body) > api.MaxRequestSize {
		return nil, &Error{Op: op, Code: ota.ErrInternal, Err: fmt.Errorf("the request has %d bytes, want at most %d", len(body), api.MaxRequestSize)}
	}
	if header == nil {
		header = http.Header{}
	}
	header.Set("Content-Type", "application/json")
	header.Set("Accept", "application/json")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	u := s.apiURL(path)
	resp, err := s.do(ctx, op, request{method: http.MethodPost, url: u, header: header, body: body})
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusNotModified, resp.StatusCode < 300 && out == nil:
		s.drop(resp)
		return resp, nil
	case resp.StatusCode >= 300:
		return nil, s.refusal(op, u, resp)
	}
	return resp, s.decode(cancel, op, u, resp, api.MaxResponseSize, out)
}

// decode reads a JSON answer and closes it.
func (s *Source) decode(cancel context.CancelFunc, op string, u *url.URL, resp *http.Response, limit int64, out any) error {
	defer resp.Body.Close()
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return serverError(op, "%s answered with Content-Encoding %q, which was not asked for", redact(u), clean(e, 40))
	}
	b, err := s.readAll(cancel, resp.Body, limit)
	if errors.Is(err, errTooLong) {
		return serverError(op, "%s: %w", redact(u), err)
	}
	if err != nil {
		return s.broken(op, u, err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		e := serverError(op, "%s answered something else than the JSON expected: %w", redact(u), err)
		e.Hint = "is the url right? does a login page of the network answer for it?"
		return e
	}
	return nil
}
