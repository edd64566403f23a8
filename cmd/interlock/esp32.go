package main

import (
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

type esp32Cmd struct {
	Inspect esp32InspectCmd `cmd:"" help:"Say what a file is and what is in it: flash, partition table, application, bootloader, otadata."`
	Image   esp32ImageCmd   `cmd:"" help:"Build the whole flash of a device out of its parts, each verified first."`
}

func (*esp32Cmd) Help() string {
	return `For the bench, with files and without a device: what "esptool read-flash" has read, and what "esptool write-flash 0" or an emulator takes.

Examples:

    interlock esp32 inspect flash.bin
    interlock esp32 inspect --key secure-boot.pem app.bin
    interlock esp32 image --partitions partitions.csv --bootloader bootloader.bin --app ota_0=app.bin --out flash.bin`
}

// esp32Keys are the keys that images have to be signed with.
type esp32Keys struct {
	Key []string `sep:"none" placeholder:"PUBLIC.pem" help:"Public key for Secure Boot v2 that must have signed the images. Repeat for more. Default: a signature is not asked for."`
}

// digests returns what the eFuses of a device that trusts the keys would hold.
func (k *esp32Keys) digests() ([][32]byte, error) {
	var list [][32]byte
	for _, name := range k.Key {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		public, err := parseSecureBootKey(b)
		if err != nil {
			return nil, exitWith(exitFailed, fmt.Errorf("read key %s: %w", name, err))
		}
		d, err := image.KeyDigest(public)
		if err != nil {
			return nil, exitWith(exitFailed, fmt.Errorf("read key %s: %w", name, err))
		}
		list = append(list, d)
	}
	return list, nil
}

// parseSecureBootKey reads a public key, or the public half of a private one.
func parseSecureBootKey(b []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("there is no PEM in it")
	}
	if strings.HasSuffix(block.Type, "PRIVATE KEY") {
		key, err := bundle.ParsePrivateKey(b)
		if err != nil {
			return nil, err
		}
		return key.Public(), nil
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}

// flashSize is a number of bytes such as 4MB, as the vendor's tools write it.
type flashSize int64

// UnmarshalText reads a size of 1 MB or more, a power of two.
func (s *flashSize) UnmarshalText(b []byte) error {
	digits, _ := strings.CutSuffix(strings.ToUpper(string(b)), "MB")
	n, err := strconv.ParseUint(digits, 10, 8)
	if err != nil || n == 0 || n&(n-1) != 0 || n > 128 {
		return fmt.Errorf("%q is no size of flash: want 1MB, 2MB, 4MB ... 128MB", b)
	}
	*s = flashSize(n << 20)
	return nil
}

// String writes the size as it is read.
func (s flashSize) String() string { return fmt.Sprintf("%dMB", s>>20) }

// hexNumber is an offset such as 0x8000.
type hexNumber uint32

// UnmarshalText reads a number in decimal or with 0x.
func (h *hexNumber) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 0, 32)
	if err != nil {
		return fmt.Errorf("%q is no offset in flash: want a number such as 0x8000", b)
	}
	*h = hexNumber(n)
	return nil
}

// imageResult is an image of an ESP32 for programs.
type imageResult struct {
	Chip           image.ChipID      `json:"chip"`
	Kind           string            `json:"kind"` // application, bootloader or image
	Project        string            `json:"project,omitempty"`
	Version        string            `json:"version,omitempty"`
	SecureVersion  uint32            `json:"secure_version"`
	IDF            string            `json:"idf,omitempty"`
	Built          string            `json:"built,omitempty"`
	Size           int64             `json:"size"` // bytes, with signature
	SHA256         string            `json:"sha256"`
	HashAppended   bool              `json:"hash_appended"`
	ELFSHA256      string            `json:"elf_sha256,omitempty"`
	MinRev         string            `json:"min_chip_revision,omitempty"`
	MaxRev         string            `json:"max_chip_revision,omitempty"`
	FlashMode      string            `json:"flash_mode"`
	FlashSize      int64             `json:"flash_size,omitempty"` // bytes, by the header
	SecureBoot     []secureBootBlock `json:"secure_boot,omitempty"`
	Segments       int               `json:"segments"`
	BytesBehind    int64             `json:"bytes_behind,omitempty"` // of the file, that do not belong to the image
	signatureHolds bool
}

