package otatest

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
)

// sector is what a medium cannot read when it cannot read one byte of it.
const sector = 512

// badSector is a place that cannot be read until it is written.
type badSector struct {
	n   *node
	off int64 // where it begins
}

// misread lets a read of length bytes of the file name fail if the cut that is armed, or
// a bad sector, says so. It counts the read.
func (d *Disk) misread(name string, n *node, off int64, length int) error {
	if d.unseen {
		return nil
	}
	d.reads++
	d.bounded()
	if d.cut.At == d.reads && length > 0 {
		switch d.cut.How {
		case Misread:
			d.fell = true
			return syscall.EIO
		case BadSector:
			at := off + d.cut.chance().Int64N(int64(length))
			where := InRecord
			if d.classes != nil {
				where = d.classes(name, at-at%pageSize)
			}
			if where != Nowhere && !(where == InControl && d.spared) {
				d.fell, d.bad = true, &badSector{n, at - at%sector}
			}
		}
	}
	if d.bad != nil && d.bad.n == n && off < d.bad.off+sector && off+int64(length) > d.bad.off {
		return syscall.EIO
	}
	return nil
}

// heal ends a bad sector that is written. A real disk wants the whole sector written
// at once; those who write less read it first.
func (d *Disk) heal(n *node, off, length int64) {
	if d.bad != nil && d.bad.n == n && off < d.bad.off+sector && off+length > d.bad.off {
		d.bad = nil
	}
}

// Rot flips bit 0 of one byte of a file, in cache and medium: a fault that no
// sync protects from. It is not an effect.
func (d *Disk) Rot(name string, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find("rot", name)
	if err != nil {
		return err
	}
	if off < 0 || off >= n.cache.size {
		return &fs.PathError{Op: "rot", Path: name, Err: fmt.Errorf("offset %d is not in %d bytes", off, n.cache.size)}
	}
	n.rot(off, 1)
	return nil
}

func (n *node) rot(off int64, bit byte) {
	for _, p := range []*pages{&n.cache, &n.medium} {
		if off < p.size {
			var b [1]byte
			p.read(b[:], off)
			p.write([]byte{b[0] ^ bit}, off)
		}
	}
}

// decay flips a bit in a place of the kind c.Where, and reports whether there is one.
// It takes from files that hold something, and there from pages that do.
func (d *Disk) decay(c Cut) bool {
	if d.classes == nil {
		return false
	}
	type place struct {
		n   *node
		off int64
	}
	var places []place
	for _, name := range sortedKeys(d.names) {
		n := d.names[name]
		for i, page := range n.cache.page {
			off := int64(i) * pageSize
			if page != nil && !blank(page) && d.classes(name, off) == c.Where {
				places = append(places, place{n, off})
			}
		}
	}
	if len(places) == 0 {
		return false
	}
	r := c.chance()
	p := places[r.IntN(len(places))]
	off, ok := p.n.pick(r, p.off)
	if ok {
		p.n.rot(off, 1<<r.IntN(8))
	}
	return ok
}

// pick picks one of the bytes of a page that hold something, or, once in four times,
// one beside them: what is blank must stay blank too.
func (n *node) pick(r *rand.Rand, off int64) (int64, bool) {
	page := n.cache.page[off/pageSize]
	end := min(pageSize, n.cache.size-off)
	var full []int64
	for i := range end {
		if b := page[i]; b != 0 && b != 0xff {
			full = append(full, i)
		}
	}
	if len(full) == 0 {
		return 0, false
	}
	at := full[r.IntN(len(full))]
	if r.IntN(4) == 0 {
		at = min(max(at+r.Int64N(64)-32, 0), end-1)
	}
	return off + at, true
}

func blank(page *[pageSize]byte) bool {
	for _, b := range page {
		if b != 0 && b != 0xff {
			return false
		}
	}
	return true
}

// classify finds out, for a device before and after an update, what is where. A page
// belongs to a slot if a bit that flips in it changes what is in that slot.
func classify(before, after *Device) func(*Device) func(name string, off int64) Where {
	type page struct {
		name string
		off  int64
	}
	slots := map[page][]string{} // that a page belongs to
	s := after.Manager().Snapshot()
	for _, disk := range []*Disk{before.Disk, after.Disk} {
		disk = disk.Clone()
		image := func(slot string) []byte { return before.Backend.Image(disk, slot) }
		whole := map[string][]byte{s.Slot: image(s.Slot), s.Other: image(s.Other)}
		for _, name := range sortedKeys(disk.names) {
			for i, content := range disk.names[name].cache.page {
				p := page{name, int64(i) * pageSize}
				if content == nil || blank(content) {
					continue
				}
				disk.names[name].rot(p.off, 1)
				for _, slot := range slices.Sorted(maps.Keys(whole)) {
					if !bytes.Equal(image(slot), whole[slot]) && !slices.Contains(slots[p], slot) {
						slots[p] = append(slots[p], slot)
					}
				}
				disk.names[name].rot(p.off, 1)
			}
		}
	}
	return func(d *Device) func(string, int64) Where {
		started := d.Booted
		return func(name string, off int64) Where {
			in := slots[page{name, off}]
			switch {
			case strings.HasPrefix(name, "/data/"):
				return InRecord
			case len(in) == 0:
				return InControl
			case len(in) == 1 && in[0] != started && d.Booted == started:
				return InSlot
			}
			return Nowhere // nothing boots without the image that runs, or a table of partitions
		}
	}
}
