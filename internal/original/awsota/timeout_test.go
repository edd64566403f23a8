package awsota_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/internal/original/awsota"
	"github.com/interlock-energy/ota/internal/serve"
)

// otherCA is a CA that nobody here has a certificate of.
func otherCA(t *testing.T) []byte {
	t.Helper()
	ca, err := serve.OpenCA(t.TempDir(), []string{"other"}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return ca.PEM
}

// pipes is a listener whose connections are in memory, so that time can be fake.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.IPAddr{} }
func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestTimeout(t *testing.T) {
	const size = 10
	for _, tt := range []struct {
		name  string
		pause time.Duration // before each byte of the image
		ok    bool
	}{
		{"slow", 119 * time.Second, true}, // 20 minutes in all: the timeout begins anew with each byte
		{"stuck", 121 * time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, err := serve.OpenCA(t.TempDir(), []string{"ota.example"}, time.Now)
				if err != nil {
					t.Fatal(err)
				}
				p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/firmware" {
						io.WriteString(w, `{"version":"1.0.1","url":"https://ota.example/image"}`)
						return
					}
					w.Header().Set("Content-Length", "10")
					for range size {
						select {
						case <-time.After(tt.pause):
						case <-r.Context().Done():
							return
						}
						io.WriteString(w, "x")
						w.(http.Flusher).Flush()
					}
				})
				srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{GetCertificate: ca.Certificate}}
				ended := make(chan error)
				go func() { ended <- srv.ServeTLS(p, "", "") }()

				var flash bytes.Buffer
				d, err := awsota.New(awsota.Config{ManifestURL: "https://ota.example/firmware", Version: "1.0.0", RootCA: ca.PEM, Flash: &flash, Dial: p.dial})
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				r, err := d.Update(t.Context())
				took := time.Since(start)
				switch {
				case tt.ok && (err != nil || !r.Updated || took < size*tt.pause):
					t.Errorf("got %+v, %v after %v; want an update", r, err, took)
				case !tt.ok && (!errors.Is(err, awsota.ErrDownload) || !strings.Contains(err.Error(), "hard timeout") || took != 120*time.Second):
					t.Errorf("got %+v, %v after %v; want a hard timeout after 120 s", r, err, took)
				}
				// A connection that is closed says so to the other end, for 5 s if nobody
				// reads. Close would wait for that with a lock held, for which fake time waits.
				time.Sleep(time.Minute)
				srv.Close()
				<-ended
			})
		})
	}
}

// The two seconds between tries are the client's own.
func TestWaitBetweenTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no network") }
		d, err := awsota.New(awsota.Config{ManifestURL: "https://ota.example/firmware", RootCA: otherCA(t), Flash: io.Discard, Dial: refuse})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := d.Update(t.Context()); !errors.Is(err, awsota.ErrManifest) {
			t.Errorf("got %v, want that there is no manifest", err)
		}
		if got, want := time.Since(start), 4*time.Second; got != want {
			t.Errorf("gave up after %v, want %v", got, want)
		}
	})
}
