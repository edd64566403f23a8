package https_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/https"
)

// expect checks an error's class and words.
func expect(t *testing.T, err error, code ota.ErrorCode, say string) {
	t.Helper()
	if got := ota.CodeOf(err); err == nil || got != code || !strings.Contains(err.Error(), say) {
		t.Errorf("got %v (%s), want %s and %q", err, got.Name(), code.Name(), say)
	}
}

// empty answers every check-in with nothing new.
var empty = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"poll_seconds":1}`) })

func TestCertificates(t *testing.T) {
	ours, theirs := newCA(t, "Ours"), newCA(t, "Theirs")
	clientCert, clientKey := ours.issue(t, nil)
	strangeCert, strangeKey := theirs.issue(t, nil)
	pool := x509.NewCertPool()
	pool.AddCert(ours.cert)
	mutual := func(c *tls.Config, _ *x509.Certificate) {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool
	}
	for _, tt := range []struct {
		name   string
		server func(*tls.Config, *x509.Certificate)
		change func(*https.Config)
		code   ota.ErrorCode // ErrNoUpdate: all is well
		say    string
	}{
		{"pinned CA", nil, nil, ota.ErrNoUpdate, ""},
		{"another pinned CA", nil, func(c *https.Config) { c.CACert = theirs.pem }, ota.ErrAuthentication, "not signed by the CA in ca.pem"},
		{"the system's roots", nil, func(c *https.Config) { c.CACert = nil }, ota.ErrAuthentication, "not signed by a CA that this system knows"},
		{"certificate for another name", func(_ *tls.Config, c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"example.com"} }, nil,
			ota.ErrAuthentication, "for another name than 127.0.0.1"},
		{"certificate that has expired", func(_ *tls.Config, c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, nil,
			ota.ErrAuthentication, "the clock says"},
		{"a clock that starts in 1970", nil, func(c *https.Config) { c.Now = func() time.Time { return time.Unix(60, 0) } },
			ota.ErrAuthentication, "the clock says 1970-01-01 00:01: set the clock"},
		{"certificate for clients only", func(_ *tls.Config, c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, nil,
			ota.ErrAuthentication, ""},
		{"TLS 1.1", func(c *tls.Config, _ *x509.Certificate) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}, nil,
			ota.ErrAuthentication, "TLS 1.2"},
		{"TLS 1.2", func(c *tls.Config, _ *x509.Certificate) { c.MaxVersion = tls.VersionTLS12 }, nil, ota.ErrNoUpdate, ""},
		{"client certificate", mutual, func(c *https.Config) { c.ClientCert, c.ClientKey = clientCert, clientKey }, ota.ErrNoUpdate, ""},
		{"no client certificate", mutual, nil, ota.ErrAuthentication, "wants a client certificate"},
		{"client certificate of another CA", mutual, func(c *https.Config) { c.ClientCert, c.ClientKey = strangeCert, strangeKey },
			ota.ErrAuthentication, "client certificate"},
		{"no client certificate, TLS 1.2", func(c *tls.Config, x *x509.Certificate) { mutual(c, x); c.MaxVersion = tls.VersionTLS12 }, nil,
			ota.ErrAuthentication, "client certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serveTLS(t, ours, empty, tt.server)
			c := https.Config{URL: s.URL, Device: "d1", Product: "bess", CACert: ours.pem, CAName: "ca.pem"}
			if tt.change != nil {
				tt.change(&c)
			}
			_, err := newSource(t, c).Latest(t.Context())
			expect(t, err, tt.code, tt.say)
		})
	}
	t.Run("plain HTTP at an https url", func(t *testing.T) {
		s := httptest.NewServer(empty)
		defer s.Close()
		c := https.Config{URL: strings.Replace(s.URL, "http:", "https:", 1), Device: "d1", Product: "bess"}
		_, err := newSource(t, c).Latest(t.Context())
		expect(t, err, ota.ErrServer, "plain HTTP")
	})
}

func TestCredentials(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	o := newOther(t, r)
	o.before = func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "bess_device" || password != "password123" {
			http.Error(w, "no", http.StatusUnauthorized)
		}
	}
	for name, tt := range map[string]struct {
		change func(*https.Config)
		code   ota.ErrorCode
		say    string
	}{
		"right":  {func(c *https.Config) { c.BasicUser, c.BasicPassword = "bess_device", "password123" }, ota.ErrNone, ""},
		"wrong":  {func(c *https.Config) { c.BasicUser, c.BasicPassword = "bess_device", "password124" }, ota.ErrAuthentication, "does not accept this user and password"},
		"none":   {func(c *https.Config) {}, ota.ErrAuthentication, "configure a token, or a user and password"},
		"token":  {func(c *https.Config) { c.Token = "abc" }, ota.ErrAuthentication, "does not accept the token"},
		"secret": {func(c *https.Config) { c.Token = "s3cr3t" }, ota.ErrAuthentication, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := o.config(https.Bundle)
			tt.change(&c)
			_, err := newSource(t, c).Latest(t.Context())
			if tt.code == ota.ErrNone {
				if err != nil {
					t.Error(err)
				}
				return
			}
			expect(t, err, tt.code, tt.say)
			if strings.Contains(fmt.Sprint(err), "s3cr3t") || strings.Contains(fmt.Sprint(err), "password124") {
				t.Errorf("error %q holds a secret", err)
			}
		})
	}
}

// Credentials stay with the configured origin: not even another port of the same
// host gets them, by redirect or by offer.
func TestCredentialsStayHome(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	authority := newCA(t, "Test CA")
	var stolen []string
	elsewhere := serveTLS(t, authority, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		stolen = append(stolen, req.Header.Get("Authorization"))
		serveObject(w, req, "x", r.Bundle)
	}), nil)
	home := serveTLS(t, authority, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		http.Redirect(w, req, elsewhere.URL+"/b", http.StatusFound)
	}), nil)
	src := newSource(t, https.Config{URL: home.URL, Kind: https.Bundle, CACert: authority.pem, Token: "secret"})
	if _, err := src.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, a := range stolen {
		if a != "" {
			t.Errorf("the other host got Authorization %q", a)
		}
	}
	if len(stolen) == 0 {
		t.Error("nothing was fetched from the other host")
	}
}

func TestRedirects(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { t.Error("plain HTTP was used") }))
	defer plain.Close()
	for _, tt := range []struct {
		name string
		kind https.Kind
		to   func(path string) string // what path is redirected to; "" answers
		with int
		code ota.ErrorCode
		say  string
	}{
		{"once", https.Bundle, func(p string) string { return map[string]string{"/bundle": "/b2"}[p] }, 302, ota.ErrNone, ""},
		{"five times", https.Bundle, func(p string) string {
			return map[string]string{"/bundle": "/1", "/1": "/2", "/2": "/3", "/3": "/4", "/4": "/5"}[p]
		}, 307, ota.ErrNone, ""},
		{"six times", https.Bundle, func(p string) string {
			return map[string]string{"/bundle": "/1", "/1": "/2", "/2": "/3", "/3": "/4", "/4": "/5", "/5": "/6"}[p]
		}, 301, ota.ErrServer, "more than 5 times"},
		{"in a circle", https.Bundle, func(p string) string { return map[string]string{"/bundle": "/1", "/1": "/bundle"}[p] }, 302, ota.ErrServer, "in a circle"},
		{"to itself", https.Bundle, func(p string) string { return p }, 308, ota.ErrServer, "in a circle"},
		{"to http", https.Bundle, func(string) string { return plain.URL + "/x?token=abc" }, 302, ota.ErrServer, "not https"},
		{"to a file", https.Bundle, func(string) string { return "file:///etc/shadow" }, 302, ota.ErrServer, `scheme "file"`},
		{"to ftp", https.Bundle, func(string) string { return "ftp://127.0.0.1/x" }, 302, ota.ErrServer, `scheme "ftp"`},
		{"to a socket", https.Bundle, func(string) string { return "unix:/run/docker.sock" }, 302, ota.ErrServer, `scheme "unix"`},
		{"check-in, method kept", https.Server, func(p string) string { return map[string]string{api.PathCheckin: "/v2" + api.PathCheckin}[p] }, 308, ota.ErrNone, ""},
		{"check-in, method not kept", https.Server, func(p string) string { return map[string]string{api.PathCheckin: "/v2" + api.PathCheckin}[p] }, 302, ota.ErrServer, "set the url to where the server is now"},
		{"to nowhere", https.Bundle, func(p string) string { return " " }, 302, ota.ErrServer, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOther(t, r)
			o.set(func() {
				o.before = func(w http.ResponseWriter, req *http.Request) {
					if to := tt.to(req.URL.Path); to != "" {
						w.Header().Set("Location", strings.TrimSpace(to))
						w.WriteHeader(tt.with)
						return
					}
					req.URL.Path = strings.TrimPrefix(req.URL.Path, "/v2")
					if tt.kind == https.Bundle {
						req.URL.Path = "/bundle"
					}
				}
			})
			got, err := newSource(t, o.config(tt.kind)).Latest(t.Context())
			if tt.code == ota.ErrNone {
				if err != nil || string(got) != string(r.Signed) {
					t.Errorf("got %.60q, %v", got, err)
				}
				return
			}
			expect(t, err, tt.code, tt.say)
			if strings.Contains(fmt.Sprint(err), "abc") {
				t.Errorf("error %q holds a query", err)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	t.Run("nobody listens", func(t *testing.T) {
		url := "https://" + otatest.NobodyAddr(t)
		_, err := newSource(t, https.Config{URL: url, Device: "d1", Product: "bess"}).Latest(t.Context())
		expect(t, err, ota.ErrConnectivity, "reach "+url)
	})
	t.Run("line cut in the handshake", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Read(make([]byte, 100))
				c.Close()
			}
		}()
		_, err = newSource(t, https.Config{URL: "https://" + l.Addr().String(), Device: "d1", Product: "bess"}).Latest(t.Context())
		expect(t, err, ota.ErrConnectivity, "")
	})
}

// Every silence ends by itself.
func TestTimeouts(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	authority := newCA(t, "Test CA")
	mute := serveTLS(t, authority, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }), nil)
	stalls := serveTLS(t, authority, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"poll_seconds":`)
		http.NewResponseController(w).Flush()
		<-release
	}), nil)
	refuses := func(status int) string {
		return serveTLS(t, authority, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/")
			w.WriteHeader(status)
			http.NewResponseController(w).Flush()
			<-release
		}), nil).URL
	}
	const short = 50 * time.Millisecond
	for name, tt := range map[string]struct {
		change func(*https.Config)
		code   ota.ErrorCode
		say    string
	}{
		"text of a refusal":  {func(c *https.Config) { c.URL, c.StallTimeout = refuses(500), short }, ota.ErrServer, "500"},
		"text of a redirect": {func(c *https.Config) { c.URL, c.StallTimeout = refuses(302), short }, ota.ErrServer, "set the url"},
		"TLS handshake":      {func(c *https.Config) { c.URL, c.ConnectTimeout = "https://"+silent.Addr().String(), short }, ota.ErrConnectivity, "handshake timeout"},
		"answer":             {func(c *https.Config) { c.URL, c.ResponseTimeout = mute.URL, short }, ota.ErrConnectivity, "timeout awaiting response"},
		"rest":               {func(c *https.Config) { c.URL, c.StallTimeout = stalls.URL, short }, ota.ErrConnectivity, "no byte for 50ms"},
	} {
		t.Run(name, func(t *testing.T) {
			c := https.Config{Device: "d1", Product: "bess", CACert: authority.pem}
			tt.change(&c)
			_, err := newSource(t, c).Latest(t.Context())
			expect(t, err, tt.code, tt.say)
		})
	}
}

