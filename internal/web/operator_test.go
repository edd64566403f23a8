package web_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/web"
)

// Every route, with every kind of token: what may pass, and what may not.
func TestTokenRules(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{})
	var own, other api.TokenResponse
	x.want(x.do("POST", api.PathTokens, x.operator, api.TokenRequest{Device: "rack-7", Note: "of rack 7"}), 201, &own)
	x.want(x.do("POST", api.PathTokens, x.operator, api.TokenRequest{Device: "rack-8"}), 201, &other)
	digest := x.publish(key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(1, 100)), "").Release.Digest
	x.checkin(api.Head{Device: "rack-7", Product: "bess"})

	head := api.Head{Device: "rack-7", Product: "bess"}
	report := api.ReportsRequest{Device: "rack-7", Reports: []ota.Report{{ID: "1", Result: ota.Failed}}}
	const no, never, other403 = 401, 403, 403
	type row struct {
		method, path                             string
		body                                     any
		none, fleet, own, other, operator, wrong int
	}
	ofDevice := func(method, path string, body any, ok int) row {
		return row{method, path, body, no, ok, ok, other403, never, no}
	}
	ofOperator := func(method, path string, body any, ok int) row {
		return row{method, path, body, no, never, never, never, ok, no}
	}
	rows := []row{
		ofDevice("POST", api.PathCheckin, head, 200),
		ofDevice("POST", api.PathStatus, head, 204),
		ofDevice("POST", api.PathReports, report, 200),
		ofOperator("POST", api.PathReleases, []byte("no bundle"), 422),
		ofOperator("GET", api.PathReleases, nil, 200),
		ofOperator("GET", api.PathDevices, nil, 200),
		ofOperator("GET", "/api/v1/devices/rack-7", nil, 200),
		ofOperator("PUT", "/api/v1/devices/rack-7", api.DeviceChange{Group: "default"}, 200),
		ofOperator("GET", api.PathGroups, nil, 200),
		ofOperator("GET", "/api/v1/groups/default", nil, 200),
		ofOperator("PUT", "/api/v1/groups/default", api.GroupChange{Promote: digest}, 200),
		ofOperator("POST", api.PathTokens, api.TokenRequest{Device: "rack-9"}, 201),
		ofOperator("GET", api.PathTokens, nil, 200),
		ofOperator("DELETE", api.PathTokens+"/000000000000", nil, 404),
		{"GET", api.PathEvents, nil, no, never, never, never, 0, no}, // 200 does not end, see TestEvents
		{"GET", "/d/AAAA/" + digest + "/controller", nil, 403, 403, 403, 403, 403, 403},
		{"GET", "/", nil, 401, 401, 401, 401, 401, 401}, // a cookie, never a header
		{"GET", "/devices/rack-7", nil, 401, 401, 401, 401, 401, 401},
		{"GET", "/events", nil, 401, 401, 401, 401, 401, 401},
		{"GET", "/login", nil, 200, 200, 200, 200, 200, 200},
		{"GET", "/static/style.css", nil, 200, 200, 200, 200, 200, 200},
		{"GET", "/static/all.html", nil, 404, 404, 404, 404, 404, 404},
		{"GET", "/healthz", nil, 200, 200, 200, 200, 200, 200},
		{"GET", "/firmware.bin", nil, 200, 200, 200, 200, 200, 200},
		{"GET", "/bundle/default", nil, 200, 200, 200, 200, 200, 200},
		{"DELETE", api.PathReleases, nil, 405, 405, 405, 405, 405, 405},
		{"POST", "/firmware", nil, 405, 405, 405, 405, 405, 405},
		{"GET", "/api/v1/nothing", nil, 404, 404, 404, 404, 404, 404},
	}
	for _, r := range rows {
		for _, who := range []struct {
			name, token string
			want        int
		}{
			{"no token", "", r.none}, {"the fleet's token", x.device, r.fleet}, {"the device's token", own.Token, r.own},
			{"another device's token", other.Token, r.other}, {"an operator's token", x.operator, r.operator},
			{"a wrong token", x.operator + "A", r.wrong},
		} {
			if who.want == 0 {
				continue
			}
			a := x.do(r.method, r.path, who.token, r.body)
			if a.StatusCode != who.want {
				t.Errorf("%s %s with %s: %d, want %d: %s", r.method, r.path, who.name, a.StatusCode, who.want, a.body)
			}
			if a.StatusCode == 401 && strings.HasPrefix(r.path, "/api") && a.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s with %s: no WWW-Authenticate", r.method, r.path, who.name)
			}
		}
	}

	// Tokens outlive a restart, and the first ones are shown once.
	x.restart()
	if x.s.FirstTokens != (web.Tokens{}) {
		t.Error("the tokens are shown a second time")
	}
	x.want(x.do("POST", api.PathCheckin, own.Token, head), 200, nil)
	x.want(x.do("POST", api.PathCheckin, other.Token, head), 403, nil)
	x.want(x.do("GET", api.PathDevices, x.operator, nil), 200, nil)
}

