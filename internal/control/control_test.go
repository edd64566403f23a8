package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
)

// device is a device whose commands end when the test says so.
type device struct {
	hub control.Hub

	mu         sync.Mutex
	snap       ota.Snapshot
	thresholds control.Thresholds
	given      chan *call
}

type call struct {
	command control.Command
	end     chan error
}

func (c *call) Wait(ctx context.Context) error {
	select {
	case err := <-c.end:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *device) Status(context.Context) control.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return control.Status{Snapshot: d.snap, Agent: control.AgentInfo{Device: "bess-01"}, Warnings: []string{"careful"}}
}

func (d *device) Command(c control.Command) control.Call {
	k := &call{c, make(chan error, 1)}
	d.given <- k
	return k
}

func (d *device) Watch(ctx context.Context) <-chan control.Event {
	return d.hub.Watch(ctx, control.Event{Kind: control.KindStatus, Status: d.Status(ctx)})
}

func (d *device) Slots(context.Context) (control.Slots, error) {
	return control.Slots{Slots: []control.Slot{{Name: "A", Booted: true}, {Name: "B"}}, WhyNot: "slot B is empty"}, nil
}

func (d *device) Thresholds() (control.Thresholds, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.thresholds, nil
}

func (d *device) SetThresholds(c control.ThresholdsChange) (control.Thresholds, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.MinSoC != nil && *c.MinSoC > 100 {
		return d.thresholds, fmt.Errorf("set thresholds: %w: %v %%", control.ErrBadRequest, *c.MinSoC)
	}
	if c.MinSoC != nil {
		d.thresholds.MinSoC = *c.MinSoC
	}
	return d.thresholds, nil
}

// start serves a device on a real socket.
func start(t *testing.T) (*device, *control.Client, string) {
	t.Helper()
	d := &device{given: make(chan *call, 1), thresholds: control.Thresholds{MinSoC: 30, MaxCurrent: 10}}
	dir, err := os.MkdirTemp("", "ctl") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "run", "agent.sock")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, l, d, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		d.hub.Close()
		stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	c, err := control.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return d, c, path
}

func TestRead(t *testing.T) {
	d, c, _ := start(t)
	soc := 40.0
	d.snap = ota.Snapshot{Status: ota.StatusReadyToApply, State: ota.Staged, Running: "1.0.0", Latest: "1.0.1",
		Update: &ota.Update{Version: "1.0.1", Size: 5, Notes: "better", Mandatory: true, RequiresReboot: true, Limits: ota.Limits{MinSoC: &soc},
			Images: []ota.ImageInfo{{Component: "controller", Size: 5, MD5: "00"}}}}
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.Status(t.Context()), st); diff != "" {
		t.Errorf("status, -want +got:\n%s", diff)
	}
	in, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := control.Info{Version: "1.0.1", ReleaseNotes: "better", Size: 5, MD5: "00", SHA256: strings.Repeat("0", 64), Mandatory: true,
		RequiresReboot: true, MinBatteryLevel: &soc, Running: "1.0.0", Latest: "1.0.1", Update: *d.snap.Update}
	if diff := cmp.Diff(want, in); diff != "" {
		t.Errorf("info, -want +got:\n%s", diff)
	}
	slots, err := c.Slots(t.Context())
	if err != nil || len(slots.Slots) != 2 || !slots.Slots[0].Booted || slots.WhyNot != "slot B is empty" {
		t.Errorf("slots: got %+v, %v", slots, err)
	}
	d.mu.Lock()
	d.snap.Update = nil
	d.mu.Unlock()
	if _, err := c.Info(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Errorf("info without a release: got %v, want %v", err, ota.ErrNoUpdate)
	}
}

