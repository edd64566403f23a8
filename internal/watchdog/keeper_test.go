package watchdog_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/internal/watchdog"
	"github.com/interlock-energy/ota/internal/watchdog/watchdogtest"
)

func wantResets(t *testing.T, b *watchdogtest.Board, want int) {
	t.Helper()
	if got := b.Resets(); got != want {
		t.Errorf("got %d resets by the hardware, want %d", got, want)
	}
}

func wantOpen(t *testing.T, b *watchdogtest.Board, want bool) {
	t.Helper()
	if got := b.IsOpen(); got != want {
		t.Errorf("got it open %v, want %v", got, want)
	}
}

// keeper starts one for 30 s whose need can be changed.
func keeper(b *watchdogtest.Board, need *atomic.Pointer[watchdog.Need]) *watchdog.Keeper {
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
		b := watchdogtest.NewBoard()
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		time.Sleep(25 * time.Second)
		synctest.Wait()
		want := watchdog.Status{Device: "/dev/watchdog", Identity: "fake watchdog", Timeout: 30 * time.Second, State: watchdog.Held, LastReset: "not by this watchdog"}
		if got := k.Status(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if got, want := fmt.Sprint(b.Fed()), "[0s 0s 10s 20s]"; got != want {
			t.Errorf("fed at %s, want %s: when opened, and after asking, at once and every 10 s", got, want)
		}
		time.Sleep(24 * time.Hour)
		k.Stop(watchdog.Disarm)
		time.Sleep(time.Hour)
		wantResets(t, b, 0)
		wantState(t, k, watchdog.Released, "")
	})
}

func TestStuckIsNotFed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := watchdogtest.NewBoard()
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		time.Sleep(time.Hour + time.Second)
		need.Store(&watchdog.Need{Stuck: errors.New("the flash is dying")})
		time.Sleep(28 * time.Second)
		wantResets(t, b, 0)
		wantState(t, k, watchdog.Starved, "the flash is dying")
		time.Sleep(2 * time.Second)
		wantResets(t, b, 1)
		k.Stop(watchdog.Disarm)
	})
}

// A program that is itself again in time is not restarted.
func TestStuckForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := watchdogtest.NewBoard()
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		need.Store(&watchdog.Need{Stuck: errors.New("slow")})
		time.Sleep(11 * time.Second)
		wantState(t, k, watchdog.Starved, "slow")
		need.Store(&watchdog.Need{})
		time.Sleep(time.Hour)
		wantState(t, k, watchdog.Held, "")
		k.Stop(watchdog.Disarm)
		wantResets(t, b, 0)
	})
}

// A question that hangs is no yes.
func TestAskHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := watchdogtest.NewBoard()
		hang := make(chan struct{})
		k := watchdog.New(watchdog.Config{Path: "/dev/watchdog", Timeout: 30 * time.Second, Open: b.Open, Log: slog.New(slog.DiscardHandler),
			Ask: func() watchdog.Need { <-hang; return watchdog.Need{} }})
		k.Start() // returns: the watchdog is armed before anything can hang
		wantOpen(t, b, true)
		if got, want := k.Status().State, watchdog.Held; got != want {
			t.Errorf("got %s, want %s, and an answer at once", got, want)
		}
		time.Sleep(31 * time.Second)
		wantResets(t, b, 1)
		close(hang)
		k.Stop(watchdog.Disarm)
	})
}

func TestEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*watchdogtest.Board)
		end    watchdog.End
		after  time.Duration // until the hardware restarts the device; 0: never
	}{
		{"disarmed", nil, watchdog.Disarm, 0},
		{"armed", nil, watchdog.Armed, 30 * time.Second},
		{"armed, lax driver", func(b *watchdogtest.Board) { b.Told.Lax = true }, watchdog.Armed, 0},
		{"shutdown", nil, watchdog.Restart, watchdog.ShutdownTime},
		{"shutdown, and the driver takes 15 s at most", func(b *watchdogtest.Board) { b.Longest = 15 * time.Second }, watchdog.Restart, 0},
		{"disarmed, nowayout", func(b *watchdogtest.Board) { b.Told.NoWayOut = true }, watchdog.Disarm, 30 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := watchdogtest.NewBoard()
				if tt.change != nil {
					tt.change(b)
				}
				var need atomic.Pointer[watchdog.Need]
				k := keeper(b, &need)
				time.Sleep(time.Hour + 7*time.Second)
				k.Stop(tt.end)
				wantOpen(t, b, false)
				if tt.after == 0 {
					time.Sleep(24 * time.Hour)
					wantResets(t, b, 0)
					return
				}
				time.Sleep(tt.after - time.Second) // fed a last time
				wantResets(t, b, 0)
				time.Sleep(2 * time.Second)
				wantResets(t, b, 1)
			})
		})
	}
}

// What is not fed any more is not fed at the end either.
func TestStuckAndEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := watchdogtest.NewBoard()
		var need atomic.Pointer[watchdog.Need]
		need.Store(&watchdog.Need{Stuck: errors.New("no verdict")})
		k := keeper(b, &need)
		time.Sleep(25 * time.Second)
		k.Stop(watchdog.Armed)
		time.Sleep(6 * time.Second)
		wantResets(t, b, 1)
	})
}

func TestHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := watchdogtest.NewBoard()
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
		if b.Opens() != 3 {
			t.Errorf("opened %d times, want 3", b.Opens())
		}
		k.Stop(watchdog.Disarm)
		wantResets(t, b, 0)
	})
}

// A watchdog that cannot be disarmed is not handed over to nobody.
func TestNoWayOutIsFedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := watchdogtest.NewBoard()
		b.Told.NoWayOut = true
		var need atomic.Pointer[watchdog.Need]
		need.Store(&watchdog.Need{Release: true})
		k := keeper(b, &need)
		time.Sleep(time.Hour)
		wantState(t, k, watchdog.Held, "nowayout")
		wantResets(t, b, 0)
		k.Stop(watchdog.Disarm)
	})
}

func TestLaxDriverIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := watchdogtest.NewBoard()
		b.Told.Lax = true
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
		b := watchdogtest.NewBoard()
		b.OpenErr = syscall.EBUSY
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
		b := watchdogtest.NewBoard()
		var need atomic.Pointer[watchdog.Need]
		k := keeper(b, &need)
		time.Sleep(time.Minute)
		b.Vanish()
		time.Sleep(time.Minute)
		wantState(t, k, watchdog.Missing, "no such file or directory")
		b.Return()
		time.Sleep(11 * time.Second)
		wantState(t, k, watchdog.Held, "")
		k.Stop(watchdog.Disarm)
		wantResets(t, b, 0)
	})
}

// The driver has the last word on the timeout.
func TestDriversTimeout(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*watchdogtest.Board)
		want   time.Duration
	}{
		{"15 s at most", func(b *watchdogtest.Board) { b.Longest = 15 * time.Second }, 15 * time.Second},
		{"4 s at most", func(b *watchdogtest.Board) { b.Longest = 4 * time.Second }, 3750 * time.Millisecond},
		{"does not tell", func(b *watchdogtest.Board) { b.Silent = true }, 0},
		{"takes none", func(b *watchdogtest.Board) { b.Longest = time.Millisecond; b.Timeout = 3 * time.Second }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := watchdogtest.NewBoard()
				tt.change(b)
				var need atomic.Pointer[watchdog.Need]
				k := keeper(b, &need)
				time.Sleep(time.Hour)
				if got := k.Status().Timeout; got != tt.want {
					t.Errorf("got a timeout of %v, want %v", got, tt.want)
				}
				k.Stop(watchdog.Disarm)
				wantResets(t, b, 0)
			})
		})
	}
}
