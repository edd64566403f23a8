package overmodbus

import (
	"math/bits"

	"github.com/interlock-energy/ota/source/modbus/profile"
)

// blocks is what this side knows of the blocks of a transfer: which the device has, by its
// acknowledgement or its word, and which are on their way.
type blocks struct {
	size   int64
	count  uint32
	have   bitset
	flying map[uint32]bool
	next   uint32 // all before it are there or on their way

	// doubt says that of the blocks behind the device's first missing one it is not known
	// which are there: that one alone may be sent.
	doubt bool
}

func newBlocks(size int64) blocks {
	count := uint32(profile.Blocks(size))
	return blocks{size: size, count: count, have: make(bitset, (count+63)/64), flying: map[uint32]bool{}}
}

// learn takes over what a status says while nothing is on its way: all blocks before the
// first missing one are there, and so many in all. If it stays in doubt which of those
// behind it are there, the bitmap tells; without one, doubt remains.
func (b *blocks) learn(missing, received uint32) {
	missing = min(missing, b.count)
	received = max(received, missing)
	b.have.fill(missing)
	b.have.set(missing, false) // even if it was acknowledged once: the device has lost it
	b.next = missing
	known := b.have.count(missing, b.count)
	if received == missing && known > 0 {
		b.have.only(missing)
		known = 0
	}
	b.doubt = known != received-missing
}

// more says whether there is a block to take.
func (b *blocks) more(limit uint32) bool {
	limit = min(limit, b.count)
	for b.next < limit && (b.have.get(b.next) || b.flying[b.next]) {
		b.next++
	}
	return b.next < limit
}

// take returns the next block that is certainly missing and below limit, and counts it as
// being on its way.
func (b *blocks) take(limit uint32) (uint32, bool) {
	if !b.more(limit) {
		return 0, false
	}
	n := b.next
	b.flying[n] = true
	return n, true
}

// landed says how one that was on its way ended.
func (b *blocks) landed(n uint32, there bool) {
	delete(b.flying, n)
	b.have.set(n, there)
	if !there {
		b.next = min(b.next, n)
	}
}

// done is how many bytes the device has.
func (b *blocks) done() int64 {
	return min(b.size, int64(b.have.count(0, b.count))*profile.BlockSize)
}

// bitset has a bit for each block; those beyond its end are not set and cannot be.
type bitset []uint64

func (s bitset) get(n uint32) bool { return int(n/64) < len(s) && s[n/64]>>(n%64)&1 != 0 }

func (s bitset) set(n uint32, yes bool) {
	switch {
	case int(n/64) >= len(s):
	case yes:
		s[n/64] |= 1 << (n % 64)
	default:
		s[n/64] &^= 1 << (n % 64)
	}
}

// only sets the bits below end, and no others.
func (s bitset) only(end uint32) {
	clear(s)
	s.fill(end)
}

// fill sets the bits below end.
func (s bitset) fill(end uint32) {
	for n := uint32(0); n < end; {
		if n%64 == 0 && n+64 <= end {
			s[n/64] = ^uint64(0)
			n += 64
			continue
		}
		s.set(n, true)
		n++
	}
}

// count is how many of the bits from first on and below end are set.
func (s bitset) count(first, end uint32) uint32 {
	total := uint32(0)
	for n := first; n < end; {
		if n%64 == 0 && n+64 <= end {
			total += uint32(bits.OnesCount64(s[n/64]))
			n += 64
			continue
		}
		if s.get(n) {
			total++
		}
		n++
	}
	return total
}
