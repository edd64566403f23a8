package bundle

import (
	"errors"
	"io"

	"github.com/interlock-energy/ota"
)

// CodeSignedType is the payloadType of an envelope around an image that was signed
// by a code-signing service, and not as a release.
const CodeSignedType = "application/vnd.interlock.code-signed+json"

// CodeSigning is a set of code-signing keys and what their signatures are good for.
type CodeSigning struct {
	product, component string
	keys               []key
}

// ParseCodeSigning reads code-signing keys ("PUBLIC KEY") and certificates
// ("CERTIFICATE") in PEM: ECDSA on P-256, RSA of 2048 to 8192 bits.
func ParseCodeSigning(product, component string, pems ...[]byte) (*CodeSigning, error) {
	return nil, errors.New("read code-signing keys: not written yet")
}

// CodeSigned is what is said about a file that was signed as a whole.
type CodeSigned struct {
	Version   string // "": see Path and ImageVersion
	Path      string // its name, from which a version is taken if Version is ""
	Signature []byte // of the SHA-256 of the file; ECDSA in ASN.1, or RSA PKCS #1 v1.5

	// ImageVersion returns the version in the image itself. Nil: it is not looked for.
	ImageVersion func(r io.ReaderAt, size int64) (string, error)
}

// VerifyFile verifies the signature over a whole file.
func (c *CodeSigning) VerifyFile(r io.ReaderAt, size int64, signature []byte) error {
	return errors.New("verify code signature: not written yet")
}

// Envelope reads a whole file, verifies its signature and returns an envelope for
// Verify.
func (c *CodeSigning) Envelope(r io.ReaderAt, size int64, f CodeSigned) (signed []byte, err error) {
	return nil, errors.New("wrap code-signed image: not written yet")
}

// Verify implements [ota.Verify] for envelopes of [CodeSignedType].
func (c *CodeSigning) Verify(signed []byte) (*ota.Manifest, error) {
	return nil, refuse("verify code signature: not written yet")
}

// VerifyAny returns an [ota.Verify] that hands an envelope to the verifier for its
// payloadType. A type that is not in verifiers is refused.
func VerifyAny(verifiers map[string]ota.Verify) ota.Verify {
	return func([]byte) (*ota.Manifest, error) { return nil, refuse("verify: not written yet") }
}
