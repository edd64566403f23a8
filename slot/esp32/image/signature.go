package image

import (
	"crypto"
	"errors"
)

// Signature is the signature sector of Secure Boot v2.
type Signature struct {
	Offset int64            // of the sector: a multiple of [SectorSize]
	Blocks []SignatureBlock // 1 to 3
}

// A SignatureBlock is the signature of one key.
type SignatureBlock struct {
	Scheme    string   // such as "RSA-3072" or "ECDSA P-256"
	KeyDigest [32]byte // of the public key in the block; as the eFuses would hold it
	Pinned    bool     // the key is one of [Options.KeyDigests]
	Err       error    // nil: the signature holds, for the key in the block
}

// KeyDigest returns the SHA-256 of a public key in the form that a chip's eFuses
// hold and [Options.KeyDigests] wants. The key is RSA-3072 or ECDSA P-256 or P-384.
func KeyDigest(public crypto.PublicKey) ([32]byte, error) {
	return [32]byte{}, errors.ErrUnsupported
}

// Sign returns image with padding and a signature sector for Secure Boot v2, with
// one block for each of one to three keys: *rsa.PrivateKey of 3072 bits, or
// *ecdsa.PrivateKey on P-256 or P-384. It is for tests and benches: what signs
// for a production line is the vendor's espsecure or a hardware module.
func Sign(image []byte, keys ...crypto.Signer) ([]byte, error) {
	return nil, errors.ErrUnsupported
}
