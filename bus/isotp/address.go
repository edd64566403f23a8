package isotp

import (
	"fmt"

	"github.com/interlock-energy/ota/bus/can"
)

// Address is how two peers find each other: the identifiers that this end sends and
// receives with. Make one with the functions below. Two are the same if == says so.
type Address struct {
	tx, rx         uint32
	long           bool // identifiers of 29 bits
	functional     bool // one direction only, and single frames
	sends          bool // the direction of a functional address
	bytes          bool // extended addressing
	txByte, rxByte byte
}

// Normal is normal addressing with two identifiers of 11 bits, such as 0x7E0 and 0x7E8
// for the tester of ISO 15765-4.
func Normal(tx, rx uint32) Address { return Address{tx: tx, rx: rx} }

// Normal29 is normal addressing with two identifiers of 29 bits.
func Normal29(tx, rx uint32) Address { return Address{tx: tx, rx: rx, long: true} }

// Fixed29 is normal fixed addressing (ISO 15765-2, 10.3.2): 0x18DA, the address of the
// target, and the address of the source, which is this end.
func Fixed29(target, source byte) Address {
	return Normal29(fixed(0x18DA, target, source), fixed(0x18DA, source, target))
}

// Functional sends to all that listen to an identifier of 11 bits, such as 0x7DF, single
// frames only. It receives nothing: answers come from each peer's own address. Its
// [Address.Peer] receives and sends nothing.
func Functional(tx uint32) Address {
	return Address{tx: tx, rx: tx, functional: true, sends: true}
}

// Functional29 is Functional for normal fixed addressing: 0x18DB, the address of the
// group, such as 0x33, and the address of the source, which is this end.
func Functional29(group, source byte) Address {
	a := Functional(fixed(0x18DB, group, source))
	a.long = true
	return a
}

func fixed(prefix uint32, target, source byte) uint32 {
	return prefix<<16 | uint32(target)<<8 | uint32(source)
}

// WithBytes is extended addressing (ISO 15765-2, 10.3.4): each frame starts with the
// address of its target, of which several share an identifier. The same bytes are the
// address extension of mixed addressing.
func (a Address) WithBytes(tx, rx byte) Address {
	a.bytes, a.txByte, a.rxByte = true, tx, rx
	return a
}

// Peer is the same seen from the other end.
func (a Address) Peer() Address {
	a.tx, a.rx = a.rx, a.tx
	a.txByte, a.rxByte = a.rxByte, a.txByte
	if a.functional {
		a.sends = !a.sends
	}
	return a
}

// String is such as "7E0/7E8": what is sent, and what is received.
func (a Address) String() string {
	one := func(id uint32, b byte) string {
		s := fmt.Sprintf("%03X", id)
		if a.long {
			s = fmt.Sprintf("%08X", id)
		}
		if a.bytes {
			s += fmt.Sprintf(":%02X", b)
		}
		return s
	}
	switch {
	case !a.functional:
		return one(a.tx, a.txByte) + "/" + one(a.rx, a.rxByte)
	case a.sends:
		return one(a.tx, a.txByte) + "/-"
	default:
		return "-/" + one(a.rx, a.rxByte)
	}
}

// validate says what keeps the address from being one.
func (a Address) validate() error {
	most := uint32(can.MaxStandard)
	if a.long {
		most = can.MaxExtended
	}
	switch {
	case a.tx > most || a.rx > most:
		return fmt.Errorf("address %v: want identifiers of at most %#x", a, most)
	case !a.functional && a.tx == a.rx && a.txByte == a.rxByte:
		return fmt.Errorf("address %v: want two identifiers that differ", a)
	}
	return nil
}

// receives reports whether anything comes from there.
func (a Address) receives() bool { return !a.functional || !a.sends }
