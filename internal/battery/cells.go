package battery

import (
	"math"
	"math/rand/v2"
	"slices"
)

// openCircuit is the voltage of a cell without load over its state of charge: the
// shape of lithium iron phosphate, steep at the ends and flat in between.
var openCircuit = []struct{ soc, volt float64 }{
	{0, 2.80}, {5, 3.05}, {10, 3.18}, {20, 3.250}, {30, 3.285}, {40, 3.310}, {57.5, 3.3294}, {70, 3.337}, {90, 3.345}, {97, 3.360}, {100, 3.450},
}

const (
	resistance = 0.00024 // ohm, of a cell
	cellSpread = 0.012   // V, of a cell from their mean, at most

	weakModule, weakCell = 7, 5 // of [Settings.Imbalance], counted from 1
	hotModule            = 4    // of [Settings.Overheating], counted from 1
)

// cells is what differs between cells and modules.
type cells struct {
	offset [Modules][CellsPerModule]float64 // V; the mean is 0
	rank   [Modules]int                     // 0 for the coldest module
}

// newCells spreads the cells evenly, so that every seed has the same extremes and
// the same sum, in other places.
func newCells(seed uint64) cells {
	rng := rand.New(rand.NewPCG(seed, 1))
	var c cells
	for i, at := range rng.Perm(Cells) {
		c.offset[at/CellsPerModule][at%CellsPerModule] = cellSpread * (2*float64(i)/(Cells-1) - 1)
	}
	copy(c.rank[:], rng.Perm(Modules))
	// The module that can overheat is the hottest already: heating it moves the
	// highest temperature from the first second on.
	hottest := slices.Index(c.rank[:], Modules-1)
	c.rank[hottest], c.rank[hotModule-1] = c.rank[hotModule-1], Modules-1
	return c
}

// cellVoltage is the mean voltage of the cells while a current flows.
func cellVoltage(soc, current float64) float64 {
	i, found := slices.BinarySearchFunc(openCircuit, soc, func(p struct{ soc, volt float64 }, soc float64) int {
		switch {
		case p.soc < soc:
			return -1
		case p.soc > soc:
			return 1
		}
		return 0
	})
	v := 0.0
	switch {
	case found:
		v = openCircuit[i].volt
	case i == 0:
		v = openCircuit[0].volt
	case i == len(openCircuit):
		v = openCircuit[i-1].volt
	default:
		a, b := openCircuit[i-1], openCircuit[i]
		v = a.volt + (b.volt-a.volt)*(soc-a.soc)/(b.soc-a.soc)
	}
	return v - current*resistance
}

// voltage is that of all cells in series while a current flows.
func (s *state) voltage(current float64) float64 {
	return Cells*cellVoltage(s.soc, current) - s.imbalance
}

// currentAt is the current at which the battery gives this power, or takes it if
// it is negative: the smaller solution of power = (E - R I) I.
func (s *state) currentAt(power float64) float64 {
	if power == 0 {
		return 0
	}
	e, r := s.voltage(0), Cells*resistance
	return (e - math.Sqrt(max(0, e*e-4*r*power))) / (2 * r)
}
