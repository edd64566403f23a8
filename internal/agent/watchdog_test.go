package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/watchdog"
	"github.com/interlock-energy/ota/internal/watchdog/watchdogtest"
)

// bootedSlots is a fake of slots that only say what is booted.
type bootedSlots struct {
	ota.Slots
	boot ota.Boot
	err  error
}

func (s bootedSlots) Booted(context.Context) (ota.Boot, error) { return s.boot, s.err }

// savedStore is a fake of a store that always loads the same.
type savedStore struct {
	ota.Store
	r   ota.Record
	err error
}

func (s savedStore) Load() (ota.Record, error) { return s.r, s.err }

// guarded is an agent with a watchdog and a fake board, whose manager has not begun.
// Its trials may take 5 min, and with what is honest beyond that 6 min 10 s.
func guarded(change func(*Config)) (*Agent, *watchdogtest.Board) {
	b := watchdogtest.NewBoard()
	a := &Agent{counters: newCounters(time.Now()), cfg: Config{Watchdog: Watchdog{Device: "/dev/watchdog"}}, log: slog.New(slog.DiscardHandler),
		slots: bootedSlots{err: errors.New("not known")}}
	if change != nil {
		change(&a.cfg)
	}
	a.alive.limit = defaultMaxCall
	a.dog = a.newDog(b.Open)
	return a, b
}

// begin is what the manager does first: it asks what is booted, and loads the record.
func begin(a *Agent, boot ota.Boot, r *ota.Record) {
	a.slots = bootedSlots{boot: boot}
	watchedSlots{a.slots, &a.alive}.Booted(context.Background())
	if r != nil {
		watchedStore{savedStore{r: *r}, a}.Load()
	} else {
		watchedStore{savedStore{err: errors.New("damaged")}, a}.Load()
	}
}

func record(state ota.State) *ota.Record {
	return &ota.Record{Format: 1, State: state, Slot: "B", OldSlot: "A", Release: &ota.Manifest{Version: "1.1.0"}}
}

var (
	inOld = ota.Boot{Slot: "A", Other: "B", ID: "1"}
	inNew = ota.Boot{Slot: "B", Other: "A", ID: "2"}
)

// A trial without a verdict ends in a restart, and nothing else does.
func TestWatchdogEndsTrials(t *testing.T) {
	tried := inNew
	tried.Trial = true
	for _, tt := range []struct {
		name   string
		boot   ota.Boot
		record *ota.Record // nil: it cannot be loaded
		change func(*Config)
		reset  bool
	}{
		{"on trial", inNew, record(ota.Trial), nil, true},
		{"on trial, with hold: trial", inNew, record(ota.Trial), func(c *Config) { c.Watchdog.Hold = holdTrial }, true},
		{"restarted into the new slot, and the record is not saved", inNew, record(ota.Activating), nil, true},
		{"booted by somebody else's hand", inNew, record(ota.Staged), nil, true},
		{"the rollback does not come", inNew, record(ota.RollBack), nil, true},
		{"on trial, and the record cannot be loaded", tried, nil, nil, true},
		{"rollback is switched off", inNew, record(ota.Trial), func(c *Config) { c.AllowRollback = new(bool) }, false},
		{"not on trial, and the record cannot be loaded", inOld, nil, nil, false},
		{"idle", inOld, record(ota.Idle), nil, false},
		{"the new slot is good", inNew, record(ota.Idle), nil, false},
		{"waits for the battery", inOld, record(ota.Staged), nil, false},
		{"waits for the next restart", inOld, record(ota.Activating), nil, false},
		{"back in the old slot", inOld, record(ota.RollBack), nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := guarded(tt.change)
				letGo := a.holdDog(t.Context())
				time.Sleep(15 * time.Second)
				begin(a, tt.boot, tt.record)
				time.Sleep(6*time.Minute + 10*time.Second)
				if b.Resets() != 0 {
					t.Error("reset before a trial could have ended")
				}
				time.Sleep(50 * time.Second)
				if got := b.Resets() > 0; got != tt.reset {
					t.Errorf("reset: got %v, want %v", got, tt.reset)
				}
				if s := a.Watchdog(); tt.reset && (s.State != watchdog.Starved || !strings.Contains(s.Why, "no verdict on slot B after 6m10s")) {
					t.Errorf("got %+v", s)
				}
				time.Sleep(24 * time.Hour)
				if got := b.Resets() > 0; got != tt.reset {
					t.Errorf("reset within a day: got %v, want %v", got, tt.reset)
				}
				letGo()
			})
		})
	}
}

