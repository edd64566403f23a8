package sdboot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/sdboot"
	"github.com/interlock-energy/ota/slot/sdboot/sdboottest"
)

// device is a disk with systemd-boot slots, and the boot of it.
type device struct {
	t    testing.TB
	disk *otatest.Disk
	sdboottest.Backend
	boot otatest.Boot
	n    int
}

func newDevice(t testing.TB) *device {
	t.Helper()
	d := &device{t: t, disk: otatest.NewDisk()}
	d.must(d.Format(d.disk, []byte("what the factory wrote")))
	d.must(durable.WriteFile(d.disk, sdboottest.ImageB, []byte("an image too"), 0o600))
	d.powerOn()
	return d
}

func (d *device) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) powerOn() string {
	d.t.Helper()
	slot, err := d.PowerOn(d.disk)
	if err != nil {
		d.t.Fatalf("dead: %v; there is\n%v", err, d.disk)
	}
	d.n++
	d.boot = otatest.Boot{Slot: slot, ID: fmt.Sprint("boot ", d.n)}
	return slot
}

func (d *device) clone(disk *otatest.Disk) *device {
	c := *d
	c.disk = disk
	return &c
}

func (d *device) config() sdboot.Config {
	cfg := d.Backend.Config()
	boot := d.boot
	cfg.Booted = func(context.Context) (string, string, error) { return boot.Slot, boot.ID, nil }
	return cfg
}

func (d *device) slots() *sdboot.Slots {
	d.t.Helper()
	s, err := sdboot.OpenOn(d.disk, d.config())
	d.must(err)
	return s
}

func (d *device) booted() ota.Boot {
	d.t.Helper()
	b, err := d.slots().Booted(d.t.Context())
	d.must(err)
	return b
}

// entries returns the names of entries. A left-over of a write that was cut has
// another ending, and is none.
func (d *device) entries() string {
	d.t.Helper()
	files, err := d.disk.ReadDir(sdboottest.Dir)
	d.must(err)
	var names []string
	for _, f := range files {
		if strings.EqualFold(filepath.Ext(f.Name()), ".conf") {
			names = append(names, f.Name())
		}
	}
	return strings.Join(names, " ")
}

func try(d *device)      { d.must(d.slots().Try(d.t.Context(), d.booted().Other)) }
func markGood(d *device) { d.must(d.slots().MarkGood(d.t.Context())) }
func power(d *device)    { d.powerOn() }

// half writes the beginning of the other slot.
func half(d *device) {
	d.t.Helper()
	sl, err := d.slots().Open(d.t.Context(), "controller", d.booted().Other)
	d.must(err)
	_, err = sl.WriteAt([]byte("half"), 0)
	d.must(err)
	d.must(sl.Close())
}

func TestSlots(t *testing.T) {
	for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll, otatest.Subset} {
		t.Run(fmt.Sprint("disk that loses power, ", rest), func(t *testing.T) {
			otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
				d := newDevice(t)
				return otatest.SlotsUnderTest{
					Slots: d.slots(), TellsFellBack: true, TellsTrial: true, Cuts: true,
					PowerCycle: func() (ota.Slots, error) {
						d.disk.PowerOff(rest, 1)
						d.disk.PowerOn()
						d.powerOn()
						return d.slots(), nil
					},
					Reopen: func() (ota.Slots, error) { d.disk.Kill(); return d.slots(), nil },
				}
			})
		})
	}
	t.Run("real files", func(t *testing.T) { otatest.TestSlots(t, realDevice) })
}

// realDevice keeps everything in real files. What systemd-boot does is done on a copy
// in memory.
func realDevice(t *testing.T) otatest.SlotsUnderTest {
	dir := t.TempDir()
	cfg := sdboottest.Backend{}.Config()
	cfg.Dir = filepath.Join(dir, "entries")
	cfg.Components = map[string][2]string{"controller": {filepath.Join(dir, "a"), filepath.Join(dir, "b")}}
	if err := sdboot.Format(cfg, "A"); err != nil {
		t.Fatal(err)
	}
	n := 0
	start := func() (ota.Slots, error) {
		d := otatest.NewDisk()
		if err := (sdboottest.Backend{}).Format(d, []byte("image")); err != nil {
			return nil, err
		}
		before, _ := d.ReadDir(sdboottest.Dir)
		for _, f := range before {
			if err := d.Remove(filepath.Join(sdboottest.Dir, f.Name())); err != nil {
				return nil, err
			}
		}
		if err := copyDir(d, sdboottest.Dir, durable.OS{}, cfg.Dir); err != nil {
			return nil, err
		}
		if err := durable.WriteFile(d, sdboottest.ImageB, []byte("image"), 0o600); err != nil {
			return nil, err
		}
		slot, err := sdboottest.Backend{}.PowerOn(d)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(os.RemoveAll(cfg.Dir), os.Mkdir(cfg.Dir, 0o755), copyDir(durable.OS{}, cfg.Dir, d, sdboottest.Dir)); err != nil {
			return nil, err
		}
		n++
		id := fmt.Sprint(n)
		cfg.Booted = func(context.Context) (string, string, error) { return slot, id, nil }
		return sdboot.Open(cfg)
	}
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	return otatest.SlotsUnderTest{
		Slots: s, TellsFellBack: true, TellsTrial: true, Cuts: true, PowerCycle: start,
		Reopen: func() (ota.Slots, error) { return sdboot.Open(cfg) },
	}
}

