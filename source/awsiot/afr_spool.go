package awsiot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/durable"
)

// afrSpool keeps the one file of a FreeRTOS OTA job on the device's disk: it is
// signed as a whole, so that nothing of it may be used before all of it is there.
//
//	Dir/spool.json   what the file is, how many of its bytes are on the disk, and their
//	                 SHA-256; replaced as a whole every MiB or so
//	Dir/file         the bytes; what is behind those in spool.json counts for nothing
//
// A restart, with or without a power cut, goes on behind the bytes that spool.json
// names if they have that SHA-256, and at the beginning if not. The methods are not to
// be called at the same time, except open.
type afrSpool struct {
	FS  durable.FS
	Dir string // made if it is not there; nothing else is in it
	Max int64  // bytes of a file, at most
	// Code has the keys of files that are no bundles. A file that is a bundle must then be
	// signed with one of them, too. Nil: only bundles are taken.
	Code *bundle.CodeSigning
	// Keys verifies the envelope of a file that is a bundle. Nil: none are taken.
	Keys ota.Verify
	// ImageVersion reads the version in a raw image. Nil: it is not looked for.
	ImageVersion func(r io.ReaderAt, size int64) (string, error)
}

const (
	spoolState     = "spool.json"
	spoolFile      = "file"
	maxSpoolState  = 4 << 10  // bytes
	spoolStep      = 1 << 20  // bytes between two states, at least
	spoolSteps     = 64       // states of one file, at most
	spoolReserve   = 1 << 20  // bytes that stay free
	spoolReadPiece = 64 << 10 // bytes read at once
)

// errSpoolDamaged says that the disk has other bytes than were received. They are
// received again.
var errSpoolDamaged = errors.New("the spooled file is damaged")

// spooled is spool.json. Names never change.
type spooled struct {
	Format   int      `json:"format"` // 1
	ID       string   `json:"id"`     // of the file, see afrFile.id
	Size     int64    `json:"size"`   // bytes of all of it
	Received int64    `json:"received"`
	SHA256   ota.Hash `json:"sha256"` // of what is received
}

// id names the content that a job wants: the signature is that of one file only. Its
// path and its version may change.
func (f *afrFile) id() string {
	sum := sha256.Sum256([]byte(strconv.FormatInt(f.Size, 10) + " " + f.SignatureName + " " + string(f.Signature)))
	return fmt.Sprintf("%x", sum[:16])
}

// receive brings f into the spool, whole and verified, and returns the envelope
// for Latest. What an earlier call or an earlier life of the process left is used; what
// is there of another file is removed. Open returns the file from offset on. Progress may be nil.
//
// An error that wraps [ota.ErrValidation] is final: the file came whole, and is not what
// was signed, or is of no use here; so is [ota.ErrInsufficientSpace]. After others it is called
// again, and goes on.
func (s *afrSpool) receive(ctx context.Context, f afrFile, open func(ctx context.Context, offset int64) (io.ReadCloser, error),
	progress func(done, total int64)) (signed []byte, err error) {
	if err := s.receiveFile(ctx, &f, open, progress); err != nil {
		return nil, fmt.Errorf("receive %s: %w", clean(f.Path, 80), err)
	}
	if signed, err = s.verified(&f); err != nil {
		err = fmt.Errorf("verify %s: %w", clean(f.Path, 80), err)
		if errors.Is(err, ota.ErrValidation) { // it never will be right
			err = errors.Join(err, s.discard())
		}
		return nil, err
	}
	return signed, nil
}

// receiveFile returns once all bytes are on the disk, and read back from there.
func (s *afrSpool) receiveFile(ctx context.Context, f *afrFile, open func(context.Context, int64) (io.ReadCloser, error), progress func(done, total int64)) error {
	if f.Size < 1 || f.Size > s.Max {
		return coded(ota.ErrInsufficientSpace, "the file has %d bytes, and at most %d are spooled here", f.Size, s.Max)
	}
	if err := durable.MkdirAll(s.FS, s.Dir, 0o700); err != nil {
		return diskError(err)
	}
	st, sum, err := s.resume(ctx, f)
	if err != nil {
		return err
	}
	if progress != nil {
		progress(st.Received, st.Size)
	}
	if st.Received == st.Size {
		return nil
	}
	free, err := s.FS.Free(s.Dir)
	if err != nil {
		return diskError(err)
	}
	if need := st.Size - st.Received + spoolReserve; free < need {
		return coded(ota.ErrInsufficientSpace, "%d bytes are free in %s, want %d", free, s.Dir, need)
	}
	r, err := open(ctx, st.Received)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := s.fill(ctx, st, sum, r, progress); err != nil {
		return err
	}
	if _, err := s.hashFile(ctx, st); err != nil { // what the disk has, and not what came
		return s.damaged(err)
	}
	return nil
}

