package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/interlock-energy/ota/slot/file"
)

// slotKinds are the kinds of slots that makeSlots knows.
var slotKinds = []string{"file"}

// makeSlots makes the device's slots. To add a bootloader, add a case, and its kind above.
func (a *Agent) makeSlots(restart func(context.Context) error) (err error) {
	switch s := &a.cfg.Slot; s.Kind {
	case "file":
		a.player, err = file.Open(a.fileConfig(restart))
		a.slots = a.player
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

// bootedByCmdline finds the slot on the kernel's command line.
func bootedByCmdline(path, key string) (slot, id string, err error) {
	b, err := readProc(path)
	if err != nil {
		return "", "", err
	}
	for word := range strings.FieldsSeq(b) {
		if v, ok := strings.CutPrefix(word, key+"="); ok {
			id, err = bootID()
			return strings.ToUpper(v), id, err
		}
	}
	return "", "", fmt.Errorf("%s has no %s=A or %s=B: does the bootloader pass it on?", path, key, key)
}

// bootedBy finds the slot with a program of the device.
func bootedBy(c Command) func(context.Context) (string, string, error) {
	return func(ctx context.Context) (slot, id string, err error) {
		out, err := c.run(ctx, 10*time.Second, nil)
		if err != nil {
			return "", "", fmt.Errorf("ask which slot is booted: %w", err)
		}
		id, err = bootID()
		return strings.ToUpper(strings.TrimSpace(out)), id, err
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
		return []string{defaultComponent}
	}
	return sortedKeys(a.cfg.Slot.Components)
}

const defaultComponent = "controller"
