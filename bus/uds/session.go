package uds

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Session is a diagnostic session (ISO 14229-1:2020, table 25).
type Session byte

// Sessions. Others, from 40 on, are the manufacturer's or the supplier's.
const (
	Default     Session = 0x01
	Programming Session = 0x02
	Extended    Session = 0x03
	Safety      Session = 0x04
)

// String returns the name.
func (s Session) String() string {
	switch s {
	case Default:
		return "default session"
	case Programming:
		return "programming session"
	case Extended:
		return "extended session"
	case Safety:
		return "safety session"
	}
	return fmt.Sprintf("session %02X", byte(s))
}

// SessionRequest (10) asks for a session.
type SessionRequest struct {
	Session  Session // 01 to 7F
	Suppress bool    // no positive answer is wanted
}

// ParseSessionRequest reads a SessionRequest.
func ParseSessionRequest(pdu []byte) (SessionRequest, error) {
	b, err := exactly(pdu, byte(DiagnosticSessionControl), 1)
	if err != nil {
		return SessionRequest{}, err
	}
	return SessionRequest{Session(b[0] &^ suppress), b[0]&suppress != 0}, nil
}

// Append appends the request to dst.
func (r SessionRequest) Append(dst []byte) []byte {
	return append(dst, byte(DiagnosticSessionControl), withSuppress(byte(r.Session), r.Suppress))
}

// SessionAnswer (50) says that the session was entered, and how patient a tester must be.
type SessionAnswer struct {
	Session Session
	P2      time.Duration // an answer comes within; 0 to 65,535 ms
	P2Star  time.Duration // and within this after ResponsePending; 0 to 655,350 ms, in steps of 10 ms
}

// ParseSessionAnswer reads a SessionAnswer. P2 and P2Star are 0 if they are missing, as
// in answers of servers from before 2006.
func ParseSessionAnswer(pdu []byte) (SessionAnswer, error) {
	b, err := body(pdu, byte(DiagnosticSessionControl)+positive, 1)
	if err != nil {
		return SessionAnswer{}, err
	}
	a := SessionAnswer{Session: Session(b[0])}
	switch len(b) {
	case 1:
	case 5:
		a.P2 = time.Duration(binary.BigEndian.Uint16(b[1:])) * time.Millisecond
		a.P2Star = time.Duration(binary.BigEndian.Uint16(b[3:])) * 10 * time.Millisecond
	default:
		return SessionAnswer{}, fmt.Errorf("%w: read %v: got %d bytes, want 6", ErrMessage, DiagnosticSessionControl, len(pdu))
	}
	return a, nil
}

// Append appends the answer to dst. Times are rounded up; what is beyond their range
// becomes its end.
func (a SessionAnswer) Append(dst []byte) []byte {
	dst = append(dst, byte(DiagnosticSessionControl)+positive, byte(a.Session))
	dst = binary.BigEndian.AppendUint16(dst, steps(a.P2, time.Millisecond))
	return binary.BigEndian.AppendUint16(dst, steps(a.P2Star, 10*time.Millisecond))
}

func steps(d, step time.Duration) uint16 {
	return uint16(min(max((d+step-1)/step, 0), 0xFFFF))
}

// Reset is a kind of reset (ISO 14229-1:2020, table 34).
type Reset byte

// Kinds of reset.
const (
	HardReset                 Reset = 0x01
	KeyOffOnReset             Reset = 0x02
	SoftReset                 Reset = 0x03
	EnableRapidPowerShutDown  Reset = 0x04
	DisableRapidPowerShutDown Reset = 0x05
)

// ResetRequest (11) asks for a reset.
type ResetRequest struct {
	Reset    Reset // 01 to 7F
	Suppress bool
}

// ParseResetRequest reads a ResetRequest.
func ParseResetRequest(pdu []byte) (ResetRequest, error) {
	b, err := exactly(pdu, byte(ECUReset), 1)
	if err != nil {
		return ResetRequest{}, err
	}
	return ResetRequest{Reset(b[0] &^ suppress), b[0]&suppress != 0}, nil
}

// Append appends the request to dst.
func (r ResetRequest) Append(dst []byte) []byte {
	return append(dst, byte(ECUReset), withSuppress(byte(r.Reset), r.Suppress))
}

// ResetAnswer (51) says that the reset will be done. PowerDown is sent for
// EnableRapidPowerShutDown alone: how long the server stays off, in seconds; FF: unknown.
type ResetAnswer struct {
	Reset     Reset
	PowerDown byte
}

// ParseResetAnswer reads a ResetAnswer.
func ParseResetAnswer(pdu []byte) (ResetAnswer, error) {
	b, err := body(pdu, byte(ECUReset)+positive, 1)
	if err != nil {
		return ResetAnswer{}, err
	}
	a := ResetAnswer{Reset: Reset(b[0])}
	if a.Reset == EnableRapidPowerShutDown && len(b) == 2 {
		a.PowerDown = b[1]
		return a, nil
	}
	if len(b) != 1 {
		return ResetAnswer{}, fmt.Errorf("%w: read %v: got %d bytes, want 2", ErrMessage, ECUReset, len(pdu))
	}
	return a, nil
}

