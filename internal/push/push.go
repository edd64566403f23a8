// Package push brings a bundle into a device over its field bus: it is the master's side
// of what the sources for Modbus and CAN do in the agent, for the service technician's
// laptop and for a plant controller. It has what both buses share: the file, the words
// for what a device says, the time that it will take, and the way to the proven end.
//
// Start with [Open], a [Device] of overmodbus or overcan, and [Run].
//
// What is promised:
//
//   - A file that no device can take is refused before the first byte is sent.
//   - A piece for which an acknowledgement was seen is not sent again, whatever happens to
//     the line, the device or this program, unless the device says that it has lost it: a
//     transfer that was begun goes on where the device says that it stopped.
//   - Run returns nil only if the device says that the new firmware is proven (or
//     verified, if that is all that was asked for). Whatever else happened is an error
//     that says what: see [ErrRolledBack] and the others.
//   - Nothing here forces a device's gate.
package push

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/interlock-energy/ota"
)

// A Device is a device at the other end of a bus. Its methods are called one after the
// other. A line that breaks is opened anew by the next call that needs it.
//
// Errors that wrap [ErrLine] are those of the line: trying again later may help. All
// others are the device's answer.
type Device interface {
	// Identify says who answers. It is called first.
	Identify(ctx context.Context) (Identity, error)
	// Plan says how long so many bytes will take, from what Identify has learnt.
	Plan(bytes int64) Plan
	// Status says how far the device is.
	Status(ctx context.Context) (Status, error)
	// Precheck asks the gate, without any effect. nil: it allows the update now. A
	// refusal is an [*ota.Refusal].
	Precheck(ctx context.Context) error
	// Send brings the file into the device, or what is missing of it there, and returns
	// once the device has verified all of it, or is further than that with the same
	// release. It goes on over trouble with the line for as long as ctx lasts.
	Send(ctx context.Context, f *File, tell Tell) error
	// Install asks for the installation of what was sent. The gate decides when. Asked
	// again it does no harm.
	Install(ctx context.Context) error
	// Abort takes back what is there, whoever has brought it, and what was asked for with it. Nil: it
	// was done, or Status says why not. [ErrTooLate] says that the device is changing to it
	// already. Asked again it does no harm.
	Abort(ctx context.Context) error
	Close() error
}

// Tell is how Send says what it does. It is called from one goroutine. Its functions may
// be nil; the methods may be called nevertheless.
type Tell struct {
	Progress func(done int64) // bytes of the file that the device has
	Trouble  func(err error)  // why nothing goes now, although Send goes on; nil: it goes again
}

// Done tells progress.
func (t Tell) Done(done int64) {
	if t.Progress != nil {
		t.Progress(done)
	}
}

// Stuck tells trouble, or that it is over.
func (t Tell) Stuck(err error) {
	if t.Trouble != nil {
		t.Trouble(err)
	}
}

// Identity is who answers. What is not known is "".
type Identity struct {
	Protocol string `json:"protocol"`          // for example "BESS-MFT 1.0"
	Device   string `json:"device,omitempty"`  // the unit's name
	Product  string `json:"product,omitempty"` // as in a manifest
	Running  string `json:"running,omitempty"` // version
}

// Status is what a device says about a transfer and the update that follows it.
type Status struct {
	State   State  `json:"state"`
	Result  Result `json:"result,omitzero"` // why it waits or failed
	Reason  string `json:"reason,omitempty"`
	Running string `json:"running,omitempty"` // version
	Version string `json:"version,omitempty"` // of the release in hand

	Received int64         `json:"received,omitempty"` // bytes of the file
	Size     int64         `json:"size,omitempty"`     // of the file, or of its blocks
	Done     float64       `json:"done,omitempty"`     // of what State does: 0 to 1
	Left     time.Duration `json:"left,omitempty"`     // ns, until State is over if nothing changes; 0: not known

	Attempt int `json:"attempt,omitempty"` // which try of the update it is, from 1; 0: none, or not known
	// A bit for each image of the release, in the manifest's order, from bit 0 on.
	ImagesDone   uint32 `json:"images_done,omitempty"`   // written into the slot and read back
	ImagesFailed uint32 `json:"images_failed,omitempty"` // the one at which the installation has failed
}

// why says in words why the device waits or failed; "" if it says nothing.
func (s *Status) why() string {
	switch {
	case s.Reason != "":
		return s.Reason
	case s.Result != 0:
		return s.Result.String()
	}
	return ""
}

// Going says what the numbers of a status mean, to be put behind its state; "" if there
// are none.
func (s *Status) Going() (text string) {
	if s.Attempt > 1 {
		text += fmt.Sprintf(", try %d", s.Attempt)
	}
	if n := bits.TrailingZeros32(s.ImagesFailed); n < 32 {
		text += fmt.Sprintf(", at image %d", n+1)
	}
	if s.Left <= 0 {
		return text
	}
	left := About(s.Left)
	switch {
	case s.State == WaitSafe:
		return text + ", goes on in " + left
	case s.State == Trial && s.Result != 0:
		return text + ", goes back in " + left + " if this lasts"
	case s.State == Trial:
		return text + ", proven in " + left
	}
	return text + ", " + left + " left"
}

// String is one line for people.
func (s Status) String() string {
	text := s.State.String()
	if s.Version != "" && s.State != Idle {
		text += " " + s.Version
	}
	if s.Done > 0 && s.Done < 1 {
		text += fmt.Sprintf(" %d %%", int(100*s.Done))
	}
	text += s.Going()
	if why := s.why(); why != "" {
		text += ": " + why
	}
	return text
}

// Errors, beside those of the device, which wrap an [ota.ErrorCode].
var (
	// ErrLine is wrapped if the line, the connection or the adapter is to blame.
	ErrLine = errors.New("no answer over the line")
	// ErrRolledBack says that the device runs its previous firmware again.
	ErrRolledBack = errors.New("the device went back to its previous firmware")
	// ErrUnfinished says that the time was over before it was known how it ends. What
	// the device was asked for goes on.
	ErrUnfinished = errors.New("not finished in the time that was given")
	// ErrOccupied says that somebody else's transfer or an installation is under way.
	ErrOccupied = fmt.Errorf("the device is occupied: %w", ota.ErrBusy)
)
