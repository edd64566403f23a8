package sunspec

import (
	"fmt"
	"math"
)

// measure fills in the numbers. Of several instruments the first in the order of
// the lists here counts; current and state of charge keep the others too.
func (b *blocks) measure(r *Battery) {
	soc := []Quantity{quantity(b.base, "SoC"), b.storageSoC(), b.mean("StrSoC", "SoC")}
	r.SoC, r.OtherSoC = firstAndOthers(soc)
	r.SoH = first(quantity(b.base, "SoH"), quantity(b.storage, "SoH"),
		extreme("lowest", math.Min, b.ofGroup(b.bank, "string", "StrSoH")), extreme("lowest", math.Min, b.of804("SoH")))

	amps := []Quantity{quantity(b.base, "A"), sum(b.ofGroup(b.bank, "string", "StrA")), sum(b.of804("A")), sum(b.ofPorts("DCA"))}
	r.A, r.OtherA = firstAndOthers(amps)
	if b.base.Registers != nil {
		r.OtherA = append(r.OtherA, b.ampsByPower())
	}

	r.V = first(quantity(b.base, "V"), extreme("highest", math.Max, b.of804("V")), extreme("highest", math.Max, b.ofPorts("DCV")))
	r.W = first(quantity(b.base, "W"), sum(b.ofPorts("DCW")))
	r.CellMin = first(quantity(b.base, "CellVMin"),
		extreme("lowest", math.Min, b.ofGroup(b.bank, "string", "StrCellVMin")), extreme("lowest", math.Min, b.of804("CellVMin")))
	r.CellMax = first(quantity(b.base, "CellVMax"),
		extreme("highest", math.Max, b.ofGroup(b.bank, "string", "StrCellVMax")), extreme("highest", math.Max, b.of804("CellVMax")))

	r.TempMin = b.temperature("lowest", math.Min, "Min")
	r.TempMax = b.temperature("highest", math.Max, "Max")
}

// temperature takes the bank's modules; else the strings' modules; else the
// converter's battery port, else its cabinet, which say little about cells.
func (b *blocks) temperature(word string, pick func(a, b float64) float64, which string) Quantity {
	bank := widest(word, pick, quantity(b.bank, "ModTmp"+which), b.ofGroup(b.bank, "string", "StrModTmp"+which))
	var modules []Quantity
	for _, s := range b.strings {
		modules = append(modules, widest(word, pick, quantity(s, "ModTmp"+which), b.ofGroup(s, "module", "ModCellTmp"+which)))
	}
	return first(bank, extreme(word, pick, modules), extreme(word, pick, b.ofPorts("Tmp")), quantity(b.ac, "TmpCab"))
}

// storageSoC is 713's state of charge. The definition fixes it at 0 % for
// devices without storage, so that 0 without a rated energy says nothing.
func (b *blocks) storageSoC() Quantity {
	q := quantity(b.storage, "SoC")
	if q.Value != 0 {
		return q
	}
	if rated, err := b.storage.Number("WHRtg"); err != nil || rated == 0 {
		return none(from(b.storage, "SoC"), "read 713 SoC: it is 0 without a rated energy, which means a device without storage")
	}
	return q
}

// mean is the mean state of charge of 803's strings, else 804's.
func (b *blocks) mean(of803, of804 string) Quantity {
	all, name := b.ofGroup(b.bank, "string", of803), of803
	if len(all) == 0 {
		all, name = b.of804(of804), of804
	}
	q := sum(all)
	if math.IsNaN(q.Value) {
		return q
	}
	q.Value /= float64(len(all))
	q.From = fmt.Sprintf("%d mean of %s", q.Model, name)
	return q
}

// ampsByPower is what the battery's power and voltage say about its current.
func (b *blocks) ampsByPower() Quantity {
	const name = "802 W/V"
	w, v := quantity(b.base, "W"), quantity(b.base, "V")
	for _, q := range []Quantity{w, v} {
		if math.IsNaN(q.Value) {
			return none(name, q.Why)
		}
	}
	if v.Value < 1 {
		return none(name, fmt.Sprintf("divide 802 W by V: V is %v, want at least 1", v.Value))
	}
	return Quantity{Value: w.Value / v.Value, Model: 802, From: name}
}

