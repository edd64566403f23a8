package inbox_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// Pieces of every size in every order give the same release.
func TestOrders(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel, small := key.Release(t, "1.1.0", 150_000, 777, 5000), key.Release(t, "1.1.0", 6000, 77)
	orders := map[string]func(pieces []int) []int{
		"rising":  func(p []int) []int { return p },
		"falling": func(p []int) []int { r := append([]int(nil), p...); reverse(r); return r },
		"random": func(p []int) []int {
			r := append([]int(nil), p...)
			rand.New(rand.NewPCG(1, 2)).Shuffle(len(r), func(i, j int) { r[i], r[j] = r[j], r[i] })
			return r
		},
		"twice": func(p []int) []int { return append(append([]int(nil), p...), p...) },
	}
	for name, order := range orders {
		for _, step := range []int{1, 200, 224, 4093, 64 << 10} {
			for _, isBare := range []bool{false, true} {
				if step == 1 && name == "twice" {
					continue // it adds nothing
				}
				t.Run(fmt.Sprintf("%s %d bare=%v", name, step, isBare), func(t *testing.T) {
					rel := rel
					if step == 1 {
						rel = small
					}
					b := open(t, config(otatest.NewDisk(), rel))
					o, all := offer(rel), rel.Bundle
					if isBare {
						o, all = bare(rel)
						if err := b.SetEnvelope(rel.Signed); err != nil {
							t.Fatal(err)
						}
					}
					begin(t, b, o)
					var pieces []int
					for at := 0; at < len(all); at += step {
						pieces = append(pieces, at)
					}
					// What is too early is sent again, as its sender would.
					for todo := order(pieces); len(todo) > 0; {
						var early []int
						for _, at := range todo {
							end := min(at+step+step/3, len(all)) // they overlap
							switch err := b.Put(int64(at), all[at:end]); {
							case errors.Is(err, inbox.ErrEarly):
								early = append(early, at)
							case err != nil:
								t.Fatal(err)
							case !b.Has(int64(at), int64(end-at)):
								t.Fatalf("%d bytes at %d were taken, and are not there", end-at, at)
							}
						}
						if len(early) == len(todo) {
							t.Fatal("everything is too early")
						}
						todo = early
					}
					finish(t, b)
					wantOffered(t, b, rel)
				})
			}
		}
	}
}

func reverse(p []int) {
	for i, j := 0, len(p)-1; i < j; i, j = i+1, j-1 {
		p[i], p[j] = p[j], p[i]
	}
}

// No byte of an image is taken before the envelope holds, not even of the piece in which the
// envelope ends.
func TestNoImageBeforeTheEnvelope(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel, foreign := key.Release(t, "1.1.0", 20_000), otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	disk := otatest.NewDisk()
	b := open(t, config(disk, rel))
	begin(t, b, offer(foreign))
	end := int64(bundle.HeaderSize + len(foreign.Signed))
	if err := b.Put(12, foreign.Bundle[12:24]); !errors.Is(err, inbox.ErrEarly) {
		t.Errorf("before the header: got %v, want %v", err, inbox.ErrEarly)
	}
	if err := b.Put(0, foreign.Bundle[:200]); err != nil {
		t.Fatal(err)
	}
	if got := b.State().Until; got != end {
		t.Errorf("until: got %d, want the end of the envelope, %d", got, end)
	}
	for _, at := range []int64{end, end + 1, int64(len(foreign.Bundle)) - 5} {
		if err := b.Put(at, foreign.Bundle[at:at+5]); !errors.Is(err, inbox.ErrEarly) {
			t.Errorf("an image byte at %d: got %v, want %v", at, err, inbox.ErrEarly)
		}
	}
	err := b.Put(200, foreign.Bundle[200:end+5000])
	if !errors.Is(err, inbox.ErrPhase) || !errors.Is(err, ota.ErrValidation) {
		t.Errorf("the end of an envelope by a foreign key: got %v, want %v and %v", err, inbox.ErrPhase, ota.ErrValidation)
	}
	image := foreign.Bundle[end : end+16]
	for _, name := range strings.Fields(disk.String()) {
		if strings.HasPrefix(name, "/") && bytes.Contains(disk.Content(name), image) {
			t.Errorf("%s has bytes of the image", name)
		}
	}
	if s := b.State(); s.Phase != inbox.Failed || ota.CodeOf(s.Err) != ota.ErrValidation {
		t.Errorf("got %s, %v, want %s", s.Phase, s.Err, inbox.Failed)
	}
}

// What does not fit fails with the reason, stays failed, and makes room for the next.
func TestRefused(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel := key.Release(t, "1.1.0", 20_000)
	head := int64(bundle.HeaderSize + len(rel.Signed))
	text := bytes.Replace(rel.Bundle, []byte("\r\n"), []byte("\n"), 1)
	wrongSum := offer(rel)
	wrongSum.SHA256[0] ^= 1
	cut := rel.Bundle[:len(rel.Bundle)-1]
	long := append(bytes.Clone(rel.Bundle), 0)
	for _, tt := range []struct {
		name  string
		all   []byte
		o     inbox.Offer
		judge error
		want  ota.ErrorCode
		say   string
	}{
		{"another product", rel.Bundle, offer(rel), fmt.Errorf("%w: it is for toasters", ota.ErrIncompatible), ota.ErrIncompatible, "toasters"},
		{"a judge without a code", rel.Bundle, offer(rel), errors.New("no"), ota.ErrIncompatible, "no"},
		{"what runs already", rel.Bundle, offer(rel), fmt.Errorf("%w: it runs", ota.ErrNoUpdate), ota.ErrNoUpdate, "it runs"},
		{"no bundle", bytes.Repeat([]byte("x"), 5000), inbox.Offer{Size: 5000}, nil, ota.ErrValidation, "not a bundle"},
		{"changed as text", text, inbox.Offer{Size: int64(len(text))}, nil, ota.ErrValidation, "as text"},
		{"cut in the envelope", rel.Bundle, inbox.Offer{Size: head - 1}, nil, ota.ErrValidation, "cut"},
		{"cut at the envelope", rel.Bundle, inbox.Offer{Size: head}, nil, ota.ErrValidation, "cut"},
		{"cut", cut, inbox.Offer{Size: int64(len(cut))}, nil, ota.ErrValidation, "the file was cut"},
		{"extended", long, inbox.Offer{Size: int64(len(long))}, nil, ota.ErrValidation, "hangs on it"},
		{"another SHA-256", rel.Bundle, wrongSum, nil, ota.ErrValidation, "SHA-256"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk := otatest.NewDisk()
			cfg := config(disk, rel)
			cfg.Judge = func(*ota.Manifest) error { return tt.judge }
			b := open(t, cfg)
			begin(t, b, tt.o)
			for at := 0; at < int(tt.o.Size) && b.State().Phase != inbox.Failed; at += 224 {
				_ = b.Put(int64(at), tt.all[at:min(at+224, int(tt.o.Size))]) // State tells
			}
			if b.State().Phase == inbox.Received {
				if err := b.Finish(); err != nil {
					t.Fatal(err)
				}
			}
			check := func(b *inbox.Inbox) {
				t.Helper()
				s := wait(t, b, inbox.Failed)
				if ota.CodeOf(s.Err) != tt.want || !strings.Contains(s.Err.Error(), tt.say) {
					t.Errorf("got %v (%s), want %s and %q in it", s.Err, ota.CodeOf(s.Err).Name(), tt.want.Name(), tt.say)
				}
				for name, err := range map[string]error{"Put": b.Put(0, tt.all[:10]), "Finish": b.Finish(), "Request": b.Request()} {
					if !errors.Is(err, inbox.ErrPhase) {
						t.Errorf("%s after it failed: got %v, want %v", name, err, inbox.ErrPhase)
					}
				}
			}
			check(b)
			b.Close()
			if got := disk.String(); strings.Contains(got, "data.") {
				b = open(t, cfg) // which removes what the last one had no time for
				check(b)
			}
			cfg.Judge = nil
			b = open(t, cfg)
			check(b)
			begin(t, b, offer(rel)) // whatever it was before
			putAll(t, b, rel.Bundle, 4096)
			finish(t, b)
			wantOffered(t, b, rel)
		})
	}
}

