package sunspec

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ErrAddress is what a device answers with exception 2.
var ErrAddress = errors.New("illegal data address")

// Image is the registers of a simulated device. It answers reads and writes as
// a device does ([ReadWriter]), and its owner sets values in their units. Its
// methods may be called from any goroutine.
type Image struct {
	mu        sync.Mutex
	base      uint16
	registers []uint16 // from base on, without the end model
	models    []Model
}

// usualScales are the powers of ten that a point gets if its scale factor was
// not set before. Those that are not here get 0.
var usualScales = map[string]int{
	"WHRtg_SF": 1, "WH_SF": 1, "WChaDisChaMax_SF": 2,
	"SoC_SF": -1, "SoH_SF": -1, "DoD_SF": -1, "Pct_SF": -2, "WMaxLimPct_SF": -1, "WSetPct_SF": -1, "VarSetPct_SF": -1,
	"V_SF": -1, "DCV_SF": -1, "CellV_SF": -3, "A_SF": -1, "AMax_SF": -1, "DCA_SF": -1,
	"ModTmp_SF": -1, "Tmp_SF": -1, "PF_SF": -3, "Hz_SF": -3,
}

// NewImage returns an image without models; the usual base is 40000.
func NewImage(base uint16) *Image {
	return &Image{base: base, registers: []uint16{marker0, marker1}}
}

// Add appends a model with so many of the group that repeats. All points are not
// implemented until they are set; the one that counts the group is set.
func (im *Image) Add(id uint16, repeats int) (Model, error) {
	d := Define(id)
	if d == nil {
		return Model{}, fmt.Errorf("add model %d: its points are not known; use AddRaw", id)
	}
	size := d.size(max(0, repeats))
	if size > 0xFFFF {
		return Model{}, fmt.Errorf("add model %d with %d repeats: got %d registers, want at most 65535", id, repeats, size)
	}
	registers := make([]uint16, size)
	put := func(points []Point, offset int) {
		for _, p := range points {
			copy(registers[offset+int(p.Offset):], split(notImplemented(p.Type), int(p.Size())))
		}
	}
	put(d.Points, 0)
	for _, g := range d.Groups {
		n := 1
		if g.Repeats {
			n = max(0, repeats)
		}
		for i := range n {
			put(g.Points, int(g.Offset)+i*int(g.Size))
		}
		if g.Count != "" {
			p, offset, _, _, err := d.point(g.Count)
			if err != nil {
				return Model{}, err
			}
			copy(registers[offset:], split(uint64(n), int(p.Size())))
		}
	}
	registers[0], registers[1] = id, uint16(size-2)
	return im.AddRaw(registers)
}

// AddRaw appends a model as it is, ID and length first.
func (im *Image) AddRaw(registers []uint16) (Model, error) {
	if len(registers) < 2 || len(registers) != int(registers[1])+2 || registers[0] == endModel {
		return Model{}, fmt.Errorf("add a model of %d registers: want an id, a length and as many registers as it says", len(registers))
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	address := int(im.base) + len(im.registers)
	if address+len(registers)+2 > 0x10000 {
		return Model{}, fmt.Errorf("add model %d at %d: its %d registers and the end run past register 65535", registers[0], address, len(registers))
	}
	m := Model{ID: registers[0], Address: uint16(address), Length: registers[1], Instance: 1}
	for _, other := range im.models {
		if other.ID == m.ID {
			m.Instance++
		}
	}
	im.models = append(im.models, m)
	im.registers = append(im.registers, registers...)
	return m, nil
}

// Set sets points of a model, all at once for who reads. A value whose scale
// factor is not implemented yet gives it a usual one; set the scale factor first
// for another. If one setting errs, none is done.
func (im *Image) Set(m Model, settings ...Setting) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	live, err := im.slice(m)
	if err != nil {
		return err
	}
	b := Block{m, slices.Clone(live)}
	for _, s := range settings {
		p, offset, err := b.place(s.Path)
		if err != nil {
			return fmt.Errorf("set %d %s: %w", m.ID, s.Path, err)
		}
		if s.kind == asNumber {
			b.usualScale(p)
		}
		values, err := b.encode(p, s)
		if err != nil {
			return fmt.Errorf("set %d %s: %w", m.ID, s.Path, err)
		}
		copy(b.Registers[offset:], values)
	}
	copy(live, b.Registers)
	return nil
}

// usualScale sets the scale factor of a point if it is not implemented.
func (b Block) usualScale(p Point) {
	if p.Scale == "" {
		return
	}
	if _, _, err := b.raw(p.Scale); !errors.Is(err, errNotImplemented) {
		return
	}
	if _, offset, err := b.place(p.Scale); err == nil {
		b.Registers[offset] = uint16(usualScales[p.Scale])
	}
}

// slice is the live registers of a model. The caller holds the lock.
func (im *Image) slice(m Model) ([]uint16, error) {
	if !slices.Contains(im.models, m) {
		return nil, fmt.Errorf("find model %d at %d: it is not of this image: %w", m.ID, m.Address, ErrNoModel)
	}
	at := int(m.Address) - int(im.base)
	return im.registers[at : at+int(m.Length)+2], nil
}

// Block returns the registers of a model as they are now.
func (im *Image) Block(m Model) (Block, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	live, err := im.slice(m)
	return Block{m, slices.Clone(live)}, err
}

// Registers returns all registers from the base on: "SunS", the models, the end.
func (im *Image) Registers() []uint16 {
	im.mu.Lock()
	defer im.mu.Unlock()
	return append(slices.Clone(im.registers), endModel, 0)
}

// ReadHolding is [Registers]. Outside of the image it errs with [ErrAddress].
func (im *Image) ReadHolding(_ context.Context, address, count uint16) ([]uint16, error) {
	all := im.Registers()
	from := int(address) - int(im.base)
	if from < 0 || count == 0 || count > MaxRead || from+int(count) > len(all) {
		return nil, fmt.Errorf("read %d registers at %d: %w", count, address, ErrAddress)
	}
	return all[from : from+int(count)], nil
}

// WriteRegisters is [Writer]. Anything but whole points that can be written errs
// with [ErrAddress], and nothing is written.
func (im *Image) WriteRegisters(_ context.Context, address uint16, values []uint16) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	for i := 0; i < len(values); {
		size := im.writable(int(address) + i)
		if size == 0 || i+size > len(values) {
			return fmt.Errorf("write %d registers at %d: register %d: %w", len(values), address, int(address)+i, ErrAddress)
		}
		i += size
	}
	if len(values) == 0 || len(values) > MaxWrite {
		return fmt.Errorf("write %d registers at %d: want 1 to %d: %w", len(values), address, MaxWrite, ErrAddress)
	}
	copy(im.registers[int(address)-int(im.base):], values)
	return nil
}

// writable is the size of the point that begins at an address and can be
// written, or 0.
func (im *Image) writable(address int) int {
	for _, m := range im.models {
		offset := address - int(m.Address)
		d := Define(m.ID)
		if d == nil || offset < 0 || offset >= int(m.Length)+2 {
			continue
		}
		points := d.Points
		for _, g := range d.Groups {
			into := offset - int(g.Offset)
			if into >= 0 && (g.Repeats || into < int(g.Size)) {
				points, offset = g.Points, into%int(g.Size)
				break
			}
		}
		for _, p := range points {
			if int(p.Offset) == offset && p.Writable {
				return int(p.Size())
			}
		}
	}
	return 0
}
