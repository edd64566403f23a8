package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// A serial line has one owner, and so has what a kind of bus keeps on the disk.
func TestOneOwner(t *testing.T) {
	for _, tt := range []struct {
		lines []string
		want  string
	}{
		{[]string{"source: {modbus: {serial: {device: /dev/ttyS1}}}", "battery: {reader: sunspec, modbus: {serial: {device: /dev/ttyS1}}}"},
			"modbus: serial.device: a Modbus client of the plant uses /dev/ttyS1, too; a serial line has one owner, so give one of them another line, or take the other out of the configuration"},
		{[]string{"source: {canbus: {slcan: {device: /dev/ttyS1}}}", "battery: {reader: sunspec, modbus: {serial: {device: /dev/ttyS1}}}"},
			"canbus: slcan.device: a Modbus client of the plant uses /dev/ttyS1, too;"},
		{[]string{"source:", "sources: [{modbus: {listen: ':502'}}, {modbus: {listen: ':503'}}]"},
			"sources, entry 2: there is another modbus before it, and both would keep what they do in the same place in state_dir; keep one"},
		{[]string{"source:", "sources: [{modbus: {serial: {device: /dev/ttyS1}}}, {canbus: {slcan: {device: /dev/ttyS1}}}]"},
			"sources, entry 1: modbus: serial.device: source canbus uses /dev/ttyS1, too;"},
	} {
		if _, err := configured(t, tt.lines...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q:\n got %v\nwant %s", tt.lines, err, tt.want)
		}
	}
	for _, lines := range [][]string{
		{"source: {modbus: {serial: {device: /dev/ttyS1}}}", "battery: {reader: sunspec, modbus: {serial: {device: /dev/ttyS2}}}"},
		{"source: {canbus: {interface: can0}}", "battery: {reader: can, can: {interface: can0, profile: victron}}"}, // Linux shares it
		{"source:", "sources: [{modbus: {serial: {device: /dev/ttyS1}}}, {canbus: {interface: can0, allow_open: true}}]"},
	} {
		if _, err := configured(t, lines...); err != nil {
			t.Errorf("%q: %v", lines, err)
		}
	}
}

// A bus on which nobody has to show who he is says so, as plain HTTP does.
func TestOpenBusesWarn(t *testing.T) {
	for line, want := range map[string]string{
		"source: {modbus: {listen: ':502', allow_plain: true, allow: [127.0.0.1]}}": "modbus.allow_plain is true",
		"source: {canbus: {interface: can0, allow_open: true}}":                     "canbus.allow_open is true",
		"source: {modbus: {serial: {device: /dev/ttyS1}}}":                          "",
	} {
		a, err := configured(t, line)
		if err != nil {
			t.Fatal(err)
		}
		all := strings.Join(a.Warnings(), "\n")
		if want != "" && !strings.Contains(all, want) || want == "" && strings.Contains(all, "may push") {
			t.Errorf("%s: got the warnings %q, want %q", line, all, want)
		}
	}
}

// A configuration that is only checked leaves nothing behind.
func TestCheckKeepsOutOfTheInbox(t *testing.T) {
	a, err := configured(t, "source: {modbus: {listen: ':502'}}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a.cfg.StateDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory: got %v, want that it is not there", err)
	}
}

