package der

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
)

// found is what was there before the first write, and what is going to be written,
// so that another process can tell the one from the other and from what somebody else
// has done. Names in it never change. Values are registers without scale factor.
type found struct {
	Device  string           `json:"device"` // converter.id
	At      time.Time        `json:"at"`     // for people
	Control Control          `json:"control"`
	Points  map[string]int64 `json:"points"` // those that the device implements

	Set     string `json:"set,omitempty"`    // the set-point that is used: WSet or WSetPct
	Revert  string `json:"revert,omitempty"` // and what the dead-man makes of it
	Scale   int64  `json:"scale,omitempty"`  // of both
	Ladder  ladder `json:"ladder,omitzero"`
	DeadMan int64  `json:"dead_man,omitempty"` // s; 0: none
	Opens   bool   `json:"opens,omitempty"`    // the contactors were closed, and will be opened
}

// A ladder is the set-points on the way down to 0, and up again.
type ladder struct {
	From int64 `json:"from"`
	Step int64 `json:"step"` // > 0
}

func (l ladder) has(v int64) bool {
	if v == 0 || v == l.From {
		return true
	}
	return (v < 0) == (l.From < 0) && abs(v) < abs(l.From) && (abs(l.From)-abs(v))%l.Step == 0
}

// down is the rung below v.
func (l ladder) down(v int64) int64 { return l.signed(max(abs(v)-l.Step, 0)) }

// up is the rung above v.
func (l ladder) up(v int64) int64 {
	if v == 0 && abs(l.From)%l.Step != 0 {
		return l.signed(abs(l.From) % l.Step)
	}
	return l.signed(min(abs(v)+l.Step, abs(l.From)))
}

func (l ladder) signed(v int64) int64 {
	if l.From < 0 {
		return -v
	}
	return v
}

func abs(v int64) int64 { return max(v, -v) }

func (f *found) String() string {
	switch {
	case f.Control != SetPoint:
		return fmt.Sprintf("%s, to be controlled by %s", f.Device, f.Control)
	case f.Points["WSetEna"] == 0:
		return f.Device + ": no set-point"
	}
	return fmt.Sprintf("%s: set-point %s", f.Device, f.text(f.Points[f.Set]))
}

// text is a set-point for people.
func (f *found) text(raw int64) string {
	v := float64(raw) * math.Pow10(int(f.Scale))
	if f.Set == "WSetPct" {
		return fmt.Sprintf("%.4g %%", v)
	}
	return watts(v)
}

func watts(v float64) string {
	if math.Abs(v) >= 10_000 {
		return fmt.Sprintf("%.1f kW", v/1000)
	}
	return fmt.Sprintf("%.0f W", v)
}

var errPerson = errors.New("bring the plant to where it should be by hand")

// check refuses what was remembered of another device, and what could not have been.
func (f *found) check(c *converter) error {
	file := c.d.file.Path
	if f.Device != c.id {
		return fmt.Errorf("compare the device with what was remembered in %s: it is %q, and was %q; %w, and remove the file", file, c.id, f.Device, errPerson)
	}
	standby := f.Control == Standby715 || f.Control == Standby802
	const most = 1 << 32
	bad := f.Control != SetPoint && !standby || f.DeadMan < 0 || f.DeadMan >= most || f.Scale < -10 || f.Scale > 10
	for _, v := range f.Points {
		bad = bad || v >= most || v <= -most
	}
	if f.Control == SetPoint {
		_, hasSet := f.Points[f.Set]
		_, hasEna := f.Points["WSetEna"]
		axis := f.Set == "WSet" && f.Revert == "WSetRvrt" || f.Set == "WSetPct" && f.Revert == "WSetPctRvrt"
		bad = bad || !hasSet || !hasEna || !axis || f.Ladder.Step <= 0 || f.Ladder.Step > most || f.Ladder.From >= most || f.Ladder.From <= -most
	}
	if bad {
		return fmt.Errorf("recall what was found, from %s: its values cannot be; %w, and remove the file", file, errPerson)
	}
	return nil
}

