package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/evidence"
)

// newWitnessed returns a witness without a manager, and the folder of its evidence.
func newWitnessed(t *testing.T) (*witness, string) {
	t.Helper()
	verify := false
	a := &Agent{cfg: Config{StateDir: t.TempDir(), VerifySignature: &verify}, log: slog.New(slog.DiscardHandler)}
	a.alive.limit = time.Hour
	a.witness = newWitness(a)
	t.Cleanup(a.witness.log.Close)
	return a.witness, a.evidenceDir()
}

// noSlots are slots that only count what they are told; a fake.
type noSlots struct {
	ota.Slots
	told []string
}

func (s *noSlots) Try(context.Context, string) error { s.told = append(s.told, "try"); return nil }
func (s *noSlots) MarkGood(context.Context) error    { s.told = append(s.told, "mark good"); return nil }
func (s *noSlots) Reboot(context.Context) error      { s.told = append(s.told, "restart"); return nil }

// From the restart on nothing waits for evidence; before it a yes without is a no.
func TestNoEvidenceOnTrial(t *testing.T) {
	w, dir := newWitnessed(t)
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // where the folder should be
		t.Fatal(err)
	}
	slots := &noSlots{}
	called := 0
	count := func(context.Context) error { called++; return nil }
	c := w.watch(ota.Config{Slots: slots, Store: fakeStore{}, Healthy: count, Symptom: count,
		Gate:  func(context.Context, *ota.Manifest, ota.Moment) error { return nil },
		Hooks: ota.Hooks{Suspend: count, Resume: count}})
	for state, blocks := range map[ota.State]bool{ota.Available: true, ota.Fetching: true, ota.Staged: true, ota.Activating: true,
		ota.Trial: false, ota.Soak: false, ota.RollBack: false} {
		if err := c.Store.Save(ota.Record{State: state, Attempt: "a1", Release: &ota.Manifest{Version: "1.1.0"}}); err != nil {
			t.Errorf("%s: the record was not saved: %v", state, err)
		}
		err := c.Gate(t.Context(), nil, ota.AtRestart)
		if blocked := errors.Is(err, ota.ErrNotNow); blocked != blocks || blocks && !strings.Contains(err.Error(), "evidence cannot be written") {
			t.Errorf("%s: got %v, want a refusal %v", state, err, blocks)
		}
	}
	for name, f := range map[string]func() error{
		"healthy":   func() error { return c.Healthy(t.Context()) },
		"symptom":   func() error { return c.Symptom(t.Context()) },
		"quiesce":   func() error { return c.Hooks.Suspend(t.Context()) },
		"resume":    func() error { return c.Hooks.Resume(t.Context()) },
		"try":       func() error { return c.Slots.Try(t.Context(), "A") },
		"mark good": func() error { return c.Slots.MarkGood(t.Context()) },
		"restart":   func() error { return c.Slots.Reboot(t.Context()) },
	} {
		if err := f(); err != nil {
			t.Errorf("%s: got %v, want that it goes on", name, err)
		}
	}
	if called != 4 || len(slots.told) != 3 {
		t.Errorf("%d of 4 and %d of 3 were called", called, len(slots.told))
	}
}

