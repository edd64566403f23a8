package bms

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Thresholds are the device's own limits. Those of the first group are meant as
// they stand, zero too, so start from [Default] and change what differs. The
// others are off where they are zero; [Recommended] has them all.
type Thresholds struct {
	MinSoC         float64       // %, 0 to 100; this much is enough
	MaxTemperature float64       // °C, -60 to 120; this much is not too much
	MinTemperature float64       // °C, -60 to 120, not above MaxTemperature
	MaxCurrent     float64       // A, 0 to 10,000, magnitude
	MaxAge         time.Duration // of a signal but health and capacity (5 min), above 0 to 5 min; and never more than three of its cycles

	RequireBeat bool // a source without a [Beat] refuses; one that there is must always move

	MaxSoC             float64 // %, at least MinSoC, to 100
	MinCell, MaxCell   float64 // V, of every cell, to 6
	MaxCellDelta       float64 // V, between the highest and the lowest cell, to 6
	MaxTemperatureRate float64 // K/min, of the highest temperature while it rises, to 60

	Standby       bool       // the mode must be off or standby
	Contactors    Contactors // must be so
	RemoteControl bool       // nobody may have taken local control
	RequireAlarms bool       // a source that cannot tell of alarms refuses; raised ones always do
	IgnoreAlarms  []string   // by name: the battery of this device raises them for nothing
	Agreement     Agreement  // with [Reading.Others]
	MinOthers     int        // so many other instruments there must be
	MaxUncounted  float64    // %, 1 to 100, of the capacity that flowed while the state of charge stood still
	RatedCapacity float64    // Ah, for MaxUncounted where the source does not say, to 100,000
	Keep          Keep       // what is enough once it was allowed
}

// Agreement is by how much two instruments may differ. The zero Agreement is
// that of [Default]; a negative value switches a comparison off.
type Agreement struct {
	SoC          float64 // %; default 5
	Temperature  float64 // K; default 3
	Current      float64 // A; default 2
	CurrentShare float64 // of the greater current, 0 to 1, where that is more; default 0.02
}

// Keep is hysteresis: by how much each limit gives way once everything was within
// the limits, until something is outside of these, or nobody has asked for a minute.
// They are margins, from 0 to what is said here, so that they follow limits that are
// changed, and cannot be on the wrong side: MinSoC 3 lets a minimum of 30 % give way
// to 27 %. No limit is more than doubled, and none that a release sets gives way.
type Keep struct {
	MinSoC, MaxSoC                 float64 // %, to 10
	MinTemperature, MaxTemperature float64 // K, to 10
	MaxCurrent                     float64 // A, to 5 or as much as the limit
	MaxCellDelta                   float64 // V, to 0.02
}

// Default returns the thresholds of the OTA manager's specification: at least
// 30 %, 0 to 45 °C, at most 10 A. The age of at most 5 s is ours.
func Default() Thresholds {
	return Thresholds{MinSoC: 30, MaxTemperature: 45, MinTemperature: 0, MaxCurrent: 10, MaxAge: 5 * time.Second}
}

// Recommended returns every rule, for a battery system that tells all that they ask
// for: 30 to 90 %, 5 to 45 °C rising by at most 1 K/min, at most 10 A, cells of
// 2.9 to 3.55 V (LFP) at most 50 mV apart, standby under remote control, no alarms, a
// heartbeat that moves, other instruments that agree where there are any, and no
// more than 3 % of the capacity past a state of charge that stands still. Once
// allowed, 27 to 92 %, 0 to 47 °C, 12 A and 60 mV are enough. [Thresholds.Contactors]
// depends on what is updated, and is left open.
func Recommended() Thresholds {
	t := Default()
	t.MinTemperature = 5
	t.RequireBeat = true
	t.MaxSoC = 90
	t.MinCell, t.MaxCell, t.MaxCellDelta = 2.9, 3.55, 0.05
	t.MaxTemperatureRate = 1
	t.Standby, t.RemoteControl, t.RequireAlarms = true, true, true
	t.MaxUncounted = 3
	t.Keep = Keep{MinSoC: 3, MaxSoC: 2, MinTemperature: 5, MaxTemperature: 2, MaxCurrent: 2, MaxCellDelta: 0.01}
	return t
}

// What a reading can plausibly be. Outside of it a sensor or a scale is wrong,
// and then nothing else in the reading is worth much either.
const (
	lowestTemperature  = -60.0   // °C
	highestTemperature = 120.0   // °C
	highestCurrent     = 10_000  // A
	highestCell        = 6       // V
	highestCapacity    = 100_000 // Ah
	longestAge         = 5 * time.Minute
	aheadAtMost        = time.Second // of our clock; readings of another machine differ by a little
	mostOthers         = 16
)

