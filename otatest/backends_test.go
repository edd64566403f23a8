package otatest_test

import (
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/esp32/esp32test"
	"github.com/interlock-energy/ota/slot/file/filetest"
	"github.com/interlock-energy/ota/slot/grub/grubtest"
	"github.com/interlock-energy/ota/slot/uboot"
	"github.com/interlock-energy/ota/slot/uboot/uboottest"
)

// A backend is a row of the matrix of cuts.
type backend struct {
	name string
	otatest.Backend
	weak bool // boot control in one copy without a checksum
}

// backends are all that there are. A new one is a line here.
var backends = []backend{
	{"file", filetest.Backend{}, false},
	{"U-Boot RAUC partition", uboottest.Backend{}, false},
	{"U-Boot RAUC boolean", uboottest.Backend{Flags: uboot.Boolean}, false},
	{"U-Boot RAUC FAT", uboottest.Backend{Medium: uboottest.Files}, false},
	{"U-Boot RAUC flash", uboottest.Backend{Medium: uboottest.Flash}, false},
	{"U-Boot Mender", uboottest.Backend{Scheme: uboot.Mender}, false},
	{"GRUB pair", grubtest.Backend{}, false},
	{"GRUB alone", impatient{grubtest.Backend{Alone: true}}, true},
	{"ESP32 flash", esp32test.Backend{}, false},
}

// impatient is a bootloader that wants to hear at every start that the slot is good.
type impatient struct{ otatest.Backend }

func (impatient) Impatient() {}
