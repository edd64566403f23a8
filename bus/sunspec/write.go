package sunspec

import (
	"context"
	"errors"
)

// Setting is a value for a point. Make one with [Number], [Symbolic], [Bits],
// [Text], [Raw] or [Missing].
type Setting struct {
	Path string

	kind   settingKind
	number float64
	text   string
	bits   []string
	raw    uint64
}

type settingKind uint8

const (
	asNumber settingKind = iota
	asSymbol
	asBits
	asText
	asRaw
	asMissing
)

// Number sets a point to a value in its units, rounded to the nearest that the
// registers can say.
func Number(path string, value float64) Setting {
	return Setting{Path: path, kind: asNumber, number: value}
}

// Symbolic sets an enumeration to a named value: Symbolic("WSetEna", "ENABLED").
func Symbolic(path, name string) Setting { return Setting{Path: path, kind: asSymbol, text: name} }

// Bits sets a bit field to the named bits; none clears it.
func Bits(path string, names ...string) Setting {
	return Setting{Path: path, kind: asBits, bits: names}
}

// Text sets a string.
func Text(path, value string) Setting { return Setting{Path: path, kind: asText, text: value} }

// Raw sets the registers of a point of up to 64 bits, without scale factor or checks.
func Raw(path string, value uint64) Setting { return Setting{Path: path, kind: asRaw, raw: value} }

// Missing sets a point to "not implemented".
func Missing(path string) Setting { return Setting{Path: path, kind: asMissing} }

// Write is registers to be written in one request.
type Write struct {
	Address uint16
	Values  []uint16
}

// SetFloat returns what to write so that a point gets a value in its units.
func (b Block) SetFloat(path string, value float64) (Write, error) {
	return Write{}, errors.New("not yet")
}

// SetEnum returns what to write so that an enumeration gets a named value.
func (b Block) SetEnum(path, name string) (Write, error) { return Write{}, errors.New("not yet") }

// ReadBackError is a write that the device accepted and did not keep.
type ReadBackError struct {
	Model       uint16
	Point       string
	Wrote, Read []uint16 // the registers of the point
}

func (e *ReadBackError) Error() string { return "" }

// WritePoints sets points of a model in the order given, neighbours in one
// request, and reads them back.
func WritePoints(ctx context.Context, rw ReadWriter, m Model, settings ...Setting) error {
	return errors.New("not yet")
}
