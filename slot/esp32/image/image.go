// Package image knows the formats that lie in the flash of an ESP32 and its
// successors: partition tables, application and bootloader images, and the
// signatures of Secure Boot v2.
//
// It is for whoever puts firmware on such a chip, be it package slot/esp32 on the
// device or a tool on a bench, and wants to know before the restart what the
// bootloader will say after it. Start with [Verify] for an image and with
// [ParseTable] for a partition table.
//
// Promised: no input, however hostile, makes a function panic, take more than 100 KiB
// of memory beyond what it was handed, or read more than twice the size of the
// image; what ESP-IDF's bootloader refuses because of the bytes is refused, with
// a sentence that says what to do. Errors carry [ota.ErrValidation] if the bytes
// are wrong, and [ota.ErrIncompatible] if they are right but not for this device.
//
// Not promised: that code can run at the addresses it wants; and nothing about
// Secure Boot v1, encrypted flash and the ESP8266.
//
// The formats are those of ESP-IDF (components/bootloader_support/include:
// esp_app_format.h, esp_flash_partitions.h, esp_secure_boot.h) and of its tools
// gen_esp32part.py and espsecure. All integers are little-endian.
package image

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
)

// SectorSize is what flash erases at once, in bytes. Partitions begin at a
// multiple of it, and so does a signature.
const SectorSize = 0x1000

// Info is what an image says of itself, after [Verify] has found that it is whole.
// Of all this only what a signature with a pinned key covers is authentic.
type Info struct {
	Chip           ChipID
	Segments       []Segment // 1 to 16
	Entry          uint32    // address where it starts
	SPIMode        SPIMode
	SPISpeed       byte   // header nibble: 0 div2, 1 div3, 2 div4, 15 div1
	FlashSize      int64  // bytes, as the header says; the vendor's tool rewrites it; 0: not known
	MinRev, MaxRev uint16 // revisions of the chip that it is for, major*100+minor; MaxRev 0: no limit

	HashAppended bool
	Size         int64    // bytes, with checksum and appended SHA-256, without signature
	End          int64    // bytes, with padding and signature sector if there is one; else Size
	SHA256       [32]byte // over all before the appended SHA-256: ESP-IDF's validation hash

	App        *AppDesc        // nil: not an application
	Bootloader *BootloaderDesc // nil: not a bootloader, or one from before ESP-IDF 5.2
	Signature  *Signature      // nil: no Secure Boot v2 signature
}

// A Segment is a piece of an image that is loaded or mapped to one address.
type Segment struct {
	Offset int64 // of the data, in the image
	Addr   uint32
	Size   uint32 // bytes, a multiple of 4
}

// SPIMode is how the chip reads its flash.
type SPIMode byte

// Modes of esp_app_format.h.
const (
	QIO SPIMode = iota
	QOUT
	DIO
	DOUT
	FastRead
	SlowRead
)

// Options say what an image has to be. The zero value asks for a whole image for
// any chip.
type Options struct {
	Chip    *ChipID // nil: any
	Rev     uint16  // of the chip, major*100+minor; 0: not checked
	MaxSize int64   // greatest [Info.End] in bytes, which is that of the partition; 0: no limit

	// App refuses what has no application descriptor, such as a bootloader.
	App bool
	// Exact refuses bytes behind the image. Without it size may be that of a
	// partition with remains of something else behind the image.
	Exact bool
	// MinSecureVersion is the lowest security version of an application; ESP-IDF's anti-rollback.
	MinSecureVersion uint32
	// KeyDigests are the SHA-256 of the public keys that are trusted, as the
	// chip's eFuses hold them; see [KeyDigest]. One of them must have signed. If
	// there is none, no signature is asked for.
	KeyDigests [][32]byte
}

// String returns the name that the vendor's tools use.
func (m SPIMode) String() string {
	if names := []string{"QIO", "QOUT", "DIO", "DOUT", "fast read", "slow read"}; int(m) < len(names) {
		return names[m]
	}
	return fmt.Sprintf("unknown mode %d", byte(m))
}

// Sizes and magic numbers of esp_app_format.h and esp_image_format.c, in bytes.
const (
	imageMagic    = 0xE9
	headerSize    = 24
	segmentHeader = 8
	maxSegments   = 16
	maxSegment    = 16 << 20 // and that itself is too much
	checksumStart = 0xEF     // ESP_ROM_CHECKSUM_INITIAL
	blockSize     = 16       // the checksum is the last byte of one
)

