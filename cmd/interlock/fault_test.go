package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/push"
)

func TestReport(t *testing.T) {
	refusal := &ota.Refusal{Code: ota.ErrBatteryLow, Reason: "state of charge 22.0 %, want at least 30 %"}
	for _, tt := range []struct {
		name string
		err  error
		code int
		text string
	}{
		{"nothing", nil, exitOK, ""},
		{"anything", errors.New("open x: it is broken"), exitFailed, "interlock: open x: it is broken\n"},
		{"usage", usage("--key: want a file, got %d", 2), exitUsage, "interlock: --key: want a file, got 2\n"},
		{"usage of a kind that has a hint", exitWith(exitUsage, fmt.Errorf("min_soc: %w", ota.ErrValidation)), exitUsage,
			"interlock: min_soc: signature/checksum validation failed\n"},
		{"gate", fmt.Errorf("install: %w", refusal), exitNotNow, "interlock: install: not now: state of charge 22.0 %, want at least 30 %\n" +
			"hint: the update goes on by itself as soon as it is allowed; watch it with: interlock device watch\n"},
		{"gate, through the socket", control.NewError(refusal), exitNotNow,
			"interlock: not now: state of charge 22.0 %, want at least 30 %\nhint: " + control.NewError(refusal).Hint + "\n"},
		{"no update", fmt.Errorf("check: %w", ota.ErrNoUpdate), exitNothing, "interlock: check: no updates available\n"},
		{"not verified", fmt.Errorf("verify x: %w: chunk 1", ota.ErrValidation), exitUnverified,
			"interlock: verify x: signature/checksum validation failed: chunk 1\nhint: do not use this file; get it again from whoever built it\n"},
		{"no server", fmt.Errorf("list: %w", ota.ErrConnectivity), exitUnreachable,
			"interlock: list: cannot connect to update server\nhint: check the address, and that the other side runs\n"},
		{"no agent", ota.ErrStopped, exitUnreachable, "interlock: manager not running\n"},
		{"token", fmt.Errorf("list: %w", ota.ErrAuthentication), exitDenied, "interlock: list: authentication failed\n"},
		{"file mode", &fs.PathError{Op: "open", Path: "x", Err: fs.ErrPermission}, exitDenied,
			"interlock: open x: permission denied\nhint: check who owns the file, or run the command as that user\n"},
		{"interrupt", fmt.Errorf("upload: %w", context.Canceled), exitInterrupted, "interlock: interrupted\n"},
		{"went back", fmt.Errorf("%w, 1.0.0: not healthy", push.ErrRolledBack), exitRolledBack, "interlock: the device went back to its previous firmware, 1.0.0: not healthy\n"},
		{"time over", fmt.Errorf("%w, 1h", push.ErrUnfinished), exitUnfinished, "interlock: not finished in the time that was given, 1h\n"},
		{"no line", fmt.Errorf("read: %w", push.ErrLine), exitUnreachable, "interlock: read: no answer over the line\n"},
		{"another master", fmt.Errorf("OPEN: %w", push.ErrOccupied), exitNotNow, "interlock: OPEN: the device is occupied: busy with an update\n"},
		{"hint of the caller", hint(fmt.Errorf("x: %w", ota.ErrConnectivity), "start it"), exitUnreachable,
			"interlock: x: cannot connect to update server\nhint: start it\n"},
		{"hint and code", exitWith(exitUsage, hint(errors.New("x"), "do y")), exitUsage, "interlock: x\nhint: do y\n"},
		{"hint to nothing", hint(nil, "do y"), exitOK, ""},
		{"code of nothing", exitWith(exitUsage, nil), exitOK, ""},
		{"hostile", errors.New("server says \x1b[2J\nhint: run this"), exitFailed, "interlock: server says \ufffd[2J hint: run this\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if got := report(&env{stderr: &out}, tt.err); got != tt.code {
				t.Errorf("got exit code %d, want %d", got, tt.code)
			}
			if diff := cmp.Diff(tt.text, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
