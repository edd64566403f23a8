// Package sdboot switches the slots of a device that is started by systemd-boot, with
// the counting of the Boot Loader Specification. It is for controllers with UEFI
// firmware.
//
// # What is on the medium
//
// systemd-boot reads FAT alone, so what it loads lies on the EFI system partition:
// best one file for each slot, a unified kernel image. It is a component of its own,
// beside the root file systems, whose partitions it names:
//
//	/efi/EFI/interlock/a.efi                 component "kernel", slot A. Not in
//	/efi/EFI/interlock/b.efi                 /efi/EFI/Linux: all there is booted unasked
//	/dev/disk/by-partlabel/root-a, root-b    component "system"
//	/efi/loader/entries/interlock-a.conf     entry of slot A: good
//	/efi/loader/entries/interlock-b+1.conf   entry of slot B: to be tried once
//	/efi/loader/loader.conf                  "timeout 0", "editor no", and no "default"
//
// The name of a slot's entry is its state, and the version in it the order:
//
//	none                  the slot is not started: it is being written, or is empty
//	interlock-b+1.conf    it is started once
//	interlock-b+0-1.conf  it was started, and is not any more unless nothing else is there
//	interlock-b.conf      it is good. Of two good slots the higher version is started;
//	                      the other is there for people at the menu
//
// # What the bootloader does
//
// systemd-boot 251 or newer takes the entry with the highest version in the same
// sort-key, those without tries left last, and renames it before it starts it
// (systemd, docs/AUTOMATIC_BOOT_ASSESSMENT.md; src/boot/efi/boot.c). Nothing else is
// asked of it. Whoever resets a system that hangs is a watchdog, and it must run
// before the kernel does or be started by it.
//
// Start with [Format] and [Open]. Config.Booted takes the slot from /proc/cmdline and
// the id from /proc/sys/kernel/random/boot_id.
//
// # What is promised
//
// Over a power cut at any moment, also while FAT has a name twice or not at all: there
// is an entry of a whole slot, which is started; a try starts once, and then the old
// slot again unless [Slots.MarkGood]; the slot that is being written has no entry.
//
// # Known traps
//
// All of them are seen by [Slots.Probe] or are the integrator's:
//
//   - systemd-bless-boot.service would mark a trial good as soon as the system is up:
//     mask it.
//   - A "default" in loader.conf, or one set by bootctl set-default, wins over the
//     counting.
//   - If systemd-boot cannot rename, because the firmware's FAT driver or the card is
//     read-only, it starts the entry all the same, again and again. The same is so if
//     the new name is there already, which a firmware could leave that was cut while it
//     renamed; EDK2 removes the old name first.
//   - systemd-boot 259 was seen not to count (systemd issue 40405).
//   - Other entries must have a sort-key behind "interlock", or none.
//   - If the entry of a good slot does not load, systemd-boot returns to the firmware.
package sdboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// Entry is how systemd-boot starts a slot.
type Entry struct {
	// Name of the file, without counters and ".conf": lower-case letters, digits and
	// dashes. Default interlock-a and interlock-b.
	Name string

	// Text of the file but for sort-key and version, which this package adds: for
	// example "title Interlock A\nefi /EFI/interlock/a.efi\noptions interlock.slot=A\n".
	// Paths in it begin at the EFI system partition. It is what a try starts with;
	// MarkGood keeps the text that has started the slot.
	Text string
}

// Config says where things are.
type Config struct {
	// Dir is the directory of entries, for example /efi/loader/entries. Required.
	Dir string

	// Entries of the two slots. Their texts are required.
	Entries [2]Entry

	// EFIVars is where EFI variables are. Default: /sys/firmware/efi/efivars.
	EFIVars string

	// Names of the slots. Default A and B.
	Names [2]string

	// Components lists, for each component, the files or block devices of the two
	// slots. A file may be on the EFI system partition. A block device must be of this
	// device alone: it is written from its first byte.
	Components map[string][2]string

	// Booted tells which slot runs, and an id that changes at every boot. Required.
	Booted func(context.Context) (slot, id string, err error)

	// Restart restarts the device. Default: none, and Reboot is an error.
	Restart func(context.Context) error

	// Capacity of a slot that is a file, in bytes. Default: its size and what is
	// free on its file system. A block device is as large as it is.
	Capacity int64

	// Log gets a warning when entries cannot be read. Default: slog.Default().
	Log *slog.Logger
}

