package image_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

// twoSlots is the layout of a device with two slots in 4 MB.
func twoSlots() *image.Table {
	return &image.Table{MD5: true, Partitions: []image.Partition{
		{Type: image.TypeData, Subtype: image.DataNVS, Offset: 0x9000, Size: 0x4000, Label: "nvs"},
		{Type: image.TypeData, Subtype: image.DataOTA, Offset: 0xD000, Size: 0x2000, Label: "otadata"},
		{Type: image.TypeData, Subtype: image.DataPHY, Offset: 0xF000, Size: 0x1000, Label: "phy_init"},
		{Type: image.TypeApp, Subtype: image.AppOTA0, Offset: 0x10000, Size: 0x180000, Label: "ota_0"},
		{Type: image.TypeApp, Subtype: image.AppOTA0 + 1, Offset: 0x190000, Size: 0x180000, Label: "ota_1"},
	}}
}

func encode(t *testing.T, table *image.Table) []byte {
	t.Helper()
	b, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The bytes of gen_esp32part.py's own tests.
func TestTableBytes(t *testing.T) {
	b := encode(t, &image.Table{MD5: true, Partitions: []image.Partition{{Type: 0x30, Subtype: 0xEE, Offset: 0x100400, Size: 0x300000, Label: "first"}}})
	want := "aa5030ee" + "00041000" + "00003000" + "6669727374" + strings.Repeat("00", 11) + "00000000" +
		"ebeb" + strings.Repeat("ff", 14) + "43033f334087575169839b4061b12726" +
		strings.Repeat("ff", 3072-64)
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("got  %s\nwant %s", got[:192], want[:192])
	}
}

func TestTableRoundTrip(t *testing.T) {
	table := twoSlots()
	table.Partitions[2].Encrypted = true
	table.Partitions = append(table.Partitions,
		image.Partition{Type: image.TypeData, Subtype: image.DataNVS, Offset: 0x310000, Size: 0x1000, Label: "sixteen bytes ok", ReadOnly: true, Flags: 0x80000000},
		image.Partition{Type: 0x40, Subtype: 7, Offset: 0x311000, Size: 5, Label: "ünïcode"})
	for _, sum := range []bool{true, false} {
		table.MD5 = sum
		b := encode(t, table)
		if len(b) != image.TableSize {
			t.Errorf("got %d bytes, want %d", len(b), image.TableSize)
		}
		got, err := image.ParseTable(append(b, "behind it"...), 4<<20)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(table, got); diff != "" {
			t.Error(diff)
		}
		if err := got.Check(image.TableOffset, 4<<20); err != nil {
			t.Error(err)
		}
	}
}

func TestTableEveryBit(t *testing.T) {
	b := encode(t, twoSlots())
	for i := range 8 * 7 * 32 { // five partitions, checksum, end
		b[i/8] ^= 1 << (i % 8)
		if _, err := image.ParseTable(b, 0); ota.CodeOf(err) != ota.ErrValidation {
			t.Errorf("with bit %d of byte %d turned: got %v, want a validation error", i%8, i/8, err)
		}
		b[i/8] ^= 1 << (i % 8)
	}
	for n := range 7 * 32 {
		if _, err := image.ParseTable(b[:n], 0); err == nil || !strings.Contains(err.Error(), "has no end") {
			t.Errorf("of %d bytes: got %v, want that the end is not there", n, err)
		}
	}
}

