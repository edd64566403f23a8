package grub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/grub"
	"github.com/interlock-energy/ota/slot/grub/grubtest"
)

// cutOff runs do, and reports whether a power cut ended it.
func cutOff(do func()) (came bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(*otatest.PowerCut); !ok {
				panic(p)
			}
			came = true
		}
	}()
	do()
	return false
}

// everyCut does act on copies of the device, cut at every effect in every way, and
// calls after with each copy that has its power again.
func (d *device) everyCut(act func(d *device), units []int, seeds uint64, after func(d *device, cut otatest.Cut)) (n int) {
	d.t.Helper()
	for at := 1; ; at++ {
		came := false
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for _, unit := range units {
				for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll, otatest.Subset} {
					for seed := range seeds {
						if how != otatest.Torn && unit != units[0] || how != otatest.Torn && rest != otatest.Subset && seed > 0 {
							continue
						}
						cut := otatest.Cut{At: at, How: how, Unit: unit, Rest: rest, Seed: seed}
						c := d.clone(d.disk.Clone())
						c.disk.Arm(cut)
						if came = cutOff(func() { act(c) }); !came {
							return n
						}
						c.disk.PowerOn()
						n++
						after(c, cut)
					}
				}
			}
		}
	}
}

// Every change of the blocks is cut at every effect, with tears of every size. What
// boots then is what boots without the change, or with it, and once more after that
// it is what the contract says of the slot that booted.
func TestBlockCuts(t *testing.T) {
	markGood := func(d *device) { d.must(d.slots().MarkGood(d.t.Context())) }
	power := func(d *device) { d.powerOn() }
	n := 0
	for _, test := range []struct {
		name   string
		before []func(*device)
		act    func(*device)
		want   string // slots that the next starts may pick, one string for each
		then   string
	}{
		{"power on", nil, power, "A", "A"},
		{"try", nil, try, "AB", "A"},
		{"mark good", nil, markGood, "A", "A"},
		{"write", nil, half, "A", "A"},
		{"forget a try", []func(*device){try}, markGood, "AB", "A"},
		{"write what is to be tried", []func(*device){try}, half, "AB", "A"},
		{"power on for a trial", []func(*device){try}, power, "AB", "A"},
		{"mark good a trial", []func(*device){try, power}, markGood, "AB", "AB"},
		{"power on after a trial", []func(*device){try, power}, power, "A", "A"},
		{"mark good after a trial", []func(*device){try, power, power}, markGood, "A", "A"},
		{"try again", []func(*device){try, power, power}, try, "AB", "A"},
		{"power on when good", []func(*device){updated}, power, "B", "B"},
		{"mark good when good", []func(*device){updated, power}, markGood, "B", "B"},
		{"try the way back", []func(*device){updated}, try, "AB", "B"},
		{"write over the previous", []func(*device){updated, power}, half, "B", "B"},
	} {
		d := newDevice(t, grubtest.Backend{})
		for _, do := range test.before {
			do(d)
		}
		n += d.everyCut(test.act, []int{1, 4, 16, 512, 4096}, 2, func(c *device, cut otatest.Cut) {
			got := c.powerOn()
			if !strings.Contains(test.want, got) {
				t.Errorf("%s, %v: got slot %s, want one of %s", test.name, cut, got, test.want)
			}
			if b := c.booted(); b.Trial && b.FellBack {
				t.Errorf("%s, %v: got %+v", test.name, cut, b)
			}
			if next := c.powerOn(); !strings.Contains(test.then, next) {
				t.Errorf("%s, %v: got slot %s and then %s, want one of %s", test.name, cut, got, next, test.then)
			}
		})
	}
	t.Logf("%d cuts", n)
}

// What has returned nil is not undone by a cut of what comes after.
func TestDurable(t *testing.T) {
	d := newDevice(t, grubtest.Backend{})
	updated(d)
	for _, act := range []func(*device){func(d *device) { d.powerOn() }, half} {
		d.everyCut(act, []int{1, 512}, 4, func(c *device, cut otatest.Cut) {
			if got := c.powerOn(); got != "B" {
				t.Errorf("%v: got slot %s, want B, which was marked good", cut, got)
			}
		})
	}
	// Before the first byte is written, it is durable that the slot does not boot.
	d.everyCut(half, []int{512}, 4, func(c *device, cut otatest.Cut) {
		if !bytes.HasPrefix(c.Image(c.disk, "A"), []byte("half")) {
			return
		}
		powerOns(c, 20)
		if c.boot.Slot != "B" {
			t.Errorf("%v: got slot %s after 20 starts, which is half written", cut, c.boot.Slot)
		}
	})
}

