// Package tryboot is the boot control of Raspberry Pi: two boot partitions, of which
// the firmware boots one, or once the other. It is for Pi 4, 5, 400 and Compute
// Modules with an EEPROM bootloader of 2022-10-18 or newer.
//
// On the first partition, which is FAT and never updated, lies autoboot.txt, one
// sector at most:
//
//	[all]
//	tryboot_a_b=1
//	boot_partition=2        slot A boots
//	[tryboot]
//	boot_partition=3        slot B boots, once, after reboot "0 tryboot"
//
// The flag tryboot is in a register that survives a restart and no power cut, and the
// firmware clears it before it starts anything. What it has booted, it says in the
// device tree, /proc/device-tree/chosen/bootloader: "partition", and "tryboot" = 1 on
// trial. To mark good is to swap the two numbers (Raspberry Pi documentation,
// autoboot.txt: example update flow for A/B booting).
//
// Start with [Open]. There is nothing to be done in the bootloader, but much to get
// right on the medium: see [Config].
//
// Promised is: a slot is tried once, and only by [Slots.Reboot] in the boot in which
// [Slots.Try] was called; the slot that boots by itself is never the one that is
// written; autoboot.txt is written in place, at its length, only when a slot was
// proven or the file is wrong, and never before a copy of it is durable in the state.
// All other lines, comments and line ends in it are kept.
//
// Known traps:
//
//   - There is one autoboot.txt. A power cut that tears its sector leaves the choice to
//     the firmware, which boots the first partition with boot files, if it looks for one
//     (PARTITION_WALK=1 in its EEPROM configuration); both slots are whole then. The next
//     MarkGood, at the start of the agent, repairs the file from the copy.
//   - A kernel or an init that drops the restart's argument boots the old slot: the
//     update counts as lost, after a few tries, and never as failed.
//   - An EEPROM update (pieeprom.upd, recovery.bin) on partition 2 or 3 keeps a device
//     with autoboot.txt from booting (raspberrypi/rpi-eeprom#499); with BootComponent, Try
//     refuses it. It belongs on partition 1; rpi-eeprom-update must not find the slot mounted as its boot directory.
//   - The kernel's command line in each boot partition must name the root of the same slot.
//   - Some firmware of Pi 5 said partition 0 (raspberrypi/rpi-eeprom#575); it is refused.
//   - Firmware that hangs stays hung: a watchdog must restart the device.
package tryboot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// Names of the slots.
const (
	SlotA = "A"
	SlotB = "B"
)

const (
	// DefaultDeviceTree is where the kernel shows what the firmware has said.
	DefaultDeviceTree = "/proc/device-tree/chosen/bootloader"
	// maxPartition: 63 stops the firmware (Linux drivers/watchdog/bcm2835_wdt.c).
	maxPartition = 62
	// restartTrial is the argument of reboot(2) with LINUX_REBOOT_CMD_RESTART2: the
	// default partition, with the flag.
	restartTrial = "0 tryboot"
)

// Config says where things are.
type Config struct {
	// Components lists, for each component, the block devices of slots A and B: the
	// boot partitions, and the root file systems that belong to them.
	Components map[string][2]string
	// BootComponent is the component whose places are the boot partitions. If it is
	// given, [Slots.Try] looks into the other one, and refuses what the firmware does
	// not start: what is no FAT file system, or holds an update of the EEPROM.
	BootComponent string
	// Partitions are the numbers of the boot partitions of A and B. Default: 2 and 3.
	Partitions [2]int
	// Autoboot is autoboot.txt, on partition 1, which is mounted for writing. Required.
	Autoboot string
	// State is a file of ours, best on a file system with a journal that is no slot:
	// which slot to try, and a copy of autoboot.txt. Required; it need not be there.
	State string
	// DeviceTree is the directory of the firmware's answers. Default: [DefaultDeviceTree].
	DeviceTree string
	// BootID returns what changes at every boot, see random(4). Required.
	BootID func() (string, error)
	// Restart restarts the device. arg is for the firmware, "0 tryboot" or empty, and
	// must arrive at reboot(2) as it is, with LINUX_REBOOT_CMD_RESTART2: as
	// systemctl reboot "0 tryboot" does, and busybox reboot does not. Required for
	// [Slots.Reboot].
	Restart func(ctx context.Context, arg string) error
	// Capacity of a slot that is a file, in bytes. A block device is as large as it is.
	Capacity int64
	// Log gets a warning when autoboot.txt had to be repaired. Default: slog.Default().
	Log *slog.Logger
}

