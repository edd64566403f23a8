// Package bucket keeps releases where no update server runs: in an S3 bucket or
// a directory, behind a [blob.Store].
//
// It is for the publisher, who runs the command line; for the Lambda, which
// answers devices; and for everybody else who can read a JSON file. Start with
// [New]. The layout:
//
//	groups/<group>/current.json            what the group should run: a [Current]
//	releases/<digest>/release.json         what a release is: a [Release]
//	releases/<digest>/manifest-<sum>.json  what is signed, and the signatures, as they are
//	images/<sha256>                        images; releases share them
//	bundles/<sha256>                       whole bundle files
//	versions/<product>/<version>.json      which release has this version
//	tokens/<sha256 of the token>.json      who may speak to the Lambda: a [Token]
//	reports/<device>/<id>.json             how updates ended: a [Report]
//
// Names in these files never change. Readers ignore names that they do not know
// and refuse a format that they do not know. Keys with a hash in their last part
// never change their content. A "+" of a version is "_" in a key.
//
// Promised: nothing is written before every byte of a bundle was compared with
// its manifest. Objects are written in an order in which each one names only what
// is there (images, bundle, manifest, release, version, current), and current.json
// only over the one that was read: whoever reads a current.json, at any moment,
// finds all that it names, and of two publishers at once none undoes the other's
// work. A publication that was interrupted is completed by running it again, which
// uploads only what is missing. Nothing is ever deleted but tokens.
//
// Of concurrent publishers it asks a store that honours IfAbsent and IfETag, and
// whose readers see what was written last; Amazon S3 does since 2024.
package bucket

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
)

// Errors by which callers tell what is wrong. They come wrapped, with details.
var (
	ErrNotFound = errors.New("not found") // no such release, group or token
	ErrInvalid  = errors.New("invalid")   // the request makes no sense, and never will
	ErrConflict = errors.New("conflict")  // the request contradicts what is stored
	ErrDamaged  = errors.New("damaged")   // what is stored is not what this package writes
)

// Bucket is releases in a store. Its methods may be called from any goroutine
// and any number of processes.
type Bucket struct {
	store blob.Store
	now   func() time.Time
}

// New returns the bucket in store. It does not look whether anything is there.
func New(store blob.Store) *Bucket { return &Bucket{store: store, now: time.Now} }

// Publish stores a bundle file of size bytes. See [PublishOptions].
func (b *Bucket) Publish(ctx context.Context, file io.ReaderAt, size int64, o PublishOptions) (api.PublishResponse, error) {
	return api.PublishResponse{}, errors.ErrUnsupported
}

// PublishOptions say what becomes of a published release. The zero value gives
// it to the default group.
type PublishOptions struct {
	Group   string // whose current release it becomes; empty: the default group's
	Hold    bool   // store it only
	Replace bool   // it may take the place of another release with the same product and version

	// Verify checks the signatures. Nil: only form and hashes are checked, and the
	// answer says so.
	Verify ota.Verify

	// LongURLs says that no device has the limits of the document aws-s3-ota.md:
	// versions of at most 31 and URLs of at most 511 characters.
	LongURLs bool

	// Progress, which may be nil, is called with the bytes that are in the store, of
	// the total that must be there.
	Progress func(done, total int64)
}

// Promote makes a stored release the current one of a group for its product.
func (b *Bucket) Promote(ctx context.Context, group, digest string) error {
	return errors.ErrUnsupported
}

// Withdraw takes a release away from a group, which has none for that product
// then. That it is not the group's current release is an ErrConflict.
func (b *Bucket) Withdraw(ctx context.Context, group, digest string) error {
	return errors.ErrUnsupported
}

// CreateGroup makes a group without a release. One that exists stays as it is.
func (b *Bucket) CreateGroup(ctx context.Context, group string) error { return errors.ErrUnsupported }

// Groups lists the groups by name. Devices are not counted in a bucket.
func (b *Bucket) Groups(ctx context.Context) ([]api.Group, error) { return nil, errors.ErrUnsupported }

// Releases lists the releases that are not replaced, newest first.
func (b *Bucket) Releases(ctx context.Context) ([]api.Release, error) {
	return nil, errors.ErrUnsupported
}

// Current returns what a group should run. A group that does not exist is
// ErrNotFound; one without releases is not. It costs one request to the store.
func (b *Bucket) Current(ctx context.Context, group string) (*Current, error) {
	return nil, errors.ErrUnsupported
}

// Release returns one stored release, or ErrNotFound. It costs one request.
func (b *Bucket) Release(ctx context.Context, digest string) (*Release, error) {
	return nil, errors.ErrUnsupported
}

// Envelope returns the signed bytes of a release: those that r.Manifest names,
// compared with their hash. They may be cached for ever under r.Manifest.Key.
func (b *Bucket) Envelope(ctx context.Context, r *Release) ([]byte, error) {
	return nil, errors.ErrUnsupported
}
