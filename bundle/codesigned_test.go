package bundle_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/otatest"
)

// An opensslSigner signs files as a code-signing service does, with a program that
// shares nothing with ours.
type opensslSigner struct {
	t            *testing.T
	openssl, dir string
	public, cert []byte
}

func newOpenSSL(t *testing.T, kind ...string) *opensslSigner {
	t.Helper()
	s := &opensslSigner{t: t, openssl: otatest.Tool(t, "openssl"), dir: t.TempDir()}
	s.run(append([]string{"genpkey", "-out", s.path("key.pem")}, kind...)...)
	s.run("pkey", "-in", s.path("key.pem"), "-pubout", "-out", s.path("pub.pem"))
	s.run("req", "-new", "-x509", "-key", s.path("key.pem"), "-subj", "/CN=code signing", "-days", "1", "-out", s.path("cert.pem"))
	s.public, s.cert = s.read("pub.pem"), s.read("cert.pem")
	return s
}

func (s *opensslSigner) path(name string) string { return filepath.Join(s.dir, name) }

func (s *opensslSigner) run(args ...string) {
	s.t.Helper()
	if out, err := exec.Command(s.openssl, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (s *opensslSigner) read(name string) []byte {
	s.t.Helper()
	b, err := os.ReadFile(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s *opensslSigner) sign(hash string, file []byte, more ...string) []byte {
	s.t.Helper()
	if err := os.WriteFile(s.path("file"), file, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.run(append(append([]string{"dgst", "-" + hash}, more...), "-sign", s.path("key.pem"), "-out", s.path("sig"), s.path("file"))...)
	return s.read("sig")
}

var (
	p256    = []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}
	rsa2048 = []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}
)

func firmware(n int) []byte { return bytes.Repeat([]byte("firmware of the battery, "), n/25+1)[:n] }

func wrapped(t *testing.T, c *bundle.CodeSigning, file []byte, f bundle.CodeSigned) ([]byte, *ota.Manifest) {
	t.Helper()
	signed, err := c.Envelope(bytes.NewReader(file), int64(len(file)), f)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Verify(signed)
	if err != nil {
		t.Fatal(err)
	}
	return signed, m
}

func TestCodeSigned(t *testing.T) {
	file := firmware(200_000)
	for name, kind := range map[string][]string{"P-256": p256, "RSA 2048": rsa2048} {
		t.Run(name, func(t *testing.T) {
			s, other := newOpenSSL(t, kind...), newOpenSSL(t, p256...)
			sig := s.sign("sha256", file)
			for form, pem := range map[string][]byte{"key": s.public, "certificate": s.cert, "the second of two": append(other.cert, s.public...)} {
				c, err := bundle.ParseCodeSigning("bess-controller", "controller", pem)
				if err != nil {
					t.Fatal(form, err)
				}
				signed, m := wrapped(t, c, file, bundle.CodeSigned{Path: "/fw/bess-1.0.1.bin", Signature: sig})
				if m.Product != "bess-controller" || m.Version != "1.0.1" || len(m.Images) != 1 || m.Images[0].Component != "controller" ||
					m.Size() != int64(len(file)) || m.AllowDowngrade || m.SecurityVersion != 0 {
					t.Errorf("%s: got %+v", form, m)
				}
				if err := checkChunks(file, m); err != nil {
					t.Errorf("%s: %v", form, err)
				}
				again, _ := wrapped(t, c, file, bundle.CodeSigned{Path: "/fw/bess-1.0.1.bin", Signature: sig})
				if !bytes.Equal(again, signed) {
					t.Errorf("%s: another release for the same file", form)
				}
				if err := c.VerifyFile(bytes.NewReader(file), int64(len(file)), sig); err != nil {
					t.Error(err)
				}
			}

			c, err := bundle.ParseCodeSigning("p", "c", s.public)
			if err != nil {
				t.Fatal(err)
			}
			flipped := bytes.Clone(file)
			flipped[123_456] ^= 1
			for what, x := range map[string]struct {
				file []byte
				sig  []byte
			}{
				"another file":       {flipped, sig},
				"truncated":          {file[:len(file)-1], sig},
				"extended":           {append(bytes.Clone(file), 0), sig},
				"another's":          {file, other.sign("sha256", file)},
				"no signature":       {file, nil},
				"signature cut":      {file, sig[:len(sig)-1]},
				"signature extended": {file, append(bytes.Clone(sig), 0)},
				"SHA-1":              {file, s.sign("sha1", file)},
				"SHA-512":            {file, s.sign("sha512", file)},
			} {
				_, err := c.Envelope(bytes.NewReader(x.file), int64(len(x.file)), bundle.CodeSigned{Version: "1.0.1", Signature: x.sig})
				if !errors.Is(err, ota.ErrValidation) {
					t.Errorf("%s: got %v, want ErrValidation", what, err)
				}
				if err := c.VerifyFile(bytes.NewReader(x.file), int64(len(x.file)), x.sig); !errors.Is(err, ota.ErrValidation) {
					t.Errorf("%s: file: got %v, want ErrValidation", what, err)
				}
			}
			if _, err := c.Envelope(bytes.NewReader(file), int64(len(file)+1), bundle.CodeSigned{Version: "1.0.1", Signature: sig}); !errors.Is(err, ota.ErrValidation) {
				t.Errorf("shorter than said: got %v, want ErrValidation", err)
			}
		})
	}
}

// checkChunks reports whether the manifest's hashes are those of file.
func checkChunks(file []byte, m *ota.Manifest) error {
	im, err := bundle.DescribeImage(m.Images[0].Component, bytes.NewReader(file), m.Images[0].ChunkSize, false)
	if err != nil {
		return err
	}
	if got, want := fmt.Sprint(m.Images[0].SHA256, m.Images[0].Chunks), fmt.Sprint(im.SHA256, im.Chunks); got != want {
		return fmt.Errorf("hashes are %.80s..., want %.80s...", got, want)
	}
	return nil
}

// TestCodeSignedElsewhere: an envelope that this device has not made of a whole file is
// refused, though its signature holds: its chunks would not be verified.
func TestCodeSignedElsewhere(t *testing.T) {
	file := firmware(70_000)
	s := newOpenSSL(t, p256...)
	f := bundle.CodeSigned{Version: "1.0.1", Signature: s.sign("sha256", file)}
	parse := func(product string) *bundle.CodeSigning {
		c, err := bundle.ParseCodeSigning(product, "controller", s.cert)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := parse("bess-controller")
	signed, _ := wrapped(t, c, file, f)
	for name, other := range map[string]*bundle.CodeSigning{"a restart": parse("bess-controller"), "another product": parse("meter"), "no keys": nil, "zero": {}} {
		if m, err := other.Verify(signed); m != nil || !errors.Is(err, ota.ErrValidation) {
			t.Errorf("%s: got %v, %v, want ErrValidation", name, m, err)
		}
	}
	after := parse("bess-controller")
	if again, _ := wrapped(t, after, file, f); !bytes.Equal(again, signed) {
		t.Error("after a restart, the same file makes another release")
	}
	if _, err := after.Verify(signed); err != nil {
		t.Error(err)
	}
	for i := range 8 { // more images than it remembers
		f.Version = fmt.Sprintf("1.1.%d", i)
		wrapped(t, c, file, f)
	}
	if _, err := c.Verify(signed); !errors.Is(err, ota.ErrValidation) {
		t.Errorf("the oldest of nine: got %v, want ErrValidation", err)
	}
}

func TestCodeSignedVersion(t *testing.T) {
	file := firmware(5000)
	s := newOpenSSL(t, p256...)
	c, err := bundle.ParseCodeSigning("p", "c", s.public)
	if err != nil {
		t.Fatal(err)
	}
	sig := s.sign("sha256", file)
	holds := func(v string, err error) func(io.ReaderAt, int64) (string, error) {
		return func(io.ReaderAt, int64) (string, error) { return v, err }
	}
	for _, x := range []struct {
		f    bundle.CodeSigned
		want string // a version, or what the error says after "!"
	}{
		{bundle.CodeSigned{Version: "2.0.0", Path: "/fw/bess-1.0.1.bin"}, "2.0.0"},
		{bundle.CodeSigned{Version: "v2.0.0"}, "2.0.0"},
		{bundle.CodeSigned{Path: "/fw/bess-1.0.1.bin"}, "1.0.1"},
		{bundle.CodeSigned{ImageVersion: holds("3.1.4", nil)}, "3.1.4"},
		{bundle.CodeSigned{Version: "3.1.4", ImageVersion: holds("v3.1.4", nil)}, "3.1.4"},
		{bundle.CodeSigned{Version: "3.1.4", ImageVersion: holds("", nil)}, "3.1.4"},
		{bundle.CodeSigned{Version: "9.0.0", ImageVersion: holds("1.0.0", nil)}, "!the job says 9.0.0, the image itself says 1.0.0"},
		{bundle.CodeSigned{Path: "a-9.0.0.bin", ImageVersion: holds("1.0.0", nil)}, `!the path "a-9.0.0.bin" says 9.0.0, the image itself says 1.0.0`},
		{bundle.CodeSigned{Version: "1.0.0", ImageVersion: holds("", errors.New("no descriptor"))}, "!no descriptor"},
		{bundle.CodeSigned{ImageVersion: holds("dirty-3f", nil)}, "!not a number"},
		{bundle.CodeSigned{Version: "latest"}, "!not a number"},
		{bundle.CodeSigned{Path: "/fw/bess.bin"}, `!add "version"`},
		{bundle.CodeSigned{}, `!add "version"`},
	} {
		x.f.Signature = sig
		signed, err := c.Envelope(bytes.NewReader(file), int64(len(file)), x.f)
		if says, ok := strings.CutPrefix(x.want, "!"); ok {
			if !errors.Is(err, ota.ErrValidation) || !strings.Contains(err.Error(), says) {
				t.Errorf("%q %q: got %v, want ErrValidation that says %q", x.f.Version, x.f.Path, err, says)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q %q: %v", x.f.Version, x.f.Path, err)
			continue
		}
		if m, err := c.Verify(signed); err != nil || m.Version != x.want {
			t.Errorf("%q %q: got %v, %v, want %s", x.f.Version, x.f.Path, m, err, x.want)
		}
	}
}

func TestCodeSigningKeys(t *testing.T) {
	good := newOpenSSL(t, p256...)
	for name, x := range map[string]struct {
		pems [][]byte
		says string
	}{
		"none":        {nil, "0 keys"},
		"empty":       {[][]byte{{}}, "empty"},
		"P-384":       {[][]byte{newOpenSSL(t, "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384").public}, "curve P-384"},
		"Ed25519":     {[][]byte{newOpenSSL(t, "-algorithm", "ED25519").cert}, "ed25519"},
		"RSA 1024":    {[][]byte{newOpenSSL(t, "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024").cert}, "RSA key of 1024 bits"},
		"private":     {[][]byte{good.public, good.read("key.pem")}, "text 2: this is a private key"},
		"damaged":     {[][]byte{good.cert[:len(good.cert)-40]}, "damaged PEM"},
		"good and no": {[][]byte{good.cert, []byte("hello")}, "text 2: no key"},
	} {
		c, err := bundle.ParseCodeSigning("p", "c", x.pems...)
		if c != nil || err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: got %v, %v, want an error that says %q", name, c, err, x.says)
		}
	}
	for _, names := range [][2]string{{"", "c"}, {"p", ""}, {"a b", "c"}} {
		if _, err := bundle.ParseCodeSigning(names[0], names[1], good.cert); err == nil {
			t.Errorf("%q: no error", names)
		}
	}
	if _, err := bundle.ParseKeys(1, newOpenSSL(t, rsa2048...).public); err == nil {
		t.Error("RSA 2048 is taken as a key for releases, want at least 3072 bits")
	}
}

// TestVerifyAny: the type decides who verifies, and no verifier takes another's.
func TestVerifyAny(t *testing.T) {
	file := firmware(5000)
	s := newOpenSSL(t, p256...)
	c, err := bundle.ParseCodeSigning("p", "c", s.public)
	if err != nil {
		t.Fatal(err)
	}
	image, want := wrapped(t, c, file, bundle.CodeSigned{Version: "1.0.1", Signature: s.sign("sha256", file)})
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bundle.ParseKeys(1, public)
	if err != nil {
		t.Fatal(err)
	}
	release, err := bundle.Sign(want, key)
	if err != nil {
		t.Fatal(err)
	}
	both := bundle.VerifyAny(map[string]ota.Verify{bundle.PayloadType: keys.Verify, bundle.CodeSignedType: c.Verify})
	for name, signed := range map[string][]byte{"image": image, "release": release} {
		if m, err := both(signed); err != nil || m.Version != "1.0.1" {
			t.Errorf("%s: got %v, %v", name, m, err)
		}
	}
	for name, x := range map[string]struct {
		verify ota.Verify
		signed []byte
	}{
		"image without code signing": {bundle.VerifyAny(map[string]ota.Verify{bundle.PayloadType: keys.Verify}), image},
		"release without keys":       {bundle.VerifyAny(map[string]ota.Verify{bundle.CodeSignedType: c.Verify}), release},
		"nil verifier":               {bundle.VerifyAny(map[string]ota.Verify{bundle.PayloadType: nil}), release},
		"nothing":                    {bundle.VerifyAny(nil), release},
		"type exchanged":             {both, bytes.Replace(image, []byte(bundle.CodeSignedType), []byte(bundle.PayloadType), 1)},
		"type exchanged back":        {both, bytes.Replace(release, []byte(bundle.PayloadType), []byte(bundle.CodeSignedType), 1)},
		"two types":                  {both, bytes.Replace(image, []byte(`{`), []byte(`{"payloadType":"`+bundle.PayloadType+`",`), 1)},
		"no type":                    {both, []byte(`{"payload":"e30=","signatures":[]}`)},
		"empty":                      {both, nil},
		"no JSON":                    {both, []byte("hello")},
		"keys given it":              {keys.Verify, image},
		"code signing given it":      {c.Verify, release},
	} {
		if m, err := x.verify(x.signed); m != nil || !errors.Is(err, ota.ErrValidation) {
			t.Errorf("%s: got %v, %v, want ErrValidation", name, m, err)
		}
	}
}
