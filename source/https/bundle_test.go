package https_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/https"
)

func TestBundleChecksCostLittle(t *testing.T) {
	key := otatest.NewSigningKey(t)
	r := key.Release(t, "1.1.0", 20_000)
	o := newOther(t, r)
	src := newSource(t, o.config(https.Bundle))
	check := func(want ...string) {
		t.Helper()
		o.set(func() { o.requests = nil })
		got, err := src.Latest(t.Context())
		if err != nil || !bytes.Equal(got, o.release.Signed) {
			t.Errorf("Latest: got %.60q, %v", got, err)
		}
		if !slices.Equal(o.requests, want) {
			t.Errorf("requests: got %q, want %q", o.requests, want)
		}
	}
	check("HEAD /bundle", "GET /bundle", "GET /bundle")
	check("HEAD /bundle")
	o.set(func() { o.release = key.Release(t, "1.2.0", 20_000) })
	check("HEAD /bundle", "GET /bundle", "GET /bundle")

	o.set(func() { o.running, o.requests = "1.0.0", nil })
	if _, err := src.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) || len(o.requests) != 1 {
		t.Errorf("the running version announced: got %v after %q", err, o.requests)
	}
	o.set(func() { o.running = "0.9.0" }) // a hint in the other direction is worth nothing
	check("HEAD /bundle")

	o.set(func() {
		o.before = func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
			}
		}
	})
	check("HEAD /bundle", "GET /bundle") // the header's ETag says that the rest is known
}

// A manifest's presigned address differs every time; the ETag behind it does not.
func TestManifestChecksCostLittle(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	o := newOther(t, r)
	src := newSource(t, o.config(https.Manifest))
	for i, want := range [][]string{{"GET /manifest", "GET /presigned", "GET /presigned"}, {"GET /manifest", "GET /presigned"}} {
		o.set(func() { o.requests, o.headers, o.access = nil, nil, fmt.Sprint("k", i) })
		if got, err := src.Latest(t.Context()); err != nil || !bytes.Equal(got, r.Signed) {
			t.Fatalf("got %.60q, %v", got, err)
		}
		if !slices.Equal(o.requests, want) {
			t.Errorf("requests: got %q, want %q", o.requests, want)
		}
		if h := o.headers[0]; h.Get("Accept") != "application/json" || h.Get("Cache-Control") != "no-cache" {
			t.Errorf("Accept %q, Cache-Control %q", h.Get("Accept"), h.Get("Cache-Control"))
		}
	}
}

func TestBadManifests(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		body   string
		code   ota.ErrorCode
		say    string
	}{
		"the running version": {200, `{"version":"1.0.0","url":"https://127.0.0.1/x"}`, ota.ErrNoUpdate, "1.0.0"},
		"no version":          {200, `{"url":"https://127.0.0.1/x?Signature=abc"}`, ota.ErrServer, "needs a version"},
		"empty version":       {200, `{"version":"","url":"https://127.0.0.1/x"}`, ota.ErrServer, "needs a version"},
		"no url":              {200, `{"version":"1.1.0"}`, ota.ErrServer, "and a url"},
		"http url":            {200, `{"version":"1.1.0","url":"http://127.0.0.1/x?Signature=abc"}`, ota.ErrServer, "not https"},
		"file url":            {200, `{"version":"1.1.0","url":"file:///etc/shadow"}`, ota.ErrServer, "file"},
		"relative url":        {200, `{"version":"1.1.0","url":"/x"}`, ota.ErrServer, "want https"},
		"long url":            {200, `{"version":"1.1.0","url":"https://127.0.0.1/` + strings.Repeat("x", 9000) + `"}`, ota.ErrServer, "characters"},
		"a number as version": {200, `{"version":1.1,"url":"https://127.0.0.1/x"}`, ota.ErrServer, "JSON"},
		"no JSON":             {200, `<html>`, ota.ErrServer, "login page"},
		"endless":             {200, `{"x":"` + strings.Repeat("x", 70<<10), ota.ErrServer, "more than 65536 bytes"},
		"not found":           {404, `{"error": "Firmware file not found"}`, ota.ErrServer, "Firmware file not found"},
		"internal":            {500, `{"error": "boom", "details": "stack"}`, ota.ErrServer, "boom: stack"},
		"forbidden":           {403, `{"message":"Missing Authentication Token"}`, ota.ErrAuthentication, "403"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOther(t, nil)
			o.before = func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.body)
			}
			_, err := newSource(t, o.config(https.Manifest)).Latest(t.Context())
			if code := ota.CodeOf(err); err == nil || code != tt.code || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v (%s), want %s and %q", err, code.Name(), tt.code.Name(), tt.say)
			}
			if err != nil && strings.Contains(err.Error(), "abc") {
				t.Errorf("error %q holds a query", err)
			}
		})
	}
}

func TestBadBundles(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	for name, tt := range map[string]struct {
		object []byte
		say    string
	}{
		"empty":                {nil, ""},
		"a web page":           {[]byte("<html><title>Log in</title></html>"), "is the url that of a bundle file?"},
		"a header alone":       {r.Bundle[:12], "cut short: it has 12 bytes"},
		"half an envelope":     {r.Bundle[:500], "cut short: it has 500 bytes"},
		"an envelope of 4 GiB": {append([]byte("\x89ILK\r\n\x1a\n\xff\xff\xff\xff"), make([]byte, 1000)...), "4294967295"},
		"no JSON":              {append([]byte("\x89ILK\r\n\x1a\n\x00\x00\x00\x04"), make([]byte, 1000)...), "read the envelope"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOther(t, r)
			o.object = func(w http.ResponseWriter, r *http.Request, name string, _ []byte) {
				serveObject(w, r, name, tt.object)
			}
			_, err := newSource(t, o.config(https.Bundle)).Latest(t.Context())
			if code := ota.CodeOf(err); err == nil || code != ota.ErrServer || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v (%s), want %s and %q", err, code.Name(), ota.ErrServer.Name(), tt.say)
			}
		})
	}
	t.Run("cut off behind the envelope", func(t *testing.T) {
		o := newOther(t, r)
		o.object = func(w http.ResponseWriter, req *http.Request, name string, b []byte) {
			serveObject(w, req, name, b[:len(b)-1])
		}
		src := newSource(t, o.config(https.Bundle))
		if _, err := src.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		rc, err := src.Open(t.Context(), r.Manifest, &r.Manifest.Images[0], 0)
		if err == nil {
			rc.Close()
		}
		if ota.CodeOf(err) != ota.ErrServer || !strings.Contains(err.Error(), fmt.Sprintf("has %d bytes, want %d", len(r.Bundle)-1, len(r.Bundle))) {
			t.Errorf("got %v", err)
		}
	})
}

// Servers without any of what makes it cheap still work.
func TestPlainOldServer(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	o := newOther(t, r)
	o.object = func(w http.ResponseWriter, r *http.Request, _ string, b []byte) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusNotImplemented)
			return
		}
		w.Write(b) // no Range, no ETag, no Content-Length
	}
	src := newSource(t, o.config(https.Bundle))
	for range 2 {
		if got, err := src.Latest(t.Context()); err != nil || !bytes.Equal(got, r.Signed) {
			t.Fatalf("Latest: got %.60q, %v", got, err)
		}
	}
	rc, err := src.Open(t.Context(), r.Manifest, &r.Manifest.Images[0], 7777)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, r.Images["controller"][7777:]) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}
