package inbox_test

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/bus/crash/crashtest"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

func TestMain(m *testing.M) { crashtest.Main(m) }

// crashing is a fake disk that panics, once, before or after it does something.
type crashing struct {
	durable.FS
	mu    sync.Mutex
	left  int // operations until then; 0: never
	after bool
	names []string // what panicked
}

// op does one operation.
func (c *crashing) op(name string, do func()) {
	c.mu.Lock()
	now := c.left == 1
	c.left = max(0, c.left-1)
	if now {
		c.names = append(c.names, name)
	}
	c.mu.Unlock()
	if now && !c.after {
		panic("on purpose")
	}
	do()
	if now {
		panic("on purpose")
	}
}

func (c *crashing) arm(n int, after bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left, c.after = n, after
}

func (c *crashing) fell() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.names) > 0
}

func (c *crashing) OpenFile(name string, flag int, perm fs.FileMode) (f durable.File, err error) {
	c.op("open", func() { f, err = c.FS.OpenFile(name, flag, perm) })
	return crashingFile{f, c}, err
}
func (c *crashing) Rename(from, to string) (err error) {
	c.op("rename", func() { err = c.FS.Rename(from, to) })
	return err
}
func (c *crashing) Remove(name string) (err error) {
	c.op("remove", func() { err = c.FS.Remove(name) })
	return err
}
func (c *crashing) SyncDir(name string) (err error) {
	c.op("sync directory", func() { err = c.FS.SyncDir(name) })
	return err
}
func (c *crashing) Free(name string) (n int64, err error) {
	c.op("free", func() { n, err = c.FS.Free(name) })
	return n, err
}

type crashingFile struct {
	durable.File
	c *crashing
}

func (f crashingFile) ReadAt(p []byte, at int64) (n int, err error) {
	f.c.op("read", func() { n, err = f.File.ReadAt(p, at) })
	return n, err
}
func (f crashingFile) WriteAt(p []byte, at int64) (n int, err error) {
	f.c.op("write", func() { n, err = f.File.WriteAt(p, at) })
	return n, err
}
func (f crashingFile) Sync() (err error) {
	f.c.op("sync", func() { err = f.File.Sync() })
	return err
}

// TestPanicAtEveryEffect panics at each thing that a transfer does to the disk, before and after it. The inbox is
// broken then and offers nothing; no lock is left; and after a restart nothing that was acknowledged is gone, and
// the transfer comes to its end.
func TestPanicAtEveryEffect(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000, 500)
	broke, read := 0, 0
	for round := range 4 {
		after, isBare := round&1 == 1, round&2 == 2
		for n := 1; panicAt(t, rel, n, after, isBare, &broke, &read); n++ {
		}
	}
	t.Logf("the inbox was broken after %d effects, and went on after %d", broke, read)
	if broke < 20 || read < 2 {
		t.Errorf("the inbox was broken %d times, and went on %d times: the test has lost its object", broke, read)
	}
}

// panicAt panics at effect n, and reports whether there is such a one.
func panicAt(t *testing.T, rel *otatest.SignedRelease, n int, after, isBare bool, broke, read *int) (fell bool) {
	synctest.Test(t, func(t *testing.T) {
		disk := &crashing{FS: otatest.NewDisk()}
		cfg := config(disk, rel)
		cfg.Crashes = crashtest.Expected()
		b := open(t, cfg)
		p := newPusher(t, rel, isBare, 700)
		disk.arm(n, after)
		err := p.push(b)
		synctest.Wait()
		fell = disk.fell()
		if _, all := cfg.Crashes.Last(); fell != (all > 0) {
			t.Fatalf("effect %d, %v: %d crashes are noted", n, disk.names, all)
		}
		disk.arm(0, false)
		switch s := b.State(); {
		case errors.Is(s.Err, inbox.ErrBroken):
			*broke++
			wantBroken(t, b, rel)
		case fell && !errors.Is(err, crash.Err):
			t.Fatalf("effect %d, %v: got %v, want one that says what panicked", n, disk.names, err)
		case fell: // nothing was changed
			*read++
		case err != nil:
			t.Fatal(err)
		}
		b.Close()
		b = open(t, cfg)
		p.check(b)
		if err := p.push(b); err != nil {
			t.Fatalf("effect %d, %v: after a restart: %v", n, disk.names, err)
		}
		if s := b.State(); s.Phase != inbox.Ended {
			t.Errorf("effect %d, %v: after a restart: got %s", n, disk.names, s.Phase)
		}
		b.Close()
	})
	return fell && !t.Failed()
}

