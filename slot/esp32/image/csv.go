package image

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// maxCSV is how much of a partitions.csv is read, in bytes; a table of 94 rows
// needs a tenth of it.
const maxCSV = 64 << 10

var typeNames = []struct {
	name string
	typ  byte
}{{"app", TypeApp}, {"data", TypeData}, {"bootloader", TypeBootloader}, {"partition_table", TypePartitionTable}}

// subtypeNames are those of gen_esp32part.py, without the numbered ones of ota and tee.
var subtypeNames = []struct {
	name         string
	typ, subtype byte
}{
	{"factory", TypeApp, AppFactory}, {"test", TypeApp, AppTest}, {"tee_0", TypeApp, 0x30}, {"tee_1", TypeApp, 0x31},
	{"ota", TypeData, DataOTA}, {"phy", TypeData, DataPHY}, {"nvs", TypeData, DataNVS}, {"coredump", TypeData, DataCoredump},
	{"nvs_keys", TypeData, DataNVSKeys}, {"efuse", TypeData, 0x05}, {"undefined", TypeData, 0x06}, {"esphttpd", TypeData, 0x80},
	{"fat", TypeData, 0x81}, {"spiffs", TypeData, 0x82}, {"littlefs", TypeData, 0x83}, {"tee_ota", TypeData, dataTEEOTA}, {"tee_sec_stg", TypeData, 0x91},
	{"primary", TypeBootloader, 0}, {"ota", TypeBootloader, 1}, {"recovery", TypeBootloader, 2},
	{"primary", TypePartitionTable, 0}, {"ota", TypePartitionTable, 1},
}

// Kind returns the names of a partition's type and subtype as partitions.csv has
// them, such as "app" and "ota_0", or their numbers.
func (p Partition) Kind() (typ, subtype string) {
	typ, subtype = fmt.Sprintf("%#02x", p.Type), fmt.Sprintf("%#02x", p.Subtype)
	for _, n := range typeNames {
		if n.typ == p.Type {
			typ = n.name
		}
	}
	if n, ok := p.OTA(); ok {
		return typ, fmt.Sprintf("ota_%d", n)
	}
	for _, n := range subtypeNames {
		if n.typ == p.Type && n.subtype == p.Subtype {
			subtype = n.name
		}
	}
	return typ, subtype
}

