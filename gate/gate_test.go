package gate_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate"
)

func yes(context.Context, *ota.Manifest, ota.Moment) error { return nil }

func no(code ota.ErrorCode, reason string, signals ...ota.Signal) ota.Gate {
	return func(context.Context, *ota.Manifest, ota.Moment) error {
		return &ota.Refusal{Code: code, Reason: reason, Signals: signals}
	}
}

func fails(err error) ota.Gate {
	return func(context.Context, *ota.Manifest, ota.Moment) error { return err }
}

func put(g ota.Gate) error {
	return g(context.Background(), &ota.Manifest{Version: "1.2.0", Digest: "d1"}, ota.BeforeWrite)
}

// refused returns err as the refusal that it must be.
func refused(t *testing.T, err error) *ota.Refusal {
	t.Helper()
	r, ok := err.(*ota.Refusal)
	if !ok || r == nil {
		t.Fatalf("got %v (%T), want a refusal", err, err)
	}
	if !errors.Is(err, ota.ErrNotNow) {
		t.Errorf("refusal %v does not match ErrNotNow", err)
	}
	return r
}

func TestAll(t *testing.T) {
	soc := ota.Signal{Name: "soc", Value: 22, Unit: "%"}
	hot := ota.Signal{Name: "temperature_max", Value: 50, Unit: "°C"}
	low := no(ota.ErrBatteryLow, "low", soc)
	lower := no(ota.ErrBatteryLow, "lower")
	unsafe := no(ota.ErrBMSUnsafe, "hot", hot)
	closed := no(ota.ErrNone, "closed")
	var nilRefusal *ota.Refusal

	for name, tt := range map[string]struct {
		gates   []ota.Gate
		code    ota.ErrorCode
		reason  string
		signals []ota.Signal
	}{
		"no gates":            {nil, ota.ErrBMSUnsafe, "no gate is configured; a device without a battery needs gate.NoBattery", nil},
		"one of two":          {[]ota.Gate{yes, low}, ota.ErrBatteryLow, "low", []ota.Signal{soc}},
		"a yes after a no":    {[]ota.Gate{low, yes}, ota.ErrBatteryLow, "low", []ota.Signal{soc}},
		"low twice":           {[]ota.Gate{low, lower}, ota.ErrBatteryLow, "low; lower", []ota.Signal{soc}},
		"low and unsafe":      {[]ota.Gate{low, unsafe}, ota.ErrBMSUnsafe, "low; hot", []ota.Signal{soc, hot}},
		"unsafe and low":      {[]ota.Gate{unsafe, low}, ota.ErrBMSUnsafe, "hot; low", []ota.Signal{hot, soc}},
		"low and closed":      {[]ota.Gate{low, closed}, ota.ErrBatteryLow, "low; closed", []ota.Signal{soc}},
		"closed twice":        {[]ota.Gate{closed, closed}, ota.ErrNone, "closed; closed", nil},
		"another code":        {[]ota.Gate{no(ota.ErrServer, "odd"), low}, ota.ErrBMSUnsafe, "odd; low", []ota.Signal{soc}},
		"missing":             {[]ota.Gate{yes, nil}, ota.ErrBMSUnsafe, "a gate is configured but missing", nil},
		"plain error":         {[]ota.Gate{fails(errors.New("bus is down"))}, ota.ErrBMSUnsafe, "bus is down", nil},
		"code as error":       {[]ota.Gate{fails(fmt.Errorf("ask: %w", ota.ErrConnectivity))}, ota.ErrBMSUnsafe, "ask: cannot connect to update server", nil},
		"ErrNotNow":           {[]ota.Gate{fails(fmt.Errorf("%w: busy", ota.ErrNotNow))}, ota.ErrBMSUnsafe, "busy", nil},
		"wrapped refusal":     {[]ota.Gate{fails(fmt.Errorf("rack 2: %w", put(low)))}, ota.ErrBatteryLow, "rack 2: not now: low", []ota.Signal{soc}},
		"joined refusals":     {[]ota.Gate{fails(errors.Join(put(low), put(unsafe)))}, ota.ErrBMSUnsafe, "low\nnot now: hot", []ota.Signal{soc}},
		"nil refusal pointer": {[]ota.Gate{fails(nilRefusal)}, ota.ErrBMSUnsafe, "a gate refused without saying why", nil},
		"panic":               {[]ota.Gate{func(context.Context, *ota.Manifest, ota.Moment) error { panic("index out of range") }}, ota.ErrBMSUnsafe, "a gate panicked: index out of range", nil},
		"deny":                {[]ota.Gate{gate.Deny("in service"), yes}, ota.ErrNone, "in service", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := refused(t, put(gate.All(tt.gates...)))
			want := &ota.Refusal{Code: tt.code, Reason: tt.reason, Signals: tt.signals}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
		})
	}
	if err := put(gate.All(yes, yes)); err != nil {
		t.Errorf("two yes: got %v, want yes", err)
	}
}

// TestAllIsReady: several refusals are over with the last of them, and as long as one does
// not say when, nobody knows.
func TestAllIsReady(t *testing.T) {
	at := func(s int) ota.Gate {
		return func(context.Context, *ota.Manifest, ota.Moment) error {
			return &ota.Refusal{Reason: "wait", Ready: time.Unix(int64(s), 0)}
		}
	}
	hot := no(ota.ErrBMSUnsafe, "hot")
	for name, tt := range map[string]struct {
		gates []ota.Gate
		want  time.Time
	}{
		"one":           {[]ota.Gate{yes, at(5)}, time.Unix(5, 0)},
		"the last":      {[]ota.Gate{at(5), at(9), at(7)}, time.Unix(9, 0)},
		"not known":     {[]ota.Gate{hot, at(5)}, time.Time{}},
		"not known too": {[]ota.Gate{at(5), at(6), hot}, time.Time{}},
		"in between":    {[]ota.Gate{at(5), hot, at(6)}, time.Time{}},
	} {
		if r := refused(t, put(gate.All(tt.gates...))); !r.Ready.Equal(tt.want) {
			t.Errorf("%s: over at %v, want %v", name, r.Ready, tt.want)
		}
	}
}

