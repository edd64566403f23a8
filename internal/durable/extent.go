package durable

// An Extent is the part of a disk that a block device is. The zero Extent is that of
// what is none, or of which the system does not tell.
type Extent struct {
	Disk        string // its number, as the kernel writes it: major:minor
	Start, Size int64  // in bytes
}

// Overlaps reports whether e and o have a byte in common.
func (e Extent) Overlaps(o Extent) bool {
	return e.Disk != "" && e.Disk == o.Disk && e.Start < o.Start+o.Size && o.Start < e.Start+e.Size
}

// An Extenter is an [FS] that knows how its block devices lie on their disks: a
// partition is a part of the disk, and the same device may have several names.
type Extenter interface {
	Extent(name string) Extent
}

// Part returns where size bytes at offset of the file or device name are, on a file
// system that knows it.
func Part(fsys FS, name string, offset, size int64) Extent {
	x, ok := fsys.(Extenter)
	if !ok {
		return Extent{}
	}
	e := x.Extent(name)
	return Extent{e.Disk, e.Start + offset, size}
}

// Whole returns the extent of the device name, on a file system that knows it.
func Whole(fsys FS, name string) Extent {
	if x, ok := fsys.(Extenter); ok {
		return x.Extent(name)
	}
	return Extent{}
}
