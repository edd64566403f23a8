package overcan_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/otatest"
	source "github.com/interlock-energy/ota/source/can"
)

// duplex is a serial line with a wire for each direction.
type duplex struct {
	io.Reader
	io.Writer
	close func()
}

func (d duplex) Close() error {
	d.close()
	return nil
}

// adapterAt puts an SLCAN adapter on the bus, at the end of a serial line with this speed, and returns what
// opens it.
func adapterAt(t *testing.T, s *site, baud int) func(context.Context) (can.Bus, error) {
	return func(ctx context.Context) (can.Bus, error) {
		line := bustest.WireConfig{Baud: baud, CharBits: 10, Burst: 64, Latency: time.Millisecond} // as UARTs with a buffer have it
		hostOut, adapterIn := bustest.Pair(line)
		adapterOut, hostIn := bustest.Pair(line)
		all := sync.OnceFunc(func() {
			for _, e := range []*bustest.End{hostOut, adapterIn, adapterOut, hostIn} {
				e.Close()
			}
		})
		adapter, node := can.NewAdapter(duplex{adapterIn, adapterOut, all}, can.AdapterConfig{}), s.bus.Join("device")
		pass := func(from, to can.Bus) {
			for {
				f, err := from.Receive(context.Background())
				if err == nil {
					err = to.Send(context.Background(), f)
				}
				if err != nil {
					node.Close()
					adapter.Close()
					return
				}
			}
		}
		go pass(adapter, node)
		go pass(node, adapter)
		return can.OpenSLCAN(ctx, duplex{hostIn, hostOut, all}, can.SLCANConfig{})
	}
}

// One adapter for the battery's reader and for a transfer: every frame of the battery gets through it, and none late.
func TestSharedAdapter(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 10_000)
	file := bundleFile(t, release)
	for name, tt := range map[string]struct {
		baud    int // of the line to the adapter
		limits  int // what the source is told of it
		atLeast float64
		late    time.Duration // at most, three frames on the line included
	}{
		"an adapter on USB":             {12_000_000, 0, 3500, 4 * time.Millisecond},
		"a serial line at 115,200 baud": {115_200, 115_200, 900, 10 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, release, file, func(s *site) {
					shared := can.NewShared(can.SharedConfig{Open: adapterAt(t, s, tt.baud)})
					s.source.Link = source.Link{Shared: shared, Baud: tt.limits}
				})
				synctest.Wait()
				const every = 100 * time.Millisecond
				battery := []can.Frame{can.Standard(0x351, 1, 2, 3, 4, 5, 6, 7, 8), can.Standard(0x355, 1, 2, 3, 4), can.Standard(0x356, 1, 2, 3, 4, 5, 6)}
				reader, err := s.source.Link.Shared.Join(t.Context(), can.UserConfig{Filters: can.Filters{{ID: 0x350, Mask: 0x7F0}}, ListenOnly: true})
				if err != nil {
					t.Fatal(err)
				}
				defer reader.Close()
				began := time.Now()
				stop := s.bus.Broadcast("battery", every, battery...)
				defer stop()
				var late time.Duration
				read := 0
				var listening sync.WaitGroup
				listening.Go(func() {
					for {
						f, err := reader.Receive(t.Context())
						if err != nil {
							return
						}
						if want := battery[read%3]; f != want {
							t.Errorf("frame %d of the battery is %v, want %v", read, f, want)
							return
						}
						late = max(late, time.Since(began)-time.Duration(read/3)*every)
						read++
					}
				})
				d := s.tester()
				if _, err := d.Identify(t.Context()); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				if err := d.Send(t.Context(), file, push.Tell{}); err != nil {
					t.Fatal(err)
				}
				rate := float64(file.Size) / time.Since(begin).Seconds()
				stop()
				time.Sleep(every)
				use := s.bus.Use("battery")
				reader.Close()
				listening.Wait()
				t.Logf("%.0f B/s; the battery's reader got %d frames of %d, at most %v late", rate, read, use.Frames, late)
				if read != use.Frames || use.Missed > 0 || read < 20 {
					t.Errorf("the battery's reader got %d of %d frames, of which %d came too late for the bus", read, use.Frames, use.Missed)
				}
				if late > tt.late {
					t.Errorf("the battery's frames are %v late, want at most %v", late, tt.late)
				}
				if rate < tt.atLeast {
					t.Errorf("got %.0f B/s, want at least %.0f", rate, tt.atLeast)
				}
				s.check()
			})
		})
	}
}
