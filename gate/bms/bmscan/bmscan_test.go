package bmscan_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmscan"
)

// TestReading: every field of a reading, each value of the time of its frame.
func TestReading(t *testing.T) {
	b := newBus()
	listen(t, bmscan.Config{}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
		begin := time.Now()
		all := frames(t, "victron", broadcast.Battery{Values: values(), Alarms: []string{"low voltage"}, Warnings: []string{"high temperature"}})
		for _, f := range all { // a second apart
			time.Sleep(time.Second)
			b.say(f)
		}
		of := func(id uint32) time.Time {
			i := slices.IndexFunc(all, func(f can.Frame) bool { return f.ID == id })
			return begin.Add(time.Duration(i+1) * time.Second)
		}
		signal := func(v float64, id uint32, cycle time.Duration) bms.Signal {
			return bms.Signal{Value: v, At: of(id), Cycle: cycle}
		}
		got := read(t, l)
		want := bms.Reading{
			Source: "can0", Valid: true, At: of(0x379), Positive: bms.Charging, Beat: &bms.Beat{Count: got.Beat.Count, Within: time.Minute},
			Signals: map[bms.Quantity]bms.Signal{
				bms.SoC: signal(62, 0x355, time.Second), bms.SoH: signal(99, 0x355, time.Second), bms.Voltage: signal(52.8, 0x356, time.Second),
				bms.Current: signal(-1.5, 0x356, time.Second), bms.TemperatureMin: signal(21, 0x373, time.Second), bms.TemperatureMax: signal(24, 0x373, time.Second),
				bms.CellMin: signal(3.297, 0x373, time.Second), bms.CellMax: signal(3.304, 0x373, time.Second), bms.Capacity: signal(200, 0x379, 0),
			},
			Alarms: []string{"low voltage"}, Warnings: []string{"high temperature"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("want -, got +\n%s", diff)
		}

		b.say(all...) // the same
		if again := read(t, l).Beat.Count; again != got.Beat.Count {
			t.Errorf("the same again: the heartbeat went from %d to %d, want it to stand still", got.Beat.Count, again)
		}
		v := values()
		v[broadcast.Current] = -1.6
		b.say(frames(t, "victron", broadcast.Battery{Values: v})...) // without the alarm and the warning, and another current
		if again := read(t, l).Beat.Count; again != got.Beat.Count+2 {
			t.Errorf("two frames that changed: the heartbeat went from %d to %d, want 2 more", got.Beat.Count, again)
		}
	})
}

// TestModes: the modes of every profile that has any.
func TestModes(t *testing.T) {
	for _, tt := range []struct {
		profile string
		mode    broadcast.Mode
		want    bms.Mode
	}{
		{"pylon-hv", broadcast.ModeSleep, bms.ModeOff}, {"pylon-hv", broadcast.ModeIdle, bms.ModeStandby},
		{"pylon-hv", broadcast.ModeCharging, bms.ModeRunning}, {"pylon-hv", broadcast.ModeDischarging, bms.ModeRunning},
		{"growatt-lv", broadcast.ModeIdle, bms.ModeStandby}, {"growatt-lv", broadcast.ModeCharging, bms.ModeRunning},
		{"growatt-lv", broadcast.ModeDischarging, bms.ModeRunning}, {"growatt-lv", broadcast.ModeUpdating, bms.ModeBusy},
		{"original", "state 3", ""}, {"victron", broadcast.ModeIdle, ""},
	} {
		v := values()
		v[broadcast.Modules] = 1
		if tt.profile == "pylon-hv" {
			v[broadcast.Voltage] = 400
		}
		b := newBus()
		listen(t, bmscan.Config{Profile: tt.profile, Silent: true}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
			b.say(frames(t, tt.profile, broadcast.Battery{Values: v, Mode: tt.mode})...)
			if got := read(t, l).Mode; got != tt.want {
				t.Errorf("%s, %s: got %q, want %q", tt.profile, tt.mode, got, tt.want)
			}
		})
	}
}

