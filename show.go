package ota

import (
	"errors"
	"slices"
	"time"
)

// Snapshot returns what the manager is doing.
func (m *Manager) Snapshot() Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.snap
	s.Course.SecondsLeft = secondsUntil(m.ready)
	s.Signals, s.Causes, s.Skipped = slices.Clone(s.Signals), slices.Clone(s.Causes), slices.Clone(s.Skipped)
	return s
}

// secondsUntil rounds up, so that 0 is over, or not known.
func secondsUntil(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return int64(max(0, (time.Until(t)+time.Second-1)/time.Second))
}

// try is which try r is, of an update that is under way.
func (r *Record) try() int {
	switch {
	case r.Release == nil:
		return 0
	case r.State == Available || r.State == Fetching || r.State == Staged:
		return r.Tries + 1
	}
	return max(r.Tries, 1) // somebody else's hand may have booted it
}

// show brings the stored part of the snapshot up to date.
func (m *Manager) show(r Record) {
	why := m.canRollBack(r, m.booted)
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.snap
	if s.State != r.State || r.Release == nil {
		s.Course.ImagesDone = 0
	}
	s.Course.Try = r.try()
	s.State, s.Last, s.Unsent, s.Skipped = r.State, r.Last, len(r.Unsent), r.Skipped
	s.Back = r.Back
	s.Slot, s.Other = m.booted.Slot, m.booted.Other
	s.CanRollBack, s.WhyNot, s.Previous = why == nil, "", r.Previous.Version
	if why != nil {
		s.WhyNot = why.Error()
	}
	if r.Release == nil {
		s.Update, s.Done = nil, 0
	} else if s.Update == nil || s.Update.Digest != r.Digest {
		s.Update, s.Done = r.Release.Info(), 0
	}
	if r.State == Staged || r.State == Activating || r.State == Trial || r.State == Soak || r.State == RollBack {
		s.Done, s.Course.ImagesDone = s.Update.Size, len(s.Update.Images)
	}
}

// set shows a status with its reason, and tells the application of every change.
func (m *Manager) set(status Status, err error) {
	code, reason := CodeOf(err), ""
	if err != nil {
		reason = err.Error()
	}
	if (errors.Is(err, ErrNotNow) || errors.Is(err, errWaiting)) && !isCode(err) {
		code = ErrNone
	}
	var refusal Refusal
	if ref, ok := errors.AsType[*Refusal](err); ok {
		reason, refusal = ref.Reason, *ref
	}
	if u, ok := errors.AsType[until](err); ok {
		refusal.Ready = u.at
	}
	m.tell(status, code, reason, refusal)
	if at, ok := errors.AsType[imageError](err); ok {
		m.mu.Lock()
		m.snap.Course.FailedImage = at.n
		m.mu.Unlock()
	}
}

// until is a reason to wait that something is decided about at a known time.
type until struct {
	error
	at time.Time
}

func (u until) Unwrap() error { return u.error }

// enter shows a status that has just begun, and leaves the reason of one that goes on.
func (m *Manager) enter(status Status) {
	if m.Snapshot().Status != status {
		m.set(status, nil)
	}
}

// because adds to the present status what it waits for.
func (m *Manager) because(err error) {
	if err == nil || errors.Is(err, errConsent) || errors.Is(err, ErrAborted) || err == errWaiting {
		return
	}
	m.set(m.Snapshot().Status, err)
}

// explain shows a status with something that is no error, and when it is over.
func (m *Manager) explain(status Status, reason string, ready time.Time) {
	m.tell(status, ErrNone, reason, Refusal{Ready: ready})
}

func (m *Manager) tell(status Status, code ErrorCode, reason string, refusal Refusal) {
	m.mu.Lock()
	s := &m.snap
	changed := s.Status != status || s.Code != code
	if s.Status != status {
		s.Since = time.Now()
	}
	s.Status, s.Code, s.Reason, s.Signals, s.Causes = status, code, reason, refusal.Signals, refusal.Causes
	s.Course.FailedImage, m.ready = 0, refusal.Ready
	m.mu.Unlock()
	if !changed {
		return
	}
	m.cfg.Log.Info("status", "status", status.String(), "code", code.Name(), "reason", reason)
	if m.cfg.Hooks.Event != nil {
		m.cfg.Hooks.Event(status, code)
	}
}

// failed shows and reports the end of an attempt.
func (m *Manager) failed(err error) {
	m.cfg.Log.Error("attempt failed", "code", CodeOf(err).Name(), "error", err)
	m.set(StatusFailed, err)
	if m.cfg.Hooks.Failed != nil {
		m.cfg.Hooks.Failed(err)
	}
}

// offered notes the newest version that the source has.
func (m *Manager) offered(version string) {
	m.mu.Lock()
	m.snap.Latest = version
	m.mu.Unlock()
}

func (m *Manager) progress(done int64, man *Manifest) {
	m.mu.Lock()
	m.snap.Done = done
	m.mu.Unlock()
	if m.cfg.Hooks.Progress != nil {
		m.cfg.Hooks.Progress(done, man.Size())
	}
}

// imagesDone notes how many images were written and read back.
func (m *Manager) imagesDone(n int) {
	m.mu.Lock()
	m.snap.Course.ImagesDone = n
	m.mu.Unlock()
}

// readyAt notes when the present status is over.
func (m *Manager) readyAt(t time.Time) {
	m.mu.Lock()
	m.ready = t
	m.mu.Unlock()
}

func isCode(err error) bool {
	_, ok := errors.AsType[ErrorCode](err)
	return ok
}