// One block may rot at any byte, or be unreadable: GRUB and the agent use the other, and the next
// write repairs it, so that then the other may rot.
func TestOneBlockRots(t *testing.T) {
	blocks := []string{grubtest.Env, grubtest.Env2}
	base := newDevice(t, grubtest.Backend{})
	updated(base)
	size := int64(len(bytes.TrimRight(base.disk.Content(grubtest.Env), "#")))
	for i, name := range blocks {
		for at := range size {
			d := base.clone(base.disk.Clone())
			d.must(d.disk.Rot(name, at))
			if got := d.powerOn(); got != "B" {
				t.Errorf("rot at %d of %s: got slot %s, want B", at, name, got)
			}
			d.must(d.slots().MarkGood(t.Context()))
			d.must(d.disk.Rot(blocks[1-i], at))
			if got := d.powerOn(); got != "B" {
				t.Errorf("rot at %d of %s, repaired, then of the other: got slot %s, want B", at, name, got)
			}
		}
		// A cut during the repair must not cost the block that is whole.
		d := base.clone(base.disk.Clone())
		d.must(d.disk.Rot(name, 0))
		d.everyCut(func(d *device) { d.must(d.slots().MarkGood(t.Context())) }, []int{1, 512, 4096}, 4, func(c *device, cut otatest.Cut) {
			if got := c.powerOn(); got != "B" {
				t.Errorf("rot in %s, %v in the repair: got slot %s, want B", name, cut, got)
			}
		})

		d = base.clone(base.disk.Clone())
		d.disk.OnRead = func(file string, _ int64, _ []byte) error {
			if file == name {
				return syscall.EIO
			}
			return nil
		}
		if got := d.powerOn(); got != "B" {
			t.Errorf("%s cannot be read: got slot %s, want B", name, got)
		}
		if b := d.booted(); b.Slot != "B" || b.FellBack || b.Trial {
			t.Errorf("%s cannot be read: got %+v", name, b)
		}
		if err := d.slots().MarkGood(t.Context()); ota.CodeOf(err) != ota.ErrFlashWrite {
			t.Errorf("%s cannot be read: got %v, want ErrFlashWrite, because it cannot be read back either", name, err)
		}
		d.disk.OnRead = nil
		if got := d.powerOn(); got != "B" {
			t.Errorf("%s could not be read: got slot %s, want B", name, got)
		}
	}
}

// A process that was killed between the two blocks leaves two states that are whole. The
// agent goes by the newer one, as GRUB does.
func TestNewerBlockCounts(t *testing.T) {
	for _, file := range []string{"grubenv", "grubenv2"} {
		for round := range 3 {
			d := newDevice(t, grubtest.Backend{})
			try(d)
			powerOns(d, 2+round)
			if !d.booted().FellBack {
				t.Fatalf("round %d: got %+v, want fell back", round, d.booted())
			}
			older(d, file, try)
			if b := d.booted(); b.FellBack || b.Trial {
				t.Errorf("round %d, %s is older: got %+v, want the new try", round, file, b)
			}
			if got := d.powerOn(); got != "B" {
				t.Errorf("round %d, %s is older: got slot %s, want B", round, file, got)
			}
		}
	}
}

// Nothing is made up where nothing is known.
func TestBothBlocksDamaged(t *testing.T) {
	for _, damage := range []struct {
		name string
		do   func(d *device)
	}{
		{"rotten", func(d *device) { d.must(errors.Join(d.disk.Rot(grubtest.Env, 30), d.disk.Rot(grubtest.Env2, 30))) }},
		{"gone", func(d *device) { d.must(errors.Join(d.disk.Remove(grubtest.Env), d.disk.Remove(grubtest.Env2))) }},
		{"empty", func(d *device) { d.write(grubtest.Env, nil); d.write(grubtest.Env2, nil) }},
		{"of the wrong size", func(d *device) { d.write(grubtest.Env, make([]byte, 1<<20)); d.write(grubtest.Env2, []byte("x")) }},
	} {
		t.Run(damage.name, func(t *testing.T) {
			d := newDevice(t, grubtest.Backend{})
			d.t = t
			damage.do(d)
			before := [2][]byte{d.disk.Content(grubtest.Env), d.disk.Content(grubtest.Env2)}
			if got := d.powerOn(); got != "A" {
				t.Errorf("got slot %s, want A, which loads", got)
			}
			s := d.slots()
			if b, err := s.Booted(t.Context()); b.Slot != "A" || b.FellBack || b.Trial || err != nil {
				t.Errorf("booted: got %+v, %v", b, err)
			}
			sl, err := s.Open(t.Context(), "controller", "B")
			d.must(err)
			_, writeErr := sl.WriteAt([]byte("x"), 0)
			_, probeErr := s.Probe(t.Context())
			for what, err := range map[string]error{"try": s.Try(t.Context(), "B"), "mark good": s.MarkGood(t.Context()), "write": writeErr, "probe": probeErr} {
				if err == nil || !strings.Contains(err.Error(), "make new blocks") {
					t.Errorf("%s: got %v, want an error that says what to do", what, err)
				}
			}
			if !bytes.HasPrefix(d.Image(d.disk, "B"), []byte("an image too")) {
				t.Error("slot B was written, and it is not known that GRUB does not start it")
			}
			if after := [2][]byte{d.disk.Content(grubtest.Env), d.disk.Content(grubtest.Env2)}; !bytes.Equal(before[0], after[0]) || !bytes.Equal(before[1], after[1]) {
				t.Error("a block was written")
			}
			d.must(grub.FormatOn(d.disk, d.config(), "A")) // what the error says
			d.must(d.slots().MarkGood(t.Context()))
		})
	}
}

