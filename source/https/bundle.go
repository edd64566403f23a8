package https

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
)

// located is a bundle at the other side, as it was when its envelope was read.
type located struct {
	url    *url.URL
	etag   string // "" if the other side gives none
	total  int64  // bytes; -1 if the other side did not say
	signed []byte // nil: none was read yet
	digest string // of the payload in signed
}

// same reports whether the object at u with this ETag is the one that l
// describes. Without a strong ETag nobody knows, and the envelope is read again.
// An ETag says nothing across paths: some servers make it of time and length.
func (l located) same(u *url.URL, etag string) bool {
	return l.signed != nil && etag != "" && !weak(etag) && etag == l.etag && sameOrigin(u, l.url) && u.Path == l.url.Path
}

// latestBundle asks with HEAD whether there can be anything new, and reads the
// header and the envelope if so. That the version announced is the running one
// is believed; everything else is not concluded from.
func (s *Source) latestBundle(ctx context.Context) ([]byte, error) {
	op := "check the bundle"
	resp, err := s.do(ctx, op, request{method: http.MethodHead, url: s.base})
	if err != nil {
		return nil, err
	}
	s.drop(resp)
	// A refused HEAD decides nothing: some servers only know GET, whose answer
	// also says in words what is wrong.
	if resp.StatusCode == http.StatusOK {
		if v := resp.Header.Get(api.HeaderFirmwareVersion); v != "" && v == s.cfg.Version {
			return nil, &Error{Op: op, Code: ota.ErrNoUpdate, Err: fmt.Errorf("the server has %s, which is running", clean(v, 64))}
		}
		if l := s.lastLocated(); l.same(s.base, resp.Header.Get("ETag")) {
			return slices.Clone(l.signed), nil
		}
	}
	l, err := s.readEnvelope(ctx, op, s.base)
	if err != nil {
		return nil, err
	}
	return slices.Clone(l.signed), nil
}

// latestManifest fetches the document, and the envelope from the address in it.
func (s *Source) latestManifest(ctx context.Context) ([]byte, error) {
	op := "check the manifest"
	version, u, err := s.fetchManifest(ctx, op)
	if err != nil {
		return nil, err
	}
	if version == s.cfg.Version {
		return nil, &Error{Op: op, Code: ota.ErrNoUpdate, Err: fmt.Errorf("the manifest has %s, which is running", clean(version, 64))}
	}
	l, err := s.readEnvelope(ctx, op, u)
	if err != nil {
		return nil, err
	}
	return slices.Clone(l.signed), nil
}

const maxDocument = 64 << 10 // bytes of the manifest document

// fetchManifest gets {"version", "url"}, the manifest of the ESP32 fleet. Both
// must be there, and the url must be https. Other fields are ignored.
func (s *Source) fetchManifest(ctx context.Context, op string) (version string, u *url.URL, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := s.do(ctx, op, request{method: http.MethodGet, url: s.base,
		header: http.Header{"Accept": {"application/json"}, "Cache-Control": {"no-cache"}}})
	if err != nil {
		return "", nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return "", nil, s.refusal(op, s.base, resp)
	}
	var doc struct {
		Version string `json:"version"`
		URL     string `json:"url"`
	}
	if err := s.decode(cancel, op, s.base, resp, maxDocument, &doc); err != nil {
		return "", nil, err
	}
	if doc.Version == "" || doc.URL == "" {
		return "", nil, serverError(op, "the manifest needs a version and a url, got %q and %q",
			clean(doc.Version, 64), clean(doc.URL[:min(len(doc.URL), strings.IndexByte(doc.URL+"?", '?'))], 100))
	}
	if len(doc.URL) > maxURL {
		return "", nil, serverError(op, "the url in the manifest has %d characters, want at most %d", len(doc.URL), maxURL)
	}
	if u, err = checkURL(doc.URL, s.cfg.AllowPlain); err != nil {
		return "", nil, serverError(op, "the url in the manifest: %w", err)
	}
	return doc.Version, u, nil
}

