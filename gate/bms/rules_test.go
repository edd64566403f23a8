package bms_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
)

// full is a reading that the recommended thresholds allow, with another instrument.
func full() bms.Reading {
	r := good()
	r.NoAlarms = false
	r.Beat = &bms.Beat{Count: 4711}
	r.Mode, r.Contactors, r.Control = bms.ModeStandby, bms.ContactorsClosed, bms.ControlRemote
	r.Positive = bms.Discharging
	for q, v := range map[bms.Quantity]float64{bms.SoH: 98, bms.Voltage: 691, bms.CellMin: 3.31, bms.CellMax: 3.33, bms.Capacity: 314} {
		r.Set(q, v)
	}
	r.Others = []bms.Reading{meter(-1.2)}
	return r
}

// meter is another instrument.
func meter(current float64) bms.Reading {
	return bms.Reading{Source: "meter", Valid: true, NoAlarms: true, At: now, Positive: bms.Discharging,
		Signals: map[bms.Quantity]bms.Signal{bms.Current: {Value: current}}}
}

type rule struct {
	name   string
	r      func(*bms.Reading)
	t      func(*bms.Thresholds)
	code   ota.ErrorCode // ErrNone with an empty reason: yes
	reason string
}

// check asks Decide with the recommended thresholds.
func check(t *testing.T, rules []rule) {
	t.Helper()
	for _, tt := range rules {
		t.Run(tt.name, func(t *testing.T) {
			r, th := full(), bms.Recommended()
			if tt.r != nil {
				tt.r(&r)
			}
			if tt.t != nil {
				tt.t(&th)
			}
			if tt.reason != "" && tt.code == 0 {
				tt.code = ota.ErrBMSUnsafe
			}
			err := bms.Decide(r, th, nil, now)
			if got := ota.CodeOf(err); got != tt.code {
				t.Errorf("got code %v, want %v", got.Name(), tt.code.Name())
			}
			got := ""
			if refusal, ok := err.(*ota.Refusal); ok {
				got = refusal.Reason
			}
			if got != tt.reason {
				t.Errorf("reason:\n got %q\nwant %q", got, tt.reason)
			}
		})
	}
}

func set(q bms.Quantity, v float64) func(*bms.Reading) {
	return func(r *bms.Reading) { r.Set(q, v) }
}

func signal(q bms.Quantity, s bms.Signal) func(*bms.Reading) {
	return func(r *bms.Reading) {
		s.Value = r.Value(q)
		r.Set(q, s.Value)
		r.Signals[q] = s
	}
}

