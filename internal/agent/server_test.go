package agent_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/web"
)

// fleet is the real server, and its operator.
type fleet struct {
	t     *testing.T
	http  *httptest.Server
	token string
}

func (s *site) joinFleet() *fleet {
	s.t.Helper()
	server, err := web.Open(filepath.Join(s.dir, "server"), web.Config{PollInterval: 2 * time.Second, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := server.Close(); err != nil {
			s.t.Error(err)
		}
	})
	f := &fleet{t: s.t, http: httptest.NewTLSServer(server.Handler()), token: server.FirstTokens.Operator}
	s.t.Cleanup(f.http.Close)
	s.t.Cleanup(server.EndStreams)
	s.write("fleet-ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.http.Certificate().Raw}))
	s.write("device.token", []byte(server.FirstTokens.Device+"\n"))
	s.config = with(s.config, "source:", fmt.Sprintf("source: {https: {url: %q, cert_pem_file: fleet-ca.pem, token_file: device.token}}", f.http.URL))
	return f
}

// with replaces the section of config that begins with key.
func with(config, key, line string) string {
	var out []string
	inside := false
	for l := range strings.Lines(config) {
		switch {
		case strings.HasPrefix(l, key):
			inside = true
			out = append(out, line+"\n")
		case inside && strings.HasPrefix(l, " "):
		default:
			inside = false
			out = append(out, l)
		}
	}
	return strings.Join(out, "")
}

func (f *fleet) do(method, path string, body []byte, out any) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.http.URL+path, bytes.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+f.token)
	resp, err := f.http.Client().Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(resp.Body); err != nil || resp.StatusCode >= 300 {
		f.t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, &buf, err)
	}
	if err := json.Unmarshal(buf.Bytes(), out); err != nil {
		f.t.Fatalf("%s %s: %v in %s", method, path, err, &buf)
	}
}

// device waits until the server says of the device what it should.
func (f *fleet) device(what string, ok func(api.DeviceDetail) bool) (d api.DeviceDetail) {
	f.t.Helper()
	for began := time.Now(); time.Since(began) < patience; <-time.After(100 * time.Millisecond) {
		var all api.DevicesResponse
		if f.do("GET", api.PathDevices, nil, &all); len(all.Devices) == 0 {
			continue
		}
		if f.do("GET", "/api/v1/devices/bess-01", nil, &d); ok(d) {
			return d
		}
	}
	f.t.Fatalf("waited for %v for %s; the server says %+v", patience, what, d)
	return d
}

// TestFleet: the agent and the real server. The operator sees why the device
// waits, with its readings, then that it goes on, and exactly one report.
func TestFleet(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f := s.joinFleet()
	s.config += "check_interval: 24h # the server wants one every two seconds\n"
	s.setSoC(22)
	a, stop := s.start()
	f.device("the device", func(d api.DeviceDetail) bool {
		if d.Version == "" || d.Slot == "" {
			t.Error("the server was told that the device runs nothing")
		}
		return d.Version == "1.0.0"
	})

	s.publish("1.0.1", firmware("1.0.1", "", mib)) // makes the bundle
	b, err := os.ReadFile(filepath.Join(s.dir, "1.0.1.bundle"))
	if err != nil {
		t.Fatal(err)
	}
	var published api.PublishResponse
	f.do("POST", api.PathReleases, b, &published)
	d := f.device("the reason", func(d api.DeviceDetail) bool { return d.Code == ota.ErrBatteryLow })
	if !d.Waiting || !strings.Contains(d.Why, "22") || d.UpdateVersion != "1.0.1" || len(d.Signals) == 0 {
		t.Errorf("got %+v, want the reason with its numbers", d)
	}
	low := 25.0
	if err := s.battery.Set(battery.Settings{SoC: &low}); err != nil {
		t.Fatal(err)
	}
	f.device("the reason to follow the battery", func(d api.DeviceDetail) bool { return strings.Contains(d.Reason, "25") })
	s.setSoC(30)
	// The report may be there before the next check-in, which names what runs.
	d = f.device("success", func(d api.DeviceDetail) bool { return d.Version == "1.0.1" && d.Digest != "" && len(d.Reports) > 0 })
	if len(d.Reports) != 1 || d.Reports[0].Result != ota.Succeeded || d.Digest != published.Release.Digest {
		t.Errorf("got %+v, want one report of success, and the digest of what runs", d)
	}
	wait(t, a, "the report's confirmation", func(s ota.Snapshot) bool { return s.State == ota.Idle && s.Unsent == 0 })
	f.device("the end of waiting", func(d api.DeviceDetail) bool { return !d.Waiting && d.Status != ota.StatusTrial })
	stop()
}

