package file_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/file"
)

func Example() {
	dir, _ := os.MkdirTemp("", "")
	defer os.RemoveAll(dir)
	ctx := context.Background()
	cfg := file.Config{Dir: dir}

	// In the factory:
	if err := file.Format(cfg, map[string]io.Reader{"controller": strings.NewReader("firmware 1.0")}); err != nil {
		fmt.Println(err)
	}
	// At every start of the device:
	slots, err := file.Open(cfg)
	if err != nil {
		fmt.Println(err)
	}
	running, err := slots.PowerOn(ctx)
	fmt.Println("running", running, err)

	// What an update does:
	other, _ := slots.Open(ctx, "controller", "B")
	other.WriteAt([]byte("firmware 2.0"), 0)
	fmt.Println(other.Sync(12), slots.Try(ctx, "B"))

	running, err = slots.PowerOn(ctx)
	fmt.Println("on trial", running, err)
	running, err = slots.PowerOn(ctx) // nobody has marked it good
	fmt.Println("running", running, err)
	// Output:
	// running A <nil>
	// <nil> <nil>
	// on trial B <nil>
	// running A <nil>
}

func factory(components ...string) map[string]io.Reader {
	images := map[string]io.Reader{}
	for _, c := range append([]string{"controller"}, components...) {
		images[c] = strings.NewReader("what the factory wrote for " + c)
	}
	return images
}

// device formats and boots a device. cycle is what a power cycle does to the file system.
func device(t *testing.T, fsys durable.FS, cfg file.Config, cycle func()) otatest.SlotsUnderTest {
	t.Helper()
	if err := file.FormatOn(fsys, cfg, factory()); err != nil {
		t.Fatal(err)
	}
	boot := func() (ota.Slots, error) {
		s, err := file.OpenOn(fsys, cfg)
		if err != nil {
			return nil, err
		}
		if _, err := s.PowerOn(t.Context()); err != nil {
			return nil, err
		}
		return file.OpenOn(fsys, cfg)
	}
	slots, err := boot()
	if err != nil {
		t.Fatal(err)
	}
	return otatest.SlotsUnderTest{
		Slots: slots, TellsFellBack: true, TellsTrial: true, Cuts: true,
		PowerCycle: func() (ota.Slots, error) { cycle(); return boot() },
		Reopen:     func() (ota.Slots, error) { return file.OpenOn(fsys, cfg) },
	}
}

func TestSlots(t *testing.T) {
	t.Run("real files", func(t *testing.T) {
		otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
			return device(t, durable.OS{}, file.Config{Dir: t.TempDir()}, func() {})
		})
	})
	for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll, otatest.Subset} {
		t.Run(fmt.Sprint("disk that loses power, ", rest), func(t *testing.T) {
			otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
				d := otatest.NewDisk()
				s := device(t, d, file.Config{Dir: "/device"}, func() { d.PowerOff(rest, 1); d.PowerOn() })
				reopen := s.Reopen
				s.Reopen = func() (ota.Slots, error) { d.Kill(); return reopen() }
				return s
			})
		})
	}
	t.Run("partitions", func(t *testing.T) {
		otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
			dir := t.TempDir()
			a, b, boot := partition(t, dir, "a"), partition(t, dir, "b"), partition(t, dir, "boot")
			cfg := file.Config{BootFile: boot, Components: map[string][2]string{"controller": {a, b}}}
			s := device(t, durable.OS{}, cfg, func() {})
			info, err := os.Stat(b)
			if err != nil {
				t.Fatal(err)
			}
			s.Cuts = info.Mode().IsRegular()
			return s
		})
	})
}

// partition returns a block device of 1 MiB, or a file where none can be had.
func partition(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		t.Logf("%s is a plain file of 1 MiB, because there is no loop device here: %v %s", name, err, out)
		return path
	}
	device := strings.TrimSpace(string(out))
	t.Logf("%s is the loop block device %s", name, device)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v %s", device, err, out)
		}
	})
	return device
}