// What the calls refuse, and how.
func TestErrors(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel := key.Release(t, "1.1.0", 20_000)
	disk := otatest.NewDisk()
	disk.Capacity = 10 << 20
	cfg := config(disk, rel)
	cfg.Max = 8 << 20
	b := open(t, cfg)
	want := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	want("Put", b.Put(0, []byte{1}), inbox.ErrNone)
	want("Finish", b.Finish(), inbox.ErrNone)
	want("Request", b.Request(), inbox.ErrNone)
	want("Drop", b.Drop(), nil)
	_, err := b.Begin(inbox.Offer{Size: 9 << 20})
	want("Begin beyond Max", err, ota.ErrInsufficientSpace)
	_, err = b.Begin(inbox.Offer{Size: 7 << 20})
	want("Begin beyond the disk", err, ota.ErrInsufficientSpace)
	_, err = b.Begin(inbox.Offer{Size: 0})
	want("Begin of nothing", err, inbox.ErrRange)
	_, err = b.Begin(inbox.Offer{Size: 12})
	want("Begin of a header", err, inbox.ErrRange)
	_, err = b.Begin(inbox.Offer{Size: -5, Bare: true})
	want("Begin of less", err, inbox.ErrRange)
	o, all := bare(rel)
	_, err = b.Begin(o)
	want("Begin without the envelope", err, inbox.ErrEarly)
	want("SetEnvelope of nonsense", b.SetEnvelope([]byte("{}")), ota.ErrValidation)
	want("SetEnvelope", b.SetEnvelope(rel.Signed), nil)
	_, err = b.Begin(inbox.Offer{Size: o.Size + 1, Bare: true})
	want("Begin of other images", err, ota.ErrValidation)
	if got := b.State().Phase; got != inbox.Empty {
		t.Errorf("after all that: got %s, want %s", got, inbox.Empty)
	}
	begin(t, b, o)
	want("Put beyond the end", b.Put(o.Size-1, []byte{1, 2}), inbox.ErrRange)
	want("Put behind the end", b.Put(o.Size+1, nil), inbox.ErrRange)
	want("Put before the beginning", b.Put(-1, []byte{1}), inbox.ErrRange)
	want("Put of nothing", b.Put(o.Size, nil), nil)
	want("Put", b.Put(100, all[100:200]), nil)
	want("Put of the same", b.Put(100, all[100:200]), nil)
	want("Put of others", b.Put(99, make([]byte, 50)), inbox.ErrConflict)
	if b.Has(99, 1) {
		t.Error("of a piece with a conflict, a part was taken")
	}
	want("Finish", b.Finish(), inbox.ErrMissing)
	want("Request", b.Request(), inbox.ErrPhase)
	if b.Has(-1, 5) || b.Has(0, o.Size+1) || b.Has(o.Size+1, 0) || !b.Has(100, 100) || b.Has(100, 101) {
		t.Error("Has is wrong")
	}
	got := make([]byte, 300)
	if n, err := b.ReadAt(got, 0); n != 300 || err != nil || !bytes.Equal(got[100:200], all[100:200]) || !bytes.Equal(got[:100], make([]byte, 100)) || !bytes.Equal(got[200:], make([]byte, 100)) {
		t.Errorf("ReadAt: got %d, %v", n, err)
	}
	want("Drop", b.Drop(), nil)
	if got := b.State(); got.Phase != inbox.Empty || got.Received != 0 {
		t.Errorf("after Drop: got %+v", got)
	}
	b.Close()
	want("Put after Close", b.Put(0, nil), fs.ErrClosed)
	_, err = b.Begin(o)
	if err == nil {
		t.Error("Begin after Close: no error")
	}
}

// Bytes with a wrong hash are asked for again, twice, and then it is over.
func TestBytesThatLie(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	head := bundle.HeaderSize + len(rel.Signed)
	lie := bytes.Clone(rel.Bundle)
	lie[head+5000] ^= 1 // in the second chunk
	from, to := int64(head+4096), int64(head+8192)
	for _, lies := range []int{1, 2, 3} {
		b := open(t, config(otatest.NewDisk(), rel))
		begin(t, b, offer(rel))
		putAll(t, b, lie, 224)
		for n := 1; n < lies; n++ {
			wait(t, b, inbox.Receiving)
			if err := b.Put(from, lie[from:to]); err != nil {
				t.Fatal(err)
			}
		}
		s := wait(t, b, inbox.Receiving, inbox.Failed)
		if lies == 3 {
			if s = wait(t, b, inbox.Failed); ota.CodeOf(s.Err) != ota.ErrValidation || !strings.Contains(s.Err.Error(), "chunk 2 of image controller") {
				t.Errorf("after %d lies: got %s, %v", lies, s.Phase, s.Err)
			}
			continue
		}
		if s.Missing != from || s.Received != s.Offer.Size-(to-from) || ota.CodeOf(s.Err) != ota.ErrValidation {
			t.Errorf("after %d lies: got %+v, want the chunk at %d missing", lies, s, from)
		}
		if err := b.Put(from, rel.Bundle[from:to]); err != nil {
			t.Fatal(err)
		}
		finish(t, b)
		wantOffered(t, b, rel)
	}
}

