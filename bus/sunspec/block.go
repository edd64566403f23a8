package sunspec

import (
	"errors"
	"fmt"
	"math"
	"strconv"
)

// Block is the registers of one model, of one moment.
type Block struct {
	Model     Model
	Registers []uint16 // from the ID on; may be fewer than the model has, then what is beyond is missing
}

// Enum is the value of an enumeration.
type Enum struct {
	Value uint32
	Name  string // "" if the definition has no name for the value
}

// Number returns a point's value in its units: the registers times ten to the
// scale factor. Without a value the error wraps [ErrMissing], and the number is NaN.
func (b Block) Number(path string) (float64, error) {
	p, raw, err := b.raw(path)
	if err != nil {
		return math.NaN(), err
	}
	if p.Type == String {
		return math.NaN(), fmt.Errorf("read %d %s: it is a text, not a number", b.Model.ID, path)
	}
	power, err := b.power(p)
	if err != nil {
		return math.NaN(), missing(b, path, err)
	}
	v := scale(float(p.Type, raw), power)
	if math.IsInf(v, 0) {
		return math.NaN(), missing(b, path, errNotFinite)
	}
	return v, nil
}

// Float is Number without the reason: NaN if there is no value.
func (b Block) Float(path string) float64 {
	v, _ := b.Number(path)
	return v
}

// Enum returns the value of an enumeration.
func (b Block) Enum(path string) (Enum, error) {
	p, raw, err := b.raw(path)
	if err != nil {
		return Enum{}, err
	}
	if p.Type != Enum16 && p.Type != Enum32 {
		return Enum{}, fmt.Errorf("read %d %s: it is not an enumeration", b.Model.ID, path)
	}
	e := Enum{Value: uint32(raw)}
	for _, s := range p.Symbols {
		if uint64(s.Value) == raw {
			e.Name = s.Name
		}
	}
	return e, nil
}

// Bits returns the names of the bits that are set, lowest first; one without a
// name is "bit 30".
func (b Block) Bits(path string) ([]string, error) {
	mask, err := b.Mask(path)
	if err != nil {
		return nil, err
	}
	p, _, _, _, err := Define(b.Model.ID).point(path)
	if err != nil {
		return nil, err
	}
	var names []string
	for bit := range uint16(32) {
		if mask>>bit&1 == 1 {
			names = append(names, p.bit(bit))
		}
	}
	return names, nil
}

// bit is the name of a bit.
func (p Point) bit(n uint16) string {
	for _, s := range p.Symbols {
		if s.Value == n {
			return s.Name
		}
	}
	return "bit " + strconv.Itoa(int(n))
}

// Mask returns the bits of a bit field. If the highest is set there is no value:
// the others say nothing then, as the specification has it.
func (b Block) Mask(path string) (uint32, error) {
	p, raw, err := b.raw(path)
	if err != nil {
		return 0, err
	}
	if p.Type != Bitfield16 && p.Type != Bitfield32 {
		return 0, fmt.Errorf("read %d %s: it is not a bit field", b.Model.ID, path)
	}
	return uint32(raw), nil
}

// Integer returns the number in the registers without its scale factor, for
// counters and raw values.
func (b Block) Integer(path string) (int64, error) {
	p, raw, err := b.raw(path)
	if err != nil {
		return 0, err
	}
	switch p.Type {
	case String, Float32, Float64:
		return 0, fmt.Errorf("read %d %s: it is not an integer", b.Model.ID, path)
	case Int16, ScaleFactor:
		return int64(int16(raw)), nil
	case Int32:
		return int64(int32(raw)), nil
	case Uint64, Acc64:
		if raw > math.MaxInt64 {
			return 0, fmt.Errorf("read %d %s: got %d, want at most %d: %w", b.Model.ID, path, raw, int64(math.MaxInt64), ErrRange)
		}
	}
	return int64(raw), nil
}

// Text returns a string without its padding. All zeros is no value.
func (b Block) Text(path string) (string, error) {
	p, registers, err := b.registers(path)
	if err != nil {
		return "", err
	}
	if p.Type != String {
		return "", fmt.Errorf("read %d %s: it is not a text", b.Model.ID, path)
	}
	if s := text(registers); s != "" {
		return s, nil
	}
	return "", missing(b, path, errNotImplemented)
}

