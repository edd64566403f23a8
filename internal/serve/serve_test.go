package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/operator"
	"github.com/interlock-energy/ota/internal/web"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock is a time that tests set.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func leafOf(t *testing.T, ca *CA) *x509.Certificate {
	t.Helper()
	c, err := ca.Certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func verify(t *testing.T, ca *CA, leaf *x509.Certificate, host string, at time.Time) error {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.PEM) {
		t.Fatal("the CA's PEM has no certificate")
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, CurrentTime: at})
	return err
}

func TestCertificates(t *testing.T) {
	dir, c := t.TempDir(), &clock{t0}
	hosts := []string{"ota.example.com", "localhost", "127.0.0.1", "::1"}
	ca, err := OpenCA(dir, hosts, c.now)
	if err != nil {
		t.Fatal(err)
	}
	first := leafOf(t, ca)
	for _, host := range hosts {
		if err := verify(t, ca, first, host, t0); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := verify(t, ca, first, "other.example.com", t0); err == nil {
		t.Error("the certificate is good for a name that was not asked for")
	}
	if err := verify(t, ca, first, "localhost", t0.Add(-23*time.Hour)); err != nil {
		t.Errorf("a device whose clock is a day slow: %v", err)
	}
	if first.PublicKeyAlgorithm != x509.ECDSA || first.IsCA {
		t.Errorf("got algorithm %v, CA %v, want ECDSA and no CA", first.PublicKeyAlgorithm, first.IsCA)
	}

	c.t = t0.Add(59 * 24 * time.Hour)
	if got := leafOf(t, ca); !got.Equal(first) {
		t.Error("a certificate with 31 days left was renewed")
	}
	c.t = t0.Add(61 * 24 * time.Hour)
	second := leafOf(t, ca)
	if second.Equal(first) {
		t.Error("a certificate with 29 days left was not renewed")
	}
	if err := verify(t, ca, second, "localhost", t0.Add(120*24*time.Hour)); err != nil {
		t.Errorf("the renewed certificate: %v", err)
	}

	// Another process is the same CA, which devices have pinned.
	again, err := OpenCA(dir, hosts, c.now)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, ca, leafOf(t, again), "localhost", c.t); err != nil {
		t.Errorf("a certificate of the second process: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("ca.key: mode %v, %v, want 0600", info.Mode(), err)
	}

	// The last certificate does not outlive its CA, and no CA outlives itself.
	c.t = t0.Add(caLife - 24*time.Hour)
	if got := leafOf(t, ca).NotAfter; got.After(ca.cert.NotAfter) {
		t.Errorf("the certificate ends %v, after its CA's end %v", got, ca.cert.NotAfter)
	}
	c.t = t0.Add(caLife + time.Hour)
	if _, err := OpenCA(dir, hosts, c.now); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired CA: got %v, want that it expired", err)
	}
}

