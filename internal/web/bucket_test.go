package web_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/blob/s3"
	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
	"github.com/interlock-energy/ota/internal/web"
	"github.com/interlock-energy/ota/slot/file"
	"github.com/interlock-energy/ota/source/https"
	"github.com/interlock-energy/ota/store"
)

// faulty is a bucket that a test can take away, or whose URLs it can let end early.
type faulty struct {
	*s3.Store
	down  atomic.Bool
	full  atomic.Int64 // bytes, from which on an object is not taken; 0: any
	short atomic.Bool
}

var errDown = errors.New("nobody answers at the bucket")

func (f *faulty) Put(ctx context.Context, key string, r io.ReadSeeker, o blob.PutOptions) (blob.Object, error) {
	if f.down.Load() {
		return blob.Object{}, errDown
	}
	if size, err := r.Seek(0, io.SeekEnd); err != nil || f.full.Load() > 0 && size >= f.full.Load() {
		return blob.Object{}, errors.Join(errDown, err)
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return blob.Object{}, err
	}
	return f.Store.Put(ctx, key, r, o)
}

func (f *faulty) Stat(ctx context.Context, key string) (blob.Object, error) {
	if f.down.Load() {
		return blob.Object{}, errDown
	}
	return f.Store.Stat(ctx, key)
}

func (f *faulty) PresignGet(ctx context.Context, key string, lifetime time.Duration) (string, error) {
	if f.short.Load() {
		lifetime = time.Second
	}
	return f.Store.PresignGet(ctx, key, lifetime)
}

// newBucketSite is newSite with its files in a bucket.
func newBucketSite(t *testing.T, direct bool) (*site, *s3test.Server, *faulty) {
	t.Helper()
	bucket := s3test.Start(t, s3test.Options{TLS: true})
	f := &faulty{Store: bucket.Store(t, "releases")}
	return newSite(t, web.Config{Store: f, Direct: direct}), bucket, f
}

// objects lists what is in the bucket, by key.
func objects(t *testing.T, s blob.Store) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	for o, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		out[o.Key] = o.Size
	}
	return out
}

func objectKey(content []byte) string {
	n := fmt.Sprintf("%x", sha256.Sum256(content))
	return n[:2] + "/" + n
}

func get(t *testing.T, c *http.Client, url string, headers ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, b
}

func TestFilesInABucket(t *testing.T) {
	x, bucket, f := newBucketSite(t, true)
	controller, module := firmware(1, 3_000_000), firmware(2, 5000)
	file := newSigner(t).release(t, ota.Manifest{Version: "1.1.0"}, controller, module)
	x.publish(file, "")
	want := map[string]int64{objectKey(file): int64(len(file)), objectKey(controller): 3_000_000, objectKey(module): 5000}
	if got := objects(t, f); !equal(got, want) {
		t.Errorf("in the bucket: %v, want the bundle and its images %v", got, want)
	}
	if left, err := os.ReadDir(filepath.Join(x.dir, "spool")); err != nil || len(left) != 0 {
		t.Errorf("in the spool: %v, %v, want nothing", left, err)
	}

	offer, a := x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	for i, content := range [][]byte{controller, module} {
		im := offer.Release.Images[i]
		if !strings.HasPrefix(im.URL, bucket.Endpoint+"/bucket/releases/"+objectKey(content)+"?") {
			t.Fatalf("image at %s, want it in the bucket at %s", im.URL, bucket.Endpoint)
		}
		if res, got := get(t, bucket.Client(), im.URL, "Range: bytes=100-"); res.StatusCode != 206 || !bytes.Equal(got, content[100:]) {
			t.Errorf("%s: %d with %d bytes, want 206 with %d", im.Component, res.StatusCode, len(got), len(content)-100)
		}
	}

	// The same URLs for all devices for a quarter of their life; new ones are no new offer.
	second, _ := x.checkin(api.Head{Device: "rack-8", Product: "bess"})
	x.clock.turn(14 * time.Minute)
	third, _ := x.checkin(api.Head{Device: "rack-9", Product: "bess"})
	if first := offer.Release.Images[0].URL; second.Release.Images[0].URL != first || third.Release.Images[0].URL != first {
		t.Error("other URLs for other devices, want the same")
	}
	x.clock.turn(2 * time.Minute)
	<-time.After(1100 * time.Millisecond) // S3's URLs have the real time in them, in seconds
	if _, same := x.checkin(api.Head{Device: "rack-7", Product: "bess"}, "If-None-Match: "+a.Header.Get("ETag")); same.StatusCode != http.StatusNotModified {
		t.Errorf("check-in with new URLs: %d, want 304", same.StatusCode)
	}
	later, b := x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	if later.Release.Images[0].URL == offer.Release.Images[0].URL {
		t.Error("the old URL after a quarter of its life, want a new one")
	}
	if got, want := b.Header.Get("ETag"), a.Header.Get("ETag"); got != want {
		t.Errorf("ETag %s with new URLs, want %s as before", got, want)
	}
}

