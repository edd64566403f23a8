// Package blob keeps release files in a directory, for the update server.
//
// A file's name is the SHA-256 of its content, so a name never changes its
// meaning and storing a file twice is storing it once. Start with [Open].
//
// Promised: a file is under its name either whole, durable and accepted by the
// caller's check, or not at all; an upload is streamed, never held in memory;
// and what a broken upload leaves behind is removed, at the latest by the next
// Open.
package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
)

// ErrNotFound is returned for a key that is not stored. It matches [fs.ErrNotExist].
var ErrNotFound = fmt.Errorf("no such release file: %w", fs.ErrNotExist)

// Info describes a stored file.
type Info struct {
	Key     ota.Hash // SHA-256 of the content
	Size    int64    // bytes
	ModTime time.Time
}

// A File is a stored file, open for reading. Several may be open at a time, and
// one goes on being readable if its key is deleted.
type File struct {
	*os.File
	Info
}

// A Check decides on a file that has been received whole, before it is stored.
// f and in.Key describe exactly the bytes that will be stored.
type Check func(f io.ReaderAt, in Info) error

// Dir stores files in a directory:
//
//	tmp/             what is being received
//	ab/abcd...ef     a file, by the SHA-256 of its content in hex
//
// A directory belongs to one process at a time. Methods may be called from any
// goroutine.
type Dir struct {
	root string
	mu   sync.RWMutex // Put's last step and Delete exclude each other
}

// Open returns the store in directory root, which it creates if needed, and
// removes what broken uploads left there.
func Open(root string) (*Dir, error) {
	tmp := filepath.Join(root, "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("open the file store: %w", err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil {
		return nil, fmt.Errorf("open the file store: %w", err)
	}
	for _, e := range left {
		if err := os.Remove(filepath.Join(tmp, e.Name())); err != nil {
			return nil, fmt.Errorf("open the file store: remove a broken upload: %w", err)
		}
	}
	return &Dir{root: root}, nil
}

// Put stores what r delivers, up to its end, if check, which may be nil, accepts
// it. It returns once the file is durable. On any error nothing is stored.
func (d *Dir) Put(ctx context.Context, r io.Reader, check Check) (Info, error) {
	f, err := os.CreateTemp(filepath.Join(d.root, "tmp"), "upload-*")
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
	// The content must be on the disk before the name is, or a power cut leaves a
	// name that promises a hash over a file of zeros.
	if err := f.Sync(); err != nil {
		return Info{}, fmt.Errorf("store a file: %w", err)
	}
	return in, d.name(f.Name(), in.Key)
}

// name moves the file at tmp to its final name.
func (d *Dir) name(tmp string, key ota.Hash) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := d.path(key)
	parent := filepath.Dir(path)
	err := os.Mkdir(parent, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("store a file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("store a file: %w", err)
	}
	if err := syncDir(parent); err != nil {
		return fmt.Errorf("store a file: %w", err)
	}
	if err := syncDir(d.root); err != nil { // holds parent's own entry
		return fmt.Errorf("store a file: %w", err)
	}
	return nil
}

// Open opens the file with this key, or returns [ErrNotFound].
func (d *Dir) Open(ctx context.Context, key ota.Hash) (*File, error) {
	f, err := os.Open(d.path(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
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
func (d *Dir) Stat(ctx context.Context, key ota.Hash) (Info, error) {
	st, err := os.Stat(d.path(key))
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, ErrNotFound
	}
	if err != nil {
		return Info{}, fmt.Errorf("look for a release file: %w", err)
	}
	return Info{key, st.Size(), st.ModTime()}, nil
}

// Delete removes the file with this key. That it is not there is no error.
func (d *Dir) Delete(ctx context.Context, key ota.Hash) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.Remove(d.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete a release file: %w", err)
	}
	return nil
}

func (d *Dir) path(key ota.Hash) string {
	name := hex.EncodeToString(key[:])
	return filepath.Join(d.root, name[:2], name)
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// reader ends with ctx's error once that is over, so that a Put can be stopped.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
