package evidence

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// A device may wait for weeks for its battery, and asks once a second. Refusals that
// are alike are summed up: in a line every minute for an hour, then in one an hour.
const (
	oftenFor  = time.Hour
	often     = time.Minute
	rarely    = time.Hour
	burst     = 200       // answers that differ from the one before, each with a line of its own
	refill    = time.Hour // and one more of them each so long; what comes faster is summed up too
	maxRanges = 200
)

// series is a run of answers that are alike.
type series struct {
	key     string
	begun   time.Time
	written time.Time // the last line
	last    func(*Repeat) any
	repeat  Repeat // of answers that are in no line yet
	spent   float64
	paid    time.Time
}

// Gate writes an answer of the gate. A yes is on the medium when it returns nil; a no
// may be summed up with others like it.
func (l *Log) Gate(g Gate) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.attempt == "" {
		return nil
	}
	if g.Yes {
		l.flush()
		l.gate.key = "yes"
		return l.write(KindGate, g)
	}
	l.flushOf(&l.health, KindHealth)
	var ranges []Range
	for _, s := range g.Signals {
		ranges = append(ranges, Range{s.Name, s.Source, s.Unit, s.Value, s.Value})
	}
	key := strings.Join([]string{string(g.Moment), g.Code, unnumbered(g.Reason)}, "\n")
	return l.sample(&l.gate, KindGate, key, ranges, func(r *Repeat) any { g.Repeat = r; return g })
}

// Health writes an answer of the health checks; those that are alike are summed up.
func (l *Log) Health(h Health) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.attempt == "" {
		return nil
	}
	l.flushOf(&l.gate, KindGate)
	key := strconv.FormatBool(h.OK) + unnumbered(h.Error)
	for _, c := range h.Checks {
		key += "\n" + c.Name + strconv.FormatBool(c.OK)
	}
	return l.sample(&l.health, KindHealth, key, nil, func(r *Repeat) any { h.Repeat = r; return h })
}

func (l *Log) sample(s *series, kind Kind, key string, ranges []Range, line func(*Repeat) any) error {
	now := time.Now()
	if key != s.key && s.spend(now) {
		l.flushOf(s, kind)
		s.key, s.begun, s.written = key, now, now
		return l.write(kind, line(nil))
	}
	if key != s.key {
		s.key = key
		s.repeat.Changes++
	}
	if s.repeat.Count == 0 {
		s.repeat.Since = l.cfg.Now().Round(0).UTC()
	}
	s.repeat.Count++
	s.repeat.widen(ranges)
	s.last = line
	every := often
	if now.Sub(s.begun) >= oftenFor || s.repeat.Changes > 0 {
		every = rarely
	}
	if now.Sub(s.written) < every {
		return nil
	}
	s.written = now
	return l.flushOf(s, kind)
}

// spend takes one of the lines that a series may have for answers that differ.
func (s *series) spend(now time.Time) bool {
	if !s.paid.IsZero() {
		s.spent = max(0, s.spent-float64(now.Sub(s.paid))/float64(refill))
	}
	s.paid = now
	if s.spent > burst-1 {
		return false
	}
	s.spent++
	return true
}

// flush writes what was summed up, so that lines are in the order of what happened.
// What cannot be written is counted as lost, like everything else.
func (l *Log) flush() {
	_ = l.flushOf(&l.gate, KindGate)
	_ = l.flushOf(&l.health, KindHealth)
}

func (l *Log) flushOf(s *series, kind Kind) error {
	if s.repeat.Count == 0 {
		return nil
	}
	r := s.repeat
	s.repeat = Repeat{}
	return l.write(kind, s.last(&r))
}

// widen makes the ranges hold new values too.
func (r *Repeat) widen(ranges []Range) {
	for _, v := range ranges {
		i := slices.IndexFunc(r.Ranges, func(have Range) bool { return have.Name == v.Name && have.Source == v.Source })
		switch {
		case i >= 0:
			r.Ranges[i].Min, r.Ranges[i].Max = min(r.Ranges[i].Min, v.Min), max(r.Ranges[i].Max, v.Max)
		case len(r.Ranges) < maxRanges:
			r.Ranges = append(r.Ranges, v)
		}
	}
}

// unnumbered is a reason without its numbers, which change with every reading.
func unnumbered(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r == '.' || r == '-' {
			return -1
		}
		return r
	}, s)
}
