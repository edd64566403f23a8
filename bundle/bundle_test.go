package bundle

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
)

func TestParseHeader(t *testing.T) {
	good := header(1000)
	for _, tc := range []struct {
		name string
		b    []byte
		want string
	}{
		{"empty", nil, "got 0 bytes, want 12"},
		{"short", good[:11], "got 11 bytes"},
		{"zeros", make([]byte, 12), "not a bundle"},
		{"erased flash", bytes.Repeat([]byte{0xff}, 12), "not a bundle"},
		{"a zip", []byte("PK\x03\x04012345678"), "not a bundle"},
		{"high bit lost", append([]byte{0x09}, good[1:]...), "transfer as text"},
		{"CR LF made LF", append(bytes.Replace(good, []byte("\r\n"), []byte("\n"), 1), "{"...), "transfer as text"},
		{"LF made CR LF", bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), "transfer as text"},
		{"lone LF made CR LF", []byte("\x89ILK\r\n\x1a\r\n\x00\x00\x03"), "transfer as text"},
		{"no length", []byte(Magic + "\x00\x00\x00\x00"), "envelope of 0 bytes"},
		{"16 MiB and 1", []byte(Magic + "\x01\x00\x00\x01"), "envelope of 16777217 bytes"},
		{"2^31", []byte(Magic + "\x80\x00\x00\x00"), "envelope of 2147483648 bytes"},
		{"2^32-1", []byte(Magic + "\xff\xff\xff\xff"), "envelope of 4294967295 bytes"},
	} {
		n, err := ParseHeader(tc.b)
		if n != 0 || !errors.Is(err, ota.ErrValidation) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %d, %v, want ErrValidation with %q", tc.name, n, err, tc.want)
		}
	}
	for _, want := range []int{1, 1000, MaxEnvelopeSize} {
		if n, err := ParseHeader(append(header(want), "more"...)); n != want || err != nil {
			t.Errorf("got %d, %v, want %d", n, err, want)
		}
	}
}

func TestTruncatedAtEveryLength(t *testing.T) {
	golden := readFile(t, "testdata/format1-ed25519.bundle")
	k := testKeys(t, 1, "ed25519")
	images := HeaderSize + len(openBytes(t, golden).Signed())
	for n := range len(golden) {
		// Once as a short file, and once as one that shrinks after its size was read.
		for _, claimed := range []int{n, len(golden)} {
			f, err := Open(bytes.NewReader(golden[:n]), int64(claimed))
			var m *ota.Manifest
			if err == nil {
				m, err = f.VerifyAll(k, nil)
			}
			want := "truncated"
			if claimed < HeaderSize {
				want = "too short"
			} else if claimed > n && n >= images {
				want = "bytes, want"
			}
			if m != nil || !errors.Is(err, ota.ErrValidation) || !strings.Contains(err.Error(), want) {
				t.Fatalf("%d of %d bytes, %d claimed: got %v, %v, want ErrValidation with %q", n, len(golden), claimed, m, err, want)
			}
		}
	}
}

func TestDamagedBundles(t *testing.T) {
	golden := readFile(t, "testdata/format1-ed25519.bundle")
	n := HeaderSize + len(openBytes(t, golden).Signed())
	a, b := golden[n:n+5200], golden[n+5200:]
	p256 := readFile(t, "testdata/format1-p256.bundle")
	flipped := func(at int) []byte {
		c := bytes.Clone(golden)
		c[at] ^= 1
		return c
	}
	for _, tc := range []struct {
		name   string
		bundle []byte
		want   string
	}{
		{"extended by a byte", append(bytes.Clone(golden), 0), fmt.Sprintf("extended: got %d bytes, want %d; 1 bytes follow", len(golden)+1, len(golden))},
		{"two bundles in one", append(bytes.Clone(golden), golden...), "extended"},
		{"last byte missing", golden[:len(golden)-1], fmt.Sprintf("truncated: got %d bytes, want %d; 1 are missing", len(golden)-1, len(golden))},
		{"images swapped", join(golden[:n], b, a), "image controller: chunk 1 of 2 (bytes 0 to 4095)"},
		{"first image twice", join(golden[:n], a, a[:len(b)]), "image bms: chunk 1 of 1 (bytes 0 to 23)"},
		{"chunks swapped", join(golden[:n], a[4096:], a[:4096], b), "image controller: chunk 1 of 2"},
		{"bit of the second chunk", flipped(n + 4096), "image controller: chunk 2 of 2 (bytes 4096 to 5199)"},
		{"last bit", flipped(len(golden) - 1), "image bms: chunk 1 of 1"},
		{"a byte before the image", join(golden[:n], []byte{0}, golden[n:len(golden)-1]), "image controller: chunk 1 of 2"},
		{"envelope of another signer", join(p256[:len(p256)-5224], a, b), "0 by keys trusted here hold"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := openBytes(t, tc.bundle).VerifyAll(testKeys(t, 1, "ed25519"), nil)
			wantRefused(t, m, err, tc.want)
		})
	}
}

