package image

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
	"slices"
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
	Err       error    // nil: the signature holds, for the key in the block and, if keys are pinned, for one of them
}

// The layout of a block, in bytes: ets_secure_boot_sig_block_t and
// esp_secure_boot_sig_block_t of esp_secure_boot.h, secure_boot.h in the ROM.
const (
	sigMagic   = 0xE7
	sigRSA     = 2 // versions
	sigECDSA   = 3
	sigBlock   = 1216
	maxBlocks  = 3
	sigCRC     = 1196     // of all bytes before
	sigKey     = 36       // P-384: sigKey384
	sigKey384  = 52       //
	rsaBytes   = 3072 / 8 //
	rsaKeySize = 776      // n, e, 2^6144 mod n and -1/n mod 2^32
	curveP192  = 1
	curveP256  = 2
	curveP384  = 3
)

// signature looks for what is behind the image proper: padding to a sector, and
// one to three blocks. If nobody asks for a signature, the image needs none: other
// bytes in that place are the remains of something else, and if they cannot be
// read that is no fault of the image.
func (s *scanner) signature(info *Info, o Options) error {
	sig, err := s.readSignature(o.KeyDigests)
	if err != nil {
		if len(o.KeyDigests) > 0 {
			return err
		}
		return nil
	}
	if sig != nil {
		info.Signature, info.End = sig, sig.Offset+SectorSize
	}
	switch {
	case len(o.KeyDigests) == 0:
		return nil
	case sig == nil:
		return invalid("image is not signed for Secure Boot v2: there is no signature behind its %d bytes; sign it with a key that this device trusts", info.Size)
	}
	return sig.trusted()
}

// readSignature returns nil if there is no signature. An error is one of the medium.
func (s *scanner) readSignature(pinned [][32]byte) (*Signature, error) {
	sig := &Signature{Offset: (s.at + SectorSize - 1) &^ (SectorSize - 1)}
	if end := sig.Offset + SectorSize; end > s.size || s.max > 0 && end > s.max {
		return nil, nil // no place for one
	}
	sector := make([]byte, maxBlocks*sigBlock)
	if err := readFull(s.r, sector, sig.Offset); err != nil {
		return nil, err
	}
	var blocks [][]byte
	for b := range slices.Chunk(sector, sigBlock) {
		if b[0] != sigMagic || b[1] != sigRSA && b[1] != sigECDSA || b[2] > 1 || b[3] != 0 {
			break // the first that is not there ends the list
		}
		blocks = append(blocks, b)
	}
	if len(blocks) == 0 {
		return nil, nil
	}
	d, err := s.digests(sig.Offset, blocks)
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		sig.Blocks = append(sig.Blocks, checkBlock(b, d, pinned))
	}
	return sig, nil
}

// trusted reports why none of the pinned keys has signed.
func (s *Signature) trusted() error {
	why := s.Blocks[0].Err
	for _, b := range s.Blocks {
		if b.Pinned && b.Err == nil {
			return nil
		}
		if b.Pinned {
			why = b.Err
		}
	}
	return invalid("image is not signed by a key that this device trusts: %w", why)
}

// digests are the hashes of an image with its padding, by size.
type digests struct{ sha256, sha384 []byte }

// digests returns the hashes that the blocks are about.
func (s *scanner) digests(base int64, blocks [][]byte) (d digests, err error) {
	pad := make([]byte, base-s.at)
	if err := s.next(pad, "padding"); err != nil {
		return d, err
	}
	d.sha256 = s.hash.Sum(nil)
	if slices.ContainsFunc(blocks, func(b []byte) bool { return b[1] == sigECDSA && b[2] == 1 }) {
		h := sha512.New384()
		if _, err := io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(s.r, 0, base)}, s.buf); err != nil {
			return d, fmt.Errorf("read the image: %w", err)
		}
		d.sha384 = h.Sum(nil)
	}
	return d, nil
}

