package sunspec

import (
	"context"
	"fmt"
	"slices"
)

// passes is how often a long model is read before giving up. On a slow line a
// pass of 256 registers takes about half of the second between two heartbeats.
const passes = 4

// ReadModel reads a whole model. One that needs several reads is read until two
// passes are equal; use [Device.Read] where a heartbeat can tell sooner. It errs
// with [ErrTorn] if it never saw one moment, and with [ErrMap] if the model is
// not where it was any more.
func ReadModel(ctx context.Context, regs Registers, m Model) (Block, error) {
	return readModel(ctx, regs, m, nil)
}

// Read reads a whole model. One that needs several reads counts as one moment if
// the battery's heartbeat (802 Hb, else 715 DERHb) did not move meanwhile, or if
// two passes are equal. A heartbeat that never moves proves nothing, and is for
// the caller to notice.
func (d *Device) Read(ctx context.Context, regs Registers, m Model) (Block, error) {
	return readModel(ctx, regs, m, d.heartbeat())
}

// heart is where a heartbeat is.
type heart struct{ address, size uint16 }

// heartbeat returns nil if there is none, or if it is not clear whose it is.
func (d *Device) heartbeat() *heart {
	if m := d.Find(802); len(m) == 1 && m[0].Length+2 > 18 {
		return &heart{m[0].Address + 18, 1}
	}
	if m := d.Find(715); len(m) == 1 && m[0].Length+2 > 4 {
		return &heart{m[0].Address + 3, 2}
	}
	return nil
}

// beat reads a heartbeat; ok is false if the device does not implement it.
func (h *heart) beat(ctx context.Context, regs Registers) (count uint64, ok bool, err error) {
	if h == nil {
		return 0, false, nil
	}
	r, err := read(ctx, regs, h.address, h.size)
	if err != nil {
		return 0, false, fmt.Errorf("read the heartbeat: %w", err)
	}
	count = join(r)
	return count, count != 1<<(16*h.size)-1, nil
}

func readModel(ctx context.Context, regs Registers, m Model, h *heart) (Block, error) {
	size := int(m.Length) + 2
	if int(m.Address)+size > 0x10000 {
		return Block{}, fmt.Errorf("read model %d at %d: its length %d runs past register 65535: %w", m.ID, m.Address, m.Length, ErrMap)
	}
	if size <= MaxRead {
		return readHead(ctx, regs, m, size)
	}
	var last []uint16
	for range passes {
		before, beats, err := h.beat(ctx, regs)
		if err != nil {
			return Block{}, fmt.Errorf("read model %d at %d: %w", m.ID, m.Address, err)
		}
		now, err := readParts(ctx, regs, m, size)
		if err != nil {
			return Block{}, err
		}
		if last != nil && slices.Equal(last, now) {
			return Block{m, now}, nil
		}
		last = now
		if !beats {
			continue
		}
		after, _, err := h.beat(ctx, regs)
		if err != nil {
			return Block{}, fmt.Errorf("read model %d at %d: %w", m.ID, m.Address, err)
		}
		if before == after {
			return Block{m, now}, nil
		}
	}
	return Block{}, fmt.Errorf("read the %d registers of model %d at %d, %d times: %w; read it again", size, m.ID, m.Address, passes, ErrTorn)
}

// readHead reads the first registers of a model in one request.
func readHead(ctx context.Context, regs Registers, m Model, size int) (Block, error) {
	r, err := readParts(ctx, regs, m, min(size, int(m.Length)+2, MaxRead))
	return Block{m, r}, err
}

// readParts reads the first registers of a model in as few requests as it takes.
func readParts(ctx context.Context, regs Registers, m Model, size int) ([]uint16, error) {
	all := make([]uint16, 0, size)
	for len(all) < size {
		part, err := read(ctx, regs, m.Address+uint16(len(all)), uint16(min(size-len(all), MaxRead)))
		if err != nil {
			return nil, fmt.Errorf("read model %d at %d: %w", m.ID, m.Address, err)
		}
		all = append(all, part...)
	}
	// A device that was restarted with other options has other models there.
	if all[0] != m.ID || all[1] != m.Length {
		return nil, fmt.Errorf("read model %d of length %d at %d: got model %d of length %d; discover the device again: %w",
			m.ID, m.Length, m.Address, all[0], all[1], ErrMap)
	}
	return all, nil
}

// read makes sure that as many registers come as were asked for.
func read(ctx context.Context, regs Registers, address, count uint16) ([]uint16, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := regs.ReadHolding(ctx, address, count)
	if err != nil {
		return nil, err
	}
	if len(r) != int(count) {
		return nil, fmt.Errorf("read registers from %d: got %d, want %d", address, len(r), count)
	}
	return r, nil
}

// only returns the only instance of a model, and false if there is none.
func (d *Device) only(id uint16) (Model, bool, error) {
	all := d.Find(id)
	switch len(all) {
	case 0:
		return Model{}, false, nil
	case 1:
		return all[0], true, nil
	}
	return Model{}, false, fmt.Errorf("find model %d: it is there %d times; choose with Select: %w", id, len(all), ErrSeveral)
}
