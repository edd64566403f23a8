package sdboot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"
	"testing"
	"unicode/utf16"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/sdboot/sdboottest"
)

func (d *device) wantEntries(when, want string) {
	d.t.Helper()
	if got := d.entries(); got != want {
		d.t.Errorf("%s: got entries %q, want %q", when, got, want)
	}
}

func (d *device) rename(from, to string) {
	d.t.Helper()
	d.must(errors.Join(d.disk.Rename(path.Join(sdboottest.Dir, from), path.Join(sdboottest.Dir, to)), d.disk.SyncDir(sdboottest.Dir)))
}

func (d *device) write(name, content string) {
	d.t.Helper()
	d.must(durable.MkdirAll(d.disk, path.Dir(name), 0o755))
	d.must(durable.WriteFile(d.disk, name, []byte(content), 0o600))
}

func (d *device) wantBooted(when string, trial, fellBack bool) {
	d.t.Helper()
	if b := d.booted(); b.Trial != trial || b.FellBack != fellBack {
		d.t.Errorf("%s: got %+v, want trial %v, fell back %v", when, b, trial, fellBack)
	}
}

func TestNames(t *testing.T) {
	d := newDevice(t)
	d.wantEntries("new", "interlock-a.conf")
	try(d)
	d.wantEntries("try", "interlock-a.conf interlock-b+1.conf")
	d.powerOn()
	d.wantEntries("on trial", "interlock-a.conf interlock-b+0-1.conf")
	d.wantBooted("on trial", true, false)
	d.powerOn()
	d.wantBooted("fell back", false, true)
	try(d)
	d.powerOn()
	markGood(d)
	d.wantEntries("marked good", "interlock-a.conf interlock-b.conf")
	half(d)
	d.wantEntries("being written", "interlock-b.conf")
}

// A good entry and one with counters, both of one slot, are one slot that is good.
func TestPlainAndCounted(t *testing.T) {
	for _, counted := range []string{"interlock-b+0-1.conf", "interlock-b+1.conf"} {
		d := newDevice(t)
		try(d)
		d.powerOn()
		content := string(d.disk.Content(sdboottest.Dir + "/interlock-b+0-1.conf"))
		markGood(d)
		d.write(path.Join(sdboottest.Dir, counted), content)
		d.wantBooted(counted, false, false)
		for range 3 {
			if got := d.powerOn(); got != "B" {
				t.Errorf("%s: got slot %s, want B, which is good", counted, got)
			}
		}
		markGood(d)
		d.wantEntries(counted, "interlock-a.conf interlock-b.conf")
	}
}

// A loader that starts a trial and does not rename its entry, as with a file system
// that it cannot write, or in systemd-boot 259.
func TestNotCounted(t *testing.T) {
	d := newDevice(t)
	try(d)
	d.boot = otatest.Boot{Slot: "B", ID: "not counted"}
	d.wantBooted("not counted", false, false) // the next start is B again
	if r, err := d.slots().Probe(t.Context()); r.State != ota.RollbackBroken || !strings.Contains(r.Why, "interlock-b+1.conf") || err != nil {
		t.Errorf("probe: got %+v, %v, want broken", r, err)
	}
	markGood(d)
	d.wantEntries("marked good", "interlock-a.conf interlock-b.conf")
}

// A firmware that leaves both names when it is cut while it renames: systemd-boot starts
// the trial without counting it, and the agent does not say that it is on trial.
func TestBothNames(t *testing.T) {
	d := newDevice(t)
	try(d)
	content := string(d.disk.Content(sdboottest.Dir + "/interlock-b+1.conf"))
	d.write(sdboottest.Dir+"/interlock-b+0-1.conf", content)
	if got := d.powerOn(); got != "B" {
		t.Fatalf("got slot %s, want B", got)
	}
	d.wantBooted("both names", false, false)
	if r, err := d.slots().Probe(t.Context()); r.State != ota.RollbackBroken || err != nil {
		t.Errorf("probe: got %+v, %v, want broken", r, err)
	}
	markGood(d)
	d.wantEntries("marked good", "interlock-a.conf interlock-b.conf")
}