// TestAllAsksAll: the moment and the release reach every gate, also behind a no.
func TestAllAsksAll(t *testing.T) {
	var got []string
	note := func(name string, err error) ota.Gate {
		return func(_ context.Context, m *ota.Manifest, at ota.Moment) error {
			got = append(got, fmt.Sprintf("%s %s %s", name, m.Version, at))
			return err
		}
	}
	gates := []ota.Gate{note("a", errors.New("no")), note("b", nil)}
	all := gate.All(gates...)
	gates[0] = yes // must not reach into the gate
	refused(t, all(t.Context(), &ota.Manifest{Version: "3.0"}, ota.BeforeRestart))
	want := []string{"a 3.0 before the restart", "b 3.0 before the restart"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestNoBattery(t *testing.T) {
	if err := put(gate.NoBattery); err != nil {
		t.Errorf("got %v, want yes", err)
	}
	if err := gate.NoBattery(t.Context(), nil, ota.BeforeWrite); err != nil {
		t.Errorf("without a release: got %v, want yes", err)
	}
	soc := 40.0
	r := refused(t, gate.NoBattery(t.Context(), &ota.Manifest{Version: "2.0", Limits: ota.Limits{MinSoC: &soc}}, ota.BeforeWrite))
	if r.Code != ota.ErrBMSUnsafe || !strings.Contains(r.Reason, "release 2.0 sets limits") {
		t.Errorf("with limits: got %v %q", r.Code, r.Reason)
	}
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int32
		g := gate.Timeout(2*time.Second, func(context.Context, *ota.Manifest, ota.Moment) error {
			if calls.Add(1) == 1 {
				<-release // ignores its context
			}
			return nil
		})
		start := time.Now()
		r := refused(t, put(g))
		if r.Reason != "a gate did not answer within 2 s" || r.Code != ota.ErrBMSUnsafe {
			t.Errorf("got %v %q", r.Code, r.Reason)
		}
		if got := time.Since(start); got != 2*time.Second {
			t.Errorf("refused after %v, want 2 s", got)
		}
		for range 100 { // no pile of goroutines behind a gate that hangs
			time.Sleep(time.Second)
			if r := refused(t, put(g)); !strings.HasPrefix(r.Reason, "a gate has not answered for ") {
				t.Fatalf("got %q", r.Reason)
			}
		}
		if got := calls.Load(); got != 1 {
			t.Errorf("asked %d times while it hung, want 1", got)
		}
		close(release)
		synctest.Wait()
		if err := put(g); err != nil {
			t.Errorf("after it woke: got %v, want yes", err)
		}
	})
}

func TestTimeoutEdges(t *testing.T) {
	takes := func(d time.Duration) ota.Gate {
		return func(context.Context, *ota.Manifest, ota.Moment) error { time.Sleep(d); return nil }
	}
	for name, tt := range map[string]struct {
		d      time.Duration
		g      ota.Gate
		reason string // empty: yes
	}{
		"in time":           {time.Second, takes(999 * time.Millisecond), ""},
		"at the deadline":   {time.Second, takes(time.Second), "a gate did not answer within 1 s"},
		"default, in time":  {0, takes(900 * time.Millisecond), ""},
		"default, too late": {0, takes(1100 * time.Millisecond), "a gate did not answer within 1 s"},
		"missing":           {time.Second, nil, "a gate is configured but missing"},
		"panic":             {time.Second, func(context.Context, *ota.Manifest, ota.Moment) error { panic("boom") }, "a gate panicked: boom"},
		"goexit":            {time.Second, func(context.Context, *ota.Manifest, ota.Moment) error { runtime.Goexit(); return nil }, "a gate ended its goroutine without an answer"},
		"refusal":           {time.Second, no(ota.ErrBatteryLow, "low"), "low"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				err := put(gate.Timeout(tt.d, tt.g))
				if tt.reason == "" {
					if err != nil {
						t.Errorf("got %v, want yes", err)
					}
					return
				}
				if r := refused(t, err); r.Reason != tt.reason {
					t.Errorf("got %q, want %q", r.Reason, tt.reason)
				}
				time.Sleep(time.Minute) // let the late goroutine end inside the bubble
			})
		})
	}
	t.Run("cancelled by the caller", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := gate.Timeout(time.Second, yes)(ctx, nil, ota.BeforeWrite); err == nil {
			t.Error("got yes for a cancelled question")
		}
	})
}

func ExampleAll() {
	lowBattery := func(context.Context, *ota.Manifest, ota.Moment) error {
		return &ota.Refusal{Code: ota.ErrBatteryLow, Reason: "state of charge 22.0 %, want at least 30 %"}
	}
	safe := gate.All(lowBattery, gate.Deny("a technician is on site"))

	err := safe(context.Background(), &ota.Manifest{Version: "1.2.0"}, ota.BeforeWrite)
	fmt.Println(err)
	fmt.Println(ota.CodeOf(err).Name())
	// Output:
	// not now: state of charge 22.0 %, want at least 30 %; a technician is on site
	// BATTERY_LOW
}
