package agent

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/file"
	"github.com/interlock-energy/ota/slot/grub"
	"github.com/interlock-energy/ota/slot/sdboot"
	"github.com/interlock-energy/ota/slot/tryboot"
	"github.com/interlock-energy/ota/slot/uboot"
)

// slotKinds are the kinds of slots that makeSlots knows.
var slotKinds = []string{"file", "uboot", "grub", "sdboot", "tryboot", "esp32"}

// makeSlots makes the device's slots. To add a bootloader, add a case, and its kind above.
func (a *Agent) makeSlots() (err error) {
	restart := func(ctx context.Context) error { return a.askRestart(ctx) }
	switch s := &a.cfg.Slot; s.Kind {
	case "file":
		a.player, err = file.Open(a.fileConfig(restart))
		a.slots = a.player
	case "uboot":
		a.slots, err = uboot.Open(a.ubootConfig(restart))
	case "grub":
		a.slots, err = grub.Open(a.grubConfig(restart))
	case "esp32":
		var c esp32.Config
		if c, err = a.esp32Config(restart); err == nil {
			a.slots, err = esp32.Open(c)
		}
	case "sdboot":
		a.slots, err = sdboot.Open(a.sdbootConfig(restart))
	case "tryboot":
		a.slots, err = tryboot.Open(a.trybootConfig())
	case "":
		err = fmt.Errorf("slot.kind is missing; known are %s", strings.Join(slotKinds, ", "))
	default:
		err = fmt.Errorf("slot.kind %q is not known; known are %s", s.Kind, strings.Join(slotKinds, ", "))
	}
	return err
}

func (a *Agent) fileConfig(restart func(context.Context) error) file.Config {
	s := &a.cfg.Slot
	c := file.Config{Dir: s.Dir, Components: s.Components, BootFile: s.BootFile, Capacity: s.Capacity, Restart: restart, Log: a.log}
	if !s.Run { // there PowerOn writes it
		c.Booted = s.Booted.ask()
	}
	return c
}

func (a *Agent) ubootConfig(restart func(context.Context) error) uboot.Config {
	s, u := &a.cfg.Slot, &a.cfg.Slot.UBoot
	c := uboot.Config{Scheme: uboot.Scheme(u.Scheme), Names: u.Names, Attempts: u.Attempts, Parts: u.Parts, Components: s.Components,
		Capacity: s.Capacity, AllowSingle: u.AllowSingle, Flags: uboot.Flags(u.Flags), BigEndian: u.BigEndian, Lock: u.Lock,
		Booted: s.Booted.ask(), Restart: restart, Log: a.log}
	for _, e := range u.Env {
		c.Env = append(c.Env, uboot.Place{Path: e.Path, Offset: e.Offset, Size: e.Size})
	}
	return c
}

func (a *Agent) grubConfig(restart func(context.Context) error) grub.Config {
	s, g := &a.cfg.Slot, &a.cfg.Slot.GRUB
	c := grub.Config{Env: orDefault(g.Env, "/boot/grub/grubenv"), Env2: orDefault(g.Env2, "/boot/grub/grubenv2"), Names: g.Names,
		Components: s.Components, Capacity: s.Capacity, Booted: s.Booted.ask(), Restart: restart, Log: a.log}
	if c.Env2 == "none" {
		c.Env2 = ""
	}
	return c
}

func (a *Agent) esp32Config(restart func(context.Context) error) (esp32.Config, error) {
	s, e := &a.cfg.Slot, &a.cfg.Slot.ESP32
	c := esp32.Config{Flash: e.Flash, TableOffset: e.TableOffset, FlashSize: e.FlashSize, Rollback: e.Rollback, AntiRollback: e.AntiRollback,
		SecureVersion: e.SecureVersion, Rev: e.Revision, Component: s.Component, Booted: s.Booted.ask(), Restart: restart, Log: a.log}
	if c.Booted == nil { // the bootloader's rules say it
		c.Booted = func(context.Context) (string, string, error) {
			id, err := bootID()
			return "", id, err
		}
	}
	if e.Chip != "" {
		chip, err := image.ParseChip(e.Chip)
		if err != nil {
			return c, fmt.Errorf("slot.esp32.chip: %w", err)
		}
		c.Chip = &chip
	}
	for _, d := range e.KeyDigests {
		b, err := hex.DecodeString(d)
		if err != nil || len(b) != 32 {
			return c, fmt.Errorf("slot.esp32.key_digests: %q is not a SHA-256 in 64 hexadecimal digits", d)
		}
		c.KeyDigests = append(c.KeyDigests, [32]byte(b))
	}
	return c, nil
}

