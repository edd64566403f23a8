package modbus

import (
	"encoding/binary"
	"fmt"
)

var be = binary.BigEndian // all of Modbus but the CRC (V1.1b3, 4.2)

// FileRange names records of a file, for FC 20.
type FileRange struct {
	File   uint16 // 1 to 65535
	Record uint16 // 0 to MaxRecord
	Count  uint16 // registers: 1 to MaxFileRead
}

// FileRecords are records of a file with what they hold, for FC 21.
type FileRecords struct {
	File   uint16   // 1 to 65535
	Record uint16   // 0 to MaxRecord
	Values []uint16 // 1 to MaxFileWrite
}

// limits of one request, so that client and server have the same.
func checkCount(what string, count, most int) error {
	if count < 1 || count > most {
		return fmt.Errorf("%w: got %d %s, want 1 to %d", ErrRequest, count, what, most)
	}
	return nil
}

func checkRange(address uint16, count int) error {
	if int(address)+count > 1<<16 {
		return fmt.Errorf("%w: %d from address %d pass the last address, 65535", ErrRequest, count, address)
	}
	return nil
}

func checkFile(file, record uint16, count, most int) error {
	switch {
	case file == 0:
		return fmt.Errorf("%w: got file 0, want 1 to 65535", ErrRequest)
	case int(record)+count > MaxRecord+1:
		return fmt.Errorf("%w: %d records from %d of file %d pass the last one, %d", ErrRequest, count, record, file, MaxRecord)
	}
	return checkCount("registers", count, most)
}

// The Append functions add a request's PDU to dst. On an error, which wraps ErrRequest,
// dst is returned as it was.

// AppendRead adds a request to read: FC 1 to 4.
func AppendRead(dst []byte, f Function, address, count uint16) ([]byte, error) {
	most, what := MaxReadRegisters, "registers"
	switch f {
	case ReadCoils, ReadDiscreteInputs:
		most, what = MaxReadBits, "bits"
	case ReadHolding, ReadInput:
	default:
		return dst, fmt.Errorf("%w: %v is none of FC 1 to 4", ErrRequest, f)
	}
	if err := checkCount(what, int(count), most); err != nil {
		return dst, err
	}
	if err := checkRange(address, int(count)); err != nil {
		return dst, err
	}
	return appendHead(dst, f, address, count), nil
}

// appendHead adds what most PDUs begin with: the function and two numbers.
func appendHead(dst []byte, f Function, a, b uint16) []byte {
	return append(dst, byte(f), byte(a>>8), byte(a), byte(b>>8), byte(b))
}

// AppendWriteCoil adds FC 5.
func AppendWriteCoil(dst []byte, address uint16, on bool) []byte {
	value := uint16(0)
	if on {
		value = coilOn
	}
	return appendHead(dst, WriteCoil, address, value)
}

// AppendWriteRegister adds FC 6.
func AppendWriteRegister(dst []byte, address, value uint16) []byte {
	return appendHead(dst, WriteRegister, address, value)
}

// AppendWriteCoils adds FC 15: 1 to MaxWriteBits values.
func AppendWriteCoils(dst []byte, address uint16, values []bool) ([]byte, error) {
	if err := checkCount("coils", len(values), MaxWriteBits); err != nil {
		return dst, err
	}
	if err := checkRange(address, len(values)); err != nil {
		return dst, err
	}
	dst = appendHead(dst, WriteCoils, address, uint16(len(values)))
	return appendBits(dst, values), nil
}

// AppendWriteRegisters adds FC 16: 1 to MaxWriteRegisters values.
func AppendWriteRegisters(dst []byte, address uint16, values []uint16) ([]byte, error) {
	if err := checkCount("registers", len(values), MaxWriteRegisters); err != nil {
		return dst, err
	}
	if err := checkRange(address, len(values)); err != nil {
		return dst, err
	}
	dst = appendHead(dst, WriteRegisters, address, uint16(len(values)))
	return appendRegisters(append(dst, byte(2*len(values))), values), nil
}

// AppendMaskWrite adds FC 22: the register becomes (it AND and) OR (or AND NOT and).
func AppendMaskWrite(dst []byte, address, and, or uint16) []byte {
	dst = appendHead(dst, MaskWrite, address, and)
	return be.AppendUint16(dst, or)
}