// The rename lost both names, and the slot runs all the same.
func TestLostEntry(t *testing.T) {
	d := newDevice(t)
	try(d)
	d.powerOn()
	d.must(d.disk.Remove(sdboottest.Dir + "/interlock-b+0-1.conf"))
	d.wantBooted("lost", false, false)
	sl, err := d.slots().Open(t.Context(), "controller", "A")
	d.must(err)
	if _, err := sl.WriteAt([]byte("x"), 0); err == nil || !strings.Contains(err.Error(), "mark it good first") {
		t.Errorf("write the other slot: got %v, want a refusal: it has the only entry", err)
	}
	markGood(d)
	if got := d.powerOn(); got != "B" {
		t.Errorf("got slot %s, want B", got)
	}
	half(d)
}

func TestOnTrial(t *testing.T) {
	d := newDevice(t)
	try(d)
	d.powerOn()
	sl, err := d.slots().Open(t.Context(), "controller", "A")
	d.must(err)
	if _, err := sl.WriteAt([]byte("x"), 0); err == nil || !strings.Contains(err.Error(), "mark it good first") {
		t.Errorf("write the way back: got %v, want a refusal", err)
	}
	if err := d.slots().Try(t.Context(), "A"); err == nil {
		t.Error("try the way back: got no error")
	}
	if got := d.powerOn(); got != "A" {
		t.Errorf("got slot %s, want A", got)
	}
}

// The slot that is written may be made bootable again while it is open.
func TestWriteAfterTry(t *testing.T) {
	d := newDevice(t)
	s := d.slots()
	sl, err := s.Open(t.Context(), "controller", "B")
	d.must(err)
	_, err = sl.WriteAt([]byte("one"), 0)
	d.must(err)
	d.must(s.Try(t.Context(), "B"))
	_, err = sl.WriteAt([]byte("two"), 0)
	d.must(err)
	d.wantEntries("written after the try", "interlock-a.conf")
}

// FAT may give a name in capitals back.
func TestCapitals(t *testing.T) {
	d := newDevice(t)
	d.rename("interlock-a.conf", "INTERLOCK-A.CONF")
	try(d)
	d.rename("interlock-b+1.conf", "INTERLOCK-B+0-1.CONF")
	d.boot = otatest.Boot{Slot: "B", ID: "1"}
	d.wantBooted("capitals", true, false)
	markGood(d)
	d.wantEntries("marked good", "INTERLOCK-A.CONF interlock-b.conf")
}

// What people wrote into an entry that has started the slot stays, and so do the
// entries of others.
func TestTextIsKept(t *testing.T) {
	d := newDevice(t)
	d.write(sdboottest.Dir+"/rescue.conf", "title Rescue\nefi /EFI/interlock/a.efi\noptions interlock.slot=A\n")
	d.write(sdboottest.Dir+"/interlock-b+x.conf", "not ours")
	try(d)
	d.powerOn()
	name := sdboottest.Dir + "/interlock-b+0-1.conf"
	edited := "# by hand\n" + string(d.disk.Content(name))
	d.write(name, edited)
	markGood(d)
	if got := string(d.disk.Content(sdboottest.Dir + "/interlock-b.conf")); got != edited {
		t.Errorf("got %q, want %q", got, edited)
	}
	d.wantEntries("marked good", "interlock-a.conf interlock-b+x.conf interlock-b.conf rescue.conf")
}

// The other slot is the first choice by its version, and this one runs, by hand.
func TestMarkGoodOfTheSecondChoice(t *testing.T) {
	d := newDevice(t)
	try(d)
	d.powerOn()
	markGood(d)
	d.boot = otatest.Boot{Slot: "A", ID: "from the menu"}
	n := d.everyCut(markGood, 12, func(c *device, cut otatest.Cut) {
		if got := c.powerOn(); got != "A" && got != "B" {
			t.Errorf("%v: got slot %s", cut, got)
		}
	})
	markGood(d)
	for range 2 {
		if got := d.powerOn(); got != "A" {
			t.Errorf("got slot %s, want A", got)
		}
	}
	d.wantEntries("marked good", "interlock-a.conf interlock-b.conf")
	t.Logf("%d cuts", n)
}

