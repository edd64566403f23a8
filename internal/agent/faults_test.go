package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/source/https"
)

// The source that offered what is in hand takes it back, and no other source
// makes the device forget that.
func TestWithdrawnReachesTheManager(t *testing.T) {
	a := &Agent{cfg: Config{Device: Device{Product: "p"}}}
	release := &ota.Manifest{Product: "p", Version: "1.1.0", Notes: "x"}
	gone := fmt.Errorf("check in: %w: %w", ota.ErrNoUpdate, ota.ErrWithdrawn)
	for _, tt := range []struct {
		name          string
		server, stick *shelf // at the second check
		first         *shelf // the stick at the first
		want          bool   // withdrawn
	}{
		{"the stick has nothing", &shelf{err: gone}, &shelf{err: ota.ErrNoUpdate}, &shelf{err: ota.ErrNoUpdate}, true},
		{"the stick cannot be read", &shelf{err: gone}, &shelf{err: fmt.Errorf("%w: i/o error", ota.ErrConnectivity)}, &shelf{err: ota.ErrNoUpdate}, true},
		{"the stick has what does not fit", &shelf{err: gone}, &shelf{release: &ota.Manifest{Product: "p", Version: "0.9.0"}}, &shelf{err: ota.ErrNoUpdate}, true},
		{"the stick has it, too", &shelf{err: gone}, &shelf{release: release}, &shelf{err: ota.ErrNoUpdate}, false},
		{"it came from the stick, which was pulled", &shelf{err: gone}, &shelf{err: ota.ErrNoUpdate}, &shelf{release: release}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := &shelf{release: release}
			if tt.first.release != nil {
				server = &shelf{err: gone}
			}
			m := newMulti(a, server, tt.first)
			a.record.Store(&ota.Record{State: ota.Idle})
			if _, err := m.Latest(t.Context()); err != nil {
				t.Fatal(err)
			}
			a.record.Store(&ota.Record{State: ota.Staged, Digest: "1.1.0", Release: release})
			m.sources[0].Source, m.sources[1].Source = tt.server, tt.stick
			signed, err := m.Latest(t.Context())
			if got := errors.Is(err, ota.ErrWithdrawn); got != tt.want {
				t.Errorf("got %q, %v, withdrawn %v, want %v", signed, err, got, tt.want)
			}
		})
	}
}

// stuckShelf answers when its context ends, like a medium that hangs.
type stuckShelf struct{ shelf }

func (s *stuckShelf) Latest(ctx context.Context) ([]byte, error) {
	<-ctx.Done()
	return nil, fmt.Errorf("%w: %w", ota.ErrConnectivity, context.Cause(ctx))
}

func TestStuckSourceHidesNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{cfg: Config{Device: Device{Product: "p"}}}
		m := newMulti(a, &shelf{release: &ota.Manifest{Product: "p", Version: "1.1.0"}}, &shelf{})
		m.sources[1].Source = &stuckShelf{}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // as the manager does
		defer cancel()
		signed, err := m.Latest(ctx)
		if err != nil {
			t.Fatalf("got %v, want what the other source has", err)
		}
		if man, err := verifyJSON(signed); err != nil || man.Version != "1.1.0" {
			t.Errorf("got %v, %v, want 1.1.0", man, err)
		}
	})
}

// A server that is gone for good must not keep the report from the one that is there.
func TestReportReachesTheServerThatIsThere(t *testing.T) {
	a := &Agent{}
	down, up := &shelf{err: errors.New("down")}, &shelf{}
	m := &reportingMulti{newMulti(a, down, up), []ota.Reporter{down, up}, a.explain}
	if err := m.Report(t.Context(), ota.Report{ID: "r"}); err == nil {
		t.Error("a report that one of two has not taken counts as delivered")
	}
	if len(up.reports) != 1 {
		t.Errorf("the server that is there has %d reports, want 1", len(up.reports))
	}
}

// A report that a server will never take keeps no other from it.
func TestRejectedReportIsNotInTheWay(t *testing.T) {
	a := &Agent{}
	no := &shelf{err: fmt.Errorf("report r: %w: %w", ota.ErrServer, https.ErrRejected)}
	m := &reportingMulti{newMulti(a, no), []ota.Reporter{no}, a.explain}
	if err := m.Report(t.Context(), ota.Report{ID: "r"}); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

// Hooks run however long the reason is, and it may come from a hostile stick: a
// resume that cannot be started leaves the plant quiesced.
func TestHookRunsWithALongReason(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	a.snap.Reason = strings.Repeat("\\x01", 50_000)
	h := &Hook{Command: Command{"/bin/sh", "-c", `test "${#INTERLOCK_REASON}" -gt 100`}}
	if err := a.runHook(t.Context(), "resume", h); err != nil {
		t.Errorf("got %.200v, want that it runs", err)
	}
}

// The restart stops the agent before the command that restarts has ended. That is
// no restart that failed, whose try would be taken back.
func TestStoppedByTheRestart(t *testing.T) {
	dir := t.TempDir()
	began, done := filepath.Join(dir, "began"), filepath.Join(dir, "done")
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	a.cfg.Slot.Reboot = Command{"/bin/sh", "-c", "touch " + began + "; sleep 1; touch " + done}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(began); err == nil {
				cancel()
				return
			}
			<-time.After(10 * time.Millisecond)
		}
	}()
	if err := a.askRestart(ctx); err != nil {
		t.Errorf("got %v, want nil: the device is restarting", err)
	}
	if _, err := os.Stat(done); err != nil {
		t.Errorf("the command was killed in the middle: %v", err)
	}
}