// AppendReadWrite adds FC 23: writes 1 to MaxExchange values, then reads 1 to
// MaxReadRegisters registers.
func AppendReadWrite(dst []byte, read, count, write uint16, values []uint16) ([]byte, error) {
	if err := checkCount("registers to read", int(count), MaxReadRegisters); err != nil {
		return dst, err
	}
	if err := checkCount("registers to write", len(values), MaxExchange); err != nil {
		return dst, err
	}
	if err := checkRange(read, int(count)); err != nil {
		return dst, err
	}
	if err := checkRange(write, len(values)); err != nil {
		return dst, err
	}
	dst = appendHead(dst, ReadWrite, read, count)
	dst = be.AppendUint16(be.AppendUint16(dst, write), uint16(len(values)))
	return appendRegisters(append(dst, byte(2*len(values))), values), nil
}

// AppendReadFIFO adds FC 24.
func AppendReadFIFO(dst []byte, address uint16) []byte {
	return be.AppendUint16(append(dst, byte(ReadFIFO)), address)
}

// AppendReadFile adds FC 20: 1 to 35 ranges, whose answer fits 245 bytes.
func AppendReadFile(dst []byte, ranges ...FileRange) ([]byte, error) {
	answer := 0
	for _, r := range ranges {
		if err := checkFile(r.File, r.Record, int(r.Count), MaxFileRead); err != nil {
			return dst, err
		}
		answer += 2 + 2*int(r.Count)
	}
	size := subRequestSize * len(ranges)
	if size == 0 || size > maxFileAnswer || answer > maxFileAnswer {
		return dst, fmt.Errorf("%w: %d file ranges are %d bytes, their answer %d; want at least one range, and at most %d bytes",
			ErrRequest, len(ranges), size, answer, maxFileAnswer)
	}
	dst = append(dst, byte(ReadFile), byte(size))
	for _, r := range ranges {
		dst = appendHead(dst, fileReference, r.File, r.Record)
		dst = be.AppendUint16(dst, r.Count)
	}
	return dst, nil
}

// AppendWriteFile adds FC 21: records that together fit 251 bytes.
func AppendWriteFile(dst []byte, records ...FileRecords) ([]byte, error) {
	size := 0
	for _, r := range records {
		if err := checkFile(r.File, r.Record, len(r.Values), MaxFileWrite); err != nil {
			return dst, err
		}
		size += subRequestSize + 2*len(r.Values)
	}
	if size == 0 || size > maxFileRequest {
		return dst, fmt.Errorf("%w: %d file records are %d bytes, want at least one record, and at most %d bytes",
			ErrRequest, len(records), size, maxFileRequest)
	}
	dst = append(dst, byte(WriteFile), byte(size))
	for _, r := range records {
		dst = appendHead(dst, fileReference, r.File, r.Record)
		dst = appendRegisters(be.AppendUint16(dst, uint16(len(r.Values))), r.Values)
	}
	return dst, nil
}

// Request is a request's PDU, taken apart. Data is a view of it.
type Request struct {
	Function     Function
	Address      uint16 // first bit or register; FC 24: the queue's pointer
	Count        uint16 // bits or registers; FC 23: to read
	Value        uint16 // FC 5 (0 or 0xFF00) and 6
	And, Or      uint16 // FC 22
	WriteAddress uint16 // FC 23
	WriteCount   uint16 // FC 23
	Data         []byte // FC 15: bits, see Bits; 16, 23: registers, see Registers; 20, 21: sub-requests
}

// ParseRequest takes a request apart and checks it against the limits. The error is the
// Exception to answer with.
func ParseRequest(pdu []byte) (Request, error) {
	if len(pdu) == 0 || len(pdu) > MaxPDU {
		return Request{}, IllegalValue
	}
	r := Request{Function: Function(pdu[0])}
	switch r.Function {
	case ReadCoils, ReadDiscreteInputs, ReadHolding, ReadInput, WriteCoil, WriteRegister, WriteCoils, WriteRegisters, MaskWrite, ReadWrite:
		if len(pdu) < 5 {
			return r, IllegalValue
		}
		r.Address, r.Count = be.Uint16(pdu[1:]), be.Uint16(pdu[3:])
		return r, r.parse(pdu[5:])
	case ReadFIFO:
		if len(pdu) != 3 {
			return r, IllegalValue
		}
		r.Address = be.Uint16(pdu[1:])
		return r, nil
	case ReadFile, WriteFile:
		if len(pdu) < 2 || int(pdu[1]) != len(pdu)-2 {
			return r, IllegalValue
		}
		r.Data = pdu[2:]
		return r, r.parseFiles()
	}
	return r, IllegalFunction
}

