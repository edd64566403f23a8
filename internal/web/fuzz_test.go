package web_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/web"
)

// Whatever a device sends, the server answers with a status that makes sense
// and JSON, and the pages and lists that show it stay whole.
func FuzzCheckin(f *testing.F) {
	key := newSigner(f)
	x := newSite(f, web.Config{OpenDashboard: true, MaxDevices: 50})
	x.publish(key.release(f, ota.Manifest{Version: "1.1.0"}, firmware(1, 100)), "")
	for _, s := range []string{
		`{"device":"rack-7","product":"bess"}`,
		`{"device":"rack-7","product":"bess","version":"1.0.0","status":"DOWNLOADING","done":5,"total":9,"update_version":"1.1.0"}`,
		`{"device":"rack-7","product":"bess","status":"UPDATE_AVAILABLE","code":-9,"reason":"low","signals":[{"name":"soc","value":1e308,"unit":"%"}]}`,
		`{"device":"rack-7","product":"bess","done":-9223372036854775808,"total":9223372036854775807}`,
		`{"device":"rack-7","product":"bess","skipped":[{"digest":"\u0000","version":"<script>","reason":"\ud800"}]}`,
		`{"device":"rack-7","product":"bess","signals":[{"name":"soc","value":1,"at":"9999-12-31T23:59:59-12:00"}]}`,
		`{"device":"rack-7","product":"bess","signals":[{"name":"soc","value":1,"at":"0000-01-01T00:00:00+12:00"}]}`,
		`{"Device":"rack-7","DEVICE":"rack-8","product":"bess","version":"999999999999999999999999.1"}`,
		`{"device":"rack-7","product":"bess","security_version":18446744073709551615}`,
		`{"device":"rack-7","product":"bess","status":null,"signals":null,"skipped":[null]}`,
		strings.Repeat(`{"device":`, 2000), `[]`, `null`, `"`, ``, "\x00\xff", `{"device":"rack-7","product":"bess"}x`,
	} {
		f.Add([]byte(s), "")
	}
	f.Add([]byte(`{"device":"rack-7","product":"bess"}`), `W/"none", *`)
	h := x.s.Handler()
	ask := func(t *testing.T, method, path, token, body, etag string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		if etag != "" {
			r.Header["If-None-Match"] = []string{etag}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	f.Fuzz(func(t *testing.T, body []byte, etag string) {
		w := ask(t, "POST", api.PathCheckin, x.device, string(body), etag)
		switch w.Code {
		case http.StatusOK:
			var res api.CheckinResponse
			if err := json.Unmarshal(w.Body.Bytes(), &res); err != nil || res.PollSeconds < 1 {
				t.Fatalf("answer %s: %v, poll %d s", w.Body, err, res.PollSeconds)
			}
		case http.StatusNotModified:
			if w.Body.Len() != 0 {
				t.Fatalf("304 with a body: %s", w.Body)
			}
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage:
			var e api.Error
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Error == "" {
				t.Fatalf("error %s: %v", w.Body, err)
			}
			return
		default:
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		var req api.CheckinRequest
		if err := json.Unmarshal(body, &req); err != nil {
			t.Fatalf("taken, but not readable: %v", err)
		}
		var d api.DeviceDetail
		w = ask(t, "GET", "/api/v1/devices/"+req.Device, x.operator, "", "")
		if err := json.Unmarshal(w.Body.Bytes(), &d); w.Code != 200 || err != nil || d.Why == "" {
			t.Fatalf("device: %d, %v, %s", w.Code, err, w.Body)
		}
		w = ask(t, "GET", "/devices/"+req.Device+"?static=1", "", "", "")
		if page := w.Body.String(); w.Code != 200 || strings.Contains(page, "<script") || strings.Count(page, "<dd>") != 9 {
			t.Fatalf("page: %d: %s", w.Code, page)
		}
	})
}
