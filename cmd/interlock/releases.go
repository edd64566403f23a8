package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/operator"
)

type releasesCmd struct {
	List     releasesListCmd     `cmd:"" help:"List releases, newest first."`
	Promote  releasesPromoteCmd  `cmd:"" help:"Give a release to a group."`
	Withdraw releasesWithdrawCmd `cmd:"" help:"Take a release away from a group, so that no further device starts with it."`
	Job      releasesJobCmd      `cmd:"" help:"Print the document of an AWS IoT job that installs a release."`
}

type releasesListCmd struct {
	placeFlags
	JSON bool `name:"json" help:"Print JSON."`
}

func (*releasesListCmd) Help() string {
	return `Examples:

    interlock releases list --server https://ota.example.com
    interlock releases list --json | jq -r '.[].version'
    interlock releases list --in s3://my-firmware/ota`
}

func (c *releasesListCmd) Run(ctx context.Context, e *env) error {
	at, err := c.open(ctx, e, false)
	if err != nil {
		return err
	}
	defer at.Close()
	list, damaged := at.Releases(ctx)
	if !usable(damaged) {
		return damaged
	}
	if c.JSON {
		return cmp.Or(e.printJSON(list), damaged)
	}
	rows := make([][]string, 0, len(list))
	for i := range list {
		r := &list[i]
		rows = append(rows, []string{r.Product, r.Version, short(r.Digest), size(r.Size), strings.Join(r.Groups, ", "),
			or(when(r.SignaturesChecked, "checked"), "by devices only"), date(r.Published)})
	}
	return cmp.Or(e.table([]string{"PRODUCT", "VERSION", "DIGEST", "SIZE", "CURRENT IN", "SIGNATURES", "PUBLISHED"}, rows), damaged)
}

type releasesPromoteCmd struct {
	placeFlags
	Group   string `default:"default" help:"Group that gets it. Default: ${default}."`
	Release string `arg:"" help:"Version, or digest or its beginning."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

func (*releasesPromoteCmd) Help() string {
	return `Examples:

    interlock releases promote 1.2.0 --group default
    interlock releases promote 4f1c9a2b77d0 --group site-north
    interlock releases promote 1.2.0 --to s3://my-firmware/ota`
}

func (c *releasesPromoteCmd) Run(ctx context.Context, e *env) error {
	return changeGroup(ctx, e, &c.placeFlags, c.Group, c.Release, c.JSON, func(digest string) api.GroupChange {
		return api.GroupChange{Promote: digest}
	})
}

type releasesWithdrawCmd struct {
	placeFlags
	Group   string `default:"default" help:"Group that loses it. Default: ${default}."`
	Release string `arg:"" help:"Version, or digest or its beginning."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

func (*releasesWithdrawCmd) Help() string {
	return `Devices that run it already keep it; publish or promote another release to move them.

Examples:

    interlock releases withdraw 1.2.0 --group canary`
}

func (c *releasesWithdrawCmd) Run(ctx context.Context, e *env) error {
	return changeGroup(ctx, e, &c.placeFlags, c.Group, c.Release, c.JSON, func(digest string) api.GroupChange {
		return api.GroupChange{Withdraw: digest}
	})
}

type releasesJobCmd struct {
	bucketFlags
	Product   string        `placeholder:"P" help:"Only releases of this product."`
	Presigned bool          `help:"Put a URL that works now into it, instead of AWS IoT's placeholder."`
	Lifetime  time.Duration `default:"1h" placeholder:"TIME" help:"How long such a URL works, at most 168h. Default: ${default}."`
	Release   string        `arg:"" help:"Version, or digest or its beginning."`
}

func (*releasesJobCmd) Help() string {
	return `AWS IoT puts a presigned URL into the document whenever a device asks for it, if the job has a presignedUrlConfig with a role that may read the bucket.

Examples:

    interlock releases job 1.2.0 --in s3://my-firmware/ota > job.json
    aws iot create-job --job-id bess-1-2-0 --targets arn:aws:iot:eu-central-1:123456789012:thinggroup/bess \
        --document file://job.json \
        --presigned-url-config roleArn=arn:aws:iam::123456789012:role/interlock-job-urls,expiresInSec=3600
    interlock releases job 1.2.0 --in s3://my-firmware/ota --presigned --lifetime 24h`
}

