package bundle

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
)

func TestVersionInPath(t *testing.T) {
	for path, want := range map[string]string{
		"/fw/bess-1.0.1.bin": "1.0.1", "bess_v1.0.1.img": "1.0.1", "1.0.1": "1.0.1", "bess 10.20.30": "10.20.30",
		"bess-1.0.1-rc.1.bin": "1.0.1-rc.1", "bess-1.0.1-rc1": "1.0.1-rc1", "bess-1.0.1-beta": "1.0.1-beta",
		`C:\fw\bess-1.0.1.bin`: "1.0.1", "fw_v2_1.0.1.bin": "1.0.1",
		"/fw-1.0.1/bess.bin": "", "bess-1.0.bin": "", "bess-1.0.1.2.bin": "", "bess1.0.1.bin": "", "bess-1.0.1-signed.bin": "",
		"bess-1.0.1-3f2c": "", "": "", "/": "", ".bin": "", "-..": "", "bess-1..1.bin": "", "bess-1.0.x.bin": "",
	} {
		if got := versionInPath(path); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}

// codeSigned returns a value with a key, an image of 5 bytes, "image", and its signature.
func codeSigned(t testing.TB) (c *CodeSigning, signed, sig []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKey(private.Public(), false)
	if err != nil {
		t.Fatal(err)
	}
	c = &CodeSigning{product: "p", component: "c", keys: []key{k}}
	sum := sha256.Sum256([]byte("image"))
	if sig, err = ecdsa.SignASN1(rand.Reader, private, sum[:]); err != nil {
		t.Fatal(err)
	}
	if signed, err = c.Envelope(strings.NewReader("image"), 5, CodeSigned{Version: "1.0.0", Signature: sig}); err != nil {
		t.Fatal(err)
	}
	return c, signed, sig
}

// forge wraps any manifest around a signature that holds, as somebody with an old job
// can, and lets c believe that it has seen the file.
func forge(t testing.TB, c *CodeSigning, manifest string, sig []byte) []byte {
	t.Helper()
	payload, err := json.Marshal(codeSignedPayload{json.RawMessage(manifest), sig})
	if err != nil {
		t.Fatal(err)
	}
	var e envelope
	e.setTyped(CodeSignedType, payload)
	b, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	c.remember(digest([]byte(manifest)))
	return b
}

// TestCodeSignedClaims: what nobody has signed or configured is refused, one by one.
func TestCodeSignedClaims(t *testing.T) {
	c, signed, sig := codeSigned(t)
	m, err := c.Verify(signed)
	if err != nil {
		t.Fatal(err)
	}
	good, err := c.manifest(m.Version, m.Images[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Verify(forge(t, c, string(good), sig)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ota.Manifest){
		"downgrade":        func(m *ota.Manifest) { m.AllowDowngrade = true },
		"security version": func(m *ota.Manifest) { m.SecurityVersion = 1 << 40 },
		"product":          func(m *ota.Manifest) { m.Product = "q" },
		"component":        func(m *ota.Manifest) { m.Images[0].Component = "d" },
		"created":          func(m *ota.Manifest) { m.Created = m.Created.AddDate(100, 0, 0) },
		"expires":          func(m *ota.Manifest) { m.Expires = m.Created.AddDate(100, 0, 0) },
		"hardware":         func(m *ota.Manifest) { m.Hardware = []string{"x"} },
		"mandatory":        func(m *ota.Manifest) { m.Mandatory = true },
		"no reboot":        func(m *ota.Manifest) { m.NoReboot = true },
		"notes":            func(m *ota.Manifest) { m.Notes = "x" },
		"MD5":              func(m *ota.Manifest) { m.Images[0].MD5 = strings.Repeat("0", 32) },
		"image":            func(m *ota.Manifest) { m.Images[0].SHA256[0]++ },
		"two images": func(m *ota.Manifest) {
			m.Images = append(m.Images, m.Images[0])
			m.Images[1].Component = "d"
		},
	} {
		var m ota.Manifest
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		b, err := json.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Verify(forge(t, c, string(b), sig))
		if got != nil || ota.CodeOf(err) != ota.ErrValidation {
			t.Errorf("%s: got %v, %v, want ErrValidation", name, got, err)
		}
	}
	for name, manifest := range map[string]string{
		"spaces":    strings.Replace(string(good), `,"`, `, "`, 1),
		"order":     strings.Replace(string(good), `{"format":1,"product":"p",`, `{"product":"p","format":1,`, 1),
		"unknown":   strings.Replace(string(good), `{`, `{"x":1,`, 1),
		"no object": `[]`,
	} {
		if got, err := c.Verify(forge(t, c, manifest, sig)); got != nil || ota.CodeOf(err) != ota.ErrValidation {
			t.Errorf("%s: got %v, %v, want ErrValidation", name, got, err)
		}
	}
}

// FuzzCodeSigned: whatever the bytes, what verifies is the one image that was signed
// and seen, in the one version.
func FuzzCodeSigned(f *testing.F) {
	c, signed, sig := codeSigned(f)
	want, err := c.Verify(signed)
	if err != nil {
		f.Fatal(err)
	}
	both := VerifyAny(map[string]ota.Verify{CodeSignedType: c.Verify})
	e, err := parseTyped(signed, CodeSignedType)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(e.payload)
	f.Add(bytes.Replace(signed, []byte(`[]`), []byte(`[{"sig":"AA=="}]`), 1))
	other := strings.Replace(string(e.payload[:bytes.LastIndex(e.payload, []byte(`,"signature"`))]), `{"manifest":`, "", 1)
	f.Add(forge(f, c, strings.Replace(other, "1.0.0", "9.0.0", 1), sig))
	c.seen = []string{want.Digest}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, verify := range []ota.Verify{c.Verify, both} {
			m, err := verify(b)
			checkOutcome(t, m, err)
			if err == nil && (m.Digest != want.Digest || m.Version != "1.0.0") {
				t.Errorf("verified %s with digest %s, which nobody has seen", m.Version, m.Digest)
			}
		}
		// The same bytes as a payload, in an envelope that is well formed.
		var e envelope
		e.setTyped(CodeSignedType, b)
		if signed, err := e.encode(); err == nil {
			if m, err := c.Verify(signed); err == nil && m.Digest != want.Digest {
				t.Errorf("verified %s with digest %s, which nobody has seen", m.Version, m.Digest)
			}
		}
	})
}
