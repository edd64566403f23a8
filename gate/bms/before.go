package bms

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Tolerance is by how much a battery may differ from what it was before an update.
// Values are meant as they stand, so start from [DefaultTolerance].
type Tolerance struct {
	SoC             float64 // %
	Temperature     float64 // K
	TemperatureRate float64 // K/min: by this much more for every minute between the two readings, to 10 K more
	CellVoltage     float64 // V, where the battery was at rest and is
	Rest            float64 // A: a current of at most this much is rest
	SoH             float64 // %
	Capacity        float64 // % of what it was
}

// DefaultTolerance is 2 %, 2 K and half a kelvin per minute, 20 mV at up to 1 A, 1 %
// of state of health and 1 % of capacity. A restart takes minutes in which fans may
// stand still: half of what [Recommended] calls too fast a rise.
func DefaultTolerance() Tolerance {
	return Tolerance{SoC: 2, Temperature: 2, TemperatureRate: 0.5, CellVoltage: 0.02, Rest: 1, SoH: 1, Capacity: 1}
}

// mostGrowth bounds what time adds to the tolerance of temperatures, in K: after a
// day too, a sensor that has changed its unit is another one. So does a clock that
// was set while the device restarted.
const mostGrowth = 10

// Compare reports whether a battery is after an update, at the time now, what it was
// before: everything that it told it tells again, not older than maxAge, plausible,
// and within the tolerance, and there is no alarm that was not there. The same goes
// for every other instrument, in its place. The error names every difference.
//
// Cell voltages are compared only where no more current flows, nor did, than
// [Tolerance.Rest]. What flows when power has come back moves the state of charge, so
// compare before that. Whether the values move at all is [Guard.Alive]'s question,
// and whether instruments agree is [Decide]'s.
func Compare(before, after Reading, t Tolerance, now time.Time, maxAge time.Duration) error {
	c := &comparison{decision: decision{r: &after, t: Thresholds{MaxAge: maxAge}, now: now}, tolerance: t}
	c.growth = min(max(after.At.Sub(before.At).Minutes(), 0)*t.TemperatureRate, mostGrowth)
	c.rest = math.Abs(before.Value(Current)) <= t.Rest && math.Abs(after.Value(Current)) <= t.Rest
	if !before.Valid || len(before.Signals) == 0 {
		c.unsafe("the reading from before is not valid or empty, so that nothing can be told from it")
	}
	c.compare(&before, &after)
	if len(c.reasons) > 0 {
		return fmt.Errorf("compare the battery with what it was before: %s", strings.Join(c.reasons, "; "))
	}
	return nil
}

type comparison struct {
	decision
	tolerance Tolerance
	growth    float64 // K
	rest      bool
}

func (c *comparison) compare(before, after *Reading) {
	var all []Quantity
	for _, u := range units {
		all = append(all, u.q)
	}
	c.trust(after, all)
	for _, u := range units {
		was, is := before.Value(u.q), after.Value(u.q)
		u.name += after.of()
		there := finite(was)
		if c.plausible(u, is, there) && there {
			c.difference(u, was, is)
		}
	}
	c.again(after, "heartbeat", before.Beat != nil, after.Beat != nil)
	c.again(after, "mode", before.Mode != "", after.Mode != "")
	c.again(after, "state of the contactors", before.Contactors != "", after.Contactors != "")
	c.again(after, "control", before.Control != "", after.Control != "")
	if !before.NoAlarms && after.NoAlarms {
		c.unsafe("%s cannot tell of alarms any more", after.who())
	}
	for _, alarm := range slices.Compact(slices.Sorted(slices.Values(after.Alarms))) {
		if !slices.Contains(before.Alarms, alarm) {
			c.unsafe("%s raises an alarm that was not there: %s", after.who(), alarm)
		}
	}
	if got, want := len(after.Others), len(before.Others); got < want {
		c.unsafe("%s has %d other instruments beside it, want %d as before", after.who(), got, want)
	}
	for i := range min(len(before.Others), len(after.Others)) {
		c.compare(&before.Others[i], &after.Others[i])
	}
}

func (c *comparison) again(r *Reading, what string, was, is bool) {
	if was && !is {
		c.unsafe("%s%s is not told any more", what, r.of())
	}
}

// difference holds the change of one value against its tolerance.
func (c *comparison) difference(u unit, was, is float64) {
	limit, by := math.NaN(), ""
	switch u.q {
	case SoC:
		limit = c.tolerance.SoC
	case SoH:
		limit = c.tolerance.SoH
	case TemperatureMin, TemperatureMax:
		limit = c.tolerance.Temperature + c.growth
		if c.growth > 0 {
			by = " after this time"
		}
	case CellMin, CellMax:
		if !c.rest {
			return
		}
		limit = c.tolerance.CellVoltage
	case Capacity:
		limit = c.tolerance.Capacity / 100 * was
	default: // current and voltage are what the power makes them
		return
	}
	if change := math.Abs(is - was); beyond(change, limit) {
		c.unsafe("%s is %s %s and was %s %s: it changed by %s %s, want at most %s %s%s", u.name, number(is, math.NaN(), u.decimals), u.unit,
			number(was, math.NaN(), u.decimals), u.unit, number(change, limit, u.decimals), u.difference(), exact(math.Round(limit*1e6)/1e6), u.difference(), by)
	}
}
