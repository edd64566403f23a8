package modbus

import (
	"bytes"
	"fmt"
)

// AppendException adds the answer that refuses a request.
func AppendException(dst []byte, f Function, e Exception) []byte {
	return append(dst, byte(f|failed), byte(e))
}

// AppendBits adds the answer to FC 1 or 2: up to MaxReadBits values.
func AppendBits(dst []byte, f Function, values []bool) []byte {
	return appendBits(append(dst, byte(f)), values)
}

// AppendRegisters adds the answer to FC 3, 4 or 23: up to MaxReadRegisters values.
func AppendRegisters(dst []byte, f Function, values []uint16) []byte {
	return appendRegisters(append(dst, byte(f), byte(2*len(values))), values)
}

// AppendFIFO adds the answer to FC 24: up to MaxFIFO values.
func AppendFIFO(dst []byte, values []uint16) []byte {
	dst = appendHead(dst, ReadFIFO, uint16(2+2*len(values)), uint16(len(values)))
	return appendRegisters(dst, values)
}

// AppendWritten adds the answer to a write other than FC 23: the request, or what it
// began with. pdu is the request.
func AppendWritten(dst []byte, pdu []byte) []byte {
	if f := Function(pdu[0]); f == WriteCoils || f == WriteRegisters {
		pdu = pdu[:5]
	}
	return append(dst, pdu...)
}

// ParseAnswer checks that an answer fits the request and returns its data as a view:
// bits of FC 1 and 2, registers of FC 3, 4, 23 and 24, and of FC 20 what follows the
// length (see FileData). Writes have none. The error is the Exception that the server
// answered, or wraps ErrAnswer. pdu is the request, and a valid one.
func ParseAnswer(pdu, answer []byte) ([]byte, error) {
	request, err := ParseRequest(pdu)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	f := request.Function
	if len(answer) < 2 {
		return nil, fmt.Errorf("%w: got %d bytes, want at least 2", ErrAnswer, len(answer))
	}
	if Function(answer[0]) == f|failed {
		if len(answer) != 2 || answer[1] == 0 {
			return nil, fmt.Errorf("%w: got an exception of %d bytes, % x", ErrAnswer, len(answer), answer[:min(len(answer), 8)])
		}
		return nil, Exception(answer[1])
	}
	if Function(answer[0]) != f {
		return nil, fmt.Errorf("%w: got %v (%d), want %v (%d)", ErrAnswer, Function(answer[0]), answer[0], f, byte(f))
	}
	switch f {
	case ReadCoils, ReadDiscreteInputs:
		return counted(answer, (int(request.Count)+7)/8)
	case ReadHolding, ReadInput, ReadWrite:
		return counted(answer, 2*int(request.Count))
	case WriteCoils, WriteRegisters:
		return nil, echoed(answer, pdu[:5])
	case ReadFIFO:
		return parseFIFO(answer)
	case ReadFile:
		return parseFileAnswer(request, answer)
	}
	return nil, echoed(answer, pdu)
}

// counted returns the data after a function code and a byte count.
func counted(answer []byte, want int) ([]byte, error) {
	if int(answer[1]) != want || len(answer)-2 != want {
		return nil, fmt.Errorf("%w: got a byte count of %d and %d bytes, want %d", ErrAnswer, answer[1], len(answer)-2, want)
	}
	return answer[2:], nil
}

func echoed(answer, want []byte) error {
	if !bytes.Equal(answer, want) {
		return fmt.Errorf("%w: got % x, want % x", ErrAnswer, answer[:min(len(answer), 12)], want[:min(len(want), 12)])
	}
	return nil
}

func parseFIFO(answer []byte) ([]byte, error) {
	if len(answer) < 5 {
		return nil, fmt.Errorf("%w: got %d bytes, want at least 5", ErrAnswer, len(answer))
	}
	size, count := int(be.Uint16(answer[1:])), int(be.Uint16(answer[3:]))
	if count > MaxFIFO || size != 2+2*count || len(answer) != 3+size {
		return nil, fmt.Errorf("%w: got %d bytes with a byte count of %d and %d registers, want at most %d", ErrAnswer, len(answer), size, count, MaxFIFO)
	}
	return answer[5:], nil
}

func parseFileAnswer(request Request, answer []byte) ([]byte, error) {
	if int(answer[1]) != len(answer)-2 {
		return nil, fmt.Errorf("%w: got a length of %d and %d bytes", ErrAnswer, answer[1], len(answer)-2)
	}
	data := answer[2:]
	for sub, rest := range subRequests(request) {
		size := 2 * int(sub.count)
		if len(data) < 2+size || int(data[0]) != 1+size || data[1] != fileReference {
			return nil, fmt.Errorf("%w: records %d to %d of file %d: got % x, want %02x %02x and %d bytes", ErrAnswer,
				sub.record, int(sub.record)+int(sub.count)-1, sub.file, data[:min(len(data), 2)], 1+size, fileReference, size)
		}
		data = data[2+size:]
		if len(rest) == 0 && len(data) > 0 {
			return nil, fmt.Errorf("%w: got %d bytes more than were asked for", ErrAnswer, len(data))
		}
	}
	return answer[2:], nil
}

// subRequests goes through those of a request that was parsed, each with what follows it.
func subRequests(r Request) func(yield func(subRequest, []byte) bool) {
	return func(yield func(subRequest, []byte) bool) {
		for data := r.Data; len(data) > 0; {
			sub, rest, ok := cutSubRequest(r.Function, data)
			if !ok || !yield(sub, rest) {
				return
			}
			data = rest
		}
	}
}

// FileData cuts the registers of the first record off the data of an answer to FC 20,
// which ParseAnswer has checked; see Registers.
func FileData(data []byte) (registers, rest []byte) {
	size := int(data[0]) - 1
	return data[2 : 2+size], data[2+size:]
}
