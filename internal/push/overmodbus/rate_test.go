package overmodbus_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overmodbus"
)

// The limits of FC 16 with 224 bytes in a block, computed by hand from the frames: 253
// characters of 11 bits, two silences and 5 ms.
func TestRTURate(t *testing.T) {
	for baud, want := range map[int]float64{9600: 740, 19200: 1455, 38400: 2764, 57600: 3937, 115200: 6867, 0: 0} {
		if got := overmodbus.RTURate(baud, 11); math.Abs(got-want) > 0.005*want {
			t.Errorf("%d baud: got %.0f B/s, want %.0f", baud, got, want)
		}
	}
}

// rate sends a file and returns how many bytes of it went in a second, from the first
// block to the last.
func rate(t *testing.T, g *rig, f *push.File, window int) float64 {
	t.Helper()
	var begun, ended time.Time
	var from, to int64
	d := g.master(window)
	defer d.Close()
	err := push.Run(t.Context(), d, f, push.Options{StageOnly: true, Tell: func(e push.Event) {
		switch {
		case e.Kind == push.KindProgress && e.Done > 3000 && begun.IsZero(): // the head is verified
			begun, from = e.Time, e.Done
		case e.Kind == push.KindProgress && e.Done > to:
			ended, to = e.Time, e.Done
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.whole(f)
	return float64(to-from) / ended.Sub(begun).Seconds()
}

// A serial line is used to at least 90 % of what it can carry.
func TestSerialRates(t *testing.T) {
	release, f := file(t, 40000)
	for _, baud := range []int{9600, 19200, 38400, 57600, 115200} {
		bubble(t, fmt.Sprint(baud), func(t *testing.T) {
			g := newRig(t, release, func(g *rig) { g.serial, g.exact = baud, true })
			defer g.end()
			// The device of this test takes no time to think.
			got, limit := rate(t, g, f, 1), 224/(224/overmodbus.RTURate(baud, 11)-0.005)
			t.Logf("%d baud: %.0f B/s, %.1f %% of %.0f", baud, got, 100*got/limit, limit)
			if got < 0.9*limit {
				t.Errorf("%d baud: got %.0f B/s, want at least 90 %% of %.0f", baud, got, limit)
			}
		})
	}
}

// Over TCP with 20 ms there and back, the rate grows with the number of blocks that are
// on their way.
func TestWindowScales(t *testing.T) {
	release, f := file(t, 120000)
	one := 0.0
	for _, window := range []int{1, 2, 4, 8, 16, 32} {
		bubble(t, fmt.Sprint(window), func(t *testing.T) {
			g := newRig(t, release, func(g *rig) { g.delay = 10 * time.Millisecond })
			defer g.end()
			got := rate(t, g, f, window)
			if window == 1 {
				one = got
				if want := 224 / 0.020; math.Abs(got-want) > 0.02*want {
					t.Errorf("got %.0f B/s with one block at a time, want %.0f: a block in 20 ms", got, want)
				}
			}
			t.Logf("window %d: %.0f B/s, x %.2f", window, got, got/one)
			if got < 0.9*float64(window)*one {
				t.Errorf("window %d: got %.2f times the rate of one block at a time, want at least %.1f", window, got/one, 0.9*float64(window))
			}
		})
	}
}
