package bms_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
)

// site is a fake: a battery that says what r says, now, and the guard that asks it.
type site struct {
	t   *testing.T
	r   bms.Reading
	err error
	*bms.Guard
}

func newSite(t *testing.T, th bms.Thresholds) *site {
	s := &site{t: t, r: good()}
	g, err := bms.New(func(context.Context) (bms.Reading, error) {
		r := s.r
		r.At = time.Now()
		if r.Beat != nil {
			beat := *r.Beat
			r.Beat = &beat
		}
		return r, s.err
	}, th)
	if err != nil {
		t.Fatal(err)
	}
	s.Guard = g
	return s
}

// asked returns the reason of a refusal, empty for yes.
func (s *site) asked(m *ota.Manifest) string {
	s.t.Helper()
	err := s.Gate(s.t.Context(), m, ota.BeforeWrite)
	if err == nil {
		return ""
	}
	refusal, ok := err.(*ota.Refusal)
	if !ok || refusal.Reason == "" {
		s.t.Fatalf("got %v (%T), want a refusal with a reason", err, err)
	}
	return refusal.Reason
}

// want asks and compares the reason.
func (s *site) want(what, reason string) {
	s.t.Helper()
	if got := s.asked(nil); got != reason {
		s.t.Errorf("%s:\n got %q\nwant %q", what, got, reason)
	}
}

// look reads for display.
func (s *site) look() {
	s.t.Helper()
	if _, err := s.Read(s.t.Context()); err != nil && s.err == nil {
		s.t.Fatal(err)
	}
}

func TestHeartbeat(t *testing.T) {
	const notYet = "the heartbeat of test has not been seen to move yet"
	for name, run := range map[string]func(*testing.T, *site){
		"the first question knows nothing": func(t *testing.T, s *site) {
			s.want("first", notYet)
			time.Sleep(time.Second)
			s.want("not moved", notYet)
			s.r.Beat.Count++
			s.want("moved", "")
		},
		"reading for display is watching": func(t *testing.T, s *site) {
			s.look()
			time.Sleep(4 * time.Second)
			s.r.Beat.Count++
			s.look()
			time.Sleep(4 * time.Second)
			s.want("first question", "")
		},
		"stands at exactly its time, and longer": func(t *testing.T, s *site) {
			s.look()
			s.r.Beat.Count = 4712
			s.want("moved", "")
			for range 5 {
				time.Sleep(time.Second)
				s.want("within its time", "")
			}
			time.Sleep(time.Millisecond)
			s.want("1 ms later", "the heartbeat of test has stood at 4712 for 5.001s, want a change within 5s: the values are frozen")
			time.Sleep(1199 * time.Millisecond)
			s.want("later", "the heartbeat of test has stood at 4712 for 6.2s, want a change within 5s: the values are frozen")
			s.r.Beat.Count++
			s.want("moves again", "")
		},
		"never moved at all": func(t *testing.T, s *site) {
			for range 7 {
				s.look()
				time.Sleep(time.Second)
			}
			s.want("frozen from the start", "the heartbeat of test has stood at 4711 for 7s, want a change within 5s: the values are frozen")
		},
		"new starts and wraps are changes": func(t *testing.T, s *site) {
			for _, count := range []uint64{0, 65535, 0, math.MaxUint64, 0} {
				s.r.Beat.Count = count
				s.look()
				time.Sleep(4 * time.Second)
			}
			s.want("in the end", "")
		},
		"a gap proves nothing, moved or not": func(t *testing.T, s *site) {
			s.look()
			s.r.Beat.Count++
			s.want("alive", "")
			time.Sleep(5001 * time.Millisecond)
			s.r.Beat.Count++
			s.want("moved in the gap", notYet+", because nobody looked for 5.001s")
			time.Sleep(time.Second)
			s.want("not since", notYet+", because nobody looked for 5.001s")
			s.r.Beat.Count++
			s.want("since", "")
			time.Sleep(time.Hour)
			s.want("not moved in the gap", notYet+", because nobody looked for 1h0m0s")
		},
		"readings that fail are a gap": func(t *testing.T, s *site) {
			s.look()
			s.r.Beat.Count++
			s.want("alive", "")
			s.err = errors.New("bus is down")
			for range 6 {
				time.Sleep(time.Second)
				s.look()
			}
			s.err = nil
			s.r.Beat.Count++
			s.want("back", notYet+", because nobody looked for 6s")
		},
		"its own time": func(t *testing.T, s *site) {
			s.r.Beat.Within = 20 * time.Second
			s.look()
			time.Sleep(15 * time.Second)
			s.r.Beat.Count++
			s.look()
			time.Sleep(20 * time.Second)
			s.want("at the edge", "")
			time.Sleep(time.Millisecond)
			s.want("beyond", "the heartbeat of test has stood at 4712 for 20.001s, want a change within 20s: the values are frozen")
		},
		"a quick one may take 3 s": func(t *testing.T, s *site) {
			s.r.Beat.Within = 100 * time.Millisecond
			s.look()
			s.r.Beat.Count++
			s.look()
			time.Sleep(3 * time.Second)
			s.want("at the edge", "")
			time.Sleep(time.Millisecond)
			s.want("beyond", "the heartbeat of test has stood at 4712 for 3.001s, want a change within 3s: the values are frozen")
		},
		"one that goes away begins anew": func(t *testing.T, s *site) {
			s.look()
			s.r.Beat.Count++
			s.want("alive", "")
			beat := s.r.Beat
			s.r.Beat = nil
			s.want("not required", "")
			s.r.Beat = beat
			s.r.Beat.Count++
			s.want("back", notYet)
		},
		"another source begins anew": func(t *testing.T, s *site) {
			s.look()
			s.r.Beat.Count++
			s.want("alive", "")
			s.r.Source = "spare"
			s.r.Beat.Count++
			s.want("another", "the heartbeat of spare has not been seen to move yet")
		},
		"others must move too": func(t *testing.T, s *site) {
			s.r.Others = []bms.Reading{meter(-1.2)}
			s.r.Others[0].At = time.Now().Add(time.Hour)
			at := func() { s.r.Others[0].At = time.Now() }
			at()
			s.r.Others[0].Beat = &bms.Beat{Count: 7}
			s.look()
			s.r.Beat.Count++
			s.want("the meter has not", "the heartbeat of meter has not been seen to move yet")
			s.r.Others[0].Beat = &bms.Beat{Count: 8}
			s.want("the meter has", "")
			for range 6 {
				time.Sleep(time.Second)
				at()
				s.r.Beat.Count++
				s.look()
			}
			s.want("the meter stands", "the heartbeat of meter has stood at 8 for 6s, want a change within 5s: the values are frozen")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, bms.Default())
				s.r.Beat = &bms.Beat{Count: 4711}
				run(t, s)
			})
		})
	}
}