func equal(a, b map[string]int64) bool {
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false
		}
	}
	return len(a) == len(b)
}

// What devices do not fetch from the bucket comes through the server, with
// ranges and conditions as from its own disk.
func TestBucketThroughTheServer(t *testing.T) {
	x, _, f := newBucketSite(t, false)
	controller, module := firmware(1, 3_000_000), firmware(2, 5000)
	bundle := newSigner(t).release(t, ota.Manifest{Version: "1.1.0"}, controller, module)
	x.publish(bundle, "")
	offer, _ := x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	for path, content := range map[string][]byte{
		x.path(offer.Release.Images[0].URL): controller, x.path(offer.Release.Images[1].URL): module,
		"/bess/latest.bin": controller, "/firmware.bin?component=module": module, "/bundle/default": bundle,
	} {
		a := x.do("GET", path, "", nil)
		if a.StatusCode != 200 || !bytes.Equal(a.body, content) {
			t.Errorf("%s: %d with %d bytes, want %d", path, a.StatusCode, len(a.body), len(content))
		}
		etag := a.Header.Get("ETag")
		size := len(content)
		for _, span := range [][2]int{{0, 0}, {size - 1, size - 1}, {100, 4099}, {size / 2, size - 1}, {size / 3, size / 2}} {
			a := x.do("GET", path, "", nil, fmt.Sprintf("Range: bytes=%d-%d", span[0], span[1]), "If-Match: "+etag)
			if a.StatusCode != 206 || !bytes.Equal(a.body, content[span[0]:span[1]+1]) {
				t.Errorf("%s, bytes %v: %d with %d bytes", path, span, a.StatusCode, len(a.body))
			}
		}
		x.want(x.do("GET", path, "", nil, "Range: bytes=0-", `If-Match: "another"`), http.StatusPreconditionFailed, nil)
		if a := x.do("HEAD", path, "", nil); a.StatusCode != 200 || a.ContentLength != int64(size) {
			t.Errorf("HEAD %s: %d, %d bytes", path, a.StatusCode, a.ContentLength)
		}
	}
	x.restart()
	if a := x.do("GET", "/bundle/default", "", nil); a.StatusCode != 200 || !bytes.Equal(a.body, bundle) {
		t.Errorf("after a restart: %d with %d bytes", a.StatusCode, len(a.body))
	}
	f.down.Store(true)
	x.want(x.do("GET", "/bundle/default", "", nil), http.StatusServiceUnavailable, nil)
}

