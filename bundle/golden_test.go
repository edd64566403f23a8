package bundle

import (
	"bytes"
	"crypto"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
)

// kinds of the keys in testdata. They are published, hence refused outside tests.
func kinds() []string { return []string{"ed25519", "p256", "p384", "rsa3072"} }

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testSigner(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	s, err := parsePrivate(readFile(t, "testdata/"+kind+".private.pem"), true)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testKeys(t testing.TB, threshold int, kinds ...string) *Keys {
	t.Helper()
	var pems [][]byte
	for _, kind := range kinds {
		pems = append(pems, readFile(t, "testdata/"+kind+".public.pem"))
	}
	k, err := parseKeys(threshold, true, pems...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func openBytes(t testing.TB, b []byte) *File {
	t.Helper()
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// goldenImages are the images of the golden bundles: two chunks, the last one
// short, and a single short one.
func goldenImages() map[string][]byte {
	return map[string][]byte{
		"controller": bytes.Repeat([]byte("controller firmware 2.1.0\n"), 200),
		"bms":        []byte("battery module firmware\n"),
	}
}

// goldenRelease is what the golden bundles hold. It never changes.
func goldenRelease(t testing.TB) (*ota.Manifest, map[string]string) {
	t.Helper()
	soc, hot, cold, amps := 30.0, 45.5, -10.0, 12.25
	m := &ota.Manifest{
		Format: 1, Product: "bess-controller", Hardware: []string{"rev-a", "rev-b"}, Version: "2.1.0-rc.1+build.7",
		SecurityVersion: 3, MinVersion: "1.4", AllowDowngrade: true,
		Created:   time.Date(2026, 3, 1, 12, 30, 0, 5e8, time.UTC),
		Expires:   time.Date(2027, 3, 1, 12, 30, 0, 0, time.FixedZone("", 3600)),
		Mandatory: true, NoReboot: true,
		Limits: ota.Limits{MinSoC: &soc, MaxTemperature: &hot, MinTemperature: &cold, MaxCurrent: &amps},
		Notes:  "Balances <faster> & cooler. Größer ≠ besser.\n",
		Images: []ota.Image{{Component: "controller", ChunkSize: 4096}, {Component: "bms", ChunkSize: 8192}},
	}
	dir, files := t.TempDir(), map[string]string{}
	for component, b := range goldenImages() {
		files[component] = filepath.Join(dir, component+".img")
		if err := os.WriteFile(files[component], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return m, files
}

// The files of format 1 are kept for ever: devices in the field have them.
func TestGoldenFormat1(t *testing.T) {
	want, files := goldenRelease(t)
	if err := Build(filepath.Join(t.TempDir(), "b"), want, files, testSigner(t, "ed25519")); err != nil {
		t.Fatal(err)
	}
	wantJSON, _ := json.Marshal(want)
	for _, name := range append(kinds(), "all") {
		t.Run(name, func(t *testing.T) {
			k := testKeys(t, len(kinds()), kinds()...)
			if name != "all" {
				k = testKeys(t, 1, name)
			}
			b := readFile(t, "testdata/format1-"+name+".bundle")
			f := openBytes(t, b)
			var calls, last, total int64
			m, err := f.VerifyAll(k, func(d, n int64) { calls, last, total = calls+1, d, n })
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := json.Marshal(m); !bytes.Equal(got, wantJSON) {
				t.Errorf("got manifest\n%s, want\n%s", got, wantJSON)
			}
			const digest = "75b85e0ac063bf3660c631fd21f11f1629d8cb9d94a38b2b9b6df156712a827b"
			if m.Digest != digest || want.Digest != digest {
				t.Errorf("got digest %s, and %s built now, want %s", m.Digest, want.Digest, digest)
			}
			if calls != 3 || last != 5224 || total != 5224 {
				t.Errorf("got %d calls of progress, the last %d of %d, want 3, 5224 of 5224", calls, last, total)
			}
			if got := Size(len(f.Signed()), m); got != int64(len(b)) {
				t.Errorf("got size %d, want %d", got, len(b))
			}
			for component, want := range goldenImages() {
				offset, err := ImageOffset(len(f.Signed()), m, component)
				if err != nil {
					t.Fatal(err)
				}
				if got := b[offset:][:len(want)]; !bytes.Equal(got, want) {
					t.Errorf("image %s at %d: got %q, want %q", component, offset, got, want)
				}
			}
			if got, _ := k.Signers(f.Signed()); len(got) != k.Threshold() {
				t.Errorf("got %d signers %q, want %d", len(got), got, k.Threshold())
			}
		})
	}
}

func TestGoldenIsRebuiltByteForByte(t *testing.T) {
	for i := range 2 {
		m, files := goldenRelease(t)
		out := filepath.Join(t.TempDir(), "out.bundle")
		if err := Build(out, m, files, testSigner(t, "ed25519")); err != nil {
			t.Fatal(err)
		}
		if got, want := readFile(t, out), readFile(t, "testdata/format1-ed25519.bundle"); !bytes.Equal(got, want) {
			t.Errorf("build %d: got %d bytes %.40q..., want the %d golden bytes", i+1, len(got), got, len(want))
		}
	}
}
