package bessota_test

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/interlock-energy/ota/internal/original/bessota"
)

var firmware = bytes.Repeat([]byte("firmware 2.0.0 "), 5000)

// server is a fake update server and, at /s3, a fake bucket.
type server struct {
	*httptest.Server
	header   http.Header // of the answers at /bess/latest.bin
	body     []byte
	redirect string // where a GET is sent
	password string

	mu    sync.Mutex
	asked []string
}

func newServer(t *testing.T) *server {
	m, s256 := md5.Sum(firmware), sha256.Sum256(firmware)
	s := &server{body: firmware, header: http.Header{"X-Firmware-Version": {"2.0.0"}, "X-Firmware-Md5": {hex.EncodeToString(m[:])},
		"X-Firmware-Sha256": {hex.EncodeToString(s256[:])}, "X-Firmware-Mandatory": {"true"}, "X-Firmware-Minsoc": {"42.5"}, "X-Firmware-Notes": {"Balancing"}}}
	mux := http.NewServeMux()
	mux.HandleFunc("/bess/latest.bin", func(w http.ResponseWriter, r *http.Request) {
		s.note(r)
		if _, p, _ := r.BasicAuth(); p != s.password {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		for name, v := range s.header {
			w.Header()[name] = v
		}
		if r.Method == http.MethodGet && s.redirect != "" {
			w.Header().Set("Location", s.redirect)
			w.WriteHeader(http.StatusFound)
			return
		}
		s.send(w)
	})
	mux.HandleFunc("/s3", func(w http.ResponseWriter, r *http.Request) {
		s.note(r)
		if r.Header.Get("Authorization") != "" { // as Amazon S3 does beside a presigned URL
			http.Error(w, "<Code>InvalidArgument</Code>", http.StatusBadRequest)
			return
		}
		s.send(w)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) {
		s.note(r)
		w.Header().Set("Location", "/loop")
		w.WriteHeader(302)
	})
	mux.HandleFunc("/html", func(w http.ResponseWriter, r *http.Request) { s.note(r); http.Redirect(w, r, "/s3", http.StatusFound) })
	s.Server = httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) send(w http.ResponseWriter) {
	w.Header().Set("Content-Length", fmt.Sprint(len(s.body)))
	w.Write(s.body)
}

func (s *server) note(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method+" "+r.URL.Path)
}

func (s *server) requests() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := strings.Join(s.asked, ", ")
	s.asked = nil
	return asked
}

func (s *server) controller(t *testing.T, change func(*bessota.Config)) (*bessota.Client, *bytes.Buffer) {
	t.Helper()
	var flash bytes.Buffer
	cfg := bessota.Config{URL: s.URL + "/bess/latest.bin", Version: "1.0.0", Flash: &flash,
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})}
	if change != nil {
		change(&cfg)
	}
	c, err := bessota.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, &flash
}

func TestUpdate(t *testing.T) {
	s := newServer(t)
	c, flash := s.controller(t, nil)
	r, err := c.Update(t.Context())
	if err != nil || !r.Updated || !bytes.Equal(flash.Bytes(), firmware) {
		t.Fatalf("got %+v, %v, %d bytes; want the image", r, err, flash.Len())
	}
	want := bessota.Info{Version: "2.0.0", Notes: "Balancing", Size: int64(len(firmware)), MD5: s.header.Get("X-Firmware-MD5"),
		SHA256: s.header.Get("X-Firmware-SHA256"), Mandatory: true, Reboot: true, MinSoC: 42}
	if r.Info != want {
		t.Errorf("got %+v, want %+v", r.Info, want)
	}
	if got, want := s.requests(), "HEAD /bess/latest.bin, GET /bess/latest.bin"; got != want {
		t.Errorf("requests: %s; want %s", got, want)
	}
}

