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
	"sync"
	"time"

	"github.com/interlock-energy/ota"
)

// Guard asks a [Reader] and decides. Its methods may be called from any
// goroutine. The zero Guard refuses.
type Guard struct {
	read Reader

	mu         sync.Mutex
	thresholds Thresholds
	last       Reading
	lastErr    error

	// Decided, if set before the first question, is told of every answer of Gate
	// before it is given.
	Decided func(Decision)
}

// Decision is an answer of [Guard.Gate], with everything that it rests on.
type Decision struct {
	At         time.Time
	Moment     ota.Moment
	Release    *ota.Manifest // may be nil
	Reading    Reading
	Error      error // there was no reading
	Thresholds Thresholds
	Kept       bool  // [Thresholds.Keep] applied
	Verdict    error // nil: yes; or a [*ota.Refusal]
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
func (g *Guard) Gate(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
	r, err := g.Read(ctx)
	d := Decision{At: time.Now(), Moment: at, Release: m, Reading: r, Error: err, Thresholds: g.Thresholds()} // the time is after reading, so that a slow reader counts as age
	if err != nil {
		d.Verdict = &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: err.Error()}
	} else {
		d.Verdict = Decide(r, d.Thresholds, m, d.At)
	}
	if g.Decided != nil {
		g.Decided(d)
	}
	return d.Verdict
}

// Read reads the battery, as Gate does. What is read for display should be read
// here, because what changes between two readings, and what does not, is judged too.
func (g *Guard) Read(ctx context.Context) (Reading, error) {
	r, err := g.ask(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last, g.lastErr = r, err
	return r, err
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

// Change replaces the thresholds by what change makes of those in force, as
// SetThresholds does, and returns both. Nobody else's change comes in between.
func (g *Guard) Change(change func(Thresholds) Thresholds) (old, now Thresholds, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old = g.thresholds
	now = change(old)
	if err := now.Validate(); err != nil {
		return old, old, err
	}
	g.thresholds = now
	return old, now, nil
}

// Alive returns nil if the heartbeats of the last reading, and of its others, have
// been seen to move in time; or what stands still. A reading without any is not alive.
func (g *Guard) Alive() error { return errors.New("watch the heartbeat: not written yet") }

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
