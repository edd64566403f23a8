package main_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	stdlog "log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/lambda/event"
	"github.com/interlock-energy/ota/internal/lambda/lambdatest"
	"github.com/interlock-energy/ota/source/https"
)

// binary is the real function, built once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "interlock-lambda-")
	if err != nil {
		return "", err
	}
	return lambdatest.Build(context.Background(), dir)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// site is the real binary over a real S3 server.
type site struct {
	t      *testing.T
	s3     *s3test.Server
	bucket *bucket.Bucket
	store  blob.Store
	token  string
	log    *log
	public []byte
	key    func(m *ota.Manifest) ([]byte, error)
}

func newSite(t *testing.T) *site {
	t.Helper()
	x := &site{t: t, s3: s3test.Start(t, s3test.Options{TLS: true, Region: "eu-central-1"}), log: &log{}}
	x.store = x.s3.Store(t, "fw")
	x.bucket = bucket.New(x.store)
	var err error
	if x.token, err = x.bucket.NewToken(t.Context(), "", "test"); err != nil {
		t.Fatal(err)
	}
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	x.public, x.key = public, func(m *ota.Manifest) ([]byte, error) { return bundle.Sign(m, key) }
	return x
}

// start starts the function with the S3 server's environment and these variables.
func (x *site) start(env ...string) *lambdatest.Function {
	x.t.Helper()
	path, err := binary()
	if err != nil {
		x.t.Fatal(err)
	}
	f, err := lambdatest.Start(x.t.Context(), lambdatest.Options{Binary: path, Env: append(x.s3.Env(), env...), Log: x.log})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { f.Close() })
	return f
}

const layout = "INTERLOCK_BUCKET=s3://bucket/fw"

// publish publishes a release with one image.
func (x *site) publish(version, group string, size int) (image []byte) {
	x.t.Helper()
	image = make([]byte, size)
	r := rand.New(rand.NewPCG(uint64(size), uint64(len(version))))
	for i := range image {
		image[i] = byte(r.Uint32())
	}
	im, err := bundle.DescribeImage("controller", bytes.NewReader(image), 4096, true)
	if err != nil {
		x.t.Fatal(err)
	}
	signed, err := x.key(&ota.Manifest{Format: 1, Product: "bess", Version: version, Created: time.Now().Add(-time.Hour), Images: []ota.Image{im}})
	if err != nil {
		x.t.Fatal(err)
	}
	var file bytes.Buffer
	if err := bundle.Write(&file, signed, bytes.NewReader(image)); err != nil {
		x.t.Fatal(err)
	}
	if group != "" {
		if err := x.bucket.CreateGroup(x.t.Context(), group); err != nil {
			x.t.Fatal(err)
		}
	}
	if _, err := x.bucket.Publish(x.t.Context(), bytes.NewReader(file.Bytes()), int64(file.Len()), bucket.PublishOptions{Group: group}); err != nil {
		x.t.Fatal(err)
	}
	return image
}

// client trusts the gateways and S3, and follows redirects as told.
func (x *site) client(f *lambdatest.Function) *http.Client {
	c := f.Client()
	c.Transport.(*http.Transport).TLSClientConfig.RootCAs = x509.NewCertPool()
	for _, ca := range [][]byte{f.CA(), x.s3.CA} {
		c.Transport.(*http.Transport).TLSClientConfig.RootCAs.AppendCertsFromPEM(ca)
	}
	return c
}

