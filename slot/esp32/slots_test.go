package esp32_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/esp32test"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

func (u *unit) booted() ota.Boot {
	u.t.Helper()
	b, err := u.slots.Booted(context.Background())
	if err != nil {
		u.t.Fatal(err)
	}
	return b
}

func (u *unit) probe() ota.RollbackState {
	u.t.Helper()
	r, err := u.slots.Probe(context.Background())
	if err != nil || r.Why == "" {
		u.t.Fatalf("got %+v, %v, want a reason", r, err)
	}
	return r.State
}

func (u *unit) do(acts ...string) {
	u.t.Helper()
	for _, what := range acts {
		if err := u.act(what); err != nil {
			u.t.Fatalf("%s: %v", what, err)
		}
	}
}

// entries returns the 64 bytes that count of otadata, and the states in them.
func entries(t *testing.T, d *otatest.Disk, csv string) (e [2]esp32.Entry) {
	t.Helper()
	off := partition(t, table(t, csv), "otadata").Offset
	flash := d.Content(esp32test.Flash)
	return [2]esp32.Entry{esp32.ParseEntry(flash[off:]), esp32.ParseEntry(flash[off+0x1000:])}
}

// The bootloader proves itself at the first trial, and an agent that starts later
// still knows it; a bootloader that was replaced has proven nothing.
func TestProbe(t *testing.T) {
	d, u := device(t, esp32test.Backend{})
	want := func(when string, state ota.RollbackState) {
		t.Helper()
		if got := u.probe(); got != state {
			t.Errorf("%s: got %s, want %s", when, got, state)
		}
	}
	want("new", ota.RollbackUnknown)
	u.do("good", "install", "try")
	want("before the first trial", ota.RollbackUnknown)
	u.do("boot")
	want("on trial", ota.RollbackProven)
	u.do("good")
	want("after the trial", ota.RollbackProven)
	u.do("boot")
	want("after a restart", ota.RollbackProven)
	u.do("install")
	want("while the next is installed", ota.RollbackProven)
	u.do("try", "boot", "boot")
	want("after falling back", ota.RollbackProven)
	u.do("good", "boot")
	want("after marking that good", ota.RollbackProven)
	poke(t, d, esp32test.Flash, []byte("another bootloader"), 0x1000)
	want("with another bootloader", ota.RollbackUnknown)
}

func TestBootloaderWithoutRollback(t *testing.T) {
	t.Run("and we know it", func(t *testing.T) {
		d, u := device(t, esp32test.Backend{Old: true}, "good", "install", "try")
		if e := entries(t, d, esp32test.Small); e[0].State != esp32.Undefined && e[1].State != esp32.Undefined {
			t.Errorf("got %+v, want UNDEFINED as the vendor's code writes it", e)
		}
		u.do("boot")
		if b := u.booted(); b.Slot != "ota_1" || b.Trial || b.FellBack {
			t.Errorf("got %+v, want ota_1, and no trial", b)
		}
		if got := u.probe(); got != ota.RollbackBroken {
			t.Errorf("got %s, want broken", got)
		}
		u.do("good", "install", "try", "boot", "good", "boot")
		if u.running != "ota_0" {
			t.Errorf("%s runs, want ota_0", u.running)
		}
	})
	t.Run("and we were told otherwise", func(t *testing.T) {
		_, u := device(t, esp32test.Backend{}, "good", "install", "try")
		var err error
		if u.running, err = (esp32test.Bootloader{}).Start(u.fsys, u.path); err != nil {
			t.Fatal(err)
		}
		if _, err := u.open(); err != nil {
			t.Fatal(err)
		}
		if b := u.booted(); b.Slot != "ota_1" || b.Trial {
			t.Errorf("got %+v, want ota_1, and no trial, because the next boot is the same", b)
		}
		if got := u.probe(); got != ota.RollbackBroken {
			t.Errorf("got %s, want broken: it left the state NEW", got)
		}
		u.do("try") // there must be a way out
		if u.running, err = (esp32test.Bootloader{}).Start(u.fsys, u.path); u.running != "ota_0" || err != nil {
			t.Errorf("%s, %v, want ota_0", u.running, err)
		}
	})
}

