package esp32

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math"
	"testing"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

// medium is a fake: one sector and a bit of flash, or of a file, that keeps how it
// was before and after each write and erasure, and can pretend to have done one.
type medium struct {
	durable.FS
	b     []byte
	log   [][2][]byte // entry at 0 before and after
	drop  int         // the write that is not done, from 1; 0: none
	drops bool        // it came
}

// rawMedium is raw flash.
type rawMedium struct{ *medium }

func (m *medium) Close() error         { return nil }
func (m *medium) Sync() error          { return nil }
func (m *medium) Truncate(int64) error { return errors.ErrUnsupported }
func (m *medium) Size() (int64, error) { return int64(len(m.b)), nil }
func (m *medium) OpenFile(string, int, fs.FileMode) (durable.File, error) {
	return m, nil
}
func (m rawMedium) OpenFile(string, int, fs.FileMode) (durable.File, error) { return m, nil }
func (m rawMedium) EraseSize() int64                                        { return image.SectorSize }

func (m *medium) ReadAt(p []byte, off int64) (int, error) {
	if n := copy(p, m.b[off:]); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

func (m *medium) set(p []byte, off int64) {
	before := bytes.Clone(m.b[:entrySize])
	if m.drop == len(m.log)+1 {
		m.drops = true
	} else {
		copy(m.b[off:], p)
	}
	m.log = append(m.log, [2][]byte{before, bytes.Clone(m.b[:entrySize])})
}

func (m *medium) WriteAt(p []byte, off int64) (int, error) {
	m.set(p, off)
	return len(p), nil
}

func (m rawMedium) WriteAt(p []byte, off int64) (int, error) {
	for i, c := range p {
		if c&^m.b[off+int64(i)] != 0 {
			return 0, errors.New("not erased")
		}
	}
	return m.medium.WriteAt(p, off)
}

func (m rawMedium) Erase(off, n int64) error {
	m.set(bytes.Repeat([]byte{0xFF}, int(n)), off)
	return nil
}

// media returns a flash that holds e, as a file and raw.
func media(e Entry) []*medium {
	var list []*medium
	for range 2 {
		m := &medium{b: bytes.Repeat([]byte{0xFF}, image.SectorSize+100)}
		copy(m.b, e.Encode())
		list = append(list, m)
	}
	return list
}

func flashOf(m *medium, raw bool) flash {
	if raw {
		return flash{rawMedium{m}, "flash"}
	}
	return flash{m, "flash"}
}

// Every write and erasure of an entry is torn into all the mixtures of words that
// there are. None of them is an entry that counts, but for the old one and the new.
func TestPutTorn(t *testing.T) {
	mixtures := 0
	for _, old := range samples() {
		if old.Seq == 0 { // has the CRC of erased flash; nobody writes it
			continue
		}
		for _, e := range []Entry{blank, NewEntry(2, New), NewEntry(3, Valid), NewEntry(math.MaxUint32-1, Undefined)} {
			for raw, m := range media(old) {
				if err := flashOf(m, raw == 1).put(0, e); err != nil {
					t.Fatal(err)
				}
				if got := ParseEntry(m.b); got != e {
					t.Fatalf("put %+v over %+v: got %+v", e, old, got)
				}
				for at, op := range m.log {
					for mask := range 1 << (entrySize / 4) {
						mixtures++
						b := bytes.Clone(op[0])
						for w := range entrySize / 4 {
							if mask>>w&1 == 1 {
								copy(b[4*w:4*w+4], op[1][4*w:])
							}
						}
						if got := ParseEntry(b); got.Valid() && (got.Seq != old.Seq || got.State != old.State) && (got.Seq != e.Seq || got.State != e.State) {
							t.Fatalf("put %+v over %+v, write %d torn: %+v counts", e, old, at+1, got)
						}
					}
				}
			}
		}
	}
	t.Logf("%d mixtures", mixtures)
}

// A medium that does not do what it says is found out, or it did not matter.
func TestPutReadsBack(t *testing.T) {
	for _, old := range []Entry{blank, NewEntry(2, Aborted), NewEntry(7, Valid)} {
		e := NewEntry(3, New)
		found := 0
		for drop, came := 1, true; came; drop++ {
			came = false
			for raw, m := range media(old) {
				m.drop = drop
				err := flashOf(m, raw == 1).put(0, e)
				came = came || m.drops
				if got := ParseEntry(m.b); got != e && err == nil {
					t.Errorf("put over %+v: write %d was not done, and there is %+v", old, drop, got)
				}
				if err != nil {
					found++
				}
			}
		}
		if found < 4 { // state and CRC, twice
			t.Errorf("put over %+v: %d lies were found out", old, found)
		}
	}
}

// What is there already is not written again.
func TestPutAgain(t *testing.T) {
	for raw, m := range media(NewEntry(2, Valid)) {
		if err := flashOf(m, raw == 1).put(0, NewEntry(2, Valid)); err != nil || len(m.log) != 0 {
			t.Errorf("got %v, %d writes", err, len(m.log))
		}
	}
}
