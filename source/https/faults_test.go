package https_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/source/https"
)

// server answers as f does, and counts what it got.
func answering(t *testing.T, f http.HandlerFunc) *https.Source {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	s, err := https.New(https.Config{URL: srv.URL, Device: "d", Product: "p", Version: "1.0.0", AllowPlain: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A report that the server will never take must not keep the later ones from it.
func TestRejectedReportIsNotSentForEver(t *testing.T) {
	s := answering(t, func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(api.ReportsResponse{Stored: []string{}, Rejected: []api.Rejected{{ID: "r", Error: "result \"new\" is not known"}}})
	})
	if err := s.Report(t.Context(), ota.Report{ID: "r", Result: "new"}); !errors.Is(err, https.ErrRejected) {
		t.Errorf("got %v, want %v, so that others need not wait behind it", err, https.ErrRejected)
	}
	if err := s.Report(t.Context(), ota.Report{ID: "other", Result: ota.Failed}); err == nil {
		t.Error("a report of which the server says nothing counts as delivered")
	}
}

// Nothing the device has to say keeps it from checking in, or from reporting.
func TestLongReasonsAreCut(t *testing.T) {
	s := answering(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if strings.HasSuffix(r.URL.Path, "reports") {
			var req api.ReportsRequest
			json.Unmarshal(b, &req)
			json.NewEncoder(w).Encode(api.ReportsResponse{Stored: []string{req.Reports[0].ID}})
			return
		}
		io.WriteString(w, `{"poll_seconds":60}`)
	})
	long := strings.Repeat("\x01", 10_000)
	s.SetState(func() (in api.CheckinRequest) {
		in.Version = "1.0.0"
		for range 32 { // as many as the manager keeps
			in.Skipped = append(in.Skipped, ota.Skipped{Digest: "x", Version: "1", Reason: long})
		}
		return in
	})
	if _, err := s.Latest(t.Context()); ota.CodeOf(err) != ota.ErrNoUpdate {
		t.Errorf("check in: got %v, want %v", err, ota.ErrNoUpdate)
	}
	if err := s.Report(t.Context(), ota.Report{ID: "r", Result: ota.Failed, Reason: strings.Repeat(long, 10)}); err != nil {
		t.Errorf("report: got %v", err)
	}
}