func (c *Config) fill() error {
	if c.Partitions == [2]int{} {
		c.Partitions = [2]int{2, 3}
	}
	for _, n := range c.Partitions {
		if n < 2 || n > maxPartition || c.Partitions[0] == c.Partitions[1] {
			return fmt.Errorf("partitions are %d and %d, want two different ones from 2 to %d; autoboot.txt is on the first", c.Partitions[0], c.Partitions[1], maxPartition)
		}
	}
	switch {
	case c.Autoboot == "":
		return errors.New("the place of autoboot.txt is not given")
	case c.State == "":
		return errors.New("no state file is given")
	case c.BootID == nil:
		return errors.New("nobody says the id of the boot")
	case filepath.Clean(c.Autoboot) == filepath.Clean(c.State):
		return fmt.Errorf("autoboot.txt and the state are both in %s", c.State)
	}
	if _, ok := c.Components[c.BootComponent]; !ok && c.BootComponent != "" {
		return fmt.Errorf("the boot component %s is none of the components", c.BootComponent)
	}
	if c.DeviceTree == "" {
		c.DeviceTree = DefaultDeviceTree
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Slots is an [ota.Slots] and an [ota.Prober]. Its methods may be called from any goroutine.
type Slots struct {
	cfg  Config
	fsys durable.FS
	pair *pair.Pair

	mu sync.Mutex // of autoboot.txt and the state
}

// Open returns the slots of this device. It changes nothing.
func Open(cfg Config) (*Slots, error) { return OpenOn(durable.OS{}, cfg) }

// OpenOn is Open on any file system.
func OpenOn(fsys durable.FS, cfg Config) (*Slots, error) {
	if err := cfg.fill(); err != nil {
		return nil, fmt.Errorf("open tryboot slots: %w", err)
	}
	p, err := pair.New(fsys, pair.Config{Names: [2]string{SlotA, SlotB}, Components: cfg.Components, Capacity: cfg.Capacity,
		Reserved: map[string]string{"autoboot.txt": cfg.Autoboot, "the state": cfg.State}})
	if err != nil {
		return nil, fmt.Errorf("open tryboot slots: %w", err)
	}
	return &Slots{cfg: cfg, fsys: fsys, pair: p}, nil
}

// running is what the firmware says of this boot.
type running struct {
	ota.Boot
	partition int // that was booted
	other     int
	flagged   bool // with the tryboot flag
}

func (s *Slots) running() (r running, err error) {
	partition, err := s.number("partition")
	if err != nil {
		return r, err
	}
	i := slices.Index(s.cfg.Partitions[:], partition)
	if i < 0 {
		return r, fmt.Errorf("the firmware says that partition %d is booted, want %d or %d; 0 means that it does not know, and the EEPROM bootloader must be updated",
			partition, s.cfg.Partitions[0], s.cfg.Partitions[1])
	}
	flag, err := s.number("tryboot")
	if err != nil {
		return r, err
	}
	id, err := s.cfg.BootID()
	if err != nil {
		return r, fmt.Errorf("find out the id of this boot: %w", err)
	}
	r = running{partition: partition, other: s.cfg.Partitions[1-i], flagged: flag == 1}
	r.Boot, err = s.pair.Booted(s.pair.Names()[i], id)
	return r, err
}

// number reads a cell of the device tree: 32 bits, the highest first.
func (s *Slots) number(name string) (int, error) {
	path := filepath.Join(s.cfg.DeviceTree, name)
	b, err := small(s.fsys, path, 0, 4)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%w; the EEPROM bootloader is older than 2022-10-18, or this is no Raspberry Pi with one: update it", err)
	}
	if err != nil {
		return 0, err
	}
	if len(b) != 4 {
		return 0, fmt.Errorf("%s has %d bytes, want 4", path, len(b))
	}
	return int(binary.BigEndian.Uint32(b)), nil
}

// autoboot reads and checks autoboot.txt, from the medium. text is there with an error, too.
func (s *Slots) autoboot() (a autoboot, err error) {
	b, err := small(s.fsys, s.cfg.Autoboot, durable.Direct, maxAutoboot)
	if err == nil {
		a, err = parse(string(b))
	}
	if err == nil {
		err = a.check(s.cfg.Partitions)
	}
	if err != nil {
		return a, fmt.Errorf("%s: %w", s.cfg.Autoboot, err)
	}
	return a, nil
}

// Booted implements [ota.Slots]. FellBack is never set: the firmware clears the flag
// before it starts the slot, and leaves no trace of a try. A slot that did not come up
// and a flag that did not arrive look the same.
func (s *Slots) Booted(context.Context) (ota.Boot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.running()
	if err != nil {
		return ota.Boot{}, fmt.Errorf("find out what is booted: %w", err)
	}
	if r.flagged { // until it is marked good, and also if autoboot.txt is damaged
		a, err := s.autoboot()
		r.Trial = err != nil || a.normal != r.partition
	}
	return r.Boot, nil
}

// Open implements [ota.Slots]. Before the first write, the running slot must be the
// one that boots by itself. What is on trial cannot write: the other slot is what
// boots next.
func (s *Slots) Open(ctx context.Context, component, slot string) (ota.Slot, error) {
	b, err := s.Booted(ctx)
	if err != nil {
		return nil, fmt.Errorf("open slot %s: %w", slot, err)
	}
	return s.pair.Open(component, slot, pair.Options{Running: slot == b.Slot, Prepare: func() error { return s.prepare(slot) }})
}

func (s *Slots) prepare(slot string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.running()
	if err != nil {
		return fmt.Errorf("prepare slot %s: %w", slot, err)
	}
	a, err := s.autoboot()
	if r.flagged && (err != nil || a.normal != r.partition) {
		return fmt.Errorf("prepare slot %s: %w: slot %s is on trial, and slot %s is what boots next", slot, ota.ErrFlashWrite, r.Slot, slot)
	}
	if err := s.settle(r); err != nil {
		return fmt.Errorf("prepare slot %s: %w", slot, err)
	}
	return nil
}

// Try implements [ota.Slots]. It is remembered, and holds for a [Slots.Reboot] in this
// boot: after a power cut, the running slot boots again.
func (s *Slots) Try(_ context.Context, slot string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.try(slot); err != nil {
		return fmt.Errorf("try slot %s: %w", slot, err)
	}
	return nil
}

func (s *Slots) try(slot string) error {
	r, err := s.running()
	if err != nil {
		return err
	}
	if slot != r.Other {
		return fmt.Errorf("want slot %s, slot %s is running", r.Other, r.Slot)
	}
	a, err := s.autoboot()
	if err != nil {
		return fmt.Errorf("mark the running slot good first, which repairs it: %w", err)
	}
	if a.normal != r.other { // the way back is not in question
		if err := s.checkBoot(slices.Index(s.cfg.Partitions[:], r.other)); err != nil {
			return err
		}
	}
	st, err := s.load()
	want := st
	want.Try, want.Boot = slot, r.ID
	if a.normal == r.other { // it boots by itself: nothing has to be said
		want.Try, want.Boot = "", ""
	}
	if err == nil && want == st {
		return nil
	}
	if err := s.save(want); err != nil {
		return pair.FlashError(err)
	}
	return nil
}

// MarkGood implements [ota.Slots]. It also repairs autoboot.txt, from the copy in the
// state. If that is gone, too, it is an error, and the file must be written by hand.
func (s *Slots) MarkGood(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.running()
	if err == nil {
		err = s.settle(r)
	}
	if err != nil {
		return fmt.Errorf("mark the running slot good: %w", err)
	}
	return nil
}

// settle makes the running slot the one that boots by itself, and forgets a try. The
// copy goes first: a cut that tears autoboot.txt must leave what it is repaired from.
func (s *Slots) settle(r running) error {
	// An agent that was killed may have left it in the cache.
	if err := durable.SyncFile(s.fsys, s.cfg.Autoboot); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pair.FlashError(err)
	}
	a, fileErr := s.autoboot()
	was := a.text
	st, stateErr := s.load()
	want := state{Proven: st.Proven || fileErr == nil && r.flagged && a.trial == r.partition}
	if fileErr != nil {
		var err error
		if a, err = parse(st.Autoboot); err == nil {
			err = a.check(s.cfg.Partitions)
		}
		if err != nil {
			return fmt.Errorf("%w: %w; there is no copy of it (%w): write it anew, with boot_partition=%d under [all] and %d under [tryboot]",
				ota.ErrFlashWrite, fileErr, errors.Join(err, stateErr), r.partition, r.other)
		}
		s.cfg.Log.Warn("autoboot.txt is repaired from its copy", "error", fileErr)
	}
	text, err := a.with(r.partition, r.other)
	if err != nil {
		return fmt.Errorf("%s: %w", s.cfg.Autoboot, err)
	}
	want.Autoboot = text
	if stateErr != nil || want != st {
		if err := s.save(want); err != nil {
			return pair.FlashError(err)
		}
	}
	switch {
	case text == was && fileErr == nil:
		return nil
	case len(text) == len(was):
		err = durable.WriteRange(s.fsys, s.cfg.Autoboot, 0, []byte(text))
	default: // it is gone, or of another length: there is nothing in place
		err = durable.WriteFile(s.fsys, s.cfg.Autoboot, []byte(text), 0o644)
	}
	if err != nil {
		return pair.FlashError(err)
	}
	return nil
}

