package overcan

import (
	"context"
	"errors"

	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/can/profile"
)

// Abort implements [push.Device].
func (d *Device) Abort(ctx context.Context) error {
	return persistShort(ctx, func() error {
		err := d.abort(ctx)
		if code(err) != 0 {
			d.outside()
		}
		return err
	})
}

func (d *Device) abort(ctx context.Context) error {
	if err := d.identified(ctx); err != nil {
		return err
	}
	if err := d.program(ctx); err != nil {
		return err
	}
	_, err := d.start(ctx, profile.RIDAbort, nil)
	if n := code(err); n == uds.ConditionsNotCorrect || n == uds.GeneralProgrammingFailure {
		err = d.notTakenBack(ctx)
	}
	if err != nil && (mends(err) || errors.Is(err, push.ErrLine)) {
		return err
	}
	return errors.Join(err, d.leave(ctx))
}

// notTakenBack says in the device's words why not.
func (d *Device) notTakenBack(ctx context.Context) error {
	_, result, err := d.state(ctx)
	if err != nil {
		return err
	}
	reason, err := d.text(ctx, profile.DIDReason)
	if err != nil {
		return err
	}
	if reason == "" {
		reason = push.Result(result).String()
	}
	kind := error(push.Result(result).Code())
	if result == profile.Busy {
		kind = push.ErrTooLate
	}
	return push.Fail(kind, "the device did not take the release back: %s", reason)
}