// TestOvertaken: an answer that comes after that of a later question is old. Taken
// for news, two of them would let a counter that stands still move.
func TestOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count, slow := uint64(1), time.Duration(0)
		g, err := bms.New(func(context.Context) (bms.Reading, error) {
			r := good()
			r.At, r.Beat = time.Now(), &bms.Beat{Count: count}
			time.Sleep(slow)
			return r, nil
		}, bms.Default())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		slow = 2 * time.Second
		wg.Go(func() { g.Read(t.Context()) }) // brings 1, later
		time.Sleep(time.Second)
		synctest.Wait() // it has asked
		slow, count = 0, 2
		if err := g.Gate(t.Context(), nil, ota.BeforeWrite); err == nil {
			t.Error("first answer: got yes")
		}
		wg.Wait()
		if last, err := g.Last(); err != nil || last.Beat.Count != 2 {
			t.Errorf("last: got %v, %v, want the one of the last question", last.Beat, err)
		}
		if err := g.Gate(t.Context(), nil, ota.BeforeWrite); err == nil {
			t.Error("2, an overtaken 1, 2: got yes, of a heartbeat that was not seen to move")
		}
	})
}

func TestAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, bms.Default())
		alive := func(what, want string) {
			t.Helper()
			err := s.Alive()
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s: got %v, want %q", what, err, want)
			}
		}
		alive("not asked", "there is no reading\nread the battery: not asked yet")
		s.look()
		alive("no heartbeat", "test has none")
		s.r.Beat = &bms.Beat{Count: 1}
		s.look()
		alive("once", "has not been seen to move yet")
		s.r.Beat.Count++
		s.look()
		alive("moved", "")
		time.Sleep(6 * time.Second)
		alive("later", "has stood at 2 for 6s")
		s.err = errors.New("bus is down")
		s.look()
		alive("no reading", "bus is down")
	})
	if err := new(bms.Guard).Alive(); err == nil {
		t.Error("the zero guard is alive")
	}
}

