package sunspec

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
)

// maxPower is the largest power of ten that a scale factor may name, up or down
// (sunssf in the SunSpec Device Information Model Specification).
const maxPower = 10

var (
	errNotImplemented = errors.New("the device does not implement it")
	errTopBit         = errors.New("the highest bit is set, so the others say nothing")
	errNotFinite      = errors.New("the number is not finite")
)

// join reads registers as one number, high register first.
func join(registers []uint16) uint64 {
	var raw uint64
	for _, r := range registers {
		raw = raw<<16 | uint64(r)
	}
	return raw
}

// split is the inverse of join, into size registers.
func split(raw uint64, size int) []uint16 {
	registers := make([]uint16, size)
	for i := range registers {
		registers[i] = uint16(raw >> (16 * (size - 1 - i)))
	}
	return registers
}

// notImplemented is what a type says instead of a value (the table of types in
// the SunSpec Device Information Model Specification).
func notImplemented(t Type) uint64 {
	switch t {
	case Int16, ScaleFactor, Pad:
		return 0x8000
	case Uint16, Enum16, Bitfield16, Count:
		return 0xFFFF
	case Int32:
		return 0x8000_0000
	case Uint32, Enum32, Bitfield32:
		return 0xFFFF_FFFF
	case Int64:
		return 0x8000_0000_0000_0000
	case Uint64:
		return 0xFFFF_FFFF_FFFF_FFFF
	case Float32:
		return 0x7FC0_0000
	case Float64:
		return 0x7FF8_0000_0000_0000
	}
	return 0 // accumulators and strings
}

// check says why registers of a type are not a value, or nil.
func check(t Type, raw uint64) error {
	switch t {
	case Float32:
		return checkFloat(float64(math.Float32frombits(uint32(raw))))
	case Float64:
		return checkFloat(math.Float64frombits(raw))
	}
	if raw == notImplemented(t) {
		return errNotImplemented
	}
	// "If the most significant bit in a bitfield is set, all other bits shall be
	// ignored" (Information Model Specification, bitfield16 and bitfield32).
	if t == Bitfield16 && raw>>15 != 0 || t == Bitfield32 && raw>>31 != 0 {
		return errTopBit
	}
	return nil
}

func checkFloat(v float64) error {
	if math.IsNaN(v) {
		return errNotImplemented
	}
	if math.IsInf(v, 0) {
		return errNotFinite
	}
	return nil
}

// float is the number in the registers of a type, before its scale factor.
func float(t Type, raw uint64) float64 {
	switch t {
	case Int16, ScaleFactor:
		return float64(int16(raw))
	case Int32:
		return float64(int32(raw))
	case Int64:
		return float64(int64(raw))
	case Float32:
		return float64(math.Float32frombits(uint32(raw)))
	case Float64:
		return math.Float64frombits(raw)
	}
	return float64(raw)
}

// scale is raw times ten to the power. It divides by a whole number rather than
// multiplying by a fraction, so that 575 and -1 are exactly 57.5.
func scale(raw float64, power int) float64 {
	if power < 0 {
		return raw / math.Pow10(-power)
	}
	return raw * math.Pow10(power)
}

// limits are the least and the largest number of an integer type. The value that
// says "not implemented" is not between them.
func limits(t Type) (least, most float64) {
	switch t {
	case Int16:
		return -math.MaxInt16, math.MaxInt16
	case ScaleFactor:
		return -maxPower, maxPower
	case Uint16, Enum16, Count:
		return 0, math.MaxUint16 - 1
	case Acc16:
		return 1, math.MaxUint16
	case Bitfield16:
		return 0, math.MaxInt16
	case Int32:
		return -math.MaxInt32, math.MaxInt32
	case Uint32, Enum32:
		return 0, math.MaxUint32 - 1
	case Acc32:
		return 1, math.MaxUint32
	case Bitfield32:
		return 0, math.MaxInt32
	case Int64: // the largest that a float64 has below the type's
		return -(1<<63 - 1024), 1<<63 - 1024
	case Uint64:
		return 0, 1<<64 - 2048
	case Acc64:
		return 1, 1<<64 - 2048
	}
	return math.Inf(1), math.Inf(-1) // nothing
}

// encode is the inverse of float and scale, rounded to the nearest. Halves go
// away from zero.
func encode(t Type, value float64, power int) (uint64, bool) {
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return 0, false
	}
	raw := scale(value, -power)
	switch t {
	case Float32:
		if math.Abs(raw) > math.MaxFloat32 {
			return 0, false
		}
		return uint64(math.Float32bits(float32(raw))), true
	case Float64:
		return math.Float64bits(raw), true
	}
	raw = math.Round(raw)
	if least, most := limits(t); raw < least || raw > most {
		return 0, false
	}
	if raw < 0 {
		return uint64(int64(raw)), true
	}
	return uint64(raw), true
}

// text is what a string says: up to the first zero, without the blanks that some
// devices fill up with. Bytes that cannot be shown become "?".
func text(registers []uint16) string {
	bytes := make([]byte, 0, 2*len(registers))
	for _, r := range registers {
		bytes = binary.BigEndian.AppendUint16(bytes, r)
	}
	s, _, _ := strings.Cut(string(bytes), "\x00")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F || r == '\uFFFD' {
			return '?'
		}
		return r
	}, strings.TrimRight(s, " "))
}