func TestLimits(t *testing.T) {
	nan := math.NaN()
	cells := func(low, high float64) func(*bms.Reading) {
		return func(r *bms.Reading) { r.Set(bms.CellMin, low); r.Set(bms.CellMax, high) }
	}
	off := func(th *bms.Thresholds) {
		th.MinCell, th.MaxCell, th.MaxCellDelta, th.MaxSoC, th.MaxUncounted = 0, 0, 0, 0, 0
	}
	check(t, []rule{
		{name: "good"},
		{name: "SoC on the upper edge", r: set(bms.SoC, 90)},
		{name: "SoC above", r: set(bms.SoC, 90.1), reason: "state of charge 90.1 %, want at most 90 %"},
		{name: "SoC below", r: set(bms.SoC, 29.9), code: ota.ErrBatteryLow, reason: "state of charge 29.9 %, want at least 30 %"},
		{name: "SoC below and a cell too", r: func(r *bms.Reading) { set(bms.SoC, 29.9)(r); cells(2.899, 2.92)(r) },
			reason: "state of charge 29.9 %, want at least 30 %; lowest cell voltage 2.899 V, want at least 2.9 V"},
		{name: "SoC full, no upper limit", r: set(bms.SoC, 100), t: off},

		{name: "lowest cell on the edge", r: cells(2.9, 2.91)},
		{name: "lowest cell below", r: cells(2.899, 2.91), reason: "lowest cell voltage 2.899 V, want at least 2.9 V"},
		{name: "highest cell on the edge", r: cells(3.54, 3.55)},
		{name: "highest cell above", r: cells(3.54, 3.551), reason: "highest cell voltage 3.551 V, want at most 3.55 V"},
		{name: "cells 50 mV apart", r: cells(3.30, 3.35)},
		{name: "cells 51 mV apart", r: cells(3.30, 3.351), reason: "the cells are 0.051 V apart, want at most 0.05 V"},
		{name: "cells crossed", r: cells(3.34, 3.33), reason: "lowest cell voltage 3.34 V is above the highest, 3.33 V"},
		{name: "cells crossed, no rule", r: cells(3.34, 3.33), t: off, reason: "lowest cell voltage 3.34 V is above the highest, 3.33 V"},
		{name: "no lowest cell", r: cells(nan, 3.33), reason: "lowest cell voltage is not available"},
		{name: "no highest cell", r: cells(3.31, nan), reason: "highest cell voltage is not available"},
		{name: "no cells, no rule", r: cells(nan, nan), t: off},
		{name: "no lowest cell, for the difference", r: cells(nan, 3.33), t: func(th *bms.Thresholds) { th.MinCell, th.MaxCell = 0, 0 }, reason: "lowest cell voltage is not available"},
		{name: "no highest cell, for the difference", r: cells(3.3, nan), t: func(th *bms.Thresholds) { th.MinCell, th.MaxCell = 0, 0 }, reason: "highest cell voltage is not available"},

		{name: "implausible without a rule: SoH", r: set(bms.SoH, 100.5), reason: "state of health 100.5 % is not plausible, want 0 to 100"},
		{name: "implausible without a rule: voltage", r: set(bms.Voltage, 2000.5), reason: "voltage 2000.5 V is not plausible, want 0 to 2000"},
		{name: "implausible without a rule: cell", r: cells(0, 6.1), t: off, reason: "highest cell voltage 6.1 V is not plausible, want 0 to 6"},
		{name: "implausible without a rule: capacity", r: set(bms.Capacity, -1), t: off, reason: "capacity -1 Ah is not plausible, want 0 to 100000"},
		{name: "not available without a rule", r: func(r *bms.Reading) { r.Set(bms.SoH, nan); r.Set(bms.Voltage, nan) }},

		{name: "no capacity", r: set(bms.Capacity, nan), reason: "capacity is not available"},
		{name: "no capacity, but rated", r: set(bms.Capacity, nan), t: func(th *bms.Thresholds) { th.RatedCapacity = 280 }},
		{name: "capacity 0", r: set(bms.Capacity, 0), reason: "capacity is 0 Ah, so that nobody can tell whether the state of charge follows the current; set the rated capacity"},
		{name: "capacity 0, but rated", r: set(bms.Capacity, 0), t: func(th *bms.Thresholds) { th.RatedCapacity = 280 }},

		{name: "no heartbeat", r: func(r *bms.Reading) { r.Beat = nil }, reason: "test has no heartbeat, so that nobody can tell whether it repeats old values"},
		{name: "no heartbeat, not required", r: func(r *bms.Reading) { r.Beat = nil }, t: func(th *bms.Thresholds) { th.RequireBeat = false }},
		{name: "heartbeat due in 5 min", r: func(r *bms.Reading) { r.Beat.Within = 5 * time.Minute }},
		{name: "heartbeat due too late", r: func(r *bms.Reading) { r.Beat.Within = 5*time.Minute + 1 }, reason: "the heartbeat of test is due within 5m0.000000001s, want 0 to 5m0s"},
		{name: "heartbeat due before", r: func(r *bms.Reading) { r.Beat.Within = -1 }, reason: "the heartbeat of test is due within -1ns, want 0 to 5m0s"},
	})
}

