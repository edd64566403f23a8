package fleet

import (
	"cmp"
	"context"
	"crypto/md5"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
)

// Release is a release in the store. It never changes; a replaced or re-signed
// one is another value.
type Release struct {
	Manifest  *ota.Manifest // without the hashes of the chunks
	Envelope  []byte        // what is signed, and the signatures
	Bundle    Bundle
	Images    []Image // in the manifest's order
	Checked   bool    // the server checked the signatures
	Published time.Time

	replaced bool // another release has its product and version
}

// Bundle is the file that a release came in.
type Bundle struct {
	SHA256 ota.Hash // also its key in the store
	Size   int64    // bytes
	MD5    string   // hex
}

// Image is a part of a bundle file.
type Image struct {
	ota.Image       // with MD5 always set, and without the hashes of the chunks
	Offset    int64 // bytes from the start of the bundle file
}

// Digest is the release's name.
func (r *Release) Digest() string { return r.Manifest.Digest }

// Image returns the image for component, or the first for "".
func (r *Release) Image(component string) (*Image, error) {
	for i := range r.Images {
		if component == "" || r.Images[i].Component == component {
			return &r.Images[i], nil
		}
	}
	return nil, fmt.Errorf("component %q of %s: %w", clip(component, maxWord), r.Manifest.Version, ErrNotFound)
}

// PublishOptions say what becomes of a published release.
type PublishOptions struct {
	Group   string // whose current release it becomes; empty: the default group's
	Hold    bool   // store it only
	Replace bool   // it may take the place of another release with the same product and version
}

// Publish stores the bundle file that r delivers, and makes it a group's current
// release in the same commit. Every byte is compared with the manifest before
// anything is stored. The same release again changes nothing but the group, and
// adds signatures that it brings. Another release with the same product and
// version is an ErrConflict unless it may be replaced: then the old one is
// withdrawn, and the groups that had it get the new one, unless that is held.
func (f *Fleet) Publish(ctx context.Context, r io.Reader, o PublishOptions) (api.PublishResponse, error) {
	o.Group = cmp.Or(o.Group, api.DefaultGroup)
	if _, err := f.group(o.Group); err != nil { // before the upload, not after it
		return api.PublishResponse{}, fmt.Errorf("publish: %w", err)
	}
	rel := &Release{Published: f.cfg.Now(), Checked: f.cfg.Verify != nil}
	verify := f.cfg.Verify
	if verify == nil {
		verify = bundle.Unsigned
	}
	locked := false
	defer func() {
		if locked {
			f.publishing.Unlock()
		}
	}()
	in, err := f.blobs.Put(ctx, r, func(file io.ReaderAt, in blob.Info) error {
		// From here to the commit one at a time, but not while bytes come in: else
		// one who fails could delete the file that another has just stored.
		f.publishing.Lock()
		locked = true
		return rel.read(file, in, verify)
	})
	if err != nil {
		return api.PublishResponse{}, fmt.Errorf("publish: %w", err)
	}
	if m := rel.Manifest; !m.Expires.IsZero() && rel.Published.After(m.Expires) {
		f.forget(ctx, in.Key)
		return api.PublishResponse{}, fmt.Errorf("publish %s %s: %w: it expired on %s, so no device would take it", m.Product, m.Version, ErrInvalid,
			m.Expires.UTC().Format("2006-01-02 15:04 UTC"))
	}
	before := f.currentVersion(o, rel.Manifest.Product)
	// A caller who leaves now must not make us delete the file of a release whose
	// commit is under way.
	ctx = context.WithoutCancel(ctx)
	known, err := f.store(ctx, rel, o)
	if err != nil {
		f.forget(ctx, in.Key)
		return api.PublishResponse{}, fmt.Errorf("publish %s %s: %w", rel.Manifest.Product, rel.Manifest.Version, err)
	}
	out := api.PublishResponse{Known: known}
	if out.Release, err = f.Release(rel.Digest()); err != nil {
		return api.PublishResponse{}, err
	}
	var notes []string
	if !rel.Checked {
		notes = append(notes, "signatures not checked by the server: it has no public keys; devices do check them")
	}
	if m := rel.Manifest; before != "" && !m.AllowDowngrade && ota.CompareVersions(m.Version, before) < 0 {
		notes = append(notes, fmt.Sprintf("devices that run %s stay with it: %s is older and does not allow a downgrade", before, m.Version))
	}
	out.Note = strings.Join(notes, "; ")
	return out, nil
}

// currentVersion returns the version that a release for product is about to
// succeed, or "".
func (f *Fleet) currentVersion(o PublishOptions, product string) string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if r := f.releases[f.groups[o.Group].current[product]]; r != nil && !o.Hold {
		return r.Manifest.Version
	}
	return ""
}

