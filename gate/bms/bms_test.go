package bms_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// good is a reading that the default thresholds allow.
func good() bms.Reading {
	r := bms.Measured(62.5, 21, 24.5, -1.2, now)
	r.Source = "test"
	return r
}

func TestDecide(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	f := func(v float64) *float64 { return &v }
	type change func(*bms.Reading)
	soc := func(v float64) change { return func(r *bms.Reading) { r.Set(bms.SoC, v) } }
	coldest := func(v float64) change { return func(r *bms.Reading) { r.Set(bms.TemperatureMin, v) } }
	hottest := func(v float64) change { return func(r *bms.Reading) { r.Set(bms.TemperatureMax, v) } }
	current := func(v float64) change { return func(r *bms.Reading) { r.Set(bms.Current, v) } }
	at := func(v time.Time) change { return func(r *bms.Reading) { r.At = v } }
	age := func(d time.Duration) change { return at(now.Add(-d)) }

	const low, unsafe = ota.ErrBatteryLow, ota.ErrBMSUnsafe
	for _, tt := range []struct {
		name   string
		change change
		limits ota.Limits
		code   ota.ErrorCode // ErrNone: yes
		reason string
	}{
		{name: "good", change: func(*bms.Reading) {}},

		{"SoC just below", soc(29.9), ota.Limits{}, low, "state of charge 29.9 %, want at least 30 %"},
		{"SoC on the edge", soc(30), ota.Limits{}, 0, ""},
		{"SoC below by less than is shown", soc(29.96), ota.Limits{}, low, "state of charge 29.96 %, want at least 30 %"},
		{"SoC one bit below", soc(math.Nextafter(30, 0)), ota.Limits{}, low, "state of charge 29.999999999999996 %, want at least 30 %"},
		{"SoC 0", soc(0), ota.Limits{}, low, "state of charge 0.0 %, want at least 30 %"},
		{"SoC 100", soc(100), ota.Limits{}, 0, ""},
		{"SoC missing", soc(nan), ota.Limits{}, unsafe, "state of charge is not available"},
		{"SoC infinite", soc(inf), ota.Limits{}, unsafe, "state of charge +Inf % is not plausible, want 0 to 100"},
		{"SoC minus infinite", soc(-inf), ota.Limits{}, unsafe, "state of charge -Inf % is not plausible, want 0 to 100"},
		{"SoC negative", soc(-0.1), ota.Limits{}, unsafe, "state of charge -0.1 % is not plausible, want 0 to 100"},
		{"SoC above 100", soc(100.1), ota.Limits{}, unsafe, "state of charge 100.1 % is not plausible, want 0 to 100"},

		{"hot on the edge", hottest(45), ota.Limits{}, 0, ""},
		{"too hot", hottest(45.1), ota.Limits{}, unsafe, "highest temperature 45.1 °C, want at most 45 °C"},
		{"too hot by less than is shown", hottest(45.01), ota.Limits{}, unsafe, "highest temperature 45.01 °C, want at most 45 °C"},
		{"hottest missing", hottest(nan), ota.Limits{}, unsafe, "highest temperature is not available"},
		{"hottest infinite", hottest(inf), ota.Limits{}, unsafe, "highest temperature +Inf °C is not plausible, want -60 to 120"},
		{"hottest implausible", hottest(120.1), ota.Limits{}, unsafe, "highest temperature 120.1 °C is not plausible, want -60 to 120"},
		{"cold on the edge", coldest(0), ota.Limits{}, 0, ""},
		{"cold minus zero", coldest(math.Copysign(0, -1)), ota.Limits{}, 0, ""},
		{"too cold", coldest(-0.1), ota.Limits{}, unsafe, "lowest temperature -0.1 °C, want at least 0 °C"},
		{"coldest missing", coldest(nan), ota.Limits{}, unsafe, "lowest temperature is not available"},
		{"coldest infinite", coldest(-inf), ota.Limits{}, unsafe, "lowest temperature -Inf °C is not plausible, want -60 to 120"},
		{"coldest implausible", coldest(-60.1), ota.Limits{}, unsafe, "lowest temperature -60.1 °C is not plausible, want -60 to 120"},
		{"coldest above hottest", coldest(24.6), ota.Limits{}, unsafe, "lowest temperature 24.6 °C is above the highest, 24.5 °C"},
		{"coldest is hottest", coldest(24.5), ota.Limits{}, 0, ""},

		{"current on the edge", current(10), ota.Limits{}, 0, ""},
		{"current on the other edge", current(-10), ota.Limits{}, 0, ""},
		{"too much current", current(10.1), ota.Limits{}, unsafe, "current 10.1 A, want at most 10 A in either direction"},
		{"too much current the other way", current(-10.1), ota.Limits{}, unsafe, "current -10.1 A, want at most 10 A in either direction"},
		{"too much by less than is shown", current(-10.04), ota.Limits{}, unsafe, "current -10.04 A, want at most 10 A in either direction"},
		{"current missing", current(nan), ota.Limits{}, unsafe, "current is not available"},
		{"current infinite", current(-inf), ota.Limits{}, unsafe, "current -Inf A is not plausible, want -10000 to 10000"},
		{"current implausible", current(-10000.5), ota.Limits{}, unsafe, "current -10000.5 A is not plausible, want -10000 to 10000"},

		{"as old as allowed", age(5 * time.Second), ota.Limits{}, 0, ""},
		{"1 ms too old", age(5001 * time.Millisecond), ota.Limits{}, unsafe, "the reading of test is 5.001s old, want at most 5s"},
		{"1 s ahead", age(-time.Second), ota.Limits{}, 0, ""},
		{"more than 1 s ahead", age(-1001 * time.Millisecond), ota.Limits{}, unsafe, "the reading of test is from 1.001s in the future; check the clocks"},
		{"without a time", at(time.Time{}), ota.Limits{}, unsafe, "the reading of test has no time"},
		{"from 1970", at(time.Unix(0, 0)), ota.Limits{}, unsafe, "the reading of test is 492324h0m0s old, want at most 5s"},
		{"from very long ago", at(time.Date(-200000, 1, 1, 0, 0, 0, 0, time.UTC)), ota.Limits{}, unsafe, "the reading of test is 2562047h47m16.854775807s old, want at most 5s"},
		{"not valid", func(r *bms.Reading) { r.Valid = false }, ota.Limits{}, unsafe, "the reading of test is marked as not valid"},
		{"nothing at all", func(r *bms.Reading) { *r = bms.Reading{} }, ota.Limits{}, unsafe,
			"the reading is marked as not valid; the reading has no time; state of charge is not available; lowest temperature is not available; highest temperature is not available; current is not available"},

		{"all that is wrong is named", func(r *bms.Reading) { *r = bms.Measured(22, -5, 50, -80, now) }, ota.Limits{}, unsafe,
			"state of charge 22.0 %, want at least 30 %; lowest temperature -5.0 °C, want at least 0 °C; " +
				"highest temperature 50.0 °C, want at most 45 °C; current -80.0 A, want at most 10 A in either direction"},
		{"low and stale is unsafe", func(r *bms.Reading) { r.Set(bms.SoC, 22); r.At = now.Add(-time.Minute) }, ota.Limits{}, unsafe,
			"the reading of test is 1m0s old, want at most 5s; state of charge 22.0 %, want at least 30 %"},

		{"stricter release, SoC", soc(39.9), ota.Limits{MinSoC: f(40)}, low, "state of charge 39.9 %, want at least 40 % for release 1.2.0"},
		{"stricter release, SoC edge", soc(40), ota.Limits{MinSoC: f(40)}, 0, ""},
		{"more lenient release, SoC", soc(29.9), ota.Limits{MinSoC: f(10)}, low, "state of charge 29.9 %, want at least 30 %"},
		{"equal release, SoC", soc(29.9), ota.Limits{MinSoC: f(30)}, low, "state of charge 29.9 %, want at least 30 %"},
		{"stricter release, hot", hottest(40.1), ota.Limits{MaxTemperature: f(40)}, unsafe, "highest temperature 40.1 °C, want at most 40 °C for release 1.2.0"},
		{"more lenient release, hot", hottest(45.1), ota.Limits{MaxTemperature: f(60)}, unsafe, "highest temperature 45.1 °C, want at most 45 °C"},
		{"stricter release, cold", coldest(4.9), ota.Limits{MinTemperature: f(5)}, unsafe, "lowest temperature 4.9 °C, want at least 5 °C for release 1.2.0"},
		{"more lenient release, cold", coldest(-0.1), ota.Limits{MinTemperature: f(-20)}, unsafe, "lowest temperature -0.1 °C, want at least 0 °C"},
		{"stricter release, current", current(-1.2), ota.Limits{MaxCurrent: f(1)}, unsafe, "current -1.2 A, want at most 1 A in either direction for release 1.2.0"},
		{"stricter release, zero current", current(0), ota.Limits{MaxCurrent: f(0)}, 0, ""},
		{"more lenient release, current", current(10.1), ota.Limits{MaxCurrent: f(100)}, unsafe, "current 10.1 A, want at most 10 A in either direction"},
		{"release that is not a number, SoC", soc(100), ota.Limits{MinSoC: f(nan)}, low, "state of charge 100.0 %, want at least NaN % for release 1.2.0"},
		{"release that is not a number, current", current(0), ota.Limits{MaxCurrent: f(nan)}, unsafe, "current 0.0 A, want at most NaN A in either direction for release 1.2.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := good()
			tt.change(&r)
			err := bms.Decide(r, bms.Default(), &ota.Manifest{Version: "1.2.0", Limits: tt.limits}, now)
			if got := ota.CodeOf(err); got != tt.code {
				t.Errorf("got code %v, want %v", got.Name(), tt.code.Name())
			}
			if tt.code == 0 {
				if err != nil {
					t.Errorf("got %v, want yes", err)
				}
				return
			}
			refusal, ok := err.(*ota.Refusal)
			if !ok {
				t.Fatalf("got %T, want a refusal", err)
			}
			if refusal.Reason != tt.reason {
				t.Errorf("reason:\n got %q\nwant %q", refusal.Reason, tt.reason)
			}
			if _, err := json.Marshal(refusal.Signals); err != nil {
				t.Errorf("the signals cannot be sent: %v", err)
			}
		})
	}
}

