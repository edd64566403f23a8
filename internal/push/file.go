package push

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// File is a bundle to be pushed. Methods may be called from several goroutines.
type File struct {
	Name     string // of the file
	Size     int64  // bytes
	SHA256   ota.Hash
	Manifest *ota.Manifest
	Verified bool // signatures were checked; otherwise only that the file is whole

	file *os.File
}

// Open opens a bundle and reads it once, to see that it is whole: a damaged file is found
// here rather than after an hour of transfer. With keys, their signatures are checked;
// with nil nothing is said of who made it, which is for the device to check.
func Open(name string, keys *bundle.Keys) (*File, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	f, err := read(file, keys)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f.Name = name
	return f, nil
}

func read(file *os.File, keys *bundle.Keys) (*File, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file")
	}
	b, err := bundle.Open(file, info.Size())
	if err != nil {
		return nil, err
	}
	verify := bundle.Unsigned
	if keys != nil {
		verify = keys.Verify
	}
	m, err := verify(b.Signed())
	if err != nil {
		return nil, err
	}
	if _, err := b.Check(m); err != nil {
		return nil, err
	}
	f := &File{Size: info.Size(), Manifest: m, Verified: keys != nil, file: file}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(file, 0, f.Size)); err != nil {
		return nil, err
	}
	h.Sum(f.SHA256[:0])
	return f, nil
}

// ReadAt implements [io.ReaderAt]. A file that was changed after Open is noticed by the
// device, which compares every chunk with the manifest.
func (f *File) ReadAt(p []byte, offset int64) (int, error) { return f.file.ReadAt(p, offset) }

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }
