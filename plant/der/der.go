// Package der quiesces and resumes a converter or battery that speaks SunSpec. It is
// for the agent on the plant's controller.
//
// Start with [New] and a [Config]; the connection is a modbus.Unit, or anything else
// that reads and writes registers:
//
//	converter, err := der.New(der.Config{
//		Registers: client.Unit(1),
//		File:      "/var/lib/interlock/plant-converter",
//		DeadMan:   10 * time.Minute,
//	})
//	...
//	err = converter.Quiesce(ctx)
//
// Quiesce remembers what is set, arms the converter's own dead-man (704 WSetRvrtTms)
// so that it goes back by itself if this controller never does, ramps the set-point to
// 0 W, and waits until power and battery current are at rest. While this process
// lives the dead-man is armed again and again. Resume puts back what was found.
//
// What is promised:
//
//   - Nothing is written before what was found is on the disk, and the set-point is
//     not touched before the dead-man has been read back.
//   - On the way down and up, never more is commanded than was found.
//   - Every write is read back. Whatever is not known, is stuck, or is somebody
//     else's doing is an error of Quiesce, never a success.
//   - Resume changes only what is as Quiesce left it. What another controller has set
//     meanwhile stays, and is told to [Config.Progress].
//   - Settings of protections, ramps and heartbeats are never written, contactors only
//     if the configuration says so, and only without current.
//
// What it cannot see: a dead-man that counts down and then does nothing. Devices with
// that fault are in the field; try it once per type before relying on it.
//
// Sources: SunSpec Device Information Model Specification, edition of 2025, read/write
// timing (what is written may take 1,000 ms until it reads back); SunSpec DER
// Information Model Specification (the enable point is written last, and starts the
// reversion timer); the definitions of models 701, 704, 714, 715, 802 and 803.
package der

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/plant"
	"github.com/interlock-energy/ota/plant/internal/memory"
)

var _ plant.Action = (*DER)(nil)

// Control is what brings the power to rest.
type Control string

// Names that never change: they are in the files of devices.
const (
	SetPoint   Control = "704" // set-point 0 W with ramp and dead-man
	Standby715 Control = "715" // OpCtl ENTER_STANDBY, later EXIT_STANDBY; no ramp of ours, no dead-man
	Standby802 Control = "802" // SetInvState INVERTER_STANDBY, later what it was; no ramp of ours, no dead-man
)

// Config says what to quiesce, and how. Registers, File, and DeadMan or NoDeadMan are needed.
type Config struct {
	Name      string             // for messages; "": converter
	Registers sunspec.ReadWriter // of the one device
	Search    sunspec.Search     // where its models begin
	Control   Control            // "": SetPoint

	// File is where the memory of what was found is kept while the plant is quiesced,
	// absolute, and for this device alone.
	File string
	FS   durable.FS // nil: durable.OS{}

	// DeadMan is the time after which the converter goes back by itself, counted from
	// the last sign of life of this process: 30 s to 24 h. It must outlast the rest of
	// the preparation, the restart and the whole trial of the new firmware, or power
	// comes back in the middle of it; and until it is over a controller that never
	// comes back costs what the plant would have earned.
	DeadMan time.Duration
	// NoDeadMan quiesces without one: a controller that never comes back leaves the
	// plant at rest for ever. It is needed for the standby controls, which have none.
	NoDeadMan bool

	RatedW  float64       // W; 0: the greater of 802 WChaRteMax and WDisChaRteMax
	Ramp    float64       // % of the rated power per second, up to 100; 0: 10
	MaxW    float64       // |power| that counts as rest, W; 0: 1 % of the rated power
	MaxA    float64       // |battery current| that counts as rest, A; 0: 1
	Settle  time.Duration // how long it must be so; 0: 3 s
	Poll    time.Duration // how often to look; 0: 500 ms
	Timeout time.Duration // for each of Quiesce and Resume, within the caller's; 0: 3 min

	// OpenContactors disconnects the battery (802 SetOp) once it is at rest, and
	// connects it again before the power comes back. A converter that is supplied from
	// its DC side must not be updated so, and the dead-man cannot close contactors.
	OpenContactors bool

	// Progress, if set, is told each step: "ramp down: set-point 32.0 kW". It may be
	// called from another goroutine, but only once at a time, and must not block.
	Progress func(text string)
}

