package ota_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

// bootloader is a fake that counts calls of MarkGood, and says of itself what it is told to.
type bootloader struct {
	ota.Slots
	marks *[]ota.State
	state func() ota.State
	fail  *int // MarkGood fails so often
	seen  ota.Rollback
	err   error
	trial bool
}

func (b bootloader) MarkGood(ctx context.Context) error {
	*b.marks = append(*b.marks, b.state())
	if b.fail != nil && *b.fail > 0 {
		*b.fail--
		return errors.New("flash is busy")
	}
	return b.Slots.MarkGood(ctx)
}

func (b bootloader) Booted(ctx context.Context) (ota.Boot, error) {
	boot, err := b.Slots.Booted(ctx)
	boot.Trial = boot.Trial || b.trial
	return boot, err
}

func (b bootloader) Probe(context.Context) (ota.Rollback, error) { return b.seen, b.err }

// Bootloaders that count every start hear at each start that the slot is still
// good, and never of one on trial before it is proven.
func TestRunningSlotIsKeptGood(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var marks []ota.State
		configure(d, func(c *ota.Config) {
			c.Slots = bootloader{Slots: c.Slots, marks: &marks, state: func() ota.State { return d.Manager().Snapshot().State }}
			c.ValidationTime = 10 * time.Second
		})
		live(t, d)
		if want := []ota.State{ota.Idle, ota.Trial}; !slices.Equal(marks, want) {
			t.Errorf("marked good in states %q, want %q", marks, want)
		}
		marks = nil
		powerCycle(t, d, otatest.DropAll)
		live(t, d)
		if want := []ota.State{ota.Idle}; !slices.Equal(marks, want) {
			t.Errorf("after a power cut: marked good in states %q, want %q", marks, want)
		}
	})
}

// A bootloader that could not be told is told again.
func TestKeepingGoodIsTriedAgain(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var marks []ota.State
		fail := 2
		d.Source.Withdrawn = true
		configure(d, func(c *ota.Config) {
			c.Slots = bootloader{Slots: c.Slots, marks: &marks, state: func() ota.State { return ota.Idle }, fail: &fail}
			c.CheckInterval = 0
		})
		live(t, d)
		if len(marks) != 3 {
			t.Errorf("marked good %d times, want 2 that failed and 1", len(marks))
		}
	})
}

// What the bootloader was seen to do is shown, and nothing is installed where a
// release that fails would stay, unless the owner says so.
func TestProbe(t *testing.T) {
	broken := ota.Rollback{State: ota.RollbackBroken, Why: "the counter did not move"}
	for _, test := range []struct {
		name        string
		seen        ota.Rollback
		err         error
		change      func(*ota.Config)
		want        ota.Rollback
		wantRunning string
	}{
		{name: "proven", seen: ota.Rollback{State: ota.RollbackProven, Why: "3 to 2"}, want: ota.Rollback{State: ota.RollbackProven, Why: "3 to 2"}, wantRunning: "1.0.1"},
		{name: "broken", seen: broken, want: broken, wantRunning: "1.0.0"},
		{name: "broken, and the owner says so", seen: broken, change: func(c *ota.Config) { c.Unprotected = true }, want: broken, wantRunning: "1.0.1"},
		{name: "broken, and rollback is not wanted", seen: broken, change: func(c *ota.Config) { c.NoRollback = true }, want: broken, wantRunning: "1.0.1"},
		{name: "cannot be read", seen: ota.Rollback{State: ota.RollbackProven}, err: errors.New("no such device"),
			want: ota.Rollback{State: ota.RollbackUnknown, Why: "no such device"}, wantRunning: "1.0.1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var marks []ota.State
				configure(d, func(c *ota.Config) {
					c.Slots = bootloader{Slots: c.Slots, marks: &marks, state: func() ota.State { return "" }, seen: test.seen, err: test.err}
					if test.change != nil {
						test.change(c)
					}
				})
				got := live(t, d)
				if got.Bootloader != test.want {
					t.Errorf("shows %+v, want %+v", got.Bootloader, test.want)
				}
				wantRunning(t, d, test.wantRunning)
				if test.wantRunning == "1.0.0" {
					if d.Source.Sent > 0 || !strings.Contains(got.Reason, "the counter did not move") || got.Code != ota.ErrIncompatible {
						t.Errorf("%d bytes fetched, code %v, reason %q", d.Source.Sent, got.Code, got.Reason)
					}
				}
			})
		})
	}
}

