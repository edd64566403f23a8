package original_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/lambda/event"
	"github.com/interlock-energy/ota/internal/lambda/lambdatest"
	"github.com/interlock-energy/ota/internal/original/awsota"
	"github.com/interlock-energy/ota/internal/original/bessota"
)

// aws is the function's binary behind all kinds of gateways, a real S3 server, and
// a user whose key signs URLs and who can do nothing but read.
type aws struct {
	s3     *s3test.Server
	user   s3test.User
	bucket *bucket.Bucket
	binary string
}

const prefix = "ota"

func newAWS(t *testing.T) *aws {
	t.Helper()
	a := &aws{s3: s3test.Start(t, s3test.Options{TLS: true, Bucket: "interlock-ota"})}
	a.user = a.s3.AddUser(t, "s3:GetObject")
	a.bucket = bucket.New(a.s3.Store(t, prefix))
	var err error
	if a.binary, err = lambdatest.Build(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return a
}

// start starts a function. More is added to its environment.
func (a *aws) start(t *testing.T, more map[string]string) *lambdatest.Function {
	t.Helper()
	vars := map[string]string{"INTERLOCK_BUCKET": "s3://" + a.s3.Bucket + "/" + prefix,
		"SIGNING_KEY_ID": a.user.AccessKey, "SIGNING_SECRET": a.user.SecretKey}
	maps.Copy(vars, more)
	env := a.s3.Env()
	for name, v := range vars {
		env = append(env, name+"="+v)
	}
	var log bytes.Buffer
	f, err := lambdatest.Start(t.Context(), lambdatest.Options{Binary: a.binary, Env: env, Log: &log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the function says:\n%s", log.String())
		}
	})
	return f
}

func (a *aws) publish(t *testing.T, m ota.Manifest, image []byte, o bucket.PublishOptions) {
	t.Helper()
	file := build(t, m, image)
	if _, err := a.bucket.Publish(t.Context(), bytes.NewReader(file), int64(len(file)), o); err != nil {
		t.Fatal(err)
	}
}

// roots is what a device pins: the CAs of both hosts.
func (a *aws) roots(f *lambdatest.Function) []byte { return append(f.CA(), a.s3.CA...) }

var kinds = []event.Kind{event.REST, event.HTTP, event.FunctionURL}

// Both devices update themselves from a bucket, whatever is in front of the
// function, and then are up to date.
func TestLambda(t *testing.T) {
	a := newAWS(t)
	f := a.start(t, nil)
	roots := a.roots(f)
	if _, err := esp32(t, f.URL(event.HTTP)+"/firmware", roots, "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) || !strings.Contains(err.Error(), `404 Not Found: {"error":"Firmware file not found"`) {
		t.Errorf("before a release: got %v, want the words of the document", err)
	}
	image, beta := firmware(11, 300_001), firmware(12, 1000)
	if err := a.bucket.CreateGroup(t.Context(), "beta"); err != nil {
		t.Fatal(err)
	}
	a.publish(t, ota.Manifest{Version: "1.1.0"}, beta, bucket.PublishOptions{Group: "beta"})
	a.publish(t, ota.Manifest{Version: "1.0.1", Mandatory: true, Notes: strings.Repeat("Balancing at 3.4 V. ", 50)}, image, bucket.PublishOptions{})

	// A function may answer from what it has seen some seconds ago.
	f = a.start(t, nil)
	roots = a.roots(f)
	for _, kind := range kinds {
		for path, want := range map[string][]byte{"/firmware": image, "/": image, "/firmware/default": image, "/firmware/beta": beta} {
			var flash bytes.Buffer
			r, err := esp32(t, f.URL(kind)+path, roots, "1.0.0", &flash).Update(t.Context())
			if err != nil || !r.Updated || r.Tries != 1 || !bytes.Equal(flash.Bytes(), want) {
				t.Errorf("ESP32, %s, %s: got %+v, %v, %d bytes; want the image of %d", kind, path, r, err, flash.Len(), len(want))
			}
		}
		if r, err := esp32(t, f.URL(kind)+"/firmware", roots, "1.0.1", io.Discard).Update(t.Context()); err != nil || r.Updated {
			t.Errorf("ESP32, %s, up to date: got %+v, %v", kind, r, err)
		}
		for path, want := range map[string][]byte{"/image": image, "/image/default": image, "/image/beta": beta, "/bess/latest.bin": image, "/firmware/beta/firmware.bin": beta} {
			var flash bytes.Buffer
			r, err := controller(t, bessota.Config{URL: f.URL(kind) + path, CertPEM: roots, Version: "1.0.0", Flash: &flash}).Update(t.Context())
			if err != nil || !r.Updated || !bytes.Equal(flash.Bytes(), want) || len(r.Info.SHA256) != 64 || len(r.Info.MD5) != 32 {
				t.Errorf("controller, %s, %s: got %+v, %v, %d bytes; want the image of %d", kind, path, r, err, flash.Len(), len(want))
			}
		}
		up := bessota.Config{URL: f.URL(kind) + "/image", CertPEM: roots, Version: "1.0.1", Flash: io.Discard}
		if _, err := controller(t, up).Update(t.Context()); bessota.CodeOf(err) != bessota.NoUpdates {
			t.Errorf("controller, %s, up to date: got %v", kind, err)
		}
	}
}

