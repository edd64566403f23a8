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
// that U-Boot itself begins with both copies damaged writes its built-in defaults;
// with RAUC's BOOT_ORDER default of "A B", too.
//
// Known traps: a kernel keeps the boot partitions of an eMMC read-only until 0 is
// written to /sys/block/mmcblkNbootM/force_ro. CONFIG_ENV_WRITEABLE_LIST must list the
// convention's variables and the two below. A bootcount that is kept in a register,
// not in the environment, is not Mender's convention. If another program marks slots
// good too, or a kernel was started by kexec, Probe may not see that U-Boot counts, and
// of a kernel without U-Boot it says that it does not. Raw NAND and UBI volumes are not
// supported. A place that is wrong, and not damaged, is written over like a damaged one.
//
// Two variables are this package's own, and the boot script must keep them, as a
// saveenv does: interlock_try, the slot last given to Try; and interlock_probe, what
// was seen of the bootloader, with how many starts a good slot had, and at which boot.
package uboot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

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
	var ranges []pair.Range
	for i, p := range cfg.Env {
		ranges = append(ranges, pair.Range{What: fmt.Sprintf("copy %d of the environment", i), Path: p.Path, Offset: p.Offset, Size: p.Size})
		if i == 0 || p.Path != cfg.Env[0].Path {
			reserved[fmt.Sprintf("copy %d of the environment", i)] = p.Path
		}
	}
	p, err := pair.New(fsys, pair.Config{Names: cfg.Names, Components: cfg.Components, Capacity: cfg.Capacity, Reserved: reserved, Ranges: ranges})
	if err != nil {
		return nil, err
	}
	if len(cfg.Env) == 1 {
		cfg.Log.Warn("the U-Boot environment has a single copy: a power cut while it is written loses it")
	}
	env := &store{fsys: fsys, places: cfg.Env, layout: Layout{Redundant: len(cfg.Env) == 2, BigEndian: cfg.BigEndian}, flags: cfg.Flags, lock: cfg.Lock}
	return &Slots{cfg: cfg, pair: p, env: env, scheme: sch}, nil
}

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
	return s.env.update(func(e, older *Env, whole bool) error {
		was := e.clone()
		if err := do(e); err != nil {
			return err
		}
		loses := false // the older copy, which is made the same as this one
		if older != nil {
			o := older.clone()
			loses = do(o) == nil && !o.same(older)
		}
		if _, at, _ := seen(was); e.same(was) && whole && at != "" && !loses {
			return nil
		}
		return remember(s.scheme, e, was, older, running, id, whole)
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
	r := probe(s.scheme, c.env[c.newest], c.older(), running, b.ID, c.whole(len(s.cfg.Env)))
	if len(s.cfg.Env) == 1 {
		r.Why += "; the environment has a single copy, which a power cut while it is written destroys"
	}
	return r, nil
}

// Reboot implements [ota.Slots].
func (s *Slots) Reboot(ctx context.Context) error {
	return pair.Restart(ctx, s.cfg.Restart)
}