// A health check that is answered with a way to somewhere else is not passed.
func TestHealthFollowsNoRedirect(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			http.Redirect(w, r, "/login", http.StatusFound)
			return
		}
		io.WriteString(w, "welcome")
	}))
	defer s.Close()
	c, err := checker(t, nil).newCheck(&Health{HTTP: s.URL + "/health"}, bms.Tolerance{})
	if err != nil {
		t.Fatal(err)
	}
	if err := healthy(t.Context(), []check{c}); err == nil {
		t.Error("status 302 counts as healthy")
	}
}

func minimal(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	if signer, err := bundle.ParsePrivateKey(private); err != nil || signer.(ed25519.PrivateKey) == nil {
		t.Fatal(err)
	}
	return Config{
		Device:   Device{ID: "d", Product: "p"},
		StateDir: filepath.Join(dir, "state"),
		Source:   &Source{Media: &Media{Path: filepath.Join(dir, "media")}},
		Keys:     Keys{PublicKeyPEM: string(public)},
		Battery:  Battery{Reader: "none"},
		Slot:     Slot{Kind: "file", Dir: filepath.Join(dir, "slots"), Run: true},
		Control:  Control{Socket: "none"},
		Log:      slog.New(slog.DiscardHandler),
	}
}

// Limits that nobody looks at are refused: whoever wrote them believes in them.
func TestLimitsWithoutABattery(t *testing.T) {
	cfg := minimal(t)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	soc := 50.0
	for name, change := range map[string]func(*Battery){
		"min_soc":     func(b *Battery) { b.MinSoC = &soc },
		"max_current": func(b *Battery) { b.MaxCurrent = &soc },
		"max_age":     func(b *Battery) { b.MaxAge = Duration(time.Second) },
		"path":        func(b *Battery) { b.Path = "/run/bms.json" },
		"url":         func(b *Battery) { b.URL = "http://bms" },
	} {
		c := cfg
		change(&c.Battery)
		if a, err := New(c); err == nil {
			a.Close()
			t.Errorf("battery.%s with reader none is silently not looked at", name)
		}
	}
}

// The watchdog is not to shoot an agent that waits for as long as it may by default.
func TestWatchdogKnowsTheDefaults(t *testing.T) {
	cfg := minimal(t)
	cfg.Watchdog.MaxCall = Duration(45 * time.Second) // the stall timeout is 2 min, a hook's 1 min
	if a, err := New(cfg); err == nil {
		a.Close()
		t.Error("watchdog.max_call 45s is accepted with the default stall_timeout of 2m")
	}
}

// A dwell time or a validation of nothing is shown to people.
func TestWarnsOfWeakSafety(t *testing.T) {
	cfg := minimal(t)
	zero, soc := Duration(0), 0.0
	cfg.Dwell = &zero
	cfg.Battery = Battery{Reader: "file", Path: "/run/bms.json", MinSoC: &soc}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, want := range []string{"dwell is 0", "battery.min_soc"} {
		if w := a.Warnings(); !slices.ContainsFunc(w, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("got warnings %q, want one about %s", w, want)
		}
	}
}

// What the manager needs is gone after the start: a token that is being replaced, a
// certificate. The firmware goes on; it is not stopped and started again and again.
func TestFirmwareRunsWithoutAManager(t *testing.T) {
	cfg := minimal(t)
	dir := filepath.Dir(cfg.StateDir)
	token, starts := filepath.Join(dir, "token"), filepath.Join(dir, "starts")
	image := "#!/bin/sh\necho x >> " + starts + "\necho interlock-firmware 1.0.0\nwhile read -r line; do :; done\n"
	for name, content := range map[string]string{token: "secret\n", filepath.Join(dir, "factory.img"): image} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Slot.Factory = filepath.Join(dir, "factory.img")
	cfg.Source = &Source{HTTPS: &HTTPS{URL: "https://127.0.0.1:9", TokenFile: token}}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	for began := time.Now(); time.Since(began) < 30*time.Second; <-time.After(20 * time.Millisecond) {
		if b, _ := os.ReadFile(starts); len(b) > 0 {
			break
		}
	}
	<-time.After(time.Second) // the manager is tried again meanwhile
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(starts)
	if err != nil || strings.Count(string(b), "x") != 1 {
		t.Errorf("the firmware was started %d times (%v), want once", strings.Count(string(b), "x"), err)
	}
}