// What goes wrong in the bucket is said in the words of the documents, or noticed
// by those devices that can.
func TestLambdaFailures(t *testing.T) {
	a := newAWS(t)
	image := firmware(13, 200_000)
	a.publish(t, ota.Manifest{Version: "1.0.1"}, image, bucket.PublishOptions{})
	f := a.start(t, nil)

	t.Run("other CA", func(t *testing.T) {
		if _, err := esp32(t, f.URL(event.HTTP)+"/firmware", a.s3.CA, "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) {
			t.Errorf("the API's CA is not pinned: got %v", err)
		}
		if _, err := esp32(t, f.URL(event.HTTP)+"/firmware", f.CA(), "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrDownload) {
			t.Errorf("the bucket's CA is not pinned: got %v", err)
		}
	})
	t.Run("signing key gone", func(t *testing.T) {
		f := a.start(t, map[string]string{"SIGNING_SECRET": "another"})
		var flash bytes.Buffer
		if _, err := esp32(t, f.URL(event.HTTP)+"/firmware", a.roots(f), "1.0.0", &flash).Update(t.Context()); !errors.Is(err, awsota.ErrDownload) || !strings.Contains(err.Error(), "403") || flash.Len() > 0 {
			t.Errorf("ESP32: got %v, %d bytes written", err, flash.Len())
		}
		cfg := bessota.Config{URL: f.URL(event.HTTP) + "/image", CertPEM: a.roots(f), Version: "1.0.0", Flash: &flash}
		if _, err := controller(t, cfg).Update(t.Context()); bessota.CodeOf(err) != bessota.Authentication || flash.Len() > 0 {
			t.Errorf("controller: got %v, %d bytes written", err, flash.Len())
		}
	})
	t.Run("URL too long", func(t *testing.T) {
		f := a.start(t, map[string]string{"MAX_URL": "300"})
		if _, err := esp32(t, f.URL(event.HTTP)+"/firmware", a.roots(f), "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) || !strings.Contains(err.Error(), "500") || !strings.Contains(err.Error(), "too long") {
			t.Errorf("got %v, want that the function says that the URL is too long", err)
		}
	})
	t.Run("no bucket", func(t *testing.T) {
		f := a.start(t, map[string]string{"INTERLOCK_BUCKET": "s3://nobodys-bucket"})
		if _, err := esp32(t, f.URL(event.HTTP)+"/firmware", a.roots(f), "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) {
			t.Errorf("ESP32: got %v", err)
		}
		cfg := bessota.Config{URL: f.URL(event.HTTP) + "/image", CertPEM: a.roots(f), Version: "1.0.0", Flash: io.Discard}
		if _, err := controller(t, cfg).Update(t.Context()); bessota.CodeOf(err) != bessota.Server {
			t.Errorf("controller: got %v, want that the server has an error", err)
		}
	})
	t.Run("tampered image", func(t *testing.T) {
		cur, err := a.bucket.Current(t.Context(), "default")
		if err != nil {
			t.Fatal(err)
		}
		im, err := cur.Releases["bess"].ImageFor("")
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(a.s3.Dir, a.s3.Bucket, prefix, filepath.FromSlash(im.Object.Key))
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.WriteAt([]byte{image[150_000] ^ 1}, 150_000); err != nil {
			t.Fatal(err)
		}
		cfg := bessota.Config{URL: f.URL(event.HTTP) + "/image", CertPEM: a.roots(f), Version: "1.0.0", Flash: io.Discard}
		if r, err := controller(t, cfg).Update(t.Context()); bessota.CodeOf(err) != bessota.ValidationFailed || r.Updated {
			t.Errorf("controller: got %+v, %v; want that the validation failed", r, err)
		}
		// Half of it, which the function notices.
		if err := file.Truncate(100_000); err != nil {
			t.Fatal(err)
		}
		if r, err := esp32(t, f.URL(event.HTTP)+"/firmware", a.roots(f), "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) || r.Updated {
			t.Errorf("ESP32, half of the image: got %+v, %v", r, err)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if _, err := esp32(t, f.URL(event.HTTP)+"/firmware", a.roots(f), "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) || !strings.Contains(err.Error(), "Firmware file not found") {
			t.Errorf("ESP32, no image: got %v, want the words of the document", err)
		}
	})
}
