package otatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/interlock-energy/ota"
)

// SlotsUnderTest is a device with the slots to be tested, formatted and booted.
type SlotsUnderTest struct {
	// Slots is opened by the agent that starts now.
	Slots ota.Slots
	// Component is one that the device has. Default: "controller".
	Component string
	// PowerCycle starts the device again, through its bootloader or what plays it,
	// and returns the slots as the agent of that boot opens them. Files opened
	// before need not work any more.
	PowerCycle func() (ota.Slots, error)
	// Reopen is what a restart of the agent alone does. Default: Slots stay in use.
	Reopen func() (ota.Slots, error)
	// TellsFellBack says that the bootloader knows that it came back from a try.
	TellsFellBack bool
	// TellsTrial says that the bootloader knows that it is trying a slot.
	TellsTrial bool
	// Cuts says that what lies behind the size given to Sync is cut off, as in a
	// file; otherwise it is left as it is, as on a partition.
	Cuts bool
	// ChunkSize in bytes. Default: 4096.
	ChunkSize int
	// Pack is [Packer.Pack], for slots that try images of one format only, with
	// which both slots must begin. May be nil.
	Pack func(image []byte) []byte
}

// TestSlots tests whether slots keep what [ota.Slots] and [ota.Slot] promise.
// newSlots is called for every part with a new device, whose other slot can
// take at least 6.5 chunks.
func TestSlots(t *testing.T, newSlots func(t *testing.T) SlotsUnderTest) {
	for _, part := range []struct {
		name string
		test func(*slotsTest)
	}{
		{"booted is stable", (*slotsTest).bootedIsStable},
		{"running slot is not written", (*slotsTest).runningIsNotWritten},
		{"unknown names", (*slotsTest).unknownNames},
		{"written is read", (*slotsTest).writtenIsRead},
		{"resume at every chunk", (*slotsTest).resume},
		{"written again", (*slotsTest).writtenAgain},
		{"smaller after larger", (*slotsTest).smallerAfterLarger},
		{"capacity", (*slotsTest).capacity},
		{"survives power cycle", (*slotsTest).survives},
		{"try boots once", (*slotsTest).tryBootsOnce},
		{"mark good stays", (*slotsTest).markGoodStays},
		{"mark good cancels try", (*slotsTest).markGoodCancelsTry},
		{"try again after falling back", (*slotsTest).tryAgain},
		{"there and back", (*slotsTest).thereAndBack},
		{"everything twice", (*slotsTest).everythingTwice},
		{"power cycles change nothing", (*slotsTest).powerCycles},
		{"try the running slot", (*slotsTest).tryRunning},
		{"concurrent questions", (*slotsTest).concurrent},
		{"half written is not booted", (*slotsTest).halfWritten},
	} {
		t.Run(part.name, func(t *testing.T) {
			s := &slotsTest{T: t, SlotsUnderTest: newSlots(t), ctx: t.Context()}
			if s.Component == "" {
				s.Component = "controller"
			}
			if s.ChunkSize == 0 {
				s.ChunkSize = 4096
			}
			part.test(s)
		})
	}
}

type slotsTest struct {
	*testing.T
	SlotsUnderTest
	ctx context.Context
}

func (s *slotsTest) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *slotsTest) booted() ota.Boot {
	s.Helper()
	b, err := s.Slots.Booted(s.ctx)
	s.must(err)
	if b.Slot == b.Other || b.Slot == "" || b.Other == "" || b.ID == "" {
		s.Fatalf("got %+v, want two different slots and an id", b)
	}
	return b
}

// wantBooted also checks FellBack, where the bootloader tells.
func (s *slotsTest) wantBooted(slot string, fellBack bool) {
	s.Helper()
	b := s.booted()
	if b.Slot != slot {
		s.Fatalf("got slot %s booted, want %s", b.Slot, slot)
	}
	if s.TellsFellBack && b.FellBack != fellBack {
		s.Errorf("got FellBack %v in slot %s, want %v", b.FellBack, slot, fellBack)
	}
	if !s.TellsFellBack && b.FellBack {
		s.Error("got FellBack from a bootloader that cannot tell")
	}
}

