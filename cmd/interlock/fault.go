package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/push"
)

// Exit codes, of which scripts depend.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotNow      = 3
	exitNothing     = 4
	exitUnverified  = 5
	exitUnreachable = 6
	exitDenied      = 7
	exitRolledBack  = 8
	exitUnfinished  = 9
	exitInterrupted = 130
)

// exitCodes is the table of the help; docs/cli.md has the same.
const exitCodes = `Exit codes:

    0    done
    1    failed
    2    the command line is wrong
    3    not now: the battery or a person has to allow it first
    4    nothing to do: no update
    5    verification failed: do not use this file
    6    the server or the agent cannot be reached
    7    access denied: token, certificate or file permission
    8    the device went back to its previous firmware
    9    the time was over before it was known how it ends
    130  interrupted`

// fault is an error with what a person at a terminal needs beyond its text.
type fault struct {
	err  error
	exit int    // 0: by the kind of err
	hint string // what to do; empty: by the kind of err
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// usage is an error in the command line that the parser cannot see.
func usage(format string, a ...any) error {
	return &fault{err: fmt.Errorf(format, a...), exit: exitUsage}
}

// hint adds what to do to err; nil stays nil.
func hint(err error, format string, a ...any) error {
	if err == nil {
		return nil
	}
	return &fault{err: err, hint: fmt.Sprintf(format, a...)}
}

// exitWith sets the exit code of err; nil stays nil.
func exitWith(code int, err error) error {
	if err == nil {
		return nil
	}
	return &fault{err: err, exit: code}
}

// hinter is an error from elsewhere that knows what to do.
type hinter interface {
	error
	Hint() string
}

// report prints err for a person and returns the exit code.
func report(e *env, err error) int {
	if err == nil {
		return exitOK
	}
	code, hint := 0, ""
	for f, ok := errors.AsType[*fault](err); ok; f, ok = errors.AsType[*fault](f.err) {
		if code == 0 {
			code = f.exit
		}
		if hint == "" {
			hint = f.hint
		}
	}
	if h, ok := errors.AsType[hinter](err); ok && hint == "" {
		hint = h.Hint()
	}
	if c, ok := errors.AsType[*control.Error](err); ok && hint == "" {
		hint = c.Hint
	}
	kind, general := classify(err)
	if code == 0 {
		code = kind
	}
	if hint == "" && code == kind {
		hint = general
	}
	if code == exitInterrupted {
		fmt.Fprintln(e.stderr, "interlock: interrupted")
		return code
	}
	fmt.Fprintf(e.stderr, "interlock: %s\n", clean(err.Error()))
	if hint != "" {
		fmt.Fprintf(e.stderr, "hint: %s\n", clean(hint))
	}
	return code
}

// classify returns the exit code for err and a hint that fits its kind.
func classify(err error) (exit int, hint string) {
	if errors.Is(err, context.Canceled) {
		return exitInterrupted, ""
	}
	if exit := classifyPush(err); exit != 0 {
		return exit, ""
	}
	if errors.Is(err, ota.ErrNotNow) {
		return exitNotNow, "the update goes on by itself as soon as it is allowed; watch it with: interlock device watch"
	}
	if errors.Is(err, ota.ErrStopped) {
		return exitUnreachable, ""
	}
	if errors.Is(err, fs.ErrPermission) {
		return exitDenied, "check who owns the file, or run the command as that user"
	}
	switch ota.CodeOf(err) {
	case ota.ErrNoUpdate:
		return exitNothing, ""
	case ota.ErrValidation:
		return exitUnverified, "do not use this file; get it again from whoever built it"
	case ota.ErrConnectivity:
		return exitUnreachable, "check the address, and that the other side runs"
	case ota.ErrAuthentication:
		return exitDenied, ""
	}
	// What a bucket's server answers, and that it does not.
	if a, ok := errors.AsType[answer](err); ok && (a.HTTPStatusCode() == http.StatusForbidden || a.HTTPStatusCode() == http.StatusUnauthorized) {
		return exitDenied, ""
	}
	if errors.Is(err, bucket.ErrDamaged) {
		return exitFailed, "bring an old version of the object back, if the bucket keeps them, or delete it; publish writes releases anew, and groups add with releases promote a group"
	}
	if errors.Is(err, blob.ErrUnavailable) {
		return exitUnreachable, ""
	}
	if n, ok := errors.AsType[*net.OpError](err); ok && n.Op == "dial" {
		return exitUnreachable, ""
	}
	return exitFailed, ""
}

// classifyPush returns the exit code for what only happens on a field bus, 0 for all else.
func classifyPush(err error) int {
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	op, refused := errors.AsType[*net.OpError](err)
	refused = refused && op.Op == "remote error" // as crypto/tls calls an alert of the other side, which does not like our certificate
	switch {
	case errors.Is(err, push.ErrRolledBack):
		return exitRolledBack
	case errors.Is(err, push.ErrUnfinished):
		return exitUnfinished
	case errors.Is(err, push.ErrOccupied):
		return exitNotNow
	case errors.Is(err, push.ErrLine) && (untrusted || refused || errors.Is(err, fs.ErrPermission)):
		return exitDenied
	case errors.Is(err, push.ErrLine):
		return exitUnreachable
	}
	return 0
}

// answer is an error that came with an HTTP status.
type answer interface {
	error
	HTTPStatusCode() int
}

// clean makes text from elsewhere (a file, a device, a server) safe for a
// terminal: one line, and no control characters, which could hide or fake output.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			return '\ufffd'
		}
		return r
	}, s)
}
