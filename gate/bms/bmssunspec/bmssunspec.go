// Package bmssunspec reads the battery of a system that describes itself in
// SunSpec models, over Modbus or whatever else carries registers. It is for devices
// whose converter or battery management system speaks SunSpec, and a package of its
// own so that others do not carry it.
//
// Start with [New], and give [Reader.Read] to bms.New. What is promised: a value
// that the device does not implement is not available, never a number; what the
// models tell of the same quantity in other ways stands beside it, to be compared;
// and a device whose map has changed is looked at anew before it is believed.
package bmssunspec

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/gate/bms"
)

// Config says what is read.
type Config struct {
	Registers sunspec.Registers // for example modbus.Client.Unit(1)
	Source    string            // for people, for example the address
	Search    sunspec.Search    // where the map may begin; default 40000, 0, 50000

	// Directions says how far the signs of the currents can be relied on. By default
	// all models of a device count from the same side, and one that disagrees refuses.
	Directions Directions

	// Patience bounds the search for the models, which may take longer than a question
	// to the gate does; default 30 s.
	Patience time.Duration
}

// Directions says what the signs of a device's currents mean to each other.
type Directions string

// Directions.
const (
	SameDirections    Directions = ""            // the same sign is the same direction in all models of a battery
	PositiveCharges   Directions = "charging"    // and a positive current charges
	PositiveDrains    Directions = "discharging" // and a positive current discharges
	UnknownDirections Directions = "ignore"      // nothing
)

// Reader reads one battery. Its methods may be called from many goroutines; they
// ask the device one after the other.
type Reader struct {
	cfg  Config
	turn chan struct{} // held by who asks the device

	mu     sync.Mutex
	device *sunspec.Device // nil: not known
	search *search         // under way, or what became of the last one
}

type search struct {
	done   chan struct{} // closed in the end
	device *sunspec.Device
	err    error
}

// New returns a reader. It does not ask the device yet.
func New(cfg Config) (*Reader, error) {
	if cfg.Registers == nil {
		return nil, errors.New("read a battery over SunSpec: the registers are missing")
	}
	switch cfg.Directions {
	case SameDirections, PositiveCharges, PositiveDrains, UnknownDirections:
	default:
		return nil, fmt.Errorf("read a battery over SunSpec: directions are %q, want %q, %q, %q or nothing",
			cfg.Directions, PositiveCharges, PositiveDrains, UnknownDirections)
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 30 * time.Second
	}
	return &Reader{cfg: cfg, turn: make(chan struct{}, 1)}, nil
}

// Read is a [bms.Reader].
func (r *Reader) Read(ctx context.Context) (bms.Reading, error) {
	device, err := r.find(ctx)
	if err != nil {
		return bms.Reading{}, fmt.Errorf("%s: %w", r.cfg.Source, err)
	}
	if err := r.ask(ctx); err != nil {
		return bms.Reading{}, fmt.Errorf("%s: %w", r.cfg.Source, err)
	}
	defer func() { <-r.turn }()
	at := time.Now() // before reading, so that a slow device counts as age
	b, err := sunspec.ReadBattery(ctx, r.cfg.Registers, device)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, sunspec.ErrTorn) {
			r.forget(device) // it may have restarted with other models
		}
		return bms.Reading{}, fmt.Errorf("%s: %w", r.cfg.Source, err)
	}
	return reading(&b, at, r.cfg.Source, r.cfg.Directions), nil
}

// find returns the device's models. A search goes on when the one who asked for it
// gives up, so that a slow line is searched through once.
func (r *Reader) find(ctx context.Context) (*sunspec.Device, error) {
	r.mu.Lock()
	if r.device != nil {
		defer r.mu.Unlock()
		return r.device, nil
	}
	s := r.search
	if s == nil {
		s = &search{done: make(chan struct{})}
		r.search = s
		go r.look(context.WithoutCancel(ctx), s)
	}
	r.mu.Unlock()
	select {
	case <-s.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("look for the battery's models: %w", context.Cause(ctx))
	}
	return s.device, s.err // not the reader's, which somebody may have forgotten already
}

func (r *Reader) look(ctx context.Context, s *search) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.Patience, fmt.Errorf("not within %v", r.cfg.Patience))
	defer cancel()
	device, err := r.discover(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.search, s.err = nil, err
	if err == nil {
		r.device, s.device = device, device
	}
	close(s.done)
}

func (r *Reader) discover(ctx context.Context) (*sunspec.Device, error) {
	if err := r.ask(ctx); err != nil { // somebody may still read with the device that was forgotten
		return nil, err
	}
	defer func() { <-r.turn }()
	device, err := sunspec.Discover(ctx, r.cfg.Registers, r.cfg.Search)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", err, context.Cause(ctx))
	}
	return device, err
}

// ask waits until nobody else asks the device.
func (r *Reader) ask(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another reading: %w", context.Cause(ctx))
	}
}

func (r *Reader) forget(device *sunspec.Device) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.device == device {
		r.device = nil
	}
}

