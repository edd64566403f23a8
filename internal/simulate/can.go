package simulate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/internal/battery"
)

const (
	cycle        = time.Second            // between two sets of frames
	usualProfile = "pylon-lv"             // of an unnamed one
	sendWithin   = 500 * time.Millisecond // or the host that does not read loses them

	// Limits that the battery announces: per cell in V, and in A.
	chargeTo, dischargeTo, limit = 3.5, 2.9, 150.0

	// tremble is how far the current that CAN tells moves at rest, in A either way.
	// A sensor of a real battery is never quite still, and who listens to a bus
	// without a heartbeat counts on it.
	tremble = 0.15
)

// speak sends the frames of the profile once a second until the context ends, or the
// link is lost. The profiles whose batteries wait to be asked are not asked either.
func (s *System) speak(ctx context.Context, bus can.Bus) error {
	ticker := time.NewTicker(cycle)
	defer ticker.Stop()
	for {
		frames, err := s.frames()
		if err != nil {
			return err
		}
		for _, f := range frames {
			within, cancel := context.WithTimeout(ctx, sendWithin)
			err := bus.Send(within, f)
			cancel()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// frames are those of one cycle; none while the management system is cut off.
func (s *System) frames() ([]can.Frame, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, _ := s.look()
	if s.faults[stale] || s.faults[silent] {
		return nil, nil
	}
	frames, err := s.profile.Encode(s.telling(v), broadcast.Options{})
	if err != nil && math.IsNaN(v.soc) {
		frames, err = s.without(v)
	}
	if err != nil {
		return nil, fmt.Errorf("send the battery's frames: %w", err)
	}
	return frames, nil
}

// without are the frames that do not tell the state of charge, for profiles that have
// no way to say that it is not known: those that are the same whatever it is.
func (s *System) without(v view) ([]can.Frame, error) {
	v.soc = 10
	some, err := s.profile.Encode(s.telling(v), broadcast.Options{})
	if err != nil {
		return nil, err
	}
	v.soc = 60
	others, err := s.profile.Encode(s.telling(v), broadcast.Options{})
	return slices.DeleteFunc(some, func(f can.Frame) bool { return !slices.Contains(others, f) }), err
}

// telling is what the battery says in the words of package broadcast. In the
// profiles of batteries of 48 V the voltages are those of one module, the mean of
// the modules in series.
func (s *System) telling(v view) broadcast.Battery {
	t, cells := v.Temperatures(), v.Voltages()
	volts, inSeries := v.Voltage/battery.Modules, float64(battery.CellsPerModule)
	if s.profile.Name == "pylon-hv" || s.profile.Name == "original" { // original divides by itself
		volts, inSeries = v.Voltage, battery.Cells
	}
	charging := -v.current // in these protocols a current that charges is positive
	if v.Connection == battery.Connected || v.Connection == battery.Waiting {
		charging += tremble * trembling(v.Beat)
	}
	b := broadcast.Battery{Charge: broadcast.On, Discharge: broadcast.On, Maker: "INTRLOCK", Name: "SIM-100", Serial: "SIM00001",
		Type: "LI", Version: "1.0", Mode: broadcast.ModeIdle, Values: map[broadcast.Quantity]float64{
			broadcast.SoC: v.soc, broadcast.SoH: v.SoH, broadcast.Voltage: volts, broadcast.Current: charging,
			broadcast.TemperatureMin: t.Min, broadcast.TemperatureMax: t.Max, broadcast.BoardTemperature: t.Mean,
			broadcast.CellMin: cells.Min, broadcast.CellMax: cells.Max, broadcast.Capacity: battery.Capacity,
			broadcast.ChargeVoltage: chargeTo * inSeries, broadcast.DischargeVoltage: dischargeTo * inSeries,
			broadcast.ChargeLimit: limit, broadcast.DischargeLimit: limit, broadcast.Modules: battery.Modules,
		}}
	switch {
	case v.Current >= atRest:
		b.Mode = broadcast.ModeDischarging
	case v.Current <= -atRest:
		b.Mode = broadcast.ModeCharging
	}
	if s.profile.Name == "original" {
		b.Mode = ""
	}
	if len(v.Alarms) > 0 || v.Connection == battery.Disconnected || v.Connection == battery.Precharging {
		b.Charge, b.Discharge = broadcast.Off, broadcast.Off
		b.Values[broadcast.ChargeLimit], b.Values[broadcast.DischargeLimit] = 0, 0
	}
	b.Alarms = named(v.Alarms, s.profile.Alarms())
	b.Warnings = named(v.Warnings, s.profile.Warnings())
	return b
}

// trembling is a number from -1 to 1 that looks like noise, and is the same for
// the same second.
func trembling(beat uint32) float64 {
	x := uint64(beat) * 0x9E3779B97F4A7C15 // Fibonacci hashing: neighbours end up far apart
	return float64(x>>11)/(1<<52) - 1
}

// words are how the profiles call an alarm or a warning; the first that a profile has
// is taken. What has no word of its own is something general.
var words = map[battery.Alarm][]string{
	battery.OverTemperature: {"high temperature"}, battery.NearOverTemperature: {"high temperature"},
	battery.UnderTemperature: {"low temperature"}, battery.NearUnderTemperature: {"low temperature"},
	battery.OverVoltage: {"high voltage"}, battery.NearOverVoltage: {"high voltage"},
	battery.UnderVoltage: {"low voltage"}, battery.NearUnderVoltage: {"low voltage"},
	battery.OverCharge: {"high charge current"}, battery.NearOverCharge: {"high charge current"},
	battery.OverDischarge: {"high discharge current"}, battery.NearOverDischarge: {"high discharge current"},
	battery.UnderSoC: {"low voltage"}, battery.NearUnderSoC: {"low voltage"},
	battery.ContactorError: {"contactor"}, battery.VoltageImbalance: {"imbalance"},
}

// general are words for anything: the last are the lowest bits of fields whose bits
// nobody has given a meaning.
var general = []string{"general", "internal", "internal communication", "4250 protection bit 0", "4250 alarm bit 0", "312 bit 0",
	"unsafe", "error bit 0", "warning bit 0"}

func named(alarms []battery.Alarm, known []string) []string {
	var names []string
	for _, a := range alarms {
		for _, word := range slices.Concat(words[a], general) {
			if slices.Contains(known, word) {
				names = append(names, word)
				break
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// converters serves clients of a CAN converter until the context ends. Each hears
// the frames; what they send is heard and has no effect.
func (s *System) converters(ctx context.Context, l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.group.Go(func() {
			defer conn.Close()
			s.serveBus(ctx, can.NewTCP13(conn.RemoteAddr().String(), can.TCP13Config{Silence: -1, Dial: once(conn)}))
		})
	}
}

// once is a dialler that has one connection to give.
func once(conn net.Conn) func(context.Context, string) (net.Conn, error) {
	left := make(chan net.Conn, 1)
	left <- conn
	return func(context.Context, string) (net.Conn, error) {
		select {
		case conn := <-left:
			return conn, nil
		default:
			return nil, net.ErrClosed
		}
	}
}

// serveBus speaks and listens until the link is lost or the context ends.
func (s *System) serveBus(ctx context.Context, bus can.Bus) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer cancel()
		for {
			if _, err := bus.Receive(ctx); err != nil {
				done <- err
				return
			}
		}
	}()
	err := s.speak(ctx, bus)
	cancel()
	if heard := <-done; err == nil && !errors.Is(heard, context.Canceled) {
		err = heard
	}
	bus.Close()
	return err
}
