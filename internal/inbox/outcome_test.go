package inbox_test

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// What was proven once is not told as proven when it does not run any more, and can come
// again: neither the bootloader nor a person who goes back asks the bus.
func TestProvenNoMore(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	for _, tt := range []struct {
		name   string
		later  ota.Report
		phase  inbox.Phase
		result ota.Result // of the outcome
		again  bool       // the same offer begins anew
	}{
		{"the bootloader went back", ota.Report{ID: "late", Digest: rel.Manifest.Digest, Result: ota.Lost}, inbox.Ended, ota.Lost, true},
		{"a person went back", ota.Report{ID: "back", Version: "1.0.0", Result: ota.Succeeded}, inbox.Empty, "", true},
		{"a stick brought a newer one", ota.Report{ID: "stick", Digest: "d2", Version: "1.2.0", Result: ota.Succeeded}, inbox.Empty, "", true},
		{"a stick brought one that failed", ota.Report{ID: "stick", Digest: "d2", Version: "1.2.0", Result: ota.Failed}, inbox.Ended, ota.Succeeded, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk := otatest.NewDisk()
			b := open(t, config(disk, rel))
			begin(t, b, offer(rel))
			putAll(t, b, rel.Bundle, 1000)
			finish(t, b)
			for _, r := range []ota.Report{report(rel, ota.Succeeded), tt.later} {
				if err := b.Report(t.Context(), r); err != nil {
					t.Fatal(err)
				}
			}
			check := func() {
				t.Helper()
				s := b.State()
				if s.Phase != tt.phase || s.Last == nil || s.Last.ID != tt.later.ID {
					t.Errorf("got %s, the last %+v", s.Phase, s.Last)
				}
				if (s.Outcome == nil) != (tt.result == "") || s.Outcome != nil && s.Outcome.Result != tt.result {
					t.Errorf("outcome %+v, want %q", s.Outcome, tt.result)
				}
			}
			check()
			b.Close()
			disk.PowerOff(otatest.DropAll, 1)
			disk.PowerOn()
			b = open(t, config(disk, rel))
			check()
			if resumed, err := b.Begin(offer(rel)); err != nil || resumed == tt.again {
				t.Fatalf("the same offer: resumed %v, %v, want %v", resumed, err, !tt.again)
			}
			if tt.again {
				putAll(t, b, rel.Bundle, 1000)
				finish(t, b)
			}
		})
	}
}

// fullDisk is a fake of a disk that others fill while a transfer is under way.
type fullDisk struct {
	*otatest.Disk
	free int64
}

func (d *fullDisk) Free(string) (int64, error) { return d.free, nil }

// A transfer leaves what the rest of the agent needs to keep its record and its evidence, however
// much was free when it began; and goes on once there is room.
func TestLeavesRoom(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3<<20)
	disk := &fullDisk{otatest.NewDisk(), 100 << 20}
	b := open(t, config(disk, rel))
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle[:1<<20], 4000)
	disk.free = 2 << 20
	const step = 4000
	at := int64(1 << 20)
	var err error
	for at+step < int64(len(rel.Bundle)) {
		if err = b.Put(at, rel.Bundle[at:at+step]); err != nil {
			break
		}
		at += step
	}
	if !errors.Is(err, ota.ErrInsufficientSpace) || at > 2<<20+step {
		t.Errorf("up to byte %d it is taken, and then %v, want at most 1 MiB more", at, err)
	}
	disk.free = 100 << 20
	putAll(t, b, rel.Bundle, 50_000)
	finish(t, b)
}

// slowDisk is a fake of a full disk that takes its time to remove a file.
type slowDisk struct {
	*otatest.Disk
	free   atomic.Int64
	remove chan struct{} // closed: removing goes on
}

func (d *slowDisk) Free(string) (int64, error) { return d.free.Load(), nil }

func (d *slowDisk) Remove(name string) error {
	if strings.Contains(name, "data.") {
		<-d.remove
		d.free.Store(100 << 20)
	}
	return d.Disk.Remove(name)
}

// Who has to wait until the space of an earlier transfer is free, hears when it is: no other change
// may come for a long time.
func TestWaitsForSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 50_000)
		disk := &slowDisk{Disk: otatest.NewDisk(), remove: make(chan struct{})}
		disk.free.Store(100 << 20)
		b, err := inbox.Open(config(disk, rel))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		begin(t, b, inbox.Offer{Size: 60_000})
		if err := b.Put(0, rel.Bundle[:12]); err != nil {
			t.Fatal(err)
		}
		begin(t, b, offer(rel))
		disk.free.Store(0)
		synctest.Wait()
		if err := b.Put(0, rel.Bundle[:12]); !errors.Is(err, inbox.ErrEarly) {
			t.Fatalf("while space is being freed: %v, want %v", err, inbox.ErrEarly)
		}
		changed := b.Changed()
		close(disk.remove)
		<-changed
		putAll(t, b, rel.Bundle, 1000)
	})
}

