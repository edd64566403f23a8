package esp32

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

var (
	_ ota.Slots  = (*Slots)(nil)
	_ ota.Prober = (*Slots)(nil)
)

// control reads otadata. A copy that cannot be read counts as damaged, as it does
// for the bootloader; two are an error.
func (s *Slots) control() (control, error) {
	c := control{n: len(s.slots), anti: s.cfg.AntiRollback}
	var errs []error
	for i := range c.entry {
		b := make([]byte, entrySize)
		if n, err := s.flash.ReadAt(b, s.entryAt(i)); n < len(b) {
			errs = append(errs, err)
			b = nil
		}
		c.entry[i] = ParseEntry(b)
	}
	if len(errs) == len(c.entry) {
		return c, fmt.Errorf("read otadata of %s at %#x: %w", s.cfg.Flash, s.otadata.Offset, errors.Join(errs...))
	}
	c.setLow(s.flash, s.layout, s.cfg)
	return c, nil
}

// setLow finds out what anti-rollback keeps from booting.
func (c *control) setLow(r io.ReaderAt, l layout, cfg Config) {
	for i := range c.entry {
		if !cfg.AntiRollback || !c.entry[i].Valid() {
			continue
		}
		p := l.slots[c.slot(i)]
		d, err := image.ReadAppDesc(section(r, p), int64(p.Size))
		c.low[i] = err != nil || d.SecureVersion < cfg.SecureVersion
	}
}

func (s *Slots) entryAt(i int) int64 { return int64(s.otadata.Offset) + int64(i)*image.SectorSize }

// write carries out steps, and makes sure that what they say is on the medium.
func (s *Slots) write(c *control, steps []step) error {
	for _, st := range steps {
		if e := c.entry[st.i]; e.Seq != emptySeq && !e.Whole() {
			s.cfg.Log.Warn("an entry of otadata was damaged, writing it anew", "flash", s.cfg.Flash, "entry", st.i)
		}
		if err := s.flash.put(s.entryAt(st.i), st.e); err != nil {
			return err
		}
		c.do(st)
	}
	return nil
}

// now is what is known of the present boot.
type now struct {
	control
	running int // slot, or factory
	id      string
}

// now reads what is booted.
func (s *Slots) now(ctx context.Context) (n now, err error) {
	name, id, err := s.cfg.Booted(ctx)
	if err != nil {
		return n, err
	}
	if id == "" {
		return n, errors.New("this boot has no id")
	}
	n.id = id
	if n.control, err = s.control(); err != nil {
		return n, err
	}
	if name == "" {
		n.running, err = s.derive(n.control)
	} else {
		n.running, err = s.index(name)
	}
	if err != nil {
		return n, fmt.Errorf("find out which slot runs: %w", err)
	}
	return n, nil
}

// derive finds the slot that runs from what the bootloader has written. A slot in
// state New was not started yet, by a bootloader with rollback.
func (s *Slots) derive(c control) (int, error) {
	if !s.cfg.Rollback {
		return 0, errors.New("a bootloader without rollback does not write it down: tell it in Config.Booted")
	}
	for i := range c.entry {
		if c.usable(i) && c.entry[i].State == New {
			c.entry[i] = blank
		}
	}
	i, _ := c.first(false, s.factory != nil)
	if i == factory && s.factory == nil {
		i = 0
	}
	if p := s.partition(i); verify(s.flash, p, s.cfg, false) != nil {
		return 0, fmt.Errorf("%v should, and holds no whole image: tell it in Config.Booted", p)
	}
	return i, nil
}

// Booted implements [ota.Slots].
func (s *Slots) Booted(ctx context.Context) (ota.Boot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.now(ctx)
	if err != nil {
		return ota.Boot{}, fmt.Errorf("find out what is booted: %w", err)
	}
	return ota.Boot{
		Slot: s.partition(n.running).Label, Other: s.partition(s.other(n.running)).Label, ID: n.id,
		FellBack: n.fellBack(n.running), Trial: s.cfg.Rollback && n.trial(n.running),
	}, nil
}

// Try implements [ota.Slots]. The image in slot must be whole and right for this
// chip: there are bootloaders that start anything. What runs on trial can only go
// back to the slot from before. The factory application cannot be tried, but chosen,
// and then stays.
func (s *Slots) Try(ctx context.Context, slot string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.try(ctx, slot); err != nil {
		return fmt.Errorf("try slot %s: %w", slot, err)
	}
	return nil
}

func (s *Slots) try(ctx context.Context, slot string) error {
	i, err := s.index(slot)
	if err != nil {
		return err
	}
	n, err := s.now(ctx)
	if err != nil {
		return err
	}
	if i == n.running {
		return errors.New("it is running: want another")
	}
	if err := verify(s.flash, s.partition(i), s.cfg, true); err != nil {
		return err
	}
	s.gen++
	as := New
	if !s.cfg.Rollback {
		as = Undefined
	}
	if err := s.settle(&n); err != nil {
		return err
	}
	return s.write(&n.control, n.try(n.running, i, as))
}

// settle makes ready for a plan: what is in the cache only comes to the medium,
// and what was seen of the bootloader into new entries.
func (s *Slots) settle(n *now) error {
	if err := durable.SyncFile(s.flash.fsys, s.flash.path); err != nil {
		return pair.FlashError(err)
	}
	label, err := s.evidence(n.control)
	if err != nil { // then the next trial shows it again
		s.cfg.Log.Warn("cannot remember what was seen of the bootloader", "flash", s.cfg.Flash, "error", err)
	}
	n.label = label
	return nil
}

// MarkGood implements [ota.Slots]. Both entries say so afterwards; where they do,
// nothing is written.
func (s *Slots) MarkGood(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.good(ctx); err != nil {
		return fmt.Errorf("mark the running slot good: %w", err)
	}
	return nil
}

func (s *Slots) good(ctx context.Context) error {
	n, err := s.now(ctx)
	if err != nil {
		return err
	}
	if err := s.settle(&n); err != nil {
		return err
	}
	return s.write(&n.control, n.good(n.running))
}

// prepare makes slot i unbootable before it is written.
func (s *Slots) prepare(ctx context.Context, i int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.now(ctx)
	switch {
	case err != nil:
		return err
	case i == n.running:
		return fmt.Errorf("%w: it is running", ota.ErrFlashWrite)
	case i == factory:
		return fmt.Errorf("%w: the factory application is not written: add a slot to the partition table", ota.ErrIncompatible)
	case s.cfg.Rollback && n.trial(n.running):
		return fmt.Errorf("%w: the running slot is on trial, and this is the way back: mark it good first", ota.ErrFlashWrite)
	}
	if err := s.settle(&n); err != nil {
		return err
	}
	return s.write(&n.control, n.good(n.running))
}

// Reboot implements [ota.Slots].
func (s *Slots) Reboot(ctx context.Context) error {
	return pair.Restart(ctx, s.cfg.Restart)
}
