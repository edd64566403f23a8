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
// [Recommended] has every rule, for systems that tell more than four values.
//
// What is promised: not knowing is a no. A value that a rule needs and that is
// missing, implausible, contradictory or older than [Thresholds.MaxAge] refuses; so
// does a heartbeat that stands still, an instrument that disagrees or cannot be
// compared, an alarm, and a reader that errs. A release's own limits can make the
// device's stricter, never more lenient. A refusal names every condition that does
// not hold, with the number, the limit, and where the limit comes from.
//
// Whether something moves is told from several readings, so what is read for display
// should be read through [Guard.Read]: then the guard need not begin to look when it
// is asked.
//
// What it cannot see is a system without a heartbeat that goes on sending the same
// wrong value with a new time, and values that are wrong and plausible where nothing
// else measures them.
package bms

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
	asked      uint64 // questions to the reader
	answered   uint64 // the latest of them whose answer is in what follows
	last       Reading
	lastErr    error
	history    history
	permission permission

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
	d := g.decide(r, err, m, at, time.Now()) // the time is after reading, so that a slow reader counts as age
	if g.Decided != nil {
		g.Decided(d)
	}
	return d.Verdict
}

func (g *Guard) decide(r Reading, err error, m *ota.Manifest, at ota.Moment, now time.Time) Decision {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := Decision{At: now, Moment: at, Release: m, Reading: r, Error: err, Thresholds: g.thresholds.clone()}
	digest := ""
	if m != nil {
		digest = m.Digest
	}
	if err != nil {
		d.Verdict = unread(err)
	} else {
		d.Kept = d.Thresholds.Keep != Keep{} && g.permission.holds(digest, at == ota.AtRestart, now)
		j := judge(&r, d.Thresholds, d.Kept, m, now)
		g.history.judge(j)
		d.Verdict = j.verdict()
	}
	g.permission = permission{given: d.Verdict == nil, digest: digest, at: now}
	return d
}

// Would returns what Gate would say now before writing m, without what
// [Thresholds.Keep] adds and with no effect on what Gate says later: for people and
// programs that want to know. m may be nil.
func (g *Guard) Would(ctx context.Context, m *ota.Manifest) error {
	r, err := g.Read(ctx)
	if err != nil {
		return unread(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	j := judge(&r, g.thresholds.clone(), false, m, time.Now())
	g.history.judge(j)
	return j.verdict()
}

// unread refuses because there are no readings.
func unread(err error) *ota.Refusal {
	return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: err.Error(), Causes: []ota.Cause{ota.CauseStale}}
}

// Read reads the battery, as Gate does. What is read for display should be read
// here, because what changes between two readings, and what does not, is judged too.
func (g *Guard) Read(ctx context.Context) (Reading, error) {
	g.mu.Lock()
	g.asked++
	question := g.asked
	g.mu.Unlock()
	r, err := g.ask(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if question < g.answered {
		// Overtaken by a later question. In the history it would make a counter that
		// stands still look like one that moves.
		return r, err
	}
	g.answered, g.last, g.lastErr = question, r, err
	if err == nil {
		g.history.add(&r, &g.thresholds, time.Now())
	}
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
	_, _, err := g.Change(func(Thresholds) Thresholds { return t })
	return err
}

// Change replaces the thresholds by what change makes of those in force, as
// SetThresholds does, and returns both. Nobody else's change comes in between. What
// was allowed before must be allowed again: [Thresholds.Keep] begins anew. The
// function must not call the guard.
func (g *Guard) Change(change func(Thresholds) Thresholds) (old, now Thresholds, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old = g.thresholds.clone()
	now = change(old.clone()).clone()
	if err := now.Validate(); err != nil {
		return old, old, err
	}
	g.thresholds, g.permission = now.clone(), permission{}
	return old, now, nil
}

// Thresholds returns the thresholds in force.
func (g *Guard) Thresholds() Thresholds {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.thresholds.clone()
}

// Last returns what the last question to the reader brought: a reading, which
// need not be valid or recent, or an error. It does not read.
func (g *Guard) Last() (Reading, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last, g.lastErr
}

// Alive returns nil if the heartbeats of the last reading, and of its others, were
// seen to move in time; or an error that names what stands still. A reading without
// any, and none at all, are not alive. It does not read.
func (g *Guard) Alive() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.read == nil || g.lastErr != nil {
		return errors.Join(errors.New("watch the heartbeat: there is no reading"), g.lastErr)
	}
	d := &decision{r: &g.last, t: g.thresholds, now: time.Now()}
	if g.last.Beat == nil {
		d.unsafe("%s has none", g.last.who())
	}
	g.history.judgeBeats(d)
	if len(d.reasons) > 0 {
		return fmt.Errorf("watch the heartbeat: %s", strings.Join(d.reasons, "; "))
	}
	return nil
}
