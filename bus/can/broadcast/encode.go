package broadcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota/bus/can"
)

// Encode returns the frames that a battery sends in one cycle to say b, as far as the
// profile can: what the profile has no frame for is left out. It errs if a value does
// not fit into its frame, or an alarm, a warning or a request has no bit, or the
// profile must send something that is not available and has no mark for that. Where
// one bit allows charging or discharging, it does not if that is not known.
func (p *Profile) Encode(b Battery, o Options) ([]can.Frame, error) {
	if err := errors.Join(o.check(), p.check(&b)); err != nil {
		return nil, fmt.Errorf("encode %s: %w", p.Name, err)
	}
	var frames []can.Frame
	for i := range p.messages {
		m := &p.messages[i]
		if m.heardOnly || m.module > b.modules() {
			continue
		}
		of := &b
		if m.module > 0 {
			of = b.module(m.module-1, b.modules())
		}
		f, said, err := m.encode(of, o.ReverseCurrent)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", p.Name, err)
		}
		if said || m.always || m.module > 0 {
			f.ID += p.shift(m, &o)
			frames = append(frames, f)
		}
	}
	return frames, nil
}

// check refuses names that no bit stands for: they would be lost silently.
func (p *Profile) check(b *Battery) error {
	for to, names := range map[target][]string{alarm: b.Alarms, warning: b.Warnings, request: b.Requests} {
		for _, name := range names {
			if there := p.names(to, b.modules()); !slices.Contains(there, name) {
				return fmt.Errorf("nothing says %q: there are %q", name, there)
			}
		}
	}
	return nil
}

// names are those that Encode can say, with so many modules.
func (p *Profile) names(to target, modules int) []string {
	names := make(map[string]bool)
	for _, m := range p.messages {
		for _, f := range m.flags {
			if f.to == to && !m.heardOnly && m.module <= modules {
				names[f.name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Alarms returns the names of the alarms that Encode can send, sorted.
func (p *Profile) Alarms() []string { return p.names(alarm, modulesMost) }

// Warnings returns the names of the warnings that Encode can send, sorted.
func (p *Profile) Warnings() []string { return p.names(warning, modulesMost) }

func (m *message) encode(b *Battery, reverse bool) (f can.Frame, said bool, err error) {
	f = can.Frame{ID: m.id, Extended: m.extended, Len: uint8(m.len)}
	data := f.Data[:m.len]
	if m.write != nil {
		said = m.write(b, data) && !m.always
	}
	for i := range m.fields {
		field := &m.fields[i]
		v, ok := b.Values[field.q]
		if !ok {
			v = math.NaN()
		}
		if field.average {
			v = b.average()
		}
		if field.q == Current && reverse {
			v = -v
		}
		if math.IsNaN(v) && i == len(m.fields)-1 && field.at >= m.min {
			f.Len = uint8(field.at) // batteries leave it out
			continue
		}
		if err := m.put(field, v, data); err != nil && (said || m.always || !math.IsNaN(v)) {
			return f, false, fmt.Errorf("frame %s: %w", m, err)
		}
		said = said || !math.IsNaN(v)
	}
	for i := range m.flags {
		said = m.flags[i].put(b, data) || said
	}
	for _, l := range m.labels {
		said = l.put(b, data) || said
	}
	clear(f.Data[f.Len:])
	return f, said, nil
}

// put writes v where f is.
func (m *message) put(f *field, v float64, data []byte) error {
	raw, marked := f.kind.missing()
	if math.IsNaN(v) {
		if !marked {
			return fmt.Errorf("%s is not available, and there is no way to say so", f.q)
		}
	} else {
		if f.magnitude {
			v = math.Abs(v)
		}
		exact := math.Round(v*f.per) + float64(f.zero)
		least, most := f.kind.limits()
		if f.mask != 0 {
			most = f.mask
		}
		if exact < float64(least) || exact > float64(most) || marked && exact == float64(raw) {
			return fmt.Errorf("%s %g does not fit", f.q, v)
		}
		raw = int(exact)
	}
	switch {
	case f.kind == u8:
		data[f.at] |= byte(raw)
	case m.big:
		binary.BigEndian.PutUint16(data[f.at:], uint16(raw))
	default:
		binary.LittleEndian.PutUint16(data[f.at:], uint16(raw))
	}
	return nil
}

// put sets the flag's bit, and reports whether that is worth a frame.
func (f *flag) put(b *Battery, data []byte) bool {
	var raised, said bool
	switch f.to {
	case charge:
		raised, said = b.Charge == On, b.Charge != ""
	case discharge:
		raised, said = b.Discharge == On, b.Discharge != ""
	case alarm:
		raised = slices.Contains(b.Alarms, f.name)
	case warning:
		raised = slices.Contains(b.Warnings, f.name)
	case request:
		raised = slices.Contains(b.Requests, f.name)
	}
	switch {
	case raised:
		data[f.at] |= 1 << f.bit
	case f.pair:
		data[f.at] |= 2 << f.bit
	}
	return raised || said
}

func (l *label) put(b *Battery, data []byte) bool {
	all := said{maker: b.Maker, name: b.Name, serial: b.Serial, kind: b.Type, version: b.Version}
	text := *l.what(&all)
	if text == "" {
		return false
	}
	to := data[l.at : l.at+l.len]
	if l.style != numbers {
		copy(to, text)
		for i := len(text); i < len(to) && l.style == letters; i++ {
			to[i] = ' '
		}
		return true
	}
	for i, part := range strings.Split(text, ".") {
		if n, err := strconv.ParseUint(part, 10, 8); err == nil && i < len(to) {
			to[i] = byte(n)
		}
	}
	return true
}

// average is of the temperatures that are known.
func (b *Battery) average() float64 {
	low, ok := b.Values[TemperatureMin]
	high, ok2 := b.Values[TemperatureMax]
	switch {
	case ok && ok2:
		return (low + high) / 2
	case ok:
		return low
	case ok2:
		return high
	}
	return math.NaN()
}

// plantModules is how many modules a battery of the profile original has, if it does
// not say: 13 of 48 V in series.
const plantModules = 13

func (b *Battery) modules() int {
	if n, ok := b.Values[Modules]; ok && n >= 1 && n <= modulesMost {
		return int(n)
	}
	return plantModules
}

// module is what module i of n says: its share of the voltage, all of the current. The
// first one is the coldest, the last one the hottest.
func (b *Battery) module(i, n int) *Battery {
	one := *b
	one.Values = maps.Clone(b.Values)
	if v, ok := b.Values[Voltage]; ok {
		share := func(i int) float64 { return math.Round(v*100*float64(i)/float64(n)) / 100 }
		one.Values[Voltage] = share(i+1) - share(i) // so that their sum is v again
	}
	if high, ok := b.Values[TemperatureMax]; ok && i == n-1 {
		one.Values[TemperatureMin] = high
	}
	one.Values[moduleSoC] = b.Values[SoC]
	return &one
}
