package simulate

import (
	"context"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/sunspec"
)

// TestSerialDevices serves on serial devices that are already there, and asks from the
// other end of their wires.
func TestSerialDevices(t *testing.T) {
	rtu, err := openPTY()
	if err != nil {
		t.Fatal(err)
	}
	defer rtu.Close()
	adapter, err := openPTY()
	if err != nil {
		t.Fatal(err)
	}
	defer adapter.Close()
	s, err := Start(context.Background(), Config{RTU: Line{Path: rtu.slave, Baud: 115200}, SLCAN: Line{Path: adapter.slave}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if at := s.Endpoints(); len(at) != 2 || at[0] != (Endpoint{"sunspec-rtu", rtu.slave, "unit 1, 115200 baud"}) {
		t.Errorf("got %v", at)
	}
	client := modbus.NewRTU(rtu, modbus.Config{Timeout: 20 * time.Second})
	defer client.Close()
	d, err := sunspec.Discover(t.Context(), client.Unit(1), sunspec.Search{})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := sunspec.ReadBattery(t.Context(), client.Unit(1), d); err != nil || b.SoC.Value != 60 {
		t.Errorf("got %v %%, %v", b.SoC.Value, err)
	}
	bus, err := can.OpenSLCAN(t.Context(), adapter, can.SLCANConfig{Bitrate: 500_000})
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	if _, err := bus.Receive(t.Context()); err != nil {
		t.Error(err)
	}

	// Another simulator cannot have the same device.
	if _, err := Start(t.Context(), Config{RTU: Line{Path: rtu.slave}}); err == nil {
		t.Error("the same device twice: got no error")
	}
}