// The chunks are right, but what older clients check is not.
func TestWholeHashesAreVerified(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*ota.Image)
	}{
		{"SHA-256", func(im *ota.Image) { im.SHA256[0] ^= 1 }},
		{"MD5", func(im *ota.Image) { im.MD5 = strings.Repeat("0", 32) }},
	} {
		im, err := DescribeImage("c", strings.NewReader("image"), 0, true)
		if err != nil {
			t.Fatal(err)
		}
		tc.change(&im)
		m := largeRelease(1)
		m.Images = []ota.Image{im}
		signed, err := Sign(m, testSigner(t, "ed25519"))
		if err != nil {
			t.Fatal(err)
		}
		b := join(header(len(signed)), signed, []byte("image"))
		got, err := openBytes(t, b).VerifyAll(testKeys(t, 1, "ed25519"), nil)
		wantRefused(t, got, err, "image c: has "+tc.name)
	}
}

// Sparse files around the limits of 32-bit numbers: the size is compared in
// full, and bytes beyond 4 GiB are found where they are.
func TestSparseFiles(t *testing.T) {
	signed := openBytes(t, readFile(t, "testdata/format1-ed25519.bundle")).Signed()
	k := testKeys(t, 1, "ed25519")
	for _, size := range []int64{1<<31 - 1, 1 << 31, 1<<31 + 1, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1<<32 + 6751} {
		t.Run(fmt.Sprint("extended to ", size), func(t *testing.T) {
			f, err := Open(sparse(t, size, join(header(len(signed)), signed)), size)
			if err != nil {
				t.Fatal(err)
			}
			m, err := f.VerifyAll(k, nil)
			wantRefused(t, m, err, fmt.Sprintf("extended: got %d bytes, want 6751", size))
		})
		t.Run(fmt.Sprint("nothing but ", size), func(t *testing.T) {
			_, err := Open(sparse(t, size, nil), size)
			wantRefused(t, nil, err, "not a bundle")
		})
		t.Run(fmt.Sprint("an image of ", size), func(t *testing.T) {
			m := largeRelease(size)
			signed, err := Sign(m, testSigner(t, "ed25519"))
			if err != nil {
				t.Fatal(err)
			}
			total := Size(len(signed), m)
			r := sparse(t, total, join(header(len(signed)), signed))
			if _, err := r.WriteAt([]byte("small"), total-5); err != nil {
				t.Fatal(err)
			}
			f, err := Open(r, total)
			if err != nil {
				t.Fatal(err)
			}
			s, err := f.Image(m, &m.Images[1])
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(s); err != nil || string(got) != "small" {
				t.Errorf("got image %q, %v, want \"small\"", got, err)
			}
			got, err := f.VerifyAll(k, nil) // its hashes are made up
			wantRefused(t, got, err, "image large: chunk 1 of")
			short, err := Open(r, total-1)
			if err != nil {
				t.Fatal(err)
			}
			_, err = short.Image(m, &m.Images[1])
			wantRefused(t, nil, err, "truncated")
		})
	}
}