// A try that was aborted differs from one that nobody heard of again.
func TestLostIsNotAborted(t *testing.T) {
	d, u := device(t, esp32test.Backend{}, "good", "install", "try")
	off := int64(partition(t, table(t, esp32test.Small), "otadata").Offset)
	d.Arm(otatest.Cut{At: 1, How: otatest.After}) // the erasure of the bootloader's own write
	if !cutOff(func() { u.do("boot") }) {
		t.Fatal("the bootloader wrote nothing")
	}
	d.PowerOn()
	u.do("boot")
	if b := u.booted(); b.Slot != "ota_0" || b.FellBack {
		t.Errorf("after a lost entry: got %+v, want ota_0, not fallen back", b)
	}
	u.do("try", "boot", "boot")
	if b := u.booted(); b.Slot != "ota_0" || !b.FellBack {
		t.Errorf("after an aborted try: got %+v, want ota_0, fallen back", b)
	}
	// An image that cannot be loaded is passed over in the first start already.
	u.do("good", "try")
	poke(t, d, esp32test.Flash, make([]byte, 4096), int64(partition(t, table(t, esp32test.Small), "ota_1").Offset)+4096)
	u.do("boot")
	if b := u.booted(); b.Slot != "ota_0" || !b.FellBack || b.Trial {
		t.Errorf("after an image that cannot be loaded: got %+v, want ota_0, fallen back", b)
	}
	// An application can give itself back.
	e := esp32.NewEntry(1000, esp32.Invalid)
	poke(t, d, esp32test.Flash, e.Encode(), off)
	if b := u.booted(); !b.FellBack {
		t.Errorf("after an application gave itself back: got %+v, want fallen back", b)
	}
}

