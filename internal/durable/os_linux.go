package durable

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// openUncached opens with O_DIRECT, or without where the file system refuses it
// (tmpfs does with EINVAL).
func openUncached(name string, flag int, perm fs.FileMode) (f *os.File, bypass bool, err error) {
	f, err = os.OpenFile(name, flag|unix.O_DIRECT, perm)
	if err == nil {
		return f, true, nil
	}
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, false, err
	}
	f, err = os.OpenFile(name, flag, perm)
	return f, false, err
}

// forget writes what is dirty and drops it from the page cache. The cache only
// lets go of clean pages, so the order matters.
func forget(f *os.File, off, n int64) error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	return control(f, func(fd int) error {
		if err := unix.SyncFileRange(fd, off, n, all); err != nil && !errors.Is(err, unix.ESPIPE) {
			return os.NewSyscallError("sync_file_range", err)
		}
		// A file system without a cache to drop may refuse; the read is right all the same.
		_ = unix.Fadvise(fd, off, n, unix.FADV_DONTNEED)
		return nil
	})
}

func writeEarly(f *os.File, off, n int64) error {
	return control(f, func(fd int) error {
		return os.NewSyscallError("sync_file_range", unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE))
	})
}
