package der

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
)

// Values of 704 WSetMod.
const (
	modePercent = 0 // W_MAX_PCT
	modeWatts   = 1 // WATTS
)

// rung is how long each step of a ramp lasts.
const rung = time.Second

func (f *found) mode() int64 {
	if f.Set == "WSetPct" {
		return modePercent
	}
	return modeWatts
}

// mine says whether the set-point is one of ours. Enabled, it must be on the ladder;
// disabled it has no effect, and may be the one that was found.
func (f *found) mine(b sunspec.Block) bool {
	ena, err := b.Integer("WSetEna")
	if err != nil {
		return false
	}
	set, err := b.Integer(f.Set)
	if err != nil {
		return false
	}
	mod, errMod := b.Integer("WSetMod")
	foundMod, hadMod := f.Points["WSetMod"]
	if ena == 1 {
		return (errMod != nil || mod == f.mode()) && f.Ladder.has(set)
	}
	return f.Points["WSetEna"] == 0 && (errMod != nil || mod == f.mode() || hadMod && mod == foundMod) &&
		(f.Ladder.has(set) || set == f.Points[f.Set])
}

// holds says whether the plant is as Quiesce left it: somewhere on the way to rest.
func (c *converter) holds(ctx context.Context, f *found) (bool, error) {
	return c.held(ctx, f, f.Ladder.has)
}

// held says whether the plant is held by us at a set-point that at accepts.
func (c *converter) held(ctx context.Context, f *found, at func(raw int64) bool) (bool, error) {
	if f.Control != SetPoint {
		return c.inStandby(ctx, f)
	}
	b, err := c.read(ctx, 704)
	if err != nil {
		return false, err
	}
	scale, errScale := b.Integer(f.Set + "_SF")
	ena, errEna := b.Integer("WSetEna")
	set, errSet := b.Integer(f.Set)
	return errors.Join(errScale, errEna, errSet) == nil && scale == f.Scale && ena == 1 && f.mine(b) && at(set), nil
}

func zero(raw int64) bool { return raw == 0 }

// stop brings the power down.
func (c *converter) stop(ctx context.Context, f *found) error {
	if f.Control != SetPoint {
		return c.enterStandby(ctx, f)
	}
	if f.DeadMan > 0 {
		// Where to go back to comes before the time after which to go: a timer of
		// somebody else that runs out between the two must find a place that is right.
		revert := append(f.reverts(), value{"WSetEnaRvrt", f.Points["WSetEna"]}, value{"WSetRvrtTms", f.DeadMan})
		if err := c.change(ctx, 704, revert...); err != nil {
			return fmt.Errorf("arm the dead-man: %w", err)
		}
	}
	b, err := c.read(ctx, 704)
	if err != nil {
		return err
	}
	at, err := b.Integer(f.Set)
	if err != nil {
		return err
	}
	if !f.mine(b) {
		return errTaken
	}
	if ena, err := b.Integer("WSetEna"); err != nil {
		return err
	} else if ena == 0 {
		if err := c.takeOver(ctx, f); err != nil {
			return fmt.Errorf("take over at %s: %w", f.text(f.Ladder.From), err)
		}
		at = f.Ladder.From
	}
	if f.DeadMan > 0 {
		if err := c.arm(ctx, f); err != nil {
			return err
		}
	}
	for at != 0 {
		at = f.Ladder.down(at)
		if err := c.step(ctx, f, "down", at); err != nil {
			return err
		}
	}
	return nil
}

// reverts is where the dead-man goes back to: in the other unit too, because a device
// takes over both.
func (f *found) reverts() []value {
	var all []value
	for _, axis := range [][2]string{{"WSet", "WSetRvrt"}, {"WSetPct", "WSetPctRvrt"}} {
		set, hasSet := f.Points[axis[0]]
		if _, has := f.Points[axis[1]]; has && hasSet {
			all = append(all, value{axis[1], set})
		}
	}
	return all
}

// takeOver enables a set-point where the power is anyway.
func (c *converter) takeOver(ctx context.Context, f *found) error {
	if _, has := f.Points["WSetMod"]; has {
		if err := c.change(ctx, 704, value{"WSetMod", f.mode()}); err != nil {
			return err
		}
	}
	return c.change(ctx, 704, value{f.Set, f.Ladder.From}, value{"WSetEna", 1})
}

// step sets one rung of a ramp, and stays on it for its time.
func (c *converter) step(ctx context.Context, f *found, way string, to int64) error {
	c.d.tell("ramp %s: set-point %s", way, f.text(to))
	if err := c.set(ctx, 704, value{f.Set, to}); err != nil {
		return fmt.Errorf("ramp %s to %s: %w", way, f.text(to), err)
	}
	if to == 0 || to == f.Ladder.From {
		return nil
	}
	if err := pause(ctx, rung); err != nil {
		return fmt.Errorf("ramp %s, at %s: %w", way, f.text(to), err)
	}
	return nil
}

var errTaken = errors.New("another controller has changed the set-point; find out who, and stop it for the time of the update")