// forget deletes a file that no release is in.
func (f *Fleet) forget(ctx context.Context, key ota.Hash) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, r := range f.releases {
		if r.Bundle.SHA256 == key {
			return
		}
	}
	if err := f.blobs.Delete(ctx, key); err != nil {
		f.cfg.Log.Warn("a file that belongs to no release is left in the store", "sha256", key, "error", err)
	}
}

// read checks the bundle in file, and fills r from it.
func (r *Release) read(file io.ReaderAt, in blob.Info, verify ota.Verify) error {
	b, err := bundle.Open(file, in.Size)
	if err != nil {
		return err
	}
	m, err := verify(b.Signed())
	if err != nil {
		return err
	}
	switch want := bundle.Size(len(b.Signed()), m); {
	case in.Size < want:
		return fmt.Errorf("check the bundle: %w: truncated: it has %d bytes, want %d", ota.ErrValidation, in.Size, want)
	case in.Size > want:
		return fmt.Errorf("check the bundle: %w: extended: it has %d bytes, want %d", ota.ErrValidation, in.Size, want)
	}
	sums := map[string]string{}
	for i := range m.Images {
		im := &m.Images[i]
		part, err := b.Image(m, im)
		if err != nil {
			return err
		}
		sum := md5.New()
		got, err := bundle.DescribeImage(im.Component, io.TeeReader(part, sum), im.ChunkSize, false)
		if err != nil {
			return fmt.Errorf("check image %s: %w", im.Component, err)
		}
		if got.SHA256 != im.SHA256 || got.Size != im.Size {
			return fmt.Errorf("check image %s: %w: its SHA-256 is %v, want %v", im.Component, ota.ErrValidation, got.SHA256, im.SHA256)
		}
		for n := range im.Chunks { // as many as in got: both follow from the size
			if got.Chunks[n] != im.Chunks[n] {
				return fmt.Errorf("check image %s: %w: chunk %d has SHA-256 %v, want %v", im.Component, ota.ErrValidation, n, got.Chunks[n], im.Chunks[n])
			}
		}
		sums[im.Component] = hex.EncodeToString(sum.Sum(nil))
		if im.MD5 != "" && im.MD5 != sums[im.Component] {
			return fmt.Errorf("check image %s: %w: its MD5 is %s, want %s", im.Component, ota.ErrValidation, sums[im.Component], im.MD5)
		}
	}
	whole := md5.New()
	if _, err := io.Copy(whole, io.NewSectionReader(file, 0, in.Size)); err != nil {
		return fmt.Errorf("read the bundle: %w", err)
	}
	r.Bundle = Bundle{in.Key, in.Size, hex.EncodeToString(whole.Sum(nil))}
	return r.fill(m, b.Signed(), sums)
}

// fill sets what follows from the envelope.
func (r *Release) fill(m *ota.Manifest, envelope []byte, md5s map[string]string) error {
	light := *m
	light.Images = nil
	for _, im := range m.Images {
		offset, err := bundle.ImageOffset(len(envelope), m, im.Component)
		if err != nil {
			return err
		}
		im.Chunks, im.MD5 = nil, md5s[im.Component]
		light.Images = append(light.Images, im)
		r.Images = append(r.Images, Image{im, offset})
	}
	r.Manifest, r.Envelope = &light, envelope
	return nil
}

// store writes rel and what o says, in one commit.
func (f *Fleet) store(ctx context.Context, rel *Release, o PublishOptions) (known bool, err error) {
	m := rel.Manifest
	var old []string            // digests that rel replaces
	groups := map[string]bool{} // that get rel
	var gone, oldKey string     // bundle that no release needs any more
	now := f.cfg.Now().UnixMilli()
	err = f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `SELECT bundle_sha256 FROM releases WHERE digest = $1`, m.Digest).Scan(&oldKey)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if known = err == nil; known && oldKey != rel.Bundle.SHA256.String() {
			gone = oldKey
		}
		if old, err = column(ctx, tx, `SELECT digest FROM releases WHERE product = $1 AND version = $2 AND digest <> $3 AND replaced = 0`,
			m.Product, m.Version, m.Digest); err != nil {
			return err
		}
		if len(old) > 0 && !o.Replace {
			return fmt.Errorf("%w: another release with this product and version is published, %.12s; raise the version, or say replace", ErrConflict, old[0])
		}
		if err := insertRelease(ctx, tx, rel); err != nil {
			return err
		}
		for _, digest := range old {
			if _, err := tx.ExecContext(ctx, `UPDATE releases SET replaced = $1 WHERE digest = $2`, now, digest); err != nil {
				return err
			}
			had, err := column(ctx, tx, `SELECT group_name FROM current_releases WHERE digest = $1`, digest)
			if err != nil {
				return err
			}
			for _, g := range had {
				groups[g] = true
			}
			if _, err := tx.ExecContext(ctx, `DELETE FROM current_releases WHERE digest = $1`, digest); err != nil {
				return err
			}
		}
		if o.Hold {
			clear(groups)
		} else {
			groups[o.Group] = true
		}
		for g := range groups {
			if err := setCurrent(ctx, tx, g, m.Product, m.Digest, now); err != nil {
				return err
			}
		}
		return nil
	}, func() { f.stored(rel, old, groups) })
	if err == nil && gone != "" {
		var key ota.Hash
		if key.UnmarshalText([]byte(gone)) == nil {
			f.forget(ctx, key)
		}
	}
	return known, err
}