func TestDamagedCA(t *testing.T) {
	other := t.TempDir()
	if _, err := OpenCA(other, []string{"localhost"}, time.Now); err != nil {
		t.Fatal(err)
	}
	otherKey, err := os.ReadFile(filepath.Join(other, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		damage func(dir string) error
		want   string
	}{
		{"key lost", func(dir string) error { return os.Remove(filepath.Join(dir, "ca.key")) }, "restore both"},
		{"certificate lost", func(dir string) error { return os.Remove(filepath.Join(dir, "ca.pem")) }, "restore both"},
		{"key of another CA", func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.key"), otherKey, 0o600) }, "private key does not match"},
		{"empty certificate", func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.pem"), nil, 0o644) }, "PEM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := OpenCA(dir, []string{"localhost"}, time.Now); err != nil {
				t.Fatal(err)
			}
			if err := tt.damage(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenCA(dir, []string{"localhost"}, time.Now); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestNames(t *testing.T) {
	got := names(&net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 8443}, []string{"ota.example.com", "localhost"})
	for _, want := range []string{"ota.example.com", "localhost", "127.0.0.1", "::1", "10.1.2.3"} {
		if n := len(slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s != want })); n != 1 {
			t.Errorf("%s is there %d times in %v, want once", want, n, got)
		}
	}
	if got[0] != "ota.example.com" {
		t.Errorf("the first is %s, want the operator's own", got[0])
	}
}

func writePair(t *testing.T, dir string, stamp time.Time) *x509.Certificate {
	t.Helper()
	certPEM, keyPEM, err := newCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"cert.pem": certPEM, "key.pem": keyPEM} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(name, b, 0o600), os.Chtimes(name, stamp, stamp)); err != nil {
			t.Fatal(err)
		}
	}
	block, _ := pem.Decode(certPEM)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCertificateFilesAreReadAgain(t *testing.T) {
	dir, c := t.TempDir(), &clock{t0}
	f := &files{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), now: c.now}
	if _, err := f.certificate(nil); err == nil {
		t.Error("no files: got no error")
	}
	got := func() *x509.Certificate {
		t.Helper()
		p, err := f.certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return p.Leaf
	}
	old := writePair(t, dir, t0)
	if !got().Equal(old) {
		t.Error("got another certificate than the file's")
	}
	renewed := writePair(t, dir, t0.Add(time.Hour))
	c.t = c.t.Add(2 * time.Minute)
	if !got().Equal(renewed) {
		t.Error("the renewed certificate is not used")
	}
	// Half-written, as in the middle of a renewal.
	if err := os.WriteFile(f.cert, []byte("-----BEGIN"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.t = c.t.Add(2 * time.Minute)
	if !got().Equal(renewed) {
		t.Error("the certificate is not kept while the new one is not complete")
	}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func open(t *testing.T, cfg Config) *Server {
	t.Helper()
	cfg.Listen, cfg.Web.Log = "127.0.0.1:0", quiet()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A server answers at both addresses, and Run returns once it has ended.
func TestServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := open(t, Config{Data: dir, Plain: "127.0.0.1:0"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()

	c, err := operator.New(operator.Config{URL: s.URL, Token: s.Tokens.Operator, CA: s.CA})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if groups, err := c.Groups(ctx); err != nil || len(groups) != 1 || groups[0].Name != api.DefaultGroup {
		t.Errorf("got groups %v, %v, want the default one", groups, err)
	}
	resp, err := http.Get(s.PlainURL + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("plain HTTP: got %s", resp.Status)
	}

	// A stream does not hold up the end.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.PlainURL+api.PathEvents, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Tokens.Operator)
	stream, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "https://")); err == nil {
		t.Error("it still listens after Run")
	}
	again := open(t, Config{Data: dir})
	if again.Tokens != (web.Tokens{}) {
		t.Error("the second start made tokens again")
	}
	if string(again.CA) != string(s.CA) {
		t.Error("the second start has another CA")
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// What is wrong is found before anything is written, and nothing stays open.
func TestOpenFails(t *testing.T) {
	used, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"port in use", Config{Listen: used.Addr().String()}, "listen for HTTPS"},
		{"plain port in use", Config{Listen: "127.0.0.1:0", Plain: used.Addr().String()}, "listen for plain HTTP"},
		{"plain for everybody", Config{Listen: "127.0.0.1:0", Plain: ":0"}, "others could read tokens there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Data, tt.cfg.Web.Log = filepath.Join(t.TempDir(), "data"), quiet()
			if _, err := Open(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if _, err := os.Stat(tt.cfg.Data); err == nil {
				t.Error("the data directory was made")
			}
		})
	}
	s, err := Open(Config{Data: t.TempDir(), Listen: "127.0.0.1:0", Plain: ":0", Insecure: true, Web: web.Config{Log: quiet()}})
	if err != nil {
		t.Fatalf("plain for everybody, on purpose: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	s := open(t, Config{Data: t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	conf := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	if _, err := tls.Dial("tcp", strings.TrimPrefix(s.URL, "https://"), conf); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.1: got %v, want a refusal", err)
	}
}
