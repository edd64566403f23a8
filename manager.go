package ota

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Reasons to wait that are not errors.
var (
	errWaiting = errors.New("waiting")
	errConsent = errors.New("waiting for a person")
)

// Manager carries one device through its updates. Its methods may be called
// from any goroutine; the work is done by the one in Run.
type Manager struct {
	cfg     Config
	calls   chan *Call
	running atomic.Bool

	mu      sync.Mutex
	snap    Snapshot                // what Snapshot returns
	ready   time.Time               // when the present status is over if nothing changes; zero: not known
	cancel  context.CancelCauseFunc // ends the check or transfer under way, if any
	stopped bool                    // Run has ended
	cancels string                  // the digest of the release that cancel is about, "": none is under way
	aborts  []*Call                 // commands to give up that Run has not taken yet

	// What follows belongs to the goroutine in Run, and is forgotten with the process.
	stored        *Record // as the store has it; nil: not known
	booted        Boot
	checkDue      bool
	checkInstalls bool  // the check that is due was asked for by Install
	checkAborted  bool  // a person has broken off a check
	checked       error // how the last check ended
	waiting       []*Call
	backoff       time.Duration
	deliverAt     time.Time // no report before
	deliverPause  time.Duration
	asked         string    // attempt whose next transfer the gate has allowed to write
	started       string    // attempt for which Started was called
	armed         string    // attempt for which the gate has allowed the restart
	refused       string    // attempt whose image the slots would not try the last time
	tried         string    // attempt for which the bootloader was told to try
	verified      string    // digest and slot that were read back
	rebooting     time.Time // when the restart was asked for
	calledOff     int       // restarts that were called off at the last moment, in this update
	trialStart    time.Time
	unsavedSince  time.Time // since when the record cannot be saved or loaded, on trial
	kept          bool      // the bootloader was told that the running slot is still good
	stays         bool      // the device does not return from this slot, whatever it is told
	strayStart    time.Time // since when a trial is judged that the record does not know
	healthySince  time.Time
	confirmed     bool
	asking        question      // to Healthy
	symptoms      question      // to Symptom
	soakStart     time.Time     // of the soak in this process
	soakedBefore  time.Duration // in earlier ones
	symptomSince  time.Time     // since when a symptom is there without a break
	standing      error         // the symptom
	quietAt       time.Time     // no Suspend for a way back out of a soak before
	leaveAt       time.Time     // no restart for one before
	untold        bool          // the bootloader would not try the old slot for one
	unquiet       error         // of the last Suspend for one
	quiet         bool          // Suspend has returned in this process, and Resume was not called since
	paceBytes     int64         // written in this transfer
	paceTook      time.Duration // for that
}

// New returns a manager. It touches neither slots nor network.
func New(cfg Config) (*Manager, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, calls: make(chan *Call, 16)}
	m.snap = Snapshot{Running: cfg.Version, Since: time.Now(), State: Idle}
	return m, nil
}

// Run works until ctx ends, and returns its error. It may be called once.
func (m *Manager) Run(ctx context.Context) error {
	if !m.running.CompareAndSwap(false, true) {
		return errors.New("run the manager: it runs already, or has run before")
	}
	defer m.stop()
	var startup, interval <-chan time.Time
	if m.cfg.StartupDelay >= 0 {
		startup = time.After(m.cfg.StartupDelay)
	}
	if m.cfg.CheckInterval > 0 {
		t := time.NewTicker(m.cfg.CheckInterval)
		defer t.Stop()
		interval = t.C
	}
	var woken <-chan struct{}
	if w, ok := m.cfg.Source.(Waker); ok {
		woken = w.Wake()
	}
	var broken error // why the last step could not work
	for first := true; ; first = false {
		// The first step comes before any command: it sees what was booted.
		if !first && m.takeWaiting(ctx) {
			continue
		}
		pause, err := m.step(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // the record or the bootloader cannot be read: nothing may be done without
			m.cfg.Log.Error("cannot work", "error", err)
			m.set(StatusFailed, err)
			m.answerAll(err)
			pause = m.nextBackoff(5*time.Second, 5*time.Minute)
		} else if s := m.Snapshot(); broken != nil && s.State == Idle && s.Status == StatusFailed && s.Reason == broken.Error() {
			m.set(StatusIdle, nil)
		}
		broken = err
		var next <-chan time.Time
		if pause != never {
			next = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-m.calls:
			m.take(ctx, c)
		case <-next:
		case <-startup:
			startup, m.checkDue = nil, true
		case <-interval:
			m.checkDue = true
		case _, ok := <-woken:
			if !ok { // the source wakes nobody any more
				woken = nil
				break
			}
			m.checkDue = true
		}
	}
}

