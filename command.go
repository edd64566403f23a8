package ota

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// A Call is a command under way. Commands return at once; Wait waits.
type Call struct {
	op   op
	of   string // Withdraw: the digest of the release that it is about; "": of any
	done chan struct{}
	err  error
	over func(r Record, err error) (bool, error) // judged after each step
}

type op int

const (
	opCheck op = iota
	opInstall
	opApply
	opAbort
	opConfirm
	opRollBack
	opWithdraw
)

// Wait returns how the command ended, or ctx's error; the command goes on then.
func (c *Call) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Call) end(err error) {
	c.err = err
	close(c.done)
}

// Check looks for a release now. Wait returns nil if there is one, and
// [ErrNoUpdate] if not.
func (m *Manager) Check() *Call { return m.post(opCheck) }

// Install begins, or allows, the installation of the release that is available,
// after a check if none is known; a person who asks for it overrules a skip.
// Wait returns nil once the release is staged. If the gate says no, it returns
// its refusal, and the installation follows as soon as the gate says yes.
func (m *Manager) Install() *Call { return m.post(opInstall) }

// Apply allows the restart into the staged release, and the installation before
// it. If the gate says no, Wait returns its refusal, and the restart follows as
// soon as it says yes. Nil means that the device restarts.
func (m *Manager) Apply() *Call { return m.post(opApply) }

// Abort gives the update up, in every state until the restart. The release is
// skipped until Install asks for it.
func (m *Manager) Abort() *Call { return m.post(opAbort) }

// Withdraw gives the update up, as Abort does, if it is to the release with this digest and
// is not being activated yet: it is for who asks from afar, and cannot see whether another release
// has taken the place of the one that is meant. Its source must have ceased to offer it, for it is not
// skipped: who has taken it back may offer it again. Wait returns [ErrNoUpdate] if that
// release is not under way, [ErrBusy] if it is too late, and [ErrNotNow] if too many commands wait.
// All three change nothing.
func (m *Manager) Withdraw(digest string) *Call { return m.postOf(opWithdraw, digest) }

// Confirm marks the firmware on trial good, whatever Healthy says. A soak follows, if
// there is to be one; in the soak, Confirm ends it well, whatever Symptom says.
func (m *Manager) Confirm() *Call { return m.post(opConfirm) }

// RollBack returns to the previous slot: out of a trial at once, out of a soak once
// the plant is quiesced or the gate says yes, otherwise by way of gate, restart and
// trial as for an update. If the gate says no, Wait returns its refusal, and the
// restart follows as soon as it may.
func (m *Manager) RollBack() *Call { return m.post(opRollBack) }

func (m *Manager) post(o op) *Call { return m.postOf(o, "") }

func (m *Manager) postOf(o op, digest string) *Call {
	c := &Call{op: o, of: digest, done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.stopped:
		c.end(ErrStopped)
	case m.cancel != nil && !c.givesUp():
		c.end(fmt.Errorf("%w: %s", ErrBusy, m.snap.Status))
	default:
		select {
		case m.calls <- c:
			if c.givesUp() {
				m.aborts = append(m.aborts, c)
				if m.cancel != nil && c.meant(m.cancels) {
					m.cancel(ErrAborted)
				}
			}
		default:
			busy := ErrBusy
			if o == opWithdraw { // of which that would say that it is too late
				busy = ErrNotNow
			}
			c.end(fmt.Errorf("%w: too many commands", busy))
		}
	}
	return c
}

// givesUp reports whether the command ends an update.
func (c *Call) givesUp() bool { return c.op == opAbort || c.op == opWithdraw }

// meant reports whether a command that ends an update is about the release with this digest, "" if
// there is none.
func (c *Call) meant(digest string) bool { return c.op == opAbort || digest != "" && c.of == digest }

// stop answers whoever still waits.
func (m *Manager) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	m.answerAll(ErrStopped)
	for {
		select {
		case c := <-m.calls:
			c.end(ErrStopped)
		default:
			return
		}
	}
}

