package bucket

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
)

// Limits of the devices of the document aws-s3-ota.md, without the byte that ends
// a C string.
const (
	MaxVersion = 31  // characters of a version
	MaxURL     = 511 // characters of a URL
)

// PublishOptions say what becomes of a published release. The zero value gives
// it to the default group.
type PublishOptions struct {
	Group   string // whose current release it becomes; empty: the default group's
	Hold    bool   // store it only
	Replace bool   // it may take the place of another release with the same product and version

	// Verify checks the signatures. Nil: only form and hashes are checked, and the
	// answer says so.
	Verify ota.Verify

	// LongURLs says that no device has the limits of the document aws-s3-ota.md,
	// MaxVersion and MaxURL.
	LongURLs bool

	// Progress, which may be nil, is called with the bytes that are in the store, of
	// the total that must be there.
	Progress func(done, total int64)
}

// Publish stores a bundle file of size bytes, and makes it a group's current
// release. Every byte is compared with the manifest before anything is written.
// The same release again completes what an interrupted publication has left, adds
// the signatures that it brings, and becomes current in a group that has not had
// it and has nothing newer: a script that is run again takes no group back, for
// which there is Promote, as the note says. Another release with the same product
// and version is an ErrConflict unless it may be replaced: then the groups that
// had the old one get the new one, unless that is held.
//
// An interrupted publication of a release older than the group's counts as one
// that was published: it is stored by running it again, and given by Promote.
func (b *Bucket) Publish(ctx context.Context, file io.ReaderAt, size int64, o PublishOptions) (api.PublishResponse, error) {
	o.Group = cmp.Or(o.Group, api.DefaultGroup)
	if _, err := b.existing(ctx, o.Group); err != nil { // before the upload, not after it
		return api.PublishResponse{}, fmt.Errorf("publish: %w", err)
	}
	p, err := b.open(file, size, o)
	if err != nil {
		return api.PublishResponse{}, fmt.Errorf("publish: %w", err)
	}
	out, err := p.run(ctx)
	if err != nil {
		return api.PublishResponse{}, fmt.Errorf("publish %s %s: %w", p.fresh.Product, p.fresh.Version, err)
	}
	return out, nil
}

// publication is one call of Publish, after the bundle was found whole.
type publication struct {
	b     *Bucket
	o     PublishOptions
	file  *bundle.File
	m     *ota.Manifest
	fresh *Release // what the file says

	done, total int64 // bytes, for o.Progress
}

// open checks the bundle and describes it.
func (b *Bucket) open(file io.ReaderAt, size int64, o PublishOptions) (*publication, error) {
	verify := o.Verify
	if verify == nil {
		verify = bundle.Unsigned
	}
	f, err := bundle.Open(file, size)
	if err != nil {
		return nil, err
	}
	m, err := verify(f.Signed())
	if err != nil {
		return nil, err
	}
	sums, err := f.Check(m)
	if err != nil {
		return nil, err
	}
	sum := ota.Hash(sha256.Sum256(f.Signed()))
	r := &Release{Format: Format, Product: m.Product, Version: m.Version, Digest: m.Digest,
		Notes: m.Notes, Mandatory: m.Mandatory, RequiresReboot: !m.NoReboot, Limits: m.Limits, SecurityVersion: m.SecurityVersion,
		Created: m.Created, Expires: m.Expires, Published: b.now().UTC().Round(0), SignaturesChecked: o.Verify != nil,
		Manifest: Object{Key: manifestKey(m.Digest, sum), Size: int64(len(f.Signed())), SHA256: sum},
		Bundle:   Object{Key: bundleKey(sums.SHA256), Size: size, SHA256: sums.SHA256, MD5: sums.MD5}}
	for i, im := range m.Images {
		r.Images = append(r.Images, Image{im.Component, Object{imageKey(im.SHA256), im.Size, im.SHA256, sums.Images[i]}})
	}
	r.Image = r.Images[0].Key
	return &publication{b: b, o: o, file: f, m: m, fresh: r}, nil
}

