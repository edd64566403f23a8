//go:build linux

package vm

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// Flags of entries in a write log (Linux, drivers/md/dm-log-writes.c). QEMU's driver
// blklogwrites writes the same format.
const (
	logFlush   = 1
	logFUA     = 2
	logDiscard = 4
	logMark    = 8

	logMagic   = 0x6a736677736872
	logVersion = 1
)

// maxEntries and maxWrite bound what a log may say of itself: 16 million entries, of
// 64 MiB each.
const (
	maxEntries = 1 << 24
	maxWrite   = 64 << 20
)

// A Write is one entry of a log: bytes that were written, or a flush, or both, in the
// order in which the disk had finished them.
type Write struct {
	At    int64 // offset on the disk, in bytes
	Len   int64 // bytes; 0 for a flush
	Flush bool  // everything before it is on the medium
	FUA   bool  // this write is on the medium when it has finished
	Zero  bool  // a discard: what is there is not known afterwards, and taken for zeros
	data  int64 // offset in the log
}

// ReadLog reads the entries of a write log, without their data.
func ReadLog(log io.ReaderAt) ([]Write, error) {
	var head [28]byte
	if _, err := log.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("read the write log: %w", err)
	}
	magic, version := binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint64(head[8:])
	n, size := binary.LittleEndian.Uint64(head[16:]), int64(binary.LittleEndian.Uint32(head[24:]))
	switch {
	case magic != logMagic || version != logVersion:
		return nil, fmt.Errorf("read the write log: got magic %#x, version %d, want %#x, %d", magic, version, uint64(logMagic), logVersion)
	case size != 512 && size != 4096:
		return nil, fmt.Errorf("read the write log: sectors of %d bytes, want 512 or 4096", size)
	case n > maxEntries:
		return nil, fmt.Errorf("read the write log: %d entries, want at most %d", n, maxEntries)
	}
	var writes []Write
	at := size
	for i := range n {
		var entry [32]byte
		if _, err := log.ReadAt(entry[:], at); err != nil {
			return nil, fmt.Errorf("read the write log: entry %d of %d: %w", i, n, err)
		}
		start, sectors := binary.LittleEndian.Uint64(entry[:]), binary.LittleEndian.Uint64(entry[8:])
		flags := binary.LittleEndian.Uint64(entry[16:])
		if start > 1<<40 || sectors > 1<<40 || flags&logDiscard == 0 && int64(sectors) > maxWrite/size {
			return nil, fmt.Errorf("read the write log: entry %d has %d sectors from %d on", i, sectors, start)
		}
		at += size
		w := Write{At: int64(start) * size, Len: int64(sectors) * size, Flush: flags&logFlush != 0, FUA: flags&logFUA != 0,
			Zero: flags&logDiscard != 0, data: at}
		if !w.Zero {
			at += w.Len
		}
		if flags&logMark == 0 {
			writes = append(writes, w)
		}
	}
	return writes, nil
}

// A Replay is a disk to which the writes of a log are done again, one by one, and at
// which the power can be cut after each.
type Replay struct {
	Disk    []byte             // what a flush has brought to the medium
	Changed func(off, n int64) // is told where Disk has changed

	log    io.ReaderAt
	writes []Write
	next   int
	loose  []Write // finished, but not flushed
}

// NewReplay begins with disk, which the replay then owns.
func NewReplay(disk []byte, log io.ReaderAt, writes []Write) *Replay {
	return &Replay{Disk: disk, Changed: func(off, n int64) {}, log: log, writes: writes}
}

// Step does the next write again. It returns false when there are no more.
func (r *Replay) Step() (Write, bool, error) {
	if r.next == len(r.writes) {
		return Write{}, false, nil
	}
	w := r.writes[r.next]
	r.next++
	if w.Flush { // what this entry itself brings is not covered by the flush before it
		for _, l := range r.loose {
			if err := r.apply(l, nil); err != nil {
				return w, false, err
			}
		}
		r.loose = r.loose[:0]
	}
	if w.Len > 0 {
		r.loose = append(r.loose, w)
	}
	return w, true, nil
}

// Cut is what a power cut at this moment leaves: of the writes that nothing has
// flushed, each is there, or not, or in part, sector by sector, as rnd says. undo
// takes that back, so that the replay can go on.
func (r *Replay) Cut(rnd *rand.Rand) (undo func(), err error) {
	type old struct {
		off   int64
		bytes []byte
	}
	var olds []old
	undo = func() {
		for i := len(olds) - 1; i >= 0; i-- {
			copy(r.Disk[olds[i].off:], olds[i].bytes)
			r.Changed(olds[i].off, int64(len(olds[i].bytes)))
		}
	}
	for _, w := range r.loose {
		var keep func() bool
		switch part := rnd.IntN(4); {
		case w.FUA: // is there, and over what came before
		case part == 0: // lost
			continue
		case part == 1:
			keep = func() bool { return rnd.IntN(2) == 0 }
		}
		was := old{w.At, append([]byte(nil), r.Disk[w.At:w.At+w.Len]...)}
		if err := r.apply(w, keep); err != nil {
			undo()
			return nil, err
		}
		olds = append(olds, was)
	}
	return undo, nil
}

// Loose is how many writes nothing has flushed yet.
func (r *Replay) Loose() int { return len(r.loose) }

// apply writes w, or those of its sectors that keep says yes to.
func (r *Replay) apply(w Write, keep func() bool) error {
	if w.At < 0 || w.At+w.Len > int64(len(r.Disk)) {
		return fmt.Errorf("replay a write of %d bytes at %d: the disk has %d", w.Len, w.At, len(r.Disk))
	}
	data := make([]byte, w.Len)
	if !w.Zero {
		if _, err := r.log.ReadAt(data, w.data); err != nil {
			return fmt.Errorf("replay a write of %d bytes at %d: %w", w.Len, w.At, err)
		}
	}
	for i := int64(0); i < w.Len; i += sector {
		if keep == nil || keep() {
			copy(r.Disk[w.At+i:], data[i:min(i+sector, w.Len)])
		}
	}
	r.Changed(w.At, w.Len)
	return nil
}
