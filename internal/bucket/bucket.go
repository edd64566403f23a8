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
// Where a release's name is in a key, it is the digest of its manifest, which a
// second signature does not change; the manifest's own key does then, so that
// every object but the lists (current, release, version) may be cached for ever.
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
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/blob"
)

// Errors by which callers tell what is wrong. They come wrapped, with details.
var (
	ErrNotFound = errors.New("not found") // no such release, group or token
	ErrInvalid  = errors.New("invalid")   // the request makes no sense, and never will
	ErrConflict = errors.New("conflict")  // the request contradicts what is stored
	ErrDamaged  = errors.New("damaged")   // what is stored is not what this package writes

	// ErrTooLong says that devices of the document aws-s3-ota.md have no room for it.
	ErrTooLong = fmt.Errorf("%w: too long", ErrInvalid)
)

// Bucket is releases in a store. Its methods may be called from any goroutine
// and any number of processes.
type Bucket struct {
	store blob.Store
	now   func() time.Time
}

// New returns the bucket in store. It does not look whether anything is there.
func New(store blob.Store) *Bucket { return &Bucket{store: store, now: time.Now} }

// Where things are.
const (
	groups   = "groups/"
	releases = "releases/"
	tokens   = "tokens/"
	reports  = "reports/"
)

func currentKey(group string) string  { return groups + group + "/current.json" }
func releaseKey(digest string) string { return releases + digest + "/release.json" }
func imageKey(sum ota.Hash) string    { return "images/" + sum.String() }
func bundleKey(sum ota.Hash) string   { return "bundles/" + sum.String() }

func manifestKey(digest string, sum ota.Hash) string {
	return fmt.Sprintf("%s%s/manifest-%.16s.json", releases, digest, sum)
}

// versionKey writes "+" as "_", which no version has and every key may have.
func versionKey(product, version string) string {
	return "versions/" + product + "/" + strings.ReplaceAll(version, "+", "_") + ".json"
}

// Greatest sizes of files in bytes. Notes of 64 KiB are 384 KiB in JSON at worst,
// and a group has a release for each product.
const (
	maxSmall   = 64 << 10
	maxRelease = 1 << 20
	maxCurrent = 32 << 20
)

// unchanging is the Cache-Control of objects whose key has their hash.
const unchanging = "max-age=31536000, immutable"

// load reads the JSON file key of at most max bytes into v. What is not there
// is a [blob.ErrNotFound], what is no JSON is ErrDamaged; the ETag is that of the
// object even then.
func (b *Bucket) load(ctx context.Context, key string, max int64, v any) (etag string, err error) {
	text, etag, err := b.read(ctx, key, max)
	if err != nil {
		return etag, err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return etag, fmt.Errorf("read %s: %w: %w", key, ErrDamaged, err)
	}
	return etag, nil
}

func (b *Bucket) read(ctx context.Context, key string, max int64) (content []byte, etag string, err error) {
	r, o, err := b.store.Open(ctx, key, 0, -1)
	if err != nil {
		return nil, "", err // the store says which key
	}
	defer r.Close()
	if o.Size > max {
		return nil, o.ETag, fmt.Errorf("read %s: %w: it has %d bytes, want at most %d", key, ErrDamaged, o.Size, max)
	}
	content, err = io.ReadAll(io.LimitReader(r, max+1))
	if err != nil {
		return nil, o.ETag, fmt.Errorf("read %s: %w", key, err)
	}
	if int64(len(content)) != o.Size {
		return nil, o.ETag, fmt.Errorf("read %s: got %d bytes, want %d: %w", key, len(content), o.Size, io.ErrUnexpectedEOF)
	}
	return content, o.ETag, nil
}

// save stores v as the JSON file key, over the one with this ETag, or where there
// is none for "". That somebody else was faster is [errFaster]. A store may have
// done what it reports as failed, or report a second try of its own: then v is
// there, and that is what counts.
func (b *Bucket) save(ctx context.Context, key, etag string, v any) error {
	text, err := marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	o := blob.PutOptions{ContentType: "application/json", CacheControl: "no-cache", IfAbsent: etag == "", IfETag: etag}
	_, err = b.store.Put(ctx, key, bytes.NewReader(text), o)
	if o.IfAbsent && errors.Is(err, blob.ErrChanged) { // is there something now, or not
		_, err = b.store.Put(ctx, key, bytes.NewReader(text), o)
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, blob.ErrExists) {
		return fmt.Errorf("write %s: %w", key, errThere)
	}
	if errors.Is(err, blob.ErrChanged) || etag != "" && errors.Is(err, blob.ErrNotFound) {
		return fmt.Errorf("write %s: %w", key, errFaster)
	}
	return err // the store says which key
}

// marshal writes what a person may read, too.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

// same reports whether a and b are stored as the same bytes.
func same(a, b any) bool {
	x, errX := marshal(a)
	y, errY := marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// errFaster is returned by save if the file is no longer the one that was read.
var errFaster = errors.New("somebody else changes it all the time; try again")

// errThere is the errFaster of a save over nothing, where there is something now.
// Without it a store may have been unable to decide who comes first, and have
// nothing.
var errThere = fmt.Errorf("%w: it is there by now", errFaster)

// maxTries is how often a change is tried while others are faster. Each time one
// of them has succeeded, so that it takes as many publishers at the same second.
const maxTries = 50

// again calls do until it does not end with errFaster.
func again(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if !errors.Is(err, errFaster) || try == maxTries {
			return err
		}
		if try < 3 {
			continue
		}
		pause := time.NewTimer(rand.N(time.Duration(try) * 10 * time.Millisecond)) // apart from each other
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
}

// each calls do for 0 to n-1, a few at a time, and returns one of the errors.
func each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	const atATime = 16
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, atATime)
	for i := range n {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := do(ctx, i); err != nil {
				stop(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// collect returns what load returns for 0 to n-1, in this order. What is gone by now
// is left out. So is what is damaged: then the error is an ErrDamaged and the list
// has all the others, because one bad file, which may be a stranger's, must not
// keep people from seeing and withdrawing the rest.
func collect[T any](ctx context.Context, n int, load func(ctx context.Context, i int) (T, error)) ([]T, error) {
	all, errs := make([]T, n), make([]error, n)
	err := each(ctx, n, func(ctx context.Context, i int) error {
		all[i], errs[i] = load(ctx, i)
		if err := errs[i]; err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotFound) && !errors.Is(err, blob.ErrNotFound) {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := []T{}
	var first error
	more := 0
	for i, err := range errs {
		switch {
		case err == nil:
			out = append(out, all[i])
		case !errors.Is(err, ErrDamaged): // gone
		case first == nil:
			first = err
		default:
			more++
		}
	}
	if more > 0 {
		first = fmt.Errorf("%w, and %d more are damaged", first, more)
	}
	return out, first
}

// usable reports whether a list has all that could be read.
func usable(err error) bool { return err == nil || errors.Is(err, ErrDamaged) }

// isDigest reports whether s is a release's name.
func isDigest(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}
