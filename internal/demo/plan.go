package demo

import (
	"slices"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

const (
	product      = "bess-100"
	oldVersion   = "1.0.0"
	goodVersion  = "1.0.1"
	brokenOne    = "1.0.2-broken"
	canary       = "canary"
	pollInterval = 30 * time.Second
)

// Planned is one device of the demo, and where it must end.
type Planned struct {
	Device string `json:"device"`
	Group  string `json:"group"`
	Story  string `json:"story"` // what is special, for people
	Want   End    `json:"expected"`

	soc         float64 // %
	temperature float64 // °C, of the warmest cell
	charges     bool    // after it has waited for a while
}

// End is where a device stands in the end.
type End struct {
	Version string        `json:"version"`           // that runs
	Result  ota.Result    `json:"result,omitempty"`  // of its last update; empty: there was none
	Waits   ota.ErrorCode `json:"waits,omitempty"`   // what it waits for; 0: for nothing
	Release string        `json:"release,omitempty"` // that the last update was about
}

// Plan is what happens.
func Plan() []Planned {
	done := End{Version: goodVersion, Result: ota.Succeeded, Release: goodVersion}
	return []Planned{
		{Device: "bess-01", Group: api.DefaultGroup, Story: "updates", Want: done, soc: 64, temperature: 24},
		{Device: "bess-02", Group: api.DefaultGroup, Story: "updates", Want: done, soc: 81, temperature: 27},
		{Device: "bess-03", Group: api.DefaultGroup, Story: "has 22 % charge, waits, charges, updates", Want: done, soc: 22, temperature: 25, charges: true},
		{Device: "bess-04", Group: api.DefaultGroup, Story: "is at 47 °C and must not update", soc: 58, temperature: 47,
			Want: End{Version: oldVersion, Waits: ota.ErrBMSUnsafe}},
		{Device: "bess-05", Group: canary, Story: "gets a release that does not start, and comes back", soc: 70, temperature: 26,
			Want: End{Version: oldVersion, Result: ota.Failed, Release: brokenOne}},
		{Device: "bess-06", Group: api.DefaultGroup, Story: "updates", Want: done, soc: 45, temperature: 22},
	}
}

// Outcome is what became of a device.
type Outcome struct {
	Planned
	Got    End    `json:"actual"`
	Status string `json:"status"`
	Reason string `json:"reason,omitempty"` // why it waits, or why its update failed
	OK     bool   `json:"ok"`
}

// Summary is how the demo ended.
type Summary struct {
	OK      bool      `json:"ok"`
	Seconds float64   `json:"seconds"`
	Devices []Outcome `json:"devices"`
}

// judge compares what the server knows of a device with the plan.
func (p *Planned) judge(d *api.DeviceDetail) Outcome {
	o := Outcome{Planned: *p, Got: End{Version: d.Version}, Status: d.Status.String()}
	if len(d.Reports) > 0 {
		r := &d.Reports[0]
		o.Got.Result, o.Got.Release, o.Reason = r.Result, r.Version, r.Reason
	} else if d.Code != ota.ErrNone {
		o.Got.Waits, o.Reason = d.Code, d.Reason
	}
	// One report for one update, and none for an update that never was.
	reports := 1
	if p.Want.Result == "" {
		reports = 0
	}
	ids := map[string]bool{}
	evident := true
	for _, r := range d.Reports {
		ids[r.ID] = true
		evident = evident && r.Evidence != ""
	}
	skips := slices.ContainsFunc(d.Skipped, func(s ota.Skipped) bool { return s.Version == brokenOne })
	o.OK = o.Got == p.Want && d.Group == p.Group && len(d.Reports) == reports && len(ids) == reports && evident &&
		skips == (p.Want.Result == ota.Failed)
	return o
}
