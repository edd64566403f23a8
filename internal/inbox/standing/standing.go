// Package standing says how an update stands that was pushed over a bus, in the numbers
// that the profiles of all buses share: one judgement, so that a screen on Modbus and a
// tester on CAN never say different things about the same device.
//
// [Of] judges the transfer and what the device says about itself, [Why] an error.
package standing

import (
	"errors"
	"math"
	"slices"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/inbox"
)

// A State is how far the transfer, and then the update, is.
type State uint8

// States, in their order. The profiles say what each means to a master or tester.
const (
	Idle State = iota
	Opening
	Receiving
	Received
	Verifying
	Verified
	WaitSafe
	Installing
	RebootPending
	Trial
	Confirmed
	RolledBack
	Failed
	Aborted
)

// A Result is why the state is what it is.
type Result uint8

// Results.
const (
	OK           Result = 0
	NoSession    Result = 1 // or no transfer
	Busy         Result = 2
	BadParameter Result = 3
	NotAllowed   Result = 4
	NoSpace      Result = 5
	BadSignature Result = 6
	BadHash      Result = 7
	Incompatible Result = 8
	TooOld       Result = 9
	Charge       Result = 10 // of the battery: too low or too high
	Temperature  Result = 11
	Current      Result = 12
	Mode         Result = 13 // contactors, or what the plant does
	StaleData    Result = 14
	Alarm        Result = 15
	NoWindow     Result = 16 // or no consent
	Storage      Result = 17
	Timeout      Result = 18
	Power        Result = 19
	Unhealthy    Result = 20
	WentBack     Result = 21
	Internal     Result = 99
)

// Safety has a bit for each kind of reason that a gate gives.
type Safety uint16

// Bits of Safety.
const (
	ChargeLow Safety = 1 << iota
	ChargeHigh
	TemperatureLow
	TemperatureHigh
	CurrentHigh
	Stale
	Disagreement
	Alarms
	NotStandby
	Contactors
	Dispatch // the update window
	CellDelta
	Consent
	Custom
	UPS
	Other
)

// A Standing is how an update stands.
type Standing struct {
	State    State
	Progress uint16 // of what State says, per mille
	Written  int64  // bytes of the release in the slot

	Try    uint16 // which one it is, from 1; 0: nothing is being installed
	Left   uint32 // seconds until State is over if nothing changes; 0: not known
	Done   Images // written into the slot and read back
	Failed Images // the one at which the update has failed; none: it was not at one, or nobody knows
	Reasons
}

// Images has a bit for each image of a release, in the manifest's order, beginning with
// bit 0. Those from the 33rd on have none.
type Images uint32

// first returns the bits of the first n images.
func first(n int) Images {
	if n >= 32 {
		return math.MaxUint32
	}
	return 1<<max(n, 0) - 1
}

// image returns the bit of image n, from 1; none for 0.
func image(n int) Images { return first(n) &^ first(n-1) }

// Reasons are why something does not happen.
type Reasons struct {
	Result Result
	Safety Safety
	Count  uint16 // how many a gate gave
	Text   string // for people
}

// Of says how the update stands. aborted says that the last transfer was given up over
// the bus.
//
// Until INSTALL the inbox knows; from then on the manager does, as far as it has this
// release in hand, and in the end the outcome that it has reported. Whatever another
// source brings does not show here.
func Of(st inbox.State, device api.CheckinRequest, aborted bool) Standing {
	var u Standing
	switch st.Phase {
	case inbox.Opening:
		u.State, u.Progress = Opening, perMille(st.Received, st.Until)
	case inbox.Receiving:
		u.State, u.Progress = Receiving, perMille(st.Received, st.Offer.Size)
	case inbox.Received:
		u.State, u.Progress = Received, 1000
	case inbox.Verifying:
		u.State, u.Progress = Verifying, perMille(st.Verified, st.Offer.Size)
	case inbox.Verified:
		u.State, u.Progress = Verified, 1000
	case inbox.Requested:
		u.requested(st, device)
		return u
	case inbox.Ended:
		u.ended(st)
		return u
	case inbox.Failed:
		u.State = Failed
	default:
		u.Text = device.Reason
		if aborted {
			u.State, u.Text = Aborted, "given up over the bus"
		}
	}
	if st.Err != nil {
		u.Result, u.Text = failure(st, device), st.Err.Error()
	}
	return u
}

