package sunspec

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// SetFloat returns what to write so that a point gets a value in its units,
// rounded to the nearest that the registers can say. It errs with [ErrRange] if
// the registers cannot hold it, and with [ErrMissing] if the device does not
// implement the point or its scale factor.
func (b Block) SetFloat(path string, value float64) (Write, error) {
	return b.write(Number(path, value))
}

// SetEnum returns what to write so that an enumeration gets a named value.
func (b Block) SetEnum(path, name string) (Write, error) { return b.write(Symbolic(path, name)) }

// write refuses what the definition says cannot be written, and what the device
// does not implement: it would be ignored, and somebody would rely on it.
func (b Block) write(s Setting) (Write, error) {
	p, offset, err := b.place(s.Path)
	if err != nil {
		return Write{}, err
	}
	if !p.Writable {
		return Write{}, fmt.Errorf("write %d %s: it can only be read", b.Model.ID, s.Path)
	}
	if _, _, err := b.raw(s.Path); err != nil {
		return Write{}, fmt.Errorf("write %d %s: %w", b.Model.ID, s.Path, err)
	}
	values, err := b.encode(p, s)
	if err != nil {
		return Write{}, fmt.Errorf("write %d %s: %w", b.Model.ID, s.Path, err)
	}
	return Write{Address: b.Model.Address + uint16(offset), Values: values}, nil
}

// encode returns the registers of a setting.
func (b Block) encode(p Point, s Setting) ([]uint16, error) {
	size := int(p.Size())
	switch s.kind {
	case asText:
		return encodeText(p, s.text)
	case asMissing:
		return split(notImplemented(p.Type), size), nil
	case asRaw:
		return split(s.raw, size), nil
	case asSymbol:
		for _, sym := range p.Symbols {
			if sym.Name == s.text && (p.Type == Enum16 || p.Type == Enum32) {
				return split(uint64(sym.Value), size), nil
			}
		}
		return nil, fmt.Errorf("it has no value %q: %w", s.text, ErrRange)
	case asBits:
		return encodeBits(p, s.bits)
	}
	power, err := b.power(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	raw, ok := encode(p.Type, s.number, power)
	if !ok {
		least, most := limits(p.Type)
		return nil, fmt.Errorf("got %v, want %v to %v %s: %w", s.number, scale(least, power), scale(most, power), p.Units, ErrRange)
	}
	return split(raw, size), nil
}

func encodeBits(p Point, names []string) ([]uint16, error) {
	if p.Type != Bitfield16 && p.Type != Bitfield32 {
		return nil, errors.New("it is not a bit field")
	}
	var mask uint64
	for _, name := range names {
		bits := 16*p.Size() - 1 // without the highest, which has no meaning
		n := uint16(0)
		for n < bits && p.bit(n) != name {
			n++
		}
		if n == bits {
			return nil, fmt.Errorf("it has no bit %q: %w", name, ErrRange)
		}
		mask |= 1 << n
	}
	return split(mask, int(p.Size())), nil
}

func encodeText(p Point, s string) ([]uint16, error) {
	size := int(p.Size())
	if p.Type != String || len(s) > 2*size {
		return nil, fmt.Errorf("got a text of %d bytes, and it holds %d: %w", len(s), 2*int(p.Length), ErrRange)
	}
	bytes := make([]byte, 2*size)
	copy(bytes, s)
	values := make([]uint16, size)
	for i := range values {
		values[i] = binary.BigEndian.Uint16(bytes[2*i:])
	}
	return values, nil
}

// ReadBackError is a write that the device accepted and did not keep, or not
// yet; reading again may tell.
type ReadBackError struct {
	Model       uint16
	Point       string
	Wrote, Read []uint16 // the registers of the point
}

func (e *ReadBackError) Error() string {
	return fmt.Sprintf("read back %d %s: wrote %04x and got %04x; the device did not take the value", e.Model, e.Point, e.Wrote, e.Read)
}

// WritePoints sets points of a model and reads them back. They are written in the
// order given, because the order may carry the safety (a time to revert before
// the set-point that it guards); points next to each other in the registers, if
// also given in that order, go in one request and take effect together.
//
// Nothing is written unless all settings can be. An error while writing leaves
// it open whether the device has the values; writing the same again is
// harmless. What the device did not keep is a [*ReadBackError]. Points that reset
// an alarm may read as 0 again: the device clears them when it is done.
func WritePoints(ctx context.Context, rw ReadWriter, m Model, settings ...Setting) error {
	registers, err := readParts(ctx, rw, m, int(m.Length)+2) // for scale factors, which do not change, so that it may be torn
	if err != nil {
		return fmt.Errorf("write to model %d: %w", m.ID, err)
	}
	runs, err := Block{m, registers}.runs(settings)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := rw.WriteRegisters(ctx, r.Address, r.Values); err != nil {
			return fmt.Errorf("write %s of model %d at %d; the device may have it or not: %w", strings.Join(r.names(), ", "), m.ID, r.Address, err)
		}
	}
	for _, r := range runs {
		got, err := read(ctx, rw, r.Address, uint16(len(r.Values)))
		if err != nil {
			return fmt.Errorf("read back %s of model %d at %d: %w", strings.Join(r.names(), ", "), m.ID, r.Address, err)
		}
		if err := r.compare(m.ID, got); err != nil {
			return err
		}
	}
	return nil
}

// run is neighbouring points that are written in one request.
type run struct {
	Write
	points []written
}

type written struct {
	path     string
	at, size int // in the run's values
	resets   bool
}

func (r *run) names() []string {
	var names []string
	for _, p := range r.points {
		names = append(names, p.path)
	}
	return names
}

func (b Block) runs(settings []Setting) ([]run, error) {
	var runs []run
	for _, s := range settings {
		w, err := b.write(s)
		if err != nil {
			return nil, err
		}
		p := written{path: s.Path, size: len(w.Values), resets: s.Path == "AlmRst" || s.Path == "AlarmReset"}
		if n := len(runs) - 1; n >= 0 {
			last := &runs[n]
			if int(last.Address)+len(last.Values) == int(w.Address) && len(last.Values)+len(w.Values) <= MaxWrite {
				p.at = len(last.Values)
				last.Values = append(last.Values, w.Values...)
				last.points = append(last.points, p)
				continue
			}
		}
		runs = append(runs, run{w, []written{p}})
	}
	return runs, nil
}

func (r *run) compare(model uint16, got []uint16) error {
	for _, p := range r.points {
		wrote, read := r.Values[p.at:p.at+p.size], got[p.at:p.at+p.size]
		if slices.Equal(wrote, read) || p.resets && join(read) == 0 {
			continue
		}
		return &ReadBackError{Model: model, Point: p.path, Wrote: wrote, Read: read}
	}
	return nil
}
