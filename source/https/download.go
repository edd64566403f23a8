package https

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/interlock-energy/ota"
)

// span is a part of an object at the other side.
type span struct {
	url   *url.URL
	start int64  // first byte
	end   int64  // behind the last byte
	total int64  // bytes of the object; -1: not known yet
	etag  string // the object must still have it; "" or weak: not asked for
}

// body reads a span, exactly, and never more.
type body struct {
	s    *Source
	op   string
	url  *url.URL
	r    io.ReadCloser
	left int64

	total int64  // bytes of the object, -1 if the other side did not say
	etag  string // of the object
}

// open asks for the bytes of sp. Resuming relies on Range and If-Match. If-Range
// is not used, because some S3 servers answer 206 whatever it says.
//
// A server that ignores Range sends the object from its first byte; what lies
// before the span is read and dropped here, before open returns.
func (s *Source) open(ctx context.Context, op string, sp span) (*body, error) {
	h := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", sp.start, sp.end-1)}}
	if sp.etag != "" && !weak(sp.etag) {
		h.Set("If-Match", sp.etag)
	}
	resp, err := s.do(ctx, op, request{method: http.MethodGet, url: sp.url, header: h})
	if err != nil {
		return nil, err
	}
	b := &body{s: s, op: op, url: sp.url, r: resp.Body, left: sp.end - sp.start, total: -1, etag: resp.Header.Get("ETag")}
	skip, err := b.check(sp, resp)
	if err == nil && skip > 0 {
		var n int64
		if n, err = io.CopyN(io.Discard, resp.Body, skip); err != nil {
			err = s.broken(op, sp.url, fmt.Errorf("skip to byte %d: at %d: %w", skip, n, err))
		}
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return b, nil
}

// check reports whether resp answers sp, and how many bytes come before it.
func (b *body) check(sp span, resp *http.Response) (skip int64, err error) {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusPreconditionFailed:
		return 0, &Error{Op: b.op, Code: ota.ErrServer, Status: resp.StatusCode, Err: errChanged}
	case http.StatusRequestedRangeNotSatisfiable:
		return 0, &Error{Op: b.op, Code: ota.ErrServer, Status: resp.StatusCode,
			Err: fmt.Errorf("%s has no bytes %d to %d (%q)", redact(sp.url), sp.start, sp.end-1, clean(resp.Header.Get("Content-Range"), 60))}
	default:
		if resp.StatusCode < 400 {
			return 0, serverError(b.op, "%s answered %d, want 206", redact(sp.url), resp.StatusCode)
		}
		return 0, b.s.refusal(b.op, sp.url, resp)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return 0, serverError(b.op, "%s answered with Content-Encoding %q, which was not asked for", redact(sp.url), clean(e, 40))
	}
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); t == "multipart/byteranges" {
		return 0, serverError(b.op, "%s answered with multipart/byteranges to one range", redact(sp.url))
	}
	if sp.etag != "" && !weak(sp.etag) && b.etag != "" && b.etag != sp.etag { // a server that ignores If-Match
		return 0, &Error{Op: b.op, Code: ota.ErrServer, Err: errChanged}
	}
	length, want := resp.ContentLength, sp.end-sp.start
	if resp.StatusCode == http.StatusPartialContent {
		start, end, total, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return 0, serverError(b.op, "%s answered 206 with %w", redact(sp.url), err)
		}
		if sp.total < 0 && total >= 0 && total < sp.end && start == sp.start && end == total {
			return 0, serverError(b.op, "%s has %d bytes, want at least %d", redact(sp.url), total, sp.end)
		}
		if start != sp.start || end != sp.end || sp.total >= 0 && total >= 0 && total != sp.total {
			return 0, serverError(b.op, "%s answered 206 with bytes %d to %d of %d, want %d to %d of %d",
				redact(sp.url), start, end-1, total, sp.start, sp.end-1, sp.total)
		}
		b.total = total
	} else {
		if want, skip = sp.total, sp.start; want < 0 {
			want = length
		}
		b.total = length
		if length >= 0 && length < sp.end {
			return 0, serverError(b.op, "%s has %d bytes, want at least %d", redact(sp.url), length, sp.end)
		}
	}
	if length >= 0 && length != want {
		return 0, serverError(b.op, "%s answered %d with a Content-Length of %d, want %d", redact(sp.url), resp.StatusCode, length, want)
	}
	return skip, nil
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF) && b.left == 0:
		return n, io.EOF
	}
	return n, b.s.broken(fmt.Sprintf("%s, %d bytes before its end", b.op, b.left), b.url, err)
}

func (b *body) Close() error { return b.r.Close() }

// parseContentRange reads "bytes 0-499/1234" (RFC 9110, section 14.4); end is
// behind the last byte, total -1 for "*".
func parseContentRange(v string) (start, end, total int64, err error) {
	bad := fmt.Errorf("the Content-Range %q", clean(v, 60))
	rest, ok := strings.CutPrefix(v, "bytes ")
	span, of, ok2 := strings.Cut(rest, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, bad
	}
	start, end, total = number(first), number(last)+1, number(of)
	if of == "*" {
		total = -1
	} else if total < 0 {
		return 0, 0, 0, bad
	}
	if start < 0 || end <= start || total >= 0 && end > total {
		return 0, 0, 0, bad
	}
	return start, end, total, nil
}

// number returns a decimal number without a sign below 2^62, or -1.
func number(s string) int64 {
	n, err := strconv.ParseUint(s, 10, 62)
	if err != nil {
		return -1
	}
	return int64(n)
}

// weak ETags never match If-Match (RFC 9110, section 13.1.1).
func weak(etag string) bool { return strings.HasPrefix(etag, "W/") }

// readAll reads r to its end, at most limit bytes. If nothing comes for the
// stall timeout it cancels, which must end r.
func (s *Source) readAll(cancel context.CancelFunc, r io.Reader, limit int64) ([]byte, error) {
	var stalled atomic.Bool
	stall := time.AfterFunc(s.cfg.StallTimeout, func() {
		stalled.Store(true)
		cancel()
	})
	defer stall.Stop()
	b, err := io.ReadAll(io.LimitReader(progress{r, func() { stall.Reset(s.cfg.StallTimeout) }}, limit+1))
	if err != nil && stalled.Load() {
		return nil, fmt.Errorf("%w: no byte for %v", ota.ErrConnectivity, s.cfg.StallTimeout)
	}
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", errTooLong, limit)
	}
	return b, nil
}

var errTooLong = errors.New("the answer is too long")

// progress calls moved after every read that brought bytes.
type progress struct {
	r     io.Reader
	moved func()
}

func (p progress) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.moved()
	}
	return n, err
}
