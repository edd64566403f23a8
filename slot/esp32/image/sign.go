package image

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"slices"
)

// KeyDigest returns the SHA-256 of a public key in the form that a chip's eFuses
// hold and [Options.KeyDigests] wants. The key is RSA-3072 or ECDSA P-256 or P-384.
func KeyDigest(public crypto.PublicKey) ([32]byte, error) {
	b, _, err := encodeKey(public)
	if err != nil {
		return [32]byte{}, fmt.Errorf("digest of a key for Secure Boot v2: %w", err)
	}
	return sha256.Sum256(b), nil
}

// Sign returns image with padding and a signature sector for Secure Boot v2, with
// one block for each of one to three keys: *rsa.PrivateKey of 3072 bits, or
// *ecdsa.PrivateKey on P-256 or P-384. It is for tests and benches: what signs
// for a production line is the vendor's espsecure or a hardware module.
func Sign(image []byte, keys ...crypto.Signer) ([]byte, error) {
	if len(keys) < 1 || len(keys) > maxBlocks {
		return nil, fmt.Errorf("sign an image: got %d keys, want 1 to %d", len(keys), maxBlocks)
	}
	base := (len(image) + SectorSize - 1) &^ (SectorSize - 1)
	signed := append(make([]byte, 0, base+SectorSize), image...)
	signed = append(signed, bytes.Repeat([]byte{0xFF}, base-len(image))...)
	sector := bytes.Repeat([]byte{0xFF}, SectorSize)
	for i, key := range keys {
		b, err := signBlock(signed[:base], key)
		if err != nil {
			return nil, fmt.Errorf("sign an image: key %d of %d: %w", i+1, len(keys), err)
		}
		copy(sector[i*sigBlock:], b)
	}
	return append(signed, sector...), nil
}

func signBlock(padded []byte, key crypto.Signer) ([]byte, error) {
	public, scheme, err := encodeKey(key.Public())
	if err != nil {
		return nil, err
	}
	b := make([]byte, sigBlock)
	b[0], b[1] = sigMagic, sigECDSA
	sum := sha256.Sum256(padded)
	digest := sum[:]
	var opts crypto.SignerOpts = crypto.SHA256
	at := sigKey
	switch scheme {
	case sigRSA:
		b[1] = sigRSA
		opts = &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}
	case curveP384 + sigECDSA:
		b[2] = 1 // SHA-384
		sum := sha512.Sum384(padded)
		digest, opts, at = sum[:], crypto.SHA384, sigKey384
	}
	copy(b[4:], digest)
	copy(b[at:], public)
	sig, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, err
	}
	if scheme == sigRSA {
		copy(b[at+len(public):], reversed(sig))
	} else {
		var v struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(sig, &v); err != nil {
			return nil, fmt.Errorf("read the signature that the key made: %w", err)
		}
		n := (len(public) - 1) / 2
		copy(b[at+len(public):], little(v.R, n))
		copy(b[at+len(public)+n:], little(v.S, n))
	}
	binary.LittleEndian.PutUint32(b[sigCRC:], crc32.ChecksumIEEE(b[:sigCRC]))
	return b, nil
}

// encodeKey returns the part of a signature block that holds a public key, and
// over which the eFuses' digest is.
func encodeKey(public crypto.PublicKey) (b []byte, scheme int, err error) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() != 3072 || k.N.Bit(0) == 0 {
			return nil, 0, fmt.Errorf("the RSA key has %d bits: Secure Boot v2 wants 3072", k.N.BitLen())
		}
		return rsaKey(k), sigRSA, nil
	case *ecdsa.PublicKey:
		var curve byte
		switch k.Curve {
		case elliptic.P256():
			curve = curveP256
		case elliptic.P384():
			curve = curveP384
		default:
			return nil, 0, errors.New("the ECDSA key is on a curve that is not supported: Secure Boot v2 wants P-256 or P-384")
		}
		point, err := k.Bytes()
		if err != nil {
			return nil, 0, err
		}
		n := (len(point) - 1) / 2
		b = append([]byte{curve}, reversed(point[1:1+n])...)
		return append(b, reversed(point[1+n:])...), sigECDSA + int(curve), nil
	}
	return nil, 0, fmt.Errorf("a key of type %T is not supported: Secure Boot v2 wants RSA-3072 or ECDSA P-256 or P-384", public)
}

// rsaKey returns a public key, which must be odd and of 3072 bits, with the
// numbers that the chip's accelerator wants beside it: R^2 and the inverse of
// Montgomery's multiplication.
func rsaKey(k *rsa.PublicKey) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, rsaKeySize)
	b = append(b, little(k.N, rsaBytes)...)
	b = le.AppendUint32(b, uint32(k.E))
	r := new(big.Int).Lsh(big.NewInt(1), 2*3072)
	b = append(b, little(r.Mod(r, k.N), rsaBytes)...)
	word := new(big.Int).Lsh(big.NewInt(1), 32)
	inverse := new(big.Int).ModInverse(k.N, word)
	return le.AppendUint32(b, uint32(inverse.Sub(word, inverse).Uint64()))
}

// little returns a number of n bytes, the lowest first.
func little(v *big.Int, n int) []byte {
	b := v.FillBytes(make([]byte, n))
	slices.Reverse(b)
	return b
}
