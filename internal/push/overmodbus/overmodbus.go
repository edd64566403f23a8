// Package overmodbus pushes a bundle into a device over Modbus: TCP, TCP within TLS, and
// RTU on a serial line. It is the master's side of the profile "BESS-MFT" of package
// source/modbus/profile, for [push.Run].
package overmodbus

import (
	"errors"

	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/push"
)

// Config says which device, and how.
type Config struct {
	Client *modbus.Client // closed by the Device
	Unit   byte           // 0: 1
	Base   uint16         // where the profile begins; 0: 0xE000
	Window int            // how many blocks may be on their way; 0: 1
	Line   string         // for people: "9600 baud", "TCP"
	Rate   float64        // bytes of the file per second that the line allows; 0: it is measured
}

// New returns the device at the other end of a client.
func New(c Config) (push.Device, error) { return nil, errors.ErrUnsupported }
