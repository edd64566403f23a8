package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/blob"
)

// elsewhere is a store whose objects are no files of this machine, and which
// breaks as often as it is told. It is a fake: a directory below.
type elsewhere struct {
	blob.Store
	cuts  int     // bodies that end early
	short int64   // bytes less than an object has
	asked []int64 // sizes of the ranges that were asked for
}

func (e *elsewhere) Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, blob.Object, error) {
	e.asked = append(e.asked, n)
	r, o, err := e.Store.Open(ctx, key, offset, n)
	o.Size -= e.short
	if err == nil && e.cuts > 0 {
		e.cuts--
		return cut{io.LimitReader(r, n/2), r}, o, nil
	}
	return r, o, err
}

type cut struct {
	io.Reader
	io.Closer
}

func openElsewhere(t *testing.T) (*blob.Files, *elsewhere, string) {
	t.Helper()
	d, err := blob.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e, spool := &elsewhere{Store: d}, filepath.Join(t.TempDir(), "spool")
	s, err := blob.OpenFiles(spool, e)
	if err != nil {
		t.Fatal(err)
	}
	return s, e, spool
}

// A file elsewhere is read in pieces of a bounded size, from anywhere, once.
func TestFileElsewhere(t *testing.T) {
	s, e, spool := openElsewhere(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 320<<10) // 5 MiB
	in, err := s.Put(t.Context(), bytes.NewReader(data), nil)
	if err != nil {
		t.Fatal(err)
	}
	if left := files(t, spool); len(left) != 0 {
		t.Errorf("in the spool: %q, want nothing", left)
	}
	f, err := s.Open(t.Context(), in.Key)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) || f.Size != int64(len(data)) {
		t.Errorf("got %d of %d bytes, %v, want %d", len(got), f.Size, err, len(data))
	}
	sum := int64(0)
	for _, n := range e.asked {
		if sum += n; n > 1<<20 {
			t.Errorf("asked for %d bytes at a time, want 1 MiB at most", n)
		}
	}
	if sum != int64(len(data)) || len(e.asked) > 12 {
		t.Errorf("asked for %d bytes in %d pieces, want %d in a few", sum, len(e.asked), len(data))
	}
	e.asked = nil
	for _, at := range []int64{int64(len(data)) - 10, 0, 3_000_001, 3_000_005} {
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		var got [10]byte
		if _, err := io.ReadFull(f, got[:]); err != nil || !bytes.Equal(got[:], data[at:at+10]) {
			t.Errorf("at %d: got %q, %v, want %q", at, got, err, data[at:at+10])
		}
	}
	for _, n := range e.asked {
		if n > 64<<10 {
			t.Errorf("asked for %d bytes after a jump, want 64 KiB at most", n)
		}
	}
	if end, err := f.Seek(0, io.SeekEnd); end != int64(len(data)) || err != nil {
		t.Errorf("the end is %d, %v", end, err)
	}
	if n, err := f.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v, want io.EOF", n, err)
	}
	if _, err := f.Seek(-1, io.SeekStart); err == nil {
		t.Error("seek before the start: no error")
	}
}

func TestFileElsewhereBreaks(t *testing.T) {
	s, e, _ := openElsewhere(t)
	data := bytes.Repeat([]byte("x"), 200_000)
	in, err := s.Put(t.Context(), bytes.NewReader(data), nil)
	if err != nil {
		t.Fatal(err)
	}
	read := func(ctx context.Context) ([]byte, error) {
		f, err := s.Open(ctx, in.Key)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(f)
	}
	e.cuts = 2
	if got, err := read(t.Context()); err != nil || !bytes.Equal(got, data) {
		t.Errorf("with two cuts: %d bytes, %v", len(got), err)
	}
	e.cuts = 100
	if got, err := read(t.Context()); !errors.Is(err, blob.ErrUnavailable) || len(got) != 0 {
		t.Errorf("with cuts only: %d bytes, %v, want ErrUnavailable", len(got), err)
	}
	e.cuts, e.short = 0, 1
	if _, err := read(t.Context()); !errors.Is(err, blob.ErrUnavailable) {
		t.Errorf("of another size than a moment ago: %v, want ErrUnavailable", err)
	}
	e.short = 0
	ctx, cancel := context.WithCancel(t.Context())
	f, err := s.Open(ctx, in.Key)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	e.cuts = 100
	if _, err := f.Read(make([]byte, 1)); err == nil || errors.Is(err, blob.ErrUnavailable) {
		t.Errorf("given up by the reader: %v, want an error that blames nobody", err)
	}
	if err := s.Delete(t.Context(), in.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), in.Key); !errors.Is(err, blob.ErrNotFound) || errors.Is(err, blob.ErrUnavailable) {
		t.Errorf("deleted: %v, want ErrNotFound only", err)
	}
}

// In a directory a file gets its place without a copy: it is the spooled one.
func TestFilesInADirectoryAreNotCopied(t *testing.T) {
	root := t.TempDir()
	s, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	var spooled os.FileInfo
	in, err := s.Put(t.Context(), strings.NewReader("firmware"), func(io.ReaderAt, blob.Info) error {
		names := files(t, filepath.Join(root, "tmp"))
		if len(names) != 1 {
			t.Fatalf("in the spool: %q, want one file", names)
		}
		var err error
		spooled, err = os.Stat(names[0])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	h := in.Key.String()
	stored, err := os.Stat(filepath.Join(root, h[:2], h))
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(spooled, stored) {
		t.Error("the stored file is another than the spooled one")
	}
}

// The directory of a server from before there were stores.
func TestOldDirectory(t *testing.T) {
	root := t.TempDir()
	key := ota.Hash(sha256.Sum256([]byte("firmware")))
	h := key.String()
	for _, dir := range []string{"tmp", h[:2]} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, h[:2], h), []byte("firmware"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Open(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "firmware" {
		t.Errorf("got %q, %v", b, err)
	}
	if _, ok := f.ReadSeekCloser.(*os.File); !ok {
		t.Errorf("it is a %T, want a file, which the kernel can send", f.ReadSeekCloser)
	}
	if s.HasURLs() {
		t.Error("a directory has no URLs")
	}
	if _, err := s.URL(t.Context(), key, 1); !errors.Is(err, blob.ErrNoURL) {
		t.Errorf("URL: %v, want ErrNoURL", err)
	}
}