// requested says what the manager does with the release.
func (u *Standing) requested(st inbox.State, device api.CheckinRequest) {
	u.State, u.Text = WaitSafe, device.Reason
	// What was not right for this unit when it was last offered will not be: another release runs by now,
	// or this one has failed here. That it is skipped says nothing: who asked may overrule that.
	if st.Err != nil && !passes(st.Err) && device.UpdateDigest != st.Digest && device.Digest != st.Digest {
		u.State, u.Result, u.Text = Failed, failure(st, device), st.Err.Error()
		return
	}
	u.Reasons = because(device.Code, device.Causes, device.Reason)
	switch {
	case device.UpdateDigest != "" && device.UpdateDigest != st.Digest:
		u.Reasons = Reasons{Result: Busy, Text: "another update is under way"}
		return
	case device.UpdateDigest == "" && device.Digest == st.Digest:
		u.State, u.Result, u.Done = Trial, OK, first(st.Images) // it has ended, and the report is still to come
		return
	case device.UpdateDigest == "":
		if u.Text == "" {
			u.Text = "the update manager is about to look at it"
		}
		return // or it says why it does not
	}
	u.Written, u.Progress = device.Done, perMille(device.Done, device.Total)
	u.course(&device.Course)
	switch device.Status {
	case ota.StatusDownloading, ota.StatusVerifying, ota.StatusApplying:
		u.State = Installing
	case ota.StatusRebooting:
		u.State = RebootPending
	case ota.StatusTrial:
		u.State = Trial
		if device.Code == ota.ErrValidation || device.Code == ota.ErrInternal { // a health check's; there is nothing to verify here
			u.Result = Unhealthy
		}
	case ota.StatusComplete:
		u.State, u.Result = Trial, OK // until the outcome is reported
	case ota.StatusRollingBack:
		u.State, u.Result = RebootPending, WentBack
	case ota.StatusFailed:
		// The attempt went wrong, and the manager tries again or is about to report.
		u.State = Installing
	}
}

// course takes over what the manager counts. What comes from a device may be any number.
func (u *Standing) course(c *ota.Course) {
	u.Try = uint16(min(max(c.Try, 0), math.MaxUint16))
	u.Left = uint32(min(max(c.SecondsLeft, 0), math.MaxUint32))
	u.Done, u.Failed = first(c.ImagesDone), image(c.FailedImage)
}

// passes reports whether err may be gone by itself.
func passes(err error) bool {
	return errors.Is(err, ota.ErrNotNow) || errors.Is(err, ota.ErrConnectivity) || errors.Is(err, ota.ErrServer)
}

// ended says how the update has ended. Only what was proven is confirmed.
func (u *Standing) ended(st inbox.State) {
	r := st.Outcome
	if r == nil {
		u.State, u.Result, u.Text = Failed, Internal, "how it ended is not known"
		return
	}
	u.Text = r.Reason
	switch r.Result {
	case ota.Succeeded:
		u.State, u.Progress, u.Done = Confirmed, 1000, first(st.Images)
	case ota.RolledBack:
		u.State, u.Result = RolledBack, WentBack
	case ota.Lost:
		u.State, u.Result = RolledBack, Internal
	case ota.Aborted:
		u.State = Aborted
	default:
		u.State, u.Result = Failed, because(r.Code, nil, r.Reason).Result
		switch {
		case r.Tried && r.Code == ota.ErrValidation:
			// The code is about the firmware, which did not prove itself: its hashes were right, or it
			// would not have been tried.
			u.Result = Unhealthy
			if ota.CompareVersions(r.Running, r.Version) != 0 {
				u.State = RolledBack
			}
		case u.Result == OK:
			u.Result = Internal
		}
		// Images are written one after the other.
		u.Done, u.Failed = first(r.FailedImage-1), image(r.FailedImage)
	}
}

// failure says why the inbox does not go on.
func failure(st inbox.State, device api.CheckinRequest) Result {
	switch code := ota.CodeOf(st.Err); code {
	case ota.ErrValidation:
		if st.Version == "" {
			return BadSignature
		}
		return BadHash
	case ota.ErrIncompatible, ota.ErrNoUpdate:
		if st.Version != "" && device.Version != "" && ota.CompareVersions(st.Version, device.Version) < 0 {
			return TooOld
		}
		return Incompatible
	default:
		return because(code, nil, "").Result
	}
}

