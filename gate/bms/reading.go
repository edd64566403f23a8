package bms

import (
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/interlock-energy/ota"
)

// Quantity is what a signal measures. Names never change.
type Quantity string

// Quantities, with unit and plausible range.
const (
	SoC            Quantity = "soc"             // state of charge in %, 0 to 100
	SoH            Quantity = "soh"             // state of health in %, 0 to 100
	TemperatureMin Quantity = "temperature_min" // of the coldest place in °C, -60 to 120
	TemperatureMax Quantity = "temperature_max" // of the hottest place in °C, -60 to 120
	Current        Quantity = "current"         // A, within ±10,000; see [Reading.Positive] for the sign; a limit is for the magnitude
	Voltage        Quantity = "voltage"         // of the battery in V, 0 to 2,000
	CellMin        Quantity = "cell_min"        // voltage of the lowest cell in V, 0 to 6
	CellMax        Quantity = "cell_max"        // voltage of the highest cell in V, 0 to 6
	Capacity       Quantity = "capacity"        // Ah, 0 to 100,000
)

// unit is how a quantity is told, and what it can plausibly be. Outside of that a
// sensor or a scale is wrong, and then nothing else is worth much either.
type unit struct {
	q           Quantity
	name, unit  string
	least, most float64
	decimals    int
}

// units of the quantities, in the order in which they are shown.
var units = []unit{
	{SoC, "state of charge", "%", 0, 100, 1},
	{SoH, "state of health", "%", 0, 100, 1},
	{TemperatureMin, "lowest temperature", "°C", lowestTemperature, highestTemperature, 1},
	{TemperatureMax, "highest temperature", "°C", lowestTemperature, highestTemperature, 1},
	{Current, "current", "A", -highestCurrent, highestCurrent, 1},
	{Voltage, "voltage", "V", 0, 2000, 1},
	{CellMin, "lowest cell voltage", "V", 0, highestCell, 3},
	{CellMax, "highest cell voltage", "V", 0, highestCell, 3},
	{Capacity, "capacity", "Ah", 0, highestCapacity, 1},
}

// difference is the unit of a difference: kelvin, of temperatures.
func (u unit) difference() string {
	if u.unit == "°C" {
		return "K"
	}
	return u.unit
}

// Signal is one measured value.
type Signal struct {
	Value float64       // NaN: not available
	At    time.Time     // when it was measured; zero: at [Reading.At]
	Cycle time.Duration // how often there is a new one, nominally; 0: not known
}

// Beat is what shows that a battery management system is at work, and does not
// only repeat itself: a counter of its own, or of changes in what it sends.
type Beat struct {
	Count  uint64        // it must change; a wrap or a new start from 0 is a change
	Within time.Duration // within this time, to 5 min; 0: [Thresholds.MaxAge]; below 3 s it counts as 3 s, for questions come a second apart
}

// Reading is what a battery management system says at one moment.
type Reading struct {
	Source  string    // where it comes from, for people
	Valid   bool      // false: the system itself does not vouch for these values
	At      time.Time // when alarms, mode and signals without a time of their own were true; zero: not known, which refuses
	Signals map[Quantity]Signal
	Beat    *Beat // nil: the source has none

	Positive Direction // which way a positive current flows

	Alarms     []string   // what the system says is wrong with the battery, sorted, without repeats
	NoAlarms   bool       // it has no way to tell, so that no alarms mean nothing
	Warnings   []string   // what it says will be wrong
	Mode       Mode       // of the system
	Contactors Contactors // between the battery and the converter
	Control    Control    // who may give orders

	// Others are what other instruments say of the same battery: the converter, a
	// second bus, or the same quantity worked out in another way. What they and this
	// reading both have must agree. One that does not answer stays in the list, not
	// valid, or the reader errs: left out, it would be missed by nobody but
	// [Thresholds.MinOthers].
	Others []Reading
}

// Direction is which way a positive current flows. Two readings with the same name
// have the same sign convention, whatever it is, so a reader may make up a name for
// instruments that agree in a way that nobody knows. Without a name only magnitudes
// can be compared.
type Direction string

// Directions that are known, and opposite to each other.
const (
	Discharging Direction = "discharging" // out of the battery
	Charging    Direction = "charging"
)

// Mode is what a battery system does. The zero Mode is not known.
type Mode string

// Modes.
const (
	ModeOff     Mode = "off"     // disconnected, or stopped
	ModeStandby Mode = "standby" // connected, and moves no power
	ModeRunning Mode = "running"
	ModeBusy    Mode = "busy"  // starting, stopping, testing, or being updated
	ModeFault   Mode = "fault" // stopped by a fault
)

// Contactors says whether the battery is connected. The zero value is not known.
type Contactors string

// States of the contactors.
const (
	ContactorsOpen   Contactors = "open"
	ContactorsClosed Contactors = "closed"
)

// Control says who commands the battery system. The zero value is not known.
type Control string

// Controls.
const (
	ControlRemote Control = "remote"
	ControlLocal  Control = "local" // somebody works on site
)

// A Reader returns the present reading. It should answer in milliseconds and
// must respect ctx; package gate's Timeout guards against one that does not. An
// error means that nothing is known.
type Reader func(ctx context.Context) (Reading, error)

// Value returns the value of q, NaN if there is none.
func (r *Reading) Value(q Quantity) float64 {
	if s, ok := r.Signals[q]; ok {
		return s.Value
	}
	return math.NaN()
}

// Set sets the value of q, measured at [Reading.At]. Copies of r stay as they are.
func (r *Reading) Set(q Quantity, value float64) {
	signals := make(map[Quantity]Signal, len(r.Signals)+1)
	maps.Copy(signals, r.Signals)
	signals[q] = Signal{Value: value}
	r.Signals = signals
}

// Measured returns a valid reading of the four values that every decision needs,
// in the units of [SoC], [TemperatureMin], [TemperatureMax] and [Current]. It knows
// of no alarms.
func Measured(soc, temperatureMin, temperatureMax, current float64, at time.Time) Reading {
	return Reading{Valid: true, NoAlarms: true, At: at, Signals: map[Quantity]Signal{
		SoC: {Value: soc}, TemperatureMin: {Value: temperatureMin}, TemperatureMax: {Value: temperatureMax}, Current: {Value: current}}}
}

// at returns when q was measured.
func (r *Reading) at(q Quantity) time.Time {
	if s := r.Signals[q]; !s.At.IsZero() {
		return s.At
	}
	return r.At
}

// Tell returns what can be told of r, for people. JSON knows no NaN, and a status
// that cannot be encoded would be lost, so values that are no numbers are left out.
func (r *Reading) Tell() []ota.Signal {
	var out []ota.Signal
	for _, u := range units {
		v := r.Value(u.q)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		out = append(out, ota.Signal{Name: string(u.q), Value: v, Unit: u.unit, At: sendable(r.at(u.q)), Source: r.Source})
	}
	for i := range r.Others {
		out = append(out, r.Others[i].Tell()...)
	}
	return slices.Clip(out)
}

// sendable returns t as JSON can carry it, without the monotonic clock, which
// means nothing elsewhere, or the zero time if its year has not four digits.
func sendable(t time.Time) time.Time {
	if t = t.Round(0).UTC(); t.Year() < 0 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}
