package https_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/https"
)

func TestCheckin(t *testing.T) {
	key := otatest.NewSigningKey(t)
	r := key.Release(t, "1.1.0", 20_000)
	o := newOther(t, r)
	c := o.config(https.Server)
	c.Hardware, c.Agent, c.Token = "rev2", "0.3.1", "secret"
	src := newSource(t, c)
	src.SetState(func() api.CheckinRequest {
		return api.CheckinRequest{
			Head: api.Head{Device: "somebody else", Digest: "aa", Status: ota.StatusTrial, State: ota.Trial,
				Reason:  strings.Repeat("x", 5000),
				Signals: []ota.Signal{{Name: "soc", Value: 50}, {Name: "temperature", Value: math.NaN()}, {Name: "current", Value: math.Inf(1)}}},
			Skipped: []ota.Skipped{{Digest: "bb"}},
		}
	})
	for range 3 {
		if _, err := src.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := api.CheckinRequest{
		Head: api.Head{Device: "d1", Product: "bess", Hardware: "rev2", Agent: "0.3.1", Version: "1.0.0", Digest: "aa",
			Status: ota.StatusTrial, State: ota.Trial, Reason: strings.Repeat("x", 1000), Signals: []ota.Signal{{Name: "soc", Value: 50}}},
		Skipped: []ota.Skipped{{Digest: "bb"}},
	}
	if diff := cmp.Diff(want, o.checkins[2]); diff != "" {
		t.Errorf("check-in (-want +got):\n%s", diff)
	}
	if got := o.seen("POST"); got != 3 || len(o.requests) != 3 {
		t.Errorf("three checks made %q, want three check-ins", o.requests)
	}
	for i, want := range []string{"", `"` + r.Manifest.Digest + `"`, `"` + r.Manifest.Digest + `"`} {
		if got := o.headers[i].Get("If-None-Match"); got != want {
			t.Errorf("If-None-Match of check %d: got %q, want %q", i+1, got, want)
		}
		if got := o.headers[i].Get("Authorization"); got != "Bearer secret" {
			t.Errorf("Authorization of check %d: got %q", i+1, got)
		}
	}
	if got := src.PollInterval(); got != 90*time.Second {
		t.Errorf("PollInterval: got %v, want 90 s", got)
	}

	// A new release, and then none, have other ETags.
	next := key.Release(t, "1.2.0", 10_000)
	o.set(func() { o.release = next })
	if got, err := src.Latest(t.Context()); err != nil || !bytes.Equal(got, next.Signed) {
		t.Errorf("after a new release: got %.60q, %v", got, err)
	}
	o.set(func() { o.release = nil })
	for range 2 { // the second time with a 304
		if got, err := src.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) || got != nil {
			t.Errorf("after it was withdrawn: got %.60q, %v", got, err)
		}
	}
}

// A poll costs no new handshake while the connection is kept.
func TestPollsShareAConnection(t *testing.T) {
	o := newOther(t, otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000))
	from := map[string]bool{}
	o.before = func(_ http.ResponseWriter, r *http.Request) { o.set(func() { from[r.RemoteAddr] = true }) }
	src := newSource(t, o.config(https.Server))
	for range 5 {
		if _, err := src.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := src.Status(t.Context(), api.StatusUpdate{}); err != nil {
			t.Fatal(err)
		}
		if err := src.Report(t.Context(), ota.Report{ID: "r1"}); err != nil {
			t.Fatal(err)
		}
	}
	if len(from) != 1 {
		t.Errorf("15 requests came over %d connections, want 1", len(from))
	}
}