type secureBootBlock struct {
	Scheme    string `json:"scheme"`
	KeyDigest string `json:"key_digest"` // as the eFuses would hold it
	Trusted   bool   `json:"trusted"`    // the key was given with --key
	Error     string `json:"error,omitempty"`
}

func describeImage(info *image.Info) *imageResult {
	r := &imageResult{Chip: info.Chip, Kind: "image", Size: info.End, SHA256: hex.EncodeToString(info.SHA256[:]), HashAppended: info.HashAppended,
		FlashMode: info.SPIMode.String(), FlashSize: info.FlashSize, Segments: len(info.Segments)}
	if info.MinRev > 0 {
		r.MinRev = chipRevision(info.MinRev)
	}
	if info.MaxRev > 0 {
		r.MaxRev = chipRevision(info.MaxRev)
	}
	if d := info.App; d != nil {
		r.Kind, r.Project, r.Version, r.SecureVersion, r.IDF = "application", d.Project, d.Version, d.SecureVersion, d.IDF
		r.Built, r.ELFSHA256 = strings.TrimSpace(d.Date+" "+d.Time), hex.EncodeToString(d.ELFSHA256[:])
	}
	if d := info.Bootloader; d != nil {
		r.Kind, r.SecureVersion, r.IDF, r.Built = "bootloader", uint32(d.SecureVersion), d.IDF, d.Built
	}
	if info.Signature != nil {
		for _, b := range info.Signature.Blocks {
			s := secureBootBlock{Scheme: b.Scheme, KeyDigest: hex.EncodeToString(b.KeyDigest[:]), Trusted: b.Pinned}
			if b.Err != nil {
				s.Error = b.Err.Error()
			} else {
				r.signatureHolds = true
			}
			r.SecureBoot = append(r.SecureBoot, s)
		}
	}
	return r
}

// chipRevision writes a revision as the vendor does.
func chipRevision(r uint16) string { return fmt.Sprintf("v%d.%d", r/100, r%100) }

// name is what a table says of an image.
func (r *imageResult) name() string {
	switch {
	case r.Kind == "application":
		return fmt.Sprintf("%s %s", or(r.Project, "an application"), r.Version)
	case r.IDF != "":
		return "bootloader of ESP-IDF " + r.IDF
	}
	return "an image without a descriptor"
}

// signed says who has signed.
func (r *imageResult) signed() string {
	if len(r.SecureBoot) == 0 {
		return "no"
	}
	var list []string
	for _, b := range r.SecureBoot {
		s := fmt.Sprintf("%s by key %s", b.Scheme, short(b.KeyDigest))
		if b.Trusted {
			s += ", trusted"
		}
		if b.Error != "" {
			s += ", BAD: " + b.Error
		}
		list = append(list, s)
	}
	return strings.Join(list, "; ")
}

// print shows one image to people.
func (r *imageResult) print(e *env, file string) error {
	hash := r.SHA256 + " (whole)"
	if !r.HashAppended {
		hash = r.SHA256 + " (not in the image: only a checksum of one byte was compared)"
	}
	revisions := ""
	if r.MinRev != "" || r.MaxRev != "" {
		revisions = or(r.MinRev, "v0.0") + " to " + or(r.MaxRev, "any")
	}
	security := ""
	if r.SecureVersion > 0 {
		security = strconv.FormatUint(uint64(r.SecureVersion), 10)
	}
	flash := r.FlashMode
	if r.FlashSize > 0 {
		flash += ", " + flashSize(r.FlashSize).String()
	}
	behind := ""
	if r.BytesBehind > 0 {
		behind = fmt.Sprintf("%d bytes that do not belong to the image", r.BytesBehind)
	}
	digests := ""
	for _, b := range r.SecureBoot {
		digests += when(digests != "", ", ") + b.KeyDigest
	}
	return e.list(
		[2]string{"file", file},
		[2]string{"kind", r.Kind},
		[2]string{"chip", r.Chip.String() + when(revisions != "", ", revision "+revisions)},
		[2]string{"project", r.Project},
		[2]string{"version", r.Version},
		[2]string{"security", security},
		[2]string{"built", r.Built + when(r.IDF != "", " with ESP-IDF "+r.IDF)},
		[2]string{"size", fmt.Sprintf("%d bytes, %s", r.Size, count(r.Segments, "segment"))},
		[2]string{"flash", flash},
		[2]string{"SHA-256", hash},
		[2]string{"signed", r.signed()},
		[2]string{"key digest", digests},
		[2]string{"behind it", behind},
	)
}
