package gate_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate"
)

func TestDwell(t *testing.T) {
	type step struct {
		wait    time.Duration
		safe    bool
		release string
		want    string // reason; empty: yes
	}
	every := func(n int, s step) (out []step) {
		for range n {
			out = append(out, s)
		}
		return out
	}
	second := step{wait: time.Second, safe: true, release: "a", want: "?"} // ?: any no
	for name, steps := range map[string][]step{
		"opens at exactly d": append(append([]step{{0, true, "a", "safe for 0 s of 30 s"}}, every(28, second)...),
			step{time.Second, true, "a", "safe for 29 s of 30 s"},
			step{999 * time.Millisecond, true, "a", "safe for 29 s of 30 s"},
			step{time.Millisecond, true, "a", ""},
			step{time.Second, true, "a", ""}),
		"a no starts over": append(append([]step{{0, true, "a", "?"}}, every(29, second)...),
			step{time.Second, false, "a", "hot"},
			step{time.Second, true, "a", "safe for 0 s of 30 s"},
			step{time.Second, true, "a", "safe for 1 s of 30 s"}),
		"a no after it was open": append(append([]step{{0, true, "a", "?"}}, every(29, second)...),
			step{time.Second, true, "a", ""},
			step{time.Second, false, "a", "hot"},
			step{time.Second, true, "a", "safe for 0 s of 30 s"}),
		"a gap of exactly maxGap is none": append([]step{{0, true, "a", "?"}}, append(every(5, step{5 * time.Second, true, "a", "?"}),
			step{5 * time.Second, true, "a", ""})...),
		"a longer gap starts over": append([]step{{0, true, "a", "?"}}, append(every(5, step{5 * time.Second, true, "a", "?"}),
			step{5*time.Second + time.Millisecond, true, "a", "safe for 0 s of 30 s, because nobody asked for 5 s"},
			step{time.Second, true, "a", "safe for 1 s of 30 s"})...),
		"a gap after it was open": append(append([]step{{0, true, "a", "?"}}, every(29, second)...),
			step{time.Second, true, "a", ""},
			step{10 * time.Minute, true, "a", "safe for 0 s of 30 s, because nobody asked for 600 s"}),
		"another release starts over": append(append([]step{{0, true, "a", "?"}}, every(29, second)...),
			step{time.Second, true, "b", "safe for 0 s of 30 s"},
			step{time.Second, true, "b", "safe for 1 s of 30 s"}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var safe bool
				var since time.Time // of the present run
				g := gate.Dwell(30*time.Second, 5*time.Second, func(context.Context, *ota.Manifest, ota.Moment) error {
					if !safe {
						return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "hot"}
					}
					return nil
				})
				for i, s := range steps {
					time.Sleep(s.wait)
					safe = s.safe
					err := g(t.Context(), &ota.Manifest{Digest: s.release}, ota.BeforeWrite)
					if s.want == "" {
						if err != nil {
							t.Fatalf("step %d: got %v, want yes", i, err)
						}
						continue
					}
					r := refused(t, err)
					if s.want != "?" && r.Reason != s.want {
						t.Fatalf("step %d: got %q, want %q", i, r.Reason, s.want)
					}
					if strings.HasPrefix(r.Reason, "safe for 0 s of") && time.Since(since) >= time.Second {
						since = time.Now()
					}
					if want := since.Add(30 * time.Second); s.safe && !r.Ready.Equal(want) || !s.safe && !r.Ready.IsZero() {
						t.Errorf("step %d: over at %v, want %v if it is safe, and not known otherwise", i, r.Ready, want)
					}
					if s.safe && r.Code != ota.ErrNone {
						t.Errorf("step %d: got code %v while the battery is safe, want none", i, r.Code)
					}
				}
			})
		})
	}
}

// TestDwellSlowGate: the time that a gate thinks is not time in which it was safe.
func TestDwellSlowGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate.Dwell(4*time.Second, 5*time.Second, func(context.Context, *ota.Manifest, ota.Moment) error {
			time.Sleep(2 * time.Second)
			return nil
		})
		for i, want := range []string{"safe for 0 s of 4 s", "safe for 0 s of 4 s", "safe for 2 s of 4 s", ""} {
			err := put(g)
			if want == "" {
				if err != nil {
					t.Errorf("question %d: got %v, want yes", i, err)
				}
			} else if r := refused(t, err); r.Reason != want {
				t.Errorf("question %d: got %q, want %q", i, r.Reason, want)
			}
		}
		slow := gate.Dwell(time.Second, 0, func(context.Context, *ota.Manifest, ota.Moment) error {
			time.Sleep(6 * time.Second)
			return nil
		})
		for range 5 { // every question is itself a gap
			refused(t, put(slow))
		}
		takes := time.Duration(0)
		once := gate.Dwell(time.Second, 0, func(context.Context, *ota.Manifest, ota.Moment) error {
			time.Sleep(takes)
			return nil
		})
		refused(t, put(once))
		time.Sleep(time.Second)
		takes = 6 * time.Second // the second question was put in time, but answered after a gap
		refused(t, put(once))
	})
}

func TestDwellFailsClosed(t *testing.T) {
	for name, g := range map[string]ota.Gate{
		"missing": gate.Dwell(0, 0, nil),
		"panic":   gate.Dwell(0, 0, func(context.Context, *ota.Manifest, ota.Moment) error { panic(1) }),
	} {
		if r := refused(t, put(g)); r.Code != ota.ErrBMSUnsafe {
			t.Errorf("%s: got code %v, want BMS_UNSAFE", name, r.Code)
		}
	}
	if err := put(gate.Dwell(0, 0, yes)); err != nil {
		t.Errorf("no dwell time: got %v, want yes", err)
	}
	if err := gate.Dwell(0, 0, yes)(t.Context(), nil, ota.BeforeWrite); err != nil {
		t.Errorf("without a release: got %v, want yes", err)
	}
}

// TestDwellAtRestart: while the plant was quiesced nobody asked, which must not
// start the dwell time over; but an unsafe battery still says no.
func TestDwellAtRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var no error
		g := gate.Dwell(3*time.Second, 2*time.Second, func(context.Context, *ota.Manifest, ota.Moment) error { return no })
		ask := func(at ota.Moment) error { return g(t.Context(), &ota.Manifest{Digest: "a"}, at) }
		for range 3 {
			if err := ask(ota.BeforeRestart); err == nil {
				t.Fatal("yes before the dwell time was over")
			}
			time.Sleep(time.Second)
		}
		if err := ask(ota.BeforeRestart); err != nil {
			t.Fatalf("after the dwell time: %v", err)
		}
		time.Sleep(time.Minute)
		if err := ask(ota.AtRestart); err != nil {
			t.Errorf("at the restart: %v, want yes", err)
		}
		no = &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "hot"}
		if err := ask(ota.AtRestart); err == nil {
			t.Error("at the restart with a hot battery: yes")
		}
		no = nil
		if err := ask(ota.BeforeRestart); err == nil {
			t.Error("after a no at the restart the dwell time did not start over")
		}
	})
}