// unreadable is a store that cannot be read.
type unreadable struct{ ota.Store }

func (unreadable) Load() (ota.Record, error) {
	return ota.Record{}, errors.New("both copies are damaged")
}

// Firmware on trial that cannot read the record goes back: it could never be
// proven. The old firmware stays where it is.
func TestUnreadableRecord(t *testing.T) {
	for _, test := range []struct {
		name     string
		trial    bool
		change   func(*ota.Config)
		restarts bool
	}{
		{"on trial", true, nil, true},
		{"not on trial", false, nil, false},
		{"on trial, and rollback is not wanted", true, func(c *ota.Config) { c.NoRollback = true }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var marks []ota.State
				var restarted []time.Duration
				start := time.Now()
				configure(d, func(c *ota.Config) {
					c.Store = unreadable{c.Store}
					c.Slots = rebooted{bootloader{Slots: c.Slots, marks: &marks, state: func() ota.State { return "" }, trial: test.trial},
						func() { restarted = append(restarted, time.Since(start)) }}
					if test.change != nil {
						test.change(c)
					}
				})
				live(t, d)
				if (len(restarted) > 0) != test.restarts {
					t.Fatalf("restarted %d times, want any: %v", len(restarted), test.restarts)
				}
				if test.restarts && restarted[0] < time.Minute { // RollbackTimeout of a Device
					t.Errorf("went back after %v, want 1m0s at least: the medium may only be slow", restarted[0])
				}
				if len(marks) > 0 {
					t.Error("marked good without a record")
				}
			})
		})
	}
}

// rebooted notes restarts, and does not restart.
type rebooted struct {
	bootloader
	note func()
}

func (r rebooted) Reboot(context.Context) error { r.note(); return nil }

// Firmware that does not find the record, because it does not mount its partition,
// is on trial all the same: the bootloader says so. It is marked good once it is
// healthy, left if it is not, and writes nothing over the slot to return to.
func TestTrialWithoutARecord(t *testing.T) {
	for _, test := range []struct {
		name     string
		change   func(*ota.Config)
		confirm  bool
		marked   bool
		restarts bool
	}{
		{name: "healthy", marked: true},
		{name: "not healthy", change: func(c *ota.Config) {
			c.Healthy = func(context.Context) error { return errors.New("no battery") }
		}, restarts: true},
		{name: "not healthy, and rollback is not wanted", change: func(c *ota.Config) {
			c.Healthy = func(context.Context) error { return errors.New("no battery") }
			c.NoRollback = true
		}, marked: true},
		{name: "nobody to ask", change: func(c *ota.Config) { c.Healthy = nil }, restarts: true},
		{name: "a person confirms", change: func(c *ota.Config) { c.Healthy = nil }, confirm: true, marked: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var marks []ota.State
				var markedAt time.Duration
				var restarted []time.Duration
				start := time.Now()
				configure(d, func(c *ota.Config) {
					c.ValidationTime = 10 * time.Second
					c.Slots = rebooted{bootloader{Slots: c.Slots, marks: &marks, trial: true, state: func() ota.State {
						if len(marks) == 0 {
							markedAt = time.Since(start)
						}
						return d.Manager().Snapshot().State
					}}, func() { restarted = append(restarted, time.Since(start)) }}
					if test.change != nil {
						test.change(c)
					}
				})
				if test.confirm {
					background(t, d, func(m *ota.Manager) {
						time.Sleep(20 * time.Second)
						if err := m.Confirm().Wait(t.Context()); err != nil {
							t.Error(err)
						}
					})
				} else {
					live(t, d)
				}
				if (len(marks) > 0) != test.marked || (len(restarted) > 0) != test.restarts && !test.marked {
					t.Fatalf("marked good in %q, restarted after %v; want marked %v, restarted %v", marks, restarted, test.marked, test.restarts)
				}
				if test.name == "healthy" && (marks[0] != ota.Idle && marks[0] != ota.Available || markedAt < 10*time.Second) {
					t.Errorf("marked good in %q after %v, want after the validation time", marks, markedAt)
				}
				if test.restarts && restarted[0] < time.Minute {
					t.Errorf("went back after %v, want 1m0s at least", restarted[0])
				}
				if !test.marked && d.Source.Sent > 0 {
					t.Errorf("%d bytes fetched while the other slot is the one to return to", d.Source.Sent)
				}
			})
		})
	}
}
