package bundle

import (
	"bytes"
	"crypto"
	"crypto/dsa" //nolint:staticcheck // only to name it in a refusal
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/interlock-energy/ota"
)

// Keys is a set of public keys and the number of them that must have signed. It
// does not change. The zero Keys, and nil, refuse everything.
type Keys struct {
	keys      []key
	threshold int
}

// key is a public key that may be trusted. Its id is the SHA-256, in hex, of its
// PKIX DER form (RFC 5280, SubjectPublicKeyInfo), whatever form it was read in.
type key struct {
	id     string
	public crypto.PublicKey
}

// ParseKeys reads public keys in PEM ("PUBLIC KEY"), of which each of pems holds
// one or more: Ed25519, ECDSA on P-256 or P-384, RSA of 3072 to 8192 bits. A
// manifest must be signed by threshold different keys, at least 1 and at most as
// many as there are.
//
// One bad key is an error and no keys are returned: a device that goes on with
// the rest, or with none, would trust something that nobody decided.
func ParseKeys(threshold int, pems ...[]byte) (*Keys, error) {
	return parseKeys(threshold, false, pems...)
}

func parseKeys(threshold int, allowWellKnown bool, pems ...[]byte) (*Keys, error) {
	k := &Keys{threshold: threshold}
	for i, p := range pems {
		keys, err := parsePublic(p, allowWellKnown)
		if err != nil {
			return nil, fmt.Errorf("read public keys: text %d: %w", i+1, err)
		}
		k.add(keys)
	}
	if err := k.check(); err != nil {
		return nil, err
	}
	return k, nil
}

// LoadKeys is [ParseKeys] for files. A file that cannot be read is an error.
func LoadKeys(threshold int, files ...string) (*Keys, error) {
	k := &Keys{threshold: threshold}
	for _, name := range files {
		b, err := readKeyFile(name, nil)
		if err != nil {
			return nil, fmt.Errorf("read public keys: %w", err)
		}
		keys, err := parsePublic(b, false)
		if err != nil {
			return nil, fmt.Errorf("read public keys: %s: %w", name, err)
		}
		k.add(keys)
	}
	if err := k.check(); err != nil {
		return nil, err
	}
	return k, nil
}

// add takes each key once: the same key in two files is still one signer.
func (k *Keys) add(keys []key) {
	for _, n := range keys {
		if !slices.ContainsFunc(k.keys, func(o key) bool { return o.id == n.id }) {
			k.keys = append(k.keys, n)
		}
	}
}

func (k *Keys) check() error {
	switch n := len(k.keys); {
	case n == 0:
		return errors.New("read public keys: none given; without a key nothing can be verified")
	case n > MaxKeys:
		return fmt.Errorf("read public keys: %d keys, want at most %d", n, MaxKeys)
	case k.threshold < 1:
		return fmt.Errorf("read public keys: threshold is %d, want 1 to %d", k.threshold, n)
	case k.threshold > n:
		return fmt.Errorf("read public keys: threshold is %d, but there are only %d different keys, so no release could ever be verified", k.threshold, n)
	}
	return nil
}

// IDs returns the keys' ids, each 64 hexadecimal digits, in the order in which
// the keys were given.
func (k *Keys) IDs() []string {
	if k == nil {
		return nil
	}
	ids := make([]string, len(k.keys))
	for i := range k.keys {
		ids[i] = k.keys[i].id
	}
	return ids
}

// Threshold returns how many different keys must have signed; 0 for the zero Keys.
func (k *Keys) Threshold() int {
	if k == nil {
		return 0
	}
	return k.threshold
}

// Verify implements [ota.Verify]: it returns the manifest in an envelope that
// enough of the keys have signed. All errors wrap [ota.ErrValidation]. It does
// not look at the clock; expiry is for the manager to judge.
func (k *Keys) Verify(signed []byte) (*ota.Manifest, error) {
	if k == nil || len(k.keys) == 0 || k.threshold < 1 {
		return nil, refuse("verify signatures: no public keys are loaded, so everything is refused")
	}
	e, err := parseEnvelope(signed)
	if err != nil {
		return nil, err
	}
	if ids := k.signers(e, k.threshold); len(ids) < k.threshold {
		return nil, refuse("verify signatures: %d by keys trusted here hold, want %d; the envelope has %d, by %s; trusted are %s",
			len(ids), k.threshold, len(e.signatures), hints(e), short(k.IDs()))
	}
	return parseManifest(e.payload)
}