func TestFreshness(t *testing.T) {
	ago := func(q bms.Quantity, d time.Duration) func(*bms.Reading) {
		return signal(q, bms.Signal{At: now.Add(-d)})
	}
	const s, ms = time.Second, time.Millisecond
	cycle := func(q bms.Quantity, age, cycle time.Duration) func(*bms.Reading) {
		return signal(q, bms.Signal{At: now.Add(-age), Cycle: cycle})
	}
	check(t, []rule{
		{name: "as old as allowed", r: ago(bms.SoC, 5*s)},
		{name: "1 ms too old", r: ago(bms.SoC, 5001*ms), reason: "state of charge of test is 5.001s old, want at most 5s"},
		{name: "1 ns too old", r: ago(bms.SoC, 5*s+1), reason: "state of charge of test is 5.000000001s old, want at most 5s"},
		{name: "a cell, which a rule needs", r: ago(bms.CellMin, 6*s), reason: "lowest cell voltage of test is 6s old, want at most 5s"},
		{name: "a capacity, which a rule needs", r: ago(bms.Capacity, 301*s), reason: "capacity of test is 5m1s old, want at most 5m0s"},
		{name: "a capacity beside a rated one", r: ago(bms.Capacity, 301*s), t: func(th *bms.Thresholds) { th.RatedCapacity = 280 }, reason: "capacity of test is 5m1s old, want at most 5m0s"},
		{name: "a cell that no rule needs", r: ago(bms.CellMin, 6*s), t: func(th *bms.Thresholds) { th.MinCell, th.MaxCellDelta = 0, 0 }},
		{name: "health, which no rule needs", r: ago(bms.SoH, time.Hour)},
		{name: "1 s ahead", r: ago(bms.Current, -s)},
		{name: "more than 1 s ahead", r: ago(bms.Current, -1001*ms), reason: "current of test is from 1.001s in the future; check the clocks"},

		{name: "three cycles", r: cycle(bms.Current, 300*ms, 100*ms)},
		{name: "three cycles and 1 ms", r: cycle(bms.Current, 301*ms, 100*ms), reason: "current of test is 301ms old, want at most 300ms, three of its cycles"},
		{name: "three long cycles are no excuse", r: cycle(bms.Current, 5001*ms, 2*s), reason: "current of test is 5.001s old, want at most 5s"},
		{name: "the longest of cycles", r: cycle(bms.Current, 5001*ms, math.MaxInt64), reason: "current of test is 5.001s old, want at most 5s"},
		{name: "negative cycle", r: cycle(bms.Current, 5*s, -s)},
		{name: "a cycle, and the time of the reading", r: func(r *bms.Reading) { signal(bms.SoC, bms.Signal{Cycle: 100 * ms})(r); r.At = now.Add(-301 * ms) },
			reason: "state of charge of test is 301ms old, want at most 300ms, three of its cycles"},
		{name: "fresh signals do not save an old reading", r: func(r *bms.Reading) {
			for q := range r.Signals {
				ago(q, 0)(r)
			}
			r.At = now.Add(-6 * s)
		}, reason: "the reading of test is 6s old, want at most 5s"},
		{name: "nor one without a time", r: func(r *bms.Reading) {
			for q := range r.Signals {
				ago(q, 0)(r)
			}
			r.At = time.Time{}
		}, reason: "the reading of test has no time"},
	})
	// By the monotonic clock, and where only one of the times has it by the wall clock.
	at := time.Now()
	r := full()
	r.At, r.Others = at, nil
	later := at.Add(6 * s)
	if err := bms.Decide(r, bms.Default(), nil, later); err == nil {
		t.Error("6 s later by both clocks: got yes")
	}
	if err := bms.Decide(r, bms.Default(), nil, later.Round(0)); err == nil {
		t.Error("6 s later by the wall clock: got yes")
	}
}

