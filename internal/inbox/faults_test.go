package inbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// A pusher brings a release to its end with as many tries as it takes, and looks at every
// step whether what the inbox says is so. It runs in a bubble: its pauses let the inbox
// sync.
type pusher struct {
	t     *testing.T
	rel   *otatest.SignedRelease
	o     inbox.Offer
	all   []byte
	step  int
	acked []bool // by Put, since the last power cut
	phase inbox.Phase
	after bool        // a power cut has been
	ended func() bool // the process is dead; may be nil
}

func newPusher(t *testing.T, rel *otatest.SignedRelease, isBare bool, step int) *pusher {
	p := &pusher{t: t, rel: rel, o: offer(rel), all: rel.Bundle, step: step}
	if isBare {
		p.o, p.all = bare(rel)
	}
	p.acked = make([]bool, len(p.all))
	return p
}

// check compares what the inbox claims with what was sent.
func (p *pusher) check(b *inbox.Inbox) {
	p.t.Helper()
	s := b.State()
	switch s.Phase {
	case inbox.Empty:
		if !p.after && p.acked[0] {
			p.t.Errorf("the transfer is gone, without a power cut")
		}
		return
	case inbox.Ended, inbox.Failed:
		return
	}
	if s.Received > s.Offer.Size || s.Missing > s.Offer.Size || s.Until > s.Offer.Size {
		p.t.Errorf("impossible: %+v", s)
	}
	got := make([]byte, len(p.all))
	if n, err := b.ReadAt(got, 0); n < len(got) {
		p.t.Errorf("read what was received: got %d bytes and %v, want %d", n, err, len(got))
	}
	for at := range p.all {
		switch there := b.Has(int64(at), 1); {
		case !there && p.acked[at] && !p.after:
			p.t.Fatalf("byte %d was acknowledged, and is gone without a power cut", at)
		case there && got[at] != p.all[at]:
			p.t.Fatalf("byte %d is said to be there, and is another", at)
		}
	}
}

// errEnded says that the process lives no longer.
var errEnded = errors.New("the process has ended")

// push makes one try, as far as the process lives.
func (p *pusher) push(b *inbox.Inbox) error {
	if p.o.Bare {
		if err := b.SetEnvelope(p.rel.Signed); err != nil {
			return err
		}
	}
	if _, err := b.Begin(p.o); err != nil {
		return err
	}
	for n := 0; ; n++ {
		if p.ended != nil && p.ended() {
			return errEnded
		}
		s := b.State()
		switch s.Phase {
		case inbox.Opening, inbox.Receiving:
			// In reverse behind the envelope, with a piece twice now and then.
			at := s.Missing
			for next := at + int64(p.step); s.Phase == inbox.Receiving && next < int64(len(p.all)) && !b.Has(next, int64(min(p.step, len(p.all)-int(next)))); next += int64(p.step) {
				at = next
			}
			end := min(at+int64(p.step), int64(len(p.all)))
			if err := b.Put(at, p.all[at:end]); err != nil && !errors.Is(err, inbox.ErrEarly) {
				return err
			} else if err == nil {
				for i := at; i < end; i++ {
					p.acked[i] = true
				}
			}
			if n%5 == 4 {
				time.Sleep(6 * time.Second) // of the bubble
			}
		case inbox.Received:
			if err := b.Finish(); err != nil {
				return err
			}
		case inbox.Verifying:
			time.Sleep(time.Second)
		case inbox.Verified:
			if err := b.Request(); err != nil {
				return err
			}
		case inbox.Requested:
			if _, err := b.Latest(context.Background()); err != nil {
				return err
			}
			for i := range p.rel.Manifest.Images {
				im := &p.rel.Manifest.Images[i]
				if err := readImage(b, p.rel, im); err != nil {
					return err
				}
			}
			if err := b.Report(context.Background(), report(p.rel, ota.Succeeded)); err != nil {
				return err
			}
			p.phase = inbox.Ended
		case inbox.Ended:
			return nil
		default:
			return fmt.Errorf("it is %s: %w", s.Phase, s.Err)
		}
		if n > 10_000 {
			return fmt.Errorf("no end: %+v", s)
		}
	}
}

func readImage(b *inbox.Inbox, rel *otatest.SignedRelease, im *ota.Image) error {
	r, err := b.Open(context.Background(), rel.Manifest, im, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	var got bytes.Buffer
	if _, err := got.ReadFrom(r); err != nil {
		return err
	}
	if !bytes.Equal(got.Bytes(), rel.Images[im.Component]) {
		return errors.New("the image has other bytes than were signed")
	}
	return nil
}

// The power is cut at every effect of a whole life, in every way. Never is a byte said to be there
// that is not, and the transfer comes to its end.
func TestPowerCutAtEveryEffect(t *testing.T) {
	key := otatest.NewSigningKey(t)
	rel := key.Release(t, "1.1.0", 9_000, 777)
	for _, isBare := range []bool{false, true} {
		runs := 0
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for _, rest := range []otatest.Rest{otatest.DropAll, otatest.KeepAll, otatest.Subset} {
				for at := 1; ; at++ {
					cut := otatest.Cut{At: at, How: how, Rest: rest, Seed: uint64(at), Unit: []int{1, 512, 4096}[at%3]}
					fell := false
					synctest.Test(t, func(t *testing.T) { fell = cutAt(t, newPusher(t, rel, isBare, 700), cut) })
					if t.Failed() {
						t.Fatalf("bare %v: with cut %v", isBare, cut)
					}
					if !fell {
						break
					}
					runs++
				}
			}
		}
		t.Logf("bare %v: %d runs with a power cut", isBare, runs)
		if runs < 200 {
			t.Errorf("%d runs, want a cut at each of some 60 effects, in 9 ways", runs)
		}
	}
}

