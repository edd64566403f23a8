package grub

import (
	"context"
	"errors"
	"fmt"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// Booted implements [ota.Slots]. With no block that can be used, what runs is known
// all the same, and nothing else.
func (s *Slots) Booted(ctx context.Context) (ota.Boot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, _, err := s.booted(ctx)
	if err != nil {
		return ota.Boot{}, fmt.Errorf("find out what is booted: %w", err)
	}
	return b, nil
}

// booted also returns the number of the running slot.
func (s *Slots) booted(ctx context.Context) (b ota.Boot, running int, err error) {
	slot, id, err := s.cfg.Booted(ctx)
	if err != nil {
		return b, 0, err
	}
	if b, err = s.pair.Booted(slot, id); err != nil {
		return b, 0, err
	}
	running, err = s.pair.Index(slot)
	if err != nil {
		return b, 0, err
	}
	st, beside, err := s.env.load()
	switch {
	case err != nil:
		s.cfg.Log.Warn("the bootloader's state cannot be read", "error", err)
		return b, running, nil
	case beside != nil:
		s.cfg.Log.Warn("an environment block is damaged; the next write repairs it", "error", beside)
	}
	if st.trial >= 0 && st.slots[st.trial].try > 0 { // GRUB has started it
		b.Trial, b.FellBack = st.trial == running, st.trial != running
	}
	return b, running, nil
}

// Open implements [ota.Slots]. It changes nothing: the first write to the other slot
// makes it unbootable before. A block device that is mounted cannot be written.
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

// close makes the other slot one that GRUB does not start: neither on trial, nor as
// the last resort after eight starts of the running one.
func (s *Slots) close(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	b, running, err := s.booted(ctx)
	if err != nil {
		return err
	}
	var trial error
	err = s.update(b.ID, running, func(st *state) {
		if st.trial == running {
			trial = fmt.Errorf("slot %s is on trial, and slot %s the only way back: mark it good first", b.Slot, b.Other)
			return
		}
		st.lead(s.cfg.Names, running)
		st.slots[running].ok = true
		st.slots[1-running].ok = false
		if st.slots[1-running].try == 0 { // otherwise it stays known that it fell back
			st.trial = -1
		}
	})
	if err = errors.Join(trial, err); err != nil {
		return fmt.Errorf("make slot %s unbootable before it is written: %w", b.Other, err)
	}
	s.closed = true
	return nil
}

// update changes the blocks. That GRUB counted starts is remembered for this boot
// when the counts are reset, because Probe must say so also after that.
func (s *Slots) update(id string, running int, change func(*state)) error {
	return s.env.update(func(st *state) {
		if st.counted() {
			st.boot = bootTag(id)
		}
		change(st)
	})
}

// counted reports whether GRUB has counted a start since the counts were reset.
func (s state) counted() bool { return s.slots[0].try+s.slots[1].try > 0 }

// Try implements [ota.Slots]. To try the running slot is an error.
func (s *Slots) Try(ctx context.Context, slot string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := func() error {
		b, running, err := s.booted(ctx)
		if err != nil {
			return err
		}
		if slot != b.Other {
			return fmt.Errorf("want slot %s, slot %s is running", b.Other, b.Slot)
		}
		s.closed = false
		return s.update(b.ID, running, func(st *state) {
			st.lead(s.cfg.Names, 1-running)
			st.slots = [2]slotState{{ok: true}, {ok: true}}
			st.trial = 1 - running
		})
	}()
	if err != nil {
		return fmt.Errorf("try slot %s: %w", slot, err)
	}
	return nil
}

// MarkGood implements [ota.Slots]. The other slot stays what GRUB starts when nothing
// else is left, if it was good and not on trial.
func (s *Slots) MarkGood(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := func() error {
		b, running, err := s.booted(ctx)
		if err != nil {
			return err
		}
		return s.update(b.ID, running, func(st *state) {
			st.lead(s.cfg.Names, running)
			st.slots[1-running] = slotState{ok: st.slots[1-running].ok && st.trial != 1-running}
			st.slots[running] = slotState{ok: true}
			st.trial = -1
		})
	}()
	if err != nil {
		return fmt.Errorf("mark the running slot good: %w", err)
	}
	return nil
}

// Probe implements [ota.Prober]: GRUB must have counted a start since the last
// MarkGood, which is called once at every start of the agent.
func (s *Slots) Probe(ctx context.Context) (ota.Rollback, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, running, err := s.booted(ctx)
	if err != nil {
		return ota.Rollback{}, fmt.Errorf("find out whether GRUB counts starts: %w", err)
	}
	st, beside, err := s.env.load()
	if err != nil {
		return ota.Rollback{}, fmt.Errorf("find out whether GRUB counts starts: %w", err)
	}
	tries := st.slots[running].try
	switch {
	case st.boot == bootTag(b.ID):
		return ota.Rollback{State: ota.RollbackProven, Why: "GRUB had counted the start of slot " + b.Slot + " before the count was reset in this boot"}, nil
	case tries > 0:
		return ota.Rollback{State: ota.RollbackProven, Why: fmt.Sprintf("GRUB has counted %d starts of slot %s since it was marked good or tried", tries, b.Slot)}, nil
	case st.counted():
		return ota.Rollback{State: ota.RollbackProven, Why: "GRUB has counted a start of slot " + b.Other + ", and came back to slot " + b.Slot}, nil
	case beside != nil:
		return ota.Rollback{State: ota.RollbackUnknown, Why: "an environment block is damaged, and GRUB does not count starts then: " + beside.Error()}, nil
	}
	return ota.Rollback{State: ota.RollbackBroken, Why: "GRUB has started slot " + b.Slot + " and not counted that in " + s.cfg.Env + ": check that its script is the one of this package, and that it can write the file"}, nil
}

// Reboot implements [ota.Slots].
func (s *Slots) Reboot(ctx context.Context) error {
	return pair.Restart(ctx, s.cfg.Restart)
}
