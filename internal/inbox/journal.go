package inbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

// The journal says what is in the spooled file. It is appended to, so that nothing that
// it says is ever written over, and written anew, beside the old one, when it is long.
// All of it is big-endian. It consists of cells:
//
//	offset  bytes
//	0       4      kind: one of those below
//	4       4      CRC-32 (IEEE) of the bytes of the file, or of the state
//	8       8      offset in the file
//	16      4      bytes
//	20      4      CRC-32 (IEEE) of the cell's first 20 bytes
//
// A cell with a state is followed by it, in JSON, and lies with it in blocks of 4 KiB of its
// own. After a sync, too, a new block is begun: a power cut that tears what is appended
// later does not reach what was synced. Zeros fill the blocks. Of a journal with a wrong
// cell, what is before that one counts.
const (
	cellBegin = 0x49425831 // a state that begins a transfer: no byte is there
	cellState = 0x49425832 // a state
	cellRange = 0x49425833 // these bytes are there
	cellDrop  = 0x49425834 // none of these bytes are there any more
	cellWhole = 0x49425835 // the chunks in there had the hashes of the manifest; the CRC is 0
)

const (
	cellSize      = 24
	journalBlock  = 4096
	maxState      = 64 << 10      // bytes of a state
	maxReason     = 4 << 10       // bytes of a reason in it
	maxJournal    = 24 << 20      // bytes that are read, and written before a new one is
	compactAfter  = 1 << 20       // bytes more than those of a new one
	maxWholeCell  = 1 << 30       // bytes that one cell says to be there
	journalName   = "journal"     //
	journalNew    = "journal.tmp" //
	envelopeName  = "envelope"    // of SetEnvelope
	dataPrefix    = "data."       // and a number: bytes of a bundle at their offsets
	maxDataNumber = 1 << 40
)

// state is what the journal says besides the bytes. Names never change.
type state struct {
	Format  int         `json:"format"` // 1
	Phase   Phase       `json:"phase"`
	Size    int64       `json:"size,omitempty"`
	SHA256  ota.Hash    `json:"sha256"`
	Bare    bool        `json:"bare,omitempty"`
	File    int64       `json:"file,omitempty"` // number of the spooled file
	Version string      `json:"version,omitempty"`
	Digest  string      `json:"digest,omitempty"`
	Images  int         `json:"images,omitempty"`
	Asked   bool        `json:"asked,omitempty"`  // somebody asked for the installation
	Code    int         `json:"code,omitempty"`   // Failed: why
	Reason  string      `json:"reason,omitempty"` // the same for people
	Outcome *ota.Report `json:"outcome,omitempty"`
	Last    *ota.Report `json:"last,omitempty"`
}

func (s *state) offer() Offer { return Offer{s.Size, s.SHA256, s.Bare} }

// sound reports whether s can be what was written.
func (s *state) sound() bool {
	switch s.Phase {
	case Empty:
		return s.Format == 1
	case Opening, Receiving, Verifying, Verified, Requested, Ended, Failed:
	default:
		return false
	}
	return s.Format == 1 && s.Size > 0 && s.Size <= ota.MaxImageSize*ota.MaxImages && s.Images >= 0 && s.Images <= ota.MaxImages && s.File >= 0 && s.File <= maxDataNumber &&
		(s.Phase != Ended || s.Outcome != nil)
}

// shorten returns r with a reason that fits into a state.
func shorten(r ota.Report) *ota.Report {
	if len(r.Reason) > maxReason {
		r.Reason = r.Reason[:maxReason]
	}
	return &r
}

// A cell is one entry of the journal about bytes.
type cell struct {
	kind uint32
	crc  uint32
	span
}

func appendCell(b []byte, kind, crc uint32, offset, length int64) []byte {
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, crc)
	b = binary.BigEndian.AppendUint64(b, uint64(offset))
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[at:]))
}

// roundUp returns where the next block begins.
func roundUp(n int64) int64 { return (n + journalBlock - 1) / journalBlock * journalBlock }

// encodeState returns a state with its cell, and zeros to the end of the block.
func encodeState(kind uint32, s *state) ([]byte, error) {
	stored := *s
	if stored.Phase == Received { // the bytes say so
		stored.Phase = Receiving
	}
	j, err := json.Marshal(&stored)
	if err != nil {
		return nil, err
	}
	if len(j) > maxState {
		return nil, errors.New("the state is too long")
	}
	b := append(appendCell(nil, kind, crc32.ChecksumIEEE(j), 0, int64(len(j))), j...)
	return append(b, make([]byte, roundUp(int64(len(b)))-int64(len(b)))...), nil
}

