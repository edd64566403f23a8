package fleet

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"slices"
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
	Tag       string  // names the release and its signatures: one that was signed again has another
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
	// Signatures too: a device that could not take the release for want of one has
	// to see it when it comes.
	sum := sha256.Sum256(envelope)
	r.Tag = fmt.Sprintf("%.32s-%x", m.Digest, sum[:8])
	return nil
}

// Promote makes a stored release the current one of a group for its product.
func (f *Fleet) Promote(ctx context.Context, group, digest string) error {
	r, err := f.ByDigest(digest)
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if _, err := f.group(group); err != nil {
		return fmt.Errorf("promote %s: %w", r.Manifest.Version, err)
	}
	err = f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		// Again, where nothing comes in between: it may have been replaced since.
		var replaced int64
		if err := tx.QueryRowContext(ctx, `SELECT replaced FROM releases WHERE digest = $1`, digest).Scan(&replaced); err != nil {
			return err
		}
		if replaced != 0 {
			return fmt.Errorf("%w: another release has taken the place of %.12s; publish this one again with replace", ErrConflict, digest)
		}
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

// ImageURL returns an URL at which everybody can read an image for lifetime,
// without the server. The error is [blob.ErrNoURL] if the files are where there
// are no URLs, and [blob.ErrNotFound] if the image is in the bundle only, because
// it was published before the files were there.
func (f *Fleet) ImageURL(ctx context.Context, im *Image, lifetime time.Duration) (string, error) {
	if !f.blobs.HasURLs() {
		return "", blob.ErrNoURL
	}
	return f.blobs.URL(ctx, im.SHA256, lifetime)
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
