package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/bucket"
)

type reportsCmd struct {
	bucketFlags
	Device string `placeholder:"ID" help:"Only those of this device."`
	Limit  int    `default:"100" placeholder:"N" help:"At most so many, the newest. Default: ${default}."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (*reportsCmd) Help() string {
	return `Devices report through the Lambda, which writes what they say into the bucket. With a server: interlock devices show.

Examples:

    interlock reports --in s3://my-firmware/ota
    interlock reports --in s3://my-firmware/ota --device bess-05 --json`
}

func (c *reportsCmd) Run(ctx context.Context, e *env) error {
	if c.Device != "" {
		if err := ota.CheckName(c.Device); err != nil {
			return usage("--device: %w", err)
		}
	}
	if c.Limit < 1 {
		return usage("--limit: got %d, want at least 1", c.Limit)
	}
	b, _, err := c.open(ctx)
	if err != nil {
		return err
	}
	list, damaged := b.Reports(ctx, c.Device, c.Limit)
	if !usable(damaged) {
		return damaged
	}
	if c.JSON {
		return cmp.Or(e.printJSON(list), damaged)
	}
	rows := make([][]string, 0, len(list))
	for i := range list {
		r := &list[i].Report
		rows = append(rows, []string{date(list[i].Received), list[i].Device, r.From, r.Version, string(r.Result), r.Running, fmt.Sprintf("%.12s", r.Evidence), r.Reason})
	}
	return cmp.Or(e.table([]string{"WHEN", "DEVICE", "FROM", "TO", "RESULT", "RUNS", "EVIDENCE", "REASON"}, rows), damaged)
}

type tokensCmd struct {
	List   tokensListCmd   `cmd:"" help:"List the tokens of devices in a bucket."`
	Revoke tokensRevokeCmd `cmd:"" help:"End a token in a bucket."`
}

type tokensListCmd struct {
	bucketFlags
	JSON bool `name:"json" help:"Print JSON."`
}

func (*tokensListCmd) Help() string {
	return `Shows who may speak to the Lambda. The tokens themselves are nowhere: the bucket has their hashes. To make one: interlock devices token.

Examples:

    interlock tokens list --in s3://my-firmware/ota`
}

func (c *tokensListCmd) Run(ctx context.Context, e *env) error {
	b, _, err := c.open(ctx)
	if err != nil {
		return err
	}
	list, damaged := b.Tokens(ctx)
	if !usable(damaged) {
		return damaged
	}
	if c.JSON {
		return cmp.Or(e.printJSON(list), damaged)
	}
	rows := make([][]string, 0, len(list))
	for _, t := range list {
		rows = append(rows, []string{t.ID, or(t.Device, "any device"), date(t.Created), t.Note})
	}
	return cmp.Or(e.table([]string{"ID", "SPEAKS FOR", "CREATED", "NOTE"}, rows), damaged)
}

type tokensRevokeCmd struct {
	bucketFlags
	ID string `arg:"" help:"Id of the token, as interlock tokens list shows it."`
}

func (*tokensRevokeCmd) Help() string {
	return `The Lambda remembers a token for a minute; then it is refused.

Examples:

    interlock tokens revoke 4f1c9a2b77d0 --in s3://my-firmware/ota`
}

func (c *tokensRevokeCmd) Run(ctx context.Context, e *env) error {
	b, _, err := c.open(ctx)
	if err != nil {
		return err
	}
	err = b.Revoke(ctx, c.ID)
	if errors.Is(err, bucket.ErrNotFound) {
		return hint(err, "see: interlock tokens list")
	}
	return err
}
