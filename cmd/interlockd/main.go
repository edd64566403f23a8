// Interlockd is the device agent: it updates the firmware of the device it runs
// on, from signed releases, and never at a moment when that is unsafe.
//
//	interlockd --config /etc/interlock/interlockd.yaml
//	interlockd --config interlockd.yaml --check-config
//	interlockd --version
//
// The configuration is explained in docs/configuration.md, with an example in
// deploy/interlockd.example.yaml. SIGINT and SIGTERM end the agent in order; an
// update goes on where it was when the agent is started again.
//
// Exit codes:
//
//	0  ended by a signal, or --check-config found nothing wrong
//	1  it cannot work: the record, the slots or the control socket
//	2  wrong command line
//	3  the configuration is wrong: starting it again will not help
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	_ "time/tzdata" // update windows name zones, and small devices have no database

	"github.com/interlock-energy/ota/internal/agent"
	"github.com/interlock-energy/ota/internal/buildinfo"
)

// Exit codes. Units in deploy/ know number 3.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitConfig = 3
)

// version is set when a release is built: -ldflags "-X main.version=1.2.3".
var version = ""

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("interlockd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, "Interlockd updates the firmware of the device it runs on.\n\nUsage: interlockd --config FILE [--check-config]\n\n")
		flags.VisitAll(func(f *flag.Flag) { // PrintDefaults writes one dash
			value, text := flag.UnquoteUsage(f)
			fmt.Fprintf(stderr, "  %-15s  %s\n", strings.TrimSpace("--"+f.Name+" "+value), text)
		})
		fmt.Fprint(stderr, "\nExit codes: 0 ended in order, 1 cannot work, 2 wrong command line, 3 wrong configuration.\n")
	}
	config := flags.String("config", "", "configuration `FILE`, see docs/configuration.md")
	check := flags.Bool("check-config", false, "say what is wrong with the configuration, and exit")
	showVersion := flags.Bool("version", false, "show the version, and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	}
	release, built := buildinfo.Version(version)
	switch {
	case *showVersion:
		fmt.Fprintln(stdout, "interlockd", release)
		return exitOK
	case flags.NArg() > 0:
		return fail(stderr, exitUsage, fmt.Errorf("argument %q is not expected", flags.Arg(0)), "see interlockd --help")
	case *config == "":
		return fail(stderr, exitUsage, errors.New("--config is missing"), "begin with a copy of deploy/interlockd.example.yaml")
	}
	cfg, err := agent.Load(*config)
	if err != nil {
		return fail(stderr, exitConfig, err, "every key is explained in docs/configuration.md")
	}
	cfg.Getenv, cfg.Version, cfg.Built = os.Getenv, release, built
	cfg.AWS = newAWS()
	a, err := agent.New(cfg)
	if err != nil {
		return fail(stderr, exitConfig, fmt.Errorf("%w (in %s)", err, *config), "every key is explained in docs/configuration.md")
	}
	if *check {
		defer a.Close()
		for _, w := range a.Warnings() {
			fmt.Fprintln(stdout, "warning:", w)
		}
		fmt.Fprintln(stdout, *config+": good")
		return exitOK
	}
	if err := a.Run(ctx); err != nil {
		return fail(stderr, exitFailed, err, "see the log above; interlockd --check-config looks at the configuration alone")
	}
	return exitOK
}

func fail(stderr io.Writer, code int, err error, hint string) int {
	fmt.Fprintf(stderr, "interlockd: %s\nhint: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "), hint)
	return code
}
