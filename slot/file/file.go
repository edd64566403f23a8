// Package file keeps the two slots of a device in files or block devices, and the
// bootloader's choice between them in a small boot control file. The demo and
// developers use it; so does a device whose bootloader reads the boot control
// file, whose format is described at [Slots.PowerOn].
//
// In a directory it looks like this:
//
//	dir/boot                 boot control: which slot is good, and which to try
//	dir/a/controller.img     slot A, one file for each component
//	dir/b/controller.img     slot B
//
// Start with [Format], which makes a new device, and [Open]. Whoever plays the
// bootloader calls [Slots.PowerOn] once at every start of the device, before it
// starts what is in the slot.
//
// Promised is, also over power cuts at any moment: the slot that runs is not
// written; a try boots once, and without [Slots.MarkGood] the boot after it is the
// old slot again; what Try, MarkGood and Sync have returned nil for stays.
package file

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
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

// Config says where things are.
type Config struct {
	Dir string // default place of everything; must be given unless all places are

	// Components lists, for each component, the files or block devices of slots A
	// and B. A block device must be of this device alone: it is written from its
	// first byte. Default: "controller" in Dir/a/controller.img and Dir/b/controller.img.
	Components map[string][2]string

	BootFile string // file or block device of the boot control, 128 KiB; default Dir/boot

	// Booted tells which slot runs, SlotA or SlotB, and an id that changes at every
	// boot, where the bootloader passes that on in another way. Default: what
	// PowerOn wrote into the boot control.
	Booted func(context.Context) (slot, id string, err error)

	// Restart restarts the device. Default: none, and Reboot is an error.
	Restart func(context.Context) error

	// Capacity of a slot that is a file, in bytes. Default: its size and what is
	// free on its file system. A block device is as large as it is.
	Capacity int64

	// Log gets a warning when boot control was lost. Default: slog.Default().
	Log *slog.Logger
}

// fill sets the defaults.
func (c *Config) fill() error {
	if c.Dir == "" && (c.BootFile == "" || len(c.Components) == 0) {
		return errors.New("no directory is given")
	}
	if c.BootFile == "" {
		c.BootFile = filepath.Join(c.Dir, "boot")
	}
	if len(c.Components) == 0 {
		c.Components = map[string][2]string{"controller": {
			filepath.Join(c.Dir, "a", "controller.img"), filepath.Join(c.Dir, "b", "controller.img")}}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Slots is an [ota.Slots] in files. Its methods may be called from any goroutine.
type Slots struct {
	cfg  Config
	fsys durable.FS
	pair *pair.Pair

	mu       sync.Mutex // of the boot control
	powerOns int        // by this value, which makes slots opened before unwritable
}

// Open returns the slots of a device that [Format] made. It changes nothing.
func Open(cfg Config) (*Slots, error) { return OpenOn(durable.OS{}, cfg) }

// OpenOn is Open on any file system.
func OpenOn(fsys durable.FS, cfg Config) (*Slots, error) {
	if err := cfg.fill(); err != nil {
		return nil, fmt.Errorf("open file slots: %w", err)
	}
	p, err := pair.New(fsys, pair.Config{Components: cfg.Components, Capacity: cfg.Capacity, Reserved: map[string]string{"boot control": cfg.BootFile}})
	if err != nil {
		return nil, fmt.Errorf("open file slots: %w", err)
	}
	return &Slots{cfg: cfg, fsys: fsys, pair: p}, nil
}

// Booted implements [ota.Slots]. Without Config.Booted it is an error before the
// first PowerOn.
func (s *Slots) Booted(ctx context.Context) (ota.Boot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.booted(ctx)
	if err != nil {
		return ota.Boot{}, fmt.Errorf("find out what is booted: %w", err)
	}
	return b, nil
}

func (s *Slots) booted(ctx context.Context) (ota.Boot, error) {
	c, err := s.control().load()
	if s.cfg.Booted == nil {
		if err != nil {
			return ota.Boot{}, err
		}
		if c.booted == noSlot {
			return ota.Boot{}, fmt.Errorf("the device %s was never powered on: call PowerOn first", s.cfg.BootFile)
		}
		return ota.Boot{Slot: string(c.booted), Other: string(other(c.booted)), ID: strconv.FormatUint(c.boots, 10), FellBack: c.fellBack, Trial: c.booted != c.good}, nil
	}
	if err != nil && !errors.Is(err, errNoControl) {
		return ota.Boot{}, err
	}
	slot, id, err := s.cfg.Booted(ctx)
	if err != nil {
		return ota.Boot{}, err
	}
	b, bootErr := s.pair.Booted(slot, id)
	b.FellBack, b.Trial = c.fellBack, err == nil && slot != string(c.good)
	return b, bootErr
}

// Open implements [ota.Slots]. It changes nothing: a file is created by the first
// write to it. A block device that is mounted cannot be written.
func (s *Slots) Open(ctx context.Context, component, slot string) (ota.Slot, error) {
	b, err := s.Booted(ctx)
	if err != nil {
		return nil, fmt.Errorf("open slot %s: %w", slot, err)
	}
	return s.open(component, slot, slot == b.Slot)
}

// open opens a slot that may be written until the next PowerOn.
func (s *Slots) open(component, slot string, running bool) (ota.Slot, error) {
	s.mu.Lock()
	opened := s.powerOns
	s.mu.Unlock()
	return s.pair.Open(component, slot, pair.Options{Running: running, Writable: func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.powerOns != opened {
			return errors.New("the device was powered on since it was opened: open it again")
		}
		return nil
	}})
}

// Probe implements [ota.Prober]. Without Config.Booted, what runs was started by
// PowerOn, which counts.
func (s *Slots) Probe(ctx context.Context) (ota.Rollback, error) {
	if s.cfg.Booted != nil {
		return ota.Rollback{State: ota.RollbackUnknown, Why: "the boot control file does not say what the bootloader did"}, nil
	}
	b, err := s.Booted(ctx)
	if err != nil {
		return ota.Rollback{}, err
	}
	return ota.Rollback{State: ota.RollbackProven, Why: "this boot was counted, number " + b.ID}, nil
}

// Try implements [ota.Slots]. To try the running slot is an error.
func (s *Slots) Try(ctx context.Context, slot string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := func() error {
		b, err := s.booted(ctx)
		if err != nil {
			return err
		}
		if slot != b.Other {
			return fmt.Errorf("want slot %s, slot %s is running", b.Other, b.Slot)
		}
		return s.control().update(func(c *control) error {
			c.try, c.fellBack = slot[0], false
			return nil
		})
	}()
	if err != nil {
		return fmt.Errorf("try slot %s: %w", slot, err)
	}
	return nil
}

// MarkGood implements [ota.Slots].
func (s *Slots) MarkGood(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := func() error {
		b, err := s.booted(ctx)
		if err != nil {
			return err
		}
		return s.control().update(func(c *control) error {
			c.good, c.try, c.fellBack = b.Slot[0], noSlot, false
			return nil
		})
	}()
	if err != nil {
		return fmt.Errorf("mark the running slot good: %w", err)
	}
	return nil
}

// Reboot implements [ota.Slots].
func (s *Slots) Reboot(ctx context.Context) error {
	return pair.Restart(ctx, s.cfg.Restart)
}

func other(slot byte) byte {
	if slot == SlotA[0] {
		return SlotB[0]
	}
	return SlotA[0]
}
