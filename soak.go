package ota

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// beginSoak watches on what was just marked good. The record says so before the
// application is resumed for it: while it says trial, the device goes back without
// asking anybody.
func (m *Manager) beginSoak(r Record, b Boot) (Record, error) {
	soaking := r
	soaking.State, soaking.Good, soaking.Soaked, soaking.Code, soaking.Reason = Soak, true, 0, 0, ""
	soaking.BootID, soaking.Starts = b.ID, 0
	if err := m.save(soaking); err != nil {
		return r, err
	}
	m.cfg.Log.Info("proven and marked good, watched on", "version", r.Release.Version, "slot", r.Slot, "for", m.cfg.SoakTime)
	m.confirmed, m.soakStart, m.symptomSince = false, time.Time{}, time.Time{}
	return soaking, nil
}

// soak watches firmware that was marked good, with the plant at work. Until it is
// over nothing is called a success, and the record still allows the way back. A reason
// in the record says that the way back is decided.
func (m *Manager) soak(ctx context.Context, r Record, b Boot) (Record, error) {
	if m.soakStart.IsZero() { // once in each process
		m.soakStart, m.soakedBefore = time.Now(), time.Duration(r.Soaked)*time.Second
		if r.BootID != b.ID { // the power may go as often as it likes
			r.BootID, r.Starts = b.ID, 0
		}
		if r.Starts++; r.Starts > maxStarts { // before asking: the question may be what it dies of
			r = m.condemn(r, coded(ErrValidation, "the agent started %d times in one boot of the soak", r.Starts))
		}
		if r.Reason != "" {
			m.perhapsQuiesced(&r)
		}
		if err := m.save(r); err != nil {
			return r, err
		}
	}
	if m.cfg.NoRollback {
		r.Code, r.Reason = 0, ""
	}
	switch {
	case m.confirmed, m.cfg.SoakTime == 0 && r.Reason == "": // soaks were switched off: as if there had been none
		return m.soaked(ctx, r, b)
	case r.Reason != "":
		return m.leave(ctx, r, b)
	}
	m.enter(StatusTrial)
	over := m.soakedBefore + time.Since(m.soakStart)
	if over-time.Duration(r.Soaked)*time.Second >= max(time.Minute, m.cfg.SoakTime/100) { // seldom: flash wears
		r.Soaked = int(over / time.Second)
	}
	err, known := m.symptom(ctx)
	switch {
	case err == nil && known && over >= m.cfg.SoakTime:
		return m.soaked(ctx, r, b)
	case err == nil:
		m.explain(StatusTrial, fmt.Sprintf("marked good, watched for %v of %v", over.Truncate(time.Second), m.cfg.SoakTime), m.soakStart.Add(m.cfg.SoakTime-m.soakedBefore))
		return r, errWaiting
	case m.cfg.NoRollback:
		return r, fmt.Errorf("a symptom, and automatic rollback is switched off: %w", err)
	case time.Since(m.symptomSince) < m.cfg.SymptomTime:
		return r, until{err, m.symptomSince.Add(m.cfg.SymptomTime)}
	}
	r = m.condemn(r, err)
	if err := m.save(r); err != nil {
		return r, err
	}
	return m.leave(ctx, r, b)
}

// symptom returns what speaks against the firmware now; m.symptomSince says since
// when. known is false while there is no answer yet: then what stood before stands,
// and from SymptomTime on the silence is a symptom as well.
func (m *Manager) symptom(ctx context.Context) (err error, known bool) {
	if m.cfg.Symptom == nil {
		return nil, true
	}
	err, known = m.symptoms.ask(ctx, m.cfg.Symptom, m.cfg.SymptomTime, m.cfg.HealthInterval)
	put := m.symptoms.put
	silent := time.Since(put) >= m.cfg.SymptomTime
	switch {
	case known && err == nil:
		m.symptomSince, m.standing = time.Time{}, nil
		return nil, true
	case silent: // an answer that it breaks off is none
		err = coded(ErrValidation, "the question for symptoms was not answered in %v", m.cfg.SymptomTime)
	case known:
		err = coded(codeOr(err, ErrValidation), "%w", err)
	default:
		err = m.standing
	}
	if err != nil && m.symptomSince.IsZero() {
		m.symptomSince = put
	}
	m.standing = err
	return err, known
}

// soakPause is the time until the next question for symptoms, shorter where the soak,
// or a symptom's time, is over before.
func (m *Manager) soakPause() time.Duration {
	left := m.cfg.SoakTime - m.soakedBefore - time.Since(m.soakStart)
	if !m.symptomSince.IsZero() {
		left = m.cfg.SymptomTime - time.Since(m.symptomSince)
	}
	if left <= 0 {
		return m.cfg.HealthInterval
	}
	return min(left, m.cfg.HealthInterval)
}

// soaked ends a soak well. The slot is marked good once more, because a way back that
// was begun and called off may have left a try of the old one.
func (m *Manager) soaked(ctx context.Context, r Record, b Boot) (Record, error) {
	if err := m.markGood(ctx); err != nil {
		return r, bootError{fmt.Errorf("mark slot %s good: %w", b.Slot, err)}
	}
	return m.succeed(r, b), nil
}

// condemn decides that the firmware is left. The decision stays over restarts, also if
// the symptom goes while the device waits for a safe moment; only a person's Confirm
// takes it back.
func (m *Manager) condemn(r Record, err error) Record {
	if m.cfg.NoRollback || r.Reason != "" {
		return r
	}
	if r.Code, r.Reason = int(codeOr(err, ErrValidation)), err.Error(); r.Reason == "" {
		r.Reason = "a symptom without a text"
	}
	m.cfg.Log.Error("the soak failed, going back when that is safe", "version", r.Release.Version, "slot", r.OldSlot, "error", r.Reason)
	return r
}

