package s3_test

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/blob/s3"
	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
)

// fetch returns the status and the body.
func fetch(t *testing.T, c *http.Client, method, rawURL string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, rawURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// What anybody can do with an URL: read the object that it names, for its time.
func TestPresignGet(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true})
	s, c := server.Store(t, "firmware"), server.Client()
	for _, key := range []string{"rack.bin", "other.bin"} {
		if _, err := s.Put(t.Context(), key, strings.NewReader("0123456789 of "+key), blob.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	good, err := s.PresignGet(t.Context(), "rack.bin", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if res, body := fetch(t, c, "GET", good); res.StatusCode != 200 || body != "0123456789 of rack.bin" {
		t.Errorf("GET: %d %q", res.StatusCode, body)
	}
	res, body := fetch(t, c, "GET", good, "Range: bytes=3-5")
	if res.StatusCode != 206 || body != "345" || res.Header.Get("Content-Range") != "bytes 3-5/22" {
		t.Errorf("a range: %d %q %q", res.StatusCode, body, res.Header.Get("Content-Range"))
	}
	if res, _ := fetch(t, c, "GET", good, "If-Match: \"another\""); res.StatusCode != 412 {
		t.Errorf("another ETag: %d, want 412", res.StatusCode)
	}
	if res, _ := fetch(t, c, "GET", good, "Range: bytes=22-"); res.StatusCode != 416 {
		t.Errorf("past the end: %d, want 416", res.StatusCode)
	}
	u, err := url.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(*url.URL, url.Values)) string {
		c, q := *u, u.Query()
		change(&c, q)
		c.RawQuery = q.Encode()
		return c.String()
	}
	for name, rawURL := range map[string]string{
		"no signature":  changed(func(u *url.URL, q url.Values) { clear(q) }),
		"another key":   changed(func(u *url.URL, q url.Values) { u.Path = "/bucket/firmware/other.bin" }),
		"the bucket":    changed(func(u *url.URL, q url.Values) { u.Path = "/bucket" }),
		"a list":        changed(func(u *url.URL, q url.Values) { u.Path = "/bucket"; q.Set("list-type", "2") }),
		"a longer life": changed(func(u *url.URL, q url.Values) { q.Set("X-Amz-Expires", "7200") }),
		"a later start": changed(func(u *url.URL, q url.Values) {
			q.Set("X-Amz-Date", time.Now().Add(time.Minute).UTC().Format("20060102T150405Z"))
		}),
		"another parameter": changed(func(u *url.URL, q url.Values) { q.Set("response-content-type", "text/html") }),
		"another signature": changed(func(u *url.URL, q url.Values) { q.Set("X-Amz-Signature", strings.Repeat("0", 64)) }),
	} {
		if res, body := fetch(t, c, "GET", rawURL); res.StatusCode != 403 {
			t.Errorf("%s: %d %s, want 403", name, res.StatusCode, body)
		}
	}
	for _, method := range []string{"DELETE", "PUT", "HEAD", "POST"} {
		if res, _ := fetch(t, c, method, good); res.StatusCode < 400 {
			t.Errorf("%s: %d, want a refusal", method, res.StatusCode)
		}
	}
	if _, err := s.Stat(t.Context(), "rack.bin"); err != nil {
		t.Errorf("after that: %v", err)
	}

	short, err := s.PresignGet(t.Context(), "rack.bin", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(2100 * time.Millisecond) // the server's clock counts in seconds
	if res, body := fetch(t, c, "GET", short); res.StatusCode != 403 || !strings.Contains(body, "expired") {
		t.Errorf("after its time: %d %q, want 403 and that it has expired", res.StatusCode, body)
	}
	missing, err := s.PresignGet(t.Context(), "missing.bin", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if res, _ := fetch(t, c, "GET", missing); res.StatusCode != 404 {
		t.Errorf("of what is not there: %d, want 404", res.StatusCode)
	}
	for _, lifetime := range []time.Duration{0, -time.Hour, 999 * time.Millisecond, 7*24*time.Hour + 1} {
		if u, err := s.PresignGet(t.Context(), "rack.bin", lifetime); err == nil {
			t.Errorf("a lifetime of %v: %s, want an error", lifetime, u)
		}
	}
}

// The URL is as short as can be, and has the form of Amazon's.
func TestURLLength(t *testing.T) {
	for name, tt := range map[string]struct {
		raw, token string
		host       string
	}{
		"amazon":          {"s3://interlock-releases/fleet?region=eu-central-1", "", "interlock-releases.s3.eu-central-1.amazonaws.com/fleet/"},
		"amazon, session": {"s3://interlock-releases/fleet?region=eu-central-1", strings.Repeat("t/+=", 200), "interlock-releases.s3.eu-central-1.amazonaws.com/fleet/"},
		"dots":            {"s3://releases.example.com?region=us-east-1", "", "s3.us-east-1.amazonaws.com/releases.example.com/"},
		"another server":  {"s3://bucket/a?endpoint=https%3A%2F%2Fs3.example.com:9000", "", "s3.example.com:9000/bucket/a/"},
		"bucket in host":  {"s3://bucket/a?endpoint=https%3A%2F%2Fs3.example.com&path-style=false", "", "bucket.s3.example.com/a/"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := s3.Open(t.Context(), tt.raw, s3.Options{Credentials: credentials.NewStaticCredentialsProvider("AKIAABCDEFGHIJKLMNOP", "secret", tt.token)})
			if err != nil {
				t.Fatal(err)
			}
			const key = "0123456789abcdef/rack-controller-2.1.0.bin"
			got, err := s.PresignGet(t.Context(), key, 24*time.Hour*7)
			if err != nil {
				t.Fatal(err)
			}
			if want := "https://" + tt.host + key + "?"; !strings.HasPrefix(got, want) {
				t.Errorf("URL %s, want it to begin with %s", got, want)
			}
			u, err := url.Parse(got)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for name := range u.Query() {
				names = append(names, name)
			}
			slices.Sort(names)
			want := []string{"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature", "X-Amz-SignedHeaders"}
			if tt.token != "" {
				want = slices.Insert(want, 4, "X-Amz-Security-Token")
			}
			if !slices.Equal(names, want) {
				t.Errorf("parameters %q, want %q", names, want)
			}
			plain, present, err := s.URLLength(t.Context(), key)
			if err != nil || present != len(got) || tt.token == "" && plain != present || tt.token != "" && plain+800 > present {
				t.Errorf("URLLength: %d, %d, %v; the URL has %d", plain, present, err, len(got))
			}
			if plain > 511 {
				t.Errorf("%d characters, which the devices of aws-s3-ota.md do not take", plain)
			}
		})
	}
}
