package modbus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// authority is a certificate authority of a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "site"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{t, cert, key, pool}
}

// issue signs a certificate that carries these values as role extensions.
func (a *authority) issue(name string, roles ...[]byte) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	for _, role := range roles {
		template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: RoleOID, Value: role})
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func role(t *testing.T, name, params string) []byte {
	b, err := asn1.MarshalWithParams(name, params)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRole(t *testing.T) {
	extension := func(value []byte) pkix.Extension { return pkix.Extension{Id: RoleOID, Value: value} }
	installer := role(t, "Installer", "utf8")
	for _, c := range []struct {
		name       string
		extensions []pkix.Extension
		want       string
		ok         bool
	}{
		{"none", nil, "", true},
		{"another extension", []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: installer}}, "", true},
		{"one", []pkix.Extension{extension(installer)}, "Installer", true},
		{"one, not in ASCII", []pkix.Extension{extension(role(t, "Betreiberin für Süd", "utf8"))}, "Betreiberin für Süd", true},
		{"two", []pkix.Extension{extension(installer), extension(role(t, "Viewer", "utf8"))}, "", false},
		{"the same twice", []pkix.Extension{extension(installer), extension(installer)}, "", false},
		{"a PrintableString", []pkix.Extension{extension(role(t, "Installer", "printable"))}, "", false},
		{"an IA5String", []pkix.Extension{extension(role(t, "Installer", "ia5"))}, "", false},
		{"bytes after it", []pkix.Extension{extension(append(append([]byte(nil), installer...), 0))}, "", false},
		{"cut off", []pkix.Extension{extension(installer[:4])}, "", false},
		{"no UTF-8", []pkix.Extension{extension([]byte{asn1.TagUTF8String, 2, 0xFF, 0xFE})}, "", false},
		{"nothing", []pkix.Extension{extension(nil)}, "", false},
	} {
		got, err := Role(&x509.Certificate{Extensions: c.extensions})
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("%s: got %q, %v, want %q, ok %v", c.name, got, err, c.want, c.ok)
		}
	}
}

// TestSecurity connects clients of every kind to a server on a socket.
func TestSecurity(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	var last atomic.Value
	handler := &Memory{OnWrite: func(_ context.Context, call Call, _ uint16, _ []uint16) error {
		last.Store(call)
		if call.Role != "Installer" {
			return IllegalFunction
		}
		return nil
	}}
	handler.SetHolding(1, 0, 42)
	config, err := ServerTLS(ours.issue("device"), ours.pool)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, &Server{Handler: handler}, config)
	installer := role(t, "Installer", "utf8")
	for _, c := range []struct {
		name    string
		cert    tls.Certificate
		trusts  *authority
		change  func(*tls.Config)
		write   error // nil: done
		nothing bool  // not even connected
	}{
		{name: "the right role", cert: ours.issue("laptop", installer), trusts: ours},
		{name: "the right role, TLS 1.2", cert: ours.issue("laptop", installer), trusts: ours, change: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }},
		{name: "another role", cert: ours.issue("laptop", role(t, "Viewer", "utf8")), trusts: ours, write: IllegalFunction},
		{name: "no role", cert: ours.issue("laptop"), trusts: ours, write: IllegalFunction},
		{name: "two roles", cert: ours.issue("laptop", installer, installer), trusts: ours, nothing: true},
		{name: "a role of the wrong type", cert: ours.issue("laptop", role(t, "Installer", "printable")), trusts: ours, nothing: true},
		{name: "a client of others", cert: others.issue("laptop", installer), trusts: ours, nothing: true},
		{name: "no certificate", trusts: ours, nothing: true, change: func(c *tls.Config) { c.Certificates = nil }},
		{name: "a server of others", cert: ours.issue("laptop", installer), trusts: others, nothing: true},
		{name: "a server with another name", cert: ours.issue("laptop", installer), trusts: ours, nothing: true, change: func(c *tls.Config) { c.ServerName = "other.example" }},
		{name: "TLS 1.1", cert: ours.issue("laptop", installer), trusts: ours, nothing: true, change: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := ClientTLS(c.cert, c.trusts.pool, "")
			if err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				c.change(config)
			}
			client, err := Dial(t.Context(), l.Addr().String(), Config{TLS: config})
			if err == nil {
				defer client.Close()
				_, err = client.ReadHolding(t.Context(), 1, 0, 1)
			}
			if c.nothing {
				if err == nil {
					t.Error("it was served")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := client.WriteRegister(t.Context(), 1, 0, 43); !errors.Is(err, c.write) {
				t.Errorf("write: got %v, want %v", err, c.write)
			}
			if call := last.Load().(Call); call.Transport != TLS || call.Remote == nil {
				t.Errorf("the handler was told %+v, want TLS and an address", call)
			}
		})
	}
	t.Run("no TLS", func(t *testing.T) {
		client, err := Dial(t.Context(), l.Addr().String(), Config{Retries: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.ReadHolding(t.Context(), 1, 0, 1); err == nil {
			t.Error("it was served")
		}
	})
}

// TestHandshakeChecksTheRole: whoever uses the configuration, with our server or not.
func TestHandshakeChecksTheRole(t *testing.T) {
	config, err := ServerTLS(tls.Certificate{}, x509.NewCertPool())
	if err != nil {
		t.Fatal(err)
	}
	for value, ok := range map[string]bool{"utf8": true, "printable": false} {
		cert := &x509.Certificate{Extensions: []pkix.Extension{{Id: RoleOID, Value: role(t, "Installer", value)}}}
		if err := config.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}); (err == nil) != ok {
			t.Errorf("a role as %s: got %v, want ok %v", value, err, ok)
		}
	}
	if err := config.VerifyConnection(tls.ConnectionState{}); err == nil {
		t.Error("no certificate: got nil")
	}
}

// TestNoAuthorities: the system's roots are never asked in the place of the site's.
func TestNoAuthorities(t *testing.T) {
	if config, err := ServerTLS(tls.Certificate{}, nil); err == nil || config != nil || !strings.Contains(err.Error(), "authorities") {
		t.Errorf("server: got %v, %v", config, err)
	}
	if config, err := ClientTLS(tls.Certificate{}, nil, ""); err == nil || config != nil {
		t.Errorf("client: got %v, %v", config, err)
	}
}
