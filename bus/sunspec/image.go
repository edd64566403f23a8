package sunspec

import (
	"context"
	"errors"
	"sync"
)

// Image is the registers of a simulated device. It answers reads and writes as
// a device does ([ReadWriter]), and its owner sets values in their units. Its
// methods may be called from any goroutine.
type Image struct {
	mu        sync.Mutex
	base      uint16
	registers []uint16 // from base on, without the end model
	models    []Model
}

// NewImage returns an image without models; the usual base is 40000.
func NewImage(base uint16) *Image { return &Image{base: base} }

// Add appends a model with so many of the group that repeats. All points are not
// implemented until they are set; the one that counts the group is set.
func (im *Image) Add(id uint16, repeats int) (Model, error) { return Model{}, errors.New("not yet") }

// AddRaw appends a model as it is, ID and length first.
func (im *Image) AddRaw(registers []uint16) (Model, error) { return Model{}, errors.New("not yet") }

// Set sets points of a model, all at once for who reads.
func (im *Image) Set(m Model, settings ...Setting) error { return errors.New("not yet") }

// Block returns the registers of a model as they are now.
func (im *Image) Block(m Model) (Block, error) { return Block{}, errors.New("not yet") }

// Registers returns all registers from the base on: "SunS", the models, the end.
func (im *Image) Registers() []uint16 { return nil }

// ReadHolding is [Registers]. Outside of the image it errs with [ErrAddress].
func (im *Image) ReadHolding(_ context.Context, address, count uint16) ([]uint16, error) {
	return nil, errors.New("not yet")
}

// WriteRegisters is [Writer]. Anything but points that can be written errs with [ErrAddress].
func (im *Image) WriteRegisters(_ context.Context, address uint16, values []uint16) error {
	return errors.New("not yet")
}

// ErrAddress is what a device answers with exception 2.
var ErrAddress = errors.New("illegal data address")
