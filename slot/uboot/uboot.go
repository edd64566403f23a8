// Package uboot lets U-Boot choose between the two slots of a device: the choice is
// in variables of the U-Boot environment, which this package reads and writes as
// U-Boot, fw_setenv and fw_printenv do. It is for devices whose boot script follows
// one of two conventions, [RAUC]'s or [Mender]'s.
//
//	copy 0   crc | flags | BOOT_ORDER=A B  BOOT_A_LEFT=3  BOOT_B_LEFT=3  ...
//	copy 1   crc | flags | the same, or one save older or newer
//
// U-Boot writes a save into the older copy. This package then writes the newer one
// too, so that both are the same, and either may rot.
//
// Start with [Open]. What the boot script must do for RAUC's convention (RAUC,
// contrib/uboot.sh): take the first name in BOOT_ORDER whose BOOT_<name>_LEFT, a
// hexadecimal number, is not 0; count that down; saveenv; only then start the slot,
// and with its name on the kernel's command line:
//
//	for s in "${BOOT_ORDER}"; do
//	  if test -n "${slot}"; then true
//	  elif test "${s}" = A -a 0x${BOOT_A_LEFT} -gt 0; then setexpr BOOT_A_LEFT ${BOOT_A_LEFT} - 1; setenv slot A
//	  elif ...
//	done
//	saveenv; setenv bootargs ${bootargs} panic=5 interlock.slot=${slot}
//
// For Mender's: CONFIG_BOOTCOUNT_LIMIT and CONFIG_BOOTCOUNT_ENV, and altbootcmd runs
// mender_altbootcmd, which changes mender_boot_part, sets upgrade_available to 0 and
// saves that.
//
// Promised is, also over power cuts at any moment, and over the loss of one copy of a
// redundant environment: the slot that runs is not written; before the first byte of
// the other one is, U-Boot cannot boot that any more; a try boots once, and without
// [Slots.MarkGood] the boot after it is the old slot again; all other variables stay
// as they are. With RAUC's convention the slot that was good before stays in
// BOOT_ORDER, as a last resort, until it is written.
//
// Not promised is anything of a bootloader that does not count: [Slots.Probe] says
// whether it did at this boot. A single copy, [Config.AllowSingle], is lost with all
// that is in it if the power goes while it is written. So is, on raw flash, whatever
// else is in the erase block of a copy: give each copy blocks of its own. A saveenv
// that U-Boot itself begins with both copies damaged writes its built-in defaults.
//
// Two variables are this package's own, and the boot script must keep them, as a
// saveenv does: interlock_try, the slot last given to Try; and interlock_probe, what
// was seen of the bootloader at which boot.
package uboot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// DefaultLock is the lock file of fw_setenv (libubootenv, default_lockname).
const DefaultLock = "/var/lock/fw_printenv.lock"

// Config says where things are.
type Config struct {
	// Scheme is the convention of the boot script. Default: RAUC.
	Scheme Scheme

	// Names of the slots, as they are in BOOT_ORDER. Default: A and B.
	Names [2]string

	// Attempts of a slot that is marked good, 1 to 255, for RAUC. Default 3.
	Attempts int

	// Parts are the numbers of the slots' partitions, for Mender: the values of
	// mender_boot_part.
	Parts [2]int

	// Components lists, for each component, the files or block devices of the two
	// slots. A block device must be of this device alone: it is written from its
	// first byte.
	Components map[string][2]string

	// Capacity of a slot that is a file, in bytes. Default: its size and what is
	// free on its file system. A block device is as large as it is.
	Capacity int64

	// Env is where the copies of the environment are, two of them, in the order of
	// fw_env.config. AllowSingle allows one.
	Env         []Place
	AllowSingle bool

	// Flags of a redundant environment. Default: Boolean on raw flash, Incremental
	// elsewhere, as U-Boot and fw_setenv do.
	Flags Flags

	// BigEndian says that the processor is, and so the checksum.
	BigEndian bool

	// Lock is the file that fw_setenv locks. Default: DefaultLock on the real file
	// system, and none elsewhere.
	Lock string

	// Booted tells which slot runs, from the kernel's command line, and an id that
	// changes at every boot, the kernel's boot_id. It must be given.
	Booted func(context.Context) (slot, id string, err error)

	// Restart restarts the device. Default: none, and Reboot is an error.
	Restart func(context.Context) error

	// Log gets warnings of the environment. Default: slog.Default().
	Log *slog.Logger
}

