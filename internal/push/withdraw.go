package push

import (
	"context"
	"errors"
	"fmt"

	"github.com/interlock-energy/ota"
)

// Errors of [Withdraw].
var (
	// ErrTooLate says that the device is already changing to the release, or has done so.
	ErrTooLate = fmt.Errorf("it is too late to take the release back: %w", ota.ErrBusy)
	// ErrNothing says that there is nothing to be taken back.
	ErrNothing = fmt.Errorf("there is nothing to take back: %w", ota.ErrNoUpdate)
)

// Withdraw takes back what d was brought over this bus, in part or whole, also after its installation was
// asked for, until the device begins to change to it. It returns what d said before. nil: the device has
// nothing of it any more. [ErrTooLate] and [ErrNothing] have changed nothing.
func Withdraw(ctx context.Context, d Device, o Options) (was Status, err error) {
	r := newRunner(d, "", o)
	r.takesBack = true
	err = r.within(ctx, func(ctx context.Context) (err error) {
		was, err = r.withdraw(ctx)
		return err
	})
	return was, err
}

// withdraw is Withdraw, without the limit of time.
func (r *runner) withdraw(ctx context.Context) (was Status, err error) {
	id, err := Identify(ctx, r.device)
	if err != nil {
		return was, err
	}
	r.tell(Event{Kind: KindIdentity, Identity: &id})
	asked, told := false, ""
	for {
		var s Status
		err := r.persist(ctx, func() (err error) {
			s, err = r.device.Status(ctx)
			return err
		})
		if err != nil {
			return was, err
		}
		r.last = s
		if key := s.key(); key != told {
			told = key
			r.tell(Event{Kind: KindState, Status: &s})
		}
		switch gone := s.State == Idle || s.State == Aborted; {
		case gone && asked: // or an answer was lost
			r.tell(Event{Kind: KindWithdrawn, Status: &was})
			return was, nil
		case s.State == Restarting, s.State == Trial, s.State.Ended() && asked:
			return was, Fail(ErrTooLate, "it is too late to take %s back: the device is %s", or(s.Version, "the release"), s)
		case gone, s.State.Ended():
			return was, Fail(ErrNothing, "there is nothing to take back: the device says: %s", s)
		}
		if !asked {
			was, asked = s, true
		}
		if err := r.device.Abort(ctx); err != nil && !errors.Is(err, ErrLine) {
			return was, err
		}
		if err := Wait(ctx, firstPause); err != nil {
			return was, err
		}
	}
}
