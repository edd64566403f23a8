package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/interlock-energy/ota"
)

// errFinished ends the watching.
var errFinished = errors.New("finished")

// Finish gives a command and returns once its work is done, as [Client.Command]
// with wait, and goes on while that has to wait for nothing but time: for the
// dwell time, or for an update window. told, if not nil, is called with the
// status whenever it has changed meanwhile.
//
// A battery that does not allow it is an error, see [ota.ErrNotNow]; the device
// goes on by itself then. So is an update that ends in another way than with
// success. Ending ctx ends the waiting and not the work.
func (c *Client) Finish(ctx context.Context, cmd Command, told func(Status)) (Result, error) {
	before, err := c.Status(ctx)
	if err != nil {
		return Result{}, err
	}
	res, err := c.Command(ctx, cmd, true)
	if err != nil || res.Ended {
		return res, err
	}
	f := follow{cmd: cmd, last: lastID(&before.Snapshot)}
	err = c.Watch(ctx, func(e Event) error {
		if told != nil {
			told(e.Status)
		}
		res.Status = e.Status
		return f.see(&e.Status.Snapshot)
	})
	if errors.Is(err, errFinished) || f.restarts && errors.Is(err, ota.ErrStopped) { // the agent goes down with the device
		res.Ended = true
		return res, nil
	}
	return res, err
}

// follow tells from one status after the other whether a command has ended.
type follow struct {
	cmd      Command
	last     string // report of the update before this one
	update   string // digest of the release that it is about
	restarts bool   // as seen last
}

// see returns nil while the work goes on, errFinished, or why it does not go on.
func (f *follow) see(n *ota.Snapshot) error {
	f.restarts = n.Status == ota.StatusRebooting
	if n.Slot == "" { // the agent has only just started
		return nil
	}
	if id := lastID(n); id != f.last && n.Last.Result == ota.Succeeded {
		return errFinished
	} else if id != f.last && n.Last.Result == ota.Aborted {
		return NewError(fmt.Errorf("%s %s: %w", f.cmd, n.Last.Version, ota.ErrAborted))
	} else if id != f.last {
		return f.failure(n.Last.Code, n.Last.Version+" "+string(n.Last.Result)+": "+n.Last.Reason)
	}
	switch n.State {
	case ota.Idle:
		code := n.Code
		if code == ota.ErrNone {
			code = ota.ErrNoUpdate
		}
		return f.failure(code, "the release is not at hand any more: "+n.Reason)
	case ota.Staged:
		if f.cmd == Install {
			return errFinished
		}
	case ota.Activating:
		// A restart that is called off at the last moment shows REBOOTING, too.
		if f.cmd == Install || n.Update != nil && !n.Update.RequiresReboot && n.Status == ota.StatusApplying && n.Reason != "" {
			return errFinished
		}
	case ota.Trial, ota.Soak, ota.RollBack:
		return errFinished
	}
	if n.Update != nil && f.update == "" {
		f.update = n.Update.Digest
	}
	switch {
	case n.Update != nil && n.Update.Digest != f.update:
		return NewError(fmt.Errorf("%s: %w: release %s has taken the place of the one that was asked for", f.cmd, ota.ErrNotNow, n.Update.Version))
	case n.Code == ota.ErrBatteryLow || n.Code == ota.ErrBMSUnsafe:
		return NewError(&ota.Refusal{Code: n.Code, Reason: n.Reason, Signals: n.Signals, Causes: n.Causes})
	case n.Code != ota.ErrNone:
		return f.failure(n.Code, n.Reason)
	}
	return nil
}

func (f *follow) failure(code ota.ErrorCode, reason string) error {
	e := NewError(code)
	e.Text = fmt.Sprintf("%s: %s", f.cmd, reason)
	return e
}

// lastID names the report of the last update, if there was one.
func lastID(n *ota.Snapshot) string {
	if n.Last == nil {
		return ""
	}
	return n.Last.ID
}
