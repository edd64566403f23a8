// Package imagetest makes images of an ESP32's firmware for tests: whole and
// valid for a bootloader's eyes, with nothing in them that would run.
//
// Start with [App]. Sign what it returns with [image.Sign].
package imagetest

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"

	"github.com/interlock-energy/ota/slot/esp32/image"
)

// Spec says what an image shall be. The zero value is a small one for an ESP32.
type Spec struct {
	Chip          image.ChipID
	Version       string // at most 31 bytes go into the image
	Project       string // likewise
	SecureVersion uint32
	Size          int    // of the whole image in bytes, rounded up to a valid one; at most 16 MiB
	Seed          uint64 // other seed, other bytes
	MinRev        uint16 // of the chip, major*100+minor
	MaxRev        uint16 // 0: no limit
	NoHash        bool   // no SHA-256 is appended
	MMUPageSize   uint32 // bytes, a power of two; 0: the field is not set
}

// The layout of esp_app_format.h and esp_app_desc.h.
const (
	header        = 24
	segmentHeader = 8
	appDesc       = 256
	bootDesc      = 80
	flashAddr     = 0x3F400020 // where an ESP32 maps the first segment of an application
	ramAddr       = 0x3FFF0000
)

// App returns an application image.
func App(s Spec) []byte {
	desc := make([]byte, appDesc)
	le := binary.LittleEndian
	le.PutUint32(desc, 0xABCD5432)
	le.PutUint32(desc[4:], s.SecureVersion)
	put(desc[16:48], s.Version)
	put(desc[48:80], s.Project)
	put(desc[80:96], "12:00:00")
	put(desc[96:112], "Mar  1 2026")
	put(desc[112:144], "v5.5")
	le.PutUint64(desc[144:], s.Seed) // of a hash that is not one
	if s.MMUPageSize > 0 {
		desc[180] = byte(bits.Len32(s.MMUPageSize) - 1)
	}
	addr := map[image.ChipID]uint32{
		image.ESP32: flashAddr, image.ESP32S2: 0x3F000020,
		image.ESP32C2: 0x3C000020, image.ESP32C3: 0x3C000020, image.ESP32S3: 0x3C000020,
		image.ESP32P4: 0x40000020,
	}[s.Chip]
	if addr == 0 {
		addr = 0x42000020 // of all newer ones
	}
	return s.image(desc, addr)
}

// Bootloader returns a bootloader image. Version, Project and MMUPageSize are not used.
func Bootloader(s Spec) []byte {
	desc := make([]byte, bootDesc)
	desc[0], desc[3] = bootDesc, byte(s.SecureVersion)
	binary.LittleEndian.PutUint32(desc[4:], 1)
	put(desc[8:40], "v5.5")
	put(desc[40:64], "Mar  1 2026 12:00:00")
	return s.image(desc, ramAddr)
}

// image returns an image of two segments, of which the first begins with desc
// and the second is a word of RAM.
func (s Spec) image(desc []byte, addr uint32) []byte {
	le := binary.LittleEndian
	hash := 0
	if !s.NoHash {
		hash = sha256.Size
	}
	fixed := header + 2*segmentHeader + len(desc) + 4 + 1 + hash
	body := min(max(s.Size-fixed, 0)+3, 16<<20-appDesc-4) &^ 3

	b := make([]byte, header, fixed+body+16)
	b[0], b[1], b[2], b[3] = 0xE9, 2, 2, 0x20 // DIO, 4 MB
	le.PutUint32(b[4:], 0x40080400)
	b[8] = 0xEE
	le.PutUint16(b[12:], uint16(s.Chip))
	le.PutUint16(b[15:], s.MinRev)
	le.PutUint16(b[17:], s.MaxRev)
	if !s.NoHash {
		b[23] = 1
	}
	first := append(desc, random(s.Seed, body)...)
	sum := byte(0xEF)
	for _, seg := range []struct {
		addr uint32
		data []byte
	}{{addr, first}, {ramAddr, []byte{1, 2, 3, 4}}} {
		b = le.AppendUint32(b, seg.addr)
		b = le.AppendUint32(b, uint32(len(seg.data)))
		b = append(b, seg.data...)
		for _, c := range seg.data {
			sum ^= c
		}
	}
	for len(b)%16 != 15 {
		b = append(b, 0)
	}
	b = append(b, sum)
	if !s.NoHash {
		h := sha256.Sum256(b)
		b = append(b, h[:]...)
	}
	return b
}

// put writes a text that ends with a NUL.
func put(b []byte, s string) { copy(b[:len(b)-1], s) }

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}