// All there is has counters, after a spare entry has stood in for the good one.
func TestOnlyCounted(t *testing.T) {
	d := newDevice(t)
	d.rename("interlock-a.conf", "interlock-a+9.conf")
	d.powerOn()
	d.wantEntries("started", "interlock-a+8-1.conf")
	d.everyCut(markGood, 12, func(c *device, cut otatest.Cut) {
		if got, err := c.PowerOn(c.disk); got != "A" || err != nil {
			t.Errorf("%v: got slot %q, %v, want A", cut, got, err)
		}
	})
	markGood(d)
	d.wantEntries("marked good", "interlock-a.conf")
}

// Entries that start nothing are none: the only good one is written anew without ever
// being missing.
func TestDamagedEntry(t *testing.T) {
	for _, content := range []string{"", "title x\n", "efi /EFI/interlock/a.efi\noptions interlock.slot=A\n"} {
		d := newDevice(t)
		d.write(sdboottest.Dir+"/interlock-a.conf", content)
		d.write(sdboottest.Dir+"/interlock-b.conf", "")
		loads := strings.HasPrefix(content, "efi")
		d.everyCut(markGood, 12, func(c *device, cut otatest.Cut) {
			if _, err := c.PowerOn(c.disk); loads && err != nil {
				t.Errorf("%q, %v: %v", content, cut, err)
			}
		})
		markGood(d)
		d.wantEntries(content, "interlock-a.conf")
		if got := d.powerOn(); got != "A" {
			t.Errorf("%q: got slot %s, want A", content, got)
		}
	}
}

func TestWritesNothingTwice(t *testing.T) {
	d := newDevice(t)
	for _, do := range []func(*device){markGood, try, half, func(d *device) { try(d); d.powerOn(); markGood(d) }, markGood} {
		do(d)
	}
	for _, do := range []func(*device){markGood, try} {
		do(d)
		d.disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if !strings.HasPrefix(effect, "syncdir") {
				t.Errorf("got effect %q the second time, want none", effect)
			}
			return otatest.Fault{}
		}
		do(d)
		d.disk.OnEffect = nil
	}
}

func TestMedium(t *testing.T) {
	t.Run("full", func(t *testing.T) {
		d := newDevice(t)
		d.disk.Capacity = 1
		if err := d.slots().Try(t.Context(), "B"); ota.CodeOf(err) != ota.ErrInsufficientSpace {
			t.Errorf("got %v, want ErrInsufficientSpace", err)
		}
		if got := d.powerOn(); got != "A" {
			t.Errorf("got slot %s, want A", got)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		d := newDevice(t)
		d.disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "sync") {
				return otatest.Fault{}
			}
			return otatest.Fault{Err: syscall.EROFS}
		}
		if err := d.slots().Try(t.Context(), "B"); ota.CodeOf(err) != ota.ErrFlashWrite || !errors.Is(err, syscall.EROFS) {
			t.Errorf("try: got %v, want ErrFlashWrite", err)
		}
		d.must(d.slots().MarkGood(t.Context())) // it is so already
		d.wantEntries("read-only", "interlock-a.conf")
	})
	t.Run("reads back something else", func(t *testing.T) {
		d := newDevice(t)
		d.disk.OnRead = func(name string, _ int64, p []byte) error {
			if strings.Contains(name, "+1") && len(p) > 0 {
				p[0] ^= 1
			}
			return nil
		}
		if err := d.slots().Try(t.Context(), "B"); !errors.Is(err, durable.ErrReadBack) {
			t.Errorf("got %v, want ErrReadBack", err)
		}
	})
	t.Run("not mounted", func(t *testing.T) {
		d := newDevice(t)
		s, err := open(d, "/efi-is-empty/loader/entries")
		d.must(err)
		if b, err := s.Booted(t.Context()); b.Slot != "A" || b.Trial || b.FellBack || err != nil {
			t.Errorf("booted: got %+v, %v", b, err)
		}
		for what, err := range map[string]error{"try": s.Try(t.Context(), "B"), "mark good": s.MarkGood(t.Context())} {
			if !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: got %v, want an error", what, err)
			}
		}
	})
}

