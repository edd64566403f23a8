package inbox

import (
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/durable"
)

// restore takes over what an earlier life of the process left. Nothing else runs yet.
func (b *Inbox) restore() {
	b.restoreOffered()
	h := b.restoreJournal()
	if h.state != nil {
		b.s = *h.state
		switch b.s.Phase {
		case Empty, Ended:
		case Failed:
			b.err = coded(ota.ErrorCode(b.s.Code), "%s", b.s.Reason)
		default:
			b.restoreTransfer(live(h.cells))
		}
	}
	b.restoreGarbage()
}

// restoreOffered takes the envelope of SetEnvelope, if it still holds.
func (b *Inbox) restoreOffered() {
	p, err := durable.ReadFile(b.cfg.FS, filepath.Join(b.cfg.Dir, envelopeName), ota.MaxManifestSize)
	if err != nil {
		return
	}
	if m, err := b.cfg.Verify(p); err == nil { // Judge is asked by Begin
		b.offered, b.offeredM = p, m
	}
}

// restoreJournal opens the journal and returns what it says. One that is damaged from its
// beginning on is removed.
func (b *Inbox) restoreJournal() history {
	name := filepath.Join(b.cfg.Dir, journalName)
	p, err := b.readJournal()
	if errors.Is(err, fs.ErrNotExist) {
		return history{}
	}
	h := parseJournal(p)
	if err == nil && h.state != nil {
		if b.journal, err = b.cfg.FS.OpenFile(name, os.O_RDWR, 0o600); err == nil {
			b.journalSize = roundUp(h.size)
			if h.size < int64(len(p)) { // what a power cut tore
				b.cfg.Log.Warn("the end of the inbox's journal is damaged, and left out", "bytes", int64(len(p))-h.size)
				if err = b.journal.Truncate(h.size); err != nil {
					b.freeze()
				}
			}
			if err == nil { // a process that was killed did not
				err = errors.Join(b.journal.Sync(), b.cfg.FS.SyncDir(b.cfg.Dir))
			}
			if err != nil {
				b.cfg.Log.Error("the inbox's journal cannot be written, and is written anew", "error", err)
				b.rewrite = true
			}
			return h
		}
	}
	if err == nil {
		err = errors.New("it says nothing")
	}
	b.cfg.Log.Error("the inbox is damaged, and empty now", "error", err)
	if err := b.cfg.FS.Remove(name); err != nil {
		b.cfg.Log.Error("the inbox's journal cannot be removed", "error", err)
	}
	return history{}
}

// restoreTransfer finds which bytes are really there.
func (b *Inbox) restoreTransfer(cells []cell) {
	f, err := b.cfg.FS.OpenFile(b.dataName(), os.O_RDWR, 0o600)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) || len(cells) > 0 {
			b.cfg.Log.Error("what was received is gone from the disk", "error", err)
		}
		b.again(Opening)
		b.restoreBare()
		return
	}
	b.data = f
	// A process that was killed did not. What cannot be synced is not on the medium, from
	// which it is read below.
	if err = f.Sync(); err != nil {
		b.cfg.Log.Error("what was received cannot be synced", "error", err)
	}
	switch b.s.Phase {
	case Verified, Requested:
		if err == nil && b.restoreVerified() {
			return
		}
		b.cfg.Log.Error("a pushed release that was whole is not any more", "version", b.s.Version)
	}
	r, err := b.cfg.FS.OpenFile(b.dataName(), os.O_RDONLY|durable.Direct, 0)
	if err != nil {
		b.cfg.Log.Error("what was received cannot be read", "error", err)
		b.again(Opening)
		b.restoreBare()
		return
	}
	defer r.Close() // only read: nothing can be lost
	b.restoreBytes(r, cells)
}

// again makes the phase one in which bytes come.
func (b *Inbox) again(p Phase) {
	b.s.Phase, b.got, b.head, b.signed = p, set{}, 0, nil
}

// restoreVerified takes over what was verified, without reading all of it: the manager
// does, before it writes anything.
func (b *Inbox) restoreVerified() bool {
	h := make([]byte, bundle.HeaderSize)
	if n, err := b.data.ReadAt(h, 0); n < len(h) {
		b.cfg.Log.Error("what was received cannot be read", "error", err)
		return false
	}
	n, err := bundle.ParseHeader(h)
	if err != nil {
		return false
	}
	head := int64(bundle.HeaderSize + n)
	base := int64(0)
	if b.s.Bare {
		base = head
	}
	if err := sized(b.data, base+b.s.Size); err != nil {
		b.cfg.Log.Error("what was received is not whole", "error", err)
		return false
	}
	signed := make([]byte, n)
	if k, _ := b.data.ReadAt(signed, int64(bundle.HeaderSize)); k < n {
		return false
	}
	m, err := b.cfg.Verify(signed)
	if err != nil { // Latest will say so, and perhaps the keys come back
		b.cfg.Log.Error("a pushed release is not offered", "error", err)
		b.err = withCode(err, ota.ErrValidation)
	} else if m.Digest != b.s.Digest {
		return false
	} else {
		b.holds(signed, m)
		for i := range b.checked {
			b.checked[i] = rightChunk
		}
	}
	b.signed, b.head, b.base = signed, head, base
	b.got.add(0, base+b.s.Size)
	return true
}

