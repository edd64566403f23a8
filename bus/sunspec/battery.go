package sunspec

import (
	"context"
	"fmt"
)

// Quantity is a number and where it came from.
type Quantity struct {
	Value float64 // NaN if there is none
	Model uint16  // the model that it came from; 0 if there is none
	From  string  // for people: "802 SoC", "803 sum of StrA"
	Why   string  // why there is no value
}

// Counter is a heartbeat. It is alive if it moves from one reading to the next;
// that needs two readings.
type Counter struct {
	Value uint32
	Known bool
	From  string
	Why   string
}

// Status is an enumeration.
type Status struct {
	Enum
	Known bool
	From  string
	Why   string
}

// Contactor is the connection of one string to the battery's DC bus.
type Contactor struct {
	String  int  // 1 for the first
	Known   bool // false: Closed and Enabled mean nothing
	Closed  bool
	Enabled bool
	From    string
	Why     string
}

// Battery is one reading of one battery. What has no value is NaN or not Known.
type Battery struct {
	SoC, SoH         Quantity // %
	V                Quantity // V, DC
	A, W             Quantity // A and W, DC; which sign charges is not standardized, so compare magnitudes
	TempMin, TempMax Quantity // °C; of modules (803, 804), else of the converter's DC port (714) or cabinet (701)
	CellMin, CellMax Quantity // V
	Capacity         Quantity // Ah, rated

	Heartbeat    Counter // 802 Hb, +1 a second
	DERHeartbeat Counter // 715 DERHb, +1 a second

	State        Status // 802 State
	ChaSt        Status // 802 ChaSt
	LocRemCtl    Status // 802 LocRemCtl
	DERLocRemCtl Status // 715 LocRemCtl
	OpCtl        Status // 715 OpCtl, the last command
	InvSt        Status // 701 InvSt

	AlarmsKnown bool     // false: no Alarms does not mean that there are none
	AlarmsWhy   string   // why they are not known
	Alarms      []string // of the battery, that speak against an update: "802 OVER_TEMP_ALARM"
	Warnings    []string // of the battery, that do not by themselves
	Vendor      []string // bits whose meaning only the vendor knows: "802 EvtVnd1 bit 3"

	ConverterAlarmsKnown bool
	ConverterAlarms      []string // of 701 and 714

	Contactors []Contactor // of the strings, from 803, else 804; empty: nothing says

	OtherA   []Quantity // the current as others than A tell it, with their sign; one for each that the device has
	OtherSoC []Quantity // the state of charge as others than SoC tell it; likewise
}

// blocks are the models that a battery is read from. A model that the device
// lacks is an empty block: all its points are missing.
type blocks struct {
	base, bank, storage, dc, control, ac Block // 802, 803, 713, 714, 715, 701
	strings                              []Block
}

// ReadBattery reads the battery of a device from models 802, 803, 804, 713, 714,
// 715 and 701, as far as it has them. It errs with [ErrNoModel] if it has none
// that is about a battery, with [ErrSeveral] if it has several batteries, and if
// any of the models could not be read or contradicts itself: half a reading
// could hide an alarm. [Device.Without] leaves out a model that never can be read.
//
// Several 804 are the strings of one battery if their indices are different and
// 803, if there is one, counts as many.
func ReadBattery(ctx context.Context, regs Registers, device *Device) (Battery, error) {
	b, err := readBlocks(ctx, regs, device)
	if err != nil {
		return Battery{}, fmt.Errorf("read the battery: %w", err)
	}
	r := Battery{
		Heartbeat:    counter(b.base, "Hb"),
		DERHeartbeat: counter(b.control, "DERHb"),
		State:        status(b.base, "State"),
		ChaSt:        status(b.base, "ChaSt"),
		LocRemCtl:    status(b.base, "LocRemCtl"),
		DERLocRemCtl: status(b.control, "LocRemCtl"),
		OpCtl:        status(b.control, "OpCtl"),
		InvSt:        status(b.ac, "InvSt"),
		Capacity:     quantity(b.base, "AHRtg"),
		Contactors:   b.contactors(),
	}
	b.measure(&r)
	b.alarms(&r)
	return r, nil
}

