//go:build unix

package evidence

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota/internal/durable"
)

// TestOnlyFiles: a link or a pipe with the name of evidence is not read.
func TestOnlyFiles(t *testing.T) {
	dir := t.TempDir()
	const file, link, pipe = "20260301T120000Z-1.0.1-00000000000000aa.jsonl", "20260301T120001Z-1.0.1-00000000000000ab.jsonl", "20260301T120002Z-1.0.1-00000000000000ac.jsonl"
	secret := filepath.Join(dir, "secret")
	for _, name := range []string{secret, filepath.Join(dir, file)} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(secret, filepath.Join(dir, link)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, pipe), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := List(durable.OS{}, dir); err != nil || len(got) != 1 || got[0] != file {
		t.Errorf("got %q, %v, want only %s", got, err, file)
	}
	if got, err := ReadFile(durable.OS{}, dir, file); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, name := range []string{link, pipe} {
		if got, err := ReadFile(durable.OS{}, dir, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %q, %v, want that there is none", name, got, err)
		}
	}
}

// TestSplit: lines stay lines, and a flood of newlines between them costs little.
func TestSplit(t *testing.T) {
	line := append(bytes.Repeat([]byte(" "), Page), '\n')
	data := slices.Concat(line, []byte("short\n"), bytes.Repeat([]byte("\n"), 1<<20), line, bytes.Repeat([]byte("\n"), 100), line, []byte("torn"))
	got := split(data)
	if !bytes.Equal(slices.Concat(got...), data) {
		t.Error("the pieces are not the file")
	}
	if lines := len(slices.DeleteFunc(slices.Clone(got), func(p []byte) bool { return !bytes.Equal(p, line) })); lines != 3 {
		t.Errorf("got %d lines, want 3", lines)
	}
	if want := 4 * (len(data)/Page + 8); len(got) > want {
		t.Errorf("got %d pieces, want at most %d", len(got), want)
	}
	if got := split([]byte("a\n\nb")); len(got) != 3 {
		t.Errorf("got %q, want 3 pieces", got)
	}
}
