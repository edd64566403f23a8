package awsota_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/original/awsota"
)

// server is a fake API and bucket in one, over TLS.
type server struct {
	*httptest.Server
	manifest func(w http.ResponseWriter, r *http.Request)
	image    func(w http.ResponseWriter, r *http.Request)

	mu    sync.Mutex
	asked []*http.Request
}

func (s *server) note(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r)
}

// requests returns those since the last call.
func (s *server) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

var firmware = bytes.Repeat([]byte("firmware 1.0.1 "), 10_000)

func newServer(t *testing.T) *server {
	s := &server{image: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(firmware)))
		w.Write(firmware)
	}}
	s.manifest = func(w http.ResponseWriter, r *http.Request) { s.answer(w, "1.0.1", s.URL+"/image") }
	mux := http.NewServeMux()
	mux.HandleFunc("/firmware", func(w http.ResponseWriter, r *http.Request) { s.note(r); s.manifest(w, r) })
	mux.HandleFunc("/image", func(w http.ResponseWriter, r *http.Request) { s.note(r); s.image(w, r) })
	s.Server = httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust it
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) answer(w http.ResponseWriter, version, url string) {
	json.NewEncoder(w).Encode(map[string]string{"version": version, "url": url})
}

func (s *server) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// device is a client that writes down what happens, and does not wait.
type device struct {
	*awsota.Client
	flash  bytes.Buffer
	events []string
	waited []time.Duration
}

func (s *server) device(t *testing.T, change func(*awsota.Config)) *device {
	t.Helper()
	d := &device{}
	note := func(what string) func() { return func() { d.events = append(d.events, what) } }
	yes := func(what string) func() bool { return func() bool { note(what)(); return true } }
	cfg := awsota.Config{ManifestURL: s.URL + "/firmware", Version: "1.0.0", RootCA: s.ca(), Flash: &d.flash,
		Wait: func(_ context.Context, x time.Duration) error { d.waited = append(d.waited, x); return nil },
		Callbacks: awsota.Callbacks{OnCheckStart: yes("check"), OnSuspendTasks: yes("suspend"), OnOtaStarted: note("started"),
			OnOtaProgress: func(p int) { note(fmt.Sprint(p))() }, OnOtaFinished: note("finished"), OnOtaUpToDate: note("up to date"),
			OnOtaFailed: func(string) { note("failed")() }, OnResumeTasks: note("resume")}}
	if change != nil {
		change(&cfg)
	}
	c, err := awsota.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d.Client = c
	return d
}

func (d *device) wantEvents(t *testing.T, want string) {
	t.Helper()
	if got := strings.Join(d.events, " "); got != want {
		t.Errorf("callbacks:\n got %s\nwant %s", got, want)
	}
}