// arm gives the dead-man its whole time. It starts when the enable point is written,
// also if that has its value already; on some devices, when the time is written.
func (c *converter) arm(ctx context.Context, f *found) error {
	b, err := c.read(ctx, 704)
	if err != nil {
		return err
	}
	if ena, err := b.Integer("WSetEna"); err != nil || ena != 1 || !f.mine(b) {
		return errTaken // enabling it now would command what is not ours
	}
	if err := c.set(ctx, 704, value{"WSetRvrtTms", f.DeadMan}); err != nil {
		return fmt.Errorf("arm the dead-man: %w", err)
	}
	if err := c.set(ctx, 704, value{"WSetEna", 1}); err != nil {
		return fmt.Errorf("arm the dead-man: %w", err)
	}
	for waited := time.Duration(0); ; waited += readBackPoll {
		b, err := c.read(ctx, 704)
		if err != nil {
			return fmt.Errorf("look at the dead-man: %w", err)
		}
		left, err := b.Integer("WSetRvrtRem")
		if err != nil { // not implemented, so that there is nothing to look at
			return nil
		}
		// A few seconds may have gone; a timer that was not restarted lacks a quarter.
		if left <= f.DeadMan && left > f.DeadMan-max(f.DeadMan/8, 3) {
			return nil
		}
		if waited >= readBack {
			return fmt.Errorf("arm the dead-man: 704 WSetRvrtRem is %d s, want about %d s; the converter's dead-man does not work as it should", left, f.DeadMan)
		}
		if err := pause(ctx, readBackPoll); err != nil {
			return fmt.Errorf("look at the dead-man: %w", err)
		}
	}
}

// restoreSetPoint puts back the set-point, and after it what was the dead-man's, so
// that the dead-man finishes the work if this process cannot.
func (c *converter) restoreSetPoint(ctx context.Context, f *found) error {
	b, err := c.read(ctx, 704)
	if err != nil {
		return err
	}
	if scale, err := b.Integer(f.Set + "_SF"); err == nil && scale != f.Scale {
		if err := f.rescale(scale); err != nil {
			return err
		}
	}
	switch at, _ := b.Integer(f.Set); {
	case !f.mine(b):
		c.d.tell("another controller has changed the set-point to %s, so it is left as it is", c.present(b))
	case f.Points["WSetEna"] == 1:
		for at != f.Ladder.From {
			at = f.Ladder.up(at)
			if err := c.step(ctx, f, "up", at); err != nil {
				return err
			}
		}
	default:
		back := []value{{"WSetEna", 0}, {f.Set, f.Points[f.Set]}}
		if mod, has := f.Points["WSetMod"]; has {
			back = append(back, value{"WSetMod", mod})
		}
		if err := c.change(ctx, 704, back...); err != nil {
			return fmt.Errorf("give the power back: %w", err)
		}
	}
	if f.DeadMan > 0 {
		if err := c.disarm(ctx, f); err != nil {
			return fmt.Errorf("disarm the dead-man: %w", err)
		}
	}
	c.d.tell("the set-point is as it was found")
	return nil
}

// disarm puts back the points of the dead-man that are still as Quiesce wrote them.
// The time comes first, and has to have stopped: with the old place to go to and our
// time, it would go there.
func (c *converter) disarm(ctx context.Context, f *found) error {
	wrote := []value{{"WSetRvrtTms", f.DeadMan}, {"WSetEnaRvrt", f.Points["WSetEna"]}}
	for _, w := range append(wrote, f.reverts()...) {
		b, err := c.read(ctx, 704)
		if err != nil {
			return err
		}
		now, err := b.Integer(w.path)
		if err != nil {
			return err
		}
		was := f.Points[w.path]
		switch {
		case now == was:
		case now != w.raw:
			c.d.tell("another controller has changed %s to %d, so it is left as it is", w.path, now)
			continue
		default:
			if err := c.set(ctx, 704, value{w.path, was}); err != nil {
				return err
			}
		}
		if w.path == "WSetRvrtTms" && was == 0 {
			if err := c.stopped(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// stopped waits until no time is left to run out. Devices that look at the time only
// when the enable point is written are shown it.
func (c *converter) stopped(ctx context.Context) error {
	for waited := time.Duration(0); ; waited += readBackPoll {
		b, err := c.read(ctx, 704)
		if err != nil {
			return err
		}
		left, err := b.Integer("WSetRvrtRem")
		if err != nil || left == 0 { // not implemented, so that there is nothing to look at
			return nil
		}
		switch {
		case waited >= 2*readBack:
			return fmt.Errorf("704 WSetRvrtRem is still %d s, want 0; it goes back to what was found by itself when that is over", left)
		case waited == readBack:
			ena, err := b.Integer("WSetEna")
			if err == nil {
				err = c.set(ctx, 704, value{"WSetEna", ena})
			}
			if err != nil {
				return err
			}
		}
		if err := pause(ctx, readBackPoll); err != nil {
			return err
		}
	}
}

// present is the set-point that is in force, for people.
func (c *converter) present(b sunspec.Block) string {
	if ena, err := b.Integer("WSetEna"); err != nil || ena != 1 {
		return "none"
	}
	if mod, err := b.Integer("WSetMod"); err == nil && mod == modePercent {
		return fmt.Sprintf("%.4g %%", b.Float("WSetPct"))
	}
	return watts(b.Float("WSet"))
}

// rescale is for a converter whose new firmware counts in other units.
func (f *found) rescale(scale int64) error {
	most := float64(math.MaxInt32) // WSet is int32, WSetPct int16
	if f.Set == "WSetPct" {
		most = math.MaxInt16
	}
	factor, fits := math.Pow10(int(f.Scale-scale)), true
	to := func(v int64) int64 {
		scaled := math.Trunc(float64(v) * factor)
		fits = fits && math.Abs(scaled) <= most
		return int64(scaled)
	}
	points := maps.Clone(f.Points)
	for _, path := range []string{f.Set, f.Revert} {
		if v, has := points[path]; has {
			points[path] = to(v)
		}
	}
	l := ladder{to(f.Ladder.From), max(to(f.Ladder.Step), 1)}
	if !fits {
		return fmt.Errorf("convert what was found from a scale of %d to one of %d: it does not fit the registers any more; %w", f.Scale, scale, errPerson)
	}
	f.Points, f.Ladder, f.Scale = points, l, scale
	return nil
}
