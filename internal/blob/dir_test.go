package blob_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/blob/blobtest"
)

func TestDir(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store {
		s, err := blob.OpenDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// Two processes on one directory: each has a Dir of its own.
func TestDirOfSeveralProcesses(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store {
		root := t.TempDir()
		several := make(chan blob.Store, 4)
		for range cap(several) {
			s, err := blob.OpenDir(root)
			if err != nil {
				t.Fatal(err)
			}
			several <- s
		}
		return turns{several}
	})
}

func TestOpenDirRemovesOldBrokenUploads(t *testing.T) {
	root := t.TempDir()
	tmp := filepath.Join(root, "~tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"put-old": 25 * time.Hour, "put-new": time.Hour} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(tmp, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := blob.OpenDir(root); err != nil {
		t.Fatal(err)
	}
	if got := files(t, root); len(got) != 1 || filepath.Base(got[0]) != "put-new" {
		t.Errorf("left: %q, want put-new, which another process may be writing", got)
	}
}
