package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
)

func TestCounters(t *testing.T) {
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	c := newCounters(start)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	old := &ota.Report{ID: "before", Result: ota.RolledBack}
	c.found(&ota.Record{Last: old})
	c.saved(&ota.Record{Last: old}) // ended before this agent was started

	c.checked(ota.ErrNoUpdate)
	c.checked(context.Canceled)
	c.checked(errors.New("no route"))

	update := &ota.Update{Digest: "d"}
	c.observed(ota.Snapshot{Status: ota.StatusIdle}, at(10))
	c.observed(ota.Snapshot{Status: ota.StatusUpdateAvailable, Code: ota.ErrBatteryLow}, at(20))
	c.observed(ota.Snapshot{Status: ota.StatusUpdateAvailable, Code: ota.ErrBatteryLow}, at(25)) // the same refusal goes on
	c.observed(ota.Snapshot{Status: ota.StatusUpdateAvailable, Code: ota.ErrBMSUnsafe}, at(30))
	c.saved(&ota.Record{State: ota.Available, Attempt: "1"}) // waits, and has not begun
	c.saved(&ota.Record{State: ota.Fetching, Attempt: "1"})
	c.saved(&ota.Record{State: ota.Staged, Attempt: "1"})
	c.observed(ota.Snapshot{Status: ota.StatusDownloading, Update: update, Done: 600}, at(40))
	c.observed(ota.Snapshot{Status: ota.StatusDownloading, Update: update, Done: 1000}, at(50))
	c.observed(ota.Snapshot{Status: ota.StatusDownloading, Update: update, Done: 100}, at(60)) // begun again
	c.saved(&ota.Record{Last: &ota.Report{ID: "1", Result: ota.Succeeded}})
	c.saved(&ota.Record{Last: &ota.Report{ID: "1", Result: ota.Succeeded}})
	c.observed(ota.Snapshot{Status: ota.StatusIdle}, at(60))

	if c.checks != 3 || c.failed != 1 || c.begun != 1 || c.bytes != 1100 {
		t.Errorf("%d checks, %d failed, %d attempts, %d bytes; want 3, 1, 1, 1100", c.checks, c.failed, c.begun, c.bytes)
	}
	if diff := cmp.Diff(map[string]int{"succeeded": 1}, c.results); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{ota.ErrBatteryLow.Name(): 1, ota.ErrBMSUnsafe.Name(): 1}, c.refusals); diff != "" {
		t.Errorf("refusals (-want +got):\n%s", diff)
	}
	want := map[string]float64{ota.StatusIdle.String(): 20, ota.StatusUpdateAvailable.String(): 20, ota.StatusDownloading.String(): 20}
	if diff := cmp.Diff(want, c.seconds); diff != "" {
		t.Errorf("seconds (-want +got):\n%s", diff)
	}
}

// An agent that starts in the middle of an update has not begun it, nor written what is
// written already: who adds up the figures of all starts must not count twice.
func TestCountersAfterARestart(t *testing.T) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	c := newCounters(now)
	trial := &ota.Record{State: ota.Trial, Attempt: "1", Digest: "d"}
	c.found(trial)
	c.saved(trial)
	c.observed(ota.Snapshot{State: ota.Trial, Status: ota.StatusTrial, Update: &ota.Update{Digest: "d"}, Done: 1000}, now)
	c.observed(ota.Snapshot{State: ota.Idle, Status: ota.StatusIdle}, now)
	if c.begun != 0 || c.bytes != 0 {
		t.Errorf("%d attempts, %d bytes; want none of either", c.begun, c.bytes)
	}
	c.observed(ota.Snapshot{State: ota.Fetching, Update: &ota.Update{Digest: "e"}, Done: 300}, now)
	c.saved(&ota.Record{State: ota.Fetching, Attempt: "2"})
	if c.begun != 1 || c.bytes != 300 {
		t.Errorf("%d attempts, %d bytes; want 1 and 300", c.begun, c.bytes)
	}
}