// Whoever asks on a bus hears what the gate says, and an update that waits does not notice.
func TestPrecheck(t *testing.T) {
	a, err := configured(t, "dwell: 10s")
	if err != nil {
		t.Fatal(err)
	}
	reading := func(soc string) {
		text := `{"time": "` + time.Now().UTC().Format(time.RFC3339Nano) + `", "valid": true, "soc": ` + soc + `, "temperature_min": 20, "temperature_max": 25, "current": 0}`
		if err := os.WriteFile(a.cfg.Battery.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.precheck(t.Context(), nil); ota.CodeOf(err) != ota.ErrBMSUnsafe {
		t.Errorf("without a reading: got %v, want BMS_UNSAFE", err)
	}
	reading("30.0")
	if err := a.precheck(t.Context(), nil); err != nil {
		t.Errorf("30.0 %%: got %v, want yes", err)
	}
	reading("29.9")
	refusal, ok := errors.AsType[*ota.Refusal](a.precheck(t.Context(), nil))
	if !ok || refusal.Code != ota.ErrBatteryLow || len(refusal.Causes) != 1 || refusal.Causes[0] != ota.CauseSoCLow {
		t.Errorf("29.9 %%: got %+v, want BATTERY_LOW because of the state of charge", refusal)
	}
	least := 40.0
	reading("35")
	if err := a.precheck(t.Context(), &ota.Manifest{Version: "1.1.0", Limits: ota.Limits{MinSoC: &least}}); ota.CodeOf(err) != ota.ErrBatteryLow {
		t.Errorf("35 %% and a release that wants 40 %%: got %v", err)
	}

	b, err := configured(t, "windows: ['mon 03:00 1m UTC']", "battery: {reader: none}")
	if err != nil {
		t.Fatal(err)
	}
	if now := time.Now().UTC(); now.Weekday() != time.Monday || now.Hour() != 3 {
		refusal, ok := errors.AsType[*ota.Refusal](b.precheck(t.Context(), nil))
		if !ok || len(refusal.Causes) != 1 || refusal.Causes[0] != ota.CauseWindow {
			t.Errorf("outside the window: got %+v", refusal)
		}
	}
}

// How an update goes is told to buses and servers, but no countdown that stands still, because
// the manager that counted is gone.
func TestCourseIsTold(t *testing.T) {
	a, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	a.snap = ota.Snapshot{Slot: "B", Status: ota.StatusRebooting, Update: &ota.Update{Version: "1.1.0", Digest: "d1", Size: 9},
		Course: ota.Course{Try: 2, SecondsLeft: 42, ImagesDone: 1}}
	if got, want := a.head().Course, (ota.Course{Try: 2, ImagesDone: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	a.snap.Update = nil
	if got := a.head().Course; got != (ota.Course{}) {
		t.Errorf("without an update: got %+v, want nothing", got)
	}
}

// Evidence is read from the disk only if it has grown.
func TestLastEvidenceWithoutAny(t *testing.T) {
	a, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.lastEvidence(); got != nil {
		t.Errorf("got %d bytes of evidence of no update", len(got))
	}
	if got := a.evidenceHash(); got != "" {
		t.Errorf("got hash %q of no evidence", got)
	}
}

// What a bus asks for is asked for again while there is no manager, and no longer than the agent runs.
func TestInstallForGivesUp(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	a, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	p := a.newPushed(requested(t, rel), nil, false)
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	a.installFor(ctx, &multi{}, named{name: "modbus", Source: p})
	if ctx.Err() == nil {
		t.Error("it was not asked again")
	}
	if got := asker(control.Peer{Bus: "modbus"}, "apply"); got.By != "modbus" {
		t.Errorf("evidence says %q asked, want modbus", got.By)
	}
	if err := p.Drop(); err != nil {
		t.Fatal(err)
	}
	a.installFor(t.Context(), &multi{}, named{name: "modbus", Source: p}) // there is nothing to be asked for
}

// requested is an inbox with a release whose installation was asked for.
func requested(t *testing.T, rel *otatest.SignedRelease) *inbox.Inbox {
	t.Helper()
	box, err := inbox.Open(inbox.Config{Dir: t.TempDir(), Verify: rel.Verify, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Close() })
	if _, err := box.Begin(inbox.Offer{Size: int64(len(rel.Bundle)), SHA256: sha256.Sum256(rel.Bundle)}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(box.Put(0, rel.Bundle), box.Finish()); err != nil {
		t.Fatal(err)
	}
	for changed := box.Changed(); box.State().Phase != inbox.Verified; changed = box.Changed() {
		<-changed
	}
	if err := box.Request(); err != nil {
		t.Fatal(err)
	}
	return box
}

// The manager hands over its oldest report until all sources have taken it. The bus hears of the
// later ones all the same, each once: otherwise an update that failed would look as if it were still
// to be installed.
func TestOutcomeBehindAnother(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	a, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	p := a.newPushed(requested(t, rel), nil, false)
	first := ota.Report{ID: "1", Digest: "another", Version: "1.0.9", Result: ota.Succeeded}
	second := ota.Report{ID: "2", Digest: rel.Manifest.Digest, Version: "1.1.0", Result: ota.Failed, Code: ota.ErrInternal}
	a.record.Store(&ota.Record{State: ota.Idle, Unsent: []ota.Report{first, second}})
	if err := p.Report(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	s := p.State()
	if s.Phase != inbox.Ended || s.Outcome == nil || s.Outcome.ID != "2" {
		t.Fatalf("phase %s, outcome %+v, want ended by report 2", s.Phase, s.Outcome)
	}
	for range 2 { // the server is still away
		if err := p.Report(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		if now := p.State(); now.Last.ID != "2" || !now.Changed.Equal(s.Changed) {
			t.Fatalf("told again: %+v", now.Last)
		}
	}
	a.installFor(t.Context(), &multi{}, named{name: "modbus", Source: p}) // nothing is asked for any more
	third := ota.Report{ID: "3", Digest: "third", Version: "1.2.0", Result: ota.Failed}
	if err := p.Report(t.Context(), third); err != nil || p.State().Last.ID != "3" { // of which the record knows nothing
		t.Errorf("got %v, last report %+v", err, p.State().Last)
	}
}

// Sources that cannot all be made are made again later, and an inbox has one owner at a time.
func TestInboxOfHalfTheSources(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := configured(t, "source:", "sources: [{modbus: {listen: '127.0.0.1:0'}}, {canbus: {interface: can0, allow_open: true}}, {https: {url: 'https://127.0.0.1:9', token_file: "+token+"}}]")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for range 20 {
		if _, err := a.newSources("1.0.0", false); err == nil {
			t.Fatal("the token is gone, and the sources were made")
		}
	}
	for range 1000 { // those that have ended need a moment to be gone
		runtime.Gosched()
	}
	if after := runtime.NumGoroutine(); after > before+5 {
		t.Errorf("%d goroutines, and %d after 20 sets that could not be made: their inboxes are still at work", before, after)
	}
}

// The gate is asked for masters and testers beside the manager, one after the other without a gap:
// that is not one call that takes too long, for which the watchdog would restart the device.
func TestOverlappingCallsAreNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &alive{limit: time.Minute}
		end := l.enter("asking the gate for a bus")
		for range 100 {
			time.Sleep(time.Second)
			next := l.enter("asking the gate for a bus")
			end()
			end = next
			if err := l.stuck(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute + 1)
		if err := l.stuck(); err == nil {
			t.Error("a call of more than a minute is not noticed")
		}
	})
}

// What cannot be asked now says nothing about a release: a transfer of hours does not fail
// because the bootloader did not answer once.
func TestJudgeOnABus(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 10)
	m := *rel.Manifest
	m.Product = "p"
	for _, tt := range []struct {
		name  string
		slots *pair
		want  error
	}{
		{"fits", &pair{boot: ota.Boot{Slot: "A", Other: "B", ID: "1"}}, nil},
		{"the bootloader does not answer", &pair{err: errors.New("EIO")}, ota.ErrNotNow},
	} {
		a := &Agent{cfg: Config{Device: Device{Product: "p"}}, slots: tt.slots}
		a.record.Store(&ota.Record{State: ota.Idle})
		if err := a.judgePushed(&m, "1.0.0", false); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		a.record.Store(&ota.Record{State: ota.Idle, Skipped: []ota.Skipped{{Digest: m.Digest, Reason: "it failed"}}})
		if err := a.judgePushed(&m, "1.0.0", false); !errors.Is(err, ota.ErrIncompatible) {
			t.Errorf("skipped: got %v, want %v", err, ota.ErrIncompatible)
		}
		if err := a.judgePushed(&m, "1.0.0", true); !errors.Is(err, tt.want) {
			t.Errorf("skipped, and who asks may overrule that: got %v, want %v", err, tt.want)
		}
	}
}

// A master that asks for the installation again and again makes the device look now and then: a plant
// may be suspended for each check.
func TestWakesOfABusAreSpaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := (&Agent{}).newPushed(requested(t, otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)), nil, false)
		m := &multi{wake: make(chan struct{}, 1), spacing: 10 * time.Minute, log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go m.passOn(ctx, named{name: "modbus", Source: p}, p.Wake())
		checks := 0
		for range 3600 {
			if err := p.Request(); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			select {
			case <-m.wake:
				checks++
			default:
			}
			time.Sleep(time.Second)
		}
		if checks < 9 || checks > 12 {
			t.Errorf("%d checks in an hour, want about ten", checks)
		}
	})
}