// causes of a gate, by their weight: the first that is there becomes the result.
var causes = []struct {
	cause  ota.Cause
	bit    Safety
	result Result
}{
	{ota.CauseAlarm, Alarms, Alarm},
	{ota.CauseStale, Stale, StaleData},
	{ota.CauseDisagreement, Disagreement, StaleData},
	{ota.CauseTemperatureLow, TemperatureLow, Temperature},
	{ota.CauseTemperatureHigh, TemperatureHigh, Temperature},
	{ota.CauseContactors, Contactors, Mode},
	{ota.CauseMode, NotStandby, Mode},
	{ota.CauseCurrent, CurrentHigh, Current},
	{ota.CauseSoCLow, ChargeLow, Charge},
	{ota.CauseSoCHigh, ChargeHigh, Charge},
	{ota.CauseCellDelta, CellDelta, Internal},
	{ota.CauseCellLow, Other, Internal},
	{ota.CauseCellHigh, Other, Internal},
	{ota.CauseOther, Other, Internal},
	{ota.CauseWindow, Dispatch, NoWindow},
	{ota.CauseConsent, Consent, NoWindow},
	{ota.CauseDwell, Other, Busy}, // all is well: it only has to last
}

// Why explains an error of the gate, of the inbox, or of a command.
func Why(err error) Reasons {
	if err == nil {
		return Reasons{}
	}
	switch {
	case errors.Is(err, ota.ErrBusy), errors.Is(err, inbox.ErrBusy):
		return Reasons{Result: Busy, Text: err.Error()}
	case errors.Is(err, inbox.ErrNone):
		return Reasons{Result: NoSession, Text: err.Error()}
	case errors.Is(err, inbox.ErrMissing), errors.Is(err, inbox.ErrRange), errors.Is(err, inbox.ErrConflict), errors.Is(err, inbox.ErrEarly),
		errors.Is(err, inbox.ErrPhase) && !coded(err):
		return Reasons{Result: BadParameter, Text: err.Error()}
	}
	if refusal, ok := errors.AsType[*ota.Refusal](err); ok {
		return gate(refusal.Code, refusal.Causes, refusal.Reason)
	}
	if errors.Is(err, ota.ErrNotNow) {
		return gate(ota.CodeOf(err), nil, err.Error())
	}
	w := because(ota.CodeOf(err), nil, err.Error())
	if w.Result == OK {
		w.Result = Internal
	}
	return w
}

// because explains a code with which the manager waits or has failed.
func because(code ota.ErrorCode, list []ota.Cause, text string) Reasons {
	r := Reasons{Text: text}
	switch code {
	case ota.ErrNone:
		if len(list) > 0 {
			return gate(code, list, text)
		}
	case ota.ErrBatteryLow, ota.ErrBMSUnsafe:
		return gate(code, list, text)
	case ota.ErrConnectivity:
		r.Result = Timeout
	case ota.ErrInsufficientSpace:
		r.Result = NoSpace
	case ota.ErrValidation:
		r.Result = BadHash
	case ota.ErrFlashWrite:
		r.Result = Storage
	case ota.ErrIncompatible, ota.ErrNoUpdate:
		r.Result = Incompatible
	default:
		r.Result = Internal
	}
	return r
}

// gate explains a refusal. What it does not name is Other: better no reason than a
// wrong one.
func gate(code ota.ErrorCode, list []ota.Cause, text string) Reasons {
	r := Reasons{Text: text, Count: uint16(len(list))}
	if len(list) == 0 && code == ota.ErrBatteryLow {
		list = []ota.Cause{ota.CauseSoCLow}
	}
	named := 0
	for _, c := range causes {
		if !slices.Contains(list, c.cause) {
			continue
		}
		named++
		r.Safety |= c.bit
		if r.Result == OK {
			r.Result = c.result
		}
	}
	if named < len(list) || len(list) == 0 {
		r.Safety |= Other
		if r.Result == OK {
			r.Result = Internal
		}
	}
	r.Count = max(r.Count, 1)
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

// coded reports whether err says itself what it is.
func coded(err error) bool {
	_, ok := errors.AsType[ota.ErrorCode](err)
	return ok
}