func TestTemperatureRate(t *testing.T) {
	th := bms.Default()
	th.MaxTemperatureRate = 1
	type step struct {
		wait time.Duration
		v    float64
		want string
	}
	const s = time.Second
	steady := func(n int, v float64) (out []step) { // every 10 s
		for range n {
			out = append(out, step{10 * s, v, "?"})
		}
		return out
	}
	for name, steps := range map[string][]step{
		"a minute must be there": {{0, 24, "highest temperature has been watched for 0s, want 1m0s to tell how fast it rises"},
			{59999 * time.Millisecond, 24, "highest temperature has been watched for 59s, want 1m0s to tell how fast it rises"},
			{time.Millisecond, 24, ""}},
		"a rise is seen at once": {{0, 24, "?"}, {s, 25.1, "highest temperature rises by 1.1 K/min, want at most 1 K/min"}},
		"one kelvin in a minute": append(steady(7, 24), step{s, 25, ""}, step{30 * s, 25, ""}, step{30 * s, 26, ""},
			step{s, 26.1, "highest temperature rises by 1.1 K/min, want at most 1 K/min"}),
		"a tenth more": append(steady(7, 24), step{s, 25.1, "highest temperature rises by 1.1 K/min, want at most 1 K/min"}),
		"in tenths, whose binary form is not exact": append(steady(7, 23.3), step{s, 24.3, ""}),
		"slowly":                            {{0, 24, "?"}, {30 * s, 24.5, "?"}, {30 * s, 25, ""}, {30 * s, 25.5, ""}, {30 * s, 26, ""}, {30 * s, 26.5, ""}},
		"a little too fast":                 {{0, 24, "?"}, {30 * s, 24.5, "?"}, {30 * s, 25, ""}, {30 * s, 25.6, "highest temperature rises by 1.1 K/min, want at most 1 K/min"}},
		"two steps of a kelvin in a minute": append(steady(7, 24), step{s, 25, ""}, step{30 * s, 25, ""}, step{29 * s, 26, "highest temperature rises by 2.0 K/min, want at most 1 K/min"}),
		"over two minutes":                  {{0, 24, "?"}, {60 * s, 25, ""}, {60 * s, 26.2, "highest temperature rises by 1.2 K/min, want at most 1 K/min"}},
		"down and up again":                 append(steady(7, 24), step{s, 20, ""}, step{s, 21, ""}, step{s, 21.2, "highest temperature rises by 1.2 K/min, want at most 1 K/min"}),
		"down and up again within a second": append(steady(7, 24), step{s, 20, ""},
			step{s / 2, 24, "highest temperature rises by 4.0 K/min, want at most 1 K/min"}, step{s, 24, "highest temperature rises by 4.0 K/min, want at most 1 K/min"}),
		"down is none":                          append(steady(7, 24), step{s, 10, ""}),
		"forgotten after a minute at that heat": append(append(steady(7, 24), step{s, 30, "?"}), append(steady(12, 30), step{10 * s, 30, ""})...),
		"a gap begins anew": append(steady(8, 24), step{60 * s, 24, ""},
			step{60*s + 1, 24, "highest temperature has been watched for 0s, want 1m0s to tell how fast it rises"}),
		"what is not known is no history": append(steady(8, 24), step{s, math.NaN(), "highest temperature is not available"}, step{s, 24, ""}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				site := newSite(t, th)
				for i, step := range steps {
					time.Sleep(step.wait)
					site.r.Set(bms.TemperatureMin, 10)
					site.r.Set(bms.TemperatureMax, step.v)
					if got := site.asked(nil); step.want != "?" && got != step.want {
						t.Errorf("step %d, %v °C:\n got %q\nwant %q", i, step.v, got, step.want)
					}
				}
			})
		})
	}
	t.Run("ten times a second", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			site := newSite(t, th)
			for i := range 3000 { // 0.9 K/min, and then 1.2
				rate := 0.9
				if i >= 1500 {
					rate = 1.2
				}
				site.r.Set(bms.TemperatureMax, site.r.Value(bms.TemperatureMax)+rate/600)
				got := site.asked(nil)
				if i > 610 && i < 1500 && got != "" || i > 2800 && got == "" {
					t.Fatalf("after %.1f s, %v K/min: got %q", float64(i)/10, rate, got)
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	})
}

