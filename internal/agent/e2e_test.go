package agent_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/internal/agent"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/control"
)

const mib = 1 << 20

// patience is how long a test waits for what must come. Only a failure takes it.
const patience = 90 * time.Second

// TestMain is also the agent of TestKilled, in a process that can be killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("INTERLOCK_TEST_AGENT"); path != "" {
		os.Exit(agentProcess(path))
	}
	crash.Strict() // a panic is to be found, not answered
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) { // nobody has chosen
		flag.Set("test.parallel", "16") // most of these tests wait for a device
	}
	os.Exit(m.Run())
}

func agentProcess(path string) int {
	cfg, err := agent.Load(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	a, err := agent.New(cfg)
	if err == nil {
		err = a.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// firmware is a shell script that says its version, does what more says, runs
// until its input ends, and is padded to a size worth transferring.
func firmware(version, more string, size int) []byte {
	b := []byte("#!/bin/sh\necho interlock-firmware " + version + "\n" + more + "\nwhile read -r line; do :; done\nexit 0\n")
	for i := 0; len(b) < size; i++ {
		b = fmt.Appendf(b, "# %s %d %x\n", version, i, i*i*i)
	}
	return b
}

// site is a device, its battery, and the server that it gets releases from.
type site struct {
	t       *testing.T
	dir     string
	key     ed25519.PrivateKey
	battery *battery.Battery
	server  *httptest.Server
	config  string // YAML
	sent    atomic.Int64
	mu      sync.Mutex
	file    string                                        // the bundle that is published
	writer  func(http.ResponseWriter) http.ResponseWriter // how it goes out
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "site") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{t: t, dir: dir}
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	s.key = signer.(ed25519.PrivateKey)
	s.write("key.public.pem", public)

	if s.battery, err = battery.New(battery.Config{}); err != nil {
		t.Fatal(err)
	}
	bms := httptest.NewServer(s.battery)
	t.Cleanup(bms.Close)

	s.server = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	s.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	t.Cleanup(s.server.Close)
	s.write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw}))
	s.write("factory.img", firmware("1.0.0", "", 10_000))
	s.config = fmt.Sprintf(`
device: {id: bess-01, product: bess-controller, hardware: revB}
state_dir: state
source:
  kind: https
  https: {url: %q, kind: bundle, cert_pem_file: ca.pem}
keys: {files: [key.public.pem]}
startup_delay: 0s
automatic_update: true
rollback_timeout: 4s
validation_time: 1s
max_tries: 1
retry_delay: 50ms
battery: {reader: http, url: %q}
dwell: 200ms
slot: {kind: file, dir: slots, run: true, factory: factory.img, stop_grace: 1s}
control: {socket: agent.sock}
`, s.server.URL+"/bess/latest.bundle", bms.URL)
	return s
}

func (s *site) write(name string, b []byte) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// publish makes a release of image the one that the server has.
func (s *site) publish(version string, image []byte) {
	s.t.Helper()
	out := filepath.Join(s.dir, version+".bundle")
	m := &ota.Manifest{Product: "bess-controller", Version: version, Created: time.Now().UTC().Truncate(time.Second), Notes: "for the test"}
	if err := bundle.Build(out, m, map[string]string{"controller": s.write("image", image)}, s.key); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.file = out
	s.mu.Unlock()
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	name, writer := s.file, s.writer
	s.mu.Unlock()
	if name == "" || r.URL.Path != "/bess/latest.bundle" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf("%q", filepath.Base(name)))
	if writer != nil {
		w = writer(w)
	}
	http.ServeFile(countingWriter{w, &s.sent}, r, name)
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// start runs the agent in this process until the test ends, or stop is called.
func (s *site) start() (a *agent.Agent, stop func()) {
	s.t.Helper()
	cfg, err := agent.Load(s.write("interlockd.yaml", []byte(s.config)))
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.Log = slog.New(slog.NewTextHandler(testWriter{s.t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if a, err = agent.New(cfg); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("run the agent: %v", err)
		}
	})
	s.t.Cleanup(stop)
	return a, stop
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

// wait waits until the device looks like it should, and returns how it looked.
func wait(t *testing.T, a *agent.Agent, what string, ok func(ota.Snapshot) bool) ota.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var last ota.Snapshot
	for e := range a.Control().Watch(ctx) {
		if last = e.Status.Snapshot; ok(last) {
			return last
		}
	}
	t.Fatalf("waited for %v for %s; the last status is %+v", patience, what, last)
	return last
}

