package blob_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/interlock-energy/ota/internal/blob"
)

// The disk that holds what is being received is full: that is said, nothing is
// stored, and there is room again afterwards.
func TestSpoolIsFull(t *testing.T) {
	spool := t.TempDir()
	if err := unix.Mount("tmpfs", spool, "tmpfs", 0, "size=1m"); err != nil {
		if os.Getenv("INTERLOCK_TOOLS") == "1" {
			t.Fatalf("mount a small disk: %v", err)
		}
		t.Skipf("NOT TESTED: a small disk cannot be mounted: %v", err)
	}
	defer func() {
		if err := unix.Unmount(spool, 0); err != nil {
			t.Error(err)
		}
	}()
	root := t.TempDir()
	d, err := blob.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	s, err := blob.OpenFiles(spool, &elsewhere{Store: d})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), bytes.NewReader(make([]byte, 2<<20)), nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("2 MiB on a disk of 1 MiB: %v, want %v", err, syscall.ENOSPC)
	}
	if got := files(t, root); len(got) != 0 {
		t.Errorf("stored: %q, want nothing", got)
	}
	random := make([]byte, 900<<10)
	rand.Read(random)
	if _, err := s.Put(t.Context(), bytes.NewReader(random), nil); err != nil {
		t.Errorf("900 KiB afterwards: %v", err)
	}
}
