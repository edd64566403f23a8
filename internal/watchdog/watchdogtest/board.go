// Package watchdogtest has a hardware watchdog that restarts nothing but a count.
package watchdogtest

import (
	"sync"
	"syscall"
	"time"

	"github.com/interlock-energy/ota/internal/watchdog"
)

// Board is a fake of a watchdog, and of the device that it restarts. It counts down
// in the time of the synctest bubble that it was made in, as the hardware would.
// What the fields say is set before it is used.
type Board struct {
	Told    watchdog.Info
	Longest time.Duration // that the driver takes; 0: any
	Timeout time.Duration // before it is set; default a minute
	Silent  bool          // the driver does not tell its timeout
	OpenErr error

	began time.Time

	mu     sync.Mutex
	timer  *time.Timer
	open   bool
	gone   bool
	opens  int
	fed    []time.Duration
	resets int
}

var _ watchdog.Device = (*Board)(nil)

// NewBoard returns a board that is well.
func NewBoard() *Board {
	return &Board{Told: watchdog.Info{Identity: "fake watchdog", LastReset: "not by this watchdog"}, Timeout: time.Minute, began: time.Now()}
}

// Open is the driver's open.
func (b *Board) Open(string) (watchdog.Device, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.gone:
		return nil, syscall.ENOENT
	case b.OpenErr != nil:
		return nil, b.OpenErr
	case b.open:
		return nil, syscall.EBUSY
	}
	b.open = true
	b.opens++
	b.count()
	return b, nil
}

// count begins the countdown anew.
func (b *Board) count() {
	if b.timer != nil {
		b.timer.Stop()
	}
	b.timer = time.AfterFunc(b.Timeout, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.resets++
	})
}

// Info implements [watchdog.Device].
func (b *Board) Info() watchdog.Info { return b.Told }

// SetTimeout implements [watchdog.Device].
func (b *Board) SetTimeout(t time.Duration) (time.Duration, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.Longest > 0 && t > b.Longest {
		return 0, syscall.EINVAL
	}
	b.Timeout = t
	b.count()
	if b.Silent {
		return 0, nil
	}
	return t, nil
}

// Feed implements [watchdog.Device].
func (b *Board) Feed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return syscall.ENODEV
	}
	b.fed = append(b.fed, time.Since(b.began).Truncate(time.Second))
	b.count()
	return nil
}

// Close implements [watchdog.Device].
func (b *Board) Close(disarm bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = false
	if (disarm || b.Told.Lax) && !b.Told.NoWayOut {
		b.timer.Stop()
	}
	return nil
}

// Vanish takes the hardware away, as if its driver were unloaded.
func (b *Board) Vanish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	b.timer.Stop()
}

// Return ends Vanish.
func (b *Board) Return() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = false
}

// Resets returns how often the device would have been restarted.
func (b *Board) Resets() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.resets
}

// Opens returns how often it was opened.
func (b *Board) Opens() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opens
}

// IsOpen reports whether somebody has it open.
func (b *Board) IsOpen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open
}

// Fed returns when it was fed, in whole seconds since NewBoard.
func (b *Board) Fed() []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]time.Duration(nil), b.fed...)
}
