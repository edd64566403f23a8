// Package esp32 keeps the two slots of an ESP32, or a successor of it, in the chip's
// flash, and tells the vendor's bootloader which one boots. The flash is a file with
// all of it, a block device or raw flash; the program runs on a host that has it at
// hand, such as a gateway beside the chip, or a bench. Package image in the folder
// below knows the formats of images and partition tables.
//
//	0x8000   partition table   which partitions there are; never written
//	0x9000   otadata           two sectors of 4 KiB with an entry of 32 bytes each:
//	                           number of the choice, state, CRC of the number
//	0x10000  ota_0             an application: slot 0
//	0x150000 ota_1             slot 1
//
// The entry with the greater number counts; its slot is (number-1) modulo the count
// of slots. A bootloader with rollback (CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE) starts
// an entry in state NEW once and makes it PENDING_VERIFY, and at the next start
// ABORTED, unless the application was marked VALID. Then the other entry counts. An
// image that is not whole is passed over, and the next slot is loaded instead. One
// that is not built with rollback heeds none of that: see [Slots.Probe].
//
// Start with [Open], or with [ReadBoot] to look only. Slots are named as their
// partitions are labelled, for example ota_0, or app0 in the tables of Arduino. The
// slot to write is the one after the running one, and after the last the first, as
// esp_ota_get_next_update_partition has it. So with three slots, what ran before the
// last update is not the slot that is written next; the way back by hand is for
// tables with two. The factory application is never written: while it runs, ota_0
// is the other slot; and it cannot be tried, because it has no entry, only chosen.
//
// Promised, at every loss of power, with a bootloader that has rollback: what boots
// is a whole image; what is tried boots once unless it is marked good; nothing that
// is half written has an entry that counts. Before [Slots.Try] writes anything, the
// image is checked as the bootloader would, because some do not. Both entries boot
// the same slot after [Slots.MarkGood], and before the other slot is written, so that
// either may be lost. An entry is written so that no part of it ever counts: see put
// in flash.go. The numbers, states and CRCs are those that ESP-IDF's esp_ota_ops.c
// writes, so that applications may use that too, but for three things: a second
// entry for the running slot where ESP-IDF erases it; the unused label of an entry,
// which remembers that the bootloader was seen to come back; and numbers that start
// anew before they end, where ESP-IDF counts for 2^31 rounds.
//
// Known traps. A cut inside [Slots.MarkGood] at the end of a trial can bring back the
// slot from before: report success only after it has returned. A cut inside the
// bootloader's own write of PENDING_VERIFY can lose the entry, so that the update was
// never tried, as far as anybody can tell, or, in a narrow window, leave the state
// UNDEFINED, so that the new image runs without being on trial. The CRC does not
// cover the state: one flipped bit can make VALID into NEW or INVALID, and then the
// other entry boots the same slot. An application that was marked good here and calls
// esp_ota_mark_app_invalid_rollback_and_reboot comes back to itself: use [Slots.Try].
// Flash encryption is not supported: what lies there cannot be read from outside.
package esp32

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

// Config says where the flash is, and what its bootloader can do. The zero value
// of all that may be left out is a bootloader that never comes back.
type Config struct {
	// Flash is a file, a block device or raw flash that holds the whole flash of the
	// chip, from its first byte; must be given. It must not be encrypted.
	Flash string

	TableOffset uint32 // of the partition table, in bytes; 0: [image.TableOffset]
	FlashSize   int64  // bytes; 0: what Flash has

	// Rollback says that the bootloader was built with
	// CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE. Without it, a slot that is tried stays.
	Rollback bool
	// AntiRollback says that it was built with CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK,
	// which takes no application whose security version is below SecureVersion, that
	// of the chip's eFuses.
	AntiRollback  bool
	SecureVersion uint32

	// What an application must be: see [image.Options].
	Chip       *image.ChipID
	Rev        uint16
	KeyDigests [][32]byte

	Component string // that the slots are for; default "controller"

	// Booted tells which slot runs, by the label of its partition, and an id that
	// changes at every boot; must be given. With Rollback, slot may be empty: then
	// it is found as the bootloader finds it.
	Booted func(context.Context) (slot, id string, err error)

	// Restart restarts the chip. Default: none, and Reboot is an error.
	Restart func(context.Context) error

	Log *slog.Logger // gets a warning when an entry of otadata was damaged; default slog.Default()
}

// Slots is an [ota.Slots] in the flash of a chip, and an [ota.Prober]. Its methods
// may be called from any goroutine.
type Slots struct {
	cfg   Config
	flash flash
	layout

	mu  sync.Mutex // of otadata
	gen int        // grows with every try; slots opened before prepare again
}

// Open returns the slots in a flash. It changes nothing.
func Open(cfg Config) (*Slots, error) { return OpenOn(durable.OS{}, cfg) }

// OpenOn is Open on any file system.
func OpenOn(fsys durable.FS, cfg Config) (*Slots, error) {
	s := &Slots{cfg: cfg, flash: flash{fsys, cfg.Flash}}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open the slots in flash %s: %w", cfg.Flash, err)
	}
	return s, nil
}

func (s *Slots) open() error {
	s.cfg.Component = cmp.Or(s.cfg.Component, "controller")
	s.cfg.Log = cmp.Or(s.cfg.Log, slog.Default())
	switch {
	case s.cfg.Flash == "":
		return errors.New("no flash is given: Config.Flash is empty")
	case s.cfg.Booted == nil:
		return errors.New("nothing tells which slot runs: Config.Booted is not set")
	}
	if err := ota.CheckName(s.cfg.Component); err != nil {
		return fmt.Errorf("component: %w", err)
	}
	size, err := s.flash.size()
	if err != nil {
		return err
	}
	if s.cfg.FlashSize > size {
		return fmt.Errorf("it has %d bytes, want %d", size, s.cfg.FlashSize)
	}
	if s.cfg.FlashSize == 0 {
		s.cfg.FlashSize = size
	}
	s.layout, err = readLayout(s.flash, s.cfg)
	if err != nil {
		return err
	}
	if s.factory == nil && len(s.slots) < 2 {
		return fmt.Errorf("%w: there is one partition for applications, %s, and an update needs a second: change the partition table", ota.ErrIncompatible, s.slots[0].Label)
	}
	return nil
}
