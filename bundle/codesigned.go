package bundle

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
)

// CodeSignedType is the payloadType of an envelope around an image that was signed
// by a code-signing service, such as AWS Signer, and not as a release.
const CodeSignedType = "application/vnd.interlock.code-signed+json"

// minCodeSigningRSA is the least size of an RSA key for code signing, in bits. It is
// less than that of releases, because the services sign with nothing larger: AWS
// Signer takes certificates of ECDSA P-256 and RSA 2048 for devices. NIST SP 800-57
// part 1, table 4, has 2048 bits until the end of 2030.
const minCodeSigningRSA = 2048

// codeSigningNames is how many images a CodeSigning remembers that it has seen whole.
const codeSigningNames = 8

// CodeSigning takes images that were signed as a whole file by a code-signing
// service, and makes releases of them. It is for fleets that come from FreeRTOS OTA
// and AWS Signer; a release that is signed by [Sign] says more and is safer.
//
// The signature is over the SHA-256 of the file, and that is ALL that is signed.
// The product, the component and the version are NOT: product and component are
// those that this device is configured with, the version is what the job said. So
// whoever can write jobs, and cannot sign, can still
//
//   - send any image that was ever signed with this key, an old one with a known hole,
//     too, under the number of a new version. Only [CodeSigned.ImageVersion], for
//     images that hold their version, prevents that.
//   - send an image of another product that is signed with the same key. Use one key
//     for each product.
//
// Such a release has no expiry, no minimum version, no limits and no hardware, is
// never a downgrade by its number, and has security version 0: a device that has had a
// release with a higher one refuses it.
//
// The chunks' hashes are computed on the device, of a file that is there as a whole
// and whose signature holds. [CodeSigning.Verify] therefore knows only envelopes that
// [CodeSigning.Envelope] of the same value has made since the process started: those
// that somebody else wrote, on a stick for example, are refused, whatever they hold.
type CodeSigning struct {
	product, component string
	keys               []key

	mu   sync.Mutex
	seen []string // digests of manifests that Envelope made, oldest first
}

// ParseCodeSigning reads code-signing keys ("PUBLIC KEY") and certificates
// ("CERTIFICATE") in PEM, at least one and at most [MaxKeys]: ECDSA on P-256, RSA of
// 2048 to 8192 bits. A file must be signed with one of them. Of a certificate only the
// key counts: who configured it has decided, and clocks lie at boot. Images are
// for the product and component given. One bad key is an error and nothing is returned.
func ParseCodeSigning(product, component string, pems ...[]byte) (*CodeSigning, error) {
	return parseCodeSigning(product, component, false, pems...)
}

func parseCodeSigning(product, component string, allowWellKnown bool, pems ...[]byte) (*CodeSigning, error) {
	fail := func(err error) (*CodeSigning, error) { return nil, fmt.Errorf("read code-signing keys: %w", err) }
	if err := ota.CheckName(product); err != nil {
		return fail(fmt.Errorf("product: %w", err))
	}
	if err := ota.CheckName(component); err != nil {
		return fail(fmt.Errorf("component: %w", err))
	}
	c := &CodeSigning{product: product, component: component}
	for i, text := range pems {
		blocks, err := pemBlocks(text)
		if err != nil {
			return fail(fmt.Errorf("text %d: %w", i+1, err))
		}
		for _, b := range blocks {
			public, err := codeSigningKey(b.Type, b.Bytes)
			if err != nil {
				return fail(fmt.Errorf("text %d: %w", i+1, err))
			}
			k, err := newKeyFrom(public, allowWellKnown, minCodeSigningRSA)
			if err != nil {
				return fail(fmt.Errorf("text %d: %w", i+1, err))
			}
			if !slices.ContainsFunc(c.keys, func(o key) bool { return o.id == k.id }) {
				c.keys = append(c.keys, k)
			}
		}
	}
	if n := len(c.keys); n == 0 || n > MaxKeys {
		return fail(fmt.Errorf("%d keys, want 1 to %d", n, MaxKeys))
	}
	return c, nil
}

func codeSigningKey(kind string, der []byte) (crypto.PublicKey, error) {
	var public crypto.PublicKey
	switch kind {
	case "PUBLIC KEY":
		k, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, err
		}
		public = k
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		public = cert.PublicKey
	default:
		return nil, wrongBlock(kind)
	}
	switch p := public.(type) {
	case *rsa.PublicKey:
		return public, nil
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P256() {
			return public, nil
		}
		return nil, fmt.Errorf("ECDSA key on curve %s; want ECDSA on P-256 or RSA, which is what code-signing services use", p.Curve.Params().Name)
	}
	return nil, fmt.Errorf("key of type %T; want ECDSA on P-256 or RSA, which is what code-signing services use", public)
}

// CodeSigned is what is said about a file that was signed as a whole.
type CodeSigned struct {
	Version   string // "": it is looked for in Path and in the image
	Path      string // the file's name, as /fw/bess-1.0.1.bin
	Signature []byte // over the file, with SHA-256: ECDSA in ASN.1, or RSA PKCS #1 v1.5

	// ImageVersion returns the version that the image holds, or "" if it holds none.
	// What it returns is signed with the image, and must be what Version or Path say, if
	// they say anything. Nil: images here hold none.
	ImageVersion func(r io.ReaderAt, size int64) (string, error)
}

// codeSignedPayload is what an envelope of CodeSignedType holds.
type codeSignedPayload struct {
	Manifest  json.RawMessage `json:"manifest"`
	Signature []byte          `json:"signature"` // of the image's SHA-256
}

