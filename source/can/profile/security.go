package profile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// How a tester shows who it is. Requests are 27 01 and 27 02, or 29 05 and 29 06 of
// ISO 14229-1:2020 with [Algorithm].
const (
	SecurityLevel = 0x01 // subfunction of requestSeed; sendKey is one more
	SeedSize      = 32   // random bytes, new for every try
	KeySize       = 64   // bytes of a signature
)

// securityContext keeps a signature of a seed from being one of anything else, whatever
// else the key signs.
const securityContext = "interlock: unlock programming over CAN, version 1\x00"

// Algorithm is the algorithmIndicator of service 29, 16 bytes: no registered object
// identifier says "Ed25519 or ECDSA as [SecurityMessage] has it", so it is a name.
var Algorithm = [16]byte{'i', 'n', 't', 'e', 'r', 'l', 'o', 'c', 'k', '-', 'c', 'a', 'n', '-', '1', 0}

// SecurityMessage is what a tester signs to be let in: the purpose, the device's id
// (DIDSerial) with its length, and the seed that this device has just made up. So a
// signature helps with no other device, at no other time and for nothing else.
func SecurityMessage(device string, seed []byte) []byte {
	b := append([]byte(securityContext), byte(len(device)>>8), byte(len(device)))
	return append(append(b, device...), seed...)
}

// SignSeed answers a seed with key: Ed25519, or ECDSA on P-256 with SHA-256, both as 64
// bytes (r and s of 32 bytes each).
func SignSeed(key crypto.Signer, device string, seed []byte) ([]byte, error) {
	message := SecurityMessage(device, seed)
	switch public := key.Public().(type) {
	case ed25519.PublicKey:
		return key.Sign(nil, message, crypto.Hash(0))
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			break
		}
		sum := sha256.Sum256(message)
		der, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			return nil, err
		}
		var sig struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(der, &sig); err != nil || len(rest) > 0 || sig.R.BitLen() > 256 || sig.S.BitLen() > 256 {
			return nil, errors.New("sign the seed: the key's signature is not one of ECDSA on P-256")
		}
		return append(sig.R.FillBytes(make([]byte, 32)), sig.S.FillBytes(make([]byte, 32))...), nil
	}
	return nil, fmt.Errorf("sign the seed: a key of type %T, want Ed25519 or ECDSA on P-256", key.Public())
}

// VerifySeed reports whether signature is key's answer to seed. Keys of another kind than
// [SignSeed] takes verify nothing.
func VerifySeed(key crypto.PublicKey, device string, seed, signature []byte) bool {
	if len(signature) != KeySize || len(seed) != SeedSize {
		return false
	}
	message := SecurityMessage(device, seed)
	switch k := key.(type) {
	case ed25519.PublicKey:
		return len(k) == ed25519.PublicKeySize && ed25519.Verify(k, message, signature)
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return false
		}
		sum := sha256.Sum256(message)
		return ecdsa.Verify(k, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	}
	return false
}