// A release that Judge cannot judge yet waits, without its images.
func TestJudgeLater(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	synctest.Test(t, func(t *testing.T) {
		cfg := config(otatest.NewDisk(), rel)
		var ready atomic.Bool
		cfg.Judge = func(*ota.Manifest) error {
			if !ready.Load() {
				return fmt.Errorf("%w: the manager is starting", ota.ErrNotNow)
			}
			return nil
		}
		b, err := inbox.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		begin(t, b, offer(rel))
		if err := b.Put(0, rel.Bundle); !errors.Is(err, inbox.ErrEarly) {
			t.Errorf("got %v, want %v", err, inbox.ErrEarly)
		}
		if s := b.State(); s.Phase != inbox.Opening || s.Err == nil || s.Received != s.Until {
			t.Errorf("got %+v, want it to wait with the envelope", s)
		}
		ready.Store(true)
		time.Sleep(6 * time.Second) // of the bubble
		synctest.Wait()
		if s := b.State(); s.Phase != inbox.Receiving || s.Err != nil {
			t.Errorf("got %s, %v, want %s", s.Phase, s.Err, inbox.Receiving)
		}
		if err := b.Put(0, rel.Bundle); err != nil {
			t.Fatal(err)
		}
	})
}

// A very large envelope is verified in the background.
func TestLargeEnvelope(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel := key.Sign(t, &ota.Manifest{Product: "bess", Version: "1.1.0", Notes: strings.Repeat("x", ota.MaxNotesSize)}, 2<<20)
	big := key.Sign(t, &ota.Manifest{Product: "bess", Version: "1.1.0", Hardware: names(20_000)}, 9000)
	if len(big.Signed) < 600_000 {
		t.Fatalf("the envelope has %d bytes", len(big.Signed))
	}
	for _, rel := range []*otatest.SignedRelease{rel, big} {
		b := open(t, config(otatest.NewDisk(), rel))
		begin(t, b, offer(rel))
		for at := 0; at < len(rel.Bundle); {
			end := min(at+100_000, len(rel.Bundle))
			changed := b.Changed()
			switch err := b.Put(int64(at), rel.Bundle[at:end]); {
			case errors.Is(err, inbox.ErrEarly):
				<-changed
			case err != nil:
				t.Fatal(err)
			default:
				at = end
			}
		}
		finish(t, b)
		wantOffered(t, b, rel)
	}
}

func names(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("revision-with-a-long-name-%d", i))
	}
	return list
}

// While the manager has the release in hand, it is not removed.
func TestInHand(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel, other := key.Release(t, "1.1.0", 20_000), key.Release(t, "1.2.0", 30_000)
	cfg := config(otatest.NewDisk(), rel)
	hand := ""
	cfg.InHand = func() string { return hand }
	b := open(t, cfg)
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle, 4096)
	finish(t, b)
	hand = rel.Manifest.Digest
	if _, err := b.Begin(offer(other)); !errors.Is(err, inbox.ErrBusy) {
		t.Errorf("Begin of another: got %v, want %v", err, inbox.ErrBusy)
	}
	if err := b.Drop(); !errors.Is(err, inbox.ErrBusy) {
		t.Errorf("Drop: got %v, want %v", err, inbox.ErrBusy)
	}
	if err := b.DropRelease(rel.Manifest.Digest); !errors.Is(err, inbox.ErrBusy) {
		t.Errorf("DropRelease: got %v, want %v", err, inbox.ErrBusy)
	}
	if resumed, err := b.Begin(offer(rel)); !resumed || err != nil {
		t.Errorf("Begin of the same: got %v, %v", resumed, err)
	}
	wantOffered(t, b, rel)
	hand = ""
	for _, digest := range []string{"", other.Manifest.Digest} {
		if err := b.DropRelease(digest); !errors.Is(err, inbox.ErrNone) || !b.State().Asked {
			t.Errorf("DropRelease of %q, which is not there: got %v, %+v, want %v, and no change", digest, err, b.State(), inbox.ErrNone)
		}
	}
	if err := b.DropRelease(rel.Manifest.Digest); err != nil || b.State().Phase != inbox.Empty || b.State().Asked {
		t.Errorf("DropRelease of what is there: got %v, %+v, want it gone", err, b.State())
	}
	begin(t, b, offer(other))
	putAll(t, b, other.Bundle, 4096)
	finish(t, b)
	wantOffered(t, b, other)
	if _, err := b.Open(t.Context(), rel.Manifest, &rel.Manifest.Images[0], 0); ota.CodeOf(err) != ota.ErrConnectivity {
		t.Errorf("Open of the one before: got %v", err)
	}
}

