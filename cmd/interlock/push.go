package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/push"
)

type pushCmd struct {
	Modbus pushModbusCmd `cmd:"" help:"Over Modbus: TCP, TLS or a serial line."`
	CAN    pushCANCmd    `cmd:"" name:"can" help:"Over CAN, with UDS."`
}

func (*pushCmd) Help() string {
	return `Brings a bundle into a device over its field bus, asks for the installation, and waits until the new firmware is proven.`
}

// pushFlags are those of all buses.
type pushFlags struct {
	To        string        `required:"" placeholder:"LINE" help:"The line to the device, see above."`
	StageOnly bool          `help:"Bring the release into the device, and do not install it."`
	Precheck  bool          `help:"Only ask whether the device may be updated now. Exit code 3: it may not."`
	Status    bool          `help:"Only show what the device says."`
	Abort     bool          `help:"Take back what was pushed, also if its installation was asked for, until the device begins to change to it. Exit code 4: there is nothing to take back."`
	Trust     []string      `sep:"none" placeholder:"PUBLIC.pem" help:"Public key that the release must be signed with, checked before the transfer. Repeat for more."`
	Threshold int           `default:"1" help:"How many different keys must have signed."`
	Timeout   time.Duration `placeholder:"TIME" help:"Give up after so long, such as 45m, and leave the device to itself. Default: never."`
	Yes       bool          `help:"Occupy the bus for more than four hours, if that is what it takes."`
	JSON      bool          `name:"json" help:"Print every event as one line of JSON."`
	File      string        `arg:"" optional:"" help:"Bundle to push. Not with --status, --precheck and --abort."`
}

// pushHelp is what the help of every bus says after its own part.
const pushHelp = `A transfer that was interrupted goes on where it stopped: give the same command again. What the device has received stays there; nothing is sent twice that it acknowledged. The installation waits for the device's own gate, which nothing here forces. With --abort instead of the file it is taken back, until the device begins to change to it; with 0 it is gone, with 4 there was nothing.

Exit code 0 means that the new firmware is proven (with --stage-only: verified in the device); 3 that the battery, a window or a person does not allow it, or another master is at work; 5 that the device refuses the file; 8 that the device went back to its previous firmware, or the new one did not even start; 9 that the time given with --timeout was over before it was known.

`

// run does what the flags say, on the device that dial finds.
func (f *pushFlags) run(ctx context.Context, e *env, dial func(ctx context.Context) (push.Device, error)) error {
	only := f.Status || f.Precheck || f.Abort
	switch {
	case f.Status && f.Precheck, f.Abort && (f.Status || f.Precheck), only && f.StageOnly:
		return usage("--status, --precheck, --abort and --stage-only do not go together")
	case only && f.File != "":
		return usage("--status, --precheck and --abort take no file, got %s", f.File)
	case !only && f.File == "":
		return usage("no file is given: name the bundle to push")
	case f.Threshold < 1:
		return usage("--threshold: got %d, want at least 1", f.Threshold)
	case f.Timeout < 0:
		return usage("--timeout: got %v, want more than 0", f.Timeout)
	}
	var file *push.File
	if !only {
		var err error
		if file, err = f.open(); err != nil {
			return err
		}
		defer file.Close()
	}
	d, err := dial(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	switch {
	case f.Abort:
		return f.abort(ctx, e, d)
	case only:
		return f.ask(ctx, e, d)
	}
	return f.push(ctx, e, d, file)
}

// open opens the bundle, before anything is done on the bus.
func (f *pushFlags) open() (*push.File, error) {
	var keys *bundle.Keys
	if len(f.Trust) > 0 {
		var err error
		if keys, err = bundle.LoadKeys(f.Threshold, f.Trust...); err != nil {
			return nil, exitWith(exitFailed, err)
		}
	}
	return push.Open(f.File, keys)
}

// ask is --status and --precheck.
func (f *pushFlags) ask(ctx context.Context, e *env, d push.Device) error {
	if f.Timeout > 0 {
		inTime, cancel := context.WithTimeout(ctx, f.Timeout)
		defer cancel()
		ctx = inTime
	}
	id, err := push.Identify(ctx, d)
	if err != nil {
		return err
	}
	if f.Precheck {
		err := d.Precheck(ctx)
		if refusal, no := errors.AsType[*ota.Refusal](err); err != nil && !no {
			return err
		} else if f.JSON {
			out := precheckResult{Allowed: !no}
			if no {
				out.Reason = refusal.Reason
			}
			if printed := e.printLine(out); printed != nil {
				return printed
			}
		}
		if err == nil && !f.JSON {
			_, err = fmt.Fprintln(e.stdout, "the device may be updated now")
		}
		return hint(err, "this is the device's own rule; ask again later")
	}
	s, err := d.Status(ctx)
	if err != nil {
		return err
	}
	if f.JSON {
		return e.printLine(statusResult{id, s})
	}
	return e.list(
		[2]string{"device", id.Device},
		[2]string{"product", id.Product},
		[2]string{"speaks", id.Protocol},
		[2]string{"runs", or(s.Running, id.Running)},
		[2]string{"state", s.State.String() + when(s.Done > 0, fmt.Sprintf(", %d %%", int(100*s.Done))) + s.Going()},
		[2]string{"release", s.Version},
		[2]string{"received", when(s.Size > 0 && s.State < push.Verifying, size(s.Received)+" of "+size(s.Size))},
		[2]string{"why", or(s.Reason, when(s.Result != 0, s.Result.String()))},
	)
}

// abort is --abort.
func (f *pushFlags) abort(ctx context.Context, e *env, d push.Device) error {
	show := pushView{env: e, json: f.JSON}
	was, err := push.Withdraw(ctx, d, push.Options{Timeout: f.Timeout, Tell: show.event})
	switch {
	case err != nil && show.err != nil:
		return show.err
	case errors.Is(err, push.ErrTooLate):
		return hint(exitWith(exitFailed, err), "--status shows how it ends; once it runs, the previous firmware can be brought back: interlock device rollback, on the device")
	case errors.Is(err, push.ErrOccupied):
		return hint(err, "try again when the other one has finished; --status shows what the device does")
	case errors.Is(err, push.ErrUnfinished):
		return hint(err, "the device may have taken it back meanwhile: give the same command again")
	case err != nil || f.JSON:
		return err
	}
	what := "what it had received"
	if was.Version != "" {
		what = was.Version
	}
	_, err = fmt.Fprintf(e.stdout, "%s was taken back: %s does not install it\n", clean(what), clean(or(show.device, "the device")))
	return err
}

type precheckResult struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason,omitempty"`
}