func TestDecideSignals(t *testing.T) {
	r := good()
	r.Set(bms.SoC, 22)
	r.Set(bms.TemperatureMax, math.NaN())
	var refusal *ota.Refusal
	if err := bms.Decide(r, bms.Default(), nil, now); !errors.As(err, &refusal) {
		t.Fatalf("got %v, want a refusal", err)
	}
	want := []ota.Signal{
		{Name: "soc", Value: 22, Unit: "%", At: now, Source: "test"},
		{Name: "temperature_min", Value: 21, Unit: "°C", At: now, Source: "test"},
		{Name: "current", Value: -1.2, Unit: "A", At: now, Source: "test"},
	}
	if diff := cmp.Diff(want, refusal.Signals); diff != "" {
		t.Errorf("signals (-want +got):\n%s", diff)
	}
}

// TestDecideMonotone makes one thing worse, many thousand times: never may a no
// become a yes by it.
func TestDecideMonotone(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	between := func(a, b float64) float64 { return a + rng.Float64()*(b-a) }
	step := func() float64 { return math.Exp(between(-12, 6)) }
	limit := func(a, b float64) *float64 {
		if rng.IntN(2) == 0 {
			return nil
		}
		v := between(a, b)
		return &v
	}
	broken := []float64{math.NaN(), math.Inf(1), math.Inf(-1)}
	yes, flips := 0, 0
	for range 60_000 {
		coldest := between(-10, 30)
		r := bms.Measured(between(10, 100), coldest, coldest+between(0, 20), between(-15, 15), now.Add(-time.Duration(between(-1, 7)*1e9)))
		r.Valid = rng.IntN(20) > 0
		th := bms.Thresholds{MinSoC: between(0, 60), MinTemperature: between(-20, 10), MaxTemperature: between(20, 60),
			MaxCurrent: between(0, 20), MaxAge: time.Duration(between(1, 8) * 1e9)}
		m := ota.Manifest{Limits: ota.Limits{MinSoC: limit(0, 80), MinTemperature: limit(-20, 15), MaxTemperature: limit(15, 60), MaxCurrent: limit(0, 20)}}

		r2, th2, m2 := r, th, m
		raise := func(p *float64, by float64) *float64 {
			if p == nil {
				v := between(-60, 120) // a limit where there was none
				return &v
			}
			v := *p + by
			return &v
		}
		what := rng.IntN(17)
		switch what {
		case 0:
			r2.Set(bms.SoC, r2.Value(bms.SoC)-step())
		case 1:
			r2.Set(bms.TemperatureMin, r2.Value(bms.TemperatureMin)-step())
		case 2:
			r2.Set(bms.TemperatureMax, r2.Value(bms.TemperatureMax)+step())
		case 3:
			r2.Set(bms.Current, r2.Value(bms.Current)+math.Copysign(step(), r.Value(bms.Current)))
		case 4:
			r2.At = r.At.Add(-time.Duration(step() * 1e9))
		case 5:
			r2.Valid = false
		case 6:
			r2.At = time.Time{}
		case 7:
			r2.Set(bms.SoC, broken[rng.IntN(3)])
		case 8:
			r2.Set(bms.TemperatureMin, broken[rng.IntN(3)])
		case 9:
			r2.Set(bms.TemperatureMax, broken[rng.IntN(3)])
		case 10:
			r2.Set(bms.Current, broken[rng.IntN(3)])
		case 11:
			th2.MinSoC = min(th.MinSoC+step(), 100)
		case 12:
			th2.MaxCurrent = max(th.MaxCurrent-step(), 0)
		case 13:
			th2.MaxAge = max(th.MaxAge-time.Duration(step()*1e9), 1)
		case 14:
			m2.Limits.MinSoC = raise(m.Limits.MinSoC, step())
		case 15:
			m2.Limits.MaxTemperature = raise(m.Limits.MaxTemperature, -step())
		case 16:
			m2.Limits.MaxCurrent = raise(m.Limits.MaxCurrent, -step())
		}
		before, after := bms.Decide(r, th, &m, now), bms.Decide(r2, th2, &m2, now)
		if before != nil && after == nil {
			t.Fatalf("change %d made a yes of %q:\n%+v\n%+v", what, before, r, r2)
		}
		if before == nil {
			yes++
			if after != nil {
				flips++
			}
		}
	}
	if yes < 5_000 || flips < 1_000 { // otherwise the test says nothing
		t.Errorf("got %d yes, of which %d became a no; want 5,000 and 1,000 for the test to mean something", yes, flips)
	}
	t.Logf("%d yes, of which %d became a no; no no became a yes", yes, flips)
}