// DER is a [plant.Action]. Its methods may be called from any goroutine; they wait
// for each other.
type DER struct {
	cfg  Config
	file memory.File

	mu     sync.Mutex
	keeper *keeper // nil: none runs

	telling sync.Mutex
}

// New checks the configuration. It reads and writes nothing.
func New(cfg Config) (*DER, error) {
	cfg.Name = orDefault(cfg.Name, "converter")
	cfg.Control = orDefault(cfg.Control, SetPoint)
	cfg.Ramp = orDefault(cfg.Ramp, 10) // the usual limit for a plant that leaves the grid
	cfg.MaxA = orDefault(cfg.MaxA, 1)
	cfg.Settle = orDefault(cfg.Settle, 3*time.Second)
	cfg.Poll = orDefault(cfg.Poll, 500*time.Millisecond)
	cfg.Timeout = orDefault(cfg.Timeout, 3*time.Minute)
	if cfg.FS == nil {
		cfg.FS = durable.OS{}
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("configure the quiescing of %s: %w", cfg.Name, err)
	}
	return &DER{cfg: cfg, file: memory.File{FS: cfg.FS, Path: cfg.File}}, nil
}

func (c *Config) check() error {
	finite := func(v float64) bool { return v >= 0 && !math.IsInf(v, 0) } // also false for NaN
	switch {
	case c.Registers == nil:
		return errors.New("there is no connection to it")
	case !filepath.IsAbs(c.File):
		return fmt.Errorf("the file for what was found is %q, want an absolute path", c.File)
	case c.Control != SetPoint && c.Control != Standby715 && c.Control != Standby802:
		return fmt.Errorf("the control is %q, want %s, %s or %s", c.Control, SetPoint, Standby715, Standby802)
	case c.NoDeadMan && c.DeadMan != 0:
		return fmt.Errorf("it has a dead-man of %s and is to have none", c.DeadMan)
	case !c.NoDeadMan && c.Control != SetPoint:
		return fmt.Errorf("the control %s has no dead-man in SunSpec; say that it is to have none, or use %s", c.Control, SetPoint)
	case !c.NoDeadMan && (c.DeadMan < 30*time.Second || c.DeadMan > 24*time.Hour):
		return fmt.Errorf("the dead-man is %s, want 30 s to 24 h, and enough for restart and trial", c.DeadMan)
	case !finite(c.RatedW) || !finite(c.MaxW) || !finite(c.MaxA):
		return fmt.Errorf("rated power %g W, rest at %g W and %g A: want numbers of 0 or more", c.RatedW, c.MaxW, c.MaxA)
	case !(c.Ramp > 0 && c.Ramp <= 100):
		return fmt.Errorf("the ramp is %g %%/s, want more than 0 and at most 100", c.Ramp)
	case c.Settle < 0 || c.Poll <= 0 || c.Timeout <= 0:
		return fmt.Errorf("settle %s, poll %s, timeout %s: want times greater than 0", c.Settle, c.Poll, c.Timeout)
	}
	return nil
}

func orDefault[T comparable](v, usual T) T {
	var zero T
	if v == zero {
		return usual
	}
	return v
}

// Quiesce implements [plant.Action]. Called again, also by another process, it goes
// on where it was, and what was found the first time is what counts.
func (d *DER) Quiesce(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keeper.stop()
	ctx, cancel := context.WithTimeoutCause(ctx, d.cfg.Timeout, fmt.Errorf("not done within %s", d.cfg.Timeout))
	defer cancel()
	if err := d.quiesce(ctx); err != nil {
		return fmt.Errorf("quiesce %s: %w", d.cfg.Name, err)
	}
	return nil
}

