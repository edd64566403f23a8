package https_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/web"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/https"
)

// realServer starts Interlock's own server with r published, if r is not nil.
func realServer(t *testing.T, r *otatest.SignedRelease) (device https.Config, stop func()) {
	t.Helper()
	srv, err := web.Open(t.TempDir(), web.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	authority := newCA(t, "Test CA")
	s := serveTLS(t, authority, srv.Handler(), nil)
	if r != nil {
		req, err := http.NewRequest(http.MethodPost, s.URL+api.PathReleases, bytes.NewReader(r.Bundle))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+srv.FirstTokens.Operator)
		client := s.Client()
		client.Transport.(*http.Transport).TLSClientConfig.RootCAs.AddCert(authority.cert)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated {
			t.Fatalf("publish: %s: %s", resp.Status, body)
		}
	}
	return https.Config{URL: s.URL, Device: "d1", Product: "bess", Version: "1.0.0", CACert: authority.pem, Token: srv.FirstTokens.Device},
		func() { s.CloseClientConnections(); s.Listener.Close() }
}

func TestConformanceWithTheRealServer(t *testing.T) {
	otatest.TestSource(t, func(t *testing.T) otatest.SourceUnderTest {
		var c https.Config
		var stop func()
		return otatest.SourceUnderTest{
			New: func(t *testing.T, r *otatest.SignedRelease) ota.Source {
				if stop == nil {
					c, stop = realServer(t, r)
				}
				return newSource(t, c)
			},
			Break: func(*testing.T) { stop() },
		}
	})
}

// What one side sends, the other understands.
func TestTheRealServerTakesWhatIsSent(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	c, _ := realServer(t, r)
	src := newSource(t, c)
	if _, err := src.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := src.PollInterval(); d <= 0 {
		t.Errorf("PollInterval is %v, want the server's wish", d)
	}
	if err := src.Status(t.Context(), api.StatusUpdate{Head: api.Head{Status: ota.StatusDownloading, State: ota.Fetching, Done: 4096, Total: 20_000}}); err != nil {
		t.Errorf("Status: %v", err)
	}
	for range 2 {
		rep := ota.Report{ID: "a1b2", Digest: r.Manifest.Digest, Version: "1.1.0", From: "1.0.0", Running: "1.1.0", Result: ota.Succeeded, Time: r.Manifest.Created}
		if err := src.Report(t.Context(), rep); err != nil {
			t.Errorf("Report: %v", err)
		}
	}
	c.Token = "wrong"
	_, err := newSource(t, c).Latest(t.Context())
	expect(t, err, ota.ErrAuthentication, "401")
}