func TestThresholdsValidate(t *testing.T) {
	change := func(f func(*bms.Thresholds)) bms.Thresholds {
		th := bms.Default()
		f(&th)
		return th
	}
	with := func(f func(*bms.Thresholds)) bms.Thresholds {
		th := bms.Recommended()
		f(&th)
		return th
	}
	for name, tt := range map[string]struct {
		t    bms.Thresholds
		want string
	}{
		"default":        {bms.Default(), ""},
		"zero":           {bms.Thresholds{}, "maximum age is 0s"},
		"freezing point": {change(func(t *bms.Thresholds) { t.MinTemperature, t.MaxTemperature = -20, 0 }), ""},
		"all allowed":    {bms.Thresholds{MinSoC: 0, MaxTemperature: 120, MinTemperature: -60, MaxCurrent: 10000, MaxAge: 5 * time.Minute}, ""},
		"SoC 100.1":      {change(func(t *bms.Thresholds) { t.MinSoC = 100.1 }), "minimum state of charge is 100.1 %, want 0 to 100"},
		"SoC NaN":        {change(func(t *bms.Thresholds) { t.MinSoC = math.NaN() }), "minimum state of charge is NaN"},
		"hot":            {change(func(t *bms.Thresholds) { t.MaxTemperature = 121 }), "maximum temperature is 121 °C"},
		"cold":           {change(func(t *bms.Thresholds) { t.MinTemperature = -61 }), "minimum temperature is -61 °C"},
		"crossed":        {change(func(t *bms.Thresholds) { t.MinTemperature = 46 }), "minimum temperature 46 °C is above maximum temperature 45 °C"},
		"current":        {change(func(t *bms.Thresholds) { t.MaxCurrent = -1 }), "maximum current is -1 A"},
		"current Inf":    {change(func(t *bms.Thresholds) { t.MaxCurrent = math.Inf(1) }), "maximum current is +Inf A"},
		"age":            {change(func(t *bms.Thresholds) { t.MaxAge = 5*time.Minute + 1 }), "maximum age"},

		"recommended":             {bms.Recommended(), ""},
		"recommended, at 1 A":     {with(func(t *bms.Thresholds) { t.MaxCurrent = 1 }), ""},
		"recommended, less of it": {with(func(t *bms.Thresholds) { t.MaxSoC, t.MaxCellDelta, t.MaxUncounted, t.MaxTemperatureRate = 0, 0, 0, 0 }), ""},
		"high SoC below low":      {change(func(t *bms.Thresholds) { t.MaxSoC = 29 }), "maximum state of charge is 29 %, want 30 to 100, or 0 for none"},
		"high SoC":                {change(func(t *bms.Thresholds) { t.MaxSoC = 100.1 }), "maximum state of charge"},
		"high SoC NaN":            {change(func(t *bms.Thresholds) { t.MaxSoC = math.NaN() }), "maximum state of charge"},
		"cell":                    {change(func(t *bms.Thresholds) { t.MinCell = -1 }), "minimum cell voltage"},
		"cells crossed":           {change(func(t *bms.Thresholds) { t.MinCell, t.MaxCell = 3, 2.9 }), "maximum cell voltage is 2.9 V, want 3 to 6"},
		"cell in mV":              {change(func(t *bms.Thresholds) { t.MaxCell = 3550 }), "maximum cell voltage"},
		"cells apart":             {change(func(t *bms.Thresholds) { t.MaxCellDelta = 50 }), "maximum difference of cell voltages"},
		"rate":                    {change(func(t *bms.Thresholds) { t.MaxTemperatureRate = -1 }), "maximum rate of the temperature"},
		"contactors":              {change(func(t *bms.Thresholds) { t.Contactors = "opened" }), `contactors are "opened", want open, closed or nothing`},
		"ignored without a name":  {change(func(t *bms.Thresholds) { t.IgnoreAlarms = []string{"door", ""} }), "an alarm to ignore has no name"},
		"uncounted within a step": {change(func(t *bms.Thresholds) { t.MaxUncounted = 0.5 }), "uncounted charge is 0.5 %, want 1 to 100, or 0 for none"},
		"rated":                   {change(func(t *bms.Thresholds) { t.RatedCapacity = -1 }), "rated capacity"},
		"others":                  {change(func(t *bms.Thresholds) { t.MinOthers = -1 }), "other instruments"},
		"no agreement": {change(func(t *bms.Thresholds) {
			t.Agreement = bms.Agreement{SoC: -1, Temperature: -1, Current: -1, CurrentShare: -1}
		}), ""},
		"agreement NaN":            {change(func(t *bms.Thresholds) { t.Agreement.SoC = math.NaN() }), "agreement of states of charge is NaN %"},
		"agreement of temperature": {change(func(t *bms.Thresholds) { t.Agreement.Temperature = math.Inf(1) }), "agreement of temperatures"},
		"agreement of current":     {change(func(t *bms.Thresholds) { t.Agreement.Current = 10001 }), "agreement of currents is 10001 A"},
		"agreement in percent":     {change(func(t *bms.Thresholds) { t.Agreement.CurrentShare = 2 }), "agreement of currents as a share is 2, want at most 1"},

		"keep, a limit for a margin: SoC":      {with(func(t *bms.Thresholds) { t.Keep.MinSoC = 27 }), "margin to keep of the minimum state of charge is 27 %, want 0 to 10"},
		"keep, a limit for a margin: high SoC": {with(func(t *bms.Thresholds) { t.Keep.MaxSoC = 92 }), "margin to keep of the maximum state of charge"},
		"keep, a limit for a margin: hot":      {with(func(t *bms.Thresholds) { t.Keep.MaxTemperature = 47 }), "margin to keep of the maximum temperature"},
		"keep, a limit for a margin: current":  {with(func(t *bms.Thresholds) { t.Keep.MaxCurrent = 12 }), "margin to keep of the maximum current"},
		"keep, a limit for a margin: cells":    {with(func(t *bms.Thresholds) { t.Keep.MaxCellDelta = 0.06 }), "margin to keep of the difference of cell voltages"},
		"keep, on the wrong side: cold":        {with(func(t *bms.Thresholds) { t.Keep.MinTemperature = -1 }), "margin to keep of the minimum temperature is -1 K"},
		"keep, not a number":                   {with(func(t *bms.Thresholds) { t.Keep.MinSoC = math.NaN() }), "margin to keep of the minimum state of charge"},
	} {
		err := tt.t.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
		if tt.want != "" {
			if err := bms.Decide(good(), tt.t, nil, now); ota.CodeOf(err) != ota.ErrBMSUnsafe {
				t.Errorf("%s: a decision with such thresholds: got %v, want BMS_UNSAFE", name, err)
			}
			if _, err := bms.New(func(context.Context) (bms.Reading, error) { return good(), nil }, tt.t); err == nil {
				t.Errorf("%s: New took such thresholds", name)
			}
		}
	}
}

func TestGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r bms.Reading
		var readErr error
		slow := time.Duration(0)
		g, err := bms.New(func(context.Context) (bms.Reading, error) {
			out := r
			out.At = time.Now()
			time.Sleep(slow)
			return out, readErr
		}, bms.Default())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Last(); err == nil {
			t.Error("Last before the first question: got no error")
		}
		ask := func() error { return g.Gate(t.Context(), nil, ota.BeforeRestart) }

		r = good()
		if err := ask(); err != nil {
			t.Errorf("got %v, want yes", err)
		}
		if last, err := g.Last(); err != nil || last.Value(bms.SoC) != 62.5 {
			t.Errorf("Last: got %v, %v", last.Value(bms.SoC), err)
		}

		slow = 5001 * time.Millisecond // the time that reading takes is age
		if err := ask(); ota.CodeOf(err) != ota.ErrBMSUnsafe {
			t.Errorf("slow reader: got %v, want BMS_UNSAFE", err)
		}
		slow = 0

		readErr = errors.New("bus is down") // with a good reading beside it, which must not count
		if err := ask(); ota.CodeOf(err) != ota.ErrBMSUnsafe || err.Error() != "not now: read the battery: bus is down" {
			t.Errorf("reader error: got %v", err)
		}
		if last, err := g.Last(); err == nil || last.Signals != nil {
			t.Errorf("Last after an error: got %v, %v", last, err)
		}
		readErr = context.DeadlineExceeded
		if err := ask(); ota.CodeOf(err) != ota.ErrBMSUnsafe {
			t.Errorf("deadline: got code %v, want BMS_UNSAFE", ota.CodeOf(err).Name())
		}
		readErr = nil

		th := g.Thresholds()
		th.MinSoC = 70
		if err := g.SetThresholds(th); err != nil {
			t.Fatal(err)
		}
		if err := ask(); ota.CodeOf(err) != ota.ErrBatteryLow {
			t.Errorf("stricter thresholds: got %v, want BATTERY_LOW", err)
		}
		if err := g.SetThresholds(bms.Thresholds{}); err == nil {
			t.Error("zero thresholds were taken")
		}
		if got := g.Thresholds().MinSoC; got != 70 {
			t.Errorf("after a refused change: got %v, want 70", got)
		}
	})
}

