package ota_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

func TestReportIsKeptUntilTaken(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "report") {
				return otatest.Fault{Err: errors.New("no carrier"), Did: len(d.Source.Reports) == 0}
			}
			return otatest.Fault{}
		}
		if got := live(t, d); got.Unsent != 1 {
			t.Fatalf("%d reports kept, want 1", got.Unsent)
		}
		first := d.Source.Reports[0]
		d.Disk.OnEffect = nil
		if got := live(t, d); got.Unsent != 0 {
			t.Errorf("%d reports kept, want 0", got.Unsent)
		}
		if got := d.Source.Reports[len(d.Source.Reports)-1]; got != first {
			t.Errorf("delivered again as %+v, first as %+v", got, first)
		}
	})
}

// TestReportsGoOutWhileAnUpdateWaits: the end of one update is told even if the
// next one waits for days.
func TestReportsGoOutWhileAnUpdateWaits(t *testing.T) {
	v102 := otatest.NewFirmware("1.0.2", 21000, true, true)
	device(t, func(t *testing.T, d *otatest.Device) {
		offline := true
		d.Source.Firmware = v101
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if offline && strings.HasPrefix(effect, "report") {
				return otatest.Fault{Err: errors.New("no carrier")}
			}
			return otatest.Fault{}
		}
		live(t, d)
		configure(d, func(c *ota.Config) {
			c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error { return ota.ErrNotNow }
		})
		d.Source.Firmware, offline = v102, false
		if got := live(t, d); got.Status != ota.StatusUpdateAvailable || got.Unsent != 0 {
			t.Errorf("%s with %d unsent reports, want UPDATE_AVAILABLE and none", got.Status, got.Unsent)
		}
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
	}, v101, v102)
}

// Reports go out while a roll back waits, and while a release waits for the next restart.
func TestReportsGoOutWhateverWaits(t *testing.T) {
	for _, back := range []bool{true, false} {
		t.Run(fmt.Sprint("back ", back), func(t *testing.T) {
			v102 := otatest.NewFirmware("1.0.2", 21000, true, true)
			device(t, func(t *testing.T, d *otatest.Device) {
				var offline atomic.Bool
				offline.Store(true)
				d.Source.Firmware = v101
				d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
					if offline.Load() && strings.HasPrefix(effect, "report") {
						return otatest.Fault{Err: errors.New("no carrier")}
					}
					return otatest.Fault{}
				}
				live(t, d)
				if back {
					configure(d, func(c *ota.Config) {
						c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error { return ota.ErrNotNow }
					})
					background(t, d, func(m *ota.Manager) { m.RollBack().Wait(t.Context()); offline.Store(false) })
				} else {
					d.Source.Firmware = v102
					d.Source.Change = func(m *ota.Manifest) { m.NoReboot = true }
					// Not through Device's own Report: that takes a try that stands for a success that does not.
					configure(d, func(c *ota.Config) { c.Source = &plainReporter{&d.Source, &offline} })
					time.AfterFunc(5*time.Minute, func() { offline.Store(false) })
					live(t, d)
				}
				if got := d.Manager().Snapshot(); got.Unsent != 0 {
					t.Errorf("%s: %d reports are held back", got.State, got.Unsent)
				}
			}, v101, v102)
		})
	}
}

type plainReporter struct {
	*otatest.Source
	offline *atomic.Bool
}

func (s *plainReporter) Report(context.Context, ota.Report) error {
	if s.offline.Load() {
		return errors.New("no carrier")
	}
	return nil
}

// A server that takes no reports is not asked all the time.
func TestReportsPauseAfterAFailure(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		asked := 0
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "report") {
				asked++
				return otatest.Fault{Err: errors.New("no carrier")}
			}
			return otatest.Fault{}
		}
		live(t, d)
		if asked < 3 || asked > 12 {
			t.Errorf("asked %d times in 23 minutes, want 10 s doubling", asked)
		}
	})
}