// A block that is missing is made anew, as long as there is room.
func TestMissingBlock(t *testing.T) {
	for _, name := range []string{grubtest.Env, grubtest.Env2} {
		d := newDevice(t, grubtest.Backend{})
		d.must(d.disk.Remove(name))
		d.disk.Capacity = 1
		if err := d.slots().Try(t.Context(), "B"); ota.CodeOf(err) != ota.ErrInsufficientSpace {
			t.Errorf("full disk: got %v, want ErrInsufficientSpace", err)
		}
		d.disk.Capacity = 0
		d.everyCut(try, []int{512}, 2, func(c *device, cut otatest.Cut) {
			if got := c.powerOn(); got != "A" && got != "B" {
				t.Errorf("%v: got %s", cut, got)
			}
		})
		try(d)
		if a, b := d.disk.Content(grubtest.Env), d.disk.Content(grubtest.Env2); !bytes.Equal(a, b) {
			t.Errorf("got different blocks:\n%s\n%s", a, b)
		}
	}
}

// What is so already is not written again; what only the cache has is synced.
func TestWritesNothingTwice(t *testing.T) {
	d := newDevice(t, grubtest.Backend{})
	var writes []string
	for _, do := range []func(){
		func() { d.must(d.slots().MarkGood(t.Context())) },
		func() { try(d) },
		func() { half(d) },
	} {
		do()
		d.disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "write /boot") || strings.HasPrefix(effect, "create") || strings.HasPrefix(effect, "rename") {
				writes = append(writes, effect)
			}
			return otatest.Fault{}
		}
		do()
		d.disk.OnEffect = nil
	}
	if len(writes) > 0 {
		t.Errorf("got %q, want no writes", writes)
	}
}

// Whatever fails once, the next call does it.
func TestFaults(t *testing.T) {
	for _, did := range []bool{false, true} {
		for at := 1; ; at++ {
			d := newDevice(t, grubtest.Backend{})
			d.disk.Arm(otatest.Cut{})
			d.disk.OnEffect = func(n int, _ string) otatest.Fault {
				if n == at {
					return otatest.Fault{Err: syscall.EIO, Did: did}
				}
				return otatest.Fault{}
			}
			err := d.slots().Try(t.Context(), "B")
			if d.disk.Effects() < at {
				break
			}
			if ota.CodeOf(err) != ota.ErrFlashWrite {
				t.Errorf("fault at effect %d: got %v, want ErrFlashWrite", at, err)
			}
			d.disk.OnEffect = nil
			try(d)
			d.disk.PowerOff(otatest.DropAll, 0)
			d.disk.PowerOn()
			if got := d.powerOn(); got != "B" {
				t.Errorf("fault at effect %d, and again: got slot %s, want B", at, got)
			}
		}
	}
}

// A disk that no longer takes writes, and does not say so, as worn SD cards do: GRUB
// must not start a trial that it cannot count, and the agent notices.
func TestDiskIgnoresWrites(t *testing.T) {
	d := newDevice(t, grubtest.Backend{})
	try(d)
	old := map[string][]byte{grubtest.Env: d.disk.Content(grubtest.Env), grubtest.Env2: d.disk.Content(grubtest.Env2)}
	d.disk.OnRead = func(name string, off int64, p []byte) error {
		if b := old[name]; b != nil {
			copy(p, b[off:])
		}
		return nil
	}
	for range 3 {
		if got := d.powerOn(); got != "A" {
			t.Errorf("got slot %s, want A", got)
		}
	}
	if err := d.slots().MarkGood(t.Context()); !errors.Is(err, durable.ErrReadBack) {
		t.Errorf("mark good: got %v, want ErrReadBack", err)
	}
	if r, err := d.slots().Probe(t.Context()); r.State != ota.RollbackBroken || err != nil {
		t.Errorf("probe: got %+v, %v, want broken", r, err)
	}
}

