package isotp

import "time"

// leastPatience is for peers that are quick as a rule and slow once in a while, as programs are.
const leastPatience = 100 * time.Millisecond

// patience is how long to wait for a frame of the peer, with Config.Adapt: see there. It
// knows no clock.
type patience struct {
	most    time.Duration // of the Config
	adapts  bool
	expired bool          // at least once
	slowest time.Duration // that the peer was lately; 0: not known
}

// now is the timer.
func (p *patience) now() time.Duration {
	if !p.expired || p.slowest == 0 {
		return p.most
	}
	return min(max(4*p.slowest, leastPatience), p.most)
}

// took notes how long the peer has taken.
func (p *patience) took(d time.Duration) {
	p.slowest = max(d, p.slowest-p.slowest/8, 1)
}

// over notes that the timer ran out.
func (p *patience) over() {
	if p.expired && p.slowest > 0 {
		p.slowest = min(max(2*p.slowest, leastPatience/2), p.most)
	}
	p.expired = p.adapts
}
