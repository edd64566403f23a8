// Package control is how people and programs on a device talk to its agent: a
// small HTTP API over a unix socket. It is for the commands `interlock device
// ...`, for a display beside the battery, and for other programs on the device.
//
// The agent starts with [Listen] and [Serve]; everybody else with [Dial]. What
// can be asked for is in the constants and types of this file; bodies are JSON,
// and names in them never change.
//
//	curl --unix-socket /run/interlock/interlockd.sock http://agent/v1/status
//	curl --unix-socket /run/interlock/interlockd.sock -X POST 'http://agent/v1/install?wait=true'
//
// Who may connect is decided by the mode of the socket's file alone, 0660: root,
// the agent's own user, and its group. Whoever may connect may do everything
// here, but nothing here forces a gate or installs what is not signed.
//
// A command goes on when the one who gave it hangs up.
package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/watchdog"
)

// DefaultSocket is where the agent listens if its configuration names no other path.
const DefaultSocket = "/run/interlock/interlockd.sock"

// Paths.
const (
	PathStatus     = "/v1/status"     // GET: Status
	PathEvents     = "/v1/events"     // GET: server-sent events, each an Event, named by its kind
	PathInfo       = "/v1/info"       // GET: Info
	PathSlots      = "/v1/slots"      // GET: Slots
	PathThresholds = "/v1/thresholds" // GET: Thresholds; PUT ThresholdsChange: Thresholds
	PathEvidence   = "/v1/evidence"   // GET: list of EvidenceFile; /v1/evidence/NAME: JSON lines, see docs/evidence.md
	PathCommand    = "/v1/{command}"  // POST: Result; with ?wait=true once the command has ended, or waits for nothing but time
)

// Command is what an agent can be told to do.
type Command string

// Commands, see the methods of [ota.Manager].
const (
	Check    Command = "check"
	Install  Command = "install"
	Apply    Command = "apply"
	Abort    Command = "abort"
	Confirm  Command = "confirm"
	RollBack Command = "rollback"
)

// Commands lists all commands.
func Commands() []Command { return []Command{Check, Install, Apply, Abort, Confirm, RollBack} }

// Status is everything about a device at one moment.
type Status struct {
	Snapshot ota.Snapshot `json:"snapshot"`
	Agent    AgentInfo    `json:"agent"`
	Readings []ota.Signal `json:"readings,omitempty"` // the battery, as last read
	// ReadingError is why there are no readings, or why they cannot be relied on.
	ReadingError string   `json:"reading_error,omitempty"`
	Warnings     []string `json:"warnings,omitempty"` // what a person should change, for example that signatures are not verified
	// Plant is how the plant is while it is quiesced, for people; "": it is at work, or not ours.
	Plant string `json:"plant,omitempty"`
	// Watchdog is the hardware that restarts a device which hangs; nil: none is configured.
	Watchdog *watchdog.Status `json:"watchdog,omitempty"`
	Evidence *EvidenceHead    `json:"evidence,omitempty"` // nil: nothing was written yet
}

// AgentInfo says which agent it is, and what it works with.
type AgentInfo struct {
	Device   string    `json:"device"`
	Product  string    `json:"product"`
	Hardware string    `json:"hardware,omitempty"`
	Version  string    `json:"version"`            // of the agent itself
	Started  time.Time `json:"started"`            // the agent's process
	Sources  []string  `json:"sources"`            // for people, without credentials
	Slots    string    `json:"slots"`              // kind of slots
	StateDir string    `json:"state_dir"`          // where the record is
	Firmware string    `json:"firmware,omitempty"` // how the firmware runs, if the agent starts it
}

// Kinds of events.
const (
	KindStatus   = "status"   // status, code or reason changed
	KindProgress = "progress" // bytes arrived, or the same status goes on
)

// Event is something that changed. Progress is thinned out for slow listeners,
// changes of status are not, unless 64 of them wait.
type Event struct {
	Kind   string    `json:"kind"`
	Time   time.Time `json:"time"`
	Status Status    `json:"status"`
}

