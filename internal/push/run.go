package push

import (
	"context"
	"errors"
	"time"
)

// Options say how far to go.
type Options struct {
	StageOnly bool          // until the device has verified the file; nothing is installed
	Poll      time.Duration // how often the device is asked how far it is; 0: 1 s
	Timeout   time.Duration // for all of it; 0: as long as the context lasts
	// Accept, which may be nil, is shown the plan before the first byte is sent; an error ends Run.
	Accept func(Plan) error
	Tell   func(Event) // may be nil; called from one goroutine
}

// Kind is what an Event is about. The names are those of --json and never change.
type Kind string

// Kinds.
const (
	KindIdentity Kind = "identity" // who answers
	KindPlan     Kind = "plan"     // how long it will take
	KindProgress Kind = "progress" // bytes that the device has
	KindState    Kind = "state"    // another state, or another reason to wait
	KindTrouble  Kind = "trouble"  // the line is gone; it is tried again
	KindBack     Kind = "back"     // the line works again
)

// Event is something that happened. The fields that belong to its kind are set.
type Event struct {
	Time     time.Time `json:"time"`
	Kind     Kind      `json:"event"`
	Identity *Identity `json:"identity,omitempty"`
	Plan     *Plan     `json:"plan,omitempty"`
	Status   *Status   `json:"status,omitempty"`
	Done     int64     `json:"done,omitempty"` // bytes
	Size     int64     `json:"size,omitempty"` // bytes
	Error    string    `json:"error,omitempty"`
}

// Run brings f into d and follows the update to its end. nil: the new firmware is proven.
func Run(ctx context.Context, d Device, f *File, o Options) error {
	return errors.ErrUnsupported
}

// Watch follows an update that was asked for to its end, over restarts of the device. version is
// that of the release, "" if it is not known. nil: the new firmware is proven.
func Watch(ctx context.Context, d Device, version string, o Options) error {
	return errors.ErrUnsupported
}
