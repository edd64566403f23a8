package inbox_test

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// A release that was verified or asked for is whole after a power cut, also if another
// one was begun in its place: the one or the other is there.
func TestReplacedDuringPowerCut(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel, other := key.Release(t, "1.1.0", 9_000), key.Release(t, "1.2.0", 7_000)
	old := otatest.NewDisk()
	b := open(t, config(old, rel))
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle, 700)
	finish(t, b)
	b.Close()
	kept, runs := 0, 0
	for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
		for at := 1; ; at++ {
			fell := false
			for seed := range uint64(8) {
				synctest.Test(t, func(t *testing.T) {
					disk := old.Clone()
					disk.Arm(otatest.Cut{At: at, How: how, Rest: otatest.Subset, Seed: seed})
					proc := otatest.NewProcess(disk)
					if b, err := inbox.Open(config(proc, rel)); err == nil {
						_, _ = b.Begin(offer(other))
						for at := 0; at < len(other.Bundle) && !proc.Ended(); at += 700 {
							_ = b.Put(int64(at), other.Bundle[at:min(at+700, len(other.Bundle))])
							synctest.Wait()
						}
						time.Sleep(6 * time.Second) // of the bubble
						b.Close()
					}
					fell = fell || proc.Ended()
					disk.PowerOn()
					b := open(t, config(disk, rel))
					defer b.Close()
					runs++
					switch s := b.State(); {
					case s.Offer == offer(rel):
						kept++
						if s.Phase != inbox.Requested {
							t.Errorf("the first release was asked for, and is %s", s.Phase)
						}
						wantOffered(t, b, rel)
					case s.Offer != offer(other):
						t.Errorf("got %+v, want one of the two", s)
					}
				})
			}
			if t.Failed() {
				t.Fatalf("with a cut %v effect %d", how, at)
			}
			if !fell {
				break
			}
		}
	}
	t.Logf("%d runs, in %d of them the first was kept", runs, kept)
	if runs < 100 || kept < 10 {
		t.Error("want more")
	}
}

// What is replaced is not removed before the journal that says so is on the medium.
func TestReplacedWithoutSync(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel, other := key.Release(t, "1.1.0", 9_000), key.Release(t, "1.2.0", 7_000)
	synctest.Test(t, func(t *testing.T) {
		disk := otatest.NewDisk()
		b := open(t, config(disk, rel))
		begin(t, b, offer(rel))
		putAll(t, b, rel.Bundle, 700)
		finish(t, b)
		synctest.Wait()
		disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "sync "+dir+"/journal") {
				return otatest.Fault{Err: syscall.EIO}
			}
			return otatest.Fault{}
		}
		begin(t, b, offer(other))
		time.Sleep(time.Minute) // of the bubble
		b.Close()
		disk.OnEffect = nil
		disk.PowerOff(otatest.KeepAll, 1)
		disk.PowerOn()
		b = open(t, config(disk, rel))
		defer b.Close()
		if s := b.State(); s.Phase != inbox.Requested || s.Offer != offer(rel) {
			t.Fatalf("got %+v, want the first release", s)
		}
		wantOffered(t, b, rel)
	})
}

// A phase that was seen is there after a power cut, from Verified on.
func TestVerifiedIsForGood(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 9_000)
	disk := otatest.NewDisk()
	proc := otatest.NewProcess(disk)
	b := open(t, config(proc, rel))
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle, 700)
	cut := make(chan struct{})
	hook := func(string) {
		if b.State().Phase == inbox.Verified { // what is synced only now comes too late
			if !proc.Ended() {
				proc.PowerOff(otatest.DropAll, 1)
				close(cut)
			}
		}
	}
	proc.BeforeSync.Store(&hook)
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	wait(t, b, inbox.Verified)
	<-cut
	b.Close()
	disk.PowerOn()
	b = open(t, config(disk, rel))
	if s := b.State(); s.Phase != inbox.Verified || s.Received != s.Offer.Size {
		t.Errorf("got %+v, want %s", s, inbox.Verified)
	}
}

