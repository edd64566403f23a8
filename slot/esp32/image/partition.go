package image

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"slices"
)

// Where a partition table lies and how much of its sector it may use, in bytes.
// The offset is the default of ESP-IDF (CONFIG_PARTITION_TABLE_OFFSET).
const (
	TableOffset = 0x8000
	TableSize   = 0xC00
)

// Types and subtypes of partitions: esp_partition.h and esp_flash_partitions.h.
const (
	TypeApp            = 0x00
	TypeData           = 0x01
	TypeBootloader     = 0x02
	TypePartitionTable = 0x03

	AppFactory = 0x00
	AppOTA0    = 0x10 // to AppOTA0+15
	AppTest    = 0x20

	DataOTA      = 0x00 // which slot boots
	DataPHY      = 0x01
	DataNVS      = 0x02
	DataCoredump = 0x03
	DataNVSKeys  = 0x04

	dataTEEOTA = 0x90
	maxOTA     = 16
)

// Sizes of partitions in bytes that ESP-IDF's tool insists on.
const (
	otadataSize = 2 * SectorSize
	minNVS      = 3 * SectorSize
	appAlign    = 0x10000
)

// A Partition is one row of a partition table.
type Partition struct {
	Type, Subtype       byte
	Offset, Size        uint32 // bytes
	Label               string // at most 16 bytes, usually of UTF-8
	Encrypted, ReadOnly bool
	Flags               uint32 // those that this package does not know, as they are in the table
}

// OTA returns the number of the slot for applications that p is, 0 for ota_0.
func (p Partition) OTA() (n int, ok bool) {
	ok = p.Type == TypeApp && p.Subtype >= AppOTA0 && p.Subtype < AppOTA0+maxOTA
	return int(p.Subtype) - AppOTA0, ok
}

// end is the offset behind p.
func (p Partition) end() uint64 { return uint64(p.Offset) + uint64(p.Size) }

// String names p for people.
func (p Partition) String() string {
	return fmt.Sprintf("partition %q (%#x to %#x)", p.Label, p.Offset, p.end())
}

// is reports the type of p.
func (p Partition) is(typ, subtype byte) bool { return p.Type == typ && p.Subtype == subtype }

// fixed reports whether p is one of the two that lie before or at the table:
// the primary bootloader and the primary partition table.
func (p Partition) fixed() bool {
	return p.is(TypeBootloader, 0) || p.is(TypePartitionTable, 0)
}

// A Table is a partition table.
type Table struct {
	Partitions []Partition // in the order of the table
	MD5        bool        // the table has a checksum
}

// A row of a table is 32 bytes (esp_partition_info_t): magic, type, subtype, u32
// offset, u32 size, label of 16 bytes, u32 flags. The row with the checksum has
// another magic, 14 bytes of 0xFF and the MD5 of all rows before; the row at the
// end is erased flash.
const (
	rowSize    = 32
	labelSize  = 16
	flagCrypt  = 1 << 0
	flagRO     = 1 << 1
	knownFlags = flagCrypt | flagRO
)

var (
	rowMagic = []byte{0xAA, 0x50}
	md5Magic = append([]byte{0xEB, 0xEB}, bytes.Repeat([]byte{0xFF}, 14)...)
	endRow   = bytes.Repeat([]byte{0xFF}, rowSize)
)

