package agent

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/interlock-energy/ota"
)

// alive knows what the manager's goroutine is doing outside of the manager. An
// idle manager waits for hours and is well; one that is stuck is stuck in a call
// of something of ours: a write to flash that is dying, a store, a gate. So the
// calls are watched, and not the time since the last progress.
type alive struct {
	limit time.Duration            // of one call
	begun atomic.Bool              // the manager, or the first boot of slot.run, is at work
	boot  atomic.Pointer[ota.Boot] // what is booted, not on trial any more once it is marked good; nil: not known yet

	mu    sync.Mutex
	calls map[*call]struct{} // under way
}

// call is one that is under way. Each is timed for itself: the manager's, and those that ask
// the gate for somebody on a bus, may overlap without an end.
type call struct {
	what  string
	since time.Time
}

// enter notes the beginning of a call, and returns what notes its end.
func (l *alive) enter(what string) func() {
	c := &call{what, time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls == nil {
		l.calls = map[*call]struct{}{}
	}
	l.calls[c] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.calls, c)
	}
}

// stuck returns what takes too long, or nil.
func (l *alive) stuck() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var oldest *call
	for c := range l.calls {
		if oldest == nil || c.since.Before(oldest.since) {
			oldest = c
		}
	}
	if oldest == nil {
		return nil
	}
	if d := time.Since(oldest.since); d > l.limit {
		return fmt.Errorf("%s has taken %v, and may take %v", oldest.what, d.Round(time.Second), l.limit)
	}
	return nil
}

// The wrappers below note calls; all else is the wrapped value's.

type watchedStore struct {
	ota.Store
	a *Agent
}

func (s watchedStore) Load() (ota.Record, error) {
	defer s.a.alive.enter("loading the record")()
	r, err := s.Store.Load()
	if err == nil {
		s.a.record.Store(&r)
		s.a.counters.found(&r)
	}
	return r, err
}

func (s watchedStore) Save(r ota.Record) error {
	defer s.a.alive.enter("saving the record")()
	err := s.Store.Save(r)
	if err == nil {
		s.a.record.Store(&r)
		s.a.counters.saved(&r)
	}
	return err
}

type watchedSlots struct {
	ota.Slots
	l *alive
}

func (s watchedSlots) Booted(ctx context.Context) (ota.Boot, error) {
	defer s.l.enter("finding out what is booted")()
	b, err := s.Slots.Booted(ctx)
	if err == nil {
		s.l.boot.Store(&b)
	}
	s.l.begun.Store(true)
	return b, err
}

func (s watchedSlots) Open(ctx context.Context, component, slot string) (ota.Slot, error) {
	defer s.l.enter("opening slot " + slot)()
	sl, err := s.Slots.Open(ctx, component, slot)
	if err != nil {
		return nil, err
	}
	return watchedSlot{sl, s.l}, nil
}

func (s watchedSlots) Try(ctx context.Context, slot string) error {
	defer s.l.enter("telling the bootloader to try slot " + slot)()
	return s.Slots.Try(ctx, slot)
}

func (s watchedSlots) MarkGood(ctx context.Context) error {
	defer s.l.enter("marking the slot good")()
	err := s.Slots.MarkGood(ctx)
	if b := s.l.boot.Load(); err == nil && b != nil && b.Trial {
		proven := *b
		proven.Trial = false
		s.l.boot.Store(&proven)
	}
	return err
}

func (s watchedSlots) Reboot(ctx context.Context) error {
	defer s.l.enter("restarting")()
	return s.Slots.Reboot(ctx)
}

// Probe implements [ota.Prober].
func (s watchedSlots) Probe(ctx context.Context) (ota.Rollback, error) {
	p, ok := s.Slots.(ota.Prober)
	if !ok {
		return ota.Rollback{State: ota.RollbackUnknown, Why: "this kind of slots cannot tell"}, nil
	}
	defer s.l.enter("asking what the bootloader did")()
	return p.Probe(ctx)
}

type watchedSlot struct {
	ota.Slot
	l *alive
}

func (s watchedSlot) ReadAt(p []byte, off int64) (int, error) {
	defer s.l.enter("reading the slot")()
	return s.Slot.ReadAt(p, off)
}

func (s watchedSlot) WriteAt(p []byte, off int64) (int, error) {
	defer s.l.enter("writing the slot")()
	return s.Slot.WriteAt(p, off)
}

func (s watchedSlot) Sync(size int64) error {
	defer s.l.enter("syncing the slot")()
	return s.Slot.Sync(size)
}

func (s watchedSlot) Close() error {
	defer s.l.enter("closing the slot")()
	return s.Slot.Close()
}