func copyDir(to durable.FS, toDir string, from durable.FS, fromDir string) error {
	files, err := from.ReadDir(fromDir)
	for _, f := range files {
		var b []byte
		if b, err = durable.ReadFile(from, filepath.Join(fromDir, f.Name()), 1<<20); err == nil {
			err = durable.WriteFile(to, filepath.Join(toDir, f.Name()), b, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return err
}

// Every update is cut, and the recovery too. Entries have no checksum and no second
// copy, so rot in them is left out.
func TestCuts(t *testing.T) {
	for _, sc := range otatest.Scenarios(2) {
		t.Run(sc.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := otatest.Cuts(sdboottest.Backend{}, sc, otatest.Options{Second: 499, Weak: true, Unsealed: true})
				for _, f := range got.Failures {
					t.Error(f)
				}
				t.Logf("%d cuts, %d effects", got.Cuts, got.Effects)
			})
		})
	}
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

// everyCut does act on copies of the device, cut at every effect in every way, and
// calls after with each copy that has its power again.
func (d *device) everyCut(act func(d *device), seeds uint64, after func(d *device, cut otatest.Cut)) (n int) {
	d.t.Helper()
	for at := 1; ; at++ {
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll, otatest.Subset} {
				for seed := range seeds {
					for _, agent := range []bool{false, true} {
						cut := otatest.Cut{At: at, How: how, Unit: 512, Rest: rest, Seed: seed, Agent: agent}
						c := d.clone(d.disk.Clone())
						c.disk.Arm(cut)
						if came := cutOff(func() { act(c) }); !came {
							return n
						}
						c.disk.PowerOn()
						if agent { // and then the power
							c.disk.PowerOff(rest, seed)
							c.disk.PowerOn()
						}
						n++
						after(c, cut)
					}
				}
			}
		}
	}
}

// acts are the changes of the entries, and what may boot after a cut in each of them.
var acts = []struct {
	name   string
	before []func(*device)
	act    func(*device)
	want   string // slots that the next start may pick
	then   string // and the start after that
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
	{"power on when good", []func(*device){try, power, markGood}, power, "B", "B"},
	{"mark good when good", []func(*device){try, power, markGood, power}, markGood, "B", "B"},
	{"try the way back", []func(*device){try, power, markGood}, try, "AB", "B"},
	{"write over the previous", []func(*device){try, power, markGood, power}, half, "B", "B"},
}

// Every change of the entries is cut at every effect, with FAT's renames in any part.
// There is always an entry that starts a whole slot.
func TestEntryCuts(t *testing.T) {
	n := 0
	for _, test := range acts {
		d := newDevice(t)
		for _, do := range test.before {
			do(d)
		}
		n += d.everyCut(test.act, 12, func(c *device, cut otatest.Cut) {
			got := c.powerOn()
			if !strings.Contains(test.want, got) {
				t.Errorf("%s, %v: got slot %s, want one of %s", test.name, cut, got, test.want)
			}
			if bytes.HasPrefix(c.Image(c.disk, got), []byte("half")) {
				t.Errorf("%s, %v: slot %s is half written", test.name, cut, got)
			}
			if next := c.powerOn(); !strings.Contains(test.then, next) {
				t.Errorf("%s, %v: got slot %s and then %s, want one of %s", test.name, cut, got, next, test.then)
			}
			// Whatever is left lying about, the agent clears it up.
			markGood(c)
			if names := c.entries(); strings.Contains(names, "+") {
				t.Errorf("%s, %v: got entries %q after mark good, want no counters", test.name, cut, names)
			}
			if slot := c.boot.Slot; c.powerOn() != slot {
				t.Errorf("%s, %v: got slot %s, want %s, which was marked good", test.name, cut, c.boot.Slot, slot)
			}
		})
	}
	t.Logf("%d cuts", n)
}

