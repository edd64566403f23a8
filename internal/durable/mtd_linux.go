package durable

import (
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mtdMajor is the major number of MTD character devices (Linux,
// Documentation/admin-guide/devices.txt).
const mtdMajor = 90

// mtdInfo is struct mtd_info_user (Linux, include/uapi/mtd/mtd-abi.h).
type mtdInfo struct {
	kind      uint8
	flags     uint32
	size      uint32
	eraseSize uint32
	writeSize uint32
	oobSize   uint32
	_         uint64
}

// eraseInfo is struct erase_info_user of the same file.
type eraseInfo struct{ start, length uint32 }

// Kinds of MTD that can have bad blocks, which nothing here skips (mtd-abi.h).
const (
	mtdNAND    = 4
	mtdMLCNAND = 8
)

// mtdFile is raw flash, /dev/mtdN.
type mtdFile struct {
	osFile
	info mtdInfo
}

var _ Eraser = mtdFile{}

// wrap makes an open file what it is: most are ordinary.
func wrap(f *os.File) (File, error) {
	info, err := f.Stat()
	if err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		return osFile{f}, nil // its own first use will say what is wrong
	}
	var st unix.Stat_t
	if err := control(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil || unix.Major(uint64(st.Rdev)) != mtdMajor {
		return osFile{f}, nil
	}
	m := mtdFile{osFile: osFile{f}}
	err = m.ioctl("MEMGETINFO", unix.MEMGETINFO, unsafe.Pointer(&m.info))
	if err == nil && (m.info.kind == mtdNAND || m.info.kind == mtdMLCNAND) {
		err = &os.PathError{Op: "open", Path: f.Name(), Err: fmt.Errorf("it is raw NAND flash, whose bad blocks are not skipped here: put a UBI volume on it, and ubiblock on that")}
	}
	if err != nil {
		f.Close() // nothing was written
		return nil, err
	}
	return m, nil
}

func (f mtdFile) ioctl(name string, request uint, arg unsafe.Pointer) error {
	err := control(f.File, func(fd int) error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); e != 0 {
			return e
		}
		return nil
	})
	if err != nil {
		return &os.PathError{Op: name, Path: f.Name(), Err: err}
	}
	return nil
}

// EraseSize implements [Eraser].
func (f mtdFile) EraseSize() int64 { return int64(f.info.eraseSize) }

// Erase implements [Eraser]. Many chips come up with all blocks locked, so it unlocks them.
func (f mtdFile) Erase(offset, length int64) error {
	block := int64(f.info.eraseSize)
	if offset < 0 || length < 0 || block == 0 || offset%block != 0 || length%block != 0 || offset+length > int64(f.info.size) {
		return &os.PathError{Op: "erase", Path: f.Name(), Err: fmt.Errorf("%w: %d bytes at %d of %d, in blocks of %d", fs.ErrInvalid, length, offset, f.info.size, block)}
	}
	e := eraseInfo{uint32(offset), uint32(length)}
	_ = f.ioctl("MEMUNLOCK", unix.MEMUNLOCK, unsafe.Pointer(&e)) // a chip without locks refuses it; one with reports it below
	return f.ioctl("MEMERASE", unix.MEMERASE, unsafe.Pointer(&e))
}

// Sync has nothing to do: a write has returned when it is on the flash, and the
// driver knows no fsync (Linux, drivers/mtd/mtdchar.c, mtd_fops).
func (f mtdFile) Sync() error { return nil }

// WriteEarly implements [EarlyWriter].
func (f mtdFile) WriteEarly(int64, int64) error { return nil }
