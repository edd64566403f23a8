package https

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/interlock-energy/ota"
)

// Fetcher reads objects whose addresses come from elsewhere, such as the presigned
// ones in a job: the same client and the same promises as a [Source], for those who
// know of releases in other ways. Its methods may be called from any goroutine.
type Fetcher struct{ s *Source }

// NewFetcher returns a fetcher. Of cfg it uses what is about connections and trust,
// and URL, which is who gives the addresses out: credentials go nowhere else, and
// addresses may point inside the device only if that is there, too.
func NewFetcher(cfg Config) (*Fetcher, error) {
	cfg.Kind = Bundle // asks for no names
	s, err := newSource(cfg)
	if err != nil {
		return nil, fmt.Errorf("configure downloads: %w", err)
	}
	return &Fetcher{s}, nil
}

// Fetch returns the bytes of the object at rawURL from offset on, length of them, or
// all to the end if length is negative, and the size of the whole object, -1 if the
// other side does not say. The reader ends early with an error only. Cancelling ctx
// unblocks a Read. Errors are [*Error]; see [Expired].
func (f *Fetcher) Fetch(ctx context.Context, rawURL string, offset, length int64) (io.ReadCloser, int64, error) {
	op := fmt.Sprintf("download from byte %d", offset)
	if len(rawURL) > maxURL {
		return nil, -1, serverError(op, "the address has %d characters, want at most %d", len(rawURL), maxURL)
	}
	u, err := checkURL(rawURL, f.s.cfg.AllowPlain)
	if err != nil {
		return nil, -1, serverError(op, "the address: %w", err)
	}
	if offset < 0 {
		return nil, -1, &Error{Op: op, Code: ota.ErrInternal, Err: fmt.Errorf("the offset is %d, want 0 or more", offset)}
	}
	switch {
	case length == 0:
		return http.NoBody, -1, nil
	case length < 0:
		return f.rest(ctx, op, u, offset)
	}
	b, err := f.s.open(ctx, op, span{url: u, start: offset, end: offset + length, total: -1})
	if err != nil {
		return nil, -1, err
	}
	return b, b.total, nil
}

// rest reads from offset to an end that is not known yet.
func (f *Fetcher) rest(ctx context.Context, op string, u *url.URL, offset int64) (io.ReadCloser, int64, error) {
	s := f.s
	// One byte says how long the object is, if anything does; a server that ignores
	// Range says it as well.
	b, err := s.open(ctx, op, span{url: u, start: offset, end: offset + 1, total: -1})
	if err != nil {
		return nil, -1, err
	}
	b.Close()
	if b.total < 0 {
		return nil, -1, serverError(op, "%s does not say how long the object is", redact(u))
	}
	r, err := s.open(ctx, op, span{url: u, start: offset, end: b.total, total: b.total, etag: b.etag})
	if err != nil {
		return nil, -1, err
	}
	return r, b.total, nil
}

// Expired reports whether err says that an address is not accepted, any more or at
// all, or that something else is there now: then a new address may help.
func Expired(err error) bool { return expired(err) }
