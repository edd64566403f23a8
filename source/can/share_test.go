package can_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can"
	"github.com/interlock-energy/ota/source/can/profile"
)

// What a battery sends every 100 ms (Pylontech and SMA profiles).
func battery() []bus.Frame {
	var frames []bus.Frame
	for _, id := range []uint32{0x351, 0x355, 0x356, 0x359, 0x35C, 0x35E, 0x35A, 0x373} {
		frames = append(frames, bus.Standard(id, 1, 2, 3, 4, 5, 6, 7, 8))
	}
	return frames
}

// The share of the bus is kept by flow control and by the pace of answers alone: the
// tester here sends as fast as it is let, in long blocks and in tiny ones, and reads in
// between. Every frame has its most stuff bits. The battery's frames are never late.
func TestShare(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 40_000)
	for _, tt := range []struct {
		share, block int
		config       func(*can.Config)
	}{
		{50, 4093, nil},
		{50, 64, nil},
		{50, 5, nil},
		{25, 4093, nil},
		{25, 300, nil},
		{10, 4093, nil},
		{80, 4093, func(c *can.Config) { c.STmin, c.BlockSize = -1, 16 }},
		{50, 4093, func(c *can.Config) { c.STmin = -1 }},
		{50, 4093, func(c *can.Config) { c.ID = 0x7E0; c.STmin = -1 }},
	} {
		t.Run(fmt.Sprintf("%d %% in blocks of %d", tt.share, tt.block), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, release.Verify, func(r *rig) {
					r.config.Share = tt.share
					if tt.config != nil {
						tt.config(&r.config)
					}
				})
				stop := r.bus.Broadcast("battery", 100*time.Millisecond, battery()...)
				defer stop()
				x := r.testerOn(r.config.ID)
				x.enter(r)
				x.raw(announcement(release.Bundle))
				x.raw(download(0, len(release.Bundle)))
				b := release.Bundle
				if tt.block < 100 {
					b = b[:4000]
				}
				began := time.Now()
				x.blocks(b, 0, tt.block)
				for range 50 {
					x.read(profile.DIDProgress)
				}
				took := time.Since(began)
				mean, worst := r.used(began, time.Second)
				t.Logf("%.1f %% of the bus on the average, %.1f %% in the busiest second, %.0f B/s; the battery waited %v at most",
					100*mean, 100*worst, float64(len(b))/took.Seconds(), r.bus.Use("battery").Waited)
				if limit := float64(tt.share) / 100; worst > limit*1.02 || mean > limit*1.01 {
					t.Errorf("%.3f of the bus on the average, %.3f in the busiest second, want %.3f", mean, worst, limit)
				}
				if use := r.bus.Use("battery"); use.Missed > 0 || use.Waited > 5*time.Millisecond {
					t.Errorf("the battery's frames waited %v at most, %d were not sent", use.Waited, use.Missed)
				}
			})
		})
	}
}

// used is the part of the bus that tester and device together had since then, and that in
// the busiest window of that length.
func (r *rig) used(since time.Time, window time.Duration) (mean, worst float64) {
	var all, in, most time.Duration
	records := slices.DeleteFunc(r.tap.Records(), func(f bustest.Record) bool { return f.From != "tester" && f.From != "device" || f.At.Before(since) })
	first := 0
	for _, f := range records {
		took := r.bus.Time(f.Frame)
		all, in = all+took, in+took
		for f.At.Sub(records[first].At) > window {
			in -= r.bus.Time(records[first].Frame)
			first++
		}
		most = max(most, in)
	}
	return float64(all) / float64(time.Since(since)), float64(most) / float64(window)
}

// A bus that is lost is opened again, and the transfer goes on.
func TestBusLost(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000)
	synctest.Test(t, func(t *testing.T) {
		const fails = 3
		var opened atomic.Int32
		var device atomic.Pointer[bustest.Node]
		r := newRig(t, release.Verify, func(r *rig) {
			r.config.Link = can.Link{Open: func(context.Context) (bus.Bus, error) {
				if opened.Add(1) <= fails {
					return nil, fmt.Errorf("open the adapter: %w", bus.ErrDown)
				}
				node := r.bus.Join("device")
				device.Store(node)
				return node, nil
			}}
		})
		x := r.tester()
		if got := x.ask("3E 00"); got != "" {
			t.Errorf("answer of a device without a bus: %s", got)
		}
		time.Sleep(20 * time.Second)
		x.enter(r)
		x.raw(announcement(release.Bundle))
		x.raw(download(0, len(release.Bundle)))
		x.blocks(release.Bundle[:2000], 0, 1000)
		device.Load().Break(bus.ErrDown)
		time.Sleep(5 * time.Second)
		if got := opened.Load(); got != fails+2 {
			t.Errorf("the bus was opened %d times, want %d", got, fails+2)
		}
		if p := x.progress(); p.Next != 2000 || x.read(profile.DIDSession)[0] != 1 {
			t.Errorf("progress %+v, session %d", p, x.read(profile.DIDSession)[0])
		}
		device.Load().Break(bus.ErrBusOff) // the controller comes back by itself, and so does the session
		x.push(r, release.Bundle, 1000)
		r.offered(release)
	})
}

// A tester that floods the bus with what wants no answer is not answered as it likes; but the
// device is not silent for as long again once it has gone.
func TestShareAfterAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, func(r *rig) { r.config.Share = 5 })
		x := r.tester()
		const flood = time.Minute
		for began := time.Now(); time.Since(began) < flood; {
			if err := x.conn.Send(t.Context(), []byte{0x3E, 0x80}); err != nil {
				t.Fatal(err)
			}
		}
		if err := x.conn.Send(t.Context(), []byte{0x3E, 0x00}); err != nil {
			t.Fatal(err)
		}
		if got := x.answer(10 * time.Second); !bytes.Equal(got, []byte{0x7E, 0x00}) {
			t.Errorf("10 s after the flood: got % X, want an answer", got)
		}
	})
}
