package bms

import (
	"errors"
	"time"
)

// Tolerance is by how much a battery may differ from what it was before an update.
// Values are meant as they stand, so start from [DefaultTolerance].
type Tolerance struct {
	SoC             float64 // %
	Temperature     float64 // K
	TemperatureRate float64 // K/min: by this much more for every minute between the two readings, to 10 K more
	CellVoltage     float64 // V, where the battery was at rest and is
	Rest            float64 // A: a current of at most this much is rest
	SoH             float64 // %
	Capacity        float64 // % of what it was
}

// DefaultTolerance is 2 %, 2 K and half a kelvin per minute, 20 mV at up to 1 A, 1 %
// of state of health and 1 % of capacity.
func DefaultTolerance() Tolerance {
	return Tolerance{SoC: 2, Temperature: 2, TemperatureRate: 0.5, CellVoltage: 0.02, Rest: 1, SoH: 1, Capacity: 1}
}

// Compare reports whether a battery is after an update, at the time now, what it was
// before: everything that it told it tells again, not older than maxAge, plausible,
// and within the tolerance, and there is no alarm that was not there. The error names
// every difference. Whether it is alive is [Guard.Alive]'s question.
func Compare(before, after Reading, t Tolerance, now time.Time, maxAge time.Duration) error {
	return errors.New("compare the battery: not written yet")
}
