package lambda_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/lambda"
)

const minute = time.Minute

var blobOptions blob.PutOptions

func checkin(device string) api.CheckinRequest {
	return api.CheckinRequest{Head: api.Head{Device: device, Product: "bess", Version: "0.9.0"}}
}

func TestCheckin(t *testing.T) {
	x := newHouse(t, nil)
	var out api.CheckinResponse
	w := x.as("POST", api.PathCheckin, checkin("d1"))
	x.want(w, 200, &out)
	if out.Release != nil || w.Header().Get("ETag") != `"none"` || w.Header().Get(api.HeaderPoll) != strconv.Itoa(out.PollSeconds) {
		t.Errorf("before a release: %+v %v, want nothing, told when to come again", out, w.Header())
	}
	digest, images := x.publish("1.0.0", "")
	out = api.CheckinResponse{}
	w = x.as("POST", api.PathCheckin, checkin("d1"), `If-None-Match: "none"`)
	x.want(w, 200, &out)
	if out.Release == nil || out.Release.Digest != digest || out.Release.Version != "1.0.0" || len(out.Release.Images) != 2 {
		t.Fatalf("offer %+v, want 1.0.0 with two images", out.Release)
	}
	if m, err := bundle.Unsigned(out.Release.Signed); err != nil || m.Digest != digest {
		t.Errorf("the envelope: %v, want that of the release", err)
	}
	for i, im := range out.Release.Images {
		if im.Size != int64(len(images[i])) || !strings.HasPrefix(im.URL, "https://b.s3.example.com/images/"+im.SHA256.String()) {
			t.Errorf("image %d: %+v, want an URL to it in S3", i, im)
		}
	}
	etag := w.Header().Get("ETag")
	// The next one has other URLs and the same ETag; with that it is 304.
	var again api.CheckinResponse
	w = x.as("POST", api.PathCheckin, checkin("d2"))
	x.want(w, 200, &again)
	if again.Release.Images[0].URL == out.Release.Images[0].URL || w.Header().Get("ETag") != etag {
		t.Errorf("the ETag is %s, then %s with another URL; want the same", etag, w.Header().Get("ETag"))
	}
	for _, header := range []string{etag, `"x", W/` + etag} {
		w = x.as("POST", api.PathCheckin, checkin("d1"), "If-None-Match: "+header)
		x.want(w, 304, nil)
		if w.Header().Get(api.HeaderPoll) == "" || w.Header().Get("ETag") != etag || w.Body.Len() > 0 {
			t.Errorf("304: %v %s, want the poll interval, the ETag and no body", w.Header(), w.Body)
		}
	}
	x.want(x.as("POST", api.PathCheckin, checkin("d1"), "If-None-Match: *"), 200, nil)
	// A release for other hardware, or another product, is not offered.
	x.publish("1.1.0", "", func(m *ota.Manifest) { m.Hardware = []string{"rev2", "rev3"} })
	for hardware, want := range map[string]bool{"": false, "rev1": false, "rev2": true} {
		out, req := api.CheckinResponse{}, checkin("d1")
		req.Hardware = hardware
		x.want(x.as("POST", api.PathCheckin, req), 200, &out)
		if got := out.Release != nil; got != want {
			t.Errorf("hardware %q: offered %v, want %v", hardware, got, want)
		}
	}
	out, req := api.CheckinResponse{}, checkin("d1")
	req.Product = "pcs"
	x.want(x.as("POST", api.PathCheckin, req), 200, &out)
	if out.Release != nil {
		t.Errorf("another product is offered %+v", out.Release)
	}
}

// A device's URL decides which group it is in.
func TestGroups(t *testing.T) {
	x := newHouse(t, nil)
	x.publish("1.0.0", "")
	x.publish("2.0.0", "site-7")
	for path, want := range map[string]string{api.PathCheckin: "1.0.0", "/groups/default" + api.PathCheckin: "1.0.0", "/groups/site-7" + api.PathCheckin: "2.0.0"} {
		var out api.CheckinResponse
		x.want(x.as("POST", path, checkin("d1")), 200, &out)
		if out.Release == nil || out.Release.Version != want {
			t.Errorf("%s: %+v, want %s", path, out.Release, want)
		}
	}
	var e api.Error
	x.want(x.as("POST", "/groups/site-8"+api.PathCheckin, checkin("d1")), 404, &e)
	if !strings.Contains(e.Error, "no group site-8") || e.Hint == "" {
		t.Errorf("a group that is not there: %+v, want it named", e)
	}
	x.want(x.as("POST", "/groups/a%20b"+api.PathCheckin, checkin("d1")), 404, nil)
	lines := x.log.take(t)
	last := lines[len(lines)-1]
	if last["group"] != nil || last["route"] != "/groups/{group}/api/v1/checkin" {
		t.Errorf("the log has %v, want the route and nothing that was made up", last)
	}
}