func (x *site) ask(f *lambdatest.Function, method, address, body string, headers ...string) (*http.Response, []byte) {
	x.t.Helper()
	r, err := http.NewRequestWithContext(x.t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		x.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	res, err := x.client(f).Do(r)
	if err != nil {
		x.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		x.t.Fatal(err)
	}
	return res, b
}

// get is ask for a status and JSON.
func (x *site) get(f *lambdatest.Function, status int, into any, method, address, body string, headers ...string) *http.Response {
	x.t.Helper()
	res, b := x.ask(f, method, address, body, headers...)
	if res.StatusCode != status {
		x.t.Fatalf("%s %s: %d %s, want %d", method, address, res.StatusCode, b, status)
	}
	if into != nil {
		if err := json.Unmarshal(b, into); err != nil {
			x.t.Fatalf("%s %s: %s: %v", method, address, b, err)
		}
	}
	return res
}

var kinds = []event.Kind{event.REST, event.HTTP, event.FunctionURL}

type document struct{ Version, URL, Error, Details string }

// Every route, through every kind of gateway.
func TestRoutes(t *testing.T) {
	x := newSite(t)
	f := x.start(layout)
	var doc document
	x.get(f, 404, &doc, "GET", f.URL(event.HTTP)+"/firmware", "")
	if doc.Error != "Firmware file not found" {
		t.Errorf("before a release: %+v, want the words of the document", doc)
	}
	old := x.publish("1.0.1", "", 30_000)
	image := x.publish("2.0.0", "site-7", 200_000)
	f.Kill() // a cold start sees what is there now
	for _, kind := range kinds {
		base := f.URL(kind)
		for path, want := range map[string][]byte{"": old, "/": old, "/firmware": old, "/firmware/default": old, "/firmware/site-7": image} {
			var doc document
			res := x.get(f, 200, &doc, "GET", base+path, "", "Accept: application/json", "Cache-Control: no-cache", "Connection: close")
			for name, want := range map[string]string{"Content-Type": "application/json", "Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"} {
				if got := res.Header.Get(name); got != want {
					t.Errorf("%s%s: %s: %q, want %q", kind, path, name, got, want)
				}
			}
			if len(doc.URL) > 511 || !strings.HasPrefix(doc.URL, "https://") {
				t.Errorf("%s%s: URL of %d characters, want https and at most 511: %s", kind, path, len(doc.URL), doc.URL)
			}
			if res, b := x.ask(f, "GET", doc.URL, ""); res.StatusCode != 200 || !bytes.Equal(b, want) {
				t.Errorf("%s%s: the URL gives %d and %d bytes, want the image of %d", kind, path, res.StatusCode, len(b), len(want))
			}
		}
		for path, want := range map[string][]byte{"/image": old, "/image/site-7": image, "/firmware.bin": old, "/bess/latest.bin": old, "/firmware/site-7/firmware.bin": image} {
			sum := sha256.Sum256(want)
			res := x.get(f, 200, nil, "HEAD", base+path, "")
			if got := res.Header.Get("X-Firmware-SHA256"); got != hex.EncodeToString(sum[:]) {
				t.Errorf("%s%s: SHA-256 %s, want %x", kind, path, got, sum)
			}
			if got := res.Header.Get("X-Firmware-Size"); got != fmt.Sprint(len(want)) {
				t.Errorf("%s%s: size %s, want %d", kind, path, got, len(want))
			}
			etag := res.Header.Get("ETag")
			res = x.get(f, 302, nil, "GET", base+path, "")
			res, b := x.ask(f, "GET", res.Header.Get("Location"), "", "Range: bytes=100-199", "If-Match: "+etag)
			if res.StatusCode != 206 || !bytes.Equal(b, want[100:200]) {
				t.Errorf("%s%s: a part with the ETag of the HEAD: %d with %d bytes, want 206 with 100", kind, path, res.StatusCode, len(b))
			}
			if kind == event.REST { // which would make base64 of them
				x.get(f, 302, nil, "GET", base+path, "", "Authorization: Basic YTpi")
			} else {
				if res, b := x.ask(f, "GET", base+path, "", "Authorization: Basic YTpi"); res.StatusCode != 200 || !bytes.Equal(b, want) {
					t.Errorf("%s%s with Authorization: %d with %d bytes, want the image", kind, path, res.StatusCode, len(b))
				}
			}
		}
		x.get(f, 200, nil, "HEAD", base+"/bundle", "")
		x.get(f, 302, nil, "GET", base+"/bundle/site-7", "")
		x.get(f, 200, nil, "GET", base+"/healthz", "")
		for path, want := range map[string]int{"/firmware/nobody": 404, "/nothing": 404, "/firmware?product=pcs": 404, "/firmware?component=x": 404} {
			x.get(f, want, nil, "GET", base+path, "")
		}
		x.get(f, 405, nil, "DELETE", base+"/firmware", "")

		bearer, body := "Authorization: Bearer "+x.token, `{"device":"d1","product":"bess"}`
		x.get(f, 401, nil, "POST", base+api.PathCheckin, body)
		x.get(f, 400, nil, "POST", base+api.PathCheckin, "{", bearer)
		x.get(f, 413, nil, "POST", base+api.PathCheckin, strings.Repeat(" ", api.MaxRequestSize+1), bearer)
		var out api.CheckinResponse
		res := x.get(f, 200, &out, "POST", base+"/groups/site-7"+api.PathCheckin, body, bearer)
		if out.Release == nil || out.Release.Version != "2.0.0" {
			t.Fatalf("%s: offered %+v, want 2.0.0", kind, out.Release)
		}
		res = x.get(f, 304, nil, "POST", base+"/groups/site-7"+api.PathCheckin, body, bearer, "If-None-Match: "+res.Header.Get("ETag"))
		if res.Header.Get(api.HeaderPoll) == "" {
			t.Errorf("%s: 304 without %s", kind, api.HeaderPoll)
		}
		x.get(f, 204, nil, "POST", base+api.PathStatus, body, bearer)
		report := fmt.Sprintf(`{"device":"d1","reports":[{"id":"r-%s","digest":"aa","version":"2.0.0","result":"succeeded"}]}`, kind)
		for range 2 {
			var out api.ReportsResponse
			x.get(f, 200, &out, "POST", base+api.PathReports, report, bearer)
			if len(out.Stored) != 1 {
				t.Errorf("%s: stored %+v, want one", kind, out)
			}
		}
	}
	reports, err := x.bucket.Reports(t.Context(), "d1", 10)
	if err != nil || len(reports) != len(kinds) {
		t.Errorf("%d reports (%v), want one for each gateway, although each was sent twice", len(reports), err)
	}
	x.log.check(t, x.token)
	t.Logf("cold start %v", f.InitTime())
}

// A device with the real source: it checks in, downloads by presigned URLs, goes
// on where a download broke off, and reports once.
func TestDevice(t *testing.T) {
	x := newSite(t)
	image := x.publish("1.0.0", "site-7", 300_000)
	f := x.start(layout)
	keys, err := bundle.ParseKeys(1, x.public)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			device := "rack-" + string(kind)
			src, err := https.New(https.Config{URL: f.URL(kind) + "/groups/site-7", Device: device, Product: "bess", Token: x.token,
				CACert: slices.Concat(f.CA(), x.s3.CA)})
			if err != nil {
				t.Fatal(err)
			}
			signed, err := src.Latest(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			m, err := keys.Verify(signed)
			if err != nil || m.Version != "1.0.0" {
				t.Fatalf("manifest %v (%v), want 1.0.0", m, err)
			}
			for _, offset := range []int64{0, 65536, int64(len(image)) - 1} {
				body, err := src.Open(t.Context(), m, &m.Images[0], offset)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(body)
				body.Close()
				if err != nil || !bytes.Equal(got, image[offset:]) {
					t.Errorf("from %d: %d bytes (%v), want %d", offset, len(got), err, len(image)-int(offset))
				}
			}
			if _, err := src.Latest(t.Context()); err != nil { // a 304 now
				t.Error(err)
			}
			if src.PollInterval() < time.Minute {
				t.Errorf("poll after %v, want some minutes", src.PollInterval())
			}
			r := ota.Report{ID: "r1", Digest: m.Digest, Version: m.Version, Result: ota.Succeeded}
			if err := src.Report(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			f.Kill() // the answer is lost, and the function starts anew
			if err := src.Report(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if got, err := x.bucket.Reports(t.Context(), device, 10); err != nil || len(got) != 1 {
				t.Errorf("%d reports (%v), want 1", len(got), err)
			}
		})
	}
}

// The function of the document: three variables, one file, no layout.
func TestDocumentsEnvironment(t *testing.T) {
	x := newSite(t)
	image := bytes.Repeat([]byte{0xe9}, 50_000)
	f := x.start("BUCKET_NAME=bucket", "FIRMWARE_KEY=esp32/firmware.bin", "FIRMWARE_VERSION=1.0.1")
	var doc document
	x.get(f, 404, &doc, "GET", f.URL(event.REST)+"/firmware", "")
	if doc.Error != "Firmware file not found" {
		t.Errorf("without the file: %+v", doc)
	}
	if _, err := x.s3.Store(t, "esp32").Put(t.Context(), "firmware.bin", bytes.NewReader(image), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	x.get(f, 200, &doc, "GET", f.URL(event.REST)+"/firmware", "")
	if _, b := x.ask(f, "GET", doc.URL, ""); doc.Version != "1.0.1" || !bytes.Equal(b, image) {
		t.Errorf("%s at %d characters gives %d bytes, want 1.0.1 and %d", doc.Version, len(doc.URL), len(b), len(image))
	}
}

// A role's session token makes URLs too long for the document's devices, which
// is said; the key of a user who may only read makes them short, and they work.
func TestSigningKey(t *testing.T) {
	x := newSite(t)
	image := x.publish("1.0.0", "", 20_000)
	reader := x.s3.AddUser(t, "s3:GetObject")
	session := strings.Repeat("IQoJb3JpZ2luX2Vj", 50)
	env := append(x.roles(session), layout)
	var doc document
	f := x.start(env...)
	x.get(f, 500, &doc, "GET", f.URL(event.HTTP)+"/firmware", "")
	if !strings.Contains(doc.Details, "these devices take 511") || !strings.Contains(doc.Details, "session token") || !strings.Contains(doc.Details, "SIGNING_SECRET_ARN") {
		t.Errorf("with a role: %+v, want the cause and what to do", doc)
	}
	f = x.start(append(env, "MAX_URL=0")...)
	x.get(f, 200, &doc, "GET", f.URL(event.HTTP)+"/firmware", "")
	if len(doc.URL) < 800 {
		t.Errorf("MAX_URL=0: %d characters, want the long URL", len(doc.URL))
	}
	secret, err := json.Marshal(map[string]string{"key_id": reader.AccessKey, "secret": reader.SecretKey})
	if err != nil {
		t.Fatal(err)
	}
	manager := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stand-in; its signature is checked elsewhere
		json.NewEncoder(w).Encode(map[string]string{"SecretString": string(secret)})
	}))
	defer manager.Close()
	for name, key := range map[string][]string{
		"given":           {"SIGNING_KEY_ID=" + reader.AccessKey, "SIGNING_SECRET=" + reader.SecretKey},
		"Secrets Manager": {"SIGNING_SECRET_ARN=arn:aws:secretsmanager:eu-central-1:123456789012:secret:x", "AWS_ENDPOINT_URL_SECRETS_MANAGER=" + manager.URL},
	} {
		f := x.start(append(key, env...)...)
		x.get(f, 200, &doc, "GET", f.URL(event.HTTP)+"/firmware", "")
		if len(doc.URL) > 511 || !strings.Contains(doc.URL, reader.AccessKey) {
			t.Errorf("%s: URL %s, want a short one of the user", name, doc.URL)
		}
		if _, b := x.ask(f, "GET", doc.URL, ""); !bytes.Equal(b, image) {
			t.Errorf("%s: the URL gives %s, want the image", name, b)
		}
	}
	x.log.check(t, reader.SecretKey, session)
}

