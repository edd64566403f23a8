// Package image knows the formats that lie in the flash of an ESP32 and its
// successors: partition tables, application and bootloader images, and the
// signatures of Secure Boot v2.
//
// It is for whoever puts firmware on such a chip, be it package slot/esp32 on the
// device or a tool on a bench, and wants to know before the restart what the
// bootloader will say after it. Start with [Verify] for an image and with
// [ParseTable] for a partition table.
//
// Promised: no input, however hostile, makes a function panic, allocate more
// than some ten kilobytes beyond the input it was handed, or read an image more
// than once; an image is never held in memory as a whole; what ESP-IDF's
// bootloader refuses is refused, with a sentence that says what to do. Errors
// carry [ota.ErrValidation] if the bytes are wrong, and [ota.ErrIncompatible] if
// they are right but not for this device.
//
// Not promised: Secure Boot v1, flash encryption and the ESP8266.
//
// The formats are those of ESP-IDF (components/bootloader_support/include:
// esp_app_format.h, esp_flash_partitions.h, esp_secure_boot.h) and of its tools
// gen_esp32part.py and espsecure. All integers are little-endian.
package image

import (
	"errors"
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
	FlashSize      int64  // bytes, as the header says; 0: not known
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

// Verify checks an image that begins at offset 0 of r and ends before size, and
// returns what it says. It reads every byte once and holds no more than a piece
// of it. An error of r is returned as it is, and says nothing about the image.
func Verify(r io.ReaderAt, size int64, o Options) (*Info, error) {
	return nil, errors.ErrUnsupported
}
