package sunspec

import (
	"fmt"
	"strings"
)

// warningBits of Evt1 (802, 804) and StrEvt1 (803) by themselves do not speak
// against an update: the bits called warnings, and 21, a fan. All others do, those
// without a meaning included: nobody can say that they are harmless.
const warningBits = 1<<2 | 1<<4 | 1<<6 | 1<<8 | 1<<10 | 1<<12 | 1<<14 | 1<<16 | 1<<17 | 1<<19 | 1<<21 | 1<<24 | 1<<26 | 1<<29

// alarms collects the events of every model. They are known if at least one of
// 802, 803 and 804 tells its own, and none that is there keeps silent.
func (b *blocks) alarms(r *Battery) {
	told := 0
	var silent []string
	ask := func(of Block, prefix, who string) {
		if err := r.events(of, prefix, who); err != nil {
			silent = append(silent, err.Error())
			return
		}
		told++
	}
	if b.base.Registers != nil {
		ask(b.base, "", "")
	}
	if n, err := b.repeats(b.bank, "string"); err != nil {
		silent = append(silent, err.Error())
	} else {
		for i := range n {
			path, who := Path("string", i+1, "Str"), fmt.Sprintf("string %d ", i+1)
			ask(b.bank, path, who)
			r.connectFailure(b.bank, path+"ConFail", who)
		}
	}
	for i, s := range b.strings {
		who := fmt.Sprintf("string %d ", stringIndex(s, i))
		ask(s, "", who)
		r.connectFailure(s, "ConFail", who)
	}
	if told == 0 && len(silent) == 0 {
		silent = []string{fmt.Sprintf("read Evt1 of 802, 803 or 804: %v", ErrNoModel)}
	}
	r.AlarmsKnown, r.AlarmsWhy = len(silent) == 0, strings.Join(silent, "; ")
	r.storageStatus(status(b.storage, "Sta"))
	b.converterAlarms(r)
}

// stringIndex is 804's own index, else its place in the map.
func stringIndex(b Block, i int) int {
	if index, err := b.Integer("Idx"); err == nil {
		return int(index)
	}
	return i + 1
}

// events sorts the bits of the four event fields that 802, 804 and 803's strings
// all have. Only the first has to be there.
func (r *Battery) events(b Block, prefix, who string) error {
	path := prefix + "Evt1"
	mask, err := b.Mask(path)
	if err != nil {
		return err
	}
	p, _, _, _, err := Define(b.Model.ID).point(path)
	if err != nil {
		return err
	}
	for bit := range uint16(31) {
		name := fmt.Sprintf("%d %s%s", b.Model.ID, who, p.bit(bit))
		switch {
		case mask>>bit&1 == 0:
		case warningBits>>bit&1 == 1:
			r.Warnings = append(r.Warnings, name)
		default:
			r.Alarms = append(r.Alarms, name)
		}
	}
	for _, field := range []string{"Evt2", "EvtVnd1", "EvtVnd2"} {
		bits, _ := b.Bits(prefix + field) // no meaning is defined for any of them
		for _, bit := range bits {
			r.Vendor = append(r.Vendor, fmt.Sprintf("%d %s%s %s", b.Model.ID, who, field, bit))
		}
	}
	return nil
}

// connectFailure is why the last attempt to close a string's contactor went
// wrong. That may be long ago, so it is a warning.
func (r *Battery) connectFailure(b Block, path, who string) {
	e, err := b.Enum(path)
	if err != nil || e.Value == 0 {
		return
	}
	r.Warnings = append(r.Warnings, fmt.Sprintf("%d %sConFail %s", b.Model.ID, who, e.name()))
}

// storageStatus is 713's summary; a value without a name counts as an alarm.
func (r *Battery) storageStatus(s Status) {
	switch {
	case !s.Known || s.Name == "OK":
	case s.Name == "WARNING":
		r.Warnings = append(r.Warnings, "713 WARNING")
	default:
		r.Alarms = append(r.Alarms, "713 "+s.name())
	}
}

func (b *blocks) converterAlarms(r *Battery) {
	add := func(of Block, path, who string) {
		bits, err := of.Bits(path)
		r.ConverterAlarmsKnown = r.ConverterAlarmsKnown || err == nil
		for _, bit := range bits {
			r.ConverterAlarms = append(r.ConverterAlarms, fmt.Sprintf("%d %s%s", of.Model.ID, who, bit))
		}
	}
	if b.ac.Registers != nil {
		add(b.ac, "Alrm", "")
	}
	n, _ := b.repeats(b.dc, "Prt") // consistent has made sure that they can be counted
	for i := range n {
		add(b.dc, Path("Prt", i+1, "DCAlrm"), fmt.Sprintf("port %d ", i+1))
	}
}

// name is the symbol, or the number of a value that has none.
func (e Enum) name() string {
	if e.Name != "" {
		return e.Name
	}
	return fmt.Sprintf("value %d", e.Value)
}
