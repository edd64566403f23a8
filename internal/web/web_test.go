package web_test

import (
	"bytes"
	"crypto"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/web"
)

func Example() {
	dir, err := os.MkdirTemp("", "interlock")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	s, err := web.Open(dir, web.Config{PublicURL: "https://ota.example.com"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	srv := httptest.NewServer(s.Handler()) // in earnest: h := s.HTTP(); h.Addr = ":8443"; h.ListenAndServeTLS(...)
	defer srv.Close()

	req, err := http.NewRequest("POST", srv.URL+api.PathCheckin, strings.NewReader(`{"device":"rack-7","product":"bess"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	req.Header.Set("Authorization", "Bearer "+s.FirstTokens.Device)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer res.Body.Close()
	fmt.Println(res.Status, res.Header.Get("ETag"))
	// Output: 200 OK "none"
}

// clock is a clock that tests turn on.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// site is a server under test and what one needs to talk to it.
type site struct {
	t                testing.TB
	dir              string
	cfg              web.Config
	s                *web.Server
	srv              *httptest.Server
	operator, device string // tokens
	clock            *clock
}

// newSite starts a server on a new data directory.
func newSite(t testing.TB, cfg web.Config) *site {
	x := &site{t: t, dir: t.TempDir(), clock: &clock{t: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}}
	cfg.Now = x.clock.Now
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	x.cfg = cfg
	x.start()
	x.operator, x.device = x.s.FirstTokens.Operator, x.s.FirstTokens.Device
	t.Cleanup(x.stop)
	return x
}

func (x *site) start() {
	x.t.Helper()
	var err error
	if x.s, err = web.Open(x.dir, x.cfg); err != nil {
		x.t.Fatal(err)
	}
	x.srv = httptest.NewTLSServer(x.s.Handler())
	x.srv.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
}

func (x *site) stop() {
	x.s.EndStreams()
	x.srv.Close()
	if err := x.s.Close(); err != nil {
		x.t.Error(err)
	}
}

// restart is a new process on the same data.
func (x *site) restart() {
	x.stop()
	x.start()
}

// answer is a response, read whole.
type answer struct {
	*http.Response
	body []byte
}

// do sends a request. A body that is neither nil, bytes nor a reader goes as
// JSON; a header is "Name: value".
func (x *site) do(method, path, token string, body any, headers ...string) answer {
	x.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		r = bytes.NewReader(b)
	case io.Reader:
		r = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			x.t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequest(method, x.srv.URL+path, r)
	if err != nil {
		x.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	res, err := x.srv.Client().Do(req)
	if err != nil {
		x.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		x.t.Fatalf("%s %s: read the answer: %v", method, path, err)
	}
	return answer{res, b}
}

// want checks the status and reads the body into v, if v is not nil.
func (x *site) want(a answer, status int, v any) {
	x.t.Helper()
	if a.StatusCode != status {
		x.t.Fatalf("%s %s: status %d, want %d: %s", a.Request.Method, a.Request.URL.Path, a.StatusCode, status, a.body)
	}
	if v != nil {
		if err := json.Unmarshal(a.body, v); err != nil {
			x.t.Fatalf("%s %s: %v in %s", a.Request.Method, a.Request.URL.Path, err, a.body)
		}
	}
}

// publish publishes a bundle that must be taken.
func (x *site) publish(b []byte, query string) api.PublishResponse {
	x.t.Helper()
	var out api.PublishResponse
	a := x.do("POST", api.PathReleases+query, x.operator, b)
	if a.StatusCode != http.StatusCreated {
		x.want(a, http.StatusOK, &out)
	} else {
		x.want(a, http.StatusCreated, &out)
	}
	return out
}

func (x *site) checkin(head api.Head, headers ...string) (api.CheckinResponse, answer) {
	x.t.Helper()
	var out api.CheckinResponse
	a := x.do("POST", api.PathCheckin, x.device, api.CheckinRequest{Head: head}, headers...)
	if a.StatusCode != http.StatusNotModified {
		x.want(a, http.StatusOK, &out)
	}
	return out, a
}

// until waits for something that another goroutine does.
func (x *site) until(done func() bool) {
	x.t.Helper()
	for !done() {
		select {
		case <-x.t.Context().Done():
			x.t.Fatal("it did not happen")
		case <-time.After(time.Millisecond):
		}
	}
}

// files counts the files in the store of release files.
func (x *site) files() int {
	n := 0
	err := filepath.WalkDir(filepath.Join(x.dir, "blobs"), func(_ string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	})
	if err != nil {
		x.t.Fatal(err)
	}
	return n
}

// signer is a key pair.
type signer struct {
	private crypto.Signer
	keys    *bundle.Keys
}

func newSigner(t testing.TB) signer {
	t.Helper()
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	var s signer
	if s.private, err = bundle.ParsePrivateKey(private); err != nil {
		t.Fatal(err)
	}
	if s.keys, err = bundle.ParseKeys(1, public); err != nil {
		t.Fatal(err)
	}
	return s
}

// firmware returns n bytes that are the same for the same seed.
func firmware(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// release makes a bundle of m with these images, by component, without MD5.
func (s signer) release(t testing.TB, m ota.Manifest, images ...[]byte) []byte {
	t.Helper()
	m.Format = 1
	if m.Product == "" {
		m.Product = "bess"
	}
	if m.Created.IsZero() {
		m.Created = time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
	}
	var readers []io.Reader
	for i, b := range images {
		component := []string{"controller", "module", "converter"}[i]
		im, err := bundle.DescribeImage(component, bytes.NewReader(b), 4096, false)
		if err != nil {
			t.Fatal(err)
		}
		m.Images = append(m.Images, im)
		readers = append(readers, bytes.NewReader(b))
	}
	envelope, err := bundle.Sign(&m, s.private)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := bundle.Write(&out, envelope, readers...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// One check-in through the whole handler, without the network: 304, and with a body.
func BenchmarkCheckin(b *testing.B) {
	key := newSigner(b)
	x := newSite(b, web.Config{})
	digest := x.publish(key.release(b, ota.Manifest{Version: "1.0.0"}, firmware(1, 1<<20)), "").Release.Digest
	h := x.s.Handler()
	body := `{"device":"rack-7","product":"bess","hardware":"rev2","version":"1.0.0","slot":"A","status":"IDLE","state":"idle"}`
	for name, etag := range map[string]string{"304": `"` + digest + `"`, "200": ""} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequest("POST", api.PathCheckin, strings.NewReader(body))
				r.Header.Set("Authorization", "Bearer "+x.device)
				r.Header.Set("If-None-Match", etag)
				h.ServeHTTP(httptest.NewRecorder(), r)
			}
		})
	}
}
