package otatest

import (
	"maps"
	"math/rand/v2"
	"slices"
)

const pageSize = 4096

// pages is the content of a file. A page is never changed once it is in here but
// replaced by a changed copy, so a clone shares them.
type pages struct {
	size int64
	page []*[pageSize]byte // nil: zeros
}

func (p *pages) clone() pages { return pages{p.size, slices.Clone(p.page)} }

func (p *pages) read(b []byte, off int64) int {
	if off >= p.size {
		return 0
	}
	b = b[:min(int64(len(b)), p.size-off)]
	for done := 0; done < len(b); {
		at := off + int64(done)
		part := b[done:min(len(b), done+pageSize-int(at%pageSize))]
		if page := p.page[at/pageSize]; page != nil {
			copy(part, page[at%pageSize:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(b)
}

func (p *pages) write(b []byte, off int64) {
	if len(b) == 0 {
		return
	}
	if end := off + int64(len(b)); end > p.size {
		p.grow(end)
	}
	for len(b) > 0 {
		page := new([pageSize]byte)
		if old := p.page[off/pageSize]; old != nil && (off%pageSize != 0 || len(b) < pageSize) {
			*page = *old
		}
		n := copy(page[off%pageSize:], b)
		p.page[off/pageSize] = page
		b, off = b[n:], off+int64(n)
	}
}

func (p *pages) grow(size int64) {
	p.size = size
	for int64(len(p.page))*pageSize < size {
		p.page = append(p.page, nil)
	}
}

func (p *pages) truncate(size int64) {
	if size >= p.size {
		p.grow(size)
		return
	}
	p.size = size
	p.page = slices.Clone(p.page[:(size+pageSize-1)/pageSize])
	if tail := size % pageSize; tail != 0 && p.page[size/pageSize] != nil {
		page := *p.page[size/pageSize]
		clear(page[tail:]) // what is cut off does not come back when the file grows
		p.page[size/pageSize] = &page
	}
}

// A change of a file's content that is not on the medium yet: a write of data,
// which does not cross a page's boundary, or, without data, a new size.
type change struct {
	off  int64 // or the size
	data []byte
	torn bool // reached the medium in an operation that was cut
}

func (c change) apply(p *pages) {
	if c.data == nil {
		p.truncate(c.off)
	} else {
		p.write(c.data, c.off)
	}
}

// write puts b into the page cache and remembers it for the medium.
func (n *node) write(b []byte, off int64) {
	n.cache.write(b, off)
	for b := slices.Clone(b); len(b) > 0; {
		k := min(len(b), pageSize-int(off%pageSize))
		n.pending = append(n.pending, change{off: off, data: b[:k:k]})
		b, off = b[k:], off+int64(k)
	}
}

// tear does the part of a write that a cut lets through: the units before one
// that chance picks, and of that one anything.
func (n *node) tear(c Cut, r *rand.Rand, b []byte, off int64) {
	unit := int64(c.unit())
	end := off + int64(len(b))
	first, last := off/unit, (end-1)/unit
	at := (first + r.Int64N(last-first+1)) * unit // where the torn unit begins
	whole := b[:max(at-off, 0)]
	before := len(n.pending)
	n.write(whole, off)
	if c.Agent {
		return
	}
	// The medium erases and programs whole units, so what was in this one
	// besides what was to be written is at risk too.
	size := min(at+unit, max(n.cache.size, end)) - at
	torn := make([]byte, size)
	n.cache.read(torn, at)
	for i := range torn {
		switch pos := at + int64(i); {
		case pos < off || pos >= end:
		case n.erase > 0: // raw flash: a bit that is to be cleared is, or not yet, and nothing else changes
			torn[i] &= b[pos-off] | byte(r.IntN(256))
		case r.IntN(2) == 1:
			torn[i] = b[pos-off]
		}
	}
	for range 3 {
		if n.erase > 0 {
			break
		}
		torn[r.IntN(len(torn))] ^= 1 << r.IntN(8)
	}
	n.write(torn, at)
	for i := before; i < len(n.pending); i++ {
		n.pending[i].torn = true
	}
}

func sortedKeys(m map[string]*node) []string { return slices.Sorted(maps.Keys(m)) }
