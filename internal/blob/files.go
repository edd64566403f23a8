package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/interlock-energy/ota"
)

var (
	// ErrUnavailable is returned when the store, and not what was asked of it, is
	// to blame, for example because nobody answers there.
	ErrUnavailable = errors.New("the store of release files is not available")
	// ErrNoURL is returned by Files whose store can give out no URLs.
	ErrNoURL = errors.New("the store of release files has no URLs")
)

// Info describes a stored file.
type Info struct {
	Key     ota.Hash // SHA-256 of the content
	Size    int64    // bytes
	ModTime time.Time
}

// A File is a stored file, open for reading. Several may be open at a time, and
// one goroutine at a time may use each. One in a directory is an *os.File, and
// goes on being readable if its key is deleted.
type File struct {
	io.ReadSeekCloser
	Info
}

// A Check decides on a file that has been received whole, before it is stored.
// f and in.Key describe exactly the bytes that will be stored.
type Check func(f io.ReaderAt, in Info) error

// Files keeps release files in a [Store], by the SHA-256 of their content in hex:
// ab/abcd...ef. So a name never changes its meaning, and storing a file twice is
// storing it once. Methods may be called from any goroutine.
type Files struct {
	store Store
	spool string
}

// An adopter is a Store that can take over a file without a copy of its bytes.
type adopter interface {
	Adopt(ctx context.Context, path, key string) error
}

// A fileOpener is a Store whose objects are files of this machine.
type fileOpener interface {
	OpenFile(key string) (*os.File, error)
}

// Open returns the files in directory root, which it creates if needed, and
// removes what broken uploads left there. One process at a time may have them
// open. What is being received is in root/tmp.
func Open(root string) (*Files, error) {
	d, err := OpenDir(root)
	if err != nil {
		return nil, err
	}
	d.alone = true
	return OpenFiles(filepath.Join(root, "tmp"), d)
}

// OpenFiles returns the files in s. What is received is first held in directory
// spool, which nobody else uses: it is created if needed, and emptied.
func OpenFiles(spool string, s Store) (*Files, error) {
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return nil, fmt.Errorf("open the file store: %w", err)
	}
	left, err := os.ReadDir(spool)
	if err != nil {
		return nil, fmt.Errorf("open the file store: %w", err)
	}
	for _, e := range left {
		if err := os.Remove(filepath.Join(spool, e.Name())); err != nil {
			return nil, fmt.Errorf("open the file store: remove a broken upload: %w", err)
		}
	}
	return &Files{s, spool}, nil
}

// Put stores what r delivers, up to its end, if check, which may be nil, accepts
// it. It returns once the file is durable. On any error nothing is stored.
func (s *Files) Put(ctx context.Context, r io.Reader, check Check) (Info, error) {
	f, err := os.CreateTemp(s.spool, "upload-*")
	if err != nil {
		return Info{}, fmt.Errorf("store a file: %w", err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing under this name
	defer f.Close()

	sum := sha256.New()
	var in Info
	in.Size, err = io.Copy(io.MultiWriter(f, sum), &reader{ctx, r})
	if err != nil {
		return Info{}, fmt.Errorf("store a file: after %d bytes: %w", in.Size, err)
	}
	in.Key = ota.Hash(sum.Sum(nil))
	in.ModTime = time.Now()
	if check != nil {
		if err := check(f, in); err != nil {
			return Info{}, err
		}
	}
	if err := s.keep(ctx, f, in); err != nil {
		return Info{}, fmt.Errorf("store a file: %w", err)
	}
	return in, nil
}

// keep gives the spooled file its place.
func (s *Files) keep(ctx context.Context, f *os.File, in Info) error {
	a, ok := s.store.(adopter)
	if !ok {
		return s.put(ctx, io.NewSectionReader(f, 0, in.Size), in.Key)
	}
	// The content must be on the disk before the name is, or a power cut leaves a
	// name that promises a hash over a file of zeros.
	if err := f.Sync(); err != nil {
		return err
	}
	return a.Adopt(ctx, f.Name(), name(in.Key))
}

func (s *Files) put(ctx context.Context, r io.ReadSeeker, key ota.Hash) error {
	_, err := s.store.Put(ctx, name(key), r, PutOptions{CacheControl: "private, max-age=31536000, immutable"})
	return s.blame(ctx, err)
}

// PutPart stores a part of a file as a file of its own. The caller has checked
// that key is the SHA-256 of its bytes.
func (s *Files) PutPart(ctx context.Context, part *io.SectionReader, key ota.Hash) error {
	if _, err := part.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("store a part of a file: %w", err)
	}
	if err := s.put(ctx, part, key); err != nil {
		return fmt.Errorf("store a part of a file: %w", err)
	}
	return nil
}

// HasURLs reports whether URL can return any.
func (s *Files) HasURLs() bool {
	_, ok := s.store.(Presigner)
	return ok
}

// URL returns an URL that reads the file with this key for lifetime. Without one
// that is [ErrNotFound], and for a store that gives out no URLs [ErrNoURL].
func (s *Files) URL(ctx context.Context, key ota.Hash, lifetime time.Duration) (string, error) {
	p, ok := s.store.(Presigner)
	if !ok {
		return "", ErrNoURL
	}
	if _, err := s.Stat(ctx, key); err != nil {
		return "", err
	}
	u, err := p.PresignGet(ctx, name(key), lifetime)
	return u, s.blame(ctx, err)
}

// Open opens the file with this key, or returns [ErrNotFound]. Reads of it end
// with ctx.
func (s *Files) Open(ctx context.Context, key ota.Hash) (*File, error) {
	o, ok := s.store.(fileOpener)
	if !ok {
		in, err := s.Stat(ctx, key)
		if err != nil {
			return nil, err
		}
		return &File{&remote{ctx: ctx, files: s, key: name(key), size: in.Size}, in}, nil
	}
	f, err := o.OpenFile(name(key))
	if err != nil {
		return nil, fmt.Errorf("open a release file: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open a release file: %w", err)
	}
	return &File{f, Info{key, st.Size(), st.ModTime()}}, nil
}

// Stat describes the file with this key, or returns [ErrNotFound].
func (s *Files) Stat(ctx context.Context, key ota.Hash) (Info, error) {
	out, err := s.store.Stat(ctx, name(key))
	if err != nil {
		return Info{}, fmt.Errorf("look for a release file: %w", s.blame(ctx, err))
	}
	return Info{key, out.Size, out.ModTime}, nil
}

// Delete removes the file with this key. That it is not there is no error.
func (s *Files) Delete(ctx context.Context, key ota.Hash) error {
	if err := s.store.Delete(ctx, name(key)); err != nil {
		return fmt.Errorf("delete a release file: %w", s.blame(ctx, err))
	}
	return nil
}

// blame marks an error as that of a store elsewhere, unless it is an answer or
// the caller's doing.
func (s *Files) blame(ctx context.Context, err error) error {
	if _, here := s.store.(fileOpener); err == nil || here || ctx.Err() != nil || errors.Is(err, ErrNotFound) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// name is a file's key in the store.
func name(key ota.Hash) string {
	n := hex.EncodeToString(key[:])
	return n[:2] + "/" + n
}