// Each trial has its own time, and a good one ends it.
func TestWatchdogTimesEachTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := guarded(nil)
		letGo := a.holdDog(t.Context())
		for _, id := range []string{"1", "2", "3"} {
			begin(a, ota.Boot{Slot: "B", Other: "A", ID: id}, record(ota.Trial))
			time.Sleep(5 * time.Minute)
		}
		begin(a, ota.Boot{Slot: "B", Other: "A", ID: "3"}, record(ota.Idle))
		time.Sleep(time.Hour)
		if b.Resets() != 0 {
			t.Error("reset although no trial took too long")
		}
		letGo()
	})
}

func TestWatchdogStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := guarded(nil)
		letGo := a.holdDog(t.Context())
		begin(a, inOld, record(ota.Fetching))
		time.Sleep(time.Hour)
		end := a.alive.enter("writing the slot")
		time.Sleep(10 * time.Minute)
		if b.Resets() != 0 {
			t.Error("reset although max_call is not over")
		}
		time.Sleep(41 * time.Second)
		if b.Resets() != 1 {
			t.Error("a call that takes more than max_call resets nothing")
		}
		if w := a.Watchdog(); !strings.Contains(w.Why, "writing the slot") {
			t.Errorf("got %q, want what it is stuck in", w.Why)
		}
		end()
		letGo()
	})
}

// The start may take as long as a trial, and no longer.
func TestWatchdogStartHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := guarded(nil)
		letGo := a.holdDog(t.Context())
		if !b.IsOpen() {
			t.Error("it is not held at the very start")
		}
		time.Sleep(6*time.Minute + 10*time.Second)
		if b.Resets() != 0 {
			t.Error("reset too early")
		}
		time.Sleep(41 * time.Second)
		if b.Resets() != 1 {
			t.Error("an agent that never comes to its work resets nothing")
		}
		letGo()
	})
}

// An error is an answer: a device that is not on trial is not restarted again and again.
func TestWatchdogBootUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := guarded(nil)
		letGo := a.holdDog(t.Context())
		watchedSlots{a.slots, &a.alive}.Booted(t.Context())
		time.Sleep(24 * time.Hour)
		if b.Resets() != 0 {
			t.Error("reset because boot control cannot be read")
		}
		letGo()
	})
}

func TestWatchdogHandedOver(t *testing.T) {
	for _, tt := range []struct {
		name   string
		boot   ota.Boot
		record *ota.Record
		run    bool
		want   bool // handed over
	}{
		{"idle", inOld, record(ota.Idle), false, true},
		{"fetching", inOld, record(ota.Fetching), false, true},
		{"about to restart", inOld, record(ota.Activating), false, true},
		{"about to restart, and the agent is the bootloader", inOld, record(ota.Activating), true, false},
		{"on trial", inNew, record(ota.Trial), false, false},
		{"marked good", inNew, record(ota.Idle), false, true},
		{"the record cannot be loaded", inOld, nil, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := guarded(func(c *Config) { c.Watchdog.Hold, c.Slot.Run = holdTrial, tt.run })
				letGo := a.holdDog(t.Context())
				time.Sleep(time.Minute)
				if !b.IsOpen() {
					t.Error("handed over before anything is known")
				}
				begin(a, tt.boot, tt.record)
				time.Sleep(time.Minute)
				if got := !b.IsOpen(); got != tt.want {
					t.Errorf("handed over: got %v, want %v", got, tt.want)
				}
				time.Sleep(3 * time.Minute)
				letGo()
				if b.Resets() != 0 {
					t.Error("reset")
				}
			})
		})
	}
}

// The agent that ends leaves the watchdog armed where nobody is left to judge the
// firmware, and nowhere else.
// markedSlots is a fake of slots on trial that can be marked good.
type markedSlots struct{ bootedSlots }

func (markedSlots) MarkGood(context.Context) error { return nil }

// What was on trial by the bootloader only is not any more once it is marked good.
func TestWatchdogOfAProvenSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := guarded(nil)
		letGo := a.holdDog(t.Context())
		tried := inNew
		tried.Trial = true
		begin(a, tried, &ota.Record{Format: 1, State: ota.Idle})
		if !a.onTrial() {
			t.Error("got not on trial, and the bootloader says it")
		}
		if err := (watchedSlots{markedSlots{}, &a.alive}).MarkGood(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		if a.onTrial() || b.Resets() != 0 {
			t.Errorf("on trial %v after it was marked good, %d resets", a.onTrial(), b.Resets())
		}
		letGo()
	})
}

