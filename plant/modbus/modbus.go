// Package modbus quiesces and resumes a plant by a list of registers to write, for
// those that do not speak SunSpec. It is for the agent on the plant's controller.
//
// Start with [New]:
//
//	action, err := modbus.New(modbus.Config{
//		Bus:  client,
//		File: "/var/lib/interlock/plant-modbus",
//		Quiesce: []modbus.Step{
//			{Unit: 1, Address: 61000, Values: []uint16{0}},
//			{Wait: &modbus.Condition{Unit: 1, Address: 31004, Signed: true, Min: -10, Max: 10}},
//		},
//		Resume: []modbus.Step{{Unit: 1, Address: 61000}}, // what was found there
//	})
//
// What is promised: what the registers of the list held is on the disk before the
// first is written. Steps are done in order, each read back, and the first that fails
// ends both verbs, because what comes later may rely on it. What another controller
// has written meanwhile is not overwritten by what was found; values that the list
// itself names for Resume are. A list has no dead-man, unless the plant has one that
// the list arms.
package modbus

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/plant"
	"github.com/interlock-energy/ota/plant/internal/memory"
)

var _ plant.Action = (*List)(nil)

// Bus is what is needed of a Modbus client.
type Bus interface {
	ReadHolding(ctx context.Context, unit byte, address, count uint16) ([]uint16, error)
	ReadInput(ctx context.Context, unit byte, address, count uint16) ([]uint16, error)
	WriteRegister(ctx context.Context, unit byte, address, value uint16) error
	WriteRegisters(ctx context.Context, unit byte, address uint16, values []uint16) error
}

// Step writes registers and reads them back, then waits; one of both may be missing.
type Step struct {
	Unit    byte
	Address uint16   // of the protocol, from 0: what manuals call 40001 is 0
	Values  []uint16 // at most 123; none, in Resume: what Quiesce found there
	Single  bool     // write one by one with function 6, for devices that lack function 16
	Expect  []uint16 // what must read back, where that is not Values
	Command bool     // not read, neither before nor after: a command register that does not keep what is written
	Wait    *Condition
}

// Condition is what has to be so before the list goes on.
type Condition struct {
	Unit     byte
	Address  uint16
	Input    bool          // an input register (function 4), not a holding register
	Mask     uint16        // the bits that count; 0: all
	Signed   bool          // the register is a two's complement number
	Min, Max int32         // what it must be, ends included
	Within   time.Duration // 0: 60 s
	For      time.Duration // how long it must be so without a break; 0: once
}

// Config is the lists. Bus and File are needed.
type Config struct {
	Name     string // for messages; "": plant
	Bus      Bus
	File     string     // where what was found is kept, absolute, for this list alone
	FS       durable.FS // nil: durable.OS{}
	Quiesce  []Step
	Resume   []Step
	Poll     time.Duration // how often a condition is looked at; 0: 500 ms
	Progress func(text string)
}

// List is a [plant.Action].
type List struct {
	cfg  Config
	file memory.File
	mu   sync.Mutex
}

// found is what the registers held before the first write. Names in it never change.
type found struct {
	At        time.Time   `json:"at"` // for people
	Registers []registers `json:"registers"`
}

type registers struct {
	Unit    byte     `json:"unit"`
	Address uint16   `json:"address"`
	Values  []uint16 `json:"values"`
}

func (f *found) at(unit byte, address uint16) ([]uint16, bool) {
	for _, r := range f.Registers {
		if r.Unit == unit && r.Address == address {
			return r.Values, true
		}
	}
	return nil, false
}

// New checks the lists. It reads and writes nothing.
func New(cfg Config) (*List, error) {
	if cfg.Name == "" {
		cfg.Name = "plant"
	}
	if cfg.Poll == 0 {
		cfg.Poll = 500 * time.Millisecond
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS{}
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("configure the quiescing of %s: %w", cfg.Name, err)
	}
	return &List{cfg: cfg, file: memory.File{FS: cfg.FS, Path: cfg.File}}, nil
}

func (c *Config) check() error {
	switch {
	case c.Bus == nil:
		return errors.New("there is no bus")
	case !filepath.IsAbs(c.File):
		return fmt.Errorf("the file for what was found is %q, want an absolute path", c.File)
	case c.Poll < 0:
		return fmt.Errorf("the poll time is %s, want more than 0", c.Poll)
	case len(c.Quiesce) == 0 || len(c.Resume) == 0:
		return fmt.Errorf("got %d steps to quiesce and %d to resume, want some of both", len(c.Quiesce), len(c.Resume))
	}
	for i, s := range c.Quiesce {
		if err := s.check(false); err != nil {
			return fmt.Errorf("step %d of quiesce: %w", i+1, err)
		}
	}
	for i, s := range c.Resume {
		if err := s.check(s.back()); err != nil {
			return fmt.Errorf("step %d of resume: %w", i+1, err)
		}
		if s.back() && !slices.ContainsFunc(c.Quiesce, func(q Step) bool {
			return len(q.Values) > 0 && !q.Command && q.Unit == s.Unit && q.Address == s.Address
		}) {
			return fmt.Errorf("step %d of resume: it has no values, and no step of quiesce writes unit %d, address %d, so that nothing is found there", i+1, s.Unit, s.Address)
		}
	}
	return nil
}

// back says that a step of Resume writes what was found.
func (s Step) back() bool { return len(s.Values) == 0 && s.Wait == nil }

