package bundle

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
)

func pkix(t *testing.T, public any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func join(texts ...[]byte) (all []byte) {
	for _, b := range texts {
		all = append(all, b...)
	}
	return all
}

func newPair(t *testing.T, kind string) (crypto.Signer, []byte) {
	t.Helper()
	private, public, err := GenerateKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s, public
}

func TestParseKeysRefuses(t *testing.T) {
	signer, good := newPair(t, "")
	_, other := newPair(t, "")
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	private, _ := x509.MarshalPKCS8PrivateKey(signer)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	der, _ := pem.Decode(good)
	// A DSA key of 1024 bits would need parameters; these are enough to be parsed.
	dsaDER := unhex(t, "301d3013"+"06072a8648ce380401"+"3009"+"020107"+"020103"+"020102"+"0306"+"00"+"0203010001")
	dsaDER[1] = byte(len(dsaDER) - 2)
	dsaDER[3] = 0x14 // algorithm: 9 + 11
	x25519 := unhex(t, "302a300506032b656e032100"+strings.Repeat("09", 32))
	rsaKey := func(bits, e int) []byte {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return pkix(t, &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: e})
	}
	for _, tc := range []struct {
		name      string
		threshold int
		pems      [][]byte
		want      string
	}{
		{"no keys", 1, nil, "none given"},
		{"no keys and threshold 0", 0, nil, "none given"},
		{"empty text", 1, [][]byte{{}}, "is empty"},
		{"white space", 1, [][]byte{[]byte(" \n\n")}, "is empty"},
		{"empty text after a good key", 1, [][]byte{good, nil}, "text 2: the text is empty"},
		{"threshold 0", 0, [][]byte{good}, "threshold is 0, want 1 to 1"},
		{"threshold -1", -1, [][]byte{good}, "threshold is -1"},
		{"threshold 2 of 1", 2, [][]byte{good}, "only 1 different keys"},
		{"threshold 2 of the same key twice", 2, [][]byte{good, good}, "only 1 different keys"},
		{"threshold 3 of 2", 3, [][]byte{join(good, other)}, "only 2 different keys"},
		{"text", 1, [][]byte{[]byte("no key")}, "no key found"},
		{"DER", 1, [][]byte{der.Bytes}, "this is DER"},
		{"SSH", 1, [][]byte{[]byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me@here")}, "key for SSH"},
		{"damaged base64 of the second key", 1, [][]byte{join(good, []byte("-----BEGIN PUBLIC KEY-----\nMCow*wAB\n-----END PUBLIC KEY-----\n"))}, "damaged PEM: 2 blocks begin, 1 can be read"},
		{"truncated second key", 1, [][]byte{join(good, other[:len(other)-30])}, "damaged PEM"},
		{"lost begin", 1, [][]byte{join(good, other[30:])}, "damaged PEM"},
		{"not a key inside", 1, [][]byte{block("PUBLIC KEY", []byte("hello"))}, "key 1: "},
		{"trailing bytes in the DER", 1, [][]byte{block("PUBLIC KEY", append(der.Bytes, 0))}, "trailing data"},
		{"private key", 1, [][]byte{block("PRIVATE KEY", private)}, "this is a private key"},
		{"private after public", 1, [][]byte{join(good, block("PRIVATE KEY", private))}, "key 2: this is a private key"},
		{"encrypted private key", 1, [][]byte{block("ENCRYPTED PRIVATE KEY", private)}, "this is a private key"},
		{"certificate", 1, [][]byte{block("CERTIFICATE", cert)}, "openssl x509"},
		{"PKCS #1", 1, [][]byte{block("RSA PUBLIC KEY", []byte{0})}, "-RSAPublicKey_in"},
		{"certificate request", 1, [][]byte{block("CERTIFICATE REQUEST", []byte{0})}, `this is "CERTIFICATE REQUEST"`},
		{"RSA-2048", 1, [][]byte{rsaKey(2048, 65537)}, "RSA key of 2048 bits, want 3072 to 8192"},
		{"RSA-3071", 1, [][]byte{rsaKey(3071, 65537)}, "RSA key of 3071 bits"},
		{"RSA-8193", 1, [][]byte{rsaKey(8193, 65537)}, "RSA key of 8193 bits"},
		{"RSA exponent 3", 1, [][]byte{rsaKey(3072, 3)}, "exponent 3"},
		{"P-224", 1, [][]byte{pkix(t, p224.Public())}, "curve P-224"},
		{"P-521", 1, [][]byte{pkix(t, p521.Public())}, "curve P-521"},
		{"DSA", 1, [][]byte{block("PUBLIC KEY", dsaDER)}, "DSA key"},
		{"X25519", 1, [][]byte{block("PUBLIC KEY", x25519)}, "cannot sign"},
		{"erased Ed25519", 1, [][]byte{pkix(t, make(ed25519.PublicKey, 32))}, "anybody can sign"},
		{"published test key", 1, [][]byte{readFile(t, "testdata/ed25519.public.pem")}, "published test key (Interlock"},
		{"test key of MCUboot", 1, [][]byte{pkix(t, ed25519.PublicKey(unhex(t, "d4b31ba49a3add3f825d10ca7f31b50b0de87f37ccc49f1a403a5c1320ffb4e0")))}, "published test key (MCUboot"},
		{"test key of RFC 8032", 1, [][]byte{pkix(t, ed25519.NewKeyFromSeed(unhex(t, "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")).Public())}, "RFC 8032"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, err := ParseKeys(tc.threshold, tc.pems...)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
			if k != nil {
				t.Errorf("got keys %q as well, want none", k.IDs())
			}
		})
	}
	var many [][]byte
	for range MaxKeys + 1 {
		_, p := newPair(t, "")
		many = append(many, p)
	}
	if _, err := ParseKeys(1, many...); err == nil || !strings.Contains(err.Error(), "17 keys") {
		t.Errorf("17 keys: got %v, want a refusal", err)
	}
}

func TestGoldenKeysAreRefusedOutsideTests(t *testing.T) {
	for _, kind := range kinds() {
		if _, err := ParseKeys(1, readFile(t, "testdata/"+kind+".public.pem")); err == nil || !strings.Contains(err.Error(), "published test key") {
			t.Errorf("public %s: got %v, want a refusal", kind, err)
		}
		if _, err := ParsePrivateKey(readFile(t, "testdata/"+kind+".private.pem")); err == nil || !strings.Contains(err.Error(), "published test key") {
			t.Errorf("private %s: got %v, want a refusal", kind, err)
		}
		if _, err := LoadKeys(1, "testdata/"+kind+".public.pem"); err == nil {
			t.Errorf("file %s: got no error", kind)
		}
	}
}

// Every key that smallOrder refuses can indeed be signed for by anybody: with S
// = 0, some R of small order fits after a few messages.
func TestSmallOrderKeysAreForgeable(t *testing.T) {
	points := []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	}
	var all [][]byte
	for _, p := range points {
		for _, sign := range []byte{0, 0x80} {
			b := unhex(t, p)
			b[31] |= sign
			all = append(all, b)
		}
	}
	for _, a := range all {
		forged := false
		for msg := byte(0); msg < 100 && !forged; msg++ {
			for _, r := range all {
				forged = forged || ed25519.Verify(a, []byte{msg}, append(append([]byte{}, r...), make([]byte, 32)...))
			}
		}
		if _, err := newKey(ed25519.PublicKey(a), false); err == nil || !forged {
			t.Errorf("key %x: forged %v, refused with %v; want both", a, forged, err)
		}
	}
}