// Verify checks an image that begins at offset 0 of r and ends before size, and
// returns what it says. Nothing but a signature over SHA-384 makes it read the
// image a second time. An error of r is returned as it is, and says nothing
// about the image; behind the image it counts only if a signature is asked for.
//
// The order is that of the bootloader, with what the device demands as early as
// it is known: header, chip and revision, segments, descriptor, checksum,
// SHA-256, size, signature.
func Verify(r io.ReaderAt, size int64, o Options) (*Info, error) {
	s := &scanner{r: r, size: size, hash: sha256.New(), sum: checksumStart}
	if o.MaxSize > 0 {
		// What needs more than the partition has is no image for it, whatever lies behind.
		s.max = o.MaxSize
	}
	info := new(Info)
	count, err := s.header(info)
	if err != nil {
		return nil, err
	}
	if err := fits(info, o); err != nil {
		return nil, err
	}
	if err := s.segments(info, count, o); err != nil {
		return nil, err
	}
	if err := s.checksum(info); err != nil {
		return nil, err
	}
	if err := s.signature(info, o); err != nil {
		return nil, err
	}
	if o.MaxSize > 0 && info.End > o.MaxSize {
		return nil, unfit("image with its signature is %d bytes, and its partition has %d: build a smaller one", info.End, o.MaxSize)
	}
	if o.Exact && size != info.End {
		return nil, invalid("image ends after %d bytes, but the file has %d: what is behind it does not belong to it", info.End, size)
	}
	return info, nil
}

// scanner reads an image from its start to its end.
type scanner struct {
	r    io.ReaderAt
	size int64 // of what r has
	max  int64 // greatest size of an image; 0: no limit
	at   int64 // so far
	hash hash.Hash
	sum  byte // checksum of the segments' data
	buf  []byte
}

// next reads len(b) bytes.
func (s *scanner) next(b []byte, what string) error {
	if err := s.need(int64(len(b)), what); err != nil {
		return err
	}
	if err := readFull(s.r, b, s.at); err != nil {
		return err
	}
	s.hash.Write(b)
	s.at += int64(len(b))
	return nil
}

// need reports whether n more bytes are there.
func (s *scanner) need(n int64, what string) error {
	end := s.at + n // at is below 2^63-2^33: see maxSegments and maxSegment
	if s.max > 0 && end > s.max {
		return unfit("image is too large: its %s ends at byte %d, and its partition has %d: build a smaller one", what, end, s.max)
	}
	if end > s.size {
		return invalid("image is cut short: its %s ends at byte %d, and there are only %d bytes: get the file again", what, end, s.size)
	}
	return nil
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read the image: got %d of %d bytes at %d: %w", n, len(b), at, err)
}

// header reads the first 24 bytes and returns the number of segments.
func (s *scanner) header(info *Info) (count int, err error) {
	if s.size == 0 {
		return 0, invalid("image is empty: got 0 bytes")
	}
	var b [headerSize]byte
	if err := s.need(1, "header"); err != nil {
		return 0, err
	}
	if err := readFull(s.r, b[:1], 0); err != nil {
		return 0, err
	}
	switch b[0] {
	case imageMagic:
	case 0xFF:
		return 0, invalid("no image here: it begins with 0xFF, as erased flash does, and not with 0xE9")
	default:
		return 0, invalid("no image of an ESP32: it begins with %#02x, not with 0xE9; if flash encryption is on, read it decrypted", b[0])
	}
	if err := s.next(b[:], "header"); err != nil {
		return 0, err
	}
	count = int(b[1])
	if count == 0 || count > maxSegments {
		return 0, invalid("image has %d segments, want 1 to %d", count, maxSegments)
	}
	le := binary.LittleEndian
	info.SPIMode = SPIMode(b[2])
	info.SPISpeed = b[3] & 0x0F
	if n := b[3] >> 4; n <= 7 { // 1 MB, 2 MB ... 128 MB
		info.FlashSize = 1 << 20 << n
	}
	info.Entry = le.Uint32(b[4:])
	info.Chip = ChipID(le.Uint16(b[12:]))
	info.MinRev = le.Uint16(b[15:])
	if info.MinRev == 0 { // before ESP-IDF 4.4 there was only the major number
		info.MinRev = 100 * uint16(b[14])
	}
	if info.MaxRev = le.Uint16(b[17:]); info.MaxRev == 0xFFFF { // not set
		info.MaxRev = 0
	}
	if b[23] > 1 {
		return 0, invalid("image header is damaged: byte 23 is %#02x, want 0 or 1", b[23])
	}
	info.HashAppended = b[23] == 1
	return count, nil
}