func TestHeaders(t *testing.T) {
	for _, tt := range []struct {
		name, header, value string
		want                func(bessota.Info) bool
	}{
		{"long version", "X-Firmware-Version", strings.Repeat("7", 40), func(i bessota.Info) bool { return i.Version == strings.Repeat("7", 31) }},
		{"long notes", "X-Firmware-Notes", strings.Repeat("n", 300), func(i bessota.Info) bool { return len(i.Notes) == 255 }},
		{"not mandatory", "X-Firmware-Mandatory", "True", func(i bessota.Info) bool { return !i.Mandatory }},
		{"no restart", "X-Firmware-Reboot", "false", func(i bessota.Info) bool { return !i.Reboot }},
		{"restart, whatever else it says", "X-Firmware-Reboot", "no", func(i bessota.Info) bool { return i.Reboot }},
		{"SoC not named", "X-Firmware-Minsoc", "", func(i bessota.Info) bool { return i.MinSoC == 30 }},
		{"SoC not a number", "X-Firmware-Minsoc", "high", func(i bessota.Info) bool { return i.MinSoC == 0 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t)
			s.header.Set(tt.header, tt.value)
			c, _ := s.controller(t, nil)
			if r, err := c.Update(t.Context()); err != nil || !tt.want(r.Info) {
				t.Errorf("got %+v, %v", r.Info, err)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		name    string
		code    bessota.Code
		text    string
		asks    string
		server  func(*server)
		control func(*bessota.Config)
	}{
		{"up to date", bessota.NoUpdates, "runs already", "HEAD /bess/latest.bin", nil, func(c *bessota.Config) { c.Version = "2.0.0" }},
		{"nobody there", bessota.Connectivity, "refused", "", func(s *server) { s.Close() }, nil},
		{"plain HTTP", bessota.Connectivity, "want https", "", nil, func(c *bessota.Config) { c.URL = strings.Replace(c.URL, "https", "http", 1) }},
		{"other name", bessota.Connectivity, "certificate", "", nil, func(c *bessota.Config) { c.URL = strings.Replace(c.URL, "127.0.0.1", "localhost", 1) }},
		{"not found", bessota.Connectivity, "404", "", nil, func(c *bessota.Config) { c.URL += "x" }},
		{"URL too long", bessota.Connectivity, "room for 511", "", nil, func(c *bessota.Config) { c.URL += "?" + strings.Repeat("x", 490) }},
		{"loop", bessota.Connectivity, "more than 10 redirects", strings.Repeat("HEAD /loop, ", 10) + "HEAD /loop", nil, func(c *bessota.Config) { c.URL = strings.Replace(c.URL, "/bess/latest.bin", "/loop", 1) }},
		{"redirect to plain HTTP", bessota.Connectivity, "want https", "HEAD /bess/latest.bin, GET /bess/latest.bin", func(s *server) { s.redirect = "http://127.0.0.1/s3" }, nil},
		{"no password", bessota.Authentication, "401", "HEAD /bess/latest.bin", func(s *server) { s.password = "secret" }, nil},
		{"wrong password", bessota.Authentication, "401", "HEAD /bess/latest.bin, HEAD /bess/latest.bin", func(s *server) { s.password = "secret" },
			func(c *bessota.Config) { c.User, c.Password = "bess_device", "wrong" }},
		{"no version", bessota.IncompatibleVersion, "X-Firmware-Version", "HEAD /bess/latest.bin", func(s *server) { s.header.Del("X-Firmware-Version") }, nil},
		{"partition too small", bessota.InsufficientSpace, "75000 bytes, the partition 74999", "HEAD /bess/latest.bin", nil, func(c *bessota.Config) { c.FlashSize = 74999 }},
		{"battery low", bessota.BatteryLow, "at 41 %", "HEAD /bess/latest.bin", nil, func(c *bessota.Config) { c.SoC = func() int { return 41 } }},
		{"not safe", bessota.BMSUnsafe, "not safe", "HEAD /bess/latest.bin", nil, func(c *bessota.Config) { c.Safe = func() bool { return false } }},
		{"worn-out flash", bessota.FlashWrite, "sector 3", "HEAD /bess/latest.bin, GET /bess/latest.bin", nil, func(c *bessota.Config) { c.Flash = brokenFlash{} }},
		{"tampered, same length", bessota.ValidationFailed, "SHA-256", "HEAD /bess/latest.bin, GET /bess/latest.bin",
			func(s *server) { s.body = bytes.Clone(s.body); s.body[70000] ^= 1 }, nil},
		{"tampered, MD5 only", bessota.ValidationFailed, "MD5", "HEAD /bess/latest.bin, GET /bess/latest.bin",
			func(s *server) { s.body = bytes.Clone(s.body); s.body[70000] ^= 1; s.header.Del("X-Firmware-SHA256") }, nil},
		{"a page in front of the image", bessota.ValidationFailed, "SHA-256", "HEAD /bess/latest.bin, GET /bess/latest.bin, GET /html, GET /s3",
			func(s *server) { s.redirect = "/html" }, nil},
		{"S3 beside a password", bessota.Connectivity, "InvalidArgument", "HEAD /bess/latest.bin, HEAD /bess/latest.bin, GET /bess/latest.bin, GET /s3",
			func(s *server) { s.password, s.redirect = "secret", "/s3" }, func(c *bessota.Config) { c.User, c.Password = "bess_device", "secret" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t)
			if tt.server != nil {
				tt.server(s)
			}
			c, _ := s.controller(t, tt.control)
			r, err := c.Update(t.Context())
			if got := bessota.CodeOf(err); got != tt.code || r.Updated || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %+v, %v; want error %d with %q", r, err, tt.code, tt.text)
			}
			if got := s.requests(); got != tt.asks {
				t.Errorf("requests: %s; want %s", got, tt.asks)
			}
		})
	}
}

