package inbox_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// filled is a disk with an inbox that offers a release, in its directory.
func filled(t *testing.T, rel *otatest.SignedRelease) (disk *otatest.Disk, dir string) {
	t.Helper()
	disk = otatest.NewDisk()
	cfg := config(disk, rel)
	b := open(t, cfg)
	if err := b.SetEnvelope(rel.Signed); err != nil {
		t.Fatal(err)
	}
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle, 700)
	finish(t, b)
	if err := errors.Join(b.Request(), b.Close()); err != nil {
		t.Fatal(err)
	}
	return disk, cfg.Dir
}

func gone(t *testing.T, disk durable.FS, name string) bool {
	t.Helper()
	_, err := disk.Stat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	return err != nil
}

// An inbox that nobody wants any more leaves nothing behind; what is not its own stays.
func TestRemove(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 9_000)
	synctest.Test(t, func(t *testing.T) {
		disk, dir := filled(t, rel)
		for digest, want := range map[string]bool{rel.Manifest.Digest: true, "another": false} {
			if got := inbox.Holds(disk, dir, digest); got != want {
				t.Errorf("holds %s: got %v, want %v", digest, got, want)
			}
		}
		mine := path.Join(dir, "data.01") // no name that an inbox gives
		if err := durable.WriteFile(disk, mine, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := inbox.Remove(disk, dir); err == nil || !strings.Contains(err.Error(), "data.01 in it is not of an inbox") {
			t.Errorf("got %v, want that a file is not of an inbox", err)
		}
		if entries, _ := disk.ReadDir(dir); len(entries) != 1 || gone(t, disk, mine) {
			t.Errorf("%d files are left, want the one that is not of an inbox", len(entries))
		}
		if err := disk.Remove(mine); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := inbox.Remove(disk, dir); err != nil || !gone(t, disk, dir) {
				t.Errorf("got %v, and it is there: %v", err, !gone(t, disk, dir))
			}
		}
		if inbox.Holds(disk, dir, rel.Manifest.Digest) {
			t.Error("what is not there holds a release")
		}
		disk, dir = filled(t, rel)
		if err := durable.WriteFile(disk, path.Join(dir, "journal.bad"), []byte("put aside"), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := inbox.Remove(disk, dir); err != nil || n < int64(len(rel.Bundle)) {
			t.Errorf("got %d bytes freed and %v, want at least the %d of the bundle", n, err, len(rel.Bundle))
		}
		disk.PowerOff(otatest.DropAll, 1)
		disk.PowerOn()
		if !gone(t, disk, dir) {
			t.Error("it is back after a power cut")
		}
	})
}

// What cannot be read may hold any release.
func TestHoldsUnclear(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 9_000)
	synctest.Test(t, func(t *testing.T) {
		disk, dir := filled(t, rel)
		f, err := disk.OpenFile(path.Join(dir, "journal"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 100), 0); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if !inbox.Holds(disk, dir, "another") {
			t.Error("a damaged journal says that the release is not there")
		}
	})
}

// The power is cut at every effect of removing an inbox: it is as it was, or empty, and the next attempt ends it.
func TestPowerCutWhileRemoved(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3_000)
	runs := 0
	synctest.Test(t, func(t *testing.T) {
		full, dir := filled(t, rel)
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for _, rest := range []otatest.Rest{otatest.DropAll, otatest.KeepAll, otatest.Subset} {
				for at := 1; ; at++ {
					cut := otatest.Cut{At: at, How: how, Rest: rest, Seed: uint64(at)}
					disk := full.Clone()
					disk.Arm(cut)
					proc := otatest.NewProcess(disk)
					_, err := inbox.Remove(proc, dir)
					if !proc.Ended() {
						if err != nil {
							t.Errorf("without a cut: %v", err)
						}
						break
					}
					disk.PowerOn()
					runs++
					again := disk.Clone()
					if _, err := inbox.Remove(again, dir); err != nil || !gone(t, again, dir) {
						t.Errorf("cut %v: removed again: %v", cut, err)
					}
					b := open(t, config(disk, rel)) // the source is there again after all
					switch s := b.State(); s.Phase {
					case inbox.Empty:
					case inbox.Requested:
						if _, err := b.Latest(context.Background()); err != nil {
							t.Errorf("cut %v: %v", cut, err)
						}
						if err := readImage(b, rel, &rel.Manifest.Images[0]); err != nil {
							t.Errorf("cut %v: the journal says that it is there: %v", cut, err)
						}
					default:
						t.Errorf("cut %v: the inbox is %s, %v, want as it was, or empty", cut, s.Phase, s.Err)
					}
					b.Close()
				}
			}
		}
	})
	if t.Logf("%d power cuts", runs); runs < 40 {
		t.Errorf("%d power cuts, want one at each of some 7 effects, in 9 ways", runs)
	}
}
