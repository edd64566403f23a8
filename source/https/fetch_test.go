package https_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/source/https"
)

func TestFetch(t *testing.T) {
	const object = "0123456789abcdef"
	status := http.StatusOK
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ranges", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials were sent to an address that comes from elsewhere")
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(object))
	})
	mux.HandleFunc("GET /whole", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, object) })
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) })
	server := httptest.NewTLSServer(mux)
	defer server.Close()
	other := httptest.NewTLSServer(mux)
	defer other.Close()
	f, err := https.NewFetcher(https.Config{URL: other.URL, Token: "secret", CACert: certPEM(server.Certificate())})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/ranges", "/whole"} {
		for _, c := range []struct {
			offset, length int64
			want           string
		}{
			{0, 16, object}, {4, 3, "456"}, {10, -1, "abcdef"}, {0, -1, object}, {15, 1, "f"}, {3, 0, ""},
		} {
			r, size, err := f.Fetch(t.Context(), server.URL+path+"?X-Amz-Signature=secret", c.offset, c.length)
			if err != nil {
				t.Errorf("%s, %d bytes from %d: %v", path, c.length, c.offset, err)
				continue
			}
			got, err := io.ReadAll(r)
			r.Close()
			if err != nil || string(got) != c.want || c.length != 0 && size != 16 {
				t.Errorf("%s, %d bytes from %d: got %q of %d, %v; want %q of 16", path, c.length, c.offset, got, size, err, c.want)
			}
		}
		if _, _, err := f.Fetch(t.Context(), server.URL+path, 10, 10); !errors.Is(err, ota.ErrServer) {
			t.Errorf("%s beyond the end: %v, want ErrServer", path, err)
		}
	}
	for code, want := range map[int]bool{401: true, 403: true, 404: true, 410: true, 500: false, 503: false} {
		status = code
		_, _, err := f.Fetch(t.Context(), server.URL+"/status?X-Amz-Signature=secret", 0, 4)
		if err == nil || https.Expired(err) != want || strings.Contains(err.Error(), "secret") {
			t.Errorf("status %d: %v, Expired is %v, want %v and no secrets", code, err, https.Expired(err), want)
		}
	}
	for _, bad := range []string{"http://example.com/x", "ftp://example.com/x", "", "https://", "https://user:pw@example.com/x", "https://example.com/" + strings.Repeat("x", 9000)} {
		if _, _, err := f.Fetch(t.Context(), bad, 0, 4); !errors.Is(err, ota.ErrServer) {
			t.Errorf("address %.40q: %v, want ErrServer", bad, err)
		}
	}
}

// A job may not send a device to itself, unless its broker is there, too.
func TestFetchFromInside(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	f, err := https.NewFetcher(https.Config{URL: "https://broker.example", CACert: certPEM(server.Certificate())})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Fetch(t.Context(), server.URL+"/x", 0, 4); err == nil || !strings.Contains(err.Error(), "inside the device") {
		t.Errorf("fetch from the device itself: %v", err)
	}
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