func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	one := filepath.Join(dir, "one")
	if err := os.WriteFile(one, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(one, link); err != nil {
		t.Fatal(err)
	}
	slots := func(a, b string) map[string][2]string { return map[string][2]string{"controller": {a, b}} }
	for _, test := range []struct {
		what string
		cfg  file.Config
		want string
	}{
		{"empty", file.Config{}, "no directory"},
		{"no directory for the boot file", file.Config{Components: slots("a", "b")}, "no directory"},
		{"slot without a place", file.Config{Dir: dir, Components: slots("a", "")}, "slot B of component controller has no place"},
		{"one file for both slots", file.Config{Dir: dir, Components: slots("x/../a", "a")}, "are both in"},
		{"slot over the boot file", file.Config{Dir: dir, Components: slots("a", filepath.Join(dir, "boot"))}, "boot control and slot B"},
		{"link to the other slot", file.Config{Dir: dir, Components: slots(one, link)}, "are the same file"},
		{"component name", file.Config{Dir: dir, Components: map[string][2]string{"../x": {"a", "b"}}}, "component"},
		{"negative capacity", file.Config{Dir: dir, Capacity: -1}, "-1"},
	} {
		if _, err := file.Open(test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.what, err, test.want)
		}
	}
}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	cfg := file.Config{Dir: dir}
	if err := file.Format(cfg, nil); err == nil || !strings.Contains(err.Error(), "no image for component controller") {
		t.Errorf("without an image: got %v", err)
	}
	if err := file.Format(cfg, factory("battery")); !errors.Is(err, ota.ErrIncompatible) {
		t.Errorf("image for another component: got %v, want ErrIncompatible", err)
	}
	if entries, err := os.ReadDir(dir); len(entries) != 0 || err != nil {
		t.Errorf("after errors: got %d entries, %v, want none", len(entries), err)
	}
	if err := file.Format(cfg, factory()); err != nil {
		t.Fatal(err)
	}
	if err := file.Format(cfg, factory()); !errors.Is(err, os.ErrExist) {
		t.Errorf("again: got %v, want ErrExist", err)
	}
	s, err := file.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Booted(t.Context()); err == nil || !strings.Contains(err.Error(), "PowerOn") {
		t.Errorf("before the first PowerOn: got %v, want an error that says so", err)
	}
	if err := s.Reboot(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("reboot without Restart: got %v, want ErrUnsupported", err)
	}
}

