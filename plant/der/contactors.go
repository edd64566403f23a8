package der

import (
	"context"
	"fmt"
)

// Values of 802 State and SetOp.
const (
	stateDisconnected  = 1
	stateConnected     = 3
	stateStandby       = 4
	stateSoCProtection = 5

	opConnect    = 1
	opDisconnect = 2

	contactorBit = 1 << 1 // of 803 StrSt (CONTACTOR_STATUS)
)

// connected says whether the battery's contactors are closed. One that cannot be told
// to open and close is an error.
func (c *converter) connected(ctx context.Context) (bool, error) {
	b, err := c.read(ctx, 802)
	if err != nil {
		return false, fmt.Errorf("look at the contactors: %w", err)
	}
	if _, err := b.Integer("SetOp"); err != nil {
		return false, fmt.Errorf("look at the contactors: %w; configure that they stay closed", err)
	}
	state, err := b.Integer("State")
	if err != nil {
		return false, fmt.Errorf("look at the contactors: %w; configure that they stay closed", err)
	}
	return state != stateDisconnected, nil
}

// disconnect opens the contactors. The plant has just been at rest; they wear out, or
// weld, if they open under load, so the current is looked at once more.
func (c *converter) disconnect(ctx context.Context) error {
	maxW, err := c.maxW(ctx)
	if err != nil {
		return err
	}
	if why, _ := c.motion(ctx, maxW); why != "" {
		return fmt.Errorf("open the contactors: %s", why)
	}
	c.d.tell("open the contactors")
	if err := c.change(ctx, 802, value{"SetOp", opDisconnect}); err != nil {
		return fmt.Errorf("open the contactors: %w", err)
	}
	return c.await(ctx, "open the contactors", func(state int64) bool { return state == stateDisconnected }, true)
}

// connect closes the contactors that disconnect has opened; the battery management
// precharges. If it was not us who opened them, they are not ours to close.
func (c *converter) connect(ctx context.Context) error {
	b, err := c.read(ctx, 802)
	if err != nil {
		return fmt.Errorf("close the contactors: %w", err)
	}
	state, errState := b.Integer("State")
	op, errOp := b.Integer("SetOp")
	closed := func(state int64) bool {
		return state == stateConnected || state == stateStandby || state == stateSoCProtection
	}
	switch {
	case errState != nil || errOp != nil:
		return fmt.Errorf("close the contactors: 802 State or SetOp has no value any more; %w", errPerson)
	case state != stateDisconnected && op != opDisconnect: // closed, or a process that died has told it to
		return c.await(ctx, "close the contactors", closed, false)
	case op != opDisconnect:
		return fmt.Errorf("close the contactors: 802 State is DISCONNECTED, and SetOp is %d, which is not from here; the battery management or a person has opened them, and has to close them", op)
	}
	c.d.tell("close the contactors")
	if err := c.set(ctx, 802, value{"SetOp", opConnect}); err != nil {
		return fmt.Errorf("close the contactors: %w", err)
	}
	return c.await(ctx, "close the contactors", closed, false)
}

// await waits for the battery's state, and for opening also for those strings that
// say how their contactors are.
func (c *converter) await(ctx context.Context, doing string, done func(int64) bool, open bool) error {
	last := "nothing was read yet"
	for {
		why, err := c.stateIs(ctx, done, open)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w: %s", doing, context.Cause(ctx), last)
		case err != nil:
			last = err.Error()
		case why == "":
			return nil
		default:
			last = why
		}
		if err := pause(ctx, c.d.cfg.Poll); err != nil {
			return fmt.Errorf("%s: %w: %s", doing, err, last)
		}
	}
}

// stateIs returns "" if it is, or what it is instead.
func (c *converter) stateIs(ctx context.Context, done func(int64) bool, open bool) (string, error) {
	b, err := c.read(ctx, 802)
	if err != nil {
		return "", err
	}
	state, err := b.Integer("State")
	if err != nil {
		return "", err
	}
	if !done(state) {
		e, _ := b.Enum("State")
		return fmt.Sprintf("802 State is %d %s", state, e.Name), nil
	}
	if !open || len(c.device.Find(803)) != 1 {
		return "", nil
	}
	bank, err := c.read(ctx, 803)
	if err != nil {
		return "", err
	}
	n, err := bank.Repeats("string")
	if err != nil {
		return "", err
	}
	for i := 1; i <= n; i++ {
		path := fmt.Sprintf("string[%d].StrSt", i)
		if bits, err := bank.Mask(path); err == nil && bits&contactorBit != 0 {
			return fmt.Sprintf("803 %s says that its contactor is closed", path), nil
		}
	}
	return "", nil
}
