package awsiot

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Pauses of Run.
const (
	lookPause  = time.Second      // between two looks at the service: its notifications come in twos
	retryPause = 10 * time.Second // after a failure; doubles up to Config.MaxBackoff
)

// Run keeps the connection until ctx ends, whose error it returns. Without it nothing
// is fetched or reported. It looks at the jobs when the service says that they changed, wakes
// the manager if one is new or the one in hand is gone, tells the job in hand what the
// device does, and delivers a final status that is still due.
func (s *Source) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.receiveAll(ctx) })
	wg.Go(func() { s.watch(ctx) })
	return s.line.run(ctx)
}

// watch is everything in Run that is not the connection or a file.
func (s *Source) watch(ctx context.Context) {
	var (
		looked  time.Time // last
		told    teller
		retry   time.Duration
		retryAt time.Time // zero: nothing to try again
		lookDue bool
	)
	for {
		wait := time.Hour
		for _, at := range []time.Time{retryAt, told.due(s), s.callAt()} {
			if !at.IsZero() {
				wait = min(wait, time.Until(at))
			}
		}
		if lookDue {
			wait = min(wait, time.Until(looked.Add(lookPause)))
		}
		select {
		case <-ctx.Done():
			return
		case <-s.look:
			lookDue = true
		case <-s.poke:
		case <-time.After(max(0, wait)):
		}
		if _, _, err := s.line.now(); err != nil {
			lookDue, retryAt = false, time.Time{} // a connection that comes up is a reason to look
			told.failed()
			s.callLater()
			continue
		}
		now := time.Now()
		if at := s.callAt(); !at.IsZero() && !now.Before(at) {
			s.callAgain()
			signal(s.wake)
		}
		var err error
		if lookDue && now.Sub(looked) >= lookPause || !retryAt.IsZero() && !now.Before(retryAt) {
			lookDue, looked, retryAt = false, now, time.Time{}
			err = s.refresh(ctx)
		}
		if err == nil && !now.Before(told.due(s)) {
			err = told.tell(ctx, s)
		}
		if err == nil {
			retry = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		retry = min(max(2*retry, retryPause), s.cfg.MaxBackoff)
		retryAt = time.Now().Add(jitter(retry))
		s.cfg.Log.Warn("jobs could not be looked after, trying again", "error", err)
	}
}

// refresh asks the service what there is, without deciding anything.
func (s *Source) refresh(ctx context.Context) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	if err := s.settle(ctx); err != nil {
		return err
	}
	x, err := s.pending(ctx)
	if err != nil {
		return err
	}
	if x == nil {
		s.looked(key{})
	} else if x.key() != s.woken {
		s.woken = x.key()
		s.callAgain()
		signal(s.wake)
	}
	return nil
}

// callAgain makes that the manager is woken once more after a pause, if it does not come to
// the end of a check before. Nobody else may ever look: by default it checks when it is woken only,
// and a check may have failed because the bucket was not there, or was not begun because the
// application did not allow it.
func (s *Source) callAgain() {
	s.mu.Lock()
	s.againAt = time.Now().Add(jitter(max(min(retryPause<<min(s.unheard, 10), s.cfg.MaxBackoff), retryPause)))
	s.unheard++
	s.mu.Unlock()
	signal(s.poke)
}

// callLater postpones that while there is nobody to ask.
func (s *Source) callLater() {
	s.mu.Lock()
	s.againAt = time.Now().Add(retryPause)
	s.mu.Unlock()
}

// looked notes that the manager has looked at a job, or that there is none.
func (s *Source) looked(k key) {
	s.woken = k
	s.mu.Lock()
	s.unheard = 0
	s.mu.Unlock()
}

// callAt returns when to wake the manager once more; zero: there is no need.
func (s *Source) callAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unheard == 0 {
		return time.Time{}
	}
	return s.againAt
}

// stir makes Run tell the job in hand that the device is there.
func (s *Source) stir() {
	s.mu.Lock()
	s.changed = true
	s.mu.Unlock()
	signal(s.poke)
}

// Status tells the job what the device is doing, as far as that works now. It returns
// at once: what is said is sent by Run, and the last word counts. With a Topic it is
// published there as well.
func (s *Source) Status(ctx context.Context, u api.StatusUpdate) error {
	s.mu.Lock()
	s.live, s.spoken, s.changed = u.Head, true, true
	s.mu.Unlock()
	signal(s.poke)
	_, _, err := s.line.now()
	return err
}

