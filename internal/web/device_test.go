package web_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/web"
)

// path returns the path that an offer's URL leads to.
func (x *site) path(offered string) string {
	x.t.Helper()
	base, err := url.Parse("https://ota.example.com" + api.PathCheckin)
	if err != nil {
		x.t.Fatal(err)
	}
	u, err := base.Parse(offered)
	if err != nil {
		x.t.Fatal(err)
	}
	return u.RequestURI()
}

func TestCheckinOffersWhatWasPublished(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{Keys: key.keys})
	head := api.Head{Device: "rack-7", Product: "bess", Version: "1.0.0"}

	got, a := x.checkin(head)
	if got.Release != nil || a.Header.Get("ETag") != `"none"` {
		t.Errorf("before a release: %+v, ETag %s; want none", got, a.Header.Get("ETag"))
	}

	controller, module := firmware(1, 300_000), firmware(2, 5_000)
	file := key.release(t, ota.Manifest{Version: "1.1.0"}, controller, module)
	pub := x.publish(file, "")
	if !pub.Release.SignaturesChecked || pub.Known || pub.Note != "" {
		t.Errorf("published: %+v; want checked, not known, no note", pub)
	}

	got, a = x.checkin(head)
	if got.Release == nil {
		t.Fatal("no release offered")
	}
	m, err := key.keys.Verify(got.Release.Signed)
	if err != nil {
		t.Fatal(err)
	}
	if m.Digest != got.Release.Digest || m.Digest != pub.Release.Digest || got.Release.Version != "1.1.0" {
		t.Errorf("offered digest %s of %s, signed %s, published %s", got.Release.Digest, got.Release.Version, m.Digest, pub.Release.Digest)
	}
	for i, want := range [][]byte{controller, module} {
		im := got.Release.Images[i]
		path := x.path(im.URL)
		a := x.do("GET", path, "", nil)
		x.want(a, http.StatusOK, nil)
		if !bytes.Equal(a.body, want) {
			t.Errorf("%s: got %d bytes, want the %d that were published", im.Component, len(a.body), len(want))
		}
		etag := a.Header.Get("ETag")
		if want := `"` + im.SHA256.String() + `"`; etag != want {
			t.Errorf("ETag %s, want %s", etag, want)
		}
		a = x.do("GET", path, "", nil, "Range: bytes=4096-", "If-Match: "+etag)
		x.want(a, http.StatusPartialContent, nil)
		if !bytes.Equal(a.body, want[4096:]) {
			t.Errorf("%s from 4096: got %d bytes, want %d", im.Component, len(a.body), len(want)-4096)
		}
		if got, want := a.Header.Get("Content-Range"), fmt.Sprintf("bytes 4096-%d/%d", len(want)-1, len(want)); got != want {
			t.Errorf("Content-Range %q, want %q", got, want)
		}
		x.want(x.do("GET", path, "", nil, "Range: bytes=0-", `If-Match: "another"`), http.StatusPreconditionFailed, nil)
		x.want(x.do("GET", path, "", nil, fmt.Sprintf("Range: bytes=%d-", len(want))), http.StatusRequestedRangeNotSatisfiable, nil)
		if a := x.do("HEAD", path, "", nil); a.ContentLength != int64(len(want)) || len(a.body) != 0 {
			t.Errorf("HEAD: Content-Length %d with %d bytes, want %d with none", a.ContentLength, len(a.body), len(want))
		}
	}

	// The same again is 304 with the poll interval, until something else is offered.
	etag := a.Header.Get("ETag")
	_, a = x.checkin(head, "If-None-Match: "+etag)
	if a.StatusCode != http.StatusNotModified || a.Header.Get(api.HeaderPoll) == "" || len(a.body) != 0 {
		t.Errorf("second check-in: %d, poll %q, %d bytes; want 304 with a poll interval", a.StatusCode, a.Header.Get(api.HeaderPoll), len(a.body))
	}
	x.publish(key.release(t, ota.Manifest{Version: "1.2.0"}, controller), "")
	got, a = x.checkin(head, "If-None-Match: "+etag)
	if a.StatusCode != http.StatusOK || got.Release.Version != "1.2.0" {
		t.Errorf("after another release: %d with %+v, want 200 with 1.2.0", a.StatusCode, got.Release)
	}
	x.want(x.do("PUT", "/api/v1/groups/default", x.operator, api.GroupChange{Withdraw: got.Release.Digest}), http.StatusOK, nil)
	got, a = x.checkin(head, "If-None-Match: "+a.Header.Get("ETag"))
	if a.StatusCode != http.StatusOK || got.Release != nil {
		t.Errorf("after it was withdrawn: %d with %+v, want 200 with nothing", a.StatusCode, got.Release)
	}
}

