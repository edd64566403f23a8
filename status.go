package ota

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// Status is what the device is doing, for people and for other programs. The
// first eleven are those of the OTA manager's specification, in its order.
type Status int

// Statuses. Complete means proven: restarted, healthy, and marked good.
const (
	StatusIdle Status = iota
	StatusChecking
	StatusUpdateAvailable
	StatusDownloading
	StatusVerifying
	StatusReadyToApply
	StatusApplying
	StatusComplete
	StatusRebooting
	StatusFailed
	StatusAborted
	StatusTrial       // running the new firmware, not yet marked good
	StatusRollingBack // on the way back to the old slot
)

var statusNames = [...]string{"IDLE", "CHECKING", "UPDATE_AVAILABLE", "DOWNLOADING", "VERIFYING", "READY_TO_APPLY",
	"APPLYING", "COMPLETE", "REBOOTING", "FAILED", "ABORTED", "TRIAL", "ROLLING_BACK"}

func (s Status) String() string {
	if s < 0 || int(s) >= len(statusNames) {
		return fmt.Sprintf("Status(%d)", int(s))
	}
	return statusNames[s]
}

// MarshalText implements [encoding.TextMarshaler] with the name.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Status) UnmarshalText(b []byte) error {
	for i, n := range statusNames {
		if n == string(b) {
			*s = Status(i)
			return nil
		}
	}
	return fmt.Errorf("unknown status %q", b)
}

// ErrorCode is an error as a number, as in the OTA manager's specification.
// Every code is itself an error, so that errors.Is(err, ErrConnectivity) works.
type ErrorCode int

// Error codes. Their numbers and names never change.
const (
	ErrNone              ErrorCode = 0
	ErrNoUpdate          ErrorCode = -1   // nothing newer for this device
	ErrConnectivity      ErrorCode = -2   // the source cannot be reached
	ErrServer            ErrorCode = -3   // the source answers with an error
	ErrAuthentication    ErrorCode = -4   // the source does not accept us, or we not it
	ErrInsufficientSpace ErrorCode = -5   // the image is larger than the slot, or the medium is full
	ErrValidation        ErrorCode = -6   // signature, hash or form is wrong
	ErrFlashWrite        ErrorCode = -7   // the slot cannot be written, or reads back other bytes
	ErrIncompatible      ErrorCode = -8   // another product, hardware, component, or a version that is not allowed
	ErrBatteryLow        ErrorCode = -9   // refusal: state of charge
	ErrBMSUnsafe         ErrorCode = -10  // refusal: anything else about the battery, also not knowing
	ErrInternal          ErrorCode = -100 // everything else
)

var errorTexts = map[ErrorCode][2]string{ // name, text
	ErrNone:              {"NONE", "no error"},
	ErrNoUpdate:          {"NO_UPDATES", "no updates available"},
	ErrConnectivity:      {"CONNECTIVITY", "cannot connect to update server"},
	ErrServer:            {"SERVER", "server error"},
	ErrAuthentication:    {"AUTHENTICATION", "authentication failed"},
	ErrInsufficientSpace: {"INSUFFICIENT_SPACE", "not enough space for update"},
	ErrValidation:        {"VALIDATION_FAILED", "signature/checksum validation failed"},
	ErrFlashWrite:        {"FLASH_WRITE", "error writing to flash"},
	ErrIncompatible:      {"INCOMPATIBLE_VERSION", "incompatible firmware version"},
	ErrBatteryLow:        {"BATTERY_LOW", "battery too low for update"},
	ErrBMSUnsafe:         {"BMS_UNSAFE", "BMS reports unsafe condition"},
	ErrInternal:          {"INTERNAL", "internal error"},
}

// Error returns the text for people, the specification's error_to_string.
func (c ErrorCode) Error() string {
	if t, ok := errorTexts[c]; ok {
		return t[1]
	}
	return fmt.Sprintf("error %d", int(c))
}

