package api_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// The texts below are what devices in the field send and understand: a change
// here is a change of the protocol.
func TestJSONNames(t *testing.T) {
	for _, tt := range []struct {
		name  string
		value any
		want  string
	}{
		{"check-in", api.CheckinRequest{
			Head: api.Head{Device: "d1", Product: "bess", Hardware: "rev2", Agent: "0.1.0", Version: "1.0.0", Digest: "aa",
				SecurityVersion: 3, Slot: "A", Status: ota.StatusDownloading, State: ota.Fetching, Code: ota.ErrBatteryLow,
				Reason: "low", UpdateVersion: "1.1.0", UpdateDigest: "bb", Done: 1, Total: 2,
				Signals: []ota.Signal{{Name: "soc", Value: 22, Unit: "%"}}},
			Skipped: []ota.Skipped{{Digest: "cc", Version: "0.9.0", Reason: "failed"}},
		}, `{"device":"d1","product":"bess","hardware":"rev2","agent":"0.1.0","version":"1.0.0","digest":"aa",` +
			`"security_version":3,"slot":"A","status":"DOWNLOADING","state":"fetching","code":-9,"reason":"low",` +
			`"update_version":"1.1.0","update_digest":"bb","done":1,"total":2,` +
			`"signals":[{"name":"soc","value":22,"unit":"%"}],` +
			`"skipped":[{"digest":"cc","version":"0.9.0","reason":"failed"}]}`},
		{"smallest check-in", api.CheckinRequest{Head: api.Head{Device: "d1", Product: "bess"}},
			`{"device":"d1","product":"bess","status":"IDLE"}`},
		{"status", api.StatusUpdate{Head: api.Head{Device: "d1", Product: "bess", Status: ota.StatusTrial}},
			`{"device":"d1","product":"bess","status":"TRIAL"}`},
		{"nothing new", api.CheckinResponse{PollSeconds: 60}, `{"poll_seconds":60}`},
		{"offer", api.CheckinResponse{Release: &api.ReleaseOffer{Digest: "aa", Version: "1.0.0", Signed: []byte("{}"),
			Images: []api.ImageOffer{{Component: "controller", URL: "/d/x", Size: 5}}}},
			`{"poll_seconds":0,"release":{"digest":"aa","version":"1.0.0","signed":"e30=","images":[{"component":"controller",` +
				`"url":"/d/x","size":5,"sha256":"0000000000000000000000000000000000000000000000000000000000000000"}]}}`},
		{"reports", api.ReportsRequest{Device: "d1", Reports: []ota.Report{}}, `{"device":"d1","reports":[]}`},
		{"stored", api.ReportsResponse{Stored: []string{"r1"}, Rejected: []api.Rejected{{ID: "r2", Error: "no digest"}}},
			`{"stored":["r1"],"rejected":[{"id":"r2","error":"no digest"}]}`},
		{"device", api.Device{Head: api.Head{Device: "d1", Product: "bess"}, Group: "default", Wanted: "1.1.0", Waiting: true, Why: "low"},
			`{"device":"d1","product":"bess","status":"IDLE","group":"default","last_seen":"0001-01-01T00:00:00Z",` +
				`"wanted":"1.1.0","waiting":true,"why":"low"}`},
		{"error", api.Error{Error: "no", Hint: "do"}, `{"error":"no","hint":"do"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := json.Marshal(tt.value)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("JSON (-want +got):\n%s", diff)
			}
		})
	}
}

// A release carries ota.Update flat, with the product beside it.
func TestReleaseIsFlat(t *testing.T) {
	got := map[string]any{}
	j, err := json.Marshal(api.Release{Product: "bess", Update: ota.Update{Version: "1.0.0", Digest: "aa"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(j, &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{"product": "bess", "version": "1.0.0", "digest": "aa", "signatures_checked": false} {
		if got[name] != want {
			t.Errorf("%s = %v, want %v", name, got[name], want)
		}
	}
}