// locate finds the bundle anew.
func (s *Source) locate(ctx context.Context, op string) (located, error) {
	u := s.base
	if s.cfg.Kind == Manifest {
		var err error
		if _, u, err = s.fetchManifest(ctx, op+": get an address"); err != nil {
			return located{}, err
		}
	}
	return s.readEnvelope(ctx, op, u)
}

// readEnvelope reads header and envelope of the bundle at u, exactly, in two
// requests over one connection, and remembers them. If the object at u is the
// one known, the first request is enough.
func (s *Source) readEnvelope(ctx context.Context, op string, u *url.URL) (located, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := located{url: u}
	head, first, err := s.readSpan(ctx, cancel, op, span{url: u, start: 0, end: int64(bundle.HeaderSize), total: -1})
	if err != nil {
		return located{}, err
	}
	if last := s.lastLocated(); last.same(u, first.etag) {
		last.url = u
		s.remember(last)
		return last, nil
	}
	n, err := bundle.ParseHeader(head)
	if err != nil {
		e := serverError(op, "%s: %w", redact(u), err)
		e.Hint = "is the url that of a bundle file?"
		return located{}, e
	}
	if end := int64(bundle.HeaderSize + n); first.total >= 0 && first.total < end {
		return located{}, serverError(op, "the bundle at %s is cut short: it has %d bytes, its envelope ends at %d", redact(u), first.total, end)
	}
	l.etag, l.total = first.etag, first.total
	l.signed, _, err = s.readSpan(ctx, cancel, op, span{url: u, start: int64(bundle.HeaderSize), end: int64(bundle.HeaderSize + n), total: l.total, etag: l.etag})
	if err != nil {
		return located{}, err
	}
	if l.digest, err = payloadDigest(l.signed); err != nil {
		return located{}, serverError(op, "%s: %w", redact(u), err)
	}
	s.remember(l)
	return l, nil
}

func (s *Source) readSpan(ctx context.Context, cancel context.CancelFunc, op string, sp span) ([]byte, *body, error) {
	b, err := s.open(ctx, op, sp)
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	got, err := s.readAll(cancel, b, sp.end-sp.start)
	return got, b, err
}

// openBundle downloads a part of an image out of the bundle. The envelope must
// be that of m, as it decides where the images are.
func (s *Source) openBundle(ctx context.Context, op string, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	l := s.lastLocated()
	for fresh := false; ; {
		if l.signed == nil || l.digest != m.Digest {
			var err error
			if l, err = s.locate(ctx, op); err != nil {
				return nil, err
			}
			if l.digest != m.Digest {
				return nil, &Error{Op: op, Code: ota.ErrServer, Err: errChanged}
			}
			fresh = true
		}
		start, err := bundle.ImageOffset(len(l.signed), m, im.Component)
		if err != nil {
			return nil, &Error{Op: op, Code: ota.ErrInternal, Err: err}
		}
		size := bundle.Size(len(l.signed), m)
		if l.total >= 0 && l.total != size {
			return nil, serverError(op, "the bundle at %s has %d bytes, want %d", redact(l.url), l.total, size)
		}
		b, err := s.open(ctx, op, span{url: l.url, start: start + offset, end: start + im.Size, total: size, etag: l.etag})
		if err == nil {
			return b, nil
		}
		if fresh || !expired(err) {
			return nil, err
		}
		l = located{}
	}
}

func (s *Source) lastLocated() located {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.located
}

func (s *Source) remember(l located) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.located = l
}

// payloadDigest returns the digest of an envelope's payload, ota.Manifest.Digest,
// without looking into the payload: it is not verified here.
func payloadDigest(signed []byte) (string, error) {
	var e struct {
		Payload string `json:"payload"`
	}
	if err := json.Unmarshal(signed, &e); err != nil {
		return "", fmt.Errorf("read the envelope: %w", err)
	}
	if e.Payload == "" {
		return "", errors.New("read the envelope: it has no payload")
	}
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	if err != nil {
		if payload, err = base64.URLEncoding.DecodeString(e.Payload); err != nil { // DSSE permits both
			return "", fmt.Errorf("read the envelope: payload: %w", err)
		}
	}
	sum := sha256.Sum256(payload)
	return hex.EncodeToString(sum[:]), nil
}
