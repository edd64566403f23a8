// Package can sends and receives frames of classic CAN, over several kinds of
// links, for programs that listen to a battery or talk to its modules.
//
// Start with the link that the device has:
//
//	bus, err := can.DialSocketCAN("can0", can.Filters{{ID: 0x355, Mask: 0x7FF}}) // Linux
//	bus, err := can.OpenSLCAN(ctx, port, can.SLCANConfig{Bitrate: 500_000})      // serial adapter
//	bus := can.NewTCP13("192.168.0.7:20001", can.TCP13Config{})                  // TCP converter
//	...
//	frame, err := bus.Receive(ctx)
//
// [NewAdapter] is the other end of a serial adapter, for simulators.
//
// What is promised: a frame comes out only if every bit of it came in; what is no
// frame is dropped and counted. A link that is lost is an error, never silence
// without end, as far as the link can tell: whoever listens must still give every
// value an age. Nothing waits longer than its context.
package can

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/interlock-energy/ota/bus/crash"
)

// Identifiers and data of a classic frame (ISO 11898-1, 10.4).
const (
	MaxStandard = 0x7FF       // largest 11-bit identifier
	MaxExtended = 0x1FFF_FFFF // largest 29-bit identifier
	MaxLen      = 8           // bytes of data in a frame
)

// Frame is a frame of classic CAN. It is a value; two frames are the same if ==
// says so, so bytes of Data beyond Len are zero.
type Frame struct {
	ID       uint32 // up to MaxStandard, or MaxExtended if Extended
	Extended bool   // a 29-bit identifier
	Remote   bool   // asks for data and has none; Len is how much it asks for
	Len      uint8  // 0 to MaxLen
	Data     [MaxLen]byte
}

// Standard returns a data frame with an 11-bit identifier. Too many bytes or too
// large an identifier make a frame that [Frame.Validate] refuses.
func Standard(id uint32, data ...byte) Frame { return frame(id, false, data) }

// Extended returns a data frame with a 29-bit identifier, as Standard does.
func Extended(id uint32, data ...byte) Frame { return frame(id, true, data) }

func frame(id uint32, extended bool, data []byte) Frame {
	f := Frame{ID: id, Extended: extended, Len: uint8(min(len(data), MaxLen+1))}
	copy(f.Data[:], data)
	return f
}

// Bytes returns the data of the frame, none for a remote frame. It is a copy.
func (f Frame) Bytes() []byte {
	if f.Remote {
		return nil
	}
	return append([]byte(nil), f.Data[:min(f.Len, MaxLen)]...)
}

// Validate says what keeps the frame from being one: the identifier, the length,
// or data where there should be none.
func (f Frame) Validate() error {
	most := uint32(MaxStandard)
	if f.Extended {
		most = MaxExtended
	}
	switch {
	case f.ID > most:
		return fmt.Errorf("check a CAN frame: identifier %#x, want at most %#x", f.ID, most)
	case f.Len > MaxLen:
		return fmt.Errorf("check CAN frame %#x: more than %d bytes of data", f.ID, MaxLen)
	case f.Remote && f.Data != [MaxLen]byte{}:
		return fmt.Errorf("check CAN frame %#x: a remote frame has no data", f.ID)
	}
	for _, b := range f.Data[f.Len:] {
		if b != 0 {
			return fmt.Errorf("check CAN frame %#x: data beyond its %d bytes", f.ID, f.Len)
		}
	}
	return nil
}

// String writes the frame as candump -L does: 355#58005E00, 18DAF110#023E80, and
// 123#R4 for a remote frame that asks for four bytes.
func (f Frame) String() string {
	var b strings.Builder
	if f.Extended {
		fmt.Fprintf(&b, "%08X#", f.ID)
	} else {
		fmt.Fprintf(&b, "%03X#", f.ID)
	}
	switch {
	case f.Remote && f.Len == 0:
		b.WriteByte('R')
	case f.Remote:
		fmt.Fprintf(&b, "R%d", f.Len)
	default:
		fmt.Fprintf(&b, "%X", f.Data[:min(f.Len, MaxLen)])
	}
	return b.String()
}

