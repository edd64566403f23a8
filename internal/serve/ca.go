package serve

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
)

const (
	caLife   = 20 * 365 * 24 * time.Hour // as long as a battery: devices pin it
	leafLife = 90 * 24 * time.Hour
	renewAt  = 30 * 24 * time.Hour // before the end
)

// CA makes certificates for the server, which devices and people can check
// because they have its certificate. Its key and certificate are files in the
// server's data directory; the server's own key is in memory only, and new at
// every start and renewal, which nobody notices who pins the CA.
type CA struct {
	PEM []byte // the CA's certificate: what devices pin

	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	hosts []string
	now   func() time.Time

	mu   sync.Mutex
	leaf *tls.Certificate
}

// OpenCA opens the CA in dir (ca.pem, and ca.key with mode 0600), or makes one
// if there is neither file. Hosts are the names and IP addresses that the
// server's certificate is for. One file without the other is an error: to make a
// new CA would lock out every device that has pinned the old one.
func OpenCA(dir string, hosts []string, now func() time.Time) (*CA, error) {
	if len(hosts) == 0 {
		return nil, errors.New("open the CA: no name is given for the server's certificate")
	}
	ca := &CA{hosts: hosts, now: now}
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	certPEM, certErr := os.ReadFile(certFile)
	keyPEM, keyErr := os.ReadFile(keyFile)
	if errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		var err error
		if certPEM, keyPEM, err = newCA(now()); err != nil {
			return nil, fmt.Errorf("make a CA: %w", err)
		}
		// The key first: a certificate whose key is lost would be pinned for nothing.
		if err := durable.WriteFile(durable.OS{}, keyFile, keyPEM, 0o600); err != nil {
			return nil, fmt.Errorf("make a CA: %w", err)
		}
		if err := durable.WriteFile(durable.OS{}, certFile, certPEM, 0o644); err != nil {
			return nil, errors.Join(fmt.Errorf("make a CA: %w", err), os.Remove(keyFile))
		}
	} else if err := errors.Join(certErr, keyErr); err != nil {
		return nil, fmt.Errorf("open the CA: %w; restore both ca.pem and ca.key from a backup, since devices have pinned this CA", err)
	}
	if err := ca.parse(certPEM, keyPEM); err != nil {
		return nil, fmt.Errorf("open the CA in %s: %w", dir, err)
	}
	if _, err := ca.Certificate(nil); err != nil {
		return nil, err
	}
	return ca, nil
}

func newCA(now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		// Unique, since clients that trust two such servers find issuers by name.
		Subject:               pkix.Name{Organization: []string{"Interlock"}, CommonName: fmt.Sprintf("Interlock update server %x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-24 * time.Hour), // for devices whose clock is slow
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

func (ca *CA) parse(certPEM, keyPEM []byte) error {
	pair, err := tls.X509KeyPair(certPEM, keyPEM) // compares the two, too
	if err != nil {
		return err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return errors.New("ca.pem and ca.key are not a CA with an ECDSA key")
	}
	if now := ca.now(); now.After(pair.Leaf.NotAfter) {
		return fmt.Errorf("it expired on %s, and now is %s", pair.Leaf.NotAfter.Format(time.DateOnly), now.Format(time.DateOnly))
	}
	ca.PEM, ca.cert, ca.key = certPEM, pair.Leaf, key
	return nil
}

// Certificate returns the server's certificate, and makes a new one when the
// last has less than 30 of its 90 days left. It fits [tls.Config.GetCertificate].
func (ca *CA) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	now := ca.now()
	if ca.leaf != nil && ca.leaf.Leaf.NotAfter.Sub(now) > renewAt {
		return ca.leaf, nil
	}
	leaf, err := ca.issue(now)
	if err != nil {
		return nil, fmt.Errorf("make the server's certificate: %w", err)
	}
	ca.leaf = leaf
	return leaf, nil
}

func (ca *CA) issue(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: ca.hosts[0]},
		// As old as the CA, not as the certificate: a device whose clock stands at
		// the day it was built must get in, or it can never be repaired from afar.
		NotBefore:   ca.cert.NotBefore,
		NotAfter:    minTime(now.Add(leafLife), ca.cert.NotAfter),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range ca.hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// newSerial returns a random number of at most 20 bytes (RFC 5280, 4.1.2.2).
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and always of the same length
	return new(big.Int).SetBytes(b), nil
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// names returns what the server is called: what the operator says, and what is
// true on any machine.
func names(listen net.Addr, more []string) []string {
	hosts := slices.Clone(more)
	add := func(h string) {
		if h != "" && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	for _, h := range []string{"localhost", "127.0.0.1", "::1"} {
		add(h)
	}
	if name, err := os.Hostname(); err == nil {
		add(name)
	}
	tcp, ok := listen.(*net.TCPAddr)
	if !ok {
		return hosts
	}
	if !tcp.IP.IsUnspecified() {
		add(tcp.IP.String())
		return hosts
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return hosts // then --host has to name them
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			add(n.IP.String())
		}
	}
	return hosts
}

// files serves a certificate from files, and reads them again when they change,
// so that whoever renews them need not restart the server.
type files struct {
	cert, key string
	now       func() time.Time

	mu      sync.Mutex
	pair    *tls.Certificate
	stamp   time.Time // of the newer of the two files
	checked time.Time
}

func (f *files) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if f.pair != nil && now.Sub(f.checked) < time.Minute {
		return f.pair, nil
	}
	f.checked = now
	stamp, err := f.modified()
	if err == nil && f.pair != nil && stamp.Equal(f.stamp) {
		return f.pair, nil
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.LoadX509KeyPair(f.cert, f.key)
	}
	switch {
	case err == nil:
		f.pair, f.stamp = &pair, stamp
	case f.pair == nil:
		return nil, fmt.Errorf("read the server's certificate: %w", err)
	} // else the old pair serves until the new one is complete
	return f.pair, nil
}

func (f *files) modified() (newest time.Time, err error) {
	for _, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil {
			return newest, err
		}
		if info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	return newest, nil
}
