package battery

import (
	"fmt"
	"math"
	"time"

	"github.com/interlock-energy/ota/gate/bms"
)

// The simulated system. Temperatures follow the load with one time constant.
const (
	Modules        = 13
	CellsPerModule = 16
	Cells          = Modules * CellsPerModule

	Capacity   = 312.0   // Ah, rated, of the cells in series
	Energy     = 208_000 // Wh, rated: about 3.2 V x 208 x 312 Ah
	RatedPower = 100_000 // W, of the converter at its AC side, either way

	fullLoad   = 150.0            // A
	heating    = 12.0             // K at full load, after a long time
	settling   = 30 * time.Minute // time constant of the temperatures
	tempNoise  = 0.1              // K
	ampNoise   = 0.2              // A
	spreadRest = Cells / 100.0    // K between the coldest and the hottest cell at rest

	overheat     = 58.0            // °C that an overheating module reaches, above its alarm
	overheatRate = 1.0             // K/s, of an overheating module, also when it cools down again
	precharge    = 3 * time.Second // from the order to close the contactors until they are
)

// state is everything that moves. It is a value, so that a change that is
// refused leaves nothing behind.
type state struct {
	at                time.Time
	soc, soh          float64 // %
	cold, hot         float64 // °C, without what overheats
	restCold, restHot float64 // °C without load
	load              float64 // A, the current that flows if the converter has no set-point
	current           float64 // A
	valid, absent     bool
	frozen            *bms.Reading

	imbalance   float64 // V
	overheating bool
	extra       float64 // K of the overheating module above hot

	open       bool // ordered
	failed     bool
	closes     time.Time // when the precharge is over; zero: it is
	otherAlarm bool

	converter converter
}

func newState(now time.Time) state {
	s := state{at: now, soc: 60, soh: 99, valid: true, converter: newConverter()}
	s.cold, s.hot = 22-spreadRest/2, 22+spreadRest/2
	s.restCold, s.restHot = s.cold, s.hot
	return s
}

// set changes everything but frozen, which needs a reading.
func (s *state) set(to Settings) error {
	imbalance := s.imbalance * 1000
	for _, v := range []struct {
		name        string
		to          *float64
		least, most float64
		is, rest    *float64
	}{
		{"soc", to.SoC, 0, 100, &s.soc, nil},
		{"soh", to.SoH, 0, 100, &s.soh, nil},
		{"temperature_min", to.TemperatureMin, -60, 120, &s.cold, &s.restCold},
		{"temperature_max", to.TemperatureMax, -60, 120, &s.hot, &s.restHot},
		{"current", to.Current, -1000, 1000, &s.load, nil},
		{"imbalance", to.Imbalance, 0, 500, &imbalance, nil},
	} {
		if v.to == nil {
			continue
		}
		if !(*v.to >= v.least && *v.to <= v.most) { // written so that NaN is refused
			return fmt.Errorf("set the battery: %s %v, want %v to %v", v.name, *v.to, v.least, v.most)
		}
		*v.is = *v.to
		if v.rest != nil {
			*v.rest = *v.to
		}
	}
	if s.cold > s.hot || s.restCold > s.restHot {
		return fmt.Errorf("set the battery: temperature_min %.1f °C is above temperature_max %.1f °C; set both", s.cold, s.hot)
	}
	s.imbalance = imbalance / 1000
	for _, v := range []struct{ to, is *bool }{
		{to.Valid, &s.valid},
		{to.Absent, &s.absent},
		{to.Overheating, &s.overheating},
		{to.OtherAlarm, &s.otherAlarm},
	} {
		if v.to != nil {
			*v.is = *v.to
		}
	}
	s.connect(to.ContactorsOpen, to.ContactorFault)
	s.drive()
	return nil
}

// connect opens the contactors at once, and begins to close them when nothing
// keeps them open any more.
func (s *state) connect(open, failed *bool) {
	before := s.open || s.failed
	if open != nil {
		s.open = *open
	}
	if failed != nil {
		s.failed = *failed
	}
	switch after := s.open || s.failed; {
	case after:
		s.closes = time.Time{}
		s.converter.onLoad = false // it ramps up again when it can
	case before:
		s.closes = s.at.Add(precharge)
	}
}

// connected reports whether current can flow.
func (s *state) connected() bool { return !s.open && !s.failed && s.closes.IsZero() }

// advance moves the state to now, by way of the moments at which something begins
// or ends.
func (s *state) advance(now time.Time) {
	for s.at.Before(now) {
		to := now
		for _, event := range []time.Time{s.closes, s.converter.next(s)} {
			if event.After(s.at) && event.Before(to) {
				to = event
			}
		}
		s.step(to.Sub(s.at))
	}
}

// step moves the state by a time in which nothing begins or ends.
func (s *state) step(d time.Duration) {
	s.at = s.at.Add(d)
	s.soc -= s.current * d.Hours() / Capacity * 100
	heat := heating * (s.current / fullLoad) * (s.current / fullLoad)
	left := math.Exp(-d.Seconds() / settling.Seconds())
	s.cold = s.restCold + heat + (s.cold-s.restCold-heat)*left
	s.hot = s.restHot + heat + (s.hot-s.restHot-heat)*left
	s.extra = toward(s.extra, s.goal(), overheatRate*d.Seconds())
	if s.soc <= 0 && s.current > 0 || s.soc >= 100 && s.current < 0 {
		s.load = 0 // empty or full: no more in this direction
	}
	s.soc = min(max(s.soc, 0), 100)
	s.converter.step(s, d)
	if !s.closes.IsZero() && !s.at.Before(s.closes) {
		s.closes = time.Time{}
	}
	s.drive()
}

// goal is how much hotter the overheating module is to be than the others.
func (s *state) goal() float64 {
	if !s.overheating {
		return 0
	}
	return max(0, overheat-s.hot)
}

// toward moves from a value to another by at most so much.
func toward(from, to, by float64) float64 {
	if from < to {
		return min(from+by, to)
	}
	return max(from-by, to)
}

// drive works out what flows now: what the converter wants, unless the contactors
// are open, or the battery is empty or full.
func (s *state) drive() {
	s.current = s.converter.wants(s)
	if !s.connected() || s.soc <= 0 && s.current > 0 || s.soc >= 100 && s.current < 0 {
		s.current = 0
		s.converter.power = 0
	}
}
