package modbus

import (
	"context"
	"encoding/hex"
	"errors"
)

// doing is for the log: no more of a request than what it asks for.
func doing(call Call, pdu []byte) string {
	return "serve Modbus request " + hex.EncodeToString(pdu[:min(len(pdu), 16)]) + " over " + string(call.Transport)
}

// scratch is what answering needs room for, once for each connection.
type scratch struct {
	bits      [MaxReadBits]bool
	registers [MaxReadRegisters]uint16
	values    [MaxReadRegisters]uint16 // FC 23 writes these, and reads the others
	answer    [2 * MaxPDU]byte
}

// serves says whether a handler implements anything.
func serves(h any) bool {
	switch h.(type) {
	case HoldingReader, HoldingWriter, HoldingMasker, InputReader, CoilReader, CoilWriter, DiscreteReader, FileReader, FileWriter, FIFOReader:
		return true
	}
	return false
}

// answer asks the handler and returns the answer's PDU, a view of the scratch. Of a panic nothing
// is left but the exception: the next request of the same connection finds the scratch as any other.
func (s *Server) answer(ctx context.Context, call Call, pdu []byte, room *scratch) (answer []byte) {
	if len(pdu) > 0 {
		call.Function = Function(pdu[0])
	}
	defer s.Crashes.Catch(doing(call, pdu), func(error) {
		answer = AppendException(room.answer[:0], call.Function, DeviceFailure)
	})
	request, err := ParseRequest(pdu)
	if err == nil && s.Authorize != nil && !s.Authorize(call) {
		err = IllegalFunction
	}
	if err == nil {
		answer, err = s.handle(ctx, call, request, pdu, room)
	}
	if err == nil {
		return answer
	}
	exception := DeviceFailure
	if e, ok := errors.AsType[Exception](err); ok && e != 0 {
		exception = e
	}
	return AppendException(room.answer[:0], request.Function, exception)
}

// handle finds the part of the handler that a request is for. What it lacks is
// exception 1.
func (s *Server) handle(ctx context.Context, call Call, r Request, pdu []byte, room *scratch) ([]byte, error) {
	dst, bits, registers := room.answer[:0], room.bits[:min(int(r.Count), MaxReadBits)], room.registers[:min(int(r.Count), MaxReadRegisters)]
	switch r.Function {
	case ReadCoils:
		if h, ok := s.Handler.(CoilReader); ok {
			clear(bits)
			err := h.ReadCoils(ctx, call, r.Address, bits)
			return AppendBits(dst, r.Function, bits), err
		}
	case ReadDiscreteInputs:
		if h, ok := s.Handler.(DiscreteReader); ok {
			clear(bits)
			err := h.ReadDiscreteInputs(ctx, call, r.Address, bits)
			return AppendBits(dst, r.Function, bits), err
		}
	case ReadHolding:
		if h, ok := s.Handler.(HoldingReader); ok {
			clear(registers)
			err := h.ReadHolding(ctx, call, r.Address, registers)
			return AppendRegisters(dst, r.Function, registers), err
		}
	case ReadInput:
		if h, ok := s.Handler.(InputReader); ok {
			clear(registers)
			err := h.ReadInput(ctx, call, r.Address, registers)
			return AppendRegisters(dst, r.Function, registers), err
		}
	case WriteCoil, WriteCoils:
		if h, ok := s.Handler.(CoilWriter); ok {
			if r.Function == WriteCoil {
				bits[0] = r.Value == coilOn
			} else {
				Bits(bits, r.Data)
			}
			return AppendWritten(dst, pdu), h.WriteCoils(ctx, call, r.Address, bits)
		}
	case WriteRegister, WriteRegisters:
		if h, ok := s.Handler.(HoldingWriter); ok {
			if r.Function == WriteRegister {
				registers[0] = r.Value
			} else {
				Registers(registers, r.Data)
			}
			return AppendWritten(dst, pdu), h.WriteHolding(ctx, call, r.Address, registers)
		}
	case MaskWrite:
		if h, ok := s.Handler.(HoldingMasker); ok {
			return AppendWritten(dst, pdu), h.MaskHolding(ctx, call, r.Address, r.And, r.Or)
		}
	case ReadWrite:
		return s.exchange(ctx, call, r, room)
	case ReadFile, WriteFile:
		return s.files(ctx, call, r, pdu, room)
	case ReadFIFO:
		if h, ok := s.Handler.(FIFOReader); ok {
			clear(room.registers[:MaxFIFO])
			n, err := h.ReadFIFO(ctx, call, r.Address, room.registers[:MaxFIFO])
			if err == nil && n > MaxFIFO {
				err = IllegalValue
			}
			if err != nil {
				return nil, err
			}
			return AppendFIFO(dst, room.registers[:max(n, 0)]), nil
		}
	}
	return nil, IllegalFunction
}

// exchange writes, then reads: in this order (V1.1b3, 6.17).
func (s *Server) exchange(ctx context.Context, call Call, r Request, room *scratch) ([]byte, error) {
	reader, reads := s.Handler.(HoldingReader)
	writer, writes := s.Handler.(HoldingWriter)
	if !reads || !writes {
		return nil, IllegalFunction
	}
	values := room.values[:r.WriteCount]
	Registers(values, r.Data)
	if err := writer.WriteHolding(ctx, call, r.WriteAddress, values); err != nil {
		return nil, err
	}
	registers := room.registers[:r.Count]
	clear(registers)
	err := reader.ReadHolding(ctx, call, r.Address, registers)
	return AppendRegisters(room.answer[:0], r.Function, registers), err
}

// files goes through the sub-requests of FC 20 or 21.
func (s *Server) files(ctx context.Context, call Call, r Request, pdu []byte, room *scratch) ([]byte, error) {
	reader, reads := s.Handler.(FileReader)
	writer, writes := s.Handler.(FileWriter)
	if r.Function == ReadFile && !reads || r.Function == WriteFile && !writes {
		return nil, IllegalFunction
	}
	dst := append(room.answer[:0], byte(r.Function), 0)
	for sub := range subRequests(r) {
		registers := room.registers[:sub.count]
		if r.Function == WriteFile {
			Registers(registers, sub.data)
			if err := writer.WriteFile(ctx, call, sub.file, sub.record, registers); err != nil {
				return nil, err
			}
			continue
		}
		clear(registers)
		if err := reader.ReadFile(ctx, call, sub.file, sub.record, registers); err != nil {
			return nil, err
		}
		dst = appendRegisters(append(dst, byte(1+2*len(registers)), fileReference), registers)
	}
	if r.Function == WriteFile {
		return AppendWritten(room.answer[:0], pdu), nil
	}
	dst[1] = byte(len(dst) - 2)
	return dst, nil
}