// What was synced is not lost by what is appended later, but for a sector of its neighbours.
func TestSyncedIsOutOfReach(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 100_000)
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			disk := otatest.NewDisk()
			proc := otatest.NewProcess(disk)
			b := open(t, config(proc, rel))
			begin(t, b, offer(rel))
			putAll(t, b, rel.Bundle[:40_000], 100)
			time.Sleep(6 * time.Second) // of the bubble
			synctest.Wait()
			disk.Arm(otatest.Cut{At: int(seed%4) + 1, How: otatest.Torn, Rest: otatest.DropAll, Unit: 4096, Seed: seed})
			for at := 60_000; at < 61_000; at += 100 {
				_ = b.Put(int64(at), rel.Bundle[at:at+100])
			}
			b.Close()
			disk.PowerOn()
			b = open(t, config(disk, rel))
			defer b.Close()
			if !b.Has(0, 40_000) {
				t.Errorf("seed %d: of 40,000 bytes that were synced, %d are left", seed, b.State().Missing)
			}
		})
	}
}

// Bytes that a failed sync may have lost are not said to be there any more.
func TestFailedSync(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	for _, isBare := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			disk := otatest.NewDisk()
			failed, armed := false, atomic.Bool{}
			disk.OnEffect = func(_ int, effect string) otatest.Fault {
				if strings.HasPrefix(effect, "sync "+dir+"/data") && !failed && armed.Load() {
					failed = true
					return otatest.Fault{Err: syscall.EIO}
				}
				return otatest.Fault{}
			}
			b := open(t, config(disk, rel))
			o, all := offer(rel), rel.Bundle
			if isBare {
				o, all = bare(rel)
				if err := b.SetEnvelope(rel.Signed); err != nil {
					t.Fatal(err)
				}
			}
			begin(t, b, o)
			synctest.Wait() // the envelope of a bare transfer is synced
			armed.Store(true)
			putAll(t, b, all[:15_000], 700)
			time.Sleep(6 * time.Second) // of the bubble
			synctest.Wait()
			s := b.State()
			if !failed || s.Received >= 15_000 || s.Err == nil {
				t.Errorf("bare %v: got %+v, want less received, and why", isBare, s)
			}
			b.Close()
			disk.PowerOff(otatest.DropAll, 1)
			disk.PowerOn()
			b = open(t, config(disk, rel))
			defer b.Close()
			if got := b.State(); got.Received != s.Received || got.Missing != s.Missing {
				t.Errorf("bare %v: after a power cut %d bytes are there, and %d were said to be", isBare, got.Received, s.Received)
			}
			putAll(t, b, all, 700)
			finish(t, b)
			wantOffered(t, b, rel)
		})
	}
}

// What comes while the journal is written anew is in the new one.
func TestPutDuringCompaction(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 2<<20)
	disk := otatest.NewDisk()
	proc := otatest.NewProcess(disk)
	b := open(t, config(proc, rel))
	begin(t, b, offer(rel))
	head := bundle.HeaderSize + len(rel.Signed)
	putAll(t, b, rel.Bundle[:head], 4096)
	end := len(rel.Bundle)
	done := make(chan error, 1)
	hook := func(name string) {
		if strings.HasSuffix(name, "journal.tmp") {
			select {
			case done <- b.Put(int64(end-500), rel.Bundle[end-500:end-100]):
			default:
			}
		}
	}
	proc.BeforeSync.Store(&hook)
	for at := head; len(done) == 0 && at < end-600; at += 16 {
		if err := b.Put(int64(at), rel.Bundle[at:at+16]); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for size(t, disk, "journal") > 512<<10 { // until the new one is in its place
		<-time.After(time.Millisecond)
	}
	proc.Kill()
	b.Close()
	b = open(t, config(disk, rel))
	if !b.Has(int64(end-500), 400) {
		t.Error("a piece that came while the journal was written anew is gone")
	}
}