// Info is the release at hand: installed next, or being installed. The first
// eight names are those of the update info in the OTA manager's specification.
type Info struct {
	Version         string   `json:"version"`
	ReleaseNotes    string   `json:"release_notes"`
	Size            int64    `json:"size"`                        // bytes of all images
	MD5             string   `json:"md5,omitempty"`               // of the first image
	SHA256          string   `json:"sha256"`                      // of the first image
	Mandatory       bool     `json:"mandatory"`                   //
	RequiresReboot  bool     `json:"requires_reboot"`             //
	MinBatteryLevel *float64 `json:"min_battery_level,omitempty"` // %, the release's own; the device's may be stricter

	Running string     `json:"running"` // the version that runs now
	Latest  string     `json:"latest"`  // the newest that the source offered
	Update  ota.Update `json:"update"`  // all of it
}

// Slots says what the device can boot.
type Slots struct {
	Slots       []Slot `json:"slots"`
	CanRollBack bool   `json:"can_roll_back"`
	WhyNot      string `json:"why_not,omitempty"`
}

// Slot is one of the two places for firmware.
type Slot struct {
	Name       string      `json:"name"`
	Booted     bool        `json:"booted"`
	Version    string      `json:"version,omitempty"` // empty: not whole, or not known
	Note       string      `json:"note"`              // what it is good for now, for people
	Components []Component `json:"components"`
}

// Component is a component's place in a slot.
type Component struct {
	Name     string `json:"name"`
	Capacity int64  `json:"capacity"` // bytes; 0: not known
	Error    string `json:"error,omitempty"`
}

// Thresholds are the limits on the battery that hold now; see bms.Thresholds. Limits
// that are 0 and omitted are switched off.
type Thresholds struct {
	MinSoC             float64 `json:"min_soc"`                        // %
	MaxSoC             float64 `json:"max_soc,omitempty"`              // %
	MaxTemperature     float64 `json:"max_temperature"`                // °C
	MinTemperature     float64 `json:"min_temperature"`                // °C
	MaxTemperatureRate float64 `json:"max_temperature_rate,omitempty"` // K/min
	MaxCurrent         float64 `json:"max_current"`                    // A, magnitude
	MinCell            float64 `json:"min_cell,omitempty"`             // V
	MaxCell            float64 `json:"max_cell,omitempty"`             // V
	MaxCellDelta       float64 `json:"max_cell_delta,omitempty"`       // V
	MaxUncounted       float64 `json:"max_uncounted,omitempty"`        // %
	MaxAge             string  `json:"max_age"`                        // of a signal, for example "5s"
}

// ThresholdsChange changes the limits whose fields are set, until the agent is
// restarted; its configuration file is the place for more.
type ThresholdsChange struct {
	MinSoC             *float64 `json:"min_soc,omitempty"`
	MaxSoC             *float64 `json:"max_soc,omitempty"`
	MaxTemperature     *float64 `json:"max_temperature,omitempty"`
	MinTemperature     *float64 `json:"min_temperature,omitempty"`
	MaxTemperatureRate *float64 `json:"max_temperature_rate,omitempty"`
	MaxCurrent         *float64 `json:"max_current,omitempty"`
	MinCell            *float64 `json:"min_cell,omitempty"`
	MaxCell            *float64 `json:"max_cell,omitempty"`
	MaxCellDelta       *float64 `json:"max_cell_delta,omitempty"`
	MaxUncounted       *float64 `json:"max_uncounted,omitempty"`
	MaxAge             *string  `json:"max_age,omitempty"`
}

// Result is the answer to a command that did not fail.
type Result struct {
	// Ended says that the command has done what it does, see the methods of
	// [ota.Manager]. If not, it was taken and goes on; what it waits for, and its
	// end, are in the status.
	Ended  bool   `json:"ended"`
	Status Status `json:"status"`
}

// Device is what the API shows. Its methods are called from many goroutines.
type Device interface {
	Status(ctx context.Context) Status
	// Command begins a command, and returns at once.
	Command(c Command) Call
	// Watch returns a channel of events that begins with the present status, and
	// is closed when ctx ends or the device stops.
	Watch(ctx context.Context) <-chan Event
	Slots(ctx context.Context) (Slots, error)
	Thresholds() (Thresholds, error)
	SetThresholds(ThresholdsChange) (Thresholds, error)
}

