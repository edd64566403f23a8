// Package fielddemo shows the whole path over a field bus, in one test that is also
// "make field-demo": a technician's laptop pushes a bundle into a device over each kind of
// line, with frames that are lost, doubled and swapped, or connections that break, and
// while both ends are killed and started again.
//
// Real are the programs interlock and interlockd, TLS with roles, and the firmware, a
// process that says its version. The lines are pseudo terminals and loopback connections;
// what stands for cables that disturb, and for CAN adapters and their bus, is package
// bus/bustest.
package fielddemo
