package awsiot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/awsiot"
)

const (
	thing   = "controller-7"
	running = "1.0.0" // what the device runs before
	dir     = "/data"
)

// rig is a device's surroundings: AWS IoT Jobs behind a broker, a bucket, and the disk
// of the device, which outlives its process.
type rig struct {
	t      testing.TB
	ca     *awstest.CA
	jobs   *awstest.Jobs
	broker *awstest.Broker
	bucket *bucket
	disk   *otatest.Disk
	key    otatest.SigningKey
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, ca: awstest.NewCA(t), bucket: newBucket(t), disk: otatest.NewDisk(), key: otatest.NewSigningKey(t)}
	r.jobs = awstest.NewJobs(awstest.JobsOptions{Presign: r.bucket.presign})
	r.broker = awstest.StartBroker(t, r.ca, r.jobs)
	return r
}

// config is that of a device of this rig that runs the version.
func (r *rig) config(version string) awsiot.Config {
	cert := r.ca.Thing(r.t, thing)
	return awsiot.Config{Endpoint: r.broker.Addr(), Thing: thing, CACert: r.ca.PEM(), ClientCert: cert.Cert, ClientKey: cert.Key,
		Product: "bess", Version: version, Dir: dir, FS: r.disk, HTTP: r.bucket, AllowPlain: true,
		Verify:     func(signed []byte) (*ota.Manifest, error) { return r.verify(signed) },
		MinBackoff: 5 * time.Millisecond, MaxBackoff: 50 * time.Millisecond, AnswerTimeout: 3 * time.Second, StatusInterval: time.Second,
		Log: testLog(r.t)}
}

func (r *rig) verify(signed []byte) (*ota.Manifest, error) {
	return r.key.Release(r.t, "0.0.1", 1).Verify(signed)
}

// release puts a release into the bucket and returns it, with the document of a job for it.
func (r *rig) release(version string, sizes ...int) (*otatest.SignedRelease, string) {
	rel := r.key.Release(r.t, version, sizes...)
	r.bucket.put(version, rel.Bundle)
	return rel, fmt.Sprintf(`{"interlock":{"bundle":%q,"version":%q}}`, presigned(version), version)
}

// presigned is what an operator writes for an address that the service fills in.
func presigned(object string) string { return "${aws:iot:s3-presigned-url-v2:" + object + "}" }

func (r *rig) create(id, document string) {
	r.t.Helper()
	if err := r.jobs.Create(awstest.Job{ID: id, Things: []string{thing}, Document: document}); err != nil {
		r.t.Fatal(err)
	}
}

// start runs a source until the test, or stop, ends it.
func start(t testing.TB, cfg awsiot.Config) (s *awsiot.Source, stop func()) {
	t.Helper()
	s, err := awsiot.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return s, stop
}

func (r *rig) start(version string) *awsiot.Source {
	s, _ := start(r.t, r.config(version))
	return s
}

// fetch reads all images of a release, as the manager does.
func fetch(ctx context.Context, s ota.Source, rel *otatest.SignedRelease) error {
	for i := range rel.Manifest.Images {
		im := &rel.Manifest.Images[i]
		body, err := s.Open(ctx, rel.Manifest, im, 0)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(body)
		body.Close()
		if err != nil {
			return err
		}
		if !bytes.Equal(got, rel.Images[im.Component]) {
			return fmt.Errorf("image %s: got %d other bytes than its %d", im.Component, len(got), im.Size)
		}
	}
	return nil
}

// report is how the update to a release ended.
func report(rel *otatest.SignedRelease, result ota.Result, code ota.ErrorCode, reason string) ota.Report {
	r := ota.Report{ID: "report-" + rel.Manifest.Version, Digest: rel.Manifest.Digest, Version: rel.Manifest.Version, From: running,
		Running: running, Result: result, Code: code, Reason: reason, Time: time.Unix(1.8e9, 0).UTC()}
	if result == ota.Succeeded {
		r.Running = r.Version
	}
	return r
}

// execution returns what the service has of a job.
func (r *rig) execution(id string) awstest.Execution {
	r.t.Helper()
	x, ok := r.jobs.Execution(thing, id)
	if !ok {
		r.t.Fatalf("there is no job %s", id)
	}
	return x
}

// finals are the final statuses that the service has taken from the device.
func (r *rig) finals(id string) (all []awstest.Status) {
	for _, u := range r.jobs.Updates(thing, id) {
		if u.Code == "" && u.Status.Terminal() {
			all = append(all, u.Status)
		}
	}
	return all
}

// wantFinal checks that a job has got this status, and once.
func (r *rig) wantFinal(id string, want awstest.Status, reason string) {
	r.t.Helper()
	x := r.execution(id)
	if got := r.finals(id); len(got) != 1 || got[0] != want || x.Status != want {
		r.t.Errorf("job %s: final statuses %v, and it is %s; want %s once", id, got, x.Status, want)
	}
	if !strings.Contains(x.StatusDetails["reason"], reason) {
		r.t.Errorf("job %s: reason %q, want one with %q", id, x.StatusDetails["reason"], reason)
	}
}

