package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/operator"
)

type publishCmd struct {
	placeFlags
	Group     string   `default:"default" help:"Group of devices that gets the release. Default: ${default}."`
	Hold      bool     `help:"Upload only; give it to a group later with: interlock releases promote."`
	Replace   bool     `help:"Take the place of another release with the same product and version."`
	Key       []string `sep:"none" placeholder:"PUBLIC.pem" help:"Public key that the release must be signed with, checked before the upload. Repeat for more."`
	Threshold int      `default:"1" help:"How many different keys must have signed."`
	LongURLs  bool     `name:"long-urls" help:"No device is one of aws-s3-ota, which take versions of 31 and URLs of 511 characters at most. With --to only."`
	JSON      bool     `name:"json" help:"Print JSON."`
	File      string   `arg:"" help:"Bundle to upload."`
}

func (*publishCmd) Help() string {
	return `Every byte is compared with the signed manifest before the release is offered to anybody. To publish the same file again takes no group back to it, so a script may repeat it: a group that has had the release, or has a newer one, gets it again with interlock releases promote only.

With --to there is no server: the release goes into a bucket or a directory, from where the Lambda, an AWS IoT job or a web server gives it to devices. A publication that was interrupted is completed by running it again.

Examples:

    interlock publish --server https://ota.example.com --token-file operator.token \
        --group canary bess-1.2.0.bundle
    export INTERLOCK_SERVER=https://127.0.0.1:8443 INTERLOCK_CA=data/ca.pem \
        INTERLOCK_TOKEN_FILE=data/operator.token
    interlock publish bess-1.2.0.bundle
    interlock publish --to s3://my-firmware/ota --key keys/public.pem bess-1.2.0.bundle`
}

func (c *publishCmd) Run(ctx context.Context, e *env) error {
	if err := ota.CheckName(c.Group); err != nil {
		return usage("--group: %w", err)
	}
	if c.Threshold < 1 {
		return usage("--threshold: got %d, want at least 1", c.Threshold)
	}
	server, to, err := c.where(e)
	if err != nil {
		return err
	}
	if c.LongURLs && to == "" {
		return usage("--long-urls goes with --to: a server makes its own URLs")
	}
	var verify ota.Verify
	if len(c.Key) > 0 {
		keys, err := bundle.LoadKeys(c.Threshold, c.Key...)
		if err != nil {
			return exitWith(exitFailed, err)
		}
		verify = keys.Verify
	}
	// A damaged file is found here rather than after an hour of upload.
	f, err := openBundle(c.File)
	if err != nil {
		return err
	}
	defer f.close()
	version, err := check(f, c.File, verify)
	if err != nil {
		return err
	}
	var out api.PublishResponse
	if server != "" {
		out, err = c.toServer(ctx, e, server, f, version)
	} else {
		out, err = c.toBucket(ctx, e, to, f, version, verify)
	}
	if err != nil {
		return inGroup(err, c.Group)
	}
	return c.print(e, &out)
}

// check looks at what can be seen quickly, and returns the version.
func check(f *opened, name string, verify ota.Verify) (version string, err error) {
	if verify == nil {
		verify = bundle.Unsigned
	}
	m, err := verify(f.Signed())
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if want := bundle.Size(len(f.Signed()), m); f.size != want {
		return "", fmt.Errorf("%s: %w: got %d bytes, want %d", name, ota.ErrValidation, f.size, want)
	}
	return m.Version, nil
}

func (c *publishCmd) toServer(ctx context.Context, e *env, server string, f *opened, version string) (api.PublishResponse, error) {
	client, err := c.client(e, server)
	if err != nil {
		return api.PublishResponse{}, err
	}
	defer client.Close()
	show, end := e.progress("upload "+version, f.size)
	r := &counted{r: io.NewSectionReader(f.f, 0, f.size), show: show}
	out, err := client.Publish(ctx, r, f.size, operator.PublishOptions{Group: c.Group, Hold: c.Hold, Replace: c.Replace})
	end()
	if answer, ok := errors.AsType[*operator.Error](err); ok && answer.Status == http.StatusConflict {
		return out, hint(err, takePlace)
	}
	return out, err
}

const takePlace = "raise the version, or take the other's place with --replace"

func (c *publishCmd) toBucket(ctx context.Context, e *env, to string, f *opened, version string, verify ota.Verify) (api.PublishResponse, error) {
	b, _, err := openBucket(ctx, to, true)
	if err != nil {
		return api.PublishResponse{}, err
	}
	show, end := func(int64) {}, func() {}
	begun := false
	out, err := b.Publish(ctx, f.f, f.size, bucket.PublishOptions{Group: c.Group, Hold: c.Hold, Replace: c.Replace, Verify: verify, LongURLs: c.LongURLs,
		Progress: func(done, total int64) {
			if !begun {
				begun = true
				show, end = e.progress("upload "+version, total)
			}
			show(done)
		}})
	end()
	switch {
	case errors.Is(err, bucket.ErrConflict):
		err = hint(err, takePlace)
	case errors.Is(err, bucket.ErrTooLong):
		err = hint(err, "if no device is one of those, say so with --long-urls")
	}
	return out, err
}

func (c *publishCmd) print(e *env, out *api.PublishResponse) error {
	if c.JSON {
		return e.printJSON(out)
	}
	rel := &out.Release
	fmt.Fprintf(e.stdout, "%s %s %s (%s)\n", or(when(out.Known, "known already:"), "published"), clean(rel.Product), clean(rel.Version), short(rel.Digest))
	if len(rel.Groups) > 0 {
		fmt.Fprintf(e.stdout, "current in %s\n", clean(strings.Join(rel.Groups, ", ")))
	} else if c.Hold { // else the note says why not
		fmt.Fprintf(e.stdout, "no group has it; next: interlock releases promote %s --group %s\n", short(rel.Digest), c.Group)
	}
	if out.Note != "" {
		e.say("note: %s", clean(out.Note))
	}
	return nil
}

// counted shows how much was read.
type counted struct {
	r    io.Reader
	n    int64
	show func(done int64)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	c.show(c.n)
	return n, err
}
