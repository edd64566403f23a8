package can

import (
	"errors"
	"slices"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/can/profile"
)

// view is what a tester is told about the update that it has brought.
type view struct {
	state  profile.State
	result profile.Result
	reason string
	safety profile.Safety
}

// look derives it from the transfer and from what the device says about itself. Only a
// report of this very release proves that it ended; what the manager does meanwhile
// counts only if it is about this release.
func look(b inbox.State, head api.CheckinRequest) view {
	switch b.Phase {
	case inbox.Opening:
		return failing(profile.Opening, b.Err)
	case inbox.Receiving:
		return failing(profile.Receiving, b.Err)
	case inbox.Received:
		return failing(profile.Received, b.Err)
	case inbox.Verifying:
		return failing(profile.Verifying, b.Err)
	case inbox.Verified:
		return view{state: profile.Verified}
	case inbox.Requested:
		return installing(b.Digest, head)
	case inbox.Ended:
		return ended(b.Outcome)
	case inbox.Failed:
		v := failing(profile.Failed, b.Err)
		if v.result == profile.BadHash && b.Version == "" { // the envelope did not hold
			v.result = profile.BadSignature
		}
		return v
	}
	return view{state: profile.Idle}
}

func failing(s profile.State, err error) view {
	v := view{state: s}
	if err != nil {
		v.result, v.reason = result(err), err.Error()
	}
	return v
}

// installing is for a release that the manager was asked to install.
func installing(digest string, head api.CheckinRequest) view {
	v := view{state: profile.Installing, reason: head.Reason, safety: safety(head.Causes)}
	if head.Code != ota.ErrNone {
		v.result = result(head.Code)
	}
	if v.result == profile.InternalTrouble || head.Code == ota.ErrBMSUnsafe {
		v.result = cause(v.safety, v.result)
	}
	if head.UpdateDigest != digest {
		return elsewhere(digest, head)
	}
	switch head.Status {
	case ota.StatusIdle, ota.StatusChecking, ota.StatusUpdateAvailable, ota.StatusReadyToApply:
		v.state = profile.WaitSafe
	case ota.StatusRebooting:
		v.state = profile.RebootPending
	case ota.StatusTrial, ota.StatusComplete:
		v.state = profile.Trial // proven is what was reported
	case ota.StatusRollingBack:
		v.state, v.result = profile.Trial, profile.Unhealthy
	case ota.StatusFailed:
		v.state = profile.Failed
	case ota.StatusAborted:
		v.state = profile.Aborted
	}
	return v
}

// elsewhere is for a release that the manager does not have in hand.
func elsewhere(digest string, head api.CheckinRequest) view {
	if i := slices.IndexFunc(head.Skipped, func(s ota.Skipped) bool { return s.Digest == digest }); i >= 0 {
		return view{state: profile.Failed, result: profile.Incompatible, reason: "not taken again: " + head.Skipped[i].Reason}
	}
	if head.UpdateDigest != "" {
		return view{state: profile.WaitSafe, result: profile.Busy, reason: "another release is being installed: " + head.UpdateVersion}
	}
	if head.Digest == digest {
		return view{state: profile.Trial, reason: "it runs; how it ended is not reported yet"}
	}
	return view{state: profile.WaitSafe, reason: "the update manager has not taken it up yet"}
}

func ended(r *ota.Report) view {
	if r == nil {
		return view{state: profile.Failed, result: profile.InternalTrouble, reason: "how it ended was not written down"}
	}
	v := view{reason: r.Reason}
	if r.Code != ota.ErrNone {
		v.result = result(r.Code)
	}
	switch r.Result {
	case ota.Succeeded:
		return view{state: profile.Confirmed, reason: r.Reason}
	case ota.RolledBack, ota.Lost:
		v.state, v.result = profile.RolledBack, profile.WasRolledBack
	case ota.Aborted:
		v.state = profile.Aborted
	default:
		v.state = profile.Failed
		if v.result == profile.OK {
			v.result = profile.InternalTrouble
		}
	}
	return v
}

