package bucket

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
)

// maxGiven is how many releases a group remembers that it had.
const maxGiven = 1000

// CreateGroup makes a group without a release. One that exists stays as it is.
func (b *Bucket) CreateGroup(ctx context.Context, group string) error {
	if err := ota.CheckName(group); err != nil {
		return fmt.Errorf("make a group: %w: %w", ErrInvalid, err)
	}
	err := b.save(ctx, currentKey(group), "", &Current{Format: Format, Group: group, Releases: map[string]*Release{}})
	if err != nil && !errors.Is(err, errThere) {
		return fmt.Errorf("make group %s: %w", group, err)
	}
	return nil
}

// Groups lists the groups by name. Devices are not counted in a bucket. With an
// error that is ErrDamaged the list has all groups that are not.
func (b *Bucket) Groups(ctx context.Context) ([]api.Group, error) {
	names, err := b.groupNames(ctx)
	if err != nil {
		return nil, err
	}
	out, err := collect(ctx, len(names), func(ctx context.Context, i int) (api.Group, error) {
		c, err := b.Current(ctx, names[i])
		if err != nil {
			return api.Group{}, err
		}
		return c.Describe(), nil
	})
	if err != nil {
		err = fmt.Errorf("list groups: %w", err)
	}
	return out, err
}