// Validate reports what is wrong with t. The zero Thresholds are not valid.
func (t Thresholds) Validate() error {
	for _, v := range []struct {
		name        string
		value       float64
		least, most float64
		unit        string
		off         bool // where it is zero
	}{
		{"minimum state of charge", t.MinSoC, 0, 100, "%", false},
		{"maximum temperature", t.MaxTemperature, lowestTemperature, highestTemperature, "°C", false},
		{"minimum temperature", t.MinTemperature, lowestTemperature, highestTemperature, "°C", false},
		{"maximum current", t.MaxCurrent, 0, highestCurrent, "A", false},
		{"maximum state of charge", t.MaxSoC, t.MinSoC, 100, "%", true},
		{"minimum cell voltage", t.MinCell, 0, highestCell, "V", true},
		{"maximum cell voltage", t.MaxCell, t.MinCell, highestCell, "V", true},
		{"maximum difference of cell voltages", t.MaxCellDelta, 0, highestCell, "V", true},
		{"maximum rate of the temperature", t.MaxTemperatureRate, 0, 60, "K/min", true},
		{"maximum of uncounted charge", t.MaxUncounted, leastUncounted, 100, "%", true},
		{"rated capacity", t.RatedCapacity, 0, highestCapacity, "Ah", true},
		{"other instruments", float64(t.MinOthers), 0, mostOthers, "", true},
		{"margin to keep of the minimum state of charge", t.Keep.MinSoC, 0, mostKeptSoC, "%", true},
		{"margin to keep of the maximum state of charge", t.Keep.MaxSoC, 0, mostKeptSoC, "%", true},
		{"margin to keep of the minimum temperature", t.Keep.MinTemperature, 0, mostKeptTemperature, "K", true},
		{"margin to keep of the maximum temperature", t.Keep.MaxTemperature, 0, mostKeptTemperature, "K", true},
		{"margin to keep of the maximum current", t.Keep.MaxCurrent, 0, max(t.MaxCurrent, mostKeptCurrent), "A", true},
		{"margin to keep of the difference of cell voltages", t.Keep.MaxCellDelta, 0, mostKeptCellDelta, "V", true},
	} {
		if !(v.value >= v.least && v.value <= v.most) && !(v.off && v.value == 0) { // written so that NaN is refused
			return fmt.Errorf("thresholds: %s is %v %s, want %v to %v%s", v.name, v.value, v.unit, v.least, v.most, orOff(v.off))
		}
	}
	if err := t.Agreement.validate(); err != nil {
		return err
	}
	if t.MinTemperature > t.MaxTemperature {
		return fmt.Errorf("thresholds: minimum temperature %v °C is above maximum temperature %v °C", t.MinTemperature, t.MaxTemperature)
	}
	if t.MaxAge <= 0 || t.MaxAge > longestAge {
		return fmt.Errorf("thresholds: maximum age is %v, want above 0 to %v; start from bms.Default", t.MaxAge, longestAge)
	}
	if c := t.Contactors; c != "" && c != ContactorsOpen && c != ContactorsClosed {
		return fmt.Errorf("thresholds: contactors are %q, want %s, %s or nothing", c, ContactorsOpen, ContactorsClosed)
	}
	if slices.Contains(t.IgnoreAlarms, "") {
		return errors.New("thresholds: an alarm to ignore has no name")
	}
	return nil
}

func (a Agreement) validate() error {
	for _, v := range []struct {
		name        string
		value, most float64
		unit        string
	}{
		{"states of charge", a.SoC, 100, " %"},
		{"temperatures", a.Temperature, highestTemperature - lowestTemperature, " K"},
		{"currents", a.Current, highestCurrent, " A"},
		{"currents as a share", a.CurrentShare, 1, ""},
	} {
		if !(v.value <= v.most) {
			return fmt.Errorf("thresholds: agreement of %s is %v%s, want at most %v, 0 for the default, or less for none", v.name, v.value, v.unit, v.most)
		}
	}
	return nil
}

func orOff(off bool) string {
	if off {
		return ", or 0 for none"
	}
	return ""
}

// The greatest margins of Keep. Somebody who takes them for limits is told.
const (
	mostKeptSoC         = 10   // %
	mostKeptTemperature = 10   // K
	mostKeptCurrent     = 5    // A, or as much as the limit
	mostKeptCellDelta   = 0.02 // V
)

// clone returns t with a list of its own.
func (t Thresholds) clone() Thresholds {
	t.IgnoreAlarms = slices.Clone(t.IgnoreAlarms)
	return t
}

// kept returns t softened by the margins of Keep.
func (t Thresholds) kept() Thresholds {
	sum := func(a, b float64) float64 { return math.Round((a+b)*1e9) / 1e9 } // 0.05 and 0.01 are 0.06
	k := t.Keep
	t.MinSoC = max(sum(t.MinSoC, -k.MinSoC), 0)
	if t.MaxSoC > 0 {
		t.MaxSoC = min(sum(t.MaxSoC, k.MaxSoC), 100)
	}
	t.MinTemperature = max(sum(t.MinTemperature, -k.MinTemperature), lowestTemperature)
	t.MaxTemperature = min(sum(t.MaxTemperature, k.MaxTemperature), highestTemperature)
	t.MaxCurrent = min(sum(t.MaxCurrent, k.MaxCurrent), 2*t.MaxCurrent, highestCurrent)
	t.MaxCellDelta = min(sum(t.MaxCellDelta, k.MaxCellDelta), 2*t.MaxCellDelta) // 0, which is none, stays
	return t
}
