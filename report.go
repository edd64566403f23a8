package ota

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	maxSkipped    = 32
	maxUnsent     = 256
	reportTimeout = 30 * time.Second
)

// idle returns what is left of r when no update is under way.
func (r Record) idle() Record {
	return Record{Format: r.Format, State: Idle, Quiesced: r.Quiesced, BootID: r.BootID,
		Running: r.Running, Previous: r.Previous, SecurityVersion: r.SecurityVersion, NewestTime: r.NewestTime,
		Skipped: r.Skipped, Unsent: r.Unsent, Last: r.Last}
}

// end closes an update: the report goes into the record together with the end
// itself, so that neither can be lost without the other.
func (m *Manager) end(r Record, b Boot, result Result, err error) Record {
	rep := Report{ID: r.Attempt, Digest: r.Digest, Version: r.Release.Version, From: r.From, Running: m.cfg.Version,
		Result: result, Code: CodeOf(err), Time: m.now(r).UTC().Truncate(time.Second),
		Tried: r.FellBack || r.State == Trial || r.State == Soak || r.State == RollBack}
	if err != nil {
		rep.Reason = err.Error()
	}
	if at, ok := errors.AsType[imageError](err); ok {
		rep.FailedImage = at.n
	}
	was := r
	r = r.idle()
	r.Last = &rep
	r.Unsent = append(r.Unsent[:len(r.Unsent):len(r.Unsent)], rep)
	if n := len(r.Unsent) - maxUnsent; n > 0 {
		m.cfg.Log.Error("too many reports that no source has taken, the oldest are dropped", "dropped", n)
		r.Unsent = r.Unsent[n:]
	}
	switch {
	case was.Back && result == Succeeded: // a person left that release: it must not come back by itself
		if left := r.Previous; left.Digest != "" {
			r.skip(left.Digest, left.Version, "a person went back to "+rep.Version)
		}
	case was.Back && result == Aborted: // nothing has touched the other slot
		r.Previous = Installed{Slot: was.Slot, Version: rep.Version, Digest: was.Digest,
			SecurityVersion: was.Release.SecurityVersion, Images: was.Release.Images}
	case was.Back:
		r.Previous = Installed{}
	case result != Succeeded && rep.Digest != "":
		r.skip(rep.Digest, rep.Version, fmt.Sprintf("%s here: %s", result, rep.Reason))
	}
	m.verified, m.armed, m.started, m.asked = "", "", "", ""
	switch result {
	case Succeeded:
		m.cfg.Log.Info("update proven and marked good", "version", rep.Version, "from", rep.From, "slot", b.Slot)
		m.set(StatusComplete, nil)
	case Aborted:
		m.cfg.Log.Info("update aborted", "version", rep.Version)
		m.set(StatusAborted, err)
	default:
		m.failed(fmt.Errorf("release %s %s: %w", rep.Version, result, err))
	}
	return r
}

func (r *Record) skip(digest, version, reason string) {
	if _, ok := r.skipped(digest); ok {
		return
	}
	r.Skipped = append(r.Skipped[:len(r.Skipped):len(r.Skipped)], Skipped{digest, version, reason})
	if n := len(r.Skipped) - maxSkipped; n > 0 {
		r.Skipped = r.Skipped[n:]
	}
}

// owes reports whether there are reports to deliver, and a state in which there
// is time for it.
func (m *Manager) owes(r Record) bool {
	_, ok := m.cfg.Source.(Reporter)
	return ok && len(r.Unsent) > 0 && (checkable(r) || r.State == Staged || r.State == Activating && r.Release.NoReboot)
}

// deliver hands the oldest report that is not confirmed to the source. After a
// failure it waits, from 10 s doubling to MaxBackoff, whatever else goes on.
func (m *Manager) deliver(ctx context.Context, r Record) Record {
	if !m.owes(r) || time.Now().Before(m.deliverAt) {
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	if err := m.cfg.Source.(Reporter).Report(ctx, r.Unsent[0]); err != nil {
		m.deliverPause = min(max(2*m.deliverPause, 10*time.Second), m.cfg.MaxBackoff)
		m.deliverAt = time.Now().Add(m.jitter(m.deliverPause))
		m.cfg.Log.Warn("report not delivered, it is kept", "id", r.Unsent[0].ID, "error", err)
		return r
	}
	m.deliverPause = 0
	if r.Unsent = r.Unsent[1:]; len(r.Unsent) == 0 {
		r.Unsent = nil
	}
	return r
}

// reconcile makes the record agree with what was booted, which always wins.
func (m *Manager) reconcile(r Record, b Boot) (Record, bool) {
	changed := false
	if r.Quiesced && r.BootID != b.ID && m.cfg.Suspend == SuspendBeforeCheck {
		r.Quiesced, changed = false, true // the restart has started the tasks again
	}
	now := Installed{Slot: b.Slot, Version: m.cfg.Version, SecurityVersion: m.cfg.SecurityVersion}
	same := r.Running.Slot == b.Slot && CompareVersions(r.Running.Version, m.cfg.Version) == 0
	switch {
	case r.State != Idle && r.State != Available || same:
		return r, changed
	case r.Running.Slot == "" || r.Running.Slot == b.Slot || r.Running.Digest == "": // first start, or installed by other means
		m.cfg.Log.Info("running firmware", "slot", b.Slot, "version", m.cfg.Version)
	default: // the bootloader went back long after the release was marked good
		gone := r.Running
		reason := fmt.Sprintf("slot %s with version %s booted, although slot %s with version %s was marked good", b.Slot, m.cfg.Version, gone.Slot, gone.Version)
		m.cfg.Log.Error("the bootloader went back by itself", "error", reason)
		rep := Report{ID: fmt.Sprintf("late-%.16s-%.32s", gone.Digest, b.ID), Digest: gone.Digest, Version: gone.Version, From: gone.Version, Tried: true,
			Running: m.cfg.Version, Result: Lost, Code: ErrInternal, Reason: reason, Time: m.now(r).UTC().Truncate(time.Second)}
		r.Unsent = append(r.Unsent[:len(r.Unsent):len(r.Unsent)], rep)
		r.Last = &rep
		r.skip(gone.Digest, gone.Version, reason)
	}
	if r.Previous.Slot == b.Slot {
		now.SecurityVersion = max(now.SecurityVersion, r.Previous.SecurityVersion)
		if CompareVersions(r.Previous.Version, m.cfg.Version) == 0 {
			now = r.Previous
		}
	}
	r.Running, r.Previous = now, Installed{}
	return r, true
}

// canRollBack returns why the device cannot return to the previous slot, or nil.
func (m *Manager) canRollBack(r Record, b Boot) error {
	switch {
	case m.cfg.NoRollback:
		return errors.New("rollback is switched off")
	case r.State == Trial, r.State == Soak:
		return nil
	case r.Back:
		return fmt.Errorf("the way back to %s is under way", r.Release.Version)
	case r.State != Idle && r.State != Available:
		return fmt.Errorf("slot %s is being written or about to boot", r.Slot)
	case r.Previous.Slot == "" || r.Previous.Slot != b.Other:
		return fmt.Errorf("slot %s holds no image that ran well before", b.Other)
	case r.Previous.SecurityVersion < m.floor(r):
		return fmt.Errorf("version %s has security version %d, and this device has had %d", r.Previous.Version, r.Previous.SecurityVersion, m.floor(r))
	}
	return nil
}
