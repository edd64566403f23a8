//go:build linux

package pair_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

const size = 4 << 20

// partition is a loop device of size bytes, with an ext2 file system in it.
func partition(t *testing.T) string {
	t.Helper()
	losetup, mkfs := otatest.Tool(t, "losetup"), otatest.Tool(t, "mkfs.ext2")
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: block devices need root")
	}
	path := filepath.Join(t.TempDir(), "partition")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, mkfs, "-q", "-F", path)
	device := run(t, losetup, "--find", "--show", path)
	t.Cleanup(func() { run(t, losetup, "--detach", device) })
	return device
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func open(t *testing.T, device, slot string, o pair.Options) ota.Slot {
	t.Helper()
	p, err := pair.New(durable.OS{}, pair.Config{Components: map[string][2]string{"controller": {device, device + ".other"}}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Open("controller", slot, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mount(t *testing.T, device string) {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount(device, dir, "ext2", syscall.MS_RDONLY, ""); err != nil {
		t.Fatalf("mount %s: %v", device, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// TestDeviceFits: a block device takes exactly as many bytes as it has.
func TestDeviceFits(t *testing.T) {
	s := open(t, partition(t), "A", pair.Options{})
	if got := s.Capacity(); got != size {
		t.Fatalf("got capacity %d, want %d", got, size)
	}
	image := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(image)
	const chunk = 64 << 10
	for at := int64(0); at < size; at += chunk {
		if _, err := s.WriteAt(image[at:at+chunk], at); err != nil {
			t.Fatal(err)
		}
	}
	n, err := s.WriteAt(make([]byte, 1), size)
	if n != 0 || !errors.Is(err, ota.ErrInsufficientSpace) || !strings.Contains(fmt.Sprint(err), "capacity of 4194304") {
		t.Errorf("write behind the end: got %d, %v, want ErrInsufficientSpace and the capacity", n, err)
	}
	if err := s.Sync(size); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if n, err := s.ReadAt(got, 0); n != size || !bytes.Equal(got, image) {
		t.Errorf("got %d bytes, %v, want those that were written", n, err)
	}
}

// TestRunningDevice: the slot that runs, and is mounted, can be read to the last
// byte, and not be written.
func TestRunningDevice(t *testing.T) {
	device := partition(t)
	want, err := os.ReadFile(device)
	if err != nil {
		t.Fatal(err)
	}
	mount(t, device)
	s := open(t, device, "A", pair.Options{Running: true})
	got := make([]byte, size)
	if n, err := s.ReadAt(got, 0); n != size || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v, want what is on the device", n, err)
	}
	for _, off := range []int64{1, 4095, size - 100} {
		part := make([]byte, 100)
		if n, err := s.ReadAt(part, off); n != 100 || !bytes.Equal(part, want[off:off+100]) {
			t.Errorf("100 bytes at %d: got %d, %v", off, n, err)
		}
	}
	if n, err := s.WriteAt(make([]byte, 4096), 0); n != 0 || !errors.Is(err, ota.ErrFlashWrite) {
		t.Errorf("write: got %d, %v, want ErrFlashWrite", n, err)
	}
}

// TestMountedDevice: a wrong configuration, or a boot control that is wrong, must not
// overwrite what is mounted.
func TestMountedDevice(t *testing.T) {
	device := partition(t)
	before, err := os.ReadFile(device)
	if err != nil {
		t.Fatal(err)
	}
	mount(t, device)
	s := open(t, device, "A", pair.Options{})
	if n, err := s.WriteAt(make([]byte, 4096), 0); n != 0 || !errors.Is(err, syscall.EBUSY) {
		t.Errorf("write: got %d, %v, want EBUSY", n, err)
	}
	if err := s.Sync(4096); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("sync: got %v, want EBUSY", err)
	}
	if after, err := os.ReadFile(device); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the mounted device has changed (%v)", err)
	}
}

// TestKilledWriter: what WriteAt has returned for is found by the process that
// comes after one that was killed, without a Sync in between.
func TestKilledWriter(t *testing.T) {
	const chunk, chunks = 64 << 10, 5
	if device := os.Getenv("PAIR_TEST_WRITE"); device != "" {
		s := open(t, device, "A", pair.Options{})
		for i := range int64(chunks) {
			if _, err := s.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, chunk), i*chunk); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	device := partition(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriter$")
	cmd.Env = append(os.Environ(), "PAIR_TEST_WRITE="+device)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the writer ended with %v, want killed: %s", err, out)
	}
	s := open(t, device, "A", pair.Options{})
	for i := range int64(chunks) {
		got := make([]byte, chunk)
		if n, err := s.ReadAt(got, i*chunk); n != chunk || !bytes.Equal(got, bytes.Repeat([]byte{byte(i + 1)}, chunk)) {
			t.Errorf("chunk %d: got %d bytes that begin %x, %v", i, n, got[:4], err)
		}
	}
}
