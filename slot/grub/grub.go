// Package grub switches the slots of a device that is started by GRUB, with the
// variables that RAUC has made customary, in GRUB's environment block. It is for
// controllers with PC firmware, BIOS or UEFI.
//
// # What is on the medium
//
// Recommended are two environment blocks on the boot partition, beside the boot
// script, which is the file grub.cfg of this package and is used as it is:
//
//	/boot/grub/grub.cfg      the script; GRUB's $prefix is this directory
//	/boot/grub/device.cfg    settings of the device: partitions, kernel arguments
//	/boot/grub/grubenv       the state; for new devices the file grubenv of this
//	/boot/grub/grubenv2      package, or Format. Both are 1,024 bytes:
//
//	# GRUB Environment Block
//	interlock_begin=1A B111010101-1000000001   seal: the values below, seq between them
//	interlock_seq=1            1, 2, 3, 1 ...: of two whole blocks the newer counts
//	ORDER=A B                  slots, the first choice first
//	A_OK=1                     whole, and may be started
//	A_TRY=0                    starts since it was marked good
//	B_OK=0
//	B_TRY=0
//	interlock_trial=-          slot on trial, or that fell back: A, B or -
//	interlock_boot=00000000    boot in which starts were seen to be counted
//	interlock_end=1A B111010101-1000000001     the seal again
//	##########                        to the end
//
// GRUB's format has no checksum, and GRUB cannot compute one. What stands for it is
// the seal: a block in which any byte of these variables is not as it was written is
// not believed. The older block is written first, synced and read back, and then the
// other, by this package and by grub.cfg alike. The changing values keep their length,
// so no byte moves.
//
// # What the bootloader does
//
// grub.cfg starts the first slot in ORDER that has x_OK=1 and a start left: a slot on
// trial has one, others have eight from one [Slots.MarkGood] to the next. It counts
// the start in both blocks, reads back what it wrote, and only then loads the kernel,
// with interlock.slot=A on its command line. A trial that cannot be counted is not
// started. If the kernel of a slot does not load, the other good slot is started.
// Somebody must reset a system that hangs: a watchdog that runs before the kernel
// does, which device.cfg can start, or the kernel's.
//
// Start with [Open]. Config.Booted takes the slot from /proc/cmdline and the id from
// /proc/sys/kernel/random/boot_id.
//
// # What is promised
//
// With two blocks, over a power cut at any moment and with one block lost: a try
// starts once, and then the old slot again unless MarkGood; the slot that is being
// written is not started; after MarkGood the previous slot stays startable, as the
// last resort, until the first byte is written to it. If both blocks are lost nothing
// is written, neither here nor by GRUB, which then starts the first slot that loads.
//
// # One block alone
//
// With Config.Env alone, the block is that of RAUC, and any script of RAUC's
// convention can boot the device (RAUC, docs/integration.rst, GRUB). It promises
// less. A block that a power cut damages is lost, because there is no other, so it is
// only written within one sector of 512 bytes, which disks write whole; but not all
// flash does. And RAUC's scripts give a good slot one start too: if the power fails
// twice before the agent runs, they take the other slot.
//
// # Known traps
//
// GRUB writes the blocks where they are on the disk. So they must be plain files on
// FAT or ext2/3/4, on no LVM, RAID, btrfs or compressed file system, and replaced by
// nobody: grub-editenv keeps the length, editors do not. GRUB does not flush the
// disk's cache after it wrote; a disk that loses its cache with the power can forget
// one count, and a trial then starts twice. The boot partition must be mounted
// writable: without MarkGood at every start of the agent GRUB takes the previous slot
// after eight. And a system must not wake from hibernation with the blocks still in its
// cache, while GRUB has written them.
package grub

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// Script is the boot script for two blocks: what /boot/grub/grub.cfg holds.
//
//go:embed grub.cfg
var Script string