// fits compares the header with the device.
func fits(info *Info, o Options) error {
	if o.Chip != nil && info.Chip != *o.Chip {
		return unfit("image is for %v (chip %d), this device is an %v (chip %d): build it for that one",
			info.Chip, uint16(info.Chip), *o.Chip, uint16(*o.Chip))
	}
	if o.Rev == 0 {
		return nil
	}
	if o.Rev < info.MinRev {
		return unfit("image is for revision %s and newer of the chip, this device has %s: build it with a lower minimum", rev(info.MinRev), rev(o.Rev))
	}
	if info.MaxRev != 0 && o.Rev > info.MaxRev {
		return unfit("image is for revision %s and older of the chip, this device has %s: build it with a newer ESP-IDF", rev(info.MaxRev), rev(o.Rev))
	}
	return nil
}

// rev writes a revision of a chip as the vendor does.
func rev(r uint16) string { return fmt.Sprintf("v%d.%d", r/100, r%100) }

// segments reads the segments, and the descriptor at the start of the first.
func (s *scanner) segments(info *Info, count int, o Options) error {
	page := uint32(defaultPage)
	for i := range count {
		name := fmt.Sprintf("segment %d of %d", i+1, count)
		var b [segmentHeader]byte
		if err := s.next(b[:], "header of "+name); err != nil {
			return err
		}
		seg := Segment{Offset: s.at, Addr: binary.LittleEndian.Uint32(b[:]), Size: binary.LittleEndian.Uint32(b[4:])}
		if seg.Size%4 != 0 || seg.Size >= maxSegment {
			return invalid("image is damaged: %s is %d bytes, want a multiple of 4 below %d", name, seg.Size, maxSegment)
		}
		if uint64(seg.Addr)+uint64(seg.Size) > 1<<32 {
			return invalid("image is damaged: %s of %d bytes at address %#x ends behind the last address", name, seg.Size, seg.Addr)
		}
		if err := s.need(int64(seg.Size), name); err != nil {
			return err
		}
		if i == 0 {
			if err := s.descriptor(info, seg, o); err != nil {
				return err
			}
			if info.App != nil {
				page = info.App.MMUPageSize
			}
		}
		if info.Chip.maps(seg.Addr) && uint32(seg.Offset)%page != seg.Addr%page {
			return invalid("image cannot run: %s is mapped to address %#x and lies at offset %#x; both must have the same place in a page of %d bytes",
				name, seg.Addr, seg.Offset, page)
		}
		if err := s.data(int64(seg.Size)); err != nil {
			return err
		}
		info.Segments = append(info.Segments, seg)
	}
	return nil
}

// data reads n bytes of a segment, which [scanner.need] has found to be there.
func (s *scanner) data(n int64) error {
	if s.buf == nil {
		s.buf = make([]byte, 32<<10)
	}
	for n > 0 {
		b := s.buf[:min(n, int64(len(s.buf)))]
		if err := s.next(b, "segment"); err != nil {
			return err
		}
		s.sum ^= xor(b)
		n -= int64(len(b))
	}
	return nil
}

// xor returns all bytes of b, xored.
func xor(b []byte) byte {
	var x uint64
	for ; len(b) >= 8; b = b[8:] {
		x ^= binary.LittleEndian.Uint64(b)
	}
	for _, c := range b {
		x ^= uint64(c)
	}
	x ^= x >> 32
	x ^= x >> 16
	x ^= x >> 8
	return byte(x)
}

// checksum reads what is behind the segments: padding, checksum and SHA-256.
func (s *scanner) checksum(info *Info) error {
	var pad [blockSize]byte
	b := pad[:blockSize-s.at%blockSize] // at least the checksum itself
	if err := s.next(b, "checksum"); err != nil {
		return err
	}
	if got, want := s.sum, b[len(b)-1]; got != want {
		return invalid("image is damaged: the checksum of its segments is %#02x, and it says %#02x: get the file again", got, want)
	}
	s.hash.Sum(info.SHA256[:0])
	if info.HashAppended {
		var want [sha256.Size]byte
		if err := s.next(want[:], "SHA-256"); err != nil {
			return err
		}
		if want != info.SHA256 {
			return invalid("image is damaged: its SHA-256 is %x, and it says %x: get the file again", info.SHA256, want)
		}
	}
	info.Size, info.End = s.at, s.at
	return nil
}
