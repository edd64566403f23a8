package ota

import (
	"context"
	"fmt"
	"time"
)

// activate makes the bootloader try the new slot, and restarts. Try comes
// before the last question to the gate, because it may take long on a slow
// medium, and nothing may stand between the gate's yes and the restart.
func (m *Manager) activate(ctx context.Context, r Record, b Boot) (Record, error) {
	back := func(err error) (Record, error) {
		ctx, done := outlive(ctx)
		defer done()
		if undo := m.markGood(ctx); undo != nil { // forgets the Try
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
				return m.untried(r, b, back, fmt.Errorf("try slot %s: %w", r.Slot, err))
			}
			m.tried = r.Attempt
		}
		m.explain(StatusApplying, "takes effect at the next restart", time.Time{})
		return r, errWaiting
	}
	if m.rebooting.IsZero() {
		if err := m.suspend(ctx, &r); err != nil {
			m.failed(err)
			return back(err)
		}
		if err := m.cfg.Slots.Try(ctx, r.Slot); err != nil {
			return m.untried(r, b, back, fmt.Errorf("try slot %s: %w", r.Slot, err))
		}
		if err := m.ask(ctx, r, AtRestart, StatusReadyToApply); err != nil {
			return back(err)
		}
		m.set(StatusRebooting, nil)
		if m.cfg.Hooks.Finished != nil {
			m.cfg.Hooks.Finished(r.Release)
		}
		// The hook may have taken its time.
		if err := m.lastWord(ctx, r, StatusReadyToApply); err != nil {
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

// A yes to the restart is good for this long, from the question on.
const wordIsGood = time.Second

// lastWord asks the gate when the restart is the next thing that happens. A yes that
// took its time says nothing about now: the gate is asked again, a few times, and
// what cannot answer in time has not said yes.
func (m *Manager) lastWord(ctx context.Context, r Record, while Status) error {
	var took time.Duration
	for range 3 {
		asked := time.Now()
		if err := m.ask(ctx, r, AtRestart, while); err != nil {
			return err
		}
		if took = time.Since(asked); took <= wordIsGood {
			return nil
		}
	}
	err := &Refusal{Code: ErrBMSUnsafe, Reason: fmt.Sprintf("the gate's yes took %v, and at the restart it must not be older than %v",
		took.Round(time.Millisecond), wordIsGood)}
	m.set(while, err)
	return err
}

// untried deals with slots that do not try what is staged. Its image may have
// been damaged since it was verified, so that it is read again, and repaired. If it
// is what the manifest says, and this device still refuses it, no waiting will help.
func (m *Manager) untried(r Record, b Boot, back func(error) (Record, error), err error) (Record, error) {
	again := m.refused == r.Attempt
	m.verified, m.refused = "", ""
	staged, undo := back(nil)
	if undo != nil {
		return staged, undo
	}
	if code := CodeOf(err); code == ErrValidation || code == ErrIncompatible {
		if m.refused = r.Attempt; again {
			return m.end(staged, b, Failed, err), nil
		}
	}
	return staged, err
}
