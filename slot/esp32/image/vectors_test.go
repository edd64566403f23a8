package image_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

// vectors returns the folder of files that the vendor's tools and others have
// made. They are not ours to ship: $INTERLOCK_VECTORS says where they are.
func vectors(t *testing.T) string {
	dir := os.Getenv("INTERLOCK_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "shared", "vectors")
	}
	dir = filepath.Join(dir, "esp32")
	if _, err := os.Stat(dir); err != nil {
		if os.Getenv("INTERLOCK_VECTORS") != "" {
			t.Fatalf("INTERLOCK_VECTORS: %v", err)
		}
		t.Skipf("SKIPPED: nothing of other makers is compared here, because there are no vectors: %v (set INTERLOCK_VECTORS to a folder that has them)", err)
	}
	return dir
}

// What others made is read as they meant it. A file without an expectation fails.
func TestVectors(t *testing.T) {
	dir := vectors(t)
	const rsaKey = "cb2791a371b0c0322bf7370478ba0962224cab1cf2287879e429673e7da84463"
	type expect func(t *testing.T, b []byte)
	refused := func(o image.Options, want string) expect {
		return func(t *testing.T, b []byte) {
			if _, err := verify(b, o); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("as an image: got %v, want an error with %q", err, want)
			}
			if _, err := image.ParseTable(b, 0); err == nil {
				t.Error("as a partition table: got no error")
			}
		}
	}
	app := func(chip image.ChipID, version, project, sha string) expect {
		return func(t *testing.T, b []byte) {
			info, err := verify(b, image.Options{Chip: &chip, App: true, Exact: true})
			if err != nil {
				t.Fatal(err)
			}
			if info.App.Version != version || info.App.Project != project {
				t.Errorf("got version %q of %q, want %q of %q", info.App.Version, info.App.Project, version, project)
			}
			if got := hex.EncodeToString(info.SHA256[:]); got != sha || !info.HashAppended {
				t.Errorf("got SHA-256 %s (appended: %t), want %s", got, info.HashAppended, sha)
			}
			if info.Signature != nil {
				t.Errorf("got a signature %+v, want none", info.Signature)
			}
			if _, err := verify(b, image.Options{KeyDigests: [][32]byte{{1}}}); err == nil || !strings.Contains(err.Error(), "not signed") {
				t.Errorf("with a pinned key: got %v, want that it is not signed", err)
			}
		}
	}
	signed := func(scheme, key string) expect {
		return func(t *testing.T, b []byte) {
			digest, err := hex.DecodeString(key)
			if err != nil {
				t.Fatal(err)
			}
			o := image.Options{KeyDigests: [][32]byte{{1}, [32]byte(digest)}, Exact: true}
			info, err := verify(b, o)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Signature.Blocks; len(got) != 1 || got[0].Scheme != scheme || !got[0].Pinned || got[0].Err != nil {
				t.Errorf("got %+v, want one block of %s that holds", got, scheme)
			}
			for at := 0; at < len(b); at += 97 { // every part of image, padding and signature
				if bytes.Equal(b[at:], bytes.Repeat([]byte{b[len(b)-1]}, len(b)-at)) {
					break // the rest of the sector belongs to nothing
				}
				b[at] ^= 0x10
				if _, err := verify(b, o); err == nil && at < int(info.Signature.Offset)+1200 {
					t.Errorf("with byte %d changed: got no error", at)
				}
				b[at] ^= 0x10
			}
			o.KeyDigests = [][32]byte{{1}}
			if _, err := verify(b, o); err == nil || !strings.Contains(err.Error(), "the digest of its key is") {
				t.Errorf("with another key: got %v, want that the key is not trusted", err)
			}
		}
	}
	table := func(labels ...string) expect {
		return func(t *testing.T, b []byte) {
			table, err := image.ParseTable(b, 4<<20)
			if err != nil {
				t.Fatal(err)
			}
			if err := table.Check(image.TableOffset, 4<<20); err != nil {
				t.Error(err)
			}
			var got []string
			for _, p := range table.Partitions {
				got = append(got, p.Label)
			}
			if strings.Join(got, " ") != strings.Join(labels, " ") || !table.MD5 {
				t.Errorf("got %q, MD5 %t, want %q with one", got, table.MD5, labels)
			}
			again, err := table.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again, b) {
				t.Error("encoded again it differs")
			}
			for i := range len(table.Partitions)*32 + 32 {
				b[i] ^= 0x80
				if _, err := image.ParseTable(b, 4<<20); err == nil {
					t.Errorf("with byte %d changed: got no error", i)
				}
				b[i] ^= 0x80
			}
		}
	}
	expected := map[string]expect{
		"blink_esp32s2.bin":     app(image.ESP32S2, "qa-test-v5.0-20220830-4-g4532e6", "blink", "10f48f4a71a48cc4c917d70d13bf717b1bc7f3187b3d564b00192f7e381531b7"),
		"hello_world_esp32.bin": app(image.ESP32, "qa-test-esp32c61-master-2025070", "hello_world", "2d1a1270f7823d2a16ad2a28e6e9e97c3c17f787879b2acdd87fbea6fd30b60d"),
		"bootloader_esp32_v5_2.bin": func(t *testing.T, b []byte) {
			info, err := verify(b, image.Options{Exact: true})
			if err != nil {
				t.Fatal(err)
			}
			if d := info.Bootloader; d == nil || d.IDF != "v5.2-dev-254-g1950b15" || info.App != nil {
				t.Errorf("got %+v, want a bootloader of v5.2-dev-254-g1950b15", d)
			}
			if _, err := verify(b, image.Options{App: true}); err == nil {
				t.Error("as an application: got no error")
			}
		},
		"bootloader_signed_v2_rsa.bin":      signed("RSA-3072", rsaKey),
		"bootloader_signed_v2_ecdsa256.bin": signed("ECDSA P-256", "f35cc5dbdde67f94a7bbcb5723371ba91822193582308f84cb95b4531219056d"),
		"bootloader_digested.bin":           refused(image.Options{}, "begins with 0x45"), // of Secure Boot v1: IV and digest come first
		"digest_iv.bin":                     refused(image.Options{}, "begins with 0x5f"),
		"ecdsa192_public_key_digest_v2.bin": p192Digest,
		"ecdsa256_public_key_digest_v2.bin": p256Digest,
		"rsa_public_key_digest.bin": func(t *testing.T, b []byte) { // of the key that signed bootloader_signed_v2_rsa.bin
			if got := hex.EncodeToString(b); got != rsaKey {
				t.Errorf("got %s, want %s", got, rsaKey)
			}
		},
		"onebyte.bin":            refused(image.Options{}, "begins with 0x61"),
		"zerolength.bin":         refused(image.Options{}, "empty"),
		"not_4_byte_aligned.bin": refused(image.Options{}, "byte 23 is 0x20"), // of an ESP8266, whose header is shorter
		"esp32c3_header_min_rev.bin": func(t *testing.T, b []byte) { // a header and one segment of nothing
			info, err := verify(b, image.Options{Exact: true, Rev: 255})
			if err != nil {
				t.Fatal(err)
			}
			if info.Chip != image.ESP32C3 || info.MinRev != 255 || info.MaxRev != 0 || info.HashAppended {
				t.Errorf("got %+v, want an ESP32-C3 of v2.55 or newer", info)
			}
			refused(image.Options{Rev: 254}, "v2.55 and newer")(t, b)
			refused(image.Options{App: true}, "no application")(t, b)
		},
		"partitions_singleapp_no_terminator.bin": refused(image.Options{}, "begins with 0xaa"),
		"idf_partitions.bin":                     table("nvs", "phy_инит_", "factory"),
		"single_factory_no_ota.bin":              table("nvs", "phy_init", "factory"),
		"factory_app_two_ota.bin":                table("nvs", "otadata", "phy_init", "factory", "ota_0", "ota_1"),
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		f := expected[file.Name()]
		if f == nil {
			t.Errorf("%s: nobody says what to expect of it", file.Name())
			continue
		}
		delete(expected, file.Name())
		t.Run(file.Name(), func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(dir, file.Name()))
			if err != nil {
				t.Fatal(err)
			}
			f(t, b)
		})
	}
	for name := range expected {
		t.Errorf("%s is not there", name)
	}
}