func TestState(t *testing.T) {
	closed := func(th *bms.Thresholds) { th.Contactors = bms.ContactorsClosed }
	open := func(th *bms.Thresholds) { th.Contactors = bms.ContactorsOpen }
	mode := func(m bms.Mode) func(*bms.Reading) { return func(r *bms.Reading) { r.Mode = m } }
	converter := func(change func(*bms.Reading)) func(*bms.Reading) {
		return func(r *bms.Reading) { change(&r.Others[0]) }
	}
	raise := func(names ...string) func(*bms.Reading) { return func(r *bms.Reading) { r.Alarms = names } }
	var many []string
	for i := range 12 {
		many = append(many, fmt.Sprintf("module %02d", i))
	}
	check(t, []rule{
		{name: "off", r: mode(bms.ModeOff)},
		{name: "running", r: mode(bms.ModeRunning), reason: "mode of test is running, want off or standby"},
		{name: "busy", r: mode(bms.ModeBusy), reason: "mode of test is busy, want off or standby"},
		{name: "fault", r: mode(bms.ModeFault), reason: "mode of test is fault, want off or standby"},
		{name: "a mode nobody knows", r: mode("ready"), reason: "mode of test is ready, want off or standby"},
		{name: "mode not known", r: mode(""), reason: "mode of test is not known, want off or standby"},
		{name: "the converter tells the mode", r: func(r *bms.Reading) { mode("")(r); r.Others[0].Mode = bms.ModeOff }},
		{name: "the converter runs", r: converter(mode(bms.ModeRunning)), reason: "mode of meter is running, want off or standby"},
		{name: "running is nothing", r: mode(bms.ModeRunning), t: func(th *bms.Thresholds) { th.Standby = false }},

		{name: "closed", t: closed},
		{name: "not open", t: open, reason: "state of the contactors of test is closed, want open"},
		{name: "open", r: func(r *bms.Reading) { r.Contactors = bms.ContactorsOpen }, t: open},
		{name: "not closed", r: func(r *bms.Reading) { r.Contactors = bms.ContactorsOpen }, t: closed, reason: "state of the contactors of test is open, want closed"},
		{name: "contactors not known", r: func(r *bms.Reading) { r.Contactors = "" }, t: closed, reason: "state of the contactors of test is not known, want closed"},
		{name: "two that differ", r: converter(func(r *bms.Reading) { r.Contactors = bms.ContactorsOpen }), t: closed, reason: "state of the contactors of meter is open, want closed"},

		{name: "local", r: func(r *bms.Reading) { r.Control = bms.ControlLocal }, reason: "control of test is local, want remote: somebody may work on site"},
		{name: "control not known", r: func(r *bms.Reading) { r.Control = "" }, reason: "control of test is not known, want remote: somebody may work on site"},
		{name: "local is nothing", r: func(r *bms.Reading) { r.Control = bms.ControlLocal }, t: func(th *bms.Thresholds) { th.RemoteControl = false }},

		{name: "an alarm", r: raise("insulation"), reason: "test raises alarms: insulation"},
		{name: "alarms, in order and once", r: raise("smoke", "insulation", "smoke"), reason: "test raises alarms: insulation, smoke"},
		{name: "an alarm of another", r: converter(raise("door")), reason: "meter raises alarms: door"},
		{name: "many", r: raise(many...), reason: "test raises alarms: " + strings.Join(many[:8], ", ") + " and 4 more"},
		{name: "an alarm without a name", r: raise(""), reason: "test raises alarms: "},
		{name: "an ignored one", r: raise("door"), t: func(th *bms.Thresholds) { th.IgnoreAlarms = []string{"fan", "door"} }},
		{name: "not the ignored one", r: raise("door", "Door"), t: func(th *bms.Thresholds) { th.IgnoreAlarms = []string{"door"} }, reason: "test raises alarms: Door"},
		{name: "alarms without the rules", r: raise("door"), t: func(th *bms.Thresholds) { *th = bms.Default() }, reason: "test raises alarms: door"},
		{name: "warnings are none", r: func(r *bms.Reading) { r.Warnings = []string{"hot soon"} }},
		{name: "cannot tell", r: func(r *bms.Reading) { r.NoAlarms = true }, reason: "test cannot tell of alarms"},
		{name: "cannot tell, not required", r: func(r *bms.Reading) { r.NoAlarms = true }, t: func(th *bms.Thresholds) { th.RequireAlarms = false }},
	})
}

