package otatest

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"syscall"

	"github.com/interlock-energy/ota/internal/durable"
)

// MkDevice makes a block device of size zero bytes, for example a partition. It
// keeps its size, and its name is there after every cut. Its directory is made too.
func (d *Disk) MkDevice(name string, size int64) { d.mknod(name, &node{device: size}, 0) }

// MkFlash makes raw NOR flash of size erased bytes, 0xFF, which erases erase bytes
// at once, for example 4096. What it opens as is a [durable.Eraser]. Nothing is
// cached: a write or an erasure that returned is on the medium. A write that would
// have to set a bit fails, and stores nothing; one that is cut leaves bits set that it
// was to clear.
func (d *Disk) MkFlash(name string, size, erase int64) {
	d.mknod(name, &node{device: size, erase: erase}, 0xff)
}

func (d *Disk) mknod(name string, n *node, fill byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name = path.Clean(name)
	d.mkdirs(path.Dir(name), false)
	n.mode = fs.ModeDevice | 0o600
	n.cache.grow(n.device)
	if fill != 0 {
		page := new([pageSize]byte)
		for i := range page {
			page[i] = fill
		}
		for i := range n.cache.page {
			n.cache.page[i] = page
		}
	}
	n.medium = n.cache.clone()
	d.names[name], d.stable[name] = n, n
}

// MkFAT makes a directory of a FAT file system. A rename there is several writes to
// the directory, which reach the medium one by one: until [Disk.SyncDir], a power
// cut can leave both names, one, or none.
func (d *Disk) MkFAT(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mkdirs(path.Clean(name), true)
}

// mkdirs makes directories that were always there.
func (d *Disk) mkdirs(name string, fat bool) {
	if _, ok := d.names[name]; ok {
		return
	}
	d.mkdirs(path.Dir(name), false)
	n := &node{dir: true, fat: fat, mode: fs.ModeDir | 0o755}
	d.names[name], d.stable[name] = n, n
}

// renameOnFAT frees the old entry of the new name, fills it, and frees the entry of
// the old name.
func (d *Disk) renameOnFAT(n *node, from, to string) operation {
	steps := []map[string]*node{{to: nil}, {to: n}, {from: nil}}
	step := func(set map[string]*node, torn bool) {
		d.change(set, path.Dir(from), path.Dir(to))
		d.changes[len(d.changes)-1].torn = torn
	}
	return operation{
		do: func() error {
			for _, set := range steps {
				step(set, false)
			}
			return nil
		},
		torn: func(c Cut, r *rand.Rand) {
			whole := c.Agent && r.IntN(2) == 1 // a process that is killed does not stop the kernel half-way
			for _, set := range steps {
				if whole || !c.Agent && r.IntN(2) == 1 {
					step(set, !c.Agent)
				}
			}
		},
	}
}

// erased returns an error if b would set a bit that is clear.
func (n *node) erased(b []byte, off int64) error {
	old := make([]byte, len(b))
	n.cache.read(old, off)
	for i := range b {
		if b[i]&^old[i] != 0 {
			return fmt.Errorf("%w: byte %d is %#02x and was to become %#02x: erase it first", syscall.EIO, off+int64(i), old[i], b[i])
		}
	}
	return nil
}

// through brings to the medium what nothing caches.
func (n *node) through() {
	if n.erase == 0 {
		return
	}
	for _, ch := range n.pending {
		ch.apply(&n.medium)
	}
	n.pending = nil
}

// flashFile is an open file on raw flash.
type flashFile struct{ *file }

var _ durable.Eraser = (*flashFile)(nil)

// EraseSize implements [durable.Eraser].
func (f *flashFile) EraseSize() int64 { return f.n.erase }

// Erase implements [durable.Eraser].
func (f *flashFile) Erase(off, length int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable("erase"); err != nil {
		return err
	}
	n, block := f.n, f.n.erase
	if off < 0 || length < 0 || off%block != 0 || length%block != 0 || off+length > n.device {
		return &fs.PathError{Op: "erase", Path: f.name, Err: fmt.Errorf("%w: %d+%d of %d in blocks of %d", syscall.EINVAL, off, length, n.device, block)}
	}
	ff := make([]byte, length)
	for i := range ff {
		ff[i] = 0xff
	}
	erase := func(length int64) { n.write(ff[:length], off) }
	err := f.d.effect(fmt.Sprintf("erase %s %d+%d", f.name, off, length), operation{
		do: func() error { erase(length); n.through(); f.d.heal(n, off, length); return nil },
		torn: func(_ Cut, r *rand.Rand) {
			if length == 0 {
				return
			}
			// Blocks are erased one after the other. In the one that was cut, bits are
			// set or not yet.
			whole := r.Int64N(length/block) * block
			erase(whole)
			torn := make([]byte, block)
			n.cache.read(torn, off+whole)
			for i := range torn {
				torn[i] |= byte(r.IntN(256))
			}
			n.write(torn, off+whole)
			n.through()
		},
	})
	if err != nil {
		return &fs.PathError{Op: "erase", Path: f.name, Err: err}
	}
	return nil
}