// TestErrors checks that what an error is survives the way through the socket.
func TestErrors(t *testing.T) {
	d, c, _ := start(t)
	low := &ota.Refusal{Code: ota.ErrBatteryLow, Reason: "state of charge 22.0 %, want at least 30 %", Signals: []ota.Signal{{Name: "soc", Value: 22, Unit: "%"}}}
	for _, tt := range []struct {
		err  error
		is   []error
		code ota.ErrorCode
		hint string
	}{
		{low, []error{ota.ErrNotNow, ota.ErrBatteryLow}, ota.ErrBatteryLow, "charged"},
		{fmt.Errorf("check: %w: the application does not allow it", ota.ErrNotNow), []error{ota.ErrNotNow}, ota.ErrNone, "asks again"},
		{fmt.Errorf("check: %w: the state is trial", ota.ErrBusy), []error{ota.ErrBusy}, ota.ErrNone, "status"},
		{ota.ErrStopped, []error{ota.ErrStopped}, ota.ErrNone, "moment"},
		{fmt.Errorf("check: %w", ota.ErrNoUpdate), []error{ota.ErrNoUpdate}, ota.ErrNoUpdate, ""},
		{fmt.Errorf("fetch: %w", ota.ErrConnectivity), []error{ota.ErrConnectivity}, ota.ErrConnectivity, "network"},
		{errors.New("odd"), []error{ota.ErrInternal}, ota.ErrInternal, ""},
	} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			go func() { (<-d.given).end <- tt.err }()
			_, err := c.Command(t.Context(), control.Install, true)
			got, ok := errors.AsType[*control.Error](err)
			if !ok {
				t.Fatalf("got %v, want a *control.Error", err)
			}
			if got.Text != tt.err.Error() || got.Code != tt.code || got.Name != tt.code.Name() || !strings.Contains(got.Hint, tt.hint) {
				t.Errorf("got %+v, want code %d and hint with %q", got, tt.code, tt.hint)
			}
			for _, is := range tt.is {
				if !errors.Is(err, is) {
					t.Errorf("got %v, which is not %v", err, is)
				}
			}
			if tt.err == error(low) && (len(got.Signals) != 1 || got.Signals[0].Value != 22) {
				t.Errorf("got signals %v, want the refusal's", got.Signals)
			}
		})
	}
}

func TestCommandGoesOn(t *testing.T) {
	d, c, _ := start(t)
	r, err := c.Command(t.Context(), control.Install, false)
	if err != nil || r.Ended {
		t.Fatalf("got %+v, %v, want a command that goes on", r, err)
	}
	k := <-d.given
	if k.command != control.Install {
		t.Errorf("got command %s", k.command)
	}
	ctx, hangUp := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Command(ctx, control.Apply, true)
		done <- err
	}()
	k = <-d.given
	hangUp()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	k.end <- nil // nobody took the command back
	go func() { (<-d.given).end <- nil }()
	r, err = c.Command(t.Context(), control.Check, true)
	if err != nil || !r.Ended {
		t.Errorf("got %+v, %v, want a command that ended", r, err)
	}
}

func TestBadRequests(t *testing.T) {
	_, c, path := start(t)
	raw := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
	defer raw.CloseIdleConnections()
	for _, tt := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"POST", "/v1/explode", "", 400, "no command"},
		{"POST", "/v1/check?wait=perhaps", "", 400, "want true or false"},
		{"GET", "/v1/nothing", "", 404, "there is no GET"},
		{"PUT", "/v1/thresholds", `{"min_sock": 3}`, 400, `unknown field \"min_sock\"`},
		{"PUT", "/v1/thresholds", `{"min_soc": 3} {}`, 400, "follows"},
		{"PUT", "/v1/thresholds", `{"min_soc": 101}`, 400, "101"},
		{"PUT", "/v1/thresholds", `{"min_soc": ` + strings.Repeat(" ", 70<<10) + `1}`, 400, "too large"},
		{"GET", "/v1/status", "", 200, "bess-01"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://agent"+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := raw.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tt.status || !strings.Contains(string(b), tt.text) {
			t.Errorf("%s %s: got %s %s %v, want %d with %q", tt.method, tt.path, resp.Status, b, err, tt.status, tt.text)
		}
	}
	th, err := c.Thresholds(t.Context())
	if err != nil || th.MinSoC != 30 {
		t.Errorf("after refused changes: got %+v, %v, want 30 %%", th, err)
	}
	v := 55.0
	th, err = c.SetThresholds(t.Context(), control.ThresholdsChange{MinSoC: &v})
	if err != nil || th.MinSoC != 55 || th.MaxCurrent != 10 {
		t.Errorf("after a change: got %+v, %v, want 55 %% and 10 A", th, err)
	}
}

