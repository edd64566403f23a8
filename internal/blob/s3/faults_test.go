package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/blob/s3"
	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
	"github.com/interlock-energy/ota/otatest"
)

// What people do wrong is said in a sentence, with what to do.
func TestWhatIsWrongIsSaid(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	reader := server.AddUser(t, "s3:GetObject", "s3:ListBucket")
	closed := "http://" + otatest.NobodyAddr(t)
	redirecting := answering(t, http.StatusMovedPermanently, "PermanentRedirect", "X-Amz-Bucket-Region: eu-west-3")
	skewed := answering(t, http.StatusForbidden, "RequestTimeTooSkewed")
	for _, tt := range []struct {
		name, raw string
		user      s3test.User
		endpoint  string
		want      []string
	}{
		{"no such bucket", "s3://buckett/x", s3test.User{AccessKey: server.AccessKey, SecretKey: server.SecretKey}, server.Endpoint, []string{`there is no bucket "buckett"`, "s3://buckett/x"}},
		{"unknown key", "s3://bucket/x", s3test.User{AccessKey: "AKIANOBODYNOBODYNOBO", SecretKey: "x"}, server.Endpoint, []string{"does not know this access key"}},
		{"wrong secret", "s3://bucket/x", s3test.User{AccessKey: server.AccessKey, SecretKey: "x"}, server.Endpoint, []string{"the secret key is not that of the access key"}},
		{"nobody there", "s3://bucket/x", reader, closed, []string{"connection refused", "check the endpoint and the network"}},
		{"another region", "s3://bucket/x", reader, redirecting, []string{"the bucket is in region eu-west-3, not us-east-1"}},
		{"clock", "s3://bucket/x", reader, skewed, []string{"the clock of this machine is wrong"}},
		{"may not write", "s3://bucket/x", reader, server.Endpoint, []string{"the credentials are refused", "s3:PutObject"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := server.OptionsFor(tt.user)
			o.Endpoint, o.HTTPClient = tt.endpoint, nil
			s, err := s3.Open(t.Context(), tt.raw, o)
			if err != nil {
				t.Fatal(err)
			}
			checked := s.Check(t.Context())
			if (checked == nil) != (tt.name == "may not write") {
				t.Errorf("check: %v", checked)
			}
			_, err = s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{})
			for _, want := range append(tt.want, "k in s3://") {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
			for _, err := range []error{err, checked} {
				if errors.Is(err, blob.ErrNotFound) || err != nil && strings.Contains(err.Error(), "operation error") {
					t.Errorf("got %q: not for people, or a missing object", err)
				}
			}
		})
	}
	for raw, want := range map[string]string{
		"s3:///key": "not the URL of a bucket", "https://bucket": "not the URL of a bucket", "s3://u:p@bucket": "not the URL of a bucket",
		"s3://bucket/a//b": "has a part", "s3://bucket/a%20b": "want a-z", "s3://bucket?regoin=x": `parameter "regoin"`,
		"s3://bucket?path-style=perhaps": "want true or false", "s3://bucket?endpoint=s3.example.com": "want a form like https://",
		"s3://bucket/" + strings.Repeat("p", 101): "want 100",
	} {
		if _, err := s3.Open(t.Context(), raw, s3.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in it", raw, err, want)
		}
	}
}