// A bucket that is away: publishing says so and changes nothing, devices that ask
// are answered, and all is well when it is back.
func TestBucketAway(t *testing.T) {
	x, bucket, f := newBucketSite(t, true)
	key := newSigner(t)
	first, second := key.release(t, ota.Manifest{Version: "1.1.0"}, firmware(1, 5000)), key.release(t, ota.Manifest{Version: "1.2.0"}, firmware(2, 5000))
	x.publish(first, "")
	before := objects(t, f)
	f.down.Store(true)
	var e api.Error
	a := x.do("POST", api.PathReleases, x.operator, second)
	x.want(a, http.StatusServiceUnavailable, &e)
	if !strings.Contains(e.Error, errDown.Error()) || a.Header.Get("Retry-After") == "" {
		t.Errorf("error %q with Retry-After %q, want the reason and a time", e.Error, a.Header.Get("Retry-After"))
	}
	offer, _ := x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	if offer.Release == nil || offer.Release.Version != "1.1.0" || !strings.HasPrefix(offer.Release.Images[0].URL, "/d/") {
		t.Errorf("offered %+v, want 1.1.0 through the server", offer.Release)
	}
	f.down.Store(false)
	f.full.Store(5001) // the image is taken, the bundle is not
	x.want(x.do("POST", api.PathReleases, x.operator, second), http.StatusServiceUnavailable, nil)
	f.full.Store(0)
	if got := objects(t, f); !equal(got, before) {
		t.Errorf("in the bucket: %v, want %v", got, before)
	}
	x.clock.turn(31 * time.Second)
	offer, _ = x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	if !strings.HasPrefix(offer.Release.Images[0].URL, bucket.Endpoint) {
		t.Errorf("when it is back: %s, want the bucket", offer.Release.Images[0].URL)
	}
	x.publish(second, "")
}

// A refused release leaves nothing, and takes nothing that others have.
func TestRefusedReleaseLeavesNothingInTheBucket(t *testing.T) {
	x, _, f := newBucketSite(t, true)
	key := newSigner(t)
	shared := firmware(1, 5000)
	x.publish(key.release(t, ota.Manifest{Version: "1.1.0"}, shared), "")
	before := objects(t, f)
	again := key.release(t, ota.Manifest{Version: "1.1.0", Notes: "another"}, shared, firmware(2, 6000))
	x.want(x.do("POST", api.PathReleases, x.operator, again), http.StatusConflict, nil)
	expired := key.release(t, ota.Manifest{Version: "1.2.0", Expires: x.clock.Now().Add(-time.Hour)}, shared, firmware(3, 6000))
	x.want(x.do("POST", api.PathReleases, x.operator, expired), http.StatusBadRequest, nil)
	broken := bytes.Clone(again)
	broken[len(broken)-1] ^= 1
	x.want(x.do("POST", api.PathReleases, x.operator, broken), http.StatusUnprocessableEntity, nil)
	if got := objects(t, f); !equal(got, before) {
		t.Errorf("in the bucket: %v, want %v", got, before)
	}
}

