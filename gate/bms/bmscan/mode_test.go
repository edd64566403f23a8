package bmscan_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmscan"
)

// TestModeStops: the mode has a frame of its own, and what it said last is not what the
// battery does once it has stopped, although all others go on.
func TestModeStops(t *testing.T) {
	v := values()
	v[broadcast.Modules] = 1
	all := frames(t, "growatt-lv", broadcast.Battery{Values: v, Mode: broadcast.ModeIdle})
	b := newBus()
	listen(t, bmscan.Config{Profile: "growatt-lv", Silent: true}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
		b.say(all...)
		for second := range 8 {
			want := bms.ModeStandby
			if second > 5 {
				want = ""
			}
			if got := read(t, l).Mode; got != want {
				t.Errorf("%d s after the frame: got %q, want %q", second, got, want)
			}
			time.Sleep(time.Second)
			b.say(without(all, 0x311)...)
			synctest.Wait()
		}
	})
}
