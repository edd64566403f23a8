// Package uboottest puts U-Boot slots on the disks of package otatest, with a model
// of U-Boot and of the boot script. The model is a fake, written from U-Boot's and
// RAUC's and Mender's sources as another one than the code that it is to test: it has
// its own reader and writer of the environment, and saves only one copy at a time.
package uboottest

import (
	"bytes"
	"context"
	"fmt"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/uboot"
)

// Medium is what holds the environment.
type Medium int

// Media.
const (
	Device Medium = iota // a partition with both copies
	Files                // two files on FAT, as with CONFIG_ENV_IS_IN_FAT
	Flash                // raw NOR flash, with other data behind each copy
)

// Backend is an [otatest.Backend] of U-Boot slots. The zero value is ready: RAUC's
// convention, with incremental flags, on a partition.
type Backend struct {
	Scheme uboot.Scheme
	Medium Medium
	Flags  uboot.Flags // default: as U-Boot on the medium

	// NoCount is a bootloader that cannot save.
	NoCount bool
}

const (
	envSize   = 1 << 10 // of a copy
	apart     = 8 << 10 // from one to the next
	eraseSize = 4 << 10
	slotSize  = 256 << 10

	envDevice = "/device/boot"
	firstFile = "/device/boot.fat/uboot.env"
	otherFile = "/device/boot.fat/uboot-redund.env"

	// Foreign is a variable that nobody but the factory writes.
	Foreign = "ethaddr=02:00:00:c0:ff:ee"
)

var components = map[string][2]string{"controller": {"/device/a/controller", "/device/b/controller"}}

// Places returns where the environment is.
func (b Backend) Places() []uboot.Place {
	if b.Medium == Files {
		return []uboot.Place{{Path: firstFile, Size: envSize}, {Path: otherFile, Size: envSize}}
	}
	return []uboot.Place{{Path: envDevice, Size: envSize}, {Path: envDevice, Offset: apart, Size: envSize}}
}

// Config returns the configuration of the slots at a boot.
func (b Backend) Config(boot otatest.Boot) uboot.Config {
	return uboot.Config{
		Scheme: b.Scheme, Parts: [2]int{2, 11}, Components: components, Env: b.Places(), Flags: b.Flags,
		Booted: func(context.Context) (string, string, error) { return boot.Slot, boot.ID, nil },
	}
}

// Slots implements [otatest.Backend].
func (b Backend) Slots(d *otatest.Disk, boot otatest.Boot, restart func(context.Context) error) (ota.Slots, error) {
	cfg := b.Config(boot)
	cfg.Restart = restart
	return uboot.OpenOn(d, cfg)
}

// Image implements [otatest.Backend].
func (Backend) Image(d *otatest.Disk, slot string) []byte {
	paths := components["controller"]
	if slot == "B" {
		return d.Content(paths[1])
	}
	return d.Content(paths[0])
}

// Format implements [otatest.Backend].
func (b Backend) Format(d *otatest.Disk, image []byte) error {
	if err := durable.MkdirAll(d, "/data", 0o755); err != nil { // where the record is
		return err
	}
	for _, path := range components["controller"] {
		d.MkDevice(path, slotSize)
	}
	if err := write(d, components["controller"][0], 0, image); err != nil {
		return err
	}
	factory := variables{"bootlimit": "1", "bootcount": "0", "upgrade_available": "0", "mender_boot_part": "2", "mender_boot_part_hex": "2"}
	if b.Scheme != uboot.Mender {
		factory = variables{"BOOT_ORDER": "A", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "0"}
	}
	factory["ethaddr"] = Foreign[len("ethaddr="):]
	switch b.Medium {
	case Device:
		d.MkDevice(envDevice, 2*apart)
	case Files:
		d.MkFAT("/device/boot.fat")
	case Flash:
		d.MkFlash(envDevice, 2*apart, eraseSize)
		for _, p := range b.Places() {
			if err := write(d, p.Path, p.Offset+p.Size, behind(p)); err != nil {
				return err
			}
		}
	}
	for _, p := range b.Places() { // mkenvimage -r gives both the flags 1
		if err := write(d, p.Path, p.Offset, factory.encode(1)); err != nil {
			return err
		}
	}
	if b.Medium == Files {
		return d.SyncDir("/device/boot.fat")
	}
	return nil
}

// behind is what shares the erase block with a copy.
func behind(p uboot.Place) []byte {
	data := make([]byte, 100)
	copy(data, fmt.Sprintf("the board's calibration, behind %d", p.Offset))
	return data
}

// PowerOn implements [otatest.Backend].
func (b Backend) PowerOn(d *otatest.Disk) (string, error) {
	u, err := b.boot(d)
	if err != nil {
		return "", err
	}
	if b.Scheme == uboot.Mender {
		return u.mender()
	}
	return u.rauc()
}

// Variables returns the environment as U-Boot loads it.
func (b Backend) Variables(d *otatest.Disk) (map[string]string, error) {
	u, err := b.boot(d)
	if err != nil {
		return nil, err
	}
	if !u.valid {
		return nil, fmt.Errorf("both copies are damaged")
	}
	return u.env, nil
}

// Untouched returns an error if what shares erase blocks with the copies has changed.
func (b Backend) Untouched(d *otatest.Disk) error {
	if b.Medium != Flash {
		return nil
	}
	for _, p := range b.Places() {
		if got, want := d.Content(p.Path)[p.Offset+p.Size:p.Offset+eraseSize], behind(p); !bytes.HasPrefix(got, want) {
			return fmt.Errorf("behind the copy at %#x: got %q, want %q", p.Offset, got[:len(want)], want)
		}
	}
	return nil
}
