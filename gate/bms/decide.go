package bms

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
)

// Decide is the decision of [Guard.Gate] for a reading at the time now: nil, or
// a [*ota.Refusal] that names all conditions that do not hold. The code is
// [ota.ErrBatteryLow] if the state of charge is known and too low, and nothing
// else is wrong; otherwise it is [ota.ErrBMSUnsafe].
//
// Limits of m apply where they are stricter than t; m may be nil. Edges are
// within: 30.0 % is enough for a minimum of 30 %. The age of a reading is taken
// from the monotonic clock if both times have it.
func Decide(r Reading, t Thresholds, m *ota.Manifest, now time.Time) error {
	d := decision{low: true}
	if err := t.Validate(); err != nil {
		d.unsafe("%v", err)
	}
	d.trust(r, t, now)

	limits, release := ota.Limits{}, ""
	if m != nil {
		limits, release = m.Limits, " for release "+m.Version
	}
	want := stricter{release: release}

	if v := r.Value(SoC); d.plausible("state of charge", v, 0, 100, "%") {
		if limit, whose := want.atLeast(t.MinSoC, limits.MinSoC); !(v >= limit) {
			d.no(ota.ErrBatteryLow, "state of charge %s %%, want at least %s %%%s", number(v, limit), exact(limit), whose)
		}
	}
	low, high := r.Value(TemperatureMin), r.Value(TemperatureMax)
	cold := d.plausible("lowest temperature", low, lowestTemperature, highestTemperature, "°C")
	if cold {
		if limit, whose := want.atLeast(t.MinTemperature, limits.MinTemperature); !(low >= limit) {
			d.unsafe("lowest temperature %s °C, want at least %s °C%s", number(low, limit), exact(limit), whose)
		}
	}
	hot := d.plausible("highest temperature", high, lowestTemperature, highestTemperature, "°C")
	if hot {
		if limit, whose := want.atMost(t.MaxTemperature, limits.MaxTemperature); !(high <= limit) {
			d.unsafe("highest temperature %s °C, want at most %s °C%s", number(high, limit), exact(limit), whose)
		}
	}
	if cold && hot && low > high {
		d.unsafe("lowest temperature %s °C is above the highest, %s °C", exact(low), exact(high))
	}
	if v := r.Value(Current); d.plausible("current", v, -highestCurrent, highestCurrent, "A") {
		if limit, whose := want.atMost(t.MaxCurrent, limits.MaxCurrent); !(math.Abs(v) <= limit) {
			d.unsafe("current %s A, want at most %s A in either direction%s", number(v, limit), exact(limit), whose)
		}
	}

	if len(d.reasons) == 0 {
		return nil
	}
	code := ota.ErrBMSUnsafe
	if d.low {
		code = ota.ErrBatteryLow
	}
	return &ota.Refusal{Code: code, Reason: strings.Join(d.reasons, "; "), Signals: r.Tell()}
}

type decision struct {
	reasons []string
	low     bool // so far nothing is wrong but the state of charge
}

func (d *decision) no(code ota.ErrorCode, format string, a ...any) {
	d.reasons = append(d.reasons, fmt.Sprintf(format, a...))
	d.low = d.low && code == ota.ErrBatteryLow
}

func (d *decision) unsafe(format string, a ...any) { d.no(ota.ErrBMSUnsafe, format, a...) }

// trust checks whether r may be believed at all.
func (d *decision) trust(r Reading, t Thresholds, now time.Time) {
	from := "the reading"
	if r.Source != "" {
		from = "the reading of " + r.Source
	}
	if !r.Valid {
		d.unsafe("%s is marked as not valid", from)
	}
	if r.At.IsZero() {
		d.unsafe("%s has no time", from)
		return
	}
	switch age := now.Sub(r.At); {
	case age > t.MaxAge:
		d.unsafe("%s is %v old, want at most %v", from, age.Round(time.Millisecond), t.MaxAge)
	case age < -aheadAtMost:
		d.unsafe("%s is from %v in the future; check the clocks", from, (-age).Round(time.Millisecond))
	}
}

// plausible reports whether v can be such a value, and refuses otherwise.
func (d *decision) plausible(name string, v, least, most float64, unit string) bool {
	switch {
	case math.IsNaN(v):
		d.unsafe("%s is not available", name)
	case !(v >= least && v <= most):
		d.unsafe("%s %s %s is not plausible, want %s to %s", name, exact(v), unit, exact(least), exact(most))
	default:
		return true
	}
	return false
}

// stricter picks the limit that applies, and says so if it is the release's. A
// limit that is NaN is picked, and then no value fulfils it.
type stricter struct{ release string }

func (s stricter) atLeast(device float64, release *float64) (limit float64, whose string) {
	if release == nil || *release <= device {
		return device, ""
	}
	return *release, s.release
}

func (s stricter) atMost(device float64, release *float64) (limit float64, whose string) {
	if release == nil || *release >= device {
		return device, ""
	}
	return *release, s.release
}

// number formats v with one decimal, or with all of them where one would read
// as if v had reached the limit: 29.96 % is not "30.0 %, want at least 30 %".
func number(v, limit float64) string {
	s := strconv.FormatFloat(v, 'f', 1, 64)
	if rounded, err := strconv.ParseFloat(s, 64); err != nil || math.Abs(rounded) == math.Abs(limit) {
		return exact(v)
	}
	return s
}

func exact(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
