package ota

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// maxStarts is how often the process may start within one trial. Firmware whose
// agent crashes again and again must not keep the trial alive for ever.
const maxStarts = 5

// resumeRetry is the pause after a Resume that failed: a plant must not stay
// quiesced because one command did not get through.
const resumeRetry = 10 * time.Second

// stopGrace is what a Resume, or taking back a try, may take once the agent is
// told to stop. systemd kills after 90 s by default.
const stopGrace = 30 * time.Second

// restartRetry is the pause after a restart that was called off at the last
// moment: plants and boot variables are not switched once a second.
const restartRetry = time.Minute

// never is the pause of a state in which only a command or a check changes anything.
const never = time.Duration(math.MaxInt64)

// step does the work of the present state and saves what follows. A crash
// anywhere leaves the old record, so that the same work is done again: all of
// it is idempotent. It returns how long to wait before the next step, 0 for not
// at all. Only an error of the store or of Slots.Booted is returned; all others
// are reasons to wait, and shown in the snapshot.
func (m *Manager) step(ctx context.Context) (pause time.Duration, err error) {
	old, b, err := m.load(ctx)
	if err != nil {
		return 0, err
	}
	r, changed := m.reconcile(old, b)
	if changed {
		if err := m.save(r); err != nil {
			return 0, m.unsaved(ctx, old, b, err)
		}
	}
	before := r.State
	r = m.deliver(ctx, r)
	checks := m.checkDue && checkable(r)
	if checks {
		m.checkDue = false
		r, err = m.check(ctx, r, b)
	} else {
		r, err = m.next(ctx, r, b)
	}
	m.because(err)
	m.resumeUnlessNeeded(ctx, &r, err == nil && r.State != before)
	if saveErr := m.save(r); saveErr != nil {
		m.checkDue = m.checkDue || checks // what it found is lost
		return 0, m.unsaved(ctx, old, b, saveErr)
	}
	m.unsavedSince = time.Time{}
	m.answer(r, err)
	if r.State != before && err == nil {
		m.backoff = 0
		return 0, nil
	}
	pause = m.pauseAfter(r, err)
	if before == Activating && r.State == Staged { // quiesced, told the bootloader, and all of it taken back
		pause = max(pause, m.jitter(restartRetry))
	}
	if m.owes(r) {
		pause = min(pause, time.Until(m.deliverAt))
	}
	if r.Quiesced && !m.staysQuiet(r) { // Resume failed
		pause = min(pause, resumeRetry)
	}
	return max(pause, 0), nil
}

// next is the whole machine:
//
//	idle → available → fetching → staged → activating ═reboot═> trial → idle
//	                      ↑         ↑  └──────┘  |                |
//	                      └─ damaged┘ └──────────┴─ the old slot came back
//	                                        rollback ←────────────┘ not healthy
//
// Waiting is staying in the state; the error says for what.
func (m *Manager) next(ctx context.Context, r Record, b Boot) (Record, error) {
	switch r.State {
	case Idle:
		return r, errWaiting

	case Available:
		if !m.consents(r, ConsentInstall) {
			return m.waitForPerson(r, StatusUpdateAvailable)
		}
		m.enter(StatusUpdateAvailable)
		if err := m.ask(ctx, r, BeforeWrite, StatusUpdateAvailable); err != nil {
			return r, err
		}
		// The clock, and what runs, may have changed since the check.
		switch err := m.fits(ctx, r.Release, r, b); CodeOf(err) {
		case ErrNone:
		case ErrNoUpdate:
			m.set(StatusIdle, err)
			return r.idle(), err
		case ErrIncompatible, ErrValidation:
			m.failed(err)
			return r.idle(), err
		default:
			return r, err
		}
		r.From = m.cfg.Version
		// From here on the other slot is not whole, and the record says so first.
		r.State, r.Slot, r.OldSlot, r.Previous = Fetching, b.Other, b.Slot, Installed{}
		return r, nil

	case Fetching:
		if b.Slot == r.Slot { // somebody else changed slots
			r.State = Available
			return r, nil
		}
		if err := m.fetch(ctx, &r); err != nil {
			if giveUp(err) {
				return m.end(r, b, Failed, err), nil
			}
			return r, err
		}
		r.State = Staged
		return r, nil

	case Staged:
		if b.Slot == r.Slot { // booted by somebody else's hand; the image is whole
			r.State = Trial
			return r, nil
		}
		if r.Abort {
			return m.end(r, b, Aborted, ErrAborted), nil
		}
		if floor := m.floor(r); r.Release.SecurityVersion < floor {
			return m.end(r, b, Failed, coded(ErrIncompatible, "release %s has security version %d, and this device has had %d",
				r.Release.Version, r.Release.SecurityVersion, floor)), nil
		}
		if r.Tries >= m.cfg.MaxTries {
			return m.end(r, b, cameBack(r), cameBackErr(r, b)), nil
		}
		if err := m.verifyStaged(ctx, r); err != nil {
			return m.damaged(r, b, err)
		}
		if !m.consents(r, ConsentApply) {
			return m.waitForPerson(r, StatusReadyToApply)
		}
		m.enter(StatusReadyToApply)
		if err := m.ask(ctx, r, BeforeRestart, StatusReadyToApply); err != nil {
			return r, err
		}
		r.State, r.BootID, r.Tries = Activating, b.ID, r.Tries+1
		m.armed = r.Attempt
		return r, nil

	case Activating:
		if b.Slot == r.Slot {
			r.State, r.BootID, r.Starts = Trial, b.ID, 0
			return r, nil
		}
		if b.ID != r.BootID { // restarted, but into the old slot
			r.State, r.FellBack = Staged, r.FellBack || b.FellBack
			return r, nil
		}
		return m.activate(ctx, r, b)

	case Trial:
		if b.Slot != r.Slot { // it crashed, or the power went
			r.State, r.FellBack = Staged, true
			return r, nil
		}
		return m.trial(ctx, r, b)

	case RollBack:
		return m.rollBack(ctx, r, b)
	}
	return r, fmt.Errorf("record: %w: state %q is not known here", ErrInternal, r.State)
}

