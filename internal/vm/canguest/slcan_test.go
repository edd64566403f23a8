//go:build vmguest && linux

package canguest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmscan"
)

// slcand makes slcan0 of the adapter at ttyS1, as one would on a device, and returns
// what takes the adapter away.
func slcand(t *testing.T) (stop func()) {
	t.Helper()
	cmd := exec.Command("slcand", "-F", "-o", "-c", "-s6", "-S115200", "ttyS1", "slcan0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
		}
	}
	t.Cleanup(stop)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := net.InterfaceByName("slcan0"); err == nil {
			break
		}
		<-tick.C
	}
	ip(t, "set", "slcan0", "up")
	return stop
}

func want(t *testing.T, bus can.Bus, what byte, data ...byte) {
	t.Helper()
	send(t, bus, can.Extended(Wanted, append([]byte{what}, data...)...))
}

// TestSLCAN: Linux's slcan driver takes package can's adapter for a real one, in both
// directions.
func TestSLCAN(t *testing.T) {
	stop := slcand(t)
	bus := dial(t, "slcan0")
	for range 10 {
		for _, f := range samples {
			send(t, bus, f)
			receive(t, bus, Echo(f))
		}
	}

	// More at once than the interface's queue has room for: Send waits.
	const n = 500
	frame := func(i int) can.Frame { return can.Extended(uint32(i), byte(i), byte(i>>8), 3, 4, 5, 6, 7, 8) }
	failed := make(chan error, 1)
	go func() {
		failed <- func() error {
			for i := range n {
				if err := bus.Send(t.Context(), frame(i)); err != nil {
					return fmt.Errorf("frame %d: %w", i, err)
				}
			}
			return nil
		}()
	}()
	for i := range n {
		receive(t, bus, Echo(frame(i)))
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}

	stop()
	if err := receiveErr(t.Context(), bus); !errors.Is(err, can.ErrDown) {
		t.Errorf("Receive without the adapter: %v", err)
	}
	if err := bus.Send(t.Context(), samples[0]); !errors.Is(err, can.ErrDown) {
		t.Errorf("Send without the adapter: %v", err)
	}
}

// TestSLCANState: what the adapter tells of its controller comes through the driver.
func TestSLCANState(t *testing.T) {
	slcand(t)
	bus := dial(t, "slcan0")
	for line, state := range map[string]can.State{"w100000": can.StateWarning, "p000130": can.StatePassive} {
		want(t, bus, State, []byte(line)...)
		send(t, bus, samples[0])
		receive(t, bus, Echo(samples[0]))
		if got := bus.Stats().State; got != state {
			t.Errorf("State after s%s: got %q, want %q", line, got, state)
		}
	}
	want(t, bus, State, []byte("b000000")...)
	if _, err := bus.Receive(t.Context()); !errors.Is(err, can.ErrBusOff) {
		t.Errorf("Receive: %v, want off the bus", err)
	}
	ip(t, "set", "slcan0", "down") // how one restarts it
	if err := receiveErr(t.Context(), bus); !errors.Is(err, can.ErrDown) {
		t.Errorf("Receive: %v, want down", err)
	}
	ip(t, "set", "slcan0", "up")
	send(t, bus, samples[0])
	receive(t, bus, Echo(samples[0]))
}

// TestBattery: what a battery broadcasts arrives at the gate through the driver and
// SocketCAN, in every profile.
func TestBattery(t *testing.T) {
	slcand(t)
	bus := dial(t, "slcan0", can.Filter{ID: 0x7FF, Mask: can.MaxStandard})
	for i, name := range broadcast.Names() {
		t.Run(name, func(t *testing.T) {
			want(t, bus, Battery, byte(i))
			defer want(t, bus, Quiet)
			profile, err := broadcast.Named(name)
			if err != nil {
				t.Fatal(err)
			}
			listener, err := bmscan.Listen(bmscan.Config{
				Open: func(context.Context) (can.Bus, error) {
					return can.DialSocketCAN("slcan0", profile.Filters(broadcast.Options{}))
				},
				Source: "slcan0", Profile: name,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			says := Says(name)
			quantities := map[bms.Quantity]broadcast.Quantity{bms.SoC: broadcast.SoC, bms.Voltage: broadcast.Voltage,
				bms.Current: broadcast.Current, bms.TemperatureMax: broadcast.TemperatureMax}
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			var got bms.Reading
			for complete := false; !complete; <-tick.C {
				got, err = listener.Read(t.Context())
				complete = err == nil && len(got.Alarms) == 0
				for q := range quantities {
					_, there := got.Signals[q]
					complete = complete && there
				}
			}
			for q, of := range quantities {
				if got, want := got.Signals[q].Value, says.Values[of]; got < want-0.2 || got > want+0.2 {
					t.Errorf("%s: got %g, want %g", q, got, want)
				}
			}
			t.Logf("SoC %g %%, %g V, %g A, %g degC", got.Signals[bms.SoC].Value, got.Signals[bms.Voltage].Value,
				got.Signals[bms.Current].Value, got.Signals[bms.TemperatureMax].Value)
		})
	}
}