// result is what a tester is told about an error.
func result(err error) profile.Result {
	switch {
	case errors.Is(err, inbox.ErrBusy), errors.Is(err, ota.ErrBusy):
		return profile.Busy
	case errors.Is(err, inbox.ErrNone):
		return profile.NoTransfer
	case errors.Is(err, inbox.ErrMissing), errors.Is(err, inbox.ErrPhase), errors.Is(err, inbox.ErrRange),
		errors.Is(err, inbox.ErrConflict), errors.Is(err, inbox.ErrEarly):
		return profile.BadParameter
	}
	switch ota.CodeOf(err) {
	case ota.ErrNone, ota.ErrNoUpdate:
		return profile.OK
	case ota.ErrAuthentication:
		return profile.NotAllowed
	case ota.ErrInsufficientSpace:
		return profile.NoSpace
	case ota.ErrValidation:
		return profile.BadHash
	case ota.ErrFlashWrite:
		return profile.Storage
	case ota.ErrIncompatible:
		return profile.Incompatible
	case ota.ErrBatteryLow:
		return profile.SoC
	case ota.ErrBMSUnsafe:
		if refusal, ok := errors.AsType[*ota.Refusal](err); ok {
			return cause(safety(refusal.Causes), profile.InternalTrouble)
		}
		return profile.Stale // the battery is not known to be safe
	}
	if errors.Is(err, ota.ErrNotNow) {
		return profile.NotNow
	}
	return profile.InternalTrouble
}

var safetyBits = map[ota.Cause]profile.Safety{
	ota.CauseSoCLow: profile.SoCLow, ota.CauseSoCHigh: profile.SoCHigh,
	ota.CauseTemperatureLow: profile.TemperatureLow, ota.CauseTemperatureHigh: profile.TemperatureHigh,
	ota.CauseCurrent: profile.CurrentHigh, ota.CauseCellDelta: profile.CellDelta, ota.CauseStale: profile.StaleData,
	ota.CauseDisagreement: profile.Disagreement, ota.CauseAlarm: profile.Alarms, ota.CauseMode: profile.NotStandby,
	ota.CauseContactors: profile.Contactors, ota.CauseWindow: profile.Dispatch,
}

// safety turns causes into bits. What has none of its own is "other": cells too low or
// too high, a battery that has not been well for long enough.
func safety(causes []ota.Cause) profile.Safety {
	var s profile.Safety
	for _, c := range causes {
		bit, ok := safetyBits[c]
		if !ok {
			bit = profile.Other
		}
		s |= bit
	}
	return s
}

// cause picks the number that says most about the bits: what is dangerous before what
// waits.
func cause(s profile.Safety, otherwise profile.Result) profile.Result {
	for _, c := range []struct {
		bits   profile.Safety
		result profile.Result
	}{
		{profile.Alarms, profile.Alarm},
		{profile.StaleData | profile.Disagreement, profile.Stale},
		{profile.TemperatureLow | profile.TemperatureHigh, profile.Temperature},
		{profile.CurrentHigh, profile.Current},
		{profile.SoCLow | profile.SoCHigh, profile.SoC},
		{profile.NotStandby | profile.Contactors, profile.Mode},
		{profile.CellDelta | profile.Dispatch | profile.Consent | profile.Custom | profile.Other, profile.NotNow},
		{profile.UPS, profile.Power},
	} {
		if s&c.bits != 0 {
			return c.result
		}
	}
	return otherwise
}

// refused is the code for a tester who asks for what the gate does not allow. The exact
// ones only where nothing else is wrong, so that nobody waits for a temperature that is
// not what keeps the update from happening.
func refused(err error) uds.NRC {
	refusal, ok := errors.AsType[*ota.Refusal](err)
	if !ok || len(refusal.Causes) != 1 {
		return uds.ConditionsNotCorrect
	}
	switch refusal.Causes[0] {
	case ota.CauseTemperatureHigh:
		return uds.TemperatureTooHigh
	case ota.CauseTemperatureLow:
		return uds.TemperatureTooLow
	case ota.CauseCellHigh:
		return uds.VoltageTooHigh
	case ota.CauseCellLow:
		return uds.VoltageTooLow
	}
	return uds.ConditionsNotCorrect
}
