package esp32_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/esp32test"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

// A unit is a chip with its flash on a disk.
type unit struct {
	t       testing.TB
	b       esp32test.Backend
	fsys    durable.FS
	path    string
	boots   int
	running string
	slots   *esp32.Slots
}

// start plays the bootloader, and opens the slots as the agent does.
func (u *unit) start() (ota.Slots, error) {
	var err error
	if u.running, err = u.b.Bootloader().Start(u.fsys, u.path); err != nil {
		return nil, err
	}
	u.boots++
	return u.open()
}

func (u *unit) open() (ota.Slots, error) {
	cfg := u.b.Config(otatest.Boot{Slot: u.running, ID: fmt.Sprint("boot ", u.boots)}, nil)
	cfg.Flash = u.path
	var err error
	u.slots, err = esp32.OpenOn(u.fsys, cfg)
	return u.slots, err
}

// underTest fills the second slot too, because slots are tried before they are written.
func (u *unit) underTest(fill func(label string, b []byte)) otatest.SlotsUnderTest {
	u.t.Helper()
	fill("ota_1", u.b.Pack(bytes.Repeat([]byte("second"), 1000)))
	s, err := u.start()
	if err != nil {
		u.t.Fatal(err)
	}
	return otatest.SlotsUnderTest{Slots: s, PowerCycle: u.start, Reopen: u.open, TellsFellBack: true, TellsTrial: true, Pack: u.b.Pack}
}

func onDisk(t testing.TB, b esp32test.Backend) (*otatest.Disk, *unit) {
	t.Helper()
	d := otatest.NewDisk()
	if err := b.Format(d, b.Pack(bytes.Repeat([]byte("first"), 1000))); err != nil {
		t.Fatal(err)
	}
	return d, &unit{t: t, b: b, fsys: d, path: esp32test.Flash}
}

// poke writes b over what is at off, whatever the medium.
func poke(t testing.TB, fsys durable.FS, path string, b []byte, off int64) {
	t.Helper()
	f, err := fsys.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if e, ok := f.(durable.Eraser); ok {
		if err := e.Erase(off, (int64(len(b))+4095)/4096*4096); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// table parses a partitions.csv.
func table(t testing.TB, csv string) *image.Table {
	t.Helper()
	tab, err := image.ParseTableCSV(strings.NewReader(csv), image.TableOffset)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func partition(t testing.TB, tab *image.Table, label string) image.Partition {
	t.Helper()
	for _, p := range tab.Partitions {
		if p.Label == label {
			return p
		}
	}
	t.Fatalf("no partition %s", label)
	return image.Partition{}
}

func TestSlots(t *testing.T) {
	for name, b := range map[string]esp32test.Backend{
		"raw flash": {}, "file": {File: true}, "block device": {Block: true},
	} {
		t.Run(name, func(t *testing.T) {
			otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
				d, u := onDisk(t, b)
				return u.underTest(func(label string, b []byte) {
					poke(t, d, u.path, b, int64(partition(t, table(t, esp32test.Small), label).Offset))
				})
			})
		})
	}
	t.Run("real file", func(t *testing.T) {
		otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
			var b esp32test.Backend
			d, _ := onDisk(t, b)
			path := filepath.Join(t.TempDir(), "flash.bin")
			if err := os.WriteFile(path, d.Content(esp32test.Flash), 0o600); err != nil {
				t.Fatal(err)
			}
			u := &unit{t: t, b: b, fsys: durable.OS{}, path: path}
			return u.underTest(func(label string, b []byte) {
				poke(t, durable.OS{}, path, b, int64(partition(t, table(t, esp32test.Small), label).Offset))
			})
		})
	})
}

// Every update of a whole device, cut in some of all ways. The matrix over all
// bootloaders takes more.
func TestCuts(t *testing.T) {
	for name, b := range map[string]esp32test.Backend{"raw flash": {}, "factory": {Table: esp32test.SmallFactory}, "block device": {Block: true}} {
		for _, sc := range otatest.Scenarios(3) {
			if name == "factory" && sc.Name == "a person goes back" {
				continue // see TestFactoryIsNoPrevious
			}
			t.Run(name+"/"+sc.Name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					got := otatest.Cuts(b, sc, otatest.Options{Step: 53})
					for _, f := range got.Failures {
						t.Error(f)
					}
					t.Logf("%d effects, %d cuts", got.Effects, got.Cuts)
				})
			})
		}
	}
}

// A whole update, there and back, in the layout of the AwsS3Ota library.
func TestAwsS3OtaLayout(t *testing.T) {
	for _, sc := range otatest.Scenarios(8) {
		t.Run(sc.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, err := sc.Start(esp32test.Backend{Table: esp32test.AwsS3Ota})
				if err != nil {
					t.Fatal(err)
				}
				if sc.Setup != nil {
					sc.Setup(d)
				}
				if err := d.Live(context.Background(), 720e9); err != nil {
					t.Fatal(err)
				}
				if len(d.Faults) > 0 || !contains(sc.Want, d.Running.Version) || d.Booted != "app0" && d.Booted != "app1" {
					t.Errorf("runs %s in %s, faults %q, want one of %q in app0 or app1", d.Running.Version, d.Booted, d.Faults, sc.Want)
				}
			})
		})
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