// take carries out the immediate part of a command. What takes longer is done by
// the steps that follow, and judged after each.
func (m *Manager) take(ctx context.Context, c *Call) {
	if c.givesUp() {
		m.mu.Lock()
		m.aborts = slices.DeleteFunc(m.aborts, func(a *Call) bool { return a == c })
		m.mu.Unlock()
	}
	r, b, err := m.load(ctx)
	if err != nil {
		c.end(err)
		return
	}
	before := r
	switch c.op {
	case opCheck:
		err = m.takeCheck(r, c)
	case opInstall, opApply:
		err = m.takeConsent(&r, c)
	case opAbort:
		err = m.takeAbort(&r, b, c)
	case opWithdraw:
		err = m.takeWithdraw(&r, b, c)
	case opConfirm:
		if !m.strayStart.IsZero() { // on trial, and the record does not know
			m.confirmed = true
			c.over = func(Record, error) (bool, error) { return m.strayStart.IsZero(), nil }
		} else if was := r.State; was != Trial && was != Soak {
			err = fmt.Errorf("confirm: no firmware is on trial, the state is %s", r.State)
		} else {
			m.confirmed = true
			c.over = func(r Record, err error) (bool, error) {
				return r.State == Idle || r.State == Soak && was == Trial || err != nil, err
			}
		}
	case opRollBack:
		err = m.takeRollBack(&r, b, c)
	}
	if err == nil && r.State != before.State {
		m.resumeUnlessNeeded(ctx, &r, false)
	}
	if saveErr := m.save(r); err == nil {
		err = saveErr
	}
	if err != nil || c.over == nil {
		c.end(err)
		return
	}
	m.waiting = append(m.waiting, c)
}

// takeWaiting takes one command that waits, if any: commands come before steps,
// so that an aborted transfer does not begin again.
func (m *Manager) takeWaiting(ctx context.Context) bool {
	select {
	case c := <-m.calls:
		m.take(ctx, c)
		return true
	default:
		return false
	}
}

// answerAll ends all calls, because nothing can be done for them now.
func (m *Manager) answerAll(err error) {
	for _, c := range m.waiting {
		c.end(err)
	}
	m.waiting = nil
}

// answer ends the calls whose end has come. A wait for a person is no end.
func (m *Manager) answer(r Record, err error) {
	left := m.waiting[:0]
	for _, c := range m.waiting {
		if over, err := c.over(r, err); over {
			c.end(err)
		} else {
			left = append(left, c)
		}
	}
	clear(m.waiting[len(left):])
	m.waiting = left
}

func (m *Manager) takeCheck(r Record, c *Call) error {
	if !checkable(r) {
		return fmt.Errorf("check: %w: the state is %s", ErrBusy, r.State)
	}
	m.checkDue = true
	c.over = func(r Record, _ error) (bool, error) {
		switch {
		case !m.checkDue:
			return true, m.checked
		case !checkable(r): // another command came between
			return true, fmt.Errorf("check: %w: the state is %s", ErrBusy, r.State)
		}
		return false, nil
	}
	return nil
}

func (m *Manager) takeConsent(r *Record, c *Call) error {
	want, consent := Staged, ConsentInstall
	if c.op == opApply {
		want, consent = Activating, ConsentApply
	}
	if !checkable(*r) && r.State != want {
		return fmt.Errorf("install: %w: the state is %s", ErrBusy, r.State)
	}
	if r.State == Idle {
		if c.op == opApply {
			return fmt.Errorf("apply: %w: nothing is staged", ErrNoUpdate)
		}
		m.checkDue, m.checkInstalls = true, true
	} else {
		r.Consent = max(r.Consent, consent)
		m.backoff = 0
	}
	attempt := r.Attempt
	c.over = func(r Record, err error) (bool, error) {
		switch {
		case attempt == "" && m.checkInstalls: // another command came between
			m.checkInstalls = false
			return true, fmt.Errorf("install: %w: the state is %s", ErrBusy, r.State)
		case r.State != Idle && attempt != "" && attempt != r.Attempt:
			return true, fmt.Errorf("install: %w: release %s has taken the place of the one that was asked for", ErrNotNow, r.Release.Version)
		case r.State == Idle && r.Last != nil && attempt != "" && r.Last.ID == attempt:
			return true, m.outcome(r)
		case r.State == Idle:
			return true, err
		case attempt == "":
			attempt = r.Attempt
		}
		if r.State == want && want == Staged || want == Activating && m.settled(r) {
			return true, nil
		}
		return isEnd(err), err
	}
	return nil
}

