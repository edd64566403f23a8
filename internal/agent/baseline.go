package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/internal/durable"
)

// This file compares the battery after the restart with what it was before.

const (
	baselineFile = "baseline.json"
	maxBaseline  = 256 << 10 // bytes
)

// baseline is the battery as it was when the gate allowed a restart. Names in its
// JSON never change.
type baseline struct {
	Format  int             `json:"format"` // 1
	Digest  string          `json:"digest"` // of the release that was restarted into
	Reading json.RawMessage `json:"reading"`
}

func (a *Agent) baselinePath() string { return filepath.Join(a.cfg.StateDir, baselineFile) }

// keepBaseline is asked after the gate has said yes to the restart into m. Without
// what the battery was, nobody can tell afterwards whether it is that again, so that
// an error is a refusal.
func (a *Agent) keepBaseline(m *ota.Manifest) error {
	if !a.comparesBaseline() {
		return nil
	}
	r, err := a.witness.allowed() // not what was read for display since
	if err == nil {
		err = a.writeBaseline(m, r)
	}
	if err != nil {
		return &ota.Refusal{Reason: fmt.Sprintf("what the battery is like now cannot be kept, to be compared after the restart: %v", err)}
	}
	return nil
}

func (a *Agent) writeBaseline(m *ota.Manifest, r bms.Reading) error {
	reading, err := bms.EncodeReading(r)
	if err != nil {
		return err
	}
	data, err := json.Marshal(baseline{Format: 1, Digest: m.Digest, Reading: reading})
	if err != nil {
		return err
	}
	return durable.WriteFile(durable.OS{}, a.baselinePath(), data, 0o600)
}

var errNoBaseline = errors.New("there is nothing to compare with")

// readBaseline returns what was kept for the release with this digest.
func (a *Agent) readBaseline(digest string) (bms.Reading, error) {
	data, err := durable.ReadFile(durable.OS{}, a.baselinePath(), maxBaseline)
	if errors.Is(err, fs.ErrNotExist) {
		return bms.Reading{}, errNoBaseline
	}
	if err != nil {
		return bms.Reading{}, err
	}
	var b baseline
	if err := json.Unmarshal(data, &b); err != nil {
		return bms.Reading{}, fmt.Errorf("%s: %w", a.baselinePath(), err)
	}
	if b.Format != 1 {
		return bms.Reading{}, fmt.Errorf("%s: format %d is not known here", a.baselinePath(), b.Format)
	}
	if b.Digest != digest {
		return bms.Reading{}, errNoBaseline
	}
	return bms.DecodeReading(b.Reading)
}

// comparesBaseline reports whether a check is configured that needs the baseline.
func (a *Agent) comparesBaseline() bool {
	for _, list := range [][]Health{a.cfg.Health, a.cfg.Soak.Checks} {
		for _, h := range list {
			if h.Battery == "as_before" {
				return true
			}
		}
	}
	return false
}

// atWork is the tolerance in the soak: the plant works again, so what was told before
// must still be told, without new alarms, but charge, heat and voltages move.
var atWork = bms.Tolerance{SoC: 100, Temperature: 200, CellVoltage: 6, SoH: 1, Capacity: 1}

// batteryCheck returns a health check that looks at the battery. Whether readings
// would allow an update is a question that only within_limits asks: current flows
// again, and rightly, when firmware does its work.
func (a *Agent) batteryCheck(kind string, tolerance bms.Tolerance) (func(context.Context) error, error) {
	if a.guard == nil && (kind == "fresh" || kind == "as_before" || kind == "within_limits") {
		return nil, errors.New("this device is configured without one")
	}
	switch kind {
	case "fresh":
		return func(ctx context.Context) error {
			_, err := a.freshBattery(ctx)
			return err
		}, nil
	case "within_limits":
		return func(ctx context.Context) error {
			r, err := a.guard.Read(ctx)
			if err != nil {
				return err
			}
			return bms.Decide(r, a.guard.Thresholds(), nil, time.Now())
		}, nil
	case "as_before":
		return func(ctx context.Context) error { return a.batteryAsBefore(ctx, tolerance) }, nil
	}
	return nil, fmt.Errorf("%q is not known, want fresh, as_before or within_limits", kind)
}

// freshBattery reads the battery, and reports whether the readings are back:
// complete, plausible, recent, and alive where there is a heartbeat or the configuration
// asks for one.
func (a *Agent) freshBattery(ctx context.Context) (bms.Reading, error) {
	r, err := a.guard.Read(ctx)
	if err != nil {
		return r, err
	}
	t := a.guard.Thresholds()
	limits := bms.Thresholds{MinSoC: 0, MinTemperature: -60, MaxTemperature: 120, MaxCurrent: 10_000, MaxAge: t.MaxAge,
		IgnoreAlarms: slices.Concat(t.IgnoreAlarms, allAlarms(r)), Agreement: t.Agreement, MinOthers: t.MinOthers}
	if err := bms.Decide(r, limits, nil, time.Now()); err != nil {
		return r, err
	}
	if t.RequireBeat || r.Beat != nil {
		return r, a.guard.Alive()
	}
	return r, nil
}

// allAlarms are those of every instrument. That there are some is no sign that the
// readings are not back; which ones are new is another question.
func allAlarms(r bms.Reading) []string {
	all := slices.Clone(r.Alarms)
	for i := range r.Others {
		all = append(all, r.Others[i].Alarms...)
	}
	return all
}

// batteryAsBefore compares the battery with what it was when the gate allowed the
// restart. An update whose gate kept nothing, because its agent did not know of this
// check yet, is judged by fresh readings alone.
func (a *Agent) batteryAsBefore(ctx context.Context, tolerance bms.Tolerance) error {
	r, err := a.freshBattery(ctx)
	if err != nil {
		return err
	}
	before, err := a.readBaseline(a.inHand())
	if errors.Is(err, errNoBaseline) {
		a.log.Warn("the battery is not compared with what it was before the restart, for nobody kept that")
		return nil
	}
	if err != nil {
		return fmt.Errorf("compare the battery with what it was before the restart: %w", err)
	}
	return bms.Compare(before, r, tolerance, time.Now(), a.guard.Thresholds().MaxAge)
}
