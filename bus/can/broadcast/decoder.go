package broadcast

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// Decoder collects what one battery says. It is for one goroutine.
type Decoder struct {
	profile *Profile
	options Options
	said    []*said // by message; nil: never heard

	frames, unknown, invalid, changes uint64
}

// New returns a decoder that has heard nothing yet. The profile is one of [Names].
func New(profile string, o Options) (*Decoder, error) {
	p, err := Named(profile)
	if err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("decode %s: %w", profile, err)
	}
	return &Decoder{profile: p, options: o, said: make([]*said, len(p.messages))}, nil
}

func (o *Options) check() error {
	switch {
	case !(o.RatedCurrent >= 0) || math.IsInf(o.RatedCurrent, 0):
		return fmt.Errorf("rated current %g A, want 0 or more", o.RatedCurrent)
	case !(o.VoltageMin >= 0) || !(o.VoltageMax >= 0) || o.VoltageMax != 0 && o.VoltageMax <= o.VoltageMin || math.IsInf(o.VoltageMax, 0):
		return fmt.Errorf("plausible voltage %g to %g V, want a range", o.VoltageMin, o.VoltageMax)
	case o.Address > 15:
		return fmt.Errorf("address %d, want 0 to 15", o.Address)
	case o.FirstModule > 1:
		return fmt.Errorf("first module %d, want 0 or 1", o.FirstModule)
	}
	return nil
}

// shift is what the options add to the identifier of m.
func (p *Profile) shift(m *message, o *Options) uint32 {
	switch {
	case p.addressed:
		return uint32(o.Address)
	case m.module > 0:
		return uint32(o.FirstModule)
	}
	return 0
}

// Add takes a frame that was received at a time. Unknown frames are no error. A known
// frame that cannot be true is one, and makes its values missing.
func (d *Decoder) Add(f can.Frame, at time.Time) (known bool, err error) {
	i := -1
	if f.Validate() == nil && !f.Remote {
		i = slices.IndexFunc(d.profile.messages, func(m message) bool {
			return f.Extended == m.extended && f.ID == m.id+d.profile.shift(&m, &d.options)
		})
	}
	if i < 0 {
		d.unknown++
		return false, nil
	}
	d.frames++
	m := &d.profile.messages[i]
	old := d.said[i]
	s, err := m.hear(f, d.limits, d.options.ReverseCurrent)
	if err != nil {
		d.invalid++
		s = new(said)
		if old != nil {
			s.at = old.at
		}
	} else {
		s.at = at
	}
	s.heard = at
	s.content = s.hash()
	if m.opaque {
		s.content = s.content*31 + binary.LittleEndian.Uint64(f.Data[:])
	}
	if old != nil && old.content != s.content { // heard for the first time is no change
		d.changes++
	}
	d.said[i] = s
	return true, err
}

// mostCurrent is in A, if the battery's rated current is not known.
const mostCurrent = 10_000

// limits are what is plausible.
func (d *Decoder) limits(f *field) (least, most float64) {
	switch f.q {
	case SoC, SoH, moduleSoC:
		return 0, 100
	case TemperatureMin, TemperatureMax, BoardTemperature:
		return -40, 100
	case CellMin, CellMax:
		return 0, 6
	case Voltage:
		least, most = d.profile.voltage[0], d.profile.voltage[1]
		if d.options.VoltageMax != 0 {
			least, most = d.options.VoltageMin, d.options.VoltageMax
		}
		return least, most
	case Current:
		if d.options.RatedCurrent > 0 {
			return -2 * d.options.RatedCurrent, 2 * d.options.RatedCurrent
		}
		return -mostCurrent, mostCurrent
	}
	return 0, 65535
}

// hash is of what was said, not of when.
func (s *said) hash() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, s.valid, s.alarms, s.warnings, s.requests, s.vouched, s.charge, s.discharge, s.mode, s.active)
	fmt.Fprintf(h, "%q%q%q%q%q%q", s.maker, s.name, s.serial, s.kind, s.version, s.hardware)
	for _, n := range s.numbers {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], math.Float64bits(n.v))
		h.Write(b[:])
	}
	return h.Sum64()
}

// vanished is when a frame with alarms does not count any more because another one has
// taken over: batteries change the frames that they send with their firmware. Inverters
// give up after as much (SMA: F952 after 60 s).
const vanished = time.Minute

// State returns what is known now.
func (d *Decoder) State() State {
	st := State{
		Profile: d.profile.Name, Values: make(map[Quantity]Value),
		Frames: d.frames, Unknown: d.unknown, Invalid: d.invalid, Changes: d.changes,
	}
	d.offer(&st)
	newest := time.Time{}
	for i, s := range d.said {
		if s != nil && d.profile.messages[i].alarms && s.heard.After(newest) {
			newest = s.heard
		}
	}
	content := fnv.New64a()
	doubtful := false // a frame with alarms was invalid
	for i, s := range d.said {
		if s == nil {
			continue
		}
		fmt.Fprint(content, i, s.content)
		m := &d.profile.messages[i]
		switch {
		case m.module > 0:
			continue // further down, if the battery says that it is active
		case m.alarms && s.heard.Before(newest.Add(-vanished)):
			continue
		}
		st.merge(m, s)
		doubtful = doubtful || m.alarms && !s.valid
	}
	st.AlarmsKnown = st.AlarmsKnown && !doubtful
	st.Content = content.Sum64()
	if d.profile.modular {
		d.modules(&st)
	}
	for _, list := range []*[]string{&st.Alarms, &st.Warnings, &st.Requests} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	d.missing(&st)
	return st
}