// How an update ended is kept, also that of another source, until the next transfer.
func TestReports(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel, other := key.Release(t, "1.1.0", 20_000), key.Release(t, "1.2.0", 30_000)
	synctest.Test(t, func(t *testing.T) { reports(t, rel, other) })
}

func reports(t *testing.T, rel, other *otatest.SignedRelease) {
	disk := otatest.NewDisk()
	b := open(t, config(disk, rel))
	again := func() inbox.State {
		b.Close()
		disk.PowerOff(otatest.DropAll, 1)
		disk.PowerOn()
		b = open(t, config(disk, rel))
		synctest.Wait()
		return b.State()
	}
	if err := b.Report(t.Context(), report(other, ota.Failed)); err != nil {
		t.Fatal(err)
	}
	if s := again(); s.Phase != inbox.Empty || s.Outcome != nil || s.Last == nil || s.Last.Version != "1.2.0" {
		t.Errorf("of another release: got %+v", s)
	}
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle[:15_000], 224)
	lost := report(rel, ota.Failed)
	lost.Reason = strings.Repeat("long ", 5000)
	if err := b.Report(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	if s := again(); s.Phase != inbox.Receiving || s.Outcome != nil || s.Last == nil || s.Last.Result != ota.Failed {
		t.Errorf("of the same release, brought by another source: got %+v", s)
	}
	putAll(t, b, rel.Bundle, 224)
	finish(t, b)
	if err := b.Report(t.Context(), report(rel, ota.RolledBack)); err != nil {
		t.Fatal(err)
	}
	if s := again(); s.Phase != inbox.Ended || s.Outcome == nil || s.Outcome.Result != ota.RolledBack || s.Version != "1.1.0" {
		t.Errorf("of what was offered: got %+v", s)
	}
	if strings.Contains(disk.String(), "data.") {
		t.Errorf("the bytes are still there: %s", disk)
	}
	begin(t, b, offer(rel)) // it did not end well, so it may be tried again
	if s := b.State(); s.Phase != inbox.Opening || s.Outcome != nil || s.Last == nil {
		t.Errorf("begun again: got %+v", s)
	}
	if err := b.Report(t.Context(), report(rel, ota.RolledBack)); err != nil || b.State().Phase != inbox.Opening {
		t.Errorf("the old report again: got %v and %s", err, b.State().Phase)
	}
}

// Bits that rot on the disk after they came are found, and asked for again; those of the envelope
// are at hand.
func TestRot(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	head := int64(bundle.HeaderSize + len(rel.Signed))
	for _, at := range []int64{3, 20, head - 1, head, head + 4096, int64(len(rel.Bundle)) - 1} {
		for _, when := range []inbox.Phase{inbox.Received, inbox.Requested} {
			for _, isBare := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d %s bare=%v", at, when, isBare), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { rotAt(t, rel, at, when, isBare) })
				})
			}
		}
	}
}