// roles starts what stands for S3 where a role's credentials are known, which
// versitygw has not: a request with this session token in a header is signed anew
// as its owner's and handed on; one with a presigned URL goes on as it is. It
// returns the environment of a function with such credentials.
func (x *site) roles(session string) []string {
	x.t.Helper()
	to, err := url.Parse(x.s3.Endpoint)
	if err != nil {
		x.t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Transport: x.s3.Client().Transport, ErrorLog: stdlog.New(io.Discard, "", 0), Rewrite: func(r *httputil.ProxyRequest) {
		host := r.In.Host
		r.SetURL(to)
		r.Out.Host = host // it is signed
		if r.In.Header.Get("X-Amz-Security-Token") != session {
			return
		}
		r.Out.Header.Del("X-Amz-Security-Token")
		r.Out.URL.Host = host
		owner := aws.Credentials{AccessKeyID: x.s3.AccessKey, SecretAccessKey: x.s3.SecretKey}
		if err := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).SignHTTP(r.In.Context(), owner, r.Out,
			r.In.Header.Get("X-Amz-Content-Sha256"), "s3", x.s3.Region, time.Now()); err != nil {
			x.t.Error(err)
		}
		r.Out.URL.Host = to.Host
	}}
	s := httptest.NewTLSServer(proxy)
	x.t.Cleanup(s.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	x.s3.CA = slices.Concat(x.s3.CA, ca)
	file := filepath.Join(x.t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		x.t.Fatal(err)
	}
	return []string{"AWS_SESSION_TOKEN=" + session, "AWS_ENDPOINT_URL_S3=" + s.URL, "AWS_CA_BUNDLE=" + file}
}