func TestTokens(t *testing.T) {
	x := newHouse(t, nil)
	mine, err := x.bucket.NewToken(t.Context(), "d1", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, header, device string
		want                 int
	}{
		{"none", "", "d1", 401},
		{"not known", "Bearer ilk_dev_x", "d1", 401},
		{"basic", "Basic YTpi", "d1", 401},
		{"empty", "Bearer ", "d1", 401},
		{"any device", "Bearer " + x.token, "d1", 200},
		{"its own", "bearer " + mine, "d1", 200},
		{"another's", "Bearer " + mine, "d2", 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := x.in(t)
			w := x.do("POST", api.PathCheckin, checkin(tt.device), "Authorization: "+tt.header)
			x.want(w, tt.want, nil)
			if tt.want == 401 && !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Bearer ") {
				t.Error("no challenge")
			}
			rep := api.ReportsRequest{Device: tt.device, Reports: []ota.Report{}}
			x.want(x.do("POST", api.PathReports, rep, "Authorization: "+tt.header), tt.want, nil)
			status := tt.want
			if status == 200 {
				status = 204
			}
			x.want(x.do("POST", api.PathStatus, checkin(tt.device), "Authorization: "+tt.header), status, nil)
		})
	}
	// A revoked token ends within a minute, and not before the minute is over is
	// the bucket asked again.
	before := x.store.count("tokens")
	x.want(x.as("POST", api.PathCheckin, checkin("d1")), 200, nil)
	if got := x.store.count("tokens"); got != before {
		t.Errorf("the bucket was asked %d times more for a token that is known", got-before)
	}
	tokens, err := x.bucket.Tokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range tokens {
		if err := x.bucket.Revoke(t.Context(), tok.ID); err != nil {
			t.Fatal(err)
		}
	}
	x.clock.turn(minute)
	x.want(x.as("POST", api.PathCheckin, checkin("d1")), 401, nil)
	// Without the bucket nobody is let in.
	x.store.breaks("tokens", errBroken, false)
	x.want(x.as("POST", api.PathCheckin, checkin("d1")), 500, nil)

	open := newHouse(t, func(c *lambda.Config) { c.Open = true })
	open.want(open.do("POST", api.PathCheckin, checkin("d1")), 200, nil)
	if n := open.store.count("tokens"); n > 1 { // one was written by the test
		t.Errorf("an open function asked for %d tokens", n-1)
	}
}

func TestBadRequests(t *testing.T) {
	x := newHouse(t, nil)
	long := strings.Repeat("x", 65)
	for _, tt := range []struct {
		name, path, body string
		want             int
	}{
		{"empty", api.PathCheckin, " ", 400},
		{"no JSON", api.PathCheckin, "{", 400},
		{"too large", api.PathCheckin, `{"device":"` + strings.Repeat("x", api.MaxRequestSize) + `"}`, 413},
		{"no device", api.PathCheckin, `{"product":"bess"}`, 400},
		{"device", api.PathCheckin, `{"device":"a/b","product":"bess"}`, 400},
		{"no product", api.PathCheckin, `{"device":"d1"}`, 400},
		{"hardware", api.PathCheckin, `{"device":"d1","product":"bess","hardware":"a b"}`, 400},
		{"long version", api.PathStatus, `{"device":"d1","product":"bess","version":"` + long + `"}`, 400},
		{"long reason is cut", api.PathStatus, `{"device":"d1","product":"bess","reason":"` + strings.Repeat("é", 600) + `"}`, 204},
		{"too many reports", api.PathReports, `{"device":"d1","reports":[` + strings.Repeat("{},", 64) + `{}]}`, 400},
		{"GET", "", "", 405},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := x.in(t)
			method, path := "POST", tt.path
			if path == "" {
				method, path = "GET", api.PathCheckin
			}
			w := x.as(method, path, tt.body)
			x.want(w, tt.want, nil)
			if tt.want >= 400 {
				var e api.Error
				x.want(w, tt.want, &e)
				if e.Error == "" {
					t.Error("no error is said")
				}
			}
		})
	}
}

