package grub_test

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
	"github.com/interlock-energy/ota/slot/grub"
	"github.com/interlock-energy/ota/slot/grub/grubtest"
)

// device is a disk with GRUB slots, and the boot of it.
type device struct {
	t    testing.TB
	disk *otatest.Disk
	grubtest.Backend
	boot otatest.Boot
	n    int
}

func newDevice(t testing.TB, b grubtest.Backend) *device {
	t.Helper()
	d := &device{t: t, disk: otatest.NewDisk(), Backend: b}
	if err := b.Format(d.disk, []byte("what the factory wrote")); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteRange(d.disk, grubtest.SlotB, 0, []byte("an image too")); err != nil {
		t.Fatal(err)
	}
	d.powerOn()
	return d
}

func (d *device) powerOn() string {
	d.t.Helper()
	slot, err := d.PowerOn(d.disk)
	if err != nil {
		d.t.Fatal(err)
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

func (d *device) config() grub.Config {
	cfg := d.Backend.Config()
	boot := d.boot
	cfg.Booted = func(context.Context) (string, string, error) { return boot.Slot, boot.ID, nil }
	return cfg
}

func (d *device) slots() *grub.Slots {
	d.t.Helper()
	s, err := grub.OpenOn(d.disk, d.config())
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

func (d *device) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) booted() ota.Boot {
	d.t.Helper()
	b, err := d.slots().Booted(d.t.Context())
	d.must(err)
	return b
}

func (d *device) write(name string, content []byte) {
	d.t.Helper()
	d.must(durable.WriteFile(d.disk, name, content, 0o600))
}

func TestSlots(t *testing.T) {
	for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll, otatest.Subset} {
		t.Run(fmt.Sprint("disk that loses power, ", rest), func(t *testing.T) {
			otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
				d := newDevice(t, grubtest.Backend{})
				return otatest.SlotsUnderTest{
					Slots: d.slots(), TellsFellBack: true, TellsTrial: true,
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

// realDevice keeps everything in real files. What GRUB does is done on a copy in memory.
func realDevice(t *testing.T) otatest.SlotsUnderTest {
	dir := t.TempDir()
	env := [2]string{filepath.Join(dir, "grubenv"), filepath.Join(dir, "grubenv2")}
	cfg := grub.Config{Env: env[0], Env2: env[1], Components: map[string][2]string{"controller": {filepath.Join(dir, "a"), filepath.Join(dir, "b")}}}
	if err := grub.Format(cfg, "A"); err != nil {
		t.Fatal(err)
	}
	n := 0
	start := func() (ota.Slots, error) {
		d := otatest.NewDisk()
		d.MkFAT("/boot/grub")
		for i, name := range []string{grubtest.Env, grubtest.Env2} {
			b, err := os.ReadFile(env[i])
			if err == nil {
				err = durable.WriteFile(d, name, b, 0o600)
			}
			if err != nil {
				return nil, err
			}
		}
		slot := grubtest.Script(d)[0]
		for i, name := range []string{grubtest.Env, grubtest.Env2} {
			if err := durable.WriteRange(durable.OS{}, env[i], 0, d.Content(name)); err != nil {
				return nil, err
			}
		}
		n++
		id := fmt.Sprint(n)
		cfg.Booted = func(context.Context) (string, string, error) { return slot, id, nil }
		return grub.Open(cfg)
	}
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	return otatest.SlotsUnderTest{
		Slots: s, TellsFellBack: true, TellsTrial: true, Cuts: true, PowerCycle: start,
		Reopen: func() (ota.Slots, error) { return grub.Open(cfg) },
	}
}

// Every update is cut at every effect in every way, and the recovery at some.
func TestCuts(t *testing.T) {
	for _, sc := range otatest.Scenarios(2) {
		t.Run(sc.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := otatest.Cuts(grubtest.Backend{}, sc, otatest.Options{Second: 499})
				for _, f := range got.Failures {
					t.Error(f)
				}
				t.Logf("%d cuts, %d effects", got.Cuts, got.Effects)
			})
		})
	}
}

func TestConfigErrors(t *testing.T) {
	booted := func(context.Context) (string, string, error) { return "A", "1", nil }
	slots := map[string][2]string{"controller": {"a", "b"}}
	for _, test := range []struct {
		what string
		cfg  grub.Config
		want string
	}{
		{"empty", grub.Config{}, "set Env"},
		{"no hook", grub.Config{Env: "e", Components: slots}, "Booted is not given"},
		{"one file for both blocks", grub.Config{Env: "e", Env2: "e", Components: slots, Booted: booted}, "both environment blocks"},
		{"slot in a block", grub.Config{Env: "a", Components: slots, Booted: booted}, "first environment block and slot"},
		{"no components", grub.Config{Env: "e", Booted: booted}, "no components"},
		{"name of a slot", grub.Config{Env: "e", Names: [2]string{"A", "B=1"}, Components: slots, Booted: booted}, `"B=1"`},
		{"equal names", grub.Config{Env: "e", Names: [2]string{"A", "A"}, Components: slots, Booted: booted}, "both slots are called A"},
	} {
		if _, err := grub.Open(test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.what, err, test.want)
		}
	}
}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	cfg := grub.Config{Env: filepath.Join(dir, "grubenv"), Env2: filepath.Join(dir, "grubenv2")}
	if err := grub.Format(cfg, "C"); !errors.Is(err, ota.ErrIncompatible) {
		t.Errorf("unknown slot: got %v, want ErrIncompatible", err)
	}
	if err := grub.Format(cfg, "A"); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("grubenv") // image builders take it from there
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{cfg.Env, cfg.Env2} {
		if got, err := os.ReadFile(name); !bytes.Equal(got, want) || err != nil {
			t.Errorf("%s: got\n%s, %v, want\n%s", name, got, err, want)
		}
	}
	if err := grub.Format(cfg, "B"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: got %v, want ErrExist", err)
	}
}

func TestReboot(t *testing.T) {
	d := newDevice(t, grubtest.Backend{})
	if err := d.slots().Reboot(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without Restart: got %v, want ErrUnsupported", err)
	}
	wrong := errors.New("no reset controller")
	cfg := d.config()
	cfg.Restart = func(context.Context) error { return wrong }
	s, err := grub.OpenOn(d.disk, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reboot(t.Context()); !errors.Is(err, wrong) {
		t.Errorf("got %v, want the error of Restart", err)
	}
}
