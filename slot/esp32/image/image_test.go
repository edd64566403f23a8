package image_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

func verify(b []byte, o image.Options) (*image.Info, error) {
	return image.Verify(bytes.NewReader(b), int64(len(b)), o)
}

func allChips(t *testing.T) []image.ChipID {
	t.Helper()
	var all []image.ChipID
	for id := range image.ChipID(100) {
		if !strings.HasPrefix(id.String(), "unknown") {
			all = append(all, id)
		}
	}
	if len(all) != 13 {
		t.Fatalf("got %d chips, want 13", len(all))
	}
	return all
}

func TestVerify(t *testing.T) {
	for _, chip := range allChips(t) {
		for _, size := range []int{0, 1000, 65536, 70001} {
			for _, noHash := range []bool{false, true} {
				spec := imagetest.Spec{Chip: chip, Version: "1.2.3", Project: "bess", SecureVersion: 7, Size: size, NoHash: noHash, MinRev: 100, MaxRev: 399}
				b := imagetest.App(spec)
				if len(b) < size || len(b) > size+400 {
					t.Errorf("got an image of %d bytes, want about %d", len(b), size)
				}
				info, err := verify(b, image.Options{Chip: &chip, Rev: 301, MaxSize: int64(len(b)), App: true, Exact: true, MinSecureVersion: 7})
				if err != nil {
					t.Errorf("%v, %d bytes: %v", chip, size, err)
					continue
				}
				n := len(b)
				if !noHash {
					n -= sha256.Size
				}
				if want := sha256.Sum256(b[:n]); info.SHA256 != want || info.HashAppended == noHash {
					t.Errorf("got SHA-256 %x, want %x", info.SHA256, want)
				}
				if info.Chip != chip || info.Size != int64(len(b)) || info.End != info.Size || info.MinRev != 100 || info.MaxRev != 399 ||
					info.SPIMode != image.DIO || info.FlashSize != 4<<20 || len(info.Segments) != 2 || info.Signature != nil || info.Bootloader != nil {
					t.Errorf("got %+v", info)
				}
				want := &image.AppDesc{SecureVersion: 7, Version: "1.2.3", Project: "bess", Date: "Mar  1 2026", Time: "12:00:00", IDF: "v5.5", MMUPageSize: 65536}
				if diff := cmp.Diff(want, info.App); diff != "" {
					t.Error(diff)
				}
			}
		}
	}
}

