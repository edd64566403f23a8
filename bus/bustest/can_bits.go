package bustest

import "github.com/interlock-energy/ota/bus/can"

// What follows the CRC and has no stuff bits: CRC delimiter, acknowledgement and its
// delimiter, end of frame, intermission (ISO 11898-1, 10.4.2).
const tailBits = 1 + 1 + 1 + 7 + 3

// Bits is how many bits a frame takes on the bus, until the next may begin: with the stuff
// bits that it needs, its CRC, and the intermission (ISO 11898-1, 10.4 and 10.5). A frame
// of 8 bytes with an 11-bit identifier has 111 to 135.
func Bits(f can.Frame) int {
	bits := unstuffed(f)
	n, run := len(bits), 0
	last := byte(2)
	for _, bit := range bits {
		if bit != last {
			last, run = bit, 1
			continue
		}
		if run++; run == 5 { // the stuff bit is the other, and begins a new run
			n++
			last, run = 1-bit, 1
		}
	}
	return n + tailBits
}

// WorstBits is the most that Bits can be for a frame of this length.
func WorstBits(f can.Frame) int {
	n := len(unstuffed(f))
	return n + (n-1)/4 + tailBits
}

// unstuffed returns the bits from the start of the frame to the end of its CRC.
func unstuffed(f can.Frame) []byte {
	b := make([]byte, 0, 128)
	add := func(value uint32, bits int) {
		for bits--; bits >= 0; bits-- {
			b = append(b, byte(value>>bits&1))
		}
	}
	remote := uint32(0)
	if f.Remote {
		remote = 1
	}
	add(0, 1) // start of frame
	if f.Extended {
		add(f.ID>>18, 11)
		add(3, 2) // SRR, IDE
		add(f.ID, 18)
		add(remote, 1)
		add(0, 2) // reserved
	} else {
		add(f.ID, 11)
		add(remote, 1)
		add(0, 2) // IDE, reserved
	}
	add(uint32(f.Len), 4)
	for _, c := range f.Bytes() {
		add(uint32(c), 8)
	}
	crc := uint32(0) // x^15 + x^14 + x^10 + x^8 + x^7 + x^4 + x^3 + 1 (10.4.2.6)
	for _, bit := range b {
		next := uint32(bit) ^ crc>>14&1
		crc = crc << 1 & 0x7FFF
		if next != 0 {
			crc ^= 0x4599
		}
	}
	add(crc, 15)
	return b
}

// priority is lower for the frame that wins the arbitration: its bits from the identifier
// to the end of the arbitration field. A data frame wins over a remote one, and an 11-bit
// identifier over a 29-bit one that begins with it.
func priority(f can.Frame) uint32 {
	remote := uint32(0)
	if f.Remote {
		remote = 1
	}
	if f.Extended {
		return f.ID>>18<<21 | 1<<20 | 1<<19 | f.ID&(1<<18-1)<<1 | remote
	}
	return f.ID<<21 | remote<<20
}