// A report is confirmed only once the bucket has it, and is there once whatever
// happens in between.
func TestReports(t *testing.T) {
	x := newHouse(t, nil)
	req := api.ReportsRequest{Device: "d1", Reports: []ota.Report{
		{ID: "r1", Digest: "aa", Version: "1.0.0", Result: ota.Succeeded}, {ID: "r2", Digest: "bb", Version: "1.1.0", Result: ota.Failed, Reason: "no"},
		{ID: "r3", Digest: "cc", Version: "1.2.0", Result: "made up"}}}
	x.store.breaks("reports", errBroken, false) // failed, and did nothing
	x.want(x.as("POST", api.PathReports, req), 500, nil)
	x.store.breaks("reports", errBroken, true) // failed, but did it
	x.want(x.as("POST", api.PathReports, req), 500, nil)
	x.store.breaks("", nil, false)
	for range 2 {
		var out api.ReportsResponse
		x.want(x.as("POST", api.PathReports, req), 200, &out)
		if diff := cmp.Diff([]string{"r1", "r2"}, out.Stored); diff != "" || len(out.Rejected) != 1 || out.Rejected[0].ID != "r3" {
			t.Errorf("stored (-want +got):\n%s rejected %+v, want r3", diff, out.Rejected)
		}
	}
	stored, err := x.bucket.Reports(t.Context(), "d1", 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(stored) != 2 {
		t.Errorf("the bucket has %d reports, want 2", len(stored))
	}
	lines := x.log.take(t)
	last := lines[len(lines)-1]
	if last["device"] != "d1" || last["stored"] != 2.0 || last["rejected"] != 1.0 || !strings.Contains(fmt.Sprint(last["reports"]), "1.1.0") {
		t.Errorf("the log has %v, want the outcomes", last)
	}
}

// Whoever has the token of one device cannot fill the bucket with it: what is more
// than a device can have to tell has to wait, and the others do not.
func TestTooManyReports(t *testing.T) {
	x := newHouse(t, nil)
	own := map[string]string{}
	for _, device := range []string{"d1", "d2"} {
		token, err := x.bucket.NewToken(t.Context(), device, "")
		if err != nil {
			t.Fatal(err)
		}
		own[device] = token
	}
	serial := 0
	send := func(device, token string, n int) *httptest.ResponseRecorder {
		req := api.ReportsRequest{Device: device}
		for range n {
			serial++
			req.Reports = append(req.Reports, ota.Report{ID: strconv.Itoa(serial), Result: ota.Failed})
		}
		return x.do("POST", api.PathReports, req, "Authorization: Bearer "+token)
	}
	for range 4 {
		x.want(send("d1", own["d1"], api.MaxReports), 200, nil)
	}
	w := send("d1", own["d1"], 3)
	if x.want(w, 429, nil); w.Header().Get("Retry-After") != "30" {
		t.Errorf("Retry-After %q, want 30 s for three", w.Header().Get("Retry-After"))
	}
	x.want(x.do("POST", api.PathCheckin, checkin("d1"), "Authorization: Bearer "+own["d1"]), 200, nil)
	x.want(send("d2", own["d2"], 1), 200, nil)
	x.clock.turn(29 * time.Second)
	x.want(send("d1", own["d1"], 3), 429, nil)
	x.clock.turn(time.Second)
	x.want(send("d1", own["d1"], 3), 200, nil)
	x.want(send("d1", own["d1"], 1), 429, nil)
	x.clock.turn(1000 * time.Hour) // and not more than at the beginning
	for range 4 {
		x.want(send("d1", own["d1"], api.MaxReports), 200, nil)
	}
	x.want(send("d1", own["d1"], 1), 429, nil)
	x.clock.turn(-2000 * time.Hour) // a clock that was wrong
	x.want(send("d1", own["d1"], 1), 200, nil)
	for _, device := range []string{"d3", "d4"} { // one token for all is not one device
		for range 4 {
			x.want(send(device, x.token, api.MaxReports), 200, nil)
		}
		x.want(send(device, x.token, 1), 429, nil)
	}
}

// Each request is one line, which says who, what and how long.
func TestLog(t *testing.T) {
	x := newHouse(t, nil)
	x.publish("1.0.0", "")
	x.log.take(t)
	req := checkin("d1")
	req.Status, req.Reason, req.Code, req.Signals = ota.StatusDownloading, "battery \"low\"\nX", ota.ErrBatteryLow, []ota.Signal{{Name: "soc", Value: 22, Unit: "%"}, {Name: "t", Value: 30}}
	req.Done, req.Total = 5, 10
	x.want(x.as("POST", api.PathStatus, api.StatusUpdate{Head: req.Head}), 204, nil)
	x.want(x.as("POST", api.PathCheckin, req), 200, nil)
	lines := x.log.take(t)
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2", len(lines))
	}
	got := lines[1]
	for _, name := range []string{"time", "ms"} {
		if got[name] == nil {
			t.Errorf("no %s in %v", name, got)
		}
		delete(got, name)
	}
	want := map[string]any{"level": "INFO", "msg": "request", "method": "POST", "route": "/api/v1/checkin", "status": 200.0, "group": "default",
		"device": "d1", "product": "bess", "version": "0.9.0", "device_status": "DOWNLOADING", "reason": "battery \"low\"\nX", "code": -9.0,
		"done": 5.0, "total": 10.0, "signals": map[string]any{"soc": 22.0, "t": 30.0}, "offered": "1.0.0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the line of a check-in (-want +got):\n%s", diff)
	}
}