// Signers returns the ids of those of the keys whose signature in the envelope
// holds, whatever the threshold. Errors wrap [ota.ErrValidation].
func (k *Keys) Signers(signed []byte) ([]string, error) {
	e, err := parseEnvelope(signed)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, nil
	}
	return k.signers(e, len(k.keys)), nil
}

// signers returns the different keys that have signed e, and stops when there
// are enough. The hint in a signature only decides which key is tried first.
func (k *Keys) signers(e *envelope, enough int) []string {
	msg := message{bytes: e.message}
	var ids []string
	for _, s := range e.signatures {
		if len(ids) >= enough {
			break
		}
		hinted := func(n key) bool { return n.id == s.keyID }
		i := slices.IndexFunc(k.keys, func(n key) bool { return hinted(n) && n.verifies(&msg, s.sig) })
		if i < 0 {
			i = slices.IndexFunc(k.keys, func(n key) bool { return !hinted(n) && n.verifies(&msg, s.sig) })
		}
		if i >= 0 && !slices.Contains(ids, k.keys[i].id) {
			ids = append(ids, k.keys[i].id)
		}
	}
	return ids
}

func hints(e *envelope) string {
	var ids []string
	for _, s := range e.signatures {
		ids = append(ids, s.keyID)
	}
	return short(ids)
}

// short abbreviates ids, which may come from an attacker, for an error.
func short(ids []string) string {
	if len(ids) == 0 {
		return "nobody"
	}
	var out []string
	for _, id := range ids {
		out = append(out, fmt.Sprintf("%.12q", id))
	}
	return strings.Join(out, ", ")
}

// message is what is signed, with its hashes computed once for all keys.
type message struct {
	bytes          []byte
	sha256, sha384 []byte
}

func (m *message) sum(h crypto.Hash) []byte {
	if h == crypto.SHA384 {
		if m.sha384 == nil {
			s := sha512.Sum384(m.bytes)
			m.sha384 = s[:]
		}
		return m.sha384
	}
	if m.sha256 == nil {
		s := sha256.Sum256(m.bytes)
		m.sha256 = s[:]
	}
	return m.sha256
}

// verifies reports whether sig is k's signature of msg: Ed25519 (RFC 8032), ECDSA
// in ASN.1 with SHA-256 on P-256 and SHA-384 on P-384, RSA-PSS with SHA-256 and
// any length of salt (tools differ in it, and it decides nothing).
func (k key) verifies(msg *message, sig []byte) bool {
	switch p := k.public.(type) {
	case ed25519.PublicKey:
		return len(sig) == ed25519.SignatureSize && ed25519.Verify(p, msg.bytes, sig)
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, msg.sum(ecdsaHash(p)), sig)
	case *rsa.PublicKey:
		opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA256}
		return len(sig) == p.Size() && rsa.VerifyPSS(p, crypto.SHA256, msg.sum(crypto.SHA256), sig, opts) == nil
	}
	return false
}

func ecdsaHash(p *ecdsa.PublicKey) crypto.Hash {
	if p.Curve == elliptic.P384() {
		return crypto.SHA384
	}
	return crypto.SHA256
}

// newKey accepts a public key that is strong enough, and says why not otherwise.
func newKey(public crypto.PublicKey, allowWellKnown bool) (key, error) {
	return newKeyFrom(public, allowWellKnown, 3072)
}