func TestWatchdogAtTheEnd(t *testing.T) {
	const never = 0
	tried := inNew
	tried.Trial = true
	deferred := record(ota.Activating)
	deferred.Release.NoReboot = true
	for _, tt := range []struct {
		name   string
		boot   *ota.Boot // nil: it cannot be found out
		record *ota.Record
		change func(*Config)
		early  bool // it ends before the manager has begun
		reset  time.Duration
	}{
		{"idle", &inOld, record(ota.Idle), nil, false, never},
		{"fetching", &inOld, record(ota.Fetching), nil, false, never},
		{"on trial", &inNew, record(ota.Trial), nil, false, 30 * time.Second},
		{"on trial, and rollback is switched off", &inNew, record(ota.Trial), func(c *Config) { c.AllowRollback = new(bool) }, false, never},
		{"going back", &inNew, record(ota.RollBack), nil, false, 30 * time.Second},
		{"came back", &inOld, record(ota.RollBack), nil, false, never},
		{"on trial, and the record cannot be loaded", &tried, nil, nil, false, 30 * time.Second},
		{"on trial, and the record has been lost", &tried, &ota.Record{Format: 1, State: ota.Idle}, nil, false, 30 * time.Second},
		{"restarting into the new slot", &inOld, record(ota.Activating), nil, false, watchdog.ShutdownTime},
		{"waiting for the next restart", &inOld, deferred, nil, false, never},
		{"starting, on trial", &tried, nil, nil, true, 30 * time.Second},
		{"starting, not on trial", &inOld, nil, nil, true, never},
		{"starting, and nobody knows what is booted", nil, nil, nil, true, never},
		{"starting, and the agent is the bootloader", &tried, nil, func(c *Config) { c.Slot.Run = true }, true, never},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := guarded(tt.change)
				letGo := a.holdDog(t.Context())
				time.Sleep(time.Minute)
				if tt.boot != nil && tt.early {
					a.slots = bootedSlots{boot: *tt.boot}
				} else if tt.boot != nil {
					begin(a, *tt.boot, tt.record)
				}
				time.Sleep(time.Second)
				letGo()
				if b.IsOpen() {
					t.Error("it is still open")
				}
				if tt.reset != never {
					time.Sleep(tt.reset - time.Second)
					if b.Resets() != 0 {
						t.Errorf("reset before %v", tt.reset)
					}
					time.Sleep(2 * time.Second)
				} else {
					time.Sleep(24 * time.Hour)
				}
				if got, want := b.Resets(), min(int(tt.reset), 1); got != want {
					t.Errorf("got %d resets, want %d", got, want)
				}
			})
		})
	}
}

// What systemd holds is no warning; what is configured and missing is.
func TestWatchdogWarnings(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{syscall.EBUSY, ""},
		{syscall.ENOENT, "the hardware watchdog is missing: open the watchdog /dev/watchdog: no such file or directory"},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := guarded(func(c *Config) { c.Battery.Reader = "none" })
			b.OpenErr = tt.err
			letGo := a.holdDog(t.Context())
			got := ""
			for _, w := range a.Warnings() {
				if strings.Contains(w, "watchdog") {
					got += w
				}
			}
			if got != tt.want {
				t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
			}
			letGo()
		})
	}
	if s := (&Agent{}).Watchdog(); s != nil {
		t.Errorf("without one: got %+v, want nil", s)
	}
}

// The whole agent, as the bootloader of a factory-new device: held from the start,
// fed while the firmware runs, and let go of in order.
func TestWatchdogOfAnAgent(t *testing.T) {
	dir := t.TempDir()
	_, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	factory := "#!/bin/sh\necho interlock-firmware 1.0.0\nwhile read -r line; do :; done\nexit 0\n"
	for name, content := range map[string]string{"key.pem": string(public), "factory.img": factory, "interlockd.yaml": `
device: {id: desk-01, product: demo}
state_dir: state
source: {media: {path: media}}
keys: {files: [key.pem]}
battery: {reader: none}
slot: {kind: file, dir: slots, run: true, factory: factory.img}
control: {socket: none}
watchdog: {device: /dev/watchdog, timeout: 20s, hold: trial}
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := Load(filepath.Join(dir, "interlockd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if a.dog == nil || a.Watchdog().Device != "/dev/watchdog" {
		t.Fatalf("got %+v", a.Watchdog())
	}
	board := watchdogtest.NewBoard()
	a.dog = a.newDog(board.Open)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()
	for look := time.Tick(10 * time.Millisecond); a.Snapshot().Slot == ""; {
		<-look
	}
	if w := a.Watchdog(); w.State != watchdog.Held || w.Timeout != 20*time.Second || !board.IsOpen() {
		t.Errorf("got %+v, want it held", w)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if w := a.Watchdog(); w.State != watchdog.Released || board.IsOpen() || board.Resets() != 0 {
		t.Errorf("got %+v, want it released", w)
	}
}