type brokenFlash struct{}

func (brokenFlash) Write(p []byte) (int, error) { return 0, errors.New("sector 3 is worn out") }

func TestServerErrors(t *testing.T) {
	for status, want := range map[int]bessota.Code{400: bessota.Connectivity, 403: bessota.Authentication, 500: bessota.Server, 503: bessota.Server, 204: bessota.Connectivity} {
		h := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }))
		c, _ := (&server{Server: h}).controller(t, nil)
		if _, err := c.Update(t.Context()); bessota.CodeOf(err) != want {
			t.Errorf("status %d: got %v, want error %d", status, err, want)
		}
		h.Close()
	}
}

func TestShortBody(t *testing.T) {
	h := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Firmware-Version", "2.0.0")
		w.Header().Set("Content-Length", "1000")
		w.Write(make([]byte, 999))
	}))
	defer h.Close()
	c, flash := (&server{Server: h}).controller(t, nil)
	if r, err := c.Update(t.Context()); bessota.CodeOf(err) != bessota.Connectivity || r.Updated || r.Size != 999 || flash.Len() != 999 {
		t.Errorf("got %+v, %v; want that it ended after 999 bytes", r, err)
	}
}

// User and password go out after a challenge, and a redirect keeps the method.
func TestPasswordAndRedirect(t *testing.T) {
	s := newServer(t)
	s.password = "secret"
	c, flash := s.controller(t, func(c *bessota.Config) { c.User, c.Password = "bess_device", "secret" })
	if r, err := c.Update(t.Context()); err != nil || !r.Updated || flash.Len() != len(firmware) {
		t.Fatalf("got %+v, %v", r, err)
	}
	if got, want := s.requests(), "HEAD /bess/latest.bin, HEAD /bess/latest.bin, GET /bess/latest.bin"; got != want {
		t.Errorf("requests: %s; want %s", got, want)
	}
	s.password, s.redirect = "", "/s3"
	c, flash = s.controller(t, nil)
	if r, err := c.Update(t.Context()); err != nil || !r.Updated || flash.Len() != len(firmware) {
		t.Fatalf("got %+v, %v", r, err)
	}
	if got, want := s.requests(), "HEAD /bess/latest.bin, GET /bess/latest.bin, GET /s3"; got != want {
		t.Errorf("requests: %s; want %s", got, want)
	}
}

// Path and query may have 496 characters, and no more.
func TestRequestLine(t *testing.T) {
	s := newServer(t)
	for n, want := range map[int]bessota.Code{496: bessota.None, 497: bessota.Connectivity} {
		s.redirect = "/s3?" + strings.Repeat("x", n-4)
		c, _ := s.controller(t, nil)
		if _, err := c.Update(t.Context()); bessota.CodeOf(err) != want {
			t.Errorf("%d characters: got %v, want error %d", n, err, want)
		}
	}
}

func TestNew(t *testing.T) {
	for _, cfg := range []bessota.Config{{}, {URL: "https://x", Flash: io.Discard}, {URL: "https://x", Flash: io.Discard, CertPEM: []byte("no PEM")}} {
		if _, err := bessota.New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

// What the check did not say is noticed before the partition's end is overrun.
func TestLargerThanSaid(t *testing.T) {
	h := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Firmware-Version", "2.0.0")
		if r.Method == http.MethodGet {
			w.Write(firmware)
			w.(http.Flusher).Flush()
		}
	}))
	defer h.Close()
	c, flash := (&server{Server: h}).controller(t, func(c *bessota.Config) { c.FlashSize = 60_000 })
	if r, err := c.Update(t.Context()); bessota.CodeOf(err) != bessota.InsufficientSpace || r.Updated || flash.Len() > 60_000 {
		t.Errorf("got %+v, %v, %d bytes written; want that there is no room", r, err, flash.Len())
	}
}
