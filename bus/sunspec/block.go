package sunspec

import "errors"

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
func (b Block) Number(path string) (float64, error) { return 0, errors.New("not yet") }

// Float is Number without the reason: NaN if there is no value.
func (b Block) Float(path string) float64 { return 0 }

// Enum returns the value of an enumeration.
func (b Block) Enum(path string) (Enum, error) { return Enum{}, errors.New("not yet") }

// Bits returns the names of the bits that are set, lowest first; one without a
// name is "bit 30".
func (b Block) Bits(path string) ([]string, error) { return nil, errors.New("not yet") }

// Mask returns the bits of a bit field.
func (b Block) Mask(path string) (uint32, error) { return 0, errors.New("not yet") }

// Integer returns the number in the registers without its scale factor, for
// counters and raw values.
func (b Block) Integer(path string) (int64, error) { return 0, errors.New("not yet") }

// Text returns a string without its padding.
func (b Block) Text(path string) (string, error) { return "", errors.New("not yet") }

// Repeats returns how many of a group the model has.
func (b Block) Repeats(group string) (int, error) { return 0, errors.New("not yet") }