func ends(version string, result ota.Result) func(ota.Snapshot) bool {
	return func(s ota.Snapshot) bool {
		return s.State == ota.Idle && s.Last != nil && s.Last.Version == version && s.Last.Result == result && s.Unsent == 1
	}
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	mark := filepath.Join(s.dir, "ran")
	s.publish("1.0.1", firmware("1.0.1", "echo 1.0.1 > "+mark, mib))
	a, stop := s.start()
	got := wait(t, a, "success", ends("1.0.1", ota.Succeeded))
	if got.Running != "1.0.1" || got.Slot != "B" || got.Previous != "1.0.0" || !got.CanRollBack || got.Last.From != "1.0.0" {
		t.Errorf("got %+v, want 1.0.1 in slot B, and 1.0.0 to go back to", got)
	}
	if b, err := os.ReadFile(mark); err != nil || string(b) != "1.0.1\n" {
		t.Errorf("the new firmware wrote %q, %v: did it run?", b, err)
	}
	client, err := control.Dial(filepath.Join(s.dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	wait(t, a, "the check after the boot", func(s ota.Snapshot) bool { return s.Status == ota.StatusIdle })
	if _, err := client.Command(t.Context(), control.Check, true); !errors.Is(err, ota.ErrNoUpdate) {
		t.Errorf("check: got %v, want %v", err, ota.ErrNoUpdate)
	}
	st, err := client.Status(t.Context())
	if err != nil || len(st.Readings) != 4 || len(st.Warnings) != 0 {
		t.Errorf("status: got %+v, %v, want four readings and no warnings", st, err)
	}
	slots, err := client.Slots(t.Context())
	if err != nil || len(slots.Slots) != 2 || slots.Slots[0].Version != "1.0.0" || !slots.Slots[1].Booted || slots.Slots[1].Components[0].Capacity < mib {
		t.Errorf("slots: got %+v, %v", slots, err)
	}

	// The way back, by hand, and it stays so over a restart of the agent.
	if _, err := client.Command(t.Context(), control.RollBack, true); err != nil && !errors.Is(err, ota.ErrNotNow) {
		t.Fatalf("roll back: %v", err) // not now is the dwell time: it goes on by itself
	}
	got = wait(t, a, "the way back", func(s ota.Snapshot) bool {
		return s.State == ota.Idle && s.Running == "1.0.0" && s.Last.Version == "1.0.0"
	})
	if got.Slot != "A" || got.Last.Result != ota.Succeeded {
		t.Errorf("got %+v, want slot A, succeeded", got)
	}
	stop()
	a, _ = s.start()
	got = wait(t, a, "the check", func(s ota.Snapshot) bool { return s.Latest == "1.0.1" && s.Status == ota.StatusIdle })
	if got.Running != "1.0.0" || len(got.Skipped) != 1 {
		t.Errorf("got %+v, want 1.0.0 still, because a person left 1.0.1", got)
	}
}

func TestDoesNotStart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.publish("1.0.2", []byte("#!/bin/sh\necho panic: no such device >&2\nexit 1\n"))
	a, _ := s.start()
	got := wait(t, a, "the end", ends("1.0.2", ota.Failed))
	if got.Running != "1.0.0" || got.Slot != "A" || !strings.Contains(got.Last.Reason, "did not stay up") {
		t.Errorf("got %+v, want 1.0.0 in slot A", got)
	}
	warnings := strings.Join(a.Warnings(), "\n")
	if !strings.Contains(warnings, "panic: no such device") {
		t.Errorf("got warnings %q, want what the firmware said", warnings)
	}
	// The next release is taken all the same.
	s.publish("1.0.3", firmware("1.0.3", "", 10_000))
	a.Control().Command(control.Check)
	wait(t, a, "the next release", ends2("1.0.3", ota.Succeeded))
}

// ends2 is ends, for a device that has ended something before.
func ends2(version string, result ota.Result) func(ota.Snapshot) bool {
	return func(s ota.Snapshot) bool {
		return s.State == ota.Idle && s.Last != nil && s.Last.Version == version && s.Last.Result == result
	}
}

func TestUnhealthyRollsBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	sick := filepath.Join(s.dir, "sick")
	s.config += fmt.Sprintf("health:\n  - {name: plant, command: \"! test -e %s || { echo inverter trips; exit 1; }\"}\n  - {battery: fresh}\n", sick)
	s.publish("1.0.3", firmware("1.0.3", ": > "+sick, 10_000))
	a, _ := s.start()
	wait(t, a, "the trial", func(s ota.Snapshot) bool { return s.Status == ota.StatusTrial })
	slots, err := a.Control().Slots(t.Context())
	if err != nil || slots.Slots[0].Version != "1.0.0" || slots.Slots[1].Version != "1.0.3" || !slots.Slots[1].Booted {
		t.Errorf("slots during the trial: got %+v, %v", slots, err)
	}
	got := wait(t, a, "the way back", ends("1.0.3", ota.RolledBack))
	if got.Running != "1.0.0" || got.Slot != "A" || !strings.Contains(got.Last.Reason, "health check plant") || !strings.Contains(got.Last.Reason, "inverter trips") {
		t.Errorf("got %+v, want 1.0.0 in slot A and the check's reason", got)
	}
}