func TestTableForm(t *testing.T) {
	row := encode(t, twoSlots())[:32]
	end := bytes.Repeat([]byte{0xFF}, 32)
	sum := func(rows ...byte) []byte {
		h := md5.Sum(rows)
		return append(append([]byte{0xEB, 0xEB}, bytes.Repeat([]byte{0xFF}, 14)...), h[:]...)
	}
	odd := sum(row...)
	odd[5] = 0
	for _, tt := range []struct {
		name string
		b    []byte
		want string // empty: no error
	}{
		{"good", slices.Concat(row, sum(row...), end), ""},
		{"no checksum", slices.Concat(row, end), ""},
		{"nothing", nil, "has no end"},
		{"erased", slices.Concat(end, end), "is empty"},
		{"checksum only", slices.Concat(sum(), end), "is empty"},
		{"end first", slices.Concat(end, row, end), "is empty"},
		{"two checksums", slices.Concat(row, sum(row...), sum(row...), end), "row 3 is behind its checksum"},
		{"row behind the checksum", slices.Concat(row, sum(row...), row, end), "row 3 is behind its checksum"},
		{"checksum of something else", slices.Concat(row, sum(1), end), "the MD5 of its rows is"},
		{"odd checksum", slices.Concat(row, odd, end), "row 2 is no checksum of a known form"},
		{"no row", slices.Concat(row, make([]byte, 32), end), "row 2 begins with 00 00"},
		{"nearly an end", slices.Concat(row, end[:31], []byte{0}), "row 2 begins with ff ff"},
		{"end cut", slices.Concat(row, end[:31]), "has no end"},
		{"96 rows", slices.Concat(bytes.Repeat(row, 96), end), "has no end"},
	} {
		_, err := image.ParseTable(tt.b, 0)
		switch {
		case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		case err != nil && ota.CodeOf(err) != ota.ErrValidation:
			t.Errorf("%s: got %v, which is no validation error", tt.name, err)
		}
	}
}

func TestTableRules(t *testing.T) {
	const nvs, otadata, phy, app0, app1 = 0, 1, 2, 3, 4
	for _, tt := range []struct {
		name   string
		change func(p []image.Partition) []image.Partition
		want   string // empty: no error
	}{
		{"good", func(p []image.Partition) []image.Partition { return p }, ""},
		{"no partition", func(p []image.Partition) []image.Partition { return nil }, "is empty"},
		{"any order", func(p []image.Partition) []image.Partition { slices.Reverse(p); return p }, ""},
		{"no bytes", func(p []image.Partition) []image.Partition { p[phy].Size = 0; return p }, `partition "phy_init" (0xf000 to 0xf000) has no bytes`},
		{"overflow", func(p []image.Partition) []image.Partition { p[app1].Size = 0xFFFFF000; return p }, "behind the last address"},
		{"behind the flash", func(p []image.Partition) []image.Partition { p[app1].Size = 0x271000; return p }, "ends behind the flash, which has 0x400000 bytes"},
		{"just in the flash", func(p []image.Partition) []image.Partition { p[app1].Size = 0x270000; return p }, ""},
		{"app not on 64 KiB", func(p []image.Partition) []image.Partition {
			p[app0].Offset += 0x1000
			p[app0].Size -= 0x1000
			return p
		}, "at no multiple of 0x10000: move it to 0x20000"},
		{"app of odd size", func(p []image.Partition) []image.Partition { p[app0].Size -= 4; return p }, "must be a multiple of 0x1000"},
		{"data not on a sector", func(p []image.Partition) []image.Partition { p[phy].Offset += 4; p[phy].Size = 4; return p }, "at no multiple of 0x1000: move it to 0x10000"},
		{"data of odd size", func(p []image.Partition) []image.Partition { p[phy].Size = 100; return p }, ""},
		{"one sector of otadata", func(p []image.Partition) []image.Partition { p[otadata].Size = 0x1000; return p }, "must have 0x2000"},
		{"otadata of TEE", func(p []image.Partition) []image.Partition { p[phy].Subtype = 0x90; return p }, "must have 0x2000"},
		{"otadata read-only", func(p []image.Partition) []image.Partition { p[otadata].ReadOnly = true; return p }, "is read-only"},
		{"coredump read-only", func(p []image.Partition) []image.Partition {
			p[phy].Subtype, p[phy].ReadOnly = image.DataCoredump, true
			return p
		}, "is read-only"},
		{"small nvs", func(p []image.Partition) []image.Partition { p[nvs].Size = 0x2000; return p }, "need 0x3000 or more"},
		{"small nvs, read-only", func(p []image.Partition) []image.Partition { p[nvs].Size, p[nvs].ReadOnly = 0x2000, true; return p }, ""},
		{"two otadata", func(p []image.Partition) []image.Partition {
			p[nvs].Subtype, p[nvs].Size = image.DataOTA, 0x2000
			return p
		}, "there may be only one"},
		{"two of nvs", func(p []image.Partition) []image.Partition {
			p[phy].Subtype, p[phy].ReadOnly = image.DataNVS, true
			return p
		}, ""},
		{"same label", func(p []image.Partition) []image.Partition { p[app1].Label = "ota_0"; return p }, "labels must differ"},
		{"long label", func(p []image.Partition) []image.Partition { p[app1].Label = "seventeen bytes.."; return p }, "17 bytes, want at most 16"},
		{"overlap", func(p []image.Partition) []image.Partition { p[app0].Size += 0x1000; return p }, `partition "ota_1" (0x190000 to 0x310000) overlaps partition "ota_0"`},
		{"one inside another", func(p []image.Partition) []image.Partition {
			p[app1].Size = 0x200000
			return append(p, image.Partition{Type: image.TypeData, Subtype: image.DataCoredump, Offset: 0x200000, Size: 0x1000, Label: "core"})
		}, "overlaps"},
		{"in the table", func(p []image.Partition) []image.Partition { p[nvs].Offset = 0x8000; return p }, "begins before 0x9000"},
		{"in the bootloader", func(p []image.Partition) []image.Partition { p[nvs].Offset = 0; return p }, "begins before 0x9000"},
		{"bootloader and table", func(p []image.Partition) []image.Partition {
			return append(p, image.Partition{Type: image.TypeBootloader, Offset: 0x1000, Size: 0x7000, Label: "boot"},
				image.Partition{Type: image.TypePartitionTable, Offset: 0x8000, Size: 0x1000, Label: "table"})
		}, ""},
		{"gap", func(p []image.Partition) []image.Partition { p[app1].Subtype = image.AppOTA0 + 2; return p }, "is ota_2, and there is no ota_1"},
		{"no first", func(p []image.Partition) []image.Partition { p[app0].Subtype = image.AppFactory; return p }, "is ota_1, and there is no ota_0"},
		{"slot twice", func(p []image.Partition) []image.Partition { p[app1].Subtype = image.AppOTA0; return p }, "there may be only one"},
	} {
		table := twoSlots()
		table.Partitions = tt.change(table.Partitions)
		err := table.Check(image.TableOffset, 4<<20)
		switch {
		case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		case err != nil && ota.CodeOf(err) != ota.ErrValidation:
			t.Errorf("%s: got %v, which is no validation error", tt.name, err)
		}
		if b, encodeErr := table.Encode(); encodeErr == nil { // ParseTable applies the same rules
			_, err := image.ParseTable(b, 4<<20)
			if place := strings.HasPrefix(tt.want, "begins before"); (err == nil) != (tt.want == "" || place) {
				t.Errorf("%s: parse: got %v, want %q", tt.name, err, tt.want)
			}
		}
	}
}

