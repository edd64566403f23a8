package awstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// CA is a certificate authority for one test: AWS's on the server's side, and the
// one that registered the devices' certificates. Its keys (ECDSA P-256) are made
// anew each time. Safe for use by several goroutines.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex
	serial int64
	things map[string]Certificate
}

// NewCA makes a certificate authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make the key of a test CA: %v", err)
	}
	from, to := validity()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "awstest root"},
		NotBefore: from, NotAfter: to, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatalf("sign the certificate of a test CA: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("read the certificate of a test CA: %v", err)
	}
	return &CA{cert: cert, key: key, serial: 1, things: map[string]Certificate{}}
}

// validity is wide, for tests whose clock is not today's (testing/synctest starts in 2000).
func validity() (from, to time.Time) {
	return time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
}

// PEM is the authority's certificate, to be given to a device as its root.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// Pool holds the authority's certificate.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// WriteFile puts the authority's certificate into dir/ca.pem and returns the path.
func (ca *CA) WriteFile(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "ca.pem")
	writeFile(t, path, ca.PEM(), 0o644)
	return path
}

// Thing is the certificate of a device: its common name is the thing's name. The
// same name gives the same certificate.
func (ca *CA) Thing(t testing.TB, name string) Certificate {
	t.Helper()
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if c, ok := ca.things[name]; ok {
		return c
	}
	c := ca.sign(t, &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	ca.things[name] = c
	return c
}

// Server is the certificate of a server under the given names and addresses.
func (ca *CA) Server(t testing.TB, hosts ...string) Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "awstest server"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.sign(t, template)
}

// sign completes a template; the caller holds mu.
func (ca *CA) sign(t testing.TB, template *x509.Certificate) Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make a key for %s: %v", template.Subject.CommonName, err)
	}
	ca.serial++
	template.SerialNumber = big.NewInt(ca.serial)
	template.NotBefore, template.NotAfter = validity()
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatalf("sign the certificate of %s: %v", template.Subject.CommonName, err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatalf("encode the key of %s: %v", template.Subject.CommonName, err)
	}
	c := Certificate{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}
	if c.TLS, err = tls.X509KeyPair(c.Cert, c.Key); err != nil {
		t.Fatalf("pair the certificate of %s with its key: %v", template.Subject.CommonName, err)
	}
	return c
}

// ClientTLS is the configuration with which a thing connects to a server of this
// authority.
func (ca *CA) ClientTLS(t testing.TB, thing string) *tls.Config {
	t.Helper()
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: ca.Pool(),
		Certificates: []tls.Certificate{ca.Thing(t, thing).TLS},
	}
}

// serverTLS demands a certificate of this authority from every client.
func (ca *CA) serverTLS(t testing.TB) *tls.Config {
	t.Helper()
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{ca.Server(t, "localhost", "127.0.0.1", "::1").TLS},
	}
}

// Certificate is a certificate with its private key.
type Certificate struct {
	Cert, Key []byte // PEM; the key is PKCS #8
	TLS       tls.Certificate
}

// WriteFiles puts both into dir as name.crt and name.key and returns the paths.
func (c Certificate) WriteFiles(t testing.TB, dir, name string) (cert, key string) {
	t.Helper()
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	writeFile(t, cert, c.Cert, 0o644)
	writeFile(t, key, c.Key, 0o600)
	return cert, key
}

func writeFile(t testing.TB, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatalf("write a file for a test: %v", err)
	}
}