// What is wrong is said to who deploys, and to who asks.
func TestWrongConfiguration(t *testing.T) {
	x := newSite(t)
	for name, tt := range map[string]struct {
		env  []string
		want string
	}{
		"no bucket":  {nil, "neither BUCKET_NAME nor INTERLOCK_BUCKET is set"},
		"bad number": {[]string{layout, "POLL_SECONDS=often"}, "POLL_SECONDS"},
		"half a key": {[]string{layout, "SIGNING_KEY_ID=x"}, "SIGNING_SECRET"},
		"no manager": {[]string{layout, "SIGNING_SECRET_ARN=arn:aws:secretsmanager:eu-central-1:123456789012:secret:x", "AWS_ENDPOINT_URL_SECRETS_MANAGER=http://127.0.0.1:1"}, "get the signing key"},
		"no version": {[]string{"BUCKET_NAME=bucket", "FIRMWARE_KEY=x"}, "FIRMWARE_VERSION"},
	} {
		f := x.start(tt.env...)
		err := f.Warm()
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "Interlock.Configuration") {
			t.Errorf("%s: %v, want Lambda to be told %q", name, err, tt.want)
		}
	}
	for name, env := range map[string][]string{
		"no such bucket": {"INTERLOCK_BUCKET=s3://elsewhere/fw"},
		"wrong key":      {layout, "AWS_SECRET_ACCESS_KEY=wrong-secret"},
		"S3 is away":     {layout, "AWS_ENDPOINT_URL_S3=http://127.0.0.1:1"},
	} {
		f := x.start(env...)
		var doc document
		status := 500
		if name == "S3 is away" { // which may pass
			status = 503
		}
		x.get(f, status, &doc, "GET", f.URL(event.HTTP)+"/firmware", "")
		if doc.Error == "" || doc.Details == "" {
			t.Errorf("%s: %+v, want error and details", name, doc)
		}
		t.Logf("%s: %s: %s", name, doc.Error, doc.Details)
		if name == "S3 is away" {
			continue // it is tried for seconds
		}
		x.get(f, 500, nil, "POST", f.URL(event.HTTP)+api.PathCheckin, `{"device":"d1","product":"bess"}`, "Authorization: Bearer "+x.token)
	}
	x.log.check(t, x.token, "wrong-secret")
}