// Of a fleet that has nothing to say, most lines say so: they can be left out.
// All that is news is still there.
func TestLogWithoutIdle(t *testing.T) {
	x := newHouse(t, func(c *lambda.Config) { c.SkipIdle = true })
	x.publish("1.0.0", "")
	none := `If-None-Match: "none"`
	for _, tt := range []struct {
		name    string
		change  func(*api.CheckinRequest)
		headers []string
		status  int
		logged  bool
	}{
		{"idle, nothing new", func(r *api.CheckinRequest) {}, nil, 304, false},
		{"idle, while it asks", func(r *api.CheckinRequest) { r.Status = ota.StatusChecking }, nil, 304, false},
		{"idle, something new", func(r *api.CheckinRequest) {}, []string{none}, 200, true},
		{"at work", func(r *api.CheckinRequest) { r.Status = ota.StatusDownloading }, nil, 304, true},
		{"on trial", func(r *api.CheckinRequest) { r.Status = ota.StatusTrial }, nil, 304, true},
		{"waits", func(r *api.CheckinRequest) { r.UpdateVersion = "1.0.0" }, nil, 304, true},
		{"has a code", func(r *api.CheckinRequest) { r.Code = ota.ErrBatteryLow }, nil, 304, true},
		{"has a reason", func(r *api.CheckinRequest) { r.Reason = "rolled back" }, nil, 304, true},
		{"refused", func(r *api.CheckinRequest) { r.Product = "../x" }, nil, 400, true},
		{"no token", func(r *api.CheckinRequest) {}, []string{"Authorization: Bearer ilk_dev_wrong"}, 401, true},
	} {
		req := checkin("d1")
		etag := x.as("POST", api.PathCheckin, req).Header().Get("ETag")
		x.log.take(t)
		tt.change(&req)
		headers := append([]string{"Authorization: Bearer " + x.token, "If-None-Match: " + etag}, tt.headers...)
		x.want(x.do("POST", api.PathCheckin, req, headers...), tt.status, nil)
		if got := len(x.log.take(t)) == 1; got != tt.logged {
			t.Errorf("%s: a line in the log: %t, want %t", tt.name, got, tt.logged)
		}
	}
	x.want(x.as("POST", api.PathStatus, api.StatusUpdate{Head: checkin("d1").Head}), 204, nil)
	if n := len(x.log.take(t)); n != 1 {
		t.Errorf("what a device says of itself: %d lines, want 1", n)
	}
}

// While S3 does not answer, or asks for patience, devices are asked to come again,
// and are not told that something is broken here.
func TestStoreUnavailable(t *testing.T) {
	for _, path := range []string{"/firmware", "/image", "/bundle", api.PathCheckin, api.PathReports} {
		for _, first := range []string{"groups", "tokens", "releases", "images", "bundles", "reports"} {
			x := newHouse(t, nil)
			x.publish("1.0.0", "")
			x.store.breaks(first, fmt.Errorf("open x: %w: SlowDown: Please reduce your request rate", blob.ErrUnavailable), false)
			var w *httptest.ResponseRecorder
			switch path {
			case api.PathCheckin:
				w = x.as("POST", path, checkin("d1"))
			case api.PathReports:
				w = x.as("POST", path, api.ReportsRequest{Device: "d1", Reports: []ota.Report{{ID: "r1", Result: ota.Failed}}})
			default:
				w = x.do("GET", path, nil)
			}
			wait := w.Header().Get("Retry-After")
			if asked := w.Code < 400 && wait == ""; !asked && (w.Code != 503 || wait != "30") {
				t.Errorf("%s without %s: %d and Retry-After %q; want 503 and 30, or an answer", path, first, w.Code, wait)
			}
		}
	}
	x := newHouse(t, nil)
	x.publish("1.0.0", "")
	x.store.breaks("groups", fmt.Errorf("open x: %w", blob.ErrUnavailable), false)
	x.want(x.as("POST", api.PathCheckin, checkin("d1")), 503, nil)
	x.want(x.do("GET", "/firmware", nil), 503, nil)
}