// What the bootloader could not start is not tried, and otadata is not touched.
func TestTryRefuses(t *testing.T) {
	chip := image.ESP32
	good := imagetest.App(imagetest.Spec{Size: 9000, Version: "2"})
	damaged := bytes.Clone(good)
	damaged[5000] ^= 1
	for _, test := range []struct {
		name string
		b    []byte
		want ota.ErrorCode
	}{
		{"damaged in the middle", damaged, ota.ErrValidation},
		{"cut short", good[:4096], ota.ErrValidation},
		{"nothing", nil, ota.ErrValidation},
		{"zeros", make([]byte, 9000), ota.ErrValidation},
		{"for another chip", imagetest.App(imagetest.Spec{Chip: image.ESP32S3, Size: 9000}), ota.ErrIncompatible},
		{"a bootloader", imagetest.Bootloader(imagetest.Spec{Size: 9000}), ota.ErrIncompatible},
		{"larger than the slot", imagetest.App(imagetest.Spec{Size: 70000})[:65536], ota.ErrIncompatible},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, u := device(t, esp32test.Backend{}, "good")
			poke(t, d, esp32test.Flash, append(test.b, bytes.Repeat([]byte{0xFF}, 65536-len(test.b))...), int64(partition(t, table(t, esp32test.Small), "ota_1").Offset))
			before := d.Content(esp32test.Flash)
			if err := u.slots.Try(t.Context(), "ota_1"); ota.CodeOf(err) != test.want {
				t.Errorf("got %v, want code %v", err, test.want)
			}
			if !bytes.Equal(before, d.Content(esp32test.Flash)) {
				t.Error("the flash was written")
			}
			u.do("boot")
			if u.running != "ota_0" {
				t.Errorf("%s boots", u.running)
			}
		})
	}
	t.Run("not signed", func(t *testing.T) {
		d, u := device(t, esp32test.Backend{}, "good", "install")
		s, err := esp32.OpenOn(d, esp32.Config{Flash: u.path, Rollback: true, Chip: &chip, KeyDigests: [][32]byte{{1}},
			Booted: func(context.Context) (string, string, error) { return "ota_0", "1", nil }})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Try(t.Context(), "ota_1"); !errors.Is(err, ota.ErrValidation) || !strings.Contains(err.Error(), "not signed") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAntiRollback(t *testing.T) {
	d, u := device(t, esp32test.Backend{}, "good", "install")
	open := func(fuse uint32) *esp32.Slots {
		s, err := esp32.OpenOn(d, esp32.Config{Flash: u.path, Rollback: true, AntiRollback: true, SecureVersion: fuse,
			Booted: func(context.Context) (string, string, error) { return "ota_0", "1", nil }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if err := open(1).Try(t.Context(), "ota_1"); !errors.Is(err, ota.ErrIncompatible) {
		t.Errorf("too old: got %v, want ErrIncompatible", err)
	}
	if err := open(0).Try(t.Context(), "ota_1"); err != nil {
		t.Error(err)
	}
	fuse := uint32(0)
	if got, err := (esp32test.Bootloader{Rollback: true, AntiRollback: &fuse}).Start(d, u.path); got != "ota_1" || err != nil {
		t.Errorf("got %s, %v, want ota_1", got, err)
	}
	m, _ := layout(t, 2, true)
	if _, err := esp32.ReadBoot(m, esp32.Config{AntiRollback: true}); !errors.Is(err, ota.ErrIncompatible) {
		t.Errorf("with a factory application: got %v, want ErrIncompatible", err)
	}
}

// From the factory application to a slot, and what is not possible on the way back.
func TestFactory(t *testing.T) {
	d, u := device(t, esp32test.Backend{Table: esp32test.SmallFactory}, "good", "install", "try")
	if e := entries(t, d, esp32test.SmallFactory); e[0] != esp32.NewEntry(1, esp32.New) || e[1].Seq != 0xFFFFFFFF {
		t.Errorf("got %+v, want number 1, NEW, as the vendor's code writes it", e)
	}
	u.do("boot")
	if b := u.booted(); b.Slot != "ota_0" || b.Other != "ota_1" || !b.Trial {
		t.Errorf("got %+v, want ota_0 on trial", b)
	}
	u.do("boot")
	if b := u.booted(); b.Slot != "factory" || b.Other != "ota_0" || !b.FellBack {
		t.Errorf("got %+v, want the factory application, fallen back to", b)
	}
	u.do("good")
	if b := u.booted(); b.FellBack {
		t.Errorf("got %+v after MarkGood", b)
	}
	u.do("try", "boot", "good", "boot")
	if u.running != "ota_0" {
		t.Fatalf("%s runs", u.running)
	}
	// What a person may choose, and that is final.
	if err := u.slots.Try(t.Context(), "factory"); err != nil {
		t.Fatal(err)
	}
	for i, b := range d.Content(esp32test.Flash)[0xd000:0xf000] {
		if b != 0xFF {
			t.Fatalf("byte %d of otadata is %#x: the factory application is chosen by erasing all", i, b)
		}
	}
	u.do("boot", "boot")
	if b := u.booted(); b.Slot != "factory" || b.FellBack || b.Trial {
		t.Errorf("got %+v", b)
	}
	s, err := u.slots.Open(t.Context(), "controller", "factory")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(make([]byte, 4096), 0); err == nil {
		t.Error("the factory application was written, and it runs")
	}
	// On trial, the way back is there already.
	u.do("try", "boot")
	if err := u.slots.Try(t.Context(), "factory"); err != nil {
		t.Fatal(err)
	}
	u.do("boot")
	if u.running != "factory" {
		t.Errorf("%s runs, want the factory application", u.running)
	}
}

// With one slot beside the factory application there is nothing to write once it runs.
func TestFactoryAndOneSlot(t *testing.T) {
	csv := "otadata, data, ota, 0xd000, 0x2000,\nfactory, app, factory, 0x10000, 64K,\nota_0, app, ota_0, 0x20000, 64K,\n"
	_, u := device(t, esp32test.Backend{Table: csv}, "good", "install", "try", "boot", "good", "boot")
	if b := u.booted(); b.Slot != "ota_0" || b.Other != "factory" {
		t.Errorf("got %+v", b)
	}
	if err := u.act("begin to install"); !errors.Is(err, ota.ErrIncompatible) || !strings.Contains(err.Error(), "factory") {
		t.Errorf("got %v, want ErrIncompatible", err)
	}
	u.do("boot")
	if u.running != "ota_0" {
		t.Errorf("%s runs", u.running)
	}
}

// Three slots take turns, as the vendor's code has it.
func TestThreeSlots(t *testing.T) {
	csv := esp32test.Small + "ota_2, app, ota_2, 0x30000, 64K,\n"
	_, u := device(t, esp32test.Backend{Table: csv}, "good")
	for i := range 7 {
		want := fmt.Sprintf("ota_%d", (i+1)%3)
		if b := u.booted(); b.Other != want {
			t.Errorf("got %+v, want %s next", b, want)
		}
		u.do("install", "try", "boot")
		if b := u.booted(); b.Slot != want || !b.Trial {
			t.Errorf("got %+v, want %s on trial", b, want)
		}
		u.do("boot") // once in vain
		if b := u.booted(); b.Other != want || !b.FellBack {
			t.Errorf("got %+v, want it to have fallen back from %s", b, want)
		}
		u.do("try", "boot", "good", "boot")
		if b := u.booted(); b.Slot != want {
			t.Errorf("got %+v, want %s", b, want)
		}
	}
}

// Numbers near their end, from an accident or by somebody's will, cost no time and
// no slot.
func TestNumbersEnd(t *testing.T) {
	for _, seq := range []uint32{0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFF0, 0xFFFF0000, 0xFFFEFFFF, 0xFFFEFFFE} {
		d, u := device(t, esp32test.Backend{})
		poke(t, d, esp32test.Flash, esp32.NewEntry(seq, esp32.Valid).Encode(), 0xd000)
		poke(t, d, esp32test.Flash, u.b.Pack(make([]byte, 5000)), 0x20000)
		u.do("boot")
		for range 5 {
			other := u.booted().Other
			u.do("install", "try", "boot")
			if b := u.booted(); b.Slot != other || !b.Trial {
				t.Fatalf("from %#x: got %+v, want %s on trial", seq, b, other)
			}
			u.do("good", "boot")
			if u.running != other {
				t.Fatalf("from %#x: %s runs, want %s", seq, u.running, other)
			}
		}
		if e := entries(t, d, esp32test.Small); e[0].Seq > 0xFFFF0000+16 || e[1].Seq > 0xFFFF0000+16 {
			t.Errorf("from %#x: got %+v", seq, e)
		}
	}
}

// A slot that is open over a try may be what boots next: its entry goes before a byte
// is written.
func TestWriteAfterTry(t *testing.T) {
	_, u := device(t, esp32test.Backend{}, "good", "install")
	s, err := u.slots.Open(t.Context(), "controller", "ota_1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.WriteAt(make([]byte, 4096), 32768); err != nil {
		t.Fatal(err)
	}
	u.do("try")
	if _, err := s.WriteAt(make([]byte, 4096), 32768); err != nil {
		t.Fatal(err)
	}
	u.do("boot")
	if u.running != "ota_0" {
		t.Errorf("%s boots, and it was being written", u.running)
	}
}

// The way back of a trial is not written over, whoever asks.
func TestNoWriteOnTrial(t *testing.T) {
	d, u := device(t, esp32test.Backend{}, "good", "install", "try", "boot")
	before := d.Content(esp32test.Flash)
	if err := u.act("begin to install"); ota.CodeOf(err) != ota.ErrFlashWrite || !strings.Contains(err.Error(), "on trial") {
		t.Errorf("got %v, want a refusal", err)
	}
	if !bytes.Equal(before, d.Content(esp32test.Flash)) {
		t.Error("the flash was written")
	}
}

// Chunks that begin inside a sector leave alone what else is in it.
func TestUnevenWrites(t *testing.T) {
	_, u := device(t, esp32test.Backend{}, "good")
	s, err := u.slots.Open(t.Context(), "controller", "ota_1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := bytes.Repeat([]byte{0xFF}, 65536)
	for i, w := range [][2]int{{0, 5000}, {5000, 100}, {5100, 9000}, {4090, 20}, {65530, 6}, {1, 65535}, {8191, 2}} {
		b := bytes.Repeat([]byte{byte(0xA5 + i*31)}, w[1])
		if _, err := s.WriteAt(b, int64(w[0])); err != nil {
			t.Fatal(err)
		}
		copy(want[w[0]:], b)
		got := make([]byte, len(want))
		if _, err := s.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if at := differs(got, want); at >= 0 {
			t.Fatalf("write %d: byte %d is %#x, want %#x", i, at, got[at], want[at])
		}
	}
}

func TestOpenErrors(t *testing.T) {
	booted := func(context.Context) (string, string, error) { return "ota_0", "1", nil }
	whole, _ := layout(t, 2, false)
	one, _ := layout(t, 1, false)
	noOTAData := bytes.Clone(whole.b)
	noOTAData[image.TableOffset+2] = 0x40 // some other type; the table's sum goes with it
	for _, test := range []struct {
		name  string
		flash []byte
		cfg   esp32.Config
		want  string
	}{
		{"no flash", whole.b, esp32.Config{Booted: booted}, "no flash is given"},
		{"no Booted", whole.b, esp32.Config{Flash: "f"}, "Config.Booted is not set"},
		{"no table", make([]byte, 0x10000), esp32.Config{Flash: "f", Booted: booted}, "partition table"},
		{"too small for a table", make([]byte, 100), esp32.Config{Flash: "f", Booted: booted}, "read the partition table"},
		{"smaller than said", whole.b, esp32.Config{Flash: "f", Booted: booted, FlashSize: 1 << 30}, "bytes, want 1073741824"},
		{"one slot", one.b, esp32.Config{Flash: "f", Booted: booted}, "needs a second"},
		{"bad component", whole.b, esp32.Config{Flash: "f", Booted: booted, Component: "a b"}, "component"},
		{"damaged table", noOTAData, esp32.Config{Flash: "f", Booted: booted}, "MD5"},
	} {
		if _, err := esp32.OpenOn(&memory{b: test.flash}, test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
	if _, err := esp32.Open(esp32.Config{Flash: t.TempDir() + "/none", Booted: booted}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v, want ErrNotExist", err)
	}
	d := otatest.NewDisk()
	d.MkFlash("/flash", 1<<20, 64<<10)
	if _, err := esp32.OpenOn(d, esp32.Config{Flash: "/flash", Booted: booted}); err == nil || !strings.Contains(err.Error(), "erases 65536 bytes at once") {
		t.Errorf("large erase blocks: got %v", err)
	}
}

// One entry cannot be read: the other counts, and the device goes on. None can be
// read: nothing is written.
func TestUnreadableEntries(t *testing.T) {
	d, u := device(t, esp32test.Backend{}, "good", "install")
	bad := map[int64]bool{}
	d.OnRead = func(_ string, off int64, p []byte) error {
		if len(p) == 32 && bad[off] {
			return errors.New("this fake cannot read here")
		}
		return nil
	}
	for _, one := range []int64{0xd000, 0xe000} {
		bad = map[int64]bool{one: true}
		u.do("good", "install", "try")
		bad = nil
		u.do("boot", "boot")
		if u.running != "ota_0" {
			t.Errorf("%s runs, want ota_0", u.running)
		}
		u.do("good")
	}
	before := d.Content(esp32test.Flash)
	bad = map[int64]bool{0xd000: true, 0xe000: true}
	for _, act := range []string{"good", "try", "begin to install"} {
		if err := u.act(act); err == nil || !strings.Contains(err.Error(), "otadata") {
			t.Errorf("%s: got %v, want an error about otadata", act, err)
		}
	}
	if !bytes.Equal(before, d.Content(esp32test.Flash)) {
		t.Error("the flash was written")
	}
}

func TestReboot(t *testing.T) {
	_, u := device(t, esp32test.Backend{})
	if err := u.slots.Reboot(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
	restarted := false
	cfg := u.b.Config(otatest.Boot{Slot: "ota_0", ID: "1"}, func(context.Context) error { restarted = true; return nil })
	s, err := esp32.OpenOn(u.fsys, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reboot(t.Context()); err != nil || !restarted {
		t.Errorf("got %v, restarted %v", err, restarted)
	}
}

// All 8,192 bytes of otadata, at a try and at the end of it, where one entry is
// written as esp_ota_set_boot_partition and esp_ota_mark_app_valid_cancel_rollback
// write it, but for the label.
func TestBytesOfOTAData(t *testing.T) {
	d, u := onDisk(t, esp32test.Backend{})
	poke(t, d, esp32test.Flash, u.b.Pack([]byte("second")), 0x20000)
	if _, err := u.start(); err != nil {
		t.Fatal(err)
	}
	erased := bytes.Repeat([]byte{0xFF}, 0x2000)
	want := func(when string, e0, e1 string) {
		t.Helper()
		all := bytes.Clone(erased)
		for i, e := range []string{e0, e1} {
			b, err := hex.DecodeString(strings.ReplaceAll(e, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			copy(all[0x1000*i:], b)
		}
		got := d.Content(esp32test.Flash)[0xd000:0xf000]
		if label := got[0x1000+4:]; bytes.HasPrefix(label, []byte("ILRB")) {
			copy(label, erased[:20])
		}
		if label := got[4:]; bytes.HasPrefix(label, []byte("ILRB")) {
			copy(label, erased[:20])
		}
		if at := differs(got, all); at >= 0 {
			t.Errorf("%s: byte %#x differs: got % x / % x", when, at, got[:32], got[0x1000:0x1020])
		}
	}
	const label = "ffffffff ffffffff ffffffff ffffffff ffffffff"
	want("as the bootloader left it", "01000000"+label+"02000000 9a984347", "")
	u.do("try")
	want("after the try", "01000000"+label+"02000000 9a984347", "02000000"+label+"00000000 7437f655")
	u.do("boot")
	want("on trial", "01000000"+label+"02000000 9a984347", "02000000"+label+"01000000 7437f655")
	u.do("good")
	want("marked good", "04000000"+label+"02000000 a8689d70", "02000000"+label+"02000000 7437f655")
}
