// Package canguest holds tests of packages bus/can and bus/isotp that need a kernel with
// CAN: Linux's SocketCAN, its ISO-TP and its slcan driver, with can-utils as peers. Most machines that build
// Interlock have none of these, so the tests run inside of a virtual machine, which
// TestCAN of package internal/vm starts:
//
//	make vm
//
// They have the build tag vmguest. The guest has no disk and uses no network: the
// script build makes an initramfs of busybox, can-utils, modules and the test program.
// Its second serial port, ttyS1, leads to an SLCAN adapter with a battery behind it, and
// a device that speaks ISO-TP, which TestCAN plays. What it does there is told by the frames of this package.
//
// What is promised: init prints what the test program prints, then "guest: exit N"
// with its exit code, and powers the machine off.
package canguest

import (
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/bus/isotp"
)

// Wanted is the identifier (29 bits) of frames by which the guest tells the other end
// what to do: a byte from the list below, and what follows it. The other end sends all
// others back, as Echo makes them.
const Wanted = 0x1FFF_FF00

// What can be wanted.
const (
	Quiet   = 'q' // no broadcasts from now on
	Battery = 'b' // broadcasts of the profile whose index in broadcast.Names follows
	State   = 's' // the line "s" and what follows, as adapters tell the controller's state
)

// PDUs of ISO-TP with these identifiers (11 bits) are sent back whole, as the device, if
// they have no more bytes than Most.
const (
	Tester = 0x6E0 // what the guest sends
	Device = 0x6E8
	Most   = 40 << 10
)

// Patient lets a machine that is busy with other things have its time.
func Patient(c isotp.Config) isotp.Config {
	c.NAs, c.NAr, c.NBs, c.NCr = time.Minute, time.Minute, time.Minute, time.Minute
	return c
}

// Echo is what the other end makes of a frame.
func Echo(f can.Frame) can.Frame {
	f.ID ^= 0x400
	return f
}

// Says is what the battery says of itself in a profile.
func Says(profile string) broadcast.Battery {
	voltage := 51.2
	switch profile {
	case "pylon-hv", "original": // modules in series
		voltage = 665.6
	}
	return broadcast.Battery{
		Values: map[broadcast.Quantity]float64{
			broadcast.SoC: 73, broadcast.SoH: 97, broadcast.Voltage: voltage, broadcast.Current: -27.5,
			broadcast.TemperatureMin: 21, broadcast.TemperatureMax: 21, broadcast.BoardTemperature: 24,
			broadcast.CellMin: 3.198, broadcast.CellMax: 3.202, broadcast.Capacity: 280, broadcast.Modules: 13,
			broadcast.ChargeVoltage: 56.4, broadcast.DischargeVoltage: 44.8, broadcast.ChargeLimit: 100, broadcast.DischargeLimit: 120,
			broadcast.ModulesOffline: 0, broadcast.ModulesBlockingCharge: 0, broadcast.ModulesBlockingDischarge: 0,
		},
		Charge: broadcast.On, Discharge: broadcast.On, Maker: "ILOCK", Name: "SIM", Serial: "S1", Type: "LI", Version: "1.3",
	}
}
