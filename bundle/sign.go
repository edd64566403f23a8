package bundle

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/interlock-energy/ota"
)

// Sign returns an envelope with the manifest, signed by each of keys. With the
// same manifest and Ed25519 keys the result is always the same bytes. A manifest
// that a device would refuse is not signed.
func Sign(manifest *ota.Manifest, keys ...crypto.Signer) ([]byte, error) {
	if len(keys) == 0 {
		return nil, errors.New("sign manifest: no private keys given")
	}
	// Package encoding/json would replace wrong bytes, and sign something else
	// than the caller sees.
	if !utf8.ValidString(manifest.Notes) {
		return nil, refuse("sign manifest: notes are not valid UTF-8")
	}
	if err := manifest.Validate(); err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	payload, err := json.Marshal(manifest)
	if err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	if _, err := parseManifest(payload); err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	var e envelope
	e.setPayload(payload)
	for _, key := range keys {
		if err := e.sign(key); err != nil {
			return nil, fmt.Errorf("sign manifest: %w", err)
		}
	}
	return e.encode()
}

// AddSignature returns the envelope with a further signature, for a second
// signer on another computer, who has looked at the manifest before. It neither
// needs nor checks the other signatures, except that a second one by the same
// key is an error: it would not count.
func AddSignature(signed []byte, key crypto.Signer) ([]byte, error) {
	e, err := parseEnvelope(signed)
	if err != nil {
		return nil, fmt.Errorf("add signature: %w", err)
	}
	if _, err := parseManifest(e.payload); err != nil {
		return nil, fmt.Errorf("add signature: %w", err)
	}
	if err := e.sign(key); err != nil {
		return nil, fmt.Errorf("add signature: %w", err)
	}
	return e.encode()
}

// SignatureInfo is what an envelope says of one of its signatures. Neither is
// verified; [Keys.Signers] tells whose signatures hold.
type SignatureInfo struct {
	KeyID string // as written by whoever made the envelope; print it with %q
	Size  int    // bytes
}

// ReadSignatures lists the signatures in an envelope, at most [MaxSignatures],
// WITHOUT CHECKING THEM. Errors wrap [ota.ErrValidation].
func ReadSignatures(signed []byte) ([]SignatureInfo, error) {
	e, err := parseEnvelope(signed)
	if err != nil {
		return nil, err
	}
	infos := make([]SignatureInfo, len(e.signatures))
	for i, s := range e.signatures {
		infos[i] = SignatureInfo{s.keyID, len(s.sig)}
	}
	return infos, nil
}

// sign appends a signature, and verifies it: a signer with a fault, or a key
// service with another key than it says, must not be noticed only in the field.
func (e *envelope) sign(signer crypto.Signer) error {
	if signer == nil {
		return errors.New("private key is nil")
	}
	k, err := newKey(signer.Public(), true) // published keys are refused where they are read
	if err != nil {
		return err
	}
	msg := message{bytes: e.message}
	for _, s := range e.signatures {
		if s.keyID == k.id || k.verifies(&msg, s.sig) {
			return fmt.Errorf("key %.12s has signed already; a second signature must be by another key", k.id)
		}
	}
	if len(e.signatures) == MaxSignatures {
		return fmt.Errorf("the envelope has %d signatures already, which is the limit", MaxSignatures)
	}
	sig, err := k.sign(signer, &msg)
	if err != nil {
		return fmt.Errorf("sign with key %.12s: %w", k.id, err)
	}
	if !k.verifies(&msg, sig) {
		return fmt.Errorf("sign with key %.12s: the signature does not verify with the key's public half", k.id)
	}
	e.signatures = append(e.signatures, signature{k.id, sig})
	return nil
}

func (k key) sign(signer crypto.Signer, msg *message) ([]byte, error) {
	switch p := k.public.(type) {
	case ed25519.PublicKey:
		return signer.Sign(rand.Reader, msg.bytes, crypto.Hash(0))
	case *ecdsa.PublicKey:
		return signer.Sign(rand.Reader, msg.sum(ecdsaHash(p)), ecdsaHash(p))
	case *rsa.PublicKey:
		opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
		return signer.Sign(rand.Reader, msg.sum(crypto.SHA256), opts)
	}
	return nil, fmt.Errorf("key of type %T cannot sign", k.public)
}
