package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/watchdog"
)

// This file is what the control socket shows: Agent is a [control.Device].
var _ control.Device = (*Agent)(nil)

// Control returns what the control socket talks to, for programs that have the
// agent as a library.
func (a *Agent) Control() control.Device { return a }

// Snapshot returns what the manager is doing. Between two boots of a device with
// slot.run, until the next manager has read the record, it is what the manager
// before was doing.
func (a *Agent) Snapshot() ota.Snapshot {
	a.mu.Lock()
	mgr, s, noUpdates, notManaged := a.mgr, a.snap, a.noUpdates, a.notManaged
	a.mu.Unlock()
	if mgr != nil {
		if now := mgr.Snapshot(); now.Slot != "" || now.Status != ota.StatusIdle {
			return now
		}
	}
	s.Course.SecondsLeft = 0 // nobody counts any more
	if noUpdates != "" {
		s.Status, s.Code, s.Reason = ota.StatusFailed, ota.ErrFlashWrite, noUpdates
	} else if notManaged != "" && mgr == nil {
		s.Status, s.Code, s.Reason = ota.StatusFailed, ota.ErrInternal, notManaged
	}
	return s
}

// Status implements [control.Device].
func (a *Agent) Status(context.Context) control.Status {
	d := &a.cfg.Device
	s := control.Status{Snapshot: a.Snapshot(), Warnings: a.Warnings(), Watchdog: a.Watchdog(), Evidence: a.evidenceHead(), Plant: a.plantState(), Agent: control.AgentInfo{
		Device: d.ID, Product: d.Product, Hardware: d.Hardware, Version: a.cfg.Version, Started: a.started,
		Sources: a.sourceNames(), Slots: a.cfg.Slot.Kind, StateDir: a.cfg.StateDir}}
	if a.cfg.Slot.Run {
		s.Agent.Firmware = "run by the agent"
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.readErr != nil {
		s.ReadingError = a.readErr.Error()
	} else {
		s.Readings = signals(a.reading)
	}
	return s
}

// Warnings returns what a person should change, or know.
func (a *Agent) Warnings() (w []string) {
	if !valueOr(a.cfg.VerifySignature, true) {
		w = append(w, "verify_signature is false: ANYBODY who reaches the source or the medium decides what runs on this device")
	}
	if a.read == nil {
		w = append(w, "battery.reader is none: updates do not look at any battery")
	}
	if a.read != nil {
		w = append(w, lenient(&a.cfg.Battery)...)
		if valueOr(a.cfg.Dwell, 1) == 0 {
			w = append(w, "dwell is 0: a battery that is within its limits for one moment by chance counts as safe")
		}
	}
	w = append(w, a.plantWarnings()...)
	if len(a.checks) == 0 && !a.cfg.Slot.Run {
		w = append(w, "no health check is configured: new firmware is marked good by a person's confirm only, and rolled back without")
	}
	if !valueOr(a.cfg.AllowRollback, true) {
		w = append(w, "allow_rollback is false: firmware that is not healthy stays until the device is restarted")
	}
	for _, s := range a.cfg.allSources() {
		if s.HTTPS != nil && s.HTTPS.AllowPlain {
			w = append(w, "https.allow_plain is true: everybody on the way can read the token, and can hide updates")
		}
		if s.AWSIoT != nil && s.AWSIoT.AllowPlain {
			w = append(w, "aws_iot.allow_plain is true: everybody on the way can take the device's place, and can hide updates")
		}
		if s.Modbus != nil && s.Modbus.AllowPlain {
			w = append(w, "modbus.allow_plain is true: everybody who can send from the allowed addresses may push signed releases, and keep others from it")
		}
		if s.CANBus != nil && s.CANBus.AllowOpen {
			w = append(w, "canbus.allow_open is true: everybody on the bus may push signed releases, and keep others from it")
		}
		if s.AWSIoT != nil && len(s.AWSIoT.CodeSigningFiles) > 0 {
			w = append(w, "aws_iot.code_signing_files is set: raw images under code signing are taken, of which product and version are not signed")
		}
	}
	w = append(w, a.busWarnings()...)
	if d := a.Watchdog(); d != nil && d.Why != "" && d.State != watchdog.Busy {
		w = append(w, fmt.Sprintf("the hardware watchdog is %s: %s", d.State, d.Why))
	}
	if h := a.evidenceHead(); h != nil && h.Error != "" {
		w = append(w, "no evidence is kept of updates, and none is begun: "+h.Error)
	}
	if a.cloud != nil && a.cloud.Err() != nil {
		w = append(w, fmt.Sprintf("the log does not get to CloudWatch: %v", a.cloud.Err()))
	}
	if a.logFile != nil && a.logFile.Err() != nil {
		w = append(w, fmt.Sprintf("the log file cannot be written: %v", a.logFile.Err()))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changed {
		w = append(w, "the thresholds were changed at the control socket; the configuration's hold again after a restart of the agent")
	}
	if a.notStarted != "" {
		w = append(w, "firmware did not start, or ended: "+a.notStarted)
	}
	if a.noUpdates != "" {
		w = append(w, "no updates until the firmware is restarted: "+a.noUpdates)
	}
	if a.notManaged != "" {
		w = append(w, "no updates until this is mended: "+a.notManaged)
	}
	return w
}

// lenient names the limits that allow more than the specification's.
func lenient(b *Battery) (w []string) {
	t, d := thresholds(b), bms.Default()
	for _, l := range []struct {
		key          string
		more         bool
		value, usual any
		unit         string
	}{
		{"min_soc", t.MinSoC < d.MinSoC, t.MinSoC, d.MinSoC, " %"},
		{"max_temperature", t.MaxTemperature > d.MaxTemperature, t.MaxTemperature, d.MaxTemperature, " °C"},
		{"min_temperature", t.MinTemperature < d.MinTemperature, t.MinTemperature, d.MinTemperature, " °C"},
		{"max_current", t.MaxCurrent > d.MaxCurrent, t.MaxCurrent, d.MaxCurrent, " A"},
		{"max_age", t.MaxAge > d.MaxAge, t.MaxAge, d.MaxAge, ""},
	} {
		if l.more {
			w = append(w, fmt.Sprintf("battery.%s is %v%s, which allows more than the default of %v%s: is that right for this battery?", l.key, l.value, l.unit, l.usual, l.unit))
		}
	}
	return w
}

// Watch implements [control.Device].
func (a *Agent) Watch(ctx context.Context) <-chan control.Event {
	return a.hub.Watch(ctx, control.Event{Kind: control.KindStatus, Time: time.Now(), Status: a.Status(ctx)})
}

// ended is a command that could not begin.
type ended struct{ err error }

func (e ended) Wait(context.Context) error { return e.err }

// Command implements [control.Device].
func (a *Agent) Command(c control.Command) control.Call { return a.CommandBy(control.Peer{}, c) }

func (a *Agent) command(c control.Command) control.Call {
	a.mu.Lock()
	mgr, noUpdates := a.mgr, a.noUpdates
	a.mu.Unlock()
	switch {
	case noUpdates != "":
		return ended{fmt.Errorf("%s: %w: %s", c, ota.ErrFlashWrite, noUpdates)}
	case mgr == nil:
		return ended{fmt.Errorf("%s: %w: the device is starting or restarting", c, ota.ErrStopped)}
	}
	a.log.Info("command", "command", string(c))
	switch c {
	case control.Check:
		return mgr.Check()
	case control.Install:
		return mgr.Install()
	case control.Apply:
		return mgr.Apply()
	case control.Abort:
		return mgr.Abort()
	case control.Confirm:
		return mgr.Confirm()
	case control.RollBack:
		return mgr.RollBack()
	}
	return ended{fmt.Errorf("%w: there is no command %q", control.ErrBadRequest, c)}
}

// Slots implements [control.Device].
func (a *Agent) Slots(ctx context.Context) (control.Slots, error) {
	s := a.Snapshot()
	out := control.Slots{CanRollBack: s.CanRollBack, WhyNot: s.WhyNot}
	if s.Slot == "" {
		return out, fmt.Errorf("show the slots: %w: it is not known yet what is booted", ota.ErrStopped)
	}
	running := control.Slot{Name: s.Slot, Booted: true, Version: s.Running, Note: "running, marked good"}
	other := control.Slot{Name: s.Other, Version: s.Previous, Note: "whole, ran well before"}
	if s.Previous == "" {
		other.Note = "nothing that ran well before"
	}
	u, from := s.Update, ""
	if r := a.record.Load(); r != nil {
		from = r.From
	}
	switch s.State {
	case ota.Fetching:
		other.Note = fmt.Sprintf("being written: %d of %d bytes", s.Done, u.Size)
	case ota.Staged:
		other.Version, other.Note = u.Version, "whole, waits for the restart"
	case ota.Activating:
		other.Version, other.Note = u.Version, "is tried at the restart"
	case ota.Trial:
		running.Note, other.Version, other.Note = "on trial", from, "is returned to if the trial fails"
	case ota.Soak:
		running.Note, other.Version, other.Note = "marked good, and watched", from, "is returned to if a symptom stays"
	case ota.RollBack:
		running.Note, other.Version, other.Note = "failed its trial", from, "is being returned to"
	}
	for _, sl := range []*control.Slot{&running, &other} {
		for _, name := range a.components() {
			sl.Components = append(sl.Components, a.component(ctx, name, sl.Name))
		}
		out.Slots = append(out.Slots, *sl)
	}
	if out.Slots[0].Name > out.Slots[1].Name {
		out.Slots[0], out.Slots[1] = out.Slots[1], out.Slots[0]
	}
	return out, nil
}

func (a *Agent) component(ctx context.Context, name, slot string) control.Component {
	c := control.Component{Name: name}
	s, err := a.slots.Open(ctx, name, slot)
	if err != nil {
		c.Error = err.Error()
		return c
	}
	c.Capacity = s.Capacity()
	if err := s.Close(); err != nil {
		c.Error = err.Error()
	}
	return c
}

var errNoBattery = fmt.Errorf("thresholds: %w: battery.reader is none in this device's configuration", control.ErrBadRequest)

// Thresholds implements [control.Device].
func (a *Agent) Thresholds() (control.Thresholds, error) {
	if a.guard == nil {
		return control.Thresholds{}, errNoBattery
	}
	return shown(a.guard.Thresholds()), nil
}

func shown(t bms.Thresholds) control.Thresholds {
	return control.Thresholds{MinSoC: t.MinSoC, MaxSoC: t.MaxSoC, MaxTemperature: t.MaxTemperature, MinTemperature: t.MinTemperature,
		MaxTemperatureRate: t.MaxTemperatureRate, MaxCurrent: t.MaxCurrent, MinCell: t.MinCell, MaxCell: t.MaxCell,
		MaxCellDelta: t.MaxCellDelta, MaxUncounted: t.MaxUncounted, MaxAge: t.MaxAge.String()}
}

// SetThresholds implements [control.Device]. Old and new values are logged.
func (a *Agent) SetThresholds(c control.ThresholdsChange) (control.Thresholds, error) {
	return a.SetThresholdsBy(control.Peer{}, c)
}

// setThresholds returns the thresholds before and after the change.
func (a *Agent) setThresholds(c control.ThresholdsChange) (old, t bms.Thresholds, err error) {
	if a.guard == nil {
		return old, t, errNoBattery
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old = a.guard.Thresholds()
	t = old
	for _, v := range []struct {
		given *float64
		to    *float64
	}{
		{c.MinSoC, &t.MinSoC}, {c.MaxSoC, &t.MaxSoC}, {c.MaxTemperature, &t.MaxTemperature}, {c.MinTemperature, &t.MinTemperature},
		{c.MaxTemperatureRate, &t.MaxTemperatureRate}, {c.MaxCurrent, &t.MaxCurrent}, {c.MinCell, &t.MinCell}, {c.MaxCell, &t.MaxCell},
		{c.MaxCellDelta, &t.MaxCellDelta}, {c.MaxUncounted, &t.MaxUncounted},
	} {
		*v.to = valueOr(v.given, *v.to)
	}
	if c.MaxAge != nil {
		d, err := parseDuration(*c.MaxAge)
		if err != nil {
			return old, old, fmt.Errorf("set thresholds: %w: max_age: %w", control.ErrBadRequest, err)
		}
		t.MaxAge = d
	}
	if err := a.guard.SetThresholds(t); err != nil {
		return old, old, fmt.Errorf("set thresholds: %w: %w", control.ErrBadRequest, err)
	}
	if !reflect.DeepEqual(t, old) {
		a.changed = true
		a.log.Warn("the battery's thresholds were changed at the control socket", "old", shown(old), "new", shown(t))
	}
	return old, t, nil
}

// publish hands the present status to watchers, and has the server told.
func (a *Agent) publish(kind string) {
	e := control.Event{Kind: kind, Time: time.Now(), Status: a.Status(context.Background())}
	if e.Status.Snapshot.Status == ota.StatusComplete {
		a.mu.Lock()
		a.notStarted = ""
		a.mu.Unlock()
	}
	a.hub.Publish(e)
	a.wantPush()
}

// publishProgress is publish for progress, ten times a second at most: a
// transfer must not wait for its own display.
func (a *Agent) publishProgress(last bool) {
	a.mu.Lock()
	due := last || time.Since(a.published) >= 100*time.Millisecond
	if due {
		a.published = time.Now()
	}
	a.mu.Unlock()
	if due {
		a.publish(control.KindProgress)
	}
}

func (a *Agent) wantPush() {
	select {
	case a.pushNow <- struct{}{}:
	default:
	}
}

const (
	observeEvery = time.Second
	readEvery    = 5 * time.Second
)

// observe notices what no callback tells: reasons that change with the readings,
// and the readings themselves. The battery is read here for display only; the
// gate reads it itself, every time.
func (a *Agent) observe(ctx context.Context) {
	tick := time.NewTicker(observeEvery)
	defer tick.Stop()
	read := time.NewTicker(readEvery)
	defer read.Stop()
	a.readBattery(ctx)
	var shown ota.Snapshot
	for {
		select {
		case <-ctx.Done():
			return
		case <-read.C:
			a.readBattery(ctx)
		case <-tick.C:
			s := a.Snapshot()
			a.counters.observed(s, time.Now())
			if s.Reason != shown.Reason || s.State != shown.State || s.Status != shown.Status || s.Unsent != shown.Unsent || s.Latest != shown.Latest {
				shown = s
				a.publish(control.KindProgress)
			}
		}
	}
}

// readBattery reads for display, and gives up on a reader that hangs.
func (a *Agent) readBattery(ctx context.Context) {
	if a.read == nil {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Second, errors.New("no reading within 2 s"))
	defer cancel()
	r, err := a.guard.Read(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	a.mu.Lock()
	a.reading, a.readErr = r, err
	a.mu.Unlock()
}