func rotAt(t *testing.T, rel *otatest.SignedRelease, at int64, when inbox.Phase, isBare bool) {
	disk := otatest.NewDisk()
	b := open(t, config(disk, rel))
	defer b.Close()
	p := newPusher(t, rel, isBare, 1000)
	if isBare {
		if err := b.SetEnvelope(rel.Signed); err != nil {
			t.Fatal(err)
		}
	}
	begin(t, b, p.o)
	putAll(t, b, p.all, 1000)
	synctest.Wait() // all chunks were compared
	if when == inbox.Requested {
		finish(t, b)
	}
	f, err := disk.OpenFile(dir+"/data.0", 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	bit := make([]byte, 1)
	if _, err := f.ReadAt(bit, at); err != nil {
		t.Fatal(err)
	}
	bit[0] ^= 0x10
	if _, err := f.WriteAt(bit, at); err != nil {
		t.Fatal(err)
	}
	head := int64(bundle.HeaderSize + len(rel.Signed))
	if when == inbox.Received && at >= head { // exactly one chunk is asked for again
		if err := b.Finish(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		lost := int64(4096)
		if at > head+4096 {
			lost = 20_000 % 4096
		}
		if s := b.State(); s.Phase != inbox.Receiving || s.Offer.Size-s.Received != lost || s.Err == nil {
			t.Errorf("after Finish: got %+v, want %d bytes missing", s, lost)
		}
	}
	for try := 0; ; try++ {
		err := p.push(b)
		if b.State().Phase == inbox.Failed {
			t.Fatalf("it failed: %v", b.State().Err)
		}
		if err == nil {
			break
		} else if try > 3 {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second) // of the bubble
	}
}

// Files of others stay, and a journal that is damaged from its beginning on makes an
// empty inbox.
func TestDamagedAndForeign(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	disk := otatest.NewDisk()
	b := open(t, config(disk, rel))
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle[:10_000], 224)
	b.Close()
	foreign := []string{"notes.txt", "data.old", "data.-1", "data.007", "data."}
	for _, name := range foreign {
		f, err := disk.OpenFile(path.Join(dir, name), 0o102, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("theirs"), 0); err != nil {
			t.Fatal(err)
		}
	}
	f, err := disk.OpenFile(dir+"/journal", 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 0); err != nil {
		t.Fatal(err)
	}
	b = open(t, config(disk, rel))
	if s := b.State(); s.Phase != inbox.Empty || s.Received != 0 {
		t.Errorf("got %+v, want an empty inbox", s)
	}
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle, 224)
	finish(t, b)
	wantOffered(t, b, rel)
	b.Close()
	for _, name := range foreign {
		if got := disk.Content(path.Join(dir, name)); string(got) != "theirs" {
			t.Errorf("%s: got %q, want it left alone", name, got)
		}
	}
}

// Keys that are changed between the request and the installation are asked again.
func TestKeysChanged(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	disk := otatest.NewDisk()
	b := open(t, config(disk, rel))
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle, 4096)
	finish(t, b)
	b.Close()
	cfg := config(disk, otatest.NewSigningKey(t).Release(t, "1.1.0", 10))
	b = open(t, cfg)
	if _, err := b.Latest(t.Context()); ota.CodeOf(err) != ota.ErrValidation {
		t.Errorf("with other keys: got %v, want %s", err, ota.ErrValidation.Name())
	}
	if s := b.State(); s.Phase != inbox.Requested || s.Err == nil {
		t.Errorf("got %+v, want the reason", s)
	}
	b.Close()
	b = open(t, config(disk, rel))
	<-b.Wake()
	wantOffered(t, b, rel)
}

// An offer whose hash nobody knows goes by the hashes of the manifest alone.
func TestUnknownHash(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	b := open(t, config(otatest.NewDisk(), rel))
	begin(t, b, inbox.Offer{Size: int64(len(rel.Bundle))})
	putAll(t, b, rel.Bundle, 4096)
	finish(t, b)
	wantOffered(t, b, rel)
}

// Everything at once, for the race detector.
func TestConcurrent(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 200_000)
	b := open(t, config(otatest.NewDisk(), rel))
	begin(t, b, offer(rel))
	if err := b.Put(0, rel.Bundle[:bundle.HeaderSize+len(rel.Signed)]); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	const workers = 4
	for w := range workers {
		go func() {
			for at := w * 100; at < len(rel.Bundle); at += 300 {
				if err := b.Put(int64(at), rel.Bundle[at:min(at+400, len(rel.Bundle))]); err != nil {
					done <- err
					return
				}
				s := b.State()
				if s.Received > s.Offer.Size {
					done <- fmt.Errorf("received %d", s.Received)
					return
				}
				b.Has(0, 10)
				_, _ = b.Latest(t.Context())
				_, _ = b.ReadAt(make([]byte, 10), int64(at))
			}
			done <- nil
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	finish(t, b)
	wantOffered(t, b, rel)
	if sum := sha256.Sum256(rel.Bundle); b.State().Offer.SHA256 != sum {
		t.Error("another offer")
	}
}
