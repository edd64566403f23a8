package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/internal/durable"
)

func ExampleWriteFile() {
	dir, _ := os.MkdirTemp("", "")
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "state")

	// Whatever happens in here, name holds the old content or the new, whole.
	if err := durable.WriteFile(durable.OS{}, name, []byte("new"), 0o600); err != nil {
		fmt.Println(err)
	}
	data, err := durable.ReadFile(durable.OS{}, name, 1<<10)
	fmt.Printf("%s %v\n", data, err)
	// Output: new <nil>
}

// faulty is OS with one operation that fails.
type faulty struct {
	durable.OS
	op  string
	err error
}

func (f faulty) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	file, err := f.OS.OpenFile(name, flag, perm)
	return faultyFile{file, f}, err
}

func (f faulty) Rename(from, to string) error {
	if f.op == "rename" {
		return f.err
	}
	return f.OS.Rename(from, to)
}

func (f faulty) SyncDir(name string) error {
	if f.op == "syncdir" {
		return f.err
	}
	return f.OS.SyncDir(name)
}

type faultyFile struct {
	durable.File
	f faulty
}

func (f faultyFile) WriteAt(p []byte, off int64) (int, error) {
	switch f.f.op {
	case "write":
		return 1, f.f.err
	case "short write":
		return f.File.WriteAt(p[:1], off)
	}
	return f.File.WriteAt(p, off)
}

func (f faultyFile) Sync() error {
	if f.f.op == "sync" {
		return f.f.err
	}
	return f.File.Sync()
}

func (f faultyFile) Close() error {
	err := f.File.Close()
	if f.f.op == "close" {
		return f.f.err
	}
	return err
}

func TestWriteFileErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, test := range []struct {
		op   string
		want error
		left string // content afterwards
	}{
		{"write", broken, "old"},
		{"short write", io.ErrShortWrite, "old"},
		{"sync", broken, "old"},
		{"close", broken, "old"},
		{"rename", broken, "old"},
		{"syncdir", broken, "newer"}, // it is there, but nobody can promise that it stays
	} {
		t.Run(test.op, func(t *testing.T) {
			dir := t.TempDir()
			name := filepath.Join(dir, "f")
			if err := durable.WriteFile(durable.OS{}, name, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := durable.WriteFile(faulty{op: test.op, err: broken}, name, []byte("newer"), 0o600)
			if !errors.Is(err, test.want) {
				t.Errorf("got error %v, want %v", err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), name) {
				t.Errorf("error %q does not name the file", err)
			}
			got, err := durable.ReadFile(durable.OS{}, name, 100)
			if string(got) != test.left || err != nil {
				t.Errorf("afterwards: got %q, %v, want %q", got, err, test.left)
			}
			entries, err := os.ReadDir(dir)
			if len(entries) != 1 || err != nil {
				t.Errorf("got %d files, %v, want the one", len(entries), err)
			}
		})
	}
}