// ParseTableCSV reads the partitions.csv of an ESP-IDF project: rows of label,
// type, subtype, offset, size and flags, with comments, empty offsets, and sizes
// such as 24K or 1M. tableOffset is where the table will lie, usually
// [TableOffset]: offsets that are empty follow it. The table has a checksum, as
// is the default, and keeps the rules of [Table.Check].
//
// Variables are refused, and a row for the bootloader needs numbers for offset
// and size, which ESP-IDF takes from the project's configuration.
func ParseTableCSV(r io.Reader, tableOffset uint32) (*Table, error) {
	t := &Table{MD5: true}
	lines := bufio.NewScanner(io.LimitReader(r, maxCSV+1))
	end, read := int64(tableOffset)+SectorSize, 0
	for n := 1; lines.Scan(); n++ {
		if read += len(lines.Bytes()) + 1; read > maxCSV {
			return nil, invalid("partition table is larger than %d bytes: is it a partitions.csv?", maxCSV)
		}
		line := strings.TrimSpace(strings.TrimPrefix(lines.Text(), "\ufeff"))
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		p, err := parseLine(line, tableOffset, &end)
		if err != nil {
			return nil, invalid("line %d: %w", n, err)
		}
		t.Partitions = append(t.Partitions, p)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	if err := t.Check(tableOffset, 0); err != nil {
		return nil, err
	}
	if _, err := t.Encode(); err != nil { // too many
		return nil, invalid("%w", err)
	}
	return t, nil
}

// parseLine reads a row. end is where the row before ends, and becomes where
// this one does.
func parseLine(line string, tableOffset uint32, end *int64) (p Partition, err error) {
	if strings.Contains(line, "$") {
		return p, fmt.Errorf("variables are not supported: write the value instead of %q", line)
	}
	fields := strings.Split(line, ",")
	for i := range fields {
		fields[i] = strings.TrimSpace(fields[i])
	}
	if len(fields) > 6 && strings.Join(fields[6:], "") != "" && !strings.HasPrefix(fields[6], "#") {
		return p, fmt.Errorf("got %d columns, want at most 6: name, type, subtype, offset, size, flags; a comment there begins with #", len(fields))
	}
	fields = append(fields, "", "", "", "", "")
	if p.Label = fields[0]; len(p.Label) > labelSize {
		return p, fmt.Errorf("name %q has %d bytes, want at most %d", p.Label, len(p.Label), labelSize)
	}
	if p.Type, err = parseType(fields[1]); err != nil {
		return p, err
	}
	if p.Subtype, err = parseSubtype(p.Type, fields[2]); err != nil {
		return p, err
	}
	if err := p.parseFlags(fields[5]); err != nil {
		return p, err
	}
	return p, p.parsePlace(fields[3], fields[4], tableOffset, end)
}

// parsePlace reads offset and size.
func (p *Partition) parsePlace(offset, size string, tableOffset uint32, end *int64) error {
	if p.is(TypePartitionTable, 0) { // whatever the row says
		p.Offset, p.Size = tableOffset, SectorSize
		return nil
	}
	at := *end
	var err error
	switch {
	case offset != "":
		if at, err = parseNumber(offset); err != nil {
			return fmt.Errorf("offset %q is not a number, such as 0x10000 or 64K", offset)
		}
		if at < *end && !p.fixed() {
			return fmt.Errorf("offset %#x of %q is before %#x, where the partition before it or the table ends", at, p.Label, *end)
		}
	case p.Type == TypeApp:
		at = (at + appAlign - 1) / appAlign * appAlign
	default:
		at = (at + SectorSize - 1) / SectorSize * SectorSize
	}
	if size == "" {
		return fmt.Errorf("%q has no size", p.Label)
	}
	n, err := parseNumber(size)
	if err != nil {
		return fmt.Errorf("size %q is not a number, such as 0x6000, 24K or 1M", size)
	}
	if n < 0 { // up to there
		n = -n - at
	}
	if at < 0 || n <= 0 || at+n > math.MaxUint32 {
		return fmt.Errorf("%q of %d bytes at %#x is in no flash", p.Label, n, at)
	}
	p.Offset, p.Size = uint32(at), uint32(n)
	if !p.fixed() {
		*end = at + n
	}
	return nil
}

func parseType(s string) (byte, error) {
	for _, n := range typeNames {
		if strings.EqualFold(n.name, s) {
			return n.typ, nil
		}
	}
	if n, err := parseNumber(s); err == nil && n >= 0 && n < 0xFF { // 0xFF is erased flash
		return byte(n), nil
	}
	return 0, fmt.Errorf("type %q is neither app, data, bootloader, partition_table nor a number from 0 to 254", s)
}

func parseSubtype(typ byte, s string) (byte, error) {
	if s == "" && typ != TypeApp {
		return 0x06, nil // undefined
	}
	names := make([]string, 0, len(subtypeNames))
	for _, n := range subtypeNames {
		if n.typ != typ {
			continue
		}
		if strings.EqualFold(n.name, s) {
			return n.subtype, nil
		}
		names = append(names, n.name)
	}
	if digits, ok := strings.CutPrefix(strings.ToLower(s), "ota_"); ok && typ == TypeApp {
		if n, err := strconv.ParseUint(digits, 10, 8); err == nil && n < maxOTA && strconv.FormatUint(n, 10) == digits {
			return AppOTA0 + byte(n), nil
		}
	}
	if n, err := parseNumber(s); err == nil && n >= 0 && n < 0xFF {
		return byte(n), nil
	}
	if typ == TypeApp {
		names = append(names, "ota_0 to ota_15")
	}
	return 0, fmt.Errorf("subtype %q is neither a number from 0 to 254 nor one of: %s", s, strings.Join(names, ", "))
}

func (p *Partition) parseFlags(s string) error {
	for flag := range strings.SplitSeq(s, ":") {
		switch flag {
		case "":
		case "encrypted":
			p.Encrypted = true
		case "readonly":
			p.ReadOnly = true
		default:
			return fmt.Errorf("flag %q is neither encrypted nor readonly", flag)
		}
	}
	return nil
}

// parseNumber reads a number as gen_esp32part.py does: decimal or with 0x, and
// with K or M behind it.
func parseNumber(s string) (int64, error) {
	unit := int64(1)
	switch {
	case strings.HasSuffix(s, "k"), strings.HasSuffix(s, "K"):
		unit, s = 1<<10, s[:len(s)-1]
	case strings.HasSuffix(s, "m"), strings.HasSuffix(s, "M"):
		unit, s = 1<<20, s[:len(s)-1]
	}
	digits := strings.TrimPrefix(s, "-")
	if len(digits) > 1 && digits[0] == '0' && strings.Trim(digits, "0123456789") == "" && strings.Trim(digits, "0") != "" {
		return 0, strconv.ErrSyntax // 010 is 8 for some and 10 for others
	}
	n, err := strconv.ParseInt(s, 0, 33)
	return n * unit, err
}
