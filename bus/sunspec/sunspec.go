// Package sunspec reads and controls batteries that describe themselves in
// registers as SunSpec says. It is for the gate and the quiesce step of a device,
// for a technician's tool, and, with [Image], for whoever simulates such a battery.
//
// Start with [Discover], then read a battery, or one model:
//
//	device, err := sunspec.Discover(ctx, client.Unit(1), sunspec.Search{})
//	...
//	battery, err := sunspec.ReadBattery(ctx, client.Unit(1), device)
//	fmt.Println(battery.SoC.Value, battery.SoC.From) // 57.5 802 SoC
//
// Points are named as in the definitions: "SoC", or in a group that repeats
// "string[1].StrSoC", counted from 1 as SunSpec's own indices are.
//
// What is promised: no number is made up. A value that the device does not
// implement, whose scale factor is not usable, or that lies beyond what the
// device has is NaN, or not known, with the reason beside it; a number is always
// finite. A model that needs several reads is of one moment, or an error
// ([ErrTorn]). A map that contradicts itself is an error. Every walk ends, and
// no read is longer than [MaxRead] registers. Package sunspec has no policy:
// whether a value is plausible, fresh or safe is for the gate to say.
//
// What it cannot see is a device that sends wrong values, or always the same
// ones; [Battery] carries what others measured and the heartbeats for that.
//
// Sources: the SunSpec Device Information Model Specification 1.1 and the model
// definitions of github.com/sunspec/models. Models 1, 701, 704, 713, 714, 715,
// 802, 803, 804 and 805 are known by their points; others are found and passed over.
package sunspec

import (
	"context"
	"errors"
)

// Registers reads the holding registers of one device.
type Registers interface {
	// ReadHolding returns count registers from address on (function 3). An answer
	// with another number of registers counts as an error. It may be called again
	// after any error.
	ReadHolding(ctx context.Context, address, count uint16) ([]uint16, error)
}

// Writer writes holding registers of one device.
type Writer interface {
	// WriteRegisters writes all values from address on in one request (function
	// 16). After an error the device may have them or not; writing the same again
	// must do no harm.
	WriteRegisters(ctx context.Context, address uint16, values []uint16) error
}

// ReadWriter is a device that can be controlled.
type ReadWriter interface {
	Registers
	Writer
}

// What one Modbus request can carry (Modbus Application Protocol 1.1b3, 6.3 and
// 6.12), in registers.
const (
	MaxRead  = 125
	MaxWrite = 123
)

var (
	// ErrNotSunSpec means that the marker "SunS" is at none of the base addresses.
	ErrNotSunSpec = errors.New("no SunSpec marker")

	// ErrMap means that the models of a device contradict themselves: they run
	// past the last register, have no end, or a group does not fit its model.
	ErrMap = errors.New("the register map is wrong")

	// ErrTorn means that the values changed while a long model was read, every
	// time. Reading again may help.
	ErrTorn = errors.New("the values changed while they were read")

	// ErrSeveral means that a device has more than one battery, and none was
	// chosen with [Device.Select].
	ErrSeveral = errors.New("there are several batteries")

	// ErrNoModel means that the device lacks the model that was asked for.
	ErrNoModel = errors.New("the device has no such model")

	// ErrMissing means that a point has no value: it is not implemented, its scale
	// factor is unusable, or it is beyond the registers that the device has. The
	// error that wraps it says which.
	ErrMissing = errors.New("no value")

	// ErrRange means that a value cannot be written as the point's registers.
	ErrRange = errors.New("out of range")
)