// ParseTable reads a partition table of at most [TableSize] bytes, as it lies in
// flash; bytes behind its end marker are ignored. flashSize is that of the chip
// in bytes, or 0 if it is not known. All of [Table.Check] but the place of the
// table itself is checked.
func ParseTable(b []byte, flashSize int64) (*Table, error) {
	t := new(Table)
	b = b[:min(len(b), TableSize)]
	for at := 0; ; at += rowSize {
		if at+rowSize > len(b) {
			return nil, invalid("partition table has no end: the %d bytes hold no row of 0xFF; read all %d bytes of it", len(b), TableSize)
		}
		row, n := b[at:at+rowSize], at/rowSize+1
		switch {
		case bytes.Equal(row, endRow):
			if err := t.Check(0, flashSize); err != nil {
				return nil, err
			}
			return t, nil
		case t.MD5:
			return nil, invalid("partition table is damaged: row %d is behind its checksum", n)
		case bytes.HasPrefix(row, md5Magic[:2]):
			if !bytes.HasPrefix(row, md5Magic) {
				return nil, invalid("partition table is damaged: row %d is no checksum of a known form", n)
			}
			if got := md5.Sum(b[:at]); !bytes.Equal(got[:], row[16:]) {
				return nil, invalid("partition table is damaged: the MD5 of its rows is %x, and it says %x", got, row[16:])
			}
			t.MD5 = true
		case !bytes.HasPrefix(row, rowMagic):
			return nil, invalid("partition table is damaged: row %d begins with % x, not with % x", n, row[:2], rowMagic)
		default:
			t.Partitions = append(t.Partitions, parseRow(row))
		}
	}
}

func parseRow(b []byte) Partition {
	le := binary.LittleEndian
	label, _, _ := bytes.Cut(b[12:12+labelSize], []byte{0})
	flags := le.Uint32(b[28:])
	return Partition{
		Type: b[2], Subtype: b[3], Offset: le.Uint32(b[4:]), Size: le.Uint32(b[8:]), Label: string(label),
		Encrypted: flags&flagCrypt != 0, ReadOnly: flags&flagRO != 0, Flags: flags &^ knownFlags,
	}
}

// Encode returns the table as it lies in flash: [TableSize] bytes, with the
// checksum if t.MD5 is set, byte for byte as gen_esp32part.py writes it. It looks
// at nothing but what can be written: see [Table.Check].
func (t *Table) Encode() ([]byte, error) {
	var b []byte
	for _, p := range t.Partitions {
		if len(p.Label) > labelSize {
			return nil, fmt.Errorf("encode partition table: label %q has %d bytes, want at most %d", p.Label, len(p.Label), labelSize)
		}
		flags := p.Flags &^ knownFlags
		if p.Encrypted {
			flags |= flagCrypt
		}
		if p.ReadOnly {
			flags |= flagRO
		}
		b = append(append(b, rowMagic...), p.Type, p.Subtype)
		b = binary.LittleEndian.AppendUint32(b, p.Offset)
		b = binary.LittleEndian.AppendUint32(b, p.Size)
		b = append(append(b, p.Label...), make([]byte, labelSize-len(p.Label))...)
		b = binary.LittleEndian.AppendUint32(b, flags)
	}
	if t.MD5 {
		sum := md5.Sum(b)
		b = append(append(b, md5Magic...), sum[:]...)
	}
	if len(b) > TableSize-rowSize { // the end needs a row too
		return nil, fmt.Errorf("encode partition table: %d partitions are too many: with checksum and end they need %d bytes, and there are %d",
			len(t.Partitions), len(b)+rowSize, TableSize)
	}
	return append(b, bytes.Repeat([]byte{0xFF}, TableSize-len(b))...), nil
}

// OTA returns the slots for applications, ota_0 first. Their number is what
// ESP-IDF divides by to find the one that boots.
func (t *Table) OTA() []Partition {
	var slots []Partition
	for _, p := range t.Partitions {
		if _, ok := p.OTA(); ok {
			slots = append(slots, p)
		}
	}
	slices.SortFunc(slots, func(a, b Partition) int { return cmp.Compare(a.Subtype, b.Subtype) })
	return slots
}

// Find returns the first partition of a type and subtype.
func (t *Table) Find(typ, subtype byte) (Partition, bool) {
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.is(typ, subtype) })
	if i < 0 {
		return Partition{}, false
	}
	return t.Partitions[i], true
}

// Label returns the partition of a label.
func (t *Table) Label(label string) (Partition, bool) {
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Label == label })
	if i < 0 {
		return Partition{}, false
	}
	return t.Partitions[i], true
}
