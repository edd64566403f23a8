package broadcast

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// kind is how a number lies in a frame. A frame has one byte order.
type kind uint8

const (
	u8 kind = iota
	u16
	i16
)

func (k kind) size() int {
	if k == u8 {
		return 1
	}
	return 2
}

// missing is the raw value that says "not available" (SMA FSS-ConnectingBat-TI-en-10).
// A byte has none.
func (k kind) missing() (raw int, ok bool) {
	switch k {
	case u16:
		return 0xFFFF, true
	case i16:
		return math.MinInt16, true
	}
	return 0, false
}

func (k kind) limits() (least, most int) {
	switch k {
	case u8:
		return 0, 0xFF
	case i16:
		return math.MinInt16, math.MaxInt16
	}
	return 0, 0xFFFF
}

// field is a number in a frame: (raw - zero) / per, in the unit of its quantity.
type field struct {
	q    Quantity
	at   int // first byte
	kind kind
	per  float64 // raw steps per unit; negative: the sign is the other way round
	zero int     // raw value that means 0
	mask int     // bits that belong to the number; 0: all

	magnitude bool // makers differ in the sign, which says nothing here
	average   bool // a temperature that stands for the lowest and the highest
	fine      bool // the same as the field before, with more digits, if the battery fills it in
}

// target is what a bit is about.
type target uint8

const (
	alarm target = iota
	warning
	request
	charge    // allowed
	discharge // allowed
)

// flag is one bit: 1 is raised, or allowed. A pair is two bits from there on: 1 is
// raised, 2 is not, 0 and 3 say nothing (MG Master LV guide: "1 = raised, 2 = cleared";
// batteries of Discover fill unused pairs with 3).
type flag struct {
	to   target
	at   int
	bit  int
	pair bool
	name string
}

// label is text in a frame.
type label struct {
	what    func(*said) *string
	at, len int
	style   style
}

type style uint8

const (
	letters style = iota
	numbers       // "1.3": one number per byte, most significant first
	product       // two letters, or else a number such as 0xA2F0
)

// message is a frame of a profile.
type message struct {
	id       uint32
	extended bool
	big      bool // most significant byte first
	min, len int  // bytes: the shortest that is understood, and what Encode sends
	cycle    time.Duration

	fields []field
	flags  []flag
	labels []label
	read   func(*said, []byte)         // what fits nowhere else
	write  func(*Battery, []byte) bool // true: there was something to write

	alarms    bool // its flags tell all alarms that there are
	always    bool // Encode sends it also if there is nothing to say
	heardOnly bool // Encode does not send it: another frame says the same
	opaque    bool // counts as content, as it is
	module    int  // 1 + the bit in the bitmap; 0: of the battery
}

func (m *message) String() string { return fmt.Sprintf("%03X", m.id) }

// number is a quantity in one frame.
type number struct {
	q       Quantity
	v       float64
	average bool
}

// said is what the newest frame of a message said.
type said struct {
	at      time.Time // of the last good one; zero: there was none
	heard   time.Time // of the last one
	valid   bool
	content uint64

	numbers                    []number
	alarms, warnings, requests []string
	vouched                    int
	charge, discharge          Switch
	mode                       Mode
	maker, name, serial        string
	kind, version, hardware    string
	active                     uint16 // modules, a bit each
}

// raw returns the number at f, if the frame is long enough.
func (m *message) raw(f *field, data []byte) (int, bool) {
	if f.at+f.kind.size() > len(data) {
		return 0, false
	}
	var raw int
	switch {
	case f.kind == u8:
		raw = int(data[f.at])
	case m.big:
		raw = int(binary.BigEndian.Uint16(data[f.at:]))
	default:
		raw = int(binary.LittleEndian.Uint16(data[f.at:]))
	}
	if f.kind == i16 {
		raw = int(int16(raw))
	}
	if f.mask != 0 {
		raw &= f.mask
	}
	return raw, true
}

// value turns a raw number into its unit; NaN if it is marked as missing.
func (f *field) value(raw int) float64 {
	if missing, ok := f.kind.missing(); ok && raw == missing {
		return math.NaN()
	}
	v := float64(raw-f.zero) / f.per
	if f.magnitude {
		v = math.Abs(v)
	}
	return v + 0 // no negative zero
}

// hear reads a frame of this message.
func (m *message) hear(f can.Frame, limits func(*field) (least, most float64), reverse bool) (*said, error) {
	data := f.Data[:f.Len]
	if len(data) < m.min {
		return nil, fmt.Errorf("frame %s: %d bytes, want at least %d", m, len(data), m.min)
	}
	s := &said{valid: true}
	for i := range m.fields {
		field := &m.fields[i]
		raw, ok := m.raw(field, data)
		if !ok {
			continue
		}
		v := field.value(raw)
		if field.q == Current && reverse {
			v = 0 - v
		}
		if least, most := limits(field); v < least || v > most {
			return nil, fmt.Errorf("frame %s: %s is %g, want %g to %g: is this the right profile?", m, field.q, v, least, most)
		}
		if err := s.number(field, raw, v); err != nil {
			return nil, fmt.Errorf("frame %s: %w", m, err)
		}
	}
	for i := range m.flags {
		s.flag(&m.flags[i], data)
	}
	for _, l := range m.labels {
		if l.at < len(data) {
			*l.what(s) = l.style.text(data[l.at:min(l.at+l.len, len(data))])
		}
	}
	if m.read != nil {
		m.read(s, data)
	}
	return s, nil
}

// number adds v, read from raw.
func (s *said) number(f *field, raw int, v float64) error {
	if f.fine {
		coarse := &s.numbers[len(s.numbers)-1]
		switch {
		case math.IsNaN(v) || raw == 0: // not filled in, or it changes nothing
		case math.Abs(v-coarse.v) > 1:
			return fmt.Errorf("%s is %g and, with more digits, %g", f.q, coarse.v, v)
		default:
			coarse.v = v
		}
		return nil
	}
	s.numbers = append(s.numbers, number{f.q, v, f.average})
	if f.average {
		s.numbers = append(s.numbers, number{TemperatureMax, v, true})
	}
	return nil
}

func (s *said) flag(f *flag, data []byte) {
	if f.at >= len(data) {
		return
	}
	raised := data[f.at]>>f.bit&1 == 1
	if f.pair {
		bits := data[f.at] >> f.bit & 3
		if bits == 0 || bits == 3 {
			return
		}
		raised = bits == 1
	}
	allowed := Off
	if raised {
		allowed = On
	}
	switch f.to {
	case charge:
		s.charge = allowed
	case discharge:
		s.discharge = allowed
	case alarm:
		s.vouched++
		if raised {
			s.alarms = append(s.alarms, f.name)
		}
	case warning:
		if raised {
			s.warnings = append(s.warnings, f.name)
		}
	case request:
		if raised {
			s.requests = append(s.requests, f.name)
		}
	}
}

// text makes bytes readable; what cannot be printed is left out.
func (s style) text(b []byte) string {
	switch s {
	case numbers:
		var parts []string
		for _, n := range b {
			parts = append(parts, fmt.Sprint(n))
		}
		return strings.Join(parts, ".")
	case product:
		if len(b) == 2 && (!printable(b[0]) || !printable(b[1])) {
			return fmt.Sprintf("0x%04X", binary.LittleEndian.Uint16(b))
		}
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(b)))
}

func printable(b byte) bool { return b > ' ' && b <= '~' }
