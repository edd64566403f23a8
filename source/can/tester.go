package can

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/source/can/profile"
)

// A Tester may program the device if it has the private key.
type Tester struct {
	Name string           // for the log
	Key  crypto.PublicKey // Ed25519, or ECDSA on P-256
}

// ParseTester reads the public key of a tester, in PEM ("PUBLIC KEY"), as "interlock
// keygen" writes it. A text with another number of keys than one is an error.
func ParseTester(name string, text []byte) (Tester, error) {
	keys, err := bundle.ParseKeys(1, text) // refuses weak and damaged ones
	if err != nil {
		return Tester{}, fmt.Errorf("read the key of tester %s: %w", name, err)
	}
	if n := len(keys.IDs()); n != 1 {
		return Tester{}, fmt.Errorf("read the key of tester %s: there are %d keys, want 1", name, n)
	}
	block, _ := pem.Decode(text)
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Tester{}, fmt.Errorf("read the key of tester %s: %w", name, err)
	}
	switch k := public.(type) {
	case ed25519.PublicKey:
		return Tester{Name: name, Key: k}, nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return Tester{Name: name, Key: k}, nil
		}
	}
	return Tester{}, fmt.Errorf("read the key of tester %s: it is of another kind than Ed25519 and ECDSA on P-256; make one with: interlock keygen", name)
}

// LoadTesters reads public keys from files. The name of a tester is that of its file.
func LoadTesters(files ...string) ([]Tester, error) {
	var testers []Tester
	for _, name := range files {
		text, err := durable.ReadFile(durable.OS{}, name, 64<<10)
		if err != nil {
			return nil, fmt.Errorf("read the key of a tester: %w", err)
		}
		t, err := ParseTester(filepath.Base(name), text)
		if err != nil {
			return nil, err
		}
		testers = append(testers, t)
	}
	return testers, nil
}

// testerName is for the log; who it is shows only with a key.
func (cfg *Config) testerName() string {
	if cfg.eleven() {
		return fmt.Sprintf("%03X", cfg.ID)
	}
	return fmt.Sprintf("%02X", cfg.ID&0xFF)
}

// Seed implements [uds.Securer].
func (h *handler) Seed(_ context.Context, _ uds.Call, level byte, record []byte) ([]byte, error) {
	switch {
	case level != profile.SecurityLevel:
		return nil, uds.SubFunctionNotSupported
	case len(record) != 0:
		return nil, uds.IncorrectMessageLength
	}
	return h.seed()
}

// seed makes up what is to be signed.
func (h *handler) seed() ([]byte, error) {
	if len(h.cfg.Testers) == 0 {
		return nil, h.no(uds.SecurityAccessDenied, errNoTesters)
	}
	seed := make([]byte, profile.SeedSize)
	if _, err := rand.Read(seed); err != nil {
		return nil, h.no(uds.ConditionsNotCorrect, err)
	}
	return seed, nil
}

// CheckKey implements [uds.Securer].
func (h *handler) CheckKey(_ context.Context, _ uds.Call, _ byte, seed, key []byte) error {
	_, err := h.who(seed, key, uds.InvalidKey)
	return err
}

// Challenge implements [uds.Authenticator].
func (h *handler) Challenge(_ context.Context, _ uds.Call, a uds.Algorithm) ([]byte, error) {
	if a != profile.Algorithm {
		return nil, uds.RequestOutOfRange
	}
	return h.seed()
}

// VerifyProof implements [uds.Authenticator].
func (h *handler) VerifyProof(_ context.Context, _ uds.Call, challenge []byte, proof uds.AuthenticationRequest) (string, error) {
	if proof.Algorithm != profile.Algorithm {
		return "", uds.RequestOutOfRange
	}
	return h.who(challenge, proof.Proof, uds.OwnershipVerificationFailed)
}

var errUnknownTester = fmt.Errorf("%w: the signature is of none of the testers that this device knows, or for another device", ota.ErrAuthentication)

// who finds the tester that has signed the seed; wrong is what anybody else is told.
func (h *handler) who(seed, signature []byte, wrong uds.NRC) (string, error) {
	device := h.cfg.State().Device
	for _, t := range h.cfg.Testers {
		if profile.VerifySeed(t.Key, device, seed, signature) {
			h.cfg.Log.Info("a tester on CAN may program", "tester", t.Name)
			h.yes()
			return t.Name, nil
		}
	}
	return "", h.no(wrong, errUnknownTester)
}

// attempts keeps the number of wrong keys in a file: a decimal number and a line end.
type attempts struct {
	fs  durable.FS
	dir string
}

const attemptsFile = "can-wrong-keys"

// Load implements [uds.Attempts]. A damaged file is an error, and then nobody is let in.
func (a attempts) Load() (int, error) {
	name := filepath.Join(a.dir, attemptsFile)
	b, err := durable.ReadFile(a.fs, name, 64)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read how many wrong keys came: %w", err)
	}
	var n int
	if n, err = strconv.Atoi(string(trimLine(b))); err != nil || n < 0 {
		return 0, fmt.Errorf("read how many wrong keys came: %s has %q, want a number; remove it if nobody has tried keys", name, b)
	}
	return n, nil
}

func trimLine(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] == '\n' {
		return b[:len(b)-1]
	}
	return b
}

// Save implements [uds.Attempts].
func (a attempts) Save(n int) error {
	if err := durable.MkdirAll(a.fs, a.dir, 0o700); err != nil {
		return fmt.Errorf("write how many wrong keys came: %w", err)
	}
	if err := durable.WriteFile(a.fs, filepath.Join(a.dir, attemptsFile), []byte(strconv.Itoa(n)+"\n"), 0o600); err != nil {
		return fmt.Errorf("write how many wrong keys came: %w", err)
	}
	return nil
}
