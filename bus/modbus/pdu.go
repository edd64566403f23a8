package modbus

import (
	"errors"
	"fmt"
)

// Function is a Modbus function code (Modbus Application Protocol V1.1b3, 6).
type Function byte

// The functions that this package speaks.
const (
	ReadCoils          Function = 1
	ReadDiscreteInputs Function = 2
	ReadHolding        Function = 3
	ReadInput          Function = 4
	WriteCoil          Function = 5
	WriteRegister      Function = 6
	WriteCoils         Function = 15
	WriteRegisters     Function = 16
	ReadFile           Function = 20
	WriteFile          Function = 21
	MaskWrite          Function = 22
	ReadWrite          Function = 23
	ReadFIFO           Function = 24

	// failed is set in the function code of an answer that is an exception (7).
	failed Function = 0x80
)

func (f Function) String() string {
	switch f {
	case ReadCoils:
		return "read coils"
	case ReadDiscreteInputs:
		return "read discrete inputs"
	case ReadHolding:
		return "read holding registers"
	case ReadInput:
		return "read input registers"
	case WriteCoil:
		return "write coil"
	case WriteRegister:
		return "write register"
	case WriteCoils:
		return "write coils"
	case WriteRegisters:
		return "write registers"
	case ReadFile:
		return "read file record"
	case WriteFile:
		return "write file record"
	case MaskWrite:
		return "mask write register"
	case ReadWrite:
		return "read/write registers"
	case ReadFIFO:
		return "read FIFO queue"
	}
	return fmt.Sprintf("function %d", byte(f))
}

// Writes says whether the function changes something.
func (f Function) Writes() bool {
	switch f {
	case WriteCoil, WriteRegister, WriteCoils, WriteRegisters, WriteFile, MaskWrite, ReadWrite:
		return true
	}
	return false
}

// Exception is why a server did not do what was asked (V1.1b3, 7). It is an error:
// errors.Is(err, modbus.IllegalAddress), or errors.As for any of them. Handlers
// return it to choose what the client is told.
type Exception byte

const (
	IllegalFunction Exception = 1  // not known here, or not allowed to this client
	IllegalAddress  Exception = 2  // no such coil, register, file or record
	IllegalValue    Exception = 3  // a count, length or value that cannot be
	DeviceFailure   Exception = 4  // it was tried, and went wrong
	Acknowledge     Exception = 5  // accepted, takes long: ask later
	DeviceBusy      Exception = 6  // not now: ask again later
	MemoryParity    Exception = 8  // a file record is damaged
	GatewayPath     Exception = 10 // the gateway has no way to this unit
	GatewayTarget   Exception = 11 // the unit behind the gateway is silent
)

func (e Exception) Error() string {
	name := "unknown"
	switch e {
	case IllegalFunction:
		name = "illegal function"
	case IllegalAddress:
		name = "illegal data address"
	case IllegalValue:
		name = "illegal data value"
	case DeviceFailure:
		name = "server device failure"
	case Acknowledge:
		name = "acknowledge"
	case DeviceBusy:
		name = "server device busy"
	case MemoryParity:
		name = "memory parity error"
	case GatewayPath:
		name = "gateway path unavailable"
	case GatewayTarget:
		name = "gateway target device failed to respond"
	}
	return fmt.Sprintf("modbus exception %d (%s)", byte(e), name)
}

var (
	// ErrRequest is wrapped if a request breaks a limit of the protocol. It was not sent.
	ErrRequest = errors.New("not a valid request")
	// ErrAnswer is wrapped if an answer does not fit its request. What a write did is unknown.
	ErrAnswer = errors.New("the answer does not fit the request")
	// ErrNoAnswer is wrapped if nothing came in time. What a write did is unknown.
	ErrNoAnswer = errors.New("no answer")
	// ErrClosed is wrapped if the client was closed.
	ErrClosed = errors.New("the client is closed")
)

// Limits of one request (V1.1b3, 6.1 to 6.18).
const (
	MaxReadBits       = 2000 // FC 1, 2
	MaxWriteBits      = 1968 // FC 15
	MaxReadRegisters  = 125  // FC 3, 4, 23
	MaxWriteRegisters = 123  // FC 16
	MaxExchange       = 121  // FC 23: registers written
	MaxFIFO           = 31   // FC 24
	MaxFileRead       = 121  // FC 20: registers in one sub-request: (0xF5-2)/2
	MaxFileWrite      = 122  // FC 21: registers in one sub-request: (0xFB-7)/2
	MaxRecord         = 9999 // FC 20, 21: the last record of a file; a record is a register

	// MaxPDU is the longest function code with its data: an RTU frame of 256 bytes less
	// the unit and the CRC (V1.1b3, 4.1).
	MaxPDU = 253

	maxFileAnswer  = 0xF5 // FC 20: request and answer; 35 sub-requests
	maxFileRequest = 0xFB // FC 21
	fileReference  = 6    // FC 20, 21: the only reference type
	subRequestSize = 7    // FC 20, 21: reference, file, record, length
	coilOn         = 0xFF00
)
