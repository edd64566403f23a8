// Package bundle makes, opens and verifies the signed releases of Interlock. It
// is where a device's trust begins: [Keys.Verify] is the only way from bytes
// that somebody sent to a manifest that a device acts on.
//
// To make a release, call [Build] with a manifest, the image files and private
// keys. To take one, load the public keys with [LoadKeys] and give Keys.Verify
// to the manager; images are checked chunk by chunk against the manifest that it
// returns. To look at a bundle file, [Open] it.
//
// # Who trusts whom
//
// Signers hold private keys, off the network. A device holds public keys and a
// threshold: how many different keys must have signed. Sources, servers, USB
// sticks and whoever carries them are not trusted, and need no keys.
//
//	private keys ──sign──> manifest ──SHA-256 of every chunk──> images
//	     ⋮                     ▲
//	public keys + threshold ───┘ verify, on the device
//
// A signature covers the payload of a DSSE envelope, version 1.0.2
// (https://github.com/secure-systems-lab/dsse), and its type, so no signature
// made for something else can be taken for one of a release. Nothing but the
// envelope is parsed before enough signatures hold.
//
// # The bundle file
//
//	offset      bytes  what
//	0           8      magic 89 49 4C 4B 0D 0A 1A 0A ("\x89ILK\r\n\x1a\n")
//	8           4      N, length of the envelope, big-endian; 1 to 16 MiB
//	12          N      envelope: DSSE, JSON; its payload is the manifest, JSON
//	12+N        ...    the images, in the order of the manifest, without gaps
//	            0      nothing after them
//
// The magic begins with a byte above 127 and has both line ends and an
// end-of-file mark, as that of PNG (RFC 2083, section 12.11), so that transfers
// as text, which would change an image unseen, are noticed at once.
//
// # Promises
//
// Whatever is wrong is an error that wraps [ota.ErrValidation] and says what is
// wrong, with numbers. An empty, missing or unreadable key list refuses
// everything. Unknown fields of a manifest are refused, not skipped: they could
// be a rule that an older agent would break. Format 1 is read for ever.
package bundle

import (
	"bytes"
	"crypto/md5" //nolint:gosec // for old clients; SHA-256 decides
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/interlock-energy/ota"
)

// The layout of a bundle file, for those who read it piecewise.
const (
	Magic      = "\x89ILK\r\n\x1a\n" // first bytes of every bundle file
	HeaderSize = len(Magic) + 4      // bytes before the envelope: magic and length

	MaxEnvelopeSize = ota.MaxManifestSize // bytes
)

// ParseHeader reads the first [HeaderSize] bytes of a bundle, of which b may
// hold more, and returns the length of the envelope that follows, in bytes: 1
// to [MaxEnvelopeSize]. Errors wrap [ota.ErrValidation].
func ParseHeader(b []byte) (envelopeLen int, err error) {
	if len(b) < HeaderSize {
		return 0, refuse("read bundle header: got %d bytes, want %d", len(b), HeaderSize)
	}
	if got := string(b[:len(Magic)]); got != Magic {
		// The three damages that the magic is made for, RFC 2083, section 12.11.
		for _, damaged := range []string{"\x09ILK\r\n\x1a\n", "\x89ILK\n\x1a\n", "\x89ILK\r\r\n\x1a\r\n", "\x89ILK\r\n\x1a\r\n", "\x89ILK\r\r\n"} {
			if bytes.HasPrefix(b, []byte(damaged)) {
				return 0, refuse("read bundle header: the file was changed by a transfer as text (it begins %q); copy it again in binary mode", got)
			}
		}
		return 0, refuse("read bundle header: not a bundle: it begins with %q, want %q", got, Magic)
	}
	n := binary.BigEndian.Uint32(b[len(Magic):])
	if n < 1 || n > MaxEnvelopeSize {
		return 0, refuse("read bundle header: envelope of %d bytes, want 1 to %d", n, MaxEnvelopeSize)
	}
	return int(n), nil
}

func header(envelopeLen int) []byte {
	return binary.BigEndian.AppendUint32([]byte(Magic), uint32(envelopeLen))
}

// Size returns the length in bytes of a bundle with an envelope of envelopeLen
// bytes and the images of m, which must have been validated.
func Size(envelopeLen int, m *ota.Manifest) int64 {
	return int64(HeaderSize) + int64(envelopeLen) + m.Size()
}

// ImageOffset returns where the image for component begins, in bytes from the
// start of the bundle. A component that m does not have is [ota.ErrValidation],
// and so are sizes that no valid manifest has.
func ImageOffset(envelopeLen int, m *ota.Manifest, component string) (int64, error) {
	if envelopeLen < 1 || envelopeLen > MaxEnvelopeSize {
		return 0, refuse("find image %s: envelope of %d bytes, want 1 to %d", component, envelopeLen, MaxEnvelopeSize)
	}
	offset := int64(HeaderSize) + int64(envelopeLen)
	for i := range m.Images {
		im := &m.Images[i]
		if im.Size < 1 || im.Size > ota.MaxImageSize || offset > math.MaxInt64-im.Size {
			return 0, refuse("find image %s: image %s of %d bytes, want 1 to %d", component, im.Component, im.Size, int64(ota.MaxImageSize))
		}
		if im.Component == component {
			return offset, nil
		}
		offset += im.Size
	}
	return 0, refuse("find image %s: the manifest of %s has none for this component", component, m.Version)
}

