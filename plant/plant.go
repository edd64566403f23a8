// Package plant is what is done to the plant around the restart of its controller:
// before it, [Action.Quiesce] brings the power to rest, so that nothing flows while
// nobody controls; afterwards [Action.Resume] puts everything back as it was found.
// It is for the agent of a battery energy storage system, and for those who embed
// the library and want the same of their own hooks.
//
// The kinds are folders of their own:
//
//	plant/der     a converter or battery that speaks SunSpec, with a dead-man in it
//	plant/modbus  a list of registers to write, for plants that do not
//	plant/http    two addresses to ask, for plants with a controller of their own
//
// Several are joined with [All], bounded in time with [Bound], and handed to the
// manager as they are:
//
//	converter, err := der.New(der.Config{...})
//	...
//	action := plant.All(plant.Bound(2*time.Minute, converter), plant.Func{...})
//	config.Hooks.Suspend, config.Hooks.Resume = action.Quiesce, action.Resume
//
// What is promised: what was found is on the disk before the first thing is changed,
// so that the next process resumes if this one dies at any moment. Nothing is
// reported as done that was not read back. Protections are never switched off.
package plant

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// An Action is done to the plant around an update. Both verbs are idempotent and are
// called one at a time. A context that ends makes them return soon, with an error.
type Action interface {
	// Quiesce returns nil once the plant is at rest. After an error it may be
	// half-way, and the caller must call Resume.
	Quiesce(ctx context.Context) error

	// Resume puts the plant back as Quiesce found it, also if that was another
	// process or did not come to its end. Without a Quiesce before it, it changes
	// nothing. After an error it is to be called again.
	Resume(ctx context.Context) error
}

// Func is an [Action] of two functions, for example two commands. What is nil does
// nothing. That they are idempotent is up to them.
type Func struct {
	QuiesceFunc, ResumeFunc func(ctx context.Context) error
}

// Quiesce implements [Action].
func (f Func) Quiesce(ctx context.Context) error { return f.call(ctx, f.QuiesceFunc) }

// Resume implements [Action].
func (f Func) Resume(ctx context.Context) error { return f.call(ctx, f.ResumeFunc) }

func (f Func) call(ctx context.Context, do func(context.Context) error) error {
	if do == nil {
		return nil
	}
	return do(ctx)
}

// All returns an action that quiesces in the order given, up to the first error, and
// resumes in the opposite order: all of them, whatever the others answer. Its error
// then wraps theirs.
func All(actions ...Action) Action { return all(actions) }

type all []Action

func (a all) Quiesce(ctx context.Context) error {
	for _, action := range a {
		if err := action.Quiesce(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (a all) Resume(ctx context.Context) error {
	var errs []error
	for i := len(a) - 1; i >= 0; i-- { // also those that Quiesce did not get to: the process that knows that may be gone
		errs = append(errs, a[i].Resume(ctx))
	}
	return errors.Join(errs...)
}

// Bound returns an action whose verbs have at most the time d each. It must be
// greater than 0.
func Bound(d time.Duration, a Action) Action { return bound{d, a} }

type bound struct {
	d time.Duration
	a Action
}

func (b bound) Quiesce(ctx context.Context) error { return b.within(ctx, "quiesce", b.a.Quiesce) }
func (b bound) Resume(ctx context.Context) error  { return b.within(ctx, "resume", b.a.Resume) }

func (b bound) within(ctx context.Context, verb string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.d, &late{verb, b.d})
	defer cancel()
	err := do(ctx)
	if l, ok := errors.AsType[*late](context.Cause(ctx)); ok && err != nil && !errors.Is(err, l) {
		return fmt.Errorf("%w: %w", l, err)
	}
	return err
}

// late is also a [context.DeadlineExceeded], for callers who look for that.
type late struct {
	verb string
	d    time.Duration
}

func (l *late) Error() string { return fmt.Sprintf("%s: not done within %s", l.verb, l.d) }
func (l *late) Is(err error) bool {
	return err == context.DeadlineExceeded
}