// resume returns how far f is received, and the hash of that. It begins anew where
// nothing is there that can be used.
func (s *afrSpool) resume(ctx context.Context, f *afrFile) (*spooled, hash.Hash, error) {
	st := s.state()
	if st != nil && st.ID == f.id() && st.Size == f.Size {
		sum, err := s.hashFile(ctx, st)
		if err == nil {
			return st, sum, nil
		}
		if !errors.Is(err, errSpoolDamaged) {
			return nil, nil, err
		}
	}
	if err := s.discard(); err != nil {
		return nil, nil, err
	}
	sum := sha256.New()
	st = &spooled{Format: 1, ID: f.id(), Size: f.Size}
	sum.Sum(st.SHA256[:0])
	return st, sum, nil
}

// state reads spool.json: nil if there is none that can be used, for whatever reason. Then
// the file is received again, and the state written anew.
func (s *afrSpool) state() *spooled {
	b, err := durable.ReadFile(s.FS, filepath.Join(s.Dir, spoolState), maxSpoolState)
	if err != nil {
		return nil
	}
	return parseSpooled(b)
}

// parseSpooled returns nil for what it does not understand.
func parseSpooled(b []byte) *spooled {
	st := new(spooled)
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if dec.Decode(st) != nil || dec.More() || st.Format != 1 || st.Size < 1 || st.Received < 0 || st.Received > st.Size {
		return nil
	}
	return st
}

// hashFile reads what st says is received from the medium and returns its hash, whose
// sum is that of st. Otherwise the error wraps errSpoolDamaged.
func (s *afrSpool) hashFile(ctx context.Context, st *spooled) (hash.Hash, error) {
	sum := sha256.New()
	if st.Received > 0 {
		f, err := s.FS.OpenFile(filepath.Join(s.Dir, spoolFile), os.O_RDONLY|durable.Direct, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: it is gone", errSpoolDamaged)
		}
		if err != nil {
			return nil, diskError(err)
		}
		defer f.Close() // only read: nothing can be lost
		buf := make([]byte, spoolReadPiece)
		for at := int64(0); at < st.Received; {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			p := buf[:min(int64(len(buf)), st.Received-at)]
			n, err := f.ReadAt(p, at)
			if n < len(p) && (err == nil || errors.Is(err, io.EOF)) {
				return nil, fmt.Errorf("%w: it ends at byte %d, and %d were received", errSpoolDamaged, at+int64(n), st.Received)
			}
			if n < len(p) {
				return nil, fmt.Errorf("%w: %w", errSpoolDamaged, err) // a sector that cannot be read is written again
			}
			sum.Write(p)
			at += int64(n)
		}
	}
	if got := ota.Hash(sum.Sum(nil)); got != st.SHA256 {
		return nil, fmt.Errorf("%w: its first %d bytes have SHA-256 %s, and those received had %s", errSpoolDamaged, st.Received, got, st.SHA256)
	}
	return sum, nil
}

// fill writes what r has behind what st says, and keeps st up to date on the disk.
func (s *afrSpool) fill(ctx context.Context, st *spooled, sum hash.Hash, r io.Reader, progress func(done, total int64)) (err error) {
	f, err := s.FS.OpenFile(filepath.Join(s.Dir, spoolFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return diskError(err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = diskError(cerr)
		}
	}()
	step := max(int64(spoolStep), st.Size/spoolSteps)
	buf := make([]byte, spoolReadPiece)
	saved := st.Received
	for st.Received < st.Size {
		n, rerr := io.ReadAtLeast(r, buf[:min(int64(len(buf)), st.Size-st.Received)], 1)
		if st.Received == 0 && n > 0 && s.Code == nil && !bytes.HasPrefix([]byte(bundle.Magic), buf[:min(n, len(bundle.Magic))]) {
			return coded(ota.ErrValidation, "the file is no Interlock bundle, and this device has no code-signing certificate by which it could take another: configure one, or name a bundle in the job")
		}
		if _, err := f.WriteAt(buf[:n], st.Received); err != nil {
			return diskError(err)
		}
		sum.Write(buf[:n])
		st.Received += int64(n)
		whole := st.Received == st.Size
		if progress != nil && n > 0 {
			progress(st.Received, st.Size)
		}
		if rerr == nil && ctx.Err() != nil {
			rerr = ctx.Err()
		}
		if whole || rerr != nil && st.Received > saved || st.Received-saved >= step {
			if err := s.save(f, st, sum); err != nil {
				return err
			}
			saved = st.Received
		}
		if rerr != nil && !whole {
			if errors.Is(rerr, io.EOF) {
				rerr = fmt.Errorf("it ended at byte %d of %d: %w", st.Received, st.Size, io.ErrUnexpectedEOF)
			}
			return networkError(rerr)
		}
	}
	return nil
}

// save makes the file durable, and then what is said about it.
func (s *afrSpool) save(f durable.File, st *spooled, sum hash.Hash) error {
	sum.Sum(st.SHA256[:0])
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return diskError(err)
	}
	if err := s.FS.SyncDir(s.Dir); err != nil { // the file's name
		return diskError(err)
	}
	if err := durable.WriteFile(s.FS, filepath.Join(s.Dir, spoolState), b, 0o600); err != nil {
		return diskError(err)
	}
	return nil
}

