package overcan_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/otatest"
)

// How fast a transfer is in simulated time, on a bus where every frame has all the stuff
// bits that it can have, next to a battery that broadcasts; compared with what the plan said, with
// what ISO-TP allows, and with the share of the bus that was asked for.
func TestRate(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 200_000)
	file := bundleFile(t, release)
	eleven := overcan.Address{TX: 0x7E0, RX: 0x7E8}
	// Bytes a second of consecutive frames alone, 7 bytes each: 135 bits with an identifier
	// of 11 bits, 160 with one of 29.
	limit11, limit29 := 500_000.0/135*7, 500_000.0/160*7
	// The battery sends three frames at once, which take 0.7 ms, behind one of ours of 0.3 ms.
	const late = 1100 * time.Microsecond
	for name, tt := range map[string]struct {
		change   func(*site)
		atLeast  float64 // bytes a second
		atMost   float64 // of the bus, 0 to 1
		quiet    bool    // no battery on the bus
		planOff  float64 // how far the plan may be off, 0 to 1
		lateness time.Duration
	}{
		"all of the bus, 11 bits": {func(s *site) {
			s.line.Address, s.line.Share = eleven, 100
			s.source.ID, s.source.Share, s.source.STmin, s.source.BlockSize = 0x7E0, 100, -1, 255
		}, 0.90 * limit11, 1, true, 0.1, 0},
		"all of the bus, 29 bits": {func(s *site) {
			s.line.Share, s.source.Share, s.source.STmin, s.source.BlockSize = 100, 100, -1, 255
		}, 0.90 * limit29, 1, true, 0.1, 0},
		"as it is by default":                              {func(*site) {}, 4000, 0.5, false, 0.15, late},
		"half of the bus by the tester alone":              {func(s *site) { s.source.Share, s.source.STmin, s.source.BlockSize = 100, -1, 255 }, 0.39 * limit29, 0.5, false, 0.15, late},
		"a tenth of the bus":                               {func(s *site) { s.line.Share = 10 }, 0.07 * limit29, 0.1, false, 0.15, late},
		"a quarter of the bus, because the device says so": {func(s *site) { s.source.Share, s.source.STmin = 25, -1 }, 0.15 * limit29, 0.25, false, 0.2, late},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, release, file, tt.change)
				if !tt.quiet {
					stop := s.bus.Broadcast("battery", 100*time.Millisecond, can.Standard(0x351, 1, 2, 3, 4, 5, 6, 7, 8), can.Standard(0x355, 1, 2, 3, 4), can.Standard(0x356, 1, 2, 3, 4, 5, 6))
					defer stop()
				}
				d := s.tester()
				if _, err := d.Identify(t.Context()); err != nil {
					t.Fatal(err)
				}
				plan := d.Plan(file.Size)
				began := time.Now()
				if err := d.Send(t.Context(), file, push.Tell{}); err != nil {
					t.Fatal(err)
				}
				took := time.Since(began)
				rate := float64(file.Size) / took.Seconds()
				share := s.bus.Share("tester", 5*time.Second) + s.bus.Share("device", 5*time.Second)
				battery := s.bus.Use("battery")
				t.Logf("%v; took %v: %.0f B/s; %.1f %% of the bus; the battery's frames waited %v at most", plan, took.Round(time.Millisecond), rate, 100*share, battery.Waited)
				if rate < tt.atLeast {
					t.Errorf("got %.0f B/s, want at least %.0f", rate, tt.atLeast)
				}
				if off := plan.Time().Seconds()/took.Seconds() - 1; off < -tt.planOff || off > tt.planOff {
					t.Errorf("the plan said %v and it took %v: want at most %.0f %% off", plan.Time(), took, 100*tt.planOff)
				}
				if share > tt.atMost*1.02 {
					t.Errorf("got %.1f %% of the bus, want at most %.0f %%", 100*share, 100*tt.atMost)
				}
				if !tt.quiet && (battery.Frames == 0 || battery.Waited > tt.lateness || battery.Missed > 0) {
					t.Errorf("the battery: %+v, want no frame later than %v", battery, tt.lateness)
				}
				s.check()
			})
		})
	}
}
