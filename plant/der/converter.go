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

const (
	// readBack is how long a device may take until what was written reads back: 1,000
	// ms (Device Information Model Specification, edition of 2025), and half as much again.
	readBack     = 1500 * time.Millisecond
	readBackPoll = 250 * time.Millisecond
)

// converter is the device as it was discovered for one verb.
type converter struct {
	d      *DER
	device *sunspec.Device
	id     string // maker, model and serial number; "" if it does not say
}

// value is what a point's registers hold, without scale factor: what is put back must
// be the same to the last digit.
type value struct {
	path string
	raw  int64
}

func (d *DER) discover(ctx context.Context) (*converter, error) {
	device, err := sunspec.Discover(ctx, d.cfg.Registers, d.cfg.Search)
	if err != nil {
		return nil, err
	}
	c := &converter{d: d, device: device}
	if m := device.Find(1); len(m) > 0 {
		b, err := sunspec.ReadModel(ctx, d.cfg.Registers, m[0])
		if err != nil {
			return nil, err
		}
		var parts []string
		for _, point := range []string{"Mn", "Md", "SN"} {
			if text, err := b.Text(point); err == nil {
				parts = append(parts, text)
			}
		}
		c.id = strings.Join(parts, " ")
	}
	return c, nil
}

// only returns the one instance of a model that is written to.
func (c *converter) only(id uint16) (sunspec.Model, error) {
	m := c.device.Find(id)
	switch len(m) {
	case 1:
		return m[0], nil
	case 0:
		return sunspec.Model{}, fmt.Errorf("find model %d: %w; use another control, or a list of registers", id, sunspec.ErrNoModel)
	}
	return sunspec.Model{}, fmt.Errorf("find model %d: it is there %d times: %w; use a list of registers", id, len(m), sunspec.ErrSeveral)
}

// read reads a model that there is one of.
func (c *converter) read(ctx context.Context, id uint16) (sunspec.Block, error) {
	m, err := c.only(id)
	if err != nil {
		return sunspec.Block{}, err
	}
	return sunspec.ReadModel(ctx, c.d.cfg.Registers, m)
}

// head reads as much of a model as one request carries: what trembles all the time is
// never twice the same, and a single request is of one moment.
func (c *converter) head(ctx context.Context, m sunspec.Model) (sunspec.Block, error) {
	size := min(int(m.Length)+2, sunspec.MaxRead)
	registers, err := c.d.cfg.Registers.ReadHolding(ctx, m.Address, uint16(size))
	if err == nil && (len(registers) != size || registers[0] != m.ID || registers[1] != m.Length) {
		err = errors.New("it is not there any more")
	}
	if err != nil {
		return sunspec.Block{}, fmt.Errorf("read model %d at %d: %w", m.ID, m.Address, err)
	}
	return sunspec.Block{Model: m, Registers: registers}, nil
}

// set writes points, in the order given, and returns once they read back.
func (c *converter) set(ctx context.Context, id uint16, values ...value) error {
	m, err := c.only(id)
	if err != nil {
		return err
	}
	settings := make([]sunspec.Setting, len(values))
	for i, v := range values {
		settings[i] = sunspec.Raw(v.path, uint64(v.raw))
	}
	err = sunspec.WritePoints(ctx, c.d.cfg.Registers, m, settings...)
	other, ok := errors.AsType[*sunspec.ReadBackError](err)
	if !ok {
		return err
	}
	for waited := time.Duration(0); waited < readBack; waited += readBackPoll {
		if err := pause(ctx, readBackPoll); err != nil {
			return fmt.Errorf("%w: %w", other, err)
		}
		b, err := sunspec.ReadModel(ctx, c.d.cfg.Registers, m)
		if err != nil {
			return err
		}
		if wrong := firstOther(b, values); wrong == "" {
			return nil
		} else if waited+readBackPoll >= readBack {
			return fmt.Errorf("write %d: %s after %s; the device does not take it: is it in local mode, or does another controller write too?", id, wrong, readBack)
		}
	}
	return other
}

// firstOther says which point does not have its value, or "".
func firstOther(b sunspec.Block, values []value) string {
	for _, v := range values {
		got, err := b.Integer(v.path)
		if err != nil {
			return err.Error()
		}
		if got != v.raw {
			return fmt.Sprintf("%s is %d, want %d", v.path, got, v.raw)
		}
	}
	return ""
}

// change is set, for what does not have its value yet.
func (c *converter) change(ctx context.Context, id uint16, values ...value) error {
	b, err := c.read(ctx, id)
	if err != nil {
		return err
	}
	for _, v := range values {
		if got, err := b.Integer(v.path); err == nil && got == v.raw {
			continue
		}
		if err := c.set(ctx, id, v); err != nil {
			return err
		}
	}
	return nil
}

// rated is the rated power in W, 0 if it is not known.
func (c *converter) rated(ctx context.Context) (float64, error) {
	if c.d.cfg.RatedW > 0 {
		return c.d.cfg.RatedW, nil
	}
	sum := 0.0
	for _, m := range c.device.Find(802) {
		b, err := sunspec.ReadModel(ctx, c.d.cfg.Registers, m)
		if err != nil {
			return 0, err
		}
		greatest := 0.0
		for _, path := range []string{"WChaRteMax", "WDisChaRteMax"} {
			if v := b.Float(path); !math.IsNaN(v) {
				greatest = max(greatest, v)
			}
		}
		sum += greatest
	}
	return sum, nil
}

var errRated = errors.New("the rated power is not known, and 802 does not say it; configure it")

// pause waits, or says why it could not.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