// efi sets an EFI variable of systemd-boot.
func (d *device) efi(name, value string) {
	d.t.Helper()
	b := []byte{6, 0, 0, 0} // attributes
	for _, c := range utf16.Encode([]rune(value + "\x00")) {
		b = append(b, byte(c), byte(c>>8))
	}
	d.write(path.Join(sdboottest.EFIVars, name+"-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"), string(b))
}

func TestProbe(t *testing.T) {
	d := newDevice(t)
	want := func(when string, state ota.RollbackState, why string) {
		t.Helper()
		if r, err := d.slots().Probe(t.Context()); r.State != state || !strings.Contains(r.Why, why) || err != nil {
			t.Errorf("%s: got %+v, %v, want %s with %q", when, r, err, state, why)
		}
	}
	want("no EFI variables", ota.RollbackUnknown, "the first trial will tell")
	d.efi("LoaderInfo", "systemd-boot 252.39")
	want("new", ota.RollbackUnknown, "the first trial will tell")
	try(d)
	d.powerOn()
	want("on trial", ota.RollbackProven, "counted the try of slot B")
	d.efi("LoaderBootCountPath", `\loader\entries\interlock-b+0-1.conf`)
	markGood(d)
	want("marked good in the same boot", ota.RollbackProven, "counted this start of slot B")
	try(d)
	d.powerOn()
	d.powerOn()
	want("fell back", ota.RollbackProven, "come back")

	spare := newDevice(t) // of a good entry that was being written anew when the power went
	spare.rename("interlock-a.conf", "interlock-a+9.conf")
	spare.powerOn()
	if r, err := spare.slots().Probe(t.Context()); r.State == ota.RollbackBroken || err != nil {
		t.Errorf("counted spare: got %+v, %v, want anything but broken", r, err)
	}
	spare.wantBooted("counted spare", false, false)
	markGood(spare)
	spare.wantEntries("counted spare", "interlock-a.conf")

	d.efi("LoaderEntryDefault", "interlock-b.conf")
	want("set-default", ota.RollbackBroken, "interlock-b.conf")
	d.efi("LoaderEntryDefault", "")
	d.write(sdboottest.ESP+"/loader/loader.conf", "timeout 0\n default  interlock-*\n")
	want("default in loader.conf", ota.RollbackBroken, "interlock-*")
	d.write(sdboottest.ESP+"/loader/loader.conf", "# default x\ntimeout 0\n")
	d.write(sdboottest.EFIVars+"/LoaderFeatures-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", "\x06\x00\x00\x00\x0f\x00\x00\x00\x00\x00\x00\x00")
	want("a loader that does not count", ota.RollbackBroken, "does not count")
	d.write(sdboottest.EFIVars+"/LoaderFeatures-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", "\x06\x00\x00\x00\xff\x00\x00\x00\x00\x00\x00\x00")
	want("one that does", ota.RollbackProven, "come back")
	d.efi("LoaderInfo", "GRUB 2.12")
	want("another loader", ota.RollbackBroken, "GRUB 2.12")
	d.must(d.disk.Remove(sdboottest.EFIVars + "/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"))
	want("no loader", ota.RollbackBroken, "did not start this system")
	d.write(sdboottest.EFIVars+"/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", "x")
	if _, err := d.slots().Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "1 bytes") {
		t.Errorf("a broken variable: got %v, want an error", err)
	}
}

func Example() {
	d := otatest.NewDisk()
	backend := sdboottest.Backend{} // a device in memory; elsewhere files of /efi, and sdboot.Open
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