// Many devices at once get what one alone gets.
func TestConcurrently(t *testing.T) {
	x := newSite(t)
	x.publish("1.0.0", "", 20_000)
	f := x.start(layout)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			device := fmt.Sprintf("d%d", i)
			src, err := https.New(https.Config{URL: f.URL(kinds[i%3]), Device: device, Product: "bess", Token: x.token, CACert: slices.Concat(f.CA(), x.s3.CA)})
			if err != nil {
				t.Error(err)
				return
			}
			for range 3 {
				if _, err := src.Latest(t.Context()); err != nil {
					t.Errorf("%s: %v", device, err)
				}
				if err := src.Report(t.Context(), ota.Report{ID: "r1", Result: ota.Succeeded}); err != nil {
					t.Errorf("%s: %v", device, err)
				}
			}
		})
	}
	wg.Wait()
	all, err := x.bucket.Reports(t.Context(), "", 100)
	if err != nil || len(all) != 12 {
		t.Errorf("%d reports (%v), want one for each of 12 devices", len(all), err)
	}
	t.Logf("%d cold starts", f.Starts())
}

// log is what the function prints: JSON lines without secrets.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) check(t *testing.T, secrets ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for line := range strings.Lines(l.b.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Errorf("the log has a line that is no JSON: %s", line)
		}
		if m["msg"] == "request" {
			n++
			if m["request"] == nil || m["status"] == nil || m["ms"] == nil || m["route"] == nil {
				t.Errorf("the line of a request has not all: %s", line)
			}
		}
		for _, s := range append(secrets, "X-Amz-Signature", "X-Amz-Credential") {
			if strings.Contains(line, s) {
				t.Errorf("the log has a secret: %s", line)
			}
		}
	}
	if n == 0 {
		t.Error("the log has no request")
	}
}
