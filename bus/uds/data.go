package uds

import (
	"encoding/binary"
	"fmt"
)

// ReadRequest (22) asks for data.
type ReadRequest struct {
	DIDs []DID // at least one
}

// ParseReadRequest reads a ReadRequest.
func ParseReadRequest(pdu []byte) (ReadRequest, error) {
	b, err := body(pdu, byte(ReadDataByIdentifier), 2)
	if err != nil {
		return ReadRequest{}, err
	}
	if len(b)%2 != 0 {
		return ReadRequest{}, fmt.Errorf("%w: read %v: %d bytes of identifiers, want an even number", ErrMessage, ReadDataByIdentifier, len(b))
	}
	r := ReadRequest{make([]DID, 0, len(b)/2)}
	for ; len(b) > 0; b = b[2:] {
		r.DIDs = append(r.DIDs, DID(binary.BigEndian.Uint16(b)))
	}
	return r, nil
}

// Append appends the request to dst.
func (r ReadRequest) Append(dst []byte) []byte {
	dst = append(dst, byte(ReadDataByIdentifier))
	for _, did := range r.DIDs {
		dst = binary.BigEndian.AppendUint16(dst, uint16(did))
	}
	return dst
}

// A Record is a data identifier and what it holds.
type Record struct {
	DID  DID
	Data []byte
}

// ReadAnswer (62) is what was asked for. A server leaves out what it does not have.
type ReadAnswer struct {
	Records []Record
}

// ParseReadAnswer reads a ReadAnswer. The message does not say where a record ends:
// size says how many bytes each identifier has; negative: all that follow. The data are
// parts of pdu.
func ParseReadAnswer(pdu []byte, size func(DID) int) (ReadAnswer, error) {
	b, err := body(pdu, byte(ReadDataByIdentifier)+positive, 2)
	if err != nil {
		return ReadAnswer{}, err
	}
	var a ReadAnswer
	for len(b) > 0 {
		if len(b) < 2 {
			return ReadAnswer{}, fmt.Errorf("%w: read %v: a byte is left over", ErrMessage, ReadDataByIdentifier)
		}
		did := DID(binary.BigEndian.Uint16(b))
		b = b[2:]
		n := size(did)
		if n < 0 {
			n = len(b)
		}
		if n > len(b) {
			return ReadAnswer{}, fmt.Errorf("%w: read %v: %04X has %d bytes, want %d", ErrMessage, ReadDataByIdentifier, uint16(did), len(b), n)
		}
		a.Records = append(a.Records, Record{did, b[:n:n]})
		b = b[n:]
	}
	return a, nil
}

// Append appends the answer to dst.
func (a ReadAnswer) Append(dst []byte) []byte {
	dst = append(dst, byte(ReadDataByIdentifier)+positive)
	for _, r := range a.Records {
		dst = append(binary.BigEndian.AppendUint16(dst, uint16(r.DID)), r.Data...)
	}
	return dst
}

// WriteRequest (2E) writes data.
type WriteRequest struct {
	DID  DID
	Data []byte // at least one byte
}

// ParseWriteRequest reads a WriteRequest. Data is a part of pdu.
func ParseWriteRequest(pdu []byte) (WriteRequest, error) {
	b, err := body(pdu, byte(WriteDataByIdentifier), 3)
	if err != nil {
		return WriteRequest{}, err
	}
	return WriteRequest{DID(binary.BigEndian.Uint16(b)), b[2:]}, nil
}

// Append appends the request to dst.
func (r WriteRequest) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(append(dst, byte(WriteDataByIdentifier)), uint16(r.DID))
	return append(dst, r.Data...)
}

// WriteAnswer (6E) says what was written.
type WriteAnswer struct {
	DID DID
}

// ParseWriteAnswer reads a WriteAnswer.
func ParseWriteAnswer(pdu []byte) (WriteAnswer, error) {
	b, err := exactly(pdu, byte(WriteDataByIdentifier)+positive, 2)
	if err != nil {
		return WriteAnswer{}, err
	}
	return WriteAnswer{DID(binary.BigEndian.Uint16(b))}, nil
}

// Append appends the answer to dst.
func (a WriteAnswer) Append(dst []byte) []byte {
	return binary.BigEndian.AppendUint16(append(dst, byte(WriteDataByIdentifier)+positive), uint16(a.DID))
}

// Control is what is done with a routine (ISO 14229-1:2020, table 426).
type Control byte

// What is done with a routine.
const (
	StartRoutine   Control = 0x01
	StopRoutine    Control = 0x02
	RoutineResults Control = 0x03
)

// Routines that the standard names (ISO 14229-1:2020, annex F). Their numbers from 0200
// on are the manufacturer's; 0202 and 0203 have become a habit.
const (
	CheckMemory                   RID = 0x0202 // a convention
	CheckProgrammingPreconditions RID = 0x0203 // a convention
	EraseMemory                   RID = 0xFF00
	CheckProgrammingDependencies  RID = 0xFF01
)

// RoutineRequest (31) starts or stops a routine, or asks how it went.
type RoutineRequest struct {
	Control  Control
	Suppress bool
	RID      RID
	Options  []byte
}

// ParseRoutineRequest reads a RoutineRequest. Options is a part of pdu.
func ParseRoutineRequest(pdu []byte) (RoutineRequest, error) {
	b, err := body(pdu, byte(RoutineControl), 3)
	if err != nil {
		return RoutineRequest{}, err
	}
	return RoutineRequest{Control(b[0] &^ suppress), b[0]&suppress != 0, RID(binary.BigEndian.Uint16(b[1:])), b[3:]}, nil
}

// Append appends the request to dst.
func (r RoutineRequest) Append(dst []byte) []byte {
	dst = append(dst, byte(RoutineControl), withSuppress(byte(r.Control), r.Suppress))
	return append(binary.BigEndian.AppendUint16(dst, uint16(r.RID)), r.Options...)
}

// RoutineAnswer (71) says what was done, and what the routine says.
type RoutineAnswer struct {
	Control Control
	RID     RID
	Status  []byte
}

// ParseRoutineAnswer reads a RoutineAnswer. Status is a part of pdu.
func ParseRoutineAnswer(pdu []byte) (RoutineAnswer, error) {
	b, err := body(pdu, byte(RoutineControl)+positive, 3)
	if err != nil {
		return RoutineAnswer{}, err
	}
	return RoutineAnswer{Control(b[0]), RID(binary.BigEndian.Uint16(b[1:])), b[3:]}, nil
}

// Append appends the answer to dst.
func (a RoutineAnswer) Append(dst []byte) []byte {
	dst = append(dst, byte(RoutineControl)+positive, byte(a.Control))
	return append(binary.BigEndian.AppendUint16(dst, uint16(a.RID)), a.Status...)
}