// Call is a command under way; [ota.Call] is one.
type Call interface {
	// Wait returns how the command ended, or ctx's error; the command goes on then.
	Wait(ctx context.Context) error
}

// Error is the JSON of everything that did not work, and what a [Client]
// returns for it. It matches the sentinels and codes of package ota that the
// agent's error matched: errors.Is(err, ota.ErrNotNow) is a gate's refusal.
type Error struct {
	Code    ota.ErrorCode `json:"code"`           // number of the OTA manager's specification
	Name    string        `json:"name"`           // its name
	Kind    string        `json:"kind,omitempty"` // not_now, busy, stopped, aborted, lost, bad_request
	Text    string        `json:"error"`          // what was wrong
	Hint    string        `json:"hint,omitempty"` // what to do
	Signals []ota.Signal  `json:"signals,omitempty"`
	Causes  []ota.Cause   `json:"causes,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Unwrap returns the code, and the sentinel of the kind.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Code != ota.ErrNone {
		errs = append(errs, e.Code)
	}
	for _, k := range kinds {
		if k.name == e.Kind {
			errs = append(errs, k.err)
		}
	}
	return errs
}

// ErrBadRequest marks a request that cannot work, whatever the device does.
var ErrBadRequest = errors.New("bad request")

var kinds = []struct {
	name string
	err  error
	hint string
}{
	{"not_now", ota.ErrNotNow, "the agent asks again by itself and goes on as soon as it is safe"},
	{"busy", ota.ErrBusy, "see the status, and try again later"},
	{"stopped", ota.ErrStopped, "the agent is starting, restarting or stopping; try again in a moment"},
	{"aborted", ota.ErrAborted, "install it again if it is wanted after all"},
	{"lost", ota.ErrLost, "look at the bootloader's own log: it did not boot the slot that it was told to try"},
	{"bad_request", ErrBadRequest, ""},
}

var hints = map[ota.ErrorCode]string{
	ota.ErrConnectivity:      "check the network and the source's address; it is tried again by itself",
	ota.ErrServer:            "look at the server's log; it is tried again by itself",
	ota.ErrAuthentication:    "check the token or password, the CA certificate, and the device's clock",
	ota.ErrInsufficientSpace: "free space on the medium, or publish a smaller image",
	ota.ErrValidation:        "check that the release is signed with a key that this device has, and was not changed on the way",
	ota.ErrFlashWrite:        "the medium may be worn out: check the system's log",
	ota.ErrIncompatible:      "check the release's product, hardware and version rules with interlock inspect",
	ota.ErrBatteryLow:        "the update goes on by itself once the battery is charged",
	ota.ErrBMSUnsafe:         "the update goes on by itself once the battery is within its limits and its readings are fresh",
}

// NewError describes err for a client.
func NewError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	e := &Error{Code: ota.CodeOf(err), Text: err.Error()}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			e.Kind, e.Hint = k.name, k.hint
			if _, ok := errors.AsType[ota.ErrorCode](err); !ok {
				e.Code = ota.ErrNone // none of the codes says it better than the kind
			}
			break
		}
	}
	if e.Hint == "" || e.Kind == "not_now" && hints[e.Code] != "" {
		e.Hint = hints[e.Code]
	}
	e.Name = e.Code.Name()
	if r, ok := errors.AsType[*ota.Refusal](err); ok {
		e.Signals, e.Causes = r.Signals, r.Causes
	}
	return e
}

// infoOf makes the answer to PathInfo.
func infoOf(s ota.Snapshot) (Info, error) {
	u := s.Update
	if u == nil {
		return Info{}, fmt.Errorf("show the release: %w: this device knows of none", ota.ErrNoUpdate)
	}
	in := Info{Version: u.Version, ReleaseNotes: u.Notes, Size: u.Size, Mandatory: u.Mandatory, RequiresReboot: u.RequiresReboot,
		MinBatteryLevel: u.Limits.MinSoC, Running: s.Running, Latest: s.Latest, Update: *u}
	if len(u.Images) > 0 {
		in.MD5, in.SHA256 = u.Images[0].MD5, u.Images[0].SHA256.String()
	}
	return in, nil
}