func TestTableFind(t *testing.T) {
	table := twoSlots()
	slices.Reverse(table.Partitions)
	var got []string
	for _, p := range table.OTA() {
		got = append(got, p.Label)
	}
	if want := []string{"ota_0", "ota_1"}; !slices.Equal(got, want) {
		t.Errorf("got slots %q, want %q", got, want)
	}
	if p, ok := table.Find(image.TypeData, image.DataOTA); !ok || p.Label != "otadata" {
		t.Errorf("got %v, %t, want otadata", p, ok)
	}
	if p, ok := table.Label("phy_init"); !ok || p.Offset != 0xF000 {
		t.Errorf("got %v, %t, want the one at 0xF000", p, ok)
	}
	if p, ok := table.Find(image.TypeApp, image.AppFactory); ok {
		t.Errorf("got %v, want none", p)
	}
	if p, ok := table.Label("gone"); ok {
		t.Errorf("got %v, want none", p)
	}
}

func TestTableFull(t *testing.T) {
	many := func(n int) *image.Table {
		table := &image.Table{MD5: true}
		for i := range n {
			table.Partitions = append(table.Partitions, image.Partition{Type: 0x40, Subtype: byte(i), Offset: uint32(0x9000 + i*0x1000), Size: 0x1000, Label: fmt.Sprint(i)})
		}
		return table
	}
	if got, err := image.ParseTable(encode(t, many(94)), 0); err != nil || len(got.Partitions) != 94 {
		t.Errorf("94 partitions: %v", err)
	}
	if _, err := many(95).Encode(); err == nil || !strings.Contains(err.Error(), "95 partitions are too many") {
		t.Errorf("95 partitions: got %v, want that they are too many", err)
	}
	if _, err := (&image.Table{Partitions: []image.Partition{{Label: strings.Repeat("x", 17)}}}).Encode(); err == nil {
		t.Error("a label of 17 bytes: got no error")
	}
}