// newKeyFrom is newKey with RSA keys from minRSA bits on.
func newKeyFrom(public crypto.PublicKey, allowWellKnown bool, minRSA int) (key, error) {
	const want = "want Ed25519, ECDSA on P-256 or P-384, or RSA of at least 3072 bits"
	switch p := public.(type) {
	case ed25519.PublicKey:
		if len(p) != ed25519.PublicKeySize {
			return key{}, fmt.Errorf("Ed25519 key has %d bytes, want %d", len(p), ed25519.PublicKeySize)
		}
		if smallOrder(p) {
			return key{}, errors.New("Ed25519 key is one of the few for which anybody can sign (an erased memory gives one); make a new key")
		}
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() && p.Curve != elliptic.P384() {
			return key{}, fmt.Errorf("ECDSA key on curve %s; %s", p.Curve.Params().Name, want)
		}
	case *rsa.PublicKey:
		if n := p.N.BitLen(); n < minRSA || n > 8*maxSignatureSize {
			return key{}, fmt.Errorf("RSA key of %d bits, want %d to %d", n, minRSA, 8*maxSignatureSize)
		}
		if p.E < 65537 || p.E%2 == 0 {
			return key{}, fmt.Errorf("RSA key with exponent %d, want an odd one from 65537", p.E)
		}
	case *dsa.PublicKey:
		return key{}, errors.New("DSA key; " + want)
	case *ecdh.PublicKey:
		return key{}, errors.New("X25519 key, which cannot sign; " + want)
	default:
		return key{}, fmt.Errorf("key of type %T; %s", public, want)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return key{}, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	k := key{hex.EncodeToString(sum[:]), public}
	if whose := wellKnown(k.id); whose != "" && !allowWellKnown {
		return key{}, fmt.Errorf("key %.12s is a published test key (%s): everybody has its private half; make a new key", k.id, whose)
	}
	return k, nil
}

// smallOrder reports whether an Ed25519 public key is a point of order 1, 2, 4
// or 8, for which signatures can be made without a private key. Package ed25519
// accepts them. The y coordinates, with those not reduced modulo p, are the list
// of libsodium's ge25519_has_small_order; the highest bit is the sign of x.
func smallOrder(p ed25519.PublicKey) bool {
	y := slices.Clone(p)
	y[31] &= 0x7f
	switch hex.EncodeToString(y) {
	case "0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f":
		return true
	}
	return false
}

func parsePublic(text []byte, allowWellKnown bool) ([]key, error) {
	blocks, err := pemBlocks(text)
	if err != nil {
		return nil, err
	}
	var keys []key
	for i, b := range blocks {
		if b.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("key %d: %w", i+1, wrongBlock(b.Type))
		}
		public, err := x509.ParsePKIXPublicKey(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		k, err := newKey(public, allowWellKnown)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func wrongBlock(kind string) error {
	switch {
	case kind == "CERTIFICATE" || kind == "TRUSTED CERTIFICATE":
		return errors.New("this is a certificate, want a public key; take it out with: openssl x509 -in FILE -noout -pubkey")
	case kind == "RSA PUBLIC KEY":
		return errors.New("this is an RSA key in PKCS #1; convert it with: openssl rsa -RSAPublicKey_in -in FILE -pubout")
	case strings.HasSuffix(kind, "PRIVATE KEY"):
		return errors.New("this is a private key, want a public key; a private key must never be on a device")
	}
	return fmt.Errorf("this is %q, want \"PUBLIC KEY\"", abridge(kind))
}

// pemBlocks returns all blocks of a PEM text. Package pem skips a block that is
// damaged; here it is an error, so that a key cannot get lost.
func pemBlocks(text []byte) ([]*pem.Block, error) {
	var blocks []*pem.Block
	for rest := text; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		blocks = append(blocks, b)
	}
	begun := bytes.Count(text, []byte("-----BEGIN"))
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return nil, errors.New("the text is empty, want a key in PEM")
	case bytes.HasPrefix(text, []byte("ssh-")) || bytes.HasPrefix(text, []byte("ecdsa-sha2-")):
		return nil, errors.New("this is a key for SSH, want PEM; convert it with: ssh-keygen -e -m PKCS8 -f FILE")
	case begun == 0 && text[0] == 0x30:
		return nil, errors.New("this is DER, want PEM; convert it with: openssl pkey -inform DER -in FILE (add -pubin for a public key)")
	case begun == 0:
		return nil, errors.New("no key found, want a text that has -----BEGIN PUBLIC KEY----- or -----BEGIN PRIVATE KEY-----")
	case begun != len(blocks) || bytes.Count(text, []byte("-----END")) != begun:
		return nil, fmt.Errorf("damaged PEM: %d blocks begin, %d can be read", begun, len(blocks))
	}
	return blocks, nil
}

// readKeyFile reads a key file through one descriptor, on which check, if any,
// has looked at its mode.
func readKeyFile(name string, check func(os.FileInfo) error) ([]byte, error) {
	const limit = 1 << 20
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if check != nil {
		if err := check(info); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes, which no key file is", name, limit)
	}
	return b, nil
}