// activate makes the bootloader try the new slot, and restarts. Try comes
// before the last question to the gate, because it may take long on a slow
// medium, and nothing may stand between the gate's yes and the restart.
func (m *Manager) activate(ctx context.Context, r Record, b Boot) (Record, error) {
	back := func(err error) (Record, error) {
		ctx, done := outlive(ctx)
		defer done()
		if undo := m.cfg.Slots.MarkGood(ctx); undo != nil { // forgets the Try
			m.armed = "" // only taking it back is tried again, with the application at work
			return r, bootError{fmt.Errorf("take back the try of slot %s: %w", r.Slot, undo)}
		}
		r.State, r.Tries = Staged, r.Tries-1
		m.rebooting, m.tried = time.Time{}, ""
		return r, err
	}
	if r.Abort {
		r, err := back(nil)
		if err != nil {
			return r, err
		}
		return m.end(r, b, Aborted, ErrAborted), nil
	}
	if m.armed != r.Attempt { // the process died after the gate's yes: ask anew
		return back(nil)
	}
	m.enter(StatusApplying)
	if r.Release.NoReboot {
		if m.tried != r.Attempt { // once: each time wears the bootloader's flash
			if err := m.cfg.Slots.Try(ctx, r.Slot); err != nil {
				return back(fmt.Errorf("try slot %s: %w", r.Slot, err))
			}
			m.tried = r.Attempt
		}
		m.explain(StatusApplying, "takes effect at the next restart")
		return r, errWaiting
	}
	if m.rebooting.IsZero() {
		if err := m.suspend(ctx, &r); err != nil {
			m.failed(err)
			return back(err)
		}
		if err := m.cfg.Slots.Try(ctx, r.Slot); err != nil {
			return back(fmt.Errorf("try slot %s: %w", r.Slot, err))
		}
		if err := m.ask(ctx, r, AtRestart, StatusReadyToApply); err != nil {
			return back(err)
		}
		m.set(StatusRebooting, nil)
		if m.cfg.Hooks.Finished != nil {
			m.cfg.Hooks.Finished(r.Release)
		}
		// The hook may have taken its time.
		if err := m.ask(ctx, r, AtRestart, StatusReadyToApply); err != nil {
			return back(err)
		}
		if err := m.cfg.Slots.Reboot(ctx); err != nil {
			return back(fmt.Errorf("restart: %w", err))
		}
		m.set(StatusRebooting, nil)
		m.rebooting = time.Now()
		return r, errWaiting
	}
	if time.Since(m.rebooting) < m.cfg.RollbackTimeout {
		return r, errWaiting
	}
	return back(fmt.Errorf("%w: asked for a restart %v ago, and nothing happened", ErrInternal, m.cfg.RollbackTimeout))
}