func (p *publication) run(ctx context.Context) (api.PublishResponse, error) {
	if m := p.m; !m.Expires.IsZero() && p.fresh.Published.After(m.Expires) {
		return api.PublishResponse{}, fmt.Errorf("%w: it expired on %s, so no device would take it", ErrInvalid, m.Expires.UTC().Format("2006-01-02 15:04 UTC"))
	}
	if err := p.fits(ctx); err != nil {
		return api.PublishResponse{}, err
	}
	// The bundle has all that the other objects have.
	if s, ok := p.b.store.(interface{ MaxSize() int64 }); ok && p.fresh.Bundle.Size > s.MaxSize() {
		return api.PublishResponse{}, fmt.Errorf("%w: the bundle has %d bytes, and the store takes %d at a time; publish its components as several releases",
			ErrInvalid, p.fresh.Bundle.Size, s.MaxSize())
	}
	// Again below, where it counts; here it saves an upload for nothing.
	if digest, _, err := p.b.version(ctx, p.fresh); err == nil && digest != "" && digest != p.fresh.Digest && !p.o.Replace {
		return api.PublishResponse{}, anotherHas(digest)
	}
	var r *Release
	known := false
	err := again(ctx, func() (err error) {
		r, known, err = p.store(ctx)
		return err
	})
	if err != nil {
		return api.PublishResponse{}, err
	}
	replaces, err := p.b.claim(ctx, r, p.o.Replace)
	if err != nil {
		return api.PublishResponse{}, err
	}
	groups, note, err := p.give(ctx, r, known, replaces)
	if err != nil {
		return api.PublishResponse{}, err
	}
	if !r.SignaturesChecked {
		note = strings.TrimSuffix("signatures not checked: no public keys are given; devices do check them; "+note, "; ")
	}
	return api.PublishResponse{Release: r.describe(groups), Known: known, Note: note}, nil
}

// fits reports whether devices with little memory can take the release.
func (p *publication) fits(ctx context.Context) error {
	if p.o.LongURLs {
		return nil
	}
	tooLong := func(what string, has, most int, instead string) error {
		return fmt.Errorf("%w: %s %d characters, devices of aws-s3-ota take %d; %s, or say that there are no such devices",
			ErrTooLong, what, has, most, instead)
	}
	if n := len(p.fresh.Version); n > MaxVersion {
		return tooLong("the version has", n, MaxVersion, "shorten it")
	}
	u, ok := p.b.store.(interface {
		URLLength(ctx context.Context, key string) (plain, present int, err error)
	})
	if !ok {
		return nil // who serves a directory knows its URLs
	}
	// What the credentials of the one who publishes would make of it does not matter:
	// URLs are made elsewhere, and for these devices without a session token.
	n, _, err := u.URLLength(ctx, p.fresh.Image) // all images' keys are of one length
	if err == nil && n > MaxURL {
		err = tooLong("the URL of an image has", n, MaxURL, "shorten the name of the bucket and the prefix")
	}
	return err
}

// store uploads what is not there, and release.json after it. That somebody else
// stored another release.json meanwhile is errFaster.
func (p *publication) store(ctx context.Context) (r *Release, known bool, err error) {
	old, etag, err := p.b.release(ctx, p.fresh.Digest)
	known = err == nil
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged) { // damaged: it is written anew
		return nil, false, err
	}
	fresh := *p.fresh
	r = &fresh
	if known {
		r.Published = old.Published
		switch keep, err := p.fewerSignatures(ctx, old); {
		case err != nil:
			return nil, false, err
		case keep:
			r.Manifest, r.Bundle, r.SignaturesChecked = old.Manifest, old.Bundle, old.SignaturesChecked
		}
	}
	if err := p.upload(ctx, r); err != nil {
		return nil, false, err
	}
	if known && same(old, r) {
		return r, true, nil
	}
	return r, known, p.b.save(ctx, releaseKey(r.Digest), etag, r)
}

