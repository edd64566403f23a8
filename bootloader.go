package ota

import (
	"context"
	"fmt"
	"time"
)

// keepRetry is the pause after a bootloader could not be told that the running
// slot is still good. Those that count give a slot three starts or more.
const keepRetry = time.Minute

// keep tells the bootloader that the running slot is still good, once in each
// process. One that counts every start would leave it otherwise after some, with a
// half-written slot as the only other. It comes after what was booted is in the
// record, because it may wipe out what the bootloader says of that. What is on trial
// is not good before it is proven, whatever the record says.
func (m *Manager) keep(ctx context.Context, r Record, b Boot) error {
	if m.kept {
		return nil
	}
	switch r.State {
	case Idle, Available:
	case Fetching, Staged:
		if b.Slot == r.Slot {
			return nil // on trial by somebody else's hand
		}
	case Soak: // proven; some bootloaders want to hear it at every start
		if b.Slot != r.Slot {
			return nil // what it says of that is not in the record yet
		}
	default:
		return nil
	}
	if r.State != Soak {
		if err := m.unrecorded(ctx, b); err != nil {
			return err
		}
	}
	if err := m.markGood(ctx); err != nil {
		m.cfg.Log.Error("tell the bootloader that the running slot is good, trying again", "slot", b.Slot, "error", err)
		return err
	}
	m.strayStart, m.healthySince, m.confirmed = time.Time{}, time.Time{}, false
	return nil
}

// unproven says that what runs is on trial, and not by the record.
type unproven struct{ *Refusal }

// unrecorded judges firmware that the bootloader has on trial, while the record
// knows of none: the new firmware does not find the record, for its partition is not
// mounted, or somebody else has tried the slot. It has to be healthy like any other.
// If it is not within RollbackTimeout, the device goes back.
func (m *Manager) unrecorded(ctx context.Context, b Boot) error {
	if !b.Trial || m.cfg.NoRollback || m.stays || m.confirmed {
		return nil
	}
	if m.strayStart.IsZero() {
		m.strayStart = time.Now()
		m.cfg.Log.Warn("the bootloader has the running slot on trial, and the record does not say why", "slot", b.Slot)
	}
	err := coded(ErrValidation, "not confirmed")
	if m.cfg.Healthy != nil {
		err = m.well(ctx, max(m.cfg.RollbackTimeout-time.Since(m.strayStart), m.cfg.HealthInterval))
	}
	switch {
	case err != nil:
		m.healthySince = time.Time{}
	case m.healthySince.IsZero():
		m.healthySince = time.Now()
	}
	if err == nil && time.Since(m.healthySince) >= m.cfg.ValidationTime {
		return nil
	}
	if err != nil && time.Since(m.strayStart) >= m.cfg.RollbackTimeout {
		m.cfg.Log.Error("firmware on trial that the record does not know is not healthy, going back", "slot", b.Other, "error", err)
		if bootErr := m.cfg.Slots.Reboot(ctx); bootErr != nil {
			err = fmt.Errorf("%w; restart: %w", err, bootErr)
		}
		m.strayStart = time.Now()
	}
	reason := "the running slot is on trial, and not proven yet"
	if err != nil {
		reason += ": " + err.Error()
	}
	return unproven{&Refusal{Code: CodeOf(err), Reason: reason}}
}

// markGood also counts as what keep does.
func (m *Manager) markGood(ctx context.Context) error {
	err := m.cfg.Slots.MarkGood(ctx)
	m.kept = m.kept || err == nil
	return err
}

// probe asks whether the bootloader of this unit comes back, and shows the answer.
func (m *Manager) probe(ctx context.Context) {
	seen := Rollback{State: RollbackUnknown, Why: "this kind of slots cannot tell"}
	if p, ok := m.cfg.Slots.(Prober); ok {
		var err error
		if seen, err = p.Probe(ctx); err != nil {
			seen = Rollback{State: RollbackUnknown, Why: err.Error()}
		}
	}
	if seen.State == RollbackBroken {
		m.cfg.Log.Error("the bootloader of this unit does not come back from a slot that fails", "why", seen.Why)
	}
	m.mu.Lock()
	m.snap.Bootloader = seen
	m.mu.Unlock()
}

// protected refuses to install where a release that fails would stay.
func (m *Manager) protected() error {
	seen := m.Snapshot().Bootloader
	if seen.State != RollbackBroken || m.cfg.Unprotected || m.cfg.NoRollback {
		return nil
	}
	return &Refusal{Code: ErrIncompatible, Reason: "the bootloader of this unit does not come back from a slot that fails: " + seen.Why}
}

// unloaded leaves firmware on trial that cannot read the record, after
// RollbackTimeout: nobody can prove it, and the bootloader knows that it is on
// trial. Elsewhere there is nothing to return to, and the error is all there is.
func (m *Manager) unloaded(ctx context.Context, b Boot, err error) error {
	if m.cfg.NoRollback || !b.Trial || m.kept { // marked good since it booted
		return err
	}
	if m.unsavedSince.IsZero() {
		m.unsavedSince = time.Now()
	}
	if time.Since(m.unsavedSince) < m.cfg.RollbackTimeout {
		return err
	}
	m.cfg.Log.Error("firmware on trial cannot read the record, going back", "slot", b.Other, "error", err)
	if bootErr := m.cfg.Slots.Reboot(ctx); bootErr != nil {
		return fmt.Errorf("%w; restart: %w", err, bootErr)
	}
	m.unsavedSince = time.Now()
	return err
}
