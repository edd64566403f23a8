package bms

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
)

// Decide is the decision of [Guard.Gate] for a reading at the time now, as far as it
// needs no earlier readings: nil, or a [*ota.Refusal] that names all conditions that
// do not hold. The code is [ota.ErrBatteryLow] if the state of charge is known and
// too low, and nothing else is wrong; otherwise it is [ota.ErrBMSUnsafe]. Whether a
// heartbeat moves, [Thresholds.MaxTemperatureRate], [Thresholds.MaxUncounted] and
// [Thresholds.Keep] need a [Guard].
//
// Limits of m apply where they are stricter than t; m may be nil. Edges are
// within: 30.0 % is enough for a minimum of 30 %. Ages are taken from the monotonic
// clock or from the wall clock, whichever says more.
func Decide(r Reading, t Thresholds, m *ota.Manifest, now time.Time) error {
	return judge(&r, t, false, m, now).verdict()
}

// judge applies every rule that needs no earlier readings.
func judge(r *Reading, t Thresholds, kept bool, m *ota.Manifest, now time.Time) *decision {
	d := &decision{r: r, t: t, now: now, low: true}
	if err := t.Validate(); err != nil {
		d.unsafe("%v", err)
	}
	if kept {
		d.t, d.strict = t.kept(), &t
	}
	if m != nil {
		d.limits, d.release = m.Limits, " for release "+m.Version
	}
	used := d.needed()
	if t.MaxUncounted > 0 {
		used = append(used, Capacity) // where the source says it, this is what is taken
	}
	d.trust(r, used)
	if r.Beat == nil && t.RequireBeat {
		d.no(ota.CauseStale, "%s has no heartbeat, so that nobody can tell whether it repeats old values", r.who())
	}
	for _, i := range r.instruments() {
		if b := i.Beat; b != nil && (b.Within < 0 || b.Within > longestAge) {
			d.unsafe("the heartbeat of %s is due within %v, want 0 to %v", i.who(), b.Within, longestAge)
		}
	}
	d.values()
	d.state()
	d.alarms()
	d.others()
	return d
}

// A decision is what is wrong so far.
type decision struct {
	r       *Reading
	t       Thresholds
	strict  *Thresholds // what t would be if nothing had been allowed before; nil: t
	limits  ota.Limits
	release string // " for release 1.2.0"
	now     time.Time

	reasons []string
	causes  []ota.Cause
	low     bool // so far nothing is wrong but the state of charge
}

func (d *decision) no(cause ota.Cause, format string, a ...any) {
	d.reasons = append(d.reasons, fmt.Sprintf(format, a...))
	d.low = d.low && cause == ota.CauseSoCLow
	if !slices.Contains(d.causes, cause) {
		d.causes = append(d.causes, cause)
	}
}

func (d *decision) unsafe(format string, a ...any) { d.no(ota.CauseOther, format, a...) }

func (d *decision) verdict() error {
	if len(d.reasons) == 0 {
		return nil
	}
	code := ota.ErrBMSUnsafe
	if d.low {
		code = ota.ErrBatteryLow
	}
	return &ota.Refusal{Code: code, Reason: strings.Join(d.reasons, "; "), Signals: d.r.Tell(), Causes: d.causes}
}

// needed are the quantities that a rule in force looks at.
func (d *decision) needed() []Quantity {
	need := []Quantity{SoC, TemperatureMin, TemperatureMax, Current}
	if d.t.MinCell > 0 || d.t.MaxCellDelta > 0 {
		need = append(need, CellMin)
	}
	if d.t.MaxCell > 0 || d.t.MaxCellDelta > 0 {
		need = append(need, CellMax)
	}
	if d.t.MaxUncounted > 0 && !(d.t.RatedCapacity > 0) {
		need = append(need, Capacity)
	}
	return need
}

