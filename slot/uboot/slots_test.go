package uboot_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/uboot"
	"github.com/interlock-energy/ota/slot/uboot/uboottest"
)

// backends are the combinations that are tested in full.
var backends = []struct {
	name string
	uboottest.Backend
}{
	{"rauc", uboottest.Backend{}},
	{"rauc on FAT", uboottest.Backend{Medium: uboottest.Files}},
	{"rauc on NOR flash", uboottest.Backend{Medium: uboottest.Flash}},
	{"rauc boolean on a partition", uboottest.Backend{Flags: uboot.Boolean}},
	{"mender", uboottest.Backend{Scheme: uboot.Mender}},
	{"mender on NOR flash", uboottest.Backend{Scheme: uboot.Mender, Medium: uboottest.Flash}},
}

// device is a device on a disk of its own, with power cycles.
type device struct {
	uboottest.Backend
	disk  *otatest.Disk
	boot  otatest.Boot
	boots int
}

func newDevice(t *testing.T, b uboottest.Backend) *device {
	t.Helper()
	v := &device{Backend: b, disk: otatest.NewDisk()}
	if err := b.Format(v.disk, []byte("the factory's image")); err != nil {
		t.Fatal(err)
	}
	v.powerOn(t)
	return v
}

// powerOn starts the device, and returns the slot that the model of U-Boot picks.
func (v *device) powerOn(t *testing.T) string {
	t.Helper()
	slot, err := v.PowerOn(v.disk)
	if err != nil {
		t.Fatal(err)
	}
	v.boots++
	v.boot = otatest.Boot{Slot: slot, ID: fmt.Sprint("boot ", v.boots)}
	return slot
}

func (v *device) cycle(t *testing.T) string {
	t.Helper()
	v.disk.PowerOff(otatest.DropAll, 0)
	v.disk.PowerOn()
	return v.powerOn(t)
}

func (v *device) slots(t *testing.T) *uboot.Slots {
	t.Helper()
	s, err := uboot.OpenOn(v.disk, v.Config(v.boot))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSlots(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
				v := newDevice(t, b.Backend)
				open := func() (ota.Slots, error) {
					cfg := v.Config(v.boot)
					cfg.Attempts = 5 // the suite starts a slot that is good four times without an agent
					return uboot.OpenOn(v.disk, cfg)
				}
				s, err := open()
				must(t, err)
				return otatest.SlotsUnderTest{
					Slots:      s,
					PowerCycle: func() (ota.Slots, error) { v.cycle(t); return open() },
					Reopen:     func() (ota.Slots, error) { v.disk.Kill(); return open() },
					TellsTrial: true, TellsFellBack: true,
				}
			})
		})
	}
}

// TestSlotsOnFiles is the same on the real file system. A Disk beside it plays
// U-Boot: the environment goes there before each boot, and back after it.
func TestSlotsOnFiles(t *testing.T) {
	otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
		v := newDevice(t, uboottest.Backend{})
		dir := t.TempDir()
		env := filepath.Join(dir, "env")
		place := v.Places()
		open := func() (ota.Slots, error) {
			cfg := v.Config(v.boot)
			cfg.Components = map[string][2]string{"controller": {filepath.Join(dir, "a"), filepath.Join(dir, "b")}}
			cfg.Env = []uboot.Place{{Path: env, Offset: place[0].Offset, Size: place[0].Size}, {Path: env, Offset: place[1].Offset, Size: place[1].Size}}
			cfg.Attempts = 5
			cfg.Lock = filepath.Join(dir, "lock")
			return uboot.Open(cfg)
		}
		toFile := func() { must(t, os.WriteFile(env, v.disk.Content(place[0].Path), 0o600)) }
		toFile()
		must(t, os.WriteFile(filepath.Join(dir, "a"), []byte("the factory's image"), 0o600))
		s, err := open()
		must(t, err)
		return otatest.SlotsUnderTest{
			Slots: s,
			PowerCycle: func() (ota.Slots, error) {
				content, err := os.ReadFile(env)
				must(t, err)
				f, err := v.disk.OpenFile(place[0].Path, os.O_RDWR, 0)
				must(t, err)
				_, err = f.WriteAt(content, 0)
				must(t, err)
				v.powerOn(t)
				toFile()
				return open()
			},
			TellsTrial: true, TellsFellBack: true, Cuts: true,
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestCuts takes a whole device through updates, with its power cut at every
// effect, U-Boot's own included. All backends go through all scenarios in package
// otatest; this is what shows at once that one is broken.
func TestCuts(t *testing.T) {
	for i, b := range backends {
		for _, sc := range otatest.Scenarios(1) {
			if all := i == 0; !all && !strings.HasPrefix(sc.Name, "image ") {
				continue
			}
			t.Run(b.name+"/"+strings.ReplaceAll(sc.Name, " ", "_"), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					tally := otatest.Cuts(b.Backend, sc, otatest.Options{Step: 13})
					for _, f := range tally.Failures {
						t.Error(f)
					}
					if tally.Cuts < tally.Effects || tally.Effects < 20 {
						t.Errorf("%d cuts of %d effects: the harness has not done its work", tally.Cuts, tally.Effects)
					}
					t.Logf("%d effects, %d cuts, %d failures", tally.Effects, tally.Cuts, len(tally.Failures))
				})
			})
		}
	}
}
