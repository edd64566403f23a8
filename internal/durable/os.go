package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// OS is the real file system.
type OS struct{}

// OpenFile implements [FS].
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if flag&Direct != 0 {
		return openDirect(name, flag&^Direct, perm)
	}
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return wrap(f)
}

// Rename implements [FS].
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements [FS].
func (OS) Remove(name string) error { return os.Remove(name) }

// Mkdir implements [FS].
func (OS) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

// Stat implements [FS].
func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// ReadDir implements [FS].
func (OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// SyncDir implements [FS].
func (OS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(d), d.Close())
}

// Free implements [FS].
func (OS) Free(name string) (int64, error) { return free(name) }

type osFile struct{ *os.File }

// Size seeks, because Stat says 0 of a block device. Nothing else here uses the
// file's position.
func (f osFile) Size() (int64, error) { return f.Seek(0, io.SeekEnd) }

// WriteEarly implements [EarlyWriter].
func (f osFile) WriteEarly(offset, length int64) error { return writeEarly(f.File, offset, length) }
