package agent

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
)

// counters count what the agent does, for report_diagnostics.
type counters struct {
	mu       sync.Mutex
	checks   int
	failed   int
	attempts map[string]bool // that were seen in the record; bounded by the life of the process
	begun    int             // of them, while this agent ran
	results  map[string]int
	reported map[string]bool // reports by id
	refusals map[string]int
	refused  ota.ErrorCode // the gate's last word, to count beginnings
	seconds  map[string]float64
	status   ota.Status
	since    time.Time
	bytes    int64
	last     struct { // progress of the update in hand
		digest string
		done   int64
	}
}

func newCounters(now time.Time) *counters {
	return &counters{attempts: map[string]bool{}, results: map[string]int{}, reported: map[string]bool{}, refusals: map[string]int{},
		seconds: map[string]float64{}, since: now}
}

// checked counts a check.
func (c *counters) checked(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checks++
	if err != nil && !errors.Is(err, ota.ErrNoUpdate) && !errors.Is(err, context.Canceled) {
		c.failed++
	}
}

// saved counts what a record tells: attempts that began, and updates that ended.
func (c *counters) saved(r *ota.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Attempt != "" && r.State != ota.Available && !c.attempts[r.Attempt] {
		c.attempts[r.Attempt] = true
		c.begun++
	}
	if r.Last != nil && !c.reported[r.Last.ID] {
		c.reported[r.Last.ID] = true
		c.results[string(r.Last.Result)]++
	}
}

// found notes what was before this agent was started: how the last update ended, and the
// one that goes on.
func (c *counters) found(r *ota.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Last != nil && len(c.reported) == 0 {
		c.reported[r.Last.ID] = true
	}
	if r.Attempt != "" && r.State != ota.Available {
		c.attempts[r.Attempt] = true
	}
}

// written are the states in which nothing of an update is left to write.
var written = []ota.State{ota.Staged, ota.Activating, ota.Trial, ota.Soak, ota.RollBack}

// observed takes a look at what the manager does.
func (c *counters) observed(s ota.Snapshot, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := now.Sub(c.since).Seconds(); d > 0 {
		c.seconds[c.status.String()] += d
	}
	c.status, c.since = s.Status, now
	refused := ota.ErrNone
	if s.Code == ota.ErrBatteryLow || s.Code == ota.ErrBMSUnsafe {
		refused = s.Code
	}
	if refused != c.refused && refused != ota.ErrNone {
		c.refusals[refused.Name()]++
	}
	c.refused = refused
	if s.Update != nil {
		switch {
		case c.last.digest == "" && slices.Contains(written, s.State): // before this agent was started
			c.last.digest, c.last.done = s.Update.Digest, s.Done
		case s.Update.Digest != c.last.digest || s.Done < c.last.done:
			c.last.digest, c.last.done = s.Update.Digest, 0
		}
		c.bytes += s.Done - c.last.done
		c.last.done = s.Done
	}
}

// metrics is somebody who keeps metrics.
type metrics interface {
	PutDiagnostics(control.Diagnostics)
	// Held returns the lines lost so far, and the bytes that wait to be sent.
	Held() (lost, bytes int64)
	Name() string
}

var _ control.Diagnoser = (*Agent)(nil)

// Diagnostics implements [control.Diagnoser].
func (a *Agent) Diagnostics(context.Context) control.Diagnostics {
	now, s := time.Now(), a.Snapshot()
	a.counters.observed(s, now)
	d := control.Diagnostics{Time: now, Device: a.cfg.Device.ID, Agent: a.cfg.Version, Uptime: now.Sub(a.started).Seconds(),
		Running: s.Running, Slot: s.Slot, Status: s.Status, Code: s.Code, Unsent: s.Unsent,
		Results: map[string]int{}, Refusals: map[string]int{}, Seconds: map[string]float64{}}
	c := a.counters
	c.mu.Lock()
	d.Checks, d.ChecksFailed, d.Attempts, d.Bytes = c.checks, c.failed, c.begun, c.bytes
	for k, v := range c.results {
		d.Results[k] = v
	}
	for k, v := range c.refusals {
		d.Refusals[k] = v
	}
	for k, v := range c.seconds {
		d.Seconds[k] = v
	}
	c.mu.Unlock()
	a.mu.Lock()
	if a.readErr == nil {
		d.Readings = signals(a.reading)
	}
	a.mu.Unlock()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	d.Memory = m.Sys
	for _, to := range a.metrics {
		lost, held := to.Held()
		d.LogsLost, d.LogsHeld = d.LogsLost+lost, d.LogsHeld+held
	}
	return d
}

// ReportDiagnostics implements [control.Diagnoser]: report_diagnostics of the
// specification.
func (a *Agent) ReportDiagnostics(ctx context.Context) control.Diagnostics {
	d := a.Diagnostics(ctx)
	a.log.Info("diagnostics", "uptime", d.Uptime, "running", d.Running, "slot", d.Slot, "status", d.Status, "checks", d.Checks, "checks_failed", d.ChecksFailed,
		"attempts", d.Attempts, "results", d.Results, "refusals", d.Refusals, "bytes", d.Bytes, "unsent", d.Unsent, "memory", d.Memory)
	d.Reported = []string{"log"}
	for _, to := range a.metrics {
		to.PutDiagnostics(d)
		d.Reported = append(d.Reported, to.Name())
	}
	return d
}
