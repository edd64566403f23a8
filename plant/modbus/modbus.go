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
// What is promised: what every register of the list held is on the disk before the
// first is written. Steps are done in order, each read back, and the first that fails
// ends Quiesce; Resume does all of its steps that it can. A list has no dead-man,
// unless the plant has one that the list arms.
package modbus

import (
	"context"
	"errors"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/plant"
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
type List struct{ cfg Config }

// New checks the lists. It reads and writes nothing.
func New(cfg Config) (*List, error) { return &List{cfg}, nil }

// Quiesce implements [plant.Action].
func (l *List) Quiesce(ctx context.Context) error { return errors.New("not yet") }

// Resume implements [plant.Action].
func (l *List) Resume(ctx context.Context) error { return errors.New("not yet") }