// Addresses stop working while an image is on its way. The download goes on at
// the same byte with a new one.
func TestAddressExpires(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	im := &r.Manifest.Images[0]
	for _, kind := range []https.Kind{https.Server, https.Manifest} {
		t.Run(string(kind), func(t *testing.T) {
			o := newOther(t, r)
			src := newSource(t, o.config(kind))
			if _, err := src.Latest(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i, offset := range []int64{0, 8192, 12288} {
				o.set(func() { o.access, o.requests = fmt.Sprint("b", i), nil })
				rc, err := src.Open(t.Context(), r.Manifest, im, offset)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(rc)
				rc.Close()
				if err != nil || !bytes.Equal(got, r.Images["controller"][offset:]) {
					t.Errorf("at %d: got %d bytes, %v", offset, len(got), err)
				}
				if n := o.seen("POST /api/v1/checkin") + o.seen("GET /manifest"); n != 1 {
					t.Errorf("at %d: asked %d times for an address, want once: %q", offset, n, o.requests)
				}
			}
			// If the new address does not work either, that is the end of it.
			o.set(func() {
				o.requests = nil
				o.before = func(w http.ResponseWriter, r *http.Request) {
					if strings.HasPrefix(r.URL.Path, "/d/") || r.URL.Path == "/presigned" {
						http.Error(w, "expired", http.StatusForbidden)
					}
				}
			})
			if rc, err := src.Open(t.Context(), r.Manifest, im, 4096); err == nil {
				rc.Close()
				t.Error("Open: no error")
			} else if strings.Contains(err.Error(), "key=") {
				t.Errorf("error %q holds the query of a presigned address", err)
			} else {
				expect(t, err, ota.ErrServer, "the server gave this address itself")
			}
			if len(o.requests) > 3 {
				t.Errorf("%d requests for an image that nobody has: %q", len(o.requests), o.requests)
			}
		})
	}
}

func TestReport(t *testing.T) {
	rep := ota.Report{ID: "a1", Digest: "aa", Version: "1.1.0", From: "1.0.0", Running: "1.1.0", Result: ota.Succeeded, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	o := newOther(t, nil)
	src := newSource(t, o.config(https.Server))
	for range 2 {
		if err := src.Report(t.Context(), rep); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(map[string]ota.Report{"a1": rep}, o.reports); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	for name, tt := range map[string]struct {
		status int
		body   string
		code   ota.ErrorCode
		say    string
	}{
		"another was stored":  {200, `{"stored":["b2"]}`, ota.ErrServer, "without saying that it is stored"},
		"nothing was stored":  {200, `{}`, ota.ErrServer, "without saying that it is stored"},
		"it was rejected":     {200, `{"stored":[],"rejected":[{"id":"a1","error":"no such release"}]}`, ota.ErrServer, "no such release"},
		"no JSON":             {200, `<html>Welcome to Hotel WiFi</html>`, ota.ErrServer, "login page"},
		"half the JSON":       {200, `{"stored":["a1"`, ota.ErrServer, "JSON"},
		"no body":             {204, ``, ota.ErrServer, "JSON"},
		"the disk is full":    {507, `{"error":"the disk is full","hint":"make room"}`, ota.ErrServer, "the disk is full (make room)"},
		"the token is wrong":  {401, `{"error":"no"}`, ota.ErrAuthentication, "401"},
		"a body without end":  {200, `{"stored":["` + strings.Repeat("x", api.MaxResponseSize), ota.ErrServer, "more than"},
		"a gateway is broken": {502, ``, ota.ErrServer, "proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOther(t, nil)
			o.before = func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.body)
			}
			err := newSource(t, o.config(https.Server)).Report(t.Context(), rep)
			if code := ota.CodeOf(err); err == nil || code != tt.code || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v (%s), want %s and %q", err, code.Name(), tt.code.Name(), tt.say)
			}
		})
	}
	t.Run("nobody to tell", func(t *testing.T) {
		o := newOther(t, nil)
		if err := newSource(t, o.config(https.Bundle)).Report(t.Context(), rep); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("got %v, want %v", err, errors.ErrUnsupported)
		}
	})
}

