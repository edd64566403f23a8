package inbox_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// size returns the bytes of the inbox's file on the disk.
func size(t *testing.T, disk *otatest.Disk, name string) (n int) {
	t.Helper()
	for line := range strings.Lines(disk.String()) {
		if f := strings.Fields(line); f[0] == dir+"/"+name {
			var err error
			if n, err = strconv.Atoi(f[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// The journal stays small, whatever the order of the pieces, and a process that is killed finds
// all in it.
func TestJournalStaysSmall(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3<<20)
	synctest.Test(t, func(t *testing.T) {
		disk := otatest.NewDisk()
		proc := otatest.NewProcess(disk)
		b, err := inbox.Open(config(proc, rel))
		if err != nil {
			t.Fatal(err)
		}
		begin(t, b, offer(rel))
		head := bundle.HeaderSize + len(rel.Signed)
		putAll(t, b, rel.Bundle[:head], 4096)
		var pieces []int
		for at := head; at < len(rel.Bundle); at += 64 {
			pieces = append(pieces, at)
		}
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		largest := 0
		for n, at := range pieces[:len(pieces)-10] {
			if err := b.Put(int64(at), rel.Bundle[at:min(at+64, len(rel.Bundle))]); err != nil {
				t.Fatal(err)
			}
			if n%1000 == 0 {
				synctest.Wait() // the background is not slower than this
				largest = max(largest, size(t, disk, "journal"))
			}
			if n%10_000 == 9_999 { // another life
				time.Sleep(6 * time.Second) // of the bubble; it is the fake disk that is slow with what is not synced
				before := b.State()
				proc.Kill()
				b.Close()
				proc = otatest.NewProcess(disk)
				if b, err = inbox.Open(config(proc, rel)); err != nil {
					t.Fatal(err)
				}
				if s := b.State(); s.Received != before.Received || s.Missing != before.Missing {
					t.Fatalf("after %d pieces and a kill: got %d bytes, want %d", n+1, s.Received, before.Received)
				}
			}
		}
		// Compacted, it needs a cell of 24 bytes for every gap; before that it may be twice as long.
		t.Logf("%d pieces, the journal had at most %d bytes", len(pieces), largest)
		if largest > 4<<20 {
			t.Errorf("the journal had %d bytes", largest)
		}
		for _, at := range pieces[len(pieces)-10:] {
			if err := b.Put(int64(at), rel.Bundle[at:min(at+64, len(rel.Bundle))]); err != nil {
				t.Fatal(err)
			}
		}
		finish(t, b)
		wantOffered(t, b, rel)
		b.Close()
	})
}

// More gaps than memory is there for are refused, and nothing is lost by it.
func TestTooManyGaps(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 300_000)
	b := open(t, config(otatest.NewDisk(), rel))
	begin(t, b, offer(rel))
	head := bundle.HeaderSize + len(rel.Signed)
	putAll(t, b, rel.Bundle[:head], 4096)
	var err error
	n := 0
	for at := head + 1; at < len(rel.Bundle) && err == nil; at += 2 {
		if err = b.Put(int64(at), rel.Bundle[at:at+1]); err == nil {
			n++
		}
	}
	if !errors.Is(err, inbox.ErrRange) || n < 60_000 || n > 70_000 {
		t.Errorf("after %d gaps: got %v, want %v", n, err, inbox.ErrRange)
	}
	putAll(t, b, rel.Bundle, 4096)
	finish(t, b)
	wantOffered(t, b, rel)
}

// The power is cut at every effect while the journal is written anew.
func TestPowerCutAtCompaction(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 9_000, 777)
	long := longJournal(t, rel)
	for _, kill := range []bool{false, true} {
		runs, compactions := 0, 0
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for at := 1; ; at++ {
				cut := otatest.Cut{At: at, How: how, Rest: otatest.Subset, Agent: kill, Seed: uint64(at)}
				fell := false
				synctest.Test(t, func(t *testing.T) {
					disk := long.Clone()
					disk.Arm(cut)
					var shrunk bool
					fell, shrunk = cutCompaction(t, disk, rel, kill)
					if shrunk {
						compactions++
					}
				})
				if t.Failed() {
					t.Fatalf("with cut %v", cut)
				}
				if !fell {
					break
				}
				runs++
			}
		}
		t.Logf("kill %v: %d runs, the journal was written anew in %d", kill, runs, compactions)
		if runs < 30 || compactions < 5 {
			t.Errorf("kill %v: %d runs, %d with a new journal, want more", kill, runs, compactions)
		}
	}
}

// longJournal returns a disk with half a transfer, and a journal that is about to be written anew.
func longJournal(t *testing.T, rel *otatest.SignedRelease) *otatest.Disk {
	disk := otatest.NewDisk()
	b, err := inbox.Open(config(disk, rel))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle[:6000], 224)
	for n := 0; size(t, disk, "journal") < 1<<20-8<<10; n++ {
		r := report(rel, ota.Failed)
		r.ID, r.Digest = fmt.Sprint("other ", n), "other"
		if err := b.Report(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	return disk
}

// cutCompaction sends three more pieces and reports of others until the journal is new.
func cutCompaction(t *testing.T, disk *otatest.Disk, rel *otatest.SignedRelease, kill bool) (fell, shrunk bool) {
	proc := otatest.NewProcess(disk)
	acked, id := 6000, ""
	if !kill { // a torn write damages up to 4,096 bytes beside it, and with them a piece
		acked = 6000 - 4096 - 224
	}
	for life := 0; ; life++ {
		b, err := inbox.Open(config(proc, rel))
		if err == nil {
			s := b.State()
			if !proc.Ended() && (!b.Has(0, int64(acked)) || id != "" && s.Last.ID < id) {
				t.Errorf("after the cut: %d bytes and report %v, want %d bytes and %q", s.Received, s.Last, acked, id)
			}
			for n := 0; n < 20 && !proc.Ended(); n++ {
				if n < 3 {
					at := 6000 + n*100
					if err := b.Put(int64(at), rel.Bundle[at:at+100]); err == nil && kill {
						acked = max(acked, at+100)
					}
				}
				r := report(rel, ota.Failed)
				r.ID, r.Digest = fmt.Sprintf("z%d%02d", life, n), "other"
				if b.Report(t.Context(), r) == nil {
					id = r.ID
				}
				synctest.Wait()
				time.Sleep(time.Second) // of the bubble
				shrunk = shrunk || size(t, disk, "journal") < 512<<10
			}
			b.Close()
		}
		if !proc.Ended() {
			return life > 0, shrunk
		}
		disk.PowerOn()
		proc = otatest.NewProcess(disk)
	}
}
