package esp32

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// flash is the whole flash of a chip, in a file, a block device or as raw flash.
type flash struct {
	fsys durable.FS
	path string
}

// size returns the bytes of the flash, after it has found that sectors of it can
// be erased one by one.
func (f flash) size() (int64, error) {
	file, err := f.fsys.OpenFile(f.path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer file.Close() // nothing is written
	if e, ok := file.(durable.Eraser); ok && (e.EraseSize() <= 0 || image.SectorSize%e.EraseSize() != 0) {
		return 0, fmt.Errorf("it erases %d bytes at once, and the two copies of otadata are %d bytes apart: use a driver that erases sectors", e.EraseSize(), image.SectorSize)
	}
	return file.Size()
}

// ReadAt reads what is on the medium.
func (f flash) ReadAt(p []byte, off int64) (int, error) {
	b, err := durable.ReadRange(f.fsys, f.path, off, int64(len(p)))
	return copy(p, b), err
}

// reader opens the flash to read past the page cache.
func (f flash) reader() (durable.File, error) {
	return f.fsys.OpenFile(f.path, os.O_RDONLY|durable.Direct, 0)
}

// writer opens the flash to write to it. A block device that is mounted is refused.
func (f flash) writer() (durable.File, error) {
	info, err := f.fsys.Stat(f.path)
	if err != nil {
		return nil, err
	}
	flag := os.O_RDWR
	if info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice {
		flag |= os.O_EXCL // Linux refuses it if the device is mounted (open(2))
	}
	return f.fsys.OpenFile(f.path, flag, 0)
}

// put writes an entry into the sector at off. There is no moment at which power
// can be lost and the bootloader finds an entry there that nobody has written:
//
//	write the old CRC as 0       an erasure that is cut can leave the old number and
//	                             its CRC, but not the state, which would turn
//	                             ABORTED into UNDEFINED
//	erase
//	write all but the CRC        the state must be there before the CRC: without it
//	                             a slot on trial would be one that stays
//	write the CRC                one word, which is what flash writes at once
//
// Each is on the medium before the next begins. A sector that holds e already, and
// nothing else, is not written.
func (f flash) put(off int64, e Entry) error {
	sector := bytes.Repeat([]byte{0xFF}, image.SectorSize)
	erased := bytes.Clone(sector)
	copy(sector, e.Encode())
	file, err := f.fsys.OpenFile(f.path, os.O_RDWR, 0)
	if err != nil {
		return pair.FlashError(err)
	}
	err = func() error {
		if err := file.Sync(); err != nil { // the other entry may be in the cache only
			return err
		}
		old := make([]byte, image.SectorSize)
		if _, err := f.ReadAt(old, off); err == nil && bytes.Equal(old, sector) {
			return nil
		}
		if !bytes.Equal(old, erased) { // or it could not be read
			if err := writeSync(file, make([]byte, entrySize-entryCRC), off+entryCRC); err != nil {
				return err
			}
			if err := eraseSync(file, erased, off); err != nil {
				return err
			}
		}
		if e == blank {
			return nil
		}
		if err := writeSync(file, sector[:entryCRC], off); err != nil {
			return err
		}
		if err := f.compare(sector[:entryCRC], off); err != nil {
			return err
		}
		return writeSync(file, sector[entryCRC:entrySize], off+entryCRC)
	}()
	if err = errors.Join(err, file.Close()); err == nil {
		err = f.compare(sector, off)
	}
	if err != nil {
		return fmt.Errorf("write the entry of otadata at %#x of %s: %w", off, f.path, pair.FlashError(err))
	}
	return nil
}

// compare reports whether want is on the medium.
func (f flash) compare(want []byte, off int64) error {
	got := make([]byte, len(want))
	if n, err := f.ReadAt(got, off); n < len(got) {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w at %#x", durable.ErrReadBack, off)
	}
	return nil
}

// writeSync returns once b is on the medium.
func writeSync(file durable.File, b []byte, off int64) error {
	if err := writeAt(file, b, off); err != nil {
		return err
	}
	return file.Sync()
}

// eraseSync returns once the medium is erased as far as erased is long.
func eraseSync(file durable.File, erased []byte, off int64) error {
	e, ok := file.(durable.Eraser)
	if !ok {
		return writeSync(file, erased, off)
	}
	if err := e.Erase(off, int64(len(erased))); err != nil {
		return err
	}
	return file.Sync()
}

func writeAt(file durable.File, b []byte, off int64) error {
	n, err := file.WriteAt(b, off)
	if err == nil && n != len(b) {
		err = io.ErrShortWrite
	}
	return err
}
