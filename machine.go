package ota

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// resumeRetry is the pause after a Resume that failed: a plant must not stay
// quiesced because one command did not get through.
const resumeRetry = 10 * time.Second

// stopGrace is what a Resume, or taking back a try, may take once the agent is
// told to stop. systemd kills after 90 s by default.
const stopGrace = 30 * time.Second

// restartRetry is the pause after a restart that was called off at the last
// moment: plants and boot variables are not switched once a second. It doubles up to
// MaxBackoff, for quiescing itself may be what makes the gate say no, and contactors wear.
const restartRetry = time.Minute

// calledOffPause is the pause after one more restart that was called off.
func (m *Manager) calledOffPause() time.Duration {
	pause := restartRetry << min(m.calledOff, 10)
	m.calledOff++
	return min(pause, max(m.cfg.MaxBackoff, restartRetry))
}

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
		return 0, m.unloaded(ctx, b, err)
	}
	r, changed := m.reconcile(old, b)
	if changed {
		if err := m.save(r); err != nil {
			return 0, m.unsaved(ctx, old, b, err)
		}
	}
	before := r.State
	keepErr := m.keep(ctx, r, b)
	r = m.deliver(ctx, r)
	checks := m.checkDue && checkable(r)
	_, stray := errors.AsType[unproven](keepErr)
	switch {
	case checks:
		m.checkDue = false
		r, err = m.check(ctx, r, b)
	case stray && r.State != Idle: // the other slot is the one to return to: it is not written, nor tried
		err = keepErr
	default:
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
	switch {
	case before == Activating && r.State == Staged: // quiesced, told the bootloader, and all of it taken back
		pause = max(pause, m.jitter(m.calledOffPause()))
	case r.State == Idle:
		m.calledOff = 0
	}
	switch {
	case stray:
		pause = min(pause, m.cfg.HealthInterval)
	case keepErr != nil:
		pause = min(pause, m.jitter(keepRetry))
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
//	idle → available → fetching → staged → activating ═reboot═> trial → soak → idle
//	                      ↑         ↑  └──────┘  |                |       |
//	                      └─ damaged┘ └──────────┴─ the old slot came back
//	                                        rollback ←────────────┴───────┘ not healthy, symptoms
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
		if err := m.protected(); err != nil {
			m.set(StatusUpdateAvailable, err)
			return r, err
		}
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
		if m.armed != r.Attempt && !r.Release.NoReboot {
			m.perhapsQuiesced(&r)
		}
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

	case Soak:
		if b.Slot != r.Slot {
			return leftBehind(r, b), nil
		}
		return m.soak(ctx, r, b)

	case RollBack:
		return m.rollBack(ctx, r, b)
	}
	return r, fmt.Errorf("record: %w: state %q is not known here", ErrInternal, r.State)
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