func TestKeysFromFiles(t *testing.T) {
	dir := t.TempDir()
	s1, p1 := newPair(t, "")
	_, p2 := newPair(t, "p256")
	_, p3 := newPair(t, "p384")
	for name, b := range map[string][]byte{"one": p1, "two": join([]byte("# the factory's key\n"), p2, []byte("\nand the service key\r\n"), p3), "empty": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k, err := LoadKeys(2, filepath.Join(dir, "one"), filepath.Join(dir, "two"), filepath.Join(dir, "one"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := KeyID(s1)
	if err != nil {
		t.Fatal(err)
	}
	if got := k.IDs(); len(got) != 3 || got[0] != id || k.Threshold() != 2 {
		t.Errorf("got keys %q, threshold %d, want 3 with %s first, threshold 2", got, k.Threshold(), id)
	}
	for _, tc := range []struct{ file, want string }{
		{"missing", "no such file"}, {"empty", "the text is empty"}, {".", "is a directory"},
	} {
		k, err := LoadKeys(1, filepath.Join(dir, "one"), filepath.Join(dir, tc.file))
		if k != nil || err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v, %v, want an error with %q and the file's name", tc.file, k, err, tc.want)
		}
	}
	if k, err := LoadKeys(1); k != nil || err == nil {
		t.Errorf("no files: got %v, %v, want an error", k, err)
	}
}

// A device whose keys are missing must refuse, not skip the check.
func TestNoKeysRefuseEverything(t *testing.T) {
	good := openBytes(t, readFile(t, "testdata/format1-all.bundle")).Signed()
	for name, k := range map[string]*Keys{
		"nil": nil, "zero": {}, "threshold without keys": {threshold: 1},
		"keys without threshold": {keys: testKeys(t, 1, "ed25519").keys},
	} {
		m, err := k.Verify(good)
		if m != nil || !errors.Is(err, ota.ErrValidation) || !strings.Contains(err.Error(), "no public keys") {
			t.Errorf("%s: got %v, %v, want ErrValidation about keys", name, m, err)
		}
		if name != "keys without threshold" && len(k.IDs()) != 0 {
			t.Errorf("%s: got ids %q, want none", name, k.IDs())
		}
	}
}

func TestPrivateKeys(t *testing.T) {
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	sec1, _ := x509.MarshalECPrivateKey(ec)
	ecID, _ := KeyID(ec)
	rsaSigner := testSigner(t, "rsa3072").(*rsa.PrivateKey)
	_, public := newPair(t, "")
	first, _, _ := GenerateKey("ed25519")
	second, _, _ := GenerateKey("p384")
	weak, _ := x509.MarshalPKCS8PrivateKey(func() *ecdsa.PrivateKey { k, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader); return k }())
	oldEncrypted := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: sec1})

	for _, tc := range []struct {
		name string
		text []byte
		want string // in the error; empty: good
	}{
		{"SEC 1", block("EC PRIVATE KEY", sec1), ""},
		{"SEC 1 after parameters", join(block("EC PARAMETERS", []byte{6, 0}), block("EC PRIVATE KEY", sec1)), ""},
		{"PKCS #8", second, ""},
		{"empty", nil, "is empty"},
		{"public key", public, "this is a public key"},
		{"two keys", join(first, second), "2 keys in one text"},
		{"encrypted PKCS #8", block("ENCRYPTED PRIVATE KEY", sec1), "encrypted"},
		{"encrypted, old form", oldEncrypted, "encrypted"},
		{"SSH", block("OPENSSH PRIVATE KEY", sec1), "SSH"},
		{"certificate", block("CERTIFICATE", sec1), `this is "CERTIFICATE"`},
		{"damaged", block("PRIVATE KEY", []byte("hello")), "read private key"},
		{"P-224", block("PRIVATE KEY", weak), "curve P-224"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := ParsePrivateKey(tc.text)
			if tc.want == "" {
				if err != nil || s == nil {
					t.Fatalf("got %v, %v, want a key", s, err)
				}
				if id, err := KeyID(s); err != nil || tc.name != "PKCS #8" && id != ecID {
					t.Errorf("got id %s, %v, want %s", id, err, ecID)
				}
				return
			}
			if s != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v, want an error with %q", s, err, tc.want)
			}
		})
	}
	if s, err := parsePrivate(block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaSigner)), true); err != nil || !rsaSigner.Equal(s) {
		t.Errorf("PKCS #1: got %v, want the same key", err)
	}
	if _, _, err := GenerateKey("rsa2048"); err == nil || !strings.Contains(err.Error(), "want ed25519") {
		t.Errorf("kind rsa2048: got %v, want an error that names the kinds", err)
	}
}