func TestProbe(t *testing.T) {
	d := newDevice(t, grubtest.Backend{})
	want := func(when string, state ota.RollbackState) {
		t.Helper()
		if r, err := d.slots().Probe(t.Context()); r.State != state || r.Why == "" || err != nil {
			t.Errorf("%s: got %+v, %v, want %s", when, r, err, state)
		}
	}
	markGood := func() { d.must(d.slots().MarkGood(t.Context())) }
	want("at the start", ota.RollbackProven)
	markGood()
	want("after mark good in the same boot", ota.RollbackProven)
	try(d)
	want("after try in the same boot", ota.RollbackProven)
	d.powerOn()
	want("on trial", ota.RollbackProven)
	d.powerOn()
	want("fell back", ota.RollbackProven)
	markGood()
	want("fell back and marked good", ota.RollbackProven)
	d.boot.ID = "a boot that GRUB did not count"
	want("not counted", ota.RollbackBroken)
	markGood()
	want("not counted, and marked good", ota.RollbackBroken)
	d.must(d.disk.Rot(grubtest.Env, 3))
	d.powerOn()
	want("a damaged block", ota.RollbackUnknown)
	markGood()
	d.powerOn()
	want("repaired", ota.RollbackProven)
	half(d)
	want("after writing the other slot", ota.RollbackProven)
}

// The slot that is written may be made bootable again while it is open.
func TestWriteAfterTry(t *testing.T) {
	d := newDevice(t, grubtest.Backend{})
	s := d.slots()
	sl, err := s.Open(t.Context(), "controller", "B")
	d.must(err)
	_, err = sl.WriteAt([]byte("one"), 0)
	d.must(err)
	d.must(s.Try(t.Context(), "B"))
	_, err = sl.WriteAt([]byte("two"), 0)
	d.must(err)
	if got := d.powerOn(); got != "A" {
		t.Errorf("got slot %s, want A: B is written after the try", got)
	}
}

// On trial, the other slot is the only way back.
func TestWriteOnTrial(t *testing.T) {
	d := newDevice(t, grubtest.Backend{})
	try(d)
	d.powerOn()
	sl, err := d.slots().Open(t.Context(), "controller", "A")
	d.must(err)
	if _, err := sl.WriteAt([]byte("x"), 0); err == nil || !strings.Contains(err.Error(), "on trial") {
		t.Errorf("got %v, want a refusal", err)
	}
	if got := d.powerOn(); got != "A" {
		t.Errorf("got slot %s, want A", got)
	}
}

// After an update the previous slot starts when the new one does not any more, and
// never a slot that failed its trial.
func TestLastResort(t *testing.T) {
	d := newDevice(t, grubtest.Backend{})
	updated(d)
	powerOns(d, 8)
	if d.boot.Slot != "B" {
		t.Errorf("got slot %s at the 8th start, want B", d.boot.Slot)
	}
	if got := d.powerOn(); got != "A" {
		t.Errorf("got slot %s at the 9th start, want A", got)
	}
	if b := d.booted(); b.FellBack || b.Trial {
		t.Errorf("got %+v: nothing was on trial", b)
	}
	d = newDevice(t, grubtest.Backend{})
	try(d)
	powerOns(d, 30)
	if d.boot.Slot != "A" {
		t.Errorf("got slot %s, want A: B has failed", d.boot.Slot)
	}
	d.must(d.slots().MarkGood(t.Context()))
	powerOns(d, 30)
	if d.boot.Slot != "A" {
		t.Errorf("got slot %s after mark good, want A: B has failed", d.boot.Slot)
	}
}