// Whether to come again later is told apart from what stays wrong.
func TestUnavailable(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	for name, tt := range map[string]struct {
		endpoint string
		want     bool
	}{
		"asks for patience": {answering(t, http.StatusServiceUnavailable, "SlowDown"), true},
		"nobody there":      {"http://" + otatest.NobodyAddr(t), true},
		"refuses":           {answering(t, http.StatusForbidden, "AccessDenied"), false},
		"is elsewhere":      {answering(t, http.StatusMovedPermanently, "PermanentRedirect"), false},
		"has it not":        {server.Endpoint, false},
	} {
		o := server.Options()
		o.Endpoint, o.HTTPClient = tt.endpoint, nil
		s, err := s3.Open(t.Context(), "s3://bucket/p", o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stat(t.Context(), "k"); err == nil || errors.Is(err, blob.ErrUnavailable) != tt.want {
			t.Errorf("%s: got %v; is it unavailable: want %t", name, err, tt.want)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := server.Store(t, "p").Stat(gone, "k"); err == nil || errors.Is(err, blob.ErrUnavailable) {
		t.Errorf("nobody waits any more: got %v, which is not the store's fault", err)
	}
}

// Who writes keys into the URL, as for other programs, does not find them in a log.
func TestKeysInTheURLAreNotShown(t *testing.T) {
	for _, raw := range []string{"s3://AKIAKEY:s3cret@bucket/p", "s3://AKIAKEY:s3cret@/p", "s3://AKIAKEY:s3cret@b ucket/%zz", "s3://AKIAKEY:s3/cret@bucket",
		"s3://bucket?region=x&secret=s3cret", "s3://bucket?endpoint=https://u:s3cret@host", "s3://bucket?endpoint=u:s3cret@host", "s3://bucket/a//b?endpoint=https://u:s3cret@host"} {
		_, err := s3.Open(t.Context(), raw, s3.Options{Region: "us-east-1"})
		if err == nil || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "cret@") {
			t.Errorf("%s: got %v, want an error without the secret", raw, err)
		}
	}
}

// The environment is that of every program that uses AWS's SDK.
func TestEnvironment(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true, Region: "eu-north-1"})
	for _, v := range server.Env() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	s, err := s3.Open(t.Context(), "s3://bucket/p", s3.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(server.Dir, "bucket", "p", "k")); err != nil {
		t.Error(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	if s, err = s3.Open(t.Context(), "s3://bucket/p", s3.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "k"); err == nil || !strings.Contains(err.Error(), "there are no credentials") {
		t.Errorf("without credentials: %v", err)
	}
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_ENDPOINT_URL_S3", "")
	if _, err := s3.Open(t.Context(), "s3://bucket/p", s3.Options{}); err == nil || !strings.Contains(err.Error(), "the region is not known") {
		t.Errorf("without a region: %v", err)
	}
}

// What is stored arrived as it was sent, or is not stored: a proxy spoils a byte.
func TestSpoiltOnTheWay(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	front := proxy(t, server, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut {
			b, _ := io.ReadAll(r.Body)
			b[len(b)/2] ^= 1
			r.Body = io.NopCloser(bytes.NewReader(b))
		}
		next.ServeHTTP(w, r)
	})
	s := store(t, server, front)
	if _, err := s.Put(t.Context(), "k", strings.NewReader("firmware"), blob.PutOptions{}); err == nil {
		t.Error("it was stored")
	}
	if _, err := server.Store(t, "").Stat(t.Context(), "k"); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

// The answer to a conditional Put is lost after the object was stored: the next
// try is refused because of our own object, and that is success.
func TestAnswerLost(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	direct := server.Store(t, "")
	before, err := direct.Put(t.Context(), "changed", strings.NewReader("before"), blob.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for key, o := range map[string]blob.PutOptions{"new": {IfAbsent: true}, "changed": {IfETag: before.ETag}} {
		var puts atomic.Int32
		front := proxy(t, server, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method != http.MethodPut || puts.Add(1) > 1 {
				next.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		})
		got, err := store(t, server, front).Put(t.Context(), key, strings.NewReader("ours"), o)
		if err != nil || puts.Load() != 2 {
			t.Errorf("%s: %v after %d PUTs, want success after 2", key, err, puts.Load())
		}
		if want, err := direct.Stat(t.Context(), key); err != nil || want.ETag != got.ETag || want.Size != 4 {
			t.Errorf("%s: it is %+v, %v; Put said %+v", key, want, err, got)
		}
	}
}

// The line is cut in the middle of an upload: once, which is made good, and every
// time, which leaves nothing, and ends after a few tries.
func TestCutUpload(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
	for _, tt := range []struct {
		name string
		cuts int32
		ok   bool
	}{{"once", 1, true}, {"always", 1000, false}} {
		t.Run(tt.name, func(t *testing.T) {
			line := newLine(t, server, 3<<20, tt.cuts)
			s := store(t, server, "http://"+line.addr)
			_, err := s.Put(t.Context(), tt.name, bytes.NewReader(content), blob.PutOptions{})
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
			if n := line.cut.Load(); n < 1 || n > 6 {
				t.Errorf("cut %d times, want a few", n)
			}
			r, _, err := server.Store(t, "").Open(t.Context(), tt.name, 0, -1)
			if !tt.ok {
				if !errors.Is(err, blob.ErrNotFound) {
					t.Errorf("after a Put that was cut: %v, want ErrNotFound", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
				t.Errorf("got %d bytes, %v, want the %d that were sent", len(got), err, len(content))
			}
		})
	}
}

// A download that is cut ends with an error, not as if it were all.
func TestCutDownload(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	if _, err := server.Store(t, "").Put(t.Context(), "k", bytes.NewReader(make([]byte, 8<<20)), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	front := proxy(t, server, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&short{w, 1 << 20}, r)
	})
	for _, from := range []int64{0, 100} {
		r, _, err := store(t, server, front).Open(t.Context(), "k", from, -1)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); err == nil {
			t.Errorf("from %d: %d bytes of %d and no error", from, n, 8<<20)
		}
		r.Close()
	}
}

// A server that knows no ranges is found out.
func TestRangesIgnored(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	if _, err := server.Store(t, "").Put(t.Context(), "k", strings.NewReader("0123456789"), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "0123456789") }))
	t.Cleanup(plain.Close)
	if r, _, err := store(t, server, plain.URL).Open(t.Context(), "k", 3, 4); err == nil {
		b, _ := io.ReadAll(r)
		t.Errorf("got %q, want an error", b)
	}
}

