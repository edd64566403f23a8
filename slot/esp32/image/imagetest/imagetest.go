// Package imagetest makes images of an ESP32's firmware for tests: whole and
// valid for a bootloader's eyes, with nothing in them that would run.
//
// Start with [App]. Sign what it returns with [image.Sign].
package imagetest

import "github.com/interlock-energy/ota/slot/esp32/image"

// Spec says what an image shall be. The zero value is a small one for an ESP32.
type Spec struct {
	Chip          image.ChipID
	Version       string
	Project       string
	SecureVersion uint32
	Size          int    // of the whole image in bytes, rounded up to a valid one
	Seed          uint64 // other seed, other bytes
	MinRev        uint16 // major*100+minor
	MaxRev        uint16 // 0: no limit
	NoHash        bool   // no SHA-256 is appended
	MMUPageSize   uint32 // bytes; 0: 64 KiB
}

// App returns an application image.
func App(s Spec) []byte { return nil }

// Bootloader returns a bootloader image. Version, Project and MMUPageSize are not used.
func Bootloader(s Spec) []byte { return nil }
