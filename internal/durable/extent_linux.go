package durable

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Extent implements [Extenter], from sysfs (Linux,
// Documentation/ABI/stable/sysfs-block and testing/sysfs-block: start and size count
// sectors of 512 bytes, whatever the disk's are).
func (OS) Extent(name string) Extent {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Extent{}
	}
	return extent("/sys/dev/block", fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))))
}

// extent reads what sysfs has of the device with this number, under dir.
func extent(dir, number string) Extent {
	dir, err := filepath.EvalSymlinks(filepath.Join(dir, number))
	if err != nil {
		return Extent{}
	}
	sectors := func(file string) (int64, error) {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return 0, err
		}
		return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 54)
	}
	size, err := sectors("size")
	if err != nil {
		return Extent{}
	}
	e := Extent{Disk: number, Size: size * 512}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err != nil {
		return e
	}
	start, err := sectors("start")
	disk, diskErr := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	if err != nil || diskErr != nil {
		return Extent{}
	}
	e.Disk, e.Start = strings.TrimSpace(string(disk)), start*512
	return e
}
