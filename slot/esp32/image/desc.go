package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"strings"
)

// AppDesc is what an application says of itself: esp_app_desc_t of
// esp_app_desc.h. Without a signature nothing vouches for it.
type AppDesc struct {
	SecureVersion uint32
	Version       string // at most 31 bytes; longer ones were cut by the build
	Project       string
	Date, Time    string // of the build, such as "Mar  1 2026" and "12:00:00"
	IDF           string // version of ESP-IDF
	ELFSHA256     [32]byte
	MinBlockRev   uint16 // of the eFuse block, major*100+minor
	MaxBlockRev   uint16 // 0: no limit
	MMUPageSize   uint32 // bytes
}

// BootloaderDesc is what a bootloader says of itself, since ESP-IDF 5.2:
// esp_bootloader_desc_t of esp_bootloader_desc.h.
type BootloaderDesc struct {
	SecureVersion byte
	Version       uint32
	IDF           string // version of ESP-IDF
	Built         string // date and time
}

const (
	appDescMagic        = 0xABCD5432
	appDescSize         = 256
	bootloaderDescMagic = 80
	bootloaderDescSize  = 80
)

// descriptor looks for a descriptor at the start of the first segment, without
// moving on.
func (s *scanner) descriptor(info *Info, seg Segment, o Options) error {
	var b [appDescSize]byte
	n := min(seg.Size, appDescSize)
	if err := readFull(s.r, b[:n], s.at); err != nil {
		return err
	}
	switch {
	case binary.LittleEndian.Uint32(b[:]) == appDescMagic && n >= 4:
		if n < appDescSize {
			return invalid("image is damaged: segment 1 is %d bytes, and the descriptor of the application in it needs %d", n, appDescSize)
		}
		if err := info.readApp(&b); err != nil {
			return err
		}
	case n >= bootloaderDescSize:
		info.readBootloader(&b)
	}
	if o.App && info.App == nil {
		return unfit("image is no application: it has no descriptor of one, as ESP-IDF puts it at offset 32; is it a bootloader?")
	}
	if o.MinSecureVersion > 0 && (info.App == nil || info.App.SecureVersion < o.MinSecureVersion) {
		var got uint32
		if info.App != nil {
			got = info.App.SecureVersion
		}
		return unfit("image has the security version %d, and this device takes none below %d: build it with a higher one", got, o.MinSecureVersion)
	}
	return nil
}

func (info *Info) readApp(b *[appDescSize]byte) error {
	le := binary.LittleEndian
	d := &AppDesc{
		SecureVersion: le.Uint32(b[4:]),
		Version:       text(b[16:48]), Project: text(b[48:80]), Time: text(b[80:96]), Date: text(b[96:112]), IDF: text(b[112:144]),
		ELFSHA256:   [32]byte(b[144:176]),
		MinBlockRev: le.Uint16(b[176:]), MaxBlockRev: le.Uint16(b[178:]),
		MMUPageSize: defaultPage, // of a build from before the field was there
	}
	if d.MaxBlockRev == 0xFFFF { // not set
		d.MaxBlockRev = 0
	}
	if log := b[180]; log != 0 {
		if log < 13 || log > 16 { // 8, 16, 32 and 64 KiB: SPI_FLASH_MMU_PAGE_SIZE
			return invalid("image is damaged: its pages are 2^%d bytes, want 2^13 to 2^16", log)
		}
		d.MMUPageSize = 1 << log
	}
	info.App = d
	return nil
}

// readBootloader takes b for a descriptor only if all of it looks like one: its
// magic number is but one byte.
func (info *Info) readBootloader(b *[appDescSize]byte) {
	if b[0] != bootloaderDescMagic || b[1] != 0 || b[2] != 0 || !printable(b[8:40]) || !printable(b[40:64]) {
		return
	}
	info.Bootloader = &BootloaderDesc{SecureVersion: b[3], Version: binary.LittleEndian.Uint32(b[4:]), IDF: text(b[8:40]), Built: text(b[40:64])}
}

// text returns a string that ends at the first NUL or is not terminated.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.ToValidUTF8(string(b), "\ufffd")
}

// printable reports whether b is a text of ASCII that ends with a NUL.
func printable(b []byte) bool {
	b, _, ok := bytes.Cut(b, []byte{0})
	for _, c := range b {
		ok = ok && c >= ' ' && c < 0x7F
	}
	return ok && len(b) > 0
}

// ReadAppDesc returns the descriptor of the application that begins at offset 0
// of r and ends before size, without verifying the image: nothing vouches for
// what it says. It is what ESP-IDF's bootloader compares for anti-rollback before it
// has loaded anything. An error of r is returned as it is.
func ReadAppDesc(r io.ReaderAt, size int64) (*AppDesc, error) {
	s := &scanner{r: r, size: size, hash: sha256.New()}
	info := new(Info)
	if _, err := s.header(info); err != nil {
		return nil, err
	}
	var b [segmentHeader]byte
	if err := s.next(b[:], "header of segment 1"); err != nil {
		return nil, err
	}
	seg := Segment{Offset: s.at, Addr: binary.LittleEndian.Uint32(b[:]), Size: binary.LittleEndian.Uint32(b[4:])}
	if err := s.need(int64(min(seg.Size, appDescSize)), "descriptor"); err != nil {
		return nil, err
	}
	if err := s.descriptor(info, seg, Options{App: true}); err != nil {
		return nil, err
	}
	return info.App, nil
}