func (s *slotsTest) wantTrial(want bool) {
	s.Helper()
	if b := s.booted(); b.Trial != (want && s.TellsTrial) {
		s.Errorf("got Trial %v in slot %s, want %v", b.Trial, b.Slot, want && s.TellsTrial)
	}
}

func (s *slotsTest) powerCycle() {
	s.Helper()
	var err error
	s.Slots, err = s.PowerCycle()
	s.must(err)
}

func (s *slotsTest) reopen() {
	s.Helper()
	if s.Reopen != nil {
		var err error
		s.Slots, err = s.Reopen()
		s.must(err)
	}
}

func (s *slotsTest) open(slot string) ota.Slot {
	s.Helper()
	sl, err := s.Slots.Open(s.ctx, s.Component, slot)
	s.must(err)
	s.Cleanup(func() { sl.Close() })
	return sl
}

// image returns n chunks and a half of bytes that depend on seed.
func (s *slotsTest) image(n int, seed byte) []byte {
	b := make([]byte, n*s.ChunkSize+s.ChunkSize/2+1)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	if s.Pack != nil {
		return s.Pack(b)
	}
	return b
}

// write writes the chunks of image from the one with number first.
func (s *slotsTest) write(sl ota.Slot, image []byte, first int) {
	s.Helper()
	for at := first * s.ChunkSize; at < len(image); at += s.ChunkSize {
		chunk := image[at:min(at+s.ChunkSize, len(image))]
		if n, err := sl.WriteAt(chunk, int64(at)); n != len(chunk) || err != nil {
			s.Fatalf("write at %d: got %d, %v, want %d", at, n, err, len(chunk))
		}
	}
}

func (s *slotsTest) wantContent(sl ota.Slot, image []byte) {
	s.Helper()
	if at := s.differs(sl, image); at >= 0 {
		s.Fatalf("reads back other bytes than were written, in the chunk at %d", at)
	}
}

// differs returns the offset of the first chunk that is not as in image, or -1.
func (s *slotsTest) differs(sl ota.Slot, image []byte) int {
	s.Helper()
	got := make([]byte, s.ChunkSize)
	for at := 0; at < len(image); at += s.ChunkSize {
		want := image[at:min(at+s.ChunkSize, len(image))]
		n, err := sl.ReadAt(got[:len(want)], int64(at))
		if err != nil && err != io.EOF {
			s.Fatal(err)
		}
		if !bytes.Equal(got[:n], want) {
			return at
		}
	}
	return -1
}

// install writes image into the other slot, as an update does.
func (s *slotsTest) install(image []byte) {
	s.Helper()
	sl := s.open(s.booted().Other)
	s.write(sl, image, 0)
	s.must(sl.Sync(int64(len(image))))
	s.wantContent(sl, image)
	s.must(sl.Close())
}

func (s *slotsTest) bootedIsStable() {
	first := s.booted()
	s.must(s.Slots.Try(s.ctx, first.Other))
	s.reopen()
	if b := s.booted(); b.Slot != first.Slot || b.Other != first.Other || b.ID != first.ID {
		s.Errorf("after Try: got %+v, want %+v until the restart", b, first)
	}
	s.must(s.Slots.MarkGood(s.ctx))
	s.reopen()
	if b := s.booted(); b.Slot != first.Slot || b.ID != first.ID {
		s.Errorf("after MarkGood: got %+v, want %+v", b, first)
	}
	s.powerCycle()
	if b := s.booted(); b.ID == first.ID {
		s.Errorf("after a restart: got id %s again, want another", b.ID)
	}
}

