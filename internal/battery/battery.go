// Package battery simulates a battery for demonstrations and tests: a system of
// 100 kW and 208 kWh whose 13 modules of 16 LFP cells are in series, with the
// converter that charges and discharges it.
//
// Start with [New]; [Battery.Read] is a reader for package bms, and a Battery is
// an HTTP handler that shows the reading and lets it be changed. It has no access
// control, so serve it on the loopback only. [Battery.Measure] returns everything
// that such a system measures, down to the cells; package simulate puts it on
// the buses that a real one has.
//
// What is promised: the values move as such a battery's do, slowly and without
// jumps, what is set stays until load moves it, and the same seed, script and
// times give the same readings. Voltages, currents and powers fit together. It is
// no model for the design of cells or of a management system: the curves have
// the right shape and size, no more.
package battery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/gate/bms"
)

// Settings changes a battery. A nil field changes nothing.
type Settings struct {
	SoC            *float64 `json:"soc,omitempty"`             // %, 0 to 100
	TemperatureMin *float64 `json:"temperature_min,omitempty"` // °C at rest, -60 to 120
	TemperatureMax *float64 `json:"temperature_max,omitempty"` // °C at rest, -60 to 120, not below TemperatureMin
	Current        *float64 `json:"current,omitempty"`         // A, within ±1,000, while the converter has no set-point; above 0 discharges
	SoH            *float64 `json:"soh,omitempty"`             // %, 0 to 100
	Valid          *bool    `json:"valid,omitempty"`           // false: the readings are marked as not valid
	Frozen         *bool    `json:"frozen,omitempty"`          // true: the last reading stays, with its time
	Absent         *bool    `json:"absent,omitempty"`          // true: there is no reading at all

	Imbalance      *float64 `json:"imbalance,omitempty"`       // mV that one cell is below the others, 0 to 500
	ContactorsOpen *bool    `json:"contactors_open,omitempty"` // an order; closing takes as long as the precharge
	ContactorFault *bool    `json:"contactor_fault,omitempty"` // true: the contactors are open, and it is an alarm
	Overheating    *bool    `json:"overheating,omitempty"`     // true: one module heats up to 58 °C; false: it cools down
	OtherAlarm     *bool    `json:"other_alarm,omitempty"`     // true: the management system raises an alarm that has no name
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
	seed   uint64
	noise  bool
	cells  cells
	start  time.Time
	script []Step // what is left of it
	state  state
}

// ErrAbsent is what [Battery.Read] returns while there is no reading.
var ErrAbsent = errors.New("the battery management system does not answer")

// New returns a battery that begins now.
func New(cfg Config) (*Battery, error) {
	now := time.Now()
	b := &Battery{start: now, script: slices.Clone(cfg.Script), state: newState(now), seed: cfg.Seed, noise: cfg.Noise, cells: newCells(cfg.Seed)}
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
	r := bms.Measured(s.soc, s.cold+t, s.hot+s.extra+t, s.current+i, s.at)
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