// fewerSignatures reports whether old, which is whole, has the signatures of this
// file and more: a first file that comes again must not take the second person's
// signature away.
func (p *publication) fewerSignatures(ctx context.Context, old *Release) (bool, error) {
	if old.Manifest.SHA256 == p.fresh.Manifest.SHA256 {
		return false, nil
	}
	if p.o.Verify != nil && !old.SignaturesChecked {
		return false, nil // this one is better in that
	}
	envelope, err := p.b.Envelope(ctx, old)
	if errors.Is(err, ErrDamaged) || errors.Is(err, blob.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	before, err := bundle.ReadSignatures(envelope)
	if err != nil {
		return false, nil
	}
	now, err := bundle.ReadSignatures(p.file.Signed())
	if err != nil || len(now) >= len(before) {
		return false, err
	}
	for _, s := range now {
		if !slices.Contains(before, s) {
			return false, nil
		}
	}
	there, err := p.b.there(ctx, old.Bundle)
	return there, err
}

// upload brings all that r names into the store, in the order in which one thing
// names another.
func (p *publication) upload(ctx context.Context, r *Release) error {
	p.done, p.total = 0, 0
	for _, im := range r.Images {
		p.total += im.Size
	}
	whole := &checked{}
	kept := r.Bundle.Key != p.fresh.Bundle.Key
	if !kept {
		p.total += r.Bundle.Size + r.Manifest.Size
		whole.add(header(p.file.Signed()), nil, nil)
	}
	for i := range p.m.Images {
		im := &p.m.Images[i]
		part, err := p.file.Image(p.m, im)
		if err != nil {
			return err
		}
		alone := &checked{}
		alone.add(nil, im, part)
		whole.add(nil, im, part)
		if err := p.put(ctx, r.Images[i].Object, alone); err != nil {
			return err
		}
	}
	if kept {
		return nil
	}
	if err := p.put(ctx, r.Bundle, whole); err != nil {
		return err
	}
	manifest := &checked{}
	manifest.add(p.file.Signed(), nil, nil)
	return p.put(ctx, r.Manifest, manifest)
}

// put stores one object, unless it is there. Its key has its hash, and the store
// has nothing in part, so that the size tells enough.
func (p *publication) put(ctx context.Context, o Object, content *checked) error {
	begin := p.done
	content.progress = func(done int64) {
		if p.o.Progress != nil {
			p.o.Progress(begin+done, p.total)
		}
	}
	there, err := p.b.there(ctx, o)
	if err == nil && !there {
		po := blob.PutOptions{ContentType: "application/octet-stream", CacheControl: unchanging}
		if strings.HasSuffix(o.Key, ".json") {
			po.ContentType = "application/json"
		}
		_, err = p.b.store.Put(ctx, o.Key, content, po)
	}
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	p.done += o.Size
	content.progress(o.Size)
	return nil
}

// there reports whether o is in the store.
func (b *Bucket) there(ctx context.Context, o Object) (bool, error) {
	at, err := b.store.Stat(ctx, o.Key)
	if errors.Is(err, blob.ErrNotFound) {
		return false, nil
	}
	return err == nil && at.Size == o.Size, err
}

// give makes r current where it is to be. It returns the groups that have it, and
// for people why not, or that some devices will not take it.
func (p *publication) give(ctx context.Context, r *Release, known, replaces bool) (have []string, note string, err error) {
	visit := []string{p.o.Group}
	if known || replaces { // else no other group can have it, or one with its version
		if visit, err = p.b.groupNames(ctx); err != nil {
			return nil, "", err
		}
		if !slices.Contains(visit, p.o.Group) { // the default group, which is made now
			visit = append(visit, p.o.Group)
		}
	} else if p.o.Hold {
		return nil, "", nil
	}
	for _, group := range visit {
		var now outcome
		err := p.b.give(ctx, group, r, func(c *Current, r *Release) bool {
			now = p.decide(c, r, known, replaces)
			switch {
			case now.taken:
				delete(c.Releases, r.Product)
			case now.has && !same(c.Releases[r.Product], r):
				c.set(r)
			default:
				return false
			}
			return true
		})
		if err != nil {
			return nil, "", err
		}
		if now.has {
			have = append(have, group)
		}
		if now.note != "" {
			note = now.note
		}
	}
	slices.Sort(have)
	return have, note, nil
}

// outcome is what becomes of a group.
type outcome struct {
	has   bool   // this release
	taken bool   // one that is replaced, and nobody gets another yet
	note  string // why not, or which of its devices will not take it
}

// decide looks at one group.
func (p *publication) decide(c *Current, r *Release, known, replaces bool) outcome {
	now := c.Releases[r.Product]
	switch {
	case now != nil && now.Digest == r.Digest:
		return outcome{has: true}
	case now != nil && now.Version == r.Version: // replaced
		return outcome{has: !p.o.Hold, taken: p.o.Hold}
	case c.Group != p.o.Group || p.o.Hold:
		return outcome{}
	}
	if known {
		if note := stays(c, r, replaces); note != "" {
			return outcome{note: note}
		}
	}
	if now != nil && !p.m.AllowDowngrade && ota.CompareVersions(r.Version, now.Version) < 0 {
		return outcome{has: true, note: fmt.Sprintf("devices that run %s stay with it: %s is older and does not allow a downgrade", now.Version, r.Version)}
	}
	return outcome{has: true}
}

// stays returns why a group does not get the known release r by its being
// published again, or "". A retried job of last month must not take the group
// back to what it built, nor bring back what an operator has withdrawn. To
// replace another release is a decision, so that then only a newer one stays.
func stays(c *Current, r *Release, replaces bool) string {
	now := c.Releases[r.Product]
	promote := fmt.Sprintf("interlock releases promote %s --group %s", r.Version, c.Group)
	switch {
	case now != nil && ota.CompareVersions(r.Version, now.Version) < 0:
		return fmt.Sprintf("%s was published before; %s stays with %s; to go back: %s", r.Version, c.Group, now.Version, promote)
	case !slices.Contains(c.Given, r.Digest) || replaces:
	case now == nil:
		return fmt.Sprintf("%s was taken from %s, which stays without a release; to give it again: %s", r.Version, c.Group, promote)
	default:
		return fmt.Sprintf("%s was current in %s before, which stays with %s; to give it again: %s", r.Version, c.Group, now.Version, promote)
	}
	return ""
}
