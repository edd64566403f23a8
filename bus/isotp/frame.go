package isotp

import (
	"encoding/binary"

	"github.com/interlock-energy/ota/bus/can"
)

// kind of a frame: the upper four bits of its protocol control information (ISO 15765-2,
// table 9).
type kind byte

const (
	single      kind = 0
	first       kind = 1
	consecutive kind = 2
	flow        kind = 3
)

// status is what a flow control frame says (ISO 15765-2, table 18).
type status byte

const (
	proceed  status = 0
	wait     status = 1
	overflow status = 2
)

// mostShort is the longest PDU that 12 bits of a first frame announce; longer ones take
// the escape sequence of 32 bits.
const mostShort = 0xFFF

// part is what a frame says.
type part struct {
	kind  kind
	size  uint32 // of the PDU: single, first
	sn    byte   // sequence number, 0 to 15: consecutive
	flow  status
	block byte   // BS: flow
	stmin byte   // as it was sent: flow
	data  []byte // a part of the frame
}

// parse reads a data frame whose information starts at byte offset, which is 0, or 1
// after an address. A frame that the standard says to ignore is not ok: too short for
// what it announces, or a length in a form that is not the shortest one.
func parse(f *can.Frame, offset int) (p part, ok bool) {
	b := f.Data[:min(f.Len, can.MaxLen)]
	if f.Remote || len(b) <= offset {
		return p, false
	}
	b = b[offset:]
	full := len(b) == can.MaxLen-offset // frames before the last are (9.6.2)
	switch p.kind = kind(b[0] >> 4); p.kind {
	case single:
		n := int(b[0] & 0x0F)
		if n == 0 || n >= len(b) {
			return p, false
		}
		p.size, p.data = uint32(n), b[1:1+n]
	case first:
		if !full {
			return p, false
		}
		p.size, p.data = uint32(b[0]&0x0F)<<8|uint32(b[1]), b[2:]
		if p.size == 0 {
			p.size, p.data = binary.BigEndian.Uint32(b[2:]), b[6:]
			if p.size <= mostShort {
				return p, false
			}
		}
		if int64(p.size) < int64(len(b)) { // a single frame holds it (9.6.3.2)
			return p, false
		}
	case consecutive:
		p.sn, p.data = b[0]&0x0F, b[1:]
	case flow:
		if len(b) < 3 {
			return p, false
		}
		p.flow, p.block, p.stmin = status(b[0]&0x0F), b[1], b[2]
	default:
		return p, false
	}
	return p, true
}

// format makes the frames that one end sends.
type format struct {
	id     uint32
	long   bool
	bytes  bool
	target byte // with bytes
	pad    byte
	filled bool
}

func newFormat(a Address, s settings) format {
	return format{id: a.tx, long: a.long, bytes: a.bytes, target: a.txByte, pad: s.pad, filled: !s.Unpadded}
}

// offset of the protocol control information.
func (w format) offset() int {
	if w.bytes {
		return 1
	}
	return 0
}

// most is how many bytes a single frame holds; a consecutive one holds as many.
func (w format) most() int { return can.MaxLen - 1 - w.offset() }

// frame makes one of information and as much of data as fits, and returns how much.
func (w format) frame(data []byte, information ...byte) (can.Frame, int) {
	f := can.Frame{ID: w.id, Extended: w.long}
	at := w.offset()
	if w.bytes {
		f.Data[0] = w.target
	}
	at += copy(f.Data[at:], information)
	n := copy(f.Data[at:], data)
	at += n
	if w.filled {
		for ; at < can.MaxLen; at++ {
			f.Data[at] = w.pad
		}
	}
	f.Len = uint8(at)
	return f, n
}

func (w format) single(pdu []byte) can.Frame {
	f, _ := w.frame(pdu, byte(len(pdu)))
	return f
}

func (w format) first(pdu []byte) (can.Frame, int) {
	if n := len(pdu); n <= mostShort {
		return w.frame(pdu, byte(first)<<4|byte(n>>8), byte(n))
	}
	n := uint32(len(pdu))
	return w.frame(pdu, byte(first)<<4, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

func (w format) consecutive(sn byte, rest []byte) (can.Frame, int) {
	return w.frame(rest, byte(consecutive)<<4|sn&0x0F)
}

func (w format) flow(s status, block int, stmin byte) can.Frame {
	f, _ := w.frame(nil, byte(flow)<<4|byte(s), byte(block), stmin)
	return f
}