// trust checks whether r may be believed at all: that the system vouches for it, and
// that everything that is looked at is fresh.
func (d *decision) trust(r *Reading, used []Quantity) {
	from := "the reading"
	if r.Source != "" {
		from = "the reading of " + r.Source
	}
	if !r.Valid {
		d.no(ota.CauseStale, "%s is marked as not valid", from)
	}
	stale := r.At.IsZero()
	if stale {
		d.no(ota.CauseStale, "%s has no time", from)
	} else {
		stale = d.old(from, r.At, d.t.MaxAge, "")
	}
	for _, u := range units {
		s := r.Signals[u.q]
		if !slices.Contains(used, u.q) || math.IsNaN(r.Value(u.q)) {
			continue
		}
		limit, whose := d.t.MaxAge, ""
		if u.q == SoH || u.q == Capacity { // some tell them seldom, and they do not change in minutes
			limit = longestAge
		}
		if s.Cycle > 0 && s.Cycle < limit && 3*s.Cycle < limit {
			limit, whose = 3*s.Cycle, ", three of its cycles"
		}
		if s.At.IsZero() && (stale || whose == "") {
			continue // as old as the reading, which is judged
		}
		d.old(u.name+r.of(), r.at(u.q), limit, whose)
	}
}

// old refuses what is from too long ago, or from the future.
func (d *decision) old(what string, at time.Time, limit time.Duration, whose string) bool {
	switch age := elapsed(at, d.now); {
	case age > limit:
		d.no(ota.CauseStale, "%s is %v old, want at most %v%s", what, span(age, limit), limit, whose)
	case age < -aheadAtMost:
		d.no(ota.CauseStale, "%s is from %v in the future; check the clocks", what, span(-age, aheadAtMost))
	default:
		return false
	}
	return true
}

// elapsed is the time between two moments by the clock that says more. The
// monotonic clock of Linux stands still while the system sleeps; the wall clock does
// not. One that is set forward costs a reading, which is the safe side.
func elapsed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}

// span formats d to the millisecond, or exactly where that would read as the limit.
func span(d, limit time.Duration) time.Duration {
	if short := d.Round(time.Millisecond); short != limit {
		return short
	}
	return d
}

// values holds every signal against what it can be, and against the limits.
func (d *decision) values() {
	r, need := d.r, d.needed()
	ok := map[Quantity]bool{}
	for _, u := range units {
		if ok[u.q] = d.plausible(u, r.Value(u.q), slices.Contains(need, u.q)); ok[u.q] {
			d.within(u, r.Value(u.q))
		}
	}
	if low, high := r.Value(TemperatureMin), r.Value(TemperatureMax); ok[TemperatureMin] && ok[TemperatureMax] && low > high {
		d.unsafe("lowest temperature %s °C is above the highest, %s °C", exact(low), exact(high))
	}
	if low, high := r.Value(CellMin), r.Value(CellMax); ok[CellMin] && ok[CellMax] {
		if low > high {
			d.unsafe("lowest cell voltage %s V is above the highest, %s V", exact(low), exact(high))
		}
		if limit := d.t.MaxCellDelta; limit > 0 && beyond(high-low, limit) {
			d.no(ota.CauseCellDelta, "the cells are %s V apart, want at most %s V%s", number(high-low, limit, 3), exact(limit), d.kept(limit != d.before().MaxCellDelta))
		}
	}
	if d.t.MaxUncounted > 0 && ok[Capacity] && !(capacity(r, &d.t) > 0) {
		d.unsafe("capacity is 0 Ah, so that nobody can tell whether the state of charge follows the current; set the rated capacity")
	}
}

// plausible reports whether v can be such a value, and refuses otherwise. What is
// not available is refused only if it is needed.
func (d *decision) plausible(u unit, v float64, needed bool) bool {
	switch {
	case math.IsNaN(v):
		if needed {
			d.no(ota.CauseStale, "%s is not available", u.name)
		}
	case !(v >= u.least && v <= u.most):
		d.unsafe("%s %s %s is not plausible, want %s to %s", u.name, exact(v), u.unit, exact(u.least), exact(u.most))
	default:
		return true
	}
	return false
}