// The two digests below are of keys that signed none of the images. The keys are
// in esptool's test/secure_images; these are their public halves.

func p256Digest(t *testing.T, want []byte) {
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), unhex(t, "04"+
		"0e2c4fad6acb60fba2a252a6c096110c3043307a7eb8e72d7083a48890884ee9"+
		"1a57f641b32ce336d3a86f879ab76f9666d9c7ea272da39e7b5aa8c448770490"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := image.KeyDigest(public)
	if err != nil || !bytes.Equal(got[:], want) {
		t.Errorf("got %x, %v, want %x", got, err, want)
	}
}

// P-192 is refused, but the digest says which key it was.
func p192Digest(t *testing.T, want []byte) {
	x := unhex(t, "5dc2bcaeb00cbebf8f28e19b98031a60862380afac88058b")
	y := unhex(t, "984638b049783d7c90bd4ba673e2dcd54d6968e802bbc3bb")
	slices.Reverse(x)
	slices.Reverse(y)
	b, err := image.Sign(imagetest.App(imagetest.Spec{}), testKeys().p256)
	if err != nil {
		t.Fatal(err)
	}
	block := b[image.SectorSize:]
	block[36] = 1
	copy(block[37:101], append(append(x, y...), make([]byte, 16)...))
	binary.LittleEndian.PutUint32(block[1196:], crc32.ChecksumIEEE(block[:1196]))
	info, err := verify(b, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Signature.Blocks[0]; !bytes.Equal(got.KeyDigest[:], want) || got.Err == nil || !strings.Contains(got.Err.Error(), "too weak") {
		t.Errorf("got %x, %v, want %x and that it is too weak", got.KeyDigest, got.Err, want)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
