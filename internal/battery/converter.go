package battery

import (
	"fmt"
	"math"
	"time"
)

const (
	efficiency = 0.98            // of the converter, in both directions
	usualRamp  = 10.0            // % of the rated power per second
	starting   = 2 * time.Second // of the converter, from stopped to running
	tick       = 100 * time.Millisecond
	holding    = time.Second // how often the current is worked out anew at constant power
)

// Order is what the converter was told to do (SunSpec 715 OpCtl, 802 SetInvState).
type Order string

// Orders. The zero Order is to run.
const (
	Run     Order = ""
	Standby Order = "standby" // to 0 W, and then wait
	Stop    Order = "stop"    // to 0 W, and then off
)

// Controls is what a controller can tell the converter, as in SunSpec model 704.
// Without a set-point the converter follows the load of [Settings].
type Controls struct {
	Order Order

	Enabled bool    // there is a set-point
	Percent bool    // it is Pct, otherwise W
	W       float64 // W at the AC side, above 0 discharges, within the rated power
	Pct     float64 // % of the rated power, within ±100

	RevertAfter   time.Duration // the dead-man: so long after the last command, what follows comes into force; 0: never
	RevertEnabled bool
	RevertW       float64
	RevertPct     float64

	Ramp float64 // % of the rated power per second, up to 65,534; 0: at once
}

func (c *Controls) check() error {
	for _, v := range []struct {
		name        string
		is          float64
		least, most float64
	}{
		{"set-point in W", c.W, -RatedPower, RatedPower},
		{"set-point in %", c.Pct, -100, 100},
		{"set-point in W to revert to", c.RevertW, -RatedPower, RatedPower},
		{"set-point in % to revert to", c.RevertPct, -100, 100},
		{"ramp in %/s", c.Ramp, 0, math.MaxUint16 - 1},
		{"seconds until reverting", c.RevertAfter.Seconds(), 0, math.MaxUint32 - 1},
	} {
		if !(v.is >= v.least && v.is <= v.most) {
			return fmt.Errorf("control the converter: %s %v, want %v to %v", v.name, v.is, v.least, v.most)
		}
	}
	switch c.Order {
	case Run, Standby, Stop:
		return nil
	}
	return fmt.Errorf("control the converter: order %q, want %q, %q or %q", c.Order, Run, Standby, Stop)
}

// Mode is what the converter does (SunSpec 701 InvSt).
type Mode string

// Modes of the converter.
const (
	ModeOff          Mode = "off"
	ModeStarting     Mode = "starting"
	ModeRunning      Mode = "running"
	ModeShuttingDown Mode = "shutting down"
	ModeStandby      Mode = "standby"
)

// converter is the part of the state that is the converter's. Its power is ramped
// towards what it was told; the load profile is followed without a ramp, except
// on the way back to it.
type converter struct {
	controls Controls
	power    float64   // W at the AC side
	onLoad   bool      // it follows the load of the settings exactly
	reverts  time.Time // zero: the dead-man is not running
	runs     time.Time // when it has started; zero: it has
}

func newConverter() converter { return converter{controls: Controls{Ramp: usualRamp}, onLoad: true} }

// Control changes what the converter was told, wholly or not at all, and starts
// the dead-man's time anew.
func (b *Battery) Control(change func(*Controls)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(time.Now())
	c := &b.state.converter
	next := c.controls
	change(&next)
	if err := next.check(); err != nil {
		return err
	}
	if c.controls.Order == Stop && next.Order != Stop {
		c.runs = b.state.at.Add(starting)
	}
	c.controls, c.reverts = next, time.Time{}
	if next.Enabled && next.RevertAfter > 0 {
		c.reverts = b.state.at.Add(next.RevertAfter)
	}
	c.onLoad = c.onLoad && next.Order == Run && !next.Enabled
	b.state.drive()
	return nil
}

// next is when the converter does something next by itself; zero: nothing.
func (c *converter) next(s *state) time.Time {
	var next time.Time
	if !c.onLoad {
		next = s.at.Add(holding)
		if c.power != c.target(s) {
			next = s.at.Add(tick)
		}
	}
	for _, event := range []time.Time{c.reverts, c.runs} {
		if !event.IsZero() && (next.IsZero() || event.Before(next)) {
			next = event
		}
	}
	return next
}

// step moves the converter by a time that has passed, in which nothing that it was
// told changed; what begins at its end begins then.
func (c *converter) step(s *state, d time.Duration) {
	if !c.onLoad {
		by := math.Inf(1)
		if c.controls.Ramp > 0 {
			by = c.controls.Ramp / 100 * RatedPower * d.Seconds()
		}
		target := c.target(s)
		c.power = toward(c.power, target, by)
		c.onLoad = c.power == target && c.controls.Order == Run && !c.controls.Enabled && c.runs.IsZero() && s.connected()
	}
	if !c.runs.IsZero() && !s.at.Before(c.runs) {
		c.runs = time.Time{}
	}
	if !c.reverts.IsZero() && !s.at.Before(c.reverts) {
		c.reverts = time.Time{}
		c.controls.Enabled, c.controls.W, c.controls.Pct = c.controls.RevertEnabled, c.controls.RevertW, c.controls.RevertPct
		c.onLoad = c.onLoad && !c.controls.Enabled
	}
}

// target is the power that the converter is on its way to.
func (c *converter) target(s *state) float64 {
	switch {
	case c.controls.Order != Run || !c.runs.IsZero() || !s.connected():
		return 0
	case !c.controls.Enabled:
		return toAC(s.load * s.voltage(s.load))
	case c.controls.Percent:
		return c.controls.Pct / 100 * RatedPower
	}
	return c.controls.W
}

// wants is the current that the converter draws from the battery.
func (c *converter) wants(s *state) float64 {
	if c.onLoad {
		c.power = toAC(s.load * s.voltage(s.load))
		return s.load
	}
	if c.controls.Ramp == 0 {
		c.power = c.target(s)
	}
	return s.currentAt(toDC(c.power))
}

func (c *converter) mode(s *state) Mode {
	switch {
	case !s.connected():
		return ModeOff // it lives on the battery's DC
	case c.controls.Order == Run && !c.runs.IsZero():
		return ModeStarting
	case c.controls.Order == Run:
		return ModeRunning
	case c.power != 0:
		return ModeShuttingDown
	case c.controls.Order == Stop:
		return ModeOff
	}
	return ModeStandby
}

func toAC(dc float64) float64 {
	if dc > 0 {
		return dc * efficiency
	}
	return dc / efficiency
}

func toDC(ac float64) float64 {
	if ac > 0 {
		return ac / efficiency
	}
	return ac * efficiency
}