// leave restarts into the old slot, out of a slot that was marked good. That is a
// restart of a controller at work, unlike one out of a trial: only once the plant
// is quiesced, or while the gate says yes. With neither the plant works on, and it is
// tried again, for ever. The bootloader must have been told, or the restart would be
// for nothing.
func (m *Manager) leave(ctx context.Context, r Record, b Boot) (Record, error) {
	m.enter(StatusRollingBack)
	if r.Returns >= m.cfg.MaxTries {
		if err := m.markGood(ctx); err != nil { // forgets the last try
			return r, bootError{fmt.Errorf("mark slot %s good: %w", b.Slot, err)}
		}
		return m.noReturn(r, b, coded(ErrorCode(r.Code), "%s; and the device did not return to slot %s in %d tries", r.Reason, r.OldSlot, r.Returns)), nil
	}
	again := m.untold
	if again { // the plant is not quiesced again before the bootloader does what it is told
		if time.Now().Before(m.leaveAt) {
			return r, errWaiting
		}
		if err := m.tryOld(ctx, &r); err != nil {
			return m.stay(ctx, r, err)
		}
	}
	quiesced := false
	if m.cfg.Hooks.Suspend != nil && !time.Now().Before(m.quietAt) {
		if m.unquiet = m.suspend(ctx, &r); m.unquiet != nil {
			m.quietAt = time.Now().Add(m.jitter(restartRetry))
		}
		quiesced = m.unquiet == nil
	}
	if !quiesced { // asked all the time, so that a dwell time can pass
		if err := m.ask(ctx, r, BeforeRestart, StatusRollingBack); err != nil && again {
			return m.stay(ctx, r, err)
		} else if err != nil {
			return r, m.held(r, err)
		}
		if time.Now().Before(m.leaveAt) {
			return r, errWaiting
		}
	}
	// Saved first, and as the state that every agent knows: the old one reads it.
	going := r
	going.State, going.BootID, going.Returns = RollBack, b.ID, r.Returns+1
	if err := m.save(going); err != nil {
		return m.stay(ctx, r, err)
	}
	if err := m.tryOld(ctx, &r); err != nil {
		return m.stay(ctx, r, err)
	}
	if !quiesced {
		if err := m.lastWord(ctx, r, StatusRollingBack); err != nil {
			return m.stay(ctx, r, err)
		}
	}
	if err := m.cfg.Slots.Reboot(ctx); err != nil {
		return m.stay(ctx, r, fmt.Errorf("restart: %w", err))
	}
	m.rebooting = time.Now()
	return going, errWaiting
}

// tryOld tells the bootloader to go back. An old image that it refuses, because it is
// damaged, counts as a return that did not succeed: no waiting mends it.
func (m *Manager) tryOld(ctx context.Context, r *Record) error {
	err := m.cfg.Slots.Try(ctx, r.OldSlot)
	if m.untold = err != nil; !m.untold {
		return nil
	}
	if code := CodeOf(err); code == ErrValidation || code == ErrIncompatible {
		r.Returns++
	}
	return fmt.Errorf("try slot %s: %w", r.OldSlot, err)
}

// leaving waits for the restart that leave has asked for. Whoever finds the record so
// after a start begins anew, with all that has to be asked before a restart.
func (m *Manager) leaving(ctx context.Context, r Record, b Boot) (Record, error) {
	if !m.rebooting.IsZero() && time.Since(m.rebooting) < m.cfg.RollbackTimeout {
		m.enter(StatusRollingBack)
		return r, errWaiting
	}
	if r.BootID == b.ID { // no restart has come of it
		r.Returns--
	}
	if !m.rebooting.IsZero() {
		return m.stay(ctx, r, fmt.Errorf("%w: asked for a restart %v ago, and nothing happened", ErrInternal, m.cfg.RollbackTimeout))
	}
	r.State = Soak
	return r, nil
}

// stay calls a way back off for a while: the try is taken back, and the application
// resumed by the step.
func (m *Manager) stay(ctx context.Context, r Record, err error) (Record, error) {
	ctx, done := outlive(ctx)
	defer done()
	if undo := m.markGood(ctx); undo != nil { // the old slot may then boot by chance, which ends as it should
		err = fmt.Errorf("%w; take back the try of slot %s: %w", err, r.OldSlot, undo)
	}
	m.rebooting = time.Time{}
	m.leaveAt = time.Now().Add(m.jitter(restartRetry))
	m.quietAt = m.leaveAt
	r.State = Soak
	return r, m.held(r, err)
}

// held says why the device goes back, and why not yet.
func (m *Manager) held(r Record, err error) error {
	why := r.Reason + "; going back waits: "
	if m.unquiet != nil {
		why += m.unquiet.Error() + "; "
	}
	if ref, ok := errors.AsType[*Refusal](err); ok {
		return &Refusal{ref.Code, why + ref.Reason, ref.Signals, ref.Causes, ref.Ready}
	}
	return fmt.Errorf("%s%w", why, err)
}

// leftBehind deals with the old slot that booted in a soak: a way back that was decided,
// somebody's hand, or the bootloader's own doing.
func leftBehind(r Record, b Boot) Record {
	if r.Reason == "" {
		r.Code = int(ErrInternal)
		r.Reason = fmt.Sprintf("slot %s booted in the soak, although slot %s with version %s was marked good", b.Slot, r.Slot, r.Release.Version)
	}
	r.State, r.BootID = RollBack, ""
	return r
}
