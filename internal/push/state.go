package push

import (
	"fmt"

	"github.com/interlock-energy/ota"
)

// State is how far a device is. The numbers are those on the bus, in the Modbus profile's
// status block and in the data identifier of the same name on CAN.
type State uint16

// States, in the order in which a transfer and its update pass them.
const (
	Idle       State = iota // nothing was begun
	Opening                 // it makes room, or the manifest comes
	Receiving               // images come
	Received                // all is there
	Verifying               // it computes the hashes anew
	Verified                // it is what was signed
	WaitSafe                // the gate, a window or a person has to allow it
	Installing              // it is written into the other slot
	Restarting              // about to restart, or doing so
	Trial                   // the new firmware runs, and may still go back
	Confirmed               // the new firmware is marked good
	RolledBack              // the previous firmware runs again
	Failed                  // it never will
	Aborted                 // a person gave it up
)

var stateNames = [...]string{"idle", "opening", "receiving", "received", "verifying", "verified", "waiting",
	"installing", "restarting", "on trial", "proven", "rolled back", "failed", "aborted"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint16(s))
}

// MarshalText implements [encoding.TextMarshaler] with the name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Ended says that nothing follows by itself.
func (s State) Ended() bool { return s == Confirmed || s == RolledBack || s == Failed || s == Aborted }

// Result is why a device waits or failed. The numbers are those on the bus.
type Result uint16

// results are the texts and the codes of results, by number; they are the same on both buses.
var results = map[Result]struct {
	text string
	code ota.ErrorCode
}{
	1:  {"there is no session", ota.ErrServer},
	2:  {"busy", ota.ErrServer},
	3:  {"a parameter is wrong", ota.ErrServer},
	4:  {"this role or this connection may not do that", ota.ErrAuthentication},
	5:  {"not enough space", ota.ErrInsufficientSpace},
	6:  {"the signature is wrong", ota.ErrValidation},
	7:  {"a hash is wrong", ota.ErrValidation},
	8:  {"another product, hardware or version", ota.ErrIncompatible},
	9:  {"older than what may be installed", ota.ErrIncompatible},
	10: {"state of charge", ota.ErrBatteryLow},
	11: {"temperature", ota.ErrBMSUnsafe},
	12: {"current", ota.ErrBMSUnsafe},
	13: {"contactors or mode", ota.ErrBMSUnsafe},
	14: {"the battery's data is old or missing", ota.ErrBMSUnsafe},
	15: {"an alarm", ota.ErrBMSUnsafe},
	16: {"outside the window, or a person has to agree", ota.ErrNone},
	17: {"the storage cannot be written", ota.ErrFlashWrite},
	18: {"timed out", ota.ErrServer},
	19: {"power supply", ota.ErrNone},
	20: {"the health check failed", ota.ErrInternal},
	21: {"rolled back", ota.ErrInternal},
	99: {"internal error", ota.ErrInternal},
}

func (r Result) String() string {
	if r == 0 {
		return "ok"
	}
	if known, ok := results[r]; ok {
		return known.text
	}
	return fmt.Sprintf("result %d", uint16(r))
}

// Code is the error code of a result; [ota.ErrInternal] if it is not known.
func (r Result) Code() ota.ErrorCode {
	if r == 0 {
		return ota.ErrNone
	}
	if known, ok := results[r]; ok {
		return known.code
	}
	return ota.ErrInternal
}
