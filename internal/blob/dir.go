package blob

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
)

// Dir is a [Store] in a directory:
//
//	releases/1.0/a.bundle   the object releases/1.0/a.bundle
//	~tmp/                   what is being received
//	~lock                   locked while an object is named, replaced or deleted
//
// No key has a ~ in it. Several processes may use a directory at a time, on one
// machine. Unlike in a bucket, no key can be a folder of another: where a/b is, a
// is not. Content types are not kept.
type Dir struct {
	root  string
	alone bool       // no other process uses it, so that ~lock is not needed
	mu    sync.Mutex // this process's share of ~lock
}

var _ Store = (*Dir)(nil)

const (
	// broken is how old a file in ~tmp is when nobody can be writing it any more.
	broken = 24 * time.Hour
	// hashed is the greatest size of an object, in bytes, whose ETag is its hash.
	// What is changed in place is smaller: lists and documents. Of larger objects
	// the ETag tells when they were stored, because to look at a release must not
	// cost reading it.
	hashed = 1 << 20
	// lockPause is how long to wait before another try for ~lock.
	lockPause = 2 * time.Millisecond
)

// OpenDir returns the store in directory root, which it creates if needed, and
// removes what broken uploads left there a day ago or earlier.
func OpenDir(root string) (*Dir, error) {
	tmp := filepath.Join(root, "~tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	for _, e := range left {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > broken {
			if err := os.Remove(filepath.Join(tmp, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("open the store: remove a broken upload: %w", err)
			}
		}
	}
	return &Dir{root: filepath.Clean(root)}, nil
}

// Put implements [Store].
func (d *Dir) Put(ctx context.Context, key string, r io.ReadSeeker, o PutOptions) (Object, error) {
	if err := CheckKey(key); err != nil {
		return Object{}, fmt.Errorf("store: %w", err)
	}
	f, err := os.CreateTemp(filepath.Join(d.root, "~tmp"), "put-*")
	if err != nil {
		return Object{}, fmt.Errorf("store %s: %w", key, err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing under this name
	defer f.Close()
	if n, err := io.Copy(f, &reader{ctx, r}); err != nil {
		return Object{}, fmt.Errorf("store %s: after %d bytes: %w", key, n, err)
	}
	// The content must be on the disk before the name is, or a power cut leaves a
	// name with zeros under it.
	if err := f.Sync(); err != nil {
		return Object{}, fmt.Errorf("store %s: %w", key, err)
	}
	out, err := d.describe(key, f)
	if err != nil {
		return Object{}, fmt.Errorf("store %s: %w", key, err)
	}
	if err := d.name(ctx, f.Name(), key, o); err != nil {
		return Object{}, fmt.Errorf("store %s: %w", key, err)
	}
	return out, nil
}

// Adopt stores the file at path, which is on the same file system and durable,
// by giving it key as its name. On an error it stays where it is.
func (d *Dir) Adopt(ctx context.Context, path, key string) error {
	if err := CheckKey(key); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if err := d.name(ctx, path, key, PutOptions{}); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	return nil
}

// name moves the file at tmp to its key.
func (d *Dir) name(ctx context.Context, tmp, key string, o PutOptions) error {
	unlock, err := d.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if o.IfAbsent || o.IfETag != "" {
		switch old, err := d.Stat(ctx, key); {
		case errors.Is(err, ErrNotFound) && o.IfETag != "":
			return fmt.Errorf("%w: it was deleted", ErrChanged)
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return err
		case o.IfAbsent:
			return ErrExists
		case old.ETag != o.IfETag:
			return ErrChanged
		}
	}
	path := d.path(key)
	if err := d.makeParents(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return durable.OS{}.SyncDir(filepath.Dir(path))
}

// makeParents creates directories, each durable before it is used.
func (d *Dir) makeParents(path string) error {
	err := os.Mkdir(path, 0o700)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist) && path != d.root:
		if err := d.makeParents(filepath.Dir(path)); err != nil {
			return err
		}
		err = os.Mkdir(path, 0o700)
	}
	if err != nil {
		return err
	}
	return durable.OS{}.SyncDir(filepath.Dir(path))
}

// Open implements [Store].
func (d *Dir) Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, Object, error) {
	f, out, err := d.open(key)
	if err != nil {
		return nil, Object{}, err
	}
	if offset < 0 || offset > out.Size || n > out.Size-offset {
		f.Close()
		return nil, Object{}, fmt.Errorf("open %s: bytes %d to %d: it has %d bytes", key, offset, offset+max(n, 0), out.Size)
	}
	if n < 0 {
		n = out.Size - offset
	}
	return &part{io.NewSectionReader(f, offset, n), f}, out, nil
}

// part is a range of a file.
type part struct {
	io.Reader
	io.Closer
}

