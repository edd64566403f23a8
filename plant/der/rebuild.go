package der

import (
	"context"
	"errors"
	"fmt"

	"github.com/interlock-energy/ota/bus/sunspec"
)

// rebuild finds what to do although what was remembered is lost. Where a dead-man
// runs, the device itself still knows what it goes back to, and being there sooner
// harms nobody. Otherwise nothing is guessed: what is not held by us is left as it
// is, and where that cannot be told a person has to decide.
func (c *converter) rebuild(ctx context.Context, f *found, lost error) error {
	c.d.tell("%v", lost)
	*f = found{Device: c.id, Points: map[string]int64{}}
	byHand := fmt.Errorf("%w; %w, and remove the file %s", lost, errPerson, c.d.file.Path)
	if c.d.cfg.OpenContactors {
		if closed, err := c.connected(ctx); err != nil || !closed {
			return errors.Join(err, byHand)
		}
	}
	if c.d.cfg.Control != SetPoint {
		if held, err := c.inStandby(ctx, &found{Control: c.d.cfg.Control}); err != nil || held {
			return errors.Join(err, byHand)
		}
		return nil
	}
	b, err := c.read(ctx, 704)
	if err != nil {
		return err
	}
	at := func(path string) int64 { v, _ := b.Integer(path); return v }
	f.Set, f.Revert = axisOf(b)
	switch {
	case at("WSetEna") != 1:
		c.d.tell("no set-point is in force, so it is left as it is")
		return nil
	case c.d.cfg.NoDeadMan:
		return byHand
	case at(f.Set) != 0:
		c.d.tell("it is not held at 0, so it is left to its dead-man, or to whoever set it")
		return nil
	case !running(b, f.Revert):
		// It is armed before the set-point is touched, so it was at 0 when it was found.
		c.d.tell("its dead-man does not run, so it was at 0 before, and is left as it is")
		return nil
	}
	f.Control, f.DeadMan = SetPoint, at("WSetRvrtTms")
	f.Scale, _ = b.Integer(f.Set + "_SF")
	f.Points = map[string]int64{"WSetEna": at("WSetEnaRvrt"), f.Set: at(f.Revert)}
	for _, path := range []string{"WSetEnaRvrt", "WSetRvrt", "WSetPctRvrt"} { // what they were is lost for ever
		if v, err := b.Integer(path); err == nil {
			f.Points[path] = v
		}
	}
	f.Points["WSetRvrtTms"] = 0
	if mod, err := b.Integer("WSetMod"); err == nil {
		f.Points["WSetMod"] = mod
	}
	f.Ladder.From = at(f.Revert)
	if f.Ladder.Step, err = c.stepOf(ctx, b, f); err != nil {
		return err
	}
	c.d.tell("its dead-man knows what was found: %s", f)
	return nil
}

// running says whether a dead-man counts down to somewhere.
func running(b sunspec.Block, revert string) bool {
	for _, path := range []string{revert, "WSetEnaRvrt"} {
		if _, err := b.Integer(path); err != nil {
			return false
		}
	}
	after, err := b.Integer("WSetRvrtTms")
	left, errLeft := b.Integer("WSetRvrtRem")
	return err == nil && after > 0 && (errLeft != nil || left > 0)
}

// axisOf is the set-point that is in force, and what the dead-man makes of it.
func axisOf(b sunspec.Block) (set, revert string) {
	if mod, err := b.Integer("WSetMod"); err == nil && mod == modePercent {
		return "WSetPct", "WSetPctRvrt"
	}
	return "WSet", "WSetRvrt"
}
