package image_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

type keys struct {
	rsa        *rsa.PrivateKey
	p256, p384 *ecdsa.PrivateKey
}

// testKeys makes one key of each kind, once: RSA takes a second.
var testKeys = sync.OnceValue(func() keys {
	var k keys
	var errs [3]error
	k.rsa, errs[0] = rsa.GenerateKey(rand.Reader, 3072)
	k.p256, errs[1] = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.p384, errs[2] = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	for _, err := range errs {
		if err != nil {
			panic(err)
		}
	}
	return k
})

func keyDigest(t *testing.T, key crypto.Signer) [32]byte {
	t.Helper()
	d, err := image.KeyDigest(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSign(t *testing.T) {
	k := testKeys()
	for _, size := range []int{1000, 4096 - 32, 65536, 70000} {
		b := imagetest.App(imagetest.Spec{Size: size})
		for scheme, key := range map[string]crypto.Signer{"RSA-3072": k.rsa, "ECDSA P-256": k.p256, "ECDSA P-384": k.p384} {
			signed, err := image.Sign(b, key)
			if err != nil {
				t.Fatal(err)
			}
			if len(signed)%image.SectorSize != 0 || !bytes.HasPrefix(signed, b) {
				t.Errorf("got %d bytes, want the image and whole sectors", len(signed))
			}
			o := image.Options{Exact: true, KeyDigests: [][32]byte{{}, keyDigest(t, key)}, MaxSize: int64(len(signed))}
			info, err := verify(signed, o)
			if err != nil {
				t.Errorf("%s, %d bytes: %v", scheme, len(b), err)
				continue
			}
			got := info.Signature.Blocks
			if len(got) != 1 || got[0].Scheme != scheme || !got[0].Pinned || got[0].Err != nil || got[0].KeyDigest != keyDigest(t, key) {
				t.Errorf("got %+v, want one of %s", got, scheme)
			}
			if info.Size != int64(len(b)) || info.End != int64(len(signed)) {
				t.Errorf("got %d and %d bytes, want %d and %d", info.Size, info.End, len(b), len(signed))
			}
			o.KeyDigests = nil
			if info, err := verify(signed, o); err != nil || info.Signature.Blocks[0].Err != nil || info.Signature.Blocks[0].Pinned {
				t.Errorf("without a key: got %+v, %v, want a signature that holds, of a key that is not pinned", info, err)
			}
			o.KeyDigests = [][32]byte{{1, 2, 3}}
			if _, err := verify(signed, o); err == nil || !strings.Contains(err.Error(), "the digest of its key is "+hex.EncodeToString(got[0].KeyDigest[:])) {
				t.Errorf("with another key: got %v", err)
			}
			o.KeyDigests, o.MaxSize = nil, info.Size
			if _, err := verify(signed, o); err == nil && info.Size%image.SectorSize != 0 {
				t.Error("in a partition without place for the signature: got no error")
			}
		}
	}
}

// No byte of image, padding or block can change unnoticed.
func TestSignedBytes(t *testing.T) {
	k := testKeys()
	for scheme, key := range map[string]crypto.Signer{"RSA-3072": k.rsa, "ECDSA P-256": k.p256, "ECDSA P-384": k.p384} {
		signed, err := image.Sign(imagetest.App(imagetest.Spec{NoHash: true}), key)
		if err != nil {
			t.Fatal(err)
		}
		o := image.Options{KeyDigests: [][32]byte{keyDigest(t, key)}}
		for i := range signed[:image.SectorSize+1200] { // 16 bytes of nothing end the block
			signed[i] ^= 1
			if _, err := verify(signed, o); err == nil {
				t.Errorf("%s: with byte %d changed: got no error", scheme, i)
			}
			signed[i] ^= 1
		}
	}
}

// One trusted signature of three is enough, wherever it is.
func TestSeveralSignatures(t *testing.T) {
	k := testKeys()
	all := []crypto.Signer{k.p256, k.rsa, k.p384}
	signed, err := image.Sign(imagetest.App(imagetest.Spec{}), all...)
	if err != nil {
		t.Fatal(err)
	}
	for i, key := range all {
		o := image.Options{KeyDigests: [][32]byte{keyDigest(t, key)}}
		info, err := verify(signed, o)
		if err != nil {
			t.Errorf("signature %d: %v", i+1, err)
			continue
		}
		for j, b := range info.Signature.Blocks {
			if b.Pinned != (i == j) || (b.Err == nil) != (i == j) {
				t.Errorf("got %+v as block %d", b, j+1)
			}
		}
		bad := slices.Clone(signed)
		bad[image.SectorSize+i*1216+900] ^= 1
		if _, err := verify(bad, o); ota.CodeOf(err) != ota.ErrValidation || !strings.Contains(err.Error(), "CRC") {
			t.Errorf("signature %d damaged: got %v, want that its CRC is wrong", i+1, err)
		}
		bad = slices.Clone(signed)
		bad[image.SectorSize+(i+1)%3*1216+900] ^= 1
		if _, err := verify(bad, o); err != nil {
			t.Errorf("signature %d, with another damaged: %v", i+1, err)
		}
	}
}

// A forger can calculate a CRC as well.
func TestForged(t *testing.T) {
	k := testKeys()
	le := binary.LittleEndian
	const block = image.SectorSize
	other, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := image.Sign(imagetest.App(imagetest.Spec{}), other)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		key    crypto.Signer
		change func(b []byte)
		want   string // with the key that signed pinned
		block  string // without any
	}{
		{"other image, same block", k.rsa, func(b []byte) { copy(b, imagetest.App(imagetest.Spec{Seed: 1})) }, "about other bytes", "about other bytes"},
		{"other image, its digest", k.rsa, func(b []byte) {
			copy(b[block:], foreign[block:block+36])
			copy(b, imagetest.App(imagetest.Spec{Seed: 1}))
		}, "about other bytes", ""},
		{"other padding", k.p256, func(b []byte) { b[block-1] = 0 }, "about other bytes", ""},
		{"trusted key beside another's signature", other, func(b []byte) { copy(b[block+36:block+812], rsaPart(t, k.rsa)) }, "the digest of its key", "does not hold"},
		{"helper number", k.rsa, func(b []byte) { b[block+424] ^= 1 }, "the digest of its key", "helper numbers"},
		{"short key", k.rsa, func(b []byte) { b[block+36+383] = 0 }, "the digest of its key", "no RSA key of 3072 bits"},
		{"even key", k.rsa, func(b []byte) { b[block+36] &^= 1 }, "the digest of its key", "no RSA key of 3072 bits"},
		{"no key", k.rsa, func(b []byte) { clear(b[block+36 : block+812]) }, "the digest of its key", "it has 0 bits"},
		{"exponent 1", k.rsa, func(b []byte) { le.PutUint32(b[block+420:], 1) }, "the digest of its key", "the exponent 1"},
		{"trusted key and its signature of another image", k.rsa, func(b []byte) {
			copy(b, imagetest.App(imagetest.Spec{Seed: 1}))
			copy(b[block:], foreign[block:block+36])
			h := sha256.Sum256(b[:block])
			copy(b[block+4:], h[:])
		}, "does not hold", "does not hold"},
		{"signature", k.rsa, func(b []byte) { b[block+900] ^= 1 }, "does not hold", "does not hold"},
		{"signature 0", k.p256, func(b []byte) { clear(b[block+101 : block+165]) }, "does not hold", "does not hold"},
		{"point not on the curve", k.p256, func(b []byte) { b[block+37] ^= 1 }, "the digest of its key", "not on its curve"},
		{"no point", k.p384, func(b []byte) { clear(b[block+53 : block+149]) }, "the digest of its key", "not on its curve"},
		{"other curve", k.p256, func(b []byte) { b[block+36] = 9 }, "unknown kind", "unknown kind"},
		{"weak curve", k.p256, func(b []byte) { b[block+36] = 1 }, "the digest of its key", "P-192"},
		{"other hash", k.p384, func(b []byte) { b[block+2] = 0 }, "unknown kind", "unknown kind"},
		{"RSA with SHA-384", k.rsa, func(b []byte) { b[block+2] = 1 }, "unknown kind", "unknown kind"},
		{"other version", k.rsa, func(b []byte) { b[block+1] = 4 }, "not signed for Secure Boot v2", "no signature"},
		{"no magic", k.rsa, func(b []byte) { b[block] = 0 }, "not signed for Secure Boot v2", "no signature"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := image.Sign(imagetest.App(imagetest.Spec{}), tt.key)
			if err != nil {
				t.Fatal(err)
			}
			tt.change(b)
			le.PutUint32(b[block+1196:], crc32.ChecksumIEEE(b[block:block+1196]))
			_, err = verify(b, image.Options{KeyDigests: [][32]byte{keyDigest(t, tt.key)}})
			if err == nil || !strings.Contains(err.Error(), tt.want) || ota.CodeOf(err) != ota.ErrValidation {
				t.Errorf("pinned: got %v, want a validation error with %q", err, tt.want)
			}
			info, err := verify(b, image.Options{})
			switch {
			case err != nil:
				t.Error(err)
			case tt.block == "no signature":
				if info.Signature != nil {
					t.Errorf("got %+v, want none", info.Signature)
				}
			case info.Signature.Blocks[0].Err == nil || !strings.Contains(info.Signature.Blocks[0].Err.Error(), tt.block):
				t.Errorf("got %v, want %q", info.Signature.Blocks[0].Err, tt.block)
			}
		})
	}
}

// rsaPart returns the key in a block that key signed.
func rsaPart(t *testing.T, key *rsa.PrivateKey) []byte {
	t.Helper()
	b, err := image.Sign(nil, key)
	if err != nil {
		t.Fatal(err)
	}
	return b[36:812]
}

func TestKeyDigest(t *testing.T) {
	short, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, key := range map[string]crypto.Signer{"2048 bits": short, "curve": p224, "ed25519": ed} {
		if _, err := image.KeyDigest(key.Public()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
		if _, err := image.Sign(nil, key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("sign: got %v, want an error with %q", err, want)
		}
	}
	p := testKeys().p256
	for _, n := range []int{0, 4} {
		if _, err := image.Sign(nil, slices.Repeat([]crypto.Signer{p}, n)...); err == nil {
			t.Errorf("sign with %d keys: got no error", n)
		}
	}
}