// TestCrashOnTrial: it starts, and ends by itself a moment later.
func TestCrashOnTrial(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.config = strings.Replace(s.config, "validation_time: 1s", "validation_time: 3s", 1)
	s.publish("1.0.4", []byte("#!/bin/sh\necho interlock-firmware 1.0.4\nsleep 1\nexit 9\n"))
	a, _ := s.start()
	got := wait(t, a, "the end", ends("1.0.4", ota.Failed))
	if got.Running != "1.0.0" || got.Slot != "A" {
		t.Errorf("got %+v, want 1.0.0 in slot A", got)
	}
}

func TestBatteryLow(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.setSoC(22)
	s.publish("1.0.1", firmware("1.0.1", "", 100_000))
	a, _ := s.start()
	got := wait(t, a, "BATTERY_LOW", func(s ota.Snapshot) bool { return s.Code == ota.ErrBatteryLow })
	if got.State != ota.Available || !strings.Contains(got.Reason, "22") || !strings.Contains(got.Reason, "30 %") || len(got.Signals) == 0 {
		t.Errorf("got %+v, want the reason with numbers, and nothing written", got)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "slots", "b", "controller.img")); err == nil {
		t.Error("slot B was written although the battery is low")
	}
	client, err := control.Dial(filepath.Join(s.dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Command(t.Context(), control.Install, true); !errors.Is(err, ota.ErrNotNow) || !errors.Is(err, ota.ErrBatteryLow) {
		t.Errorf("install: got %v, want a refusal", err)
	}
	s.setSoC(30)
	wait(t, a, "success", ends("1.0.1", ota.Succeeded))
}

func (s *site) setSoC(v float64) {
	s.t.Helper()
	if err := s.battery.Set(battery.Settings{SoC: &v}); err != nil {
		s.t.Fatal(err)
	}
}

// stopAfter lets n bytes of bodies out, then blocks until the client hangs up.
type stopAfter struct {
	http.ResponseWriter
	left    *atomic.Int64
	reached chan<- struct{}
	gone    <-chan struct{}
}

func (w stopAfter) Write(p []byte) (int, error) {
	if left := w.left.Add(-int64(len(p))); left < 0 {
		select {
		case w.reached <- struct{}{}:
		default:
		}
		<-w.gone
		return 0, errors.New("stopped")
	}
	n, err := w.ResponseWriter.Write(p)
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	return n, err
}

// TestKilled kills the agent's process with SIGKILL in the middle of a transfer.
// The firmware it ran ends by itself, and the next agent goes on where it was.
func TestKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const size = 4 * mib
	image := firmware("1.0.1", "", size)
	s.publish("1.0.1", image)
	reached, gone := make(chan struct{}, 1), make(chan struct{})
	var left atomic.Int64
	left.Store(size / 2)
	s.writer = func(w http.ResponseWriter) http.ResponseWriter { return stopAfter{w, &left, reached, gone} }

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "INTERLOCK_TEST_AGENT="+s.write("interlockd.yaml", []byte(s.config)))
	cmd.Stderr = testWriter{t}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-reached:
	case <-time.After(patience):
		t.Error("the transfer did not begin")
	}
	// What was sent is on its way to the slot: wait until it has arrived.
	slot := filepath.Join(s.dir, "slots", "b", "controller.img")
	arrived := int64(0)
	for began := time.Now(); time.Since(began) < patience; <-time.After(50 * time.Millisecond) {
		if info, err := os.Stat(slot); err == nil && info.Size() > size/4 && info.Size() == arrived {
			break
		} else if err == nil {
			arrived = info.Size()
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	close(gone)
	s.mu.Lock()
	s.writer = nil
	s.mu.Unlock()
	before := s.sent.Swap(0)

	a, _ := s.start()
	wait(t, a, "success", ends("1.0.1", ota.Succeeded))
	after := s.sent.Load()
	const envelope = 64 << 10 // and the request for it
	if most := int64(len(image)) - arrived + bundle.DefaultChunkSize + envelope; after > most {
		t.Errorf("%d bytes before the kill, %d in the slot, %d after it, want at most %d", before, arrived, after, most)
	}
	t.Logf("image of %d bytes: %d sent before the kill, %d were in the slot, %d sent after it", len(image), before, arrived, after)
	if b, err := os.ReadFile(slot); err != nil || !bytes.Equal(b, image) {
		t.Errorf("slot B has %d bytes, %v, want the image's %d", len(b), err, len(image))
	}
}

// TestForged: a release that is signed with another key does not touch the slot,
// unless the configuration says that signatures do not count, loudly.
func TestForged(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.key = other
	s.publish("1.0.1", firmware("1.0.1", "", 10_000))
	a, stop := s.start()
	wait(t, a, "VALIDATION_FAILED", func(s ota.Snapshot) bool { return s.Status == ota.StatusFailed && s.Code == ota.ErrValidation })
	if _, err := os.Stat(filepath.Join(s.dir, "slots", "b", "controller.img")); err == nil {
		t.Error("slot B was written")
	}
	stop()
	s.config += "verify_signature: false\n"
	a, _ = s.start()
	wait(t, a, "success", ends("1.0.1", ota.Succeeded))
	if w := strings.Join(a.Warnings(), "\n"); !strings.Contains(w, "ANYBODY") {
		t.Errorf("got warnings %q, want a loud one", w)
	}
}

// TestTwoAgents: two on one record must not run.
func TestTwoAgents(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a, _ := s.start()
	wait(t, a, "a start", func(s ota.Snapshot) bool { return s.Slot == "A" })
	cfg, err := agent.Load(filepath.Join(s.dir, "interlockd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	second, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "record") {
		t.Errorf("the second agent: got %v, want that the record is taken", err)
	}
}
