package sdboot

import (
	"context"
	"fmt"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// Booted implements [ota.Slots]. If the entries cannot be read, what runs is known all
// the same, and nothing else.
func (s *Slots) Booted(ctx context.Context) (ota.Boot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, _, _, err := s.booted(ctx)
	if err != nil {
		return ota.Boot{}, fmt.Errorf("find out what is booted: %w", err)
	}
	return b, nil
}

// booted also returns the number of the running slot and the entries.
func (s *Slots) booted(ctx context.Context) (b ota.Boot, running int, all [2][]entry, err error) {
	slot, id, err := s.cfg.Booted(ctx)
	if err != nil {
		return b, 0, all, err
	}
	if b, err = s.pair.Booted(slot, id); err != nil {
		return b, 0, all, err
	}
	if running, err = s.pair.Index(slot); err != nil {
		return b, 0, all, err
	}
	all, err = s.directory().list()
	if err != nil {
		s.cfg.Log.Warn("the entries of systemd-boot cannot be read", "error", err)
		return b, running, [2][]entry{}, nil
	}
	b.Trial, b.FellBack = usedUp(all[running]), usedUp(all[1-running])
	return b, running, all, nil
}

func (s *Slots) directory() directory { return directory{s.fsys, s.cfg} }

// state is booted with the entries as they are on the medium, or an error.
func (s *Slots) state(ctx context.Context) (b ota.Boot, running int, all [2][]entry, err error) {
	if b, running, _, err = s.booted(ctx); err != nil {
		return b, running, all, err
	}
	if err = s.directory().sync(); err != nil {
		return b, running, all, pair.FlashError(fmt.Errorf("sync entries: %w", err))
	}
	all, err = s.directory().list()
	return b, running, all, err
}

// Open implements [ota.Slots]. It changes nothing: the first write to the other slot
// removes its entry before. A block device that is mounted cannot be written.
func (s *Slots) Open(ctx context.Context, component, slot string) (ota.Slot, error) {
	b, err := s.Booted(ctx)
	if err != nil {
		return nil, fmt.Errorf("open slot %s: %w", slot, err)
	}
	return s.pair.Open(component, slot, pair.Options{
		Running: slot == b.Slot,
		// Asked before every write, and not once, because Try may have come in between.
		Writable: func() error { return s.close(ctx) },
	})
}

// close makes the other slot one that systemd-boot does not know.
func (s *Slots) close(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	b, running, all, err := s.state(ctx)
	if err == nil {
		err = s.settled(b, all[running])
	}
	if err == nil {
		err = s.directory().remove(all[1-running]...)
	}
	if err != nil {
		return fmt.Errorf("make slot %s unbootable before it is written: %w", b.Other, err)
	}
	s.closed = true
	return nil
}

// settled refuses what would leave no good entry: the running slot must have one.
func (s *Slots) settled(b ota.Boot, running []entry) error {
	if _, ok := good(running); !ok {
		return fmt.Errorf("slot %s is on trial, or has lost its entry, and slot %s is the only way back: mark it good first", b.Slot, b.Other)
	}
	return nil
}

// Try implements [ota.Slots]. To try the running slot is an error, and so is to try
// while the running one is on trial itself.
func (s *Slots) Try(ctx context.Context, slot string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.try(ctx, slot); err != nil {
		return fmt.Errorf("try slot %s: %w", slot, err)
	}
	return nil
}

func (s *Slots) try(ctx context.Context, slot string) error {
	b, running, all, err := s.state(ctx)
	if err != nil {
		return err
	}
	if slot != b.Other {
		return fmt.Errorf("want slot %s, slot %s is running", b.Other, b.Slot)
	}
	if err := s.settled(b, all[running]); err != nil {
		return err
	}
	s.closed = false
	d, other := s.directory(), all[1-running]
	if len(other) == 1 && other[0].left == 1 && other[0].done == 0 && !other[0].good &&
		other[0].version == highest(all) && d.holds(other[0].path, d.text(1-running, other[0].version)) {
		return nil // it is so already
	}
	// The old entry first: both would be two names for one slot, one of which is not
	// counted. In between the slot is not started, and this one is.
	if err := d.remove(other...); err != nil {
		return err
	}
	return d.put(1-running, once, d.text(1-running, highest(all)+1))
}

// MarkGood implements [ota.Slots]. The other slot keeps its entry if it was good.
func (s *Slots) MarkGood(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.markGood(ctx); err != nil {
		return fmt.Errorf("mark the running slot good: %w", err)
	}
	return nil
}

func (s *Slots) markGood(ctx context.Context) error {
	_, running, all, err := s.state(ctx)
	if err != nil {
		return err
	}
	d := s.directory()
	if version, first := s.version(running, all); !first {
		if err := s.putGood(running, all[running], version); err != nil {
			return err
		}
		if all, err = d.list(); err != nil {
			return err
		}
	}
	// Only now the counters: until here they were what started this slot.
	var left []entry
	for i, entries := range all {
		for _, e := range entries {
			if !e.good || !e.whole && i != running {
				left = append(left, e)
			}
		}
	}
	if len(left) == 0 {
		return nil
	}
	return d.remove(left...)
}

// putGood makes the good entry of the running slot, with the text that has started it.
func (s *Slots) putGood(running int, entries []entry, version int) error {
	d := s.directory()
	text, there := d.text(running, version), false
	for _, e := range entries {
		if e.whole {
			text = withVersion(e.text, version)
		}
		there = there || e.good
	}
	if there { // it may be all there is, and not as damaged as it seems
		if err := d.put(running, spare, text); err != nil {
			return err
		}
	}
	return d.put(running, plain, text)
}

// version reports whether the running slot is the first choice for good. Otherwise it
// returns the version that will make it so.
func (s *Slots) version(running int, all [2][]entry) (version int, first bool) {
	mine, isGood := good(all[running])
	other, both := good(all[1-running])
	if isGood && (!both || mine.version > other.version) {
		return mine.version, true
	}
	for _, e := range all[running] {
		version = max(version, e.version)
	}
	if both && version <= other.version || version == 0 {
		version = highest(all) + 1
	}
	return version, false
}

// Reboot implements [ota.Slots].
func (s *Slots) Reboot(ctx context.Context) error {
	return pair.Restart(ctx, s.cfg.Restart)
}
