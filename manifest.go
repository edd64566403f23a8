package ota

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Limits of a manifest, so that a hostile or broken one costs bounded memory.
const (
	MaxManifestSize = 16 << 20 // bytes of the signed envelope
	MaxImages       = 64
	MaxImageSize    = 1 << 40 // bytes
	MinChunkSize    = 4 << 10
	MaxChunkSize    = 1 << 20
	MaxNotesSize    = 64 << 10
)

// Manifest is what is signed: what a release is, for whom, under which rules,
// and which bytes it consists of. Names in its JSON never change.
type Manifest struct {
	Format          int       `json:"format"`                     // 1
	Product         string    `json:"product"`                    // devices of other products refuse it
	Hardware        []string  `json:"hardware,omitempty"`         // revisions that may take it; empty: all
	Version         string    `json:"version"`                    // see CompareVersions
	SecurityVersion uint64    `json:"security_version,omitempty"` // never goes back on a device
	MinVersion      string    `json:"min_version,omitempty"`      // oldest version to update from
	AllowDowngrade  bool      `json:"allow_downgrade,omitempty"`  // may replace a newer version
	Created         time.Time `json:"created"`                    // also the lower bound of time for devices without a clock
	Expires         time.Time `json:"expires,omitzero"`           // not taken after this; zero: never
	Mandatory       bool      `json:"mandatory,omitempty"`        // does not wait for a person's consent, only for the gate
	NoReboot        bool      `json:"no_reboot,omitempty"`        // takes effect at the next restart, whoever causes it
	Limits          Limits    `json:"limits,omitzero"`            // may only be stricter than the device's own
	Notes           string    `json:"notes,omitempty"`            // release notes for people
	Images          []Image   `json:"images"`                     // one for each component

	// Digest is the SHA-256, in hex, of the signed payload. The verifier sets it;
	// it is the release's name in records and reports.
	Digest string `json:"-"`
}

// Limits are a release's own conditions on the battery. A nil field sets none.
type Limits struct {
	MinSoC         *float64 `json:"min_soc,omitempty"`         // percent
	MaxTemperature *float64 `json:"max_temperature,omitempty"` // °C
	MinTemperature *float64 `json:"min_temperature,omitempty"` // °C
	MaxCurrent     *float64 `json:"max_current,omitempty"`     // A, magnitude
}

// Image is the firmware of one component.
type Image struct {
	Component string `json:"component"`
	Size      int64  `json:"size"`          // bytes
	SHA256    Hash   `json:"sha256"`        // of the whole image
	MD5       string `json:"md5,omitempty"` // hex; for clients that know no better
	ChunkSize int64  `json:"chunk_size"`    // bytes; a power of two; the last chunk may be shorter
	Chunks    Hashes `json:"chunks"`        // SHA-256 of each chunk, in order
}

// Hash is a SHA-256. In JSON it is 64 lower-case hexadecimal digits.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("SHA-256 has %d characters, want %d", len(b), hex.EncodedLen(len(h)))
	}
	if strings.ToLower(string(b)) != string(b) {
		return fmt.Errorf("SHA-256 %q is not in lower case", b)
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// Hashes is a list of SHA-256 sums. In JSON it is one base64 string of all of
// them, a third shorter than hexadecimal strings: 4,096 chunks are 175 kB.
type Hashes []Hash

// MarshalJSON implements [json.Marshaler].
func (hs Hashes) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, len(hs)*sha256.Size)
	for i := range hs {
		b = append(b, hs[i][:]...)
	}
	return json.Marshal(b)
}

// UnmarshalJSON implements [json.Unmarshaler].
func (hs *Hashes) UnmarshalJSON(j []byte) error {
	var b []byte
	if err := json.Unmarshal(j, &b); err != nil {
		return err
	}
	if len(b)%sha256.Size != 0 {
		return fmt.Errorf("chunk hashes are %d bytes, not a multiple of %d", len(b), sha256.Size)
	}
	*hs = make(Hashes, len(b)/sha256.Size)
	for i := range *hs {
		copy((*hs)[i][:], b[i*sha256.Size:])
	}
	return nil
}

// Size returns the sum of the images' sizes in bytes.
func (m *Manifest) Size() int64 {
	var n int64
	for i := range m.Images {
		n += m.Images[i].Size
	}
	return n
}