// A no stays the no that it was, whatever becomes of its line.
func TestRefusalIsPassedOn(t *testing.T) {
	w, dir := newWitnessed(t)
	want := &ota.Refusal{Code: ota.ErrBatteryLow, Reason: "state of charge 22.0 %, want at least 30 %"}
	c := w.watch(ota.Config{Slots: &noSlots{}, Store: fakeStore{}, Gate: func(context.Context, *ota.Manifest, ota.Moment) error { return want }})
	for _, broken := range []bool{false, true} {
		if broken {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Store.Save(ota.Record{State: ota.Staged, Attempt: "a1", Release: &ota.Manifest{Version: "1.1.0"}}); err != nil {
			t.Fatal(err)
		}
		if err := c.Gate(t.Context(), nil, ota.AtRestart); err != error(want) {
			t.Errorf("broken %v: got %v, want %v", broken, err, want)
		}
	}
}

// A record that cannot be saved is no change of state, and the lines say so.
func TestRecordNotSaved(t *testing.T) {
	w, dir := newWitnessed(t)
	release := &ota.Manifest{Version: "1.1.0"}
	bad := errors.New("no space left")
	c := w.watch(ota.Config{Slots: &noSlots{}, Store: fakeStore{bad}})
	if err := c.Store.Save(ota.Record{State: ota.Available, Attempt: "a1", Release: release}); err != bad {
		t.Fatalf("got %v, want %v", err, bad)
	}
	lines := linesIn(t, dir)
	var s evidence.State
	if err := lines[len(lines)-1].Decode(&s); err != nil || s.Error != "no space left" || s.To != ota.Available {
		t.Errorf("got %s, want the error", lines[len(lines)-1].Raw)
	}
}

// fakeStore is a store that forgets, and can fail; a fake.
type fakeStore struct{ err error }

func (s fakeStore) Load() (ota.Record, error) { return ota.Record{}, nil }
func (s fakeStore) Save(ota.Record) error     { return s.err }

func linesIn(t *testing.T, dir string) []evidence.Line {
	t.Helper()
	names, err := evidence.List(durable.OS{}, dir)
	if err != nil || len(names) == 0 {
		t.Fatalf("got %q, %v, want a file", names, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, names[len(names)-1]))
	if err != nil {
		t.Fatal(err)
	}
	lines, err := evidence.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// What was asked for before there was an attempt is in the evidence of the attempt
// that it caused, with the limits that were changed however long ago.
func TestAskedBefore(t *testing.T) {
	w, dir := newWitnessed(t)
	w.asked(control.Peer{Known: true, UID: 4242, PID: 17}, control.Install)
	w.changed(control.Peer{}, bms.Default(), bms.Default())
	w.mu.Lock()
	w.waiting[1].at = time.Now().Add(-24 * time.Hour)
	w.waiting = append(w.waiting, waiting{evidence.KindAsked, evidence.Asked{For: "check"}, time.Now().Add(-time.Hour)})
	w.mu.Unlock()
	c := w.watch(ota.Config{Slots: &noSlots{}, Store: fakeStore{}})
	if err := c.Store.Save(ota.Record{State: ota.Available, Attempt: "a1", Release: &ota.Manifest{Version: "1.1.0"}}); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, l := range linesIn(t, dir) {
		kinds = append(kinds, string(l.Kind))
		var k evidence.Asked
		if l.Kind == evidence.KindAsked {
			if err := l.Decode(&k); err != nil || k.For != "install" || k.UID == nil || *k.UID != 4242 || *k.PID != 17 || k.At.IsZero() {
				t.Errorf("got %s, want who asked, and when", l.Raw)
			}
		}
	}
	if got, want := strings.Join(kinds, " "), "opened manifest asked thresholds state"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A newer offer takes the place of one that waits: two files, both with an end.
func TestReplaced(t *testing.T) {
	w, dir := newWitnessed(t)
	c := w.watch(ota.Config{Slots: &noSlots{}, Store: fakeStore{}})
	for _, r := range []ota.Record{
		{State: ota.Available, Attempt: "a1", Release: &ota.Manifest{Version: "1.1.0"}},
		{State: ota.Available, Attempt: "a2", Release: &ota.Manifest{Version: "1.2.0"}},
		{State: ota.Idle, Last: &ota.Report{ID: "a2", Result: ota.Aborted}},
		// The bootloader goes back long after.
		{State: ota.Idle, Last: &ota.Report{ID: "late-0-1", Version: "1.2.0", Result: ota.Lost}},
	} {
		if err := c.Store.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	all, err := evidence.VerifyDir(durable.OS{}, dir)
	if err != nil || len(all) != 3 {
		t.Fatalf("got %d files, %v, want 3", len(all), err)
	}
	for i, how := range []string{"given up", "aborted", "lost"} {
		if v := all[i]; !v.OK() || !v.Ended || !strings.HasPrefix(v.How, how) {
			t.Errorf("file %d: got %+v, want that it ends: %s", i, v, how)
		}
	}
}

// What a reading is like is in the line: also of other instruments, and also if a
// limit is no number that JSON knows.
func TestDescribe(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	r := bms.Measured(55, 20, 25, -3, now.Add(-2*time.Second))
	r.Source, r.Mode, r.Alarms, r.Beat = "bms", bms.ModeStandby, []string{"fan"}, &bms.Beat{Count: 7}
	other := bms.Measured(54, 20, 25, -3, now.Add(-time.Second))
	other.Source = "converter"
	r.Others = []bms.Reading{other}
	var g evidence.Gate
	describe(&g, &bms.Decision{At: now, Reading: r, Thresholds: bms.Default()})
	if len(g.Signals) != 8 || g.Signals[0].Source != "bms" || *g.Signals[0].AgeMS != 2000 || g.Signals[4].Source != "converter" || *g.Signals[4].AgeMS != 1000 {
		t.Errorf("got %+v, want four signals of each, with their ages", g.Signals)
	}
	if g.Mode != "standby" || len(g.Alarms) != 1 || g.Beat == nil || g.Beat.Count != 7 || !g.Valid || g.Battery != "yes" {
		t.Errorf("got %+v, want all of the reading", g)
	}
	if j, err := json.Marshal(g); err != nil || !strings.Contains(string(j), `"MinSoC":30`) {
		t.Errorf("got %s, %v, want all limits", j, err)
	}
}

// slowDisk is a disk whose syncs take their time; a fake.
type slowDisk struct {
	durable.OS
	takes *time.Duration
}

type slowFile struct {
	durable.File
	takes *time.Duration
}

func (d slowDisk) OpenFile(name string, flag int, mode os.FileMode) (durable.File, error) {
	f, err := d.OS.OpenFile(name, flag, mode)
	return slowFile{f, d.takes}, err
}

func (f slowFile) Sync() error {
	time.Sleep(*f.takes)
	return f.File.Sync()
}

// TestSlowEvidenceOfTheRestart: a line that took its time makes the gate's yes an old
// one, and then there is no restart. A way back does not wait for that.
func TestSlowEvidenceOfTheRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dir := newWitnessed(t)
		var takes time.Duration
		w.log = evidence.Open(evidence.Config{FS: slowDisk{takes: &takes}, Dir: dir})
		slots := &noSlots{}
		c := w.watch(ota.Config{Slots: slots, Store: fakeStore{}})
		for _, tt := range []struct {
			state    ota.State
			takes    time.Duration
			restarts bool
		}{{ota.Activating, 0, true}, {ota.Activating, time.Second, true}, {ota.Activating, 1001 * time.Millisecond, false}, {ota.RollBack, time.Minute, true}} {
			takes, slots.told = 0, nil
			if err := c.Store.Save(ota.Record{State: tt.state, Attempt: "a1", Release: &ota.Manifest{Version: "1.1.0"}}); err != nil {
				t.Fatal(err)
			}
			takes = tt.takes
			err := c.Slots.Reboot(t.Context())
			if (err == nil) != tt.restarts || (len(slots.told) == 1) != tt.restarts {
				t.Errorf("%s, %v: got %v and %v, want a restart %v", tt.state, tt.takes, slots.told, err, tt.restarts)
			}
		}
		takes = 0
	})
}
