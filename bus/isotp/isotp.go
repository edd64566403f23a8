// Package isotp sends and receives messages longer than a frame over classic CAN, as
// ISO 15765-2:2016 says (ISO-TP, DoCAN), for programs that speak UDS or anything else
// with a peer on the bus.
//
// Start with a bus of package can. A [Mux] reads it and distributes to channels, one
// for each peer or group:
//
//	mux := isotp.NewMux(bus)
//	conn, err := mux.Open(isotp.Normal(0x7E0, 0x7E8), isotp.Config{})
//	err = conn.Send(ctx, request)
//	answer, err := conn.Receive(ctx)
//
// or, on Linux, let the kernel do it:
//
//	conn, err := isotp.OpenKernel("can0", isotp.Normal(0x7E0, 0x7E8), isotp.Config{})
//
// What is promised: a PDU comes out only if all of its frames came in, in order; a
// transfer that breaks is an error to whoever can know of it, and the next one works.
// Nothing waits longer than its context or the timers of [Config], and no peer makes a
// channel hold more than a few times [Config.MaxPDU]. What is not: that a PDU which was
// sent without an error arrived, which the standard cannot know either; and that a frame
// which the bus doubles is known as such, so that a PDU of a single frame may come twice.
// Layers above (UDS) know how to live with both.
package isotp

import (
	"context"
	"errors"
	"time"

	"github.com/interlock-energy/ota/bus/crash"
)

// Conn is a connection with one peer, or a group of them. Its methods may be called from
// any goroutine; what is sent and what is received do not wait for each other.
type Conn interface {
	// Send sends one PDU and returns when its last frame was handed to the link. PDUs of
	// several callers go one after the other. An error wraps ctx's, [can.ErrClosed], what
	// is wrong with the link ([can.ErrDown], [can.ErrBusOff]), [ErrTimeout], [ErrOverflow],
	// [ErrWaits], [ErrFlow] or [ErrLength]. But for ErrClosed and ErrLength, one may try again: the
	// peer drops what it has of the PDU.
	Send(ctx context.Context, pdu []byte) error

	// Receive returns the next PDU, which is the caller's from then on. An error wraps
	// ctx's or [can.ErrClosed]; or says once that something was lost, after which one may
	// ask again: a PDU ([ErrTimeout], [ErrSequence], [ErrReplaced], [ErrWaits]) or the
	// link ([can.ErrDown], [can.ErrBusOff]). While a link stays lost, it says so about once a second.
	Receive(ctx context.Context) ([]byte, error)

	// Close ends both, also those under way. It may be called several times.
	Close() error
}

// What can go wrong with a PDU, with the names of the results in ISO 15765-2, 8.3.7.
var (
	ErrTimeout  = errors.New("the time is over")                        // N_TIMEOUT_A, _Bs, _Cr
	ErrOverflow = errors.New("the peer has no room for the PDU")        // N_BUFFER_OVFLW
	ErrWaits    = errors.New("too many requests to wait")               // N_WFT_OVRN
	ErrFlow     = errors.New("a flow control frame of no known status") // N_INVALID_FS
	ErrSequence = errors.New("a frame is missing or out of order")      // N_WRONG_SN
	ErrReplaced = errors.New("the peer began another PDU")              // N_UNEXP_PDU
	ErrLength   = errors.New("a PDU of this length cannot be sent")
)

// Config is how a channel behaves. The zero value works: it takes PDUs of up to 4095
// bytes as fast as the bus brings them, which on a bus with other traffic, such as a
// battery's, is too fast: ask there for an STmin of 1 ms or more and blocks of 8 to 16.
type Config struct {
	BlockSize int           // frames that the peer may send until it must ask again: 1 to 255; 0: all
	STmin     time.Duration // pause that the peer must make between frames: up to 127 ms; below 1 ms in steps of 0.1 ms; rounded up
	MaxPDU    int           // bytes of the longest PDU to receive; 0: 4095; more takes the length of 32 bits

	Padding  *byte // fills the frames that are sent to eight bytes; nil: 0xCC
	Unpadded bool  // does not fill them. What is received may be filled or not

	// FrameTime is how long a frame is on the bus. It is added to the pauses that the peer
	// asks for, which begin when a frame has been sent; a link says only that it has taken it.
	// 0: 270 us, which is the longest at 500 kbit/s.
	FrameTime time.Duration

	// FramesPerSecond is the pace of what Send sends, at most; 0: what the peer and the
	// bus allow.
	FramesPerSecond int

	// WFTmax is how many requests to wait in a row are made, and accepted from the peer;
	// 0: 16; negative: none. Wait is the time between those that are made, while PDUs that nobody
	// received take up the room (N_Br); 0: 500 ms.
	WFTmax int
	Wait   time.Duration

	// Mend takes a consecutive frame that comes a second time right away, or after the next
	// one, where the standard has the PDU given up: adapters and gateways do that to frames.
	// A PDU still comes out only if each of its frames came in.
	Mend bool
	// Adapt makes NBs and NCr shorter on a line that has shown that it loses frames: from the
	// first time that one of them has run out it follows what the peer really takes, is at
	// least 100 ms, and grows up to what is said here while that is not enough. The standard
	// gives both ends a second, which is what each loss costs.
	Adapt bool

	NAs time.Duration // the link may take this long to take a frame; 0: 1 s
	NAr time.Duration // the same for a flow control frame; 0: 1 s
	NBs time.Duration // the peer may take this long to a flow control frame; 0: 1 s
	NCr time.Duration // the peer may take this long to its next frame; 0: 1 s
	NCs time.Duration // FramesPerSecond must not make the peer wait this long; 0: 900 ms

	Crashes *crash.Log // keeps account of panics, which end the PDU that is coming in and those that wait; nil: the process's
}
