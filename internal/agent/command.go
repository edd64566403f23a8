package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// maxOutput is how much of a command's output is kept, in bytes.
const maxOutput = 4 << 10

// run runs c and returns its standard output. After limit, or when ctx ends, the
// command and everything that it started is killed, and that is an error.
func (c Command) run(ctx context.Context, limit time.Duration, env []string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not end within %v and was killed", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, c[0], c[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, complaint := &head{}, &head{}
	cmd.Stdout, cmd.Stderr = out, complaint
	ownGroup(cmd)
	cmd.WaitDelay = time.Second // what it started may hold the output open
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it said yes, and left something in the background
	}
	if err == nil {
		return out.String(), nil
	}
	said := strings.TrimSpace(complaint.String())
	if said == "" {
		said = strings.TrimSpace(out.String())
	}
	if said != "" {
		return "", fmt.Errorf("run %s: %w: %.300q", c, err, said)
	}
	return "", fmt.Errorf("run %s: %w", c, err)
}

// String is what a person wrote into the configuration.
func (c Command) String() string {
	if len(c) == 3 && c[0] == "/bin/sh" && c[1] == "-c" {
		return fmt.Sprintf("%.60q", c[2])
	}
	return fmt.Sprintf("%.60q", strings.Join(c, " "))
}

// head keeps the beginning of what is written.
type head struct{ b bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	h.b.Write(p[:min(len(p), maxOutput-h.b.Len())])
	return len(p), nil
}

func (h *head) String() string { return h.b.String() }