// Whatever fails once, the next call does it, and in between the device boots.
func TestFaults(t *testing.T) {
	for _, test := range acts {
		if test.name == "power on" || strings.HasPrefix(test.name, "power on") {
			continue
		}
		for _, did := range []bool{false, true} {
			for at := 1; ; at++ {
				d := newDevice(t)
				for _, do := range test.before {
					do(d)
				}
				c := d.clone(d.disk.Clone())
				c.disk.Arm(otatest.Cut{})
				test.act(c)
				if c.disk.Effects() < at {
					break
				}
				n := 0
				d.disk.OnEffect = func(int, string) otatest.Fault {
					if n++; n == at {
						return otatest.Fault{Err: fs.ErrInvalid, Did: did}
					}
					return otatest.Fault{}
				}
				func() { // the act calls Fatal for the error that it must get
					failed := &fatal{TB: t}
					d.t = failed
					defer func() {
						if p := recover(); p != nil && p != any(failed) {
							panic(p)
						}
						d.t = t
					}()
					test.act(d)
				}()
				d.disk.OnEffect = nil
				between := d.clone(d.disk.Clone())
				between.disk.PowerOff(otatest.DropAll, 0)
				between.disk.PowerOn()
				if got := between.powerOn(); !strings.Contains(test.want, got) {
					t.Errorf("%s, fault at effect %d: got slot %s, want one of %s", test.name, at, got, test.want)
				}
				test.act(d)
				if got, want := d.entries(), c.entries(); got != want {
					t.Errorf("%s, fault at effect %d (done %v), and again: got entries %q, want %q", test.name, at, did, got, want)
				}
			}
		}
	}
}

// fatal is a testing.TB whose Fatal ends the caller and not the test. It is a fake.
type fatal struct{ testing.TB }

func (f *fatal) Helper()               {}
func (f *fatal) Fatal(...any)          { panic(f) }
func (f *fatal) Fatalf(string, ...any) { panic(f) }

func TestConfigErrors(t *testing.T) {
	booted := func(context.Context) (string, string, error) { return "A", "1", nil }
	text := [2]sdboot.Entry{{Text: "efi /a\n"}, {Text: "linux /b\n"}}
	slots := map[string][2]string{"controller": {"a", "b"}}
	for _, test := range []struct {
		what string
		cfg  sdboot.Config
		want string
	}{
		{"empty", sdboot.Config{}, "set Dir"},
		{"no texts", sdboot.Config{Dir: "d", Components: slots, Booted: booted}, "loads nothing"},
		{"a version", sdboot.Config{Dir: "d", Entries: [2]sdboot.Entry{{Text: "efi /a\n version 7\n"}, text[1]}, Components: slots, Booted: booted}, "leave them out"},
		{"a counter in the name", sdboot.Config{Dir: "d", Entries: [2]sdboot.Entry{{Name: "a+1", Text: "efi /a"}, text[1]}, Components: slots, Booted: booted}, `"a+1"`},
		{"one name for both", sdboot.Config{Dir: "d", Entries: [2]sdboot.Entry{{Name: "x", Text: "efi /a"}, {Name: "x", Text: "efi /a"}}, Components: slots, Booted: booted}, "both slots have the entry x"},
		{"no hook", sdboot.Config{Dir: "d", Entries: text, Components: slots}, "Booted is not given"},
		{"equal slots", sdboot.Config{Dir: "d", Entries: text, Names: [2]string{"x", "x"}, Components: slots, Booted: booted}, "both slots are called x"},
		{"image over an entry", sdboot.Config{Dir: "d", Entries: text, Components: map[string][2]string{"controller": {"d/interlock-a.conf", "b"}}, Booted: booted}, "entry of slot A"},
	} {
		if _, err := sdboot.Open(test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.what, err, test.want)
		}
	}
}

func TestFormat(t *testing.T) {
	cfg := sdboottest.Backend{}.Config()
	cfg.Dir = filepath.Join(t.TempDir(), "loader", "entries")
	if err := sdboot.Format(cfg, "C"); !errors.Is(err, ota.ErrIncompatible) {
		t.Errorf("unknown slot: got %v, want ErrIncompatible", err)
	}
	if err := sdboot.Format(cfg, "B"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(cfg.Dir, "interlock-b.conf"))
	want := "title Interlock B\nefi /EFI/interlock/b.efi\noptions interlock.slot=B\nsort-key interlock\nversion 1\n"
	if string(got) != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if err := sdboot.Format(cfg, "A"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: got %v, want ErrExist", err)
	}
}

// open opens the slots with another directory of entries.
func open(d *device, dir string) (*sdboot.Slots, error) {
	cfg := d.config()
	cfg.Dir = dir
	return sdboot.OpenOn(d.disk, cfg)
}