func (s *slotsTest) runningIsNotWritten() {
	b := s.booted()
	before := make([]byte, s.ChunkSize)
	sl, err := s.Slots.Open(s.ctx, s.Component, b.Slot)
	if err != nil {
		return // that is a refusal too
	}
	defer sl.Close()
	n, err := sl.ReadAt(before, 0)
	if err != nil && err != io.EOF {
		s.Fatal(err)
	}
	if n, err := sl.WriteAt(make([]byte, s.ChunkSize), 0); err == nil {
		s.Errorf("got %d bytes written to the running slot, want an error", n)
	}
	if err := sl.Sync(0); err == nil {
		s.Error("got the running slot cut to nothing, want an error")
	}
	after := make([]byte, s.ChunkSize)
	if m, _ := sl.ReadAt(after, 0); m != n || !bytes.Equal(before, after) {
		s.Error("the running slot has changed")
	}
}

func (s *slotsTest) unknownNames() {
	b := s.booted()
	if _, err := s.Slots.Open(s.ctx, "no-such-component", b.Other); !errors.Is(err, ota.ErrIncompatible) {
		s.Errorf("unknown component: got %v, want ErrIncompatible", err)
	}
	if _, err := s.Slots.Open(s.ctx, s.Component, "no-such-slot"); err == nil {
		s.Error("open an unknown slot: got no error")
	}
	if err := s.Slots.Try(s.ctx, "no-such-slot"); err == nil {
		s.Error("try an unknown slot: got no error")
	}
	s.powerCycle()
	s.wantBooted(b.Slot, false)
}

func (s *slotsTest) writtenIsRead() {
	image := s.image(6, 1)
	sl := s.open(s.booted().Other)
	s.write(sl, image, 0)
	s.wantContent(sl, image) // before Sync too
	s.must(sl.Sync(int64(len(image))))
	s.wantContent(sl, image)
	for _, off := range []int64{1, int64(s.ChunkSize) - 1, int64(s.ChunkSize) + 1, int64(len(image)) - 3} {
		got := make([]byte, 3)
		if n, err := sl.ReadAt(got, off); n != 3 || (err != nil && err != io.EOF) || !bytes.Equal(got, image[off:off+3]) {
			s.Errorf("read 3 bytes at %d: got %x, %d, %v, want %x", off, got, n, err, image[off:off+3])
		}
	}
}

// resume ends the agent after every chunk. What was written must be there for the
// next one, which goes on behind it.
func (s *slotsTest) resume() {
	image := s.image(6, 2)
	var left ota.Slot
	for first := 0; first*s.ChunkSize < len(image); first++ {
		s.reopen()
		if left != nil {
			// Where Reopen kills, this does nothing any more; elsewhere it must be done,
			// because what is exclusive to one process is still open in ours.
			left.Close()
		}
		sl := s.open(s.booted().Other)
		done := image[:first*s.ChunkSize]
		s.wantContent(sl, done)
		s.write(sl, image[:min(len(image), (first+1)*s.ChunkSize)], first)
		if left = sl; first%2 == 0 {
			s.must(sl.Close()) // the others are killed
		}
	}
	s.reopen()
	left.Close()
	sl := s.open(s.booted().Other)
	s.must(sl.Sync(int64(len(image)))) // by an agent that has not written anything itself
	s.wantContent(sl, image)
}