func cutAt(t *testing.T, p *pusher, cut otatest.Cut) (fell bool) {
	disk := otatest.NewDisk()
	disk.Arm(cut)
	for life := 0; ; life++ {
		if life > 3 {
			t.Fatal("more lives than cuts")
		}
		proc := otatest.NewProcess(disk)
		p.ended = proc.Ended
		b, err := inbox.Open(config(proc, p.rel))
		if err == nil {
			p.check(b)
			err = p.push(b)
			if !proc.Ended() {
				p.check(b)
			}
			b.Close()
		}
		if proc.Ended() {
			disk.PowerOn()
			fell, p.after = true, true
			clear(p.acked)
			if p.phase == inbox.Ended { // and said so: it must stay
				b, err := inbox.Open(config(disk, p.rel))
				if err != nil {
					t.Fatal(err)
				}
				if s := b.State(); s.Phase != inbox.Ended || s.Outcome == nil {
					t.Errorf("a report that was taken is gone: %+v", s)
				}
				b.Close()
			}
			continue
		}
		if err != nil {
			t.Errorf("without a cut: %v", err)
		}
		return fell
	}
}

// The process is killed after every step, and in the middle of writes: nothing that was
// acknowledged is missing, and how far the transfer was is not forgotten.
func TestKillAtEveryEffect(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 9_000, 777)
	for _, isBare := range []bool{false, true} {
		runs := 0
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for at := 1; ; at++ {
				fell := false
				cut := otatest.Cut{At: at, How: how, Agent: true, Seed: uint64(at)}
				synctest.Test(t, func(t *testing.T) { fell = killAt(t, newPusher(t, rel, isBare, 700), cut) })
				if t.Failed() {
					t.Fatalf("bare %v: with %v", isBare, cut)
				}
				if !fell {
					break
				}
				runs++
			}
		}
		t.Logf("bare %v: %d runs with a kill", isBare, runs)
		if runs < 100 {
			t.Errorf("%d runs, want more", runs)
		}
	}
}

func killAt(t *testing.T, p *pusher, cut otatest.Cut) (fell bool) {
	disk := otatest.NewDisk()
	disk.Arm(cut)
	var last inbox.Phase
	for life := 0; life < 4; life++ {
		proc := otatest.NewProcess(disk)
		p.ended = proc.Ended
		b, err := inbox.Open(config(proc, p.rel))
		if err == nil {
			if now := b.State().Phase; order(now) < order(last) && !proc.Ended() {
				t.Errorf("it was %s before the kill, and is %s", last, now)
			}
			if !proc.Ended() {
				p.check(b)
			}
			err = p.push(b)
			last = b.State().Phase
			if !proc.Ended() {
				p.check(b)
			}
			b.Close()
		}
		if !proc.Ended() {
			if err != nil {
				t.Errorf("without a kill: %v", err)
			}
			return fell
		}
		fell = true
		disk.PowerOn() // of the page cache nothing is lost
	}
	t.Error("more lives than kills")
	return fell
}

func order(p inbox.Phase) int {
	if p == inbox.Receiving { // an envelope that was just verified may be verified again
		p = inbox.Opening
	}
	for i, q := range []inbox.Phase{inbox.Empty, inbox.Opening, inbox.Received, inbox.Verifying, inbox.Verified, inbox.Requested, inbox.Ended} {
		if p == q {
			return i
		}
	}
	return 0
}

// Every operation of the disk is refused once, in every way: the transfer comes to its end,
// and nothing that is not there is said to be.
func TestDiskErrorAtEveryEffect(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 9_000, 777)
	for name, fault := range map[string]otatest.Fault{
		"full":        {Err: syscall.ENOSPC},
		"full, short": {Err: syscall.ENOSPC, Short: 10},
		"error":       {Err: syscall.EIO},
		"error, done": {Err: syscall.EIO, Did: true},
	} {
		runs := 0
		for _, isBare := range []bool{false, true} {
			for at := 1; ; at++ {
				fell := false
				synctest.Test(t, func(t *testing.T) {
					disk := otatest.NewDisk()
					disk.OnEffect = func(n int, _ string) otatest.Fault {
						if n == at && !fell {
							fell = true
							return fault
						}
						return otatest.Fault{}
					}
					p := newPusher(t, rel, isBare, 700)
					p.after = true // a sync that failed takes something back
					withFault(t, disk, p)
				})
				if t.Failed() {
					t.Fatalf("%s: at effect %d, bare %v", name, at, isBare)
				}
				if !fell {
					break
				}
				runs++
			}
		}
		t.Logf("%s: %d runs", name, runs)
	}
}

func withFault(t *testing.T, disk *otatest.Disk, p *pusher) {
	var b *inbox.Inbox
	var err error
	for range 4 {
		if b, err = inbox.Open(config(disk, p.rel)); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for try := 0; ; try++ {
		err := p.push(b)
		p.check(b)
		if err == nil {
			break
		}
		if try > 5 {
			t.Fatalf("again and again: %v", err)
		}
		time.Sleep(20 * time.Second) // of the bubble
	}
	b.Close()
	disk.PowerOff(otatest.DropAll, 1)
	disk.PowerOn()
	b, err = inbox.Open(config(disk, p.rel))
	if err != nil {
		t.Fatal(err)
	}
	if s := b.State(); s.Phase != inbox.Ended || s.Outcome == nil {
		t.Errorf("a report that was taken is gone: %+v", s)
	}
	b.Close()
}