// TestIncomplete: what has not come is no value, and is named; so is an average that
// stands for the coldest and the hottest.
func TestIncomplete(t *testing.T) {
	b := newBus()
	listen(t, bmscan.Config{}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
		const average = "the temperatures are an average: the coldest and the hottest cells are not known"
		all := frames(t, "victron", broadcast.Battery{Values: values()})
		want := func(has bool, q bms.Quantity, alarms bool, warnings ...string) {
			t.Helper()
			got := read(t, l)
			if _, ok := got.Signals[q]; ok != has || got.NoAlarms == alarms || !slices.Equal(got.Warnings, warnings) {
				t.Errorf("got %v, alarms %v and warnings %q, want %s %v, alarms %v and warnings %q", got.Signals, !got.NoAlarms, got.Warnings, q, has, alarms, warnings)
			}
		}
		b.say(without(all, 0x355, 0x356, 0x35A, 0x373)...)
		want(false, bms.SoC, false, "frames that have not come: 355, 356")
		b.say(without(all, 0x356, 0x35A, 0x373)...)
		want(true, bms.SoC, false, "frames that have not come: 356")
		b.say(without(all, 0x35A, 0x373)...)
		want(true, bms.Current, false, average)
		b.say(without(all, 0x373)...)
		want(true, bms.TemperatureMin, true, average)
		b.say(all...)
		want(true, bms.CellMin, true)
	})
}

// TestAlarms: that alarms stop coming, or come in frames that make no sense, is an alarm
// itself: nobody knows what is raised now.
func TestAlarms(t *testing.T) {
	b := newBus()
	listen(t, bmscan.Config{}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
		all := frames(t, "victron", broadcast.Battery{Values: values()})
		quiet := without(all, 0x35A)
		want := func(alarms ...string) {
			t.Helper()
			if got := read(t, l).Alarms; !slices.Equal(got, alarms) {
				t.Errorf("%v: got alarms %q, want %q", time.Now(), got, alarms)
			}
		}
		known := func(want bool) {
			t.Helper()
			if got := !read(t, l).NoAlarms; got != want {
				t.Errorf("alarms are known: got %v, want %v", got, want)
			}
		}
		b.say(quiet...)
		want()
		known(false) // a battery that never tells of any is not alarming, and cannot be relied on either
		b.say(all...)
		want()
		known(true)
		for range 5 {
			time.Sleep(time.Second)
			b.say(quiet...)
		}
		want() // five seconds
		time.Sleep(time.Second)
		b.say(quiet...)
		want("the frames with alarms have stopped coming")
		b.say(all...)
		want()
		b.say(can.Standard(0x35A, 0x10)) // too short
		want("the last frame with alarms is not plausible")
		known(false)
		b.say(frames(t, "victron", broadcast.Battery{Values: values(), Alarms: []string{"contactor", "short circuit"}})...)
		want("contactor", "short circuit")
		known(true)
	})
	// Also if there never was a good one.
	b = newBus()
	listen(t, bmscan.Config{}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
		b.say(can.Standard(0x35A, 0x10))
		if got := read(t, l); !slices.Equal(got.Alarms, []string{"the last frame with alarms is not plausible"}) || !got.NoAlarms {
			t.Errorf("got %q, want one alarm", got.Alarms)
		}
	})
	// A frame that says of every alarm that it is not supported tells of none.
	b = newBus()
	listen(t, bmscan.Config{}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
		b.say(can.Standard(0x35A, 0, 0, 0, 0, 0, 0, 0, 0))
		if got := read(t, l); len(got.Alarms) > 0 || !got.NoAlarms {
			t.Errorf("got alarms %q, known %v, want none known", got.Alarms, !got.NoAlarms)
		}
	})
}