func (s *slotsTest) writtenAgain() {
	first, second := s.image(6, 3), s.image(6, 4)
	sl := s.open(s.booted().Other)
	s.write(sl, first, 0)
	s.must(sl.Sync(int64(len(first))))
	s.wantContent(sl, first)
	s.write(sl, second, 0)
	s.wantContent(sl, second)
	s.must(sl.Sync(int64(len(second))))
	s.wantContent(sl, second)
	// One chunk that was found damaged.
	s.write(sl, first[:3*s.ChunkSize], 2)
	mixed := bytes.Clone(second)
	copy(mixed[2*s.ChunkSize:], first[2*s.ChunkSize:3*s.ChunkSize])
	s.wantContent(sl, mixed)
	// What is read behind a place that was read before must not be from before the
	// write, even if the slot reads ahead.
	s.wantContent(sl, mixed[:3*s.ChunkSize])
	s.write(sl, first[:4*s.ChunkSize], 3)
	got := make([]byte, s.ChunkSize)
	if _, err := sl.ReadAt(got, int64(3*s.ChunkSize)); err != nil || !bytes.Equal(got, first[3*s.ChunkSize:4*s.ChunkSize]) {
		s.Errorf("after a read, a write behind it, and a read of that: got other bytes (%v)", err)
	}
}

func (s *slotsTest) smallerAfterLarger() {
	large, small := s.image(6, 5), s.image(2, 6)
	s.install(large)
	s.install(small)
	if !s.Cuts {
		return
	}
	n, err := s.open(s.booted().Other).ReadAt(make([]byte, len(large)), 0)
	if n != len(small) || err != io.EOF {
		s.Errorf("got %d bytes, %v, want the %d of the smaller image", n, err, len(small))
	}
}

func (s *slotsTest) capacity() {
	sl := s.open(s.booted().Other)
	capacity := sl.Capacity()
	if capacity < int64(6*s.ChunkSize+s.ChunkSize/2) {
		s.Fatalf("got capacity %d, want 6.5 chunks of %d at least", capacity, s.ChunkSize)
	}
	chunk := make([]byte, s.ChunkSize)
	for _, at := range []int64{capacity, capacity - int64(s.ChunkSize) + 1, capacity + 1<<40} {
		if n, err := sl.WriteAt(chunk, at); !errors.Is(err, ota.ErrInsufficientSpace) {
			s.Errorf("write at %d of %d: got %d, %v, want ErrInsufficientSpace", at, capacity, n, err)
		}
	}
	if n, err := sl.WriteAt(chunk, -int64(s.ChunkSize)); err == nil {
		s.Errorf("write at a negative offset: got %d bytes written, want an error", n)
	}
	if err := sl.Sync(capacity + 1); err == nil {
		s.Error("sync of more than the capacity: got no error")
	}
}

func (s *slotsTest) survives() {
	image := s.image(6, 7)
	b := s.booted()
	s.install(image)
	s.powerCycle()
	s.wantBooted(b.Slot, false)
	s.wantContent(s.open(b.Other), image)
}

func (s *slotsTest) tryBootsOnce() {
	b := s.booted()
	s.install(s.image(6, 8))
	s.must(s.Slots.Try(s.ctx, b.Other))
	s.powerCycle()
	s.wantBooted(b.Other, false)
	s.wantTrial(true)
	s.powerCycle() // it hangs, or its watchdog bites
	s.wantBooted(b.Slot, true)
	s.wantTrial(false)
	s.powerCycle()
	s.wantBooted(b.Slot, true)
	s.must(s.Slots.MarkGood(s.ctx))
	s.wantBooted(b.Slot, false)
}

func (s *slotsTest) markGoodStays() {
	b := s.booted()
	s.install(s.image(6, 9))
	s.must(s.Slots.Try(s.ctx, b.Other))
	s.powerCycle()
	s.must(s.Slots.MarkGood(s.ctx))
	s.wantBooted(b.Other, false)
	s.wantTrial(false)
	for range 4 {
		s.powerCycle()
		s.wantBooted(b.Other, false)
	}
	// What was the running slot is the one to be written now.
	s.install(s.image(3, 10))
}

func (s *slotsTest) markGoodCancelsTry() {
	b := s.booted()
	s.must(s.Slots.Try(s.ctx, b.Other))
	s.must(s.Slots.MarkGood(s.ctx))
	s.powerCycle()
	s.wantBooted(b.Slot, false)
}

