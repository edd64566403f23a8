package watchdog_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/internal/watchdog"
)

// board is a fake of a watchdog, and of the device that it restarts. It counts down
// in the time of the bubble, as the hardware would: real ones need a virtual machine.
type board struct {
	info    watchdog.Info
	longest time.Duration // that the driver takes; 0: any
	silent  bool          // the driver does not tell its timeout
	openErr error
	feedErr error

	mu      sync.Mutex
	timeout time.Duration
	timer   *time.Timer
	open    bool
	opens   int
	fed     []time.Duration // since the start, whole seconds
	began   time.Time
	resets  int
}

func newBoard() *board {
	return &board{info: watchdog.Info{Identity: "fake watchdog", LastReset: "not by this watchdog"}, timeout: time.Minute, began: time.Now()}
}

func (b *board) Open(string) (watchdog.Device, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.openErr != nil {
		return nil, b.openErr
	}
	if b.open {
		return nil, syscall.EBUSY
	}
	b.open = true
	b.opens++
	b.count()
	return b, nil
}

// count begins the countdown anew.
func (b *board) count() {
	if b.timer != nil {
		b.timer.Stop()
	}
	b.timer = time.AfterFunc(b.timeout, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.resets++
	})
}

func (b *board) Info() watchdog.Info { return b.info }

func (b *board) SetTimeout(t time.Duration) (time.Duration, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.longest > 0 && t > b.longest {
		return 0, syscall.EINVAL
	}
	b.timeout = t
	b.count()
	if b.silent {
		return 0, nil
	}
	return t, nil
}

func (b *board) Feed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.feedErr != nil {
		return b.feedErr
	}
	b.fed = append(b.fed, time.Since(b.began).Truncate(time.Second))
	b.count()
	return nil
}

func (b *board) Close(disarm bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = false
	if (disarm || b.info.Lax) && !b.info.NoWayOut {
		b.timer.Stop()
	}
	return nil
}

func (b *board) set(change func()) { b.mu.Lock(); defer b.mu.Unlock(); change() }

func (b *board) wantResets(t *testing.T, want int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.resets != want {
		t.Errorf("got %d resets by the hardware, want %d", b.resets, want)
	}
}

func (b *board) wantOpen(t *testing.T, want bool) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != want {
		t.Errorf("got it open %v, want %v", b.open, want)
	}
}

// keeper starts one for 30 s whose need can be changed.
func keeper(b *board, need *atomic.Pointer[watchdog.Need]) *watchdog.Keeper {
	if need.Load() == nil {
		need.Store(&watchdog.Need{})
	}
	k := watchdog.New(watchdog.Config{Path: "/dev/watchdog", Timeout: 30 * time.Second, Open: b.Open, Log: slog.New(slog.DiscardHandler),
		Ask: func() watchdog.Need { return *need.Load() }})
	k.Start()
	return k
}

func wantState(t *testing.T, k *watchdog.Keeper, state, why string) {
	t.Helper()
	if s := k.Status(); s.State != state || !strings.Contains(s.Why, why) || (why == "") != (s.Why == "") {
		t.Errorf("got %s (%s), want %s (%s)", s.State, s.Why, state, why)
	}
}

func TestFedThriceInTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		time.Sleep(25 * time.Second)
		synctest.Wait()
		want := watchdog.Status{Device: "/dev/watchdog", Identity: "fake watchdog", Timeout: 30 * time.Second, State: watchdog.Held, LastReset: "not by this watchdog"}
		if got := k.Status(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if got, want := fmt.Sprint(b.fed), "[0s 0s 10s 20s]"; got != want {
			t.Errorf("fed at %s, want %s: when opened, and after asking, at once and every 10 s", got, want)
		}
		time.Sleep(24 * time.Hour)
		k.Stop(watchdog.Disarm)
		time.Sleep(time.Hour)
		b.wantResets(t, 0)
		wantState(t, k, watchdog.Released, "")
	})
}

func TestStuckIsNotFed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		time.Sleep(time.Hour + time.Second)
		need.Store(&watchdog.Need{Stuck: errors.New("the flash is dying")})
		time.Sleep(28 * time.Second)
		b.wantResets(t, 0)
		wantState(t, k, watchdog.Starved, "the flash is dying")
		time.Sleep(2 * time.Second)
		b.wantResets(t, 1)
		k.Stop(watchdog.Disarm)
	})
}

// A program that is itself again in time is not restarted.
func TestStuckForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		need.Store(&watchdog.Need{Stuck: errors.New("slow")})
		time.Sleep(11 * time.Second)
		wantState(t, k, watchdog.Starved, "slow")
		need.Store(&watchdog.Need{})
		time.Sleep(time.Hour)
		wantState(t, k, watchdog.Held, "")
		k.Stop(watchdog.Disarm)
		b.wantResets(t, 0)
	})
}

// A question that hangs is no yes.
func TestAskHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		hang := make(chan struct{})
		k := watchdog.New(watchdog.Config{Path: "/dev/watchdog", Timeout: 30 * time.Second, Open: b.Open, Log: slog.New(slog.DiscardHandler),
			Ask: func() watchdog.Need { <-hang; return watchdog.Need{} }})
		k.Start() // returns: the watchdog is armed before anything can hang
		b.wantOpen(t, true)
		if got, want := k.Status().State, watchdog.Held; got != want {
			t.Errorf("got %s, want %s, and an answer at once", got, want)
		}
		time.Sleep(31 * time.Second)
		b.wantResets(t, 1)
		close(hang)
		k.Stop(watchdog.Disarm)
	})
}

func TestEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*board)
		end    watchdog.End
		after  time.Duration // until the hardware restarts the device; 0: never
	}{
		{"disarmed", nil, watchdog.Disarm, 0},
		{"armed", nil, watchdog.Armed, 30 * time.Second},
		{"armed, lax driver", func(b *board) { b.info.Lax = true }, watchdog.Armed, 0},
		{"shutdown", nil, watchdog.Restart, watchdog.ShutdownTime},
		{"shutdown, and the driver takes 15 s at most", func(b *board) { b.longest = 15 * time.Second }, watchdog.Restart, 0},
		{"disarmed, nowayout", func(b *board) { b.info.NoWayOut = true }, watchdog.Disarm, 30 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard()
				if tt.change != nil {
					tt.change(b)
				}
				var need atomic.Pointer[watchdog.Need]
				k := keeper(b, &need)
				time.Sleep(time.Hour + 7*time.Second)
				k.Stop(tt.end)
				b.wantOpen(t, false)
				if tt.after == 0 {
					time.Sleep(24 * time.Hour)
					b.wantResets(t, 0)
					return
				}
				time.Sleep(tt.after - time.Second) // fed a last time
				b.wantResets(t, 0)
				time.Sleep(2 * time.Second)
				b.wantResets(t, 1)
			})
		})
	}
}

// What is not fed any more is not fed at the end either.
func TestStuckAndEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		var need atomic.Pointer[watchdog.Need]
		need.Store(&watchdog.Need{Stuck: errors.New("no verdict")})
		k := keeper(b, &need)
		time.Sleep(25 * time.Second)
		k.Stop(watchdog.Armed)
		time.Sleep(6 * time.Second)
		b.wantResets(t, 1)
	})
}

func TestHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		time.Sleep(time.Minute)
		need.Store(&watchdog.Need{Release: true})
		time.Sleep(11 * time.Second)
		wantState(t, k, watchdog.Released, "")
		other, err := b.Open("") // systemd takes it
		if err != nil {
			t.Fatal(err)
		}
		need.Store(&watchdog.Need{}) // the next trial
		time.Sleep(11 * time.Second)
		wantState(t, k, watchdog.Busy, "somebody else has it")
		other.Close(true)
		time.Sleep(11 * time.Second)
		wantState(t, k, watchdog.Held, "")
		if b.opens != 3 {
			t.Errorf("opened %d times, want 3", b.opens)
		}
		k.Stop(watchdog.Disarm)
		b.wantResets(t, 0)
	})
}

// A watchdog that cannot be disarmed is not handed over to nobody.
func TestNoWayOutIsFedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.info.NoWayOut = true
		var need atomic.Pointer[watchdog.Need]
		need.Store(&watchdog.Need{Release: true})
		k := keeper(b, &need)
		time.Sleep(time.Hour)
		wantState(t, k, watchdog.Held, "nowayout")
		b.wantResets(t, 0)
		k.Stop(watchdog.Disarm)
	})
}

func TestLaxDriverIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.info.Lax = true
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		time.Sleep(time.Second)
		wantState(t, k, watchdog.Held, "nowayout=1")
		k.Stop(watchdog.Disarm)
	})
}

// Somebody else feeds it: that is as good, and is not said every ten seconds.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.openErr = syscall.EBUSY
		var log strings.Builder
		k := watchdog.New(watchdog.Config{Path: "/dev/watchdog", Timeout: 30 * time.Second, Open: b.Open, Log: slog.New(slog.NewTextHandler(&log, nil)),
			Ask: func() watchdog.Need { return watchdog.Need{} }})
		k.Start()
		time.Sleep(time.Hour)
		wantState(t, k, watchdog.Busy, "somebody else has it, such as systemd with RuntimeWatchdogSec")
		k.Stop(watchdog.Armed)
		if got := strings.Count(log.String(), "RuntimeWatchdogSec"); got != 1 {
			t.Errorf("it was logged %d times, want once:\n%s", got, &log)
		}
	})
}

func TestVanishesAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		time.Sleep(time.Minute)
		b.set(func() { b.feedErr, b.openErr = syscall.ENODEV, syscall.ENOENT; b.timer.Stop() })
		time.Sleep(time.Minute)
		wantState(t, k, watchdog.Missing, "no such file or directory")
		b.set(func() { b.feedErr, b.openErr = nil, nil })
		time.Sleep(11 * time.Second)
		wantState(t, k, watchdog.Held, "")
		k.Stop(watchdog.Disarm)
		b.wantResets(t, 0)
	})
}

// The driver has the last word on the timeout.
func TestDriversTimeout(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*board)
		want   time.Duration
	}{
		{"15 s at most", func(b *board) { b.longest = 15 * time.Second }, 15 * time.Second},
		{"4 s at most", func(b *board) { b.longest = 4 * time.Second }, 3750 * time.Millisecond},
		{"does not tell", func(b *board) { b.silent = true }, 0},
		{"takes none", func(b *board) { b.longest = time.Millisecond; b.timeout = 3 * time.Second }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard()
				tt.change(b)
				var need atomic.Pointer[watchdog.Need]
				k := keeper(b, &need)
				time.Sleep(time.Hour)
				if got := k.Status().Timeout; got != tt.want {
					t.Errorf("got a timeout of %v, want %v", got, tt.want)
				}
				k.Stop(watchdog.Disarm)
				b.wantResets(t, 0)
			})
		})
	}
}