// TestWatch checks that no change of status is lost, and that the end is told.
func TestWatch(t *testing.T) {
	d, c, _ := start(t)
	var got []string
	err := c.Watch(t.Context(), func(e control.Event) error {
		got = append(got, e.Kind+" "+e.Status.Snapshot.Status.String())
		if len(got) == 1 { // the watcher is there
			for s := ota.StatusChecking; s <= ota.StatusReadyToApply; s++ {
				d.hub.Publish(control.Event{Kind: control.KindStatus, Status: control.Status{Snapshot: ota.Snapshot{Status: s}}})
			}
			d.hub.Close()
		}
		return nil
	})
	if !errors.Is(err, ota.ErrStopped) {
		t.Errorf("got %v, want %v", err, ota.ErrStopped)
	}
	want := []string{"status IDLE", "status CHECKING", "status UPDATE_AVAILABLE", "status DOWNLOADING", "status VERIFYING", "status READY_TO_APPLY"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events, -want +got:\n%s", diff)
	}
}

func TestHubSlowWatcher(t *testing.T) {
	var h control.Hub
	ch := h.Watch(t.Context(), control.Event{Kind: control.KindStatus})
	event := func(kind string, done int64) {
		h.Publish(control.Event{Kind: kind, Status: control.Status{Snapshot: ota.Snapshot{Done: done}}})
	}
	for i := range int64(1000) {
		event(control.KindProgress, i)
	}
	event(control.KindStatus, 1000)
	for i := range int64(1000) {
		event(control.KindProgress, 1000+i)
	}
	h.Close()
	statuses, last := 0, int64(0)
	for e := range ch {
		if e.Kind == control.KindStatus {
			statuses++
		}
		if e.Status.Snapshot.Done < last {
			t.Errorf("got %d after %d", e.Status.Snapshot.Done, last)
		}
		last = e.Status.Snapshot.Done
	}
	if statuses != 2 || last != 1999 {
		t.Errorf("got %d changes of status and %d at the end, want 2 and 1999", statuses, last)
	}
}

func TestListen(t *testing.T) {
	_, _, path := start(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o660 {
		t.Errorf("mode: got %o, want 660", got)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode of the directory: got %v, %v, want 755", info.Mode(), err)
	}
	if l, err := control.Listen(path); err == nil || !strings.Contains(err.Error(), "another agent answers") {
		t.Errorf("a second agent: got %v, %v", l, err)
	}
	dir := filepath.Dir(path)

	stale := filepath.Join(dir, "stale.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := control.Listen(stale)
	if err != nil {
		t.Errorf("a socket that was left behind: %v", err)
	} else {
		l.Close()
	}

	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := control.Listen(file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: got %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "x" {
		t.Errorf("the file: got %q, %v", b, err)
	}
	if _, err := control.Listen(filepath.Join(dir, strings.Repeat("x", 120))); err == nil || !strings.Contains(err.Error(), "at most 103") {
		t.Errorf("a long path: got %v", err)
	}
	for name, want := range map[string]string{"nothing.sock": "no such socket", "stale.sock": "no such socket"} {
		_, err := control.Dial(filepath.Join(dir, name))
		e, ok := errors.AsType[*control.Error](err)
		if !ok || !errors.Is(err, ota.ErrStopped) || !strings.Contains(e.Hint, want) {
			t.Errorf("dial %s: got %v, want a hint with %q", name, err, want)
		}
	}
}