// VerifyFile reads a whole file of size bytes and reports whether one of the keys has
// signed it. Errors wrap [ota.ErrValidation]; those of r are wrapped.
func (c *CodeSigning) VerifyFile(r io.ReaderAt, size int64, signature []byte) error {
	whole := sha256.New()
	n, err := io.Copy(whole, io.NewSectionReader(r, 0, size))
	if err != nil {
		return fmt.Errorf("verify code signature: read at %d: %w", n, err)
	}
	if n != size {
		return refuse("verify code signature: the file has %d bytes, want %d", n, size)
	}
	return c.verifySum(whole.Sum(nil), signature)
}

func (c *CodeSigning) verifySum(sum, sig []byte) error {
	if c == nil || len(c.keys) == 0 {
		return refuse("verify code signature: no code-signing keys are configured, so everything is refused")
	}
	if len(sig) == 0 || len(sig) > maxSignatureSize {
		return refuse("verify code signature: it has %d bytes, want 1 to %d", len(sig), maxSignatureSize)
	}
	var ids []string
	for _, k := range c.keys {
		if k.signedFile(sum, sig) {
			return nil
		}
		ids = append(ids, k.id)
	}
	return refuse("verify code signature: the file with SHA-256 %x is not signed with a key that is trusted here: %s; "+
		"is it the file that was signed, and is this the certificate of the job's code-signing profile?", sum, short(ids))
}

// signedFile reports whether sig is k's signature of a file with the SHA-256 sum, as
// "openssl dgst -sha256 -sign" makes it.
func (k key) signedFile(sum, sig []byte) bool {
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, sum, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, crypto.SHA256, sum, sig) == nil
	}
	return false
}

// Envelope reads a whole file of size bytes, verifies its signature, and returns an
// envelope that [CodeSigning.Verify] takes. The same file, version and signature make
// the same release, with the same digest. A file for which no version can be told is
// refused. Errors wrap [ota.ErrValidation]; those of r are wrapped.
//
// The file must not change from now on; whoever reads it later compares every chunk
// with the manifest.
func (c *CodeSigning) Envelope(r io.ReaderAt, size int64, f CodeSigned) (signed []byte, err error) {
	if c == nil {
		return nil, (*CodeSigning)(nil).verifySum(nil, nil)
	}
	im, err := DescribeImage(c.component, io.NewSectionReader(r, 0, size), 0, false)
	if err != nil {
		return nil, err
	}
	if im.Size != size {
		return nil, refuse("wrap code-signed image: the file has %d bytes, want %d", im.Size, size)
	}
	if err := c.verifySum(im.SHA256[:], f.Signature); err != nil {
		return nil, err
	}
	version, err := f.version(r, size)
	if err != nil {
		return nil, err
	}
	manifest, err := c.manifest(version, im)
	if err != nil {
		return nil, fmt.Errorf("wrap code-signed image: %w", err)
	}
	payload, err := json.Marshal(codeSignedPayload{manifest, f.Signature})
	if err != nil {
		return nil, fmt.Errorf("wrap code-signed image: %w", err)
	}
	var e envelope
	e.setTyped(CodeSignedType, payload)
	if signed, err = e.encode(); err != nil {
		return nil, err
	}
	c.remember(digest(manifest))
	if _, err := c.Verify(signed); err != nil { // a version, for example, that a manifest cannot have
		return nil, err
	}
	return signed, nil
}

// manifest returns the one manifest that says of im what is known, and nothing else.
// Created is the beginning of time: no signer has said when it was.
func (c *CodeSigning) manifest(version string, im ota.Image) ([]byte, error) {
	return json.Marshal(&ota.Manifest{Format: 1, Product: c.product, Version: version, Created: time.Unix(0, 0).UTC(),
		Images: []ota.Image{{Component: c.component, Size: im.Size, SHA256: im.SHA256, ChunkSize: im.ChunkSize, Chunks: im.Chunks}}})
}

func (c *CodeSigning) remember(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(slices.DeleteFunc(c.seen, func(s string) bool { return s == name }), name)
	if n := len(c.seen) - codeSigningNames; n > 0 {
		c.seen = slices.Delete(c.seen, 0, n)
	}
}

// Verify implements [ota.Verify] for the envelopes that Envelope has made: the
// signature is that of the image's SHA-256 by one of the keys, and the manifest has
// nothing that nobody has signed or configured, but the version. All errors wrap [ota.ErrValidation].
func (c *CodeSigning) Verify(signed []byte) (*ota.Manifest, error) {
	if c == nil {
		return nil, c.verifySum(nil, nil)
	}
	e, err := parseTyped(signed, CodeSignedType)
	if err != nil {
		return nil, err
	}
	if err := checkFields(e.payload); err != nil {
		return nil, refuse("read code-signed image: %w", err)
	}
	var p codeSignedPayload
	dec := json.NewDecoder(bytes.NewReader(e.payload))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return nil, refuse("read code-signed image: %w", explain(err))
	}
	m, err := parseManifest(p.Manifest)
	if err != nil {
		return nil, err
	}
	if err := c.verifySum(m.Images[0].SHA256[:], p.Signature); err != nil {
		return nil, err
	}
	want, err := c.manifest(m.Version, m.Images[0])
	if err != nil {
		return nil, refuse("read code-signed image: %w", err)
	}
	if !bytes.Equal(p.Manifest, want) {
		return nil, refuse("read code-signed image: the manifest says more than a code signature stands for, or is for another product or component than %s of %s",
			c.component, c.product)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.seen, m.Digest) {
		return nil, refuse("read code-signed image: this device has not seen the file of version %s whole, so its chunks are not known; it must come through the job again", m.Version)
	}
	return m, nil
}

// String names the keys, for logs.
func (c *CodeSigning) String() string {
	if c == nil {
		return "no code-signing keys"
	}
	var ids []string
	for _, k := range c.keys {
		ids = append(ids, k.id)
	}
	return "code-signing keys " + short(ids)
}
