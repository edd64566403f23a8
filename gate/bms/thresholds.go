package bms

import (
	"fmt"
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
	MaxAge         time.Duration // of a signal, above 0 to 5 min; and never more than three of its cycles

	RequireBeat bool // a source without a [Beat] refuses

	MaxSoC             float64 // %, above MinSoC
	MinCell, MaxCell   float64 // V, of every cell
	MaxCellDelta       float64 // V, between the highest and the lowest cell
	MaxTemperatureRate float64 // K/min, rising

	Standby       bool       // the mode must be off or standby
	Contactors    Contactors // must be so
	RemoteControl bool       // nobody may have taken local control
	RequireAlarms bool       // a source that cannot tell of alarms refuses; raised ones always do
	IgnoreAlarms  []string   // by name: the battery of this device raises them for nothing
	Agreement     Agreement  // with [Reading.Others]
	MaxUncounted  float64    // %, of charge that flowed while the state of charge stood still
	RatedCapacity float64    // Ah, for MaxUncounted where the source does not say
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

// Keep is hysteresis: once everything was within the thresholds, these are enough
// until something is outside of them. Zero: the thresholds themselves. They never
// soften what a release demands.
type Keep struct {
	MinSoC, MaxSoC                 float64 // %
	MinTemperature, MaxTemperature float64 // °C
	MaxCurrent                     float64 // A
	MaxCellDelta                   float64 // V
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
