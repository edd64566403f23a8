package otatest_test

import (
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/esp32/esp32test"
	"github.com/interlock-energy/ota/slot/file/filetest"
	"github.com/interlock-energy/ota/slot/grub/grubtest"
	"github.com/interlock-energy/ota/slot/sdboot/sdboottest"
	"github.com/interlock-energy/ota/slot/tryboot/tryboottest"
	"github.com/interlock-energy/ota/slot/uboot"
	"github.com/interlock-energy/ota/slot/uboot/uboottest"
)

// A backend is a row of the matrix of cuts, with what it cannot promise.
type backend struct {
	name string
	otatest.Backend
	weak     bool // boot control in one copy, which a torn write destroys
	unsealed bool // boot control without a checksum
	fragile  bool // boot control without a checksum, which a bit that rots destroys
	mute     bool // cannot tell a slot that did not come up from one that was never tried
}

// backends are all that there are. A new one is a line here.
var backends = []backend{
	{name: "file", Backend: filetest.Backend{}},
	{name: "U-Boot RAUC partition", Backend: uboottest.Backend{}},
	{name: "U-Boot RAUC boolean", Backend: uboottest.Backend{Flags: uboot.Boolean}},
	{name: "U-Boot RAUC FAT", Backend: uboottest.Backend{Medium: uboottest.Files}},
	{name: "U-Boot RAUC flash", Backend: uboottest.Backend{Medium: uboottest.Flash}},
	{name: "U-Boot Mender", Backend: uboottest.Backend{Scheme: uboot.Mender}},
	{name: "GRUB pair", Backend: grubtest.Backend{}},
	{name: "GRUB alone", Backend: impatient{grubtest.Backend{Alone: true}}, weak: true},
	{name: "ESP32 flash", Backend: esp32test.Backend{}},
	{name: "systemd-boot", Backend: sdboottest.Backend{}, fragile: true},
	{name: "Raspberry Pi tryboot", Backend: tryboottest.Backend{}, unsealed: true, mute: true},
}

// impatient is a bootloader that wants to hear at every start that the slot is good.
type impatient struct{ otatest.Backend }

func (impatient) Impatient() {}
