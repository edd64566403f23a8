package esp32test_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32/esp32test"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

// The layout that was measured.
const (
	slotA, slotB, otadata = 0x10000, 0x1F0000, 0xE000
	size                  = 0x3D0000
	csv                   = "otadata, data, ota, 0xe000, 0x2000,\nA, app, ota_0, 0x10000, 0x1E0000,\nB, app, ota_1, 0x1F0000, 0x1E0000,\n"
)

// States as the table names them. The CRCs are those of the vendor's tool for the
// numbers 1 to 6.
var (
	sums   = []uint32{0, 0x4743989A, 0x55F63774, 0xED4A5011, 0x709D68A8, 0xC8210FCD, 0xDA94A023}
	states = map[string]uint32{"NEW": 0, "PENDING": 1, "VALID": 2, "INVALID": 3, "ABORTED": 4, "undefined": 0xFFFFFFFF}
)

// entry makes an entry of otadata from text such as "2 NEW"; "" is an erased one.
func entry(s string) []byte {
	b := bytes.Repeat([]byte{0xFF}, 32)
	if s == "" {
		return b
	}
	seq, state, _ := strings.Cut(s, " ")
	binary.LittleEndian.PutUint32(b, uint32(seq[0]-'0'))
	binary.LittleEndian.PutUint32(b[24:], states[state])
	binary.LittleEndian.PutUint32(b[28:], sums[seq[0]-'0'])
	return b
}

// chip writes a flash with an image in A and in B.
func chip(t *testing.T, e0, e1 string, b []byte) string {
	t.Helper()
	tab, err := image.ParseTableCSV(strings.NewReader(csv), image.TableOffset)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := tab.Encode()
	if err != nil {
		t.Fatal(err)
	}
	flash := bytes.Repeat([]byte{0xFF}, size)
	copy(flash[image.TableOffset:], raw)
	copy(flash[otadata:], entry(e0))
	copy(flash[otadata+0x1000:], entry(e1))
	copy(flash[slotA:], imagetest.App(imagetest.Spec{Size: 5000, Version: "A"}))
	copy(flash[slotB:], b)
	path := filepath.Join(t.TempDir(), "flash.bin")
	if err := os.WriteFile(path, flash, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What real chips were seen to do: an ESP32 with a bootloader of ESP-IDF 5.3.2
// without rollback, and an ESP32-C3 with one of ESP-IDF 4.4.7 that has it.
func TestAsMeasured(t *testing.T) {
	whole := imagetest.App(imagetest.Spec{Size: 6000, Version: "B"})
	damaged := bytes.Clone(whole)
	damaged[3000] ^= 1
	noMagic := bytes.Clone(whole)
	noMagic[0] = 0
	esp32 := esp32test.Bootloader{Unchecked: true}
	c3 := esp32test.Bootloader{Rollback: true}
	for _, test := range []struct {
		chip   esp32test.Bootloader
		e0, e1 string
		b      []byte
		starts string // one after the other; what is started never marks itself good
		a0, a1 string // entries afterwards
	}{
		{esp32, "", "", whole, "A", "1 VALID", ""},
		{esp32, "1 undefined", "", whole, "A", "1 undefined", ""},
		{esp32, "1 undefined", "2 undefined", whole, "B", "1 undefined", "2 undefined"},
		{esp32, "3 VALID", "2 VALID", whole, "A", "3 VALID", "2 VALID"},
		{esp32, "1 VALID", "2 NEW", whole, "BB", "1 VALID", "2 NEW"},
		{esp32, "1 VALID", "2 PENDING", whole, "B", "1 VALID", "2 PENDING"},
		{esp32, "1 VALID", "2 ABORTED", whole, "A", "1 VALID", "2 ABORTED"},
		{esp32, "1 VALID", "2 INVALID", whole, "A", "1 VALID", "2 INVALID"},
		{esp32, "1 VALID", "2 NEW", damaged, "B", "1 VALID", "2 NEW"},
		{esp32, "1 VALID", "2 NEW", noMagic, "-", "1 VALID", "2 NEW"},
		{esp32, "1 VALID", "2 NEW", nil, "A", "1 VALID", "2 NEW"},

		{c3, "", "", whole, "A", "1 VALID", ""},
		{c3, "1 undefined", "", whole, "A", "1 undefined", ""},
		{c3, "1 VALID", "2 NEW", whole, "B", "1 VALID", "2 PENDING"},
		{c3, "1 VALID", "2 NEW", whole, "BAAA", "1 VALID", "2 ABORTED"},
		{c3, "1 VALID", "2 PENDING", whole, "A", "1 VALID", "2 ABORTED"},
		{c3, "1 VALID", "2 VALID", whole, "BBB", "1 VALID", "2 VALID"},
		{c3, "1 VALID", "2 ABORTED", whole, "A", "1 VALID", "2 ABORTED"},
		{c3, "1 VALID", "2 NEW", damaged, "AA", "1 VALID", "2 ABORTED"},
	} {
		t.Run(test.e0+", "+test.e1+": "+test.starts, func(t *testing.T) {
			path := chip(t, test.e0, test.e1, test.b)
			for i, want := range strings.Split(test.starts, "") {
				got, err := test.chip.Start(durable.OS{}, path)
				if errors.Is(err, esp32test.ErrLoop) {
					got, err = "-", nil
				}
				if got != want || err != nil {
					t.Errorf("start %d: got %s, %v, want %s", i+1, got, err, want)
				}
			}
			flash, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range []string{test.a0, test.a1} {
				if got := flash[otadata+0x1000*i:][:32]; !bytes.Equal(got, entry(want)) {
					t.Errorf("entry %d: got % x, want % x (%s)", i, got, entry(want), want)
				}
			}
		})
	}
}

// What the documentation and the code say, and was not measured.
func TestAntiRollback(t *testing.T) {
	newer := imagetest.App(imagetest.Spec{Size: 6000, SecureVersion: 3})
	fuse := uint32(0)
	boot := esp32test.Bootloader{Rollback: true, AntiRollback: &fuse}
	for i, test := range []struct {
		e0, e1 string
		fuse   uint32
		want   string
		burnt  uint32
	}{
		{"1 VALID", "2 NEW", 0, "B", 0},
		{"1 VALID", "2 VALID", 0, "B", 3},
		{"3 VALID", "2 VALID", 3, "B", 3}, // A is too old
		{"3 VALID", "", 3, "B", 3},        // nothing else can be loaded
		{"", "", 0, "A", 0},
		{"", "", 1, "B", 3},
	} {
		fuse = test.fuse
		got, err := boot.Start(durable.OS{}, chip(t, test.e0, test.e1, newer))
		if got != test.want || err != nil || fuse != test.burnt {
			t.Errorf("%d: got %s, %v, eFuse %d, want %s, %d", i, got, err, fuse, test.want, test.burnt)
		}
	}
}