// parse reads what follows address and count. A count that cannot be is exception 3,
// an address that cannot be exception 2, in this order (V1.1b3, state diagrams of 6).
func (r *Request) parse(rest []byte) error {
	most := MaxReadRegisters
	switch r.Function {
	case WriteCoil:
		r.Value, r.Count = r.Count, 1
		if len(rest) != 0 || r.Value != 0 && r.Value != coilOn {
			return IllegalValue
		}
		return nil
	case WriteRegister:
		r.Value, r.Count = r.Count, 1
		if len(rest) != 0 {
			return IllegalValue
		}
		return nil
	case MaskWrite:
		if len(rest) != 2 {
			return IllegalValue
		}
		r.And, r.Or, r.Count = r.Count, be.Uint16(rest), 1
		return nil
	case ReadWrite:
		if len(rest) < 5 {
			return IllegalValue
		}
		r.WriteAddress, r.WriteCount = be.Uint16(rest), be.Uint16(rest[2:])
		r.Data = rest[5:]
		if r.WriteCount < 1 || r.WriteCount > MaxExchange || int(rest[4]) != 2*int(r.WriteCount) || len(r.Data) != 2*int(r.WriteCount) {
			return IllegalValue
		}
	case WriteCoils, WriteRegisters:
		size := 2 * int(r.Count)
		most = MaxWriteRegisters
		if r.Function == WriteCoils {
			size, most = (int(r.Count)+7)/8, MaxWriteBits
		}
		if len(rest) < 1 || int(rest[0]) != size || len(rest)-1 != size {
			return IllegalValue
		}
		r.Data = rest[1:]
	default:
		if len(rest) != 0 {
			return IllegalValue
		}
		if r.Function == ReadCoils || r.Function == ReadDiscreteInputs {
			most = MaxReadBits
		}
	}
	if r.Count < 1 || int(r.Count) > most {
		return IllegalValue
	}
	if int(r.Address)+int(r.Count) > 1<<16 || int(r.WriteAddress)+int(r.WriteCount) > 1<<16 {
		return IllegalAddress
	}
	return nil
}

// parseFiles checks the sub-requests: what does not add up is exception 3, a file,
// record or reference type that cannot be exception 2 (V1.1b3, 6.14, 6.15).
func (r *Request) parseFiles() error {
	least, most := subRequestSize, maxFileAnswer
	if r.Function == WriteFile {
		least, most = subRequestSize+2, maxFileRequest
	}
	if len(r.Data) < least || len(r.Data) > most {
		return IllegalValue
	}
	var wrong error
	answer := 0
	for data := r.Data; len(data) > 0; {
		sub, rest, ok := cutSubRequest(r.Function, data)
		if !ok {
			return IllegalValue
		}
		data = rest
		limit := MaxFileRead
		if r.Function == WriteFile {
			limit = MaxFileWrite
		}
		answer += 2 + 2*int(sub.count)
		if sub.reference != fileReference || sub.file == 0 || int(sub.count) > limit || int(sub.record)+int(sub.count) > MaxRecord+1 {
			wrong = IllegalAddress
		}
		if sub.count == 0 {
			return IllegalValue
		}
	}
	if wrong == nil && r.Function == ReadFile && answer > maxFileAnswer {
		return IllegalValue
	}
	return wrong
}

type subRequest struct {
	reference           byte
	file, record, count uint16
	data                []byte // FC 21
}

func cutSubRequest(f Function, b []byte) (sub subRequest, rest []byte, ok bool) {
	if len(b) < subRequestSize {
		return sub, nil, false
	}
	sub = subRequest{reference: b[0], file: be.Uint16(b[1:]), record: be.Uint16(b[3:]), count: be.Uint16(b[5:])}
	rest = b[subRequestSize:]
	if f == WriteFile {
		if len(rest) < 2*int(sub.count) {
			return sub, nil, false
		}
		sub.data, rest = rest[:2*int(sub.count)], rest[2*int(sub.count):]
	}
	return sub, rest, true
}

func appendRegisters(dst []byte, values []uint16) []byte {
	for _, v := range values {
		dst = append(dst, byte(v>>8), byte(v))
	}
	return dst
}

// appendBits adds the byte count and the bits, the first one lowest (V1.1b3, 6.1).
func appendBits(dst []byte, values []bool) []byte {
	size := (len(values) + 7) / 8
	dst = append(dst, byte(size))
	for i := range size {
		var b byte
		for j, on := range values[8*i : min(8*i+8, len(values))] {
			if on {
				b |= 1 << j
			}
		}
		dst = append(dst, b)
	}
	return dst
}

// Registers puts the registers of a request or an answer into dst, which has to be of
// the right length.
func Registers(dst []uint16, data []byte) {
	for i := range dst {
		dst[i] = be.Uint16(data[2*i:])
	}
}

// Bits puts the bits of a request or an answer into dst, which has to be of the right
// length.
func Bits(dst []bool, data []byte) {
	for i := range dst {
		dst[i] = data[i/8]>>(i%8)&1 != 0
	}
}