// settled reports whether Apply has done what it can: the restart is under way,
// or comes with the next one.
func (m *Manager) settled(r Record) bool {
	return r.State == Activating && (!m.rebooting.IsZero() || r.Release.NoReboot && m.tried == r.Attempt) || r.State == Trial
}

// outcome is the error of the update that ended last.
func (m *Manager) outcome(r Record) error {
	if r.Last.Result == Succeeded {
		return nil
	}
	if r.Last.Result == Aborted {
		return ErrAborted
	}
	return coded(r.Last.Code, "%s", r.Last.Reason)
}

// isEnd reports whether err answers a command, or is just the next thing to wait for.
func isEnd(err error) bool {
	return err != nil && !errors.Is(err, errWaiting) && !errors.Is(err, errConsent)
}

func (m *Manager) takeAbort(r *Record, b Boot, c *Call) error {
	switch {
	case r.State == Idle && m.checkAborted:
		m.checkAborted = false
	case r.State == Idle:
		return fmt.Errorf("abort: %w: nothing is under way", ErrNoUpdate)
	case r.State == Activating && m.rebooting.IsZero():
		r.Abort = true // the step takes the Try back
		c.over = func(r Record, err error) (bool, error) { return r.State == Idle || isEnd(err), err }
	case checkable(*r) || r.State == Staged:
		*r = m.end(*r, b, Aborted, ErrAborted)
	default:
		return fmt.Errorf("abort: %w: the restart is under way or done; use roll back", ErrBusy)
	}
	return nil
}

func (m *Manager) takeWithdraw(r *Record, b Boot, c *Call) error {
	switch {
	case r.State == Idle || r.Digest != c.of || r.Back:
		return fmt.Errorf("withdraw: %w: the release is not under way", ErrNoUpdate)
	case !checkable(*r):
		return fmt.Errorf("withdraw release %s: %w: the restart into it is under way or done", r.Release.Version, ErrBusy)
	}
	skipped := r.Skipped
	*r = m.end(*r, b, Aborted, ErrAborted)
	r.Skipped = skipped
	return nil
}

func (m *Manager) takeRollBack(r *Record, b Boot, c *Call) error {
	if err := m.canRollBack(*r, b); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	if r.State == Trial {
		r.State, r.BootID, r.Code, r.Reason = RollBack, "", int(ErrNone), "a person asked for it"
		return nil
	}
	if r.State == Soak {
		if r.Reason == "" {
			r.Code, r.Reason = int(ErrNone), "a person asked for it"
		}
		c.over = func(r Record, err error) (bool, error) {
			switch {
			case r.State == Idle && r.Last != nil: // the device does not return
				return true, m.outcome(r)
			case r.State != Soak:
				return true, nil
			}
			return isEnd(err), err
		}
		return nil
	}
	to, from := r.Previous, r.Running
	*r = r.idle()
	r.State, r.Consent, r.Back = Staged, ConsentApply, true
	r.Slot, r.OldSlot, r.From, r.Digest, r.Attempt = to.Slot, b.Slot, m.cfg.Version, to.Digest, newAttempt()
	r.Release = &Manifest{Format: 1, Product: m.cfg.Product, Version: to.Version, SecurityVersion: to.SecurityVersion,
		Created: r.NewestTime, Images: to.Images, Digest: to.Digest}
	r.Previous = from // what is left, until the way back is proven
	c.over = func(r Record, err error) (bool, error) {
		if r.State == Idle && r.Last != nil {
			return true, m.outcome(r)
		}
		return m.settled(r) || isEnd(err), err
	}
	return nil
}