// cramped is a fake of a disk on which others have left nothing free: a byte can be written only
// where there was one.
type cramped struct {
	*otatest.Disk
	full atomic.Bool
}

func (d *cramped) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := d.Disk.OpenFile(name, flag, perm)
	return crampedFile{f, d}, err
}

type crampedFile struct {
	durable.File
	d *cramped
}

func (f crampedFile) WriteAt(p []byte, off int64) (int, error) {
	if size, err := f.Size(); err == nil && f.d.full.Load() && off+int64(len(p)) > size {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

func (f crampedFile) Truncate(size int64) error {
	if now, err := f.Size(); err == nil && size+journalBlock <= now {
		f.d.full.Store(false)
	}
	return f.File.Truncate(size)
}

const journalBlock = 4096

// A transfer can be given up on a disk that is full: it is what fills it.
func TestDropOnAFullDisk(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 50_000)
	disk := &cramped{Disk: otatest.NewDisk()}
	b := open(t, config(disk, rel))
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle[:40_000], 1000)
	disk.full.Store(true)
	if err := b.Drop(); err != nil || b.State().Phase != inbox.Empty {
		t.Fatalf("got %v, %s", err, b.State().Phase)
	}
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle, 1000)
	finish(t, b)
	wantOffered(t, b, rel)
}

// forgetful is a disk of which a sync of the journal, or of the names, can be refused.
type forgetful struct {
	*otatest.Disk
	no, noNames atomic.Bool
}

func (d *forgetful) SyncDir(name string) error {
	if d.noNames.Load() {
		return syscall.EIO
	}
	return d.Disk.SyncDir(name)
}

func (d *forgetful) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := d.Disk.OpenFile(name, flag, perm)
	if err != nil || path.Base(name) != "journal" {
		return f, err
	}
	return forgetfulFile{f, d}, nil
}

type forgetfulFile struct {
	durable.File
	d *forgetful
}

func (f forgetfulFile) Sync() error {
	if f.d.no.Load() {
		return syscall.EIO
	}
	return f.File.Sync()
}

// What was asked to be installed, and was taken back, is not offered after a power cut, at whatever moment after
// the answer. If the disk cannot say so, nobody is told that it was taken back.
func TestTakenBackForGood(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 5_000)
	for _, drop := range []func(*inbox.Inbox) error{(*inbox.Inbox).Drop, func(b *inbox.Inbox) error { return b.DropRelease(rel.Manifest.Digest) }} {
		synctest.Test(t, func(t *testing.T) {
			full, dir := filled(t, rel)
			disk := &forgetful{Disk: full}
			cfg := config(disk, rel)
			cfg.Dir = dir
			b := open(t, cfg)
			wantOffered(t, b, rel)
			disk.no.Store(true)
			for range 2 {
				if err := drop(b); err == nil {
					t.Error("it is taken back on a disk that does not keep that")
				}
			}
			disk.noNames.Store(true)
			disk.no.Store(false)
			time.Sleep(time.Minute) // the journal was written anew, and the old one may come back
			if err := drop(b); err == nil || errors.Is(err, inbox.ErrNone) {
				t.Errorf("got %v on a disk that may show the old journal again", err)
			}
			disk.noNames.Store(false)
			for range 60 { // until its name is on the medium
				if err := drop(b); err == nil || errors.Is(err, inbox.ErrNone) {
					break
				}
				time.Sleep(time.Second)
			}
			if err := drop(b); err != nil && !errors.Is(err, inbox.ErrNone) {
				t.Fatal(err)
			}
			if again := afterPowerCut(t, full, cfg); again.Phase != inbox.Empty {
				t.Errorf("after trouble with the disk and a power cut: %s, want %s", again.Phase, inbox.Empty)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			disk, dir := filled(t, rel)
			cfg := config(disk, rel)
			cfg.Dir = dir
			b := open(t, cfg)
			synctest.Wait()
			if err := drop(b); err != nil {
				t.Fatal(err)
			}
			if again := afterPowerCut(t, disk, cfg); again.Phase != inbox.Empty {
				t.Errorf("after a power cut: %s, want %s", again.Phase, inbox.Empty)
			}
		})
	}
}

// afterPowerCut is what is there if the power is cut now.
func afterPowerCut(t *testing.T, disk *otatest.Disk, cfg inbox.Config) inbox.State {
	t.Helper()
	disk = disk.Clone()
	disk.PowerOff(otatest.DropAll, 1)
	disk.PowerOn()
	cfg.FS = disk
	b := open(t, cfg)
	defer b.Close()
	return b.State()
}

// A reader on a bus asks for the manifest in pieces of a few bytes, and may be anybody.
func TestEnvelopeIsNotCopied(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	b := open(t, config(otatest.NewDisk(), rel))
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle, 1000)
	if n := testing.AllocsPerRun(100, func() { b.Envelope() }); n != 0 || !bytes.Equal(b.Envelope(), rel.Signed) {
		t.Errorf("%v allocations for reading the manifest, want none", n)
	}
}
