package overcan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/can/profile"
)

// Pauses between two attempts: what stumbled is back at once, a restart takes a minute.
const (
	firstPause = 250 * time.Millisecond
	longPause  = 5 * time.Second
	// mostRefusals is how often in a row the device may give a negative answer that
	// another attempt could mend. With the pauses it is longer than its session timeout
	// (S3, 5 s) and the delay after wrong keys (10 s).
	mostRefusals = 7
)

// Send implements [push.Device].
func (d *Device) Send(ctx context.Context, f *push.File, tell push.Tell) error {
	if f.Size > 1<<32-1 {
		return push.Fail(ota.ErrIncompatible, "the bundle has %d bytes, and CAN takes %d at most", f.Size, uint32(1<<32-1))
	}
	t := &transfer{Device: d, file: f, tell: tell, want: profile.Transfer{Size: uint32(f.Size), SHA256: f.SHA256}}
	return d.persist(ctx, tell, func() (bool, error) {
		before := t.done
		err := t.attempt(ctx)
		return t.done > before, err
	})
}

// persist makes attempts until one succeeds, or fails for good. The pauses between them
// become longer while nobody answers.
func (d *Device) persist(ctx context.Context, tell push.Tell, attempt func() (progress bool, err error)) error {
	pause, refusals := firstPause, 0
	for {
		heard := d.heard
		progress, err := attempt()
		if err == nil {
			tell.Stuck(nil)
			return nil
		}
		if progress {
			pause, refusals = firstPause, 0
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errSmaller):
			continue
		case errors.Is(err, push.ErrLine):
			if d.heard != heard {
				pause = firstPause
			}
		case mends(err) && refusals < mostRefusals:
			refusals++
		default:
			return err
		}
		tell.Stuck(err)
		if err := push.Wait(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, longPause)
	}
}

// mends says that it may help to begin again with the session: it was lost, the device
// has restarted, or somebody else has it for a moment.
func mends(err error) bool {
	switch code(err) {
	case uds.BusyRepeatRequest, uds.ResourceTemporarilyNotAvailable, uds.RequiredTimeDelayNotExpired,
		uds.RequestSequenceError, uds.WrongBlockSequenceCounter, uds.TransferDataSuspended,
		uds.SubFunctionNotSupportedInSession, uds.ServiceNotSupportedInSession,
		uds.SecurityAccessDenied, uds.AuthenticationRequired, uds.GeneralReject:
		return true
	}
	return errors.Is(err, push.ErrOccupied) || errors.Is(err, errSession) || errors.Is(err, errAgain)
}

// What another attempt mends, although the device's answer does not show it.
var (
	errSession = errors.New("the session is no longer open")
	errAgain   = errors.New("what the device has is not what it should have")
)

// transfer is a file on its way.
type transfer struct {
	*Device
	file *push.File
	tell push.Tell
	want profile.Transfer
	done int64 // bytes that the device has
}

// attempt goes from wherever the device is to a verified file.
func (t *transfer) attempt(ctx context.Context) (err error) {
	defer func() {
		if code(err) != 0 { // the session may not be what we think
			t.outside()
		}
	}()
	if err := t.fits(ctx); err != nil {
		return err
	}
	if !t.inside || !t.announced { // otherwise only a block did not get through
		further, err := t.further(ctx)
		if err != nil || further {
			return err
		}
	}
	if err := t.program(ctx); err != nil {
		return err
	}
	next, err := t.announce(ctx)
	if err != nil {
		return err
	}
	t.tell.Stuck(nil)
	t.tell.Done(next)
	t.done = max(t.done, next)
	if next < t.file.Size {
		if err := t.blocks(ctx, next); err != nil {
			return err
		}
	}
	return t.verify(ctx)
}

