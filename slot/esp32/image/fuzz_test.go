package image_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

// A table that is taken keeps the rules, and is the same after it was written.
func FuzzTable(f *testing.F) {
	for _, table := range []*image.Table{twoSlots(), {Partitions: twoSlots().Partitions[3:]}} {
		b, err := table.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, int64(4<<20))
		f.Add(b[:7*32], int64(1<<20))
		wrap := bytes.Clone(b) // offset and size add up to less than either
		binary.LittleEndian.PutUint32(wrap[4:], 0xFFFFF000)
		binary.LittleEndian.PutUint32(wrap[8:], 0x2000)
		f.Add(wrap, int64(4<<20))
	}
	f.Add(bytes.Repeat([]byte{0xFF}, 3072), int64(0))
	f.Add(bytes.Repeat([]byte{0xAA, 0x50}, 2000), int64(-1))
	f.Fuzz(func(t *testing.T, b []byte, flash int64) {
		table, err := image.ParseTable(b, flash)
		if err != nil {
			if ota.CodeOf(err) != ota.ErrValidation {
				t.Fatalf("got %v, which is no validation error", err)
			}
			return
		}
		end := uint64(0)
		for _, p := range table.Partitions {
			end = max(end, uint64(p.Offset)+uint64(p.Size))
			p.Kind()
		}
		if end > 1<<32 || flash > 0 && end > uint64(flash) {
			t.Fatalf("ends at %#x in a flash of %#x", end, flash)
		}
		again, err := table.Encode()
		if err != nil {
			return // without its checksum it was full
		}
		got, err := image.ParseTable(again, flash)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(table, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzTableCSV(f *testing.F) {
	f.Add("# c\r\nnvs,data,nvs,,16K\notadata,data,ota,,8K\nota_0,app,ota_0,,1M,encrypted\n", uint32(0x8000))
	f.Add("a,0x40,7,0x9000,-1M\n", uint32(0xFFFFF000))
	f.Add("a,data,phy,99999999999999999999M,9223372036854775807K", uint32(0))
	f.Fuzz(func(t *testing.T, csv string, offset uint32) {
		table, err := image.ParseTableCSV(bytes.NewReader([]byte(csv)), offset)
		if err != nil {
			return
		}
		b, err := table.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := image.ParseTable(b, 0); err != nil {
			t.Fatal(err)
		}
	})
}

// Whatever the bytes are, an image that is taken lies within them, and nothing
// that is not signed passes for signed. The last CRC is made right, so that what is
// behind it is reached.
func FuzzImage(f *testing.F) {
	k := testKeys()
	app := imagetest.App(imagetest.Spec{Version: "1", SecureVersion: 1})
	bare := imagetest.App(imagetest.Spec{NoHash: true})
	boot := imagetest.Bootloader(imagetest.Spec{Chip: image.ESP32C6})
	multi, err := image.Sign(app, k.p256, k.rsa, k.p384)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{nil, app, bare, boot, multi, app[:24], bytes.Repeat([]byte{0xFF}, 5000), bytes.Repeat([]byte{0xE9}, 5000)} {
		f.Add(b, int64(0))
	}
	for _, size := range []uint32{0xFFFFFFFC, 0xFFFFFF, 16 << 20, 0x7FFFFFFC, 0} { // of a segment
		b := bytes.Clone(bare)
		binary.LittleEndian.PutUint32(b[28:], size)
		f.Add(b, int64(1<<20))
	}
	zeros := bytes.Clone(multi) // keys of nothing
	for i := range 3 {
		clear(zeros[4096+1216*i+36 : 4096+1216*i+1196])
	}
	f.Add(zeros, int64(0))
	pinned := [][32]byte{{1}}
	f.Fuzz(func(t *testing.T, b []byte, limit int64) {
		for at := 4096; at+4096 <= len(b) && at <= 8192; at += 4096 {
			for i := range 3 {
				block := b[at+1216*i:]
				binary.LittleEndian.PutUint32(block[1196:], crc32.ChecksumIEEE(block[:1196]))
			}
		}
		info, err := image.Verify(bytes.NewReader(b), int64(len(b)), image.Options{MaxSize: limit})
		if err != nil {
			if code := ota.CodeOf(err); code != ota.ErrValidation && code != ota.ErrIncompatible {
				t.Fatalf("got %v with code %v", err, code)
			}
		} else if info.Size > info.End || info.End > int64(len(b)) || limit > 0 && info.End > limit || info.Size%16 != 0 || len(info.Segments) == 0 {
			t.Fatalf("of %d bytes, at most %d: got %+v", len(b), limit, info)
		}
		if info, err := image.Verify(bytes.NewReader(b), int64(len(b)), image.Options{KeyDigests: pinned}); err == nil {
			t.Fatalf("nobody has the key to this: %+v", info)
		}
	})
}