func TestUpdate(t *testing.T) {
	s := newServer(t)
	d := s.device(t, nil)
	r, err := d.Update(t.Context())
	if want := (awsota.Result{Updated: true, Version: "1.0.1", Size: int64(len(firmware)), Tries: 1}); err != nil || r != want {
		t.Fatalf("got %+v, %v; want %+v", r, err, want)
	}
	if !bytes.Equal(d.flash.Bytes(), firmware) {
		t.Errorf("%d bytes in the flash, want the image of %d", d.flash.Len(), len(firmware))
	}
	d.wantEvents(t, "check suspend started 0 10 20 30 40 50 60 70 80 90 100 finished")
	asked := s.requests()
	if len(asked) != 2 || asked[0].RemoteAddr == asked[1].RemoteAddr {
		t.Fatalf("%d requests; want two, each with a connection of its own", len(asked))
	}
	ask := asked[0]
	for name, want := range map[string]string{"Accept": "application/json", "Cache-Control": "no-cache"} {
		if got := ask.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !ask.Close || ask.Proto != "HTTP/1.1" || ask.TLS.Version != 0x0303 {
		t.Errorf("Connection: close %v, %s, TLS %x; want true, HTTP/1.1, 303", ask.Close, ask.Proto, ask.TLS.Version)
	}
}

func TestUpToDate(t *testing.T) {
	s := newServer(t)
	d := s.device(t, func(c *awsota.Config) { c.Version = "1.0.1" })
	if r, err := d.Update(t.Context()); err != nil || r.Updated || d.flash.Len() > 0 {
		t.Errorf("got %+v, %v, %d bytes written; want no update", r, err, d.flash.Len())
	}
	d.wantEvents(t, "check suspend up to date resume")
	// An older one is another one.
	d = s.device(t, func(c *awsota.Config) { c.Version = "2.0.0" })
	if r, err := d.Update(t.Context()); err != nil || !r.Updated {
		t.Errorf("with 2.0.0 running: got %+v, %v; want 1.0.1 installed", r, err)
	}
}

func TestCutStrings(t *testing.T) {
	s := newServer(t)
	long := "1.0.0-" + strings.Repeat("x", 30)
	s.manifest = func(w http.ResponseWriter, r *http.Request) { s.answer(w, long, s.URL+"/image") }
	d := s.device(t, nil)
	if r, err := d.Update(t.Context()); err != nil || r.Version != long[:31] || !r.Updated {
		t.Errorf("got %+v, %v; want version %s", r, err, long[:31])
	}
	// Versions that differ only after 31 characters are one to the device.
	d = s.device(t, func(c *awsota.Config) { c.Version = long[:31] + "other" })
	if r, err := d.Update(t.Context()); err != nil || r.Updated {
		t.Errorf("got %+v, %v; want no update", r, err)
	}
	for n, ok := range map[int]bool{511: true, 512: false} {
		want := s.URL + "/image?"
		want += strings.Repeat("x", n-len(want)-1) + "y"
		s.manifest = func(w http.ResponseWriter, r *http.Request) { s.answer(w, "1.0.1", want) }
		s.image = func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.RawQuery, "y") {
				w.WriteHeader(http.StatusForbidden) // as S3, whose signature is cut
				return
			}
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "image")
		}
		d = s.device(t, nil)
		r, err := d.Update(t.Context())
		if ok && (err != nil || !r.Updated) {
			t.Errorf("URL of %d characters: %v", n, err)
		}
		if !ok && (!errors.Is(err, awsota.ErrDownload) || !strings.Contains(err.Error(), "512 characters was cut to the 511")) {
			t.Errorf("URL of %d characters: got %v, want that it was cut", n, err)
		}
	}
	path := s.URL + "/firmware?"
	d = s.device(t, func(c *awsota.Config) { c.ManifestURL = path + strings.Repeat("x", 300) })
	s.requests()
	s.manifest = func(w http.ResponseWriter, r *http.Request) { s.answer(w, "1.0.0", "https://x") }
	if _, err := d.Update(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := len(s.requests()[0].URL.RawQuery), 255-len(path); got != want {
		t.Errorf("the manifest's URL: %d characters of the query arrived, want %d", got, want)
	}
}

func TestManifestThatIsNone(t *testing.T) {
	for name, answer := range map[string]func(*server, http.ResponseWriter){
		"500":                func(s *server, w http.ResponseWriter) { w.WriteHeader(500); s.answer(w, "1.0.1", s.URL+"/image") },
		"404":                func(s *server, w http.ResponseWriter) { w.WriteHeader(404) },
		"no JSON":            func(s *server, w http.ResponseWriter) { io.WriteString(w, "<html>") },
		"cut JSON":           func(s *server, w http.ResponseWriter) { io.WriteString(w, `{"version": "1.0.1", "url": "https://`) },
		"no version":         func(s *server, w http.ResponseWriter) { s.answer(w, "", s.URL+"/image") },
		"no URL":             func(s *server, w http.ResponseWriter) { s.answer(w, "1.0.1", "") },
		"version a number":   func(s *server, w http.ResponseWriter) { io.WriteString(w, `{"version": 1, "url": "https://x"}`) },
		"plain HTTP":         func(s *server, w http.ResponseWriter) { s.answer(w, "1.0.1", "http://127.0.0.1/image") },
		"https in uppercase": func(s *server, w http.ResponseWriter) { s.answer(w, "1.0.1", strings.ToUpper(s.URL)+"/image") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.manifest = func(w http.ResponseWriter, r *http.Request) { answer(s, w) }
			d := s.device(t, nil)
			r, err := d.Update(t.Context())
			if !errors.Is(err, awsota.ErrManifest) || r.Tries != 3 || d.flash.Len() > 0 {
				t.Errorf("got %+v, %v, %d bytes written; want no manifest after 3 tries", r, err, d.flash.Len())
			}
			if want := []time.Duration{2 * time.Second, 2 * time.Second}; !slices.Equal(d.waited, want) {
				t.Errorf("waited %v, want %v", d.waited, want)
			}
			d.wantEvents(t, "check suspend failed resume")
		})
	}
	// The third try may be the first good one.
	s := newServer(t)
	good, left := s.manifest, 2
	s.manifest = func(w http.ResponseWriter, r *http.Request) {
		if left--; left >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		good(w, r)
	}
	d := s.device(t, nil)
	if r, err := d.Update(t.Context()); err != nil || r.Tries != 3 || !r.Updated {
		t.Errorf("got %+v, %v; want an update at the third try", r, err)
	}
}

