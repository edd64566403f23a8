package inbox

import (
	"encoding/binary"
	"sort"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// A layout is where the chunks of a release are in the spooled file, which is always a
// bundle: header, envelope, images. Chunks are counted through all images.
type layout struct {
	head   int64 // bytes of header and envelope
	size   int64
	images []place
	chunks int
}

type place struct {
	im    *ota.Image
	start int64 // of the image
	first int   // its first chunk
}

func newLayout(signed []byte, m *ota.Manifest) *layout {
	l := &layout{head: int64(bundle.HeaderSize + len(signed))}
	l.size = l.head
	for i := range m.Images {
		im := &m.Images[i]
		l.images = append(l.images, place{im, l.size, l.chunks})
		l.size += im.Size
		l.chunks += len(im.Chunks)
	}
	return l
}

// A chunk is one of those of the manifest.
type chunk struct {
	n        int // through all images
	from, to int64
	want     ota.Hash
	im       *ota.Image
}

// at returns the chunk that holds the byte at offset, which is that of an image.
func (l *layout) at(offset int64) chunk {
	i := sort.Search(len(l.images), func(i int) bool { return l.images[i].start > offset }) - 1
	p := l.images[i]
	return l.of(p, int((offset-p.start)/p.im.ChunkSize))
}

// chunk returns the nth chunk.
func (l *layout) chunk(n int) chunk {
	i := sort.Search(len(l.images), func(i int) bool { return l.images[i].first > n }) - 1
	p := l.images[i]
	return l.of(p, n-p.first)
}

func (l *layout) of(p place, k int) chunk {
	from := p.start + int64(k)*p.im.ChunkSize
	return chunk{p.first + k, from, min(from+p.im.ChunkSize, p.start+p.im.Size), p.im.Chunks[k], p.im}
}

// head returns what comes before the images in a bundle (see package bundle).
func head(signed []byte) []byte {
	b := make([]byte, 0, bundle.HeaderSize+len(signed))
	b = append(b, bundle.Magic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(signed)))
	return append(b, signed...)
}
