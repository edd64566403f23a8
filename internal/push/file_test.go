package push_test

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/otatest"
)

// A file that no device can take is found out before anything is done on a bus.
func TestOpen(t *testing.T) {
	whole := otatest.NewSigningKey(t).Release(t, "1.1.0", 9000).Bundle
	_, other, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bundle.ParseKeys(1, other)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), whole...)
	flipped[len(flipped)-1] ^= 1
	for _, tt := range []struct {
		name  string
		bytes []byte
		keys  *bundle.Keys
		want  error
	}{
		{"whole", whole, nil, nil},
		{"another key", whole, keys, ota.ErrValidation},
		{"cut", whole[:len(whole)-1], nil, ota.ErrValidation},
		{"longer", append(append([]byte(nil), whole...), 0), nil, ota.ErrValidation},
		{"damaged", flipped, nil, ota.ErrValidation},
		{"no bundle", []byte("hello, world, this is no bundle"), nil, ota.ErrValidation},
		{"empty", nil, nil, ota.ErrValidation},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "x.bundle")
			if err := os.WriteFile(name, tt.bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := push.Open(name, tt.keys)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err != nil {
				return
			}
			defer f.Close()
			if f.Size != int64(len(whole)) || f.SHA256 != sha256.Sum256(whole) || f.Manifest.Version != "1.1.0" || f.Verified {
				t.Errorf("got %d bytes, %v, %s, verified %v", f.Size, f.SHA256, f.Manifest.Version, f.Verified)
			}
		})
	}
	if _, err := push.Open(t.TempDir(), nil); err == nil {
		t.Error("got a directory opened as a bundle")
	}
}