// Reboot implements [ota.Slots]. What was not said in this boot is not tried.
func (s *Slots) Reboot(ctx context.Context) error {
	if s.cfg.Restart == nil {
		return fmt.Errorf("restart the device: %w: Config.Restart is not set", errors.ErrUnsupported)
	}
	if err := s.cfg.Restart(ctx, s.restartArg()); err != nil {
		return fmt.Errorf("restart the device: %w", err)
	}
	return nil
}

// restartArg never stands in the way of a restart: without the flag it is a safe one.
func (s *Slots) restartArg() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.running()
	st, stateErr := s.load()
	if err = errors.Join(err, stateErr); err != nil {
		s.cfg.Log.Error("restarting without a try", "error", err)
		return ""
	}
	if st.Try == r.Other && st.Boot == r.ID {
		return restartTrial
	}
	return ""
}

// Probe implements [ota.Prober].
func (s *Slots) Probe(context.Context) (ota.Rollback, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	is := func(state ota.RollbackState, format string, v ...any) (ota.Rollback, error) {
		return ota.Rollback{State: state, Why: fmt.Sprintf(format, v...)}, nil
	}
	r, err := s.running()
	if err != nil {
		return is(ota.RollbackBroken, "the firmware does not say what it has booted: %v", err)
	}
	a, err := s.autoboot()
	st, _ := s.load() // a damaged one proves nothing
	if err != nil {
		// MarkGood repairs it, and it is not asked again after that.
		if c, copyErr := parse(st.Autoboot); copyErr == nil && c.check(s.cfg.Partitions) == nil {
			return is(ota.RollbackUnknown, "autoboot.txt was damaged at this start, and there is a copy to repair it from: %v", err)
		}
		return is(ota.RollbackBroken, "the firmware has no two slots to choose from: %v", err)
	}
	switch {
	case r.flagged && a.trial == r.partition:
		return is(ota.RollbackProven, "the firmware tries slot %s now, and boots slot %s next", r.Slot, r.Other)
	case st.Proven:
		return is(ota.RollbackProven, "the firmware of this unit has tried a slot before")
	case a.normal != r.partition:
		return is(ota.RollbackUnknown, "slot %s is booted without a try, although slot %s is the one that boots: the firmware could not, or somebody chose", r.Slot, r.Other)
	}
	return is(ota.RollbackUnknown, "the firmware of this unit has not tried a slot yet")
}
