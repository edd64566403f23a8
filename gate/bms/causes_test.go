package bms_test

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
)

// Programs that must tell a kind of reason from another, as those on a bus do, get it
// from the causes.
func TestCauses(t *testing.T) {
	for name, tt := range map[string]struct {
		r    func(*bms.Reading)
		want []ota.Cause
	}{
		"too empty":           {set(bms.SoC, 29.9), []ota.Cause{ota.CauseSoCLow}},
		"too full":            {set(bms.SoC, 90.1), []ota.Cause{ota.CauseSoCHigh}},
		"too cold":            {set(bms.TemperatureMin, 4.9), []ota.Cause{ota.CauseTemperatureLow}},
		"too warm":            {set(bms.TemperatureMax, 45.1), []ota.Cause{ota.CauseTemperatureHigh}},
		"at work":             {func(r *bms.Reading) { r.Set(bms.Current, -80); r.Others = nil }, []ota.Cause{ota.CauseCurrent}},
		"a cell is empty":     {func(r *bms.Reading) { r.Set(bms.CellMin, 2.89); r.Set(bms.CellMax, 2.9) }, []ota.Cause{ota.CauseCellLow}},
		"a cell is full":      {func(r *bms.Reading) { r.Set(bms.CellMin, 3.55); r.Set(bms.CellMax, 3.56) }, []ota.Cause{ota.CauseCellHigh}},
		"cells differ":        {set(bms.CellMin, 3.2), []ota.Cause{ota.CauseCellDelta}},
		"old":                 {func(r *bms.Reading) { r.At = now.Add(-time.Minute); r.Others = nil }, []ota.Cause{ota.CauseStale}},
		"no heartbeat":        {func(r *bms.Reading) { r.Beat = nil }, []ota.Cause{ota.CauseStale}},
		"two that disagree":   {func(r *bms.Reading) { r.Others = []bms.Reading{meter(8)} }, []ota.Cause{ota.CauseDisagreement}},
		"an alarm":            {func(r *bms.Reading) { r.Alarms = []string{"over_voltage"} }, []ota.Cause{ota.CauseAlarm}},
		"discharging":         {func(r *bms.Reading) { r.Mode = bms.ModeRunning }, []ota.Cause{ota.CauseMode}},
		"somebody is on site": {func(r *bms.Reading) { r.Control = bms.ControlLocal }, []ota.Cause{ota.CauseMode}},
		"impossible":          {set(bms.Voltage, -1), []ota.Cause{ota.CauseOther}},
		"empty and cold":      {func(r *bms.Reading) { r.Set(bms.SoC, 3); r.Set(bms.TemperatureMin, -3) }, []ota.Cause{ota.CauseSoCLow, ota.CauseTemperatureLow}},
		"cold, and two sensors": {func(r *bms.Reading) { r.Set(bms.TemperatureMin, -3); r.Set(bms.TemperatureMax, -2) },
			[]ota.Cause{ota.CauseTemperatureLow}},
	} {
		t.Run(name, func(t *testing.T) {
			r, th := full(), bms.Recommended()
			tt.r(&r)
			refusal, ok := errors.AsType[*ota.Refusal](bms.Decide(r, th, nil, now))
			if !ok {
				t.Fatal("allowed")
			}
			if !reflect.DeepEqual(refusal.Causes, tt.want) {
				t.Errorf("causes of %q: got %v, want %v", refusal.Reason, refusal.Causes, tt.want)
			}
		})
	}
}

// Would says what Gate would say and changes nothing of it.
func TestWould(t *testing.T) {
	soc, broken := 31.0, error(nil)
	th := bms.Default()
	th.Keep = bms.Keep{MinSoC: 3}
	g, err := bms.New(func(context.Context) (bms.Reading, error) {
		r := good()
		r.At = time.Now()
		r.Set(bms.SoC, soc)
		return r, broken
	}, th)
	if err != nil {
		t.Fatal(err)
	}
	m := &ota.Manifest{Version: "1.1.0", Digest: "1"}
	if err := g.Gate(t.Context(), m, ota.BeforeWrite); err != nil {
		t.Fatal(err)
	}
	soc = 28 // allowed now, as it was before, and not to begin with
	if err := g.Would(t.Context(), nil); ota.CodeOf(err) != ota.ErrBatteryLow {
		t.Errorf("Would: got %v, want BATTERY_LOW", err)
	}
	if err := g.Gate(t.Context(), m, ota.BeforeWrite); err != nil {
		t.Errorf("Gate after Would: got %v; the question of somebody else changed the answer", err)
	}
	soc = 50
	if err := g.Would(t.Context(), m); err != nil {
		t.Errorf("Would: got %v, want yes", err)
	}
	least := 60.0
	if err := g.Would(t.Context(), &ota.Manifest{Version: "1.1.0", Limits: ota.Limits{MinSoC: &least}}); ota.CodeOf(err) != ota.ErrBatteryLow {
		t.Errorf("Would, with the release's limit: got %v", err)
	}
	broken = errors.New("the bus is down")
	if err := g.Would(t.Context(), nil); ota.CodeOf(err) != ota.ErrBMSUnsafe {
		t.Errorf("Would, without readings: got %v", err)
	}
}
