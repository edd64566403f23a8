package can_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can/profile"
)

// A tester that asks for what does not fit what is there is told so, and changes nothing.
func TestWrongRequests(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	size := len(release.Bundle)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, release.Verify, func(r *rig) { r.config.MaxBlock = 1002 })
		x := r.tester()
		x.enter(r)
		x.raw(announcement(release.Bundle))
		x.raw(download(0, size))
		x.want("36 02 00", "7F 36 73")
		x.blocks(release.Bundle[:2000], 0, 1000)
		x.want("36 02 FFFF", "76 02") // the block before, again: whatever is in it is not looked at
		x.want("36 04 00", "7F 36 73")
		x.want("37", "7F 37 24") // not all came
		if got := fmt.Sprintf("%X", x.raw(append([]byte{0x36, 3}, make([]byte, 1001)...))); got != "7F3613" {
			t.Errorf("a block that is too long: got %s, want 7F3613", got)
		}
		before := r.inbox.State()
		for _, tt := range []struct{ address, size int }{
			{1999, size - 1999}, {2001, size - 2001}, {500, 100}, {0, size + 1}, {2000, size - 1999}, {2000, 0}, {size, 1}, {size, 0}, {1<<31 - 1, 1<<31 - 1},
		} {
			if got := fmt.Sprintf("%X", x.raw(download(tt.address, tt.size))); got != "7F3431" {
				t.Errorf("34 at %d for %d: got %s, want 7F3431", tt.address, tt.size, got)
			}
			if x.reason() == "" {
				t.Errorf("34 at %d for %d: no reason", tt.address, tt.size)
			}
		}
		x.raw(download(2000, 100)) // a part of what is missing
		x.want("36 01"+strings.Repeat("00", 101), "7F 36 71")
		x.want("31 01 0202", "7F 31 24")
		x.want("31 01 F001", "7F 31 24")
		if after := r.inbox.State(); after.Received != before.Received || after.Offer != before.Offer {
			t.Errorf("the transfer is %+v, was %+v", after, before)
		}
		x.push(r, release.Bundle, 1000)
		r.offered(release)
	})
}

// Other bytes for a place where some are is refused, so that two bundles are never mixed.
func TestOtherBytes(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, release.Verify, nil)
		x := r.tester()
		x.enter(r)
		x.raw(announcement(release.Bundle))
		x.raw(download(0, len(release.Bundle)))
		x.blocks(release.Bundle[:3000], 0, 3000)
		x.raw(download(0, len(release.Bundle)))
		bad := bytes.Clone(release.Bundle[:1000])
		bad[900]++
		if got := fmt.Sprintf("%X", x.raw(append([]byte{0x36, 1}, bad...))); got != "7F3631" || x.reason() == "" {
			t.Errorf("got %s (%s), want 7F3631", got, x.reason())
		}
		x.push(r, release.Bundle, 1000)
		r.offered(release)
	})
}

// A session that has not said which bundle comes begins with the first byte of a new one,
// whatever an earlier session has said.
func TestAnnouncementsAreOfASession(t *testing.T) {
	key := otatest.NewSigningKey(t)
	release, other := key.Release(t, "1.1.0", 5000), key.Release(t, "1.2.0", 5000)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, release.Verify, nil)
		x := r.tester()
		x.enter(r)
		x.raw(announcement(other.Bundle))
		x.raw(download(0, len(other.Bundle)))
		x.blocks(other.Bundle[:3000], 0, 1000)
		x.want("10 02", "50 02") // without the default session in between
		x.unlock(r.key)
		x.raw(download(0, len(release.Bundle)))
		if p := x.progress(); p.Received != 0 {
			t.Errorf("progress %+v", p)
		}
		x.blocks(release.Bundle, 0, 1000)
		x.want("37", "77")
		x.want("31 01 0202", "71 01 0202 00")
		x.want("31 01 F001", "71 01 F001 00")
		r.offered(release)
	})
}