// load returns the record and what is booted. The store is read once: after
// that this process is the only one that writes it.
func (m *Manager) load(ctx context.Context) (Record, Boot, error) {
	if m.stored != nil {
		return *m.stored, m.booted, nil
	}
	b, err := m.cfg.Slots.Booted(ctx)
	if err != nil {
		return Record{}, b, fmt.Errorf("read the booted slot: %w", err)
	}
	if b.Slot == "" || b.Other == "" || b.Slot == b.Other {
		return Record{}, Boot{}, fmt.Errorf("read the booted slot: %w: booted %q, other %q", ErrInternal, b.Slot, b.Other)
	}
	r, err := m.cfg.Store.Load()
	if err != nil {
		return r, b, fmt.Errorf("load the record: %w", err)
	}
	if r.Format > 1 {
		return r, b, fmt.Errorf("load the record: %w: format %d is newer than this agent", ErrInternal, r.Format)
	}
	if r.Format == 0 { // the first start ever
		r.Format, r.State, r.SecurityVersion = 1, Idle, m.cfg.SecurityVersion
	}
	if r.Release == nil && r.State != Idle {
		return r, b, fmt.Errorf("load the record: %w: state %q without a release", ErrInternal, r.State)
	}
	if r.Release != nil {
		r.Release.Digest = r.Digest
	}
	m.stored, m.booted = &r, b
	m.probe(ctx)
	m.show(r)
	return r, b, nil
}

// save stores r if it differs from what is stored.
func (m *Manager) save(r Record) error {
	if m.stored != nil && reflect.DeepEqual(*m.stored, r) {
		return nil
	}
	m.stored = nil // after an error nobody knows what the store holds
	if err := m.cfg.Store.Save(r); err != nil {
		return fmt.Errorf("save the record: %w", err)
	}
	m.stored = &r
	m.show(r)
	return nil
}

// pauseAfter says how long to wait in a state whose work ended with err.
func (m *Manager) pauseAfter(r Record, err error) time.Duration {
	_, boot := errors.AsType[bootError](err)
	switch {
	case boot:
		return m.nextBackoff(time.Second, time.Minute)
	case r.State == Trial && !m.trialStart.IsZero() && time.Since(m.trialStart) < m.cfg.RollbackTimeout:
		return min(m.cfg.HealthInterval, m.cfg.RollbackTimeout-time.Since(m.trialStart))
	case r.State == Soak && r.Reason != "" && errors.Is(err, ErrNotNow):
		return m.cfg.GateInterval
	case r.State == Soak:
		return m.soakPause()
	case r.State == Trial || r.State == RollBack:
		return m.cfg.HealthInterval
	case r.State == Activating:
		return m.cfg.GateInterval
	case err == nil: // a check that changed nothing
		return 0
	case r.State == Idle, errors.Is(err, errConsent):
		return never
	case errors.Is(err, ErrNotNow):
		return m.cfg.GateInterval
	}
	return m.nextBackoff(time.Minute, m.cfg.MaxBackoff)
}

// nextBackoff doubles from first to last.
func (m *Manager) nextBackoff(first, last time.Duration) time.Duration {
	m.backoff = min(max(2*m.backoff, first), max(last, first))
	return m.jitter(m.backoff)
}

// jitter gives d or take a quarter of it, so that fleets do not march in step.
func (m *Manager) jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d - d/4 + rand.N(d/2+1)
}

