package ota

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// checkable reports whether a check makes sense. While an update waits, a
// newer release may take its place; past the restart, and on
// the way back to the previous one, nothing may.
func checkable(r Record) bool {
	s := r.State
	return !r.Back && (s == Idle || s == Available || s == Fetching || s == Staged)
}

// check looks for a release and, if there is one for this device, makes it the
// one to install. What is already under way goes on if the source has nothing else.
func (m *Manager) check(ctx context.Context, r Record, b Boot) (Record, error) {
	install := m.checkInstalls // a person asked for the installation, even of a release that was skipped
	m.checkInstalls = false
	h := &m.cfg.Hooks
	if h.CheckStart != nil && !h.CheckStart() {
		m.checked = fmt.Errorf("check: %w: the application does not allow it", ErrNotNow)
		return r, m.checked
	}
	if r.State == Idle { // what waits goes on showing what it waits for
		m.set(StatusChecking, nil)
	}
	r, err := m.checkQuiet(ctx, r, b, install)
	m.checked = err
	switch {
	case ctx.Err() != nil: // the agent stops, which is no failure of the check
		return r, context.Cause(ctx)
	case err == nil && r.State == Available:
		m.enter(StatusUpdateAvailable)
	case err == nil:
	case errors.Is(err, ErrNoUpdate) && r.State == Idle:
		m.set(StatusIdle, err)
		if h.UpToDate != nil {
			h.UpToDate()
		}
	case errors.Is(err, ErrNoUpdate):
		err = nil // and what is under way goes on
	case r.State == Idle && errors.Is(err, ErrAborted):
		m.checkAborted = true
		m.set(StatusIdle, nil)
	case r.State == Idle:
		m.failed(err)
	default:
		m.cfg.Log.Warn("check failed, the update under way goes on", "error", err)
		err = nil
	}
	if err == nil && r.State == Idle {
		err = errWaiting
	}
	return r, err
}

func (m *Manager) checkQuiet(ctx context.Context, r Record, b Boot, install bool) (Record, error) {
	if m.cfg.Suspend == SuspendBeforeCheck {
		if err := m.suspend(ctx, &r); err != nil {
			return r, err
		}
	}
	signed, err := m.latest(ctx, &r)
	if errors.Is(err, ErrNoUpdate) && r.State == Available || errors.Is(err, ErrWithdrawn) && r.State != Idle {
		m.cfg.Log.Info("release was withdrawn", "version", r.Release.Version)
		r = r.idle()
	}
	if err != nil {
		return r, err
	}
	man, err := m.cfg.Verify(signed)
	if err != nil {
		return r, fmt.Errorf("verify the manifest: %w", err)
	}
	m.offered(man.Version)
	if man.Created.After(r.NewestTime) { // the signature holds, so this time has been
		r.NewestTime = man.Created
	}
	if s, ok := r.skipped(man.Digest); ok {
		if !install {
			return r, fmt.Errorf("%w: release %s is skipped: %s", ErrNoUpdate, s.Version, s.Reason)
		}
		r.Skipped = slices.DeleteFunc(slices.Clone(r.Skipped), func(s Skipped) bool { return s.Digest == man.Digest })
	}
	if r.State != Idle && r.Digest == man.Digest {
		if install {
			r.Consent = max(r.Consent, ConsentInstall)
		}
		return r, nil
	}
	if err := m.fits(ctx, man, r, b); err != nil {
		return r, err
	}
	if r.State != Idle {
		m.cfg.Log.Info("a newer offer takes the place of a waiting release", "old", r.Release.Version, "new", man.Version)
	}
	r = r.idle()
	r.State, r.Release, r.Digest, r.From = Available, man, man.Digest, m.cfg.Version
	r.Attempt = newAttempt()
	if install {
		r.Consent = ConsentInstall
	}
	return r, nil
}

// newAttempt names an attempt. It is random, because a counter would start anew
// with a lost record, and an old report would hide a new one.
func newAttempt() string {
	id := make([]byte, 8)
	rand.Read(id) // never fails, see crypto/rand
	return hex.EncodeToString(id)
}