// Parse reads what [Frame.String] writes. Three digits are an 11-bit identifier,
// eight a 29-bit one.
func Parse(s string) (Frame, error) {
	id, data, ok := strings.Cut(s, "#")
	if !ok || len(id) != 3 && len(id) != 8 {
		return Frame{}, fmt.Errorf("parse CAN frame %q: want 123#1122 or 12345678#1122", s)
	}
	n, err := strconv.ParseUint(id, 16, 32)
	if err != nil {
		return Frame{}, fmt.Errorf("parse CAN frame %q: the identifier %q is not hexadecimal", s, id)
	}
	f := Frame{ID: uint32(n), Extended: len(id) == 8}
	if length, ok := strings.CutPrefix(data, "R"); ok {
		f.Remote = true
		if length != "" {
			n, err := strconv.ParseUint(length, 10, 8)
			if err != nil || n > MaxLen || len(length) != 1 {
				return Frame{}, fmt.Errorf("parse CAN frame %q: length %q, want 0 to %d", s, length, MaxLen)
			}
			f.Len = uint8(n)
		}
	} else {
		b, err := hex.DecodeString(data)
		if err != nil || len(b) > MaxLen {
			return Frame{}, fmt.Errorf("parse CAN frame %q: want up to %d bytes of data, in hexadecimal", s, MaxLen)
		}
		f.Len = uint8(copy(f.Data[:], b))
	}
	return f, f.Validate()
}

// Bus is one end of a link. Its methods may be called from any goroutine.
type Bus interface {
	// Receive returns the next frame. An error is ctx's, [ErrClosed], [ErrDown] or
	// [ErrBusOff]; after the last two one may ask again, as the link may come back:
	// each kind of link says whether it does.
	Receive(ctx context.Context) (Frame, error)

	// Send hands the frame over to the link, no faster than the link's pace. That no
	// error is returned does not mean that anybody received it.
	Send(ctx context.Context, f Frame) error

	// Close ends both, also those under way. It may be called several times.
	Close() error
}

// What can be wrong with a link. Errors wrap one of them.
var (
	ErrClosed  = errors.New("the link is closed")
	ErrDown    = errors.New("the link is down")
	ErrBusOff  = errors.New("the controller is off the bus")
	ErrRefused = errors.New("the adapter refused")
)

// State is how well a controller is on its bus (ISO 11898-1, fault confinement).
// The zero State is not known: most links do not tell.
type State string

// States.
const (
	StateActive  State = "active"
	StateWarning State = "warning" // 96 errors or more
	StatePassive State = "passive" // 128 errors or more: it does not disturb others any longer
	StateBusOff  State = "bus-off" // it neither sends nor receives
)

// Stats count what happened on a link since it was opened.
type Stats struct {
	Received uint64 // frames that came in, before filters
	Sent     uint64
	Garbage  uint64 // lines, or bytes of a stream, that were no frames
	Refused  uint64 // commands and frames that an adapter did not accept
	Echoes   uint64 // own frames that came back and were dropped
	Lost     uint64 // frames that nobody received in time, and that were dropped
	Links    uint64 // connections made
	State    State
}

// crashes keeps account of panics: nil, which is the process's, but in tests that panic on purpose.
var crashes atomic.Pointer[crash.Log]

// Filter lets frames pass whose identifier is ID where Mask has ones, and that are
// extended or not, as the filter is. Remote frames pass as data frames do.
type Filter struct {
	ID, Mask uint32
	Extended bool
}

// Match reports whether the filter lets f pass.
func (t Filter) Match(f Frame) bool {
	return f.Extended == t.Extended && (f.ID^t.ID)&t.Mask&MaxExtended == 0
}

// Filters let a frame pass if one of them does. No filters: all frames pass.
type Filters []Filter

// Match reports whether f passes.
func (t Filters) Match(f Frame) bool {
	for _, filter := range t {
		if filter.Match(f) {
			return true
		}
	}
	return len(t) == 0
}
