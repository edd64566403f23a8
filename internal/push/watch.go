package push

import (
	"context"
	"fmt"
	"strings"

	"github.com/interlock-energy/ota"
)

// watch is Watch, without the limit of time.
func (r *runner) watch(ctx context.Context) error {
	told := ""
	for {
		var s Status
		err := r.persist(ctx, func() (err error) {
			s, err = r.device.Status(ctx)
			return err
		})
		if err != nil {
			return err
		}
		before := r.last
		r.last = s
		if key := s.key(); key != told {
			told = key
			r.tell(Event{Kind: KindState, Status: &s})
		} else if s != before {
			r.tell(Event{Kind: KindNumbers, Status: &s})
		}
		if ended, err := r.ended(&s); ended {
			return err
		}
		if err := Wait(ctx, r.Poll); err != nil {
			return err
		}
	}
}

// key changes whenever more than a number does: a dwell time counts its seconds.
func (s *Status) key() string {
	return fmt.Sprint(s.State, s.Result, s.Version, strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r == '.' {
			return -1
		}
		return r
	}, s.Reason))
}

// ended says whether it is known how the update ends, and how.
func (r *runner) ended(s *Status) (bool, error) {
	if r.version != "" && s.Version != "" && s.Version != r.version && s.State != Idle {
		return true, fmt.Errorf("%w: it has %s in hand, and not %s: somebody else began that", ErrOccupied, s.Version, r.version)
	}
	switch s.State {
	case Confirmed:
		return true, nil
	case RolledBack, Failed, Aborted:
		return true, s.Err()
	case Idle, Opening, Receiving:
		return true, Fail(ota.ErrLost, "the device no longer has the whole release: it is %s, and runs %s; push it again", s, or(s.Running, "what it does not say"))
	}
	return false, nil
}

// Err is the error of a status that has ended badly; nil for all others.
func (s *Status) Err() error {
	why := or(s.why(), "it does not say why")
	switch s.State {
	case RolledBack:
		return fmt.Errorf("%w, %s: %s", ErrRolledBack, or(s.Running, "of which it does not say the version"), why)
	case Failed:
		return Fail(s.Result.Code(), "the device refused the release or could not install it: %s", why)
	case Aborted:
		if why == ota.ErrAborted.Error() {
			return ota.ErrAborted
		}
		return fmt.Errorf("%w: %s", ota.ErrAborted, why)
	}
	return nil
}

// Refusal is what a device that waits, or was asked whether it would, says: the gate's no.
func (s *Status) Refusal() *ota.Refusal {
	code := s.Result.Code()
	if code != ota.ErrBatteryLow && code != ota.ErrBMSUnsafe {
		code = ota.ErrNone
	}
	return &ota.Refusal{Code: code, Reason: or(s.why(), "the device does not say why")}
}

// failure is an error with a kind that its text says better.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

// Fail returns an error that wraps kind, but does not say its text.
func Fail(kind error, format string, a ...any) error {
	return &failure{text: fmt.Sprintf(format, a...), err: kind}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
