package bms_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
)

// TestRulesMonotone does to all rules what TestDecideMonotone does to the first four:
// it makes one thing worse, or one rule stricter, and never may a no become a yes.
func TestRulesMonotone(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	between := func(a, b float64) float64 { return a + rng.Float64()*(b-a) }
	often := func() bool { return rng.IntN(8) > 0 }
	step := func() float64 { return math.Exp(between(-10, 4)) }
	span := func(a, b float64) time.Duration { return time.Duration(between(a, b) * 1e9) }

	// start is a reading that is near all limits, and thresholds with most rules on.
	start := func() (bms.Reading, bms.Thresholds) {
		r, th := full(), bms.Recommended()
		low, cold := between(2.88, 3.5), between(3, 30)
		for q, v := range map[bms.Quantity]float64{bms.SoC: between(30, 91), bms.CellMin: low, bms.CellMax: low + between(0, 0.055),
			bms.TemperatureMin: cold, bms.TemperatureMax: cold + between(0, 15), bms.Current: between(-10.5, 10.5)} {
			r.Set(q, v)
			r.Signals[q] = bms.Signal{Value: v, At: now.Add(-span(-1, 5)), Cycle: span(1, 3)}
		}
		r.At = now.Add(-span(-1, 5.2))
		r.Others[0].Set(bms.Current, r.Value(bms.Current)+between(-2.2, 2.2))
		r.Others[0].At = now.Add(-span(-1, 5))
		if rng.IntN(2) == 0 {
			r.Alarms = []string{"door"}
			th.IgnoreAlarms = []string{"door", "fan"}
		}
		th.Standby, th.RemoteControl, th.RequireAlarms, th.RequireBeat = often(), often(), often(), often()
		if rng.IntN(2) == 0 {
			th.Contactors = bms.ContactorsClosed
		}
		switch rng.IntN(8) { // what only a rule that is off allows
		case 0:
			r.Mode, th.Standby = bms.ModeRunning, !often()
		case 1:
			r.Contactors, th.Contactors = bms.ContactorsOpen, ""
		case 2:
			r.Control, th.RemoteControl = bms.ControlLocal, !often()
		case 3:
			r.NoAlarms, th.RequireAlarms = true, !often()
		case 4:
			r.Beat, th.RequireBeat = nil, !often()
		}
		return r, th
	}
	needed := []bms.Quantity{bms.SoC, bms.TemperatureMin, bms.TemperatureMax, bms.Current, bms.CellMin, bms.CellMax}
	alone := func(r *bms.Reading) { r.Others = nil } // so that what gets worse does not come nearer to another
	other := func(r *bms.Reading) *bms.Reading {
		r.Others = append([]bms.Reading(nil), r.Others...)
		return &r.Others[0]
	}
	change := func(r *bms.Reading, q bms.Quantity, f func(*bms.Signal)) {
		s := r.Signals[q]
		f(&s)
		r.Set(q, s.Value)
		r.Signals[q] = s
	}
	worse := []func(r *bms.Reading, th *bms.Thresholds){
		func(r *bms.Reading, _ *bms.Thresholds) {
			change(r, bms.CellMin, func(s *bms.Signal) { s.Value -= step() })
		},
		func(r *bms.Reading, _ *bms.Thresholds) {
			change(r, bms.CellMax, func(s *bms.Signal) { s.Value += step() })
		},
		func(r *bms.Reading, th *bms.Thresholds) {
			change(r, bms.SoC, func(s *bms.Signal) {
				if s.Value > th.MaxSoC-5 {
					s.Value += step()
				} else {
					s.Value = math.Min(s.Value, th.MinSoC) - step()
				}
			})
		},
		func(r *bms.Reading, _ *bms.Thresholds) { // an older signal
			change(r, needed[rng.IntN(6)], func(s *bms.Signal) { s.At = s.At.Add(-span(0, 3)) })
		},
		func(r *bms.Reading, _ *bms.Thresholds) { // one that should come more often
			change(r, needed[rng.IntN(6)], func(s *bms.Signal) { s.Cycle = time.Duration(float64(s.Cycle) * between(0.01, 1)) })
		},
		func(r *bms.Reading, _ *bms.Thresholds) {
			change(r, needed[rng.IntN(6)], func(s *bms.Signal) { s.Value = math.NaN() })
		},
		func(r *bms.Reading, _ *bms.Thresholds) { change(r, bms.Voltage, func(s *bms.Signal) { s.Value = -1 }) },
		func(r *bms.Reading, _ *bms.Thresholds) { r.At = r.At.Add(-span(0, 3)) },
		func(r *bms.Reading, _ *bms.Thresholds) { r.Alarms = append([]string{"fire"}, r.Alarms...) },
		func(r *bms.Reading, _ *bms.Thresholds) { r.NoAlarms = true },
		func(r *bms.Reading, _ *bms.Thresholds) { r.Mode = "" },
		func(r *bms.Reading, _ *bms.Thresholds) { r.Mode = bms.ModeFault },
		func(r *bms.Reading, _ *bms.Thresholds) { r.Contactors = "" },
		func(r *bms.Reading, _ *bms.Thresholds) { r.Control = "" },
		func(r *bms.Reading, _ *bms.Thresholds) { r.Control = bms.ControlLocal },
		func(r *bms.Reading, _ *bms.Thresholds) { r.Beat = nil },
		func(r *bms.Reading, _ *bms.Thresholds) { r.Beat = &bms.Beat{Within: -1} },
		func(r *bms.Reading, _ *bms.Thresholds) { // the other further away
			o := other(r)
			o.Set(bms.Current, o.Value(bms.Current)+math.Copysign(step(), o.Value(bms.Current)-r.Value(bms.Current)))
		},
		func(r *bms.Reading, _ *bms.Thresholds) { other(r).Valid = false },
		func(r *bms.Reading, _ *bms.Thresholds) { o := other(r); o.At = o.At.Add(-span(0, 3)) },
		func(r *bms.Reading, _ *bms.Thresholds) { other(r).Signals = nil },
		func(r *bms.Reading, _ *bms.Thresholds) { other(r).Set(bms.SoC, 200) },
		func(r *bms.Reading, _ *bms.Thresholds) {
			r.Others = append([]bms.Reading{meter(between(-20, 20))}, r.Others...)
		},
		func(_ *bms.Reading, th *bms.Thresholds) { th.MaxSoC -= between(0, 60) },
		func(_ *bms.Reading, th *bms.Thresholds) { th.MinCell += between(0, 0.5) },
		func(_ *bms.Reading, th *bms.Thresholds) { th.MaxCell -= between(0, 0.5) },
		func(_ *bms.Reading, th *bms.Thresholds) { th.MaxCellDelta *= between(0.01, 1) },
		func(_ *bms.Reading, th *bms.Thresholds) { th.Standby = true },
		func(_ *bms.Reading, th *bms.Thresholds) { th.Contactors = bms.ContactorsClosed },
		func(_ *bms.Reading, th *bms.Thresholds) { th.RemoteControl = true },
		func(_ *bms.Reading, th *bms.Thresholds) { th.RequireAlarms = true },
		func(_ *bms.Reading, th *bms.Thresholds) { th.RequireBeat = true },
		func(_ *bms.Reading, th *bms.Thresholds) { th.IgnoreAlarms = nil },
		func(_ *bms.Reading, th *bms.Thresholds) { th.MinOthers = 2 },
		func(_ *bms.Reading, th *bms.Thresholds) { th.Agreement = bms.Agreement{Current: between(0.01, 2)} },
	}
	yes, flips := 0, make([]int, len(worse))
	for range 20_000 {
		r, th := start()
		what := rng.IntN(len(worse))
		if what <= 10 {
			alone(&r)
		}
		r2, th2 := r, th
		worse[what](&r2, &th2)
		before, after := bms.Decide(r, th, nil, now), bms.Decide(r2, th2, nil, now)
		if before != nil && after == nil {
			t.Fatalf("change %d made a yes of %q:\n%+v\n%+v\n%+v\n%+v", what, before, r, r2, th, th2)
		}
		if before == nil {
			yes++
			if after != nil {
				flips[what]++
			}
		}
		if low := ota.CodeOf(after) == ota.ErrBatteryLow; low && !(r2.Value(bms.SoC) < th2.MinSoC) {
			t.Fatalf("BATTERY_LOW at %v %%: %v", r2.Value(bms.SoC), after)
		}
	}
	for i, n := range flips { // otherwise the test says nothing
		if n == 0 {
			t.Errorf("change %d never made a no of a yes", i)
		}
	}
	t.Logf("%d yes; each change made a no of some: %v; no no became a yes", yes, flips)
}