// Validate reports whether m is well formed. It says nothing about whether m
// fits a device or whether its signatures hold.
func (m *Manifest) Validate() error {
	if m.Format != 1 {
		return fmt.Errorf("%w: manifest format %d is not known here, want 1", ErrValidation, m.Format)
	}
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: manifest: "+format, append([]any{ErrValidation}, a...)...)
	}
	if err := checkName(m.Product); err != nil {
		return bad("product: %w", err)
	}
	for _, h := range m.Hardware {
		if err := checkName(h); err != nil {
			return bad("hardware: %w", err)
		}
	}
	if err := CheckVersion(m.Version); err != nil {
		return bad("version: %w", err)
	}
	if m.MinVersion != "" {
		if err := CheckVersion(m.MinVersion); err != nil {
			return bad("min_version: %w", err)
		}
	}
	if m.Created.IsZero() {
		return bad("created is missing")
	}
	if !m.Expires.IsZero() && !m.Expires.After(m.Created) {
		return bad("expires %s is not after created %s", m.Expires.Format(time.RFC3339), m.Created.Format(time.RFC3339))
	}
	if len(m.Notes) > MaxNotesSize {
		return bad("notes are %d bytes, want at most %d", len(m.Notes), MaxNotesSize)
	}
	if err := m.Limits.validate(); err != nil {
		return bad("limits: %w", err)
	}
	if len(m.Images) == 0 || len(m.Images) > MaxImages {
		return bad("%d images, want 1 to %d", len(m.Images), MaxImages)
	}
	seen := map[string]bool{}
	for i := range m.Images {
		im := &m.Images[i]
		if err := checkName(im.Component); err != nil {
			return bad("image %d: component: %w", i+1, err)
		}
		if seen[im.Component] {
			return bad("two images for component %s", im.Component)
		}
		seen[im.Component] = true
		if err := im.validate(); err != nil {
			return bad("image %s: %w", im.Component, err)
		}
	}
	return nil
}

func (im *Image) validate() error {
	if im.Size < 1 || im.Size > MaxImageSize {
		return fmt.Errorf("size %d, want 1 to %d bytes", im.Size, int64(MaxImageSize))
	}
	if im.ChunkSize < MinChunkSize || im.ChunkSize > MaxChunkSize || im.ChunkSize&(im.ChunkSize-1) != 0 {
		return fmt.Errorf("chunk_size %d, want a power of two from %d to %d", im.ChunkSize, MinChunkSize, MaxChunkSize)
	}
	if want := (im.Size + im.ChunkSize - 1) / im.ChunkSize; int64(len(im.Chunks)) != want {
		return fmt.Errorf("%d chunk hashes, want %d for %d bytes", len(im.Chunks), want, im.Size)
	}
	if im.MD5 != "" {
		if b, err := hex.DecodeString(im.MD5); err != nil || len(b) != 16 || strings.ToLower(im.MD5) != im.MD5 {
			return fmt.Errorf("md5 %q is not 32 lower-case hexadecimal digits", im.MD5)
		}
	}
	return nil
}

func (l Limits) validate() error {
	for _, v := range []struct {
		name     string
		value    *float64
		min, max float64
	}{
		{"min_soc", l.MinSoC, 0, 100},
		{"max_temperature", l.MaxTemperature, -60, 120},
		{"min_temperature", l.MinTemperature, -60, 120},
		{"max_current", l.MaxCurrent, 0, 1e6},
	} {
		if v.value != nil && !(*v.value >= v.min && *v.value <= v.max) { // written so that NaN is refused
			return fmt.Errorf("%s %v, want %v to %v", v.name, *v.value, v.min, v.max)
		}
	}
	return nil
}

// checkName accepts what is safe in a file name, a log line and a URL path.
func checkName(s string) error {
	if s == "" {
		return fmt.Errorf("name is empty")
	}
	if len(s) > 64 {
		return fmt.Errorf("name is %d characters, want at most 64", len(s))
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return fmt.Errorf("name %q has %q at %d; use letters, digits, and . _ - after the first", s, c, i+1)
		}
	}
	return nil
}

// CheckName reports whether s can name a product, a hardware revision, a
// component, a group or a device: 1 to 64 letters, digits, and . _ - after the
// first character.
func CheckName(s string) error { return checkName(s) }