// Strings that fill their field have no NUL behind them, and are not read on.
func TestLongStrings(t *testing.T) {
	b := imagetest.App(imagetest.Spec{NoHash: true})
	copy(b[48:], strings.Repeat("v", 32))
	copy(b[80:], "\xff\xfebad")
	fixChecksum(b)
	info, err := verify(b, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.App.Version, strings.Repeat("v", 32); got != want {
		t.Errorf("got version %q, want %q", got, want)
	}
	if got, want := info.App.Project, "\ufffdbad"; got != want {
		t.Errorf("got project %q, want %q", got, want)
	}
}

// fixChecksum makes the checksum right of an image without a hash, whose two
// segments are as imagetest makes them.
func fixChecksum(b []byte) {
	n := int(binary.LittleEndian.Uint32(b[28:]))
	sum := byte(0xEF)
	for _, c := range b[32 : 32+n] {
		sum ^= c
	}
	for _, c := range b[40+n : 44+n] {
		sum ^= c
	}
	b[len(b)-1] = sum
}

func TestRefused(t *testing.T) {
	esp32, s3 := image.ESP32, image.ESP32S3
	le := binary.LittleEndian
	spec := imagetest.Spec{Size: 5000, SecureVersion: 3, MinRev: 100, MaxRev: 199}
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
		o      image.Options
		code   ota.ErrorCode
		want   string
	}{
		{"empty", func(b []byte) []byte { return nil }, image.Options{}, ota.ErrValidation, "empty"},
		{"erased", func(b []byte) []byte { b[0] = 0xFF; return b }, image.Options{}, ota.ErrValidation, "as erased flash does"},
		{"other file", func(b []byte) []byte { b[0] = 0x7F; return b }, image.Options{}, ota.ErrValidation, "begins with 0x7f"},
		{"header cut", func(b []byte) []byte { return b[:23] }, image.Options{}, ota.ErrValidation, "header ends at byte 24, and there are only 23"},
		{"no segments", func(b []byte) []byte { b[1] = 0; return b }, image.Options{}, ota.ErrValidation, "0 segments, want 1 to 16"},
		{"17 segments", func(b []byte) []byte { b[1] = 17; return b }, image.Options{}, ota.ErrValidation, "17 segments"},
		{"hash flag", func(b []byte) []byte { b[23] = 2; return b }, image.Options{}, ota.ErrValidation, "byte 23 is 0x02"},
		{"other chip", nil, image.Options{Chip: &s3}, ota.ErrIncompatible, "image is for ESP32 (chip 0), this device is an ESP32-S3 (chip 9)"},
		{"unknown chip", func(b []byte) []byte { b[12] = 77; return b }, image.Options{Chip: &esp32}, ota.ErrIncompatible, "image is for unknown chip 77 (chip 77), this device is an ESP32 (chip 0)"},
		{"old chip", nil, image.Options{Rev: 99}, ota.ErrIncompatible, "for revision v1.0 and newer of the chip, this device has v0.99"},
		{"old minimum", func(b []byte) []byte { b[14], b[15], b[16] = 3, 0, 0; return b }, image.Options{Rev: 200}, ota.ErrIncompatible, "v3.0 and newer"},
		{"new chip", nil, image.Options{Rev: 200}, ota.ErrIncompatible, "for revision v1.99 and older"},
		{"segment not of words", func(b []byte) []byte { b[28]++; return b }, image.Options{}, ota.ErrValidation, "want a multiple of 4"},
		{"segment of 16 MiB", func(b []byte) []byte { le.PutUint32(b[28:], 16<<20); return b }, image.Options{}, ota.ErrValidation, "segment 1 of 2 is 16777216 bytes"},
		{"segment of 4 GiB", func(b []byte) []byte { le.PutUint32(b[28:], 0xFFFFFFFC); return b }, image.Options{}, ota.ErrValidation, "segment 1 of 2 is 4294967292 bytes"},
		{"segment wraps", func(b []byte) []byte { le.PutUint32(b[24:], 0xFFFFFF00); return b }, image.Options{}, ota.ErrValidation, "behind the last address"},
		{"segment behind the end", func(b []byte) []byte { le.PutUint32(b[28:], 8000); return b }, image.Options{}, ota.ErrValidation, "segment 1 of 2 ends at byte 8032, and there are only"},
		{"segment beyond the partition", func(b []byte) []byte { le.PutUint32(b[28:], 8000); return b }, image.Options{MaxSize: 4096}, ota.ErrIncompatible, "its segment 1 of 2 ends at byte 8032, and its partition has 4096"},
		{"segment not on its page", func(b []byte) []byte { b[24] ^= 0x10; return b }, image.Options{}, ota.ErrValidation, "mapped to address 0x3f400030 and lies at offset 0x20"},
		{"short descriptor", func(b []byte) []byte { le.PutUint32(b[28:], 252); return b }, image.Options{}, ota.ErrValidation, "segment 1 is 252 bytes, and the descriptor"},
		{"page size", func(b []byte) []byte { b[32+180] = 30; return b }, image.Options{}, ota.ErrValidation, "pages are 2^30 bytes"},
		{"no descriptor", func(b []byte) []byte { b[32] = 0; return b }, image.Options{App: true}, ota.ErrIncompatible, "no application"},
		{"old security version", nil, image.Options{MinSecureVersion: 4}, ota.ErrIncompatible, "security version 3, and this device takes none below 4"},
		{"no security version", func(b []byte) []byte { b[32] = 0; return b }, image.Options{MinSecureVersion: 1}, ota.ErrIncompatible, "security version 0"},
		{"data", func(b []byte) []byte { b[2000] ^= 4; return b }, image.Options{}, ota.ErrValidation, "checksum of its segments is"},
		{"data, twice", func(b []byte) []byte { b[2000] ^= 4; b[3000] ^= 4; return b }, image.Options{}, ota.ErrValidation, "its SHA-256 is"},
		{"entry", func(b []byte) []byte { b[4] ^= 4; return b }, image.Options{}, ota.ErrValidation, "its SHA-256 is"},
		{"checksum cut", func(b []byte) []byte { return b[:len(b)-33] }, image.Options{}, ota.ErrValidation, "its checksum ends at"},
		{"hash cut", func(b []byte) []byte { return b[:len(b)-1] }, image.Options{}, ota.ErrValidation, "its SHA-256 ends at"},
		{"bytes behind", func(b []byte) []byte { return append(b, 0) }, image.Options{Exact: true}, ota.ErrValidation, "does not belong to it"},
		{"too large", nil, image.Options{MaxSize: 5000}, ota.ErrIncompatible, "its partition has 5000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := imagetest.App(spec)
			if tt.change != nil {
				b = tt.change(b)
			}
			info, err := verify(b, tt.o)
			if err == nil {
				t.Fatalf("got %+v, want an error", info)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want it to contain %q", err, tt.want)
			}
			if got := ota.CodeOf(err); got != tt.code {
				t.Errorf("got code %v, want %v", got, tt.code)
			}
		})
	}
}

