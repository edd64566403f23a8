package modbus

import (
	"errors"
	"slices"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// update is the part of the status that follows from how far the transfer and the
// manager are.
type update struct {
	profile.Status
	reason string // for people
}

// derive says how the update stands. aborted says that a master has given the last
// transfer up.
//
// Until INSTALL the inbox knows; from then on the manager does, as far as it has this
// release in hand, and in the end the outcome that it has reported. Whatever another
// source brings does not show here, but in the display.
func derive(st inbox.State, device api.CheckinRequest, aborted bool) update {
	var u update
	switch st.Phase {
	case inbox.Opening:
		u.State, u.Progress = profile.Opening, perMille(st.Received, st.Until)
	case inbox.Receiving:
		u.State, u.Progress = profile.Receiving, perMille(st.Received, st.Offer.Size)
	case inbox.Received:
		u.State, u.Progress = profile.Received, 1000
	case inbox.Verifying:
		u.State, u.Progress = profile.Verifying, perMille(st.Verified, st.Offer.Size)
	case inbox.Verified:
		u.State, u.Progress = profile.Verified, 1000
	case inbox.Requested:
		u.requested(st, device)
		return u
	case inbox.Ended:
		u.ended(st.Outcome)
		return u
	case inbox.Failed:
		u.State = profile.Failed
	default:
		if aborted {
			u.State = profile.Aborted
		}
		u.reason = device.Reason
	}
	if st.Err != nil {
		u.Result, u.reason = failure(st, device), st.Err.Error()
	}
	return u
}

// requested says what the manager does with the release.
func (u *update) requested(st inbox.State, device api.CheckinRequest) {
	u.State, u.reason = profile.WaitSafe, device.Reason
	if i := slices.IndexFunc(device.Skipped, func(s ota.Skipped) bool { return s.Digest == st.Digest }); i >= 0 && device.UpdateDigest != st.Digest {
		u.State, u.Result, u.reason = profile.Failed, profile.Incompatible, "not taken again: "+device.Skipped[i].Reason
		return
	}
	w := because(device.Code, device.Causes, device.Reason)
	u.Result, u.Safety, u.Reasons = w.result, w.safety, w.reasons
	switch {
	case device.UpdateDigest != "" && device.UpdateDigest != st.Digest:
		u.Result, u.Safety, u.Reasons = profile.Busy, 0, 0
		u.reason = "another update is under way"
		return
	case device.UpdateDigest == "" && device.Digest == st.Digest:
		u.State, u.Result = profile.Trial, profile.OK // it has ended, and the report is still to come
		return
	case device.UpdateDigest == "":
		return // the manager has not looked yet, or says why it does not
	}
	u.Written, u.Progress = uint32(min(device.Done, 1<<32-1)), perMille(device.Done, device.Total)
	switch device.Status {
	case ota.StatusDownloading, ota.StatusVerifying, ota.StatusApplying:
		u.State = profile.Installing
	case ota.StatusRebooting:
		u.State = profile.RebootPending
	case ota.StatusTrial:
		u.State = profile.Trial
	case ota.StatusComplete:
		u.State, u.Result = profile.Trial, profile.OK // until the outcome is reported
	case ota.StatusRollingBack:
		u.State, u.Result = profile.RebootPending, profile.WentBack
	case ota.StatusFailed:
		// The attempt went wrong, and the manager tries again or is about to report.
		u.State = profile.Installing
	}
}

// ended says how the update has ended. Only what was proven is confirmed.
func (u *update) ended(r *ota.Report) {
	if r == nil {
		u.State, u.Result, u.reason = profile.Failed, profile.Internal, "how it ended is not known"
		return
	}
	u.reason = r.Reason
	switch r.Result {
	case ota.Succeeded:
		u.State, u.Progress = profile.Confirmed, 1000
	case ota.RolledBack:
		u.State, u.Result = profile.RolledBack, profile.WentBack
	case ota.Lost:
		u.State, u.Result = profile.RolledBack, profile.Internal
	case ota.Aborted:
		u.State = profile.Aborted
	default:
		u.State, u.Result = profile.Failed, because(r.Code, nil, r.Reason).result
		if u.Result == profile.OK {
			u.Result = profile.Internal
		}
	}
}

// failure says why the inbox does not go on.
func failure(st inbox.State, device api.CheckinRequest) profile.Result {
	switch code := ota.CodeOf(st.Err); code {
	case ota.ErrValidation:
		if st.Version == "" {
			return profile.BadSignature
		}
		return profile.BadHash
	case ota.ErrIncompatible, ota.ErrNoUpdate:
		if st.Version != "" && device.Version != "" && ota.CompareVersions(st.Version, device.Version) < 0 {
			return profile.TooOld
		}
		return profile.Incompatible
	default:
		return because(code, nil, "").result
	}
}

// reasons are why something does not happen.
type reasons struct {
	result  profile.Result
	safety  profile.Safety
	reasons uint16
	text    string
}

// causes of a gate, by their weight: the first that is there becomes the result.
var causes = []struct {
	cause  ota.Cause
	bit    profile.Safety
	result profile.Result
}{
	{ota.CauseAlarm, profile.Alarms, profile.Alarm},
	{ota.CauseStale, profile.Stale, profile.StaleData},
	{ota.CauseDisagreement, profile.Disagreement, profile.StaleData},
	{ota.CauseTemperatureLow, profile.TemperatureLow, profile.Temperature},
	{ota.CauseTemperatureHigh, profile.TemperatureHigh, profile.Temperature},
	{ota.CauseContactors, profile.Contactor, profile.Mode},
	{ota.CauseMode, profile.NotStandby, profile.Mode},
	{ota.CauseCurrent, profile.CurrentHigh, profile.Current},
	{ota.CauseSoCLow, profile.ChargeLow, profile.LowCharge},
	{ota.CauseSoCHigh, profile.ChargeHigh, profile.LowCharge},
	{ota.CauseCellDelta, profile.CellDelta, profile.Internal},
	{ota.CauseCellLow, profile.Other, profile.Internal},
	{ota.CauseCellHigh, profile.Other, profile.Internal},
	{ota.CauseOther, profile.Other, profile.Internal},
	{ota.CauseWindow, profile.Dispatch, profile.NoWindow},
	{ota.CauseDwell, profile.Other, profile.Busy}, // all is well: it only has to last
}

// why explains an error of the gate or of a command.
func why(err error) reasons {
	if err == nil {
		return reasons{}
	}
	if errors.Is(err, ota.ErrBusy) {
		return reasons{result: profile.Busy, text: err.Error()}
	}
	if refusal, ok := errors.AsType[*ota.Refusal](err); ok {
		return gate(refusal.Code, refusal.Causes, refusal.Reason)
	}
	if errors.Is(err, ota.ErrNotNow) {
		return gate(ota.CodeOf(err), nil, err.Error())
	}
	w := because(ota.CodeOf(err), nil, err.Error())
	if w.result == profile.OK {
		w.result = profile.Internal
	}
	return w
}

// because explains a code with which the manager waits or has failed.
func because(code ota.ErrorCode, list []ota.Cause, text string) reasons {
	r := reasons{text: text}
	switch code {
	case ota.ErrNone:
		switch {
		case len(list) > 0:
			return gate(code, list, text)
		case strings.HasPrefix(text, "no consent"): // the manager waits for a person, and has no code for that
			r.result, r.safety, r.reasons = profile.NoWindow, profile.Consent, 1
		}
	case ota.ErrBatteryLow, ota.ErrBMSUnsafe:
		return gate(code, list, text)
	case ota.ErrConnectivity:
		r.result = profile.Timeout
	case ota.ErrInsufficientSpace:
		r.result = profile.NoSpace
	case ota.ErrValidation:
		r.result = profile.BadHash
	case ota.ErrFlashWrite:
		r.result = profile.Storage
	case ota.ErrIncompatible, ota.ErrNoUpdate:
		r.result = profile.Incompatible
	default:
		r.result = profile.Internal
	}
	return r
}

// gate explains a refusal. What it does not name is Other: better no reason than a
// wrong one.
func gate(code ota.ErrorCode, list []ota.Cause, text string) reasons {
	r := reasons{text: text, reasons: uint16(len(list))}
	if len(list) == 0 && code == ota.ErrBatteryLow {
		list = []ota.Cause{ota.CauseSoCLow}
	}
	named := 0
	for _, c := range causes {
		if !slices.Contains(list, c.cause) {
			continue
		}
		named++
		r.safety |= c.bit
		if r.result == profile.OK {
			r.result = c.result
		}
	}
	if named < len(list) || len(list) == 0 {
		r.safety |= profile.Other
		if r.result == profile.OK {
			r.result = profile.Internal
		}
	}
	r.reasons = max(r.reasons, 1)
	return r
}

func perMille(n, of int64) uint16 {
	if n <= 0 || of <= 0 {
		return 0
	}
	if n >= of {
		return 1000
	}
	return uint16(float64(n) / float64(of) * 1000)
}
