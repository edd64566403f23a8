package main

import (
	"context"
	"errors"
	"os/signal"
	"syscall"
	"time"

	"github.com/interlock-energy/ota/internal/demo"
)

type demoCmd struct {
	Listen  string        `default:"127.0.0.1:0" placeholder:"ADDR" help:"Address of the page. Default: a free port on this machine."`
	Dir     string        `placeholder:"DIR" help:"Empty directory for everything, which stays. Default: a temporary one, removed in the end."`
	Keep    bool          `help:"Go on with server and devices until Ctrl-C."`
	Timeout time.Duration `default:"80s" placeholder:"TIME" help:"How long the devices may take. Default: ${default}."`
	JSON    bool          `name:"json" help:"Print the summary as JSON; what happens goes to standard error."`
}

func (*demoCmd) Help() string {
	return `Starts a server with its page, and six simulated battery systems that update over it, and ends by itself. Everything but the batteries is real: HTTPS, signatures, slots, and the firmware, which runs as a process of its own.

Three devices update. bess-03 has 22 % charge and waits until it is charged. bess-04 is at 47 °C and must not update. bess-05 is the canary: it gets a release that does not start, and comes back by itself.

Exit code 0: every device ended where it should.

Examples:

    interlock demo
    interlock demo --keep --listen 127.0.0.1:8080
    interlock demo --quiet --json | jq .ok`
}

func (c *demoCmd) Run(ctx context.Context, e *env) error {
	if c.Timeout < time.Second {
		return usage("--timeout: got %v, want at least 1s", c.Timeout)
	}
	cfg := demo.Config{Out: e.stdout, Listen: c.Listen, Dir: c.Dir, Keep: c.Keep, Timeout: c.Timeout}
	if c.JSON {
		cfg.Out = e.stderr
	}
	cfg.Terminal = onTerminal(cfg.Out, e.getenv)
	cfg.Color = cfg.Terminal && e.getenv("NO_COLOR") == ""
	if e.quiet {
		cfg.Out, cfg.Terminal = nil, false
	}
	// Without this, "interlock demo | head" would end this process at its next
	// line, before it has tidied up.
	signal.Ignore(syscall.SIGPIPE)
	s, err := demo.Run(ctx, cfg)
	if err != nil && !errors.Is(err, demo.ErrUnexpected) {
		return err
	}
	if c.JSON {
		if err := e.printJSON(s); err != nil {
			return err
		}
	}
	return hint(err, "run it again with --dir demo, and look at demo/demo.log")
}