func (s *slotsTest) tryAgain() {
	b := s.booted()
	s.install(s.image(6, 11))
	for range 3 {
		s.must(s.Slots.Try(s.ctx, b.Other))
		s.wantBooted(b.Slot, false) // a new try, not the old fall
		s.powerCycle()
		s.wantBooted(b.Other, false)
		s.powerCycle()
		s.wantBooted(b.Slot, true)
	}
	s.must(s.Slots.Try(s.ctx, b.Other))
	s.powerCycle()
	s.must(s.Slots.MarkGood(s.ctx))
	s.powerCycle()
	s.wantBooted(b.Other, false)
}

// thereAndBack updates, and then returns to the first slot on purpose.
func (s *slotsTest) thereAndBack() {
	b := s.booted()
	s.install(s.image(6, 12))
	for _, slot := range []string{b.Other, b.Slot, b.Other} {
		s.must(s.Slots.Try(s.ctx, slot))
		s.powerCycle()
		s.wantBooted(slot, false)
		s.must(s.Slots.MarkGood(s.ctx))
		s.powerCycle()
		s.wantBooted(slot, false)
	}
}

func (s *slotsTest) everythingTwice() {
	b := s.booted()
	image := s.image(6, 13)
	sl := s.open(b.Other)
	for range 2 {
		s.write(sl, image, 0)
		s.must(sl.Sync(int64(len(image))))
		s.must(sl.Sync(int64(len(image))))
	}
	s.wantContent(sl, image)
	for range 2 {
		s.reopen()
		s.must(s.Slots.Try(s.ctx, b.Other))
		s.must(s.Slots.Try(s.ctx, b.Other))
	}
	s.powerCycle()
	s.wantBooted(b.Other, false)
	for range 2 {
		s.reopen()
		s.must(s.Slots.MarkGood(s.ctx))
		s.must(s.Slots.MarkGood(s.ctx))
	}
	s.powerCycle()
	s.wantBooted(b.Other, false)
}

func (s *slotsTest) powerCycles() {
	b := s.booted()
	ids := map[string]bool{b.ID: true}
	for i := range 5 {
		s.powerCycle()
		s.wantBooted(b.Slot, false)
		if id := s.booted().ID; ids[id] {
			s.Errorf("power cycle %d: got id %s again", i+1, id)
		} else {
			ids[id] = true
		}
	}
}

// tryRunning asks for what makes no sense. It may be refused or do nothing.
func (s *slotsTest) tryRunning() {
	b := s.booted()
	err := s.Slots.Try(s.ctx, b.Slot)
	s.powerCycle()
	if got := s.booted(); got.Slot != b.Slot {
		s.Errorf("after Try of the running slot (%v): got slot %s, want %s", err, got.Slot, b.Slot)
	}
}

func (s *slotsTest) concurrent() {
	want := s.booted()
	got := make(chan string)
	const n = 8
	for range n {
		go func() {
			b, err := s.Slots.Booted(s.ctx)
			got <- fmt.Sprint(b.Slot, b.ID, err)
		}()
	}
	for range n {
		if g, w := <-got, fmt.Sprint(want.Slot, want.ID, error(nil)); g != w {
			s.Errorf("got %s, want %s", g, w)
		}
	}
}

// halfWritten leaves the other slot, which was good before, half written, and then
// starts the running slot more often than any bootloader's count of attempts.
func (s *slotsTest) halfWritten() {
	old := s.booted()
	s.install(s.image(6, 14))
	s.must(s.Slots.Try(s.ctx, old.Other))
	s.powerCycle()
	s.must(s.Slots.MarkGood(s.ctx))
	b := s.booted()
	s.write(s.open(b.Other), s.image(3, 15), 0)
	for range 9 {
		s.powerCycle()
		s.wantBooted(b.Slot, false)
	}
	s.must(s.Slots.MarkGood(s.ctx))
	s.powerCycle()
	s.wantBooted(b.Slot, false)
}