// Cancelling unblocks a Read that waits for bytes that do not come.
func TestCancelUnblocksRead(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 200_000)
	o := newOther(t, r)
	o.set(func() { o.hang = true })
	src := newSource(t, o.config(https.Server))
	ctx, cancel := context.WithCancel(t.Context())
	rc, err := src.Open(ctx, r.Manifest, &r.Manifest.Images[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err := io.ReadFull(rc, make([]byte, 4000)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := io.ReadFull(rc, make([]byte, 4000))
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || ota.CodeOf(err) != ota.ErrConnectivity {
		t.Errorf("got %v", err)
	}
}

func TestConfig(t *testing.T) {
	authority := newCA(t, "Test CA")
	cert, key := authority.issue(t, nil)
	for name, tt := range map[string]struct {
		change func(*https.Config)
		say    string // "": it is right
	}{
		"right":                      {func(c *https.Config) {}, ""},
		"no url":                     {func(c *https.Config) { c.URL = "" }, "url: is missing"},
		"no scheme":                  {func(c *https.Config) { c.URL = "updates.example.com" }, "want https"},
		"no host":                    {func(c *https.Config) { c.URL = "https:///x" }, "names no host"},
		"http":                       {func(c *https.Config) { c.URL = "http://example.com" }, "not https"},
		"http allowed":               {func(c *https.Config) { c.URL, c.AllowPlain = "http://example.com", true }, ""},
		"file":                       {func(c *https.Config) { c.URL, c.AllowPlain = "file:///x", true }, "want https"},
		"password in url":            {func(c *https.Config) { c.URL = "https://u:hunter2@example.com" }, "user and password apart"},
		"query in a server's url":    {func(c *https.Config) { c.URL = "https://example.com?x=1" }, "has a query"},
		"query in a bundle's url":    {func(c *https.Config) { c.URL, c.Kind = "https://example.com/b?x=1", https.Bundle }, ""},
		"unknown kind":               {func(c *https.Config) { c.Kind = "hawkbit" }, `"hawkbit" is not known`},
		"no device":                  {func(c *https.Config) { c.Device = "" }, "device: name is empty"},
		"no product":                 {func(c *https.Config) { c.Product = "" }, "product: name is empty"},
		"a bundle needs neither":     {func(c *https.Config) { c.Device, c.Product, c.Kind = "", "", https.Bundle }, ""},
		"empty CA file":              {func(c *https.Config) { c.CACert, c.CAName = []byte{}, "ca.pem" }, "in ca.pem: no PEM certificate in 0 bytes"},
		"key instead of CA":          {func(c *https.Config) { c.CACert = key }, "no PEM certificate"},
		"client certificate":         {func(c *https.Config) { c.ClientCert, c.ClientKey = cert, key }, ""},
		"client certificate, no key": {func(c *https.Config) { c.ClientCert = cert }, "client certificate and key"},
		"key, no client certificate": {func(c *https.Config) { c.ClientKey = key }, "client certificate and key"},
		"token and user":             {func(c *https.Config) { c.Token, c.BasicUser = "a", "b" }, "want one of them"},
		"password without user":      {func(c *https.Config) { c.BasicPassword = "b" }, "without a user"},
		"negative timeout":           {func(c *https.Config) { c.StallTimeout = -1 }, "StallTimeout"},
		"negative buffer":            {func(c *https.Config) { c.ReadBuffer = -1 }, "ReadBuffer"},
	} {
		t.Run(name, func(t *testing.T) {
			c := https.Config{URL: "https://updates.example.com", Device: "d1", Product: "bess"}
			tt.change(&c)
			_, err := https.New(c)
			switch {
			case tt.say == "" && err != nil:
				t.Errorf("got %v", err)
			case tt.say != "" && (err == nil || !strings.Contains(err.Error(), tt.say)):
				t.Errorf("got %v, want %q in it", err, tt.say)
			case err != nil && strings.Contains(err.Error(), "hunter2"):
				t.Errorf("error %q holds a password", err)
			}
		})
	}
}

// A small receive buffer keeps what a dropped connection wastes small. The
// server's own buffer is made small, so that what it wrote is what crossed.
func TestReadBuffer(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 8<<20)
	im := &r.Manifest.Images[0]
	wrote := map[int]int64{}
	for _, size := range []int{0, 16 << 10} {
		var sent atomic.Int64
		done := make(chan struct{})
		o := newOther(t, r, func(s *http.Server) {
			s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
				if err := c.(*tls.Conn).NetConn().(*net.TCPConn).SetWriteBuffer(4 << 10); err != nil {
					t.Error(err)
				}
				return ctx
			}
		})
		o.set(func() {
			o.object = func(w http.ResponseWriter, req *http.Request, name string, b []byte) {
				serveObject(&counter{w, &sent}, req, name, b)
				close(done)
			}
		})
		c := o.config(https.Server)
		c.ReadBuffer = size
		rc, err := newSource(t, c).Open(t.Context(), r.Manifest, im, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		for before := int64(-1); before != sent.Load(); { // until the server can send no more
			before = sent.Load()
			time.Sleep(300 * time.Millisecond)
		}
		rc.Close()
		<-done
		wrote[size] = sent.Load()
	}
	t.Logf("bytes on the line when 4096 were read: %d, and %d with a ReadBuffer of 16 KiB", wrote[0], wrote[16<<10])
	if got, limit := wrote[16<<10], int64(128<<10); got > limit {
		t.Errorf("with a ReadBuffer of 16 KiB %d bytes were on the line, want at most %d", got, limit)
	}
}

// The wait that a server asks for ends.
func TestRetryAfterEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		src := newSource(t, https.Config{URL: "http://updates.example.com", AllowPlain: true, Device: "d1", Product: "bess"})
		https.Answer(src, func(*http.Request) (*http.Response, error) {
			calls++
			w := httptest.NewRecorder()
			if calls == 1 {
				w.Header().Set("Retry-After", "30")
				w.WriteHeader(http.StatusServiceUnavailable)
			} else {
				empty(w, nil)
			}
			return w.Result(), nil
		})
		for range 3 {
			if _, err := src.Latest(t.Context()); ota.CodeOf(err) != ota.ErrServer {
				t.Fatalf("got %v", err)
			}
			time.Sleep(14 * time.Second)
		}
		if _, err := src.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) || calls != 2 {
			t.Errorf("after 42 s: got %v and %d requests, want no update and 2", err, calls)
		}
	})
}

func ExampleNew() {
	ca, err := os.ReadFile("/etc/interlock/ca.pem")
	if err != nil {
		fmt.Println("no CA configured here")
		return
	}
	src, err := https.New(https.Config{URL: "https://updates.example.com", Device: "site7-unit3", Product: "bess-100",
		Version: "1.4.2", CACert: ca, CAName: "/etc/interlock/ca.pem", Token: os.Getenv("TOKEN")})
	if err != nil {
		panic(err)
	}
	_ = src // manager, err := ota.New(ota.Config{Source: src, ...})
	// Output: no CA configured here
}

func ExampleNew_bundle() {
	src, err := https.New(https.Config{Kind: https.Bundle, URL: "https://firmware.example.com/bess/latest.bundle",
		Version: "1.4.2", BasicUser: "bess_device", BasicPassword: "password123"})
	if err != nil {
		panic(err)
	}
	_ = src
	// Output:
}

// counter counts what a handler got rid of.
type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}
