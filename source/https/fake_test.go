package https_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/https"
)

// ca is a certificate authority of one test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCA(t testing.TB, name string) *ca {
	t.Helper()
	c := &ca{}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	c.cert, c.pem, c.key, _ = makeCert(t, template, nil)
	return c
}

// issue makes a leaf for 127.0.0.1 and localhost that change may alter.
func (c *ca) issue(t testing.TB, change func(*x509.Certificate)) (cert, key []byte) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}}
	if change != nil {
		change(template)
	}
	_, cert, _, key = makeCert(t, template, c)
	return cert, key
}

func makeCert(t testing.TB, template *x509.Certificate, by *ca) (*x509.Certificate, []byte, *ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, parentKey := template, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key,
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// serveTLS starts a real server on loopback with a certificate from authority.
func serveTLS(t testing.TB, authority *ca, h http.Handler, change func(*tls.Config, *x509.Certificate), config ...func(*http.Server)) *httptest.Server {
	t.Helper()
	conf := &tls.Config{}
	cert, key := authority.issue(t, func(c *x509.Certificate) {
		if change != nil {
			change(conf, c)
		}
	})
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates = []tls.Certificate{pair}
	s := httptest.NewUnstartedServer(h)
	s.TLS = conf
	s.Config.ErrorLog = quiet(t)
	for _, c := range config {
		c(s.Config)
	}
	s.StartTLS()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// other is the other side: an Interlock server, a bundle at /bundle, and a
// manifest document at /manifest, all for one release. Fields may be changed
// between requests, under mu.
type other struct {
	*httptest.Server
	ca *ca

	mu       sync.Mutex
	release  *otatest.SignedRelease // nil: nothing on offer
	access   string                 // part of every download URL; another one answers 403
	running  string                 // announced as X-Firmware-Version
	hang     bool
	released chan struct{}        // ends hanging handlers
	before   http.HandlerFunc     // answers first, if it writes anything
	requests []string             // "POST /api/v1/checkin", in order
	headers  []http.Header        // of the requests
	checkins []api.CheckinRequest //
	reports  map[string]ota.Report
	object   func(w http.ResponseWriter, r *http.Request, name string, content []byte) // serves an image or a bundle
}

func newOther(t testing.TB, r *otatest.SignedRelease, config ...func(*http.Server)) *other {
	t.Helper()
	o := &other{ca: newCA(t, "Test CA"), release: r, access: "a1", released: make(chan struct{}), reports: map[string]ota.Report{}}
	o.object = serveObject
	o.Server = serveTLS(t, o.ca, o, nil, config...)
	t.Cleanup(sync.OnceFunc(func() { close(o.released) }))
	return o
}

func (o *other) set(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
}

// seen returns how many requests began with prefix.
func (o *other) seen(prefix string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, r := range o.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

func serveObject(w http.ResponseWriter, r *http.Request, name string, content []byte) {
	w.Header().Set("ETag", `"`+name+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// written notes whether a handler has answered.
type written struct {
	http.ResponseWriter
	yes bool
}

func (w *written) WriteHeader(code int)        { w.yes = true; w.ResponseWriter.WriteHeader(code) }
func (w *written) Write(p []byte) (int, error) { w.yes = true; return w.ResponseWriter.Write(p) }
func (w *written) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// stuck passes 4 KiB on and then hangs.
type stuck struct {
	http.ResponseWriter
	left    int
	release <-chan struct{}
}

func (w *stuck) Write(p []byte) (int, error) {
	n, _ := w.ResponseWriter.Write(p[:min(len(p), w.left)])
	if w.left -= n; n < len(p) {
		http.NewResponseController(w.ResponseWriter).Flush()
		<-w.release
		return n, http.ErrAbortHandler
	}
	return n, nil
}

func (o *other) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.requests = append(o.requests, r.Method+" "+r.URL.Path)
	o.headers = append(o.headers, r.Header.Clone())
	before, release, access, running, hang, object := o.before, o.release, o.access, o.running, o.hang, o.object
	o.mu.Unlock()
	if before != nil {
		ww := &written{ResponseWriter: w}
		if before(ww, r); ww.yes {
			return
		}
	}
	if running != "" {
		w.Header().Set(api.HeaderFirmwareVersion, running)
	}
	part, isImage := strings.CutPrefix(r.URL.Path, "/d/")
	switch {
	case r.URL.Path == api.PathCheckin:
		var in api.CheckinRequest
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		o.set(func() { o.checkins = append(o.checkins, in) })
		o.answerCheckin(w, r, release, access)
	case r.URL.Path == api.PathReports:
		var in api.ReportsRequest
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var out api.ReportsResponse
		for _, rep := range in.Reports {
			o.set(func() { o.reports[rep.ID] = rep })
			out.Stored = append(out.Stored, rep.ID)
		}
		json.NewEncoder(w).Encode(out)
	case r.URL.Path == api.PathStatus:
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Path == "/manifest" && release != nil:
		fmt.Fprintf(w, `{"version": %q, "url": %q}`, release.Manifest.Version, o.URL+"/presigned?key="+access)
	case r.URL.Path == "/manifest":
		fmt.Fprintf(w, `{"version": "1.0.0", "url": "https://example.com/"}`)
	case r.URL.Path == "/presigned" && r.URL.Query().Get("key") != access || isImage && !strings.HasPrefix(part, access+"/"):
		http.Error(w, "expired", http.StatusForbidden)
	case r.URL.Path == "/presigned" && r.Method != http.MethodGet: // as S3 does
		http.Error(w, "SignatureDoesNotMatch", http.StatusForbidden)
	case release == nil:
		if running == "" {
			w.Header().Set(api.HeaderFirmwareVersion, "1.0.0")
		}
	case r.URL.Path == "/bundle", r.URL.Path == "/presigned":
		if hang {
			w = &stuck{w, 4<<10 - 1, o.released}
			if start, _ := rangeOf(r); start <= int64(len(release.Signed)) {
				w.(*stuck).left = 1 << 20 // header and envelope come
			}
		}
		object(w, r, release.Manifest.Digest, release.Bundle)
	case isImage:
		if hang {
			w = &stuck{w, 4<<10 - 1, o.released}
		}
		component := part[strings.LastIndex(part, "/")+1:]
		object(w, r, release.Manifest.Digest+component, release.Images[component])
	default:
		http.NotFound(w, r)
	}
}

func (o *other) answerCheckin(w http.ResponseWriter, r *http.Request, release *otatest.SignedRelease, access string) {
	out := api.CheckinResponse{PollSeconds: 90}
	etag := `"nothing"`
	if release != nil {
		m := release.Manifest
		etag = `"` + m.Digest + `"`
		out.Release = &api.ReleaseOffer{Digest: m.Digest, Version: m.Version, Signed: release.Signed}
		for _, im := range m.Images {
			out.Release.Images = append(out.Release.Images, api.ImageOffer{Component: im.Component, URL: "/d/" + access + "/" + im.Component, Size: im.Size, SHA256: im.SHA256})
		}
	}
	w.Header().Set("ETag", etag)
	w.Header().Set(api.HeaderPoll, strconv.Itoa(out.PollSeconds))
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	json.NewEncoder(w).Encode(out)
}

// rangeOf returns the bytes that r asks for, from start to before end.
func rangeOf(r *http.Request) (start, end int64) {
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &start, &end); err != nil {
		return 0, 0
	}
	return start, end + 1
}

// config is what a device needs to reach o.
func (o *other) config(kind https.Kind) https.Config {
	c := https.Config{URL: o.URL, Kind: kind, Device: "d1", Product: "bess", Version: "1.0.0", CACert: o.ca.pem, CAName: "ca.pem"}
	switch kind {
	case https.Bundle:
		c.URL += "/bundle"
	case https.Manifest:
		c.URL += "/manifest"
	}
	return c
}

func newSource(t testing.TB, c https.Config) *https.Source {
	t.Helper()
	s, err := https.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.CloseIdle)
	return s
}

var kinds = []https.Kind{https.Server, https.Bundle, https.Manifest}
