// Package battery simulates a battery for demonstrations and tests: a system of
// 100 kW and 200 kWh whose 13 modules of 16 LFP cells are in series.
//
// Start with [New]; [Battery.Read] is a reader for package bms, and a Battery is
// an HTTP handler that shows the reading and lets it be changed. It has no access
// control, so serve it on the loopback only.
//
// What is promised: the values move as such a battery's do, slowly and without
// jumps, what is set stays until load moves it, and the same seed, script and
// times give the same readings. It is no model of cells or of a management
// system.
package battery

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/gate/bms"
)

// The simulated system. Temperatures follow the load with one time constant.
const (
	Modules        = 13
	CellsPerModule = 16

	capacity   = 314.0                            // Ah, of the cells in series: 3.2 V x 208 x 314 Ah are 209 kWh
	fullLoad   = 150.0                            // A, 100 kW at 666 V
	heating    = 12.0                             // K at full load, after a long time
	settling   = 30 * time.Minute                 // time constant of the temperatures
	tempNoise  = 0.1                              // K
	ampNoise   = 0.2                              // A
	spreadRest = Modules * CellsPerModule / 100.0 // K between the coldest and the hottest cell at rest
)

// Settings changes a battery. A nil field changes nothing.
type Settings struct {
	SoC            *float64 `json:"soc,omitempty"`             // %, 0 to 100
	TemperatureMin *float64 `json:"temperature_min,omitempty"` // °C at rest, -60 to 120
	TemperatureMax *float64 `json:"temperature_max,omitempty"` // °C at rest, -60 to 120, not below TemperatureMin
	Current        *float64 `json:"current,omitempty"`         // A, within ±1,000; above 0 discharges
	Valid          *bool    `json:"valid,omitempty"`           // false: the readings are marked as not valid
	Frozen         *bool    `json:"frozen,omitempty"`          // true: the last reading stays, with its time
	Absent         *bool    `json:"absent,omitempty"`          // true: there is no reading at all
}

// Step is a line of a script.
type Step struct {
	After time.Duration // since New
	Set   Settings
}

// Config says how a battery begins. The zero Config is a battery at rest with
// 60 % at 21 to 23 °C, without noise.
type Config struct {
	Start  Settings // on top of that
	Noise  bool     // small changes from one reading to the next
	Seed   uint64   // of the noise
	Script []Step   // in order of After
}

// Battery is a simulated battery. Its methods may be called from any goroutine.
type Battery struct {
	mu     sync.Mutex
	rng    *rand.Rand // nil: no noise
	start  time.Time
	script []Step // what is left of it
	state  state
}

// state is everything that moves. It is a value, so that a change that is
// refused leaves nothing behind.
type state struct {
	at                time.Time
	soc               float64 // %
	cold, hot         float64 // °C
	restCold, restHot float64 // °C without load
	current           float64 // A
	valid, absent     bool
	frozen            *bms.Reading
}

// ErrAbsent is what [Battery.Read] returns while there is no reading.
var ErrAbsent = errors.New("the battery management system does not answer")

// New returns a battery that begins now.
func New(cfg Config) (*Battery, error) {
	now := time.Now()
	b := &Battery{start: now, script: slices.Clone(cfg.Script), state: state{at: now, soc: 60, valid: true}}
	b.state.cold, b.state.hot = 22-spreadRest/2, 22+spreadRest/2
	b.state.restCold, b.state.restHot = b.state.cold, b.state.hot
	if cfg.Noise {
		b.rng = rand.New(rand.NewPCG(cfg.Seed, 0))
	}
	if err := b.set(cfg.Start); err != nil {
		return nil, fmt.Errorf("start the battery: %w", err)
	}
	// A script that would fail in the middle of a demonstration fails here: every
	// step is tried on a copy.
	rehearsal := b.state
	for i, s := range b.script {
		if s.After < 0 || i > 0 && s.After < b.script[i-1].After {
			return nil, fmt.Errorf("start the battery: step %d of the script comes at %v, before the one before it", i+1, s.After)
		}
		if err := rehearsal.set(s.Set); err != nil {
			return nil, fmt.Errorf("start the battery: step %d of the script: %w", i+1, err)
		}
	}
	return b, nil
}

// Set changes the battery, wholly or, if a value is impossible, not at all.
func (b *Battery) Set(s Settings) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(time.Now())
	return b.set(s)
}

func (b *Battery) set(s Settings) error {
	next := b.state
	if err := next.set(s); err != nil {
		return err
	}
	if s.Frozen != nil {
		next.frozen = nil
		if *s.Frozen {
			r := b.reading()
			next.frozen = &r
		}
	}
	b.state = next
	return nil
}

func (s *state) set(to Settings) error {
	for _, v := range []struct {
		name        string
		to          *float64
		least, most float64
		is, rest    *float64
	}{
		{"soc", to.SoC, 0, 100, &s.soc, nil},
		{"temperature_min", to.TemperatureMin, -60, 120, &s.cold, &s.restCold},
		{"temperature_max", to.TemperatureMax, -60, 120, &s.hot, &s.restHot},
		{"current", to.Current, -1000, 1000, &s.current, nil},
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
	if to.Valid != nil {
		s.valid = *to.Valid
	}
	if to.Absent != nil {
		s.absent = *to.Absent
	}
	return nil
}

// Read is a [bms.Reader].
func (b *Battery) Read(ctx context.Context) (bms.Reading, error) {
	if err := ctx.Err(); err != nil {
		return bms.Reading{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(time.Now())
	if b.state.absent {
		return bms.Reading{}, ErrAbsent
	}
	if b.state.frozen != nil {
		return *b.state.frozen, nil
	}
	return b.reading(), nil
}

// reading measures the present state.
func (b *Battery) reading() bms.Reading {
	s := &b.state
	var t, i float64
	if b.rng != nil {
		t = tempNoise * (2*b.rng.Float64() - 1)
		i = ampNoise * (2*b.rng.Float64() - 1)
	}
	r := bms.Measured(s.soc, s.cold+t, s.hot+t, s.current+i, s.at)
	r.Valid, r.Source = s.valid, "simulated battery"
	return r
}

// advance moves the battery to now, by way of the steps of the script.
func (b *Battery) advance(now time.Time) {
	for len(b.script) > 0 && now.Sub(b.start) >= b.script[0].After {
		step := b.script[0]
		b.script = b.script[1:]
		b.state.advance(b.start.Add(step.After))
		// Rehearsed by New. What Set did since can only make the two temperatures
		// contradict each other, and then the step is left out.
		if err := b.set(step.Set); err != nil {
			continue
		}
	}
	b.state.advance(now)
}

func (s *state) advance(now time.Time) {
	d := now.Sub(s.at)
	if d <= 0 {
		return
	}
	s.at = now
	s.soc -= s.current * d.Hours() / capacity * 100
	heat := heating * (s.current / fullLoad) * (s.current / fullLoad)
	left := math.Exp(-d.Seconds() / settling.Seconds())
	s.cold = s.restCold + heat + (s.cold-s.restCold-heat)*left
	s.hot = s.restHot + heat + (s.hot-s.restHot-heat)*left
	if s.soc <= 0 && s.current > 0 || s.soc >= 100 && s.current < 0 {
		s.current = 0 // empty or full: no more in this direction
	}
	s.soc = min(max(s.soc, 0), 100)
}
