package modbus

import "time"

// maxRTU is the longest RTU frame: unit, PDU, CRC (serial guide 2.5.1).
const maxRTU = 1 + MaxPDU + 2

// crcTable holds the CRC of every byte: polynomial 0xA001, which is 0x8005 reflected
// (serial guide 6.2.2).
var crcTable = func() (table [256]uint16) {
	for i := range table {
		crc := uint16(i)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xA001
			} else {
				crc >>= 1
			}
		}
		table[i] = crc
	}
	return table
}()

// CRC is the checksum of an RTU frame, which goes over the wire low byte first.
func CRC(b []byte) uint16 {
	crc := uint16(0xFFFF)
	for _, c := range b {
		crc = crc>>8 ^ crcTable[byte(crc)^c]
	}
	return crc
}

// AppendRTU adds an RTU frame: unit, PDU, CRC.
func AppendRTU(dst []byte, unit byte, pdu []byte) []byte {
	from := len(dst)
	dst = append(append(dst, unit), pdu...)
	crc := CRC(dst[from:])
	return append(dst, byte(crc), byte(crc>>8))
}

// validRTU says whether a frame has a length that can be and the right CRC.
func validRTU(frame []byte) bool {
	n := len(frame)
	if n < 4 || n > maxRTU {
		return false
	}
	crc := CRC(frame[:n-2])
	return frame[n-2] == byte(crc) && frame[n-1] == byte(crc>>8)
}

// Lengths of a frame that begins with b: incomplete if b is too short to say, and
// unknown if only the silence after it can.
const (
	incomplete = 0
	unknown    = -1
)

// rtuRequest is the length of the request that begins with b.
func rtuRequest(b []byte) int {
	if len(b) < 2 {
		return incomplete
	}
	switch Function(b[1]) {
	case ReadCoils, ReadDiscreteInputs, ReadHolding, ReadInput, WriteCoil, WriteRegister:
		return 8
	case WriteCoils, WriteRegisters:
		return countedAt(b, 6, 9)
	case ReadFile, WriteFile:
		return countedAt(b, 2, 5)
	case MaskWrite:
		return 10
	case ReadWrite:
		return countedAt(b, 10, 13)
	case ReadFIFO:
		return 6
	}
	return unknown
}

// rtuAnswer is the length of the answer that begins with b.
func rtuAnswer(b []byte) int {
	if len(b) < 2 {
		return incomplete
	}
	switch f := Function(b[1]); f {
	case ReadCoils, ReadDiscreteInputs, ReadHolding, ReadInput, ReadWrite, ReadFile, WriteFile:
		return countedAt(b, 2, 5)
	case WriteCoil, WriteRegister, WriteCoils, WriteRegisters:
		return 8
	case MaskWrite:
		return 10
	case ReadFIFO:
		if len(b) < 4 {
			return incomplete
		}
		if n := 6 + int(be.Uint16(b[2:])); n <= maxRTU {
			return n
		}
		return unknown
	default:
		if f&failed != 0 {
			return 5
		}
	}
	return unknown
}

// countedAt is the length of a frame with a byte count at b[at], and others around it.
func countedAt(b []byte, at, others int) int {
	if len(b) <= at {
		return incomplete
	}
	if n := others + int(b[at]); n <= maxRTU {
		return n
	}
	return unknown
}

// quiet is the silence after which what has arrived is all there will be. The 1.5 and
// 3.5 characters of the specification cannot be used for this: USB adapters pass on
// bytes in bursts up to 16 ms apart (FTDI's latency timer), and a loaded system adds
// its own.
const quiet = 50 * time.Millisecond

// silence is the time that has to pass between frames: 3.5 characters of 11 bits, and
// 1.75 ms above 19200 baud (serial guide 2.5.1.1).
func silence(baud int) time.Duration {
	if baud <= 0 || baud > 19200 {
		return 1750 * time.Microsecond
	}
	return 7 * charTime(baud) / 2
}

// charTime is how long a character of 11 bits takes; 0 on a line without speed.
func charTime(baud int) time.Duration {
	if baud <= 0 {
		return 0
	}
	return 11 * time.Second / time.Duration(baud)
}

// framer finds the frames in what arrives. A frame that begins where one may, which is
// after silence or right after another, is found by its length, at once. If what is
// there cannot be a frame there, it waits for the silence and takes those frames that
// reach exactly to it. A frame elsewhere is not taken: it would be one that another
// frame, perhaps a damaged one, carries as data.
type framer struct {
	buf     [4 * maxRTU]byte
	n       int
	frame   [maxRTU]byte
	lengths func(b []byte) (int, int) // of the frame that begins with b; two if it may be either
}

// put adds bytes. If there is no room, nothing but noise can be in the way, and goes.
func (f *framer) put(b []byte) {
	if len(b) > len(f.buf)-f.n {
		f.n = 0
		b = b[max(0, len(b)-len(f.buf)):]
	}
	f.n += copy(f.buf[f.n:], b)
}

func (f *framer) reset() { f.n = 0 }

// next takes the next frame, without its CRC, off what has arrived; nil: there is none
// yet. silent says that the line has been quiet. The frame is a view until the next call.
func (f *framer) next(silent bool) []byte {
	b := f.buf[:f.n]
	n := f.whole(b)
	if n == 0 && silent && validRTU(b) {
		n = len(b) // a function of which the length is not known
	}
	if n == 0 && silent {
		from := 1
		for from < len(b) && !f.chain(b[from:]) {
			from++
		}
		if from >= len(b) {
			f.n = 0
			return nil
		}
		b = b[from:]
		n = f.whole(b)
	}
	if n == 0 {
		return nil
	}
	copy(f.frame[:], b[:n])
	f.n = copy(f.buf[:], b[n:])
	return f.frame[:n-2]
}

// whole is the length of the frame that b begins with, 0 if it begins with none (yet).
func (f *framer) whole(b []byte) int {
	one, two := f.lengths(b)
	for _, n := range [...]int{one, two} {
		if n > 0 && n <= len(b) && validRTU(b[:n]) {
			return n
		}
	}
	return 0
}

// chain says whether b is nothing but frames.
func (f *framer) chain(b []byte) bool {
	for len(b) > 0 {
		n := f.whole(b)
		if n == 0 {
			return false
		}
		b = b[n:]
	}
	return true
}
