package bucket

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
)

// Format is the format of the files in a bucket, and the only one so far.
const Format = 1

// Current is what a group should run, as current.json has it. It has all that an
// answer to a device needs, so that one request is enough.
type Current struct {
	Format   int                 `json:"format"` // 1
	Group    string              `json:"group"`
	Releases map[string]*Release `json:"releases"` // by product

	// Given are the digests of all releases that the group has or had, oldest
	// first: to publish one of them again does not bring it back.
	Given []string `json:"given,omitempty"`

	// ETag changes with the content. It is the store's.
	ETag string `json:"-"`
}

// Release is a release, as release.json and current.json have it. It is what the
// manifest says, and where things are. Unsigned: devices go by the manifest.
type Release struct {
	Format  int    `json:"format"` // 1
	Product string `json:"product"`
	Version string `json:"version"`
	Digest  string `json:"digest"` // SHA-256 of what is signed, hex; the release's name
	Image   string `json:"image"`  // key of the first image: all that the simplest client needs

	Notes           string     `json:"notes,omitempty"`
	Mandatory       bool       `json:"mandatory"`
	RequiresReboot  bool       `json:"requires_reboot"`
	Limits          ota.Limits `json:"limits,omitzero"` // min_soc and others
	SecurityVersion uint64     `json:"security_version"`
	Created         time.Time  `json:"created"`
	Expires         time.Time  `json:"expires,omitzero"`
	Published       time.Time  `json:"published"`

	// SignaturesChecked says whether the publisher had keys and checked the
	// signatures. Devices always do.
	SignaturesChecked bool `json:"signatures_checked"`

	Images   []Image `json:"images"` // in the manifest's order
	Manifest Object  `json:"manifest"`
	Bundle   Object  `json:"bundle"`
}

// Object is a file in the bucket.
type Object struct {
	Key    string   `json:"key"`
	Size   int64    `json:"size"` // bytes
	SHA256 ota.Hash `json:"sha256"`
	MD5    string   `json:"md5,omitempty"` // hex; of the manifest there is none
}

// Image is the firmware of one component.
type Image struct {
	Component string `json:"component"`
	Object
}

// Of returns the release of a product, or of the only product if that is empty.
// None is ErrNotFound, several are ErrConflict.
func (c *Current) Of(product string) (*Release, error) {
	if product == "" {
		if len(c.Releases) > 1 {
			var products []string
			for p := range c.Releases {
				products = append(products, p)
			}
			slices.Sort(products)
			return nil, fmt.Errorf("%w: group %s has releases for several products; say which: product=%v", ErrConflict, c.Group, products)
		}
		for product = range c.Releases {
			// the only one
		}
	}
	if r := c.Releases[product]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("current release of group %s: %w", c.Group, ErrNotFound)
}

// ImageFor returns the image for component, or the first for "".
func (r *Release) ImageFor(component string) (*Image, error) {
	for i := range r.Images {
		if component == "" || r.Images[i].Component == component {
			return &r.Images[i], nil
		}
	}
	return nil, fmt.Errorf("component %.64q of %s: %w", component, r.Version, ErrNotFound)
}

// Tag names the release and its signatures: one that was signed again has
// another. It is the same for all who offer the release.
func (r *Release) Tag() string { return fmt.Sprintf("%.32s-%.16s", r.Digest, r.Manifest.SHA256) }

// Info returns what a release is for people and programs of the operator.
func (r *Release) Info() ota.Update {
	u := ota.Update{Version: r.Version, Digest: r.Digest, Notes: r.Notes, Mandatory: r.Mandatory, RequiresReboot: r.RequiresReboot,
		Limits: r.Limits, SecurityVersion: r.SecurityVersion, Created: r.Created, Expires: r.Expires}
	for _, im := range r.Images {
		u.Size += im.Size
		u.Images = append(u.Images, ota.ImageInfo{Component: im.Component, Size: im.Size, SHA256: im.SHA256, MD5: im.MD5})
	}
	return u
}

func (r *Release) describe(groups []string) api.Release {
	return api.Release{Product: r.Product, Update: r.Info(), Published: r.Published, Groups: groups, SignaturesChecked: r.SignaturesChecked}
}