// A device may say much; the log gets a bounded part of it.
func TestLongWordsAreCut(t *testing.T) {
	x := newHouse(t, nil)
	req := checkin("d1")
	req.Reason = strings.Repeat("é", 50_000)
	for i := range 500 {
		req.Signals = append(req.Signals, ota.Signal{Name: fmt.Sprintf("%d%s", i, strings.Repeat("x", 100)), Value: 1})
	}
	x.want(x.as("POST", api.PathStatus, api.StatusUpdate{Head: req.Head}), 204, nil)
	x.want(x.as("POST", api.PathReports, api.ReportsRequest{Device: "d1", Reports: []ota.Report{{ID: "r1", Result: ota.Failed, Reason: req.Reason}}}), 200, nil)
	if n := x.log.b.Len(); n > 8<<10 {
		t.Errorf("the log got %d bytes for two requests, want at most 8 KiB", n)
	}
}

// panicker is a store that panics.
type panicker struct{ blob.Store }

func (panicker) Open(context.Context, string, int64, int64) (io.ReadCloser, blob.Object, error) {
	panic("out of order")
}

func TestPanic(t *testing.T) {
	var log lines
	p := panicker{}
	f, err := lambda.New(lambda.Config{Bucket: bucket.New(p), Objects: p, URLs: &signer{}, Log: slog.New(slog.NewJSONHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, httptest.NewRequest("GET", "/firmware", nil))
	if w.Code != 500 || strings.Contains(w.Body.String(), "out of order") {
		t.Errorf("%d %s, want a 500 that does not tell", w.Code, w.Body)
	}
	got := log.take(t)
	if len(got) != 1 || !strings.Contains(fmt.Sprint(got[0]["cause"]), "out of order\ngoroutine") {
		t.Errorf("the log has %v, want the panic with its stack", got)
	}
}

// What is in the bucket is read once for many devices, and again after seconds.
func TestCache(t *testing.T) {
	x := newHouse(t, nil)
	x.publish("1.0.0", "")
	x.want(x.as("POST", api.PathCheckin, checkin("d0")), 200, nil)
	current, releases := x.store.count("groups"), x.store.count("releases")
	for i := range 50 {
		x.want(x.as("POST", api.PathCheckin, checkin("d"+strconv.Itoa(i))), 200, nil)
	}
	if c, r := x.store.count("groups"), x.store.count("releases"); c != current || r != releases {
		t.Errorf("50 check-ins at the same time cost %d and %d requests, want none", c-current, r-releases)
	}
	x.clock.turn(5 * time.Second)
	x.want(x.as("POST", api.PathCheckin, checkin("d0")), 200, nil)
	if c, r := x.store.count("groups"), x.store.count("releases"); c != current+1 || r != releases {
		t.Errorf("after 5 s it cost %d and %d requests, want one for current.json", c-current, r-releases)
	}
	// A clock that went back makes nothing fresh.
	x.clock.turn(-time.Hour)
	x.want(x.as("POST", api.PathCheckin, checkin("d0")), 200, nil)
	if c := x.store.count("groups"); c != current+2 {
		t.Errorf("after the clock went back: %d requests more, want one", c-current-1)
	}
	// Groups that are made up do not fill the memory: this only must not grow
	// beyond its bound, which nobody sees but by the first being asked for again.
	for i := range 300 {
		x.want(x.do("GET", "/firmware/g"+strconv.Itoa(i), nil), 404, nil)
	}
	current = x.store.count("groups")
	x.want(x.do("GET", "/firmware/g0", nil), 404, nil)
	if x.store.count("groups") != current+1 {
		t.Error("300 groups were kept in memory, want a bound")
	}
}

func TestConcurrently(t *testing.T) {
	x := newHouse(t, nil)
	x.publish("1.0.0", "")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 20 {
				device := "d" + strconv.Itoa(i)
				for path, want := range map[string]int{api.PathCheckin: 200, api.PathStatus: 204} {
					if w := x.as("POST", path, checkin(device)); w.Code != want {
						t.Errorf("%s: %d %s", path, w.Code, w.Body)
					}
				}
				if w := x.do("GET", "/firmware", nil); w.Code != 200 {
					t.Errorf("/firmware: %d %s", w.Code, w.Body)
				}
				req := api.ReportsRequest{Device: device, Reports: []ota.Report{{ID: "r1", Result: ota.Succeeded}}}
				if w := x.as("POST", api.PathReports, req); w.Code != 200 {
					t.Errorf("reports: %d %s", w.Code, w.Body)
				}
			}
		})
	}
	wg.Wait()
	for i := range 16 {
		if got, err := x.bucket.Reports(t.Context(), "d"+strconv.Itoa(i), 10); err != nil || len(got) != 1 {
			t.Errorf("d%d has %d reports (%v), want 1", i, len(got), err)
		}
	}
}