func TestImageThatIsNone(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		image      func(*server, http.ResponseWriter)
	}{
		{"expired", "403", func(_ *server, w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) }},
		{"moved", "302", func(s *server, w http.ResponseWriter) {
			w.Header().Set("Location", s.URL+"/firmware")
			w.WriteHeader(http.StatusFound)
		}},
		{"without a length", "Content-Length -1", func(_ *server, w http.ResponseWriter) { w.Write(firmware); w.(http.Flusher).Flush() }},
		{"empty", "Content-Length 0", func(*server, http.ResponseWriter) {}},
		{"short", "ended after 150000 of 150001", func(_ *server, w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(len(firmware)+1))
			w.Write(firmware)
		}},
		{"too large", "the partition 200000", func(_ *server, w http.ResponseWriter) {
			w.Header().Set("Content-Length", "200001")
			w.Write(make([]byte, 200001))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t)
			s.image = func(w http.ResponseWriter, r *http.Request) { tt.image(s, w) }
			d := s.device(t, func(c *awsota.Config) { c.FlashSize = 200_000 })
			if r, err := d.Update(t.Context()); !errors.Is(err, awsota.ErrDownload) || r.Updated || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %+v, %v; want that the download failed: %s", r, err, tt.want)
			}
			if n := len(s.requests()); n != 2 {
				t.Errorf("%d requests, want 2: the image is asked for once", n)
			}
			if got := d.events[len(d.events)-2:]; !slices.Equal(got, []string{"failed", "resume"}) {
				t.Errorf("callbacks end with %q, want failed resume", got)
			}
		})
	}
}

// A manifest may be elsewhere; the library follows.
func TestManifestMoved(t *testing.T) {
	s := newServer(t)
	good := s.manifest
	s.manifest = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "" {
			http.Redirect(w, r, "/firmware?there", http.StatusTemporaryRedirect)
			return
		}
		good(w, r)
	}
	if r, err := s.device(t, nil).Update(t.Context()); err != nil || !r.Updated {
		t.Errorf("got %+v, %v; want an update", r, err)
	}
}

func TestTrust(t *testing.T) {
	s, plain := newServer(t), httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for name, change := range map[string]func(*awsota.Config){
		"plain HTTP": func(c *awsota.Config) { c.ManifestURL = plain.URL + "/firmware" },
		"other CA":   func(c *awsota.Config) { c.RootCA = otherCA(t) },
		"other name": func(c *awsota.Config) {
			c.ManifestURL = strings.Replace(s.URL, "127.0.0.1", "localhost", 1) + "/firmware"
		},
	} {
		d := s.device(t, change)
		if _, err := d.Update(t.Context()); !errors.Is(err, awsota.ErrManifest) || len(s.requests()) > 0 {
			t.Errorf("%s: got %v; want no manifest, and no request to arrive", name, err)
		}
	}
	if _, err := awsota.New(awsota.Config{ManifestURL: s.URL, RootCA: []byte("no PEM"), Flash: io.Discard}); err == nil {
		t.Error("a device without a root CA was made")
	}
}

func TestDenied(t *testing.T) {
	s := newServer(t)
	no := func() bool { return false }
	for _, change := range []func(*awsota.Config){
		func(c *awsota.Config) { c.Callbacks.OnCheckStart = no },
		func(c *awsota.Config) { c.Callbacks.OnSuspendTasks = no },
	} {
		if _, err := s.device(t, change).Update(t.Context()); !errors.Is(err, awsota.ErrDenied) || len(s.requests()) > 0 {
			t.Errorf("got %v; want that it was denied, and no request", err)
		}
	}
}

type brokenFlash struct{}

func (brokenFlash) Write(p []byte) (int, error) { return 0, errors.New("sector 3 is worn out") }

func TestFlashThatFails(t *testing.T) {
	d := newServer(t).device(t, func(c *awsota.Config) { c.Flash = brokenFlash{} })
	if r, err := d.Update(t.Context()); !errors.Is(err, awsota.ErrDownload) || r.Updated || !strings.Contains(err.Error(), "sector 3") {
		t.Errorf("got %+v, %v; want the flash's error", r, err)
	}
}
