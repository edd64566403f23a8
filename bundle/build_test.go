package bundle

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/interlock-energy/ota"
)

func TestDescribeImage(t *testing.T) {
	for _, size := range []int{1, 4095, 4096, 4097, 8192, 10000} {
		b := bytes.Repeat([]byte("0123456"), size)[:size]
		im, err := DescribeImage("c", iotest.OneByteReader(bytes.NewReader(b)), 4096, true)
		if err != nil {
			t.Fatal(err)
		}
		if im.Component != "c" || im.Size != int64(size) || im.SHA256 != sha256.Sum256(b) || im.MD5 != fmt.Sprintf("%x", md5.Sum(b)) || im.ChunkSize != 4096 {
			t.Errorf("size %d: got %+v", size, im)
		}
		if want := (size + 4095) / 4096; len(im.Chunks) != want {
			t.Errorf("size %d: got %d chunks, want %d", size, len(im.Chunks), want)
		}
		for i, got := range im.Chunks {
			if want := ota.Hash(sha256.Sum256(b[i*4096 : min(size, (i+1)*4096)])); got != want {
				t.Errorf("size %d: chunk %d: got %s, want %s", size, i, got, want)
			}
		}
	}
	im, err := DescribeImage("c", strings.NewReader("x"), 0, false)
	if err != nil || im.ChunkSize != DefaultChunkSize || im.MD5 != "" {
		t.Errorf("got %+v, %v, want the default chunk size and no MD5", im, err)
	}
	broken := errors.New("bad block")
	for _, tc := range []struct {
		name, component, want string
		r                     io.Reader
		chunk                 int64
	}{
		{"empty", "c", "the image is empty", strings.NewReader(""), 0},
		{"component", "../c", "component", strings.NewReader("x"), 0},
		{"chunk not a power of two", "c", "chunk size 5000", strings.NewReader("x"), 5000},
		{"chunk too small", "c", "chunk size 2048", strings.NewReader("x"), 2048},
		{"chunk too large", "c", "chunk size 2097152", strings.NewReader("x"), 2 << 20},
		{"chunk negative", "c", "chunk size -4096", strings.NewReader("x"), -4096},
		{"broken medium", "c", "read at 3: bad block", io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)), 0},
	} {
		if im, err := DescribeImage(tc.component, tc.r, tc.chunk, true); im.Size != 0 || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %+v, %v, want an error with %q", tc.name, im, err, tc.want)
		}
	}
}

func TestWriteVerifiesWhatItWrites(t *testing.T) {
	golden := readFile(t, "testdata/format1-ed25519.bundle")
	signed := openBytes(t, golden).Signed()
	images := goldenImages()
	a, b := images["controller"], images["bms"]
	changed := bytes.Clone(a)
	changed[5000] ^= 1
	r := func(b []byte) io.Reader { return bytes.NewReader(b) }
	full := errors.New("disk is full")
	broken := errors.New("bad block")
	for _, tc := range []struct {
		name   string
		images []io.Reader
		want   string
		n      int // image bytes written, all of them verified
	}{
		{"good", []io.Reader{r(a), iotest.OneByteReader(r(b))}, "", 5224},
		{"changed", []io.Reader{r(changed), r(b)}, "image controller: chunk 2 of 2", 4096},
		{"order", []io.Reader{r(b), r(a)}, "image controller: got 24 bytes, want 5200", 0},
		{"short", []io.Reader{r(a[:5199]), r(b)}, "image controller: got 5199 bytes, want 5200", 4096},
		{"long", []io.Reader{r(append(bytes.Clone(a), 0)), r(b)}, "image controller: has more than 5200 bytes", 5200},
		{"last long", []io.Reader{r(a), r(append(bytes.Clone(b), 0))}, "image bms: has more than 24 bytes", 5224},
		{"missing", []io.Reader{r(a)}, "got 1 images, want 2", -1},
		{"too many", []io.Reader{r(a), r(b), r(b)}, "got 3 images, want 2", -1},
		{"broken", []io.Reader{io.MultiReader(r(a[:4100]), iotest.ErrReader(broken)), r(b)}, "read at 4100: bad block", 4096},
	} {
		var out bytes.Buffer
		err := Write(&out, signed, tc.images...)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
		n := 0
		if tc.n >= 0 {
			n = HeaderSize + len(signed) + tc.n
		}
		if !bytes.Equal(out.Bytes(), golden[:n]) {
			t.Errorf("%s: got %d bytes, want the first %d of the golden bundle", tc.name, out.Len(), n)
		}
	}
	for limit := range 4 {
		if err := Write(&limitedWriter{limit, full}, signed, r(a), r(b)); !errors.Is(err, full) {
			t.Errorf("full after %d writes: got %v, want %v", limit, err, full)
		}
	}
	if err := Write(io.Discard, []byte("{}"), r(a)); !errors.Is(err, ota.ErrValidation) {
		t.Errorf("no envelope: got %v, want ErrValidation", err)
	}
}

type limitedWriter struct {
	writes int
	err    error
}

func (w *limitedWriter) Write(b []byte) (int, error) {
	if w.writes--; w.writes < 0 {
		return 0, w.err
	}
	return len(b), nil
}