// within holds one value against its limits.
func (d *decision) within(u unit, v float64) {
	t, before := &d.t, d.before()
	atLeast := func(cause ota.Cause, device, before float64, release *float64) {
		if limit, whose := d.atLeast(device, before, release); !(v >= limit) {
			d.no(cause, "%s %s %s, want at least %s %s%s", u.name, number(v, limit, u.decimals), u.unit, exact(limit), u.unit, whose)
		}
	}
	atMost := func(cause ota.Cause, device, before float64, release *float64) {
		if limit, whose := d.atMost(device, before, release); !(v <= limit) {
			d.no(cause, "%s %s %s, want at most %s %s%s", u.name, number(v, limit, u.decimals), u.unit, exact(limit), u.unit, whose)
		}
	}
	switch u.q {
	case SoC:
		atLeast(ota.CauseSoCLow, t.MinSoC, before.MinSoC, d.limits.MinSoC)
		if t.MaxSoC > 0 {
			atMost(ota.CauseSoCHigh, t.MaxSoC, before.MaxSoC, nil)
		}
	case TemperatureMin:
		atLeast(ota.CauseTemperatureLow, t.MinTemperature, before.MinTemperature, d.limits.MinTemperature)
	case TemperatureMax:
		atMost(ota.CauseTemperatureHigh, t.MaxTemperature, before.MaxTemperature, d.limits.MaxTemperature)
	case Current:
		if limit, whose := d.atMost(t.MaxCurrent, before.MaxCurrent, d.limits.MaxCurrent); !(math.Abs(v) <= limit) {
			d.no(ota.CauseCurrent, "current %s A, want at most %s A in either direction%s", number(v, limit, 1), exact(limit), whose)
		}
	case CellMin:
		if t.MinCell > 0 {
			atLeast(ota.CauseCellLow, t.MinCell, t.MinCell, nil)
		}
	case CellMax:
		if t.MaxCell > 0 {
			atMost(ota.CauseCellHigh, t.MaxCell, t.MaxCell, nil)
		}
	}
}

// capacity is what the battery holds, in Ah: what it says itself, or what it is
// rated for; 0: not known.
func capacity(r *Reading, t *Thresholds) float64 {
	if v := r.Value(Capacity); v > 0 && v <= highestCapacity {
		return v
	}
	return t.RatedCapacity
}

// before are the thresholds without what [Thresholds.Keep] adds.
func (d *decision) before() *Thresholds {
	if d.strict != nil {
		return d.strict
	}
	return &d.t
}

// kept says that a limit is a softer one.
func (d *decision) kept(yes bool) string {
	if yes {
		return " to stay allowed"
	}
	return ""
}

// atLeast picks the limit that applies, and says so if it is the release's or a
// softened one. A limit that is NaN is picked, and then no value fulfils it.
func (d *decision) atLeast(device, before float64, release *float64) (limit float64, whose string) {
	if release == nil || *release <= device {
		return device, d.kept(device != before)
	}
	return *release, d.release
}

func (d *decision) atMost(device, before float64, release *float64) (limit float64, whose string) {
	if release == nil || *release >= device {
		return device, d.kept(device != before)
	}
	return *release, d.release
}

// beyond reports whether a difference of two values is more than allowed: 3.35 V
// and 3.30 V are 50 mV apart, which their binary forms are not. NaN is.
func beyond(difference, limit float64) bool { return !(difference <= limit+1e-9) }

// number formats v with so many decimals, or with more where fewer would read as if
// v had reached the limit: 29.96 % is not "30.0 %, want at least 30 %".
func number(v, limit float64, decimals int) string {
	for n := decimals; n <= decimals+3; n++ {
		s := strconv.FormatFloat(v, 'f', n, 64)
		if rounded, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(rounded) != math.Abs(limit) {
			return s
		}
	}
	return exact(v)
}

func exact(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
