package awstest

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
)

// CA is a certificate authority for one test: AWS's on the server's side, and the
// one that registered the devices' certificates. Its keys are made anew each time.
type CA struct {
}

// NewCA makes a certificate authority.
func NewCA(t testing.TB) *CA { t.Helper(); return &CA{} }

// PEM is the authority's certificate, to be given to a device as its root.
func (ca *CA) PEM() []byte { return nil }

// Pool holds the authority's certificate.
func (ca *CA) Pool() *x509.CertPool { return nil }

// WriteFile puts the authority's certificate into dir/ca.pem and returns the path.
func (ca *CA) WriteFile(t testing.TB, dir string) string { return "" }

// Thing is the certificate of a device: its common name is the thing's name. The
// same name gives the same certificate.
func (ca *CA) Thing(t testing.TB, name string) Certificate { return Certificate{} }

// Server is the certificate of a server under the given names and addresses.
func (ca *CA) Server(t testing.TB, hosts ...string) Certificate { return Certificate{} }

// ClientTLS is the configuration with which a thing connects.
func (ca *CA) ClientTLS(t testing.TB, thing string) *tls.Config { return nil }

// Certificate is a certificate with its private key.
type Certificate struct {
	Cert, Key []byte // PEM; the key is PKCS #8
	TLS       tls.Certificate
}

// WriteFiles puts both into dir as name.crt and name.key and returns the paths.
func (c Certificate) WriteFiles(t testing.TB, dir, name string) (cert, key string) { return "", "" }
