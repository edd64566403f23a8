package bms

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/interlock-energy/ota"
)

// A history is what a [Guard] remembers of earlier readings, for the rules that one
// reading cannot answer. It knows what was seen, and when; where nobody looked it
// knows nothing, and nothing is a no.
type history struct {
	beats  map[string]*pulse // by instrument
	heat   []heat            // of the last two minutes, oldest first, one a second
	charge charge
}

// add takes a reading that was there at now.
func (h *history) add(r *Reading, t *Thresholds, now time.Time) {
	h.addBeats(r, t, now)
	h.addHeat(r.Value(TemperatureMax), now)
	h.charge.add(r.Value(SoC), r.Value(Current), capacity(r, t), now)
}

// judge adds to d what the history has against its reading.
func (h *history) judge(d *decision) {
	h.judgeBeats(d)
	h.judgeHeat(d)
	h.charge.judge(d)
}

// pulse is what was seen of one heartbeat.
type pulse struct {
	count   uint64
	since   time.Time     // the first reading with this count
	at      time.Time     // the last one
	moved   bool          // it was seen to change
	unasked time.Duration // since it was watched before, if that was too long
}

// leastWithin is the shortest time in which a heartbeat must change: questions come
// a second apart (ota.Config.GateInterval), and each takes its time.
const leastWithin = 3 * time.Second

// due is within which time b must change.
func (b *Beat) due(t *Thresholds) time.Duration {
	if b.Within == 0 {
		return max(t.MaxAge, leastWithin)
	}
	return max(b.Within, leastWithin)
}

// pulseOf names an instrument, so that one that takes the place of another begins anew.
func pulseOf(place int, r *Reading) string { return fmt.Sprint(place, " ", r.Source) }

func (h *history) addBeats(r *Reading, t *Thresholds, now time.Time) {
	beats := map[string]*pulse{} // those that are gone are forgotten
	for i, r := range r.instruments() {
		if r.Beat == nil {
			continue
		}
		name := pulseOf(i, r)
		p := h.beats[name]
		switch {
		case p == nil:
			p = &pulse{count: r.Beat.Count, since: now}
		case elapsed(p.at, now) > r.Beat.due(t):
			// Whether it stood or moved meanwhile nobody saw; and a change may have been
			// the last one.
			p = &pulse{count: r.Beat.Count, since: now, unasked: elapsed(p.at, now)}
		case p.count != r.Beat.Count:
			p.count, p.since, p.moved, p.unasked = r.Beat.Count, now, true, 0
		}
		p.at = now
		beats[name] = p
	}
	h.beats = beats
}

func (h *history) judgeBeats(d *decision) {
	for i, r := range d.r.instruments() {
		if r.Beat == nil {
			continue
		}
		due, p := r.Beat.due(&d.t), h.beats[pulseOf(i, r)]
		switch {
		case p == nil:
			d.no(ota.CauseStale, "the heartbeat of %s has not been seen to move yet", r.who())
		case elapsed(p.since, d.now) > due:
			d.no(ota.CauseStale, "the heartbeat of %s has stood at %d for %v, want a change within %v: the values are frozen",
				r.who(), p.count, span(elapsed(p.since, d.now), due), due)
		case !p.moved && p.unasked > 0:
			d.no(ota.CauseStale, "the heartbeat of %s has not been seen to move yet, because nobody looked for %v", r.who(), span(p.unasked, due))
		case !p.moved:
			d.no(ota.CauseStale, "the heartbeat of %s has not been seen to move yet", r.who())
		}
	}
}

// heat is the highest temperature at one moment.
type heat struct {
	at time.Time
	v  float64
}

const (
	// rateOver is the time over which the rise of the temperature is taken. In a
	// minute, a sensor that counts whole kelvins takes one step at a rate of 1 K/min.
	rateOver = time.Minute

	// longestGap is how long nobody may have looked without the history of temperature
	// and charge being broken.
	longestGap = time.Minute
)

