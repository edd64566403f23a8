package gate

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
)

// DefaultMaxGap is the gap of a [Dwell] that states none: five questions at the
// manager's default pace.
const DefaultMaxGap = 5 * time.Second

// Dwell returns a gate that says yes once g has said yes for d without a break.
// A battery that is safe by chance for one second is not at rest.
//
// Only questions count, for nobody else looks: two of them more than maxGap
// apart are a break, like a no. So is a question about another release, whose
// limits may differ. maxGap 0 is [DefaultMaxGap]; it must be greater than the
// pace of the questions ([ota.Config.GateInterval]), or the gate never opens.
// With d 0 or less, Dwell is g.
//
// At [ota.AtRestart] only g counts. The dwell time was over when the manager was
// allowed to quiesce the plant, nobody asked while that took its time, and now
// the last word is the battery's.
//
// Time is the monotonic clock's, so setting the clock shortens nothing. While g
// says yes and d is not over, the refusal's code is [ota.ErrNone]: the battery
// is fine, the wait is ours.
func Dwell(d, maxGap time.Duration, g ota.Gate) ota.Gate {
	if maxGap <= 0 {
		maxGap = DefaultMaxGap
	}
	s := &dwell{need: d, maxGap: maxGap}
	return func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
		asked := time.Now()
		r := ask(ctx, g, m, at)
		if r == nil && at == ota.AtRestart {
			return nil
		}
		if r := s.answer(r, digest(m), asked, time.Now()); r != nil {
			return r
		}
		return nil
	}
}

type dwell struct {
	need, maxGap time.Duration

	mu     sync.Mutex
	since  time.Time // answer of the first yes in the present run; zero: no run
	last   time.Time // question of the last yes in the present run
	digest string    // the release that the run is about
}

// answer judges the answer r to a question put at asked and answered at now. A
// run is counted from when its first yes was there to when the present question
// was put, and a gap from question to answer, so a slow gate gains no time.
func (s *dwell) answer(r *ota.Refusal, digest string, asked, now time.Time) *ota.Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r != nil {
		s.since = time.Time{}
		return r
	}
	if s.need <= 0 {
		return nil
	}
	note := ""
	if !s.since.IsZero() {
		if g := gap(s.last, now); g > s.maxGap {
			s.since = time.Time{}
			note = fmt.Sprintf(", because nobody asked for %s", seconds(g, time.Second))
		}
	}
	if s.since.IsZero() || s.digest != digest {
		s.since, s.digest = now, digest
	}
	s.last = asked
	safe := max(asked.Sub(s.since), 0)
	if safe >= s.need {
		return nil
	}
	return &ota.Refusal{Causes: []ota.Cause{ota.CauseDwell}, Ready: s.since.Add(s.need), Reason: fmt.Sprintf("safe for %s of %s%s", seconds(safe, s.need), seconds(s.need, s.need), note)}
}

// gap is the time from a to b by the clock that says more. The monotonic clock
// of Linux stands still while the system sleeps; the wall clock does not. A
// wall clock that is set forward costs a dwell time, which is the safe side.
func gap(a, b time.Time) time.Duration {
	return max(b.Sub(a), b.Round(0).Sub(a.Round(0)))
}

// seconds formats d, in whole seconds if it belongs to a span of 10 s or more.
// It never rounds up: 29.9 s of 30 s must not read as 30 s of 30 s.
func seconds(d, span time.Duration) string {
	step := 100 * time.Millisecond
	if span >= 10*time.Second {
		step = time.Second
	}
	return strconv.FormatFloat(d.Truncate(step).Seconds(), 'f', -1, 64) + " s"
}

func digest(m *ota.Manifest) string {
	if m == nil {
		return ""
	}
	return m.Digest
}