// teller tells the job in hand, and Topic, what the device does.
type teller struct {
	last time.Time         // something was sent, or could not be
	said map[string]string // to the job
	to   key               // of that job
	step time.Time         // when it heard of the device
}

// due returns when something is to be sent; zero: when the device says something.
func (t *teller) due(s *Source) time.Time {
	s.mu.Lock()
	changed := s.changed
	s.mu.Unlock()
	if changed {
		return t.last.Add(s.cfg.StatusInterval)
	}
	if s.cfg.StepTimeout > 0 {
		at := t.step.Add(s.cfg.StepTimeout / 3)
		if earliest := t.last.Add(s.cfg.StatusInterval); at.Before(earliest) {
			return earliest
		}
		return at
	}
	return time.Now().Add(time.Hour)
}

func (t *teller) failed() { t.last = time.Now() }

func (t *teller) tell(ctx context.Context, s *Source) error {
	s.mu.Lock()
	live, changed, publish := s.live, s.changed, s.changed && s.spoken
	s.changed = false
	s.mu.Unlock()
	t.last = time.Now()
	err := t.tellBoth(ctx, s, live, publish)
	if err != nil && changed {
		s.mu.Lock()
		s.changed = true
		s.mu.Unlock()
	}
	return err
}

// tellBoth tells the job first: where the policy does not allow the topic, AWS ends the connection.
func (t *teller) tellBoth(ctx context.Context, s *Source, live api.Head, publish bool) error {
	if err := t.tellJob(ctx, s, live); err != nil || s.cfg.Topic == "" || !publish {
		return err
	}
	b, err := json.Marshal(api.StatusUpdate{Head: live})
	if err != nil {
		return err
	}
	return s.line.Publish(ctx, s.cfg.Topic+"/status", 0, b)
}

func (t *teller) tellJob(ctx context.Context, s *Source, live api.Head) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	h := s.record.Hand
	if h == nil || h.Final != nil || !h.Started {
		t.to, t.step, t.said = key{}, time.Now(), nil
		return nil
	}
	if t.to != h.key {
		t.to, t.step, t.said = h.key, time.Time{}, nil
		if h.confirmed { // just now
			t.step = time.Now()
		}
	}
	var d map[string]string
	if live.UpdateDigest == h.Digest {
		if err := s.noteStaged(live.State); err != nil {
			return err
		}
		h = s.record.Hand
		d = liveDetails(live, s.cfg.Version, h.AFR).bounded()
	}
	kept := s.cfg.StepTimeout > 0 && time.Since(t.step) >= s.cfg.StepTimeout/3
	if (len(d) == 0 || maps.Equal(d, t.said)) && !kept {
		return nil
	}
	if err := s.progress(ctx, d); err != nil {
		return err
	}
	t.step = time.Now()
	if d != nil {
		t.said = d
	}
	return nil
}

// noteStaged remembers that the device has the release whole, see statusOf.
func (s *Source) noteStaged(at ota.State) error {
	switch at {
	case ota.Staged, ota.Activating, ota.Trial, ota.Soak, ota.RollBack:
	default:
		return nil
	}
	if s.record.Hand.Staged {
		return nil
	}
	r := s.record.clone()
	r.Hand.Staged = true
	return s.save(r)
}

// progress updates the job in hand, which is in progress.
func (s *Source) progress(ctx context.Context, details map[string]string) error {
	for range 3 {
		h := s.record.Hand
		if h.version == 0 {
			x, err := s.jobs.describe(ctx, h.Job)
			if err != nil {
				return err
			}
			if x == nil || x.key() != h.key {
				return s.lose("the service has it no more: it was cancelled, timed out or was removed")
			}
			h.version = x.VersionNumber
		}
		version := h.version
		h.version = 0 // if no answer comes
		err := s.jobs.update(ctx, h.key, version, inProgress, details, s.cfg.StepTimeout)
		r, ok := errors.AsType[*Refused](err)
		switch {
		case err == nil:
			h.version, h.confirmed = version+1, true
			return nil
		case ok && r.gone():
			return s.lose(r.Error())
		case ok && (r.Code == "VersionMismatch" || r.Code == "InvalidStateTransition"):
			continue
		}
		return err
	}
	return coded(ota.ErrConnectivity, "the version of job %s changes all the time", s.record.Hand.Job)
}