// Name returns the name of the specification without its prefix, for example BATTERY_LOW.
func (c ErrorCode) Name() string {
	if t, ok := errorTexts[c]; ok {
		return t[0]
	}
	return fmt.Sprintf("ERROR_%d", -int(c))
}

// CodeOf classifies err. An error that wraps no code is ErrInternal, an ended
// context counts as connectivity, and nil is ErrNone.
func CodeOf(err error) ErrorCode {
	if err == nil {
		return ErrNone
	}
	if c, ok := errors.AsType[ErrorCode](err); ok {
		return c
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return ErrConnectivity
	}
	return ErrInternal
}

// Errors that are not codes.
var (
	ErrWithdrawn = errors.New("nothing is offered to this device")
	ErrNotNow    = errors.New("not now")               // a gate's refusal: ask again later
	ErrBusy      = errors.New("busy with an update")   // the command does not fit the present state
	ErrStopped   = errors.New("manager not running")   // Run has ended or was never called
	ErrAborted   = errors.New("aborted by a person")   // the update was given up on request
	ErrLost      = errors.New("came back unexplained") // the old slot booted, and nothing says that the new one was tried
)

// A Refusal is a gate's no, with the reason and what it saw.
type Refusal struct {
	Code    ErrorCode // ErrBatteryLow, ErrBMSUnsafe, or ErrNone for a refusal that is not about the battery
	Reason  string    // for people, with numbers: "state of charge 22.0 %, want at least 30 %"
	Signals []Signal  // what the decision was made on
	Causes  []Cause   // what is wrong, for programs; none: only Reason says it
	Ready   time.Time // when it is over by itself, if all else stays as it is; zero: not known
}

// A Cause is a kind of reason for a refusal, so that programs need not read texts.
type Cause string

// Causes. The names never change.
const (
	CauseSoCLow          Cause = "soc_low"
	CauseSoCHigh         Cause = "soc_high"
	CauseTemperatureLow  Cause = "temperature_low"
	CauseTemperatureHigh Cause = "temperature_high" // also one that rises too fast
	CauseCurrent         Cause = "current"
	CauseCellLow         Cause = "cell_low"   // voltage
	CauseCellHigh        Cause = "cell_high"  // voltage
	CauseCellDelta       Cause = "cell_delta" // cells too far apart
	CauseStale           Cause = "stale"      // missing, too old, or frozen
	CauseDisagreement    Cause = "disagreement"
	CauseAlarm           Cause = "alarm"
	CauseMode            Cause = "mode" // not standby, or not under remote control
	CauseContactors      Cause = "contactors"
	CauseWindow          Cause = "window"  // outside the hours of updates
	CauseDwell           Cause = "dwell"   // all is well, and has not been for long enough
	CauseConsent         Cause = "consent" // a person has to agree; this is the manager's, no gate's
	CauseOther           Cause = "other"
)

// Signal is a measured value.
type Signal struct {
	Name  string    `json:"name"`           // for example soc
	Value float64   `json:"value"`          //
	Unit  string    `json:"unit,omitempty"` // for example %
	At    time.Time `json:"at,omitzero"`    // when it was measured

	Source string `json:"source,omitempty"` // who says so, for people
}

// Number returns the value and its unit for people: cells in mV, all else with one
// decimal.
func (s Signal) Number() string {
	if s.Unit == "V" && math.Abs(s.Value) < 10 {
		return fmt.Sprintf("%.3f %s", s.Value, s.Unit)
	}
	return strings.TrimRight(fmt.Sprintf("%.1f %s", s.Value, s.Unit), " ")
}

func (r *Refusal) Error() string { return "not now: " + r.Reason }

// Unwrap makes a Refusal match ErrNotNow and its code.
func (r *Refusal) Unwrap() []error {
	if r.Code == ErrNone {
		return []error{ErrNotNow}
	}
	return []error{ErrNotNow, r.Code}
}