// sleep waits for d, and reports false if ctx ended first.
func (m *Manager) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// interruptible returns a context that Abort ends, and Withdraw of the release that r is about. Only
// checks and transfers have one: everything after them is short, or must not be left half-done.
func (m *Manager) interruptible(ctx context.Context, r *Record) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	m.mu.Lock()
	m.cancel, m.cancels = cancel, r.Digest
	if slices.ContainsFunc(m.aborts, func(c *Call) bool { return c.meant(r.Digest) }) { // asked for before there was anything to cancel
		cancel(ErrAborted)
	}
	m.mu.Unlock()
	return ctx, func() {
		m.mu.Lock()
		m.cancel, m.cancels = nil, ""
		m.mu.Unlock()
		cancel(nil)
	}
}

// ask puts the question to the gate. Every error is a refusal, a panic too.
func (m *Manager) ask(ctx context.Context, r Record, at Moment, while Status) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: the gate panicked: %v", ErrNotNow, p)
			m.set(while, err)
		}
	}()
	if err = m.cfg.Gate(ctx, r.Release, at); err != nil {
		if !errors.Is(err, ErrNotNow) {
			err = fmt.Errorf("%w: %w: %w", ErrNotNow, codeOr(err, ErrBMSUnsafe), err)
		}
		m.set(while, err)
		return err
	}
	if at == BeforeWrite {
		m.asked = r.Attempt
	}
	return nil
}

// consents reports whether nobody has to be asked any more.
func (m *Manager) consents(r Record, need Consent) bool {
	return m.cfg.Automatic || r.Consent >= need || r.Release.Mandatory
}

// waitForPerson stays until a command comes.
func (m *Manager) waitForPerson(r Record, s Status) (Record, error) {
	reason := "no consent to install yet"
	if s == StatusReadyToApply {
		reason = "no consent to restart yet"
	}
	m.tell(s, ErrNone, reason, Refusal{Causes: []Cause{CauseConsent}})
	return r, errConsent
}

// outlive returns a context that goes on for stopGrace after ctx has ended: the
// agent that is stopped must not leave the plant quiesced, or a try behind.
func outlive(ctx context.Context) (context.Context, func()) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, cancel) })
	return longer, func() { stop(); cancel() }
}

// suspend quiesces the application, once. The record says so first, so that the
// next process resumes if this one dies.
func (m *Manager) suspend(ctx context.Context, r *Record) error {
	if r.Quiesced && m.quiet || m.cfg.Hooks.Suspend == nil {
		return nil
	}
	r.Quiesced, r.BootID = true, m.booted.ID
	if err := m.save(*r); err != nil {
		return err
	}
	if err := m.cfg.Hooks.Suspend(ctx); err != nil {
		return fmt.Errorf("suspend the application: %w", err)
	}
	m.quiet = true
	return nil
}

// perhapsQuiesced is for a process that finds the record where the one before may have
// quiesced the application. What says so is the newest copy of the record; if that is
// damaged, the older one counts, and the plant must be resumed all the same.
func (m *Manager) perhapsQuiesced(r *Record) {
	if m.cfg.Hooks.Suspend != nil && m.cfg.Suspend == SuspendBeforeRestart {
		r.Quiesced = true
	}
}

// staysQuiet reports whether a quiesced application stays so: on the way into the
// restart, and until the trial has ended. In a soak the plant is at work.
func (m *Manager) staysQuiet(r Record) bool {
	switch r.State {
	case Activating:
		return !r.Release.NoReboot && m.armed == r.Attempt
	case RollBack:
		return m.booted.Slot == r.Slot // back in the old slot, the plant waits for nothing
	}
	return r.State == Trial
}

// resumeUnlessNeeded resumes a quiesced application on every path that does not
// go on towards the restart.
func (m *Manager) resumeUnlessNeeded(ctx context.Context, r *Record, goesOn bool) {
	switch {
	case !r.Quiesced || m.staysQuiet(*r):
		return
	case m.cfg.Suspend == SuspendBeforeCheck && r.State != Idle && r.State != Soak && goesOn:
		return
	}
	m.quiet = false // whatever Resume answers: it may have done it, or half of it
	if m.cfg.Hooks.Resume != nil {
		ctx, done := outlive(ctx)
		defer done()
		if err := m.cfg.Hooks.Resume(ctx); err != nil {
			m.cfg.Log.Error("resume the application, trying again", "error", err)
			return
		}
	}
	r.Quiesced = false
}
