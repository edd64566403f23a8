package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/operator"
)

type devicesCmd struct {
	List   devicesListCmd   `cmd:"" help:"List devices, and why each is or is not updated."`
	Show   devicesShowCmd   `cmd:"" help:"Show one device and how its updates ended."`
	Assign devicesAssignCmd `cmd:"" help:"Move a device into a group."`
	Token  devicesTokenCmd  `cmd:"" help:"Make a token that speaks for one device only."`
}

type devicesListCmd struct {
	serverFlags
	Group   string `placeholder:"G" help:"Only those of this group."`
	Product string `placeholder:"P" help:"Only those of this product."`
	Waiting bool   `help:"Only those that should run another release than they do."`
	Search  string `arg:"" optional:"" help:"Only those with this in their id."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

func (*devicesListCmd) Help() string {
	return `Examples:

    interlock devices list --server https://ota.example.com --token-file operator.token
    interlock devices list --waiting --group site-north
    interlock devices list --json | jq -r '.[] | select(.waiting) | .device + ": " + .why'`
}

func (c *devicesListCmd) Run(ctx context.Context, e *env) error {
	client, err := c.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := client.Devices(ctx, c.Group, c.Product, c.Search)
	if err != nil {
		return err
	}
	if c.Waiting {
		list = slices.DeleteFunc(list, func(d api.Device) bool { return !d.Waiting })
	}
	if c.JSON {
		return e.printJSON(list)
	}
	rows := make([][]string, 0, len(list))
	for i := range list {
		d := &list[i]
		rows = append(rows, []string{d.Device, d.Group, d.Version, d.Wanted, d.Status.String(), d.Why, ago(e.now(), d.LastSeen)})
	}
	if err := e.table([]string{"DEVICE", "GROUP", "RUNS", "SHOULD RUN", "STATUS", "WHY", "SEEN"}, rows); err != nil {
		return err
	}
	if len(list) == 0 {
		e.say("no devices; a device appears with its first check-in")
	}
	return nil
}

type devicesShowCmd struct {
	serverFlags
	Device string `arg:"" help:"Id of the device."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (*devicesShowCmd) Help() string {
	return `Examples:

    interlock devices show bess-03`
}

func (c *devicesShowCmd) Run(ctx context.Context, e *env) error {
	client, err := c.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	d, err := client.Device(ctx, c.Device)
	if err != nil {
		return err
	}
	return printDevice(e, &d, c.JSON)
}

type devicesAssignCmd struct {
	serverFlags
	Group  string `required:"" placeholder:"G" help:"Group to move it into."`
	Device string `arg:"" help:"Id of the device."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (*devicesAssignCmd) Help() string {
	return `Examples:

    interlock devices assign bess-05 --group canary`
}

func (c *devicesAssignCmd) Run(ctx context.Context, e *env) error {
	if err := ota.CheckName(c.Group); err != nil {
		return usage("--group: %w", err)
	}
	client, err := c.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	d, err := client.Assign(ctx, c.Device, c.Group)
	if err != nil {
		return inGroup(err, c.Group)
	}
	return printDevice(e, &d, c.JSON)
}

func printDevice(e *env, d *api.DeviceDetail, asJSON bool) error {
	if asJSON {
		return e.printJSON(d)
	}
	if err := e.list(
		[2]string{"device", d.Device.Device},
		[2]string{"product", d.Product + when(d.Hardware != "", " "+d.Hardware)},
		[2]string{"group", d.Group},
		[2]string{"runs", d.Version + when(d.Slot != "", " in slot "+d.Slot)},
		[2]string{"should run", d.Wanted},
		[2]string{"status", d.Status.String()},
		[2]string{"why", d.Why},
		[2]string{"battery", signals(d.Signals)},
		[2]string{"compared with", otherSignals(d.Signals)},
		[2]string{"seen", ago(e.now(), d.LastSeen)},
		[2]string{"agent", d.Agent},
	); err != nil {
		return err
	}
	if len(d.Reports) > 0 {
		fmt.Fprintln(e.stdout)
		rows := make([][]string, 0, len(d.Reports))
		for i := range d.Reports {
			r := &d.Reports[i]
			rows = append(rows, []string{date(r.Time), r.From, r.Version, string(r.Result), r.Running, fmt.Sprintf("%.12s", r.Evidence), r.Reason})
		}
		if err := e.table([]string{"WHEN", "FROM", "TO", "RESULT", "RUNS", "EVIDENCE", "REASON"}, rows); err != nil {
			return err
		}
	}
	for _, s := range d.Skipped {
		fmt.Fprintf(e.stdout, "\nskips %s: %s\n", clean(s.Version), clean(s.Reason))
	}
	return nil
}

// signals writes the values of the first instrument.
func signals(list []ota.Signal) string {
	var parts []string
	for _, s := range list {
		if s.Source == list[0].Source {
			parts = append(parts, s.Name+" "+s.Number())
		}
	}
	return strings.Join(parts, ", ")
}

// otherSignals writes those of all others, which measure the same battery.
func otherSignals(list []ota.Signal) string {
	var parts []string
	for _, s := range list {
		if s.Source != list[0].Source {
			parts = append(parts, fmt.Sprintf("%s %s (%s)", s.Name, s.Number(), strings.TrimPrefix(s.Source, list[0].Source+" ")))
		}
	}
	return strings.Join(parts, ", ")
}

type devicesTokenCmd struct {
	placeFlags
	Device string `arg:"" optional:"" help:"Id of the device."`
	Any    bool   `help:"A token that speaks for any device, instead of one. With --to only."`
	Note   string `placeholder:"TEXT" help:"For people, for example where the device is."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (*devicesTokenCmd) Help() string {
	return `The token is shown this once; the server, or the bucket, has only its hash. Put it into a file on the device with mode 0600 (token_file in the agent's configuration).

Examples:

    interlock devices token bess-05 > bess-05.token
    interlock devices token bess-05 --to s3://my-firmware/ota --note hall-3`
}

func (c *devicesTokenCmd) Run(ctx context.Context, e *env) error {
	_, to, err := c.where(e)
	switch {
	case err != nil:
		return err
	case c.Any && c.Device != "":
		return usage("--any and a device exclude each other")
	case c.Any && to == "":
		return usage("--any goes with --to: a server has a token for any device, device.token in its data directory")
	case !c.Any:
		if err := ota.CheckName(c.Device); err != nil {
			return usage("device: %w", err)
		}
	}
	at, err := c.open(ctx, e, true)
	if err != nil {
		return err
	}
	defer at.Close()
	t, err := at.NewToken(ctx, api.TokenRequest{Device: c.Device, Note: c.Note})
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(t)
	}
	fmt.Fprintln(e.stdout, clean(t.Token))
	return nil
}

type groupsCmd struct {
	List groupsListCmd `cmd:"" help:"List groups and their current releases."`
	Add  groupsAddCmd  `cmd:"" help:"Make a group."`
}

type groupsListCmd struct {
	placeFlags
	JSON bool `name:"json" help:"Print JSON."`
}

func (*groupsListCmd) Help() string {
	return `Examples:

    interlock groups list --server https://ota.example.com --token-file operator.token
    interlock groups list --in s3://my-firmware/ota`
}

func (c *groupsListCmd) Run(ctx context.Context, e *env) error {
	at, err := c.open(ctx, e, false)
	if err != nil {
		return err
	}
	defer at.Close()
	list, damaged := at.Groups(ctx)
	if !usable(damaged) {
		return damaged
	}
	if c.JSON {
		return cmp.Or(e.printJSON(list), damaged)
	}
	return cmp.Or(printGroups(e, at, list), damaged)
}

type groupsAddCmd struct {
	placeFlags
	Group string `arg:"" help:"Name of the group."`
	JSON  bool   `name:"json" help:"Print JSON."`
}

func (*groupsAddCmd) Help() string {
	return `To make a group that exists already changes nothing.

Examples:

    interlock groups add canary
    interlock devices assign bess-05 --group canary`
}

func (c *groupsAddCmd) Run(ctx context.Context, e *env) error {
	if err := ota.CheckName(c.Group); err != nil {
		return usage("group: %w", err)
	}
	at, err := c.open(ctx, e, true)
	if err != nil {
		return err
	}
	defer at.Close()
	g, err := at.Change(ctx, c.Group, api.GroupChange{})
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(g)
	}
	return printGroups(e, at, []api.Group{g})
}

// inGroup adds to an error that may be about a group that does not exist what
// to do then. Groups are not made on the way: a misspelt name would look like
// success while no device ever gets the release.
func inGroup(err error, group string) error {
	if (errors.Is(err, operator.ErrNotFound) || errors.Is(err, bucket.ErrNotFound)) && strings.Contains(err.Error(), "group") {
		return hint(err, "make it with: interlock groups add %s", group)
	}
	return err
}

// printGroups prints groups of at, which counts their devices if it is a server.
func printGroups(e *env, at place, list []api.Group) error {
	_, counts := at.(*operator.Client)
	rows := make([][]string, 0, len(list))
	for _, g := range list {
		var current []string
		for _, c := range g.Current {
			current = append(current, c.Product+" "+c.Version+" ("+short(c.Digest)+")")
		}
		rows = append(rows, []string{g.Name, when(counts, strconv.Itoa(g.Devices)), strings.Join(current, ", ")})
	}
	return e.table([]string{"GROUP", "DEVICES", "CURRENT RELEASE"}, rows)
}
