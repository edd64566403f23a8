//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// loopMajor is the device number of loop devices (Documentation/admin-guide/devices.txt).
const loopMajor = 7

// A loop is a block device that this program has made. Its backing file has no
// name, and the kernel takes the device away when the last one closes it, so that
// nothing is left behind however this program ends.
type loop struct {
	*os.File
	path string
	size int64
}

// memoryLoop makes a device in memory, where only software costs something.
func memoryLoop(size int64) (*loop, error) {
	fd, err := unix.MemfdCreate("slot", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "slot")
	defer f.Close()
	return newLoop(f, size, 0)
}

// diskLoop makes a device on the disk of dir. Writes to it reach that disk
// without another page cache in between.
func diskLoop(dir string, size int64) (*loop, error) {
	f, err := os.CreateTemp(dir, "slot-")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	return newLoop(f, size, unix.LO_FLAGS_DIRECT_IO)
}

func newLoop(backing *os.File, size int64, flags uint32) (*loop, error) {
	if err := unix.Fallocate(int(backing.Fd()), 0, 0, size); err != nil {
		return nil, fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for tries := 0; ; tries++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(f.Fd()), &unix.LoopConfig{Fd: uint32(backing.Fd()), Size: 4096,
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | flags}})
		if err == nil {
			return &loop{f, path, size}, nil
		}
		f.Close()
		if !errors.Is(err, unix.EBUSY) || tries == 10 { // somebody else was quicker
			return nil, fmt.Errorf("set up %s: %w", path, err)
		}
	}
}

// openSlot opens a loop device for writing, and nothing else: a slip in a
// command line must not cost a disk.
func openSlot(path string, flag int) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(uint64(st.Rdev)) != loopMajor {
		return nil, fmt.Errorf("%s is no loop device, and only such are written here", filepath.Clean(path))
	}
	return os.OpenFile(path, os.O_RDWR|flag, 0)
}