// File is an opened bundle. It reads through the one [io.ReaderAt] that it was
// given, and keeps the envelope, so a file that is exchanged under its name
// later is neither read nor mixed in. A file whose content is changed in place
// is noticed by the hashes of the chunks. Methods may be called concurrently.
type File struct {
	r        io.ReaderAt
	size     int64
	envelope []byte
}

// Open reads the header and the envelope of a bundle of size bytes, and trusts
// neither. It does not parse the envelope. A file that is none, or ends within
// the envelope, is [ota.ErrValidation]; errors of r are wrapped.
func Open(r io.ReaderAt, size int64) (*File, error) {
	if size < int64(HeaderSize) {
		return nil, refuse("open bundle: %d bytes are too short for a bundle, whose header alone has %d", size, HeaderSize)
	}
	h := make([]byte, HeaderSize)
	if err := readAt(r, h, 0); err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	n, err := ParseHeader(h)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	// Compared with the size before memory is taken, so that a short file cannot
	// ask for 16 MiB.
	if want := int64(HeaderSize) + int64(n); size < want {
		return nil, refuse("open bundle: truncated: got %d bytes, the envelope ends at %d", size, want)
	}
	f := &File{r: r, size: size, envelope: make([]byte, n)}
	if err := readAt(r, f.envelope, int64(HeaderSize)); err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	return f, nil
}

// Signed returns the envelope for [Keys.Verify]: unverified bytes, which the
// caller must not change.
func (f *File) Signed() []byte { return f.envelope }

// Image returns the bytes of im, an image of m. They are unverified; m must be
// what Keys.Verify made of [File.Signed]. A file too short for im is
// [ota.ErrValidation].
func (f *File) Image(m *ota.Manifest, im *ota.Image) (*io.SectionReader, error) {
	offset, err := ImageOffset(len(f.envelope), m, im.Component)
	if err != nil {
		return nil, err
	}
	if im.Size < 1 || im.Size > ota.MaxImageSize || offset > f.size-im.Size {
		return nil, refuse("open image %s: truncated: the bundle has %d bytes, the image of %d bytes begins at %d", im.Component, f.size, im.Size, offset)
	}
	return io.NewSectionReader(f.r, offset, im.Size), nil
}

// VerifyAll verifies the whole file with k: signatures, every chunk and hash of
// every image, and that the file ends with the last image. Progress, which may
// be nil, is called after each chunk with bytes of images; their sum is total.
func (f *File) VerifyAll(k *Keys, progress func(done, total int64)) (*ota.Manifest, error) {
	m, err := k.Verify(f.envelope)
	if err != nil {
		return nil, err
	}
	if err := f.verifyImages(m, progress); err != nil {
		return nil, err
	}
	return m, nil
}

// Sums are the hashes of a bundle file that its manifest need not have.
type Sums struct {
	SHA256 ota.Hash // of the file
	MD5    string   // of the file, hex
	Images []string // MD5 of each image, hex, in the manifest's order
}

// Check compares the whole file with m, which must be what a verifier made of
// [File.Signed]: every chunk and hash of every image, and that the file ends with
// the last image. It reads the file once. It is for those who hand bundles on:
// with a manifest that [Unsigned] made, it says that the file is whole, and
// nothing of who made it.
func (f *File) Check(m *ota.Manifest) (Sums, error) {
	if err := f.checkSize(m); err != nil {
		return Sums{}, err
	}
	whole, old := sha256.New(), md5.New()
	all := io.MultiWriter(whole, old) // hashes return no errors
	all.Write(header(len(f.envelope)))
	all.Write(f.envelope)
	var s Sums
	for i := range m.Images {
		im := &m.Images[i]
		r, err := f.Image(m, im)
		if err != nil {
			return Sums{}, err
		}
		image := md5.New()
		if err := copyImage(io.MultiWriter(all, image), r, im, nil); err != nil {
			return Sums{}, fmt.Errorf("check image %s: %w", im.Component, err)
		}
		s.Images = append(s.Images, hex.EncodeToString(image.Sum(nil)))
	}
	whole.Sum(s.SHA256[:0])
	s.MD5 = hex.EncodeToString(old.Sum(nil))
	return s, nil
}

func (f *File) verifyImages(m *ota.Manifest, progress func(done, total int64)) error {
	if err := f.checkSize(m); err != nil {
		return err
	}
	var done int64
	for i := range m.Images {
		im := &m.Images[i]
		r, err := f.Image(m, im)
		if err != nil {
			return err
		}
		err = copyImage(io.Discard, r, im, func(n int64) {
			done += n
			if progress != nil {
				progress(done, m.Size())
			}
		})
		if err != nil {
			return fmt.Errorf("verify bundle: %w", err)
		}
	}
	return nil
}

func (f *File) checkSize(m *ota.Manifest) error {
	switch want := Size(len(f.envelope), m); {
	case f.size < want:
		return refuse("verify bundle: truncated: got %d bytes, want %d; %d are missing", f.size, want, want-f.size)
	case f.size > want:
		return refuse("verify bundle: extended: got %d bytes, want %d; %d bytes follow the last image", f.size, want, f.size-want)
	}
	return nil
}

// readAt fills b. The end of the file is a wrong bundle, other errors are the
// medium's.
func readAt(r io.ReaderAt, b []byte, offset int64) error {
	n, err := io.ReadFull(io.NewSectionReader(r, offset, int64(len(b))), b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse("truncated: the file ends at %d, want at least %d bytes", offset+int64(n), offset+int64(len(b)))
	}
	if err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(b), offset, err)
	}
	return nil
}

// refuse returns an error that wraps ota.ErrValidation.
func refuse(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ota.ErrValidation}, a...)...)
}