// wantBroken makes every call, none of which may wait or do anything.
func wantBroken(t *testing.T, b *inbox.Inbox, rel *otatest.SignedRelease) {
	t.Helper()
	if s := b.State(); s.Phase != inbox.Failed || s.Asked || s.Outcome != nil || ota.CodeOf(s.Err) != ota.ErrInternal {
		t.Errorf("a broken inbox: got %+v", s)
	}
	im := &rel.Manifest.Images[0]
	for name, call := range map[string]func() error{
		"Begin":       func() error { _, err := b.Begin(offer(rel)); return err },
		"SetEnvelope": func() error { return b.SetEnvelope(rel.Signed) },
		"Put":         func() error { return b.Put(0, rel.Bundle[:10]) },
		"ReadAt":      func() error { _, err := b.ReadAt(make([]byte, 10), 0); return err },
		"Finish":      b.Finish,
		"Request":     b.Request,
		"Drop":        b.Drop,
		"Latest":      func() error { _, err := b.Latest(context.Background()); return err },
		"Open":        func() error { _, err := b.Open(context.Background(), rel.Manifest, im, 0); return err },
		"Report":      func() error { return b.Report(context.Background(), report(rel, ota.Succeeded)) },
	} {
		if err := call(); !errors.Is(err, inbox.ErrBroken) {
			t.Errorf("%s of a broken inbox: got %v, want %v", name, err, inbox.ErrBroken)
		}
	}
	if b.Has(0, 1) || b.Envelope() != nil {
		t.Error("a broken inbox says that it has something")
	}
}

// TestPanicInVerify is a manifest that makes the verification panic, or the judgement of what it is for: it is
// refused as any wrong one, and the next transfer goes.
func TestPanicInVerify(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000)
	for _, c := range []struct {
		name   string
		change func(cfg *inbox.Config, crashes func())
		code   ota.ErrorCode
	}{
		{"verify", func(cfg *inbox.Config, crashes func()) {
			verify := cfg.Verify
			cfg.Verify = func(p []byte) (*ota.Manifest, error) { crashes(); return verify(p) }
		}, ota.ErrValidation},
		{"judge", func(cfg *inbox.Config, crashes func()) {
			cfg.Judge = func(*ota.Manifest) error { crashes(); return nil }
		}, ota.ErrIncompatible},
	} {
		t.Run(c.name, func(t *testing.T) {
			on := true
			cfg := config(otatest.NewDisk(), rel)
			cfg.Crashes = crashtest.Expected()
			c.change(&cfg, func() {
				if on {
					panic("on purpose")
				}
			})
			b := open(t, cfg)
			begin(t, b, offer(rel))
			err := b.Put(0, rel.Bundle)
			if s := b.State(); !errors.Is(err, c.code) || s.Phase != inbox.Failed || errors.Is(s.Err, inbox.ErrBroken) {
				t.Errorf("got %v, and %s (%v), want the code %d and a transfer that has failed", err, s.Phase, s.Err, int(c.code))
			}
			b.Close()
			b = open(t, cfg) // the manifest is not met again
			if s := b.State(); s.Phase != inbox.Failed || errors.Is(s.Err, inbox.ErrBroken) {
				t.Errorf("after a restart: got %s (%v)", s.Phase, s.Err)
			}
			on = false
			begin(t, b, offer(rel))
			putAll(t, b, rel.Bundle, 700)
			finish(t, b)
			wantOffered(t, b, rel)
		})
	}
}

// TestPanicInOpen: what an earlier life left and what makes the next one panic is put aside, at
// whichever step, so that the agent does not end at each start. If that does not help, the inbox is broken.
func TestPanicInOpen(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000)
	for n := 3; ; n++ { // the first two are the directory's
		disk := otatest.NewDisk()
		b := open(t, config(disk, rel))
		begin(t, b, offer(rel))
		putAll(t, b, rel.Bundle[:1000], 250)
		b.Close()
		bad := &crashing{FS: disk}
		bad.arm(n, false)
		cfg := config(bad, rel)
		cfg.Crashes = crashtest.Expected()
		b, err := inbox.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s := b.State()
		if !bad.fell() || s.Received > 0 || errors.Is(s.Err, inbox.ErrBroken) { // the step was one of the background
			b.Close()
			if n < 8 {
				t.Errorf("opening took %d effects, want more: the test has lost its object", n)
			}
			break
		}
		if s.Phase != inbox.Empty || s.Err != nil {
			t.Errorf("effect %d, %v: got %s (%v), want an empty inbox", n, bad.names, s.Phase, s.Err)
		}
		if _, err := disk.Stat(dir + "/journal.bad"); err != nil {
			t.Errorf("effect %d, %v: what could not be read was not kept: %v", n, bad.names, err)
		}
		begin(t, b, offer(rel))
		putAll(t, b, rel.Bundle, 700)
		finish(t, b)
		wantOffered(t, b, rel)
		b.Close()
	}
}

// hopeless is a fake disk that panics whenever a directory is listed.
type hopeless struct{ durable.FS }

func (hopeless) ReadDir(string) ([]fs.DirEntry, error) { panic("on purpose") }

func TestBrokenFromTheStart(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000)
	cfg := config(hopeless{otatest.NewDisk()}, rel)
	cfg.Crashes = crashtest.Expected()
	wantBroken(t, open(t, cfg), rel)
}
