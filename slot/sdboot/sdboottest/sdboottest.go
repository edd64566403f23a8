// Package sdboottest puts systemd-boot slots on the disks of package otatest. It has a
// model of systemd-boot, made from its documentation and behaviour, and not from
// package sdboot. A test of package sdboot compares it with systemd-boot itself.
package sdboottest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/sdboot"
)

// Places on the disk.
const (
	ESP     = "/efi"
	Dir     = ESP + "/loader/entries"
	ImageA  = ESP + "/EFI/interlock/a.efi"
	ImageB  = ESP + "/EFI/interlock/b.efi"
	EFIVars = "/sys/firmware/efi/efivars"
)

// Backend is an [otatest.Backend] of systemd-boot slots, whose images are files on the
// EFI system partition. The zero value is ready.
type Backend struct{}

// Config returns the configuration of an agent on the device, but for Booted and Restart.
func (Backend) Config() sdboot.Config {
	return sdboot.Config{
		Dir: Dir, EFIVars: EFIVars,
		Entries: [2]sdboot.Entry{
			{Text: "title Interlock A\nefi /EFI/interlock/a.efi\noptions interlock.slot=A\n"},
			{Text: "title Interlock B\nefi /EFI/interlock/b.efi\noptions interlock.slot=B\n"},
		},
		Components: map[string][2]string{"controller": {ImageA, ImageB}},
		Capacity:   1 << 20, Log: slog.New(slog.DiscardHandler),
	}
}

// Format implements [otatest.Backend].
func (b Backend) Format(d *otatest.Disk, image []byte) error {
	for _, dir := range []string{ESP, ESP + "/EFI", ESP + "/EFI/interlock", ESP + "/loader", Dir} {
		d.MkFAT(dir)
	}
	if err := durable.MkdirAll(d, "/data", 0o755); err != nil { // where the record is
		return err
	}
	if err := durable.WriteFile(d, ImageA, image, 0o600); err != nil {
		return err
	}
	return sdboot.FormatOn(d, b.Config(), "A")
}

// Slots implements [otatest.Backend].
func (b Backend) Slots(d *otatest.Disk, boot otatest.Boot, restart func(context.Context) error) (ota.Slots, error) {
	cfg := b.Config()
	cfg.Booted = func(context.Context) (string, string, error) { return boot.Slot, boot.ID, nil }
	cfg.Restart = restart
	return sdboot.OpenOn(d, cfg)
}

// Image implements [otatest.Backend].
func (Backend) Image(d *otatest.Disk, slot string) []byte {
	if slot == "B" {
		return d.Content(ImageB)
	}
	return d.Content(ImageA)
}

// PowerOn implements [otatest.Backend].
func (Backend) PowerOn(d *otatest.Disk) (string, error) {
	entries, err := Entries(d)
	if err != nil {
		return "", err
	}
	if len(entries) == 0 {
		return "", errors.New("systemd-boot: no loader found")
	}
	e := entries[0]
	if e.left >= 0 {
		_ = count(d, e) // systemd-boot says that it failed, and starts the entry
	}
	_, slot, ok := strings.Cut(e.key["options"], "interlock.slot=")
	if !ok {
		return "", errors.New("systemd-boot: entry " + e.file + " is of no slot")
	}
	return slot, nil
}

// Entry is one that systemd-boot shows.
type Entry struct {
	file, id   string
	left, done int // left is -1 without counters
	key        map[string]string
}

// Entries returns the entries in systemd-boot's order, the default first
// (src/boot/efi/boot.c: config_entry_add_type1, config_entry_compare).
func Entries(d *otatest.Disk) (all []Entry, err error) {
	files, err := d.ReadDir(Dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if e, ok := read(d, f.Name()); ok {
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, compare)
	return all, nil
}

func read(d *otatest.Disk, file string) (e Entry, ok bool) {
	stem, ok := strings.CutSuffix(strings.ToLower(file), ".conf")
	if !ok {
		return e, false
	}
	e = Entry{file: file, id: stem, left: -1, key: map[string]string{}}
	if at := strings.LastIndex(stem, "+"); at >= 0 {
		left, done, both := strings.Cut(stem[at+1:], "-")
		l, err := strconv.Atoi(left)
		n, nerr := strconv.Atoi(done)
		if err == nil && (nerr == nil || !both) {
			e.id, e.left, e.done = stem[:at], l, n
		}
	}
	for line := range strings.Lines(string(d.Content(path.Join(Dir, file)))) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		e.key[key] = strings.TrimSpace(value)
	}
	loader := e.key["efi"]
	return e, loader != "" && d.Content(ESP+loader) != nil
}

func compare(a, b Entry) int {
	none := func(e Entry) int {
		if e.left == 0 {
			return 1
		}
		return 0
	}
	unsorted := func(e Entry) int {
		if e.key["sort-key"] == "" {
			return 1
		}
		return 0
	}
	if c := cmp.Or(none(a)-none(b), unsorted(a)-unsorted(b)); c != 0 {
		return c
	}
	if a.key["sort-key"] != "" {
		if c := cmp.Or(cmp.Compare(a.key["sort-key"], b.key["sort-key"]), -versions(a.key["version"], b.key["version"])); c != 0 {
			return c
		}
	}
	if c := -cmp.Compare(a.id, b.id); c != 0 || a.left < 0 || b.left < 0 {
		return c
	}
	return cmp.Or(-cmp.Compare(a.left, b.left), cmp.Compare(a.done, b.done))
}

// versions compares numbers; systemd-boot compares anything.
func versions(a, b string) int {
	x, _ := strconv.Atoi(a)
	y, _ := strconv.Atoi(b)
	return cmp.Compare(x, y)
}

// count renames an entry as EDK2's FAT driver does (FatPkg/EnhancedFatDxe/Info.c,
// FatSetFileInfo): the name that is there already is an error, which systemd-boot
// ignores; the old name goes first. A name that no loader looks at stands for the
// content, which has none while it is renamed.
func count(d *otatest.Disk, e Entry) error {
	next := e.id + "+" + strconv.Itoa(max(e.left-1, 0)) + "-" + strconv.Itoa(e.done+1) + ".conf"
	from, to, hidden := path.Join(Dir, e.file), path.Join(Dir, next), path.Join(Dir, "renamed")
	if d.Content(to) != nil {
		return nil
	}
	content := bytes.Clone(d.Content(from))
	if err := d.Remove(hidden); err == nil { // of a boot that was cut
		if err := d.SyncDir(Dir); err != nil {
			return err
		}
	}
	if err := durable.WriteFile(d, hidden, content, 0o600); err != nil {
		return err
	}
	return errors.Join(d.Remove(from), d.SyncDir(Dir), d.Rename(hidden, to), d.SyncDir(Dir))
}
