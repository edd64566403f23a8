package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/watchdog"
)

// This file decides what the hardware watchdog is told. Firmware on trial that hangs
// as a whole, with its kernel and this agent, comes back only if something outside
// of it restarts the device.

const (
	defaultDogTimeout = 30 * time.Second
	shortestDog       = 5 * time.Second // a third of it must be long enough for a busy processor
	longestDog        = time.Hour

	holdAlways = "always"
	holdTrial  = "trial"

	// rollbackTimeout is the manager's default, see [ota.Config].
	rollbackTimeout = 5 * time.Minute
	// verdictMargin is what a trial may take beyond its own limit: for the health check
	// under way, for MarkGood, or for the restart that the manager has asked for.
	verdictMargin = time.Minute
)

func (w *Watchdog) check() error {
	t := time.Duration(w.Timeout)
	switch {
	case w.Device == "" && (t != 0 || w.Hold != ""):
		return errors.New("watchdog.timeout or watchdog.hold is given, and nothing looks at it without watchdog.device, for example /dev/watchdog")
	case t != 0 && (t < shortestDog || t > longestDog):
		return fmt.Errorf("watchdog.timeout is %v, want %v to %v", t, shortestDog, longestDog)
	case w.Hold != "" && w.Hold != holdAlways && w.Hold != holdTrial:
		return fmt.Errorf("watchdog.hold is %q, want %s or %s", w.Hold, holdAlways, holdTrial)
	}
	return nil
}

// newDog makes the keeper of the watchdog that is configured.
func (a *Agent) newDog(open func(string) (watchdog.Device, error)) *watchdog.Keeper {
	w := &a.cfg.Watchdog
	d := &dog{a: a}
	return watchdog.New(watchdog.Config{Path: w.Device, Timeout: time.Duration(orDefault(w.Timeout, Duration(defaultDogTimeout))),
		Open: open, Log: a.log, Ask: d.ask})
}

// Watchdog returns what the hardware watchdog does, or nil if none is configured.
func (a *Agent) Watchdog() *watchdog.Status {
	if a.dog == nil {
		return nil
	}
	s := a.dog.Status()
	return &s
}

// holdDog arms the watchdog, before anything that can hang, and returns what lets go
// of it after all else has ended.
func (a *Agent) holdDog(ctx context.Context) (letGo func()) {
	if a.dog == nil {
		return func() {}
	}
	a.dog.Start()
	return func() { a.dog.Stop(a.endOfWatch(context.WithoutCancel(ctx))) }
}

// dog answers the keeper. It belongs to the keeper's goroutine.
type dog struct {
	a     *Agent
	began time.Time
	trial string    // id of the boot that is on trial; empty: none
	since time.Time // when that was first seen
}

// ask says whether the agent is well: not stuck, at work, and not on trial for longer
// than a trial can take. A manager that cannot come to a verdict, or cannot carry it
// out, is a reason to restart the device: what runs is not proven.
func (d *dog) ask() watchdog.Need {
	a, limit := d.a, d.a.verdictLimit()
	if d.began.IsZero() {
		d.began = time.Now()
	}
	a.Snapshot() // a manager that never lets go of its lock stops us here
	if err := a.alive.stuck(); err != nil {
		return watchdog.Need{Stuck: err}
	}
	if time.Since(d.began) > limit && !a.alive.begun.Load() {
		return watchdog.Need{Stuck: fmt.Errorf("the agent has not come to its work in %v", limit)}
	}
	if !a.onTrial() {
		d.trial = ""
		return watchdog.Need{Release: a.handsOver()}
	}
	if id := a.alive.boot.Load().ID; d.trial != id {
		d.trial, d.since = id, time.Now()
	}
	if time.Since(d.since) > limit {
		return watchdog.Need{Stuck: fmt.Errorf("there is no verdict on slot %s after %v", a.alive.boot.Load().Slot, limit)}
	}
	return watchdog.Need{}
}

// verdictLimit is how long a trial, or the start of the agent, can honestly take.
// Firmware that gets healthy in the last moment is watched for the validation time.
func (a *Agent) verdictLimit() time.Duration {
	return orDefault(a.cfg.rollbackTimeout(), rollbackTimeout) +
		time.Duration(valueOr(a.cfg.ValidationTime, Duration(validationTime))) + verdictMargin
}

// validationTime is the default, see managerConfig.
const validationTime = 10 * time.Second

// onTrial reports whether what runs has yet to prove itself, as far as is known: by
// the record, or by the bootloader. With allow_rollback false nothing has to.
func (a *Agent) onTrial() bool {
	b, r := a.alive.boot.Load(), a.record.Load()
	switch {
	case b == nil || !valueOr(a.cfg.AllowRollback, true):
		return false
	case b.Trial:
		return true
	case r == nil, r.Slot != b.Slot:
		return false
	}
	return r.State == ota.Staged || r.State == ota.Activating || r.State == ota.Trial || r.State == ota.RollBack
}

// handsOver reports whether somebody else may hold the watchdog now. An agent that
// is the bootloader, too, begins the trial without being started again.
func (a *Agent) handsOver() bool {
	r := a.record.Load()
	if a.cfg.Watchdog.Hold != holdTrial || r == nil || a.alive.boot.Load() == nil {
		return false
	}
	return !a.cfg.Slot.Run || r.State != ota.Activating
}

// endOfWatch decides how the agent that ends leaves the watchdog behind. On trial it
// stays armed: nobody is left who could prove the firmware.
func (a *Agent) endOfWatch(ctx context.Context) watchdog.End {
	if a.alive.boot.Load() == nil && !a.cfg.Slot.Run { // it ends before it came to its work
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, _ = watchedSlots{a.slots, &a.alive}.Booted(ctx) // an error leaves it unknown
	}
	b, r := a.alive.boot.Load(), a.record.Load()
	switch {
	case a.onTrial():
		return watchdog.Armed
	case b != nil && r != nil && r.State == ota.Activating && r.Slot != b.Slot && !r.Release.NoReboot && !a.cfg.Slot.Run:
		return watchdog.Restart // asked for, or the manager would have taken it back
	}
	return watchdog.Disarm
}