// Config says where things are.
type Config struct {
	// Env and Env2 are the files of the environment blocks, for example
	// /boot/grub/grubenv and /boot/grub/grubenv2. Without Env2 there is one block,
	// which is not safe over power cuts on all media; see the package's comment.
	Env, Env2 string

	// Names of the slots in GRUB's variables: letters, digits and underscores.
	// Default A and B, which [Script] knows.
	Names [2]string

	// Components lists, for each component, the files or block devices of the two
	// slots. A block device must be of this device alone: it is written from its
	// first byte.
	Components map[string][2]string

	// Booted tells which slot runs, and an id that changes at every boot. Required.
	Booted func(context.Context) (slot, id string, err error)

	// Restart restarts the device. Default: none, and Reboot is an error.
	Restart func(context.Context) error

	// Capacity of a slot that is a file, in bytes. Default: its size and what is
	// free on its file system. A block device is as large as it is.
	Capacity int64

	// Log gets a warning when a block is damaged. Default: slog.Default().
	Log *slog.Logger
}

var goodName = regexp.MustCompile(`^[A-Za-z0-9_]{1,32}$`)

func (c *Config) fill() error {
	if c.Names == ([2]string{}) {
		c.Names = [2]string{"A", "B"}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	for _, name := range c.Names {
		if !goodName.MatchString(name) {
			return fmt.Errorf("slot name %q: want letters, digits and underscores, as in a name of GRUB's variables", name)
		}
	}
	switch {
	case c.Env == "":
		return errors.New("no environment block is given: set Env to GRUB's grubenv")
	case c.Names[0] == c.Names[1]:
		return fmt.Errorf("both slots are called %s", c.Names[0])
	}
	return nil
}

func (c Config) env(fsys durable.FS) env {
	e := env{fsys, c.Names, []string{c.Env}}
	if c.Env2 != "" {
		e.paths = append(e.paths, c.Env2)
	}
	return e
}

// Slots is an [ota.Slots] and [ota.Prober] for GRUB. Its methods may be called from
// any goroutine.
type Slots struct {
	cfg  Config
	pair *pair.Pair

	mu     sync.Mutex // of the blocks
	env    env
	closed bool // GRUB starts the other slot under no circumstances: it may be written
}

// Open returns the slots of a device whose environment blocks are there. It changes nothing.
func Open(cfg Config) (*Slots, error) { return OpenOn(durable.OS{}, cfg) }

// OpenOn is Open on any file system.
func OpenOn(fsys durable.FS, cfg Config) (*Slots, error) {
	s, err := openOn(fsys, cfg)
	if err != nil {
		return nil, fmt.Errorf("open GRUB slots: %w", err)
	}
	return s, nil
}

func openOn(fsys durable.FS, cfg Config) (*Slots, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	if cfg.Booted == nil {
		return nil, errors.New("Booted is not given: the kernel's command line must tell which slot runs")
	}
	reserved := map[string]string{"first environment block": cfg.Env}
	if cfg.Env2 != "" {
		reserved["second environment block"] = cfg.Env2
	}
	if cfg.Env == cfg.Env2 {
		return nil, fmt.Errorf("both environment blocks are %s", cfg.Env)
	}
	p, err := pair.New(fsys, pair.Config{Names: cfg.Names, Components: cfg.Components, Capacity: cfg.Capacity, Reserved: reserved})
	if err != nil {
		return nil, err
	}
	return &Slots{cfg: cfg, pair: p, env: cfg.env(fsys)}, nil
}

// Format makes the environment blocks of a device in which only the slot good holds
// an image. It refuses with [fs.ErrExist] if there is a block that can be used.
// Components and Booted are not needed.
func Format(cfg Config, good string) error { return FormatOn(durable.OS{}, cfg, good) }

// FormatOn is Format on any file system.
func FormatOn(fsys durable.FS, cfg Config, good string) error {
	if err := format(fsys, cfg, good); err != nil {
		return fmt.Errorf("make environment blocks: %w", err)
	}
	return nil
}

func format(fsys durable.FS, cfg Config, good string) error {
	if err := cfg.fill(); err != nil {
		return err
	}
	e := cfg.env(fsys)
	copies, newest, err := e.read()
	if err == nil {
		return fmt.Errorf("%s can be used: remove it to lose what is there: %w", copies[newest].path, fs.ErrExist)
	}
	index := 0
	if good == cfg.Names[1] {
		index = 1
	}
	if good != cfg.Names[index] {
		return fmt.Errorf("%w: there is no slot %q, only %s and %s", ota.ErrIncompatible, good, cfg.Names[0], cfg.Names[1])
	}
	b, err := first(cfg.Names, index, e.alone()).into(nil, cfg.Names).encode(blockSize)
	if err != nil {
		return err
	}
	for _, path := range e.paths {
		if err := durable.WriteFile(fsys, path, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}