// Current returns what a group should run. A group that does not exist is
// ErrNotFound; one without releases is not. It costs one request to the store.
func (b *Bucket) Current(ctx context.Context, group string) (*Current, error) {
	if err := ota.CheckName(group); err != nil {
		return nil, fmt.Errorf("current releases: group: %w: %w", ErrInvalid, err)
	}
	var c Current
	etag, err := b.load(ctx, currentKey(group), maxCurrent, &c)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, fmt.Errorf("group %s: %w", group, ErrNotFound)
	}
	if err == nil {
		err = c.check(group)
	}
	if err != nil {
		return nil, fmt.Errorf("current releases of group %s: %w", group, err)
	}
	c.ETag = etag
	return &c, nil
}

// Release returns one stored release, or ErrNotFound. It costs one request.
func (b *Bucket) Release(ctx context.Context, digest string) (*Release, error) {
	r, _, err := b.release(ctx, digest)
	return r, err
}

func (b *Bucket) release(ctx context.Context, digest string) (r *Release, etag string, err error) {
	if !isDigest(digest) {
		return nil, "", fmt.Errorf("release %.64q: %w", digest, ErrNotFound)
	}
	r = &Release{}
	etag, err = b.load(ctx, releaseKey(digest), maxRelease, r)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, "", fmt.Errorf("release %.12s: %w", digest, ErrNotFound)
	}
	if err == nil {
		err = r.check()
	}
	if err == nil && r.Digest != digest {
		err = fmt.Errorf("%w: it is that of %.12s", ErrDamaged, r.Digest)
	}
	if err != nil {
		return nil, etag, fmt.Errorf("release %.12s: %w", digest, err)
	}
	return r, etag, nil
}

// Envelope returns the signed bytes of a release: those that r.Manifest names,
// compared with their hash. They may be cached for ever under r.Manifest.Key.
func (b *Bucket) Envelope(ctx context.Context, r *Release) ([]byte, error) {
	envelope, _, err := b.read(ctx, r.Manifest.Key, ota.MaxManifestSize)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, fmt.Errorf("manifest of %s %s: %w: %s was deleted; publish the release again", r.Product, r.Version, ErrDamaged, r.Manifest.Key)
	}
	if err != nil {
		return nil, fmt.Errorf("manifest of %s %s: %w", r.Product, r.Version, err)
	}
	if got := ota.Hash(sha256.Sum256(envelope)); got != r.Manifest.SHA256 {
		return nil, fmt.Errorf("manifest of %s %s: %w: %s has SHA-256 %s, want %s", r.Product, r.Version, ErrDamaged, r.Manifest.Key, got, r.Manifest.SHA256)
	}
	return envelope, nil
}

// Releases lists the releases that are not replaced, newest first. With an error
// that is ErrDamaged the list has all releases that are not, and the groups of
// each that are not.
func (b *Bucket) Releases(ctx context.Context) ([]api.Release, error) {
	var digests []string
	for o, err := range b.store.List(ctx, releases) {
		if err != nil {
			return nil, fmt.Errorf("list releases: %w", err)
		}
		digest, file, _ := strings.Cut(strings.TrimPrefix(o.Key, releases), "/")
		if file == "release.json" && isDigest(digest) {
			digests = append(digests, digest)
		}
	}
	list, damaged := collect(ctx, len(digests), func(ctx context.Context, i int) (*Release, error) {
		return b.Release(ctx, digests[i])
	})
	if !usable(damaged) {
		return nil, fmt.Errorf("list releases: %w", damaged)
	}
	list, err := b.withoutReplaced(ctx, list)
	if !usable(err) {
		return nil, fmt.Errorf("list releases: %w", err)
	}
	damaged = cmp.Or(damaged, err)
	have, err := b.Groups(ctx)
	if !usable(err) {
		return nil, fmt.Errorf("list releases: %w", err)
	}
	damaged = cmp.Or(damaged, err)
	in := map[string][]string{} // groups by digest
	for _, g := range have {
		for _, c := range g.Current {
			in[c.Digest] = append(in[c.Digest], g.Name)
		}
	}
	out := []api.Release{}
	for _, r := range list {
		out = append(out, r.describe(in[r.Digest]))
	}
	slices.SortFunc(out, func(a, b api.Release) int {
		return cmp.Or(b.Published.Compare(a.Published), cmp.Compare(a.Digest, b.Digest))
	})
	if damaged != nil {
		damaged = fmt.Errorf("list releases: %w", damaged)
	}
	return out, damaged
}

