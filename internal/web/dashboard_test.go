package web_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/web"
)

func TestLogin(t *testing.T) {
	x := newSite(t, web.Config{})
	a := x.do("GET", "/", "", nil, "Accept: text/html")
	if a.StatusCode != http.StatusSeeOther || a.Header.Get("Location") != "/login" {
		t.Errorf("without a session: %d to %q, want 303 to /login", a.StatusCode, a.Header.Get("Location"))
	}
	form := func(token string) answer {
		return x.do("POST", "/login", "", []byte(url.Values{"token": {token}}.Encode()), "Content-Type: application/x-www-form-urlencoded")
	}
	for name, token := range map[string]string{"empty": "", "wrong": "ilk_op_x", "a device's": x.device} {
		if a := form(token); a.StatusCode != 401 || len(a.Cookies()) != 0 {
			t.Errorf("login with a token that is %s: %d with %d cookies, want 401 with none", name, a.StatusCode, len(a.Cookies()))
		}
	}
	foreign := x.do("POST", "/login", "", []byte("token="+x.operator), "Content-Type: application/x-www-form-urlencoded", "Sec-Fetch-Site: cross-site")
	if foreign.StatusCode != 403 || len(foreign.Cookies()) != 0 {
		t.Errorf("login from another site: %d with %d cookies, want 403 with none", foreign.StatusCode, len(foreign.Cookies()))
	}
	a = form(x.operator)
	if a.StatusCode != http.StatusSeeOther || len(a.Cookies()) != 1 {
		t.Fatalf("login: %d with %d cookies, want 303 with one", a.StatusCode, len(a.Cookies()))
	}
	c := a.Cookies()[0]
	if !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode || strings.Contains(c.Value, x.operator) {
		t.Errorf("cookie %+v, want HttpOnly, Secure, SameSite=Strict, without the token", c)
	}
	cookie := "Cookie: " + c.Name + "=" + c.Value
	x.want(x.do("GET", "/", "", nil, cookie), 200, nil)
	x.want(x.do("GET", api.PathDevices, "", nil, cookie), 401, nil) // the API takes no cookies, so no page elsewhere can use one
	for i := range len(c.Value) {
		changed := c.Value[:i] + "x" + c.Value[i+1:]
		if changed == c.Value {
			continue
		}
		if a := x.do("GET", "/", "", nil, "Cookie: "+c.Name+"="+changed); a.StatusCode != 401 {
			t.Errorf("cookie changed at %d: %d, want 401", i, a.StatusCode)
		}
	}
	x.restart()
	x.want(x.do("GET", "/", "", nil, cookie), 200, nil)
	x.clock.turn(12*time.Hour + time.Second)
	x.want(x.do("GET", "/", "", nil, cookie), 401, nil)
	if a := x.do("POST", "/logout", "", nil, cookie); len(a.Cookies()) != 1 || a.Cookies()[0].MaxAge >= 0 {
		t.Errorf("logout does not remove the cookie: %+v", a.Cookies())
	}
}

