package agent_test

import (
	"context"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/internal/simulate"
)

// carry passes frames on between two buses until ctx ends.
func carry(ctx context.Context, a, b can.Bus) {
	one := func(from, to can.Bus) {
		for ctx.Err() == nil {
			if f, err := from.Receive(ctx); err == nil {
				_ = to.Send(ctx, f) // who is not there does not hear it
			} else if pause := time.After(10 * time.Millisecond); ctx.Err() == nil {
				<-pause
			}
		}
	}
	go one(a, b)
	go one(b, a)
}

// oneAdapter is a CAN bus with a simulated battery, and the device with its only adapter.
func oneAdapter(t *testing.T, s *site, soc float64) (*bustest.CAN, *simulate.System) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	bus := bustest.NewCAN(bustest.CANConfig{})
	t.Cleanup(func() {
		stop()
		bus.Close()
	})
	current := 4.0
	plant, err := simulate.Start(ctx, simulate.Config{SLCAN: simulate.Line{Path: "pty"}, Profile: "victron",
		Battery: battery.Config{Noise: true, Start: battery.Settings{SoC: &soc, Current: &current}}})
	if err != nil {
		t.Fatal(err)
	}
	port, err := serial.Open(serial.Config{Path: plant.Where("slcan"), Baud: 115200})
	if err != nil {
		t.Fatal(err)
	}
	bms, err := can.OpenSLCAN(ctx, port, can.SLCANConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bms.Close() })
	carry(ctx, bms, bus.Join("battery"))

	end, path := bustest.PTY(t)
	adapter := can.NewAdapter(end, can.AdapterConfig{})
	t.Cleanup(func() { adapter.Close() })
	carry(ctx, adapter, bus.Join("device"))
	s.config = regexp.MustCompile(`(?m)^battery: .*$`).ReplaceAllLiteralString(s.config,
		"battery: {reader: can, can: {slcan: {device: "+path+", baud: 1000000}, profile: victron, frozen_after: 4s}, max_age: 3s}")
	s.config = regexp.MustCompile(`(?ms)^source:.*?^keys`).ReplaceAllLiteralString(s.config,
		"source: {canbus: {slcan: {device: "+path+", baud: 1000000}, allow_open: true}}\nkeys")
	return bus, plant
}

// A small device has one adapter on the bus: the battery broadcasts on it, and a tester brings a
// release on it. The gate sees the battery all the time, says no at 22 %, and yes at 57 %.
func TestOneAdapter(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.publish("1.1.0", firmware("1.1.0", "", 3000))
	file, err := push.Open(filepath.Join(s.dir, "1.1.0.bundle"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	bus, plant := oneAdapter(t, s, 22)
	a, _ := s.start()

	var line overcan.Line
	tester, err := overcan.New(overcan.Config{Margin: time.Second, Dial: func(context.Context) (uds.Conn, error) { return line.Over(bus.Join("tester")) }})
	if err != nil {
		t.Fatal(err)
	}
	defer tester.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var mu sync.Mutex
	var last push.Status
	proven := make(chan error, 1)
	go func() {
		proven <- push.Run(ctx, tester, file, push.Options{Poll: 200 * time.Millisecond, Tell: func(e push.Event) {
			if e.Status != nil {
				mu.Lock()
				defer mu.Unlock()
				last = *e.Status
			}
		}})
	}()
	low := regexp.MustCompile(`^state of charge 2[12]\S* %, want at least 30 %`)
	wait(t, a, "22 %", func(n ota.Snapshot) bool { return n.Code == ota.ErrBatteryLow && low.MatchString(n.Reason) })
	for waits := false; !waits; time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-proven:
			t.Fatalf("the push ended at 22 %%: %v", err)
		default:
		}
		mu.Lock()
		waits = last.State == push.WaitSafe && low.MatchString(last.Reason)
		mu.Unlock()
		if ctx.Err() != nil {
			t.Fatalf("the tester hears %+v, want that it waits for the battery", last)
		}
	}
	soc := 57.0
	if err := plant.Set(battery.Settings{SoC: &soc}); err != nil {
		t.Fatal(err)
	}
	if err := <-proven; err != nil {
		t.Fatalf("the push at 57 %%: %v", err)
	}
	if got := a.Snapshot(); got.Running != "1.1.0" || got.Last == nil || got.Last.Result != ota.Succeeded {
		t.Errorf("the device: got %+v, want 1.1.0 proven", got)
	}
}
