package ota

import (
	"context"
	"fmt"
	"time"
)

// maxStarts is how often the process may start within one trial. Firmware whose
// agent crashes again and again must not keep the trial alive for ever.
const maxStarts = 5

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
		m.explain(StatusTrial, fmt.Sprintf("healthy for %.0f s of %.0f s", time.Since(m.healthySince).Truncate(time.Second).Seconds(), m.cfg.ValidationTime.Seconds()),
			m.healthySince.Add(m.cfg.ValidationTime))
		return r, errWaiting
	}
	if m.cfg.NoRollback {
		return r, fmt.Errorf("not healthy, and automatic rollback is switched off: %w", err)
	}
	if time.Since(m.trialStart) < m.cfg.RollbackTimeout {
		return r, until{err, m.trialStart.Add(m.cfg.RollbackTimeout)}
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
	if m.cfg.NoRollback || r.Good || b.Slot != r.Slot || r.State != Activating && r.State != Trial && r.State != RollBack {
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
	return m.well(ctx, limit)
}

// well asks the application, for at most limit.
func (m *Manager) well(ctx context.Context, limit time.Duration) error {
	err, answered := m.asking.ask(ctx, m.cfg.Healthy, limit, limit)
	if !answered {
		return coded(ErrValidation, "the health check does not answer in %v", limit)
	}
	return err
}

// A question to the application, one at a time, however long it takes.
type question struct {
	answer chan verdict // of one that is under way
	put    time.Time    // when the last one was asked
}

// A verdict is how a question ended.
type verdict struct {
	err      error
	panicked any
}

// ask puts f, unless it is being asked already, and waits for its answer. What f is
// asked with ends after limit. A panic in f is one here.
func (q *question) ask(ctx context.Context, f func(context.Context) error, limit, wait time.Duration) (err error, answered bool) {
	if q.answer == nil {
		answer := make(chan verdict, 1)
		q.answer, q.put = answer, time.Now()
		asked, cancel := context.WithTimeout(ctx, limit)
		go func() {
			defer cancel()
			v := verdict{err: coded(ErrInternal, "the question ended without an answer")} // runtime.Goexit
			defer func() { v.panicked = recover(); answer <- v }()
			v.err = f(asked)
		}()
	}
	enough := time.NewTimer(wait)
	defer enough.Stop()
	select {
	case v := <-q.answer:
		q.answer = nil
		if v.panicked != nil {
			panic(v.panicked)
		}
		return v.err, true
	case <-enough.C:
	case <-ctx.Done():
	}
	return nil, false
}

// proven ends a trial well.
func (m *Manager) proven(ctx context.Context, r Record, b Boot) (Record, error) {
	if err := m.markGood(ctx); err != nil {
		return r, bootError{fmt.Errorf("mark slot %s good: %w", b.Slot, err)}
	}
	if m.cfg.SoakTime > 0 && !r.Back { // what ran well before is not watched again
		return m.beginSoak(r, b)
	}
	return m.succeed(r, b), nil
}

// succeed ends an update well. The security version rises only after the slot
// is marked good, and the soak over: the other way round, a device that still has to
// go back could not.
func (m *Manager) succeed(r Record, b Boot) Record {
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
	return m.end(r, b, Succeeded, nil)
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
		if err := m.markGood(ctx); err != nil {
			return r, bootError{fmt.Errorf("mark slot %s good: %w", b.Slot, err)}
		}
		return m.end(r, b, result, why), nil
	}
	if r.Good {
		return m.leaving(ctx, r, b)
	}
	if r.BootID != b.ID {
		if r.Returns >= m.cfg.MaxTries {
			return m.noReturn(r, b, fmt.Errorf("%w; and the device did not return to slot %s in %d restarts", why, r.OldSlot, r.Returns)), nil
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

// noReturn ends an update whose firmware stays, though it is not wanted. It was not
// proven: no digest, and nothing to go back from.
func (m *Manager) noReturn(r Record, b Boot, why error) Record {
	r.Running, r.Previous = Installed{Slot: b.Slot, Version: m.cfg.Version, SecurityVersion: m.cfg.SecurityVersion}, Installed{}
	m.stays = true
	return m.end(r, b, Failed, why)
}