func TestRevokedTokens(t *testing.T) {
	x := newSite(t, web.Config{})
	var made api.TokenResponse
	x.want(x.do("POST", api.PathTokens, x.operator, api.TokenRequest{Device: "rack-7", Note: "stolen"}), 201, &made)
	list := func() map[string]string { // id by note
		t.Helper()
		var out struct {
			Tokens []struct{ ID, Role, Note string }
		}
		a := x.do("GET", api.PathTokens, x.operator, nil)
		x.want(a, 200, &out)
		if strings.Contains(string(a.body), "ilk_") {
			t.Errorf("the list shows a token: %s", a.body)
		}
		ids := map[string]string{}
		for _, tok := range out.Tokens {
			ids[tok.Role+" "+tok.Note] = tok.ID
		}
		return ids
	}
	ids := list()
	if len(ids) != 3 {
		t.Fatalf("tokens %v, want three", ids)
	}
	head := api.Head{Device: "rack-7", Product: "bess"}
	x.want(x.do("POST", api.PathCheckin, made.Token, head), 200, nil)
	x.want(x.do("DELETE", api.PathTokens+"/"+ids["device stolen"], x.operator, nil), 204, nil)
	x.want(x.do("POST", api.PathCheckin, made.Token, head), 401, nil)
	x.want(x.do("DELETE", api.PathTokens+"/%25", x.operator, nil), 404, nil) // no pattern
	x.want(x.do("DELETE", api.PathTokens+"/"+ids["operator made at the first start"], x.operator, nil), 409, nil)
	x.restart()
	x.want(x.do("POST", api.PathCheckin, made.Token, head), 401, nil)
	if got := list(); len(got) != 2 {
		t.Errorf("tokens after revoking one: %v, want two", got)
	}
	another, err := x.s.NewOperatorToken(t.Context(), "another")
	if err != nil {
		t.Fatal(err)
	}
	x.want(x.do("DELETE", api.PathTokens+"/"+ids["operator made at the first start"], another, nil), 204, nil)
	x.want(x.do("GET", api.PathDevices, x.operator, nil), 401, nil)
}

func TestPublishRefuses(t *testing.T) {
	key, stranger := newSigner(t), newSigner(t)
	x := newSite(t, web.Config{Keys: key.keys, MaxUpload: 200_000})
	image := firmware(1, 20_000)
	good := key.release(t, ota.Manifest{Version: "1.0.0"}, image)
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	for _, tt := range []struct {
		name, query string
		body        []byte
		status      int
		want        string
	}{
		{"empty", "", []byte{}, 422, "0 bytes"},
		{"no bundle", "", []byte(strings.Repeat("MZ", 100)), 422, "not a bundle"},
		{"truncated", "", good[:len(good)-1], 422, "truncated"},
		{"extended", "", append(bytes.Clone(good), 0), 422, "extended"},
		{"image changed", "", flip(len(good) - 1), 422, "SHA-256"},
		{"envelope changed", "", flip(200), 422, ""},
		{"other keys", "", stranger.release(t, ota.Manifest{Version: "1.0.0"}, image), 422, "signature"},
		{"too large", "", key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(1, 200_001)), 413, "too large"},
		{"unknown group", "?group=pilott", good, 404, "groups are [default]"},
		{"odd flag", "?hold=perhaps", good, 400, "want true or false"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var e api.Error
			x.want(x.do("POST", api.PathReleases+tt.query, x.operator, tt.body), tt.status, &e)
			if !strings.Contains(e.Error, tt.want) {
				t.Errorf("error %q, want %q in it", e.Error, tt.want)
			}
			if n := x.files(); n != 0 {
				t.Errorf("%d files left in the store, want none", n)
			}
		})
	}
	// The length is not always announced.
	var e api.Error
	endless := io.MultiReader(bytes.NewReader(good), bytes.NewReader(firmware(2, 300_000)))
	x.want(x.do("POST", api.PathReleases, x.operator, endless), 413, &e)
	x.want(x.do("POST", api.PathReleases, x.operator, good, "Content-Type: multipart/form-data; boundary=x"), 415, &e)

	var list api.ReleasesResponse
	x.want(x.do("GET", api.PathReleases, x.operator, nil), 200, &list)
	if len(list.Releases) != 0 || x.files() != 0 {
		t.Errorf("after refused uploads: %d releases, %d files; want none", len(list.Releases), x.files())
	}
}