// TestHooks: the order of the original, and what the commands are told.
func TestHooks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	said := filepath.Join(s.dir, "said")
	say := func(more string) string {
		return fmt.Sprintf(`{command: 'echo "$INTERLOCK_HOOK $INTERLOCK_STATUS $INTERLOCK_VERSION" >> %s%s'}`, said, more)
	}
	s.config += "hooks:\n  check_start: " + say("") + "\n  suspend: " + say("; test -e "+s.dir+"/ramped || { echo still at 40 kW >&2; exit 1; }") +
		"\n  resume: " + say("") + "\n"
	s.publish("1.0.1", firmware("1.0.1", "", 10_000))
	a, _ := s.start()
	// The plant does not stop, so the device does not restart.
	got := wait(t, a, "the failed suspend", func(s ota.Snapshot) bool { return s.Status == ota.StatusFailed })
	if !strings.Contains(got.Reason, "still at 40 kW") || got.Running != "1.0.0" {
		t.Errorf("got %+v, want why the plant does not stop", got)
	}
	s.write("ramped", nil)
	if got := a.Control().Command(control.Apply).Wait(t.Context()); got != nil {
		t.Logf("apply: %v", got) // the dwell time
	}
	wait(t, a, "success", ends("1.0.1", ota.Succeeded))
	wait(t, a, "the check after it", func(s ota.Snapshot) bool { return s.Status == ota.StatusIdle })
	b, err := os.ReadFile(said)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	last := -1
	for _, want := range []string{"check_start IDLE 1.0.0", "suspend APPLYING 1.0.0", "resume ", "suspend APPLYING 1.0.0", "resume ", "check_start "} {
		i := strings.Index(text[last+1:], want)
		if i < 0 {
			t.Fatalf("got hooks\n%swant %q after %d bytes", text, want, last)
		}
		last += 1 + i
	}
	if !strings.Contains(text[strings.LastIndex(text, "resume"):], "1.0.1") {
		t.Errorf("got hooks\n%swant the last resume by the new firmware", text)
	}
}

// TestThresholds: changed at run time, checked, and shown.
func TestThresholds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a, _ := s.start()
	wait(t, a, "a start", func(s ota.Snapshot) bool { return s.Slot == "A" })
	c, err := control.Dial(filepath.Join(s.dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	v, bad := 55.0, 101.0
	if _, err := c.SetThresholds(t.Context(), control.ThresholdsChange{MinSoC: &bad}); err == nil || !strings.Contains(err.Error(), "0 to 100") {
		t.Errorf("101 %%: got %v", err)
	}
	got, err := c.SetThresholds(t.Context(), control.ThresholdsChange{MinSoC: &v})
	if err != nil || got != (control.Thresholds{MinSoC: 55, MaxTemperature: 45, MaxCurrent: 10, MaxAge: "5s"}) {
		t.Errorf("55 %%: got %+v, %v", got, err)
	}
	st, err := c.Status(t.Context())
	if err != nil || len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "thresholds") {
		t.Errorf("got warnings %q, %v, want one about the thresholds", st.Warnings, err)
	}
	s.setSoC(54)
	s.publish("1.0.1", firmware("1.0.1", "", 10_000))
	a.Control().Command(control.Check)
	wait(t, a, "the new limit", func(s ota.Snapshot) bool { return s.Code == ota.ErrBatteryLow && strings.Contains(s.Reason, "55 %") })
}
