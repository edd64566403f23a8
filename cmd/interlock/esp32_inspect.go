package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

type esp32InspectCmd struct {
	File  string     `arg:"" help:"File to look at: a whole flash, or one part of it."`
	Table *hexNumber `name:"table-offset" placeholder:"OFFSET" help:"Where in a whole flash the partition table lies. Default: 0x8000."`
	esp32Keys
	JSON bool `name:"json" help:"Print JSON."`
}

func (*esp32InspectCmd) Help() string {
	return `Tells by its content what the file is. Images are verified as the bootloader does it; with --key their signature has to be there and to hold. Exit code 5: what is in the file cannot be used, or the flash does not boot what it was told to.

To read the flash of a device: esptool read-flash 0 ALL flash.bin

Examples:

    interlock esp32 inspect flash.bin
    interlock esp32 inspect --key secure-boot.pem app.bin
    interlock esp32 inspect --json flash.bin | jq -r '.partitions[].image.version'`
}

const otadataSize = 2 * image.SectorSize

func (c *esp32InspectCmd) Run(e *env) error {
	keys, err := c.digests()
	if err != nil {
		return err
	}
	f, err := os.Open(c.File)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	if !stat.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", c.File)
	}
	at := int64(image.TableOffset)
	if c.Table != nil {
		at = int64(*c.Table)
	}
	r := &inspection{file: c.File, f: f, size: stat.Size(), table: at, keys: keys, json: c.JSON}
	if err := r.inspect(e); err != nil {
		return fmt.Errorf("inspect %s: %w", c.File, err)
	}
	return nil
}

// inspection is a file that is looked at.
type inspection struct {
	file  string
	f     io.ReaderAt
	size  int64
	table int64 // offset of the partition table in a whole flash
	keys  [][32]byte
	json  bool
}

// inspect finds out what the file is, and shows it.
func (r *inspection) inspect(e *env) error {
	head, err := r.bytes(0, 2)
	if err != nil {
		return err
	}
	there, err := r.bytes(r.table, 2)
	if err != nil {
		return err
	}
	row := []byte{0xAA, 0x50}
	switch {
	case len(head) == 0:
		return invalidFile("it is empty")
	case bytes.Equal(there, row):
		return r.flash(e)
	case bytes.Equal(head, row):
		return r.partitionTable(e)
	case head[0] == 0xE9:
		return r.image(e)
	case r.size == otadataSize:
		return r.otadata(e)
	}
	if ok, err := isErased(io.NewSectionReader(r.f, 0, r.size)); err != nil {
		return err
	} else if ok {
		return invalidFile("it is erased: all of its %d bytes are 0xFF", r.size)
	}
	return hint(invalidFile("it is nothing of an ESP32 that can be read: it begins with % x, and there is no partition table at %#x", head, r.table),
		"a flash with its table elsewhere needs --table-offset; an encrypted one has to be read decrypted")
}

// invalidFile is an error about the content of a file.
func invalidFile(format string, a ...any) error {
	return exitWith(exitUnverified, fmt.Errorf(format, a...))
}

// bytes returns up to n bytes at an offset.
func (r *inspection) bytes(at, n int64) ([]byte, error) {
	n = max(0, min(n, r.size-at))
	b := make([]byte, n)
	if got, err := r.f.ReadAt(b, at); int64(got) < n {
		return nil, err
	}
	return b, nil
}