// Repeats returns how many of a group the model has: what its counting point
// says, which must fit the model's length; without such a point, as many as the
// length has room for, exactly. Otherwise the error wraps [ErrMap]. A group that
// does not repeat is there once.
func (b Block) Repeats(group string) (int, error) {
	d := Define(b.Model.ID)
	if d == nil {
		return 0, fmt.Errorf("count %s of model %d: its points are not known", group, b.Model.ID)
	}
	for _, g := range d.Groups {
		if g.Name != group {
			continue
		}
		if !g.Repeats {
			return 1, nil
		}
		return b.repeats(g)
	}
	return 0, fmt.Errorf("count %s of model %d: there is no such group", group, b.Model.ID)
}

func (b Block) repeats(g Group) (int, error) {
	room := max(0, int(b.Model.Length)+2-int(g.Offset))
	fit := room / int(g.Size)
	n, err := int64(0), errNotImplemented
	if g.Count != "" {
		n, err = b.Integer(g.Count)
	}
	switch {
	case errors.Is(err, errNotImplemented): // 714 need not count its ports
		if room%int(g.Size) != 0 {
			return 0, fmt.Errorf("count %s of model %d: got %d registers, want a multiple of %d: %w", g.Name, b.Model.ID, room, g.Size, ErrMap)
		}
		return fit, nil
	case err != nil:
		return 0, fmt.Errorf("count %s of model %d: %w", g.Name, b.Model.ID, err)
	case n > int64(fit):
		return 0, fmt.Errorf("count %s of model %d: %s says %d, and the length has room for %d: %w", g.Name, b.Model.ID, g.Count, n, fit, ErrMap)
	}
	return int(n), nil
}

// raw is the number in the registers of a point that is implemented.
func (b Block) raw(path string) (Point, uint64, error) {
	p, registers, err := b.registers(path)
	if err != nil || p.Type == String {
		return p, 0, err
	}
	raw := join(registers)
	if err := check(p.Type, raw); err != nil {
		return p, raw, missing(b, path, err)
	}
	return p, raw, nil
}

// registers are those of a point that the device has.
func (b Block) registers(path string) (Point, []uint16, error) {
	p, offset, err := b.place(path)
	if err != nil {
		return p, nil, err
	}
	end := offset + int(p.Size())
	if end > len(b.Registers) {
		return p, nil, missing(b, path, fmt.Errorf("only the first %d registers of the model were read", len(b.Registers)))
	}
	return p, b.Registers[offset:end], nil
}

// place finds a point and makes sure that this model is long enough to have it.
func (b Block) place(path string) (Point, int, error) {
	d := Define(b.Model.ID)
	if d == nil {
		return Point{}, 0, fmt.Errorf("read %d %s: the points of model %d are not known", b.Model.ID, path, b.Model.ID)
	}
	p, offset, group, index, err := d.point(path)
	if err != nil {
		return Point{}, 0, err
	}
	if has := int(b.Model.Length) + 2; offset+int(p.Size()) > has {
		return p, offset, missing(b, path, fmt.Errorf("it is at register %d, and the model has %d", offset, has))
	}
	if group == nil || !group.Repeats {
		return p, offset, nil
	}
	n, err := b.repeats(*group)
	if err != nil {
		return p, offset, err
	}
	if index > n {
		return p, offset, missing(b, path, fmt.Errorf("there are %d", n))
	}
	return p, offset, nil
}

// power is the scale factor of a point, 0 if it has none.
func (b Block) power(p Point) (int, error) {
	if p.Scale == "" {
		return 0, nil
	}
	_, raw, err := b.raw(p.Scale)
	if errors.Is(err, errNotImplemented) {
		return 0, fmt.Errorf("its scale factor %s is not implemented", p.Scale)
	}
	if err != nil {
		return 0, fmt.Errorf("its scale factor: %w", err)
	}
	power := int(int16(raw))
	if power < -maxPower || power > maxPower {
		return 0, fmt.Errorf("its scale factor %s is %d, want %d to %d", p.Scale, power, -maxPower, maxPower)
	}
	return power, nil
}

func missing(b Block, path string, why error) error {
	return fmt.Errorf("read %d %s: %w: %w", b.Model.ID, path, ErrMissing, why)
}