func readBlocks(ctx context.Context, regs Registers, d *Device) (blocks, error) {
	var b blocks
	about := 0
	for _, want := range []struct {
		id    uint16
		into  *Block
		about int // whether the model is about a battery
	}{{802, &b.base, 1}, {803, &b.bank, 1}, {713, &b.storage, 1}, {714, &b.dc, 1}, {715, &b.control, 0}, {701, &b.ac, 0}} {
		want.into.Model.ID = want.id
		m, found, err := d.only(want.id)
		if err != nil {
			return b, err
		}
		if !found {
			continue
		}
		about += want.about
		if want.id == 701 { // all that is of use here fits one read; only a text for people lies behind
			*want.into, err = readHead(ctx, regs, m, MaxRead)
		} else {
			*want.into, err = d.Read(ctx, regs, m)
		}
		if err != nil {
			return b, err
		}
	}
	for _, m := range d.Find(804) {
		s, err := d.Read(ctx, regs, m)
		if err != nil {
			return b, err
		}
		b.strings = append(b.strings, s)
	}
	if about+len(b.strings) == 0 {
		return b, fmt.Errorf("find one of the models 802, 803, 804, 713 and 714: %w", ErrNoModel)
	}
	return b, b.consistent()
}

// consistent makes sure that groups fit their models, and that several strings
// are those of one battery.
func (b *blocks) consistent() error {
	strings := 0
	for _, g := range []struct {
		of    Block
		group string
	}{{b.bank, "string"}, {b.dc, "Prt"}} {
		if g.of.Registers == nil {
			continue
		}
		n, err := g.of.Repeats(g.group)
		if err != nil {
			return err
		}
		if g.of.Model.ID == 803 {
			strings = n
		}
	}
	for _, s := range b.strings {
		if _, err := s.Repeats("module"); err != nil {
			return err
		}
	}
	if len(b.strings) < 2 {
		return nil
	}
	seen := map[int64]bool{}
	for _, s := range b.strings {
		index, err := s.Integer("Idx")
		if err != nil || seen[index] {
			return fmt.Errorf("find model 804: it is there %d times, and the indices do not tell the strings of one battery apart; choose with Select: %w", len(b.strings), ErrSeveral)
		}
		seen[index] = true
	}
	if b.bank.Registers != nil && strings != len(b.strings) {
		return fmt.Errorf("find model 804: it is there %d times, and 803 counts %d strings; choose with Select: %w", len(b.strings), strings, ErrSeveral)
	}
	return nil
}

// contactors are those of 803's strings, else 804's.
func (b *blocks) contactors() []Contactor {
	var all []Contactor
	n, _ := b.repeats(b.bank, "string") // consistent has made sure that they can be counted
	for i := range n {
		all = append(all, contactor(b.bank, Path("string", i+1, "StrSt"), i+1))
	}
	if len(all) > 0 {
		return all
	}
	for i, s := range b.strings {
		all = append(all, contactor(s, "St", stringIndex(s, i)))
	}
	return all
}

// contactor reads bits 0 and 1 of StrSt (803) and St (804).
func contactor(b Block, path string, index int) Contactor {
	c := Contactor{String: index, From: from(b, path)}
	mask, err := b.Mask(path)
	if err != nil {
		c.Why = err.Error()
		return c
	}
	c.Known, c.Enabled, c.Closed = true, mask&1 != 0, mask&2 != 0
	return c
}

// repeats is Block.Repeats, 0 for a model that the device lacks.
func (*blocks) repeats(b Block, group string) (int, error) {
	if b.Registers == nil {
		return 0, nil
	}
	return b.Repeats(group)
}

func counter(b Block, path string) Counter {
	c := Counter{From: from(b, path)}
	v, err := b.integer(path)
	if err != nil {
		c.Why = err.Error()
		return c
	}
	c.Value, c.Known = uint32(v), true
	return c
}

func status(b Block, path string) Status {
	s := Status{From: from(b, path)}
	if err := b.lacking(path); err != nil {
		s.Why = err.Error()
		return s
	}
	e, err := b.Enum(path)
	if err != nil {
		s.Why = err.Error()
		return s
	}
	s.Enum, s.Known = e, true
	return s
}

func (b Block) integer(path string) (int64, error) {
	if err := b.lacking(path); err != nil {
		return 0, err
	}
	return b.Integer(path)
}

// lacking says that the device has not got the model at all.
func (b Block) lacking(path string) error {
	if b.Registers == nil {
		return fmt.Errorf("read %d %s: %w", b.Model.ID, path, ErrNoModel)
	}
	return nil
}

func from(b Block, path string) string { return fmt.Sprintf("%d %s", b.Model.ID, path) }
