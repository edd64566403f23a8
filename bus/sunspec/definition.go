package sunspec

import (
	"fmt"
	"strconv"
	"strings"
)

// Type says how the registers of a point are to be read (the types of the
// SunSpec Device Information Model Specification).
type Type uint8

// The types. Numbers of several registers have the high register first.
const (
	Int16 Type = iota + 1
	Uint16
	Acc16
	Enum16
	Bitfield16
	Count
	Int32
	Uint32
	Acc32
	Enum32
	Bitfield32
	Int64
	Uint64
	Acc64
	Float32
	Float64
	String
	ScaleFactor // sunssf: a power of ten, -10 to 10
	Pad
)

// Symbol is a name of a value of an enumeration, or of a bit.
type Symbol struct {
	Value uint16 // of an enumeration; of a bit field the number of the bit, 0 the lowest
	Name  string
}

// Point is a value in a model.
type Point struct {
	Name     string
	Offset   uint16 // in registers, from the model's ID, or in a group from the group's start
	Type     Type
	Length   uint16 // in registers; only of a String, the others have their type's
	Scale    string // name of the point with the power of ten, or ""
	Units    string
	Writable bool
	Symbols  []Symbol
}

// Group is a part of a model that may repeat.
type Group struct {
	Name    string // "string", "module", "cell", "Prt", or of 704 the official name
	Offset  uint16 // of the first one, in registers from the model's ID
	Size    uint16 // of one, in registers
	Repeats bool
	Count   string // point that says how many there are; "" means as many as fit the model's length
	Points  []Point
}

// Definition is the layout of a model.
type Definition struct {
	ID     uint16
	Name   string
	Points []Point
	Groups []Group
}

// Definitions are the models known by their points, in order of their ids. Do
// not change them.
func Definitions() []*Definition {
	return []*Definition{model1, model701, model704, model713, model714, model715, model802, model803, model804, model805}
}

// Define returns the definition of a model, or nil if it is not one of [Definitions].
func Define(id uint16) *Definition {
	for _, d := range Definitions() {
		if d.ID == id {
			return d
		}
	}
	return nil
}

// Size is the number of registers of the point.
func (p Point) Size() uint16 {
	switch p.Type {
	case String:
		return p.Length
	case Int32, Uint32, Acc32, Enum32, Bitfield32, Float32:
		return 2
	case Int64, Uint64, Acc64, Float64:
		return 4
	}
	return 1
}

// Fixed is the number of registers before the groups, ID and length included.
func (d *Definition) Fixed() uint16 {
	if len(d.Points) == 0 {
		return 0
	}
	last := d.Points[len(d.Points)-1]
	return last.Offset + last.Size()
}

// point finds a point by its path. offset counts in registers from the model's
// ID; group is nil for a point outside of groups, and index counts from 1.
func (d *Definition) point(path string) (p Point, offset int, group *Group, index int, err error) {
	prefix, name, grouped := strings.Cut(path, ".")
	points := d.Points
	if !grouped {
		name = path
	} else {
		if group, index, err = d.group(prefix); err != nil {
			return Point{}, 0, nil, 0, fmt.Errorf("%s of model %d: %w", path, d.ID, err)
		}
		points, offset = group.Points, int(group.Offset)+(index-1)*int(group.Size)
	}
	for _, p := range points {
		if p.Name == name {
			return p, offset + int(p.Offset), group, index, nil
		}
	}
	return Point{}, 0, nil, 0, fmt.Errorf("model %d (%s) has no point %s", d.ID, d.Name, path)
}

// group reads "string[2]" and, for a group that does not repeat, "PFWInj".
func (d *Definition) group(text string) (*Group, int, error) {
	name, rest, indexed := strings.Cut(text, "[")
	for i := range d.Groups {
		g := &d.Groups[i]
		if g.Name != name {
			continue
		}
		if g.Repeats != indexed {
			return nil, 0, fmt.Errorf("the group %s repeats: %t; write name[1].point if it does, and name.point if not", name, g.Repeats)
		}
		if !indexed {
			return g, 1, nil
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 16)
		if err != nil || n == 0 || !strings.HasSuffix(rest, "]") {
			return nil, 0, fmt.Errorf("got the index [%s, want [1] or more", rest)
		}
		return g, int(n), nil
	}
	return nil, 0, fmt.Errorf("there is no group %s", name)
}

// size is the number of registers of a model with so many of the group that repeats.
func (d *Definition) size(repeats int) int {
	size := int(d.Fixed())
	for _, g := range d.Groups {
		if g.Repeats {
			size += repeats * int(g.Size)
		} else {
			size += int(g.Size)
		}
	}
	return size
}

// Path is the path of a point in a group that repeats; index counts from 1.
func Path(group string, index int, point string) string {
	return group + "[" + strconv.Itoa(index) + "]." + point
}
