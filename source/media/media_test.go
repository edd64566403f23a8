package media_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/media"
)

func put(t testing.TB, b []byte, path ...string) string {
	t.Helper()
	name := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func config(path string, verify ota.Verify) media.Config {
	return media.Config{Path: path, Product: "bess", Hardware: "rev2", Version: "1.0.0", Verify: verify, Log: slog.New(slog.DiscardHandler)}
}

func newSource(t testing.TB, c media.Config) *media.Source {
	t.Helper()
	s, err := media.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	for name, where := range map[string]struct{ path, file string }{
		"file":      {"bess_update.bin", "bess_update.bin"},
		"directory": {".", "firmware/update.bundle"},
		"pattern":   {"*", "sda1/update.BUNDLE"},
	} {
		t.Run(name, func(t *testing.T) {
			otatest.TestSource(t, func(t *testing.T) otatest.SourceUnderTest {
				dir := t.TempDir()
				return otatest.SourceUnderTest{
					New: func(t *testing.T, r *otatest.SignedRelease) ota.Source {
						verify := func([]byte) (*ota.Manifest, error) { return nil, ota.ErrValidation }
						if r != nil {
							verify = r.Verify
							put(t, r.Bundle, dir, where.file)
						}
						return newSource(t, config(filepath.Join(dir, where.path), verify))
					},
					Break: func(t *testing.T) {
						if err := os.RemoveAll(dir); err != nil {
							t.Fatal(err)
						}
					},
				}
			})
		})
	}
}

func TestNewestThatFits(t *testing.T) {
	key := otatest.NewSigningKey(t)
	old := key.Release(t, "1.1.0", 5000)
	mid := key.Release(t, "1.9.0", 5000)
	newest := key.Release(t, "1.10.0", 5000)
	running := key.Release(t, "1.0.0", 5000)
	otherProduct := key.Sign(t, &ota.Manifest{Product: "pump", Version: "9.0.0"}, 5000)
	otherHardware := key.Sign(t, &ota.Manifest{Product: "bess", Version: "9.0.0", Hardware: []string{"rev1"}}, 5000)
	thisHardware := key.Sign(t, &ota.Manifest{Product: "bess", Version: "1.9.5", Hardware: []string{"rev1", "rev2"}}, 5000)
	foreign := otatest.NewSigningKey(t).Release(t, "9.0.0", 5000)

	for _, tt := range []struct {
		name  string
		files map[string][]byte
		want  *otatest.SignedRelease // nil: an error
		code  ota.ErrorCode
		say   []string // parts of the error
	}{
		{"empty medium", nil, nil, ota.ErrNoUpdate, nil},
		{"numbers, not letters, decide", map[string][]byte{"a.bundle": mid.Bundle, "b.bundle": newest.Bundle, "c.bundle": old.Bundle}, newest, 0, nil},
		{"two media", map[string][]byte{"sda1/x.bundle": newest.Bundle, "sdb1/x.bundle": mid.Bundle}, newest, 0, nil},
		{"two media, other way round", map[string][]byte{"sda1/x.bundle": mid.Bundle, "sdb1/x.bundle": newest.Bundle}, newest, 0, nil},
		{"other products and hardware are passed over", map[string][]byte{"a.bundle": otherProduct.Bundle, "b.bundle": otherHardware.Bundle, "c.bundle": old.Bundle}, old, 0, nil},
		{"a release for several revisions", map[string][]byte{"a.bundle": thisHardware.Bundle, "b.bundle": mid.Bundle}, thisHardware, 0, nil},
		{"a wrong signature is passed over", map[string][]byte{"a.bundle": foreign.Bundle, "b.bundle": old.Bundle}, old, 0, nil},
		{"a file cut short is passed over", map[string][]byte{"a.bundle": newest.Bundle[:len(newest.Bundle)-1], "b.bundle": old.Bundle}, old, 0, nil},
		{"a file too long is passed over", map[string][]byte{"a.bundle": append(bytes.Clone(newest.Bundle), 0), "b.bundle": old.Bundle}, old, 0, nil},
		{"only the running version", map[string][]byte{"a.bundle": running.Bundle}, nil, ota.ErrNoUpdate, []string{"1.0.0 is running"}},
		{"only another build of the running version", map[string][]byte{"a.bundle": key.Release(t, "1.0.0+b7", 5000).Bundle}, nil, ota.ErrNoUpdate, []string{"1.0.0+b7 is running"}},
		{"only a wrong signature", map[string][]byte{"a.bundle": foreign.Bundle}, nil, ota.ErrValidation, []string{"a.bundle"}},
		{"only half a file", map[string][]byte{"a.bundle": old.Bundle[:2000]}, nil, ota.ErrValidation, []string{"a.bundle", "2000 bytes"}},
		{"only an empty file", map[string][]byte{"a.bundle": nil}, nil, ota.ErrValidation, []string{"a.bundle", "0 bytes"}},
		{"only another product", map[string][]byte{"a.bundle": otherProduct.Bundle}, nil, ota.ErrIncompatible, []string{"a.bundle", "pump", "bess"}},
		{"all that is wrong is named", map[string][]byte{"a.bundle": otherProduct.Bundle, "b.bundle": foreign.Bundle, "c.bundle": otherHardware.Bundle}, nil, ota.ErrValidation,
			[]string{"a.bundle", "pump", "b.bundle", "c.bundle", "rev1"}},
		{"other extensions are not looked at", map[string][]byte{"a.bin": newest.Bundle, "bundle": newest.Bundle}, nil, ota.ErrNoUpdate, nil},
		{"hidden files are not looked at", map[string][]byte{"._a.bundle": newest.Bundle, ".Trashes/a.bundle": newest.Bundle}, nil, ota.ErrNoUpdate, nil},
		{"three folders deep", map[string][]byte{"1/2/a.bundle": newest.Bundle}, newest, 0, nil},
		{"four folders deep is not looked at", map[string][]byte{"1/2/3/a.bundle": newest.Bundle}, nil, ota.ErrNoUpdate, nil},
		{"strange names", map[string][]byte{"a\nb\x1b[31m\xff\xfe'\".bundle": newest.Bundle}, newest, 0, nil},
		{"strange names are quoted", map[string][]byte{"a\nb\x1b[31m\xff.bundle": nil}, nil, ota.ErrValidation, []string{`a\nb\x1b[31m\xff.bundle`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, b := range tt.files {
				put(t, b, dir, name)
			}
			got, err := newSource(t, config(dir, old.Verify)).Latest(t.Context())
			if tt.want != nil {
				if err != nil || !bytes.Equal(got, tt.want.Signed) {
					t.Fatalf("got %.80q, %v, want %s", got, err, tt.want.Manifest.Version)
				}
				return
			}
			if code := ota.CodeOf(err); code != tt.code {
				t.Errorf("got %v (%s), want %s", err, code.Name(), tt.code.Name())
			}
			for _, say := range tt.say {
				if !strings.Contains(fmt.Sprint(err), say) {
					t.Errorf("error %q does not say %q", err, say)
				}
			}
		})
	}
}

// The same version in two different releases: the later made one wins, whatever
// the order of files.
func TestTiesAreDeterministic(t *testing.T) {
	key := otatest.NewSigningKey(t)
	first := key.Release(t, "1.1.0", 5000)
	m := *first.Manifest
	m.Created = m.Created.AddDate(0, 0, 1)
	later := key.Sign(t, &m, 5000)
	for _, names := range [][2]string{{"a.bundle", "b.bundle"}, {"b.bundle", "a.bundle"}} {
		dir := t.TempDir()
		put(t, first.Bundle, dir, names[0])
		put(t, later.Bundle, dir, names[1])
		got, err := newSource(t, config(dir, first.Verify)).Latest(t.Context())
		if err != nil || !bytes.Equal(got, later.Signed) {
			t.Errorf("later one in %s: got %.80q, %v, want the later release", names[1], got, err)
		}
	}
}

func TestHostileMedia(t *testing.T) {
	key := otatest.NewSigningKey(t)
	r := key.Release(t, "1.1.0", 5000)
	latest := func(t *testing.T, path string) ([]byte, error) {
		t.Helper()
		return newSource(t, config(path, r.Verify)).Latest(t.Context())
	}
	mkfifo := func(t *testing.T, path ...string) string {
		t.Helper()
		name := filepath.Join(path...)
		if err := syscall.Mkfifo(name, 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	symlink := func(t *testing.T, to, name string) {
		t.Helper()
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("FIFO among files is ignored", func(t *testing.T) {
		dir := t.TempDir()
		mkfifo(t, dir, "a.bundle")
		put(t, r.Bundle, dir, "b.bundle")
		if _, err := latest(t, dir); err != nil {
			t.Error(err)
		}
	})
	t.Run("FIFO as the configured file", func(t *testing.T) {
		_, err := latest(t, mkfifo(t, t.TempDir(), "update.bin"))
		if ota.CodeOf(err) != ota.ErrValidation || !strings.Contains(err.Error(), "neither a file nor a directory") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("device as the configured file", func(t *testing.T) {
		if _, err := latest(t, "/dev/zero"); ota.CodeOf(err) != ota.ErrValidation {
			t.Errorf("got %v", err)
		}
	})
	t.Run("symbolic links are not followed", func(t *testing.T) {
		outside, dir := t.TempDir(), t.TempDir()
		file := put(t, r.Bundle, outside, "x.bundle")
		symlink(t, file, filepath.Join(dir, "a.bundle"))
		symlink(t, outside, filepath.Join(dir, "folder"))
		symlink(t, dir, filepath.Join(dir, "loop"))
		if _, err := latest(t, dir); !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("got %v, want no update", err)
		}
	})
	t.Run("a configured file that is a link out of the medium", func(t *testing.T) {
		dir := t.TempDir()
		symlink(t, put(t, r.Bundle, t.TempDir(), "x.bundle"), filepath.Join(dir, "update.bin"))
		if _, err := latest(t, filepath.Join(dir, "update.bin")); err == nil || !strings.Contains(err.Error(), "escapes") {
			t.Errorf("got %v, want an error that it escapes", err)
		}
	})
	t.Run("a link that a pattern matches", func(t *testing.T) {
		outside, dir := t.TempDir(), t.TempDir()
		put(t, r.Bundle, outside, "x.bundle")
		symlink(t, outside, filepath.Join(dir, "sda1"))
		if _, err := latest(t, dir+"/*"); !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("got %v, want no update", err)
		}
	})
	t.Run("huge folder", func(t *testing.T) {
		dir := t.TempDir()
		for i := range 1100 {
			put(t, nil, dir, fmt.Sprintf("%04d.txt", i))
		}
		if _, err := latest(t, dir); ota.CodeOf(err) != ota.ErrValidation || !strings.Contains(err.Error(), "more than 1000 files") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("many folders", func(t *testing.T) {
		dir := t.TempDir()
		for i := range 1100 {
			if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(i%33), fmt.Sprint(i)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := latest(t, dir); err == nil || strings.Count(err.Error(), "more than 1000 files") != 1 {
			t.Errorf("got %v, want the limit named once", err)
		}
	})
	t.Run("many bundles", func(t *testing.T) {
		dir := t.TempDir()
		for i := range 70 {
			put(t, nil, dir, fmt.Sprintf("%03d.bundle", i))
		}
		if _, err := latest(t, dir); err == nil || !strings.Contains(err.Error(), "more than 64 bundles") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a lying envelope length costs no memory", func(t *testing.T) {
		dir := t.TempDir()
		put(t, []byte("\x89ILK\r\n\x1a\n\x00\xff\xff\xff{}"), dir, "a.bundle")
		if _, err := latest(t, dir); ota.CodeOf(err) != ota.ErrValidation {
			t.Errorf("got %v", err)
		}
	})
}

func TestFileReplacedWhileOpen(t *testing.T) {
	key := otatest.NewSigningKey(t)
	r, other := key.Release(t, "1.1.0", 200<<10), key.Release(t, "1.2.0", 200<<10)
	dir := t.TempDir()
	name := put(t, r.Bundle, dir, "a.bundle")
	src := newSource(t, config(dir, r.Verify))
	if _, err := src.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	im := &r.Manifest.Images[0]
	rc, err := src.Open(t.Context(), r.Manifest, im, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if err := os.Rename(put(t, other.Bundle, dir, "b.tmp"), name); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(rc)
	if err != nil || !bytes.Equal(got, r.Images["controller"]) {
		t.Errorf("reading on: got %d bytes, %v, want the old file's %d", len(got), err, im.Size)
	}
	if rc, err := src.Open(t.Context(), r.Manifest, im, 0); err == nil {
		rc.Close()
		t.Error("opening again: no error, although the file has another release now")
	} else if ota.CodeOf(err) != ota.ErrConnectivity || !strings.Contains(err.Error(), "1.2.0") {
		t.Errorf("opening again: %v", err)
	}
	put(t, r.Bundle, dir, "sub", "c.bundle") // it turns up in another place
	rc2, err := src.Open(t.Context(), r.Manifest, im, 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer rc2.Close()
	if got, err := io.ReadAll(rc2); err != nil || !bytes.Equal(got, r.Images["controller"][4096:]) {
		t.Errorf("from the other place: got %d bytes, %v", len(got), err)
	}
}

// A stick that is pulled looks like a file that ends early, or fails to read.
func TestMediumGoneWhileReading(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 4<<20)
	dir := t.TempDir()
	name := put(t, r.Bundle, dir, "a.bundle")
	src := newSource(t, config(dir, r.Verify))
	im := &r.Manifest.Images[0]
	rc, err := src.Open(t.Context(), r.Manifest, im, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err := io.ReadFull(rc, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 2<<20); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(rc)
	if !errors.Is(err, ota.ErrConnectivity) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reading on: got %v, want %v and %v", err, ota.ErrConnectivity, io.ErrUnexpectedEOF)
	}
	again, err := src.Open(t.Context(), r.Manifest, im, 0)
	if err == nil {
		t.Error("opened the half that is left")
		again.Close()
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if err := rc.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := rc.Read(make([]byte, 1)); ota.CodeOf(err) != ota.ErrConnectivity {
		t.Errorf("reading after Close: got %v", err)
	}
}

// TestSeek: an image on a medium can be read again, from any place.
func TestSeek(t *testing.T) {
	dir := t.TempDir()
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 2_000_000)
	put(t, r.Bundle, dir, "a.bundle")
	im := &r.Manifest.Images[0]
	rc, err := newSource(t, config(dir, r.Verify)).Open(t.Context(), r.Manifest, im, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	whole := r.Images[im.Component]
	s := rc.(io.ReadSeeker)
	for _, step := range []struct {
		offset int64
		whence int
		at     int
	}{{0, io.SeekCurrent, 100}, {1_300_000, io.SeekStart, 1_300_000}, {-1_200_000, io.SeekCurrent, 100_010}, {-5, io.SeekEnd, 1_999_995}, {0, io.SeekStart, 0}} {
		at, err := s.Seek(step.offset, step.whence)
		if err != nil || at != int64(step.at) {
			t.Fatalf("seek %d from %d: got %d, %v, want %d", step.offset, step.whence, at, err, step.at)
		}
		got := make([]byte, 10)
		n, err := io.ReadFull(s, got)
		if want := whole[step.at:min(step.at+10, len(whole))]; !bytes.Equal(got[:n], want) {
			t.Errorf("at %d: got %x, %v, want %x", at, got[:n], err, want)
		}
	}
	for _, offset := range []int64{-1, 2_000_001} {
		if at, err := s.Seek(offset, io.SeekStart); err == nil {
			t.Errorf("seek to %d: got %d, want an error", offset, at)
		}
	}
}

// What hangs here is the verifier; the kernel hanging in a read looks the same.
func TestHangingMedium(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	dir := t.TempDir()
	put(t, r.Bundle, dir, "a.bundle")
	hang, calls := make(chan struct{}), make(chan struct{}, 10)
	src := newSource(t, config(dir, func(signed []byte) (*ota.Manifest, error) {
		calls <- struct{}{}
		<-hang
		return r.Verify(signed)
	}))
	for i := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := src.Latest(ctx)
			done <- err
		}()
		if i == 0 {
			<-calls
		}
		cancel()
		if err := <-done; ota.CodeOf(err) != ota.ErrConnectivity || !errors.Is(err, context.Canceled) {
			t.Errorf("call %d: got %v", i+1, err)
		}
	}
	if n := len(calls); n != 0 {
		t.Errorf("%d more calls while the first was hanging, want none", n)
	}
	close(hang)
	if _, err := src.Latest(t.Context()); err != nil {
		t.Errorf("after it came back: %v", err)
	}
}

func TestConfig(t *testing.T) {
	verify := func([]byte) (*ota.Manifest, error) { return nil, ota.ErrValidation }
	for name, tt := range map[string]struct {
		change func(*media.Config)
		want   string
	}{
		"no path":      {func(c *media.Config) { c.Path = "" }, "path is missing"},
		"bad pattern":  {func(c *media.Config) { c.Path = "/media/[" }, "syntax error in pattern"},
		"no product":   {func(c *media.Config) { c.Product = "" }, "product"},
		"bad version":  {func(c *media.Config) { c.Version = "v1" }, "running version"},
		"no verifier":  {func(c *media.Config) { c.Verify = nil }, "Verify is missing"},
		"poll below 0": {func(c *media.Config) { c.Poll = -1 }, "poll interval"},
	} {
		t.Run(name, func(t *testing.T) {
			c := config("/media", verify)
			tt.change(&c)
			if _, err := media.New(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// TestFitsAndLast: the newest that fits is not the newest, and not one that has
// failed here as long as there is another.
func TestFitsAndLast(t *testing.T) {
	key := otatest.NewSigningKey(t)
	dir := t.TempDir()
	for _, v := range []string{"1.0.1", "1.0.2", "1.0.3", "2.0.0"} {
		put(t, key.Release(t, v, 5000).Bundle, dir, v+".bundle")
	}
	verify := key.Release(t, "9.9.9", 5000).Verify
	tooNew := func(m *ota.Manifest) error {
		if m.Version == "2.0.0" {
			return fmt.Errorf("%w: updates from 1.0.3", ota.ErrIncompatible)
		}
		return nil
	}
	for _, c := range []struct {
		name string
		fits func(*ota.Manifest) error
		last string
		want string
		code ota.ErrorCode
	}{
		{"a step in between", tooNew, "", "1.0.3", ota.ErrNone},
		{"one has failed here", tooNew, "1.0.3", "1.0.2", ota.ErrNone},
		{"nothing but what has failed", func(m *ota.Manifest) error {
			if m.Version != "1.0.3" {
				return ota.ErrNoUpdate
			}
			return nil
		}, "1.0.3", "1.0.3", ota.ErrNone},
		{"nothing but old ones", func(*ota.Manifest) error { return ota.ErrNoUpdate }, "", "", ota.ErrNoUpdate},
		{"old ones and one that does not fit", func(m *ota.Manifest) error { return cmp.Or(tooNew(m), error(ota.ErrNoUpdate)) }, "", "", ota.ErrIncompatible},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(dir, verify)
			cfg.Fits, cfg.Last = c.fits, func(m *ota.Manifest) bool { return m.Version == c.last }
			signed, err := newSource(t, cfg).Latest(t.Context())
			if ota.CodeOf(err) != c.code {
				t.Fatalf("got %v, want %s", err, c.code.Name())
			}
			if err != nil {
				return
			}
			if m, err := verify(signed); err != nil || m.Version != c.want {
				t.Errorf("got %v, %v, want %s", m, err, c.want)
			}
		})
	}
}