func (b *Bucket) groupNames(ctx context.Context) ([]string, error) {
	var names []string
	for o, err := range b.store.List(ctx, groups) {
		if err != nil {
			return nil, fmt.Errorf("list groups: %w", err)
		}
		name, file, _ := strings.Cut(strings.TrimPrefix(o.Key, groups), "/")
		if file == "current.json" && ota.CheckName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// Describe returns what people see of it.
func (c *Current) Describe() api.Group {
	g := api.Group{Name: c.Group}
	for _, r := range c.Releases {
		g.Current = append(g.Current, api.Current{Product: r.Product, Version: r.Version, Digest: r.Digest})
	}
	slices.SortFunc(g.Current, func(a, b api.Current) int { return strings.Compare(a.Product, b.Product) })
	return g
}

// set makes r current.
func (c *Current) set(r *Release) {
	c.Releases[r.Product] = r
	if !slices.Contains(c.Given, r.Digest) {
		c.Given = append(c.Given, r.Digest)
		c.Given = slices.Delete(c.Given, 0, max(0, len(c.Given)-maxGiven))
	}
}

// existing returns what a group should run. The default group is there without
// being made.
func (b *Bucket) existing(ctx context.Context, group string) (*Current, error) {
	c, err := b.Current(ctx, group)
	if errors.Is(err, ErrNotFound) && group == api.DefaultGroup {
		return &Current{Format: Format, Group: group}, nil
	}
	return c, err
}

// edit lets change look at what a group should run and change it, until what it
// has decided on is what is stored.
func (b *Bucket) edit(ctx context.Context, group string, change func(c *Current) (changed bool, err error)) error {
	return again(ctx, func() error {
		c, err := b.existing(ctx, group)
		if err != nil {
			return err
		}
		if c.Releases == nil {
			c.Releases = map[string]*Release{}
		}
		changed, err := change(c)
		if err != nil || !changed {
			return err
		}
		return b.save(ctx, currentKey(group), c.ETag, c)
	})
}

// give is edit for a change that makes r current, or what release.json says of it
// by now. A release that another has taken the place of is an ErrConflict,
// whenever that happens.
func (b *Bucket) give(ctx context.Context, group string, r *Release, change func(c *Current, r *Release) (changed bool)) error {
	return again(ctx, func() error {
		var before *Release
		wrote := false
		err := b.edit(ctx, group, func(c *Current) (bool, error) {
			before = c.Releases[r.Product]
			if wrote = change(c, r); !wrote {
				return false, nil
			}
			return true, b.upToDate(ctx, &r)
		})
		if err != nil || !wrote {
			return err
		}
		// Who took its place, or signed it again, after we looked has been through the
		// groups before we wrote, or has seen ours: so either of us sees the other.
		err = b.upToDate(ctx, &r)
		if !errors.Is(err, ErrConflict) {
			return err
		}
		return errors.Join(err, b.takeBack(ctx, group, r, before))
	})
}

// upToDate returns an ErrConflict if r is not the release of its version, and
// errFaster if it is another one now than in release.json, which it becomes.
func (b *Bucket) upToDate(ctx context.Context, r **Release) error {
	digest, _, err := b.version(ctx, *r)
	if err == nil && digest != (*r).Digest {
		err = fmt.Errorf("%w: another release has taken the place of %.12s; publish this one again with replace", ErrConflict, (*r).Digest)
	}
	if err != nil {
		return err
	}
	now, err := b.Release(ctx, (*r).Digest)
	if err != nil || same(now, *r) {
		return err
	}
	*r = now
	return errFaster
}

// takeBack undoes the change that made r current.
func (b *Bucket) takeBack(ctx context.Context, group string, r, before *Release) error {
	return b.edit(ctx, group, func(c *Current) (bool, error) {
		if now := c.Releases[r.Product]; now == nil || now.Digest != r.Digest {
			return false, nil
		}
		delete(c.Releases, r.Product)
		if before != nil && before.Digest != r.Digest {
			c.Releases[r.Product] = before
		}
		return true, nil
	})
}

// Promote makes a stored release the current one of a group for its product.
func (b *Bucket) Promote(ctx context.Context, group, digest string) error {
	r, err := b.Release(ctx, digest)
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	// A publication that was interrupted may not have come as far as this.
	_, err = b.claim(ctx, r, false)
	if err == nil || errors.Is(err, ErrConflict) { // give says it better
		err = b.give(ctx, group, r, func(c *Current, r *Release) bool {
			changed := !same(c.Releases[r.Product], r)
			c.set(r)
			return changed
		})
	}
	if err != nil {
		return fmt.Errorf("promote %s: %w", r.Version, err)
	}
	return nil
}

// Withdraw takes a release away from a group, which has none for that product
// then. That it is not the group's current release is an ErrConflict.
func (b *Bucket) Withdraw(ctx context.Context, group, digest string) error {
	name, seen := digest, false
	err := b.edit(ctx, group, func(c *Current) (bool, error) {
		for product, r := range c.Releases {
			if r.Digest == digest {
				name, seen = r.Version, true
				delete(c.Releases, product)
				return true, nil
			}
		}
		if seen { // our own try, of which we have heard that it failed
			return false, nil
		}
		r, err := b.Release(ctx, digest)
		if err != nil {
			return false, err
		}
		name = r.Version
		return false, fmt.Errorf("%w: it is not the current release of group %s", ErrConflict, group)
	})
	if err != nil {
		return fmt.Errorf("withdraw %.64s: %w", name, err)
	}
	return nil
}

// version is a file that says which of the releases with one product and version
// is meant: the first, or the one that was published to replace it.
type version struct {
	Format  int    `json:"format"` // 1
	Product string `json:"product"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

// version returns the digest of the release that has r's product and version, or
// "" if none has.
func (b *Bucket) version(ctx context.Context, r *Release) (digest, etag string, err error) {
	var v version
	key := versionKey(r.Product, r.Version)
	etag, err = b.load(ctx, key, maxSmall, &v)
	if errors.Is(err, blob.ErrNotFound) {
		return "", "", nil
	}
	if err == nil && (v.Format != Format || v.Product != r.Product || v.Version != r.Version || !isDigest(v.Digest)) {
		err = fmt.Errorf("read %s: %w: it is not about %s %s", key, ErrDamaged, r.Product, r.Version)
	}
	return v.Digest, etag, err
}

// claim makes r the release of its product and version, and says whether it takes
// the place of another, which must be allowed.
func (b *Bucket) claim(ctx context.Context, r *Release, replace bool) (replaces bool, err error) {
	err = again(ctx, func() error {
		digest, etag, err := b.version(ctx, r)
		if err != nil && !(replace && errors.Is(err, ErrDamaged)) {
			return err
		}
		if err == nil && digest == r.Digest {
			return nil
		}
		if digest != "" {
			if !replace {
				return anotherHas(digest)
			}
			replaces = true
		}
		return b.save(ctx, versionKey(r.Product, r.Version), etag, version{Format, r.Product, r.Version, r.Digest})
	})
	return replaces, err
}

func anotherHas(digest string) error {
	return fmt.Errorf("%w: another release with this product and version is published, %.12s; raise the version, or say replace", ErrConflict, digest)
}
