package overmodbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// Abort implements [push.Device]. The session is that of the transfer which the device says that it has,
// whoever began it; for as long as another master has that, it is waited for.
func (d *Device) Abort(ctx context.Context) error {
	var busySince time.Time
	for {
		err := d.abort(ctx)
		r, refused := errors.AsType[*Refused](err)
		if !refused || r.Exception != modbus.DeviceBusy {
			return err
		}
		s, statusErr := d.Status(ctx)
		if statusErr != nil {
			return statusErr
		}
		if s.State >= push.Restarting || s.State == push.Idle {
			return nil // the state says how it stands
		}
		now := time.Now()
		if busySince.IsZero() {
			busySince = now
		}
		if now.Sub(busySince) > time.Duration(d.id.IdleTimeout)*time.Second+30*time.Second {
			return fmt.Errorf("%w (it is %s)", err, s)
		}
		if err := push.Wait(ctx, min(max(r.RetryAfter, pollFast), pollSlow)); err != nil {
			return err
		}
	}
}

// abort gives ABORT once, and waits for what comes of it.
func (d *Device) abort(ctx context.Context) error {
	registers, err := d.read(ctx, profile.OffsetOffer, profile.OfferSize)
	if err != nil {
		return fmt.Errorf("read what is there: %w", err)
	}
	there, err := profile.DecodeOffer(registers)
	if err != nil {
		return err
	}
	if there.Size == 0 {
		s, err := d.status(ctx)
		if err != nil || s.State == profile.Idle || s.State == profile.Aborted {
			return err // it is gone
		}
		return push.Fail(ota.ErrIncompatible, "the device does not say what it has, which an older agent cannot; a master that knows the file sends RESUME and ABORT")
	}
	d.offer = profile.Command{Size: there.Size, Format: there.Format, SHA256: there.SHA256}
	if _, err := d.begin(ctx, profile.Resume); err != nil {
		return err
	}
	if err := d.command(ctx, &profile.Command{Code: profile.Abort, Session: d.session}); err != nil {
		return err
	}
	for {
		s, err := d.status(ctx)
		switch {
		case err != nil:
			return err
		case s.Seq == 0: // it has forgotten all sessions
			return fmt.Errorf("%v: %w: the device has restarted", profile.Abort, push.ErrLine)
		case s.Seq != d.seq:
			return fmt.Errorf("%v: %w: another master gave a command meanwhile", profile.Abort, push.ErrOccupied)
		case s.Result == profile.OK:
			return nil
		case s.Result != profile.Busy:
			return d.notTakenBack(ctx, &s)
		}
		if err := push.Wait(ctx, pollFast); err != nil {
			return err
		}
	}
}

// notTakenBack says in the device's words why not.
func (d *Device) notTakenBack(ctx context.Context, s *profile.Status) error {
	display, err := d.display(ctx)
	if err != nil {
		return err
	}
	why := display.Reason
	if why == "" {
		why = s.Result.String()
	}
	kind := error(push.Result(s.Result).Code())
	if s.Result == profile.BadParameter {
		kind = push.ErrTooLate
	}
	return push.Fail(kind, "the device did not take the release back: %s", why)
}