// latest asks the source, and again when the network or the server fails.
func (m *Manager) latest(ctx context.Context, r *Record) (signed []byte, err error) {
	ctx, done := m.interruptible(ctx, r)
	defer done()
	for try := 0; ; try++ {
		attempt, cancel := context.WithTimeout(ctx, m.cfg.StallTimeout)
		signed, err = m.cfg.Source.Latest(attempt)
		cancel()
		if err == nil && len(signed) > MaxManifestSize {
			return nil, fmt.Errorf("look for a release: %w: the manifest is %d bytes, want at most %d", ErrValidation, len(signed), MaxManifestSize)
		}
		if err == nil || errors.Is(err, ErrNoUpdate) {
			return signed, err
		}
		err = fmt.Errorf("look for a release: %w", networkError(err))
		if c := CodeOf(err); try >= m.cfg.Retries || c != ErrConnectivity && c != ErrServer {
			return nil, err
		}
		if !m.sleep(ctx, m.jitter(m.cfg.RetryDelay)) {
			return nil, context.Cause(ctx)
		}
	}
}

// fits reports whether this device may take man: nil, ErrNoUpdate if it runs
// that version already, or why not.
func (m *Manager) fits(ctx context.Context, man *Manifest, r Record, b Boot) error {
	if err := man.Validate(); err != nil {
		return err
	}
	refuse := func(format string, a ...any) error {
		return fmt.Errorf("%w: release %s: "+format, append([]any{ErrIncompatible, man.Version}, a...)...)
	}
	if man.Product != m.cfg.Product {
		return refuse("is for product %s, this is %s", man.Product, m.cfg.Product)
	}
	if len(man.Hardware) > 0 && !slices.Contains(man.Hardware, m.cfg.Hardware) {
		return refuse("is for hardware %v, this is %q", man.Hardware, m.cfg.Hardware)
	}
	newer := CompareVersions(man.Version, m.cfg.Version)
	if newer == 0 {
		return fmt.Errorf("%w: version %s is running", ErrNoUpdate, m.cfg.Version)
	}
	if floor := m.floor(r); man.SecurityVersion < floor {
		return refuse("has security version %d, and this device has had %d; it never goes back", man.SecurityVersion, floor)
	}
	if newer < 0 && !man.AllowDowngrade {
		return refuse("is older than the running %s, and its manifest does not allow a downgrade", m.cfg.Version)
	}
	if man.MinVersion != "" && CompareVersions(m.cfg.Version, man.MinVersion) < 0 {
		return refuse("updates from %s or newer, this runs %s", man.MinVersion, m.cfg.Version)
	}
	if now := m.now(r); !man.Expires.IsZero() && now.After(man.Expires) {
		return fmt.Errorf("%w: release %s expired on %s, and it is %s or later", ErrValidation, man.Version,
			man.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	for i := range man.Images {
		if err := m.hasRoom(ctx, &man.Images[i], b.Other); err != nil {
			return err
		}
	}
	return nil
}

// floor is the lowest security version that may still run here.
func (m *Manager) floor(r Record) uint64 { return max(r.SecurityVersion, m.cfg.SecurityVersion) }

// hasRoom refuses an image that is too large before a byte of it is fetched.
func (m *Manager) hasRoom(ctx context.Context, im *Image, slot string) error {
	s, err := m.cfg.Slots.Open(ctx, im.Component, slot)
	if err != nil {
		return fmt.Errorf("open slot %s for %s: %w", slot, im.Component, err)
	}
	defer s.Close()
	if c := s.Capacity(); im.Size > c {
		return fmt.Errorf("%w: image %s is %d bytes, slot %s holds %d", ErrInsufficientSpace, im.Component, im.Size, slot, c)
	}
	return nil
}

// now is the later of the clock, the newest signed time, and the build time: a
// clock that starts in 1970 must not make an expired release valid.
func (m *Manager) now(r Record) time.Time {
	now := time.Now()
	for _, t := range []time.Time{r.NewestTime, m.cfg.BuildTime} {
		if t.After(now) {
			now = t
		}
	}
	return now
}