func sparse(t *testing.T, size int64, start []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(start, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// RAUC, CVE-2020-25860: what was verified must be what is installed, whatever
// its owner does to the file in between.
func TestFileChangedAfterOpen(t *testing.T) {
	golden := readFile(t, "testdata/format1-ed25519.bundle")
	k := testKeys(t, 1, "ed25519")
	open := func(t *testing.T) (path string, f *File) {
		path = filepath.Join(t.TempDir(), "b.bundle")
		if err := os.WriteFile(path, golden, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		if f, err = Open(r, int64(len(golden))); err != nil {
			t.Fatal(err)
		}
		return path, f
	}
	t.Run("replaced under its name", func(t *testing.T) {
		path, f := open(t)
		if err := os.Rename(func() string {
			other := path + ".new"
			if err := os.WriteFile(other, []byte("evil"), 0o600); err != nil {
				t.Fatal(err)
			}
			return other
		}(), path); err != nil {
			t.Fatal(err)
		}
		if _, err := f.VerifyAll(k, nil); err != nil {
			t.Errorf("got %v, want the file that was opened", err)
		}
	})
	for _, tc := range []struct {
		name   string
		change func(w *os.File) error
		want   string // empty: still the opened one
	}{
		{"envelope overwritten", func(w *os.File) error { _, err := w.WriteAt(make([]byte, 1000), 0); return err }, ""},
		{"image overwritten", func(w *os.File) error { _, err := w.WriteAt([]byte("evil"), 6000); return err }, "chunk 2 of 2"},
		{"truncated", func(w *os.File) error { return w.Truncate(3000) }, "got"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path, f := open(t)
			w, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if err := tc.change(w); err != nil {
				t.Fatal(err)
			}
			m, err := f.VerifyAll(k, nil)
			if tc.want != "" {
				wantRefused(t, m, err, tc.want)
			} else if err != nil {
				t.Errorf("got %v, want the envelope that was opened", err)
			}
		})
	}
}

// brokenMedium fails from an offset on.
type brokenMedium struct {
	b    []byte
	from int64
	err  error
}

func (m brokenMedium) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > m.from {
		return 0, m.err
	}
	return bytes.NewReader(m.b).ReadAt(p, off)
}

// A stick with a bad block is not a bad bundle: it may be read again.
func TestErrorsOfTheMediumAreKept(t *testing.T) {
	golden := readFile(t, "testdata/format1-ed25519.bundle")
	broken := errors.New("input/output error")
	for _, from := range []int64{0, 100, 3000} {
		f, err := Open(brokenMedium{golden, from, broken}, int64(len(golden)))
		if err == nil {
			_, err = f.VerifyAll(testKeys(t, 1, "ed25519"), nil)
		}
		if !errors.Is(err, broken) || errors.Is(err, ota.ErrValidation) {
			t.Errorf("from %d: got %v, want %v and not ErrValidation", from, err, broken)
		}
	}
}

func TestImageOffsetRefuses(t *testing.T) {
	m := largeRelease(1000)
	for _, tc := range []struct {
		name, component, want string
		envelope              int
		size                  int64
	}{
		{"unknown component", "other", "has none for this component", 100, 1000},
		{"no envelope", "small", "envelope of 0 bytes", 0, 1000},
		{"negative envelope", "small", "envelope of -1 bytes", -1, 1000},
		{"negative size", "small", "image large of -1 bytes", 100, -1},
		{"size 2^63-1", "small", "image large of 9223372036854775807", 100, 1<<63 - 1},
	} {
		m.Images[0].Size = tc.size
		offset, err := ImageOffset(tc.envelope, m, tc.component)
		if offset != 0 {
			t.Errorf("%s: got offset %d, want 0", tc.name, offset)
		}
		wantRefused(t, nil, err, tc.want)
	}
}

// Check says what VerifyAll says of the bytes, and has the hashes that are not in
// the manifest.
func TestCheck(t *testing.T) {
	golden := readFile(t, "testdata/format1-ed25519.bundle")
	f := openBytes(t, golden)
	m, err := Unsigned(f.Signed())
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Check(m)
	if err != nil {
		t.Fatal(err)
	}
	n := HeaderSize + len(f.Signed())
	sum := func(b []byte) string { s := md5.Sum(b); return hex.EncodeToString(s[:]) }
	want := Sums{SHA256: sha256.Sum256(golden), MD5: sum(golden), Images: []string{sum(golden[n : n+5200]), sum(golden[n+5200:])}}
	if got.SHA256 != want.SHA256 || got.MD5 != want.MD5 || !slices.Equal(got.Images, want.Images) {
		t.Errorf("got %v, want %v", got, want)
	}
	for at := n; at < len(golden); at += 97 {
		bad := bytes.Clone(golden)
		bad[at] ^= 1
		_, err := openBytes(t, bad).Check(m)
		wantRefused(t, nil, err, "check image ")
	}
	for _, bad := range [][]byte{golden[:len(golden)-1], golden[:n+1], append(bytes.Clone(golden), 0)} {
		_, err := openBytes(t, bad).Check(m)
		wantRefused(t, nil, err, "bytes, want")
	}
}
