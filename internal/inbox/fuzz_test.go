package inbox_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// A model is what an inbox must show: a plain and slow one.
type model struct {
	rel   *otatest.SignedRelease
	o     inbox.Offer
	all   []byte
	got   []bool
	begun bool
}

func (m *model) missing() int64 {
	for i, there := range m.got {
		if !there {
			return int64(i)
		}
	}
	return int64(len(m.got))
}

func (m *model) received() (n int64) {
	for _, there := range m.got {
		if there {
			n++
		}
	}
	return n
}

// FuzzPut does to an inbox what the bytes say, and compares it with the model. Each step has
// five bytes: what, where, how much.
func FuzzPut(f *testing.F) {
	rel := otatest.NewSigningKey(f).Release(f, "1.1.0", 9_000, 50)
	step := func(what byte, at, n int) []byte {
		return append([]byte{what}, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, uint16(at)), uint16(n))...)
	}
	whole := append(step(0, 0, 0), step(1, 0, len(rel.Bundle))...)
	f.Add(whole)
	f.Add(append(append(whole, step(4, 0, 0)...), step(5, 0, 0)...))
	f.Add(append(append(step(0, 0, 0), step(1, 0, 2000)...), append(step(3, 0, 0), step(1, 1500, 9000)...)...))
	f.Add(append(append(step(0, 0, 0), step(1, 0, 3000)...), append(step(2, 2000, 10), step(6, 0, 0)...)...))
	f.Add(append(append(step(8, 0, 0), step(1, 100, 3000)...), append(step(1, 9000, 50), step(1, 4000, 50)...)...))
	f.Fuzz(func(t *testing.T, steps []byte) {
		if len(steps) > 5*60 {
			return
		}
		synctest.Test(t, func(t *testing.T) { runSteps(t, rel, steps) })
	})
}

func runSteps(t *testing.T, rel *otatest.SignedRelease, steps []byte) {
	disk := otatest.NewDisk()
	proc := otatest.NewProcess(disk)
	b := open(t, config(proc, rel))
	m := &model{rel: rel}
	for ; len(steps) >= 5; steps = steps[5:] {
		at, n := int64(binary.BigEndian.Uint16(steps[1:])), int64(binary.BigEndian.Uint16(steps[3:]))
		switch steps[0] % 10 {
		case 0:
			m.begin(t, b, offer(rel), rel.Bundle)
		case 1:
			m.put(t, b, at, n)
		case 2: // other bytes
			m.lie(t, b, at, n)
		case 3: // another process
			proc.Kill()
			b.Close()
			proc = otatest.NewProcess(disk)
			b = open(t, config(proc, rel))
			synctest.Wait() // an envelope may be verified again
		case 4:
			if err := b.Finish(); (err == nil) != (m.begun && m.missing() == m.o.Size) {
				t.Fatalf("Finish: got %v with %d of %d bytes", err, m.received(), m.o.Size)
			}
		case 5:
			synctest.Wait()
			if err := b.Request(); err == nil && m.missing() < m.o.Size {
				t.Fatalf("Request: no error with %d of %d bytes", m.received(), m.o.Size)
			}
		case 6:
			if err := b.Drop(); err != nil {
				t.Fatal(err)
			}
			*m = model{rel: rel}
		case 7:
			time.Sleep(6 * time.Second) // of the bubble
		case 8:
			if err := b.SetEnvelope(rel.Signed); err != nil {
				t.Fatal(err)
			}
			o, all := bare(rel)
			m.begin(t, b, o, all)
		case 9: // a power cut right after a sync
			b.Close()
			disk.PowerOff(otatest.DropAll, 1)
			disk.PowerOn()
			b = open(t, config(proc, rel))
			synctest.Wait()
		}
		m.compare(t, b)
	}
	b.Close()
}

func (m *model) begin(t *testing.T, b *inbox.Inbox, o inbox.Offer, all []byte) {
	resumed, err := b.Begin(o)
	if err != nil || resumed != (m.begun && m.o == o) {
		t.Fatalf("Begin: got %v, %v", resumed, err)
	}
	if !resumed {
		*m = model{rel: m.rel, o: o, all: all, got: make([]bool, len(all)), begun: true}
	}
}

func (m *model) put(t *testing.T, b *inbox.Inbox, at, n int64) {
	if !m.begun || at+n > m.o.Size {
		if err := b.Put(at, make([]byte, n)); err == nil || !errors.Is(err, inbox.ErrNone) && !errors.Is(err, inbox.ErrRange) {
			t.Fatalf("Put %d+%d: got %v", at, n, err)
		}
		return
	}
	until := m.until()
	err := b.Put(at, m.all[at:at+n])
	// A piece may complete the header, and then the envelope.
	for {
		for i := at; i < min(at+n, until); i++ {
			m.got[i] = true
		}
		if next := m.until(); next == until {
			break
		} else {
			until = next
		}
	}
	if early := at+n > until && n > 0; early != errors.Is(err, inbox.ErrEarly) || !early && err != nil {
		t.Fatalf("Put %d+%d: got %v, until %d", at, n, err, until)
	}
}

// until is how far bytes are taken.
func (m *model) until() int64 {
	head := int64(bundle.HeaderSize)
	switch missing := m.missing(); {
	case m.o.Bare, missing >= head+int64(len(m.rel.Signed)):
		return m.o.Size
	case missing >= head:
		return head + int64(len(m.rel.Signed))
	}
	return head
}

