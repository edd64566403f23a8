package bucket

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// checked reads a bundle, or a part of one, for an upload. Images come chunk by
// chunk, and only chunks that are as the manifest says: a file that is changed
// after it was checked, while an upload takes an hour, ends the upload.
type checked struct {
	parts    []part
	size     int64
	pos      int64
	most     int64       // greatest pos so far: a store may read twice
	progress func(int64) // gets most

	chunk   []byte // the one in hand
	chunkAt int64  // where in the whole it begins
}

// part is either bytes in memory or an image in the file.
type part struct {
	at     int64 // where in the whole it begins
	size   int64
	memory []byte
	image  *ota.Image
	file   io.ReaderAt
}

func (c *checked) add(memory []byte, im *ota.Image, file io.ReaderAt) {
	p := part{c.size, int64(len(memory)), memory, im, file}
	if im != nil {
		p.size = im.Size
	}
	c.parts = append(c.parts, p)
	c.size += p.size
}

// header returns what a bundle has before its images.
func header(envelope []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte(bundle.Magic), uint32(len(envelope))) // at most 16 MiB
	return append(b, envelope...)
}

// Read implements [io.Reader].
func (c *checked) Read(b []byte) (int, error) {
	if c.pos >= c.size {
		return 0, io.EOF
	}
	if c.pos < c.chunkAt || c.pos >= c.chunkAt+int64(len(c.chunk)) {
		if err := c.load(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.chunk[c.pos-c.chunkAt:])
	c.pos += int64(n)
	if c.pos > c.most {
		c.most = c.pos
		c.progress(c.most)
	}
	return n, nil
}

// load takes the chunk at pos into the hand.
func (c *checked) load() error {
	p := &c.parts[0]
	for i := range c.parts {
		if c.parts[i].at <= c.pos {
			p = &c.parts[i]
		}
	}
	if p.image == nil {
		c.chunk, c.chunkAt = p.memory, p.at
		return nil
	}
	im := p.image
	n := (c.pos - p.at) / im.ChunkSize
	offset := n * im.ChunkSize
	chunk := make([]byte, min(im.ChunkSize, im.Size-offset))
	if _, err := io.ReadFull(io.NewSectionReader(p.file, offset, int64(len(chunk))), chunk); err != nil {
		return fmt.Errorf("image %s: read %d bytes at %d: %w", im.Component, len(chunk), offset, err)
	}
	if got := ota.Hash(sha256.Sum256(chunk)); got != im.Chunks[n] {
		return fmt.Errorf("%w: image %s: the file was changed meanwhile: chunk %d of %d has SHA-256 %s, want %s",
			ota.ErrValidation, im.Component, n+1, len(im.Chunks), got, im.Chunks[n])
	}
	c.chunk, c.chunkAt = chunk, p.at+offset
	return nil
}

// Seek implements [io.Seeker].
func (c *checked) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.pos
	case io.SeekEnd:
		offset += c.size
	}
	if offset < 0 {
		return c.pos, errors.New("seek before the beginning")
	}
	c.pos = offset
	return offset, nil
}