// Writers that meet are told so by 409, try again, and end.
func TestConflicts(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	for conflicts, want := range map[int32]error{2: nil, 1000: blob.ErrChanged} {
		var n atomic.Int32
		front := proxy(t, server, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodPut && n.Add(1) <= conflicts {
				io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(http.StatusConflict)
				io.WriteString(w, `<Error><Code>ConditionalRequestConflict</Code><Message>m</Message></Error>`)
				return
			}
			next.ServeHTTP(w, r)
		})
		key := fmt.Sprint("k", conflicts)
		if _, err := store(t, server, front).Put(t.Context(), key, strings.NewReader("x"), blob.PutOptions{IfAbsent: true}); !errors.Is(err, want) {
			t.Errorf("%d conflicts: got %v, want %v", conflicts, err, want)
		}
		if n.Load() > 20 {
			t.Errorf("%d tries", n.Load())
		}
	}
}

// store opens the bucket through another address.
func store(t *testing.T, server *s3test.Server, endpoint string) *s3.Store {
	t.Helper()
	o := server.Options()
	o.HTTPClient = nil
	s, err := s3.Open(t.Context(), "s3://bucket?endpoint="+url.QueryEscape(endpoint)+"&region="+server.Region, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// proxy is a proxy in front of the server that does what do says.
func proxy(t *testing.T, server *s3test.Server, do func(http.ResponseWriter, *http.Request, http.Handler)) string {
	t.Helper()
	u, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	next := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host }, ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) { panic(http.ErrAbortHandler) }}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { do(w, r, next) }))
	t.Cleanup(front.Close)
	return front.URL
}

// short is an answer that breaks off.
type short struct {
	http.ResponseWriter
	left int
}

func (s *short) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return s.ResponseWriter.Write(p)
}

// line is a TCP line to the server that is cut after some bytes of an upload.
type line struct {
	addr string
	cut  atomic.Int32
}

func newLine(t *testing.T, server *s3test.Server, after int64, cuts int32) *line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	out := &line{addr: l.Addr().String()}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", strings.TrimPrefix(server.Endpoint, "http://"))
			if err != nil {
				near.Close()
				return
			}
			go func() { io.Copy(near, far); near.Close() }()
			go func() {
				if _, err := io.CopyN(far, near, after); err == nil && out.cut.Load() < cuts {
					out.cut.Add(1)
				} else if err == nil {
					io.Copy(far, near)
				}
				near.Close()
				far.Close()
			}()
		}
	}()
	return out
}

// answering is a stand-in for a server that says one thing to everybody.
func answering(t *testing.T, status int, code string, headers ...string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			w.Header().Set(name, value)
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>the message</Message></Error>", code)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// An endpoint that takes the connection and says nothing: the caller's time counts.
func TestSilentEndpoint(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := store(t, server, "http://"+l.Addr().String()).Stat(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}
