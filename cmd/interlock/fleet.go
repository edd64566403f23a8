package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/operator"
)

// serverFlags say which server is meant, and who asks.
type serverFlags struct {
	Server    string `required:"" placeholder:"URL" env:"INTERLOCK_SERVER" help:"The update server."`
	TokenFile string `placeholder:"FILE" env:"INTERLOCK_TOKEN_FILE" help:"File with the operator's token. Without it: $$INTERLOCK_TOKEN."`
	CA        string `name:"ca" placeholder:"FILE" env:"INTERLOCK_CA" help:"CA certificate of the server (ca.pem in its data directory). Default: those of the system."`
}

func (f *serverFlags) client(e *env) (*operator.Client, error) {
	cfg := operator.Config{URL: f.Server, Token: e.getenv("INTERLOCK_TOKEN")}
	if f.TokenFile != "" {
		b, err := os.ReadFile(f.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read the token: %w", err)
		}
		cfg.Token = strings.TrimSpace(string(b))
	}
	if cfg.Token == "" || strings.ContainsAny(cfg.Token, " \t\r\n") {
		return nil, &fault{err: errors.New("no token is given, or what is given is none"), exit: exitUsage,
			hint: "give --token-file with the operator.token from the server's data directory, or set INTERLOCK_TOKEN"}
	}
	if f.CA != "" {
		b, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("read the CA certificate: %w", err)
		}
		cfg.CA = b
	}
	c, err := operator.New(cfg)
	return c, exitWith(exitUsage, err)
}

type publishCmd struct {
	serverFlags
	Group   string `default:"default" help:"Group of devices that gets the release. Default: ${default}."`
	Hold    bool   `help:"Upload only; give it to a group later with: interlock releases promote."`
	Replace bool   `help:"Take the place of another release with the same product and version."`
	JSON    bool   `name:"json" help:"Print JSON."`
	File    string `arg:"" help:"Bundle to upload."`
}

func (*publishCmd) Help() string {
	return `The server compares every byte with the signed manifest before it offers the release to anybody. To publish the same file again takes no group back to it, so a script may repeat it: a group that has had the release, or has a newer one, gets it again with interlock releases promote only.

Examples:

    interlock publish --server https://ota.example.com --token-file operator.token \
        --group canary bess-1.2.0.bundle
    export INTERLOCK_SERVER=https://127.0.0.1:8443 INTERLOCK_CA=data/ca.pem \
        INTERLOCK_TOKEN_FILE=data/operator.token
    interlock publish bess-1.2.0.bundle`
}

