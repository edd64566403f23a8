package der

import (
	"context"
	"errors"
	"time"
)

// keeper arms the dead-man again and again while the plant is at rest and this
// process lives. It knows nothing of the update: whether the rest has lasted too long
// is for the manager to say.
type keeper struct {
	cancel func()
	done   chan struct{}
}

// keep starts a keeper. Its time does not end with that of Quiesce.
func (c *converter) keep(f *found) *keeper {
	ctx, cancel := context.WithCancel(context.Background())
	k := &keeper{cancel, make(chan struct{})}
	go func() {
		defer close(k.done)
		c.keepArmed(ctx, f)
	}()
	return k
}

// stop ends a keeper, and returns when it no longer writes.
func (k *keeper) stop() {
	if k != nil {
		k.cancel()
		<-k.done
	}
}

// keepArmed gives the dead-man its whole time four times as often as it needs, so
// that three attempts may fail.
func (c *converter) keepArmed(ctx context.Context, f *found) {
	every := time.Duration(f.DeadMan) * time.Second / 4
	for {
		if pause(ctx, every) != nil {
			return
		}
		try, cancel := context.WithTimeout(ctx, every)
		held, err := c.held(try, f, zero)
		switch {
		case err != nil:
		case !held: // it ran out, or somebody else took over
			err = errTaken
		default:
			err = c.arm(try, f)
		}
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errTaken):
			c.d.tell("the dead-man is not armed any more: %v", err)
			return
		case err != nil:
			c.d.tell("%v; trying again in %s", err, every)
		}
	}
}
