// Package bms is the gate of a device with a battery: it compares readings of
// the battery management system with thresholds. It is for builders of battery
// energy storage systems.
//
// Start with a reader, [Default] thresholds, and [New]:
//
//	guard, err := bms.New(bms.FromFile("/run/bms.json"), bms.Default())
//	...
//	config.Gate = guard.Gate
//
// What is promised: not knowing is a no. A value that is missing, implausible,
// contradictory or older than [Thresholds.MaxAge] refuses, and so does a reader
// that errs. A release's own limits can make the device's stricter, never more
// lenient. A refusal names every condition that does not hold, with the number,
// the limit, and where the limit comes from.
//
// What it cannot see is a system that goes on sending the same wrong value with
// a new time, or values that are wrong and plausible.
package bms

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
)

// Reading is what a battery management system says at one moment. NaN in a
// number means that it is not available.
type Reading struct {
	SoC            float64   // state of charge in %, 0 to 100
	TemperatureMin float64   // of the coldest place in °C, -60 to 120
	TemperatureMax float64   // of the hottest place in °C, -60 to 120
	Current        float64   // A, within ±10,000; signed, but only the magnitude decides
	At             time.Time // when it was measured; zero: not known
	Valid          bool      // false: the system itself does not vouch for these values
	Source         string    // where it comes from, for people
}

// A Reader returns the present reading. It should answer in milliseconds and
// must respect ctx; package gate's Timeout guards against one that does not. An
// error means that nothing is known.
type Reader func(ctx context.Context) (Reading, error)

// Thresholds are the device's own limits. All of them are meant as they stand,
// zero too, so start from [Default] and change what differs.
type Thresholds struct {
	MinSoC         float64       // %, 0 to 100; this much is enough
	MaxTemperature float64       // °C, -60 to 120; this much is not too much
	MinTemperature float64       // °C, -60 to 120, not above MaxTemperature
	MaxCurrent     float64       // A, 0 to 10,000, magnitude
	MaxAge         time.Duration // of a reading, above 0 to 5 min
}

// Default returns the thresholds of the OTA manager's specification: at least
// 30 %, 0 to 45 °C, at most 10 A. The age of at most 5 s is ours.
func Default() Thresholds {
	return Thresholds{MinSoC: 30, MaxTemperature: 45, MinTemperature: 0, MaxCurrent: 10, MaxAge: 5 * time.Second}
}

// What a reading can plausibly be. Outside of it a sensor or a scale is wrong,
// and then nothing else in the reading is worth much either.
const (
	lowestTemperature  = -60.0  // °C
	highestTemperature = 120.0  // °C
	highestCurrent     = 10_000 // A
	longestAge         = 5 * time.Minute
	aheadAtMost        = time.Second // of our clock; readings of another machine differ by a little
)

// Validate reports what is wrong with t. The zero Thresholds are not valid.
func (t Thresholds) Validate() error {
	for _, v := range []struct {
		name        string
		value       float64
		least, most float64
		unit        string
	}{
		{"minimum state of charge", t.MinSoC, 0, 100, "%"},
		{"maximum temperature", t.MaxTemperature, lowestTemperature, highestTemperature, "°C"},
		{"minimum temperature", t.MinTemperature, lowestTemperature, highestTemperature, "°C"},
		{"maximum current", t.MaxCurrent, 0, highestCurrent, "A"},
	} {
		if !(v.value >= v.least && v.value <= v.most) { // written so that NaN is refused
			return fmt.Errorf("thresholds: %s is %v %s, want %v to %v", v.name, v.value, v.unit, v.least, v.most)
		}
	}
	if t.MinTemperature > t.MaxTemperature {
		return fmt.Errorf("thresholds: minimum temperature %v °C is above maximum temperature %v °C", t.MinTemperature, t.MaxTemperature)
	}
	if t.MaxAge <= 0 || t.MaxAge > longestAge {
		return fmt.Errorf("thresholds: maximum age is %v, want above 0 to %v; start from bms.Default", t.MaxAge, longestAge)
	}
	return nil
}

// Guard asks a [Reader] and decides. Its methods may be called from any
// goroutine. The zero Guard refuses.
type Guard struct {
	read Reader

	mu         sync.Mutex
	thresholds Thresholds
	last       Reading
	lastErr    error
}

var errNothingYet = errors.New("read the battery: not asked yet")

// New returns a guard. It does not read yet.
func New(read Reader, t Thresholds) (*Guard, error) {
	if read == nil {
		return nil, errors.New("guard the battery: the reader is missing")
	}
	if err := t.Validate(); err != nil {
		return nil, fmt.Errorf("guard the battery: %w", err)
	}
	return &Guard{read: read, thresholds: t, lastErr: errNothingYet}, nil
}

// Gate is an [ota.Gate]. It reads the battery every time it is asked, also if
// the answer before is only milliseconds old, and returns nil or a
// [*ota.Refusal] with [ota.ErrBatteryLow] or [ota.ErrBMSUnsafe].
func (g *Guard) Gate(ctx context.Context, m *ota.Manifest, _ ota.Moment) error {
	r, err := g.ask(ctx)
	now := time.Now() // after reading, so that a slow reader counts as age
	g.mu.Lock()
	g.last, g.lastErr = r, err
	t := g.thresholds
	g.mu.Unlock()
	if err != nil {
		return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: err.Error()}
	}
	return Decide(r, t, m, now)
}

func (g *Guard) ask(ctx context.Context) (r Reading, err error) {
	if g.read == nil {
		return Reading{}, errors.New("read the battery: the reader is missing")
	}
	defer func() {
		if p := recover(); p != nil {
			r, err = Reading{}, fmt.Errorf("read the battery: the reader panicked: %v", p)
		}
	}()
	if r, err = g.read(ctx); err != nil {
		return Reading{}, fmt.Errorf("read the battery: %w", err)
	}
	return r, nil
}

// SetThresholds replaces the thresholds from the next question on. Thresholds
// that are not valid are refused, and those in force stay.
func (g *Guard) SetThresholds(t Thresholds) error {
	if err := t.Validate(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.thresholds = t
	return nil
}

// Thresholds returns the thresholds in force.
func (g *Guard) Thresholds() Thresholds {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.thresholds
}

// Last returns what the last question to the reader brought: a reading, which
// need not be valid or recent, or an error. It does not read.
func (g *Guard) Last() (Reading, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last, g.lastErr
}

// signals returns what can be told of r. JSON knows no NaN, and a status that
// cannot be encoded would be lost, so values that are no numbers are left out.
func (r Reading) signals() []ota.Signal {
	var out []ota.Signal
	for _, s := range []ota.Signal{
		{Name: "soc", Value: r.SoC, Unit: "%"},
		{Name: "temperature_min", Value: r.TemperatureMin, Unit: "°C"},
		{Name: "temperature_max", Value: r.TemperatureMax, Unit: "°C"},
		{Name: "current", Value: r.Current, Unit: "A"},
	} {
		if !math.IsNaN(s.Value) && !math.IsInf(s.Value, 0) {
			s.At = sendable(r.At)
			out = append(out, s)
		}
	}
	return out
}

// sendable returns t as JSON can carry it, without the monotonic clock, which
// means nothing elsewhere, or the zero time if its year has not four digits.
func sendable(t time.Time) time.Time {
	if t = t.Round(0).UTC(); t.Year() < 0 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}