// trial judges the firmware that runs for the first time.
func (m *Manager) trial(ctx context.Context, r Record, b Boot) (Record, error) {
	if r.Abort { // asked for before the restart, which then happened all the same
		r.State, r.BootID, r.Reason = RollBack, "", ErrAborted.Error()
		return r, nil
	}
	if m.trialStart.IsZero() { // once in each process
		m.trialStart = time.Now()
		if r.BootID != b.ID {
			r.BootID, r.Starts = b.ID, 0
		}
		r.Starts++
		if r.Starts > maxStarts && !m.cfg.NoRollback { // before asking: the question may be what it dies of
			return m.giveBack(r, coded(ErrValidation, "the agent started %d times in one trial", r.Starts)), nil
		}
		if err := m.save(r); err != nil {
			return r, err
		}
	}
	m.enter(StatusTrial)
	if m.confirmed {
		return m.proven(ctx, r, b)
	}
	left := m.cfg.RollbackTimeout - time.Since(m.trialStart)
	err := m.healthy(ctx, r, max(left, m.cfg.HealthInterval))
	switch {
	case err == nil && m.healthySince.IsZero():
		m.healthySince = time.Now()
	case err != nil:
		m.healthySince = time.Time{}
	}
	if err == nil && time.Since(m.healthySince) >= m.cfg.ValidationTime {
		return m.proven(ctx, r, b)
	}
	if err == nil {
		m.explain(StatusTrial, fmt.Sprintf("healthy for %v of %v", time.Since(m.healthySince).Round(time.Second), m.cfg.ValidationTime))
		return r, errWaiting
	}
	if m.cfg.NoRollback {
		return r, fmt.Errorf("not healthy, and automatic rollback is switched off: %w", err)
	}
	if time.Since(m.trialStart) < m.cfg.RollbackTimeout {
		return r, err
	}
	return m.giveBack(r, fmt.Errorf("not healthy within %v: %w", m.cfg.RollbackTimeout, err)), nil
}

// giveBack ends a trial badly.
func (m *Manager) giveBack(r Record, err error) Record {
	m.cfg.Log.Error("the trial failed, going back", "version", r.Release.Version, "slot", r.OldSlot, "error", err)
	r.State, r.BootID, r.Code, r.Reason = RollBack, "", int(codeOr(err, ErrValidation)), err.Error()
	return r
}

// unsaved leaves firmware on trial that cannot write the record, after
// RollbackTimeout: what cannot be remembered can never be proven. The record
// still says that the slot is to be tried, and the old firmware counts that.
func (m *Manager) unsaved(ctx context.Context, r Record, b Boot, err error) error {
	if m.cfg.NoRollback || b.Slot != r.Slot || r.State != Activating && r.State != Trial && r.State != RollBack {
		return err
	}
	if m.unsavedSince.IsZero() {
		m.unsavedSince = time.Now()
	}
	if time.Since(m.unsavedSince) < m.cfg.RollbackTimeout {
		return err
	}
	m.cfg.Log.Error("firmware on trial cannot save the record, going back", "slot", r.OldSlot, "error", err)
	if tryErr := m.cfg.Slots.Try(ctx, r.OldSlot); tryErr != nil { // it may be marked good already: no restart for nothing
		return fmt.Errorf("%w; try slot %s: %w", err, r.OldSlot, tryErr)
	}
	if bootErr := m.cfg.Slots.Reboot(ctx); bootErr != nil {
		return fmt.Errorf("%w; restart: %w", err, bootErr)
	}
	m.unsavedSince = time.Now()
	return err
}