// bucket is a fake of an object store with addresses that expire, and the HTTP client of
// the agent in front of it, over a real connection.
type bucket struct {
	*httptest.Server

	mu      sync.Mutex
	objects map[string][]byte
	current int // addresses with another number have expired
	given   int // addresses
	status  int // of every answer; 0: as it should be
	hang    bool
	ranges  []string // of all requests
}

func newBucket(t testing.TB) *bucket {
	b := &bucket{objects: map[string][]byte{}}
	b.Server = httptest.NewServer(b)
	t.Cleanup(b.Close)
	return b
}

func (b *bucket) put(name string, data []byte) { b.set(func() { b.objects[name] = data }) }

func (b *bucket) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func (b *bucket) presign(_, object string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.given++
	return fmt.Sprintf("%s/%s?signature=%d", b.URL, object, b.current), nil
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	b.mu.Lock()
	data, ok := b.objects[strings.TrimPrefix(req.URL.Path, "/")]
	expired := req.URL.Query().Get("signature") != strconv.Itoa(b.current)
	status, hang := b.status, b.hang
	b.ranges = append(b.ranges, req.Header.Get("Range"))
	b.mu.Unlock()
	switch {
	case status != 0:
		w.WriteHeader(status)
	case expired:
		w.WriteHeader(http.StatusForbidden)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	case hang && len(data) > 4096:
		w.Header().Set("Content-Range", fmt.Sprintf("%s/%d", strings.Replace(req.Header.Get("Range"), "=", " ", 1), len(data)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[:2048])
		_ = http.NewResponseController(w).Flush()
		<-req.Context().Done()
	default:
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
	}
}

// Fetch implements awsiot.Fetcher.
func (b *bucket) Fetch(ctx context.Context, url string, offset, length int64) (io.ReadCloser, int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, 0, err
	}
	last := ""
	if length >= 0 {
		last = strconv.FormatInt(offset+length-1, 10)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", offset, last))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ota.ErrConnectivity, err)
	}
	size := int64(-1)
	if _, of, ok := strings.Cut(resp.Header.Get("Content-Range"), "/"); ok {
		size, _ = strconv.ParseInt(of, 10, 64)
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		return resp.Body, size, nil
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		err = fmt.Errorf("%w: %w", ota.ErrServer, awsiot.ErrExpired)
	default:
		err = fmt.Errorf("%w: answered %d", ota.ErrServer, resp.StatusCode)
	}
	resp.Body.Close()
	return nil, 0, err
}

// testLog shows what the source says if the test fails.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// cutFS is a disk whose power cut is an error, and every use after it as well, because the
// source writes from goroutines of its own, too.
type cutFS struct {
	disk durable.FS

	mu   sync.Mutex
	dead bool
}

var errPower = errors.New("the power is off")

func (c *cutFS) guard(do func() error) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return errPower
	}
	defer func() {
		switch p := recover().(type) {
		case nil:
		case *otatest.PowerCut:
			c.dead, err = true, errPower
		default:
			panic(p)
		}
	}()
	return do()
}

func (c *cutFS) off() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

func (c *cutFS) OpenFile(name string, flag int, perm fs.FileMode) (f durable.File, err error) {
	err = c.guard(func() (err error) { f, err = c.disk.OpenFile(name, flag, perm); return err })
	return &cutFile{f, c}, err
}
func (c *cutFS) Rename(from, to string) error {
	return c.guard(func() error { return c.disk.Rename(from, to) })
}
func (c *cutFS) Remove(name string) error {
	return c.guard(func() error { return c.disk.Remove(name) })
}
func (c *cutFS) Mkdir(name string, perm fs.FileMode) error {
	return c.guard(func() error { return c.disk.Mkdir(name, perm) })
}
func (c *cutFS) SyncDir(name string) error {
	return c.guard(func() error { return c.disk.SyncDir(name) })
}
func (c *cutFS) Free(name string) (n int64, err error) {
	err = c.guard(func() (err error) { n, err = c.disk.Free(name); return err })
	return n, err
}
func (c *cutFS) Stat(name string) (i fs.FileInfo, err error) {
	err = c.guard(func() (err error) { i, err = c.disk.Stat(name); return err })
	return i, err
}
func (c *cutFS) ReadDir(name string) (e []fs.DirEntry, err error) {
	err = c.guard(func() (err error) { e, err = c.disk.ReadDir(name); return err })
	return e, err
}

type cutFile struct {
	durable.File
	c *cutFS
}

func (f *cutFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.c.guard(func() (err error) { n, err = f.File.ReadAt(p, off); return err })
	return n, err
}
func (f *cutFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.c.guard(func() (err error) { n, err = f.File.WriteAt(p, off); return err })
	return n, err
}
func (f *cutFile) Truncate(size int64) error {
	return f.c.guard(func() error { return f.File.Truncate(size) })
}
func (f *cutFile) Sync() error  { return f.c.guard(f.File.Sync) }
func (f *cutFile) Close() error { return f.c.guard(f.File.Close) }
