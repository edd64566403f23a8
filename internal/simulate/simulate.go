// Package simulate puts a simulated battery system on the buses that a real one
// has: SunSpec over Modbus TCP and RTU, and a management system's broadcast
// frames over SLCAN or a TCP converter. It is for tests of whatever reads or
// controls a battery, and for people without one.
//
// Start with [Start]; [System.Endpoints] says where it can be reached,
// [System.Set] changes the battery and [System.Fault] breaks something.
//
// What is promised: one physical model is behind all buses, so what they say fits
// together unless a fault is on; what a fault does is in the table of [Faults] and
// nowhere else; with the same seed, settings and times, the same values. It has no
// access control: whoever reaches it may change it.
package simulate

import (
	"context"
	"errors"

	"github.com/interlock-energy/ota/internal/battery"
)

// Config says what to simulate and where to serve it. What has no address is not
// served.
type Config struct {
	Battery battery.Config

	SunSpec string // TCP address of the Modbus server, "127.0.0.1:0" for any port
	Unit    byte   // Modbus unit; 0: 1
	Base    uint16 // where the SunSpec map begins; 0: 40000
	Cells   bool   // also one model 805 for each module, with every cell
	RTU     Line   // Modbus RTU, the same map

	SLCAN   Line   // CAN frames as an SLCAN adapter sends them
	CANTCP  string // TCP address of a CAN converter with frames of 13 bytes
	Profile string // of the frames, as package broadcast names it; "": pylon-lv

	HTTP string // TCP address of the reading as JSON, and of changes

	Faults []string // on from the beginning
}

// Line is a serial line. The zero Line is none.
type Line struct {
	Path string // a serial device, or "pty": a pseudo terminal is made
	Link string // with pty: a symbolic link to it, made anew; "": none
	Baud int    // 0: 9600 for Modbus, 115200 for SLCAN; a pty has no speed
}

// Endpoint is where something is served.
type Endpoint struct {
	What   string // "sunspec", "sunspec-rtu", "slcan", "can-tcp", "http"
	Where  string // an address or a path
	Detail string // "unit 1", "profile pylon-lv"
}

// System is a simulated battery system. Its methods may be called from any goroutine.
type System struct{}

// Start begins to serve. It ends when ctx does, or with Close.
func Start(ctx context.Context, cfg Config) (*System, error) {
	return nil, errors.New("start the simulated battery: not yet")
}

// Endpoints lists what is served, in the order of the fields of [Config].
func (s *System) Endpoints() []Endpoint { return nil }

// Where returns the address or path of an endpoint, "" if it is not served.
func (s *System) Where(what string) string { return "" }

// Set changes the battery, wholly or not at all.
func (s *System) Set(to battery.Settings) error { return errors.New("not yet") }

// Fault turns a fault of [Faults] on or off.
func (s *System) Fault(name string, on bool) error { return errors.New("not yet") }

// Clear turns all faults off.
func (s *System) Clear() {}

// Close ends serving and waits for it.
func (s *System) Close() error { return nil }