// checkBlock checks one block in the order in which the least is believed: CRC,
// hash of the image, key, signature.
func checkBlock(b []byte, d digests, pinned [][32]byte) (r SignatureBlock) {
	var check func() error
	digest, want := b[4:36], d.sha256
	switch {
	case b[1] == sigRSA && b[2] == 0:
		r.Scheme, r.KeyDigest = "RSA-3072", sha256.Sum256(b[sigKey:sigKey+rsaKeySize])
		check = func() error { return checkRSA(b, want) }
	case b[1] == sigECDSA && b[2] == 0 && b[sigKey] == curveP192:
		r.Scheme, r.KeyDigest = "ECDSA P-192", sha256.Sum256(b[sigKey:sigKey+65])
		check = func() error {
			return invalid("the signature uses ECDSA P-192, which is too weak for new firmware: sign with P-256")
		}
	case b[1] == sigECDSA && b[2] == 0 && b[sigKey] == curveP256:
		r.Scheme, r.KeyDigest = "ECDSA P-256", sha256.Sum256(b[sigKey:sigKey+65])
		check = func() error { return checkECDSA(elliptic.P256(), b[sigKey+1:], want) }
	case b[1] == sigECDSA && b[2] == 1 && b[sigKey384] == curveP384:
		digest, want = b[4:52], d.sha384
		r.Scheme, r.KeyDigest = "ECDSA P-384", sha256.Sum256(b[sigKey384:sigKey384+97])
		check = func() error { return checkECDSA(elliptic.P384(), b[sigKey384+1:], want) }
	default:
		r.Scheme = "unknown"
		r.Err = invalid("the signature block is of an unknown kind: version %d, hash %d, curves %d and %d", b[1], b[2], b[sigKey], b[sigKey384])
		return r
	}
	r.Pinned = slices.Contains(pinned, r.KeyDigest)
	if got, says := crc32.ChecksumIEEE(b[:sigCRC]), binary.LittleEndian.Uint32(b[sigCRC:]); got != says {
		r.Err = invalid("the signature block is damaged: its CRC is %08x, and it says %08x", got, says)
	} else if !bytes.Equal(digest, want) {
		r.Err = invalid("the signature is about other bytes: the image with its padding has the hash %x, and was signed with %x", want, digest)
	} else if len(pinned) > 0 && !r.Pinned {
		r.Err = invalid("the digest of its key is %x; sign it with another, or pin that one", r.KeyDigest) // and nothing is calculated with it
	} else {
		r.Err = check()
	}
	return r
}

func checkRSA(b, digest []byte) error {
	n := new(big.Int).SetBytes(reversed(b[sigKey : sigKey+rsaBytes]))
	e := binary.LittleEndian.Uint32(b[420:])
	if n.BitLen() != 3072 || n.Bit(0) == 0 || e < 3 || e%2 == 0 || e > 1<<31-1 {
		return invalid("the public key in the signature block is no RSA key of 3072 bits: it has %d bits and the exponent %d", n.BitLen(), e)
	}
	public := &rsa.PublicKey{N: n, E: int(e)}
	// The chip calculates with the two numbers behind the key, and refuses what
	// was signed well if they are wrong.
	if !bytes.Equal(rsaKey(public), b[sigKey:sigKey+rsaKeySize]) {
		return invalid("the public key in the signature block has wrong helper numbers: sign the image again")
	}
	if rsa.VerifyPSS(public, crypto.SHA256, digest, reversed(b[812:812+rsaBytes]), &rsa.PSSOptions{SaltLength: 32}) != nil {
		return invalid("the signature does not hold: it was not made with the private key of the public key beside it")
	}
	return nil
}

// checkECDSA checks a signature that lies behind its public key, both of
// little-endian numbers as wide as the curve.
func checkECDSA(curve elliptic.Curve, b, digest []byte) error {
	n := curve.Params().BitSize / 8
	point := append([]byte{4}, reversed(b[:n])...)
	public, err := ecdsa.ParseUncompressedPublicKey(curve, append(point, reversed(b[n:2*n])...))
	if err != nil {
		return invalid("the public key in the signature block is not on its curve")
	}
	b = b[2*n:]
	r, s := new(big.Int).SetBytes(reversed(b[:n])), new(big.Int).SetBytes(reversed(b[n:2*n]))
	if !ecdsa.Verify(public, digest, r, s) {
		return invalid("the signature does not hold: it was not made with the private key of the public key beside it")
	}
	return nil
}

// reversed returns b from its end: a number of the other byte order.
func reversed(b []byte) []byte {
	b = slices.Clone(b)
	slices.Reverse(b)
	return b
}
