package https

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/api"
)

type answer func(*http.Request) (*http.Response, error)

func (f answer) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Answer makes s ask f instead of the network, for tests in which time is not real.
func Answer(s *Source, f func(*http.Request) (*http.Response, error)) { s.client.Transport = answer(f) }

// A server cannot make the device talk to itself or to its link, whatever the
// name that leads there.
func TestServerCannotPointInside(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := New(Config{URL: "https://updates.example.com", Device: "d1", Product: "bess"})
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	chosen := context.WithValue(t.Context(), elsewhere{}, true)
	for _, host := range []string{"127.0.0.1", "localhost", "::ffff:127.0.0.1", "169.254.169.254", "0.0.0.0", "fe80::1%lo", "224.0.0.1"} {
		c, err := s.dial(chosen, "tcp", net.JoinHostPort(host, port))
		if err == nil {
			c.Close()
			t.Errorf("dialed %s", host)
		} else if !errors.Is(err, errInside) {
			t.Errorf("dial %s: got %v, want %v", host, err, errInside)
		}
	}
	c, err := s.dial(t.Context(), "tcp", l.Addr().String()) // the configured host may be there
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	for base, want := range map[string]bool{"https://updates.example.com": true, "https://127.0.0.1:8443": false, "https://localhost": false} {
		s.base, _ = url.Parse(base)
		if got := s.mayPointInside(&http.Request{URL: &url.URL{Scheme: "https", Host: "other.example.com"}}); got != want {
			t.Errorf("offers of %s are checked: got %v, want %v", base, got, want)
		}
	}
}

func TestOrigin(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"https://a.example", "https://A.example:443/x?y", true},
		{"https://a.example", "https://a.example:8443", false},
		{"https://a.example", "http://a.example", false},
		{"https://a.example", "https://b.a.example", false},
		{"https://a.example", "https://a.example.b", false},
	} {
		a, _ := url.Parse(tt.a)
		b, _ := url.Parse(tt.b)
		if got := sameOrigin(a, b); got != tt.want {
			t.Errorf("%s and %s: got %v, want %v", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestOfferedAddresses(t *testing.T) {
	for _, tt := range []struct{ base, ref, want string }{
		{"https://h.example", "/d/x?e=1", "https://h.example/d/x?e=1"},
		{"https://h.example/", "/d/x", "https://h.example/d/x"},
		{"https://h.example/ota", "/d/x", "https://h.example/ota/d/x"},
		{"https://h.example/ota/", "/d/x:y", "https://h.example/ota/d/x:y"},
		{"https://h.example/ota", "d/x", "https://h.example/ota/d/x"},
		{"https://h.example/ota", "https://s3.example/x?sig=1#f", "https://s3.example/x?sig=1"},
		{"https://h.example/ota", "//cdn.example/x", "https://cdn.example/x"},
	} {
		s, err := New(Config{URL: tt.base, Device: "d1", Product: "bess"})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.offered(tt.ref); err != nil || got.String() != tt.want {
			t.Errorf("%s at %s: got %v, %v, want %s", tt.ref, tt.base, got, err, tt.want)
		}
		if got, want := s.apiURL(api.PathCheckin).Path, strings.TrimSuffix(s.base.Path, "/")+"/api/v1/checkin"; got != want {
			t.Errorf("check-in at %s: got %s, want %s", tt.base, got, want)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 5-9/*", "bytes */5", "", "bytes 9223372036854775807-9223372036854775807/9223372036854775807", "bytes -1-5/9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, end, total, err := parseContentRange(s)
		if err == nil && (start < 0 || end <= start || total < -1 || total >= 0 && end > total) {
			t.Errorf("%q: accepted as %d to %d of %d", s, start, end, total)
		}
	})
}

func FuzzOffer(f *testing.F) {
	s, err := New(Config{URL: "https://updates.example.com/fleet", Device: "d1", Product: "bess"})
	if err != nil {
		f.Fatal(err)
	}
	for _, u := range []string{"/d/x", "d/x", "//evil.example/x", "https://a.example/x?y", "http://a.example", "file:///etc/shadow", "https://u:p@a.example", "\x00", "https:///x", "javascript:alert(1)", "https://a.example:99999/"} {
		b, _ := json.Marshal(api.CheckinResponse{Release: &api.ReleaseOffer{Signed: []byte("x"), Images: []api.ImageOffer{{URL: u}}}})
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var in api.CheckinResponse
		if json.Unmarshal(b, &in) != nil || in.Release == nil {
			return
		}
		images, err := s.places(in.Release)
		if err != nil {
			return
		}
		for _, p := range images {
			if p.url.Scheme != "https" || p.url.Hostname() == "" || p.url.User != nil || len(in.Release.Signed) == 0 {
				t.Errorf("%q: accepted %q", b, p.url)
			}
		}
	})
}

func FuzzPayloadDigest(f *testing.F) {
	for _, s := range []string{`{"payload":"e30="}`, `{"payload":"_-8="}`, `{}`, `[`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if digest, err := payloadDigest(b); err == nil && len(digest) != 64 {
			t.Errorf("digest %q has %d characters", digest, len(digest))
		}
	})
}