// A history is what a journal says.
type history struct {
	state *state // the last; nil: none
	cells []cell // of the last transfer, in order
	size  int64  // bytes of the journal that are right
}

// parseJournal reads as far as b is right.
func parseJournal(b []byte) (h history) {
	for at := 0; at+cellSize <= len(b); {
		c := b[at : at+cellSize]
		kind := binary.BigEndian.Uint32(c)
		if kind == 0 && at%journalBlock != 0 { // the rest of a block
			at = int(roundUp(int64(at)))
			continue
		}
		if binary.BigEndian.Uint32(c[20:]) != crc32.ChecksumIEEE(c[:20]) {
			break
		}
		crc, offset, length := binary.BigEndian.Uint32(c[4:]), binary.BigEndian.Uint64(c[8:]), int64(binary.BigEndian.Uint32(c[16:]))
		at += cellSize
		switch kind {
		case cellBegin, cellState:
			s := parseState(b[at:], length, crc)
			if s == nil {
				return h
			}
			h.state = s
			if kind == cellBegin {
				h.cells = nil
			}
			at = int(roundUp(int64(at) + length)) // also if the zeros are not all there
		case cellRange, cellDrop, cellWhole:
			if h.state == nil || offset > 1<<60 || length == 0 {
				return h
			}
			h.cells = append(h.cells, cell{kind, crc, span{int64(offset), int64(offset) + length}})
		default:
			return h
		}
		h.size = int64(at)
	}
	return h
}

// parseState returns the state of length bytes at the beginning of b, or nil.
func parseState(b []byte, length int64, crc uint32) *state {
	if length > maxState || length > int64(len(b)) || crc32.ChecksumIEEE(b[:length]) != crc {
		return nil
	}
	s := new(state)
	// What a newer agent has added is left out: the device may have gone back to this one, and neither
	// the transfer nor how the update ended may be lost over it. What an older agent must not
	// take for something else has another Format.
	if json.Unmarshal(b[:length], s) != nil || !s.sound() {
		return nil
	}
	return s
}

// live returns the cells whose bytes were not dropped later, by offset.
func live(cells []cell) []cell {
	var dropped set
	var out []cell
	for _, c := range slices.Backward(cells) {
		if c.kind == cellDrop {
			dropped.add(c.from, c.to)
			continue
		}
		gone := false
		_ = dropped.within(c.from, c.to, func(_ span, there bool) error { gone = gone || there; return nil }) // f returns none
		if !gone {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b cell) int {
		switch {
		case a.from != b.from:
			return int(min(max(a.from-b.from, -1), 1))
		default:
			return int(min(max(b.to-a.to, -1), 1))
		}
	})
	return out
}

// record writes p at the end of the journal, which is made if there is none.
func (b *Inbox) record(p []byte) error {
	if b.journal == nil {
		f, err := b.cfg.FS.OpenFile(filepath.Join(b.cfg.Dir, journalName), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		b.journal, b.journalSize, b.names = f, 0, true
	}
	if b.frozen || b.journalSize+int64(len(p)) > maxJournal {
		b.rewrite = true
		b.wake()
		return errRewritten
	}
	n, err := b.journal.WriteAt(p, b.journalSize)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		// It may be there all the same, and must not count: whoever asked for it is told that it is not.
		if terr := b.journal.Truncate(b.journalSize); terr != nil {
			b.freeze()
		}
		return err
	}
	b.journalSize += int64(len(p))
	b.dirty(0)
	return nil
}

// write appends a state.
func (b *Inbox) write(kind uint32, s *state) error {
	p, err := encodeState(kind, s)
	if err == nil {
		b.journalSize = roundUp(b.journalSize)
		err = b.record(p)
	}
	if err != nil {
		return diskError("write the journal", err)
	}
	b.changes++
	b.urgent = true
	b.wake()
	return nil
}

// freeze has nothing more appended to the journal, of which nobody knows how it ends, until it
// is written anew.
func (b *Inbox) freeze() {
	b.frozen, b.rewrite = true, true
	b.wake()
}

// readJournal returns what an earlier life of the process left, if it left anything.
func (b *Inbox) readJournal() ([]byte, error) {
	name := filepath.Join(b.cfg.Dir, journalName)
	info, err := b.cfg.FS.Stat(name)
	if err != nil {
		return nil, err
	}
	p, err := durable.ReadRange(b.cfg.FS, name, 0, min(info.Size(), maxJournal))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return p, err
}
