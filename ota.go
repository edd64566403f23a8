// Package ota updates the firmware of devices that must never be bricked and
// never be restarted at the wrong moment: the controllers of battery energy
// storage systems, and the embedded fleets around them.
//
// A [Manager] takes a signed [Manifest] from a [Source], writes its images
// chunk by chunk, each verified before it is written, into the slot that is
// not running, waits until the [Gate] allows the restart, boots the new slot on
// trial, and marks it good only once it has proven itself healthy. Whatever
// goes wrong before that, the device comes back to the old slot by itself.
//
// Start with [New] and [Manager.Run]. What a device must provide is in this
// file: the adapters of the folders source, slot and gate implement it, and the
// suites of package otatest say whether an adapter of your own does.
//
// The package needs the standard library only, and neither net/http nor
// os/exec, so that it fits small devices.
package ota

import (
	"context"
	"io"
)

// A Source offers releases to this device. It is not trusted: what Latest
// returns goes through [Config.Verify], and what Open returns is compared, chunk
// by chunk, with the hashes in the verified manifest.
//
// A source may also implement [Reporter] and [Waker].
type Source interface {
	// Latest returns the signed manifest (a DSSE envelope) of the newest release
	// meant for this device, or [ErrNoUpdate]. Errors should wrap one of
	// [ErrConnectivity], [ErrServer] and [ErrAuthentication]; others count as
	// connectivity. A source that also wraps [ErrWithdrawn] says that whatever it
	// offered before must not be installed any more.
	Latest(ctx context.Context) (signed []byte, err error)

	// Open returns the bytes of im, an image of m, from offset on. It may be
	// called again with any offset, also after a restart of the process and
	// without a call of Latest before it. The reader may end early, which means
	// that the rest is asked for again. Cancelling ctx unblocks a Read.
	//
	// A reader that is an [io.Seeker] says that the image is at hand: then all of
	// it is verified before the first byte is written, and read once more for that.
	Open(ctx context.Context, m *Manifest, im *Image, offset int64) (io.ReadCloser, error)
}

// A Reporter is a Source that can tell the other side how an update ended.
type Reporter interface {
	// Report delivers one outcome. It returns nil only once the other side has
	// it for good. Until then it is called again, also after restarts, so a
	// report can arrive twice: the other side tells them apart by [Report.ID].
	Report(ctx context.Context, r Report) error
}

// A Waker is a Source that notices by itself that there may be something new.
type Waker interface {
	// Wake returns a channel that receives when a check is worth while now.
	Wake() <-chan struct{}
}

// A Boot says what is running.
type Boot struct {
	Slot  string // the slot that is running
	Other string // the slot that is not, and may be written
	ID    string // changes at every boot of the device, not at a restart of the process

	// FellBack is set if the bootloader knows that it tried the slot last given
	// to Try, and came back because that did not start or was not marked good.
	// A bootloader that cannot tell leaves it false.
	FellBack bool

	// Trial is set if the bootloader knows that the running slot is being tried,
	// and that the next boot is the other one unless MarkGood is called. A
	// bootloader that cannot tell leaves it false.
	Trial bool
}

// Slots is the device's pair of slots and the bootloader that picks one.
// Every method must be idempotent: after a crash it is called again.
type Slots interface {
	// Booted reports what is running. The answer cannot change while the device runs.
	Booted(ctx context.Context) (Boot, error)

	// Open opens component's place in the named slot. It must refuse to open the
	// running slot for writing: WriteAt there is an error. A component that the
	// device does not have is [ErrIncompatible].
	Open(ctx context.Context, component, slot string) (Slot, error)

	// Try makes slot boot once. Unless MarkGood follows in that slot, the boot
	// after it is the present slot again. It returns once this is durable. An image
	// that this device's bootloader could not start should be refused, with
	// [ErrValidation] or [ErrIncompatible].
	Try(ctx context.Context, slot string) error

	// MarkGood makes the running slot the one that boots from now on, and
	// forgets any Try. It returns once this is durable. It is also called once at
	// every start of the agent that is not on trial, for bootloaders that count the
	// starts of a good slot too; where all of it is so already, it should write nothing.
	MarkGood(ctx context.Context) error

	// Reboot restarts the device. It may return before the device goes down;
	// an error means that the device does not restart.
	Reboot(ctx context.Context) error
}

