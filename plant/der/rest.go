package der

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
)

// reading is one measurement that has to be small.
type reading struct {
	from  string // "701 W"
	value float64
	unit  string // W or A
}

func (r reading) String() string {
	if r.unit == "W" {
		return r.from + " " + watts(r.value)
	}
	return fmt.Sprintf("%s %.4g A", r.from, r.value)
}

// rest waits until power and battery current have been small for the settle time,
// and the plant is still held. A reading that fails is a break like one that is too
// large: it counts from the start again.
func (c *converter) rest(ctx context.Context, f *found) error {
	maxW, err := c.maxW(ctx)
	if err != nil {
		return err
	}
	var since time.Time // zero: not at rest
	told, last := "", "nothing was read yet"
	for {
		why, now := "", ""
		held, err := c.held(ctx, f, zero)
		switch {
		case err == nil && !held:
			return errTaken
		case err != nil:
			why = err.Error()
		default:
			why, now = c.motion(ctx, maxW)
		}
		switch {
		case ctx.Err() != nil: // a reading that was cut short says nothing of the plant
			return fmt.Errorf("wait for rest: %w: %s", context.Cause(ctx), last)
		case why != "":
			since = time.Time{}
			if why != told {
				c.d.tell("wait for rest: %s", why)
			}
			told = why
		case since.IsZero():
			since = time.Now()
			fallthrough
		default:
			at := time.Since(since)
			if at >= c.d.cfg.Settle {
				c.d.tell("at rest for %s: %s", at.Round(100*time.Millisecond), now)
				return nil
			}
			why = fmt.Sprintf("at rest for %s of %s: %s", at.Round(100*time.Millisecond), c.d.cfg.Settle, now)
		}
		last = why
		if err := pause(ctx, c.d.cfg.Poll); err != nil {
			return fmt.Errorf("wait for rest: %w: %s", err, last)
		}
	}
}

// motion says what moves, or in now what there is while nothing does.
func (c *converter) motion(ctx context.Context, maxW float64) (why, now string) {
	all, err := c.measure(ctx)
	if err != nil {
		return err.Error(), ""
	}
	var moves, rests []string
	hasW, hasA := false, false
	for _, r := range all {
		most := maxW
		if r.unit == "A" {
			most, hasA = c.d.cfg.MaxA, true
		} else {
			hasW = true
		}
		if math.Abs(r.value) > most {
			moves = append(moves, fmt.Sprintf("%s, want at most %s", r, reading{"", most, r.unit}.limit()))
		} else {
			rests = append(rests, r.String())
		}
	}
	if !hasW {
		moves = append(moves, "nothing measures the power: 701 W and 802 W have no value")
	}
	if !hasA {
		moves = append(moves, "nothing measures the battery's current: 802 A and 714 DCA have no value")
	}
	return strings.Join(moves, "; "), strings.Join(rests, ", ")
}

func (r reading) limit() string { return strings.TrimSpace(r.String()) }

// measure reads everything that says how much flows. A model that cannot be read is
// an error, a point without a value is left out.
func (c *converter) measure(ctx context.Context) (all []reading, err error) {
	add := func(b sunspec.Block, path, unit string) bool {
		v, err := b.Number(path)
		if err != nil {
			return false
		}
		all = append(all, reading{fmt.Sprintf("%d %s", b.Model.ID, path), v, unit})
		return true
	}
	for _, m := range c.device.Models {
		if m.ID != 701 && m.ID != 714 && m.ID != 802 {
			continue
		}
		b, err := c.head(ctx, m) // of 701, W and W_SF are in it, and of 714 four ports
		if err != nil {
			return nil, err
		}
		switch m.ID {
		case 701:
			add(b, "W", "W")
		case 802:
			add(b, "A", "A")
			add(b, "W", "W")
		case 714:
			// Where ports say that they are the battery's, the sum may hold panels too.
			n, err := b.Repeats("Prt")
			if err != nil && !errors.Is(err, sunspec.ErrMissing) {
				return nil, err
			}
			battery := false
			for i := 1; i <= n; i++ {
				port := fmt.Sprintf("Prt[%d].", i)
				if kind, err := b.Integer(port + "PrtTyp"); err == nil && (kind == portESS || kind == portBidirectional) {
					battery = add(b, port+"DCA", "A") || battery
				}
			}
			if !battery {
				add(b, "DCA", "A")
			}
		}
	}
	return all, nil
}

// Values of 714 PrtTyp.
const (
	portESS           = 1
	portBidirectional = 5
)

func (c *converter) maxW(ctx context.Context) (float64, error) {
	if c.d.cfg.MaxW > 0 {
		return c.d.cfg.MaxW, nil
	}
	rated, err := c.rated(ctx)
	if err == nil && rated == 0 {
		err = fmt.Errorf("find which power counts as rest: %w", errRated)
	}
	return rated / 100, err
}
