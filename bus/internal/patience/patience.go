// Package patience says how long to wait for what a peer answers to, on a line that loses
// frames. Protocols give their peers long, a second or so, which is what each loss costs; where
// many are lost, what the peer really takes is a better measure. It is for the protocols of
// package bus. The zero Timer never changes; start with a literal.
//
// What is promised: a line that has lost nothing is given all of the time; and a peer that has
// become slower is given more each time until it is enough.
package patience

import "time"

// Timer is a time to wait, which adapts. It knows no clock.
type Timer struct {
	Most  time.Duration // that is waited; also until something was lost
	Least time.Duration // that is waited; 0: Most, always

	lossy bool // it ran out at least once
	in    int  // how often in a row
	mean  time.Duration
	off   time.Duration // from the mean, on average
}

// Now is how long to wait. It is the estimate of RFC 6298, section 2, with its backoff only
// at every second time in a row: a line that loses frames is the likelier reason.
func (t *Timer) Now() time.Duration {
	if !t.lossy || t.mean == 0 || t.Least == 0 {
		return t.Most
	}
	d := max(t.mean+4*t.off, t.Least)
	for range t.in / 2 {
		if d *= 2; d >= t.Most {
			break
		}
	}
	return min(d, t.Most)
}

// Took notes how long the peer has taken.
func (t *Timer) Took(d time.Duration) {
	t.in = 0
	d = max(d, 1)
	if t.mean == 0 {
		t.mean, t.off = d, d/2
		return
	}
	t.off += ((t.mean - d).Abs() - t.off) / 4
	t.mean += (d - t.mean) / 8
}

// Over notes that nothing came.
func (t *Timer) Over() { t.lossy, t.in = true, t.in+1 }