// lie puts other bytes where some are already: that changes nothing.
func (m *model) lie(t *testing.T, b *inbox.Inbox, at, n int64) {
	if !m.begun || at+n > m.o.Size || n == 0 || !m.got[at] {
		return
	}
	p := bytes.Clone(m.all[at : at+n])
	p[0] ^= 1
	if err := b.Put(at, p); !errors.Is(err, inbox.ErrConflict) {
		t.Fatalf("Put of other bytes: got %v, want %v", err, inbox.ErrConflict)
	}
}

func (m *model) compare(t *testing.T, b *inbox.Inbox) {
	t.Helper()
	s := b.State()
	if !m.begun {
		if s.Phase != inbox.Empty {
			t.Fatalf("got %s, want %s", s.Phase, inbox.Empty)
		}
		return
	}
	if s.Offer != m.o || s.Received != m.received() || s.Missing != m.missing() || s.Until != m.until() || s.Err != nil {
		t.Fatalf("got %+v, want received %d, missing %d, until %d", s, m.received(), m.missing(), m.until())
	}
	got := make([]byte, len(m.all))
	if n, err := b.ReadAt(got, 0); n != len(got) || err != nil {
		t.Fatalf("ReadAt: got %d, %v", n, err)
	}
	for i, there := range m.got {
		want := byte(0)
		if there {
			want = m.all[i]
		}
		if b.Has(int64(i), 1) != there || got[i] != want {
			t.Fatalf("byte %d: got %v and %#x, want %v and %#x", i, b.Has(int64(i), 1), got[i], there, want)
		}
	}
}

// FuzzJournal damages what is on the disk: opening never ends the process, and what is said
// to be there is what was sent. Each damage has five bytes: which file, where, what is added to
// the byte there; or how much is cut off, or the other way round.
func FuzzJournal(f *testing.F) {
	rel := otatest.NewSigningKey(f).Release(f, "1.1.0", 9_000, 50)
	var disks []*otatest.Disk
	for n, isBare := range []bool{false, true, false} {
		disk := otatest.NewDisk()
		b, err := inbox.Open(config(disk, rel))
		if err != nil {
			f.Fatal(err)
		}
		o, all := offer(rel), rel.Bundle
		if isBare {
			o, all = bare(rel)
			if err := b.SetEnvelope(rel.Signed); err != nil {
				f.Fatal(err)
			}
		}
		begin(f, b, o)
		putAll(f, b, all[:len(all)-n*300], 700)
		if n == 0 {
			finish(f, b)
		}
		b.Close()
		disks = append(disks, disk)
	}
	for i := range disks {
		f.Add(byte(i), []byte{0, 0, 0, 0, 1}, []byte(nil))
		f.Add(byte(i), []byte{0, 0x10, 0x20, 0, 0xFF, 0, 0x20, 0x30, 0, 3}, []byte(nil))
		f.Add(byte(i), []byte{1, 0, 200, 0, 7, 1, 0, 5, 0, 7}, []byte(nil))
		f.Add(byte(i), []byte{2, 0x10, 0, 0, 0, 3, 0, 5, 0, 0}, []byte(nil))
		f.Add(byte(i), []byte(nil), disks[i].Content(dir+"/journal"))
	}
	f.Fuzz(func(t *testing.T, which byte, damage, journal []byte) {
		n := int(which) % len(disks)
		synctest.Test(t, func(t *testing.T) {
			disk := disks[n].Clone()
			if len(journal) > 0 { // anything at all
				overwrite(t, disk, dir+"/journal", journal)
			}
			for d := damage; len(d) >= 5; d = d[5:] {
				damageDisk(t, disk, d, n == 0)
			}
			b := open(t, config(disk, rel))
			defer b.Close()
			synctest.Wait()
			wantHonest(t, b, rel)
		})
	})
}

func overwrite(t *testing.T, disk *otatest.Disk, name string, p []byte) {
	f, err := disk.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.WriteAt(p, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func damageDisk(t *testing.T, disk *otatest.Disk, d []byte, verified bool) {
	name := dir + "/journal"
	if d[0]&1 == 1 && !verified { // of what was verified, only the manager's chunks tell
		name = dir + "/data.0"
	}
	f, err := disk.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return
	}
	at := int64(binary.BigEndian.Uint16(d[1:]))
	if d[0]&2 == 2 {
		if size, err := f.Size(); err == nil && at < size {
			if err := f.Truncate(at); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	p := make([]byte, 1)
	if n, _ := f.ReadAt(p, at); n == 1 {
		p[0] += d[4]
		if _, err := f.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
}

// wantHonest checks that b claims only bytes of rel, if it is a transfer of it.
func wantHonest(t *testing.T, b *inbox.Inbox, rel *otatest.SignedRelease) {
	s := b.State()
	if s.Received < 0 || s.Received > s.Offer.Size || s.Missing < 0 || s.Missing > s.Offer.Size || s.Until < 0 || s.Until > max(s.Offer.Size, int64(len(rel.Bundle))) {
		t.Fatalf("impossible: %+v", s)
	}
	all := rel.Bundle
	if s.Offer.Bare {
		_, all = bare(rel)
	}
	if s.Offer.Size != int64(len(all)) {
		return // a journal that somebody made
	}
	got := make([]byte, len(all))
	n, _ := b.ReadAt(got, 0)
	for i := range got[:n] {
		if b.Has(int64(i), 1) && got[i] != all[i] {
			t.Fatalf("byte %d is said to be there, and is another (%+v)", i, s)
		}
	}
	if _, err := b.Latest(t.Context()); err == nil {
		for i := range rel.Manifest.Images {
			if err := readImage(b, rel, &rel.Manifest.Images[i]); err != nil && ota.CodeOf(err) == ota.ErrInternal {
				t.Fatal(err)
			}
		}
	}
}