// TestImplausible: a value that cannot be makes no link lost, and no value.
func TestImplausible(t *testing.T) {
	b := newBus()
	listen(t, bmscan.Config{}, []any{b}, func(t *testing.T, l *bmscan.Listener, o *opener, _ *warnings) {
		all := frames(t, "victron", broadcast.Battery{Values: values()})
		b.say(all...)
		b.say(can.Standard(0x355, 200, 0, 99, 0))
		got := read(t, l)
		for _, q := range []bms.Quantity{bms.SoC, bms.SoH} {
			if s, ok := got.Signals[q]; ok {
				t.Errorf("%s: got %v, want none", q, s)
			}
		}
		if _, ok := got.Signals[bms.Current]; !ok || o.opened() != 1 {
			t.Errorf("the frame took others with it: %v, opened %d times", got.Signals, o.opened())
		}
		b.say(all...)
		if got := soc(t, l); got != 62 {
			t.Errorf("got %v %%, want 62 %%", got)
		}
	})
}

// TestLinkLost: an error from the loss on until frames come again, not only until there
// is a link again; opened again after a pause, and told of once.
func TestLinkLost(t *testing.T) {
	one, two := newBus(), newBus()
	links := []any{errNoAdapter, one, errNoAdapter, errNoAdapter, two}
	listen(t, bmscan.Config{Reopen: 3 * time.Second}, links, func(t *testing.T, l *bmscan.Listener, o *opener, w *warnings) {
		all := frames(t, "victron", broadcast.Battery{Values: values()})
		refused := func(want error, text string) {
			t.Helper()
			got, err := l.Read(t.Context())
			if err == nil || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), text) || got.Valid || len(got.Signals) > 0 {
				t.Errorf("got %+v, %v, want nothing and an error that says %q", got, err, text)
			}
		}
		begin := time.Now()
		refused(errNoAdapter, "can0: there is no adapter")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		refused(errNoAdapter, "can0: there is no adapter") // there is a link; nothing has come
		one.say(can.Standard(0x7FF, 1))
		refused(errNoAdapter, "can0: there is no adapter") // of others
		one.say(all...)
		if got := soc(t, l); got != 62 {
			t.Errorf("got %v %%, want 62 %%", got)
		}
		one.breakWith(fmt.Errorf("read can0: %w", can.ErrDown))
		if !one.isClosed() {
			t.Error("a link that was lost is not closed")
		}
		refused(can.ErrDown, "can0: read can0: the link is down")
		time.Sleep(6 * time.Second)
		refused(errNoAdapter, "can0: there is no adapter")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		refused(errNoAdapter, "can0: there is no adapter") // there is a link again; nothing has come
		lost := time.Now()
		two.say(without(all, 0x356)...)
		got := read(t, l)
		if at := got.Signals[bms.SoC].At; !at.Equal(lost) {
			t.Errorf("state of charge is of %v, want %v", at, lost)
		}
		if at := got.Signals[bms.Current].At; !at.Equal(begin.Add(3 * time.Second)) {
			t.Errorf("the current, which has not come again, is of %v, want %v", at, begin.Add(3*time.Second))
		}
		var after []time.Duration
		for _, at := range o.at {
			after = append(after, at.Sub(begin))
		}
		if want := []time.Duration{0, 3e9, 6e9, 9e9, 12e9}; !slices.Equal(after, want) {
			t.Errorf("opened after %v, want %v", after, want)
		}
		if got := w.count(); got != 3 { // no adapter, the loss, no adapter
			t.Errorf("got %d warnings, want 3", got)
		}
	})
}

