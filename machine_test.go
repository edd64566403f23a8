package ota_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

// wrapped lets a test stand between the machine and its slots.
type wrapped struct {
	ota.Slots
	try, good, reboot func(next func() error) error
}

func (w *wrapped) Try(ctx context.Context, slot string) error {
	next := func() error { return w.Slots.Try(ctx, slot) }
	if w.try == nil {
		return next()
	}
	return w.try(next)
}

func (w *wrapped) MarkGood(ctx context.Context) error {
	next := func() error { return w.Slots.MarkGood(ctx) }
	if w.good == nil {
		return next()
	}
	return w.good(next)
}

func (w *wrapped) Reboot(ctx context.Context) error {
	next := func() error { return w.Slots.Reboot(ctx) }
	if w.reboot == nil {
		return next()
	}
	return w.reboot(next)
}

// A status of failure goes when the cause goes.
func TestStatusAfterTheStoreWorksAgain(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.Withdrawn = true
		failed := false
		configure(d, func(c *ota.Config) {
			c.StartupDelay, c.CheckInterval = -1, 0
			c.Store = &flaky{Store: c.Store, failed: &failed}
		})
		if got := live(t, d); got.Status != ota.StatusIdle {
			t.Errorf("%s %q, want IDLE: the store works again", got.Status, got.Reason)
		}
	})
}

type flaky struct {
	ota.Store
	failed *bool
}

func (f *flaky) Load() (ota.Record, error) {
	if !*f.failed {
		*f.failed = true
		return ota.Record{}, errors.New("not mounted yet")
	}
	return f.Store.Load()
}

// A damaged or foreign record is an error, no crash loop.
func TestRecordWithoutRelease(t *testing.T) {
	for _, state := range []ota.State{ota.Available, ota.Fetching, ota.Staged, ota.Activating, ota.Trial, ota.RollBack} {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.Store = &fixed{ota.Record{Format: 1, State: state, Slot: "B"}} })
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("%s: panic: %v", state, p)
				}
			}()
			live(t, d)
		})
	}
}

type fixed struct{ r ota.Record }

func (f *fixed) Load() (ota.Record, error) { return f.r, nil }

func (f *fixed) Save(r ota.Record) error { f.r = r; return nil }

var agentDies = &otatest.PowerCut{Cut: otatest.Cut{Agent: true}}

// A record of a newer agent is not touched.
func TestNewerRecordIsNotTouched(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		st := &fixed{ota.Record{Format: 2, State: ota.Idle}}
		configure(d, func(c *ota.Config) { c.Store = st })
		if got := live(t, d); got.Status != ota.StatusFailed || !strings.Contains(got.Reason, "format 2") || st.r.Format != 2 {
			t.Errorf("%s %q, the store has format %d", got.Status, got.Reason, st.r.Format)
		}
	})
}

// Slots that do not know which one runs are not written.
func TestSlotsThatDoNotKnow(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Slots = oneSlot{c.Slots} })
		if got := live(t, d); got.Status != ota.StatusFailed || d.Source.Sent != 0 {
			t.Errorf("%s with %d bytes fetched", got.Status, d.Source.Sent)
		}
	})
}

type oneSlot struct{ ota.Slots }

func (s oneSlot) Booted(ctx context.Context) (ota.Boot, error) {
	b, err := s.Slots.Booted(ctx)
	b.Other = b.Slot
	return b, err
}

// Slots refuse an image for good, although it is what the manifest says. It is read
// again, and then that is the end of it: the application is not suspended for ever.
func TestImageThatTheSlotsRefuse(t *testing.T) {
	for _, refusals := range []int{1, 1000} {
		t.Run(fmt.Sprint(refusals), func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				asked := 0
				configure(d, func(c *ota.Config) {
					c.Slots = &wrapped{Slots: c.Slots, try: func(next func() error) error {
						if asked++; asked > refusals {
							return next()
						}
						return fmt.Errorf("%w: no application", ota.ErrValidation)
					}}
				})
				live(t, d)
				if refusals == 1 {
					wantRunning(t, d, "1.0.1")
					return
				}
				wantRunning(t, d, "1.0.0")
				wantReport(t, d, ota.Failed, ota.ErrValidation, "no application")
				if asked != 2 || d.Suspended {
					t.Errorf("asked %d times, want 2; suspended: %v", asked, d.Suspended)
				}
			})
		})
	}
}
