package isotp_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
)

// TestRate: on a bus in simulated time, all of whose frames are as long as they can be,
// at least nine tenths of the rate that the frames and pauses alone allow is reached.
func TestRate(t *testing.T) {
	for _, c := range []struct {
		name    string
		bitrate int
		config  isotp.Config
		limit   float64 // bytes/s
	}{
		{"500 kbit/s", 500_000, isotp.Config{}, 7 / 135e-6 / 2},
		{"250 kbit/s", 250_000, isotp.Config{FrameTime: 540 * time.Microsecond}, 7 / 135e-6 / 4},
		// Nine frames for each block: the last one is flow control.
		{"blocks of 8", 500_000, isotp.Config{BlockSize: 8}, 8 * 7 / (9 * 270e-6)},
		{"pauses of 1 ms", 500_000, isotp.Config{STmin: time.Millisecond}, 7 / 1.27e-3},
		{"pauses of 1 ms, blocks of 8", 500_000, isotp.Config{STmin: time.Millisecond, BlockSize: 8}, 8 * 7 / (7*1.27e-3 + 2*270e-6)},
		{"1000 frames/s", 500_000, isotp.Config{FramesPerSecond: 1000}, 7000},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const pdus, size = 20, 4095
				bus := bustest.NewCAN(bustest.CANConfig{Bitrate: c.bitrate, Worst: true})
				defer bus.Close()
				tester, ecu := pair(t, bus, c.config)
				start := time.Now()
				go func() {
					for range pdus {
						if err := tester.Send(t.Context(), make([]byte, size)); err != nil {
							t.Error(err)
						}
					}
				}()
				for range pdus {
					if _, err := ecu.Receive(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				got := pdus * size / time.Since(start).Seconds()
				t.Logf("%.0f bytes/s, %.1f %% of %.0f", got, 100*got/c.limit, c.limit)
				if got < 0.9*c.limit || got > 1.005*c.limit {
					t.Errorf("got %.0f bytes/s, want nine tenths of %.0f or more, and hardly more than that", got, c.limit)
				}
			})
		})
	}
}

func pair(t *testing.T, bus *bustest.CAN, c isotp.Config) (tester, ecu *isotp.Channel) {
	t.Helper()
	open := func(name string, a isotp.Address) *isotp.Channel {
		m := isotp.NewMux(bus.Join(name))
		t.Cleanup(func() { m.Close() })
		conn, err := m.Open(a, c)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	a := isotp.Normal(0x7E0, 0x7E8)
	return open("tester", a), open("ecu", a.Peer())
}

// TestShare: what goes at a pace leaves the rest of the bus to a battery, whose frames
// never wait for more than one of ours, as its identifiers are lower.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := bustest.NewCAN(bustest.CANConfig{Worst: true})
		defer bus.Close()
		tester, ecu := pair(t, bus, isotp.Config{STmin: time.Millisecond, BlockSize: 8})
		defer bus.Broadcast("battery", 100*time.Millisecond, can.Standard(0x351, 1, 2, 3, 4, 5, 6, 7, 8))()
		go func() {
			for range 5 {
				if err := tester.Send(t.Context(), make([]byte, 4095)); err != nil {
					t.Error(err)
				}
			}
		}()
		for range 5 {
			if _, err := ecu.Receive(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := bus.Share("tester", 100*time.Millisecond); got > 0.3 {
			t.Errorf("the tester had %.0f %% of the bus, want at most 30", 100*got)
		}
		use := bus.Use("battery")
		if one := bus.Time(can.Standard(0x7E0, make([]byte, 8)...)); use.Waited > 2*one || use.Missed > 0 {
			t.Errorf("frames of the battery waited %v and %d were missed, want at most %v, half of it on the bus itself, and none", use.Waited, use.Missed, 2*one)
		}
	})
}
