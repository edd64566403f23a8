package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/modbus"
)

// authority makes certificates of one test.
type authority struct {
	t    *testing.T
	dir  string
	name string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir(), name: name}
	a.cert, a.key = a.issue(name, "", true)
	return a
}

// ca is the file with its own certificate.
func (a *authority) ca() string { return filepath.Join(a.dir, a.name+".pem") }

// issue makes a certificate, for this machine, and writes it and its key into files.
func (a *authority) issue(name, role string, isCA bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: isCA}
	if role != "" {
		value, err := asn1.MarshalWithParams(role, "utf8")
		if err != nil {
			a.t.Fatal(err)
		}
		template.ExtraExtensions = []pkix.Extension{{Id: bus.RoleOID, Value: value}}
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key
}

// Over TLS the certificate and its role decide; whoever has none of this site's, or not the
// role, gets exit code 7.
func TestPushTLS(t *testing.T) {
	site, stranger := newAuthority(t, "site"), newAuthority(t, "stranger")
	cert, key := site.issue("device", "", false)
	site.issue("updater", "Updater", false)
	site.issue("viewer", "Viewer", false)
	stranger.issue("updater", "Updater", false)
	pool := x509.NewCertPool()
	pool.AddCert(site.cert)
	config, err := bus.ServerTLS(tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, pool)
	if err != nil {
		t.Fatal(err)
	}
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20000)
	file := filepath.Join(t.TempDir(), "new.bundle")
	if err := os.WriteFile(file, r.Bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	box, err := inbox.Open(inbox.Config{Dir: t.TempDir(), Verify: r.Verify, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	source, err := modbus.New(modbus.Config{ListenTLS: "127.0.0.1:0", TLS: config, Inbox: box, Log: quiet, State: func() api.CheckinRequest {
		return api.CheckinRequest{Head: api.Head{Device: "bess-7", Status: ota.StatusIdle}}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- source.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		box.Close()
	})
	a, err := source.Addr(ctx, bus.TLS)
	if err != nil {
		t.Fatal(err)
	}
	d := &pushed{address: "tls://" + a.String()}
	for _, tt := range []struct {
		name string
		of   *authority
		who  string
		ca   string
		code int
		text string
	}{
		{"another site's certificate", stranger, "updater", site.ca(), exitDenied, "tls"},
		{"a device of another site", site, "updater", stranger.ca(), exitDenied, "certificate"},
		{"another role", site, "viewer", site.ca(), exitDenied, "not allowed for this role"},
		{"no authority", site, "updater", filepath.Join(site.dir, "updater.key"), exitUsage, "no certificate in PEM"},
		{"no key", site, "nobody", site.ca(), exitUsage, "nobody.pem"},
		{"the role", site, "updater", site.ca(), exitOK, "Modbus TCP with TLS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := filepath.Join(tt.of.dir, tt.who)
			code, _, stderr := d.push("--stage-only", "--cert", base+".pem", "--key", base+".key", "--ca", tt.ca, file)
			if code != tt.code || !strings.Contains(stderr, tt.text) {
				t.Errorf("got exit code %d and %q, want %d and %q", code, stderr, tt.code, tt.text)
			}
		})
	}
	if st := box.State(); st.Phase != inbox.Verified {
		t.Errorf("got the inbox %s, want %s", st.Phase, inbox.Verified)
	}
}
