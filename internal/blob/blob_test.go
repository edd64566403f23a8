package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/blob"
)

func Example() {
	dir, err := os.MkdirTemp("", "blob")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	store, err := blob.Open(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	in, err := store.Put(context.Background(), strings.NewReader("firmware"), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := store.Open(context.Background(), in.Key)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	fmt.Printf("%s %d %v\n", b, f.Size, err)
	// Output: firmware 8 <nil>
}

// files lists all files below root.
func files(t *testing.T, root string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestPutOpenDelete(t *testing.T) {
	ctx, root := t.Context(), t.TempDir()
	s, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	want := ota.Hash(sha256.Sum256(data))
	for range 2 { // the second time changes nothing
		in, err := s.Put(ctx, bytes.NewReader(data), nil)
		if err != nil {
			t.Fatal(err)
		}
		if in.Key != want || in.Size != int64(len(data)) {
			t.Errorf("Put = %v, %d bytes; want %v, %d bytes", in.Key, in.Size, want, len(data))
		}
	}
	if got := files(t, root); len(got) != 1 {
		t.Errorf("files after storing one twice: %q, want one", got)
	}

	if s, err = blob.Open(root); err != nil { // as after a restart
		t.Fatal(err)
	}
	f, err := s.Open(ctx, want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Delete(ctx, want); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read of a deleted, open file: %d bytes, %v; want all %d", len(got), err, len(data))
	}
	if _, err := s.Open(ctx, want); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Open after Delete: %v, want ErrNotFound", err)
	}
	if _, err := s.Stat(ctx, want); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Stat after Delete: %v, want ErrNotFound", err)
	}
	if err := s.Delete(ctx, want); err != nil {
		t.Errorf("second Delete: %v, want nil", err)
	}
}

func TestPutStoresNothingOnError(t *testing.T) {
	broken := errors.New("connection reset")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name  string
		ctx   context.Context
		r     io.Reader
		check blob.Check
		want  error
	}{
		{"reader breaks", t.Context(), io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)), nil, broken},
		{"check refuses", t.Context(), strings.NewReader("abc"), func(io.ReaderAt, blob.Info) error { return broken }, broken},
		{"context over", ended, strings.NewReader("abc"), nil, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			s, err := blob.Open(root)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Put(tt.ctx, tt.r, tt.check); !errors.Is(err, tt.want) {
				t.Errorf("Put: %v, want %v", err, tt.want)
			}
			if got := files(t, root); len(got) != 0 {
				t.Errorf("left behind: %q", got)
			}
		})
	}
}

func TestCheckSeesWhatIsStored(t *testing.T) {
	s, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var saw []byte
	in, err := s.Put(t.Context(), strings.NewReader("firmware"), func(f io.ReaderAt, in blob.Info) error {
		saw = make([]byte, in.Size)
		_, err := f.ReadAt(saw, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := ota.Hash(sha256.Sum256(saw)); got != in.Key {
		t.Errorf("check saw %q, stored is %v", saw, in.Key)
	}
}

func TestOpenRemovesBrokenUploads(t *testing.T) {
	root := t.TempDir()
	if _, err := blob.Open(root); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "tmp", "upload-1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := blob.Open(root); err != nil {
		t.Fatal(err)
	}
	if got := files(t, root); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}
