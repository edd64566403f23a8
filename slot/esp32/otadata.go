package esp32

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/interlock-energy/ota/slot/esp32/image"
)

// State is what an entry of otadata says of its slot: esp_ota_img_states_t of
// esp_flash_partitions.h. The entry's CRC does not cover it.
type State uint32

// The states. All others count as Undefined does.
const (
	New           State = 0 // to be booted once; the bootloader makes it PendingVerify
	PendingVerify State = 1 // booted, and not marked good; the next start makes it Aborted
	Valid         State = 2 // marked good
	Invalid       State = 3 // given back by the application
	Aborted       State = 4 // given back by the bootloader
	Undefined     State = math.MaxUint32
)

// String returns the name as the vendor writes it.
func (s State) String() string {
	if s == Undefined {
		return "UNDEFINED"
	}
	if names := []string{"NEW", "PENDING_VERIFY", "VALID", "INVALID", "ABORTED"}; uint64(s) < uint64(len(names)) {
		return names[s]
	}
	return fmt.Sprintf("unknown state %#x", uint32(s))
}

// Layout of esp_ota_select_entry_t, in bytes: esp_flash_partitions.h.
const (
	entrySize = 32
	entryCRC  = 28 // offset; the last word
	emptySeq  = math.MaxUint32
)

// lastSeq is the sequence number from which on numbers start anew at 1. The
// vendor's code does not: it takes 2^31 rounds to find the last ones, and then
// writes the one that means "empty".
const lastSeq = emptySeq - 1<<16

// Entry is one of the two entries of otadata.
type Entry struct {
	Seq   uint32   // the greater one counts; it says which slot, too
	Label [20]byte // not used by the vendor; see evidence
	State State
	CRC   uint32 // of Seq alone
}

