// Package bustest is what buses do to frames, for the tests of whoever talks over one:
// serial lines that take their time, CAN buses with arbitration, connections that
// break, frames that are lost, doubled, swapped and damaged. Everything is made of
// software, and nothing of it belongs into a program.
//
// Start with the kind of bus:
//
//	a, b := bustest.Pair(bustest.WireConfig{Baud: 9600})   // a serial line, half-duplex
//	bus := bustest.NewCAN(bustest.CANConfig{})             // 500 kbit/s
//	one, two := bus.Join("one"), bus.Join("two")           // each is a can.Bus
//	net := bustest.NewNetwork(20 * time.Millisecond)       // TCP, in memory
//	device, path := bustest.PTY(t)                         // a pseudo terminal
//
// and put the faults between two ends of it: [Relay] for streams that carry frames of
// Modbus RTU or lines of SLCAN, [Proxy] for Modbus TCP, CANConfig.Faults for a CAN bus.
// All of them write what they saw into a [Tap]; [AgainModbus] and [AgainUDS] read from
// it what was sent again although it had been acknowledged.
//
// What is promised: time passes by timers and channels only, so that all but PTY, and a
// Proxy on real sockets, work within a bubble of testing/synctest, where an hour at
// 9600 baud takes a second; there, how long things take is exact. The same seed makes the same
// faults, whatever the order in which goroutines run.
package bustest
