package bucket

import (
	"fmt"
	"slices"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
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