// A server may wish to be asked more often or more seldom, but it must not keep a
// plant quiesced that is suspended for each check, nor keep the device from asking
// the other servers.
func TestServersWishIsBounded(t *testing.T) {
	wish := func(seconds int) *https.Source {
		t.Helper()
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"poll_seconds":%d}`, seconds)
		}))
		t.Cleanup(srv.Close)
		s, err := https.New(https.Config{URL: srv.URL, Device: "d", Product: "p", Version: "1", AllowPlain: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
			t.Fatal(err)
		}
		return s
	}
	second, week := wish(1), wish(7*24*3600)
	none := wish(0)
	for _, tt := range []struct {
		name    string
		suspend ota.SuspendAt
		https   []*https.Source
		want    time.Duration
	}{
		{"a short wish", ota.SuspendBeforeRestart, []*https.Source{second}, time.Second},
		{"a short wish, and each check suspends", ota.SuspendBeforeCheck, []*https.Source{second}, time.Hour},
		{"a long wish", ota.SuspendBeforeRestart, []*https.Source{week}, 7 * 24 * time.Hour},
		{"a long wish of one of two", ota.SuspendBeforeRestart, []*https.Source{week, none}, time.Hour},
	} {
		set := &sourceSet{}
		for _, s := range tt.https {
			set.servers = append(set.servers, s)
		}
		a := &Agent{cfg: Config{CheckInterval: Duration(time.Hour)}, suspend: tt.suspend, sources: set}
		if got := a.interval(); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// The boot control of a device that has lived is lost. The slots hold what was
// installed; the factory's old image must not be written over it.
func TestLostBootControlIsNoNewDevice(t *testing.T) {
	cfg := minimal(t)
	dir := filepath.Dir(cfg.StateDir)
	image := func(version string) []byte {
		return []byte("#!/bin/sh\necho interlock-firmware " + version + "\nwhile read -r line; do :; done\n")
	}
	cfg.Slot.Factory = filepath.Join(dir, "factory.img")
	if err := os.WriteFile(cfg.Slot.Factory, image("1.0.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	live := func(want string) {
		t.Helper()
		a, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		for ctx.Err() == nil && a.Snapshot().Slot == "" {
			<-time.After(20 * time.Millisecond)
		}
		if got := a.Snapshot().Running; got != want {
			t.Errorf("runs %q, want %q", got, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	live("1.0.0")
	if err := os.WriteFile(filepath.Join(cfg.Slot.Dir, "a", "controller.img"), image("2.0.0"), 0o700); err != nil {
		t.Fatal(err)
	}
	live("2.0.0") // as after updates
	if err := os.Remove(filepath.Join(cfg.Slot.Dir, "boot")); err != nil {
		t.Fatal(err)
	}
	live("2.0.0")
}

// Two agents with records of their own and the same slots would both play the
// bootloader, run the firmware twice, and each write where the other's runs.
func TestTwoAgentsOnTheSameSlots(t *testing.T) {
	cfg := minimal(t)
	dir := filepath.Dir(cfg.StateDir)
	starts := filepath.Join(dir, "starts")
	cfg.Slot.Factory = filepath.Join(dir, "factory.img")
	image := "#!/bin/sh\necho x >> " + starts + "\necho interlock-firmware 1.0.0\nwhile read -r line; do :; done\n"
	if err := os.WriteFile(cfg.Slot.Factory, []byte(image), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(state string) (*Agent, context.CancelFunc, <-chan error) {
		t.Helper()
		c := cfg
		c.StateDir = filepath.Join(dir, state)
		a, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		return a, cancel, done
	}
	first, stop, ended := run("one")
	for range 500 {
		if first.Snapshot().Slot != "" {
			break
		}
		<-time.After(20 * time.Millisecond)
	}
	_, stopSecond, endedSecond := run("two")
	defer stopSecond()
	select {
	case err := <-endedSecond:
		if err == nil || !strings.Contains(err.Error(), "other agent") {
			t.Errorf("the second agent ended with %v, want an error that names the other agent", err)
		}
	case <-time.After(30 * time.Second): // only a failure takes it
		t.Error("two agents run on the same slots")
		stopSecond()
		<-endedSecond
	}
	if b, err := os.ReadFile(starts); err != nil || strings.Count(string(b), "x") != 1 {
		t.Errorf("the firmware was started %d times (%v), want once", strings.Count(string(b), "x"), err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	_, stop, ended = run("two") // after the first has ended it may
	<-time.After(100 * time.Millisecond)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What one release said before it died is not the reason why another failed.
func TestReportOfAnotherRelease(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	a.record.Store(&ota.Record{State: ota.Activating, Digest: "one"})
	a.setNotStarted(errors.New("no such device"))
	if r := a.explain(ota.Report{Digest: "one", Result: ota.Failed}); !strings.Contains(r.Reason, "no such device") {
		t.Errorf("got %q, want what the firmware said", r.Reason)
	}
	if r := a.explain(ota.Report{Digest: "two", Result: ota.Failed, Reason: "the hash is wrong"}); r.Reason != "the hash is wrong" {
		t.Errorf("got %q, want its own reason only", r.Reason)
	}
}