// healthy asks the application, and makes sure that what runs is what was sent.
func (m *Manager) healthy(ctx context.Context, r Record, limit time.Duration) error {
	if CompareVersions(m.cfg.Version, r.Release.Version) != 0 {
		return coded(ErrValidation, "slot %s reports version %s, want %s", r.Slot, m.cfg.Version, r.Release.Version)
	}
	if m.cfg.Healthy == nil {
		return coded(ErrValidation, "not confirmed")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if m.asking == nil { // one at a time, however long it takes
		answer := make(chan verdict, 1)
		m.asking = answer
		go func() {
			var v verdict
			defer func() { v.panicked = recover(); answer <- v }()
			v.err = m.cfg.Healthy(ctx)
		}()
	}
	select {
	case v := <-m.asking:
		m.asking = nil
		if v.panicked != nil {
			panic(v.panicked)
		}
		return v.err
	case <-ctx.Done():
		return coded(ErrValidation, "the health check does not answer: %w", ctx.Err())
	}
}

// A verdict is how a question to Healthy ended.
type verdict struct {
	err      error
	panicked any
}

// proven ends an update well. The security version rises only after the slot
// is marked good: the other way round, a device that still has to go back could
// not.
func (m *Manager) proven(ctx context.Context, r Record, b Boot) (Record, error) {
	if err := m.cfg.Slots.MarkGood(ctx); err != nil {
		return r, bootError{fmt.Errorf("mark slot %s good: %w", b.Slot, err)}
	}
	was := r.Running
	if was.Slot != r.OldSlot || CompareVersions(was.Version, r.From) != 0 {
		was = Installed{Version: r.From}
	}
	was.Slot = r.OldSlot
	now := Installed{Slot: b.Slot, Version: r.Release.Version, Digest: r.Digest, SecurityVersion: r.Release.SecurityVersion}
	for _, im := range r.Release.Images {
		im.Chunks = nil
		now.Images = append(now.Images, im)
	}
	r.Running, r.Previous = now, was
	r.SecurityVersion = max(r.SecurityVersion, r.Release.SecurityVersion)
	return m.end(r, b, Succeeded, nil), nil
}

// rollBack goes back to the old slot. It tells the bootloader so, although
// forgetting to mark good would do: a cut between MarkGood and the save of the
// record may have made the new slot the one that boots.
func (m *Manager) rollBack(ctx context.Context, r Record, b Boot) (Record, error) {
	m.enter(StatusRollingBack)
	result, why := RolledBack, coded(ErrorCode(r.Code), "%s", r.Reason)
	if r.Abort {
		result, why = Aborted, ErrAborted
	}
	if b.Slot != r.Slot {
		if err := m.cfg.Slots.MarkGood(ctx); err != nil {
			return r, bootError{fmt.Errorf("mark slot %s good: %w", b.Slot, err)}
		}
		return m.end(r, b, result, why), nil
	}
	if r.BootID != b.ID {
		if r.Returns >= m.cfg.MaxTries {
			// It runs, and was never marked good: no digest, and nothing to go back from.
			r.Running, r.Previous = Installed{Slot: b.Slot, Version: m.cfg.Version, SecurityVersion: m.cfg.SecurityVersion}, Installed{}
			return m.end(r, b, Failed, fmt.Errorf("%w; and the device did not return to slot %s in %d restarts", why, r.OldSlot, r.Returns)), nil
		}
		r.BootID, r.Returns = b.ID, r.Returns+1
		if err := m.save(r); err != nil {
			return r, err
		}
	}
	if !m.rebooting.IsZero() && time.Since(m.rebooting) < m.cfg.RollbackTimeout {
		return r, errWaiting // the device is on its way down
	}
	if err := m.cfg.Slots.Try(ctx, r.OldSlot); err != nil {
		// The restart alone leaves what nobody has marked good. Returns bounds it.
		m.cfg.Log.Error("cannot tell the bootloader to go back, restarting all the same", "slot", r.OldSlot, "error", err)
	}
	if err := m.cfg.Slots.Reboot(ctx); err != nil {
		return r, bootError{fmt.Errorf("restart: %w", err)}
	}
	m.rebooting = time.Now()
	return r, errWaiting
}

// damaged deals with a staged image that no longer reads back as it was
// verified. A fetch repairs it from the first bad chunk on.
func (m *Manager) damaged(r Record, b Boot, err error) (Record, error) {
	if CodeOf(err) != ErrFlashWrite {
		return r, err
	}
	if r.Back {
		return m.end(r, b, Failed, fmt.Errorf("the previous image is damaged: %w", err)), nil
	}
	m.cfg.Log.Warn("staged image is damaged, fetching it again", "version", r.Release.Version, "error", err)
	r.State = Fetching
	return r, nil
}

// cameBack tells lost from failed: did anything say that the new slot was tried?
func cameBack(r Record) Result {
	if r.FellBack {
		return Failed
	}
	return Lost
}

func cameBackErr(r Record, b Boot) error {
	if r.FellBack {
		return coded(ErrValidation, "slot %s was tried %d times and did not stay up, slot %s came back", r.Slot, r.Tries, b.Slot)
	}
	return coded(ErrInternal, "%w: slot %s booted after each of %d restarts, and nothing says that slot %s was tried", ErrLost, b.Slot, r.Tries, r.Slot)
}

// A bootError says that the bootloader did not do what it was asked. It is asked
// again after a while, because every time may wear its flash.
type bootError struct{ error }

func (e bootError) Unwrap() error { return e.error }

// giveUp reports whether err will not mend by waiting.
func giveUp(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrNotNow) { // a refusal, whatever it wraps
		return false
	}
	switch CodeOf(err) {
	case ErrValidation, ErrFlashWrite, ErrIncompatible:
		return true
	}
	return false
}

// coded returns an error that carries code, but not its text: for reasons that
// say more without it.
func coded(code ErrorCode, format string, a ...any) error {
	return &codedError{code, fmt.Errorf(format, a...)}
}

type codedError struct {
	code ErrorCode
	err  error
}

func (e *codedError) Error() string   { return e.err.Error() }
func (e *codedError) Unwrap() []error { return []error{e.code, e.err} }

func codeOr(err error, byDefault ErrorCode) ErrorCode {
	if c := CodeOf(err); c != ErrInternal && !(c == ErrConnectivity && !errors.Is(err, ErrConnectivity)) {
		return c
	}
	return byDefault
}