func TestGuardFailsClosed(t *testing.T) {
	if _, err := bms.New(nil, bms.Default()); err == nil {
		t.Error("New took a missing reader")
	}
	var zero bms.Guard
	if err := zero.Gate(t.Context(), nil, ota.BeforeWrite); ota.CodeOf(err) != ota.ErrBMSUnsafe {
		t.Errorf("zero guard: got %v, want BMS_UNSAFE", err)
	}
	g, err := bms.New(func(context.Context) (bms.Reading, error) { panic("nil map") }, bms.Default())
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Gate(t.Context(), nil, ota.BeforeWrite); ota.CodeOf(err) != ota.ErrBMSUnsafe || !strings.Contains(err.Error(), "panicked: nil map") {
		t.Errorf("panic: got %v, want BMS_UNSAFE", err)
	}
}

func TestGuardConcurrent(t *testing.T) {
	g, err := bms.New(func(context.Context) (bms.Reading, error) { r := good(); r.At = time.Now(); return r, nil }, bms.Default())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 200 {
				th := bms.Default()
				th.MinSoC = float64(i)
				if err := g.SetThresholds(th); err != nil {
					t.Error(err)
				}
				if err := g.Gate(t.Context(), nil, ota.BeforeWrite); err != nil {
					t.Error(err)
				}
				if _, err := g.Last(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func ExampleRecommended() {
	th := bms.Recommended()
	th.MaxCurrent = 1                       // the converter is updated, and contactors may open
	th.Contactors = bms.ContactorsOpen      // and they must be
	th.IgnoreAlarms = []string{"fan 3"}     // known, and ordered
	th.RatedCapacity, th.MinOthers = 280, 1 // the battery does not say; a meter must agree
	fmt.Println(th.Validate())
	// Output: <nil>
}

func ExampleNew() {
	battery := func(context.Context) (bms.Reading, error) {
		return bms.Measured(22, 18, 23, 0.4, time.Now()), nil
	}
	guard, err := bms.New(battery, bms.Default())
	if err != nil {
		fmt.Println(err)
		return
	}
	var g ota.Gate = guard.Gate
	fmt.Println(g(context.Background(), &ota.Manifest{Version: "1.2.0"}, ota.BeforeWrite))
	// Output: not now: state of charge 22.0 %, want at least 30 %
}
