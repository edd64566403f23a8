package uds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// Conn carries whole messages between one tester and one server. Package isotp has
// implementations. Methods may be called by several goroutines at once.
//
// A Conn may also have the method Receiving() bool, which reports whether a message is
// arriving that Receive has not returned yet. Time that a long message takes on a slow
// bus then does not count against S3, P2 and P2* (ISO 14229-2 stops these timers at
// the first frame).
type Conn interface {
	// Send sends a message and returns once its last frame is on the bus. It does not
	// keep pdu.
	Send(ctx context.Context, pdu []byte) error
	// Receive waits for the next message. An error may tell of one that was lost, or of
	// trouble with the line, and then Receive is called again; there will be no more
	// after one that wraps [can.ErrClosed], [io.EOF], [io.ErrClosedPipe] or [fs.ErrClosed].
	Receive(ctx context.Context) ([]byte, error)
	Close() error
}

// receiving reports whether a message is arriving.
func receiving(c Conn) bool {
	r, ok := c.(interface{ Receiving() bool })
	return ok && r.Receiving()
}

// receive hands on what arrives until ctx or the connection ends: nil, or why the
// connection did. What was lost on the way is not told: it shows in what the other side
// does next.
func receive(ctx context.Context, c Conn, take func(pdu []byte)) error {
	failed := 0
	for {
		pdu, err := c.Receive(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failed = 0
			take(pdu)
			continue
		case isClosed(err):
			return err
		}
		if failed++; failed == 1 {
			continue
		}
		select { // a line that is down may say so without a pause
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
}

func isClosed(err error) bool {
	return errors.Is(err, can.ErrClosed) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, fs.ErrClosed)
}

// ErrMessage is a message that is not what the standard says it should be.
var ErrMessage = errors.New("no valid UDS message")

// negative begins a negative answer, and positive is added to the service in a positive
// one (ISO 14229-1:2020, 8.3 and 8.4).
const (
	negative = 0x7F
	positive = 0x40
	suppress = 0x80 // suppressPosRspMsgIndicationBit (8.2.2)
)

// Service is a service identifier (SID).
type Service byte

// Services (ISO 14229-1:2020, table 2).
const (
	DiagnosticSessionControl Service = 0x10
	ECUReset                 Service = 0x11
	ReadDataByIdentifier     Service = 0x22
	SecurityAccess           Service = 0x27
	CommunicationControl     Service = 0x28
	Authentication           Service = 0x29
	WriteDataByIdentifier    Service = 0x2E
	RoutineControl           Service = 0x31
	RequestDownload          Service = 0x34
	TransferData             Service = 0x36
	RequestTransferExit      Service = 0x37
	RequestFileTransfer      Service = 0x38
	TesterPresent            Service = 0x3E
	ControlDTCSetting        Service = 0x85
)

var serviceNames = map[Service]string{
	DiagnosticSessionControl: "DiagnosticSessionControl",
	ECUReset:                 "ECUReset",
	ReadDataByIdentifier:     "ReadDataByIdentifier",
	SecurityAccess:           "SecurityAccess",
	CommunicationControl:     "CommunicationControl",
	Authentication:           "Authentication",
	WriteDataByIdentifier:    "WriteDataByIdentifier",
	RoutineControl:           "RoutineControl",
	RequestDownload:          "RequestDownload",
	TransferData:             "TransferData",
	RequestTransferExit:      "RequestTransferExit",
	RequestFileTransfer:      "RequestFileTransfer",
	TesterPresent:            "TesterPresent",
	ControlDTCSetting:        "ControlDTCSetting",
}

// String returns the name and the number.
func (s Service) String() string {
	if name := serviceNames[s]; name != "" {
		return fmt.Sprintf("%s (%02X)", name, byte(s))
	}
	return fmt.Sprintf("service %02X", byte(s))
}

// HasSubFunction reports whether the first parameter is a sub-function, whose highest
// bit says that no positive answer is wanted.
func (s Service) HasSubFunction() bool {
	switch s {
	case DiagnosticSessionControl, ECUReset, SecurityAccess, CommunicationControl,
		Authentication, RoutineControl, TesterPresent, ControlDTCSetting:
		return true
	}
	return false
}

// isRequest reports whether a first byte can begin a request: bit 6 marks answers
// (ISO 14229-1:2020, table 2), which nobody answers.
func isRequest(b byte) bool { return b&positive == 0 && b != 0 }

// DID is a data identifier.
type DID uint16

// RID is a routine identifier.
type RID uint16

// A Request is any request, as a Parse function returns it.
type Request interface {
	Append(dst []byte) []byte
}

// head is the beginning of a message, for errors.
func head(pdu []byte) []byte { return pdu[:min(len(pdu), 16)] }

// body checks what a message begins with, and that at least so many bytes follow.
func body(pdu []byte, first byte, least int) ([]byte, error) {
	what := Service(first &^ positive)
	switch {
	case len(pdu) == 0 || pdu[0] != first:
		return nil, fmt.Errorf("%w: read %v: it begins with % X, want %02X", ErrMessage, what, head(pdu), first)
	case len(pdu)-1 < least:
		return nil, tooShort(what, len(pdu), least+1)
	}
	return pdu[1:], nil
}

func tooShort(s Service, got, want int) error {
	return fmt.Errorf("%w: read %v: got %d bytes, want at least %d", ErrMessage, s, got, want)
}

// exactly is body for messages of one length.
func exactly(pdu []byte, first byte, length int) ([]byte, error) {
	b, err := body(pdu, first, length)
	if err == nil && len(b) != length {
		err = fmt.Errorf("%w: read %v: got %d bytes, want %d", ErrMessage, Service(first&^positive), len(pdu), length+1)
	}
	return b, err
}

// outOfRange marks a message whose length is right and whose content is not: a server
// answers RequestOutOfRange instead of IncorrectMessageLength.
func outOfRange(err error) error { return rangeError{err} }

type rangeError struct{ error }

func (e rangeError) Unwrap() []error { return []error{e.error, RequestOutOfRange} }

// withSuppress joins a sub-function and the bit that suppresses the positive answer.
func withSuppress(sub byte, quiet bool) byte {
	if quiet {
		return sub | suppress
	}
	return sub
}

// appendUint appends the lowest size bytes of v, most significant first.
func appendUint(dst []byte, v uint64, size int) []byte {
	for i := size - 1; i >= 0; i-- {
		if i >= 8 {
			dst = append(dst, 0)
			continue
		}
		dst = append(dst, byte(v>>(8*i)))
	}
	return dst
}

// parseUint reads all of b, most significant byte first. ok is false if it does not fit.
func parseUint(b []byte) (v uint64, ok bool) {
	for _, c := range b {
		if v>>56 != 0 {
			return 0, false
		}
		v = v<<8 | uint64(c)
	}
	return v, true
}

// width is how many bytes v needs, at least 1.
func width(v uint64) int {
	n := 1
	for v >>= 8; v != 0; v >>= 8 {
		n++
	}
	return n
}