// The hash that comes with checkMemory is compared, whether one was announced or not.
func TestCheckWithHash(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	for _, announced := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, release.Verify, nil)
			x := r.tester()
			x.enter(r)
			if announced {
				x.raw(announcement(release.Bundle))
			}
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle, 0, 4093)
			x.want("37", "77")
			x.want(fmt.Sprintf("31 01 0202 %064X", 1), "71 01 0202 01")
			if got := profile.Result(x.read(profile.DIDResult)[0]); got != profile.BadHash || x.reason() == "" {
				t.Errorf("result %v (%s)", got, x.reason())
			}
			x.want(fmt.Sprintf("31 01 0202 %X", sha256.Sum256(release.Bundle)), "71 01 0202 00")
			x.want("31 01 F001", "71 01 F001 00")
			r.offered(release)
		})
	}
}

// A wrong announcement is found out at the end: the bundle is whole, and another.
func TestAnnouncedOther(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, release.Verify, nil)
		x := r.tester()
		x.enter(r)
		wrong := announcement(release.Bundle)
		wrong[len(wrong)-1]++
		x.raw(wrong)
		x.raw(download(0, len(release.Bundle)))
		x.blocks(release.Bundle, 0, 4093)
		x.want("37", "77")
		x.want("31 01 0202", "71 01 0202 01")
		if x.reason() == "" {
			t.Error("no reason")
		}
		x.want("31 01 F001", "7F 31 24")
	})
}

// A disk without room, and one that cannot be written.
func TestDisk(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	t.Run("full", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, release.Verify, func(r *rig) { r.box.FS = &badDisk{FS: durable.OS{}, full: true} })
			x := r.tester()
			x.enter(r)
			if got := fmt.Sprintf("%X", x.raw(announcement(release.Bundle))); got != "7F2E70" {
				t.Errorf("announce: got %s, want 7F2E70", got)
			}
			if got := profile.Result(x.read(profile.DIDResult)[0]); got != profile.NoSpace {
				t.Errorf("result %v", got)
			}
			if got := fmt.Sprintf("%X", x.raw(download(0, len(release.Bundle)))); got != "7F3470" {
				t.Errorf("34: got %s, want 7F3470", got)
			}
		})
	})
	t.Run("bad", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			disk := &badDisk{FS: durable.OS{}}
			r := newRig(t, release.Verify, func(r *rig) { r.box.FS = disk })
			x := r.tester()
			x.enter(r)
			x.raw(announcement(release.Bundle))
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle[:2000], 0, 1000)
			disk.bad.Store(true)
			if got := fmt.Sprintf("%X", x.raw(append([]byte{0x36, 3}, release.Bundle[2000:3000]...))); got != "7F3672" {
				t.Errorf("36: got %s, want 7F3672", got)
			}
			if got := profile.Result(x.read(profile.DIDResult)[0]); got != profile.Storage || x.reason() == "" {
				t.Errorf("result %v (%s)", got, x.reason())
			}
			disk.bad.Store(false)
			x.push(r, release.Bundle, 1000)
			r.offered(release)
		})
	})
}

// badDisk is a fake of a disk that has no room, or does not take what is written.
type badDisk struct {
	durable.FS
	full bool
	bad  atomic.Bool
}

func (d *badDisk) Free(name string) (int64, error) {
	if d.full {
		return 1000, nil
	}
	return d.FS.Free(name)
}

func (d *badDisk) OpenFile(name string, flag int, perm os.FileMode) (durable.File, error) {
	f, err := d.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return badFile{f, d}, nil
}

type badFile struct {
	durable.File
	d *badDisk
}

func (f badFile) WriteAt(p []byte, off int64) (int, error) {
	if f.d.bad.Load() {
		return 0, syscall.EIO
	}
	return f.File.WriteAt(p, off)
}

// Whoever begins again and again, and says nothing between, costs nothing: no space, and
// nobody else's transfer but what is replaced anyway.
func TestEndlessRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, nil)
		x := r.tester()
		x.enter(r)
		for i := range 300 {
			x.raw(download(0, 1000+i))
		}
		if b := r.inbox.State(); b.Phase != inbox.Opening || b.Received != 0 {
			t.Errorf("the inbox is %+v", b)
		}
		files, err := os.ReadDir(r.box.Dir)
		if err != nil || len(files) > 5 {
			t.Errorf("%d files, %v", len(files), err)
		}
		// A message that never ends is given up, and the next one is answered.
		node := r.bus.Join("silent")
		if err := node.Send(t.Context(), frame(0x18DA10F1, 0x1F, 0xFF, 0x36, 1, 0, 0, 0, 0)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		node.Close()
		x.want("3E 00", "7E 00")
	})
}
