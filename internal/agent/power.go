package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/supervise"
)

// errRestart ends a manager because the device is to restart.
var errRestart = errors.New("the device restarts")

const (
	firstPause = time.Second // before firmware that does not start is started again
	lastPause  = time.Minute
	settled    = time.Minute // firmware that ran for so long did start
)

// powered is a device with slot.run, from power-on to power-off: it does what a
// bootloader does, runs the firmware, and runs a manager beside it. A restart is
// another round. Firmware that does not start, or ends by itself, is a restart
// that nobody asked for: if it was on trial, the slot before it boots again.
func (a *Agent) powered(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		began := time.Now()
		err := a.boot(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errRestart) {
			a.log.Info("restarting")
			wait = 0
			continue
		}
		a.log.Error("the firmware is not running, restarting", "error", err, "pause", wait)
		a.setNotStarted(err)
		if time.Since(began) > settled {
			wait = 0
		}
		if !pause(ctx, wait) {
			return nil
		}
		wait = min(max(2*wait, firstPause), lastPause)
	}
}

// boot is one boot. The error says how it ended.
func (a *Agent) boot(ctx context.Context) error {
	select {
	case <-a.restart: // asked for by what is gone already
	default:
	}
	powered := a.alive.enter("picking the slot that boots")
	a.alive.begun.Store(true)
	slot, bootErr := a.player.PowerOn(ctx)
	if bootErr == nil {
		_, _ = watchedSlots{a.slots, &a.alive}.Booted(ctx) // for the watchdog; the manager asks again
	}
	powered()
	if slot == "" {
		return bootErr
	}
	fw, err := supervise.Start(ctx, supervise.Config{Path: a.slotPath(slot), Log: a.log,
		Timeout: time.Duration(a.cfg.Slot.StartTimeout), Grace: time.Duration(a.cfg.Slot.StopGrace)})
	if errors.Is(err, fs.ErrNotExist) && a.cfg.Slot.Factory == "" {
		err = fmt.Errorf("%w (slot.factory names the image that a new device begins with)", err)
	}
	if err != nil {
		return fmt.Errorf("boot slot %s: %w", slot, err)
	}
	defer fw.Stop()
	a.log.Info("firmware runs", "slot", slot, "version", fw.Version())
	if bootErr == nil {
		return a.beside(ctx, fw)
	}
	// The firmware does its work, but what the boot control says of this boot is
	// not true, and a manager that believed it could write to what runs.
	a.log.Error("boot control cannot be written: the firmware runs, and there will be no updates until it is restarted", "error", bootErr)
	a.mu.Lock()
	a.noUpdates, a.snap.Running, a.snap.Slot = bootErr.Error(), fw.Version(), slot
	a.mu.Unlock()
	a.publish(control.KindStatus)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.restart:
		return errRestart
	case <-fw.Done():
		return fw.Err()
	}
}

// beside runs a manager beside the firmware. That one cannot be made, because a
// token is being replaced or a certificate is gone, is no reason to stop firmware
// that runs: it is tried again. Firmware on trial is not proven meanwhile, and the
// next restart goes back.
func (a *Agent) beside(ctx context.Context, fw *supervise.Firmware) error {
	for wait := firstPause; ; wait = min(2*wait, lastPause) {
		err := a.manage(ctx, fw.Version(), fw)
		unmade, ok := errors.AsType[unmadeError](err)
		if !ok {
			return err
		}
		a.log.Error("the firmware runs, and there are no updates until this is mended", "error", unmade, "again in", wait)
		a.mu.Lock()
		a.notManaged, a.snap.Running = unmade.Error(), fw.Version()
		a.mu.Unlock()
		a.publish(control.KindStatus)
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-a.restart:
			err = errRestart
		case <-fw.Done():
			err = fw.Err()
		case <-again.C:
			continue
		}
		again.Stop()
		return err
	}
}

// unmadeError is why there is no manager, although the configuration was good when
// the agent started.
type unmadeError struct{ error }

func (e unmadeError) Unwrap() error { return e.error }

func (a *Agent) setNotStarted(err error) {
	a.mu.Lock()
	a.notStarted, a.notStartedDigest = err.Error(), a.inHand()
	a.mu.Unlock()
	a.publish(control.KindStatus)
}