// Append appends the answer to dst.
func (a ResetAnswer) Append(dst []byte) []byte {
	dst = append(dst, byte(ECUReset)+positive, byte(a.Reset))
	if a.Reset == EnableRapidPowerShutDown {
		dst = append(dst, a.PowerDown)
	}
	return dst
}

// PresentRequest (3E) says that the tester is still there.
type PresentRequest struct {
	Suppress bool
}

// ParsePresentRequest reads a PresentRequest. The only sub-function is 00.
func ParsePresentRequest(pdu []byte) (PresentRequest, error) {
	b, err := exactly(pdu, byte(TesterPresent), 1)
	if err == nil && b[0]&^suppress != 0 {
		err = fmt.Errorf("%w: read %v: sub-function %02X, want 00", ErrMessage, TesterPresent, b[0]&^suppress)
	}
	if err != nil {
		return PresentRequest{}, err
	}
	return PresentRequest{b[0]&suppress != 0}, nil
}

// Append appends the request to dst.
func (r PresentRequest) Append(dst []byte) []byte {
	return append(dst, byte(TesterPresent), withSuppress(0, r.Suppress))
}

// CommunicationRequest (28) switches the server's other traffic on and off.
type CommunicationRequest struct {
	// Control: 00 receive and send, 01 receive only, 02 send only, 03 neither; 04 and 05
	// are 00 and 01 for the node of Node.
	Control  byte
	Suppress bool
	// Type is the communicationType (table B.1): bits 0 and 1 are 1 for normal messages,
	// 2 for network management, 3 for both; bits 4 to 7 the sub-net.
	Type byte
	Node uint16 // for Control 04 and 05 alone
}

// ParseCommunicationRequest reads a CommunicationRequest.
func ParseCommunicationRequest(pdu []byte) (CommunicationRequest, error) {
	b, err := body(pdu, byte(CommunicationControl), 2)
	if err != nil {
		return CommunicationRequest{}, err
	}
	r := CommunicationRequest{Control: b[0] &^ suppress, Suppress: b[0]&suppress != 0, Type: b[1]}
	want := 2
	if r.hasNode() {
		want = 4
	}
	if len(b) != want {
		return CommunicationRequest{}, fmt.Errorf("%w: read %v: got %d bytes, want %d", ErrMessage, CommunicationControl, len(pdu), want+1)
	}
	if r.hasNode() {
		r.Node = binary.BigEndian.Uint16(b[2:])
	}
	return r, nil
}

func (r CommunicationRequest) hasNode() bool { return r.Control == 4 || r.Control == 5 }

// Append appends the request to dst.
func (r CommunicationRequest) Append(dst []byte) []byte {
	dst = append(dst, byte(CommunicationControl), withSuppress(r.Control, r.Suppress), r.Type)
	if r.hasNode() {
		dst = binary.BigEndian.AppendUint16(dst, r.Node)
	}
	return dst
}

// DTCRequest (85) switches the recording of trouble codes.
type DTCRequest struct {
	Setting  byte // 01 on, 02 off; from 40 on the manufacturer's
	Suppress bool
	Options  []byte
}

// ParseDTCRequest reads a DTCRequest. Options is a part of pdu.
func ParseDTCRequest(pdu []byte) (DTCRequest, error) {
	b, err := body(pdu, byte(ControlDTCSetting), 1)
	if err != nil {
		return DTCRequest{}, err
	}
	return DTCRequest{b[0] &^ suppress, b[0]&suppress != 0, b[1:]}, nil
}

// Append appends the request to dst.
func (r DTCRequest) Append(dst []byte) []byte {
	return append(append(dst, byte(ControlDTCSetting), withSuppress(r.Setting, r.Suppress)), r.Options...)
}

// EchoAnswer is the positive answer of the services that say only which of their
// sub-functions was done: 28, 3E and 85.
type EchoAnswer struct {
	Service Service
	Sub     byte
}

// ParseEchoAnswer reads an EchoAnswer.
func ParseEchoAnswer(pdu []byte) (EchoAnswer, error) {
	if len(pdu) != 2 {
		return EchoAnswer{}, fmt.Errorf("%w: read an answer: got % X, want 2 bytes", ErrMessage, head(pdu))
	}
	a := EchoAnswer{Service(pdu[0] - positive), pdu[1]}
	switch a.Service {
	case CommunicationControl, TesterPresent, ControlDTCSetting:
		return a, nil
	}
	return EchoAnswer{}, fmt.Errorf("%w: read an answer: % X belongs to none of 28, 3E and 85", ErrMessage, pdu)
}

// Append appends the answer to dst.
func (a EchoAnswer) Append(dst []byte) []byte {
	return append(dst, byte(a.Service)+positive, a.Sub)
}