// stored takes into memory what store has written.
func (f *Fleet) stored(rel *Release, old []string, groups map[string]bool) {
	f.mu.Lock()
	if was := f.releases[rel.Digest()]; was != nil {
		again := *rel
		again.Published = was.Published
		rel = &again
	}
	f.releases[rel.Digest()] = rel
	for _, digest := range old {
		replaced := *f.releases[digest]
		replaced.replaced = true
		f.releases[digest] = &replaced
		for _, g := range f.groups {
			if g.current[rel.Manifest.Product] == digest {
				delete(g.current, rel.Manifest.Product)
			}
		}
	}
	for g := range groups {
		f.groups[g].current[rel.Manifest.Product] = rel.Digest()
	}
	f.mu.Unlock()
	f.tell(Change{Kind: "release", Digest: rel.Digest()})
	for g := range groups {
		f.tell(Change{Kind: "group", Group: g})
	}
}

func insertRelease(ctx context.Context, tx *sql.Tx, r *Release) error {
	checked := 0
	if r.Checked {
		checked = 1
	}
	// Known already: the file that came now counts, which may have more signatures.
	if _, err := tx.ExecContext(ctx, `INSERT INTO releases
		(digest, product, version, envelope, bundle_sha256, bundle_size, bundle_md5, checked, published)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (digest) DO UPDATE SET envelope = excluded.envelope, bundle_sha256 = excluded.bundle_sha256,
			bundle_size = excluded.bundle_size, bundle_md5 = excluded.bundle_md5, checked = excluded.checked, replaced = 0`,
		r.Digest(), r.Manifest.Product, r.Manifest.Version, string(r.Envelope), r.Bundle.SHA256.String(), r.Bundle.Size,
		r.Bundle.MD5, checked, r.Published.UnixMilli()); err != nil {
		return err
	}
	for i := range r.Images {
		if _, err := tx.ExecContext(ctx, `INSERT INTO images (digest, component, md5) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			r.Digest(), r.Images[i].Component, r.Images[i].MD5); err != nil {
			return err
		}
	}
	return nil
}

func setCurrent(ctx context.Context, tx *sql.Tx, group, product, digest string, now int64) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO current_releases (group_name, product, digest, since) VALUES ($1, $2, $3, $4)
		ON CONFLICT (group_name, product) DO UPDATE SET digest = excluded.digest, since = excluded.since`, group, product, digest, now)
	return err
}

// column returns the one column of a query's rows.
func column(ctx context.Context, tx *sql.Tx, query string, args ...any) ([]string, error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// Promote makes a stored release the current one of a group for its product.
func (f *Fleet) Promote(ctx context.Context, group, digest string) error {
	r, err := f.ByDigest(digest)
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if r.replaced {
		return fmt.Errorf("promote %s: %w: another release has taken the place of %.12s; publish this one again with replace", r.Manifest.Version, ErrConflict, digest)
	}
	if _, err := f.group(group); err != nil {
		return fmt.Errorf("promote %s: %w", r.Manifest.Version, err)
	}
	err = f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		return setCurrent(ctx, tx, group, r.Manifest.Product, digest, f.cfg.Now().UnixMilli())
	}, func() {
		f.mu.Lock()
		f.groups[group].current[r.Manifest.Product] = digest
		f.mu.Unlock()
		f.tell(Change{Kind: "group", Group: group})
	})
	if err != nil {
		return fmt.Errorf("promote %s: %w", r.Manifest.Version, err)
	}
	return nil
}