// fits says whether the device takes such a file at all.
func (t *transfer) fits(ctx context.Context) error {
	if err := t.identified(ctx); err != nil {
		return err
	}
	switch id := t.identity; {
	case t.file.Size > int64(id.MaxBytes):
		return push.Fail(ota.ErrInsufficientSpace, "the bundle has %d bytes, and the device takes %d at most", t.file.Size, id.MaxBytes)
	case id.Caps&profile.CapAnnounce == 0:
		return push.Fail(ota.ErrIncompatible, "the device cannot be told which file comes, so nothing could go on after a broken line")
	}
	return nil
}

// further says whether the device has verified this file already, or is installing it.
func (t *transfer) further(ctx context.Context) (bool, error) {
	is, err := t.has(ctx)
	if err != nil || !is {
		return false, err
	}
	state, _, err := t.state(ctx)
	if err != nil {
		return false, err
	}
	switch state {
	case profile.Verified, profile.WaitSafe, profile.Installing, profile.RebootPending, profile.Trial:
		return true, nil
	case profile.Confirmed: // unless it went back since
		running, err := t.text(ctx, profile.DIDVersion)
		return running == t.file.Manifest.Version, err
	}
	return false, nil
}

// has says whether it is this file that the device has, or has a part of.
func (t *transfer) has(ctx context.Context) (bool, error) {
	b, err := t.read(ctx, profile.DIDTransfer)
	if notThere(err) || err == nil && len(b) == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	is, err := profile.ParseTransfer(b)
	return is == t.want, err
}

// announce says which file comes, and asks where it goes on.
func (t *transfer) announce(ctx context.Context) (next int64, err error) {
	if !t.announced {
		if err := t.offer(ctx); err != nil {
			return 0, err
		}
	}
	p, err := t.progress(ctx)
	if err != nil {
		return 0, err
	}
	if p.Total == t.want.Size && p.Next < p.Total {
		return int64(p.Next), nil
	}
	state, _, err := t.state(ctx)
	if err != nil {
		return 0, err
	}
	switch state {
	case profile.Received, profile.Verifying, profile.Verified:
		return int64(p.Next), nil
	}
	return 0, fmt.Errorf("%w: it misses nothing of %d bytes, and is %v", errAgain, p.Total, push.State(state))
}

// offer says which file comes. Said again it changes nothing.
func (t *transfer) offer(ctx context.Context) error {
	err := t.insist(ctx, "announce the bundle", func(c *uds.Client) error {
		return c.WriteData(ctx, profile.DIDTransfer, t.want.Append(nil))
	})
	t.announced = err == nil
	return t.told(ctx, err)
}

