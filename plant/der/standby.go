package der

import (
	"context"
	"fmt"
)

// Values of 715 OpCtl and 802 SetInvState.
const (
	opStop         = 0
	opEnterStandby = 2
	opExitStandby  = 3

	invStopped = 1
	invStandby = 2
)

// control returns the point that a control uses, and whether a value of it means that
// the converter is at rest already.
func (f *found) control() (model uint16, point string, enter int64, resting func(int64) bool) {
	if f.Control == Standby715 {
		return 715, "OpCtl", opEnterStandby, func(v int64) bool { return v == opEnterStandby || v == opStop }
	}
	return 802, "SetInvState", invStandby, func(v int64) bool { return v == invStandby || v == invStopped }
}

func (c *converter) state(ctx context.Context, f *found) (int64, error) {
	model, point, _, _ := f.control()
	b, err := c.read(ctx, model)
	if err != nil {
		return 0, err
	}
	v, err := b.Integer(point)
	if err != nil {
		return 0, fmt.Errorf("%w; use another control, or a list of registers", err)
	}
	return v, nil
}

func (c *converter) findStandby(ctx context.Context, f *found) error {
	v, err := c.state(ctx, f)
	_, point, _, _ := f.control()
	f.Points[point] = v
	return err
}

// inStandby says whether the converter is told to be at rest.
func (c *converter) inStandby(ctx context.Context, f *found) (bool, error) {
	v, err := c.state(ctx, f)
	_, _, _, resting := f.control()
	return err == nil && resting(v), err
}

// enterStandby leaves a converter alone that is stopped: standby would be more.
func (c *converter) enterStandby(ctx context.Context, f *found) error {
	if held, err := c.inStandby(ctx, f); err != nil || held {
		return err
	}
	model, point, enter, _ := f.control()
	c.d.tell("enter standby")
	if err := c.set(ctx, model, value{point, enter}); err != nil {
		return fmt.Errorf("enter standby: %w", err)
	}
	return nil
}

// leaveStandby puts back what was found, if it is still as Quiesce left it.
func (c *converter) leaveStandby(ctx context.Context, f *found) error {
	now, err := c.state(ctx, f)
	if err != nil {
		return err
	}
	model, point, enter, resting := f.control()
	was := f.Points[point]
	switch {
	case now == was || resting(was):
		return nil
	case now != enter:
		c.d.tell("another controller has changed %d %s to %d, so it is left as it is", model, point, now)
		return nil
	}
	if f.Control == Standby715 {
		was = opExitStandby // the command that undoes it; START is one for a converter that is stopped
	}
	c.d.tell("leave standby")
	if err := c.set(ctx, model, value{point, was}); err != nil {
		return fmt.Errorf("leave standby: %w", err)
	}
	return nil
}
