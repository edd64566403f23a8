package bundle

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
)

// Signer holds a private key: what [ParsePrivateKey] returns, or an adapter for
// a hardware module or a key service. Ed25519 signers get the message, ECDSA
// signers its SHA-256 (P-256) or SHA-384 (P-384) and answer in ASN.1, RSA
// signers its SHA-256 with [rsa.PSSOptions].
type Signer = crypto.Signer

// ParsePrivateKey reads the one private key in a PEM text: "PRIVATE KEY" (PKCS
// #8), "EC PRIVATE KEY" (SEC 1) or "RSA PRIVATE KEY" (PKCS #1), of the kinds
// that [ParseKeys] accepts.
func ParsePrivateKey(text []byte) (crypto.Signer, error) { return parsePrivate(text, false) }

func parsePrivate(text []byte, allowWellKnown bool) (crypto.Signer, error) {
	signer, err := decodePrivate(text)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	if _, err := newKey(signer.Public(), allowWellKnown); err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	return signer, nil
}

// LoadPrivateKey is [ParsePrivateKey] for a file, which must not be readable or
// writable by everybody.
func LoadPrivateKey(file string) (crypto.Signer, error) {
	text, err := readKeyFile(file, func(info os.FileInfo) error {
		if mode := info.Mode().Perm(); mode&0o006 != 0 && runtime.GOOS != "windows" { // which has no such modes
			return fmt.Errorf("%s has mode %04o, so everybody on this computer can use it; run: chmod 600 %s", file, mode, file)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	signer, err := ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return signer, nil
}

func decodePrivate(text []byte) (crypto.Signer, error) {
	blocks, err := pemBlocks(text)
	if err != nil {
		return nil, err
	}
	// openssl ecparam -genkey puts the curve's name in front of the key.
	blocks = slices.DeleteFunc(blocks, func(b *pem.Block) bool { return b.Type == "EC PARAMETERS" })
	if len(blocks) != 1 {
		return nil, fmt.Errorf("%d keys in one text, want 1", len(blocks))
	}
	b := blocks[0]
	if b.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED") {
		return nil, errors.New("the key is encrypted with a passphrase, which is not supported; decrypt it with: openssl pkey -in FILE -out NEW, or keep it in a hardware module")
	}
	var k any
	switch b.Type {
	case "PRIVATE KEY":
		k, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		k, err = x509.ParseECPrivateKey(b.Bytes)
	case "RSA PRIVATE KEY":
		k, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "OPENSSH PRIVATE KEY":
		return nil, errors.New("this is a key for SSH; make one with: interlock keygen")
	case "PUBLIC KEY", "RSA PUBLIC KEY":
		return nil, errors.New("this is a public key, want a private key")
	default:
		return nil, fmt.Errorf("this is %q, want \"PRIVATE KEY\"", abridge(b.Type))
	}
	if err != nil {
		return nil, err
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", k)
	}
	return signer, nil
}

// GenerateKey makes a key pair in PEM, the private half in PKCS #8. Kind is
// ed25519 (also if empty), p256, p384 or rsa3072.
func GenerateKey(kind string) (privatePEM, publicPEM []byte, err error) {
	var signer crypto.Signer
	switch kind {
	case "", "ed25519":
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	case "p256":
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa3072":
		signer, err = rsa.GenerateKey(rand.Reader, 3072)
	default:
		return nil, nil, fmt.Errorf("generate key: unknown kind %q, want ed25519, p256, p384 or rsa3072", kind)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), nil
}

// KeyID returns the id of a key: the SHA-256, in hex, of its public half in PKIX
// DER. A key that devices would refuse is an error.
func KeyID(s Signer) (string, error) {
	k, err := newKey(s.Public(), true)
	return k.id, err
}
