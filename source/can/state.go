package can

import (
	"errors"
	"math"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/inbox/standing"
	"github.com/interlock-energy/ota/source/can/profile"
)

// view is what a tester is told about the update that it has brought. The numbers are
// those of package standing.
type view struct {
	state  profile.State
	result profile.Result
	reason string
	safety profile.Safety
	course profile.Course
}

// look says how the update stands.
func look(b inbox.State, head api.CheckinRequest) view {
	u := standing.Of(b, head, false)
	return view{profile.State(u.State), profile.Result(u.Result), u.Text, profile.Safety(u.Safety),
		profile.Course{Progress: u.Progress, Written: uint32(min(u.Written, math.MaxUint32)), Left: u.Left, Attempt: u.Try,
			ImagesDone: uint32(u.Done), ImagesFailed: uint32(u.Failed)}}
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
