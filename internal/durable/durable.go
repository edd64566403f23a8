// Package durable writes files so that they survive a power cut.
//
// Everything that this project writes on a device goes through [FS], so that
// the same code runs on the real file system, [OS], and on a disk made for tests
// that loses power at every single operation.
//
// Start with [WriteFile] for files that are replaced as a whole, and with
// [FS.OpenFile] and [File.Sync] for those written in place. Promised is what the
// functions say about the moment they return; nothing is promised about a medium
// that claims to have written what it has not.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Direct is a flag for [FS.OpenFile] beside those of package os, for files that
// are opened to read. Reads then come from the medium and not from the page
// cache, where the system can do that; what was written but not synced is
// included. The caller needs no alignment. Sequential reads are fetched ahead in
// pieces of 1 MiB.
const Direct = 1 << 30

// FS is the part of a file system that a device's state needs. Names and errors
// are those of package os; flags are too, with [Direct] in addition.
type FS interface {
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	Mkdir(name string, perm fs.FileMode) error
	Stat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.DirEntry, error)

	// SyncDir makes the names in a directory durable: what was created, renamed
	// or removed in it. Syncing a file does not do that.
	SyncDir(name string) error

	// Free returns the bytes that may still be written to the file system that
	// holds the file or directory name.
	Free(name string) (int64, error)
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	// Sync makes content and size durable. After an error it is not known what
	// is on the medium, and another Sync that succeeds does not change that:
	// write again what was not synced.
	Sync() error
	// Size returns the bytes of a regular file, or the capacity of a block device.
	Size() (int64, error)
}

// An EarlyWriter is a [File] that can begin to write a range to the medium before Sync, which
// keeps the amount of unwritten data, and the time of the Sync, small. It
// promises nothing: an error is no reason to stop.
type EarlyWriter interface {
	WriteEarly(offset, length int64) error
}

// WriteFile replaces the file name by data. A power cut at any moment leaves the
// old file or the new one, whole. After an error either may be there, also after
// the next power cut. One writer at a time may use a name: the temporary file is
// name + ".tmp", and one left over from a crash is removed first.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) (err error) {
	// unlink("dir/name.tmp")                                       only if it is there
	// openat("dir/name.tmp", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, perm) = 3
	// pwrite64(3, data, len, 0)
	// fsync(3)                                                     or the new name could show an empty file
	// close(3)
	// renameat("dir/name.tmp", "dir/name")
	// openat("dir", O_RDONLY|O_DIRECTORY|O_CLOEXEC) = 3
	// fsync(3)                                                     or the old file could come back
	// close(3)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	tmp := name + ".tmp"
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the left-over of an earlier write: %w", err)
	}
	// O_EXCL: nobody else can have put a link to another file there.
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	err = writeAll(f, data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(tmp, name)
	}
	if err != nil {
		// Tidiness only: the next write removes it too.
		if rerr := fsys.Remove(tmp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

func writeAll(f File, data []byte) error {
	n, err := f.WriteAt(data, 0)
	if err == nil && n != len(data) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("wrote %d of %d bytes: %w", n, len(data), err)
	}
	return nil
}

// ReadFile returns the content of the file name. A file of more than limit bytes
// is an error, so that a broken file costs bounded memory.
func ReadFile(fsys FS, name string, limit int64) (data []byte, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing can be lost
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if size > limit {
		return nil, fmt.Errorf("read %s: it is %d bytes, want at most %d", name, size, limit)
	}
	data = make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if err != nil && !(err == io.EOF && int64(n) == size) {
		return nil, fmt.Errorf("read %s: got %d of %d bytes: %w", name, n, size, err)
	}
	return data, nil
}

// MkdirAll creates the directory name with all its parents, and makes them
// durable: those that it created, and as far as it is allowed to those that were
// there, because an earlier call may have been cut short before it had synced them.
func MkdirAll(fsys FS, name string, perm fs.FileMode) error {
	name = filepath.Clean(name)
	parent := filepath.Dir(name)
	if parent == name {
		return nil
	}
	if err := MkdirAll(fsys, parent, perm); err != nil {
		return err
	}
	err := fsys.Mkdir(name, perm)
	switch {
	case err == nil:
		return fsys.SyncDir(parent)
	case errors.Is(err, fs.ErrExist):
		info, err := fsys.Stat(name)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("create directory %s: there is a file of that name", name)
		}
	default:
		// A read-only or forbidden parent says so before it says that the
		// directory is already there.
		if info, serr := fsys.Stat(name); serr != nil || !info.IsDir() {
			return err
		}
	}
	// Best effort: a parent that we may not open was not made by us.
	if err := fsys.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}
