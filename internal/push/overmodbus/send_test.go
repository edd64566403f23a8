package overmodbus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// A file goes into a device, over TCP with several windows and over a serial line, with
// every block sent once.
func TestSend(t *testing.T) {
	release, f := file(t, 9000)
	for _, tt := range []struct {
		name   string
		serial int
		window int
	}{{"TCP, one at a time", 0, 1}, {"TCP, 8 at once", 0, 8}, {"TCP, 64 at once", 0, 64}, {"9600 baud", 9600, 8}, {"115200 baud", 115200, 1}} {
		bubble(t, tt.name, func(t *testing.T) {
			g := newRig(t, release, func(g *rig) { g.serial, g.delay = tt.serial, time.Millisecond })
			defer g.end()
			if err := g.send(t.Context(), f, tt.window); err != nil {
				t.Fatal(err)
			}
			g.whole(f)
			if got, _ := g.sent(); int64(got) != profile.Blocks(f.Size) {
				t.Errorf("got %d blocks sent, want %d", got, profile.Blocks(f.Size))
			}
		})
	}
}

// requests is how many requests an undisturbed transfer takes.
func requests(t *testing.T, serial, window int) (n int) {
	release, f := file(t, 2500)
	bubble(t, "undisturbed", func(t *testing.T) {
		g := newRig(t, release, func(g *rig) { g.serial = serial })
		defer g.end()
		if err := g.send(t.Context(), f, window); err != nil {
			t.Fatal(err)
		}
		_, n = g.sent()
	})
	return n
}

// Whatever is cut at whatever request or answer of a transfer, it goes on, and no block
// is sent again that was acknowledged.
func TestEveryCut(t *testing.T) {
	for _, window := range []int{1, 6} {
		n := requests(t, 0, window)
		t.Logf("window %d: %d requests", window, n)
		release, f := file(t, 2500)
		for _, side := range []string{bustest.Master, bustest.Slave} {
			for _, verdict := range []bustest.Verdict{bustest.Cut, bustest.CutInner, bustest.CutAfter, bustest.Lose} {
				for at := range n {
					bubble(t, fmt.Sprintf("window %d/%s/%s/%d", window, side, verdict, at), func(t *testing.T) {
						g := newRig(t, release, func(g *rig) { g.faults = once(side, verdict, at) })
						defer g.end()
						if err := g.persist(f, window); err != nil {
							t.Fatal(err)
						}
						g.whole(f)
					})
				}
			}
		}
	}
}

// A device without function 20 cannot say which blocks behind the first missing one it
// has: they are asked for one by one.
func TestEveryCutWithoutBitmap(t *testing.T) {
	n := requests(t, 0, 6)
	release, f := file(t, 2500)
	for _, side := range []string{bustest.Master, bustest.Slave} {
		for _, verdict := range []bustest.Verdict{bustest.Cut, bustest.CutAfter, bustest.Lose} {
			for at := range n {
				bubble(t, fmt.Sprintf("%s/%s/%d", side, verdict, at), func(t *testing.T) {
					g := newRig(t, release, func(g *rig) { g.poor, g.faults = true, once(side, verdict, at) })
					defer g.end()
					if err := g.persist(f, 6); err != nil {
						t.Fatal(err)
					}
					g.whole(f)
				})
			}
		}
	}
}

// once does something to the frame with a number that an end sends.
func once(side string, verdict bustest.Verdict, at int) bustest.Faults {
	return bustest.Faults{From: side, Exactly: func(r bustest.Record) bustest.Verdict {
		if r.N == at {
			return verdict
		}
		return bustest.Pass
	}}
}

// The same on a serial line, on which frames get lost, damaged, doubled and late.
func TestEveryLoss(t *testing.T) {
	n := requests(t, 115200, 1)
	t.Logf("%d requests", n)
	release, f := file(t, 2500)
	for _, side := range []string{bustest.Master, bustest.Slave} {
		for _, verdict := range []bustest.Verdict{bustest.Lose, bustest.Garble, bustest.Double, bustest.Swap} {
			for at := range n {
				bubble(t, fmt.Sprintf("%s/%s/%d", side, verdict, at), func(t *testing.T) {
					g := newRig(t, release, func(g *rig) { g.serial, g.faults = 115200, once(side, verdict, at) })
					defer g.end()
					if err := g.persist(f, 1); err != nil {
						t.Fatal(err)
					}
					g.whole(f)
					// RESUME, which is refused, OPEN and CLOSE: given again, they keep their numbers.
					if got := g.commands(); len(got) != 3 {
						t.Errorf("got the commands %v, want 3 different ones", got)
					}
				})
			}
		}
	}
}

// The agent restarts at every request: its sessions are gone, and what it had is not.
func TestEveryRestartOfTheDevice(t *testing.T) {
	for _, window := range []int{1, 6} {
		n := requests(t, 0, window)
		release, f := file(t, 2500)
		for at := range n {
			bubble(t, fmt.Sprintf("window %d/%d", window, at), func(t *testing.T) {
				restarted := make(chan struct{})
				var g *rig
				g = newRig(t, release, func(r *rig) {
					r.faults = bustest.Faults{From: bustest.Master, Exactly: func(rec bustest.Record) bustest.Verdict {
						if rec.N == at {
							go func() {
								defer close(restarted)
								g.restart(3 * time.Second)
							}()
						}
						return bustest.Pass
					}}
				})
				defer g.end()
				for again := true; again; { // a transfer may take a request less than the first one did
					if err := g.persist(f, window); err != nil {
						t.Fatal(err)
					}
					select {
					case <-restarted:
						again = false
					case <-time.After(10 * time.Second):
					}
				}
				if err := g.persist(f, window); err != nil { // the restart may have come after the end
					t.Fatal(err)
				}
				g.whole(f)
			})
		}
	}
}