// Devices that were switched on together do not stay together, and each keeps
// its own pace.
func TestPollInterval(t *testing.T) {
	x := newHouse(t, func(c *lambda.Config) { c.PollInterval = 1000 * time.Second })
	seen := map[int]bool{}
	for i := range 100 {
		var a, b api.CheckinResponse
		x.want(x.as("POST", api.PathCheckin, checkin("rack-"+strconv.Itoa(i))), 200, &a)
		x.want(x.as("POST", api.PathCheckin, checkin("rack-"+strconv.Itoa(i))), 200, &b)
		if a.PollSeconds < 800 || a.PollSeconds > 1200 || a != b {
			t.Fatalf("poll after %d and %d s, want the same from 800 to 1200", a.PollSeconds, b.PollSeconds)
		}
		seen[a.PollSeconds/40] = true
	}
	if len(seen) < 9 {
		t.Errorf("100 devices are in %d of 10 parts of the interval, want them spread", len(seen))
	}
	req := checkin("d1")
	req.Status = ota.StatusDownloading
	var out api.CheckinResponse
	x.want(x.as("POST", api.PathCheckin, req), 200, &out)
	if out.PollSeconds < 24 || out.PollSeconds > 36 {
		t.Errorf("while it downloads: %d s, want about 30", out.PollSeconds)
	}
}

// A function that Lambda is about to stop answers before that.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := hanging{}
		f, err := lambda.New(lambda.Config{Bucket: bucket.New(hangs), Objects: hangs, URLs: &signer{}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond) // of which 500 ms are kept
		defer cancel()
		w := httptest.NewRecorder()
		f.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/firmware", nil))
		if w.Code != 503 || ctx.Err() != nil {
			t.Errorf("%d, after the end: %v; want a 503 before it", w.Code, ctx.Err())
		}
	})
}

// hanging is a store that answers only when nobody waits any more.
type hanging struct{ blob.Store }

func (hanging) Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, blob.Object, error) {
	<-ctx.Done()
	return nil, blob.Object{}, ctx.Err()
}

func TestConfig(t *testing.T) {
	b, s, u := bucket.New(nil), &store{}, &signer{}
	for name, cfg := range map[string]lambda.Config{
		"nothing":        {},
		"no store":       {Bucket: b},
		"no key":         {Single: &lambda.Single{Objects: s, URLs: u, Version: "1"}},
		"no version":     {Single: &lambda.Single{Objects: s, URLs: u, Key: "k"}},
		"long version":   {Single: &lambda.Single{Objects: s, URLs: u, Key: "k", Version: strings.Repeat("1", 32)}},
		"short lifetime": {Bucket: b, Objects: s, URLs: u, URLLifetime: time.Millisecond},
		"long lifetime":  {Bucket: b, Objects: s, URLs: u, URLLifetime: 169 * time.Hour},
		"poll":           {Bucket: b, Objects: s, URLs: u, PollInterval: time.Millisecond},
	} {
		if _, err := lambda.New(cfg); err == nil {
			t.Errorf("%s: taken, want an error", name)
		}
	}
	for _, pattern := range lambda.Routes() {
		if method, path, ok := strings.Cut(pattern, " "); !ok || method != http.MethodGet && method != http.MethodPost || path[0] != '/' {
			t.Errorf("route %q is no method and path", pattern)
		}
	}
}