func TestCheckinOffersByGroupProductAndHardware(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{})
	x.publish(key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(1, 100)), "")
	x.publish(key.release(t, ota.Manifest{Version: "9.0.0", Product: "pcs"}, firmware(2, 100)), "")
	x.want(x.do("PUT", "/api/v1/groups/pilot", x.operator, api.GroupChange{}), http.StatusOK, nil)
	x.publish(key.release(t, ota.Manifest{Version: "2.0.0", Hardware: []string{"rev2"}}, firmware(3, 100)), "?group=pilot")
	for _, tt := range []struct {
		name, group string
		head        api.Head
		want        string
	}{
		{"default", "", api.Head{Device: "a", Product: "bess"}, "1.0.0"},
		{"other product", "", api.Head{Device: "b", Product: "pcs"}, "9.0.0"},
		{"unknown product", "", api.Head{Device: "c", Product: "ems"}, ""},
		{"pilot", "pilot", api.Head{Device: "d", Product: "bess", Hardware: "rev2"}, "2.0.0"},
		{"pilot, other hardware", "pilot", api.Head{Device: "e", Product: "bess", Hardware: "rev1"}, ""},
		{"pilot, other product", "pilot", api.Head{Device: "f", Product: "pcs"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x.checkin(tt.head)
			if tt.group != "" {
				var d api.DeviceDetail
				x.want(x.do("PUT", "/api/v1/devices/"+tt.head.Device, x.operator, api.DeviceChange{Group: tt.group}), http.StatusOK, &d)
				if d.Group != tt.group {
					t.Errorf("group %q, want %q", d.Group, tt.group)
				}
			}
			out, _ := x.checkin(tt.head)
			got := ""
			if out.Release != nil {
				got = out.Release.Version
			}
			if got != tt.want {
				t.Errorf("offered %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheckinRefuses(t *testing.T) {
	x := newSite(t, web.Config{MaxDevices: 2})
	long := strings.Repeat("x", 65)
	for _, tt := range []struct {
		name   string
		body   any
		status int
		want   string // part of the error
	}{
		{"empty", nil, 400, "the body is empty"},
		{"no JSON", []byte("device=a"), 400, "read the body"},
		{"two values", []byte(`{"device":"a","product":"b"}{}`), 400, "read the body"},
		{"list", []byte(`[]`), 400, "read the body"},
		{"no device", api.Head{Product: "bess"}, 400, "device: "},
		{"no product", api.Head{Device: "a"}, 400, "product: "},
		{"device with a slash", api.Head{Device: "../a", Product: "bess"}, 400, "device: "},
		{"long device", api.Head{Device: long, Product: "bess"}, 400, "device: "},
		{"long version", api.Head{Device: "a", Product: "bess", Version: long}, 400, "version: "},
		{"unknown status", []byte(`{"device":"a","product":"b","status":"FLYING"}`), 400, "FLYING"},
		{"too large", bytes.Repeat([]byte(" "), api.MaxRequestSize+1), 413, "too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var e api.Error
			x.want(x.do("POST", api.PathCheckin, x.device, tt.body), tt.status, &e)
			if !strings.Contains(e.Error, tt.want) {
				t.Errorf("error %q, want %q in it", e.Error, tt.want)
			}
		})
	}
	var list api.DevicesResponse
	x.want(x.do("GET", api.PathDevices, x.operator, nil), 200, &list)
	if len(list.Devices) != 0 {
		t.Errorf("devices after refused check-ins: %+v, want none", list.Devices)
	}
	x.checkin(api.Head{Device: "a", Product: "bess", Reason: strings.Repeat("é", 5000)}) // a long sentence is cut, not refused
	x.checkin(api.Head{Device: "b", Product: "bess"})
	var e api.Error
	x.want(x.do("POST", api.PathCheckin, x.device, api.Head{Device: "c", Product: "bess"}), http.StatusInsufficientStorage, &e)
	if !strings.Contains(e.Error, "2 devices, which is the limit") {
		t.Errorf("error %q, want the limit in it", e.Error)
	}
}

func TestPollIntervalIsSpreadAndShortWhileBusy(t *testing.T) {
	x := newSite(t, web.Config{PollInterval: 100 * time.Second})
	seen := map[int]bool{}
	for i := range 50 {
		head := api.Head{Device: fmt.Sprintf("rack-%d", i), Product: "bess"}
		idle, a := x.checkin(head)
		if idle.PollSeconds < 80 || idle.PollSeconds > 120 {
			t.Errorf("poll interval %d s, want 80 to 120", idle.PollSeconds)
		}
		if got, want := a.Header.Get(api.HeaderPoll), fmt.Sprint(idle.PollSeconds); got != want {
			t.Errorf("%s: %s, want %s as in the body", api.HeaderPoll, got, want)
		}
		seen[idle.PollSeconds] = true
		if again, _ := x.checkin(head); again != idle {
			t.Errorf("poll interval %d s, then %d s for the same device", idle.PollSeconds, again.PollSeconds)
		}
		head.Status = ota.StatusDownloading
		if busy, _ := x.checkin(head); busy.PollSeconds < 8 || busy.PollSeconds > 12 {
			t.Errorf("poll interval during an update %d s, want 8 to 12", busy.PollSeconds)
		}
	}
	if len(seen) < 15 {
		t.Errorf("50 devices have %d different intervals, want them spread", len(seen))
	}
}

func TestReportsAreDurableAndCountOnce(t *testing.T) {
	x := newSite(t, web.Config{})
	report := ota.Report{ID: "r-1", Digest: "aa", Version: "1.1.0", From: "1.0.0", Running: "1.0.0", Result: ota.RolledBack,
		Code: ota.ErrInternal, Reason: "not healthy", Time: time.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC)}
	second := report
	second.ID, second.Result, second.Running = "r-2", ota.Succeeded, "1.1.0"
	history := func() []ota.Report {
		t.Helper()
		var d api.DeviceDetail
		x.want(x.do("GET", "/api/v1/devices/rack-7", x.operator, nil), 200, &d)
		return d.Reports
	}
	send := func(device string, reports ...ota.Report) api.ReportsResponse {
		t.Helper()
		var out api.ReportsResponse
		x.want(x.do("POST", api.PathReports, x.device, api.ReportsRequest{Device: device, Reports: reports}), 200, &out)
		return out
	}

	// Before any check-in: a report is not lost because the device is new here.
	for range 3 {
		got := send("rack-7", report)
		if diff := cmp.Diff(api.ReportsResponse{Stored: []string{"r-1"}}, got); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
	}
	x.restart()
	if diff := cmp.Diff([]ota.Report{report}, history()); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	send("rack-7", report, second, report)
	send("rack-8", report) // another device's report with the same id is another report
	changed := report
	changed.Reason = "something else"
	send("rack-7", changed)
	x.restart()
	if diff := cmp.Diff([]ota.Report{second, report}, history()); diff != "" {
		t.Errorf("newest first (-want +got):\n%s", diff)
	}

	bad := []ota.Report{{ID: "", Result: ota.Failed}, {ID: "a b", Result: ota.Failed}, {ID: "x", Result: "great"},
		{ID: "y", Result: ota.Failed, Digest: strings.Repeat("a", 65)}, {ID: "good", Result: ota.Failed}}
	got := send("rack-9", bad...)
	if len(got.Rejected) != 4 || len(got.Stored) != 1 || got.Stored[0] != "good" {
		t.Errorf("answer to four bad reports and a good one: %+v", got)
	}
	x.want(x.do("POST", api.PathReports, x.device, api.ReportsRequest{Device: "rack-7", Reports: make([]ota.Report, api.MaxReports+1)}), 400, nil)
}

func TestWhatDevicesSayOutlivesARestart(t *testing.T) {
	x := newSite(t, web.Config{})
	head := api.Head{Device: "rack-7", Product: "bess", Version: "1.0.0", Status: ota.StatusUpdateAvailable, Code: ota.ErrBatteryLow,
		Reason: "state of charge 22.0 %, want at least 30 %", Signals: []ota.Signal{{Name: "soc", Value: 22, Unit: "%"}}}
	x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	x.want(x.do("POST", api.PathStatus, x.device, api.StatusUpdate{Head: head}), http.StatusNoContent, nil)
	x.restart()
	var d api.DeviceDetail
	x.want(x.do("GET", "/api/v1/devices/rack-7", x.operator, nil), 200, &d)
	if diff := cmp.Diff(head, d.Head); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	if !d.LastSeen.Equal(x.clock.Now()) {
		t.Errorf("last seen %v, want %v", d.LastSeen, x.clock.Now())
	}
}

func TestDownloadURLsCannotBeChanged(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{URLLifetime: time.Hour})
	x.publish(key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(1, 10_000), firmware(2, 10_000)), "")
	offer, _ := x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	path := x.path(offer.Release.Images[0].URL)
	if len(path) > 200 {
		t.Errorf("path of %d characters, want a short one: %s", len(path), path)
	}
	x.want(x.do("GET", path, "", nil), 200, nil)
	for i := len(api.PathDownload); i < len(path); i++ {
		for _, c := range []byte{'A', '0', '.', 0x7e} {
			if path[i] == c || path[i] == '/' {
				continue
			}
			changed := path[:i] + string(c) + path[i+1:]
			if a := x.do("GET", changed, "", nil); a.StatusCode != http.StatusForbidden {
				t.Errorf("GET %s: %d, want 403", changed, a.StatusCode)
			}
		}
	}
	parts := strings.Split(path, "/") // "", d, ticket, digest, component
	for _, other := range []string{
		strings.Join(parts[:4], "/"),                 // the bundle, with the image's ticket
		strings.Join(parts[:4], "/") + "/module",     // another image
		"/d/AAAA/" + parts[3] + "/controller",        // no ticket
		"/d/" + parts[2] + "/" + parts[3] + "/a%2fb", // an odd name
	} {
		x.want(x.do("GET", other, "", nil), http.StatusForbidden, nil)
	}

	// In the middle of a download the server restarts: the address holds.
	first := x.do("GET", path, "", nil, "Range: bytes=0-4999")
	x.restart()
	rest := x.do("GET", path, "", nil, "Range: bytes=5000-", "If-Match: "+first.Header.Get("ETag"))
	x.want(rest, http.StatusPartialContent, nil)
	if got := append(first.body, rest.body...); !bytes.Equal(got, firmware(1, 10_000)) {
		t.Error("the two halves are not the image")
	}

	x.clock.turn(59 * time.Minute)
	x.want(x.do("GET", path, "", nil), 200, nil)
	x.clock.turn(time.Hour / 4)
	x.clock.turn(2 * time.Minute)
	a := x.do("GET", path, "", nil)
	x.want(a, http.StatusForbidden, nil)
	if !strings.Contains(string(a.body), "expired") {
		t.Errorf("error %s, want it to say expired", a.body)
	}
	offer, _ = x.checkin(api.Head{Device: "rack-7", Product: "bess"})
	x.want(x.do("GET", x.path(offer.Release.Images[0].URL), "", nil), 200, nil)
}

func TestSecondServerOnTheSameData(t *testing.T) {
	x := newSite(t, web.Config{})
	s, err := web.Open(x.dir, x.cfg)
	if err == nil {
		s.Close()
		t.Fatal("a second server opened the same data directory")
	}
	if !strings.Contains(err.Error(), "another server") {
		t.Errorf("error %q, want it to name another server", err)
	}
}