func TestPrivateKeyFileMode(t *testing.T) {
	private, public, err := GenerateKey("")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, private, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		mode os.FileMode
		want string
	}{{0o600, ""}, {0o400, ""}, {0o640, ""}, {0o644, "chmod 600 " + file}, {0o602, "chmod 600"}, {0o604, "mode 0604"}} {
		if err := os.Chmod(file, tc.mode); err != nil {
			t.Fatal(err)
		}
		s, err := LoadPrivateKey(file)
		if tc.want == "" {
			if err != nil {
				t.Errorf("mode %o: %v", tc.mode, err)
				continue
			}
			if got := string(pkix(t, s.Public())); got != string(public) {
				t.Errorf("mode %o: got public key %q, want %q", tc.mode, got, public)
			}
		} else if s != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("mode %o: got %v, %v, want an error with %q", tc.mode, s, err, tc.want)
		}
	}
	if _, err := LoadPrivateKey(file + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: got %v, want ErrNotExist", err)
	}
}

// faultySigner signs wrongly, as hardware under a voltage fault does.
type faultySigner struct {
	crypto.Signer
	err error
}

func (s faultySigner) Sign(r io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	sig, err := s.Signer.Sign(r, msg, opts)
	if err == nil {
		sig[len(sig)-1] ^= 1
	}
	return sig, err
}

func TestFaultySignersAreNoticed(t *testing.T) {
	signed := openBytes(t, readFile(t, "testdata/format1-all.bundle")).Signed()
	m, err := Unsigned(signed)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("module is locked")
	for _, kind := range kinds() {
		if _, err := Sign(m, faultySigner{testSigner(t, kind), nil}); err == nil || !strings.Contains(err.Error(), "does not verify") {
			t.Errorf("%s: got %v, want that the signature does not verify", kind, err)
		}
		if _, err := Sign(m, faultySigner{testSigner(t, kind), broken}); !errors.Is(err, broken) {
			t.Errorf("%s: got %v, want %v", kind, err, broken)
		}
	}
	if _, err := Sign(m, nil); err == nil {
		t.Error("nil key: got no error")
	}
	if _, err := Sign(m); err == nil || !strings.Contains(err.Error(), "no private keys") {
		t.Errorf("no key: got %v, want an error", err)
	}
}