// ofGroup are the values of a point in every one of a group.
func (b *blocks) ofGroup(of Block, group, name string) []Quantity {
	n, err := b.repeats(of, group)
	if err != nil {
		return []Quantity{none(from(of, name), err.Error())}
	}
	var all []Quantity
	for i := range n {
		all = append(all, quantity(of, Path(group, i+1, name)))
	}
	return all
}

// of804 are the values of a point in every string model.
func (b *blocks) of804(name string) []Quantity {
	var all []Quantity
	for _, s := range b.strings {
		all = append(all, quantity(s, name))
	}
	return all
}

// ofPorts are the values of a point at 714's ports to energy storage.
func (b *blocks) ofPorts(name string) []Quantity {
	n, err := b.repeats(b.dc, "Prt")
	if err != nil {
		return []Quantity{none(from(b.dc, name), err.Error())}
	}
	var all []Quantity
	for i := range n {
		path := Path("Prt", i+1, "")
		kind, err := b.dc.Enum(path + "PrtTyp")
		if err != nil { // it may be the battery's
			return []Quantity{none(from(b.dc, name), err.Error())}
		}
		if kind.Name == "ESS" {
			all = append(all, quantity(b.dc, path+name))
		}
	}
	return all
}

func quantity(b Block, path string) Quantity {
	if err := b.lacking(path); err != nil {
		return Quantity{Value: math.NaN(), Why: err.Error()}
	}
	v, err := b.Number(path)
	if err != nil {
		return none(from(b, path), err.Error())
	}
	return Quantity{Value: v, Model: b.Model.ID, From: from(b, path)}
}

// none is a quantity of an instrument that is there and has no value.
func none(from, why string) Quantity { return Quantity{Value: math.NaN(), From: from, Why: why} }

// first is the first with a value, else the first that could have had one.
func first(all ...Quantity) Quantity {
	best := all[0]
	for _, q := range all {
		if !math.IsNaN(q.Value) {
			return q
		}
		if best.From == "" && q.From != "" {
			best = q
		}
	}
	return best
}

// firstAndOthers is first, and the rest of those that the device has.
func firstAndOthers(all []Quantity) (Quantity, []Quantity) {
	best := first(all...)
	var others []Quantity
	for _, q := range all {
		if q.From != "" && q.From != best.From {
			others = append(others, q)
		}
	}
	return best, others
}

// sum needs all of them: one that is not known could be anything.
func sum(all []Quantity) Quantity {
	if len(all) == 0 {
		return Quantity{Value: math.NaN(), Why: ErrNoModel.Error()}
	}
	total := 0.0
	for _, q := range all {
		if math.IsNaN(q.Value) {
			return q
		}
		total += q.Value
	}
	q := all[0]
	if len(all) > 1 {
		q.From = fmt.Sprintf("%d sum of %d, first %s", q.Model, len(all), q.From)
	}
	q.Value = total
	return q
}

// extreme is the lowest or highest, and like sum it needs all of them.
func extreme(word string, pick func(a, b float64) float64, all []Quantity) Quantity {
	best := Quantity{Value: math.NaN(), Why: ErrNoModel.Error()}
	for i, q := range all {
		if math.IsNaN(q.Value) {
			return q
		}
		if i == 0 || pick(q.Value, best.Value) != best.Value {
			best = q
		}
	}
	if len(all) > 1 {
		best.From = fmt.Sprintf("%s, %s of %d", best.From, word, len(all))
	}
	return best
}

// widest is the extreme of what a model says about the whole and what it says of
// the parts. If it says something about the whole, not all parts have to.
func widest(word string, pick func(a, b float64) float64, whole Quantity, parts []Quantity) Quantity {
	if math.IsNaN(whole.Value) {
		if len(parts) == 0 {
			return whole
		}
		return extreme(word, pick, parts)
	}
	known := []Quantity{whole}
	for _, q := range parts {
		if !math.IsNaN(q.Value) {
			known = append(known, q)
		}
	}
	return extreme(word, pick, known)
}