func TestAgreement(t *testing.T) {
	nan := math.NaN()
	other := func(change func(*bms.Reading)) func(*bms.Reading) {
		return func(r *bms.Reading) { change(&r.Others[0]) }
	}
	both := func(mine, its float64) func(*bms.Reading) {
		return func(r *bms.Reading) { r.Set(bms.Current, mine); r.Others[0].Set(bms.Current, its) }
	}
	signs := func(mine, its bms.Direction, a, b float64) func(*bms.Reading) {
		return func(r *bms.Reading) { both(a, b)(r); r.Positive, r.Others[0].Positive = mine, its }
	}
	limit := func(a bms.Agreement) func(*bms.Thresholds) {
		return func(th *bms.Thresholds) { th.Agreement, th.MaxCurrent = a, 10_000 }
	}
	wide := limit(bms.Agreement{})
	const in, out = bms.Charging, bms.Discharging
	check(t, []rule{
		{name: "SoC on the edge", r: other(set(bms.SoC, 57.5))},
		{name: "SoC above it", r: other(set(bms.SoC, 57.4)), reason: "state of charge is 62.5 % by test and 57.4 % by meter: 5.1 % apart, want at most 5 %"},
		{name: "SoC stuck at 100 %", r: func(r *bms.Reading) { r.Set(bms.SoC, 100); r.Others[0].Set(bms.SoC, 57) }, t: func(th *bms.Thresholds) { th.MaxSoC = 0 },
			reason: "state of charge is 100.0 % by test and 57.0 % by meter: 43.0 % apart, want at most 5 %"},
		{name: "SoC, another limit", r: other(set(bms.SoC, 61.4)), t: limit(bms.Agreement{SoC: 1}), reason: "state of charge is 62.5 % by test and 61.4 % by meter: 1.1 % apart, want at most 1 %"},
		{name: "SoC, not compared", r: other(set(bms.SoC, 1)), t: limit(bms.Agreement{SoC: -1})},
		{name: "coldest on the edge", r: other(set(bms.TemperatureMin, 24))},
		{name: "coldest", r: other(set(bms.TemperatureMin, 24.1)), reason: "lowest temperature is 21.0 °C by test and 24.1 °C by meter: 3.1 K apart, want at most 3 K"},
		{name: "hottest on the edge, in tenths", r: func(r *bms.Reading) { r.Set(bms.TemperatureMax, 24.3); r.Others[0].Set(bms.TemperatureMax, 21.3) }},
		{name: "hottest", r: other(set(bms.TemperatureMax, 21.4)), reason: "highest temperature is 24.5 °C by test and 21.4 °C by meter: 3.1 K apart, want at most 3 K"},

		{name: "current 2 A apart", r: both(5, 7)},
		{name: "current more than 2 A apart", r: both(5, 7.1), reason: "current is 5.0 A by test and 7.1 A by meter: 2.1 A apart, want at most 2 A"},
		{name: "current 2 % apart", r: both(490, 500), t: wide},
		{name: "current more than 2 % apart", r: both(489.9, 500), t: wide, reason: "current is 489.9 A by test and 500.0 A by meter: 10.1 A apart, want at most 10 A"},
		{name: "no share", r: both(490, 500), t: limit(bms.Agreement{CurrentShare: -1}), reason: "current is 490.0 A by test and 500.0 A by meter: 10.0 A apart, want at most 2 A"},
		{name: "current not compared", r: both(0, 500), t: limit(bms.Agreement{Current: -1})},
		{name: "ten times too small", r: both(8, 80), reason: "current is 8.0 A by test and 80.0 A by meter: 72.0 A apart, want at most 2 A"},
		{name: "ten times too small, no signs", r: signs("", "", 8, -80), reason: "current is 8.0 A by test and -80.0 A by meter: 72.0 A apart, want at most 2 A"},
		{name: "0 W", r: both(0, 8), reason: "current is 0.0 A by test and 8.0 A by meter: 8.0 A apart, want at most 2 A"},

		{name: "flipped", r: both(8, -8), reason: "current is 8.0 A by test and -8.0 A by meter: they disagree on the direction"},
		{name: "flipped by name", r: signs("rack 1", "rack 1", 8, -8), reason: "current is 8.0 A by test and -8.0 A by meter: they disagree on the direction"},
		{name: "about nothing, flipped", r: both(1, -1)},
		{name: "flipped and off", r: both(8, -80), reason: "current is 8.0 A by test and -80.0 A by meter: 88.0 A apart, want at most 2 A"},
		{name: "opposite conventions", r: signs(in, out, 8, -8)},
		{name: "opposite conventions, same sign", r: signs(out, in, 8, 8), reason: "current is 8.0 A by test and 8.0 A by meter, whose sign is the other way round: they disagree on the direction"},
		{name: "one convention not known", r: signs(out, "", 8, -8)},
		{name: "the other not known", r: signs("", out, 8, -8)},
		{name: "names that say nothing to each other", r: signs("rack 1", "meter 5", 8, -8)},
		{name: "a made-up name beside a known one", r: signs("rack 1", out, 8, -8)},

		{name: "nothing in common", r: other(func(r *bms.Reading) { r.Signals = map[bms.Quantity]bms.Signal{bms.Voltage: {Value: 690}} }),
			reason: "meter cannot be compared: it tells nothing that is compared: state of charge, temperature or current"},
		{name: "nothing at all", r: other(func(r *bms.Reading) { r.Signals = nil }),
			reason: "meter cannot be compared: it tells nothing that is compared: state of charge, temperature or current"},
		{name: "not available", r: other(set(bms.Current, nan)), reason: "meter cannot be compared: current is not available"},
		{name: "one of two not available", r: other(set(bms.SoC, nan)), reason: "meter cannot be compared: state of charge is not available"},
		{name: "not valid", r: other(func(r *bms.Reading) { r.Valid = false }), reason: "meter cannot be compared: the reading of meter is marked as not valid"},
		{name: "stale", r: other(func(r *bms.Reading) { r.At = now.Add(-5001 * time.Millisecond) }), reason: "meter cannot be compared: the reading of meter is 5.001s old, want at most 5s"},
		{name: "stale signal", r: other(signal(bms.Current, bms.Signal{At: now.Add(-301 * time.Millisecond), Cycle: 100 * time.Millisecond})),
			reason: "meter cannot be compared: current of meter is 301ms old, want at most 300ms, three of its cycles"},
		{name: "without a time", r: other(func(r *bms.Reading) { r.At = time.Time{} }), reason: "meter cannot be compared: the reading of meter has no time"},
		{name: "implausible", r: other(set(bms.Voltage, -1)), reason: "meter cannot be compared: voltage -1 V is not plausible, want 0 to 2000"},
		{name: "no heartbeat is no shame for it", r: other(func(r *bms.Reading) { r.Beat = nil })},
		{name: "heartbeat due too late", r: other(func(r *bms.Reading) { r.Beat = &bms.Beat{Within: time.Hour} }), reason: "the heartbeat of meter is due within 1h0m0s, want 0 to 5m0s"},
		{name: "of another's other", r: other(func(r *bms.Reading) { r.Others = []bms.Reading{meter(80)}; r.Others[0].Source = "clamp" }),
			reason: "current is -1.2 A by test and 80.0 A by clamp: 81.2 A apart, want at most 2 A"},
		{name: "none", r: func(r *bms.Reading) { r.Others = nil }},
		{name: "none, one required", r: func(r *bms.Reading) { r.Others = nil }, t: func(th *bms.Thresholds) { th.MinOthers = 1 },
			reason: "test has 0 other instruments to compare with, want at least 1"},
		{name: "one required", t: func(th *bms.Thresholds) { th.MinOthers = 1 }},
		{name: "with the default thresholds", r: both(8, 80), t: func(th *bms.Thresholds) { *th = bms.Default() },
			reason: "current is 8.0 A by test and 80.0 A by meter: 72.0 A apart, want at most 2 A"},
	})
}
