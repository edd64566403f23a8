package ota_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

func TestManifestValidate(t *testing.T) {
	nan, low := math.NaN(), -1.0
	for _, c := range []struct {
		name, want string
		change     func(*ota.Manifest)
	}{
		{"format", "format 2", func(m *ota.Manifest) { m.Format = 2 }},
		{"no product", "product", func(m *ota.Manifest) { m.Product = "" }},
		{"product with a slash", `has '/' at 2`, func(m *ota.Manifest) { m.Product = "a/b" }},
		{"product begins with a dot", "at 1", func(m *ota.Manifest) { m.Product = ".." }},
		{"long product", "65 characters", func(m *ota.Manifest) { m.Product = strings.Repeat("p", 65) }},
		{"hardware", "hardware", func(m *ota.Manifest) { m.Hardware = []string{"a\n"} }},
		{"version", "version", func(m *ota.Manifest) { m.Version = "new" }},
		{"min version", "min_version", func(m *ota.Manifest) { m.MinVersion = "x" }},
		{"no time", "created", func(m *ota.Manifest) { m.Created = time.Time{} }},
		{"expires before created", "not after", func(m *ota.Manifest) { m.Expires = m.Created }},
		{"long notes", "65537 bytes", func(m *ota.Manifest) { m.Notes = strings.Repeat("n", 65537) }},
		{"limit not a number", "min_soc NaN", func(m *ota.Manifest) { m.Limits.MinSoC = &nan }},
		{"limit below range", "max_current -1", func(m *ota.Manifest) { m.Limits.MaxCurrent = &low }},
		{"no images", "0 images", func(m *ota.Manifest) { m.Images = nil }},
		{"too many images", "65 images", func(m *ota.Manifest) { m.Images = make([]ota.Image, 65) }},
		{"two images for one component", "two images for component controller", func(m *ota.Manifest) { m.Images = append(m.Images, m.Images[0]) }},
		{"component", "component", func(m *ota.Manifest) { m.Images[0].Component = "" }},
		{"empty image", "size 0", func(m *ota.Manifest) { m.Images[0].Size = 0 }},
		{"negative size", "size -5", func(m *ota.Manifest) { m.Images[0].Size = -5 }},
		{"huge size", "size 9223372036854775807", func(m *ota.Manifest) { m.Images[0].Size = math.MaxInt64 }},
		{"chunk size 0", "chunk_size 0", func(m *ota.Manifest) { m.Images[0].ChunkSize = 0 }},
		{"chunk size no power of two", "chunk_size 5000", func(m *ota.Manifest) { m.Images[0].ChunkSize = 5000 }},
		{"chunk size too large", "chunk_size 2097152", func(m *ota.Manifest) { m.Images[0].ChunkSize = 2 << 20 }},
		{"a chunk too few", "2 chunk hashes, want 3", func(m *ota.Manifest) { m.Images[0].Chunks = m.Images[0].Chunks[:2] }},
		{"md5 in upper case", "md5", func(m *ota.Manifest) { m.Images[0].MD5 = strings.Repeat("A", 32) }},
		{"md5 too short", "md5", func(m *ota.Manifest) { m.Images[0].MD5 = "ab" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := otatest.NewFirmware("1.0.0", 10000, true, true).Manifest()
			if err := m.Validate(); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			c.change(m)
			err := m.Validate()
			if !errors.Is(err, ota.ErrValidation) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want ErrValidation with %q", err, c.want)
			}
		})
	}
}

func TestManifestJSON(t *testing.T) {
	m := otatest.NewFirmware("1.0.0", 10000, true, true).Manifest()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var back ota.Manifest
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if got, want := back.Images[0].Chunks[2], m.Images[0].Chunks[2]; got != want || back.Images[0].SHA256 != m.Images[0].SHA256 {
		t.Errorf("chunk 3 came back as %s, want %s", got, want)
	}
	for _, bad := range []string{`{"images":[{"chunks":"AAAA"}]}`, `{"images":[{"sha256":"00"}]}`,
		`{"images":[{"sha256":"` + strings.Repeat("AB", 32) + `"}]}`, `{"images":[{"sha256":"` + strings.Repeat("zz", 32) + `"}]}`} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
