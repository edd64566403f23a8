// Package lambda answers devices without a server: from a bucket that the command
// line publishes to, in an AWS Lambda behind an API Gateway or a function URL.
//
// It is for operators who want to run nothing. Start with [FromEnvironment], as
// cmd/interlock-lambda does, or with [New]; both give an [http.Handler], which
// package event feeds with Lambda's events. [Routes] lists the paths:
//
//	GET  /  /firmware  /firmware/{group}    the document of aws-s3-ota.md
//	GET  /image  /image/{group}  ...        the image, by a redirect to S3; HEAD has
//	                                        the headers of bess-ota-manager.md
//	GET  /bundle  /bundle/{group}           the bundle, likewise
//	POST /api/v1/checkin, status, reports   what agents say, see package api
//	POST /groups/{group}/api/v1/...         the same, for the devices of a group
//
// A device's URL decides which group it belongs to; there is no list of devices.
// Who runs what is in the log: one JSON line for each request.
//
// Promised: nothing but reports is ever written, and a report is confirmed only
// once S3 has it; no check-in without a token, unless the configuration says
// open; no answer with an URL that the document's devices cannot hold; a state
// of the bucket older than five seconds, and a token older than a minute, is never
// answered from; no secret is logged.
//
// The front doors are for everybody who knows their address, and so are the
// presigned URLs that they give out for as long as they work: firmware there is
// signed, not secret.
package lambda

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/door"
)

// Config is how a function behaves. Bucket, Objects and URLs are required,
// or Single with Objects and URLs; the rest works as zero.
type Config struct {
	Bucket  *bucket.Bucket // releases and tokens; nil with Single: only the documents are served
	Objects blob.Store     // the store that Bucket is in
	URLs    blob.Presigner // makes the URLs; may have other credentials than Objects

	// Single, if set, is what the front doors of the default group serve: one file,
	// as the function of aws-s3-ota.md did. It needs no releases in the bucket.
	Single *Single

	// Open lets everybody check in and report. Default: it takes a token.
	Open bool

	URLLifetime  time.Duration // of presigned URLs, 1 s to 7 days; default 1 h
	PollInterval time.Duration // between check-ins of an idle device; default 5 min

	// SkipIdle leaves the line of a check-in out of the log, if the device is idle,
	// has no error to tell, and is told that nothing is new. In a fleet these are
	// nearly all, and logs cost; but then the log does not say who is alive.
	SkipIdle bool

	// MaxURL is the greatest length of an URL in the document in characters; default
	// door.MaxURL. Negative: any.
	MaxURL int

	Now func() time.Time // default: time.Now
	Log *slog.Logger     // default: slog.Default()
}

// Single is one firmware file that is not in a release.
type Single struct {
	Objects blob.Store     // where it is
	URLs    blob.Presigner // for it
	Key     string
	Version string
}

const maxURLLifetime = 7 * 24 * time.Hour // X-Amz-Expires, in AWS Signature Version 4

// Function is the handler. Its methods may be called from any goroutine.
type Function struct {
	cfg   Config
	mux   *http.ServeMux
	cache cache
}

// New checks cfg and returns the handler. It makes no request.
func New(cfg Config) (*Function, error) {
	if cfg.Bucket == nil && cfg.Single == nil {
		return nil, errors.New("configure the function: neither a bucket with releases nor a single file is given")
	}
	if cfg.Bucket != nil && (cfg.Objects == nil || cfg.URLs == nil) {
		return nil, errors.New("configure the function: a bucket is given, but not its store and what makes its URLs")
	}
	if s := cfg.Single; s != nil {
		if s.Objects == nil || s.URLs == nil || s.Key == "" {
			return nil, errors.New("configure the function: a single file needs a store, a key and what makes its URL")
		}
		if err := door.CheckVersion(s.Version); err != nil {
			return nil, fmt.Errorf("configure the function: version of %s: %w", s.Key, err)
		}
	}
	cfg.URLLifetime = cmp.Or(cfg.URLLifetime, door.Lifetime)
	if cfg.URLLifetime < time.Second || cfg.URLLifetime > maxURLLifetime {
		return nil, fmt.Errorf("configure the function: URLs for %v, want 1s to %v", cfg.URLLifetime, maxURLLifetime)
	}
	cfg.PollInterval = cmp.Or(cfg.PollInterval, 5*time.Minute)
	if cfg.PollInterval < time.Second || cfg.PollInterval > maxURLLifetime {
		return nil, fmt.Errorf("configure the function: a poll interval of %v, want 1s to %v", cfg.PollInterval, maxURLLifetime)
	}
	cfg.MaxURL = cmp.Or(cfg.MaxURL, door.MaxURL)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	f := &Function{cfg: cfg, mux: http.NewServeMux()}
	f.cache.init(cfg.Now)
	for _, r := range f.routes() {
		f.mux.Handle(r.pattern, f.serve(r))
	}
	return f, nil
}

// route is a pattern of the mux and what answers it.
type route struct {
	pattern string
	handle  func(*Function, http.ResponseWriter, *request) error
	door    bool // errors are those of the documents
}

// Routes returns the patterns of all paths, as [http.ServeMux] has them, for the
// templates that send requests here. A GET stands for HEAD as well.
func Routes() []string {
	var out []string
	for _, r := range (*Function)(nil).routes() {
		if r.pattern != "/" {
			out = append(out, r.pattern)
		}
	}
	return out
}

func (*Function) routes() []route {
	groups := "POST /groups/{group}"
	return []route{
		{"GET /{$}", (*Function).document, true},
		{"GET /firmware", (*Function).document, true},
		{"GET /firmware/{group}", (*Function).document, true},
		{"GET /image", (*Function).image, true},
		{"GET /image/{group}", (*Function).image, true},
		{"GET /firmware.bin", (*Function).image, true}, // the update server's paths
		{"GET /firmware/{group}/firmware.bin", (*Function).image, true},
		{"GET /bess/latest.bin", (*Function).image, true},
		{"GET /bundle", (*Function).bundle, true},
		{"GET /bundle/{group}", (*Function).bundle, true},
		{"POST " + api.PathCheckin, (*Function).checkin, false},
		{"POST " + api.PathStatus, (*Function).status, false},
		{"POST " + api.PathReports, (*Function).reports, false},
		{groups + api.PathCheckin, (*Function).checkin, false},
		{groups + api.PathStatus, (*Function).status, false},
		{groups + api.PathReports, (*Function).reports, false},
		{"GET /healthz", (*Function).health, false},
		{"/", (*Function).nothing, false},
	}
}

func (f *Function) health(w http.ResponseWriter, r *request) error {
	_, err := w.Write([]byte("ok\n"))
	return err
}

func (f *Function) nothing(w http.ResponseWriter, r *request) error {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		if _, pattern := f.mux.Handler(&http.Request{Method: method, URL: r.URL, Host: r.Host}); pattern != "/" {
			w.Header().Set("Allow", method)
			return fail(http.StatusMethodNotAllowed, clip(r.Method, 20)+" is not possible here", "want "+method)
		}
	}
	return fail(http.StatusNotFound, "there is nothing at this path", "devices of the documents ask for /firmware, agents check in at "+api.PathCheckin)
}