// damaged begins anew if err says that the disk has other bytes than came.
func (s *afrSpool) damaged(err error) error {
	if errors.Is(err, errSpoolDamaged) {
		err = errors.Join(err, s.discard())
	}
	return err
}

// verified returns the envelope of the file that is there whole.
func (s *afrSpool) verified(f *afrFile) ([]byte, error) {
	file, err := s.FS.OpenFile(filepath.Join(s.Dir, spoolFile), os.O_RDONLY|durable.Direct, 0)
	if err != nil {
		return nil, diskError(err)
	}
	defer file.Close() // only read: nothing can be lost
	head := make([]byte, len(bundle.Magic))
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, diskError(err)
	}
	if string(head[:n]) != bundle.Magic {
		if s.Code == nil {
			return nil, coded(ota.ErrValidation, "the file is no Interlock bundle, and this device has no code-signing certificate by which it could take another")
		}
		return s.Code.Envelope(file, f.Size, bundle.CodeSigned{Version: f.Version, Path: f.Path, Signature: f.Signature, ImageVersion: s.ImageVersion})
	}
	if s.Keys == nil {
		return nil, coded(ota.ErrValidation, "the file is an Interlock bundle, and this device has no keys for releases")
	}
	if s.Code != nil {
		if err := s.Code.VerifyFile(file, f.Size, f.Signature); err != nil {
			return nil, err
		}
	}
	b, err := bundle.Open(file, f.Size)
	if err != nil {
		return nil, err
	}
	m, err := s.Keys(b.Signed())
	if err != nil {
		return nil, err
	}
	if want := bundle.Size(len(b.Signed()), m); want != f.Size {
		return nil, coded(ota.ErrValidation, "the bundle has %d bytes, want %d", f.Size, want)
	}
	return b.Signed(), nil
}

// open returns im of m from the spool, from offset on; it is also an [io.Seeker]. At
// the beginning of an image, all of the file is compared with what was received: if it
// is damaged, the error wraps errSpoolDamaged, and receive gets it again.
func (s *afrSpool) open(m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	st := s.state()
	if st == nil || st.Received != st.Size {
		return nil, coded(ota.ErrServer, "%w: it is not there as a whole", errSpoolDamaged)
	}
	if offset == 0 {
		if _, err := s.hashFile(context.Background(), st); err != nil {
			return nil, coded(ota.ErrServer, "%w", err)
		}
	}
	f, err := s.FS.OpenFile(filepath.Join(s.Dir, spoolFile), os.O_RDONLY, 0)
	if err != nil {
		return nil, diskError(err)
	}
	part, err := spooledImage(f, st.Size, m, im)
	if err == nil {
		_, err = part.Seek(offset, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, coded(ota.ErrServer, "%w", err)
	}
	return &spoolReader{part, f}, nil
}

// spooledImage returns where im is in the file: in a bundle, or all of it. Whether these
// are its bytes, the hashes of its chunks say.
func spooledImage(f durable.File, size int64, m *ota.Manifest, im *ota.Image) (*io.SectionReader, error) {
	b, err := bundle.Open(f, size)
	if err == nil {
		return b.Image(m, im)
	}
	if im.Size != size || len(m.Images) != 1 {
		return nil, fmt.Errorf("the spooled file of %d bytes is not the image of %d bytes that is wanted", size, im.Size)
	}
	return io.NewSectionReader(f, 0, size), nil
}

type spoolReader struct {
	*io.SectionReader
	f io.Closer
}

func (r *spoolReader) Close() error { return r.f.Close() }

// discard removes what is in the spool, if anything: first what is said about the file.
func (s *afrSpool) discard() error {
	gone := false
	for _, name := range []string{spoolState, spoolState + ".tmp", spoolFile} {
		switch err := s.FS.Remove(filepath.Join(s.Dir, name)); {
		case err == nil:
			gone = true
		case !errors.Is(err, fs.ErrNotExist):
			return diskError(err)
		}
	}
	if !gone {
		return nil
	}
	if err := s.FS.SyncDir(s.Dir); err != nil {
		return diskError(err)
	}
	return nil
}

// diskError says that the spool's disk does not do what it should. A full one is final for
// a job; others may mend.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return coded(ota.ErrInsufficientSpace, "spool: %w", err)
	}
	return coded(ota.ErrInternal, "spool: %w", err)
}
