// Package original_test lets the devices of the two documents update themselves
// from the servers of this project: from the update server, and, where there is
// no server, from the Lambda and a bucket.
package original_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/operator"
	"github.com/interlock-energy/ota/internal/original/awsota"
	"github.com/interlock-energy/ota/internal/original/bessota"
	"github.com/interlock-energy/ota/internal/serve"
	"github.com/interlock-energy/ota/internal/web"
)

// firmware returns n bytes that are the same for the same seed.
func firmware(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// build returns a signed bundle.
func build(t *testing.T, m ota.Manifest, image []byte) []byte {
	t.Helper()
	private, _, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "image"), filepath.Join(dir, "release.bundle")
	if err := os.WriteFile(in, image, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Product, m.Created = "bess", time.Now().Add(-time.Minute)
	if err := bundle.Build(out, &m, map[string]string{"controller": in}, []crypto.Signer{key}...); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// site is an update server over TLS with a CA of its own, as "interlock serve" has it.
type site struct {
	*serve.Server
	data  string
	later atomic.Int64 // how much the server's clock is ahead, in ns
}

func newSite(t *testing.T, cfg web.Config) *site {
	t.Helper()
	s := &site{data: t.TempDir()}
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(s.later.Load())) }
	var err error
	if s.Server, err = serve.Open(serve.Config{Data: s.data, Listen: "127.0.0.1:0", Web: cfg}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *site) publish(t *testing.T, file []byte) {
	t.Helper()
	c, err := operator.New(operator.Config{URL: s.URL, CA: s.CA, Token: s.Tokens.Operator})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Publish(t.Context(), bytes.NewReader(file), int64(len(file)), operator.PublishOptions{}); err != nil {
		t.Fatal(err)
	}
}

func esp32(t *testing.T, url string, ca []byte, version string, flash io.Writer) *awsota.Client {
	t.Helper()
	c, err := awsota.New(awsota.Config{ManifestURL: url, Version: version, RootCA: ca, Flash: flash,
		Wait: func(context.Context, time.Duration) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func controller(t *testing.T, cfg bessota.Config) *bessota.Client {
	t.Helper()
	c, err := bessota.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Both devices update, and then are up to date.
func TestUpdateServer(t *testing.T) {
	s := newSite(t, web.Config{})
	image := firmware(1, 300_001)
	if _, err := esp32(t, s.URL+"/firmware", s.CA, "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) || !strings.Contains(err.Error(), "Firmware file not found") {
		t.Errorf("before a release: got %v, want the words of the document", err)
	}
	minSoC := 42.0
	s.publish(t, build(t, ota.Manifest{Version: "1.0.1", Notes: strings.Repeat("Balancing at 3.4 V. ", 50), Mandatory: true, Limits: ota.Limits{MinSoC: &minSoC}}, image))

	for _, path := range []string{"/firmware", "/firmware/default"} {
		var flash bytes.Buffer
		r, err := esp32(t, s.URL+path, s.CA, "1.0.0", &flash).Update(t.Context())
		if err != nil || !r.Updated || r.Version != "1.0.1" || r.Tries != 1 || !bytes.Equal(flash.Bytes(), image) {
			t.Errorf("ESP32, %s: got %+v, %v, %d bytes; want the image of %d", path, r, err, flash.Len(), len(image))
		}
	}
	if r, err := esp32(t, s.URL+"/firmware", s.CA, "1.0.1", io.Discard).Update(t.Context()); err != nil || r.Updated {
		t.Errorf("ESP32, up to date: got %+v, %v", r, err)
	}

	for _, path := range []string{"/bess/latest.bin", "/firmware.bin", "/firmware/default/firmware.bin"} {
		var flash bytes.Buffer
		r, err := controller(t, bessota.Config{URL: s.URL + path, CertPEM: s.CA, Version: "1.0.0", Flash: &flash}).Update(t.Context())
		if err != nil || !r.Updated || !bytes.Equal(flash.Bytes(), image) {
			t.Errorf("controller, %s: got %+v, %v, %d bytes; want the image of %d", path, r, err, flash.Len(), len(image))
		}
		if i := r.Info; i.Version != "1.0.1" || i.Size != int64(len(image)) || len(i.SHA256) != 64 || !i.Mandatory || !i.Reboot || i.MinSoC != 42 || len(i.Notes) < 150 {
			t.Errorf("controller, %s: got %+v", path, i)
		}
	}
	up := bessota.Config{URL: s.URL + "/bess/latest.bin", CertPEM: s.CA, Version: "1.0.1", Flash: io.Discard}
	if _, err := controller(t, up).Update(t.Context()); bessota.CodeOf(err) != bessota.NoUpdates {
		t.Errorf("controller, up to date: got %v", err)
	}
	up.Version, up.SoC = "1.0.0", func() int { return 41 }
	if _, err := controller(t, up).Update(t.Context()); bessota.CodeOf(err) != bessota.BatteryLow {
		t.Errorf("controller at 41 %%: got %v, want that the battery is low", err)
	}
}

func TestUpdateServerAsksForAPassword(t *testing.T) {
	s := newSite(t, web.Config{BasicUser: "bess_device", BasicPassword: "password123"})
	image := firmware(2, 50_000)
	s.publish(t, build(t, ota.Manifest{Version: "1.0.1"}, image))
	cfg := bessota.Config{URL: s.URL + "/bess/latest.bin", CertPEM: s.CA, Version: "1.0.0", Flash: new(bytes.Buffer), User: "bess_device", Password: "password123"}
	if r, err := controller(t, cfg).Update(t.Context()); err != nil || !r.Updated {
		t.Errorf("got %+v, %v", r, err)
	}
	cfg.Password = "wrong"
	if _, err := controller(t, cfg).Update(t.Context()); bessota.CodeOf(err) != bessota.Authentication {
		t.Errorf("with a wrong password: got %v", err)
	}
	// The other document's devices have no password, and say so in their way.
	if _, err := esp32(t, s.URL+"/firmware", s.CA, "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) {
		t.Errorf("ESP32: got %v", err)
	}
}

// What does not fit is refused by the server, with numbers, and is not cut off by
// the device.
func TestTooLongForTheDevice(t *testing.T) {
	for _, tt := range []struct{ name, version, public, want string }{
		{"version", "1.0.0-" + strings.Repeat("x", 26), "", "32 characters, these devices take 31"},
		{"URL", "1.0.1", "https://ota.example.com/" + strings.Repeat("x", 400), "these devices take 511"},
		{"plain HTTP", "1.0.1", "http://ota.example.com", "https only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, web.Config{PublicURL: tt.public})
			s.publish(t, build(t, ota.Manifest{Version: tt.version}, firmware(1, 100)))
			if r, err := esp32(t, s.URL+"/firmware", s.CA, "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %+v, %v; want %q", r, err, tt.want)
			}
		})
	}
}

// Another server's CA is not trusted, whatever the server says.
func TestOtherCA(t *testing.T) {
	s, other := newSite(t, web.Config{}), newSite(t, web.Config{})
	s.publish(t, build(t, ota.Manifest{Version: "1.0.1"}, firmware(1, 100)))
	if _, err := esp32(t, s.URL+"/firmware", other.CA, "1.0.0", io.Discard).Update(t.Context()); !errors.Is(err, awsota.ErrManifest) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("ESP32: got %v, want that the certificate is not trusted", err)
	}
	cfg := bessota.Config{URL: s.URL + "/bess/latest.bin", CertPEM: other.CA, Version: "1.0.0", Flash: io.Discard}
	if _, err := controller(t, cfg).Update(t.Context()); bessota.CodeOf(err) != bessota.Connectivity || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("controller: got %v, want that the certificate is not trusted", err)
	}
}

// between returns a device during whose update something happens: after the
// manifest has come, and before the image is asked for.
func (s *site) between(t *testing.T, flash io.Writer, do func()) *awsota.Client {
	t.Helper()
	c, err := awsota.New(awsota.Config{ManifestURL: s.URL + "/firmware", Version: "1.0.0", RootCA: s.CA, Flash: flash,
		Callbacks: awsota.Callbacks{OnOtaStarted: do}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An URL ends, after an hour and a quarter at most, and the device asks for
// another one the next time.
func TestExpiredURL(t *testing.T) {
	s := newSite(t, web.Config{})
	s.publish(t, build(t, ota.Manifest{Version: "1.0.1"}, firmware(1, 100)))
	var flash bytes.Buffer
	late := func() { s.later.Add(int64(76 * time.Minute)) }
	if r, err := s.between(t, &flash, late).Update(t.Context()); !errors.Is(err, awsota.ErrDownload) || !strings.Contains(err.Error(), "403") || flash.Len() > 0 {
		t.Errorf("after 76 minutes: got %+v, %v, %d bytes written", r, err, flash.Len())
	}
	inTime := func() { s.later.Add(int64(59 * time.Minute)) }
	if r, err := s.between(t, &flash, inTime).Update(t.Context()); err != nil || !r.Updated {
		t.Errorf("after 59 minutes: got %+v, %v", r, err)
	}
}

// A file that has changed on the server's disk does not pass for the release.
// The ESP32 of the document compares nothing: it installs what it gets, so the
// controller is the one to notice.
func TestTamperedImage(t *testing.T) {
	s := newSite(t, web.Config{})
	image := firmware(3, 200_000)
	s.publish(t, build(t, ota.Manifest{Version: "1.0.1"}, image))
	files := 0
	err := filepath.WalkDir(filepath.Join(s.data, "blobs"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if i := bytes.Index(b, image[150_000:150_100]); err == nil && i >= 0 {
			b[i] ^= 1
			files++
			if err := os.Chmod(path, 0o600); err != nil {
				return err
			}
			return os.WriteFile(path, b, 0o600)
		}
		return err
	})
	if err != nil || files != 1 {
		t.Fatalf("%d files changed, %v; want 1", files, err)
	}
	cfg := bessota.Config{URL: s.URL + "/bess/latest.bin", CertPEM: s.CA, Version: "1.0.0", Flash: io.Discard}
	if r, err := controller(t, cfg).Update(t.Context()); bessota.CodeOf(err) != bessota.ValidationFailed || r.Updated {
		t.Errorf("controller: got %+v, %v; want that the validation failed", r, err)
	}
	var flash bytes.Buffer
	if r, err := esp32(t, s.URL+"/firmware", s.CA, "1.0.0", &flash).Update(t.Context()); err != nil || !r.Updated || bytes.Equal(flash.Bytes(), image) {
		t.Errorf("ESP32: got %+v, %v; want that it notices nothing, which is why the document's devices must trust their server", r, err)
	}
}

// The controllers' limits are whole percents, and they cut off what follows the
// point: the server must not let that make a limit lower.
func TestMinSoCIsNotLoweredByRounding(t *testing.T) {
	s := newSite(t, web.Config{})
	minSoC := 42.5
	s.publish(t, build(t, ota.Manifest{Version: "1.0.1", Limits: ota.Limits{MinSoC: &minSoC}}, firmware(1, 1000)))
	cfg := bessota.Config{URL: s.URL + "/bess/latest.bin", CertPEM: s.CA, Version: "1.0.0", Flash: io.Discard, SoC: func() int { return 42 }}
	if r, err := controller(t, cfg).Update(t.Context()); bessota.CodeOf(err) != bessota.BatteryLow {
		t.Errorf("at 42 %%, with a limit of 42.5: got %+v, %v; want that the battery is low", r, err)
	}
}
