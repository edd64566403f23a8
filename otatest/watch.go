package otatest

import (
	"context"
	"fmt"

	"github.com/interlock-energy/ota"
)

// told tells OnCall what the agent is about to ask for.
func (d *Device) told(format string, a ...any) {
	if d.OnCall != nil {
		d.OnCall(fmt.Sprintf(format, a...))
	}
}

// watch returns s, with the device told of every call that changes something.
func (d *Device) watch(s ota.Slots) ota.Slots {
	w := watchedSlots{s, d}
	if p, ok := s.(ota.Prober); ok {
		return struct {
			watchedSlots
			ota.Prober
		}{w, p}
	}
	return w
}

type watchedSlots struct {
	ota.Slots
	d *Device
}

func (w watchedSlots) Open(ctx context.Context, component, slot string) (ota.Slot, error) {
	s, err := w.Slots.Open(ctx, component, slot)
	if err != nil {
		return nil, err
	}
	return watchedSlot{s, w.d, slot}, nil
}

func (w watchedSlots) Try(ctx context.Context, slot string) error {
	w.d.told("try %s", slot)
	return w.Slots.Try(ctx, slot)
}

func (w watchedSlots) MarkGood(ctx context.Context) error {
	w.d.told("mark good")
	return w.Slots.MarkGood(ctx)
}

func (w watchedSlots) Reboot(ctx context.Context) error {
	w.d.told("reboot")
	return w.Slots.Reboot(ctx)
}

type watchedSlot struct {
	ota.Slot
	d    *Device
	slot string
}

func (w watchedSlot) WriteAt(p []byte, off int64) (int, error) {
	w.d.told("write %s %d", w.slot, off)
	return w.Slot.WriteAt(p, off)
}

func (w watchedSlot) Sync(size int64) error {
	w.d.told("sync %s", w.slot)
	return w.Slot.Sync(size)
}

type watchedStore struct {
	ota.Store
	d *Device
}

func (w watchedStore) Save(r ota.Record) error {
	w.d.told("save %s", r.State)
	w.d.recordsPlant(r)
	return w.Store.Save(r)
}