// blocks sends what is missing, from next on.
func (t *transfer) blocks(ctx context.Context, next int64) error {
	most := 0
	err := t.insist(ctx, fmt.Sprintf("go on from byte %d", next), func(c *uds.Client) (err error) {
		most, err = c.RequestDownload(ctx, uds.DownloadRequest{Address: uint64(next), Size: uint64(t.file.Size - next), AddressBytes: 4, SizeBytes: 4})
		return err
	})
	if err != nil {
		return t.told(ctx, err)
	}
	counter := byte(1)
	for buf := make([]byte, t.payload()); next < t.file.Size; counter++ {
		n := int(min(int64(t.sized(most)), t.file.Size-next))
		if _, err := t.file.ReadAt(buf[:n], next); err != nil {
			return fmt.Errorf("read %s: %w", t.file.Name, unexpected(err))
		}
		if err := t.one(ctx, counter, buf[:n], next); err != nil {
			return t.told(ctx, err)
		}
		next += int64(n)
		t.done = max(t.done, next)
		t.tell.Done(next)
	}
	err = t.ask(ctx, "end the transfer", func(c *uds.Client) error {
		_, err := c.TransferExit(ctx, nil)
		return err
	})
	if code(err) != 0 {
		// A chunk that is not what was signed is thrown away, and asked for again.
		if p, err := t.progress(ctx); err != nil || p.Total == t.want.Size && p.Next < p.Total {
			return errors.Join(errAgain, err)
		}
	}
	return t.told(ctx, err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// verify waits until the device has compared all of it with what was signed.
func (t *transfer) verify(ctx context.Context) error {
	for _, r := range []struct {
		rid    uds.RID
		option []byte
	}{{profile.RIDCheckMemory, t.want.SHA256[:]}, {profile.RIDDependencies, nil}} {
		status, err := t.start(ctx, r.rid, r.option)
		if err != nil {
			return t.told(ctx, err)
		}
		if len(status) == 0 || status[0] != profile.RoutineDone {
			return t.failed(ctx, nil)
		}
	}
	return nil
}

// told is err with the device's own words, if it has any for a negative answer that no
// other attempt mends.
func (d *Device) told(ctx context.Context, err error) error {
	if code(err) == 0 || mends(err) {
		return err
	}
	// A session that has ended is not always called that: a routine is out of range then.
	b, readErr := d.read(ctx, profile.DIDSession)
	if readErr != nil && !notThere(readErr) {
		return readErr
	}
	if len(b) == 1 && uds.Session(b[0]) != uds.Programming {
		return fmt.Errorf("%w: %w", errSession, err)
	}
	return d.failed(ctx, err)
}

// failed is why the device does not take the file.
func (d *Device) failed(ctx context.Context, negative error) error {
	state, result, err := d.state(ctx)
	if err != nil {
		return err
	}
	reason, err := d.text(ctx, profile.DIDReason)
	if err != nil {
		return err
	}
	if reason == "" && result != profile.OK {
		reason = push.Result(result).String()
	}
	switch {
	case code(negative) == uds.ConditionsNotCorrect && state >= profile.WaitSafe && state <= profile.Trial:
		return fmt.Errorf("%w: it is %v: %w", push.ErrOccupied, push.State(state), negative)
	case result == profile.Busy:
		return fmt.Errorf("%w: %s", push.ErrOccupied, reason)
	case result != profile.OK:
		return push.Fail(push.Result(result).Code(), "the device does not take the bundle: %s", reason)
	case negative != nil:
		return fmt.Errorf("the device does not take the bundle: %w%s", negative, brackets(reason))
	}
	return push.Fail(ota.ErrValidation, "the device does not take the bundle, and does not say why: it is %v%s", push.State(state), brackets(reason))
}

func brackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// Install implements [push.Device].
func (d *Device) Install(ctx context.Context) error {
	return persistShort(ctx, func() error {
		err := d.install(ctx)
		if code(err) != 0 {
			d.outside()
		}
		return err
	})
}

func (d *Device) install(ctx context.Context) error {
	if err := d.identified(ctx); err != nil {
		return err
	}
	if state, _, err := d.state(ctx); err != nil || asked(state) { // already: an answer was lost, or it is done
		return errors.Join(err, d.leave(ctx))
	}
	if err := d.program(ctx); err != nil {
		return err
	}
	if _, err := d.start(ctx, profile.RIDInstall, nil); err != nil {
		if mends(err) || errors.Is(err, push.ErrLine) {
			return err
		}
		state, _, again := d.state(ctx)
		if again != nil {
			return again
		}
		if !asked(state) {
			return d.told(ctx, err)
		}
	}
	return d.leave(ctx)
}

// asked says that the installation was asked for, and has not failed.
func asked(s profile.State) bool { return s >= profile.WaitSafe && s <= profile.Confirmed }

// persistShort makes a few attempts at what the line lets through but the device does
// not yet. Trouble with the line is for the caller to wait out.
func persistShort(ctx context.Context, attempt func() error) error {
	pause := firstPause
	for refusals := 0; ; refusals++ {
		err := attempt()
		if err == nil || !mends(err) || errors.Is(err, push.ErrLine) || refusals == mostRefusals {
			return err
		}
		if err := push.Wait(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, longPause)
	}
}
