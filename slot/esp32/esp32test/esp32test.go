package esp32test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

// Flash is where a [Backend] has the flash on its disk.
const Flash = "/device/flash"

// Small is a partition table for tests: two slots of 64 KiB, in the manner of ESP-IDF.
const Small = `nvs,     data, nvs,   0x9000,  0x4000,
otadata, data, ota,   0xd000,  0x2000,
phy,     data, phy,   0xf000,  0x1000,
ota_0,   app,  ota_0, 0x10000, 64K,
ota_1,   app,  ota_1, 0x20000, 64K,
`

// SmallFactory is Small with a factory application before the slots.
const SmallFactory = `otadata, data, ota,     0xd000,  0x2000,
factory, app,  factory, 0x10000, 64K,
ota_0,   app,  ota_0,   0x20000, 64K,
ota_1,   app,  ota_1,   0x30000, 64K,
`

// AwsS3Ota is the layout that the AwsS3Ota library for Arduino documents: the table
// at 0x8000, settings at 0x9000, otadata at 0xC000, PHY data at 0xE000, and two
// applications with a file system behind them. Its drawing has PHY data at 0xD000
// and app0 at 0xE000. There is no such flash: otadata has two sectors, and an
// application begins at a multiple of 64 KiB. So they are behind it here.
const AwsS3Ota = `nvs,      data, nvs,    0x9000,   0x3000,
otadata,  data, ota,    0xc000,   0x2000,
phy_init, data, phy,    0xe000,   0x1000,
app0,     app,  ota_0,  0x10000,  0x140000,
app1,     app,  ota_1,  0x150000, 0x140000,
spiffs,   data, spiffs, 0x290000, 0x170000,
`

// Backend is an [otatest.Backend] of an ESP32's flash. The zero value has raw flash
// with the table Small, and a bootloader with rollback that has just come from the
// vendor's tools: otadata is erased.
type Backend struct {
	Table string // partitions.csv; default Small
	File  bool   // the flash is a file, not raw flash
	Block bool   // the flash is a block device
	// Old is a bootloader without rollback. The device then stays in a slot from its
	// first start.
	Old bool
}

var (
	_ otatest.Backend = Backend{}
	_ otatest.Packer  = Backend{}
)

// Format implements [otatest.Backend].
func (b Backend) Format(d *otatest.Disk, firmware []byte) error {
	if err := durable.MkdirAll(d, "/data", 0o755); err != nil { // where the record is
		return err
	}
	csv := b.Table
	if csv == "" {
		csv = Small
	}
	t, err := image.ParseTableCSV(strings.NewReader(csv), image.TableOffset)
	if err != nil {
		return err
	}
	first, ok := t.Find(image.TypeApp, image.AppFactory)
	if !ok {
		first = t.OTA()[0]
	}
	if len(firmware) > int(first.Size) {
		return fmt.Errorf("the image has %d bytes, and %s %d", len(firmware), first.Label, first.Size)
	}
	last := t.Partitions[len(t.Partitions)-1]
	size := int64(last.Offset) + int64(last.Size)
	table, err := t.Encode()
	if err != nil {
		return err
	}
	whole := bytes.Repeat([]byte{0xFF}, int(size))
	copy(whole[image.TableOffset:], table)
	copy(whole[first.Offset:], firmware)
	switch {
	case b.Block:
		d.MkDevice(Flash, size)
		return durable.WriteRange(d, Flash, 0, whole)
	case b.File:
		if err := durable.MkdirAll(d, "/device", 0o755); err != nil {
			return err
		}
		return durable.WriteFile(d, Flash, whole, 0o600)
	}
	d.MkFlash(Flash, size, image.SectorSize)
	return errors.Join(write(d, table, image.TableOffset), write(d, firmware, int64(first.Offset)))
}

// write writes to flash that is erased there.
func write(fsys durable.FS, b []byte, off int64) error {
	f, err := fsys.OpenFile(Flash, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, off)
	return errors.Join(err, f.Close())
}

// Bootloader returns the model that goes with b.
func (b Backend) Bootloader() Bootloader { return Bootloader{Rollback: !b.Old} }

// PowerOn implements [otatest.Backend].
func (b Backend) PowerOn(d *otatest.Disk) (string, error) { return b.Bootloader().Start(d, Flash) }

// Config returns how [Backend.Slots] opens the flash.
func (b Backend) Config(boot otatest.Boot, restart func(context.Context) error) esp32.Config {
	chip := image.ESP32
	return esp32.Config{
		Flash: Flash, Rollback: !b.Old, Chip: &chip, Restart: restart, Log: slog.New(slog.DiscardHandler),
		Booted: func(context.Context) (string, string, error) { return boot.Slot, boot.ID, nil },
	}
}

// Slots implements [otatest.Backend].
func (b Backend) Slots(d *otatest.Disk, boot otatest.Boot, restart func(context.Context) error) (ota.Slots, error) {
	return esp32.OpenOn(d, b.Config(boot, restart))
}

// Image implements [otatest.Backend].
func (b Backend) Image(d *otatest.Disk, slot string) []byte {
	flash, err := durable.ReadFile(d, Flash, 1<<28)
	if err != nil || len(flash) < image.TableOffset {
		return nil
	}
	t, err := image.ParseTable(flash[image.TableOffset:], int64(len(flash)))
	if err != nil {
		return nil // nothing boots without one
	}
	for _, p := range t.Partitions {
		if p.Label == slot {
			return flash[p.Offset : p.Offset+p.Size]
		}
	}
	return nil
}

// Pack implements [otatest.Packer]: an application for an ESP32, as whole as the
// vendor's tools make it.
func (Backend) Pack(b []byte) []byte {
	h := sha256.Sum256(b)
	return imagetest.App(imagetest.Spec{Size: len(b), Seed: binary.LittleEndian.Uint64(h[:])})
}
