package web_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/web"
)

// pipes is a listener whose connections are in memory, and obey the bubble's time.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p pipes) dial() net.Conn {
	mine, theirs := net.Pipe()
	p <- theirs
	return mine
}

// slowSite calls f in a bubble with a server that has a release of one image.
func slowSite(t *testing.T, image []byte, f func(t *testing.T, s *web.Server, p pipes)) {
	key := newSigner(t)
	file := key.release(t, ota.Manifest{Version: "1.1.0"}, image)
	synctest.Test(t, func(t *testing.T) {
		s, err := web.Open(t.TempDir(), web.Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			t.Fatal(err)
		}
		p := make(pipes)
		h := s.HTTP()
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.Serve(p)
		}()
		c := p.dial()
		send(t, c, "POST "+api.PathReleases, s.FirstTokens.Operator, file)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != http.StatusCreated {
			t.Fatalf("publish: %+v, %v", res, err)
		}
		c.Close()
		f(t, s, p)
		close(p) // first, since Close waits for Serve
		<-done
		h.Close()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func send(t *testing.T, c net.Conn, what, token string, body []byte) {
	t.Helper()
	_, err := fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", what, token, len(body), body)
	if err != nil {
		t.Fatal(err)
	}
}

// slowly reads at most size bytes a second.
type slowly struct {
	net.Conn
	size int
}

func (s slowly) Read(p []byte) (int, error) {
	time.Sleep(time.Second)
	return s.Conn.Read(p[:min(len(p), s.size)])
}

// A modem of 2 KiB/s gets the check-in's answer and the image, however long it takes.
func TestSlowDeviceIsServed(t *testing.T) {
	image := firmware(1, 4<<20) // 1024 chunks: an answer of about 60 kB
	slowSite(t, image, func(t *testing.T, s *web.Server, p pipes) {
		start := time.Now()
		for _, what := range []string{"POST " + api.PathCheckin, "GET /firmware.bin"} {
			c := p.dial()
			var body []byte
			if strings.HasPrefix(what, "POST") {
				body = []byte(`{"device":"rack-7","product":"bess"}`)
			}
			send(t, c, what, s.FirstTokens.Device, body)
			res, err := http.ReadResponse(bufio.NewReaderSize(slowly{c, 2 << 10}, 2<<10), nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != 200 || int64(len(got)) != res.ContentLength && res.ContentLength >= 0 {
				t.Errorf("%s: %d with %d bytes, %v", what, res.StatusCode, len(got), err)
			}
			if body == nil && !bytes.Equal(got, image) {
				t.Errorf("%s: not the image", what)
			}
			c.Close()
		}
		if took := time.Since(start); took < 30*time.Minute {
			t.Errorf("it took %v, which proves nothing", took)
		}
	})
}

// Who stops reading, or never finishes its headers, does not hold a connection for long.
func TestSilentDeviceIsDropped(t *testing.T) {
	slowSite(t, firmware(1, 1<<20), func(t *testing.T, s *web.Server, p pipes) {
		for _, tt := range []struct {
			name, request string
			atMost        time.Duration
		}{
			{"headers", "GET / HTTP/1.1\r\nHost: x\r\nX-Sl", 15 * time.Second},
			{"body", "POST " + api.PathCheckin + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + s.FirstTokens.Device +
				"\r\nContent-Length: 100\r\n\r\n{", 40 * time.Second},
			{"answer", "GET /firmware.bin HTTP/1.1\r\nHost: x\r\n\r\n", 70 * time.Second},
			{"events", "GET " + api.PathEvents + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + s.FirstTokens.Operator + "\r\n\r\n", 30 * time.Second},
		} {
			c := p.dial()
			if _, err := io.WriteString(c, tt.request); err != nil {
				t.Fatal(err)
			}
			time.Sleep(tt.atMost)
			synctest.Wait()
			// The server's end is closed: what is written to it fails. An answer may be
			// read first.
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, err := io.Copy(io.Discard, c)
			if err != nil && !strings.Contains(err.Error(), "closed") {
				t.Errorf("%s: after %v the connection is still open: %v", tt.name, tt.atMost, err)
			}
			c.Close()
		}
	})
}