// reading is what a gate wants to know of b.
func reading(b *sunspec.Battery, at time.Time, source string, d Directions) bms.Reading {
	r := bms.Reading{Source: source, Valid: true, At: at, Signals: map[bms.Quantity]bms.Signal{}}
	for q, v := range map[bms.Quantity]sunspec.Quantity{bms.SoC: b.SoC, bms.SoH: b.SoH, bms.Voltage: b.V, bms.Current: b.A,
		bms.TemperatureMin: b.TempMin, bms.TemperatureMax: b.TempMax, bms.CellMin: b.CellMin, bms.CellMax: b.CellMax, bms.Capacity: b.Capacity} {
		if !math.IsNaN(v.Value) {
			r.Signals[q] = bms.Signal{Value: v.Value}
		}
	}
	if b.Heartbeat.Known {
		r.Beat = &bms.Beat{Count: uint64(b.Heartbeat.Value)}
	}
	r.Alarms = slices.Concat(b.Alarms, b.ConverterAlarms)
	if b.State.Known && b.State.Value == batteryFault {
		r.Alarms = append(r.Alarms, "802 State FAULT")
	}
	slices.Sort(r.Alarms)
	r.Alarms = slices.Compact(r.Alarms)
	r.NoAlarms = !b.AlarmsKnown
	r.Warnings = slices.Concat(b.Warnings, b.Vendor)
	r.Mode, r.Contactors, r.Control = mode(b), contactors(b), control(b)
	// Which direction a sign means is not standardized. That the battery's own models
	// mean the same by it is, within one device, a safe thing to ask for; what the
	// converter means (714) is not.
	var ours bms.Direction
	switch d {
	case SameDirections:
		ours = bms.Direction("the sign of " + source)
	case PositiveCharges:
		ours = bms.Charging
	case PositiveDrains:
		ours = bms.Discharging
	}
	if b.A.Model != dcModel {
		r.Positive = ours
	}
	for _, o := range b.OtherA {
		if one, ok := other(bms.Current, o, at, source); ok {
			if o.Model != dcModel {
				one.Positive = ours
			}
			r.Others = append(r.Others, one)
		}
	}
	for _, o := range b.OtherSoC {
		if one, ok := other(bms.SoC, o, at, source); ok {
			r.Others = append(r.Others, one)
		}
	}
	return r
}

const dcModel = 714 // the converter's DC side

// other is a reading of one instrument, if it tells its value. That an instrument which
// used to be there is missing shows in the comparison before and after an update.
func other(q bms.Quantity, o sunspec.Quantity, at time.Time, source string) (bms.Reading, bool) {
	if math.IsNaN(o.Value) {
		return bms.Reading{}, false
	}
	return bms.Reading{Source: source + " " + o.From, Valid: true, NoAlarms: true, At: at, Signals: map[bms.Quantity]bms.Signal{q: {Value: o.Value}}}, true
}

// Values of 802 State and 701 InvSt.
var (
	batteryModes = map[uint32]bms.Mode{1: bms.ModeOff, 2: bms.ModeBusy, 3: bms.ModeRunning, 4: bms.ModeStandby,
		5: bms.ModeRunning, 6: bms.ModeBusy, batteryFault: bms.ModeFault}
	converterModes = map[uint32]bms.Mode{0: bms.ModeOff, 1: bms.ModeOff, 2: bms.ModeBusy, 3: bms.ModeRunning, 4: bms.ModeRunning,
		5: bms.ModeBusy, 6: bms.ModeFault, 7: bms.ModeStandby}
)

const batteryFault = 99

// mode is that of the converter where it says one, for it moves the power, and else
// that of the battery. A fault of either is one; a battery that starts or stops is busy,
// also beside a converter at rest.
func mode(b *sunspec.Battery) bms.Mode {
	var battery, converter bms.Mode
	if b.State.Known {
		battery = batteryModes[b.State.Value]
	}
	if b.InvSt.Known {
		converter = converterModes[b.InvSt.Value]
	}
	switch {
	case battery == bms.ModeFault || converter == bms.ModeFault:
		return bms.ModeFault
	case battery == bms.ModeBusy:
		return battery
	case b.InvSt.Known:
		return converter
	}
	return battery
}

// contactors is known if all strings say the same.
func contactors(b *sunspec.Battery) bms.Contactors {
	var all bms.Contactors
	for i, c := range b.Contactors {
		one := bms.ContactorsOpen
		if c.Closed {
			one = bms.ContactorsClosed
		}
		if !c.Known || i > 0 && one != all {
			return ""
		}
		all = one
	}
	return all
}

// control is local if anybody has taken it, and not known if anybody says what the
// models have no name for.
func control(b *sunspec.Battery) bms.Control {
	var remote, strange bool
	for _, s := range []sunspec.Status{b.LocRemCtl, b.DERLocRemCtl} {
		switch {
		case !s.Known:
		case s.Name == "LOCAL":
			return bms.ControlLocal
		case s.Name == "REMOTE":
			remote = true
		default:
			strange = true
		}
	}
	if remote && !strange {
		return bms.ControlRemote
	}
	return ""
}
