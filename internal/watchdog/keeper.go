package watchdog

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"
)

// Config of a [Keeper].
type Config struct {
	Path    string        // of the device
	Timeout time.Duration // asked of the driver, which may take another

	// Ask is called before every feeding. While it does not return, nothing is fed.
	Ask func() Need

	Open func(path string) (Device, error) // default: [Open]
	Log  *slog.Logger                      // default: slog.Default()
}

// Need is what a program wants of its watchdog at one moment.
type Need struct {
	// Stuck is why the watchdog must not be fed; nil: the program is well.
	Stuck error
	// Release: the watchdog is not needed now, and somebody else may have it. It is
	// opened again once it is needed. A watchdog that cannot be disarmed is kept and
	// fed all the same: nobody may be there to take it.
	Release bool
}

// End is how a [Keeper] leaves the watchdog behind.
type End int

// Ends.
const (
	Disarm  End = iota // in order: nothing restarts the device
	Armed              // the device restarts unless somebody opens the watchdog in time
	Restart            // the device is shutting down, and the watchdog sees to it that it does
)

// ShutdownTime is what a device that is shutting down has before its watchdog
// restarts it. systemd gives each service 90 s by default.
const ShutdownTime = 5 * time.Minute

// Keeper holds a watchdog and feeds it. Start it once, and stop it once.
type Keeper struct {
	cfg  Config
	stop chan struct{}
	done chan struct{}

	// Those of the goroutine, and of Stop after it.
	dev       Device
	starving  bool
	complaint string // what was logged last

	mu     sync.Mutex
	status Status
}

// New returns a keeper that has done nothing yet.
func New(cfg Config) *Keeper {
	if cfg.Open == nil {
		cfg.Open = Open
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Keeper{cfg: cfg, stop: make(chan struct{}), done: make(chan struct{}),
		status: Status{Device: cfg.Path, State: Missing}}
}

// Status returns what the keeper does. It never waits for the device.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.status
}

// Start opens the watchdog at once, before it asks anything, and keeps it until Stop.
// One that cannot be opened is tried again: it may be somebody else's for now.
func (k *Keeper) Start() {
	k.open()
	go k.run()
}

// Stop ends the keeper, and leaves the watchdog behind as end says.
func (k *Keeper) Stop(end End) {
	close(k.stop)
	<-k.done
	if k.dev != nil {
		k.leave(end)
	}
}

// run feeds three times in the timeout, so that once may come late.
func (k *Keeper) run() {
	defer close(k.done)
	for {
		next := time.NewTimer(k.every())
		k.step(k.cfg.Ask())
		select {
		case <-k.stop:
			next.Stop()
			return
		case <-next.C:
		}
	}
}

// every is the time from one feeding to the next.
func (k *Keeper) every() time.Duration {
	t := k.Status().Timeout
	if t <= 0 { // the driver does not tell
		t = min(k.cfg.Timeout, 3*time.Second)
	}
	return t / 3
}

func (k *Keeper) step(n Need) {
	switch {
	case n.Release && n.Stuck == nil && k.dev == nil:
		k.show(Released, "")
		return
	case n.Release && n.Stuck == nil && !k.dev.Info().NoWayOut:
		k.letGo()
		return
	case k.dev == nil && n.Stuck == nil:
		k.open() // which feeds
		return
	case k.dev == nil:
		return // whoever is stuck needs no watchdog in addition
	}
	why := ""
	switch info := k.dev.Info(); {
	case n.Release:
		why = "it cannot be disarmed (nowayout), so it is fed on instead of being handed over"
	case info.Lax && !info.NoWayOut:
		why = "its driver disarms it when the agent is killed; load the driver with nowayout=1"
	}
	k.feed(n.Stuck, why)
}

func (k *Keeper) feed(stuck error, why string) {
	if stuck != nil {
		if !k.starving {
			k.cfg.Log.Error("the hardware watchdog is not fed any more, and restarts the device", "device", k.cfg.Path, "within", k.Status().Timeout, "why", stuck)
		}
		k.starving = true
		k.show(Starved, stuck.Error())
		return
	}
	if k.starving {
		k.cfg.Log.Warn("the hardware watchdog is fed again", "device", k.cfg.Path)
		k.starving = false
	}
	if err := k.dev.Feed(); err != nil {
		// Another driver may come in its place. Whatever this one does, nothing disarms it.
		err = errors.Join(err, k.dev.Close(false))
		k.dev = nil
		k.complain(Missing, fmt.Errorf("feed the watchdog %s: %w", k.cfg.Path, err))
		return
	}
	k.show(Held, why)
}

