// Package bmscan reads the battery from what its management system tells
// everybody on the CAN bus. It is for devices beside a battery that speaks one of the
// dialects of package broadcast, and a package of its own so that others do not carry
// CAN.
//
// Start with [Listen], give [Listener.Read] to bms.New, and Close it in the end. What
// is promised: every value has the time of the frame that brought it, so that silence
// is age; a link that is lost is an error from then on until frames come again; and a
// battery that repeats the same frames for [Config.FrozenAfter] counts as frozen,
// because this is all that shows life on a bus without a counter.
package bmscan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/gate/bms"
)

// Config says what is listened to.
type Config struct {
	Open    func(context.Context) (can.Bus, error) // the link; called again after it was lost
	Source  string                                 // for people, for example "can0"
	Profile string                                 // a name of package broadcast
	Options broadcast.Options

	// Silent keeps the listener from sending what the profile's batteries expect from
	// an inverter, for a bus with an inverter that does.
	Silent bool

	// FrozenAfter is how long a battery may say exactly the same. Voltages and currents
	// of a battery at rest still tremble. Default 1 min, at most 5 min ([bms.Beat]).
	FrozenAfter time.Duration

	Reopen time.Duration // pause after a link was lost or could not be opened; default 1 s
	Log    *slog.Logger  // default: slog.Default()
}

// longestFrozen is what [bms.Beat] takes; with more the gate would never open.
const longestFrozen = 5 * time.Minute

// defaultCycle is between two keep-alives (Pylontech CAN-Bus-protocol 1.2: 1 s).
const defaultCycle = time.Second

// Listener collects what the battery says. Its methods may be called from any
// goroutine.
type Listener struct {
	cfg     Config
	profile *broadcast.Profile
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu      sync.Mutex
	decoder *broadcast.Decoder
	link    error // why there is no link; nil: there is
}

var (
	errOpening = errors.New("the link is being opened")
	errStopped = errors.New("the listener is closed")
)

// Listen returns a listener that listens already, see [New] and [Listener.Start].
func Listen(cfg Config) (*Listener, error) {
	l, err := New(cfg)
	if err == nil {
		l.Start()
	}
	return l, err
}