func TestWriteFileCleansUp(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A left-over that is longer than the data, and one that leads elsewhere.
	for _, prepare := range []func() error{
		func() error { return os.WriteFile(name+".tmp", bytes.Repeat([]byte("x"), 100), 0o400) },
		func() error { return os.Symlink(precious, name+".tmp") },
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteFile(durable.OS{}, name, []byte("data"), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if string(got) != "data" || err != nil {
			t.Errorf("got %q, %v, want data", got, err)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("got %v, %v, want mode 0640", info, err)
		}
	}
	if got, _ := os.ReadFile(precious); string(got) != "precious" {
		t.Errorf("got %q through the link, want it untouched", got)
	}
}

func TestReadFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if _, err := durable.ReadFile(durable.OS{}, name, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: got %v, want ErrNotExist", err)
	}
	if err := os.WriteFile(name, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := durable.ReadFile(durable.OS{}, name, 10); string(got) != "0123456789" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := durable.ReadFile(durable.OS{}, name, 9); err == nil || !strings.Contains(err.Error(), "10 bytes, want at most 9") {
		t.Errorf("too long: got %v", err)
	}
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := durable.ReadFile(durable.OS{}, name, 10); len(got) != 0 || err != nil {
		t.Errorf("empty file: got %q, %v", got, err)
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := durable.MkdirAll(durable.OS{}, deep, 0o700); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(deep); err != nil || !info.IsDir() {
			t.Errorf("got %v, %v, want a directory", info, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "file/below"} {
		if err := durable.MkdirAll(durable.OS{}, filepath.Join(dir, name), 0o700); err == nil {
			t.Errorf("%s: got no error, want one", name)
		}
	}
}

func TestLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	first, err := durable.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := durable.Lock(name); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("while locked: got %v, %v, want ErrLocked", second, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	third, err := durable.Lock(name)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	third.Close()
}

// direct reads are compared with ordinary ones, on a disk and on tmpfs, which
// has no O_DIRECT.
func TestDirect(t *testing.T) {
	dirs := map[string]string{"temporary directory": t.TempDir()}
	if shm, err := os.MkdirTemp("/dev/shm", "durable"); err == nil {
		defer os.RemoveAll(shm)
		dirs["tmpfs"] = shm
	}
	for where, dir := range dirs {
		for _, size := range []int{0, 1, 511, 512, 4095, 4096, 4097, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 12345} {
			t.Run(fmt.Sprintf("%s/%d", where, size), func(t *testing.T) {
				name := filepath.Join(dir, fmt.Sprint("f", size))
				want := make([]byte, size)
				random := rand.NewChaCha8([32]byte{byte(size)})
				random.Read(want)
				w, err := durable.OS{}.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				if _, err := w.WriteAt(want, 0); err != nil {
					t.Fatal(err)
				}
				r, err := durable.OS{}.OpenFile(name, os.O_RDONLY|durable.Direct, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				if got, err := r.Size(); got != int64(size) || err != nil {
					t.Errorf("size: got %d, %v, want %d", got, err, size)
				}
				got, err := io.ReadAll(io.NewSectionReader(r, 0, int64(size)+10))
				if !bytes.Equal(got, want) || err != nil {
					t.Errorf("sequential: got %d bytes, %v, want the same %d", len(got), err, size)
				}
				// Short reads go through a buffer, long ones at a block's offset do not.
				for _, length := range []int{1, 70000, 256 << 10, 1<<20 + 100} {
					for _, off := range []int{0, 1, 4095, 4096, 5000, size / 2, size / 2 &^ 4095, size - 1, size, size + 5000} {
						if off < 0 {
							continue
						}
						p, q := make([]byte, length), make([]byte, length)
						n, err := r.ReadAt(p, int64(off))
						wantN, wantErr := bytes.NewReader(want).ReadAt(q, int64(off))
						if n != wantN || err != wantErr || !bytes.Equal(p[:n], q[:wantN]) {
							t.Errorf("%d bytes at %d: got %d, %v, want %d, %v", length, off, n, err, wantN, wantErr)
						}
					}
				}
				if size > 0 { // what is read again is read from the file again
					if _, err := w.WriteAt([]byte{^want[0]}, 0); err != nil {
						t.Fatal(err)
					}
					for _, length := range []int{1, min(size, 300<<10)} {
						got := make([]byte, length)
						if _, err := r.ReadAt(got, 0); got[0] != ^want[0] || err != nil {
							t.Errorf("%d bytes after another write: got %x, %v, want %x", length, got[0], err, ^want[0])
						}
					}
				}
				if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
					t.Error("negative offset: got no error")
				}
			})
		}
	}
}

// TestDirectIsSmall: what reads a few bytes from the medium, as boot controls do,
// needs no memory for large reads.
func TestDirectIsSmall(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := durable.ReadRange(durable.OS{}, name, 8192, 100); err != nil {
				b.Fatal(err)
			}
		}
	})
	if got := result.AllocedBytesPerOp(); got > 32<<10 {
		t.Errorf("got %d bytes of memory to read 100, want at most 32 KiB", got)
	}
}

func TestFree(t *testing.T) {
	if got, err := (durable.OS{}).Free(t.TempDir()); got <= 0 || err != nil {
		t.Errorf("got %d, %v, want more than nothing", got, err)
	}
	if _, err := (durable.OS{}).Free(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: got %v, want ErrNotExist", err)
	}
}

func TestWriteEarly(t *testing.T) {
	f, err := durable.OS{}.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 10000), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.(durable.EarlyWriter).WriteEarly(0, 10000); err != nil {
		t.Error(err)
	}
}
