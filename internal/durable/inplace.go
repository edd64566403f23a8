package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// An Eraser is a [File] on raw flash, which must be erased before it is written:
// a write can only clear bits.
type Eraser interface {
	// EraseSize is the count of bytes that are erased at once.
	EraseSize() int64
	// Erase sets length bytes from offset on to 0xFF. Both are multiples of EraseSize.
	Erase(offset, length int64) error
}

// ErrReadBack says that a place holds other bytes than were written to it.
var ErrReadBack = errors.New("reads back other bytes than were written")

// SyncFile brings to the medium what a process that was killed may have left in
// the cache of the file or device name. A reader that decides not to write, because
// everything is there already, needs it.
func SyncFile(fsys FS, name string) error {
	f, err := fsys.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// ReadRange returns length bytes from offset on of the file or device name, from
// the medium. Fewer bytes are there only before the end of a file: then they come
// with io.EOF.
func ReadRange(fsys FS, name string, offset, length int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY|Direct, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing can be lost
	data := make([]byte, length)
	n, err := f.ReadAt(data, offset)
	if int64(n) == length {
		err = nil
	}
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read %d bytes at %d of %s: %w", length, offset, name, err)
	}
	return data[:n], err
}

// WriteRange writes data over what is at offset of the file or device name, which
// keeps its size, its place on the medium and its name. When it returns nil, data
// is on the medium and was read back from there. A power cut leaves the old bytes,
// the new ones or a mixture, so there must be another copy, unless data lies in
// one sector of a medium that writes sectors whole.
//
// On raw flash it erases first, to the end of the last erase block: offset is a
// multiple of that, and what lies behind data in the block is lost.
//
// What a process that was killed may have left in the cache is synced before.
func WriteRange(fsys FS, name string, offset int64, data []byte) error {
	// openat("name", O_RDWR|O_CLOEXEC) = 3
	// fsync(3)                              another copy may be in the cache only
	// pwrite64(3, data, len, offset)        without O_TRUNC: that would lose everything
	// fsync(3)
	// close(3)
	// openat("name", O_RDONLY|O_DIRECT|O_CLOEXEC) = 3
	// pread64(3, ...)                       compared
	f, err := fsys.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = writeRange(f, offset, data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		var got []byte
		if got, err = ReadRange(fsys, name, offset, int64(len(data))); err == nil && !bytes.Equal(got, data) {
			err = ErrReadBack
		}
	}
	if err != nil {
		return fmt.Errorf("write %d bytes at %d of %s: %w", len(data), offset, name, err)
	}
	return nil
}

func writeRange(f File, offset int64, data []byte) error {
	if err := f.Sync(); err != nil {
		return err
	}
	size, err := f.Size()
	if err != nil {
		return err
	}
	if end := offset + int64(len(data)); offset < 0 || end > size {
		return fmt.Errorf("it ends at %d, and there are %d bytes", end, size)
	}
	if e, ok := f.(Eraser); ok {
		if err := eraseFor(e, offset, int64(len(data))); err != nil {
			return err
		}
	}
	n, err := f.WriteAt(data, offset)
	if err == nil && n != len(data) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return err
	}
	return f.Sync()
}

func eraseFor(e Eraser, offset, length int64) error {
	block := e.EraseSize()
	if offset%block != 0 {
		return fmt.Errorf("offset %d is not a multiple of the erase block, %d bytes", offset, block)
	}
	return e.Erase(offset, (length+block-1)/block*block)
}
