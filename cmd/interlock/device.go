package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/watchdog"
)

// socketFlag says which agent is meant.
type socketFlag struct {
	Socket string `placeholder:"FILE" default:"${socket}" env:"INTERLOCK_SOCKET" help:"Socket of the agent. Default: ${default}."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (f *socketFlag) dial() (*control.Client, error) {
	c, err := control.Dial(f.Socket)
	if err != nil && errors.Is(err, ota.ErrStopped) {
		return nil, &fault{err: err, exit: exitUnreachable}
	}
	return c, err
}

type deviceCmd struct {
	Status     deviceStatusCmd     `cmd:"" help:"What the device runs, does, and waits for."`
	Info       deviceInfoCmd       `cmd:"" help:"The release at hand: size, notes, rules."`
	Check      deviceCheckCmd      `cmd:"" help:"Look for a release now."`
	Install    deviceInstallCmd    `cmd:"" help:"Write the release into the other slot; the device works on."`
	Apply      deviceApplyCmd      `cmd:"" help:"Restart into the release that was written."`
	Abort      deviceAbortCmd      `cmd:"" help:"Give the update up. Possible until the restart."`
	Confirm    deviceConfirmCmd    `cmd:"" help:"Mark the firmware on trial good."`
	Rollback   deviceRollbackCmd   `cmd:"" help:"Go back to the previous firmware."`
	Watch      deviceWatchCmd      `cmd:"" help:"Print every change, until interrupted."`
	Thresholds deviceThresholdsCmd `cmd:"" help:"Show or change the limits on the battery."`
	Slots      deviceSlotsCmd      `cmd:"" help:"What the device can boot."`

	Diagnostics deviceDiagnosticsCmd `cmd:"" help:"What the agent has counted; with --report, tell those who keep metrics."`
}

func (*deviceCmd) Help() string {
	return `Talks to interlockd on this device over a unix socket. Whoever may open the socket may use it: root, and the socket's group.

Examples:

    interlock device status
    interlock device install --wait && interlock device apply
    interlock device watch`
}

type deviceStatusCmd struct{ socketFlag }

func (*deviceStatusCmd) Help() string {
	return `Examples:

    interlock device status
    interlock device status --json | jq -r .snapshot.status`
}

func (c *deviceStatusCmd) Run(ctx context.Context, e *env) error {
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(s)
	}
	return printStatus(e, &s)
}

func printStatus(e *env, s *control.Status) error {
	n := &s.Snapshot
	rollback := "possible" + when(n.Previous != "", ", to "+n.Previous)
	if !n.CanRollBack {
		rollback = "not possible: " + n.WhyNot
	}
	update, last := "", ""
	if u := n.Update; u != nil {
		update = fmt.Sprintf("%s%s, %s of %s", when(n.Back, "back to "), u.Version, size(n.Done), size(u.Size))
	}
	if r := n.Last; r != nil {
		last = fmt.Sprintf("%s %s on %s", r.Version, r.Result, date(r.Time)) + when(r.Reason != "", ": "+r.Reason)
	}
	battery := signals(s.Readings)
	if s.ReadingError != "" {
		battery = "NOT KNOWN: " + s.ReadingError
	}
	if err := e.list(
		[2]string{"device", s.Agent.Device},
		[2]string{"product", s.Agent.Product + when(s.Agent.Hardware != "", " "+s.Agent.Hardware)},
		[2]string{"runs", n.Running + " in slot " + n.Slot},
		[2]string{"status", n.Status.String() + when(!n.Since.IsZero(), ", since "+ago(e.now(), n.Since))},
		[2]string{"why", n.Reason},
		[2]string{"plant", s.Plant},
		[2]string{"update", update},
		[2]string{"newest offered", n.Latest},
		[2]string{"last update", last},
		[2]string{"evidence", evidenceHead(s.Evidence)},
		[2]string{"roll back", rollback},
		[2]string{"bootloader", bootloader(n.Bootloader)},
		[2]string{"watchdog", hardware(s.Watchdog)},
		[2]string{"battery", battery},
		[2]string{"compared with", otherSignals(s.Readings)},
		[2]string{"reports", when(n.Unsent > 0, strconv.Itoa(n.Unsent)+" not delivered yet, they are kept")},
		[2]string{"source", strings.Join(s.Agent.Sources, ", ")},
		[2]string{"agent", s.Agent.Version},
	); err != nil {
		return err
	}
	for _, w := range s.Warnings {
		e.say("warning: %s", clean(w))
	}
	return nil
}

// bootloader says whether this unit comes back by itself, and how that is known.
func bootloader(r ota.Rollback) string {
	switch r.State {
	case ota.RollbackProven:
		return "comes back from a slot that fails: " + r.Why
	case ota.RollbackBroken:
		return "DOES NOT COME BACK from a slot that fails: " + r.Why
	case ota.RollbackUnknown:
		return "not seen to come back: " + r.Why
	}
	return ""
}

// hardware says whether somebody restarts a device that hangs.
func hardware(w *watchdog.Status) string {
	if w == nil {
		return ""
	}
	return fmt.Sprintf("%s, %s", w.Device, w.State) + when(w.Identity != "", ": "+w.Identity) + when(w.Timeout > 0, ", "+w.Timeout.String()) +
		when(w.Why != "", "; "+w.Why) + when(w.LastReset != "", "; "+w.LastReset)
}

type deviceInfoCmd struct{ socketFlag }

func (*deviceInfoCmd) Help() string {
	return `Exit code 4: no release is at hand.

Examples:

    interlock device check && interlock device info`
}

func (c *deviceInfoCmd) Run(ctx context.Context, e *env) error {
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	i, err := client.Info(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(i)
	}
	u := &i.Update
	if err := e.list(
		[2]string{"version", i.Version + when(i.Running != "", " (runs now: "+i.Running+")")},
		[2]string{"size", size(i.Size)},
		[2]string{"sha256", i.SHA256},
		[2]string{"md5", i.MD5},
		[2]string{"mandatory", or(when(i.Mandatory, "yes"), "no")},
		[2]string{"restart", or(when(i.RequiresReboot, "yes"), "no")},
		[2]string{"battery", or(limits(u.Limits), "the device's own limits")},
		[2]string{"created", date(u.Created)},
		[2]string{"expires", date(u.Expires)},
		[2]string{"digest", u.Digest},
	); err != nil {
		return err
	}
	if i.ReleaseNotes != "" {
		fmt.Fprintln(e.stdout, "notes")
		for line := range strings.Lines(i.ReleaseNotes) {
			fmt.Fprintln(e.stdout, "  "+clean(strings.TrimRight(line, "\r\n")))
		}
	}
	return nil
}

// waitFlag is for commands that take their time.
type waitFlag struct {
	socketFlag
	Wait bool `help:"Return only when it is done, or the battery does not allow it. Interrupting ends the waiting, not the work."`
}

// command gives a command and prints where that leads.
func (f *waitFlag) command(ctx context.Context, e *env, cmd control.Command) error {
	client, err := f.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	var res control.Result
	if f.Wait {
		res, err = client.Finish(ctx, cmd, waitsFor(e))
	} else {
		res, err = client.Command(ctx, cmd, false)
	}
	if err != nil {
		return err
	}
	if f.JSON {
		return e.printJSON(res)
	}
	n := &res.Status.Snapshot
	fmt.Fprintf(e.stdout, "%s: %s%s\n", cmd, or(when(res.Ended, "done"), "under way"), stateLine(n))
	return nil
}

// waitsFor returns a function that remarks on what is waited for, whenever that
// changes by more than a number: a dwell time counts its seconds.
func waitsFor(e *env) func(control.Status) {
	last := ""
	return func(s control.Status) {
		n := &s.Snapshot
		key := n.Status.String() + strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r == '.' {
				return -1
			}
			return r
		}, n.Reason)
		if key != last {
			last = key
			e.say("%s", strings.TrimPrefix(stateLine(n), ", "))
		}
	}
}

// stateLine writes a snapshot in one line, to follow something.
func stateLine(n *ota.Snapshot) string {
	s := ", " + n.Status.String()
	if u := n.Update; u != nil {
		s += " " + u.Version
		if n.Status == ota.StatusDownloading && u.Size > 0 {
			s += fmt.Sprintf(" %d %%", 100*n.Done/u.Size)
		}
	}
	if n.Reason != "" {
		s += ": " + n.Reason
	}
	return clean(s)
}

type deviceCheckCmd struct{ waitFlag }

func (*deviceCheckCmd) Help() string {
	return `With --wait, exit code 4 means that there is no update.

Examples:

    interlock device check --wait`
}

func (c *deviceCheckCmd) Run(ctx context.Context, e *env) error {
	return c.command(ctx, e, control.Check)
}

type deviceInstallCmd struct{ waitFlag }

func (*deviceInstallCmd) Help() string {
	return `Looks for a release if none is at hand. With --wait, exit code 3 means that the battery does not allow it now; it goes on by itself when it does.

Examples:

    interlock device install
    interlock device install --wait`
}

func (c *deviceInstallCmd) Run(ctx context.Context, e *env) error {
	return c.command(ctx, e, control.Install)
}

type deviceApplyCmd struct{ waitFlag }

func (*deviceApplyCmd) Help() string {
	return `The device restarts as soon as the battery and the time windows allow it. With --wait, exit code 3 means that the battery does not allow it now.

Examples:

    interlock device apply
    interlock device apply --wait`
}

func (c *deviceApplyCmd) Run(ctx context.Context, e *env) error {
	return c.command(ctx, e, control.Apply)
}

type deviceAbortCmd struct{ waitFlag }

func (*deviceAbortCmd) Help() string {
	return `The release is not taken again until somebody asks for it with "interlock device install". After the restart, use "interlock device rollback".

Examples:

    interlock device abort`
}

func (c *deviceAbortCmd) Run(ctx context.Context, e *env) error {
	return c.command(ctx, e, control.Abort)
}

type deviceConfirmCmd struct{ waitFlag }

func (*deviceConfirmCmd) Help() string {
	return `For devices on which a person decides whether the new firmware works. Without it they return to the old one.

Examples:

    interlock device confirm`
}

func (c *deviceConfirmCmd) Run(ctx context.Context, e *env) error {
	return c.command(ctx, e, control.Confirm)
}

type deviceRollbackCmd struct{ waitFlag }

func (*deviceRollbackCmd) Help() string {
	return `Out of a trial at once; otherwise the battery is asked first, as for an update. With --wait, exit code 3 means that the battery does not allow it now.

Examples:

    interlock device rollback --wait`
}

func (c *deviceRollbackCmd) Run(ctx context.Context, e *env) error {
	return c.command(ctx, e, control.RollBack)
}

type deviceWatchCmd struct{ socketFlag }

func (*deviceWatchCmd) Help() string {
	return `With --json, each line is one event.

Examples:

    interlock device watch`
}

func (c *deviceWatchCmd) Run(ctx context.Context, e *env) error {
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	last := ""
	err = client.Watch(ctx, func(ev control.Event) error {
		if c.JSON {
			return e.printLine(ev)
		}
		n := &ev.Status.Snapshot
		line := strings.TrimPrefix(stateLine(n), ", ")
		if line == last {
			return nil
		}
		last = line
		_, err := fmt.Fprintf(e.stdout, "%s  runs %s  %s\n", ev.Time.Local().Format(time.TimeOnly), clean(n.Running), line)
		return err
	})
	if ctx.Err() != nil {
		return nil // interrupting is how it ends
	}
	return err
}

type deviceThresholdsCmd struct {
	socketFlag
	MinSoC             *float64 `name:"min-soc" placeholder:"PERCENT" help:"At least this state of charge."`
	MaxSoC             *float64 `name:"max-soc" placeholder:"PERCENT" help:"At most this state of charge; 0 for any."`
	MaxTemperature     *float64 `placeholder:"CELSIUS" help:"At most this battery temperature."`
	MinTemperature     *float64 `placeholder:"CELSIUS" help:"At least this battery temperature."`
	MaxTemperatureRate *float64 `placeholder:"KELVIN" help:"It may rise by at most this much in a minute; 0 for any."`
	MaxCurrent         *float64 `placeholder:"AMPERE" help:"At most this current, in either direction."`
	MinCell            *float64 `placeholder:"VOLT" help:"At least this voltage of every cell; 0 for any."`
	MaxCell            *float64 `placeholder:"VOLT" help:"At most this voltage of every cell; 0 for any."`
	MaxCellDelta       *float64 `placeholder:"VOLT" help:"At most this between the highest cell and the lowest; 0 for any."`
	MaxUncounted       *float64 `placeholder:"PERCENT" help:"At most this much charge may flow while the state of charge stands still; 0 for any."`
	MaxAge             *string  `placeholder:"TIME" help:"Older readings count as none, for example 5s."`
}

func (*deviceThresholdsCmd) Help() string {
	return `Changes hold until the agent restarts; put them into its configuration to keep them. A release's own limits can only be stricter.

Examples:

    interlock device thresholds
    interlock device thresholds --min-soc 40 --max-current 5`
}

func (c *deviceThresholdsCmd) Run(ctx context.Context, e *env) error {
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	change := control.ThresholdsChange{MinSoC: c.MinSoC, MaxSoC: c.MaxSoC, MaxTemperature: c.MaxTemperature, MinTemperature: c.MinTemperature,
		MaxTemperatureRate: c.MaxTemperatureRate, MaxCurrent: c.MaxCurrent, MinCell: c.MinCell, MaxCell: c.MaxCell,
		MaxCellDelta: c.MaxCellDelta, MaxUncounted: c.MaxUncounted, MaxAge: c.MaxAge}
	var t control.Thresholds
	if change == (control.ThresholdsChange{}) {
		t, err = client.Thresholds(ctx)
	} else {
		t, err = client.SetThresholds(ctx, change)
	}
	if errors.Is(err, control.ErrBadRequest) {
		return exitWith(exitUsage, err)
	}
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(t)
	}
	rows := [][2]string{
		{"state of charge", between(t.MinSoC, t.MaxSoC, "%")},
		{"temperature", fmt.Sprintf("%g to %g °C", t.MinTemperature, t.MaxTemperature)},
		{"current", fmt.Sprintf("at most %g A", t.MaxCurrent)},
	}
	for _, r := range []struct {
		on   bool
		name string
		text string
	}{
		{t.MaxTemperatureRate > 0, "temperature rise", fmt.Sprintf("at most %g K/min", t.MaxTemperatureRate)},
		{t.MinCell > 0 || t.MaxCell > 0, "cells", between(t.MinCell, t.MaxCell, "V")},
		{t.MaxCellDelta > 0, "between cells", fmt.Sprintf("at most %g V", t.MaxCellDelta)},
		{t.MaxUncounted > 0, "uncounted charge", fmt.Sprintf("at most %g %%", t.MaxUncounted)},
	} {
		if r.on {
			rows = append(rows, [2]string{r.name, r.text})
		}
	}
	return e.list(append(rows, [2]string{"readings", "at most " + t.MaxAge + " old"})...)
}

// between says a range whose upper end is open if it is 0.
func between(least, most float64, unit string) string {
	if most == 0 {
		return fmt.Sprintf("at least %g %s", least, unit)
	}
	return fmt.Sprintf("%g to %g %s", least, most, unit)
}

type deviceSlotsCmd struct{ socketFlag }

func (*deviceSlotsCmd) Help() string {
	return `Examples:

    interlock device slots`
}

func (c *deviceSlotsCmd) Run(ctx context.Context, e *env) error {
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := client.Slots(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(s)
	}
	var rows [][]string
	for _, slot := range s.Slots {
		var parts []string
		for _, p := range slot.Components {
			parts = append(parts, p.Name+" "+or(p.Error, "up to "+size(p.Capacity)))
		}
		rows = append(rows, []string{slot.Name, when(slot.Booted, "booted"), slot.Version, strings.Join(parts, ", "), slot.Note})
	}
	if err := e.table([]string{"SLOT", "", "VERSION", "COMPONENTS", "NOTE"}, rows); err != nil {
		return err
	}
	if !s.CanRollBack {
		fmt.Fprintf(e.stdout, "roll back: not possible: %s\n", clean(s.WhyNot))
	}
	return nil
}