// Withdraw takes a release away from a group, which has none for that product
// then. That it is not the group's current release is an ErrConflict.
func (f *Fleet) Withdraw(ctx context.Context, group, digest string) error {
	r, err := f.ByDigest(digest)
	if err != nil {
		return fmt.Errorf("withdraw: %w", err)
	}
	if _, err := f.group(group); err != nil {
		return fmt.Errorf("withdraw %s: %w", r.Manifest.Version, err)
	}
	err = f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM current_releases WHERE group_name = $1 AND digest = $2`, group, digest)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return fmt.Errorf("%w: it is not the current release of group %s", ErrConflict, group)
		}
		return nil
	}, func() {
		f.mu.Lock()
		delete(f.groups[group].current, r.Manifest.Product)
		f.mu.Unlock()
		f.tell(Change{Kind: "group", Group: group})
	})
	if err != nil {
		return fmt.Errorf("withdraw %s: %w", r.Manifest.Version, err)
	}
	return nil
}

// ByDigest returns a stored release, or ErrNotFound.
func (f *Fleet) ByDigest(digest string) (*Release, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if r := f.releases[digest]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("release %q: %w", clip(digest, maxWord), ErrNotFound)
}

// Current returns the current release of a group for a product, or for the only
// product if that is empty. None is ErrNotFound, several are ErrConflict.
func (f *Fleet) Current(group, product string) (*Release, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	g := f.groups[group]
	if g == nil {
		return nil, f.noGroup(clip(group, maxWord))
	}
	if product == "" {
		if len(g.current) > 1 {
			var products []string
			for p := range g.current {
				products = append(products, p)
			}
			slices.Sort(products)
			return nil, fmt.Errorf("%w: group %s has releases for several products; say which: product=%v", ErrConflict, group, products)
		}
		for product = range g.current {
			// the only one
		}
	}
	if r := f.releases[g.current[product]]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("current release of group %s: %w", group, ErrNotFound)
}

// OpenBundle opens a release's bundle file.
func (f *Fleet) OpenBundle(ctx context.Context, r *Release) (*blob.File, error) {
	return f.blobs.Open(ctx, r.Bundle.SHA256)
}

// Releases lists the releases that are not replaced, newest first.
func (f *Fleet) Releases() []api.Release {
	f.mu.RLock()
	defer f.mu.RUnlock()
	out := []api.Release{}
	for _, r := range f.releases {
		if !r.replaced {
			out = append(out, f.describeRelease(r))
		}
	}
	slices.SortFunc(out, func(a, b api.Release) int {
		return cmp.Or(b.Published.Compare(a.Published), cmp.Compare(a.Digest, b.Digest))
	})
	return out
}

// Release describes one stored release, or returns ErrNotFound.
func (f *Fleet) Release(digest string) (api.Release, error) {
	r, err := f.ByDigest(digest)
	if err != nil {
		return api.Release{}, err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.describeRelease(r), nil
}

func (f *Fleet) describeRelease(r *Release) api.Release {
	out := api.Release{Product: r.Manifest.Product, Update: *r.Manifest.Info(), Published: r.Published, SignaturesChecked: r.Checked}
	for name, g := range f.groups {
		if g.current[r.Manifest.Product] == r.Digest() {
			out.Groups = append(out.Groups, name)
		}
	}
	slices.Sort(out.Groups)
	return out
}

func (f *Fleet) loadReleases(ctx context.Context) error {
	sums := map[string]map[string]string{} // MD5 by digest and component
	err := each(ctx, f.db, `SELECT digest, component, md5 FROM images`, func(scan scanner) error {
		var digest, component, sum string
		if err := scan(&digest, &component, &sum); err != nil {
			return err
		}
		if sums[digest] == nil {
			sums[digest] = map[string]string{}
		}
		sums[digest][component] = sum
		return nil
	})
	if err != nil {
		return err
	}
	return each(ctx, f.db, `SELECT digest, envelope, bundle_sha256, bundle_size, bundle_md5, checked, published, replaced FROM releases`,
		func(scan scanner) error {
			var digest, envelope, key string
			var checked int
			var published, replaced int64
			r := &Release{}
			if err := scan(&digest, &envelope, &key, &r.Bundle.Size, &r.Bundle.MD5, &checked, &published, &replaced); err != nil {
				return err
			}
			if err := r.Bundle.SHA256.UnmarshalText([]byte(key)); err != nil {
				return fmt.Errorf("release %s: %w", digest, err)
			}
			m, err := bundle.Unsigned([]byte(envelope)) // it was verified when it was published, if there were keys
			if err != nil {
				return fmt.Errorf("release %s: %w", digest, err)
			}
			if m.Digest != digest {
				return fmt.Errorf("release %s: its envelope holds release %s", digest, m.Digest)
			}
			r.Checked, r.replaced, r.Published = checked == 1, replaced != 0, time.UnixMilli(published)
			f.releases[digest] = r
			return r.fill(m, []byte(envelope), sums[digest])
		})
}