// restoreBytes takes what the cells say and the medium, read through r, really has.
func (b *Inbox) restoreBytes(r durable.File, cells []cell) {
	was := b.s.Phase
	b.again(Opening)
	var whole []cell
	for _, c := range cells {
		switch {
		case c.kind == cellWhole:
			whole = append(whole, c)
		case b.got.has(c.from, c.to) || !b.got.room(c.from, c.to):
		case sameCRC(r, c):
			b.got.add(c.from, c.to)
		}
	}
	signed := b.restoreEnvelope(r)
	if signed == nil && b.s.Bare {
		b.again(Opening)
		b.restoreBare()
		return
	}
	if signed == nil { // image bytes stay, if they are there: their hashes are compared later
		return
	}
	b.signed, b.head = signed, int64(bundle.HeaderSize+len(signed))
	if b.s.Bare {
		b.base = b.head
	}
	if was == Opening {
		b.judgeAt = time.Now() // which is later: what Judge asks may not be there yet
		return
	}
	m, err := b.cfg.Verify(signed)
	if err != nil {
		_ = b.judged(nil, withCode(err, ota.ErrValidation)) // it is in State
		return
	}
	if b.head+m.Size() != b.base+b.s.Size {
		_ = b.judged(m, nil) // says so
		return
	}
	right := b.restoreWhole(r, newLayout(signed, m), whole)
	b.accept(m)
	for _, n := range right {
		b.checked[n] = rightChunk
	}
	if b.s.Phase == Received && was == Verifying {
		b.s.Phase = Verifying
	}
}

// sameCRC reports whether the medium has the bytes that were written.
func sameCRC(r durable.File, c cell) bool {
	sum := crc32.NewIEEE()
	buf := make([]byte, min(c.to-c.from, readStep))
	for at := c.from; at < c.to; {
		p := buf[:min(int64(len(buf)), c.to-at)]
		if n, _ := r.ReadAt(p, at); n < len(p) {
			return false
		}
		sum.Write(p)
		at += int64(len(p))
	}
	return sum.Sum32() == c.crc
}

// restoreEnvelope returns the envelope if all of it is there.
func (b *Inbox) restoreEnvelope(r io.ReaderAt) []byte {
	if !b.got.has(0, int64(bundle.HeaderSize)) {
		return nil
	}
	h := make([]byte, bundle.HeaderSize)
	if n, _ := r.ReadAt(h, 0); n < len(h) {
		return nil
	}
	n, err := bundle.ParseHeader(h)
	if err != nil || !b.got.has(0, int64(bundle.HeaderSize+n)) {
		if err == nil {
			b.head = int64(bundle.HeaderSize + n)
		}
		return nil
	}
	signed := make([]byte, n)
	if k, _ := r.ReadAt(signed, int64(bundle.HeaderSize)); k < n {
		return nil
	}
	return signed
}

// restoreWhole takes the chunks that had the right hashes, if they still have.
func (b *Inbox) restoreWhole(r io.ReaderAt, lay *layout, cells []cell) (chunks []int) {
	var buf []byte
	for _, x := range cells {
		for at := max(x.from, lay.head); at < min(x.to, lay.size); {
			c := lay.at(at)
			at = c.to
			if c.to > x.to || b.got.has(c.from, c.to) || !b.got.room(c.from, c.to) {
				continue
			}
			if int64(len(buf)) < c.to-c.from {
				buf = make([]byte, c.to-c.from)
			}
			p := buf[:c.to-c.from]
			if n, _ := r.ReadAt(p, c.from); n == len(p) && ota.Hash(sha256.Sum256(p)) == c.want {
				b.got.add(c.from, c.to)
				chunks = append(chunks, c.n)
			}
		}
	}
	return chunks
}

// restoreBare writes the envelope of a Bare transfer again, if it is still that which
// was set; otherwise nothing is left.
func (b *Inbox) restoreBare() {
	if !b.s.Bare {
		return
	}
	if b.offered != nil && b.offeredM.Digest == b.s.Digest && b.offeredM.Size() == b.s.Size {
		b.s.Phase = Receiving
		b.holds(b.offered, b.offeredM)
		b.base = b.head
		if err := b.take(0, head(b.signed)); err == nil {
			return
		}
	}
	b.cfg.Log.Error("the manifest of a transfer is gone from the disk")
	b.base = 0
	s := state{Format: 1, Phase: Empty, File: b.nextFile(), Last: b.s.Last}
	if err := b.begin(&s); err != nil {
		b.discard(s, nil)
		b.rewrite = true
	}
}

// restoreGarbage finds the files of earlier transfers.
func (b *Inbox) restoreGarbage() {
	entries, err := b.cfg.FS.ReadDir(b.cfg.Dir)
	if err != nil {
		b.cfg.Log.Warn("the inbox cannot be listed", "error", err)
		return
	}
	for _, e := range entries {
		n := dataNumber(e.Name())
		if n < 0 || e.IsDir() {
			continue
		}
		if n == b.s.File && b.s.Phase != Empty && b.s.Phase != Ended && b.s.Phase != Failed {
			continue
		}
		g := rubbish{name: filepath.Join(b.cfg.Dir, e.Name()), safe: !b.rewrite}
		if info, err := e.Info(); err == nil {
			g.size = info.Size()
		}
		b.garbage = append(b.garbage, g)
	}
}

// dataNumber is N of a file data.N, and -1 for other names.
func dataNumber(name string) int64 {
	number, ok := strings.CutPrefix(name, dataPrefix)
	n, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || n < 0 || strconv.FormatInt(n, 10) != number {
		return -1
	}
	return n
}