// Whatever single bit of an image with a hash turns, it is no longer that image.
func TestEveryBit(t *testing.T) {
	b := imagetest.App(imagetest.Spec{Version: "1"})
	esp32 := image.ESP32
	o := image.Options{Chip: &esp32, Exact: true, App: true}
	if _, err := verify(b, o); err != nil {
		t.Fatal(err)
	}
	for i := range 8 * len(b) {
		b[i/8] ^= 1 << (i % 8)
		if _, err := verify(b, o); err == nil {
			t.Errorf("with bit %d of byte %d turned: got no error", i%8, i/8)
		}
		b[i/8] ^= 1 << (i % 8)
	}
}

func TestEveryLength(t *testing.T) {
	for _, noHash := range []bool{false, true} {
		b := imagetest.App(imagetest.Spec{NoHash: noHash})
		for n := range b {
			_, err := verify(b[:n], image.Options{})
			if got := ota.CodeOf(err); err == nil || got != ota.ErrValidation {
				t.Errorf("of %d bytes the first %d: got %v, want a validation error", len(b), n, err)
			}
		}
	}
}

// An old image reaches further than the new one that was written over it.
func TestRemains(t *testing.T) {
	old, err := image.Sign(imagetest.App(imagetest.Spec{Size: 9000, Seed: 1}), testKeys().p256)
	if err != nil {
		t.Fatal(err)
	}
	partition := bytes.Repeat([]byte{0xFF}, 1<<20)
	copy(partition, old)
	next := imagetest.App(imagetest.Spec{Size: 6000, Seed: 2})
	copy(partition, next)
	info, err := verify(partition, image.Options{MaxSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if info.End != int64(len(next)) || info.Signature != nil {
		t.Errorf("got an end at %d and a signature %v, want %d and none", info.End, info.Signature, len(next))
	}
	// The old one's signature now lies where the new one's would be.
	next = imagetest.App(imagetest.Spec{Size: 8500, Seed: 2})
	copy(partition, next)
	info, err = verify(partition, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s := info.Signature; s == nil || s.Blocks[0].Err == nil || !strings.Contains(s.Blocks[0].Err.Error(), "about other bytes") {
		t.Errorf("got %+v, want a signature about other bytes", s)
	}
	digest, err := image.KeyDigest(testKeys().p256.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err = verify(partition, image.Options{KeyDigests: [][32]byte{digest}}); ota.CodeOf(err) != ota.ErrValidation {
		t.Errorf("with that key pinned: got %v, want a validation error", err)
	}
}

// brokenReader is a fake medium that cannot be read from some byte on, and that
// counts what is read.
type brokenReader struct {
	b    []byte
	from int64
	read int64
}

var errBroken = errors.New("bus fault")

func (r *brokenReader) ReadAt(b []byte, at int64) (int, error) {
	if at+int64(len(b)) > r.from {
		return 0, errBroken
	}
	r.read += int64(len(b))
	return bytes.NewReader(r.b).ReadAt(b, at)
}

// A medium that cannot be read says nothing about the image, and behind it nothing
// at all unless a signature has to be there.
func TestReadError(t *testing.T) {
	key := testKeys().p384
	plain := imagetest.App(imagetest.Spec{Size: 3000})
	signed, err := image.Sign(plain, key)
	if err != nil {
		t.Fatal(err)
	}
	pinned := image.Options{KeyDigests: [][32]byte{keyDigest(t, key)}}
	for from := range len(signed) - 448 { // behind the third block nothing is read
		r := &brokenReader{b: signed, from: int64(from)}
		if _, err := image.Verify(r, int64(len(signed)), pinned); !errors.Is(err, errBroken) || ota.CodeOf(err) == ota.ErrValidation {
			t.Fatalf("broken from byte %d on: got %v, want the error of the medium", from, err)
		}
		info, err := image.Verify(r, int64(len(signed)), image.Options{})
		if from < len(plain) && !errors.Is(err, errBroken) {
			t.Fatalf("without a key, broken from byte %d on: got %v, want the error of the medium", from, err)
		}
		if from >= len(plain) && (err != nil || info.Signature != nil || info.End != int64(len(plain))) {
			t.Fatalf("without a key, broken from byte %d on: got %+v, %v, want the image without its signature", from, info, err)
		}
	}
	// A file that shrinks while it is read.
	if _, err := image.Verify(bytes.NewReader(signed[:200]), int64(len(signed)), image.Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want an unexpected end", err)
	}
}

// What a verification costs, for an image of 8 MiB and for one that pretends to be.
func TestCost(t *testing.T) {
	plain := imagetest.App(imagetest.Spec{Size: 8 << 20})
	signed, err := image.Sign(plain, testKeys().p384)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		b    []byte
		read int64
	}{
		{"plain", plain, int64(len(plain)) + 4096},
		{"signed over SHA-384", signed, 2*int64(len(signed)) + 4096},
		{"header only", plain[:100], 200},
	} {
		var before, after runtime.MemStats
		r := &brokenReader{b: tt.b, from: int64(len(tt.b))}
		runtime.ReadMemStats(&before)
		_, err := image.Verify(r, int64(len(tt.b)), image.Options{})
		runtime.ReadMemStats(&after)
		if err != nil && tt.name != "header only" {
			t.Error(err)
		}
		if r.read > tt.read {
			t.Errorf("%s: read %d bytes, want at most %d", tt.name, r.read, tt.read)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 100<<10 {
			t.Errorf("%s: took %d bytes of memory, want at most 100 KiB", tt.name, got)
		}
	}
}

func TestBootloader(t *testing.T) {
	b := imagetest.Bootloader(imagetest.Spec{Chip: image.ESP32C3, SecureVersion: 2, Size: 20000})
	info, err := verify(b, image.Options{Exact: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &image.BootloaderDesc{SecureVersion: 2, Version: 1, IDF: "v5.5", Built: "Mar  1 2026 12:00:00"}
	if diff := cmp.Diff(want, info.Bootloader); diff != "" || info.App != nil {
		t.Error(diff, info.App)
	}
}

func TestChip(t *testing.T) {
	for _, chip := range allChips(t) {
		for _, name := range []string{chip.String(), strings.ToLower(chip.String()), strings.ReplaceAll(chip.String(), "-", "")} {
			if got, err := image.ParseChip(name); err != nil || got != chip {
				t.Errorf("%q: got %v, %v, want %v", name, got, err, chip)
			}
		}
		if _, ok := chip.BootloaderOffset(); !ok {
			t.Errorf("%v: nobody knows where its bootloader is", chip)
		}
	}
	for _, name := range []string{"", "ESP8266", "ESP32-S", "unknown chip 3"} {
		if got, err := image.ParseChip(name); err == nil {
			t.Errorf("%q: got %v, want an error", name, got)
		}
	}
}

func ExampleVerify() {
	app := imagetest.App(imagetest.Spec{Chip: image.ESP32S3, Version: "2.1.0", Project: "bess"})

	chip := image.ESP32S3
	info, err := image.Verify(bytes.NewReader(app), int64(len(app)), image.Options{Chip: &chip, App: true, MaxSize: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(info.App.Project, info.App.Version, "for", info.Chip)

	chip = image.ESP32
	_, err = image.Verify(bytes.NewReader(app), int64(len(app)), image.Options{Chip: &chip})
	fmt.Println(err)
	// Output:
	// bess 2.1.0 for ESP32-S3
	// image is for ESP32-S3 (chip 9), this device is an ESP32 (chip 0): build it for that one
}

func TestReadAppDesc(t *testing.T) {
	b := imagetest.App(imagetest.Spec{Version: "3.1", SecureVersion: 9, Size: 9000})
	d, err := image.ReadAppDesc(bytes.NewReader(b), int64(len(b)))
	if err != nil || d.Version != "3.1" || d.SecureVersion != 9 {
		t.Errorf("got %+v, %v, want version 3.1", d, err)
	}
	for n := range 288 { // header, header of the segment, descriptor
		if _, err := image.ReadAppDesc(bytes.NewReader(b), int64(n)); ota.CodeOf(err) != ota.ErrValidation {
			t.Errorf("of %d bytes: got %v, want a validation error", n, err)
		}
	}
	boot := imagetest.Bootloader(imagetest.Spec{})
	if d, err := image.ReadAppDesc(bytes.NewReader(boot), int64(len(boot))); ota.CodeOf(err) != ota.ErrIncompatible {
		t.Errorf("of a bootloader: got %+v, %v, want that it is no application", d, err)
	}
	if _, err := image.ReadAppDesc(&brokenReader{b: b, from: 100}, int64(len(b))); !errors.Is(err, errBroken) {
		t.Errorf("got %v, want the error of the medium", err)
	}
}