// One block alone, as RAUC has it, with its script.
func TestAlone(t *testing.T) {
	d := newDevice(t, grubtest.Backend{Alone: true})
	ctx := t.Context()
	want := func(when, slot string, trial, fellBack bool) {
		t.Helper()
		if b := d.booted(); b.Slot != slot || b.Trial != trial || b.FellBack != fellBack {
			t.Errorf("%s: got %+v, want slot %s, trial %v, fell back %v", when, b, slot, trial, fellBack)
		}
	}
	want("new", "A", false, false)
	d.must(d.slots().MarkGood(ctx))
	try(d)
	d.powerOn()
	want("try", "B", true, false)
	d.powerOn()
	want("not marked good", "A", false, true)
	d.must(d.slots().MarkGood(ctx))
	try(d)
	d.powerOn()
	d.must(d.slots().MarkGood(ctx))
	for range 3 {
		d.powerOn()
		want("good", "B", false, false)
		if r, err := d.slots().Probe(ctx); r.State != ota.RollbackProven || err != nil {
			t.Errorf("probe: got %+v, %v", r, err)
		}
		d.must(d.slots().MarkGood(ctx))
	}
	half(d)
	powerOns(d, 5)
	want("other is half written", "B", false, false)

	// Variables that RAUC's tool wrote, and no others.
	d.write(grubtest.Env, block("ORDER=A rescue B\nA_OK=1\nA_TRY=0\nB_TRY=0\nrescue_OK=1\nB_OK=0\nmine=\\\\ \\\n\n"))
	d.powerOn()
	try(d)
	got := string(d.disk.Content(grubtest.Env))
	for _, line := range []string{"ORDER=B A rescue\n", "A_OK=1\nA_TRY=0\nB_TRY=0\nrescue_OK=1\nB_OK=1\n", "mine=\\\\ \\\n\n", "interlock_trial=B\n"} {
		if !strings.Contains(got, line) {
			t.Errorf("got\n%s\nwant %q in it", got, line)
		}
	}
	if strings.Contains(got, "interlock_seq") {
		t.Errorf("got a sequence number in a block alone:\n%s", got)
	}

	// What would cross from one sector to the other cannot be written safely.
	before := block("mine=" + strings.Repeat("x", 450) + "\nORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=0\n")
	d.write(grubtest.Env, before)
	if err := d.slots().Try(ctx, "B"); err == nil || !strings.Contains(err.Error(), "two sectors") {
		t.Errorf("got %v, want a refusal", err)
	}
	if got := d.disk.Content(grubtest.Env); !bytes.Equal(got, before) {
		t.Errorf("the block was written:\n%s", got)
	}
	d.write(grubtest.Env, block(""))
	if err := d.slots().Try(ctx, "B"); err == nil || !strings.Contains(err.Error(), "ORDER is missing") {
		t.Errorf("empty block: got %v, want an error that says what to do", err)
	}
	if err := grub.FormatOn(d.disk, d.config(), "A"); err != nil || errors.Is(err, fs.ErrExist) {
		t.Errorf("format over an empty block: %v", err)
	}
}

// A disk that writes sectors whole does not lose a block alone at any cut.
func TestAloneCuts(t *testing.T) {
	for _, test := range []struct {
		act  func(*device)
		want string
	}{{try, "AB"}, {half, "A"}, {func(d *device) { d.must(d.slots().MarkGood(t.Context())) }, "A"}} {
		d := newDevice(t, grubtest.Backend{Alone: true})
		d.everyCut(test.act, []int{512}, 1, func(c *device, cut otatest.Cut) {
			if cut.How == otatest.Torn { // damages the sector, which is more than a block alone survives
				return
			}
			if got := c.powerOn(); !strings.Contains(test.want, got) {
				t.Errorf("%v: got slot %s, want one of %s", cut, got, test.want)
			}
		})
	}
}

func block(content string) []byte {
	b := bytes.Repeat([]byte{'#'}, 1024)
	copy(b, "# GRUB Environment Block\n"+content)
	return b
}

func Example() {
	d := otatest.NewDisk()
	backend := grubtest.Backend{} // a device in memory; elsewhere files of /boot, and grub.Open
	fmt.Println(backend.Format(d, []byte("firmware 1.0")))
	slot, err := backend.PowerOn(d)
	fmt.Println("running", slot, err)
	s, err := backend.Slots(d, otatest.Boot{Slot: slot, ID: "boot 1"}, nil)
	if err != nil {
		fmt.Println(err)
	}
	b, err := s.Open(context.Background(), "controller", "B")
	if err != nil {
		fmt.Println(err)
	}
	b.WriteAt([]byte("firmware 2.0"), 0)
	fmt.Println(b.Sync(12), s.Try(context.Background(), "B"))
	slot, err = backend.PowerOn(d)
	fmt.Println("on trial", slot, err)
	slot, err = backend.PowerOn(d) // nobody has marked it good
	fmt.Println("running", slot, err)
	// Output:
	// <nil>
	// running A <nil>
	// <nil> <nil>
	// on trial B <nil>
	// running A <nil>
}
