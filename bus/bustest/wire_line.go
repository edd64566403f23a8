package bustest

import "time"

// until waits for a time, which may be over; false: the end was closed before.
func (e *End) until(t time.Time) bool {
	left := time.Until(t)
	if left <= 0 {
		return !e.closed()
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-e.done:
		return false
	}
}

// send puts the queue on the wire, a burst after the other.
func (e *End) send() {
	for {
		wait, ok := e.begin()
		switch {
		case !wait.IsZero():
			if !e.until(wait) {
				return
			}
			if ok {
				e.finish()
			}
		default:
			select {
			case <-e.sent:
			case <-e.done:
				return
			}
		}
	}
}

// begin starts to send a burst, and says when it will be over. If the line has to be
// quiet first, it says until when; if nothing waits to be sent, zero.
func (e *End) begin() (wait time.Time, ok bool) {
	w := e.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(e.queue) == 0 {
		return time.Time{}, false
	}
	begin := time.Now()
	if e.more {
		begin = e.now.end // without a gap, also if a timer was late
	}
	if quiet := w.last.Add(w.config.Turnaround); w.from != nil && w.from != e && quiet.After(begin) {
		return quiet, false
	}
	n := min(len(e.queue), w.config.Burst)
	if w.config.Latency > 0 {
		n = 1 // a receiver's time may be over within a burst
	}
	e.now = burst{begin: begin, end: begin.Add(w.Time(n)), bytes: append([]byte(nil), e.queue[:n]...), garbled: make([]bool, n)}
	e.queue = e.queue[n:]
	e.use.Bytes += n
	e.use.Busy += w.Time(n)
	for _, other := range w.ends {
		if other != e && other.now.end.After(begin) && e.now.end.After(other.now.begin) {
			w.collide(other, e.now)
			w.collide(e, other.now)
		}
	}
	return e.now.end, true
}

// collide damages what e sends at the same time as another.
func (w *Wire) collide(e *End, other burst) {
	for i := range e.now.bytes {
		begin, end := e.now.begin.Add(w.Time(i)), e.now.begin.Add(w.Time(i+1))
		if begin.Before(other.end) && end.After(other.begin) && !e.now.garbled[i] {
			e.now.garbled[i] = true
			e.now.bytes[i] ^= 0x5B // any other byte
			e.use.Garbled++
		}
	}
}

// finish lets the others hear what was sent.
func (e *End) finish() {
	w := e.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.now.end.After(w.last) {
		w.last = e.now.end
	}
	w.from = e
	for _, other := range w.ends {
		if other == e {
			continue
		}
		if room := heardMost - len(other.ready) - len(other.heard); room < len(e.now.bytes) {
			other.use.Lost += len(e.now.bytes)
			continue
		}
		if len(other.heard) == 0 {
			other.first = e.now.end
		}
		other.heard = append(other.heard, e.now.bytes...)
		if len(other.heard) >= w.config.Burst || w.config.Latency <= 0 {
			other.handOver()
		} else {
			wake(other.idle)
		}
	}
	e.now.bytes = nil
	e.more = len(e.queue) > 0
}

func (e *End) handOver() {
	e.ready = append(e.ready, e.heard...)
	e.heard = nil
	wake(e.came)
}

// hear hands over what has waited for Latency.
func (e *End) hear() {
	w := e.wire
	for {
		w.mu.Lock()
		due := e.first.Add(w.config.Latency)
		waits := len(e.heard) > 0
		if waits && !time.Now().Before(due) {
			e.handOver()
			waits = false
		}
		w.mu.Unlock()
		if waits {
			if !e.until(due) {
				return
			}
			continue
		}
		select {
		case <-e.idle:
		case <-e.done:
			return
		}
	}
}