var (
	goodName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	// ours are keys of an entry that this package writes.
	ours = regexp.MustCompile(`(?m)^[ \t]*(version|sort-key)[ \t]`)
	// loads are keys that make something an entry (Boot Loader Specification, Type #1).
	loads = regexp.MustCompile(`(?m)^[ \t]*(linux|efi|uki)[ \t]+\S`)
)

func (c *Config) fill() error {
	if c.Names == ([2]string{}) {
		c.Names = [2]string{"A", "B"}
	}
	if c.EFIVars == "" {
		c.EFIVars = "/sys/firmware/efi/efivars"
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Dir == "" {
		return errors.New("no directory of entries is given: set Dir, for example to /efi/loader/entries")
	}
	if c.Names[0] == c.Names[1] {
		return fmt.Errorf("both slots are called %s", c.Names[0])
	}
	for i := range c.Entries {
		e := &c.Entries[i]
		if e.Name == "" {
			e.Name = []string{"interlock-a", "interlock-b"}[i]
		}
		switch {
		case !goodName.MatchString(e.Name):
			return fmt.Errorf("entry %q: want lower-case letters, digits and single dashes", e.Name)
		case !loads.MatchString(e.Text):
			return fmt.Errorf("entry %s loads nothing: its text needs a line with efi, or with linux", e.Name)
		case ours.MatchString(e.Text):
			return fmt.Errorf("entry %s has a version or a sort-key: leave them out, they are the order of the slots", e.Name)
		}
		e.Text = strings.TrimRight(e.Text, "\n") + "\n"
	}
	if c.Entries[0].Name == c.Entries[1].Name {
		return fmt.Errorf("both slots have the entry %s", c.Entries[0].Name)
	}
	return nil
}

// Slots is an [ota.Slots] and [ota.Prober] for systemd-boot. Its methods may be
// called from any goroutine.
type Slots struct {
	cfg  Config
	fsys durable.FS
	pair *pair.Pair

	mu     sync.Mutex // of the entries
	closed bool       // the other slot has no entry, durably: it may be written
}

// Open returns the slots of a device whose entries are there. It changes nothing.
func Open(cfg Config) (*Slots, error) { return OpenOn(durable.OS{}, cfg) }

// OpenOn is Open on any file system.
func OpenOn(fsys durable.FS, cfg Config) (*Slots, error) {
	s, err := openOn(fsys, cfg)
	if err != nil {
		return nil, fmt.Errorf("open systemd-boot slots: %w", err)
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
	reserved := map[string]string{}
	for i, e := range cfg.Entries {
		reserved["entry of slot "+cfg.Names[i]] = filepath.Join(cfg.Dir, e.Name+".conf")
	}
	p, err := pair.New(fsys, pair.Config{Names: cfg.Names, Components: cfg.Components, Capacity: cfg.Capacity, Reserved: reserved})
	if err != nil {
		return nil, err
	}
	return &Slots{cfg: cfg, fsys: fsys, pair: p}, nil
}

// Format makes the entry of a device in which only the slot good holds an image. It
// refuses with [fs.ErrExist] if there is an entry of a slot already. Components and
// Booted are not needed.
func Format(cfg Config, good string) error { return FormatOn(durable.OS{}, cfg, good) }

// FormatOn is Format on any file system.
func FormatOn(fsys durable.FS, cfg Config, good string) error {
	if err := format(fsys, cfg, good); err != nil {
		return fmt.Errorf("make entries for systemd-boot: %w", err)
	}
	return nil
}

func format(fsys durable.FS, cfg Config, good string) error {
	if err := cfg.fill(); err != nil {
		return err
	}
	index := 0
	if good == cfg.Names[1] {
		index = 1
	}
	if good != cfg.Names[index] {
		return fmt.Errorf("%w: there is no slot %q, only %s and %s", ota.ErrIncompatible, good, cfg.Names[0], cfg.Names[1])
	}
	if err := durable.MkdirAll(fsys, cfg.Dir, 0o755); err != nil {
		return err
	}
	d := directory{fsys, cfg}
	all, err := d.list()
	if err != nil {
		return err
	}
	for _, files := range all {
		if len(files) > 0 {
			return fmt.Errorf("%s is there: remove it to lose what it says: %w", files[0].path, fs.ErrExist)
		}
	}
	return d.put(index, plain, d.text(index, 1))
}
