package web_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/web"
	"github.com/interlock-energy/ota/source/https"
)

// The same release with another signature must reach a device that has seen it
// without: it may have refused it for want of signatures.
func TestSignedAgainIsNot304(t *testing.T) {
	key, second := newSigner(t), newSigner(t)
	x := newSite(t, web.Config{})
	head := api.Head{Device: "rack-7", Product: "bess", Version: "1.0.0"}
	m := ota.Manifest{Version: "1.1.0"}
	x.publish(key.release(t, m, firmware(1, 5000)), "")
	_, a := x.checkin(head)
	x.publish(second.release(t, m, firmware(1, 5000)), "")
	got, a := x.checkin(head, "If-None-Match: "+a.Header.Get("ETag"))
	if a.StatusCode != http.StatusOK || got.Release == nil {
		t.Fatalf("got %d, want 200 with the release as it was signed last", a.StatusCode)
	}
	if _, err := second.keys.Verify(got.Release.Signed); err != nil {
		t.Error(err)
	}
}

// A server behind a proxy at a path, as [https.Config.URL] permits.
func TestDownloadBehindAPath(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{})
	image := firmware(1, 5000)
	x.publish(key.release(t, ota.Manifest{Version: "1.1.0"}, image), "")
	proxy := httptest.NewServer(http.StripPrefix("/ota", x.s.Handler()))
	defer proxy.Close()
	s, err := https.New(https.Config{URL: proxy.URL + "/ota", Device: "rack-7", Product: "bess", Version: "1.0.0", Token: x.device, AllowPlain: true})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Latest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	man, err := key.keys.Verify(signed)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Open(t.Context(), man, &man.Images[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}

// Revoking a token ends what it has opened: a stolen one must not go on showing
// the fleet for as long as the connection lasts.
func TestRevokedTokenEndsItsStreams(t *testing.T) {
	x := newSite(t, web.Config{})
	stolen, err := x.s.NewOperatorToken(t.Context(), "stolen")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	events := x.stream(ctx, api.PathEvents, stolen)
	var list struct{ Tokens []struct{ ID, Note string } }
	x.want(x.do("GET", api.PathTokens, x.operator, nil), 200, &list)
	for _, tok := range list.Tokens {
		if tok.Note == "stolen" {
			x.want(x.do("DELETE", api.PathTokens+"/"+tok.ID, x.operator, nil), 204, nil)
		}
	}
	x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	for e := range events {
		t.Errorf("the revoked token still gets %v", e)
	}
	if ctx.Err() != nil {
		t.Error("the stream of a revoked token goes on")
	}
}