// TestNothingYet: before the first frame of the battery there is no reading.
func TestNothingYet(t *testing.T) {
	b := newBus()
	listen(t, bmscan.Config{}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
		b.say(can.Standard(0x100, 1, 2, 3))
		_, err := l.Read(t.Context())
		if want := "can0: no frame of profile victron has come yet"; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
}

// gate asks a guard once a second for as long as d, while the battery says what f
// returns, and returns the last answer.
func gate(t *testing.T, l *bmscan.Listener, b *fakeBus, d time.Duration, f func(second int) []can.Frame) string {
	t.Helper()
	thresholds := bms.Default()
	thresholds.RequireBeat, thresholds.RequireAlarms = true, true
	g, err := bms.New(l.Read, thresholds)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int(d / time.Second) {
		b.say(f(i)...)
		err = g.Gate(t.Context(), nil, ota.BeforeWrite)
		time.Sleep(time.Second)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// TestGate: a battery that lives opens the gate; one that repeats itself, one that is
// silent, and one whose current is silent do not.
func TestGate(t *testing.T) {
	tremble := func(i int) []can.Frame {
		v := values()
		v[broadcast.Voltage] += float64(i%2) / 10
		return frames(t, "victron", broadcast.Battery{Values: v})
	}
	same := func(int) []can.Frame { return tremble(0) }
	until := func(last int, f, then func(int) []can.Frame) func(int) []can.Frame {
		return func(i int) []can.Frame {
			if i > last {
				return then(i)
			}
			return f(i)
		}
	}
	silence := func(int) []can.Frame { return nil }
	for _, tt := range []struct {
		name        string
		frozenAfter time.Duration
		frames      func(int) []can.Frame
		seconds     time.Duration
		want        string
	}{
		{"alive", 0, tremble, 150, ""},
		{"the same for a minute", 0, until(10, tremble, same), 70, ""},
		{"the same for longer", 0, until(10, tremble, same), 73, "the values are frozen"},
		{"the same for ten seconds", 10 * time.Second, until(10, tremble, same), 20, ""},
		{"the same for eleven", 10 * time.Second, until(10, tremble, same), 23, "the values are frozen"},
		{"the same for four minutes of five", 5 * time.Minute, until(10, tremble, same), 240, ""},
		{"alive again", 0, until(10, tremble, until(80, same, tremble)), 150, ""},
		{"silent for three seconds", 0, until(100, tremble, silence), 104, ""},
		{"silent for four", 0, until(100, tremble, silence), 105, "state of charge of can0 is 4s old, want at most 3s"},
		{"silent for longer", 0, until(100, tremble, silence), 120, "the frames with alarms have stopped coming"},
		{"without current", 0, until(100, tremble, func(i int) []can.Frame { return without(tremble(i), 0x356) }), 120, "not now: current of can0 is 19s old, want at most 3s, three of its cycles"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBus()
			listen(t, bmscan.Config{FrozenAfter: tt.frozenAfter}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
				got := gate(t, l, b, tt.seconds*time.Second, tt.frames)
				if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		})
	}
}

// TestKeepAlive: what the batteries of a profile want to hear goes out once a second,
// whatever becomes of it, and not where an inverter does it.
func TestKeepAlive(t *testing.T) {
	for profile, want := range map[string][]string{
		"pylon-lv": {"305#0000000000000000"}, "pylon-hv": {"00004200#0000000000000000", "00004200#0200000000000000"},
		"growatt-lv": {"301#0000000000000000"}, "original": nil,
	} {
		for _, silent := range []bool{false, true} {
			for _, sendErr := range []error{nil, can.ErrDown} {
				b := newBus()
				b.sendErr = sendErr
				listen(t, bmscan.Config{Profile: profile, Silent: silent}, []any{b}, func(t *testing.T, _ *bmscan.Listener, o *opener, w *warnings) {
					begin := time.Now()
					time.Sleep(10500 * time.Millisecond)
					var expected []string
					for i := range 11 {
						for j, f := range want {
							if !silent && (j == 0 || sendErr == nil) { // the rest of a round is for the next one
								expected = append(expected, fmt.Sprintf("%v %s", time.Duration(i)*time.Second, f))
							}
						}
					}
					var got []string
					for _, s := range b.sentFrames() {
						got = append(got, fmt.Sprintf("%v %s", s.at.Sub(begin), s.frame))
					}
					if !slices.Equal(got, expected) {
						t.Errorf("%s, silent %v, %v: got %v, want %v", profile, silent, sendErr, got, expected)
					}
					if o.opened() != 1 || w.count() > 0 {
						t.Errorf("%s: a frame that could not be sent lost the link", profile)
					}
				})
			}
		}
	}
}

// TestKeepAliveStuck: a link that takes no frames still brings some, and can be closed;
// the next one is opened when nobody uses this one any more.
func TestKeepAliveStuck(t *testing.T) {
	b := newBus()
	b.stuck = true
	using := func() int {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.sending
	}
	o := &opener{links: []any{b}}
	open := func(ctx context.Context) (can.Bus, error) {
		if n := using(); n > 0 {
			t.Errorf("a link is opened while %d frames are on their way to the one before", n)
		}
		return o.open(ctx)
	}
	listen(t, bmscan.Config{Open: open, Reopen: time.Millisecond}, []any{b}, func(t *testing.T, l *bmscan.Listener, _ *opener, _ *warnings) {
		b.say(frames(t, "victron", broadcast.Battery{Values: values()})...)
		if got := soc(t, l); got != 62 {
			t.Errorf("got %v %%, want 62 %%", got)
		}
		b.breakWith(can.ErrDown) // with a frame still on its way
		if !b.isClosed() {
			t.Error("the link is not closed")
		}
		time.Sleep(time.Second) // it lets go
		synctest.Wait()
		if got := o.opened(); got != 1 {
			t.Errorf("opened %d times, want once", got)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := o.opened(); got != 2 {
			t.Errorf("opened %d times, want twice", got)
		}
	})
}

// TestClose: nothing is sent, opened or known afterwards, in whatever state the listener
// was; listen sees to it that no goroutine is left.
func TestClose(t *testing.T) {
	check := func(t *testing.T, l *bmscan.Listener, o *opener, b *fakeBus) {
		t.Helper()
		for range 2 {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
		opened, sent := o.opened(), len(b.sentFrames())
		if opened > 0 && !b.isClosed() {
			t.Error("the link is open")
		}
		time.Sleep(time.Hour)
		if o.opened() != opened || len(b.sentFrames()) != sent {
			t.Errorf("opened %d times and sent %d frames after the end", o.opened()-opened, len(b.sentFrames())-sent)
		}
		if got, err := l.Read(context.Background()); err == nil || got.Valid {
			t.Errorf("got %+v, %v, want an error", got, err)
		}
	}
	b := newBus()
	listen(t, bmscan.Config{}, []any{b}, func(t *testing.T, l *bmscan.Listener, o *opener, _ *warnings) {
		b.say(frames(t, "victron", broadcast.Battery{Values: values()})...)
		check(t, l, o, b)
	})
	b = newBus()
	listen(t, bmscan.Config{Reopen: time.Hour}, []any{b}, func(t *testing.T, l *bmscan.Listener, o *opener, _ *warnings) {
		b.breakWith(can.ErrBusOff)
		time.Sleep(time.Minute) // in the pause
		check(t, l, o, b)
	})
	b = newBus()
	waits := bmscan.Config{Open: func(ctx context.Context) (can.Bus, error) { <-ctx.Done(); return nil, ctx.Err() }}
	listen(t, waits, nil, func(t *testing.T, l *bmscan.Listener, o *opener, _ *warnings) {
		check(t, l, o, b)
	})
}

func TestListen(t *testing.T) {
	open := func(context.Context) (can.Bus, error) { return nil, errNoAdapter }
	for _, tt := range []struct {
		config bmscan.Config
		want   string
	}{
		{bmscan.Config{Profile: "victron"}, "listen to the battery on CAN: the link is missing"},
		{bmscan.Config{Open: open, Profile: "acme"}, `listen to the battery on CAN: no battery profile "acme"`},
		{bmscan.Config{Open: open, Profile: "pylon-hv", Options: broadcast.Options{Address: 16}}, "listen to the battery on CAN: decode pylon-hv: address 16, want 0 to 15"},
		{bmscan.Config{Open: open, Profile: "victron", FrozenAfter: 301 * time.Second}, "listen to the battery on CAN: it would count as frozen after 5m1s, want at most 5m0s"},
	} {
		l, err := bmscan.Listen(tt.config)
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}