func TestBadOffers(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	good := func() *api.ReleaseOffer {
		return &api.ReleaseOffer{Version: "1.1.0", Signed: r.Signed,
			Images: []api.ImageOffer{{Component: "controller", URL: "/d/a1/controller", SHA256: r.Manifest.Images[0].SHA256}}}
	}
	for name, tt := range map[string]struct {
		change func(*api.ReleaseOffer)
		say    string
	}{
		"no manifest":      {func(o *api.ReleaseOffer) { o.Signed = nil }, "no signed manifest"},
		"huge manifest":    {func(o *api.ReleaseOffer) { o.Signed = make([]byte, ota.MaxManifestSize+1) }, "want at most"},
		"no images":        {func(o *api.ReleaseOffer) { o.Images = nil }, "0 images"},
		"too many images":  {func(o *api.ReleaseOffer) { o.Images = make([]api.ImageOffer, ota.MaxImages+1) }, "65 images"},
		"no address":       {func(o *api.ReleaseOffer) { o.Images[0].URL = "" }, "no address"},
		"http address":     {func(o *api.ReleaseOffer) { o.Images[0].URL = "http://127.0.0.1/x?Signature=abc" }, "not https"},
		"file address":     {func(o *api.ReleaseOffer) { o.Images[0].URL = "file:///etc/shadow" }, "file"},
		"ftp address":      {func(o *api.ReleaseOffer) { o.Images[0].URL = "ftp://127.0.0.1/x" }, "ftp"},
		"unix address":     {func(o *api.ReleaseOffer) { o.Images[0].URL = "unix:/run/docker.sock" }, "unix"},
		"user in address":  {func(o *api.ReleaseOffer) { o.Images[0].URL = "https://u:p@127.0.0.1/" }, "user"},
		"address too long": {func(o *api.ReleaseOffer) { o.Images[0].URL = strings.Repeat("x", 9000) }, "9000 characters"},
		"no URL at all":    {func(o *api.ReleaseOffer) { o.Images[0].URL = "https://[::1" }, "not a URL"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOther(t, r)
			o.before = func(w http.ResponseWriter, r *http.Request) {
				offer := good()
				tt.change(offer)
				json.NewEncoder(w).Encode(api.CheckinResponse{Release: offer})
			}
			_, err := newSource(t, o.config(https.Server)).Latest(t.Context())
			if ota.CodeOf(err) != ota.ErrServer || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v, want a server error that says %q", err, tt.say)
			}
			if err != nil && strings.Contains(err.Error(), "abc") {
				t.Errorf("error %q holds a query", err)
			}
		})
	}
	t.Run("304 to the first check-in", func(t *testing.T) {
		o := newOther(t, r)
		o.before = func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotModified) }
		if _, err := newSource(t, o.config(https.Server)).Latest(t.Context()); ota.CodeOf(err) != ota.ErrServer {
			t.Errorf("got %v", err)
		}
	})
}

func TestPollIntervalIsBounded(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"":                     90 * time.Second, // then the body counts
		"60":                   time.Minute,
		"0":                    0,
		"-5":                   0,
		"999999999":            7 * 24 * time.Hour,
		"99999999999999999999": 90 * time.Second,
		"soon":                 90 * time.Second,
	} {
		t.Run(header, func(t *testing.T) {
			o := newOther(t, nil)
			o.before = func(w http.ResponseWriter, r *http.Request) {
				if header != "" {
					w.Header().Set(api.HeaderPoll, header)
				}
				io.WriteString(w, `{"poll_seconds": 90}`)
			}
			src := newSource(t, o.config(https.Server))
			if _, err := src.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
				t.Fatal(err)
			}
			if got := src.PollInterval(); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// A server that asks to be left alone is, whoever asks for a check.
func TestRetryAfter(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		for header, want := range map[string]time.Duration{
			"120":       2 * time.Minute,
			"999999999": time.Hour,
			time.Now().Add(10 * time.Minute).UTC().Format(http.TimeFormat): 10 * time.Minute,
		} {
			t.Run(fmt.Sprint(status, " ", header), func(t *testing.T) {
				o := newOther(t, nil)
				o.before = func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Retry-After", header)
					w.WriteHeader(status)
				}
				src := newSource(t, o.config(https.Server))
				for i := range 3 {
					_, err := src.Latest(t.Context())
					e, ok := errors.AsType[*https.Error](err)
					if !ok || e.Code != ota.ErrServer {
						t.Fatalf("check %d: got %v", i+1, err)
					}
					if e.RetryAfter > want || e.RetryAfter < want-time.Minute {
						t.Errorf("check %d: RetryAfter is %v, want about %v", i+1, e.RetryAfter, want)
					}
				}
				if len(o.requests) != 1 {
					t.Errorf("%d requests reached the server, want 1", len(o.requests))
				}
				if got := src.PollInterval(); got > want || got < want-time.Minute {
					t.Errorf("PollInterval: got %v, want about %v", got, want)
				}
			})
		}
	}
}