// withoutReplaced leaves out what another release has taken the place of. Where
// the file that says so is damaged, which the error tells, both are in the list.
func (b *Bucket) withoutReplaced(ctx context.Context, list []*Release) ([]*Release, error) {
	same := map[string]int{} // how many have a version
	for _, r := range list {
		same[versionKey(r.Product, r.Version)]++
	}
	keep := make([]bool, len(list))
	_, err := collect(ctx, len(list), func(ctx context.Context, i int) (none struct{}, err error) {
		keep[i] = true
		if r := list[i]; same[versionKey(r.Product, r.Version)] > 1 {
			var v string
			v, _, err = b.version(ctx, r)
			keep[i] = err != nil || v == r.Digest
		}
		return none, err
	})
	var out []*Release
	for i, r := range list {
		if keep[i] {
			out = append(out, r)
		}
	}
	return out, err
}

// check reports whether c is one that this package writes.
func (c *Current) check(group string) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: current.json: "+format, append([]any{ErrDamaged}, a...)...)
	}
	if c.Format != Format {
		return bad("format %d is not known here, want %d", c.Format, Format)
	}
	if c.Group != group {
		return bad("it is that of group %.64q", c.Group)
	}
	for product, r := range c.Releases {
		if r == nil {
			return bad("the release of %.64q is missing", product)
		}
		if err := r.check(); err != nil {
			return bad("%.64q: %w", product, err)
		}
		if r.Product != product {
			return bad("%.64q has a release of %s", product, r.Product)
		}
	}
	for _, d := range c.Given {
		if !isDigest(d) {
			return bad("given: %.64q is no digest", d)
		}
	}
	return nil
}

// check reports whether r is one that this package writes. Keys are exactly those
// of the layout: who reads them out to devices presigns nothing else.
func (r *Release) check() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, a...)...)
	}
	if r.Format != Format {
		return bad("format %d is not known here, want %d", r.Format, Format)
	}
	if err := ota.CheckName(r.Product); err != nil {
		return bad("product: %w", err)
	}
	if err := ota.CheckVersion(r.Version); err != nil {
		return bad("version: %w", err)
	}
	if !isDigest(r.Digest) {
		return bad("%.64q is no digest", r.Digest)
	}
	if len(r.Notes) > ota.MaxNotesSize {
		return bad("notes are %d bytes, want at most %d", len(r.Notes), ota.MaxNotesSize)
	}
	if soc := r.Limits.MinSoC; soc != nil && !(*soc >= 0 && *soc <= 100) {
		return bad("min_soc is %v, want 0 to 100 %%", *soc)
	}
	if len(r.Images) == 0 || len(r.Images) > ota.MaxImages {
		return bad("%d images, want 1 to %d", len(r.Images), ota.MaxImages)
	}
	seen := map[string]bool{}
	for _, im := range r.Images {
		if err := ota.CheckName(im.Component); err != nil {
			return bad("component: %w", err)
		}
		if seen[im.Component] {
			return bad("two images for component %s", im.Component)
		}
		seen[im.Component] = true
		if err := im.check(imageKey(im.SHA256), ota.MaxImageSize); err != nil {
			return bad("image %s: %w", im.Component, err)
		}
		if b, err := hex.DecodeString(im.MD5); err != nil || len(b) != 16 {
			return bad("image %s: MD5 %.64q is not 32 hexadecimal digits", im.Component, im.MD5)
		}
	}
	if r.Image != r.Images[0].Key {
		return bad("image is %.100q, want the first of images", r.Image)
	}
	if err := r.Manifest.check(manifestKey(r.Digest, r.Manifest.SHA256), ota.MaxManifestSize); err != nil {
		return bad("manifest: %w", err)
	}
	if err := r.Bundle.check(bundleKey(r.Bundle.SHA256), math.MaxInt64); err != nil {
		return bad("bundle: %w", err)
	}
	return nil
}

func (o *Object) check(key string, max int64) error {
	if o.Key != key {
		return fmt.Errorf("key %.100q, want %s", o.Key, key)
	}
	if o.Size < 1 || o.Size > max {
		return fmt.Errorf("size %d, want 1 to %d bytes", o.Size, max)
	}
	return nil
}
