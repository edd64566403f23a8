package image

import (
	"errors"
	"io"
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
)

// A Partition is one row of a partition table.
type Partition struct {
	Type, Subtype       byte
	Offset, Size        uint32 // bytes
	Label               string // at most 16 bytes
	Encrypted, ReadOnly bool
	Flags               uint32 // those that this package does not know, as they are in the table
}

// A Table is a partition table that keeps all rules.
type Table struct {
	Partitions []Partition // in the order of the table
	MD5        bool        // the table has a checksum
}

// ParseTable reads a partition table of at most [TableSize] bytes, as it lies in
// flash; bytes behind its end marker are ignored. flashSize is that of the chip
// in bytes, or 0 if it is not known. All of [Table.Check] but the place of the
// table itself is checked.
func ParseTable(b []byte, flashSize int64) (*Table, error) {
	return nil, errors.ErrUnsupported
}

// Check reports the first rule that t breaks, of those that ESP-IDF's bootloader
// and its tool gen_esp32part.py have. tableOffset is where the table lies, which
// is usually [TableOffset]; 0 if that is not known. flashSize is that of the chip
// in bytes, or 0 if it is not known.
func (t *Table) Check(tableOffset uint32, flashSize int64) error {
	return errors.ErrUnsupported
}

// Encode returns the table as it lies in flash: [TableSize] bytes, with the
// checksum if t.MD5 is set, byte for byte as gen_esp32part.py writes it.
func (t *Table) Encode() ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// OTA returns the slots for applications, ota_0 first. Their number is what
// ESP-IDF divides by to find the one that boots.
func (t *Table) OTA() []Partition { return nil }

// Find returns the first partition of a type and subtype.
func (t *Table) Find(typ, subtype byte) (Partition, bool) { return Partition{}, false }

// Label returns the partition of a label.
func (t *Table) Label(label string) (Partition, bool) { return Partition{}, false }

// ParseTableCSV reads the partitions.csv of an ESP-IDF project: rows of label,
// type, subtype, offset, size and flags, with comments, empty offsets, and sizes
// such as 24K or 1M. tableOffset is where the table will lie, usually
// [TableOffset]: offsets that are empty follow it.
func ParseTableCSV(r io.Reader, tableOffset uint32) (*Table, error) {
	return nil, errors.ErrUnsupported
}