// A server that had its files on its disk: they are copied, and served at once;
// what is published again is fetched from the bucket.
func TestMoveToABucket(t *testing.T) {
	x := newSite(t, web.Config{})
	controller := firmware(1, 5000)
	release := newSigner(t).release(t, ota.Manifest{Version: "1.1.0"}, controller)
	x.publish(release, "")
	bucket := s3test.Start(t, s3test.Options{TLS: true})
	to := bucket.Store(t, "releases")
	from, err := blob.OpenDir(filepath.Join(x.dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	for o, err := range from.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := from.Open(t.Context(), o.Key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.Put(t.Context(), o.Key, bytes.NewReader(b), blob.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	x.cfg.Store, x.cfg.Direct = to, true
	x.restart()
	offer, _ := x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	if a := x.do("GET", x.path(offer.Release.Images[0].URL), "", nil); a.StatusCode != 200 || !bytes.Equal(a.body, controller) {
		t.Errorf("after the move: %d with %d bytes", a.StatusCode, len(a.body))
	}
	x.publish(release, "")
	offer, _ = x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	if !strings.HasPrefix(offer.Release.Images[0].URL, bucket.Endpoint) {
		t.Errorf("published again: %s, want the bucket", offer.Release.Images[0].URL)
	}
}

// source is a device's own source, which trusts the server and the bucket.
func (x *site) source(t *testing.T, bucket *s3test.Server) *https.Source {
	t.Helper()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.srv.Certificate().Raw})
	s, err := https.New(https.Config{URL: x.srv.URL, Device: "rack-7", Product: "bess", Version: "1.0.0", Token: x.device,
		CACert: slices.Concat(ca, bucket.CA)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// An URL that has ended is asked for again, in the middle of an image.
func TestURLOfTheBucketEnds(t *testing.T) {
	x, bucket, f := newBucketSite(t, true)
	key := newSigner(t)
	controller := firmware(1, 50_000)
	x.publish(key.release(t, ota.Manifest{Version: "1.1.0"}, controller), "")
	f.short.Store(true)
	src := x.source(t, bucket)
	signed, err := src.Latest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := key.keys.Verify(signed)
	if err != nil {
		t.Fatal(err)
	}
	read := func(offset int64) ([]byte, error) {
		r, err := src.Open(t.Context(), m, &m.Images[0], offset)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	if got, err := read(0); err != nil || !bytes.Equal(got, controller) {
		t.Fatalf("got %d bytes, %v, want %d", len(got), err, len(controller))
	}
	<-time.After(2100 * time.Millisecond)
	if _, err := read(4096); err == nil {
		t.Error("after its time the URL still works")
	}
	f.short.Store(false)
	x.clock.turn(16 * time.Minute)
	if got, err := read(8192); err != nil || !bytes.Equal(got, controller[8192:]) {
		t.Errorf("with a new URL: got %d bytes, %v, want %d", len(got), err, len(controller)-8192)
	}
}

// Somebody with access to the bucket changes a byte of an image: the device takes
// nothing of it, and with the image as it was, it installs it.
func TestDeviceRefusesATamperedObject(t *testing.T) {
	x, bucket, _ := newBucketSite(t, true)
	key := newSigner(t)
	controller := firmware(1, 50_000)
	x.publish(key.release(t, ota.Manifest{Version: "1.1.0"}, controller), "")
	object := filepath.Join(bucket.Dir, "bucket", "releases", filepath.FromSlash(objectKey(controller)))
	change := func(at int) {
		t.Helper()
		b := bytes.Clone(controller)
		if at >= 0 {
			b[at] ^= 1
		}
		if err := os.WriteFile(object, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	install := func() ([]byte, error) {
		t.Helper()
		dir := t.TempDir()
		cfg := file.Config{Dir: dir, Restart: func(context.Context) error { return nil }}
		if err := file.Format(cfg, map[string]io.Reader{"controller": strings.NewReader("from the factory")}); err != nil {
			t.Fatal(err)
		}
		slots, err := file.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := slots.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		record, err := store.Open(filepath.Join(dir, "record"))
		if err != nil {
			t.Fatal(err)
		}
		m, err := ota.New(ota.Config{Product: "bess", Version: "1.0.0", Source: x.source(t, bucket), Verify: key.keys.Verify, Slots: slots,
			Store: record, Log: slog.New(slog.DiscardHandler), Gate: func(context.Context, *ota.Manifest, ota.Moment) error { return nil }, StartupDelay: -1})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx) }()
		err = m.Install().Wait(t.Context())
		cancel()
		<-ended
		written, rerr := os.ReadFile(filepath.Join(dir, "b", "controller.img"))
		if rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			t.Fatal(rerr)
		}
		return written, err
	}
	change(20_000)
	if got, err := install(); !errors.Is(err, ota.ErrValidation) {
		t.Errorf("changed at byte 20000: got %v and %d bytes written, want %v", err, len(got), ota.ErrValidation)
	} else if len(got) > 20_000 {
		t.Errorf("%d bytes are written, among them one that was changed", len(got))
	}
	change(-1)
	if got, err := install(); err != nil || !bytes.HasPrefix(got, controller) {
		t.Errorf("as it was: got %v and %d bytes written, want %d", err, len(got), len(controller))
	}
}
