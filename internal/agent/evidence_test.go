package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/evidence"
)

// read returns the evidence of the only update there was, and its lines.
func (s *site) evidence(t *testing.T) (verdicts []evidence.Verdict, lines []evidence.Line) {
	t.Helper()
	dir := filepath.Join(s.dir, "state", "evidence")
	verdicts, err := evidence.VerifyDir(durable.OS{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range verdicts {
		data, err := os.ReadFile(filepath.Join(dir, v.Name))
		if err != nil {
			t.Fatal(err)
		}
		more, err := evidence.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, more...)
	}
	return verdicts, lines
}

func decode[T any](t *testing.T, l evidence.Line) (v T) {
	t.Helper()
	if err := l.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// One refusal, a person's consent, a yes, a restart, a trial that fails and the way
// back leave one file that tells exactly that, in this order.
func TestEvidence(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	sick := filepath.Join(s.dir, "sick")
	s.config += "health:\n  - {name: plant, command: \"! test -e " + sick + "\"}\n" +
		"hooks: {suspend: {command: 'true'}, resume: {command: 'true'}}\n"
	s.config = strings.Replace(s.config, "automatic_update: true", "automatic_update: false", 1)
	s.setSoC(22)
	s.publish("1.0.3", firmware("1.0.3", ": > "+sick, 10_000))
	a, stop := s.start()
	wait(t, a, "the offer", func(s ota.Snapshot) bool { return s.State == ota.Available })
	client, err := control.Dial(filepath.Join(s.dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.Command(t.Context(), control.Apply, false)
	wait(t, a, "BATTERY_LOW", func(s ota.Snapshot) bool { return s.Code == ota.ErrBatteryLow })
	min := 35.0
	if _, err := client.SetThresholds(t.Context(), control.ThresholdsChange{MinSoC: &min}); err != nil {
		t.Fatal(err)
	}
	wait(t, a, "the new limit", func(s ota.Snapshot) bool { return strings.Contains(s.Reason, "at least 35 %") })
	s.setSoC(60)
	wait(t, a, "the way back", ends("1.0.3", ota.RolledBack))
	stop()

	verdicts, lines := s.evidence(t)
	if len(verdicts) != 1 || !verdicts[0].OK() || !verdicts[0].Ended || verdicts[0].How != string(ota.RolledBack) {
		t.Fatalf("got %+v, want one file that ended with a rollback", verdicts)
	}
	var story []string
	say := func(what string) { // repeats are told once
		if len(story) == 0 || story[len(story)-1] != what {
			story = append(story, what)
		}
	}
	for _, l := range lines {
		switch l.Kind {
		case evidence.KindState:
			st := decode[evidence.State](t, l)
			say(string(st.From) + " -> " + string(st.To))
		case evidence.KindGate:
			g := decode[evidence.Gate](t, l)
			switch {
			case g.Yes:
				say("yes " + string(g.Moment))
				if g.Thresholds == nil || g.Thresholds.MinSoC != 35 || g.Battery != "yes" || len(g.Signals) != 4 || g.Signals[0].Value < 59 || g.Signals[0].AgeMS == nil {
					t.Errorf("line %d: got %s, want what the battery was like and by which limits", l.Seq, l.Raw)
				}
			case g.Code == "BATTERY_LOW":
				say("battery low")
				if !strings.Contains(g.Reason, "22.0 %, want at least 3") || g.Signals[0].Value != 22 {
					t.Errorf("line %d: got %s, want the numbers", l.Seq, l.Raw)
				}
			}
		case evidence.KindAsked:
			k := decode[evidence.Asked](t, l)
			say(k.For + " by " + k.By)
			if k.UID == nil || int(*k.UID) != os.Getuid() || k.PID == nil || int(*k.PID) != os.Getpid() {
				t.Errorf("line %d: got %s, want this process", l.Seq, l.Raw)
			}
		case evidence.KindManifest:
			m := decode[evidence.Manifest](t, l)
			say("manifest " + m.Version)
			if len(m.Signers) != 1 || m.Threshold != 1 || m.From != "1.0.0" || len(m.Images) != 1 || m.Images[0].Size < 10_000 || len(m.Sources) != 1 {
				t.Errorf("line %d: got %s, want who signed what", l.Seq, l.Raw)
			}
		case evidence.KindBooted:
			b := decode[evidence.Booted](t, l)
			say("booted " + b.Slot + " " + b.Version)
		case evidence.KindQuiesce, evidence.KindResume:
			say(string(l.Kind) + " " + decode[evidence.Action](t, l).Phase)
		case evidence.KindBootloader:
			b := decode[evidence.Bootloader](t, l)
			say(b.Do + " " + b.Slot + " " + b.Phase)
		case evidence.KindHealth:
			h := decode[evidence.Health](t, l)
			if !h.OK {
				say("sick")
				if len(h.Checks) != 1 || h.Checks[0].Name != "plant" || h.Checks[0].OK {
					t.Errorf("line %d: got %s, want the check", l.Seq, l.Raw)
				}
			}
		case evidence.KindResult:
			say("result " + string(decode[evidence.Result](t, l).Report.Result))
		case evidence.KindThresholds:
			say("thresholds")
		default:
			say(string(l.Kind))
		}
	}
	want := []string{"opened", "booted A 1.0.0", "manifest 1.0.3", "idle -> available", "apply by control socket", "battery low",
		"thresholds", "battery low", "yes before writing", "available -> fetching", "fetching -> staged", "yes before the restart",
		"staged -> activating", "quiesce begun", "quiesce done", "try B begun", "try B done", "yes at the restart", "restart",
		"booted B 1.0.3", "activating -> trial", "sick", "trial -> rollback", "try A begun", "try A done", "restart",
		"booted A 1.0.0", "mark good A begun", "mark good A done", "resume begun", "resume done",
		"rollback -> idle", "result rolled back", "end"}
	if got, want := strings.Join(story, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("got\n%s\n\nwant\n%s", got, want)
	}
}

// Without evidence no update begins, and as soon as it can be written one does.
func TestNoEvidenceNoUpdate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.publish("1.0.1", firmware("1.0.1", "", 10_000))
	if err := os.Mkdir(filepath.Join(s.dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	inTheWay := s.write("state/evidence", nil) // a file where the folder should be
	a, _ := s.start()
	got := wait(t, a, "the refusal", func(s ota.Snapshot) bool { return strings.Contains(s.Reason, "evidence cannot be written") })
	if got.State != ota.Available {
		t.Errorf("got %+v, want that nothing is written", got)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "slots", "b", "controller.img")); err == nil {
		t.Error("slot B was written although nobody could show why")
	}
	if w := strings.Join(a.Warnings(), "\n"); !strings.Contains(w, "no evidence is kept") {
		t.Errorf("got warnings %q, want one of it", w)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	wait(t, a, "success", ends("1.0.1", ota.Succeeded))
	if w := strings.Join(a.Warnings(), "\n"); w != "" {
		t.Errorf("got warnings %q, want none any more", w)
	}
	verdicts, lines := s.evidence(t)
	if len(verdicts) != 1 || !verdicts[0].OK() || lines[1].Kind != evidence.KindGap {
		t.Errorf("got %+v, want one file whose second line says that some are missing", verdicts)
	}
}

// An agent that finds an attempt without an end writes it.
func TestEvidenceOfEarlierAgent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := filepath.Join(s.dir, "state", "evidence")
	left := evidence.Open(evidence.Config{Dir: dir})
	if _, err := left.Begin("0123456789abcdef", "0.9.0"); err != nil {
		t.Fatal(err)
	}
	left.Close()
	s.publish("1.0.1", firmware("1.0.1", "", 10_000))
	a, stop := s.start()
	wait(t, a, "success", ends("1.0.1", ota.Succeeded))
	stop()
	verdicts, _ := s.evidence(t)
	if len(verdicts) != 2 || !verdicts[0].OK() || !verdicts[1].OK() || !strings.HasPrefix(verdicts[0].How, "given up") || verdicts[1].How != "succeeded" {
		t.Errorf("got %+v, want two files that end", verdicts)
	}
}
