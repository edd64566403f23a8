package lambda

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/door"
	"github.com/interlock-energy/ota/internal/lambda/event"
)

// request is a request and what its line in the log will say.
type request struct {
	*http.Request
	group string
	attrs []slog.Attr
	quiet bool // unless it ends in an error, there is nothing to log
}

func (r *request) note(attrs ...slog.Attr) { r.attrs = append(r.attrs, attrs...) }

// problem is an error for the one who asked.
type problem struct {
	status     int
	text, hint string
	challenge  string // WWW-Authenticate, if not empty
	retryAfter string // seconds, if not empty
	err        error  // for the log
}

func (p *problem) Error() string { return p.text }

func fail(status int, text, hint string) error {
	return &problem{status: status, text: text, hint: hint}
}

// margin is kept for the answer: a function that Lambda stops gives none.
const margin = 500 * time.Millisecond

// retryAfter is when to ask again, in seconds, while S3 does not answer or asks
// for fewer requests. S3 takes minutes to grow with its load.
const retryAfter = "30"

// ServeHTTP implements [http.Handler].
func (f *Function) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p := r.URL.Path; len(p) > 1 && strings.HasSuffix(p, "/") {
		u := *r.URL
		u.Path, u.RawPath = strings.TrimRight(p, "/"), ""
		if u.Path == "" {
			u.Path = "/"
		}
		r = r.WithContext(r.Context())
		r.URL = &u
	}
	f.mux.ServeHTTP(w, r)
}

// serve makes an http.Handler of a route: it bounds its time, turns errors and
// panics into answers, and writes the one line of the log.
func (f *Function) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		start := f.cfg.Now()
		ctx := hr.Context()
		if d, ok := ctx.Deadline(); ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, d.Add(-margin))
			defer cancel()
		}
		r := &request{Request: hr.WithContext(ctx), group: hr.PathValue("group")}
		if r.group == "" {
			r.group = api.DefaultGroup
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		sw := &statusWriter{ResponseWriter: w}
		err := f.protect(rt, sw, r)
		var p *problem
		if err != nil {
			p = classify(err)
			if sw.status == 0 {
				f.answer(sw, rt, p)
			}
		}
		if p != nil || !r.quiet {
			f.log(rt, r, sw.status, f.cfg.Now().Sub(start), p)
		}
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// protect calls the handler and makes an error of a panic: the runtime would end
// the process, and with it what it has in memory.
func (f *Function) protect(rt route, w http.ResponseWriter, r *request) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &problem{status: http.StatusInternalServerError, text: "internal error", hint: "the function's log has the details",
				err: fmt.Errorf("panic: %v\n%s", v, debug.Stack())}
		}
	}()
	if r.group != api.DefaultGroup {
		if err := ota.CheckName(r.group); err != nil {
			r.group = "" // not a word of it into the log
			return fail(http.StatusNotFound, "there is no such group", err.Error())
		}
	}
	return rt.handle(f, w, r)
}

// classify is the one place where errors become statuses.
func classify(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*door.Error](err); ok {
		return &problem{status: e.Status, text: e.Text, hint: e.Details}
	}
	p := &problem{text: err.Error(), err: err}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		p.status, p.err = http.StatusRequestEntityTooLarge, nil
	case errors.Is(err, bucket.ErrNotFound), errors.Is(err, blob.ErrNotFound):
		p.status, p.text = http.StatusNotFound, clean(err)
	case errors.Is(err, bucket.ErrInvalid):
		p.status = http.StatusBadRequest
	case errors.Is(err, bucket.ErrConflict):
		p.status = http.StatusConflict
	case errors.Is(err, bucket.ErrDamaged):
		p.status, p.text, p.hint = http.StatusInternalServerError, "what the bucket has is damaged", clean(err)
	case errors.Is(err, blob.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		p.status, p.text, p.hint, p.retryAfter = http.StatusServiceUnavailable, blob.ErrUnavailable.Error(), clean(err), retryAfter
	default:
		p.status, p.text, p.hint = http.StatusInternalServerError, "internal error", clean(err)
	}
	return p
}

// secrets are what must not get into answers and logs, should an error carry an
// URL: all of a query, and tokens.
var secrets = regexp.MustCompile(`\?[^\s"']*|ilk_[a-z]+_[A-Za-z0-9_-]+`)

// clean returns what an error says, for people who did not write this.
func clean(err error) string {
	return clip(secrets.ReplaceAllString(err.Error(), "..."), 400)
}

// answer answers with p, in the form of the documents or of package api.
func (f *Function) answer(w http.ResponseWriter, rt route, p *problem) {
	h := w.Header()
	for _, name := range []string{"Etag", "Last-Modified", "Content-Length", "Content-Disposition", "Location"} {
		h.Del(name) // set for the answer that did not come
	}
	if p.challenge != "" {
		h.Set("WWW-Authenticate", p.challenge)
	}
	if p.retryAfter != "" {
		h.Set("Retry-After", p.retryAfter)
	}
	if rt.door {
		door.SetHeaders(h)
		w.WriteHeader(p.status)
		w.Write((&door.Error{Text: p.text, Details: p.hint}).JSON())
		return
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(p.status)
	b, err := json.Marshal(api.Error{Error: p.text, Hint: p.hint})
	if err == nil {
		w.Write(append(b, '\n'))
	}
}

// log writes the line. The path is the route's, so that nobody writes into the
// log what he likes.
func (f *Function) log(rt route, r *request, status int, took time.Duration, p *problem) {
	level := slog.LevelInfo
	attrs := []slog.Attr{slog.String("method", clip(r.Method, 20)), slog.String("route", pathOf(rt.pattern)), slog.Int("status", status),
		slog.Float64("ms", float64(took.Microseconds())/1000)}
	if r.group != "" {
		attrs = append(attrs, slog.String("group", r.group))
	}
	attrs = append(attrs, r.attrs...)
	if o := event.OriginOf(r.Context()); o.RequestID != "" {
		attrs = append(attrs, slog.String("request", clip(o.RequestID, 64)))
	}
	if p != nil {
		attrs = append(attrs, slog.String("error", p.text))
		if p.hint != "" {
			attrs = append(attrs, slog.String("hint", p.hint))
		}
		if status >= 500 {
			level = slog.LevelError
			if p.err != nil {
				attrs = append(attrs, slog.String("cause", clip(secrets.ReplaceAllString(p.err.Error(), "..."), 4000)))
			}
		}
	}
	f.cfg.Log.LogAttrs(context.WithoutCancel(r.Context()), level, "request", attrs...)
}

func pathOf(pattern string) string {
	if _, path, ok := strings.Cut(pattern, " "); ok {
		return path
	}
	return pattern
}

// readJSON reads the body into v. Unknown names are skipped, since newer
// devices say more.
func readJSON(w http.ResponseWriter, r *request, v any) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxRequestSize))
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return fail(http.StatusBadRequest, "the body is empty, want JSON", "")
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fail(http.StatusBadRequest, "read the body: "+clip(err.Error(), 200), "")
	}
	return nil
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(append(b, '\n'))
	return err
}

// clip returns at most n bytes of s, as valid UTF-8.
func clip(s string, n int) string {
	return strings.ToValidUTF8(s[:min(len(s), n)], "")
}
