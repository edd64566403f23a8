package sunspec

import (
	"context"
	"errors"
)

// Model is a place in a device's registers where a model begins.
type Model struct {
	ID       uint16
	Address  uint16 // of the register with the ID
	Length   uint16 // in registers, without ID and length
	Instance int    // 1 for the first of its id, in the order of the map
}

// Device is what a device says it has.
type Device struct {
	Base   uint16 // where "SunS" is
	Models []Model
}

// Search says where to look. The zero Search looks at 40000, 0 and 50000.
type Search struct {
	Bases     []uint16 // addresses to try, in this order; none means the usual ones
	Extra     []uint16 // addresses to try before those
	MaxModels int      // a map with more is an error; 0 means 64
}

// Discover finds the models of a device. Together with an error of the walk it
// returns what it had found so far, for people; do not read a battery from that.
func Discover(ctx context.Context, regs Registers, search Search) (*Device, error) {
	return nil, errors.New("not yet")
}

// Find returns the instances of a model in the order of the map.
func (d *Device) Find(id uint16) []Model { return nil }

// Select returns the device without the other instances of a model, so that
// [ReadBattery] reads this one. Instances count from 1.
func (d *Device) Select(id uint16, instance int) (*Device, error) { return nil, errors.New("not yet") }

// Without returns the device without some models, for those that lie.
func (d *Device) Without(ids ...uint16) *Device { return nil }