func (c *publishCmd) Run(ctx context.Context, e *env) error {
	if err := ota.CheckName(c.Group); err != nil {
		return usage("--group: %w", err)
	}
	client, err := c.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	// A damaged file is found here rather than after an hour of upload.
	f, err := openBundle(c.File)
	if err != nil {
		return err
	}
	defer f.close()
	m, err := bundle.Unsigned(f.Signed())
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	if want := bundle.Size(len(f.Signed()), m); f.size != want {
		return fmt.Errorf("%s: %w: got %d bytes, want %d", c.File, ota.ErrValidation, f.size, want)
	}
	show, end := e.progress("upload "+m.Version, f.size)
	r := &counted{r: io.NewSectionReader(f.f, 0, f.size), show: show}
	out, err := client.Publish(ctx, r, f.size, operator.PublishOptions{Group: c.Group, Hold: c.Hold, Replace: c.Replace})
	end()
	if answer, ok := errors.AsType[*operator.Error](err); ok && answer.Status == http.StatusConflict {
		return hint(err, "raise the version, or take the other's place with --replace")
	}
	if err != nil {
		return inGroup(err, c.Group)
	}
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

type releasesCmd struct {
	List     releasesListCmd     `cmd:"" help:"List releases, newest first."`
	Promote  releasesPromoteCmd  `cmd:"" help:"Give a release to a group."`
	Withdraw releasesWithdrawCmd `cmd:"" help:"Take a release away from a group, so that no further device starts with it."`
}

type releasesListCmd struct {
	serverFlags
	JSON bool `name:"json" help:"Print JSON."`
}

func (*releasesListCmd) Help() string {
	return `Examples:

    interlock releases list --server https://ota.example.com
    interlock releases list --json | jq -r '.[].version'`
}

func (c *releasesListCmd) Run(ctx context.Context, e *env) error {
	client, err := c.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := client.Releases(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(list)
	}
	rows := make([][]string, 0, len(list))
	for i := range list {
		r := &list[i]
		rows = append(rows, []string{r.Product, r.Version, short(r.Digest), size(r.Size), strings.Join(r.Groups, ", "),
			or(when(r.SignaturesChecked, "checked"), "by devices only"), date(r.Published)})
	}
	return e.table([]string{"PRODUCT", "VERSION", "DIGEST", "SIZE", "CURRENT IN", "SIGNATURES", "PUBLISHED"}, rows)
}

type releasesPromoteCmd struct {
	serverFlags
	Group   string `default:"default" help:"Group that gets it. Default: ${default}."`
	Release string `arg:"" help:"Version, or digest or its beginning."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

func (*releasesPromoteCmd) Help() string {
	return `Examples:

    interlock releases promote 1.2.0 --group default
    interlock releases promote 4f1c9a2b77d0 --group site-north`
}

func (c *releasesPromoteCmd) Run(ctx context.Context, e *env) error {
	return changeGroup(ctx, e, &c.serverFlags, c.Group, c.Release, c.JSON, func(digest string) api.GroupChange {
		return api.GroupChange{Promote: digest}
	})
}

type releasesWithdrawCmd struct {
	serverFlags
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
	return changeGroup(ctx, e, &c.serverFlags, c.Group, c.Release, c.JSON, func(digest string) api.GroupChange {
		return api.GroupChange{Withdraw: digest}
	})
}

func changeGroup(ctx context.Context, e *env, f *serverFlags, group, name string, asJSON bool, change func(digest string) api.GroupChange) error {
	if err := ota.CheckName(group); err != nil {
		return usage("--group: %w", err)
	}
	client, err := f.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := client.Releases(ctx)
	if err != nil {
		return err
	}
	r, err := findRelease(list, name)
	if err != nil {
		return err
	}
	g, err := client.Change(ctx, group, change(r.Digest))
	if err != nil {
		return inGroup(err, group)
	}
	if asJSON {
		return e.printJSON(g)
	}
	return printGroups(e, []api.Group{g})
}

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
	serverFlags
	Device string `arg:"" help:"Id of the device."`
	Note   string `placeholder:"TEXT" help:"For people, for example where the device is."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (*devicesTokenCmd) Help() string {
	return `The token is shown this once; the server keeps only its hash. Put it into a file on the device with mode 0600 (token_file in the agent's configuration).

Examples:

    interlock devices token bess-05 > bess-05.token`
}

func (c *devicesTokenCmd) Run(ctx context.Context, e *env) error {
	if err := ota.CheckName(c.Device); err != nil {
		return usage("device: %w", err)
	}
	client, err := c.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	t, err := client.NewToken(ctx, api.TokenRequest{Device: c.Device, Note: c.Note})
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
	serverFlags
	JSON bool `name:"json" help:"Print JSON."`
}

func (*groupsListCmd) Help() string {
	return `Examples:

    interlock groups list --server https://ota.example.com --token-file operator.token`
}

func (c *groupsListCmd) Run(ctx context.Context, e *env) error {
	client, err := c.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := client.Groups(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(list)
	}
	return printGroups(e, list)
}

type groupsAddCmd struct {
	serverFlags
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
	client, err := c.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	g, err := client.Change(ctx, c.Group, api.GroupChange{})
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(g)
	}
	return printGroups(e, []api.Group{g})
}

// inGroup adds to an error that may be about a group that does not exist what
// to do then. Groups are not made on the way: a misspelt name would look like
// success while no device ever gets the release.
func inGroup(err error, group string) error {
	if errors.Is(err, operator.ErrNotFound) && strings.Contains(err.Error(), "group") {
		return hint(err, "make it with: interlock groups add %s", group)
	}
	return err
}

func printGroups(e *env, list []api.Group) error {
	rows := make([][]string, 0, len(list))
	for _, g := range list {
		var current []string
		for _, c := range g.Current {
			current = append(current, c.Product+" "+c.Version+" ("+short(c.Digest)+")")
		}
		rows = append(rows, []string{g.Name, strconv.Itoa(g.Devices), strings.Join(current, ", ")})
	}
	return e.table([]string{"GROUP", "DEVICES", "CURRENT RELEASE"}, rows)
}
