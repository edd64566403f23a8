package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
)

// Run these with -fuzzminimizetime 1x: minimizing inputs of kilobytes otherwise
// takes the whole time.

// FuzzEnvelope: whatever the bytes, what verifies is a payload that was signed.
func FuzzEnvelope(f *testing.F) {
	k := testKeys(f, 2, "ed25519", "p256")
	want := map[string]bool{}
	for _, payload := range []string{smallPayload, strings.Replace(smallPayload, "1.0", "2.0", 1)} {
		good := signRaw(f, payload, "ed25519", "p256")
		m, err := k.Verify(good)
		if err != nil {
			f.Fatal(err)
		}
		want[m.Digest] = true
		f.Add(good)
		f.Add(signRaw(f, payload, "ed25519"))
		f.Add(signRaw(f, payload))
		f.Add(bytes.Replace(good, []byte(`"keyid"`), []byte(`"KeyID"`), 1))
		f.Add(bytes.Replace(good, []byte(`{"p`), []byte(`{"payload":"AA==","p`), 1))
		f.Add(bytes.Replace(good, []byte(`{"p`), []byte(`{"x":[[[[[[[[[]]]]]]]]],"p`), 1))
		f.Add(bytes.Replace(good, []byte(`application/`), []byte(`application\/`), 1))
	}
	f.Add([]byte(`{"payloadType":"` + PayloadType + `","payload":"e30=","signatures":[]}`))
	f.Add([]byte(`{"payloadType":"` + PayloadType + `","payload":"_-8=","signatures":[{"sig":""}]}`))
	f.Add([]byte(`{"signatures":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := k.Verify(b)
		checkOutcome(t, m, err)
		if err == nil && !want[m.Digest] {
			t.Errorf("verified a payload with digest %s, which nobody signed", m.Digest)
		}
		_, err = ReadSignatures(b)
		checkOutcome(t, nil, err)
		e, err := parseEnvelope(b)
		if err != nil {
			return
		}
		j, err := e.encode()
		if err != nil {
			return // larger than the limit, in the standard alphabet
		}
		again, err := parseEnvelope(j)
		if err != nil || !bytes.Equal(again.message, e.message) || len(again.signatures) != len(e.signatures) {
			t.Errorf("encoded again: got %+v, %v, want %+v", again, err, e)
		}
	})
}

// FuzzManifest: what is accepted is valid, and means the same when encoded again.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(smallPayload))
	for _, oldNew := range [][2]string{
		{`"size":5`, `"size":2147483648`}, {`"size":5`, `"size":4294967297`}, {`"size":5`, `"size":-1`}, {`"size":5`, `"size":1e3`},
		{`"version"`, `"verſion"`}, {`"version"`, `"Version"`}, {`"version":"1.0"`, `"version":"1.0","version":"2"`},
		{`30}`, `null}`}, {`30}`, `1e999}`}, {`"n"`, `"\ud800"`}, {`"n"`, "\"\xff\""}, {`"p"`, `"../p"`}, {`}]}`, `}]}{}`},
	} {
		f.Add([]byte(strings.Replace(smallPayload, oldNew[0], oldNew[1], 1)))
	}
	f.Add([]byte(strings.Repeat(`{"a":`, 20)))
	e, err := parseEnvelope(openBytes(f, readFile(f, "testdata/format1-all.bundle")).Signed())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e.payload)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		checkOutcome(t, m, err)
		if err != nil {
			return
		}
		if err := m.Validate(); err != nil {
			t.Errorf("accepted, but %v", err)
		}
		first, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseManifest(first)
		if err != nil {
			t.Fatalf("encoded again: %v: %s", err, first)
		}
		if second, _ := json.Marshal(again); !bytes.Equal(first, second) {
			t.Errorf("encoded again: got\n%s, want\n%s", second, first)
		}
		if _, err := ImageOffset(1000, m, m.Images[len(m.Images)-1].Component); err != nil {
			t.Error(err)
		}
		if got := Size(1000, m); got <= 1012 {
			t.Errorf("got bundle size %d", got)
		}
	})
}

// FuzzBundle: a file that verifies is one of the golden ones, but for hints.
func FuzzBundle(f *testing.F) {
	names, err := filepath.Glob("testdata/*.bundle")
	if err != nil || len(names) != 5 {
		f.Fatalf("got golden bundles %q, %v, want 5", names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(bytes.Clone(b), 0))
	}
	f.Add([]byte(Magic + "\x00\x00\x00\x01{"))
	f.Add([]byte(Magic + "\xff\xff\xff\xff{}"))
	f.Add([]byte(Magic + "\x00\xff\xff\xff{}"))
	k := testKeys(f, 1, kinds()...)
	images := goldenImages()
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Open(bytes.NewReader(b), int64(len(b)))
		checkOutcome(t, nil, err)
		if err != nil {
			return
		}
		if m, err := Unsigned(file.Signed()); err == nil {
			for i := range m.Images {
				r, err := file.Image(m, &m.Images[i])
				checkOutcome(t, nil, err)
				if err == nil && r.Size() != m.Images[i].Size {
					t.Errorf("image %d: got %d bytes, want %d", i, r.Size(), m.Images[i].Size)
				}
			}
		}
		m, err := file.VerifyAll(k, nil)
		checkOutcome(t, m, err)
		if err == nil && !bytes.HasSuffix(b, append(bytes.Clone(images["controller"]), images["bms"]...)) {
			t.Errorf("verified a bundle of %d bytes with other images", len(b))
		}
	})
}

// checkOutcome: a result or an error that wraps ErrValidation, never both.
func checkOutcome(t *testing.T, m *ota.Manifest, err error) {
	t.Helper()
	if err != nil && (m != nil || !errors.Is(err, ota.ErrValidation)) {
		t.Errorf("got %v and error %v, want no result and ErrValidation", m, err)
	}
}
