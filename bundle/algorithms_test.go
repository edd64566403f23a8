package bundle

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"testing"
)

type otherSignature struct {
	kind string
	sig  []byte
}

// otherAlgorithms signs message with the keys of testdata in ways that a
// verifier must not accept.
func otherAlgorithms(t *testing.T, message []byte) []otherSignature {
	t.Helper()
	var list []otherSignature
	add := func(kind string, sig []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, otherSignature{kind, sig})
	}
	sum1, sum256, sum384, sum512 := sha1.Sum(message), sha256.Sum256(message), sha512.Sum384(message), sha512.Sum512(message)

	r := testSigner(t, "rsa3072").(*rsa.PrivateKey)
	sig, err := rsa.SignPKCS1v15(rand.Reader, r, crypto.SHA256, sum256[:])
	add("rsa3072", sig, err)
	sig, err = rsa.SignPSS(rand.Reader, r, crypto.SHA384, sum384[:], nil)
	add("rsa3072", sig, err)
	sig, err = rsa.SignPSS(rand.Reader, r, crypto.SHA256, sum256[:], nil)
	add("rsa3072", append(sig, 0), err)

	p256, p384 := testSigner(t, "p256").(*ecdsa.PrivateKey), testSigner(t, "p384").(*ecdsa.PrivateKey)
	sig, err = ecdsa.SignASN1(rand.Reader, p256, sum1[:])
	add("p256", sig, err)
	sig, err = ecdsa.SignASN1(rand.Reader, p256, sum384[:])
	add("p256", sig, err)
	sig, err = ecdsa.SignASN1(rand.Reader, p384, sum256[:])
	add("p384", sig, err)
	sig, err = ecdsa.SignASN1(rand.Reader, p384, sum384[:])
	add("p384", append(sig, 0), err)
	a, b, err := ecdsa.Sign(rand.Reader, p256, sum256[:]) // raw, as in JOSE and in DSSE's test vector
	if err != nil {
		t.Fatal(err)
	}
	add("p256", append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...), nil)

	e := testSigner(t, "ed25519").(ed25519.PrivateKey)
	sig, err = e.Sign(nil, sum512[:], &ed25519.Options{Hash: crypto.SHA512}) // Ed25519ph
	add("ed25519", sig, err)
	sig, err = e.Sign(nil, message, &ed25519.Options{Context: "other"}) // Ed25519ctx
	add("ed25519", sig, err)
	add("ed25519", ed25519.Sign(e, sum256[:]), nil)
	add("ed25519", ed25519.Sign(e, []byte(smallPayload)), nil) // the payload without its type
	return list
}
