package sunspec

import (
	"context"
	"fmt"
	"slices"
)

const (
	marker0, marker1 = 0x5375, 0x6E53 // "SunS"
	endModel         = 0xFFFF
	usualMaxModels   = 64
)

// Where the marker may be (SunSpec Device Information Model Specification, on
// Modbus), in the order in which most devices are found soonest.
var usualBases = []uint16{40000, 0, 50000}

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

// Discover finds the models of a device. It errs with [ErrNotSunSpec] if there
// is no marker, also if a base could not be read, because a device may refuse
// the addresses it does not have; and with [ErrMap] if the map is wrong or does
// not end. Together with an error of the walk it returns what it had found so
// far, for people; do not read a battery from that.
func Discover(ctx context.Context, regs Registers, search Search) (*Device, error) {
	bases := search.Bases
	if len(bases) == 0 {
		bases = usualBases
	}
	bases = slices.Concat(search.Extra, bases)
	var refused error
	for _, base := range bases {
		r, err := read(ctx, regs, base, 2)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("look for SunSpec at %d: %w", base, ctx.Err())
		}
		if err != nil {
			refused = fmt.Errorf("look for SunSpec at %d: %w", base, err)
			continue
		}
		if r[0] == marker0 && r[1] == marker1 {
			return walk(ctx, regs, base, search.MaxModels)
		}
	}
	if refused != nil {
		return nil, fmt.Errorf("find SunSpec at any of %v: %w; the last that could not be read: %w", bases, ErrNotSunSpec, refused)
	}
	return nil, fmt.Errorf("find SunSpec at any of %v: %w", bases, ErrNotSunSpec)
}

// walk follows the models behind the marker. Every step goes up by at least two
// registers and addresses are bounded, so there is no loop to fall into.
func walk(ctx context.Context, regs Registers, base uint16, maxModels int) (*Device, error) {
	if maxModels <= 0 {
		maxModels = usualMaxModels
	}
	d := &Device{Base: base}
	instances := map[uint16]int{}
	for at := int(base) + 2; ; {
		if at > 0xFFFF {
			return d, fmt.Errorf("read the model after %d: the map runs past register 65535 without an end: %w", len(d.Models), ErrMap)
		}
		id, err := read(ctx, regs, uint16(at), 1)
		if err != nil {
			return d, fmt.Errorf("read the id of a model at %d, after %d models; the map may lack its end: %w: %w", at, len(d.Models), ErrMap, err)
		}
		if id[0] == endModel { // not all devices have a length behind it, so it is not read
			return d, nil
		}
		if len(d.Models) == maxModels {
			return d, fmt.Errorf("read the model at %d: there are more than %d models: %w", at, maxModels, ErrMap)
		}
		if at+1 > 0xFFFF {
			return d, fmt.Errorf("read the length of model %d at 65536: the map runs past register 65535: %w", id[0], ErrMap)
		}
		length, err := read(ctx, regs, uint16(at+1), 1)
		if err != nil {
			return d, fmt.Errorf("read the length of model %d at %d: %w: %w", id[0], at+1, ErrMap, err)
		}
		m := Model{ID: id[0], Address: uint16(at), Length: length[0], Instance: instances[id[0]] + 1}
		if at+1+int(m.Length) > 0xFFFF {
			return d, fmt.Errorf("read model %d at %d: its length %d runs past register 65535: %w", m.ID, at, m.Length, ErrMap)
		}
		instances[m.ID]++
		d.Models = append(d.Models, m)
		at += 2 + int(m.Length)
	}
}

// Find returns the instances of a model in the order of the map.
func (d *Device) Find(id uint16) []Model {
	var found []Model
	for _, m := range d.Models {
		if m.ID == id {
			found = append(found, m)
		}
	}
	return found
}

// Select returns the device without the other instances of a model, so that
// [ReadBattery] reads this one. Instances count from 1. Where there are several
// batteries, select one instance of each of 802, 803 and 804 that there are
// several of: SunSpec does not say which belong together.
func (d *Device) Select(id uint16, instance int) (*Device, error) {
	narrow := &Device{Base: d.Base}
	found := false
	for _, m := range d.Models {
		if m.ID == id && m.Instance != instance {
			continue
		}
		found = found || m.ID == id
		narrow.Models = append(narrow.Models, m)
	}
	if !found {
		return nil, fmt.Errorf("select instance %d of model %d; there are %d: %w", instance, id, len(d.Find(id)), ErrNoModel)
	}
	return narrow, nil
}

// Without returns the device without some models, for those that are known to be
// wrong on a make of device.
func (d *Device) Without(ids ...uint16) *Device {
	rest := &Device{Base: d.Base}
	for _, m := range d.Models {
		if !slices.Contains(ids, m.ID) {
			rest.Models = append(rest.Models, m)
		}
	}
	return rest
}