func (a *Agent) trybootConfig() tryboot.Config {
	s, t := &a.cfg.Slot, &a.cfg.Slot.Tryboot
	return tryboot.Config{Components: s.Components, Partitions: t.Partitions, BootComponent: t.BootComponent, Autoboot: orDefault(t.Autoboot, "/boot/firmware/autoboot.txt"),
		State: filepath.Join(a.cfg.StateDir, "tryboot"), BootID: bootID, Capacity: s.Capacity, Log: a.log,
		Restart: func(ctx context.Context, arg string) error {
			if arg == "" {
				return a.askRestart(ctx)
			}
			return a.askRestart(ctx, arg)
		}}
}

func (a *Agent) sdbootConfig(restart func(context.Context) error) sdboot.Config {
	s, d := &a.cfg.Slot, &a.cfg.Slot.SDBoot
	c := sdboot.Config{Dir: orDefault(d.Dir, "/efi/loader/entries"), Names: d.Names, Components: s.Components, Capacity: s.Capacity,
		Booted: s.Booted.ask(), Restart: restart, Log: a.log}
	for i, e := range d.Entries {
		c.Entries[i] = sdboot.Entry{Name: e.Name, Text: e.Text}
	}
	return c
}

// ask returns how to find out which slot runs, or nil.
func (b *Booted) ask() func(context.Context) (slot, id string, err error) {
	switch {
	case len(b.Command) > 0:
		return bootedBy(b.Command)
	case b.Cmdline != "":
		return func(context.Context) (string, string, error) { return bootedByCmdline("/proc/cmdline", b.Cmdline) }
	}
	return nil
}

// bootedByCmdline finds the slot on the kernel's command line. A boot script that
// goes on to another slot, or one that has saved its bootargs, may leave two: a wrong
// guess would write over what runs.
func bootedByCmdline(path, key string) (slot, id string, err error) {
	b, err := readProc(path)
	if err != nil {
		return "", "", err
	}
	found := false
	for word := range strings.FieldsSeq(b) {
		v, ok := strings.CutPrefix(word, key+"=")
		if !ok {
			continue
		}
		if found && v != slot {
			return "", "", fmt.Errorf("%s has %s=%s, and %s=%s, too: make the boot script set it once, and not save it", path, key, slot, key, v)
		}
		slot, found = v, true
	}
	if !found {
		return "", "", fmt.Errorf("%s has no %s=A or %s=B: does the bootloader pass it on?", path, key, key)
	}
	id, err = bootID()
	return slot, id, err
}

// bootedBy finds the slot with a program of the device.
func bootedBy(c Command) func(context.Context) (string, string, error) {
	return func(ctx context.Context) (slot, id string, err error) {
		out, err := c.run(ctx, 10*time.Second, nil)
		if err != nil {
			return "", "", fmt.Errorf("ask which slot is booted: %w", err)
		}
		id, err = bootID()
		return strings.TrimSpace(out), id, err
	}
}

// bootID is the kernel's, see random(4).
func bootID() (string, error) {
	b, err := readProc("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(b), err
}

func readProc(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read what the kernel says of this boot: %w", err)
	}
	return string(b), nil
}

// slotPath is the file of the supervised component in slot.
func (a *Agent) slotPath(slot string) string {
	s := &a.cfg.Slot
	component := orDefault(s.Component, defaultComponent)
	if paths, ok := s.Components[component]; ok {
		return paths[slot[0]-'A']
	}
	return filepath.Join(s.Dir, strings.ToLower(slot), component+".img")
}

// components returns the names of the components that the slots have.
func (a *Agent) components() []string {
	if len(a.cfg.Slot.Components) == 0 {
		return []string{a.cfg.Slot.Component}
	}
	return sortedKeys(a.cfg.Slot.Components)
}

const defaultComponent = "controller"
