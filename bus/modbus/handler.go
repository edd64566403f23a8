package modbus

import (
	"context"
	"net"
)

// Transport is how a request came.
type Transport string

const (
	TCP Transport = "tcp" // plain: anybody who can connect
	TLS Transport = "tls" // mutual certificates; Call.Role is proven
	RTU Transport = "rtu" // plain: anybody at the wire
)

// Call tells a handler what it is asked, and by whom.
type Call struct {
	Unit      byte     // the device addressed, 0 to 255; RTU: 0 is a broadcast, which nobody answers
	Function  Function // which request led here: FC 6, 16 and 23 all write registers
	Transport Transport
	Remote    net.Addr // nil on RTU
	Role      string   // from the client's certificate; "" if it has none, and without TLS
}

// A handler implements what it serves of the interfaces below; what it lacks is
// answered with exception 1. The server has checked counts and that addresses do not
// pass 65535. Addresses are those of the protocol, which begin at 0.
//
// Methods are called by several goroutines, must not keep the slices, and should answer
// within 500 ms, for masters do not wait long: work that takes more is begun, answered
// with [Acknowledge], and asked about later. An [Exception] as the error (or wrapped in
// it) is what the client is told; any other error becomes [DeviceFailure]. A write that
// returns an error should have changed nothing.
type (
	// HoldingReader serves FC 3, and the reading half of FC 23.
	HoldingReader interface {
		ReadHolding(ctx context.Context, call Call, address uint16, dst []uint16) error
	}
	// HoldingWriter serves FC 6 and 16, and the writing half of FC 23, which comes
	// before the reading.
	HoldingWriter interface {
		WriteHolding(ctx context.Context, call Call, address uint16, values []uint16) error
	}
	// HoldingMasker serves FC 22: the register becomes (it AND and) OR (or AND NOT and),
	// with nobody between reading and writing.
	HoldingMasker interface {
		MaskHolding(ctx context.Context, call Call, address, and, or uint16) error
	}
	// InputReader serves FC 4.
	InputReader interface {
		ReadInput(ctx context.Context, call Call, address uint16, dst []uint16) error
	}
	// CoilReader serves FC 1.
	CoilReader interface {
		ReadCoils(ctx context.Context, call Call, address uint16, dst []bool) error
	}
	// CoilWriter serves FC 5 and 15.
	CoilWriter interface {
		WriteCoils(ctx context.Context, call Call, address uint16, values []bool) error
	}
	// DiscreteReader serves FC 2.
	DiscreteReader interface {
		ReadDiscreteInputs(ctx context.Context, call Call, address uint16, dst []bool) error
	}
	// FileReader serves FC 20, called once for each sub-request: file is 1 to 65535,
	// record and all that follow are 0 to 9999.
	FileReader interface {
		ReadFile(ctx context.Context, call Call, file, record uint16, dst []uint16) error
	}
	// FileWriter serves FC 21, called once for each sub-request. If a later one fails,
	// the earlier ones stay written: the protocol has no way back.
	FileWriter interface {
		WriteFile(ctx context.Context, call Call, file, record uint16, values []uint16) error
	}
	// FIFOReader serves FC 24. It returns how many registers the queue holds, of which
	// it has put up to 31 into dst, oldest first; more than 31 is exception 3 (V1.1b3, 6.18).
	FIFOReader interface {
		ReadFIFO(ctx context.Context, call Call, address uint16, dst []uint16) (int, error)
	}
)
