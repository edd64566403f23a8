package uds

import "time"

// leastMargin is for operating systems that let a program wait.
const leastMargin = 30 * time.Millisecond

// way is how long the way to the server and back takes, with ClientConfig.Adapt: see there.
type way struct {
	most    time.Duration // ClientConfig.Margin
	adapts  bool
	lossy   bool
	slowest time.Duration // of the answers lately; 0: there were none
}

func (w *way) margin() time.Duration {
	if !w.lossy || w.slowest == 0 {
		return w.most
	}
	return min(max(4*w.slowest, leastMargin), w.most)
}

func (w *way) took(d time.Duration) {
	w.slowest = max(d, w.slowest-w.slowest/8, 1)
}

func (w *way) lost() {
	if w.lossy && w.slowest > 0 {
		w.slowest = min(max(2*w.slowest, leastMargin/2), w.most)
	}
	w.lossy = w.adapts
}