func (s Step) check(back bool) error {
	const most = 123 // registers in one request (Modbus Application Protocol V1.1b3, 6.12)
	w := s.Wait
	switch {
	case !back && len(s.Values) == 0 && w == nil:
		return errors.New("it writes nothing and waits for nothing")
	case len(s.Values) > most || int(s.Address)+len(s.Values) > 1<<16:
		return fmt.Errorf("it writes %d registers at %d, want at most %d, up to 65535", len(s.Values), s.Address, most)
	case len(s.Expect) > 0 && (len(s.Expect) != len(s.Values) || s.Command):
		return fmt.Errorf("it writes %d registers and expects %d to read back, want as many, and of a command none", len(s.Values), len(s.Expect))
	case s.Command && len(s.Values) == 0:
		return errors.New("it is a command without a value")
	case w != nil && (w.Min > w.Max || w.Within < 0 || w.For < 0):
		return fmt.Errorf("it waits for %d to %d within %s for %s, want the smaller number first and no negative times", w.Min, w.Max, w.Within, w.For)
	}
	return nil
}

// Quiesce implements [plant.Action]. Called again, what was found the first time is
// what counts.
func (l *List) Quiesce(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.quiesce(ctx); err != nil {
		return fmt.Errorf("quiesce %s: %w", l.cfg.Name, err)
	}
	return nil
}

func (l *List) quiesce(ctx context.Context) error {
	var f found
	err := l.file.Load(&f)
	if errors.Is(err, memory.ErrDamaged) {
		return fmt.Errorf("%w; resume first", err)
	}
	if errors.Is(err, memory.ErrNone) {
		if err = l.find(ctx, &f); err == nil {
			err = l.file.Save(f)
		}
	}
	if err != nil {
		return err
	}
	return l.steps(ctx, l.cfg.Quiesce, &f)
}

// find reads what is going to be written.
func (l *List) find(ctx context.Context, f *found) error {
	f.At = time.Now().UTC().Truncate(time.Second)
	for i, s := range l.cfg.Quiesce {
		if _, known := f.at(s.Unit, s.Address); known || s.Command || len(s.Values) == 0 {
			continue
		}
		values, err := l.read(ctx, s.Unit, s.Address, len(s.Values))
		if err != nil {
			return fmt.Errorf("step %d, find what is there: %w", i+1, err)
		}
		f.Registers = append(f.Registers, registers{s.Unit, s.Address, values})
	}
	return nil
}

// Resume implements [plant.Action].
func (l *List) Resume(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.resume(ctx); err != nil {
		return fmt.Errorf("resume %s: %w", l.cfg.Name, err)
	}
	return nil
}

func (l *List) resume(ctx context.Context) error {
	var f found
	err := l.file.Load(&f)
	switch {
	case errors.Is(err, memory.ErrNone):
		return l.file.Forget() // a process that died may have removed it, and not have synced that
	case errors.Is(err, memory.ErrDamaged):
		// Values that the list names need no memory. Others are not guessed.
		if slices.ContainsFunc(l.cfg.Resume, Step.back) {
			return fmt.Errorf("%w; set the registers by hand, and remove the file %s", err, l.file.Path)
		}
		l.tell("%v; the list does without", err)
	case err != nil:
		return err
	}
	if err := l.steps(ctx, l.cfg.Resume, &f); err != nil {
		return err
	}
	return l.file.Forget()
}

func (l *List) steps(ctx context.Context, steps []Step, f *found) error {
	for i, s := range steps {
		if err := l.step(ctx, s, f); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

func (l *List) step(ctx context.Context, s Step, f *found) error {
	if s.back() {
		return l.putBack(ctx, s, f)
	}
	if len(s.Values) > 0 {
		l.tell("write %v to unit %d, address %d", s.Values, s.Unit, s.Address)
		if err := l.write(ctx, s, s.Values, s.reads()); err != nil {
			return err
		}
	}
	if s.Wait != nil {
		return l.await(ctx, s.Wait)
	}
	return nil
}

// reads is what reads back, or nil if nothing is to be read.
func (s Step) reads() []uint16 {
	switch {
	case s.Command:
		return nil
	case len(s.Expect) > 0:
		return s.Expect
	}
	return s.Values
}

// putBack writes what was found, if what is there is ours. One by one: a write that
// was done register by register may have been cut in the middle.
func (l *List) putBack(ctx context.Context, s Step, f *found) error {
	was, known := f.at(s.Unit, s.Address)
	if !known {
		return fmt.Errorf("unit %d, address %d: it is not among what was found; set it by hand, and remove the file %s", s.Unit, s.Address, l.file.Path)
	}
	now, err := l.read(ctx, s.Unit, s.Address, len(was))
	if err != nil {
		return err
	}
	if slices.Equal(now, was) {
		return nil
	}
	for i, v := range now {
		if v != was[i] && !l.wrote(s.Unit, s.Address, i, v) {
			l.tell("another controller has changed unit %d, address %d to %v, so it is left as it is", s.Unit, s.Address, now)
			return nil
		}
	}
	l.tell("write back %v to unit %d, address %d", was, s.Unit, s.Address)
	return l.write(ctx, s, was, was)
}

// wrote says whether a step of Quiesce leaves v there.
func (l *List) wrote(unit byte, address uint16, i int, v uint16) bool {
	return slices.ContainsFunc(l.cfg.Quiesce, func(q Step) bool {
		return q.Unit == unit && q.Address == address && i < len(q.Values) && !q.Command && (q.Values[i] == v || q.reads()[i] == v)
	})
}