// The program that pushes is killed at every request, and started again.
func TestEveryRestartOfTheMaster(t *testing.T) {
	for _, serial := range []int{0, 115200} {
		n := requests(t, serial, 6)
		release, f := file(t, 2500)
		for at := range n {
			bubble(t, fmt.Sprintf("%d baud/%d", serial, at), func(t *testing.T) {
				ctx, kill := context.WithCancel(t.Context())
				defer kill()
				g := newRig(t, release, func(g *rig) {
					g.serial = serial
					g.faults = bustest.Faults{From: bustest.Master, Exactly: func(r bustest.Record) bustest.Verdict {
						if r.N == at {
							kill()
						}
						return bustest.Pass
					}}
				})
				defer g.end()
				if err := g.send(ctx, f, 6); err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("got %v, want it killed", err) // or at its end in the same moment
				}
				<-time.After(200 * time.Millisecond)
				if err := g.persist(f, 6); err != nil {
					t.Fatal(err)
				}
				g.whole(f)
			})
		}
	}
}

// With a tenth of everything lost, doubled, late, damaged or cut, a transfer still comes
// to its end, and nothing is sent again that was acknowledged.
func TestBadLines(t *testing.T) {
	release, f := file(t, 20000)
	for _, tt := range []struct {
		name   string
		serial int
		poor   bool
		faults bustest.Faults
	}{
		{"115200 baud, lost", 115200, false, bustest.Faults{Lose: 0.1}},
		{"115200 baud, doubled", 115200, false, bustest.Faults{Double: 0.1}},
		{"115200 baud, late", 115200, false, bustest.Faults{Reorder: 0.1}},
		{"115200 baud, damaged", 115200, false, bustest.Faults{Garble: 0.1}},
		{"9600 baud, all of it", 9600, false, bustest.Faults{Lose: 0.05, Double: 0.05, Reorder: 0.05, Garble: 0.05}},
		{"TCP, cut", 0, false, bustest.Faults{Cut: 0.1}},
		{"TCP, cut, functions 3 and 16", 0, true, bustest.Faults{Cut: 0.1}},
		{"TCP, gateway loses", 0, false, bustest.Faults{Lose: 0.1}},
	} {
		for seed := range uint64(5) {
			bubble(t, fmt.Sprintf("%s/%d", tt.name, seed), func(t *testing.T) {
				g := newRig(t, release, func(g *rig) {
					g.serial, g.poor, g.delay, g.faults = tt.serial, tt.poor, 5*time.Millisecond, tt.faults
					g.faults.Seed = seed
				})
				defer g.end()
				begin := time.Now()
				if err := g.persist(f, 8); err != nil {
					t.Fatal(err)
				}
				g.whole(f)
				blocks, all := g.sent()
				t.Logf("%v, %d blocks written of %d, %d requests", time.Since(begin).Round(time.Millisecond), blocks, profile.Blocks(f.Size), all)
			})
		}
	}
}

// A device that is busy for ever is asked for as long as there is time, and a person hears
// of it.
func TestBusyForEver(t *testing.T) {
	release, f := file(t, 2500)
	bubble(t, "told", func(t *testing.T) {
		g := newRig(t, release, func(r *rig) { r.poor, r.full = true, true })
		defer g.end()
		d := g.master(4)
		defer d.Close()
		var told []string
		begin := time.Now()
		err := push.Run(t.Context(), d, f, push.Options{StageOnly: true, Timeout: 10 * time.Minute, Tell: func(e push.Event) {
			if e.Kind == push.KindTrouble || e.Kind == push.KindBack {
				told = append(told, fmt.Sprintf("%v %s: %s", time.Since(begin).Round(time.Second), e.Kind, e.Error))
			}
		}})
		if !errors.Is(err, push.ErrUnfinished) {
			t.Errorf("got %v, want %v", err, push.ErrUnfinished)
		}
		if len(told) != 1 || !strings.Contains(told[0], "write block 0: the device answers exception 6") {
			t.Errorf("got told %q, want once that block 0 is not taken", told)
		}
		if _, n := g.sent(); n > 3000 {
			t.Errorf("got %d requests in 10 minutes, want pauses between them", n)
		}
	})
}

// That a line works again is said when it does, and not at the end of the transfer.
func TestToldAtOnce(t *testing.T) {
	release, f := file(t, 20000)
	bubble(t, "told", func(t *testing.T) {
		var g *rig
		g = newRig(t, release, func(r *rig) {
			r.faults = bustest.Faults{From: bustest.Master, Exactly: func(rec bustest.Record) bustest.Verdict {
				if rec.N == 20 {
					go g.restart(30 * time.Second)
				}
				return bustest.Pass
			}}
		})
		defer g.end()
		d := g.master(1)
		defer d.Close()
		var kinds []push.Kind
		err := push.Run(t.Context(), d, f, push.Options{StageOnly: true, Tell: func(e push.Event) {
			if e.Kind == push.KindTrouble || e.Kind == push.KindBack || len(kinds) > 0 && kinds[len(kinds)-1] != e.Kind {
				kinds = append(kinds, e.Kind)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		want := []push.Kind{push.KindTrouble, push.KindProgress, push.KindBack, push.KindProgress}
		if !slices.Equal(kinds, want) && !slices.Equal(kinds, slices.Delete(want, 1, 2)) { // the device may have one more than was acknowledged
			t.Errorf("got the events %v, want trouble, that it is over, and progress", kinds)
		}
	})
}