// Slots is an [ota.Slots] and [ota.Prober]. Its methods may be called from any goroutine.
type Slots struct {
	cfg    Config
	pair   *pair.Pair
	env    *store
	scheme scheme
	mu     sync.Mutex // of the environment
}

var (
	_ ota.Slots  = (*Slots)(nil)
	_ ota.Prober = (*Slots)(nil)
)

// Open returns the slots. It changes nothing.
func Open(cfg Config) (*Slots, error) {
	if cfg.Lock == "" {
		cfg.Lock = DefaultLock
	}
	return OpenOn(durable.OS{}, cfg)
}

// OpenOn is Open on any file system.
func OpenOn(fsys durable.FS, cfg Config) (*Slots, error) {
	s, err := open(fsys, cfg)
	if err != nil {
		return nil, fmt.Errorf("open U-Boot slots: %w", err)
	}
	return s, nil
}

func open(fsys durable.FS, cfg Config) (*Slots, error) {
	if cfg.Names == ([2]string{}) {
		cfg.Names = [2]string{"A", "B"}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	sch, err := newScheme(cfg)
	if err != nil {
		return nil, err
	}
	reserved := map[string]string{}
	for i, p := range cfg.Env {
		if i == 0 || p.Path != cfg.Env[0].Path {
			reserved[fmt.Sprintf("copy %d of the environment", i)] = p.Path
		}
	}
	p, err := pair.New(fsys, pair.Config{Names: cfg.Names, Components: cfg.Components, Capacity: cfg.Capacity, Reserved: reserved})
	if err != nil {
		return nil, err
	}
	if len(cfg.Env) == 1 {
		cfg.Log.Warn("the U-Boot environment has a single copy: a power cut while it is written loses it")
	}
	env := &store{fsys: fsys, places: cfg.Env, layout: Layout{Redundant: len(cfg.Env) == 2, BigEndian: cfg.BigEndian}, flags: cfg.Flags, lock: cfg.Lock}
	return &Slots{cfg: cfg, pair: p, env: env, scheme: sch}, nil
}

// check refuses what cannot be right.
func (c *Config) check() error {
	if c.Booted == nil {
		return errors.New("Config.Booted is not set: the kernel's command line must say which slot runs")
	}
	for _, name := range c.Names {
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
			return fmt.Errorf("slot name %q, want letters, digits, '.', '_' and '-'", name)
		}
	}
	if c.Names[0] == c.Names[1] {
		return fmt.Errorf("both slots are called %s", c.Names[0])
	}
	switch {
	case len(c.Env) == 1 && !c.AllowSingle:
		return errors.New("the environment has a single copy, which a power cut destroys: build U-Boot with CONFIG_SYS_REDUNDAND_ENVIRONMENT, or set AllowSingle and lose updates' safety")
	case len(c.Env) != 1 && len(c.Env) != 2:
		return fmt.Errorf("the environment has %d places, want 2", len(c.Env))
	}
	switch c.Flags {
	case "", Incremental, Boolean:
	default:
		return fmt.Errorf("flags are %q, want %q or %q", c.Flags, Incremental, Boolean)
	}
	for _, p := range c.Env {
		if p.Path == "" || p.Offset < 0 || p.Size < minSize || p.Size > maxSize {
			return fmt.Errorf("place of the environment: path %q, offset %d, size %d, want a path, an offset from 0 on, and a size from %d to %d", p.Path, p.Offset, p.Size, minSize, maxSize)
		}
	}
	if len(c.Env) == 2 {
		a, b := c.Env[0], c.Env[1]
		if a.Size != b.Size {
			return fmt.Errorf("the copies of the environment have %d and %d bytes, want the same", a.Size, b.Size)
		}
		if a.Path == b.Path && a.Offset < b.Offset+b.Size && b.Offset < a.Offset+a.Size {
			return fmt.Errorf("the copies of the environment at %#x and %#x of %s overlap", a.Offset, b.Offset, a.Path)
		}
	}
	return nil
}

// maxSize is far more than any U-Boot has, and little memory.
const maxSize = 4 << 20

