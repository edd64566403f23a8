package modbus

import (
	"math"

	"github.com/interlock-energy/ota/internal/inbox/standing"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// shown is how an update stands, in the words of the register map, which has the same
// numbers.
func shown(u standing.Standing) profile.Status {
	return profile.Status{State: profile.State(u.State), Result: profile.Result(u.Result), Safety: profile.Safety(u.Safety),
		Reasons: u.Count, Progress: u.Progress, Written: uint32(min(u.Written, math.MaxUint32)),
		ModulesDone: uint32(u.Done), ModulesFailed: uint32(u.Failed), SecondsLeft: u.Left, Attempt: u.Try}
}
