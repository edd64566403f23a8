package file_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/file"
)

const bootFile = "/device/boot"

// The format is read by bootloaders, so it never changes.
func TestBootControlFormat(t *testing.T) {
	dir := t.TempDir()
	cfg := file.Config{Dir: dir}
	if err := file.Format(cfg, factory()); err != nil {
		t.Fatal(err)
	}
	s, err := file.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Try(t.Context(), "B"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "boot"))
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 512)
	copy(want, "ILBOOT1\n\x03\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00ABA0")
	binary.LittleEndian.PutUint32(want[508:], crc32.ChecksumIEEE(want[:508]))
	if len(got) != 128<<10 {
		t.Fatalf("got %d bytes, want 128 KiB", len(got))
	}
	for _, at := range []int{0, 65536} {
		if !bytes.Equal(got[at:at+512], want) {
			t.Errorf("copy at %d: got\n%q, want\n%q", at, got[at:at+512], want)
		}
	}
}

// An act is one change of the boot control.
type act struct {
	name string
	do   func(s *file.Slots) error
}

// cutTest is a device, brought to where act begins.
type cutTest struct {
	t      *testing.T
	before *otatest.Disk
	act    func(s *file.Slots) error
}

func open(t *testing.T, d *otatest.Disk) *file.Slots {
	t.Helper()
	s, err := file.OpenOn(d, file.Config{Dir: "/device", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run does act on a copy of the device with cut, and returns the copy with the
// power on again, and whether the cut came.
func (c cutTest) run(cut otatest.Cut) (d *otatest.Disk, came bool) {
	d = c.before.Clone()
	s := open(c.t, d)
	d.Arm(cut)
	came = cutOff(func() {
		if err := c.act(s); err != nil {
			c.t.Errorf("%v: %v", cut, err)
		}
	})
	d.PowerOn()
	return d, came
}

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

// cuts lists every way to cut effect at, with a few throws of the dice where
// chance decides. Torn writes are torn at units of these sizes.
func cuts(at, dice int, units ...int) (all []otatest.Cut) {
	for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
		for _, unit := range units {
			if how != otatest.Torn && unit != units[0] {
				continue
			}
			all = append(all, otatest.Cut{At: at, How: how, Unit: unit, Agent: true})
			for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll} {
				all = append(all, otatest.Cut{At: at, How: how, Unit: unit, Rest: rest, Seed: uint64(at)})
			}
			for seed := range uint64(dice) {
				all = append(all, otatest.Cut{At: at, How: how, Unit: unit, Rest: otatest.Subset, Seed: seed})
			}
		}
	}
	return all
}

// Every change of the boot control is cut at every effect in every way, and then
// the bootloader's own writes of the next PowerOn are. What boots in the end must
// be what boots without the change, or with it.
func TestBootControlCuts(t *testing.T) {
	ctx := t.Context()
	powerOn := act{"power on", func(s *file.Slots) error { _, err := s.PowerOn(ctx); return err }}
	try := func(slot string) act {
		return act{"try " + slot, func(s *file.Slots) error { return s.Try(ctx, slot) }}
	}
	markGood := act{"mark good", func(s *file.Slots) error { return s.MarkGood(ctx) }}
	tried := 0
	for _, test := range []struct {
		before []act
		act    act
		want   []string // what PowerOn after it may pick
	}{
		{nil, powerOn, []string{"A"}},
		{nil, try("B"), []string{"A", "B"}},
		{nil, markGood, []string{"A"}},
		{[]act{try("B")}, try("B"), []string{"B"}},
		{[]act{try("B")}, markGood, []string{"A", "B"}},
		// The try is used up before anything of the slot runs: if the cut came before
		// that was durable, B has not started yet, and may be tried; otherwise not.
		{[]act{try("B")}, powerOn, []string{"A", "B"}},
		{[]act{try("B"), powerOn}, markGood, []string{"A", "B"}},
		{[]act{try("B"), powerOn}, powerOn, []string{"A"}},
		{[]act{try("B"), powerOn, powerOn}, markGood, []string{"A"}},
		{[]act{try("B"), powerOn, markGood}, powerOn, []string{"B"}},
		{[]act{try("B"), powerOn, markGood}, try("A"), []string{"A", "B"}},
		{[]act{try("B"), powerOn, markGood}, markGood, []string{"B"}},
	} {
		var names []string
		d := otatest.NewDisk()
		if err := file.FormatOn(d, file.Config{Dir: "/device"}, factory()); err != nil {
			t.Fatal(err)
		}
		for _, a := range append([]act{powerOn}, test.before...) {
			if err := a.do(open(t, d)); err != nil {
				t.Fatal(err)
			}
			names = append(names, a.name)
		}
		t.Run(fmt.Sprintf("%s, then %s", strings.Join(names, ", "), test.act.name), func(t *testing.T) {
			first := cutTest{t, d, test.act.do}
			for at := 1; ; at++ {
				came := false
				for _, cut := range cuts(at, 2, 512, 4096) { // times those of the PowerOn after it
					var after *otatest.Disk
					if after, came = first.run(cut); !came {
						break
					}
					second := cutTest{t, after, powerOn.do}
					for at := 1; ; at++ {
						came := false
						for _, again := range cuts(at, 1, 4096) {
							var final *otatest.Disk
							if final, came = second.run(again); !came {
								break
							}
							tried++
							wantPowerOn(t, final, append(test.want, "A")[:len(test.want)+mayFall(test.want)], fmt.Sprint(cut, ", then ", again))
						}
						if !came {
							break
						}
					}
					wantPowerOn(t, after, test.want, cut.String())
					tried++
				}
				if !came {
					return
				}
			}
		})
	}
	t.Logf("%d cuts", tried)
}

// mayFall is 1 if a PowerOn that was itself cut may have used up a try of B.
func mayFall(want []string) int {
	if len(want) == 1 && want[0] == "B" {
		return 1
	}
	return 0
}

func wantPowerOn(t *testing.T, d *otatest.Disk, want []string, cut string) {
	t.Helper()
	s := open(t, d)
	before, _ := s.Booted(t.Context())
	slot, err := s.PowerOn(t.Context())
	if err != nil {
		t.Errorf("%s: dead: %v", cut, err)
		return
	}
	if !strings.Contains(strings.Join(want, ""), slot) {
		t.Errorf("%s: got slot %s, want one of %q", cut, slot, want)
	}
	b, err := s.Booted(t.Context())
	if b.Slot != slot || err != nil || b.ID == before.ID {
		t.Errorf("%s: got %+v, %v, want slot %s and a new id", cut, b, err, slot)
	}
}

// What returned nil is not undone by any cut of what comes after it.
func TestMarkGoodIsDurable(t *testing.T) {
	ctx := t.Context()
	d, s := diskDevice(t)
	if err := s.Try(ctx, "B"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.MarkGood(ctx); err != nil {
		t.Fatal(err)
	}
	test := cutTest{t, d, func(s *file.Slots) error { _, err := s.PowerOn(ctx); return err }}
	for at := 1; ; at++ {
		for _, cut := range cuts(at, 4, 1, 512, 4096) {
			after, came := test.run(cut)
			if !came {
				return
			}
			wantPowerOn(t, after, []string{"B"}, cut.String())
		}
	}
}

// One copy may rot at any byte, at any time.
func TestOneCopyRots(t *testing.T) {
	ctx := t.Context()
	d, s := diskDevice(t)
	if err := s.Try(ctx, "B"); err != nil {
		t.Fatal(err)
	}
	for copyAt := int64(0); copyAt <= 65536; copyAt += 65536 {
		for at := int64(0); at < 512; at += 7 {
			c := d.Clone()
			if err := c.Rot(bootFile, copyAt+at); err != nil {
				t.Fatal(err)
			}
			wantPowerOn(t, c, []string{"B"}, fmt.Sprint("rot at ", copyAt+at))
			// PowerOn has repaired it: now the other may rot.
			if err := c.Rot(bootFile, 65536-copyAt+at); err != nil {
				t.Fatal(err)
			}
			if b, err := open(t, c).Booted(ctx); b.Slot != "B" || err != nil {
				t.Errorf("then rot at %d: got %+v, %v, want B booted", 65536-copyAt+at, b, err)
			}
		}
	}
}

// With one copy rotten, the other is all there is. It must not be written over
// before the rotten one is good again on the medium, and not only in the cache,
// where a process that was killed or a sync that failed has left it.
func TestOneCopyRottenAndCut(t *testing.T) {
	ctx := t.Context()
	base, s := diskDevice(t)
	for _, err := range []error{s.Try(ctx, "B"), powerOnErr(t, s), s.MarkGood(ctx)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// Whatever happens below, B is good. To lose both copies would bring A.
	markGood := func(s *file.Slots) error { return s.MarkGood(ctx) }
	for _, copyAt := range []int64{0, 65536} {
		rotten := base.Clone()
		if err := rotten.Rot(bootFile, copyAt+100); err != nil {
			t.Fatal(err)
		}
		var begun []*otatest.Disk
		for at := 1; ; at++ {
			came := false
			for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
				var d *otatest.Disk
				d, came = cutTest{t, rotten, markGood}.run(otatest.Cut{At: at, How: how, Agent: true})
				begun = append(begun, d)
			}
			for _, did := range []bool{false, true} {
				d := rotten.Clone()
				d.OnEffect = func(n int, _ string) otatest.Fault {
					if n == at {
						return otatest.Fault{Err: syscall.EIO, Did: did}
					}
					return otatest.Fault{}
				}
				if err := markGood(open(t, d)); came && err == nil {
					t.Errorf("fault at effect %d: got no error", at)
				}
				d.OnEffect = nil
				begun = append(begun, d)
			}
			if !came {
				break
			}
		}
		for i, d := range begun {
			for at := 1; ; at++ {
				came := false
				for _, cut := range cuts(at, 2, 512, 4096) {
					var after *otatest.Disk
					if after, came = (cutTest{t, d, markGood}).run(cut); came {
						wantPowerOn(t, after, []string{"B"}, fmt.Sprintf("copy at %d rotten, beginning %d, then %v", copyAt, i, cut))
					}
				}
				if !came {
					break
				}
			}
		}
	}
}

func powerOnErr(t *testing.T, s *file.Slots) error { _, err := s.PowerOn(t.Context()); return err }

func TestBothCopiesRot(t *testing.T) {
	write := func(d *otatest.Disk, name string, content []byte) {
		f, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt(content, 0)
		f.Sync()
		d.SyncDir("/device/a")
		d.SyncDir("/device/b")
	}
	const a, b = "/device/a/controller.img", "/device/b/controller.img"
	for _, test := range []struct {
		name    string
		prepare func(d *otatest.Disk)
		want    string
		err     string
	}{
		{"A holds something", func(*otatest.Disk) {}, "A", ""},
		{"both hold something", func(d *otatest.Disk) { write(d, b, []byte("image")) }, "A", ""},
		{"A is empty", func(d *otatest.Disk) { write(d, a, nil); write(d, b, []byte("image")) }, "B", ""},
		{"A is erased flash", func(d *otatest.Disk) {
			write(d, a, bytes.Repeat([]byte{0xff}, 8192))
			write(d, b, []byte("image"))
		}, "B", ""},
		{"nothing anywhere", func(d *otatest.Disk) { write(d, a, make([]byte, 8192)) }, "", "no slot holds an image"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, gone := range []bool{false, true} {
				d, s := diskDevice(t)
				test.prepare(d)
				first, err := s.Booted(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if gone {
					if err := errors.Join(d.Remove(bootFile), d.SyncDir("/device")); err != nil {
						t.Fatal(err)
					}
				} else if err := errors.Join(d.Rot(bootFile, 8), d.Rot(bootFile, 65536+8)); err != nil {
					t.Fatal(err)
				}
				s = open(t, d)
				// The agent does not guess.
				if _, err := s.Booted(t.Context()); err == nil {
					t.Error("booted: got no error")
				}
				if err := s.MarkGood(t.Context()); err == nil {
					t.Error("mark good: got no error")
				}
				slot, err := s.PowerOn(t.Context())
				if slot != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
					t.Fatalf("gone %v: got %q, %v, want %q, %q", gone, slot, err, test.want, test.err)
				}
				if err != nil {
					continue
				}
				d.PowerOff(otatest.DropAll, 0)
				d.PowerOn()
				if b, err := open(t, d).Booted(t.Context()); b.Slot != test.want || b.ID == first.ID || err != nil {
					t.Errorf("afterwards: got %+v, %v, want %s with a new id", b, err, test.want)
				}
			}
		})
	}
}

// Whatever fails once while the boot control is written, the next call does it, and
// in between the device boots the old state or the new.
func TestBootControlFaults(t *testing.T) {
	for _, did := range []bool{false, true} {
		for at := 1; ; at++ {
			d, s := diskDevice(t)
			d.Arm(otatest.Cut{})
			d.OnEffect = func(n int, _ string) otatest.Fault {
				if n == at {
					return otatest.Fault{Err: syscall.EIO, Did: did}
				}
				return otatest.Fault{}
			}
			err := s.Try(t.Context(), "B")
			if d.Effects() < at {
				break // every effect had its turn
			}
			if ota.CodeOf(err) != ota.ErrFlashWrite {
				t.Errorf("effect %d: got %v, want ErrFlashWrite", at, err)
			}
			d.OnEffect = nil
			between := d.Clone()
			between.PowerOff(otatest.DropAll, 0)
			between.PowerOn()
			wantPowerOn(t, between, []string{"A", "B"}, fmt.Sprint("fault at effect ", at))

			retry := cutTest{t, d, func(s *file.Slots) error { return s.Try(t.Context(), "B") }}
			for at := 1; ; at++ {
				came := false
				for _, cut := range cuts(at, 4, 1, 512, 4096) {
					var after *otatest.Disk
					if after, came = retry.run(cut); came {
						wantPowerOn(t, after, []string{"A", "B"}, fmt.Sprint("after a fault, ", cut))
					}
				}
				if !came {
					break
				}
			}
			if err := s.Try(t.Context(), "B"); err != nil {
				t.Errorf("effect %d, again: %v", at, err)
			}
			d.PowerOff(otatest.DropAll, 0)
			d.PowerOn()
			wantPowerOn(t, d, []string{"B"}, fmt.Sprint("again after a fault at effect ", at))
		}
	}
}

// A medium that keeps other bytes than it was given is noticed.
func TestBootControlReadsBack(t *testing.T) {
	d, s := diskDevice(t)
	writes := 0
	d.OnEffect = func(_ int, effect string) otatest.Fault {
		if strings.HasPrefix(effect, "write ") {
			writes++
		}
		return otatest.Fault{}
	}
	d.OnRead = func(_ string, off int64, p []byte) error {
		if writes > 0 && len(p) > 0 {
			p[0] ^= 0x80
		}
		return nil
	}
	if err := s.Try(t.Context(), "B"); ota.CodeOf(err) != ota.ErrFlashWrite {
		t.Errorf("got %v, want ErrFlashWrite", err)
	}
	if writes != 1 {
		t.Errorf("got %d writes, want to stop after the first", writes)
	}
}

// Format is cut everywhere too: what is left is formatted again, or boots.
func TestFormatCuts(t *testing.T) {
	for at := 1; ; at++ {
		for _, cut := range cuts(at, 4, 1, 512, 4096) {
			d := otatest.NewDisk()
			d.Arm(cut)
			came := cutOff(func() {
				if err := file.FormatOn(d, file.Config{Dir: "/device"}, factory()); err != nil {
					t.Error(err)
				}
			})
			if !came {
				return
			}
			d.PowerOn()
			err := file.FormatOn(d, file.Config{Dir: "/device"}, factory())
			if err != nil && !errors.Is(err, os.ErrExist) {
				t.Errorf("%v: %v", cut, err)
			}
			wantPowerOn(t, d, []string{"A"}, cut.String())
			if got := string(d.Content("/device/a/controller.img")); got != "what the factory wrote for controller" {
				t.Errorf("%v: got %q in slot A", cut, got)
			}
		}
	}
}

func FuzzBootControl(f *testing.F) {
	dir := f.TempDir()
	if err := file.Format(file.Config{Dir: dir}, factory()); err != nil {
		f.Fatal(err)
	}
	valid, err := durable.ReadFile(durable.OS{}, filepath.Join(dir, "boot"), 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(valid[:512], valid[:512])
	f.Add([]byte{}, make([]byte, 512))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := otatest.NewDisk()
		if err := file.FormatOn(d, file.Config{Dir: "/device"}, map[string]io.Reader{"controller": strings.NewReader("image")}); err != nil {
			t.Fatal(err)
		}
		whole := make([]byte, 65536+max(512, len(second)))
		copy(whole, first)
		copy(whole[65536:], second)
		if err := durable.WriteFile(d, bootFile, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, d)
		slot, err := s.PowerOn(t.Context())
		if err != nil {
			t.Fatalf("dead: %v", err)
		}
		if got, err := s.Booted(t.Context()); got.Slot != slot || err != nil {
			t.Errorf("got %+v, %v, want %s", got, err, slot)
		}
	})
}