// A Prober is a [Slots] that can tell whether this unit's bootloader really comes
// back from a slot that fails, by comparing what it has done at this boot with what
// it should have. The design of a device says that it does; units differ.
type Prober interface {
	// Probe is called at each start of the agent, before MarkGood, which may wipe out
	// the evidence. It writes nothing.
	Probe(ctx context.Context) (Rollback, error)
}

// Rollback is what was seen of the bootloader's way back.
type Rollback struct {
	State RollbackState `json:"state"`
	Why   string        `json:"why"` // what was seen, for people
}

// RollbackState sums up a [Rollback].
type RollbackState string

// Names that never change.
const (
	RollbackUnknown RollbackState = "unknown" // nothing was seen that says so, or the opposite
	RollbackProven  RollbackState = "proven"  // the bootloader did what it must do to come back
	RollbackBroken  RollbackState = "broken"  // it did not: this unit would stay in a slot that fails
)

// A Slot is the place of one component's image in one slot.
type Slot interface {
	// ReadAt reads what is on the medium, past any cache where that is possible.
	io.ReaderAt
	// WriteAt is called with whole chunks in rising order of offset, starting
	// anywhere on a chunk's boundary; on flash it erases as it goes. A full
	// medium is [ErrInsufficientSpace].
	io.WriterAt
	// Capacity is the greatest size of an image in bytes.
	Capacity() int64
	// Sync makes the first size bytes durable. What lies behind them no longer
	// belongs to the image, and a slot that is a file is cut there.
	Sync(size int64) error
	io.Closer
}

// Verify turns signed bytes into a manifest. It is the only place where trust
// begins; package bundle has the implementation. Errors wrap [ErrValidation].
type Verify func(signed []byte) (*Manifest, error)

// Moment is the point of an update at which the gate is asked.
type Moment string

// The gate is asked before the first byte is written, and again when a transfer that
// ended goes on; before the device is prepared for the restart, and a last time when the restart is the next thing
// that happens.
const (
	BeforeWrite   Moment = "before writing"
	BeforeRestart Moment = "before the restart"
	AtRestart     Moment = "at the restart"
)

// A Gate decides whether now is safe for m. It returns nil for yes. Every error
// is a refusal: best a [*Refusal], which says why. A gate that does not know
// says no. It should answer in milliseconds and is asked often, once a second
// by default, while an update waits for it.
type Gate func(ctx context.Context, m *Manifest, at Moment) error

// A Store keeps the record across restarts.
type Store interface {
	// Load returns the record that was saved last, or the zero Record if there
	// never was one. A record that cannot be read is an error, never a zero Record.
	Load() (Record, error)
	// Save replaces the record as a whole. It returns once that is durable; a
	// power cut leaves the old or the new record.
	Save(Record) error
}

// Hooks are the application's callbacks. All are optional, and are called one
// at a time from the goroutine that runs the manager. The order is
//
//	update:     CheckStart Suspend Started Progress... Finished [restart]
//	failure:    CheckStart Suspend Started Progress... Failed Resume
//	up to date: CheckStart Suspend UpToDate Resume
//	denied:     CheckStart
//	no suspend: CheckStart Suspend Failed Resume
//
// if [Config.Suspend] is [SuspendBeforeCheck]. With [SuspendBeforeRestart],
// Suspend comes immediately before Finished, and a path that did not suspend
// does not resume. In both, an update that has to wait, for the gate or for a
// person, resumes while it waits and suspends again when it goes on. So does the way
// back out of a soak, which suspends before its restart. An agent that died where it may
// have suspended resumes at its next start.
type Hooks struct {
	CheckStart func() bool                         // false: no check now
	Suspend    func(context.Context) error         // quiesce the application
	Started    func(*Manifest)                     // a release is going to be written
	Progress   func(done, total int64)             // bytes of all images, verified and written
	Finished   func(*Manifest)                     // everything is ready, the restart is next
	Failed     func(error)                         // this attempt ended; see CodeOf
	UpToDate   func()                              // nothing newer
	Resume     func(context.Context) error         // the opposite of Suspend; must be idempotent
	Event      func(status Status, code ErrorCode) // every change of status
}