func (c *releasesJobCmd) Run(ctx context.Context, e *env) error {
	if c.Lifetime < time.Second || c.Lifetime > 7*24*time.Hour {
		return usage("--lifetime: got %s, want 1s to 168h", c.Lifetime)
	}
	b, store, err := c.open(ctx)
	if err != nil {
		return err
	}
	signer, ok := store.(blob.Presigner)
	if !ok {
		return usage("a job needs a bucket: give --in s3://bucket/prefix; got %s", c.To)
	}
	list, damaged := b.Releases(ctx)
	if !usable(damaged) {
		return damaged
	}
	found, err := findRelease(slices.DeleteFunc(list, func(r api.Release) bool { return c.Product != "" && r.Product != c.Product }), c.Release)
	if err != nil {
		return cmp.Or(damaged, err)
	}
	r, err := b.Release(ctx, found.Digest)
	if err != nil {
		return err
	}
	address, err := signer.PresignGet(ctx, r.Bundle.Key, c.Lifetime)
	if err != nil {
		return err
	}
	if !c.Presigned {
		if address, err = jobURL(address); err != nil {
			return err
		}
	}
	type release struct {
		Product string `json:"product"`
		Version string `json:"version"`
		Digest  string `json:"digest"`
		Bundle  string `json:"bundle"`
	}
	return e.printJSON(map[string]release{"interlock": {r.Product, r.Version, r.Digest, address}})
}

// jobURL returns what AWS IoT replaces by a presigned URL, for what the presigned
// URL leads to. It wants the bucket in the path: AWS IoT Developer Guide, "Managing
// jobs", section "Presigned URLs".
func jobURL(presigned string) (string, error) {
	u, err := url.Parse(presigned)
	if err != nil {
		return "", fmt.Errorf("make a job: %w", err)
	}
	u.RawQuery = ""
	if name, rest, ok := strings.Cut(u.Host, ".s3."); ok && strings.Contains(rest, ".amazonaws.com") {
		u = &url.URL{Scheme: u.Scheme, Host: "s3." + rest, Path: "/" + name + u.Path}
	}
	return "${aws:iot:s3-presigned-url-v2:" + u.String() + "}", nil
}

func changeGroup(ctx context.Context, e *env, f *placeFlags, group, name string, asJSON bool, change func(digest string) api.GroupChange) error {
	if err := ota.CheckName(group); err != nil {
		return usage("--group: %w", err)
	}
	at, err := f.open(ctx, e, false)
	if err != nil {
		return err
	}
	defer at.Close()
	digest, damaged, err := digestOf(ctx, at, group, name)
	if err != nil {
		return cmp.Or(damaged, err)
	}
	g, err := at.Change(ctx, group, change(digest))
	if err != nil {
		return inGroup(err, group)
	}
	if damaged != nil {
		e.say("note: %s", clean(damaged.Error()))
	}
	if asJSON {
		return e.printJSON(g)
	}
	return printGroups(e, at, []api.Group{g})
}

// digestOf returns the digest of the release that is meant by name. Damaged says
// what could not be read on the way, which does not matter if it was found: what
// is damaged elsewhere must not keep anybody from withdrawing a release.
func digestOf(ctx context.Context, at place, group, name string) (digest string, damaged, err error) {
	list, damaged := at.Releases(ctx)
	if !usable(damaged) {
		return "", nil, damaged
	}
	if damaged != nil { // the release itself may be it; a group that has it knows its digest as well
		have, err := at.Groups(ctx)
		if !usable(err) {
			return "", nil, err
		}
		for _, g := range have {
			for _, c := range g.Current {
				known := slices.ContainsFunc(list, func(r api.Release) bool { return r.Digest == c.Digest })
				if g.Name == group && !known {
					list = append(list, api.Release{Product: c.Product, Update: ota.Update{Version: c.Version, Digest: c.Digest}})
				}
			}
		}
	}
	r, err := findRelease(list, name)
	if err != nil {
		return "", damaged, err
	}
	return r.Digest, damaged, nil
}

// usable reports whether a list has all that could be read.
func usable(err error) bool { return err == nil || errors.Is(err, bucket.ErrDamaged) }

// findRelease returns the one release that is meant by a version or by the
// beginning of a digest.
func findRelease(list []api.Release, name string) (*api.Release, error) {
	var found []*api.Release
	for i := range list {
		if r := &list[i]; r.Version == name || len(name) >= 6 && strings.HasPrefix(r.Digest, strings.ToLower(name)) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, hint(fmt.Errorf("find release %s: %w", name, operator.ErrNotFound), "see: interlock releases list")
	}
	var all []string
	for _, r := range found {
		all = append(all, r.Product+" "+short(r.Digest))
	}
	return nil, &fault{err: fmt.Errorf("find release %s: %d releases fit: %s", name, len(found), strings.Join(all, ", ")), exit: exitUsage, hint: "give the digest"}
}
