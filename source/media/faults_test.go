package media_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/source/media"
)

// A hostile stick with long names makes no error of hundreds of kilobytes, which
// would go into the status, the log, and the environment of hooks.
func TestErrorsAreBounded(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, strings.Repeat("\x01", 200), strings.Repeat("\x02", 200))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		if err := os.WriteFile(filepath.Join(deep, fmt.Sprintf("%02d%s.bundle", i, strings.Repeat("\x03", 200))), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := media.New(media.Config{Path: dir, Product: "p", Verify: func([]byte) (*ota.Manifest, error) { return nil, ota.ErrValidation }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Latest(t.Context()); err == nil || len(err.Error()) > 10_000 {
		t.Errorf("got an error of %d bytes", len(fmt.Sprint(err)))
	}
	m := &ota.Manifest{Version: "1", Digest: "d"}
	if _, err := s.Open(t.Context(), m, &ota.Image{Component: "c", Size: 1}, 0); err == nil || len(err.Error()) > 10_000 {
		t.Errorf("open: got an error of %d bytes", len(fmt.Sprint(err)))
	}
}

// The stick has the step in between and the end: a device that cannot take the
// end yet is offered the step.
func TestStepInBetween(t *testing.T) {
	for _, tt := range []struct {
		name   string
		newest ota.Manifest
	}{
		{"updates from something newer only", ota.Manifest{Version: "3.0.0", MinVersion: "2.0.0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			private, public, err := bundle.GenerateKey("ed25519")
			if err != nil {
				t.Fatal(err)
			}
			signer, err := bundle.ParsePrivateKey(private)
			if err != nil {
				t.Fatal(err)
			}
			keys, err := bundle.ParseKeys(1, public)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range []ota.Manifest{tt.newest, {Version: "2.0.0"}} {
				im, err := bundle.DescribeImage("controller", bytes.NewReader([]byte(m.Version)), 4096, false)
				if err != nil {
					t.Fatal(err)
				}
				m.Format, m.Product, m.Created, m.Images = 1, "p", time.Unix(1.77e9, 0).UTC(), []ota.Image{im}
				envelope, err := bundle.Sign(&m, signer)
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				if err := bundle.Write(&out, envelope, bytes.NewReader([]byte(m.Version))); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, m.Version+".bundle"), out.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s, err := media.New(media.Config{Path: dir, Product: "p", Version: "1.0.0", Verify: keys.Verify})
			if err != nil {
				t.Fatal(err)
			}
			signed, err := s.Latest(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if m, err := keys.Verify(signed); err != nil || m.Version != "2.0.0" {
				j, _ := json.Marshal(m)
				t.Errorf("got %s, %v, want 2.0.0", j, err)
			}
		})
	}
}
