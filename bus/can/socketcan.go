package can

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Layout of struct can_frame and of error frames (Linux, include/uapi/linux/can.h and
// can/error.h): 16 bytes, the identifier with flags in the machine's byte order.
const (
	sizeSocketCAN = 16

	flagExtended = 0x8000_0000
	flagRemote   = 0x4000_0000
	flagError    = 0x2000_0000

	errController = 0x004 // data[1] says what
	errBusOff     = 0x040
	errRestarted  = 0x100

	controllerWarning = 0x04 | 0x08 // receiving, sending
	controllerPassive = 0x10 | 0x20
	controllerActive  = 0x40
)

// filtersMost is the most that the kernel takes (CAN_RAW_FILTER_MAX).
const filtersMost = 512

// appendSocketCAN writes a valid frame as the kernel wants it.
func appendSocketCAN(b []byte, f Frame) []byte {
	id := f.ID
	if f.Extended {
		id |= flagExtended
	}
	if f.Remote {
		id |= flagRemote
	}
	b = binary.NativeEndian.AppendUint32(b, id)
	b = append(b, f.Len, 0, 0, 0)
	return append(b, f.Data[:]...)
}

// event is what an error frame says.
type event struct {
	state  State // "": nothing about the state
	detail string
}

// parseSocketCAN reads one struct can_frame: a frame, or what an error frame says.
func parseSocketCAN(b []byte) (f Frame, e *event, err error) {
	if len(b) != sizeSocketCAN {
		return Frame{}, nil, fmt.Errorf("read a CAN frame: got %d bytes, want %d", len(b), sizeSocketCAN)
	}
	id := binary.NativeEndian.Uint32(b)
	if id&flagError != 0 {
		return Frame{}, parseError(id, b[8:16]), nil
	}
	f = Frame{ID: id & MaxExtended, Extended: id&flagExtended != 0, Remote: id&flagRemote != 0, Len: b[4]}
	if !f.Remote {
		copy(f.Data[:min(f.Len, MaxLen)], b[8:])
	}
	return f, nil, f.Validate()
}

func parseError(id uint32, data []byte) *event {
	e := new(event)
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	switch {
	case id&errBusOff != 0:
		e.state = StateBusOff
	case id&errRestarted != 0:
		e.state = StateActive
		say("restarted")
	case id&errController != 0 && data[1]&controllerPassive != 0:
		e.state = StatePassive
	case id&errController != 0 && data[1]&controllerWarning != 0:
		e.state = StateWarning
	case id&errController != 0 && data[1]&controllerActive != 0:
		e.state = StateActive
	}
	if data[6]|data[7] != 0 {
		say("counters: sending %d, receiving %d", data[6], data[7])
	}
	e.detail = strings.Join(said, "; ")
	return e
}
