// Package pair keeps the images of a device's two slots in files or block
// devices. It is the half of an [ota.Slots] that has nothing to do with the
// bootloader: every boot control in the folders beside it adds its own half.
//
// Start with [New], and answer [ota.Slots.Open] with [Pair.Open]. Promised is
// that a slot opened with Options.Running is not written, that Options.Prepare has
// returned before the first byte of another is, and what [ota.Slot] says about
// reading past the cache, syncing and full media.
package pair

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

// Config says where the images are.
type Config struct {
	Names [2]string // of the slots; default A and B

	// Components lists, for each component, the files or block devices of the two
	// slots. A block device must be of this device alone: it is written from its
	// first byte.
	Components map[string][2]string

	// Capacity of a slot that is a file, in bytes. Default: its size and what is
	// free on its file system. A block device is as large as it is.
	Capacity int64

	// Reserved lists other places of the device, by what they are for messages,
	// that no slot may share: the boot control.
	Reserved map[string]string

	// Ranges lists those of them that are a part of a disk, which a slot may lie on,
	// too.
	Ranges []Range
}

// Range is Size bytes at Offset of a file or block device.
type Range struct {
	What         string // for messages
	Path         string
	Offset, Size int64
}

// Pair is the two slots. Its methods may be called from any goroutine.
type Pair struct {
	cfg  Config
	fsys durable.FS
}

// New checks cfg, and refuses two things in one place. It changes nothing.
func New(fsys durable.FS, cfg Config) (*Pair, error) {
	if cfg.Names == ([2]string{}) {
		cfg.Names = [2]string{"A", "B"}
	}
	p := &Pair{cfg, fsys}
	if err := p.check(); err != nil {
		return nil, err
	}
	if err := p.distinct(); err != nil {
		return nil, err
	}
	return p, p.apart()
}

func (p *Pair) check() error {
	if len(p.cfg.Components) == 0 {
		return errors.New("no components are given: name at least one, with the places of its two slots")
	}
	if p.cfg.Capacity < 0 {
		return fmt.Errorf("capacity is %d bytes, want 0 or more", p.cfg.Capacity)
	}
	places := map[string]string{}
	for _, what := range slices.Sorted(maps.Keys(p.cfg.Reserved)) {
		places[filepath.Clean(p.cfg.Reserved[what])] = what
	}
	for _, name := range p.Components() {
		if err := ota.CheckName(name); err != nil {
			return fmt.Errorf("component: %w", err)
		}
		for i, path := range p.cfg.Components[name] {
			what := fmt.Sprintf("slot %s of component %s", p.cfg.Names[i], name)
			if path == "" {
				return fmt.Errorf("%s has no place", what)
			}
			if other, ok := places[filepath.Clean(path)]; ok {
				return fmt.Errorf("%s and %s are both in %s", other, what, path)
			}
			places[filepath.Clean(path)] = what
		}
	}
	return nil
}

// distinct refuses places that are one file under two names, by a link.
func (p *Pair) distinct() error {
	type place struct {
		path string
		info fs.FileInfo
	}
	var seen []place
	paths := slices.Compact(slices.Sorted(maps.Values(p.cfg.Reserved)))
	for _, name := range p.Components() {
		paths = append(paths, p.cfg.Components[name][0], p.cfg.Components[name][1])
	}
	for _, path := range paths {
		info, err := p.fsys.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, s := range seen {
			if os.SameFile(s.info, info) {
				return fmt.Errorf("%s and %s are the same file", s.path, path)
			}
		}
		seen = append(seen, place{path, info})
	}
	return nil
}

// apart refuses block devices that are the same bytes of one disk: by another name,
// or because one is the disk and the other its partition. It sees only what the
// system tells.
func (p *Pair) apart() error {
	type part struct {
		what string
		durable.Extent
	}
	var seen []part
	for _, r := range p.cfg.Ranges {
		seen = append(seen, part{fmt.Sprintf("%s at %#x of %s", r.What, r.Offset, r.Path), durable.Part(p.fsys, r.Path, r.Offset, r.Size)})
	}
	for _, name := range p.Components() {
		for i, path := range p.cfg.Components[name] {
			slot := part{fmt.Sprintf("slot %s of component %s in %s", p.cfg.Names[i], name, path), durable.Whole(p.fsys, path)}
			for _, s := range seen {
				if s.Overlaps(slot.Extent) {
					return fmt.Errorf("%s and %s are in the same place of the disk", s.what, slot.what)
				}
			}
			seen = append(seen, slot)
		}
	}
	return nil
}

// Components returns the components in order, so that effects come in the same order every time.
func (p *Pair) Components() []string { return slices.Sorted(maps.Keys(p.cfg.Components)) }

// Names returns the names of the slots.
func (p *Pair) Names() [2]string { return p.cfg.Names }

// Index returns 0 or 1 for the name of a slot. Other names are [ota.ErrIncompatible].
func (p *Pair) Index(slot string) (int, error) {
	i := slices.Index(p.cfg.Names[:], slot)
	if i < 0 {
		return 0, fmt.Errorf("%w: there is no slot %q, only %s and %s", ota.ErrIncompatible, slot, p.cfg.Names[0], p.cfg.Names[1])
	}
	return i, nil
}

// Other returns the slot that is not slot.
func (p *Pair) Other(slot string) (string, error) {
	i, err := p.Index(slot)
	if err != nil {
		return "", err
	}
	return p.cfg.Names[1-i], nil
}

// Booted completes what the kernel said of this boot: the slot must be one of the two.
func (p *Pair) Booted(slot, id string) (ota.Boot, error) {
	other, err := p.Other(slot)
	if err != nil {
		return ota.Boot{}, fmt.Errorf("slot %q is booted, want %s or %s", slot, p.cfg.Names[0], p.cfg.Names[1])
	}
	if id == "" {
		return ota.Boot{}, errors.New("this boot has no id")
	}
	return ota.Boot{Slot: slot, Other: other, ID: id}, nil
}

// Holds reports whether there is something in every component of a slot: not
// nothing, and not flash or a disk that was never written.
func (p *Pair) Holds(slot string) bool {
	i, err := p.Index(slot)
	if err != nil {
		return false
	}
	for _, name := range p.Components() {
		begin := make([]byte, 4096)
		f, err := p.fsys.OpenFile(p.cfg.Components[name][i], os.O_RDONLY, 0)
		if err != nil {
			return false
		}
		n, err := f.ReadAt(begin, 0)
		f.Close() // only read: nothing can be lost
		if err != nil && err != io.EOF {
			return false
		}
		begin = begin[:n]
		if len(bytes.Trim(begin, "\x00")) == 0 || len(bytes.Trim(begin, "\xff")) == 0 {
			return false
		}
	}
	return true
}

// Restart is Reboot of an [ota.Slots], with what a device has for it; nil is an error.
func Restart(ctx context.Context, restart func(context.Context) error) error {
	if restart == nil {
		return fmt.Errorf("restart the device: %w: Config.Restart is not set", errors.ErrUnsupported)
	}
	if err := restart(ctx); err != nil {
		return fmt.Errorf("restart the device: %w", err)
	}
	return nil
}

// FlashError gives an error of the medium its code: [ota.ErrInsufficientSpace] or
// [ota.ErrFlashWrite].
func FlashError(err error) error {
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, full) {
			return fmt.Errorf("%w: %w", ota.ErrInsufficientSpace, err)
		}
	}
	return fmt.Errorf("%w: %w", ota.ErrFlashWrite, err)
}