// offer enters every quantity that the profile can carry, as not available.
func (d *Decoder) offer(st *State) {
	for i := range d.profile.messages {
		m := &d.profile.messages[i]
		if m.module > 0 {
			continue
		}
		for _, f := range m.fields {
			for _, q := range f.quantities() {
				if _, ok := st.Values[q]; !ok {
					st.Values[q] = Value{Value: math.NaN(), Cycle: m.cycle}
				}
			}
		}
	}
}

func (f *field) quantities() []Quantity {
	if f.average {
		return []Quantity{TemperatureMin, TemperatureMax}
	}
	return []Quantity{f.q}
}

// merge adds what one message said. Messages are in the order of the profile: of two
// that say the same, the later is the better one.
func (st *State) merge(m *message, s *said) {
	if m.alarms {
		st.AlarmsKnown = true
		st.AlarmsCycle = m.cycle
		if st.AlarmsAt.IsZero() || s.at.Before(st.AlarmsAt) {
			st.AlarmsAt = s.at
		}
		st.AlarmsVouched += s.vouched
	}
	if !s.valid {
		for _, f := range m.fields {
			for _, q := range f.quantities() {
				st.Values[q] = Value{Value: math.NaN(), At: s.at, Cycle: m.cycle}
				st.Average = st.Average && q != TemperatureMin
			}
		}
		return
	}
	for _, n := range s.numbers {
		if math.IsNaN(n.v) && st.Of(n.q).Available() {
			continue // an older way to say it is better than none
		}
		st.Values[n.q] = Value{Value: n.v, At: s.at, Cycle: m.cycle}
		if n.q == TemperatureMin {
			st.Average = n.average
		}
	}
	st.Alarms = append(st.Alarms, s.alarms...)
	st.Warnings = append(st.Warnings, s.warnings...)
	st.Requests = append(st.Requests, s.requests...)
	if s.mode != "" && st.Mode != ModeUpdating {
		st.Mode, st.ModeAt = s.mode, s.at
	}
	overlay(&st.Charge, s.charge)
	overlay(&st.Discharge, s.discharge)
	overlay(&st.Maker, s.maker)
	overlay(&st.Name, s.name)
	overlay(&st.Serial, s.serial)
	overlay(&st.Type, s.kind)
	overlay(&st.Version, s.version)
	overlay(&st.Hardware, s.hardware)
}

func overlay[S ~string](to *S, s S) {
	if s != "" {
		*to = s
	}
}

// modules works out the battery's values from its modules', which are in series. One
// active module without a value, and the battery has none.
func (d *Decoder) modules(st *State) {
	var active uint16
	if s := d.said[0]; s != nil && s.valid {
		active = s.active
	}
	var sum, current, low, high float64
	low, high = math.Inf(1), math.Inf(-1)
	var oldest time.Time
	var cycle time.Duration
	count, good := 0, true
	for i := range d.profile.messages {
		m, s := &d.profile.messages[i], d.said[i]
		if m.module == 0 || active>>(m.module-1)&1 == 0 {
			continue
		}
		count++
		cycle = m.cycle
		good = good && s.whole()
		if s == nil {
			continue
		}
		if oldest.IsZero() || s.at.Before(oldest) {
			oldest = s.at
		}
		for _, n := range s.numbers {
			switch n.q {
			case Voltage:
				sum += n.v
			case Current:
				if math.Abs(n.v) > math.Abs(current) {
					current = n.v
				}
			case TemperatureMin:
				low, high = min(low, n.v), max(high, n.v)
			}
		}
		st.Alarms = append(st.Alarms, s.alarms...)
	}
	values := map[Quantity]float64{Voltage: sum, Current: current, TemperatureMin: low, TemperatureMax: high}
	for q := range values {
		v := Value{Value: values[q], At: oldest, Cycle: cycle}
		if !good || count == 0 {
			v.Value = math.NaN()
		}
		st.Values[q] = v
	}
	st.Average = false
}

// whole reports whether a frame had everything.
func (s *said) whole() bool {
	return s != nil && s.valid && !slices.ContainsFunc(s.numbers, func(n number) bool { return math.IsNaN(n.v) })
}

// missing names the frames that SoC, current and temperature need and have not.
func (d *Decoder) missing(st *State) {
	missing := make(map[string]bool)
	for _, q := range []Quantity{SoC, Current, TemperatureMax} {
		if st.Of(q).Available() {
			continue
		}
		for i := range d.profile.messages {
			m, s := &d.profile.messages[i], d.said[i]
			if m.module > 0 && (d.said[0] == nil || d.said[0].active>>(m.module-1)&1 == 0 || s.whole()) {
				continue // not active, or not what is missing
			}
			if slices.ContainsFunc(m.fields, func(f field) bool { return slices.Contains(f.quantities(), q) }) {
				missing[fmt.Sprintf("%03X", m.id+d.profile.shift(m, &d.options))] = true
				if m.module == 0 {
					break // the first is the one that all batteries of this profile send
				}
			}
		}
	}
	if d.profile.modular && len(missing) == 0 && !st.Of(Current).Available() {
		missing["active modules"] = true
	}
	st.Missing = slices.Sorted(maps.Keys(missing))
}