// blank is an entry in erased flash.
var blank = Entry{emptySeq, [20]byte([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")), Undefined, math.MaxUint32}

// NewEntry returns an entry with the right CRC, as the vendor's code makes it.
func NewEntry(seq uint32, state State) Entry {
	e := blank
	e.Seq, e.State, e.CRC = seq, state, entrySum(seq)
	return e
}

// entrySum is esp_rom_crc32_le(UINT32_MAX, &seq, 4).
func entrySum(seq uint32) uint32 {
	return crc32.Update(math.MaxUint32, crc32.IEEETable, binary.LittleEndian.AppendUint32(nil, seq))
}

// ParseEntry reads an entry from its first 32 bytes. Whatever they are is an
// entry, if not a valid one; of fewer bytes it is an erased one.
func ParseEntry(b []byte) Entry {
	if len(b) < entrySize {
		return blank
	}
	le := binary.LittleEndian
	return Entry{Seq: le.Uint32(b), Label: [20]byte(b[4:24]), State: State(le.Uint32(b[24:])), CRC: le.Uint32(b[entryCRC:])}
}

// Encode returns the 32 bytes of an entry.
func (e Entry) Encode() []byte {
	le := binary.LittleEndian
	b := append(le.AppendUint32(nil, e.Seq), e.Label[:]...)
	return le.AppendUint32(le.AppendUint32(b, uint32(e.State)), e.CRC)
}

// Whole reports whether there is an entry, and its CRC is right.
func (e Entry) Whole() bool { return e.Seq != emptySeq && e.CRC == entrySum(e.Seq) }

// Valid reports whether the bootloader heeds the entry:
// bootloader_common_ota_select_valid of bootloader_common_loader.c.
func (e Entry) Valid() bool { return e.Whole() && e.State != Invalid && e.State != Aborted }

// refused is bootloader_common_ota_select_invalid, which is not the opposite of Valid.
func (e Entry) refused() bool { return e.Seq == emptySeq || e.State == Invalid || e.State == Aborted }

// Slot returns which of n slots the entry is about, 0 for ota_0. n must not be 0.
func (e Entry) Slot(n int) int { return int((e.Seq - 1) % uint32(n)) } // unsigned, as in the vendor's code

// seqFor returns the lowest sequence number above cur that is about slot of n, which
// is at most 16; from lastSeq on it starts anew with the lowest of all.
func seqFor(slot, n int, cur uint32) uint32 {
	if cur > lastSeq {
		cur = 0
	}
	m, seq := uint32(n), cur+1
	return seq + (uint32(slot)+1+m-seq%m)%m
}

// control is the bootloader's choice as it is on the medium.
type control struct {
	entry [2]Entry
	low   [2]bool // anti-rollback keeps the bootloader from what the entry is about
	n     int     // slots, at least 1
	anti  bool    // the bootloader has anti-rollback
	label [20]byte
}

// usable reports whether the bootloader may choose entry i.
func (c *control) usable(i int) bool { return c.entry[i].Valid() && !c.low[i] }

// active returns the entry that counts, or -1: bootloader_common_select_otadata.
func (c *control) active() int {
	switch a, b := c.usable(0), c.usable(1); {
	case a && (!b || c.entry[0].Seq >= c.entry[1].Seq):
		return 0
	case b:
		return 1
	}
	return -1
}

// slot returns what entry i is about.
func (c *control) slot(i int) int { return c.entry[i].Slot(c.n) }

// stays reports whether entry i, if it counts, boots its slot for good.
func (c *control) stays(i int) bool {
	s := c.entry[i].State
	return c.usable(i) && (s == Valid || s == Undefined && !c.anti) // only Valid raises the eFuse
}

// staysIn is stays for one slot.
func (c *control) staysIn(i, slot int) bool { return c.stays(i) && c.slot(i) == slot }

// trial reports whether slot runs on trial.
func (c *control) trial(slot int) bool {
	a := c.active()
	return a >= 0 && c.entry[a].State == PendingVerify && c.slot(a) == slot
}

// fellBack reports whether the bootloader tried another slot than running, and
// came back: what is not heeded any more would count otherwise. PendingVerify of
// a slot that does not run means that its image could not be loaded.
func (c *control) fellBack(running int) bool {
	a := c.active()
	for i, e := range c.entry {
		switch {
		case !e.Whole() || running >= 0 && c.slot(i) == running:
		case e.State == PendingVerify && a == i:
			return true
		case (e.State == Aborted || e.State == Invalid) && (a < 0 || e.Seq > c.entry[a].Seq):
			return true
		}
	}
	return false
}

// seen reports whether there is a state that only a bootloader with rollback writes.
func (c *control) seen() bool {
	for _, e := range c.entry {
		if e.Whole() && (e.State == PendingVerify || e.State == Aborted) {
			return true
		}
	}
	return false
}

// first returns the index of the slot that the bootloader loads first at its next
// start, [factory] for the factory application, and whether that is a try:
// bootloader_utility_get_selected_boot_partition of bootloader_utility.c.
func (c control) first(rollback, hasFactory bool) (slot int, try bool) {
	for i := range c.entry {
		if rollback && c.entry[i].State == PendingVerify {
			c.entry[i].State = Aborted
		}
	}
	if !c.anti && c.entry[0].refused() && c.entry[1].refused() && !hasFactory {
		return 0, false
	}
	if a := c.active(); a >= 0 {
		return c.slot(a), rollback && c.entry[a].State == New
	}
	return factory, false
}

// order returns the partitions in the order in which the bootloader tries to load
// them if it begins with first: load_boot_image of bootloader_utility.c.
func order(t *image.Table, first int) []image.Partition {
	var list []image.Partition
	slots := t.OTA()
	for i := first; i >= 0; i-- {
		list = append(list, slots[i])
	}
	if p, ok := t.Find(image.TypeApp, image.AppFactory); ok {
		list = append(list, p)
	}
	list = append(list, slots[first+1:]...)
	if p, ok := t.Find(image.TypeApp, image.AppTest); ok {
		list = append(list, p)
	}
	return list
}