// Booted implements [ota.Slots]. An environment that is lost, in all copies, is no
// error here: what it would say is left false.
func (s *Slots) Booted(ctx context.Context) (ota.Boot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, running, err := s.booted(ctx)
	if err == nil {
		var c copies
		if c, err = s.env.load(); err == nil {
			e := c.env[c.newest]
			b.FellBack, b.Trial = fellBack(s.scheme, e, running), trial(s.scheme, e, running)
		} else if errors.Is(err, errNoEnv) {
			err = nil
		}
	}
	if err != nil {
		return ota.Boot{}, fmt.Errorf("find out what is booted: %w", err)
	}
	return b, nil
}

// booted returns what the kernel knows, and the index of the running slot.
func (s *Slots) booted(ctx context.Context) (b ota.Boot, running int, err error) {
	slot, id, err := s.cfg.Booted(ctx)
	if err != nil {
		return b, 0, err
	}
	if b, err = s.pair.Booted(slot, id); err != nil {
		return b, 0, err
	}
	running, err = s.pair.Index(slot)
	return b, running, err
}

// Open implements [ota.Slots]. It changes nothing: before the first write, U-Boot is
// told not to boot the slot. While the running slot is on trial, the other is the one
// to return to, and cannot be written.
func (s *Slots) Open(ctx context.Context, component, slot string) (ota.Slot, error) {
	b, running, err := s.booted(ctx)
	if err != nil {
		return nil, fmt.Errorf("open slot %s: %w", slot, err)
	}
	return s.pair.Open(component, slot, pair.Options{Running: slot == b.Slot, Prepare: func() error {
		err := s.change(b.ID, running, func(e *Env) error { return prepare(s.scheme, e, running) })
		if err != nil {
			return fmt.Errorf("tell U-Boot not to boot slot %s: %w", slot, err)
		}
		return nil
	}})
}

// Try implements [ota.Slots]. To try the running slot is an error. While the running
// slot is on trial itself, the other one is good, and boots from now on.
func (s *Slots) Try(ctx context.Context, slot string) error {
	b, running, err := s.booted(ctx)
	if err == nil {
		if slot == b.Slot {
			err = fmt.Errorf("want slot %s, slot %s is running", b.Other, b.Slot)
		} else if _, err = s.pair.Index(slot); err == nil {
			err = s.change(b.ID, running, func(e *Env) error { return try(s.scheme, e, running) })
		}
	}
	if err != nil {
		return fmt.Errorf("try slot %s: %w", slot, err)
	}
	return nil
}

// MarkGood implements [ota.Slots].
func (s *Slots) MarkGood(ctx context.Context) error {
	b, running, err := s.booted(ctx)
	if err == nil {
		err = s.change(b.ID, running, func(e *Env) error { s.scheme.markGood(e, running); return nil })
	}
	if err != nil {
		return fmt.Errorf("mark the running slot good: %w", err)
	}
	return nil
}

// change changes the environment, and keeps what it said of the bootloader.
func (s *Slots) change(id string, running int, do func(*Env) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.env.update(func(e *Env, whole bool) error {
		was := e.clone()
		if err := do(e); err != nil {
			return err
		}
		if _, at := seen(was); e.same(was) && whole && at != "" {
			return nil
		}
		return remember(s.scheme, e, was, running, id, whole)
	})
}

// Probe implements [ota.Prober].
func (s *Slots) Probe(ctx context.Context) (ota.Rollback, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, running, err := s.booted(ctx)
	var c copies
	if err == nil {
		c, err = s.env.load()
	}
	if err != nil {
		return ota.Rollback{}, fmt.Errorf("find out whether U-Boot comes back: %w", err)
	}
	r := probe(s.scheme, c.env[c.newest], running, b.ID, c.whole(len(s.cfg.Env)))
	if len(s.cfg.Env) == 1 {
		r.Why += "; the environment has a single copy, which a power cut while it is written destroys"
	}
	return r, nil
}

// Reboot implements [ota.Slots].
func (s *Slots) Reboot(ctx context.Context) error {
	if s.cfg.Restart == nil {
		return fmt.Errorf("restart the device: %w: Config.Restart is not set", errors.ErrUnsupported)
	}
	if err := s.cfg.Restart(ctx); err != nil {
		return fmt.Errorf("restart the device: %w", err)
	}
	return nil
}
