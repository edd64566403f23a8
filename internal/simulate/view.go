package simulate

import (
	"math"

	"github.com/interlock-energy/ota/internal/battery"
)

// mostCurrent is what every bus here can say, in A: Pylontech's high voltage has
// 16 bits of tenths from -3000 A on.
const mostCurrent = 2900.0

// view is what the management system says, right or wrong.
type view struct {
	battery.Measurement
	soc     float64 // %; NaN: it does not say
	current float64 // A
}

// observe lets the management system see a measurement. It looks once a second,
// when its heartbeat moves, so that whoever reads a long map in parts can tell from
// the heartbeat that the parts fit together; and when something was changed by
// hand. The caller holds the lock.
func (s *System) observe(m battery.Measurement) {
	if s.faults[stale] || s.faults[frozen] {
		return
	}
	if s.changed || m.Beat != s.seen.Beat {
		s.seen, s.changed, s.fresh = m, false, true
	}
}

// look is what the management system says now, and what is so. The caller holds the
// lock.
func (s *System) look() (view, battery.Measurement) {
	m := s.battery.Measure()
	s.observe(m)
	return s.distort(s.seen), m
}

// distort applies the faults of measuring.
func (s *System) distort(m battery.Measurement) view {
	v := view{Measurement: m, soc: m.SoC, current: m.Current}
	if s.faults[currentTenth] {
		v.current /= 10
	}
	if s.faults[currentTenfold] {
		v.current *= 10
	}
	if s.faults[signFlip] {
		v.current = -v.current
	}
	v.current = min(max(v.current, -mostCurrent), mostCurrent)
	if s.faults[socStuck] {
		v.soc = s.stuckSoC
	}
	if s.faults[socMissing] {
		v.soc = math.NaN()
	}
	return v
}
