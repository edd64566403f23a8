// Package broadcast understands what battery management systems tell everybody on
// their CAN bus: state of charge, voltage, current, temperatures, limits and alarms,
// in the dialects of the makers. It is pure: frames in, values out, and back for
// simulators.
//
// Start with a [Profile], by its name, and feed a [Decoder] with all that comes in:
//
//	d, err := broadcast.New("pylon-lv", broadcast.Options{RatedCurrent: 150})
//	...
//	known, err := d.Add(frame, time.Now())
//	state := d.State()
//
// What is promised: a value is missing (NaN) rather than wrong. It is missing before
// its frame has come, when the battery says that it is not available, and when any
// value of the frame is outside of what the profile and the options allow, because then
// scale, byte order or profile are in doubt. Every value has the time of its frame: a
// battery that went silent keeps its last values, and they get old. Alarms are unknown
// until a frame with alarms has come.
//
// What it cannot see: a wrong profile whose values are plausible.
package broadcast

import (
	"math"
	"time"
)

// Quantity names a number that a battery sends. Names never change.
type Quantity string

// Quantities, with their units.
const (
	SoC              Quantity = "soc"               // state of charge in %
	SoH              Quantity = "soh"               // state of health in %
	Voltage          Quantity = "voltage"           // of the battery in V
	Current          Quantity = "current"           // in A; positive charges the battery
	TemperatureMin   Quantity = "temperature_min"   // °C; see [State.Average]
	TemperatureMax   Quantity = "temperature_max"   // °C
	BoardTemperature Quantity = "board_temperature" // of the battery management system, °C
	CellMin          Quantity = "cell_min"          // voltage of the lowest cell in V
	CellMax          Quantity = "cell_max"          // voltage of the highest cell in V
	Capacity         Quantity = "capacity"          // Ah

	ChargeVoltage    Quantity = "charge_voltage"    // to charge up to, V
	DischargeVoltage Quantity = "discharge_voltage" // to discharge down to, V
	ChargeLimit      Quantity = "charge_limit"      // A; 0: charging is forbidden
	DischargeLimit   Quantity = "discharge_limit"   // A, positive; 0: discharging is forbidden

	Modules                  Quantity = "modules"                    // that work
	ModulesOffline           Quantity = "modules_offline"            // that do not
	ModulesBlockingCharge    Quantity = "modules_blocking_charge"    // that do not let current in
	ModulesBlockingDischarge Quantity = "modules_blocking_discharge" // that do not let current out
)

// Value is a number and when it came.
type Value struct {
	Value float64       // NaN: not available
	At    time.Time     // of the last good frame that carries it; zero: none has come
	Cycle time.Duration // how often the profile expects that frame; 0: not known
}

// Available reports whether there is a number.
func (v Value) Available() bool { return !math.IsNaN(v.Value) }

// Switch is something that a battery allows, forbids, or does not mention.
type Switch string

// States of a switch. The zero Switch is not known.
const (
	On  Switch = "on"
	Off Switch = "off"
)

// Mode is what the battery says it does. The zero Mode is not known. The profile
// "original" has numbers, as "state 3", and does not say what they mean.
type Mode string

// Modes.
const (
	ModeSleep       Mode = "sleep"
	ModeIdle        Mode = "idle"
	ModeCharging    Mode = "charging"
	ModeDischarging Mode = "discharging"
	ModeUpdating    Mode = "updating" // its own firmware
)

// State is all that is known of a battery, at the time of asking. It shares nothing
// with the decoder.
type State struct {
	Profile string
	Values  map[Quantity]Value // those that the profile can carry; use Of

	// Average says that TemperatureMin and TemperatureMax are both the battery's average,
	// because it sends nothing better: the coldest and hottest cells are not known.
	Average bool

	Alarms      []string  // raised, by name, sorted
	Warnings    []string  // raised, by name, sorted
	AlarmsKnown bool      // false: no frame with alarms has come, or the last was invalid
	AlarmsAt    time.Time // of the oldest of the frames that alarms come in
	AlarmsCycle time.Duration
	// AlarmsVouched is the number of alarms of which the battery said that they are raised
	// or are not. 0 with AlarmsKnown: its frame says of every alarm that it is not supported.
	AlarmsVouched int

	Charge, Discharge Switch   // whether the battery allows it
	Requests          []string // what it asks for, such as "force charge", sorted
	Mode              Mode
	ModeAt            time.Time // of the frame that said so

	Maker, Name, Serial string // "": not said
	Type                string // such as "LI", or a product number such as "0xA2F0"
	Version, Hardware   string // of the battery management system's firmware and board

	Missing []string // what SoC, current and temperature still need, such as "355"; none: complete

	Frames  uint64 // known frames that came
	Unknown uint64 // others
	Invalid uint64 // known frames that were too short or implausible
	Changes uint64 // frames that said something else than the one before: it stands still when a battery repeats itself
	Content uint64 // a hash of all that was said, equal as long as that is; times do not count
}

// Complete reports whether all that SoC, current and temperature need has come, and was
// plausible.
func (s *State) Complete() bool { return len(s.Missing) == 0 }

// Of returns the value of q; one that is not available if there is none.
func (s *State) Of(q Quantity) Value {
	if v, ok := s.Values[q]; ok {
		return v
	}
	return Value{Value: math.NaN()}
}

// Options say what the profile cannot know of a battery. The zero Options work.
type Options struct {
	// RatedCurrent in A; a current above twice of it is implausible. 0: a current above
	// 10,000 A is.
	RatedCurrent float64

	// VoltageMin and VoltageMax in V replace the profile's plausible range. 0: the
	// profile's. For the profile "original" they are of one module.
	VoltageMin, VoltageMax float64

	// ReverseCurrent is for makers who send a charging current as negative.
	ReverseCurrent bool

	// Address of a battery of the profile "pylon-hv", 0 to 15: the last digit of its
	// identifiers.
	Address uint8

	// FirstModule is the number in the identifier of the module that is bit 0 of the
	// bitmap, for the profile "original".
	FirstModule uint8
}

// Battery is what a simulated battery says.
type Battery struct {
	Values map[Quantity]float64 // without one, or NaN: not available

	Alarms, Warnings  []string // by the names that the decoder uses
	Charge, Discharge Switch
	Requests          []string
	Mode              Mode

	Maker, Name, Serial string
	Type                string // two letters
	Version             string // such as "1.3"
}