func TestStuckStateOfCharge(t *testing.T) {
	th := bms.Default()
	th.MaxCurrent, th.MaxUncounted, th.RatedCapacity = 1000, 3, 314
	const stuck = "state of charge has stood at 62.5 % while "
	run := func(s *site, current float64, d, pace time.Duration) {
		s.r.Set(bms.Current, current)
		for range d / pace {
			time.Sleep(pace)
			s.look()
		}
	}
	for name, f := range map[string]func(*testing.T, *site){
		"3 % and a little": func(t *testing.T, s *site) {
			s.r.Set(bms.Current, 314.0)
			s.want("first", "") // 1 C: 1 % in 36 s
			run(s, 314, 108*time.Second, time.Second)
			s.want("exactly 3 %", "")
			run(s, 314, time.Second, time.Second)
			s.want("beyond", stuck+"9.5 Ah (3.03 % of the capacity) flowed, want at most 3 %: it is stuck")
			s.r.Set(bms.Current, 0)
			s.want("at rest now", stuck+"9.5 Ah (3.03 % of the capacity) flowed, want at most 3 %: it is stuck")
			s.r.Set(bms.SoC, 61.5)
			s.want("it moved", "")
		},
		"the other way": func(t *testing.T, s *site) {
			run(s, -314, 112*time.Second, time.Second)
			s.want("beyond", stuck+"9.7 Ah (3.1 % of the capacity) flowed, want at most 3 %: it is stuck")
		},
		"noise is no movement": func(t *testing.T, s *site) {
			for i := range 120 {
				s.r.Set(bms.SoC, 62.5+0.8*float64(i%2))
				run(s, 314, time.Second, time.Second)
			}
			if got := s.asked(nil); !strings.HasPrefix(got, "state of charge has stood at ") {
				t.Errorf("got %q", got)
			}
		},
		"steps of 1 % are": func(t *testing.T, s *site) {
			for i := range 20 {
				s.r.Set(bms.SoC, 62-float64(i))
				run(s, 314, 36*time.Second, time.Second)
				s.want("counted", "")
			}
		},
		"to and fro is nothing": func(t *testing.T, s *site) {
			for range 50 {
				run(s, 314, 18*time.Second, time.Second)
				run(s, -314, 18*time.Second, time.Second)
			}
			s.want("balanced", "")
		},
		"far to and far fro is not": func(t *testing.T, s *site) {
			run(s, 314, 72*time.Second, time.Second)
			run(s, -314, 144*time.Second, time.Second)
			run(s, 314, 72*time.Second, time.Second)
			s.want("back at the start", stuck+"12.5 Ah (4.0 % of the capacity) flowed, want at most 3 %: it is stuck")
		},
		"the offset of a sensor": func(t *testing.T, s *site) {
			run(s, 3.14, 24*time.Hour, time.Minute)
			s.want("a day", "")
			run(s, 3.2, 4*time.Hour, time.Minute)
			s.want("more than an offset", stuck+"12.8 Ah (4.1 % of the capacity) flowed, want at most 3 %: it is stuck")
		},
		"a gap counts for nothing": func(t *testing.T, s *site) {
			for range 100 {
				run(s, 314, 61*time.Second, 61*time.Second)
			}
			s.want("nobody looked", "")
		},
		"and forgets nothing": func(t *testing.T, s *site) {
			run(s, 314, 112*time.Second, time.Second)
			time.Sleep(time.Hour)
			s.want("after an hour", stuck+"9.7 Ah (3.1 % of the capacity) flowed, want at most 3 %: it is stuck")
			s.err = errors.New("bus is down")
			s.look()
			s.err = nil
			s.want("after an error", stuck+"9.7 Ah (3.1 % of the capacity) flowed, want at most 3 %: it is stuck")
		},
		"what the battery says it holds goes before what it is rated for": func(t *testing.T, s *site) {
			s.r.Set(bms.Capacity, 628)
			run(s, 314, 200*time.Second, time.Second)
			s.want("half as fast", "")
		},
		"switched off": func(t *testing.T, s *site) {
			off := th
			off.MaxUncounted = 0
			if err := s.SetThresholds(off); err != nil {
				t.Fatal(err)
			}
			run(s, 314, 200*time.Second, time.Second)
			s.want("off", "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, th)
				f(t, s)
			})
		})
	}
}

