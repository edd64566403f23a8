package overcan_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/otatest"
)

// stage brings the file in and asks for the installation, as often as the line needs.
func (s *site) stage(ctx context.Context) error {
	d := s.tester()
	if err := d.Send(ctx, s.file, push.Tell{}); err != nil {
		return err
	}
	for {
		err := d.Install(ctx)
		if err == nil || !isLine(err) {
			return err
		}
		if err := push.Wait(ctx, time.Second); err != nil {
			return err
		}
	}
}

// installed checks that the manager is offered the release, and nothing was sent in vain.
func (s *site) installed() {
	s.t.Helper()
	s.check()
	if b := s.inbox.State(); b.Phase != inbox.Requested {
		s.t.Errorf("the inbox is %s, want %s", b.Phase, inbox.Requested)
	}
}

// small is a release that takes few frames, and a device that takes it in several blocks.
func small(t *testing.T) (*otatest.SignedRelease, *push.File, func(*site)) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 300)
	return release, bundleFile(t, release), func(s *site) { s.source.MaxBlock = 400 }
}

// Each frame of a whole transfer, in both directions, is lost, doubled and swapped with
// the next one.
func TestEachFrame(t *testing.T) {
	release, file, change := small(t)
	for _, v := range []bustest.Verdict{bustest.Lose, bustest.Double, bustest.Swap} {
		t.Run(string(v), func(t *testing.T) {
			frames, slowest := 0, time.Duration(0)
			step := 1
			if testing.Short() || raceEnabled {
				step = 7
			}
			for k := 0; ; k += step {
				n := 0
				synctest.Test(t, func(t *testing.T) {
					s := newSite(t, release, file, func(s *site) {
						change(s)
						s.can.Faults.Exactly = func(bustest.Record) bustest.Verdict {
							n++
							if n == k+1 {
								return v
							}
							return bustest.Pass
						}
					})
					began := time.Now()
					if err := s.stage(t.Context()); err != nil {
						t.Fatalf("frame %d %s: %v", k, v, err)
					}
					slowest = max(slowest, time.Since(began))
					s.installed()
					if t.Failed() {
						t.Fatalf("frame %d %s", k, v)
					}
				})
				if n <= k {
					break
				}
				frames++
			}
			if frames*step < 200 {
				t.Errorf("got %d frames, want at least 200", frames)
			}
			if slowest > 3*time.Second {
				t.Errorf("the slowest took %v, want at most 3 s", slowest)
			}
			t.Logf("%d frames, each %s; the slowest transfer took %v", frames, v, slowest)
		})
	}
}

// The device is restarted, as by kill -9, at each message that the tester sends or
// receives; and the tester is, at each, and another one goes on.
func TestEachRestart(t *testing.T) {
	release, file, change := small(t)
	for _, who := range []string{"device", "tester"} {
		t.Run(who, func(t *testing.T) {
			messages := 0
			for k := int64(0); ; k++ {
				var n atomic.Int64
				synctest.Test(t, func(t *testing.T) {
					s := newSite(t, release, file, change)
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					restarted := make(chan struct{})
					s.tell = func(pdu) {
						switch {
						case n.Add(1) != k+1:
						case who == "device":
							go func() { s.restart(20 * time.Second); close(restarted) }()
						default:
							cancel()
						}
					}
					err := s.stage(ctx)
					if who == "tester" && n.Load() > k {
						if err == nil && n.Load() > k+1 {
							t.Fatalf("message %d: the tester was stopped, and went on", k)
						}
						err = s.stage(t.Context())
					}
					if err != nil {
						t.Fatalf("%s restarted at message %d: %v", who, k, err)
					}
					if who == "device" && n.Load() > k {
						<-restarted
					}
					s.installed()
					if t.Failed() {
						t.Fatalf("%s restarted at message %d", who, k)
					}
				})
				if n.Load() <= k {
					break
				}
				messages++
			}
			if messages < 40 {
				t.Errorf("got %d messages, want at least 40", messages)
			}
			t.Logf("the %s was restarted at each of %d messages", who, messages)
		})
	}
}

// Frames are lost, doubled or swapped all the time, in both directions.
func TestBadLine(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 2000)
	file := bundleFile(t, release)
	for name, tt := range map[string]struct {
		faults bustest.Faults
		within time.Duration
	}{
		"1 % lost":     {bustest.Faults{Lose: 0.01}, 10 * time.Second},
		"10 % lost":    {bustest.Faults{Lose: 0.10}, 30 * time.Second},
		"10 % doubled": {bustest.Faults{Double: 0.10}, 2 * time.Second},
		"10 % swapped": {bustest.Faults{Reorder: 0.10}, 10 * time.Second},
		"5 % of each":  {bustest.Faults{Lose: 0.05, Double: 0.05, Reorder: 0.05}, 30 * time.Second},
		"10 % of each": {bustest.Faults{Lose: 0.10, Double: 0.10, Reorder: 0.10}, time.Minute},
		"20 % lost":    {bustest.Faults{Lose: 0.20}, 5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(5) {
				synctest.Test(t, func(t *testing.T) {
					tt.faults.Seed = seed
					s := newSite(t, release, file, func(s *site) { s.can.Faults = tt.faults })
					ctx, cancel := context.WithTimeout(t.Context(), 2*tt.within)
					defer cancel()
					began := time.Now()
					if err := s.stage(ctx); err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					took := time.Since(began).Round(time.Millisecond)
					_, blocks := sentAgain(s.messages())
					t.Logf("seed %d: %d bytes in %v, %d blocks", seed, file.Size, took, blocks)
					if took > tt.within {
						t.Errorf("seed %d: it took %v, want at most %v", seed, took, tt.within)
					}
					s.installed()
				})
			}
		})
	}
}

// How fast it is on bad lines, with the pauses that a device asks for by default.
func TestRateOnBadLine(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	file := bundleFile(t, release)
	for _, tt := range []struct {
		each    float64 // lost, doubled, swapped
		atLeast float64 // bytes a second
	}{{0, 4000}, {0.002, 2000}, {0.01, 1200}, {0.02, 800}, {0.05, 300}, {0.10, 100}} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, release, file, func(s *site) {
				s.can.Faults = bustest.Faults{Seed: 1, Lose: tt.each, Double: tt.each, Reorder: tt.each}
			})
			began := time.Now()
			if err := s.stage(t.Context()); err != nil {
				t.Fatal(err)
			}
			rate := float64(file.Size) / time.Since(began).Seconds()
			t.Logf("%4.1f %% each lost, doubled and swapped: %.0f B/s", 100*tt.each, rate)
			if rate < tt.atLeast {
				t.Errorf("%.1f %%: got %.0f B/s, want at least %.0f", 100*tt.each, rate, tt.atLeast)
			}
			s.installed()
		})
	}
}

// A session that ends because the tester was stopped for a while (a laptop that slept)
// is opened again.
func TestTesterSleeps(t *testing.T) {
	release, file, change := small(t)
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, release, file, change)
		n := 0
		s.tell = func(p pdu) {
			if p.fromTester && p.data[0] == byte(uds.TransferData) {
				if n++; n == 2 {
					time.Sleep(10 * time.Second) // the tester's goroutine: no TesterPresent either, as a request is under way
				}
			}
		}
		if err := s.stage(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.installed()
	})
}
