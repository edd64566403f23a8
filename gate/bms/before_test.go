package bms_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/gate/bms"
)

func TestCompare(t *testing.T) {
	nan := math.NaN()
	const prefix = "compare the battery with what it was before: "
	rest := func(r *bms.Reading) {
		r.Set(bms.Current, 0.5)
		r.Others[0].Set(bms.Current, 0.5)
		r.Others[0].Beat = &bms.Beat{Count: 3}
	}
	after := func(d time.Duration) func(b, a *bms.Reading) { // so much later
		return func(_, a *bms.Reading) { a.At = a.At.Add(d); a.Others[0].At = a.At }
	}
	is := func(q bms.Quantity, v float64) func(b, a *bms.Reading) {
		return func(_, a *bms.Reading) { a.Set(q, v) }
	}
	both := func(fs ...func(b, a *bms.Reading)) func(b, a *bms.Reading) {
		return func(b, a *bms.Reading) {
			for _, f := range fs {
				f(b, a)
			}
		}
	}
	changed := func(f func(a *bms.Reading)) func(b, a *bms.Reading) { return func(_, a *bms.Reading) { f(a) } }
	old := func(f func(b *bms.Reading)) func(b, a *bms.Reading) { return func(b, _ *bms.Reading) { f(b) } }
	for _, tt := range []struct {
		name   string
		change func(before, after *bms.Reading)
		want   string
	}{
		{"the same", after(0), ""},
		{"a counter, power and warnings may be others", changed(func(a *bms.Reading) {
			a.Beat, a.Warnings, a.Mode = &bms.Beat{Count: 1}, []string{"new"}, bms.ModeRunning
			a.Set(bms.Current, 80)
			a.Set(bms.Voltage, 700)
		}), ""},

		{"SoC on the edge", is(bms.SoC, 60.5), ""},
		{"SoC", is(bms.SoC, 60.4), "state of charge of test is 60.4 % and was 62.5 %: it changed by 2.1 %, want at most 2 %"},
		{"SoC 0, as a system that starts says", is(bms.SoC, 0), "state of charge of test is 0.0 % and was 62.5 %: it changed by 62.5 %, want at most 2 %"},
		{"SoH on the edge", is(bms.SoH, 97), ""},
		{"SoH", is(bms.SoH, 96.9), "state of health of test is 96.9 % and was 98.0 %: it changed by 1.1 %, want at most 1 %"},
		{"capacity on the edge", is(bms.Capacity, 314*1.01), ""},
		{"capacity", is(bms.Capacity, 318), "capacity of test is 318.0 Ah and was 314.0 Ah: it changed by 4.0 Ah, want at most 3.14 Ah"},
		{"coldest on the edge", is(bms.TemperatureMin, 19), ""},
		{"coldest", is(bms.TemperatureMin, 18.9), "lowest temperature of test is 18.9 °C and was 21.0 °C: it changed by 2.1 K, want at most 2 K"},
		{"hottest on the edge", is(bms.TemperatureMax, 26.5), ""},
		{"hottest", is(bms.TemperatureMax, 26.6), "highest temperature of test is 26.6 °C and was 24.5 °C: it changed by 2.1 K, want at most 2 K"},
		{"hottest after three minutes, on the edge", both(after(3*time.Minute), is(bms.TemperatureMax, 28)), ""},
		{"hottest after three minutes", both(after(3*time.Minute), is(bms.TemperatureMax, 28.1)),
			"highest temperature of test is 28.1 °C and was 24.5 °C: it changed by 3.6 K, want at most 3.5 K after this time"},
		{"after a day, on the edge", both(after(24*time.Hour), is(bms.TemperatureMax, 36.5)), ""},
		{"after a day", both(after(24*time.Hour), is(bms.TemperatureMax, 76.1)),
			"highest temperature of test is 76.1 °C and was 24.5 °C: it changed by 51.6 K, want at most 12 K after this time"},
		{"a clock that went back gives no time", both(after(-time.Hour), is(bms.TemperatureMax, 26.6)),
			"highest temperature of test is 26.6 °C and was 24.5 °C: it changed by 2.1 K, want at most 2 K"},
		{"cells on the edge", both(is(bms.CellMin, 3.29), is(bms.CellMax, 3.35)), ""},
		{"lowest cell", is(bms.CellMin, 3.289), "lowest cell voltage of test is 3.289 V and was 3.310 V: it changed by 0.021 V, want at most 0.02 V"},
		{"highest cell", is(bms.CellMax, 3.351), "highest cell voltage of test is 3.351 V and was 3.330 V: it changed by 0.021 V, want at most 0.02 V"},
		{"cells, at 1 A", both(is(bms.CellMin, 3.2), is(bms.Current, -1)), "lowest cell voltage of test is 3.200 V and was 3.310 V: it changed by 0.110 V, want at most 0.02 V"},
		{"cells under load now", both(is(bms.CellMin, 3.2), is(bms.Current, 1.1)), ""},
		{"cells under load then", both(is(bms.CellMin, 3.2), old(set(bms.Current, 1.1))), ""},

		{"a value is gone", changed(func(a *bms.Reading) { delete(a.Signals, bms.Voltage) }), "voltage of test is not available"},
		{"a value is none", is(bms.CellMin, nan), "lowest cell voltage of test is not available"},
		{"a value was none", both(old(set(bms.CellMin, nan)), is(bms.CellMin, nan)), ""},
		{"a value is new", old(func(b *bms.Reading) { delete(b.Signals, bms.Voltage) }), ""},
		{"not plausible", is(bms.Voltage, -1), "voltage of test -1 V is not plausible, want 0 to 2000"},
		{"new, and not plausible", both(is(bms.Voltage, -1), old(set(bms.Voltage, nan))), "voltage of test -1 V is not plausible, want 0 to 2000"},
		{"stale", changed(func(a *bms.Reading) { a.At = a.At.Add(-5001 * time.Millisecond) }), "the reading of test is 5.001s old, want at most 5s"},
		{"a stale value that no rule needs", changed(signal(bms.SoH, bms.Signal{At: now.Add(-301 * time.Second)})), "state of health of test is 5m1s old, want at most 5m0s"},
		{"not valid", changed(func(a *bms.Reading) { a.Valid = false }), "the reading of test is marked as not valid"},
		{"no heartbeat", changed(func(a *bms.Reading) { a.Beat = nil }), "heartbeat of test is not told any more"},
		{"no mode", changed(func(a *bms.Reading) { a.Mode = "" }), "mode of test is not told any more"},
		{"no contactors", changed(func(a *bms.Reading) { a.Contactors = "" }), "state of the contactors of test is not told any more"},
		{"no control", changed(func(a *bms.Reading) { a.Control = "" }), "control of test is not told any more"},
		{"no way to tell of alarms", changed(func(a *bms.Reading) { a.NoAlarms = true }), "test cannot tell of alarms any more"},
		{"alarms", changed(func(a *bms.Reading) { a.Alarms = []string{"fan", "door", "fan"} }),
			"test raises an alarm that was not there: door; test raises an alarm that was not there: fan"},
		{"an alarm that was there", func(b, a *bms.Reading) { b.Alarms, a.Alarms = []string{"door"}, []string{"door"} }, ""},
		{"an alarm is gone", old(func(b *bms.Reading) { b.Alarms = []string{"door"} }), ""},

		{"no other", changed(func(a *bms.Reading) { a.Others = nil }), "test has 0 other instruments beside it, want 1 as before"},
		{"one more", old(func(b *bms.Reading) { b.Others = nil }), ""},
		{"the other lacks a value", changed(func(a *bms.Reading) { a.Others[0].Signals = nil }), "current of meter is not available"},
		{"the other lacks its heartbeat", changed(func(a *bms.Reading) { a.Others[0].Beat = nil }), "heartbeat of meter is not told any more"},
		{"the other is stale", changed(func(a *bms.Reading) { a.Others[0].At = now.Add(-6 * time.Second) }), "the reading of meter is 6s old, want at most 5s"},

		{"before: not valid", old(func(b *bms.Reading) { b.Valid = false }), "the reading from before is not valid or empty, so that nothing can be told from it"},
		{"before: empty", old(func(b *bms.Reading) { *b = bms.Reading{Valid: true, NoAlarms: true} }), "the reading from before is not valid or empty, so that nothing can be told from it"},
		{"all that differs is named", both(is(bms.SoC, 50), is(bms.SoH, 90)), "state of charge of test is 50.0 % and was 62.5 %: it changed by 12.5 %, want at most 2 %; " +
			"state of health of test is 90.0 % and was 98.0 %: it changed by 8.0 %, want at most 1 %"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, a := full(), full()
			rest(&b)
			rest(&a)
			tt.change(&b, &a)
			now := now
			if a.At.After(now) { // later; but what is too old stays so
				now = a.At
			} else if a.At.Before(now.Add(-time.Minute)) {
				now = a.At
			}
			err := bms.Compare(b, a, bms.DefaultTolerance(), now, 5*time.Second)
			got := ""
			if err != nil {
				got = strings.TrimPrefix(err.Error(), prefix)
			}
			if got != tt.want {
				t.Errorf("\n got %q\nwant %q", got, tt.want)
			}
		})
	}
	for name, tolerance := range map[string]bms.Tolerance{
		"NaN":      {SoC: nan, Temperature: nan, TemperatureRate: nan, CellVoltage: nan, Rest: 1, SoH: nan, Capacity: nan},
		"negative": {SoC: -1, Temperature: -1, CellVoltage: -1, Rest: 1, SoH: -1, Capacity: -1},
	} {
		b, a := full(), full()
		rest(&b)
		rest(&a)
		err := bms.Compare(b, a, tolerance, now, time.Second)
		if n := strings.Count(errText(err), "it changed by"); n != 7 {
			t.Errorf("a tolerance of %s: got %v, want 7 differences", name, err)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func ExampleCompare() {
	at := time.Now()
	kept, err := bms.EncodeReading(bms.Measured(62.5, 18, 23, 0.4, at)) // before the restart
	if err != nil {
		fmt.Println(err)
		return
	}
	before, err := bms.DecodeReading(kept) // after it, perhaps by another version
	if err != nil {
		fmt.Println(err)
		return
	}
	after := bms.Measured(0, 18, 23, 0.4, at.Add(time.Minute))
	fmt.Println(bms.Compare(before, after, bms.DefaultTolerance(), after.At, 5*time.Second))
	// Output: compare the battery with what it was before: state of charge is 0.0 % and was 62.5 %: it changed by 62.5 %, want at most 2 %
}

// TestToldSeldom: batteries on CAN repeat their state of health and capacity every ten
// seconds or more, which is no reason to refuse an update, or to go back.
func TestToldSeldom(t *testing.T) {
	at := time.Now()
	told := func(age time.Duration) bms.Reading {
		r := bms.Measured(62.5, 18, 23, 0.4, at)
		r.Signals[bms.SoH] = bms.Signal{Value: 98, At: at.Add(-age)}
		r.Signals[bms.Capacity] = bms.Signal{Value: 100, At: at.Add(-age)}
		return r
	}
	limits := bms.Default()
	limits.MaxUncounted = 3
	for age, fine := range map[time.Duration]bool{0: true, 30 * time.Second: true, 5 * time.Minute: true, 5*time.Minute + time.Second: false, -2 * time.Second: false} {
		if err := bms.Decide(told(age), limits, nil, at); (err == nil) != fine {
			t.Errorf("capacity of %v ago: got %v, want allowed %v", age, err, fine)
		}
		if err := bms.Compare(told(0), told(age), bms.DefaultTolerance(), at, limits.MaxAge); (err == nil) != fine {
			t.Errorf("capacity and health of %v ago: got %v, want the same as before %v", age, err, fine)
		}
	}
}