func TestPublishAgainHoldReplace(t *testing.T) {
	key, second := newSigner(t), newSigner(t)
	x := newSite(t, web.Config{})
	x.want(x.do("PUT", "/api/v1/groups/pilot", x.operator, api.GroupChange{}), 200, nil)
	m := ota.Manifest{Version: "1.0.0"}
	file := key.release(t, m, firmware(1, 5000))

	out := x.publish(file, "?hold=true")
	if out.Known || len(out.Release.Groups) != 0 || out.Release.SignaturesChecked || !strings.Contains(out.Note, "not checked") {
		t.Errorf("held: %+v; want new, in no group, with a note", out)
	}
	out = x.publish(file, "")
	if diff := cmp.Diff([]string{"default"}, out.Release.Groups); !out.Known || diff != "" {
		t.Errorf("again: known %v, groups (-want +got):\n%s", out.Known, diff)
	}
	first := out.Release.Digest

	// The same release with another signer's signature is the same release.
	out = x.publish(second.release(t, m, firmware(1, 5000)), "?group=pilot")
	if diff := cmp.Diff([]string{"default", "pilot"}, out.Release.Groups); !out.Known || out.Release.Digest != first || diff != "" {
		t.Errorf("signed by another: known %v, digest %s, groups (-want +got):\n%s", out.Known, out.Release.Digest, diff)
	}
	if n := x.files(); n != 1 {
		t.Errorf("%d files in the store, want one", n)
	}

	other := key.release(t, m, firmware(2, 5000))
	var e api.Error
	x.want(x.do("POST", api.PathReleases, x.operator, other), 409, &e)
	if !strings.Contains(e.Error, "replace") {
		t.Errorf("conflict: %q, want it to name replace", e.Error)
	}
	if n := x.files(); n != 1 {
		t.Errorf("%d files in the store after a conflict, want one", n)
	}
	out = x.publish(other, "?replace=true")
	if diff := cmp.Diff([]string{"default", "pilot"}, out.Release.Groups); out.Known || diff != "" {
		t.Errorf("replaced: known %v, groups (-want +got):\n%s", out.Known, diff)
	}
	x.restart()
	var list api.ReleasesResponse
	x.want(x.do("GET", api.PathReleases, x.operator, nil), 200, &list)
	if len(list.Releases) != 1 || list.Releases[0].Digest != out.Release.Digest {
		t.Errorf("releases after replacing: %+v, want the new one only", list.Releases)
	}
	x.want(x.do("PUT", "/api/v1/groups/pilot", x.operator, api.GroupChange{Promote: first}), 409, nil)

	var g api.Group
	x.want(x.do("PUT", "/api/v1/groups/pilot", x.operator, api.GroupChange{Withdraw: out.Release.Digest}), 200, &g)
	if len(g.Current) != 0 {
		t.Errorf("after withdrawing: %+v, want none", g.Current)
	}
	x.want(x.do("PUT", "/api/v1/groups/pilot", x.operator, api.GroupChange{Withdraw: out.Release.Digest}), 409, nil)
	out = x.publish(key.release(t, ota.Manifest{Version: "0.9.0"}, firmware(4, 100)), "")
	if !strings.Contains(out.Note, "devices that run 1.0.0 stay with it") {
		t.Errorf("note on an older release: %q, want it to say who will not take it", out.Note)
	}
	expired := ota.Manifest{Version: "3.0.0", Expires: x.clock.Now().Add(-time.Hour)}
	before := x.files()
	x.want(x.do("POST", api.PathReleases, x.operator, key.release(t, expired, firmware(3, 100))), 400, &e)
	if !strings.Contains(e.Error, "expired on 2026-03-01 11:00 UTC") || x.files() != before {
		t.Errorf("expired release: %q, %d files; want it refused and not kept", e.Error, x.files())
	}
	x.want(x.do("PUT", "/api/v1/groups/pilot", x.operator, api.GroupChange{Promote: "feed"}), 404, nil)
	x.want(x.do("PUT", "/api/v1/groups/pilot", x.operator, api.GroupChange{Promote: first, Withdraw: first}), 400, nil)
	x.want(x.do("PUT", "/api/v1/groups/a%20b", x.operator, api.GroupChange{}), 400, nil)
	x.want(x.do("PUT", "/api/v1/devices/nobody", x.operator, api.DeviceChange{Group: "pilot"}), 404, nil)
}

