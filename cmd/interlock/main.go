// Command interlock is the tool for people: the firmware engineer who builds and
// signs releases, the operator who runs the server and rolls releases out, and
// the technician who looks after one device.
//
// Start with "interlock demo", which shows all of it in under a minute, and
// "interlock --help". The agent on the device is another command, interlockd.
//
// Promised: an error is one sentence on standard error with a hint what to do,
// the exit code says what kind it is (see "interlock --help"), output for
// programs is asked for with --json and goes to standard output alone, and a
// command that fails leaves nothing half-done behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/interlock-energy/ota/internal/buildinfo"
	"github.com/interlock-energy/ota/internal/control"
)

type cli struct {
	Quiet bool `short:"q" help:"No progress and no remarks, only results and errors."`

	Demo demoCmd `cmd:"" group:"start" help:"See it work: a server and six simulated devices, in a minute."`

	Keygen  keygenCmd  `cmd:"" group:"release" help:"Make a key pair that signs releases."`
	Build   buildCmd   `cmd:"" group:"release" help:"Build and sign a release: one bundle file."`
	Sign    signCmd    `cmd:"" group:"release" help:"Add a second person's signature to a bundle."`
	Verify  verifyCmd  `cmd:"" group:"release" help:"Verify a bundle: signatures and every byte."`
	Inspect inspectCmd `cmd:"" group:"release" help:"Show what a bundle says, without checking its signatures."`

	Serve    serveCmd    `cmd:"" group:"fleet" help:"Run the update server."`
	Publish  publishCmd  `cmd:"" group:"fleet" help:"Upload a bundle and give it to a group of devices."`
	Releases releasesCmd `cmd:"" group:"fleet" help:"List, promote and withdraw releases."`
	Devices  devicesCmd  `cmd:"" group:"fleet" help:"List devices, and why each is or is not updated."`
	Groups   groupsCmd   `cmd:"" group:"fleet" help:"List and make groups."`
	Reports  reportsCmd  `cmd:"" group:"fleet" help:"Show how updates ended, where there is no server."`
	Tokens   tokensCmd   `cmd:"" group:"fleet" help:"List and revoke devices' tokens, where there is no server."`

	Device   deviceCmd   `cmd:"" group:"device" help:"Talk to the agent on this device."`
	Evidence evidenceCmd `cmd:"" group:"device" help:"Show what happened in a device's updates, and verify that nothing in it was changed."`
	Push     pushCmd     `cmd:"" group:"device" help:"Bring a release into a device over Modbus or CAN."`
	ESP32    esp32Cmd    `cmd:"" name:"esp32" group:"device" help:"Look into an ESP32's flash, or build one."`

	Simulate simulateCmd `cmd:"" group:"start" help:"Be a battery system, on Modbus and CAN, for tests."`

	Version versionCmd `cmd:"" group:"start" help:"Print the version of this program."`
}

// Help is shown below the list of commands.
func (cli) Help() string { return exitCodes }

// env is the surroundings of a command.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	quiet          bool
}

func main() {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup does
		ends = append(ends, syscall.SIGHUP) // the terminal is closed
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	context.AfterFunc(ctx, stop) // a second interrupt ends at once
	code := run(ctx, os.Args[1:], &env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, now: time.Now})
	stop()
	os.Exit(code)
}

// run runs one command line and returns its exit code.
func run(ctx context.Context, args []string, e *env) int {
	var c cli
	answered := false // by --help, which comes before everything else
	code, help := exitOK, e.stdout
	if len(args) == 0 { // a script has left something out
		args, code, help = []string{"--help"}, exitUsage, e.stderr
	}
	parser, err := kong.New(&c,
		kong.Name("interlock"),
		kong.Description("Firmware updates for battery energy storage systems: signed, only when the battery allows it, and always with a way back."),
		kong.Writers(help, e.stderr),
		kong.Exit(func(int) { answered = true }),
		kong.Vars{"socket": control.DefaultSocket},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100, NoExpandSubcommands: true}),
		kong.ValueFormatter(describeFlag),
		kong.ExplicitGroups([]kong.Group{
			{Key: "start", Title: "Start here:"},
			{Key: "release", Title: "Make releases:"},
			{Key: "fleet", Title: "Run a fleet:"},
			{Key: "device", Title: "Look after one device:"},
			{Key: "rules", Title: "Rules, which devices obey:"},
			{Key: "limits", Title: "Limits on the battery, on top of the device's own:"},
		}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(e),
	)
	if err != nil {
		return report(e, fmt.Errorf("read the command line: %w", err))
	}
	k, err := parser.Parse(args)
	if answered {
		return code
	}
	if err != nil {
		return report(e, badCommandLine(err))
	}
	e.quiet = c.Quiet
	return report(e, k.Run())
}

// badCommandLine makes a usage error of what the parser says.
func badCommandLine(err error) error {
	command := "interlock"
	if p, ok := errors.AsType[*kong.ParseError](err); ok && p.Context != nil && p.Context.Selected() != nil {
		command = p.Context.Selected().FullPath()
	}
	return &fault{err: err, exit: exitUsage, hint: command + " --help"}
}

// version is set when a release is built: -ldflags "-X main.version=1.2.3".
var version = ""

type versionCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

func (versionCmd) Help() string {
	return `Examples:

    interlock version
    interlock version --json`
}

// Run prints the version as the build recorded it.
func (c versionCmd) Run(e *env) error {
	v, built := buildinfo.Version(version)
	if c.JSON {
		return e.printJSON(struct {
			Version string    `json:"version"`
			Built   time.Time `json:"built,omitzero"` // the commit
		}{v, built})
	}
	_, err := fmt.Fprintln(e.stdout, "interlock", v)
	return err
}
