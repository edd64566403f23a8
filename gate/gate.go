// Package gate combines gates: functions that decide whether now is safe for an
// update. It is for device builders who have more than one condition, or who
// want a condition to hold for some time before anything moves.
//
// A device with a battery starts with
//
//	safe := gate.All(
//		gate.Dwell(30*time.Second, 5*time.Second, gate.Timeout(time.Second, battery.Gate)),
//		nights,
//	)
//
// where battery is a guard of package bms and nights comes from [Window]. A
// device without a battery says so with [NoBattery].
//
// What is promised: a gate of this package never says yes because something
// went wrong. A gate that is missing, panics, blocks, or returns an error of any
// kind has said no, and every no is a [*ota.Refusal] with a reason for people.
package gate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
)

// All returns a gate that says yes only if every one of gates does. All of them
// are asked every time, in order, so that the refusal names every reason and
// carries every signal. Without gates, All always refuses.
//
// When all refusals say when they are over by themselves, the last of them says it for all.
// Refusals that are not about the battery do not change the code. Of the others,
// the code is [ota.ErrBatteryLow] if that is the only thing wrong with the
// battery, otherwise [ota.ErrBMSUnsafe].
func All(gates ...ota.Gate) ota.Gate {
	gates = append([]ota.Gate(nil), gates...) // the caller may reuse its slice
	return func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
		if len(gates) == 0 {
			return unsafe("no gate is configured; a device without a battery needs gate.NoBattery")
		}
		var refusals []*ota.Refusal
		for _, g := range gates {
			if r := ask(ctx, g, m, at); r != nil {
				refusals = append(refusals, r)
			}
		}
		switch len(refusals) {
		case 0:
			return nil
		case 1:
			return refusals[0]
		}
		return combine(refusals)
	}
}

func combine(refusals []*ota.Refusal) *ota.Refusal {
	sum := &ota.Refusal{Ready: refusals[0].Ready}
	var reasons []string
	for _, r := range refusals {
		reasons = append(reasons, r.Reason)
		switch { // the last one decides, and one of which that is not known may be it
		case r.Ready.IsZero() || sum.Ready.IsZero():
			sum.Ready = time.Time{}
		case r.Ready.After(sum.Ready):
			sum.Ready = r.Ready
		}
		sum.Signals = append(sum.Signals, r.Signals...)
		for _, c := range r.Causes {
			if !slices.Contains(sum.Causes, c) {
				sum.Causes = append(sum.Causes, c)
			}
		}
		switch {
		case r.Code == ota.ErrNone:
		case r.Code == ota.ErrBatteryLow && sum.Code != ota.ErrBMSUnsafe:
			sum.Code = ota.ErrBatteryLow
		default:
			sum.Code = ota.ErrBMSUnsafe
		}
	}
	sum.Reason = strings.Join(reasons, "; ")
	return sum
}

// Deny returns a gate that always refuses, with this reason: for a device that
// is taken out of all updates by configuration. The code is [ota.ErrNone].
func Deny(reason string) ota.Gate {
	return func(context.Context, *ota.Manifest, ota.Moment) error {
		return &ota.Refusal{Reason: reason}
	}
}

// NoBattery is the gate of a device that has no battery: it says yes. A release
// that sets limits on the battery is refused with [ota.ErrBMSUnsafe], because a
// signed condition that cannot be checked does not hold.
func NoBattery(_ context.Context, m *ota.Manifest, _ ota.Moment) error {
	if m != nil && m.Limits != (ota.Limits{}) {
		return unsafe("release %s sets limits on the battery, and this device is configured without one", m.Version)
	}
	return nil
}

// ask asks g and turns everything that is not a clear yes into a refusal.
func ask(ctx context.Context, g ota.Gate, m *ota.Manifest, at ota.Moment) (r *ota.Refusal) {
	if g == nil {
		return unsafe("a gate is configured but missing")
	}
	defer func() {
		if p := recover(); p != nil {
			r = unsafe("a gate panicked: %v", p)
		}
	}()
	return refusal(g(ctx, m, at))
}

// refusal returns err as a refusal, nil for nil.
func refusal(err error) *ota.Refusal {
	if err == nil {
		return nil
	}
	if r, ok := err.(*ota.Refusal); ok {
		if r == nil { // an error that is not nil, around a pointer that is
			return unsafe("a gate refused without saying why")
		}
		return r
	}
	// Something around one refusal or several: the text says it all, and the
	// signals are worth keeping. A code it does not have is not made up.
	out := unsafe("%s", strings.TrimPrefix(err.Error(), ota.ErrNotNow.Error()+": "))
	if r, ok := errors.AsType[*ota.Refusal](err); ok && r != nil {
		out.Signals = r.Signals
		if !errors.Is(err, ota.ErrBMSUnsafe) {
			out.Code = r.Code
		}
	}
	return out
}

func unsafe(format string, a ...any) *ota.Refusal {
	return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: fmt.Sprintf(format, a...)}
}