func (h *history) addHeat(v float64, now time.Time) {
	if !(v >= lowestTemperature && v <= highestTemperature) {
		return
	}
	for len(h.heat) > 0 && elapsed(h.heat[0].at, now) > 2*rateOver {
		h.heat = h.heat[1:]
	}
	n := len(h.heat)
	switch {
	case n > 0 && elapsed(h.heat[n-1].at, now) > longestGap:
		h.heat = []heat{{now, v}}
	case n > 0 && elapsed(h.heat[n-1].at, now) < time.Second:
		h.heat[n-1].v = min(h.heat[n-1].v, v)
	default:
		h.heat = append(h.heat, heat{now, v})
	}
}

// judgeHeat takes the greatest rise to this reading from those of the last minute,
// and from the last one before them, divided by a minute or, of that one, by the time
// since. Further back it does not look, for a sensor that counts whole kelvins takes
// two steps within two minutes at well below 1 K/min. A minute's readings must be there.
func (h *history) judgeHeat(d *decision) {
	limit := d.t.MaxTemperatureRate
	v := d.r.Value(TemperatureMax)
	if limit == 0 || math.IsNaN(v) {
		return
	}
	rate, seen := 0.0, time.Duration(0)
	for _, then := range slices.Backward(h.heat) {
		seen = elapsed(then.at, d.now)
		rate = max(rate, (v-then.v)/max(seen, rateOver).Minutes())
		if seen >= rateOver {
			break
		}
	}
	if beyond(rate, limit) {
		d.no(ota.CauseTemperatureHigh, "highest temperature rises by %s K/min, want at most %s K/min", number(rate, limit, 1), exact(limit))
	} else if seen < rateOver {
		d.no(ota.CauseTemperatureHigh, "highest temperature has been watched for %v, want %v to tell how fast it rises", seen.Truncate(time.Second), rateOver)
	}
}

// charge counts what flows while the state of charge stands still.
type charge struct {
	at      time.Time // the last reading; zero: none that the next one could follow
	current float64   // then, A

	standing    bool
	soc         float64 // where it stands, %
	sum         float64 // Ah that have flowed since, with sign
	least, most float64 // of the sum
}

const (
	// movedBy is a change of the state of charge that counts as one, in %: a step of 1 %,
	// which is what many systems tell, less rounding. Less would take the noise of a
	// value that is stuck for movement.
	movedBy = 0.9

	// leastUncounted is the least value of MaxUncounted in %, above such a step.
	leastUncounted = 1

	// idle is the share of the capacity per hour that does not count: in days, the offset
	// of a current sensor in a battery at rest would look like charge.
	idle = 0.01
)

// add counts the mean of two currents over the time between them. A gap counts for
// nothing, and forgets nothing: not to look is no way to a yes.
func (c *charge) add(soc, current, capacity float64, now time.Time) {
	if !(soc >= 0 && soc <= 100 && math.Abs(current) <= highestCurrent) {
		c.at = time.Time{}
		return
	}
	if !c.standing || math.Abs(soc-c.soc) >= movedBy {
		*c = charge{standing: true, soc: soc}
	} else if between := elapsed(c.at, now); !c.at.IsZero() && between <= longestGap {
		if mean := (c.current + current) / 2; math.Abs(mean) > capacity*idle {
			c.sum += mean * between.Hours()
			c.least, c.most = min(c.least, c.sum), max(c.most, c.sum)
		}
	}
	c.at, c.current = now, current
}

func (c *charge) judge(d *decision) {
	limit, capacity := d.t.MaxUncounted, capacity(d.r, &d.t)
	if limit == 0 || !(capacity > 0) {
		return
	}
	flowed := c.most - c.least
	if share := flowed / capacity * 100; beyond(share, limit) {
		d.no(ota.CauseStale, "state of charge has stood at %s %% while %s Ah (%s %% of the capacity) flowed, want at most %s %%: it is stuck",
			number(c.soc, math.NaN(), 1), number(flowed, math.NaN(), 1), number(share, limit, 1), exact(limit))
	}
}

// permission is what the last questions allowed, for [Thresholds.Keep].
type permission struct {
	given  bool
	digest string // of the release
	at     time.Time
}

// holds reports whether the last answer was a yes about this release, and not long
// ago. At the restart it may be: quiescing takes its time, and nobody asks meanwhile.
func (p *permission) holds(digest string, restart bool, now time.Time) bool {
	return p.given && p.digest == digest && (restart || elapsed(p.at, now) <= longestGap)
}
