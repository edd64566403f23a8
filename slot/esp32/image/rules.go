package image

import (
	"cmp"
	"math"
	"slices"
)

// Check reports the first rule that t breaks, of those that ESP-IDF's bootloader
// (flash_partitions.c) and its tool gen_esp32part.py have, and of one more: the
// slots for applications are numbered without gaps and only once, because the
// bootloader and the application count them differently otherwise. tableOffset
// is where the table lies, which is usually [TableOffset]; 0 if that is not
// known. flashSize is that of the chip in bytes, or 0 if it is not known.
func (t *Table) Check(tableOffset uint32, flashSize int64) error {
	if len(t.Partitions) == 0 {
		return invalid("partition table is empty: the bootloader refuses one without partitions")
	}
	if flashSize <= 0 {
		flashSize = math.MaxUint32 + 1 // what an offset can say
	}
	labels := make(map[string]bool)
	for _, p := range t.Partitions {
		if err := p.check(); err != nil {
			return err
		}
		if p.end() > uint64(flashSize) {
			return invalid("%v ends behind the flash, which has %#x bytes: make it smaller, or say the right size of the flash", p, flashSize)
		}
		if labels[p.Label] {
			return invalid("%v has the label of another: labels must differ", p)
		}
		labels[p.Label] = true
		if tableOffset > 0 && !p.fixed() && uint64(p.Offset) < uint64(tableOffset)+SectorSize {
			return invalid("%v begins before %#x, where bootloader and partition table end: move it behind", p, tableOffset+SectorSize)
		}
	}
	if err := t.checkOverlap(); err != nil {
		return err
	}
	return t.checkUnique()
}

// check reports the first rule that a partition breaks by itself.
func (p Partition) check() error {
	align := uint32(SectorSize)
	if p.Type == TypeApp {
		align = appAlign
	}
	otadata := p.is(TypeData, DataOTA)
	switch {
	case len(p.Label) > labelSize:
		return invalid("%v: the label has %d bytes, want at most %d", p, len(p.Label), labelSize)
	case p.Size == 0:
		return invalid("%v has no bytes: give it a size", p)
	case p.end() > math.MaxUint32+1:
		return invalid("%v of %#x bytes ends behind the last address of flash", p, p.Size)
	case p.Offset%align != 0:
		return invalid("%v begins at no multiple of %#x: move it to %#x", p, align, (uint64(p.Offset)+uint64(align)-1)/uint64(align)*uint64(align))
	case p.Type == TypeApp && p.Size%SectorSize != 0:
		return invalid("%v has %#x bytes: an application's size must be a multiple of %#x", p, p.Size, SectorSize)
	case (otadata || p.is(TypeData, dataTEEOTA)) && p.Size != otadataSize:
		return invalid("%v has %#x bytes: the partition that says which slot boots must have %#x, one sector for each of its two copies", p, p.Size, otadataSize)
	case (otadata || p.is(TypeData, DataCoredump)) && p.ReadOnly:
		return invalid("%v is read-only, and the device must write it: take the flag away", p)
	case p.is(TypeData, DataNVS) && !p.ReadOnly && p.Size < minNVS:
		return invalid("%v has %#x bytes: settings that can be written need %#x or more", p, p.Size, minNVS)
	}
	return nil
}

func (t *Table) checkOverlap() error {
	sorted := slices.Clone(t.Partitions)
	slices.SortStableFunc(sorted, func(a, b Partition) int { return cmp.Compare(a.Offset, b.Offset) })
	for i, p := range sorted[1:] {
		if before := sorted[i]; uint64(p.Offset) < before.end() {
			return invalid("%v overlaps %v: move one of them", p, before)
		}
	}
	return nil
}

// checkUnique looks at what may be there only once, and at the numbers of slots.
func (t *Table) checkUnique() error {
	seen := make(map[[2]byte]bool)
	for _, p := range t.Partitions {
		kind := [2]byte{p.Type, p.Subtype}
		once := p.Type == TypeApp || p.fixed() || p.is(TypeData, DataOTA) || p.is(TypeData, dataTEEOTA)
		if once && seen[kind] {
			return invalid("%v is the second of type %d and subtype %#x: there may be only one", p, p.Type, p.Subtype)
		}
		seen[kind] = true
	}
	for i, p := range t.OTA() {
		if n, _ := p.OTA(); n != i {
			return invalid("%v is ota_%d, and there is no ota_%d: number the slots without gaps", p, n, i)
		}
	}
	return nil
}