type statusResult struct {
	Device push.Identity `json:"device"`
	push.Status
}

// push brings the file in.
func (f *pushFlags) push(ctx context.Context, e *env, d push.Device, file *push.File) error {
	m := file.Manifest
	if !f.JSON {
		e.say("%s %s, %s%s", clean(m.Product), clean(m.Version), size(file.Size),
			or(when(file.Verified, ": signatures and every byte verified"), ": whole; its signatures are for the device to check (--trust checks them here, too)"))
	}
	show := pushView{env: e, json: f.JSON, file: file}
	err := push.Run(ctx, d, file, push.Options{StageOnly: f.StageOnly, Timeout: f.Timeout, Accept: f.accept(e), Tell: show.event})
	show.end()
	switch {
	case err != nil && show.err != nil:
		return show.err
	case errors.Is(err, ota.ErrNotNow), errors.Is(err, push.ErrUnfinished):
		return hint(err, "what the device has stays there, and it goes on by itself as soon as it may; the same command watches it")
	case errors.Is(err, push.ErrOccupied):
		return hint(err, "wait until the other one has finished; --status shows what the device does")
	case errors.Is(err, context.Canceled):
		switch {
		case f.JSON:
		case show.asked:
			e.say("the device goes on by itself, and installs it as soon as it may; the same command watches it, and --abort instead of the file takes it back")
		default:
			e.say("what the device has stays there; the same command goes on with it, and --abort instead of the file takes it back")
		}
		return err
	case err != nil && show.known && refusesFile(err):
		return exitWith(exitUnverified, err)
	case err != nil || f.JSON:
		return err
	}
	done := "proven on"
	if f.StageOnly {
		done = "verified in"
	}
	_, err = fmt.Fprintf(e.stdout, "%s %s is %s %s\n", clean(m.Product), clean(m.Version), done, clean(or(show.device, "the device")))
	return err
}

// refusesFile says that another attempt with this file would not help: it is for something
// else, older than what runs, or too large. (That it is not what was signed has an exit code
// of its own, which is the same.)
func refusesFile(err error) bool {
	code := ota.CodeOf(err)
	return code == ota.ErrIncompatible || code == ota.ErrNoUpdate || code == ota.ErrInsufficientSpace
}

// accept asks for --yes if the bus would be occupied for very long.
func (f *pushFlags) accept(e *env) func(push.Plan) error {
	return func(p push.Plan) error {
		advice := p.Advice()
		if p.Time() > push.VerySlow && !f.Yes {
			return &fault{err: fmt.Errorf("push: %s, and nobody else can use it well meanwhile", p), exit: exitUsage,
				hint: advice + "; or say --yes"}
		}
		if advice != "" && !f.JSON {
			e.say("note: %s", advice)
		}
		return nil
	}
}