// OpenFile opens the object as the file that it is. It goes on being readable if
// the object is replaced or deleted.
func (d *Dir) OpenFile(key string) (*os.File, error) {
	if err := CheckKey(key); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	f, err := os.Open(d.path(key))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", key, absent(err))
	}
	if st, err := f.Stat(); err != nil || st.IsDir() {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", key, cmp.Or(err, ErrNotFound))
	}
	return f, nil
}

func (d *Dir) open(key string) (*os.File, Object, error) {
	f, err := d.OpenFile(key)
	if err != nil {
		return nil, Object{}, err
	}
	out, err := d.describe(key, f)
	if err != nil {
		f.Close()
		return nil, Object{}, fmt.Errorf("open %s: %w", key, err)
	}
	return f, out, nil
}

// absent makes ErrNotFound of what a file system says instead of it.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) || notADirectory(err) {
		return ErrNotFound
	}
	return err
}

// describe says what f is.
func (d *Dir) describe(key string, f *os.File) (Object, error) {
	st, err := f.Stat()
	if err != nil {
		return Object{}, err
	}
	out := Object{Key: key, Size: st.Size(), ModTime: st.ModTime()}
	if out.Size > hashed {
		out.ETag = fmt.Sprintf(`"%x-%x"`, out.ModTime.UnixNano(), out.Size)
		return out, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, out.Size)); err != nil {
		return Object{}, err
	}
	out.ETag = fmt.Sprintf(`"%x"`, sum.Sum(nil))
	return out, nil
}

// Stat implements [Store].
func (d *Dir) Stat(ctx context.Context, key string) (Object, error) {
	f, out, err := d.open(key)
	if err != nil {
		return Object{}, err
	}
	f.Close()
	return out, nil
}

// List implements [Store]. An object that comes or goes meanwhile may be in the
// list or not.
func (d *Dir) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		folder := "" // where all keys with this prefix are; ends with a slash, or empty
		if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
			folder = prefix[:i+1]
		}
		if folder != "" && CheckKey(strings.TrimSuffix(folder, "/")) != nil {
			return // no key begins like this
		}
		d.walk(ctx, folder, prefix, yield)
	}
}

// walk yields the objects in folder whose key begins with prefix, and says
// whether to go on.
func (d *Dir) walk(ctx context.Context, folder, prefix string, yield func(Object, error) bool) bool {
	entries, err := os.ReadDir(d.path(folder))
	if err != nil {
		return errors.Is(absent(err), ErrNotFound) || stop(yield, fmt.Errorf("list %s: %w", prefix, err))
	}
	var names []string // those of folders end with a slash, which sorts as in a key
	for _, e := range entries {
		name := folder + e.Name()
		if CheckKey(name) != nil {
			continue
		}
		if e.IsDir() {
			name += "/"
		}
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return stop(yield, fmt.Errorf("list %s: %w", prefix, err))
		}
		if strings.HasSuffix(name, "/") {
			if !d.walk(ctx, name, prefix, yield) {
				return false
			}
			continue
		}
		out, err := d.Stat(ctx, name)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return stop(yield, err)
		case !yield(out, nil):
			return false
		}
	}
	return true
}

func stop(yield func(Object, error) bool, err error) bool {
	yield(Object{}, err)
	return false
}

// Delete implements [Store]. Folders that become empty go too, so that their
// names are free.
func (d *Dir) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	unlock, err := d.lock(ctx)
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	defer unlock()
	path := d.path(key)
	if st, err := os.Lstat(path); err == nil && st.IsDir() {
		return nil
	}
	if err := os.Remove(path); err != nil {
		if absent(err) == ErrNotFound {
			return nil
		}
		return fmt.Errorf("delete %s: %w", key, err)
	}
	for path = filepath.Dir(path); path != d.root; path = filepath.Dir(path) {
		if os.Remove(path) != nil {
			break // it is not empty
		}
	}
	if err := (durable.OS{}).SyncDir(path); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// lock excludes all others, of this process and of others, from naming, replacing
// and deleting, until the returned func is called.
func (d *Dir) lock(ctx context.Context) (unlock func(), err error) {
	for {
		if d.mu.TryLock() {
			if d.alone {
				return d.mu.Unlock, nil
			}
			l, err := durable.Lock(filepath.Join(d.root, "~lock"))
			if err == nil {
				return func() { l.Close(); d.mu.Unlock() }, nil
			}
			if errors.Is(err, errors.ErrUnsupported) { // this process's own lock has to do
				return d.mu.Unlock, nil
			}
			d.mu.Unlock()
			if !errors.Is(err, durable.ErrLocked) {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockPause):
		}
	}
}

func (d *Dir) path(key string) string {
	return filepath.Join(d.root, filepath.FromSlash(key))
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