// A script that is run again takes no group back, nor brings back what an
// operator has taken away: those who compare for equality would follow.
func TestPublishAgainTakesNoGroupBack(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{})
	x.want(x.do("PUT", "/api/v1/groups/pilot", x.operator, api.GroupChange{}), 200, nil)
	files, digests := map[string][]byte{}, map[string]string{}
	for i, v := range []string{"1.0.1", "1.0.2"} {
		files[v] = key.release(t, ota.Manifest{Version: v}, firmware(uint64(i), 5000))
		digests[v] = x.publish(files[v], "").Release.Digest
	}
	files["1.0.0"] = key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(9, 5000))
	for _, tt := range []struct {
		do, version, query string
		note               string // part of the answer's note
		firmware           string // what the group default has afterwards; empty: nothing
	}{
		{"publish", "1.0.1", "", "1.0.1 was published before; default stays with 1.0.2; to go back: interlock releases promote 1.0.1 --group default", "1.0.2"},
		{"publish", "1.0.1", "?replace=true", "default stays with 1.0.2", "1.0.2"},
		{"restart", "", "", "", "1.0.2"},
		{"publish", "1.0.2", "", "", "1.0.2"},
		{"promote", "1.0.1", "", "", "1.0.1"},
		{"publish", "1.0.1", "", "", "1.0.1"},
		{"publish", "1.0.2", "", "1.0.2 was current in default before, which stays with 1.0.1; to give it again: interlock releases promote 1.0.2 --group default", "1.0.1"},
		{"restart", "", "", "", "1.0.1"},
		{"withdraw", "1.0.1", "", "", ""},
		{"publish", "1.0.1", "", "1.0.1 was taken from default, which stays without a release; to give it again: interlock releases promote 1.0.1 --group default", ""},
		{"publish", "1.0.1", "?group=pilot", "", ""}, // another group has not had it
		{"promote", "1.0.2", "", "", "1.0.2"},
		{"publish", "1.0.0", "", "devices that run 1.0.2 stay with it", "1.0.0"}, // new here, so somebody means it
	} {
		name := strings.Join([]string{tt.do, tt.version, tt.query}, " ")
		switch tt.do {
		case "publish":
			out := x.publish(files[tt.version], tt.query)
			if !strings.Contains(out.Note, tt.note) || tt.note == "" && strings.Contains(out.Note, "stays") {
				t.Errorf("%s: note %q, want %q in it", name, out.Note, tt.note)
			}
		case "promote":
			x.want(x.do("PUT", "/api/v1/groups/default", x.operator, api.GroupChange{Promote: digests[tt.version]}), 200, nil)
		case "withdraw":
			x.want(x.do("PUT", "/api/v1/groups/default", x.operator, api.GroupChange{Withdraw: digests[tt.version]}), 200, nil)
		case "restart":
			x.restart()
		}
		var got struct{ Version string }
		a := x.do("GET", "/firmware", "", nil)
		if err := json.Unmarshal(a.body, &got); err != nil {
			t.Fatal(err)
		}
		if got.Version != tt.firmware {
			t.Errorf("%s: /firmware says %q, want %q", name, got.Version, tt.firmware)
		}
	}
	var pilot api.Group
	x.want(x.do("GET", "/api/v1/groups/pilot", x.operator, nil), 200, &pilot)
	if len(pilot.Current) != 1 || pilot.Current[0].Version != "1.0.1" {
		t.Errorf("pilot has %+v, want 1.0.1", pilot.Current)
	}
}