func (d *DER) quiesce(ctx context.Context) error {
	c, err := d.discover(ctx)
	if err != nil {
		return err
	}
	f, err := d.remember(ctx, c)
	if err != nil {
		return err
	}
	if err := c.stop(ctx, f); err != nil {
		return err
	}
	if err := c.rest(ctx, f); err != nil {
		return err
	}
	if f.Opens {
		if err := c.disconnect(ctx); err != nil {
			return err
		}
	}
	if f.DeadMan > 0 {
		if err := c.arm(ctx, f); err != nil {
			return err
		}
		d.keeper = c.keep(f)
	}
	return nil
}

// remember returns what was found before the first Quiesce, which it makes durable.
func (d *DER) remember(ctx context.Context, c *converter) (*found, error) {
	var f found
	err := d.file.Load(&f)
	switch {
	case errors.Is(err, memory.ErrDamaged):
		return nil, fmt.Errorf("%w; resume first", err)
	case err == nil:
		if err := f.check(c); err != nil {
			return nil, err
		}
		held, err := c.holds(ctx, &f)
		if err != nil {
			return nil, err
		}
		if held {
			d.tell("go on with what was found at %s", f.At.Format(time.RFC3339))
			return &f, nil
		}
		// It went back meanwhile, or somebody else took over: what is there now is
		// what is to be found, without what is left of the last time.
		if err := d.restore(ctx, c, &f); err != nil {
			return nil, err
		}
		if err := d.file.Forget(); err != nil {
			return nil, err
		}
	case !errors.Is(err, memory.ErrNone):
		return nil, err
	}
	fresh, err := c.find(ctx)
	if err != nil {
		return nil, err
	}
	d.tell("found %s", fresh)
	return fresh, d.file.Save(fresh)
}

// Resume implements [plant.Action]. It is done when everything reads back as it was
// found; only then is the memory of it removed.
func (d *DER) Resume(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keeper.stop()
	ctx, cancel := context.WithTimeoutCause(ctx, d.cfg.Timeout, fmt.Errorf("not done within %s", d.cfg.Timeout))
	defer cancel()
	if err := d.resume(ctx); err != nil {
		return fmt.Errorf("resume %s: %w", d.cfg.Name, err)
	}
	return nil
}

func (d *DER) resume(ctx context.Context) error {
	var f found
	lost := d.file.Load(&f)
	if errors.Is(lost, memory.ErrNone) {
		return d.file.Forget() // a process that died may have removed it, and not have synced that
	}
	if lost != nil && !errors.Is(lost, memory.ErrDamaged) {
		return lost
	}
	c, err := d.discover(ctx)
	if err != nil {
		return err
	}
	if lost == nil {
		if err := f.check(c); err != nil {
			return err
		}
	} else if err := c.rebuild(ctx, &f, lost); err != nil {
		return err
	}
	if err := d.restore(ctx, c, &f); err != nil {
		return err
	}
	return d.file.Forget()
}

// restore puts back what was found: the battery first, then the power.
func (d *DER) restore(ctx context.Context, c *converter, f *found) error {
	if f.Opens {
		if err := c.connect(ctx); err != nil {
			return err
		}
	}
	switch f.Control {
	case SetPoint:
		return c.restoreSetPoint(ctx, f)
	case Standby715, Standby802:
		return c.leaveStandby(ctx, f)
	}
	return nil // nothing is known, and nothing is held
}

// Close ends what Quiesce left running in this process, and leaves the plant as it
// is: at rest until the dead-man, or the next process.
func (d *DER) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keeper.stop()
	return nil
}

func (d *DER) tell(format string, args ...any) {
	if d.cfg.Progress == nil {
		return
	}
	d.telling.Lock()
	defer d.telling.Unlock()
	d.cfg.Progress(fmt.Sprintf(format, args...))
}
