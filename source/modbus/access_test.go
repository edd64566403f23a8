package modbus_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// authority signs the certificates of a site.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "site"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	var der []byte
	a.key, der = a.sign(template)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a key and a certificate for it, signed by a, or by itself.
func (a *authority) sign(template *x509.Certificate) (*ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, der
}

// issue makes a certificate with a role, "" for none.
func (a *authority) issue(role string) tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	if role != "" {
		value, err := asn1.MarshalWithParams(role, "utf8")
		if err != nil {
			a.t.Fatal(err)
		}
		template.ExtraExtensions = []pkix.Extension{{Id: bus.RoleOID, Value: value}}
	}
	key, der := a.sign(template)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestRoles: over TLS, on real sockets, the role in the certificate decides who writes.
func TestRoles(t *testing.T) {
	rel := newRelease(t)
	site := newAuthority(t)
	config, err := bus.ServerTLS(site.issue(""), site.pool)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, rel, func(c *modbus.Config) {
		c.Listen, c.ListenTLS, c.NetListen, c.TLS = "", "127.0.0.1:0", nil, config
		c.AllowPlain, c.Allow = false, nil
	})
	at, err := r.src.Addr(t.Context(), bus.TLS)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(a *authority, role string) (*master, error) {
		config, err := bus.ClientTLS(a.issue(role), site.pool, "")
		if err != nil {
			t.Fatal(err)
		}
		c, err := bus.Dial(t.Context(), at.String(), bus.Config{TLS: config, Timeout: time.Minute, Retries: -1})
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { c.Close() })
		return &master{t: t, c: c, unit: 1, base: profile.Base}, nil
	}
	for role, want := range map[string]bus.Exception{"": 1, "Viewer": 1, "updater": 1, "Updater ": 1} {
		m, err := dial(site, role)
		if err != nil {
			t.Fatal(err)
		}
		e := m.command(offer(profile.Open, rel.Bundle))
		err = m.records(profile.FileManifest, 0, make([]byte, 10))
		if other := exception(t, err); e != want || other != want || m.status().Result != profile.NotAllowed {
			t.Errorf("role %q: got %v for OPEN, %v for a file, and %v, want %v and %v", role, e, other, m.status().Result, want, profile.NotAllowed)
		}
	}
	m, err := dial(site, modbus.DefaultRole)
	if err != nil {
		t.Fatal(err)
	}
	m.push(rel.Bundle)
	m.do(m.with(profile.Install))
	offered(t, r.src, rel.Signed)
	if m, err := dial(newAuthority(t), modbus.DefaultRole); err == nil {
		if _, err := m.c.ReadHolding(t.Context(), 1, profile.Base, 1); err == nil {
			t.Error("a certificate of another authority is accepted")
		}
	}
	// The role is part of who the master is: another role from the same address is another.
	m, err = dial(site, "Viewer")
	if err != nil {
		t.Fatal(err)
	}
	if s := m.status(); s.Session != 0 {
		t.Errorf("a viewer reads session %d, want 0", s.Session)
	}
}

// TestConfig: what is not certain is refused before anything is served.
func TestConfig(t *testing.T) {
	box, err := inbox.Open(inbox.Config{FS: otatest.NewDisk(), Dir: "/inbox", Verify: newRelease(t).Verify})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()
	base := uint16(65535 - profile.Size + 2)
	site := netip.MustParsePrefix("192.0.2.0/24")
	open := &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven}
	old := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS11}
	for name, c := range map[string]struct {
		change func(*modbus.Config)
		want   string // "": it is accepted
	}{
		"as it is":                     {func(c *modbus.Config) {}, ""},
		"no inbox":                     {func(c *modbus.Config) { c.Inbox = nil }, "Inbox is missing"},
		"no state":                     {func(c *modbus.Config) { c.State = nil }, "State is missing"},
		"nothing to listen on":         {func(c *modbus.Config) { c.Listen = "" }, "nobody could ask"},
		"TLS without certificates":     {func(c *modbus.Config) { c.ListenTLS = ":802" }, "certificates are missing"},
		"TLS for everybody":            {func(c *modbus.Config) { c.ListenTLS, c.TLS = ":802", open }, "does not require certificates"},
		"TLS 1.1":                      {func(c *modbus.Config) { c.ListenTLS, c.TLS = ":802", old }, "below version 1.2"},
		"plain for everybody":          {func(c *modbus.Config) { c.AllowPlain = true }, "no addresses are named"},
		"addresses without plain":      {func(c *modbus.Config) { c.Allow = []netip.Prefix{site} }, "which is not allowed"},
		"plain for some":               {func(c *modbus.Config) { c.AllowPlain, c.Allow = true, []netip.Prefix{site} }, ""},
		"an empty network":             {func(c *modbus.Config) { c.AllowPlain, c.Allow = true, make([]netip.Prefix, 1) }, "not valid"},
		"an empty network for readers": {func(c *modbus.Config) { c.ReadFrom = make([]netip.Prefix, 1) }, "not valid"},
		"an empty role":                {func(c *modbus.Config) { c.Roles = []string{"Updater", ""} }, "roles is empty"},
		"unit 248":                     {func(c *modbus.Config) { c.Unit = 248 }, "unit is 248, want 1 to 247"},
		"a base too high":              {func(c *modbus.Config) { c.Base = &base }, "base address is 65163, want 0 to 65162"},
		"function 3":                   {func(c *modbus.Config) { c.Functions = []bus.Function{3} }, "function code 3"},
		"a window of 1001":             {func(c *modbus.Config) { c.Window = 1001 }, "window is 1001"},
		"an idle timeout of a day":     {func(c *modbus.Config) { c.IdleTimeout = 24 * time.Hour }, "idle timeout is 24h0m0s, want 1s to 1h0m0s"},
		"a size of 4 GiB":              {func(c *modbus.Config) { c.MaxSize = 1 << 32 }, "greatest transfer"},
		"a line without a path":        {func(c *modbus.Config) { c.Lines = make([]modbus.Line, 1) }, "no path"},
		"a line without parity":        {func(c *modbus.Config) { c.Lines = []modbus.Line{{Config: serial.Config{Path: "x", Parity: "?"}}} }, "parity"},
	} {
		cfg := modbus.Config{Listen: ":502", Inbox: box, State: func() api.CheckinRequest { return api.CheckinRequest{} }}
		c.change(&cfg)
		src, err := modbus.New(cfg)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v, want %q", name, src != nil, err, c.want)
		}
	}
}
