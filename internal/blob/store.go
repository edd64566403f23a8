package blob

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// A Store keeps named objects: a directory ([Dir]) or a bucket (package s3).
// Methods may be called from any goroutine, and are safe to repeat.
//
// Keys are paths with forward slashes, without empty, "." and ".." parts, of the
// letters that every store and every URL takes as they are: a-z A-Z 0-9 . _ - and /.
//
// Errors wrap [ErrNotFound], [ErrExists] and [ErrChanged] where these say what is
// wrong; others are the store's own.
type Store interface {
	// Put stores what r delivers from its current position to its end, under key:
	// whole, durable and with the content's size and SHA-256 confirmed by the
	// store, or not at all. A reader sees the old object or the new one.
	Put(ctx context.Context, key string, r io.ReadSeeker, o PutOptions) (Object, error)

	// Open returns n bytes of key from offset on, or all that follow for n < 0, and
	// describes the whole object. What is not there is an error, not a short read.
	Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, Object, error)

	// Stat describes key.
	Stat(ctx context.Context, key string) (Object, error)

	// List yields the objects whose key begins with prefix, in the order of their
	// keys. It ends at the first error.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]

	// Delete removes key. That it is not there is no error.
	Delete(ctx context.Context, key string) error
}

// A Presigner is a [Store] that can hand out a URL with which anybody can read
// an object for a while.
type Presigner interface {
	// PresignGet returns an absolute URL that reads key for lifetime. It does not
	// look whether key is there.
	PresignGet(ctx context.Context, key string, lifetime time.Duration) (string, error)
}

// PutOptions say on which condition to store an object, and how it is described.
type PutOptions struct {
	ContentType  string // default application/octet-stream
	CacheControl string // of HTTP; default: none

	IfAbsent bool   // store it only if key is not there; else ErrExists
	IfETag   string // store it only over the object with this ETag; else ErrChanged
}

// Object describes a stored object.
type Object struct {
	Key     string
	Size    int64  // bytes
	ETag    string // changes with the content; as HTTP has it, with its quotes
	ModTime time.Time
}

var (
	// ErrExists is returned by a Put that was to store only what is new.
	ErrExists = errors.New("an object with this key is there")
	// ErrChanged is returned by a Put over an object that is no longer the one expected.
	ErrChanged = errors.New("the object has changed meanwhile")
)