func TestNotFormatted(t *testing.T) {
	s, err := file.Open(file.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	_, bootedErr := s.Booted(t.Context())
	_, powerOnErr := s.PowerOn(t.Context())
	for what, err := range map[string]error{"booted": bootedErr, "try": s.Try(t.Context(), "B"), "mark good": s.MarkGood(t.Context()), "power on": powerOnErr} {
		if err == nil || !strings.Contains(err.Error(), "format the device") {
			t.Errorf("%s: got %v, want an error that says what to do", what, err)
		}
	}
}

func TestSeveralComponents(t *testing.T) {
	dir := t.TempDir()
	cfg := file.Config{Dir: dir, Components: map[string][2]string{
		"controller": {filepath.Join(dir, "c.a"), filepath.Join(dir, "c.b")},
		"battery":    {filepath.Join(dir, "b.a"), filepath.Join(dir, "b.b")},
	}}
	if err := file.Format(cfg, factory("battery")); err != nil {
		t.Fatal(err)
	}
	s, err := file.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"controller", "battery"} {
		sl, err := s.Open(t.Context(), c, "B")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sl.WriteAt([]byte(c), 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(sl.Sync(int64(len(c))), sl.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{"c.a": "what the factory wrote for controller", "c.b": "controller", "b.b": "battery"} {
		if got, err := os.ReadFile(filepath.Join(dir, path)); string(got) != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
}

// A hook tells what runs, where the bootloader does so in its own way.
func TestBootedHook(t *testing.T) {
	dir := t.TempDir()
	slot := "B"
	cfg := file.Config{Dir: dir, Booted: func(context.Context) (string, string, error) { return slot, "5f0c", nil }}
	if err := file.Format(cfg, factory()); err != nil {
		t.Fatal(err)
	}
	s, err := file.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Booted(t.Context()); got != (ota.Boot{Slot: "B", Other: "A", ID: "5f0c", Trial: true}) || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := s.MarkGood(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := s.PowerOn(t.Context()); got != "B" || err != nil {
		t.Errorf("after MarkGood of what the hook said: got %s, %v, want B", got, err)
	}
	slot = "C"
	if _, err := s.Booted(t.Context()); err == nil {
		t.Error("unknown slot: got no error")
	}
	slot = "/"
	if err := s.MarkGood(t.Context()); err == nil {
		t.Error("mark an unknown slot good: got no error")
	}
}

func diskDevice(t *testing.T) (*otatest.Disk, *file.Slots) {
	t.Helper()
	d := otatest.NewDisk()
	cfg := file.Config{Dir: "/device"}
	if err := file.FormatOn(d, cfg, factory()); err != nil {
		t.Fatal(err)
	}
	s, err := file.OpenOn(d, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d, s
}

func openB(t *testing.T, s *file.Slots) ota.Slot {
	t.Helper()
	sl, err := s.Open(t.Context(), "controller", "B")
	if err != nil {
		t.Fatal(err)
	}
	return sl
}

func TestFullMedium(t *testing.T) {
	d, s := diskDevice(t)
	sl := openB(t, s)
	capacity := sl.Capacity()
	free, err := d.Free("/device")
	if capacity != free || err != nil {
		t.Errorf("got capacity %d, want the %d that are free", capacity, free)
	}
	if _, err := sl.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	d.Capacity = 1 // somebody else has filled it
	n, err := sl.WriteAt(make([]byte, 4096), 4096)
	if n != 0 || ota.CodeOf(err) != ota.ErrInsufficientSpace || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %d, %v, want ErrInsufficientSpace", n, err)
	}
	if !strings.Contains(err.Error(), "write slot B of controller at 4096") {
		t.Errorf("error %q does not say what was being done", err)
	}
}

func TestFlashErrors(t *testing.T) {
	for _, op := range []string{"create /device/b/", "write /device/b/", "sync /device/b/", "syncdir /device/b", "truncate /device/b/"} {
		t.Run(op, func(t *testing.T) {
			d, s := diskDevice(t)
			sl := openB(t, s)
			d.OnEffect = func(_ int, effect string) otatest.Fault {
				if strings.HasPrefix(effect, op) {
					return otatest.Fault{Err: syscall.EIO}
				}
				return otatest.Fault{}
			}
			_, err := sl.WriteAt(make([]byte, 4096), 0)
			if err == nil {
				err = sl.Sync(4000)
			}
			if ota.CodeOf(err) != ota.ErrFlashWrite || !errors.Is(err, syscall.EIO) {
				t.Errorf("got %v, want ErrFlashWrite", err)
			}
		})
	}
	t.Run("read", func(t *testing.T) {
		d, s := diskDevice(t)
		sl := openB(t, s)
		if _, err := sl.WriteAt(make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
		d.OnRead = func(string, int64, []byte) error { return syscall.EIO }
		if _, err := sl.ReadAt(make([]byte, 10), 0); ota.CodeOf(err) != ota.ErrFlashWrite {
			t.Errorf("got %v, want ErrFlashWrite", err)
		}
	})
}

// After a Sync that failed, the page cache shows bytes that will never reach the
// medium. No later Sync may say that they have, and reading must not show them.
func TestSyncAfterFailedSync(t *testing.T) {
	d, s := diskDevice(t)
	sl := openB(t, s)
	if _, err := sl.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := sl.Sync(4096); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 4096)
	if _, err := sl.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	d.OnEffect = func(int, string) otatest.Fault { return otatest.Fault{Err: syscall.EIO} }
	if err := sl.Sync(4096); err == nil {
		t.Fatal("got no error from a sync that fails")
	}
	d.OnEffect = nil
	if err := sl.Sync(4096); ota.CodeOf(err) != ota.ErrFlashWrite {
		t.Errorf("second sync: got %v, want ErrFlashWrite", err)
	}
	if _, err := sl.WriteAt(data, 0); ota.CodeOf(err) != ota.ErrFlashWrite {
		t.Errorf("write: got %v, want ErrFlashWrite", err)
	}
	again := openB(t, s)
	got := make([]byte, 4096)
	if _, err := again.ReadAt(got, 0); bytes.Equal(got, data) || err != nil {
		t.Errorf("got the cache's bytes (%v), want the medium's", err)
	}
	if _, err := again.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := again.Sync(4096); err != nil {
		t.Fatal(err)
	}
	d.PowerOff(otatest.DropAll, 0)
	d.PowerOn()
	if got := d.Content("/device/b/controller.img"); !bytes.Equal(got, data) {
		t.Error("what was written again and synced is gone after a power cut")
	}
}

// A slot that is open over a restart in one process may be the running one by now.
func TestSlotOverPowerOn(t *testing.T) {
	_, s := diskDevice(t)
	sl := openB(t, s)
	if _, err := sl.WriteAt(make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Try(t.Context(), "B"); err != nil {
		t.Fatal(err)
	}
	if slot, err := s.PowerOn(t.Context()); slot != "B" || err != nil {
		t.Fatalf("got %s, %v, want B", slot, err)
	}
	if _, err := sl.WriteAt(make([]byte, 10), 0); ota.CodeOf(err) != ota.ErrFlashWrite {
		t.Errorf("write: got %v, want ErrFlashWrite", err)
	}
	if err := sl.Sync(0); ota.CodeOf(err) != ota.ErrFlashWrite {
		t.Errorf("sync: got %v, want ErrFlashWrite", err)
	}
}

func TestSyncOfMoreThanWritten(t *testing.T) {
	_, s := diskDevice(t)
	sl := openB(t, s)
	if err := sl.Sync(1); err == nil {
		t.Error("nothing written: got no error")
	}
	if _, err := sl.WriteAt(make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	if err := sl.Sync(11); ota.CodeOf(err) != ota.ErrFlashWrite || !strings.Contains(err.Error(), "only 10 bytes") {
		t.Errorf("got %v, want ErrFlashWrite with the bytes there are", err)
	}
}
