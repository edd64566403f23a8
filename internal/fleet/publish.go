package fleet

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
)

// forgetTime is how long to try to delete what is not needed.
const forgetTime = 30 * time.Second

// PublishOptions say what becomes of a published release.
type PublishOptions struct {
	Group   string // whose current release it becomes; empty: the default group's
	Hold    bool   // store it only
	Replace bool   // it may take the place of another release with the same product and version
}

// Publish stores the bundle file that r delivers, and makes it a group's current
// release in the same commit. Every byte is compared with the manifest before
// anything is stored. The same release again adds the signatures that it brings,
// and becomes current in a group that has not had it and has nothing newer: a
// script that is run again takes no group back, for which there is Promote, as
// the note says. Another release with the same product and version is an
// ErrConflict unless it may be replaced: then the old one is withdrawn, and the
// groups that had it get the new one, unless that is held.
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
	_, err := f.blobs.Put(ctx, r, func(file io.ReaderAt, in blob.Info) error {
		// From here to the commit one at a time, but not while bytes come in: else
		// one who fails could delete the file that another has just stored.
		f.publishing.Lock()
		locked = true
		if err := rel.read(file, in, verify); err != nil {
			return err
		}
		return f.putImages(ctx, file, rel)
	})
	if err != nil {
		f.forget(context.WithoutCancel(ctx), rel)
		return api.PublishResponse{}, fmt.Errorf("publish: %w", err)
	}
	if m := rel.Manifest; !m.Expires.IsZero() && rel.Published.After(m.Expires) {
		f.forget(context.WithoutCancel(ctx), rel)
		return api.PublishResponse{}, fmt.Errorf("publish %s %s: %w: it expired on %s, so no device would take it", m.Product, m.Version, ErrInvalid,
			m.Expires.UTC().Format("2006-01-02 15:04 UTC"))
	}
	before := f.currentVersion(o, rel.Manifest.Product)
	// A caller who leaves now must not make us delete the file of a release whose
	// commit is under way.
	ctx = context.WithoutCancel(ctx)
	known, kept, err := f.store(ctx, rel, o)
	if err != nil {
		if !errors.Is(err, errCommit) { // else the release may be there after a restart
			f.forget(ctx, rel)
		}
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
	if kept != "" {
		notes = append(notes, kept)
	} else if m := rel.Manifest; before != "" && !m.AllowDowngrade && ota.CompareVersions(m.Version, before) < 0 {
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

// putImages stores each image as a file of its own, if devices can be sent there.
// They are there before the bundle is, so that a release has all or none.
func (f *Fleet) putImages(ctx context.Context, file io.ReaderAt, rel *Release) error {
	if !f.blobs.HasURLs() {
		return nil
	}
	for i := range rel.Images {
		im := &rel.Images[i]
		if err := f.blobs.PutPart(ctx, io.NewSectionReader(file, im.Offset, im.Size), im.SHA256); err != nil {
			return fmt.Errorf("image %s: %w", im.Component, err)
		}
	}
	return nil
}

// files are the keys of what is stored for r.
func (r *Release) files() []ota.Hash {
	keys := []ota.Hash{r.Bundle.SHA256}
	for i := range r.Images {
		keys = append(keys, r.Images[i].SHA256)
	}
	return keys
}

// forget deletes those files of rel that no release in the fleet has. A rel that
// was not read has none. The caller is publishing, so that none comes meanwhile.
func (f *Fleet) forget(ctx context.Context, rel *Release) {
	if rel.Manifest == nil {
		return
	}
	used := map[ota.Hash]bool{}
	f.mu.RLock()
	for _, r := range f.releases {
		for _, key := range r.files() {
			used[key] = true
		}
	}
	f.mu.RUnlock() // check-ins do not wait for a store that does not answer
	ctx, cancel := context.WithTimeout(ctx, forgetTime)
	defer cancel()
	for _, key := range rel.files() {
		if used[key] {
			continue
		}
		if err := f.blobs.Delete(ctx, key); err != nil {
			f.cfg.Log.Warn("a file that belongs to no release is left in the store", "sha256", key, "error", err)
		}
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
	sums, err := b.Check(m)
	if err != nil {
		return err
	}
	md5s := map[string]string{}
	for i := range m.Images {
		md5s[m.Images[i].Component] = sums.Images[i]
	}
	r.Bundle = Bundle{in.Key, in.Size, sums.MD5}
	return r.fill(m, b.Signed(), md5s)
}

// store writes rel and what o says, in one commit. kept says, for people, why
// the group stays as it is.
func (f *Fleet) store(ctx context.Context, rel *Release, o PublishOptions) (known bool, kept string, err error) {
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
		} else if known && !groups[o.Group] {
			if kept, err = stays(ctx, tx, m, o.Group, len(old) > 0); err != nil {
				return err
			}
			groups[o.Group] = kept == ""
		} else {
			groups[o.Group] = true
		}
		maps.DeleteFunc(groups, func(_ string, gets bool) bool { return !gets })
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
			f.forget(ctx, &Release{Manifest: m, Bundle: Bundle{SHA256: key}})
		}
	}
	return known, kept, err
}

// stays returns why a group does not get the known release m by its being
// published again, or "". A retried job of last month must not take the group
// back to what it built, nor bring back what an operator has withdrawn. To
// replace another release is a decision, so that then only a newer one stays.
func stays(ctx context.Context, tx *sql.Tx, m *ota.Manifest, group string, replaces bool) (string, error) {
	var digest, version string
	err := tx.QueryRowContext(ctx, `SELECT r.digest, r.version FROM current_releases c JOIN releases r ON r.digest = c.digest
		WHERE c.group_name = $1 AND c.product = $2`, group, m.Product).Scan(&digest, &version)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", err
	}
	var given int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM given_releases WHERE group_name = $1 AND digest = $2`, group, m.Digest).Scan(&given); err != nil {
		return "", err
	}
	promote := fmt.Sprintf("interlock releases promote %s --group %s", m.Version, group)
	switch {
	case digest == m.Digest:
	case version != "" && ota.CompareVersions(m.Version, version) < 0:
		return fmt.Sprintf("%s was published before; %s stays with %s; to go back: %s", m.Version, group, version, promote), nil
	case given == 0 || replaces:
	case version == "":
		return fmt.Sprintf("%s was taken from %s, which stays without a release; to give it again: %s", m.Version, group, promote), nil
	default:
		return fmt.Sprintf("%s was current in %s before, which stays with %s; to give it again: %s", m.Version, group, version, promote), nil
	}
	return "", nil
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
	if _, err := tx.ExecContext(ctx, `INSERT INTO given_releases (group_name, digest) VALUES ($1, $2) ON CONFLICT DO NOTHING`, group, digest); err != nil {
		return err
	}
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