// find reads what is there, and decides what will be done. It writes nothing.
func (c *converter) find(ctx context.Context) (*found, error) {
	if err := c.remote(ctx); err != nil {
		return nil, err
	}
	f := &found{Device: c.id, At: time.Now().UTC().Truncate(time.Second), Control: c.d.cfg.Control, Points: map[string]int64{}}
	var err error
	if f.Control == SetPoint {
		err = c.findSetPoint(ctx, f)
	} else {
		err = c.findStandby(ctx, f)
	}
	if err != nil {
		return nil, err
	}
	if c.d.cfg.OpenContactors {
		if f.Opens, err = c.connected(ctx); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// remote refuses a plant that was switched to local: somebody works at it.
func (c *converter) remote(ctx context.Context) error {
	for _, id := range []uint16{715, 802} {
		for _, m := range c.device.Find(id) {
			b, err := sunspec.ReadModel(ctx, c.d.cfg.Registers, m)
			if err != nil {
				return err
			}
			if v, err := b.Integer("LocRemCtl"); err == nil && v == 1 {
				return fmt.Errorf("look for who controls it: %d LocRemCtl is LOCAL; switch it to remote when the work on it is done", id)
			}
		}
	}
	return nil
}

// findSetPoint chooses the set-point in the unit that the device uses already, so
// that nothing jumps and the dead-man, which cannot change the unit, is exact.
func (c *converter) findSetPoint(ctx context.Context, f *found) error {
	b, err := c.read(ctx, 704)
	if err != nil {
		return err
	}
	for _, path := range []string{"WSetEna", "WSetMod", "WSet", "WSetRvrt", "WSetPct", "WSetPctRvrt", "WSetEnaRvrt", "WSetRvrtTms"} {
		v, err := b.Integer(path)
		if err == nil {
			f.Points[path] = v
		} else if !errors.Is(err, sunspec.ErrMissing) {
			return err
		}
	}
	ena, has := f.Points["WSetEna"]
	if !has || ena != 0 && ena != 1 {
		return errors.New("read 704 WSetEna: it is not implemented; use another control, or a list of registers")
	}
	f.Set, f.Revert = axisOf(b)
	if math.IsNaN(b.Float(f.Set)) && ena == 0 { // the unit may change while nothing depends on it
		f.Set, f.Revert = "WSet", "WSetRvrt"
	}
	now, err := b.Number(f.Set)
	if err != nil {
		return fmt.Errorf("%w; use another control, or a list of registers", err)
	}
	f.Scale, _ = b.Integer(f.Set + "_SF") // Number has used it
	for _, path := range []string{f.Revert, "WSetEnaRvrt", "WSetRvrtTms"} {
		if _, has := f.Points[path]; !has && !c.d.cfg.NoDeadMan {
			return fmt.Errorf("read 704 %s: it is not implemented, so the converter has no dead-man; say in the configuration that none is wanted, if that is so", path)
		}
	}
	if !c.d.cfg.NoDeadMan {
		f.DeadMan = int64(math.Ceil(c.d.cfg.DeadMan.Seconds()))
	}
	if ena == 0 {
		if now, err = c.power(ctx, f.Set); err != nil {
			return fmt.Errorf("find where the ramp begins: %w", err)
		}
		f.Ladder.From = int64(math.Trunc(now * math.Pow10(int(-f.Scale)))) // towards 0: not more than there is
	} else {
		f.Ladder.From = f.Points[f.Set]
	}
	f.Ladder.Step, err = c.stepOf(ctx, b, f)
	return err
}

// power is the present power in the unit of a set-point.
func (c *converter) power(ctx context.Context, set string) (float64, error) {
	m, err := c.only(701)
	if err != nil {
		return 0, err
	}
	b, err := c.head(ctx, m)
	if err != nil {
		return 0, err
	}
	w, err := b.Number("W")
	if err != nil || set == "WSet" {
		return w, err
	}
	rated, err := c.rated(ctx)
	if err == nil && rated == 0 {
		err = errRated
	}
	return max(-100, min(100, w/rated*100)), err
}

// stepOf is what the set-point may change in a second. A device that ramps by itself,
// slowly enough, is told where to go at once: its ramp is smoother.
func (c *converter) stepOf(ctx context.Context, b sunspec.Block, f *found) (int64, error) {
	if v, err := b.Integer("WRmp"); err == nil && v >= 1 && float64(v) <= c.d.cfg.Ramp {
		return max(abs(f.Ladder.From), 1), nil
	}
	step := c.d.cfg.Ramp
	if f.Set == "WSet" {
		rated, err := c.rated(ctx)
		if err != nil {
			return 0, err
		}
		if rated == 0 && f.Ladder.From != 0 {
			return 0, errRated
		}
		step = rated * c.d.cfg.Ramp / 100
	}
	return max(int64(step*math.Pow10(int(-f.Scale))), 1), nil
}