// isErased reports whether all bytes are 0xFF.
func isErased(r io.Reader) (bool, error) {
	b := make([]byte, 64<<10)
	for {
		n, err := r.Read(b)
		for _, c := range b[:n] {
			if c != 0xFF {
				return false, nil
			}
		}
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// label names the file for people.
func (r *inspection) label() string { return fmt.Sprintf("%s (%s)", r.file, size(r.size)) }

// image shows a file that is one image.
func (r *inspection) image(e *env) error {
	info, err := image.Verify(r.f, r.size, image.Options{KeyDigests: r.keys})
	if err != nil {
		return err
	}
	result := describeImage(info)
	result.BytesBehind = r.size - info.End
	if r.json {
		err = e.printJSON(struct {
			File string `json:"file"`
			Kind string `json:"kind"`
			imageFields
		}{r.file, result.Kind, imageFields{result}})
	} else {
		err = result.print(e, r.label())
	}
	if err != nil || info.Signature == nil || result.signatureHolds {
		return err
	}
	return invalidFile("its signature does not hold: %w", info.Signature.Blocks[0].Err)
}

type imageFields struct {
	Image *imageResult `json:"image"`
}

// partitionTable shows a file that is a partition table.
func (r *inspection) partitionTable(e *env) error {
	b, err := r.bytes(0, image.TableSize)
	if err != nil {
		return err
	}
	t, err := image.ParseTable(b, 0)
	if err != nil {
		return err
	}
	rows := make([]partitionRow, len(t.Partitions))
	for i, p := range t.Partitions {
		rows[i] = newPartitionRow(p)
	}
	if r.json {
		return e.printJSON(struct {
			File       string         `json:"file"`
			Kind       string         `json:"kind"`
			MD5        bool           `json:"md5"`
			Partitions []partitionRow `json:"partitions"`
		}{r.file, "partition table", t.MD5, rows})
	}
	if err := e.list(
		[2]string{"file", r.label()},
		[2]string{"kind", "partition table"},
		[2]string{"checksum", or(when(t.MD5, "MD5, whole"), "none: damage is not noticed")},
	); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout)
	return printPartitions(e, rows, false)
}

// partitionRow is a partition for programs, and what is in it.
type partitionRow struct {
	Label     string       `json:"label"`
	Type      string       `json:"type"`
	Subtype   string       `json:"subtype"`
	Offset    uint32       `json:"offset"` // bytes
	Size      uint32       `json:"size"`   // bytes
	Encrypted bool         `json:"encrypted,omitempty"`
	ReadOnly  bool         `json:"read_only,omitempty"`
	Content   string       `json:"content,omitempty"` // of a whole flash: erased, data, image, damaged
	Image     *imageResult `json:"image,omitempty"`
	Error     string       `json:"error,omitempty"`
}

func newPartitionRow(p image.Partition) partitionRow {
	typ, subtype := p.Kind()
	return partitionRow{Label: p.Label, Type: typ, Subtype: subtype, Offset: p.Offset, Size: p.Size, Encrypted: p.Encrypted, ReadOnly: p.ReadOnly}
}

func (p partitionRow) text() string {
	switch {
	case p.Image != nil:
		return p.Image.name() + ", " + size(p.Image.Size) + when(p.Image.signatureHolds, ", signed")
	case p.Error != "":
		return "DAMAGED (see below)"
	}
	return p.Content
}

func printPartitions(e *env, list []partitionRow, content bool) error {
	heading := []string{"PARTITION", "TYPE", "SUBTYPE", "OFFSET", "SIZE", "FLAGS"}
	if content {
		heading = append(heading, "CONTENT")
	}
	var rows [][]string
	for _, p := range list {
		var flags []string
		if p.Encrypted {
			flags = append(flags, "encrypted")
		}
		if p.ReadOnly {
			flags = append(flags, "read-only")
		}
		row := []string{p.Label, p.Type, p.Subtype, fmt.Sprintf("%#x", p.Offset), size(int64(p.Size)), strings.Join(flags, ", ")}
		if content {
			row = append(row, p.text())
		}
		rows = append(rows, row)
	}
	return e.table(heading, rows)
}

// otadataEntry is one of the two copies of what the bootloader is told.
type otadataEntry struct {
	Sequence uint32 `json:"sequence"`
	State    string `json:"state"`
	Whole    bool   `json:"whole"`          // its CRC is right
	Counts   bool   `json:"counts"`         // the bootloader heeds it
	Slot     string `json:"slot,omitempty"` // label
}

// readOtadata reads both entries. slots are those of the table, if there is one.
func readOtadata(b []byte, slots []image.Partition) (list [2]otadataEntry) {
	for i := range list {
		entry := esp32.ParseEntry(nil) // erased
		if from := i * image.SectorSize; from < len(b) {
			entry = esp32.ParseEntry(b[from:])
		}
		list[i] = otadataEntry{Sequence: entry.Seq, State: entry.State.String(), Whole: entry.Whole(), Counts: entry.Valid()}
		if entry.Whole() && len(slots) > 0 {
			list[i].Slot = slots[entry.Slot(len(slots))].Label
		}
	}
	return list
}

func printOtadata(e *env, list [2]otadataEntry) error {
	var rows [][]string
	for i, o := range list {
		row := []string{fmt.Sprint(i + 1), fmt.Sprint(o.Sequence), o.State, "bad CRC", o.Slot}
		switch {
		case o.Sequence == 1<<32-1:
			row[1], row[2], row[3] = "", "", "erased"
		case o.Counts:
			row[3] = "valid"
		case o.Whole:
			row[3] = "given up"
		}
		rows = append(rows, row)
	}
	return e.table([]string{"OTADATA", "SEQUENCE", "STATE", "ENTRY", "SLOT"}, rows)
}

// otadata shows a file that is the partition that says which slot boots.
func (r *inspection) otadata(e *env) error {
	b, err := r.bytes(0, r.size)
	if err != nil {
		return err
	}
	list := readOtadata(b, nil)
	erased := bytes.Count(b, []byte{0xFF}) == len(b)
	if !erased && !list[0].Whole && !list[1].Whole {
		return invalidFile("it has the size of an otadata partition, and neither of its entries is whole")
	}
	if r.json {
		return e.printJSON(struct {
			File    string          `json:"file"`
			Kind    string          `json:"kind"`
			Entries [2]otadataEntry `json:"otadata"`
		}{r.file, "otadata", list})
	}
	if err := e.list([2]string{"file", r.label()}, [2]string{"kind", "otadata: which slot boots; the sequence number, less one, modulo the number of slots"}); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout)
	return printOtadata(e, list)
}