// New returns a listener that does not listen yet.
func New(cfg Config) (*Listener, error) {
	if cfg.Open == nil {
		return nil, errors.New("listen to the battery on CAN: the link is missing")
	}
	if cfg.FrozenAfter <= 0 {
		cfg.FrozenAfter = time.Minute
	}
	if cfg.FrozenAfter > longestFrozen {
		return nil, fmt.Errorf("listen to the battery on CAN: it would count as frozen after %v, want at most %v", cfg.FrozenAfter, longestFrozen)
	}
	if cfg.Reopen <= 0 {
		cfg.Reopen = time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	profile, err := broadcast.Named(cfg.Profile)
	if err != nil {
		return nil, fmt.Errorf("listen to the battery on CAN: %w", err)
	}
	decoder, err := broadcast.New(cfg.Profile, cfg.Options)
	if err != nil {
		return nil, fmt.Errorf("listen to the battery on CAN: %w", err)
	}
	return &Listener{cfg: cfg, profile: profile, decoder: decoder, stop: func() {}, link: errOpening}, nil
}

// Start begins to listen, in the background. It may be called once. A link that cannot
// be opened is tried again until Close.
func (l *Listener) Start() {
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.done.Go(func() { l.run(ctx) })
}

// Close stops listening and closes the link. Nothing is known from then on. It may be
// called several times.
func (l *Listener) Close() error {
	l.stop()
	l.done.Wait()
	l.lost(errStopped)
	return nil
}

func (l *Listener) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := l.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if l.lost(err) {
			l.cfg.Log.Warn("the CAN link to the battery is lost, opening it again", "source", l.cfg.Source, "error", err)
		}
		pause := time.NewTimer(l.cfg.Reopen)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// lost remembers why there is no link, and reports whether that is news.
func (l *Listener) lost(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	news := l.link == nil || l.link.Error() != err.Error()
	l.link = err
	return news
}

// session listens until the link is lost.
func (l *Listener) session(ctx context.Context) (err error) {
	bus, err := l.cfg.Open(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer func() {
		cancel()
		err = errors.Join(err, bus.Close())
		asking.Wait()
	}()
	if frames := l.profile.Keepalive(); len(frames) > 0 && !l.cfg.Silent {
		asking.Go(func() { l.keepAlive(ctx, bus, frames) })
	}
	for {
		f, err := bus.Receive(ctx)
		if err != nil {
			return err
		}
		l.mu.Lock()
		known, err := l.decoder.Add(f, time.Now())
		if known {
			l.link = nil
		}
		l.mu.Unlock()
		if err != nil {
			l.cfg.Log.Debug("a frame of the battery is not plausible", "source", l.cfg.Source, "frame", f.String(), "error", err)
		}
	}
}

// keepAlive sends what an inverter would, without which some batteries are silent.
// That it does not get through shows in their silence.
func (l *Listener) keepAlive(ctx context.Context, bus can.Bus, frames []can.Frame) {
	tick := time.NewTicker(defaultCycle)
	defer tick.Stop()
	for ctx.Err() == nil { // of an end and a tick at once, select takes any
		for _, f := range frames {
			if err := bus.Send(ctx, f); err != nil {
				l.cfg.Log.Debug("send the keep-alive to the battery", "source", l.cfg.Source, "error", err)
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Read is a [bms.Reader]. It does not wait for the bus.
func (l *Listener) Read(context.Context) (bms.Reading, error) {
	l.mu.Lock()
	s, link := l.decoder.State(), l.link
	l.mu.Unlock()
	switch {
	case link != nil && errors.Is(link, errOpening) && s.Frames == 0:
		return bms.Reading{}, fmt.Errorf("%s: no frame of profile %s has come yet", l.cfg.Source, l.cfg.Profile)
	case link != nil:
		return bms.Reading{}, fmt.Errorf("%s: %w", l.cfg.Source, link)
	}
	return reading(&s, l.cfg.Source, l.cfg.FrozenAfter, time.Now()), nil
}

// oldState is how long alarms may go without news, at least, and the mode.
const oldState = 5 * time.Second

func reading(s *broadcast.State, source string, frozenAfter time.Duration, now time.Time) bms.Reading {
	r := bms.Reading{Source: source, Valid: true, Signals: map[bms.Quantity]bms.Signal{},
		Beat: &bms.Beat{Count: s.Changes, Within: frozenAfter}, Positive: bms.Charging, // package broadcast turns every profile's so
		Alarms: slices.Clone(s.Alarms), NoAlarms: !s.AlarmsKnown || s.AlarmsVouched == 0, Warnings: slices.Clone(s.Warnings)}
	for to, from := range map[bms.Quantity]broadcast.Quantity{bms.SoC: broadcast.SoC, bms.SoH: broadcast.SoH, bms.Voltage: broadcast.Voltage,
		bms.Current: broadcast.Current, bms.TemperatureMin: broadcast.TemperatureMin, bms.TemperatureMax: broadcast.TemperatureMax,
		bms.CellMin: broadcast.CellMin, bms.CellMax: broadcast.CellMax, bms.Capacity: broadcast.Capacity} {
		v := s.Of(from)
		if v.Available() {
			r.Signals[to] = bms.Signal{Value: v.Value, At: v.At, Cycle: v.Cycle}
		}
		if v.At.After(r.At) {
			r.At = v.At // of what came last; every value has its own
		}
	}
	// A frame with alarms that makes no sense, and alarms that were told once and no
	// longer: nobody knows what is raised now. Only such frames have a cycle.
	if !s.AlarmsKnown && s.AlarmsCycle > 0 {
		r.Alarms = append(r.Alarms, "the last frame with alarms is not plausible")
	}
	if age := now.Sub(s.AlarmsAt); !s.AlarmsAt.IsZero() && age > max(3*s.AlarmsCycle, oldState) {
		r.Alarms = append(r.Alarms, "the frames with alarms have stopped coming")
	}
	if len(s.Missing) > 0 {
		r.Warnings = append(r.Warnings, "frames that have not come: "+strings.Join(s.Missing, ", "))
	}
	if s.Average {
		r.Warnings = append(r.Warnings, "the temperatures are an average: the coldest and the hottest cells are not known")
	}
	if now.Sub(s.ModeAt) > oldState {
		return r // it is not known any more; other frames may still come
	}
	switch s.Mode {
	case broadcast.ModeSleep:
		r.Mode = bms.ModeOff
	case broadcast.ModeIdle:
		r.Mode = bms.ModeStandby
	case broadcast.ModeCharging, broadcast.ModeDischarging:
		r.Mode = bms.ModeRunning
	case broadcast.ModeUpdating:
		r.Mode = bms.ModeBusy
	}
	return r
}