// dirNames is what is in dir: a failed Build leaves nothing behind.
func dirNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestBuild(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	out := write("out.bundle", "what was there before")
	a, b, empty := write("a.img", "image a"), write("b.img", "image b"), write("empty.img", "")
	signer := testSigner(t, "ed25519")
	release := func(images ...ota.Image) *ota.Manifest {
		return &ota.Manifest{Product: "p", Version: "1.0", Created: time.Unix(1e9, 0).UTC(), Images: images}
	}
	before := dirNames(t, dir)
	for _, tc := range []struct {
		name  string
		m     *ota.Manifest
		files map[string]string
		want  string
	}{
		{"no images", release(), nil, "no images are given"},
		{"missing file", release(), map[string]string{"a": a, "b": b + "x"}, "image b: open"},
		{"empty file", release(), map[string]string{"a": a, "e": empty}, "describe image e"},
		{"directory", release(), map[string]string{"a": dir}, "not a regular file"},
		{"bad component", release(), map[string]string{"a/b": a}, "component"},
		{"component without file", release(ota.Image{Component: "a"}, ota.Image{Component: "b"}), map[string]string{"a": a}, "no file is given for component b"},
		{"file without component", release(ota.Image{Component: "a"}), map[string]string{"a": a, "b": b}, "component b, which the manifest does not have"},
		{"the same component twice", release(ota.Image{Component: "a"}, ota.Image{Component: "a"}), map[string]string{"a": a}, "two images for component a"},
		{"bad chunk size", release(ota.Image{Component: "a", ChunkSize: 1}), map[string]string{"a": a}, "chunk size 1"},
		{"output is an image", release(), map[string]string{"a": out}, "is the output as well"},
		{"bad manifest", &ota.Manifest{Product: "p"}, map[string]string{"a": a}, "version"},
	} {
		images := fmt.Sprint(tc.m.Images)
		err := Build(out, tc.m, tc.files, signer)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", tc.name, err, tc.want)
		}
		if got := string(readFile(t, out)); got != "what was there before" {
			t.Errorf("%s: got output %.40q, want it untouched", tc.name, got)
		}
		if got := dirNames(t, dir); fmt.Sprint(got) != fmt.Sprint(before) {
			t.Errorf("%s: got files %q, want %q", tc.name, got, before)
		}
		if fmt.Sprint(tc.m.Images) != images || tc.m.Digest != "" {
			t.Errorf("%s: got manifest %+v, want it untouched", tc.name, tc.m)
		}
	}
	if err := Build(out, release(), map[string]string{"a": a}); err == nil || !strings.Contains(err.Error(), "no private keys") {
		t.Errorf("no keys: got %v, want an error", err)
	}
	if err := Build(filepath.Join(dir, "none", "out"), release(), map[string]string{"a": a}, signer); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such folder: got %v, want ErrNotExist", err)
	}

	m := release()
	if err := Build(out, m, map[string]string{"b": b, "a": a}, signer); err != nil {
		t.Fatal(err)
	}
	got, err := openBytes(t, readFile(t, out)).VerifyAll(testKeys(t, 1, "ed25519"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Images[0].Component != "a" || got.Images[1].Component != "b" || got.Images[0].MD5 == "" || got.Digest != m.Digest || len(m.Images) != 2 || m.Format != 1 {
		t.Errorf("got %+v, filled in %+v; want a, b with MD5, the same digest", got, m)
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("got %v, %v, want mode 0644", info.Mode(), err)
	}
	declared := release(ota.Image{Component: "b", ChunkSize: 8192}, ota.Image{Component: "a"})
	if err := Build(out, declared, map[string]string{"b": b, "a": a}, signer); err != nil {
		t.Fatal(err)
	}
	if i := declared.Images; i[0].Component != "b" || i[0].ChunkSize != 8192 || i[1].ChunkSize != DefaultChunkSize {
		t.Errorf("got %+v, want the declared order and chunk sizes", i)
	}
	if got := dirNames(t, dir); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("got files %q, want %q", got, before)
	}
}

func TestSignFile(t *testing.T) {
	golden := readFile(t, "testdata/format1-ed25519.bundle")
	dir := t.TempDir()
	path, link := filepath.Join(dir, "b.bundle"), filepath.Join(dir, "link")
	if err := os.WriteFile(path, golden, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b.bundle", link); err != nil {
		t.Fatal(err)
	}
	if err := SignFile(link, testSigner(t, "p384")); err != nil {
		t.Fatal(err)
	}
	signed := readFile(t, path)
	want, _ := testKeys(t, 1, "ed25519").Verify(openBytes(t, golden).Signed())
	m, err := openBytes(t, signed).VerifyAll(testKeys(t, 2, "ed25519", "p384"), nil)
	if err != nil || m.Digest != want.Digest {
		t.Errorf("got %v, %v, want digest %s", m, err, want.Digest)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("got %v, %v, want mode 0640", info.Mode(), err)
	}
	if target, err := os.Readlink(link); err != nil || target != "b.bundle" {
		t.Errorf("got link to %q, %v, want the link kept", target, err)
	}

	for _, tc := range []struct {
		name    string
		content []byte
		want    string
	}{
		{"same key", signed, "signed already"},
		{"not a bundle", []byte("hello, this is a text"), "not a bundle"},
		{"truncated", golden[:len(golden)-1], "truncated"},
		{"extended", append(bytes.Clone(golden), 0), "extended"},
		{"image changed", append(bytes.Clone(golden[:len(golden)-1]), 0), "image bms: chunk 1 of 1"},
	} {
		if err := os.WriteFile(path, tc.content, 0o600); err != nil {
			t.Fatal(err)
		}
		kind := "p256"
		if tc.name == "same key" {
			kind = "p384"
		}
		if err := SignFile(path, testSigner(t, kind)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", tc.name, err, tc.want)
		}
		if !bytes.Equal(readFile(t, path), tc.content) {
			t.Errorf("%s: the file changed", tc.name)
		}
	}
	if err := SignFile(dir, testSigner(t, "p256")); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("folder: got %v, want an error", err)
	}
	if got := dirNames(t, dir); len(got) != 2 {
		t.Errorf("got files %q, want the bundle and the link", got)
	}
}
