package lambda_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/lambda"
)

// house is a function over a bucket in a directory, with a clock of its own. The
// store and the signer are fakes that count and fail as they are told.
type house struct {
	t      testing.TB
	f      *lambda.Function
	bucket *bucket.Bucket
	store  *store
	signer *signer
	clock  *clock
	log    *lines
	token  string // of a device, any
}

func newHouse(t testing.TB, change func(*lambda.Config)) *house {
	t.Helper()
	dir, err := blob.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	x := &house{t: t, store: &store{Dir: dir, asked: map[string]int{}}, signer: &signer{}, clock: &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}, log: &lines{}}
	x.bucket = bucket.New(x.store)
	if x.token, err = x.bucket.NewToken(t.Context(), "", "test"); err != nil {
		t.Fatal(err)
	}
	cfg := lambda.Config{Bucket: x.bucket, Objects: x.store, URLs: x.signer, Now: x.clock.Now, Log: slog.New(slog.NewJSONHandler(x.log, nil))}
	if change != nil {
		change(&cfg)
	}
	if x.f, err = lambda.New(cfg); err != nil {
		t.Fatal(err)
	}
	return x
}

// in is the house for a subtest.
func (x *house) in(t *testing.T) *house {
	y := *x
	y.t = t
	return &y
}

// publish publishes a release of this version, with an image for each component.
func (x *house) publish(version, group string, change ...func(*ota.Manifest)) (digest string, images [][]byte) {
	x.t.Helper()
	file, images := build(x.t, version, change...)
	if group != "" {
		if err := x.bucket.CreateGroup(x.t.Context(), group); err != nil {
			x.t.Fatal(err)
		}
	}
	a, err := x.bucket.Publish(x.t.Context(), bytes.NewReader(file), int64(len(file)), bucket.PublishOptions{Group: group, LongURLs: true})
	if err != nil {
		x.t.Fatal(err)
	}
	x.clock.turn(time.Minute) // past all caches of what was there before
	return a.Release.Digest, images
}

var testKey = sync.OnceValues(func() (crypto.Signer, error) {
	private, _, err := bundle.GenerateKey("ed25519")
	if err != nil {
		return nil, err
	}
	return bundle.ParsePrivateKey(private)
})

func build(t testing.TB, version string, change ...func(*ota.Manifest)) (file []byte, images [][]byte) {
	t.Helper()
	m := &ota.Manifest{Format: 1, Product: "bess", Version: version, Created: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)}
	var readers []io.Reader
	for i, component := range []string{"controller", "module"} {
		image, r := make([]byte, 30_000+i), rand.New(rand.NewPCG(uint64(len(version)), uint64(version[0])+uint64(i)))
		for k := range image {
			image[k] = byte(r.Uint32())
		}
		im, err := bundle.DescribeImage(component, bytes.NewReader(image), 4096, true)
		if err != nil {
			t.Fatal(err)
		}
		m.Images, images, readers = append(m.Images, im), append(images, image), append(readers, bytes.NewReader(image))
	}
	for _, c := range change {
		c(m)
	}
	key, err := testKey()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := bundle.Sign(m, key)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := bundle.Write(&out, signed, readers...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), images
}

// do makes a request; headers are "Name: value".
func (x *house) do(method, path string, body any, headers ...string) *httptest.ResponseRecorder {
	x.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			x.t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req := httptest.NewRequest(method, path, r)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	x.f.ServeHTTP(w, req)
	return w
}

// as is do with the device's token.
func (x *house) as(method, path string, body any, headers ...string) *httptest.ResponseRecorder {
	x.t.Helper()
	return x.do(method, path, body, append(headers, "Authorization: Bearer "+x.token)...)
}

func (x *house) want(w *httptest.ResponseRecorder, status int, into any) {
	x.t.Helper()
	if w.Code != status {
		x.t.Fatalf("status %d %s, want %d", w.Code, w.Body, status)
	}
	if into != nil {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			x.t.Fatalf("%s: %v", w.Body, err)
		}
	}
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// store is a directory that counts what it is asked for, and that fails.
type store struct {
	*blob.Dir
	mu    sync.Mutex
	asked map[string]int // by the first part of the key
	fail  map[string]error
	did   bool // what fails was done
}

var errBroken = errors.New(`Get "https://b.s3.amazonaws.com/x?X-Amz-Signature=secretsecret": connection reset by peer`)

func (s *store) ask(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, _, _ := strings.Cut(key, "/")
	s.asked[first]++
	return s.fail[first]
}

func (s *store) count(first string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[first]
}

// breaks makes all that is below first fail, or work again for nil.
func (s *store) breaks(first string, err error, did bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.did = map[string]error{first: err}, did
}

func (s *store) Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, blob.Object, error) {
	if err := s.ask(key); err != nil {
		return nil, blob.Object{}, err
	}
	return s.Dir.Open(ctx, key, offset, n)
}

func (s *store) Stat(ctx context.Context, key string) (blob.Object, error) {
	if err := s.ask(key); err != nil {
		return blob.Object{}, err
	}
	return s.Dir.Stat(ctx, key)
}

func (s *store) Put(ctx context.Context, key string, r io.ReadSeeker, o blob.PutOptions) (blob.Object, error) {
	err := s.ask(key)
	if err != nil && !s.did {
		return blob.Object{}, err
	}
	obj, putErr := s.Dir.Put(ctx, key, r, o)
	if err != nil {
		return blob.Object{}, err
	}
	return obj, putErr
}

// signer is a fake presigner, whose URLs say what they are for, and are new each time.
type signer struct {
	mu     sync.Mutex
	serial int
	prefix string // default https://b.s3.example.com/
	token  string
	err    error
}

func (s *signer) PresignGet(ctx context.Context, key string, lifetime time.Duration) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	if s.err != nil {
		return "", s.err
	}
	prefix := s.prefix
	if prefix == "" {
		prefix = "https://b.s3.example.com/"
	}
	u := fmt.Sprintf("%s%s?X-Amz-Expires=%d&X-Amz-Signature=secret%d", prefix, key, int(lifetime.Seconds()), s.serial)
	if s.token != "" {
		u += "&X-Amz-Security-Token=" + s.token
	}
	return u, nil
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns the lines since the last take.
func (l *lines) take(t testing.TB) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []map[string]any
	for line := range strings.Lines(l.b.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("the log has %q: %v", line, err)
		}
		if strings.Contains(line, "secret") || strings.Contains(line, "ilk_") {
			t.Errorf("the log has a secret: %s", line)
		}
		out = append(out, m)
	}
	l.b.Reset()
	return out
}

var _ http.Handler = (*lambda.Function)(nil)