// open opens the watchdog and sets its timeout.
func (k *Keeper) open() {
	dev, err := k.cfg.Open(k.cfg.Path)
	if errors.Is(err, syscall.EBUSY) {
		k.complain(Busy, fmt.Errorf("open the watchdog %s: somebody else has it, such as systemd with RuntimeWatchdogSec, and feeds it: %w", k.cfg.Path, err))
		return
	}
	if err != nil {
		k.complain(Missing, fmt.Errorf("open the watchdog %s: %w", k.cfg.Path, err))
		return
	}
	k.dev, k.complaint = dev, ""
	actual, err := dev.SetTimeout(k.cfg.Timeout)
	if err != nil { // it has one, and counts
		k.cfg.Log.Warn("the hardware watchdog keeps its own timeout", "device", k.cfg.Path, "want", k.cfg.Timeout, "error", err)
		actual = k.ownTimeout(dev)
	}
	if err := dev.Feed(); err != nil {
		k.cfg.Log.Warn("feed the hardware watchdog", "device", k.cfg.Path, "error", err)
	}
	info := dev.Info()
	k.mu.Lock()
	k.status = Status{Device: k.cfg.Path, Identity: info.Identity, Timeout: actual, State: Held, LastReset: info.LastReset}
	k.mu.Unlock()
	k.cfg.Log.Info("the hardware watchdog is held", "device", k.cfg.Path, "identity", info.Identity, "timeout", actual, "last reset", info.LastReset)
	if info.Lax && !info.NoWayOut {
		k.cfg.Log.Warn("the driver of the hardware watchdog disarms it when the agent is killed; load the driver with nowayout=1", "device", k.cfg.Path)
	}
}

// ownTimeout is that of a driver which has refused ours: a common one has less than
// 16 s, and half a minute is refused as a whole.
func (k *Keeper) ownTimeout(dev Device) time.Duration {
	for t := k.cfg.Timeout / 2; t >= time.Second; t /= 2 {
		if actual, err := dev.SetTimeout(t); err == nil {
			return actual
		}
	}
	return 0
}

// letGo hands the watchdog over.
func (k *Keeper) letGo() {
	err := k.dev.Close(true)
	k.dev, k.starving = nil, false
	if err != nil {
		k.complain(Released, fmt.Errorf("disarm the watchdog %s, which may restart the device: %w", k.cfg.Path, err))
		return
	}
	k.cfg.Log.Info("the hardware watchdog is released: another program may hold it now", "device", k.cfg.Path)
	k.show(Released, "")
}

// leave is the end of the process.
func (k *Keeper) leave(end End) {
	disarm := end == Disarm
	if end == Restart {
		// With the timeout of every day, the watchdog would cut short what others still
		// have to write. A driver that takes no longer one does not guard the shutdown.
		actual, err := k.dev.SetTimeout(ShutdownTime)
		disarm = err != nil || actual < ShutdownTime
	}
	if !k.starving { // also before it is disarmed: not every watchdog can be
		if err := k.dev.Feed(); err != nil {
			k.cfg.Log.Warn("feed the hardware watchdog a last time", "device", k.cfg.Path, "error", err)
		}
	}
	if disarm && k.dev.Info().NoWayOut {
		k.cfg.Log.Warn("the hardware watchdog cannot be disarmed (nowayout): the device restarts unless the agent, or another program, feeds it again", "device", k.cfg.Path, "within", k.Status().Timeout)
	}
	err := k.dev.Close(disarm)
	k.dev = nil
	if err != nil {
		k.cfg.Log.Error("close the hardware watchdog", "device", k.cfg.Path, "disarm", disarm, "error", err)
		return
	}
	k.show(Released, "")
	k.cfg.Log.Info("the hardware watchdog is closed", "device", k.cfg.Path, "armed", !disarm)
}

// complain logs what differs from what was logged last: it is tried again for ever.
func (k *Keeper) complain(state string, err error) {
	if err.Error() != k.complaint {
		k.complaint = err.Error()
		k.cfg.Log.Warn("no hardware watchdog", "error", err)
	}
	k.show(state, err.Error())
}

func (k *Keeper) show(state, why string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status.State, k.status.Why = state, why
}