func TestKeep(t *testing.T) {
	th := bms.Default()
	th.MaxSoC, th.MaxCellDelta = 90, 0.05
	th.Keep = bms.Recommended().Keep
	f := func(v float64) *float64 { return &v }
	a, b := &ota.Manifest{Version: "1.2.0", Digest: "a"}, &ota.Manifest{Version: "1.3.0", Digest: "b"}
	strict := &ota.Manifest{Version: "1.4.0", Digest: "c", Limits: ota.Limits{MinSoC: f(28), MaxCurrent: f(10), MinTemperature: f(-1), MaxTemperature: f(46)}}
	run := func(name string, run func(*testing.T, *site)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, th)
				s.r.Set(bms.CellMin, 3.30)
				s.r.Set(bms.CellMax, 3.32)
				run(t, s)
			})
		})
	}
	want := func(s *site, m *ota.Manifest, reason string) {
		s.t.Helper()
		if got := s.asked(m); got != reason {
			s.t.Errorf("\n got %q\nwant %q", got, reason)
		}
	}
	for _, tt := range []struct {
		name         string
		q            bms.Quantity
		in, out      float64 // enough once allowed, and not
		first, later string  // what is said of in before, and of out after it was allowed
	}{
		{"SoC", bms.SoC, 27, 26.9, "state of charge 27.0 %, want at least 30 %", "state of charge 26.9 %, want at least 27 % to stay allowed"},
		{"high SoC", bms.SoC, 92, 92.1, "state of charge 92.0 %, want at most 90 %", "state of charge 92.1 %, want at most 92 % to stay allowed"},
		{"cold", bms.TemperatureMin, -5, -5.1, "lowest temperature -5.0 °C, want at least 0 °C", "lowest temperature -5.1 °C, want at least -5 °C to stay allowed"},
		{"hot", bms.TemperatureMax, 47, 47.1, "highest temperature 47.0 °C, want at most 45 °C", "highest temperature 47.1 °C, want at most 47 °C to stay allowed"},
		{"current", bms.Current, -12, -12.1, "current -12.0 A, want at most 10 A in either direction", "current -12.1 A, want at most 12 A in either direction to stay allowed"},
		{"cells", bms.CellMax, 3.36, 3.361, "the cells are 0.060 V apart, want at most 0.05 V", "the cells are 0.061 V apart, want at most 0.06 V to stay allowed"},
	} {
		run(tt.name, func(t *testing.T, s *site) {
			before := s.r.Value(tt.q)
			s.r.Set(tt.q, tt.in)
			want(s, a, tt.first)
			s.r.Set(tt.q, before)
			want(s, a, "")
			s.r.Set(tt.q, tt.in)
			for range 3 {
				want(s, a, "")
			}
			s.r.Set(tt.q, tt.out)
			want(s, a, tt.later)
			s.r.Set(tt.q, tt.in)
			want(s, a, tt.first) // the first no ended it
		})
	}
	run("per release", func(t *testing.T, s *site) {
		want(s, a, "")
		s.r.Set(bms.SoC, 28)
		want(s, b, "state of charge 28.0 %, want at least 30 %")
		want(s, a, "state of charge 28.0 %, want at least 30 %")
	})
	run("a release's limits stay", func(t *testing.T, s *site) {
		s.r.Set(bms.SoC, 50)
		want(s, strict, "")
		s.r.Set(bms.SoC, 28)
		s.r.Set(bms.TemperatureMin, -1)
		s.r.Set(bms.TemperatureMax, 46)
		want(s, strict, "")
		s.r.Set(bms.SoC, 27.9)
		s.r.Set(bms.Current, 10.1)
		s.r.Set(bms.TemperatureMin, -1.1)
		s.r.Set(bms.TemperatureMax, 46.1)
		want(s, strict, "state of charge 27.9 %, want at least 28 % for release 1.4.0; lowest temperature -1.1 °C, want at least -1 °C for release 1.4.0; "+
			"highest temperature 46.1 °C, want at most 46 °C for release 1.4.0; current 10.1 A, want at most 10 A in either direction for release 1.4.0")
	})
	run("for a minute without a question", func(t *testing.T, s *site) {
		want(s, a, "")
		s.r.Set(bms.SoC, 28)
		time.Sleep(time.Minute)
		want(s, a, "")
		time.Sleep(time.Minute + 1)
		want(s, a, "state of charge 28.0 %, want at least 30 %")
	})
	run("at the restart for longer", func(t *testing.T, s *site) {
		want(s, a, "")
		s.r.Set(bms.SoC, 28)
		time.Sleep(10 * time.Minute)
		if err := s.Gate(t.Context(), a, ota.AtRestart); err != nil {
			t.Errorf("after ten minutes of quiescing: %v", err)
		}
	})
	run("an error ends it", func(t *testing.T, s *site) {
		want(s, a, "")
		s.err = errors.New("bus is down")
		want(s, a, "read the battery: bus is down")
		s.err = nil
		s.r.Set(bms.SoC, 28)
		want(s, a, "state of charge 28.0 %, want at least 30 %")
	})
	run("other thresholds end it, and take it with them", func(t *testing.T, s *site) {
		want(s, a, "")
		old, now, err := s.Change(func(th bms.Thresholds) bms.Thresholds { th.MinSoC = 50; return th })
		if err != nil || old.MinSoC != 30 || now.MinSoC != 50 {
			t.Fatalf("got %v, %v, %v", old.MinSoC, now.MinSoC, err)
		}
		s.r.Set(bms.SoC, 48)
		want(s, a, "state of charge 48.0 %, want at least 50 %")
		s.r.Set(bms.SoC, 50)
		want(s, a, "")
		s.r.Set(bms.SoC, 47)
		want(s, a, "")
		s.r.Set(bms.SoC, 46.9)
		want(s, a, "state of charge 46.9 %, want at least 47 % to stay allowed")
	})
	run("not without being configured", func(t *testing.T, s *site) {
		if err := s.SetThresholds(bms.Default()); err != nil {
			t.Fatal(err)
		}
		want(s, a, "")
		s.r.Set(bms.SoC, 29.9)
		want(s, a, "state of charge 29.9 %, want at least 30 %")
	})
	run("it is told", func(t *testing.T, s *site) {
		var got []bool
		s.Decided = func(d bms.Decision) { got = append(got, d.Kept) }
		want(s, a, "")
		want(s, a, "")
		if fmt.Sprint(got) != "[false true]" {
			t.Errorf("kept: got %v, want the second only", got)
		}
	})
	run("never more than twice the limit", func(t *testing.T, s *site) {
		small := th
		small.MaxCurrent = 1
		if err := s.SetThresholds(small); err != nil {
			t.Fatal(err)
		}
		s.r.Set(bms.Current, 1)
		want(s, a, "")
		s.r.Set(bms.Current, 2)
		want(s, a, "")
		s.r.Set(bms.Current, 2.1)
		want(s, a, "current 2.1 A, want at most 2 A in either direction to stay allowed")
	})
}

func TestChange(t *testing.T) {
	g, err := bms.New(func(context.Context) (bms.Reading, error) { return good(), nil }, bms.Recommended())
	if err != nil {
		t.Fatal(err)
	}
	if old, now, err := g.Change(func(th bms.Thresholds) bms.Thresholds { th.MaxAge = 0; return th }); err == nil || old.MaxAge != now.MaxAge || g.Thresholds().MaxAge != old.MaxAge {
		t.Errorf("thresholds that are not valid: got %v, %v, %v", old.MaxAge, now.MaxAge, err)
	}
	names := []string{"door"}
	if _, _, err := g.Change(func(th bms.Thresholds) bms.Thresholds { th.IgnoreAlarms = names; return th }); err != nil {
		t.Fatal(err)
	}
	names[0] = "fire"
	g.Thresholds().IgnoreAlarms[0] = "smoke"
	if got := g.Thresholds().IgnoreAlarms[0]; got != "door" {
		t.Errorf("a list that somebody else holds was taken over: got %s, want door", got)
	}
}
