package control_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
)

// Who waits for a command is not sent away because of the dwell time, but is
// when the battery says no, and is never told of an end that was not seen.
func TestFinish(t *testing.T) {
	dwell := &ota.Refusal{Reason: "safe for 0 s of 30 s"}
	snap := func(state ota.State, status ota.Status, code ota.ErrorCode, reason string) ota.Snapshot {
		return ota.Snapshot{Slot: "A", State: state, Status: status, Code: code, Reason: reason,
			Update: &ota.Update{Version: "1.0.1", Digest: "d1", RequiresReboot: true}}
	}
	with := func(s ota.Snapshot, change func(*ota.Snapshot)) ota.Snapshot {
		change(&s)
		return s
	}
	available := snap(ota.Available, ota.StatusUpdateAvailable, ota.ErrNone, "safe for 0 s of 30 s")
	fetching := snap(ota.Fetching, ota.StatusDownloading, ota.ErrNone, "")
	staged := snap(ota.Staged, ota.StatusReadyToApply, ota.ErrNone, "safe for 1 s of 30 s")
	rebooting := snap(ota.Activating, ota.StatusRebooting, ota.ErrNone, "")
	trial := snap(ota.Trial, ota.StatusTrial, ota.ErrNone, "")
	ended := func(r ota.Result, code ota.ErrorCode, reason string) ota.Snapshot {
		return ota.Snapshot{Slot: "A", State: ota.Idle, Last: &ota.Report{ID: "new", Version: "1.0.1", Result: r, Code: code, Reason: reason}}
	}
	for _, tt := range []struct {
		name   string
		cmd    control.Command
		first  error // what the command is answered with
		events []ota.Snapshot
		hangUp bool // the agent, after the events
		want   error
		text   string
	}{
		{name: "done at once", cmd: control.Install},
		{name: "battery at once", cmd: control.Install, first: &ota.Refusal{Code: ota.ErrBatteryLow, Reason: "22 %"}, want: ota.ErrBatteryLow, text: "22 %"},
		{name: "installed", cmd: control.Install, first: dwell, events: []ota.Snapshot{available, fetching, staged}},
		{name: "wrapped", cmd: control.RollBack, first: fmt.Errorf("goes back: %w", dwell), events: []ota.Snapshot{staged, rebooting, trial}},
		{name: "agent restarts", cmd: control.Apply, first: dwell, events: []ota.Snapshot{staged, {State: ota.Idle}, rebooting}, hangUp: true},
		{name: "agent stops", cmd: control.Apply, first: dwell, events: []ota.Snapshot{staged}, hangUp: true, want: ota.ErrStopped, text: "hung up"},
		{name: "restart is called off", cmd: control.Apply, first: dwell, events: []ota.Snapshot{rebooting, staged}, hangUp: true, want: ota.ErrStopped, text: "hung up"},
		{name: "battery later", cmd: control.Apply, first: dwell, events: []ota.Snapshot{staged, snap(ota.Staged, ota.StatusReadyToApply, ota.ErrBMSUnsafe, "47 °C")},
			want: ota.ErrNotNow, text: "not now: 47 °C"},
		{name: "no network", cmd: control.Install, first: dwell, events: []ota.Snapshot{fetching, snap(ota.Fetching, ota.StatusDownloading, ota.ErrConnectivity, "no route")},
			want: ota.ErrConnectivity, text: "install: no route"},
		{name: "failed", cmd: control.Install, first: dwell, events: []ota.Snapshot{fetching, ended(ota.Failed, ota.ErrValidation, "chunk 3")},
			want: ota.ErrValidation, text: "install: 1.0.1 failed: chunk 3"},
		{name: "aborted", cmd: control.Apply, first: dwell, events: []ota.Snapshot{staged, ended(ota.Aborted, ota.ErrNone, "")}, want: ota.ErrAborted, text: "apply 1.0.1: aborted"},
		{name: "proven meanwhile", cmd: control.Apply, first: dwell, events: []ota.Snapshot{ended(ota.Succeeded, ota.ErrNone, "")}},
		{name: "withdrawn", cmd: control.Install, first: dwell, events: []ota.Snapshot{available, {Slot: "A", State: ota.Idle}}, want: ota.ErrNoUpdate, text: "not at hand any more"},
		{name: "replaced", cmd: control.Install, first: dwell, events: []ota.Snapshot{available, with(available, func(s *ota.Snapshot) { s.Update = &ota.Update{Version: "1.0.2", Digest: "d2"} })},
			want: ota.ErrNotNow, text: "1.0.2 has taken the place"},
		{name: "no restart needed", cmd: control.Apply, first: dwell, events: []ota.Snapshot{staged, {Slot: "A", State: ota.Activating, Status: ota.StatusApplying,
			Reason: "takes effect at the next restart", Update: &ota.Update{Digest: "d1"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, c, _ := start(t)
			d.snap = ota.Snapshot{Slot: "A", Last: &ota.Report{ID: "old", Result: ota.Failed}}
			go func() { (<-d.given).end <- tt.first }()
			for i := range tt.events {
				if tt.events[i].Last == nil {
					tt.events[i].Last = d.snap.Last
				}
			}
			var seen []string
			at := 0
			res, err := c.Finish(t.Context(), tt.cmd, func(s control.Status) {
				seen = append(seen, s.Snapshot.Reason)
				switch {
				case at == 0: // the watcher is there, and what it saw first is not what is tested
					for _, s := range tt.events {
						d.hub.Publish(control.Event{Kind: control.KindStatus, Status: control.Status{Snapshot: s}})
					}
					if tt.hangUp {
						d.hub.Close()
					}
				}
				at++
			})
			if tt.want == nil {
				if err != nil || !res.Ended {
					t.Errorf("got %+v, %v, want an end", res, err)
				}
			} else if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
			if len(tt.events) > 0 && len(seen) != len(tt.events)+1 {
				t.Errorf("told %d times of %q, want %d", len(seen), seen, len(tt.events)+1)
			}
		})
	}
}

// The hint to try a release again is for devices that have tried it.
func TestSkippedHint(t *testing.T) {
	d, c, _ := start(t)
	for skipped, want := range map[string]string{"": "", "1.0.0": "", "1.0.1": "install takes a release again"} {
		d.mu.Lock()
		d.snap = ota.Snapshot{Latest: "1.0.1", Skipped: []ota.Skipped{{Version: skipped}}}
		d.mu.Unlock()
		go func() { (<-d.given).end <- fmt.Errorf("check: %w", ota.ErrNoUpdate) }()
		_, err := c.Command(t.Context(), control.Check, true)
		e, ok := errors.AsType[*control.Error](err)
		if !ok || !strings.HasPrefix(e.Hint, want) || want == "" && e.Hint != "" {
			t.Errorf("skipped %q: got %#v, want the hint %q", skipped, err, want)
		}
	}
}