// Uploads that break off leave nothing, and no more than the limit run at a time.
func TestUploadsAreBoundedAndCleaned(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{Uploads: 1})
	file := key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(1, 50_000))

	slow, feed := io.Pipe()
	var wg sync.WaitGroup
	var first answer
	wg.Go(func() { first = x.do("POST", api.PathReleases, x.operator, slow) })
	if _, err := feed.Write(file[:1000]); err != nil { // until the server has read it
		t.Fatal(err)
	}
	x.until(func() bool { return x.files() == 1 }) // the upload is under way
	a := x.do("POST", api.PathReleases, x.operator, file)
	x.want(a, http.StatusServiceUnavailable, nil)
	if a.Header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	if _, err := feed.Write(file[1000:]); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	wg.Wait()
	x.want(first, http.StatusCreated, nil)

	// Now one whose connection is cut in the middle.
	plain := x.s.HTTP()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go plain.Serve(l)
	defer plain.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other := key.release(t, ota.Manifest{Version: "1.1.0"}, firmware(2, 50_000))
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", api.PathReleases, x.operator, len(other))
	if _, err := conn.Write(other[:len(other)/2]); err != nil {
		t.Fatal(err)
	}
	x.until(func() bool { return x.files() == 2 })
	conn.Close()
	x.until(func() bool { return x.files() == 1 }) // the first release stays, the half is removed
	x.publish(other, "")                           // and its place is free again
}

// The same file from several at once is one release, and the file stays; so it
// does if another with the same version is refused meanwhile.
func TestPublishAtOnce(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{Uploads: 8})
	file := key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(1, 50_000))
	x.publish(file, "")
	other := key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(2, 50_000))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			body, want := file, 200
			if i%2 == 1 {
				body, want = other, 409
			}
			if a := x.do("POST", api.PathReleases, x.operator, body); a.StatusCode != want {
				t.Errorf("status %d, want %d: %s", a.StatusCode, want, a.body)
			}
		})
	}
	wg.Wait()
	a := x.do("GET", "/bundle/default", "", nil)
	x.want(a, 200, nil)
	if !bytes.Equal(a.body, file) || x.files() != 1 {
		t.Errorf("%d bytes and %d files, want the published file only", len(a.body), x.files())
	}
}

func TestDevicesInPages(t *testing.T) {
	x := newSite(t, web.Config{})
	for i := range 5 {
		x.checkin(api.Head{Device: fmt.Sprintf("rack-%d", i), Product: "bess"})
	}
	var got []string
	path := api.PathDevices + "?limit=2&q=RACK"
	for path != "" {
		var list api.DevicesResponse
		a := x.do("GET", path, x.operator, nil)
		x.want(a, 200, &list)
		for _, d := range list.Devices {
			got = append(got, d.Device)
		}
		path = ""
		if link := a.Header.Get("Link"); link != "" {
			path = link[1:strings.Index(link, ">")]
		}
	}
	if diff := cmp.Diff([]string{"rack-0", "rack-1", "rack-2", "rack-3", "rack-4"}, got); diff != "" {
		t.Errorf("all pages (-want +got):\n%s", diff)
	}
	x.want(x.do("GET", api.PathDevices+"?limit=0", x.operator, nil), 400, nil)
}

func TestWhyIsInTheAnswer(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{PollInterval: time.Minute})
	digest := x.publish(key.release(t, ota.Manifest{Version: "1.1.0"}, firmware(1, 100)), "").Release.Digest
	x.checkin(api.Head{Device: "rack-7", Product: "bess", Version: "1.0.0", Status: ota.StatusUpdateAvailable, UpdateDigest: digest,
		Code: ota.ErrBatteryLow, Reason: "state of charge 22.0 %, want at least 30 %"})
	var d api.DeviceDetail
	x.want(x.do("GET", "/api/v1/devices/rack-7", x.operator, nil), 200, &d)
	if want := "waits: state of charge 22.0 %, want at least 30 %"; d.Why != want || !d.Waiting || d.Wanted != "1.1.0" {
		t.Errorf("why %q, waiting %v, wanted %q; want %q, true, 1.1.0", d.Why, d.Waiting, d.Wanted, want)
	}
	x.clock.turn(3 * time.Hour)
	x.want(x.do("GET", "/api/v1/devices/rack-7", x.operator, nil), 200, &d)
	if want := "not seen for 3 h; last: waits: state of charge 22.0 %, want at least 30 %"; d.Why != want {
		t.Errorf("why %q, want %q", d.Why, want)
	}
}
