package push

import (
	"context"
	"errors"
	"fmt"
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
	KindNumbers  Kind = "numbers"  // the same state and reason, and other numbers in them
	KindTrouble  Kind = "trouble"  // the line is gone; it is tried again
	KindBack     Kind = "back"     // the line works again

	KindWithdrawn Kind = "withdrawn" // what the status says was taken back
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
	r := newRunner(d, f.Manifest.Version, o)
	return r.within(ctx, func(ctx context.Context) error { return r.push(ctx, f) })
}

// Watch follows an update that was asked for to its end, over restarts of the device.
// version is that of the release, "" if it is not known. nil: the new firmware is proven.
func Watch(ctx context.Context, d Device, version string, o Options) error {
	r := newRunner(d, version, o)
	return r.within(ctx, r.watch)
}

// runner is one run.
type runner struct {
	Options
	device  Device
	version string
	last    Status // what the device said last
	stuck   bool   // trouble was told, and not that it is over

	takesBack bool // it does not wait for the gate
}

func newRunner(d Device, version string, o Options) *runner {
	if o.Poll <= 0 {
		o.Poll = time.Second
	}
	return &runner{Options: o, device: d, version: version}
}

// within runs work in the time that there is, and says what is left open if that is over.
func (r *runner) within(ctx context.Context, work func(context.Context) error) error {
	inTime, cancel := ctx, context.CancelFunc(func() {})
	if r.Timeout > 0 {
		inTime, cancel = context.WithTimeout(ctx, r.Timeout)
	}
	defer cancel()
	err := work(inTime)
	if err == nil || inTime.Err() == nil || !errors.Is(err, inTime.Err()) {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if r.last == (Status{}) {
		return fmt.Errorf("%w, %v: the device has not said yet what it does", ErrUnfinished, r.Timeout)
	}
	if r.last.State == WaitSafe && !r.takesBack {
		return fmt.Errorf("in %v: %w", r.Timeout, r.last.Refusal())
	}
	return fmt.Errorf("%w, %v: the device was last seen %s", ErrUnfinished, r.Timeout, r.last)
}

func (r *runner) tell(e Event) {
	if r.Tell != nil {
		e.Time = time.Now()
		r.Tell(e)
	}
}

// trouble tells that the line is gone, once, and that it works again.
func (r *runner) trouble(err error) {
	switch {
	case err != nil && !r.stuck:
		r.tell(Event{Kind: KindTrouble, Error: err.Error()})
	case err == nil && r.stuck:
		r.tell(Event{Kind: KindBack})
	}
	r.stuck = err != nil
}

// push is Run, without the limit of time.
func (r *runner) push(ctx context.Context, f *File) error {
	id, err := Identify(ctx, r.device)
	if err != nil {
		return err
	}
	r.tell(Event{Kind: KindIdentity, Identity: &id})
	// It is there: an answer that is lost from now on is no reason to give up.
	err = r.persist(ctx, func() (err error) {
		r.last, err = r.device.Status(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err := r.occupied(); err != nil {
		return err
	}
	plan := r.device.Plan(r.left(f))
	r.tell(Event{Kind: KindPlan, Plan: &plan})
	if r.Accept != nil {
		if err := r.Accept(plan); err != nil {
			return err
		}
	}
	done := int64(-1)
	err = r.device.Send(ctx, f, Tell{Trouble: r.trouble, Progress: func(n int64) {
		if n != done {
			done = n
			r.tell(Event{Kind: KindProgress, Done: n, Size: f.Size})
		}
	}})
	if err != nil {
		return err
	}
	if r.StageOnly {
		return nil
	}
	if err := r.persist(ctx, func() error { return r.device.Install(ctx) }); err != nil {
		return err
	}
	return r.watch(ctx)
}

// questions is how often a device is asked who it is before nobody is there: where a tenth
// of all frames gets lost, one time would fail for one start in forty.
const questions = 3

// Identify asks who is at the other end of the line.
func Identify(ctx context.Context, d Device) (id Identity, err error) {
	for range questions {
		if id, err = d.Identify(ctx); !errors.Is(err, ErrLine) || ctx.Err() != nil {
			break
		}
	}
	return id, err
}

// occupied says that the device has another release in hand, which it was asked to install:
// until that has ended it takes no other, and waiting for a battery can take for ever.
func (r *runner) occupied() error {
	s := &r.last
	if s.State < WaitSafe || s.State > Trial || s.Version == "" || s.Version == r.version {
		return nil
	}
	return Fail(ErrOccupied, "the device has %s in hand, which it was asked to install before, and takes no other until that has ended: it is %s", s.Version, s)
}

// left is how much there probably is to send: only Send finds out whether what the device
// has is of this file.
func (r *runner) left(f *File) int64 {
	s := &r.last
	// A device may count in blocks, the last of which is shorter than the others.
	if s.Size < f.Size || s.Size >= f.Size+maxBlock || s.Version != "" && s.Version != r.version {
		return f.Size
	}
	switch {
	case s.State >= Received && s.State <= Confirmed:
		return 0
	case s.State == Receiving:
		return max(0, f.Size-s.Received)
	}
	return f.Size
}

const maxBlock = 4096 // bytes of the largest piece on any bus

// Pauses between two attempts to reach a device that does not answer: a line that
// stumbled is back at once, a restart takes a minute.
const (
	firstPause = 250 * time.Millisecond
	longPause  = 5 * time.Second
)

// persist does something until the line lets it, or ctx ends.
func (r *runner) persist(ctx context.Context, do func() error) error {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := do()
		if err == nil || !errors.Is(err, ErrLine) || ctx.Err() != nil {
			if err == nil {
				r.trouble(nil)
			}
			return err
		}
		r.trouble(err)
		if err := Wait(ctx, pause); err != nil {
			return err
		}
	}
}

// Wait waits for so long, or until ctx ends, whose error it returns.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