func TestDashboardShowsHostileWordsAsText(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{OpenDashboard: true})
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>`
	x.publish(key.release(t, ota.Manifest{Version: "1.1.0", Notes: evil}, firmware(1, 100)), "")
	x.checkin(api.Head{Device: "rack-7", Product: "bess", Version: evil, Agent: evil, Slot: evil, Reason: evil, Status: ota.StatusUpdateAvailable,
		UpdateVersion: "1.1.0", Signals: []ota.Signal{{Name: evil, Unit: evil}, {Name: "soc", Value: 55, Unit: "%"}}})
	x.want(x.do("POST", api.PathReports, x.device, api.ReportsRequest{Device: "rack-7", Reports: []ota.Report{
		{ID: evil[:10], Result: ota.Failed, Version: evil, From: evil, Running: evil, Reason: evil}}}), 200, nil)
	x.want(x.do("POST", api.PathCheckin, x.device, api.CheckinRequest{Head: api.Head{Device: "rack-8", Product: "bess"},
		Skipped: []ota.Skipped{{Digest: evil, Version: evil, Reason: evil}}}), 200, nil)
	for _, path := range []string{"/", "/devices/rack-7", "/devices/rack-8", "/?q=" + url.QueryEscape(evil), "/?group=" + url.QueryEscape(evil)} {
		a := x.do("GET", path, "", nil)
		x.want(a, 200, nil)
		page := string(a.body)
		if strings.Contains(page, "<script>") || strings.Contains(page, "<img") {
			t.Errorf("%s: not escaped", path)
		}
		if got := a.Header.Get("Content-Security-Policy"); !strings.Contains(got, "default-src 'none'") || strings.Contains(got, "unsafe") {
			t.Errorf("%s: policy %q", path, got)
		}
		if strings.Contains(page, "style=") || strings.Contains(page, " on") && strings.Contains(page, "onclick") {
			t.Errorf("%s: has what its own policy forbids", path)
		}
	}
	page := string(x.do("GET", "/", "", nil).body)
	for _, want := range []string{"rack-7", "55.0 %", "waits: ", "UPDATE_AVAILABLE", "1.1.0", `http-equiv="refresh"`, "/static/live.js"} {
		if !strings.Contains(page, want) {
			t.Errorf("page without %q", want)
		}
	}
	if page := string(x.do("GET", "/?static=1", "", nil).body); strings.Contains(page, "live.js") || strings.Contains(page, "refresh") {
		t.Error("the static page loads itself again")
	}
	x.want(x.do("GET", "/devices/nobody", "", nil), 404, nil)
	x.want(x.do("HEAD", "/", "", nil), 200, nil)
	x.want(x.do("HEAD", "/events", "", nil), 405, nil)
}

func TestOldReadingsAreGrey(t *testing.T) {
	x := newSite(t, web.Config{OpenDashboard: true})
	x.checkin(api.Head{Device: "rack-7", Product: "bess", Signals: []ota.Signal{{Name: "soc", Value: 55, Unit: "%", At: x.clock.Now()}}})
	const fresh, old = `<td data-is="charge" class="n" title="measured 2026-03-01 12:00:00 UTC">55.0 %</td>`, `<td data-is="charge" class="n muted" title="old: measured 2026-03-01 12:00:00 UTC">55.0 %</td>`
	if page := string(x.do("GET", "/", "", nil).body); !strings.Contains(page, fresh) {
		t.Errorf("page without %s", fresh)
	}
	x.clock.turn(11 * time.Minute)
	if page := string(x.do("GET", "/", "", nil).body); !strings.Contains(page, old) {
		t.Errorf("page without %s", old)
	}
}

// A check takes no time, and must not make the row blink.
func TestCheckingIsNotShown(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{OpenDashboard: true})
	digest := x.publish(key.release(t, ota.Manifest{Version: "1.1.0"}, firmware(1, 100)), "").Release.Digest
	x.want(x.do("POST", api.PathReports, x.device, api.ReportsRequest{Device: "rack-7",
		Reports: []ota.Report{{ID: "1", Digest: digest, Version: "1.1.0", Result: ota.Failed, Reason: "does not start"}}}), 200, nil)
	for _, status := range []ota.Status{ota.StatusFailed, ota.StatusChecking} {
		x.checkin(api.Head{Device: "rack-7", Product: "bess", Version: "1.0.0", Status: status})
		for _, path := range []string{"/", "/devices/rack-7"} {
			page := string(x.do("GET", path, "", nil).body)
			for _, want := range []string{"FAILED", `<span class="badge stop">failed</span>`, "failed here: does not start"} {
				if !strings.Contains(page, want) {
					t.Errorf("%s after %v: no %q in the page", path, status, want)
				}
			}
			if strings.Contains(page, "CHECKING") {
				t.Errorf("%s after %v: CHECKING is in the page", path, status)
			}
		}
	}
	page := string(x.do("GET", "/", "", nil).body)
	if want := `<div class="tile stop"><b>1</b><span>failed</span></div>`; !strings.Contains(page, want) {
		t.Errorf("no tile %s in the page", want)
	}
}

// stream reads server-sent events until its context ends.
func (x *site) stream(ctx context.Context, path, token string) <-chan [2]string {
	x.t.Helper()
	r, err := http.NewRequestWithContext(ctx, "GET", x.srv.URL+path, nil)
	if err != nil {
		x.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := x.srv.Client().Do(r)
	if err != nil {
		x.t.Fatal(err)
	}
	if got := res.Header.Get("Content-Type"); res.StatusCode != 200 || got != "text/event-stream" {
		x.t.Fatalf("%s: %d, %s", path, res.StatusCode, got)
	}
	out := make(chan [2]string, 100)
	go func() {
		defer close(out)
		defer res.Body.Close()
		var kind string
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				kind = text
			}
			if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				out <- [2]string{kind, text}
			}
		}
	}()
	return out
}

func TestEvents(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := x.stream(ctx, api.PathEvents, x.operator)
	want := func(kind string, ok func(api.Event) bool) {
		t.Helper()
		for e := range events {
			var v api.Event
			if err := json.Unmarshal([]byte(e[1]), &v); err != nil {
				t.Fatalf("%v in %s", err, e[1])
			}
			if e[0] == kind && v.Kind == kind && ok(v) {
				return
			}
		}
		t.Errorf("the stream ended without the event %s", kind)
	}
	x.checkin(api.Head{Device: "rack-7", Product: "bess", Status: ota.StatusChecking})
	want("device", func(e api.Event) bool { return e.Device.Device == "rack-7" && e.Device.Status == ota.StatusChecking })
	x.publish(key.release(t, ota.Manifest{Version: "1.1.0"}, firmware(1, 100)), "")
	want("release", func(e api.Event) bool { return e.Release.Version == "1.1.0" })
	want("group", func(e api.Event) bool { return len(e.Group.Current) == 1 })
	x.do("POST", api.PathReports, x.device, api.ReportsRequest{Device: "rack-7", Reports: []ota.Report{{ID: "1", Result: ota.Failed}}})
	want("report", func(e api.Event) bool { return e.Report.ID == "1" && e.Device.Device == "rack-7" })
}

func TestLivePage(t *testing.T) {
	x := newSite(t, web.Config{OpenDashboard: true, Listeners: 1})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	parts := x.stream(ctx, "/events", "")
	want := func(id, text string) {
		t.Helper()
		for e := range parts {
			var p struct{ ID, HTML string }
			if err := json.Unmarshal([]byte(e[1]), &p); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(p.HTML, fmt.Sprintf("id=%q", p.ID)) {
				t.Errorf("part %s does not replace itself: %s", p.ID, p.HTML)
			}
			if e[0] == "part" && p.ID == id && strings.Contains(p.HTML, text) {
				return
			}
		}
		t.Errorf("the stream ended without %s with %q", id, text)
	}
	want("devices", "rack-7")
	if a := x.do("GET", "/events", "", nil); a.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a second listener: %d, want 503", a.StatusCode)
	}
	x.want(x.do("POST", api.PathStatus, x.device, api.StatusUpdate{Head: api.Head{Device: "rack-7", Product: "bess", Version: "<b>"}}), 204, nil)
	want("d-rack-7", "&lt;b&gt;")
	x.checkin(api.Head{Device: "rack-8", Product: "bess"})
	want("devices", "rack-8")
	cancel()
	for range parts {
		// until the stream has ended, which frees the place
	}
	x.until(func() bool {
		c, stop := context.WithCancel(t.Context())
		defer stop()
		r, err := http.NewRequestWithContext(c, "GET", x.srv.URL+"/events?device=rack-7", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := x.srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode == 200
	})
}
