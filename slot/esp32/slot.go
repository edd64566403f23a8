package esp32

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// Open implements [ota.Slots]. All slots can be read; the factory application and
// the slot that runs are never written.
func (s *Slots) Open(ctx context.Context, component, slot string) (ota.Slot, error) {
	fail := func(err error) (ota.Slot, error) { return nil, fmt.Errorf("open slot %s: %w", slot, err) }
	if component != s.cfg.Component {
		return fail(fmt.Errorf("%w: there is no component %s, only %s", ota.ErrIncompatible, component, s.cfg.Component))
	}
	i, err := s.index(slot)
	if err != nil {
		return fail(err)
	}
	return &place{slots: s, ctx: context.WithoutCancel(ctx), i: i, p: s.partition(i)}, nil
}

// place is an [ota.Slot] in a partition.
type place struct {
	slots *Slots
	ctx   context.Context // of Open, for questions about the boot; is never cancelled
	i     int
	p     image.Partition

	mu       sync.Mutex
	w        durable.File // nil: not written yet
	r        durable.File // past the page cache; nil: not read since the last write
	prepared bool
	gen      int // of the tries, when it was prepared
	broken   error
}

func (s *place) Capacity() int64 { return int64(s.p.Size) }

// writable makes ready to write, or refuses it. After a try, what is tried may be
// written only if it is not booted any more.
func (s *place) writable() (err error) {
	if s.broken != nil {
		return fmt.Errorf("%w: an earlier sync ended in an error, so it is not known what is on the medium: open it again and read: %w", ota.ErrFlashWrite, s.broken)
	}
	s.slots.mu.Lock()
	gen := s.slots.gen
	s.slots.mu.Unlock()
	if !s.prepared || s.gen != gen {
		if err := s.slots.prepare(s.ctx, s.i); err != nil {
			return err
		}
		s.prepared, s.gen = true, gen
	}
	if s.r != nil {
		r := s.r
		s.r = nil // it has read ahead
		if err := r.Close(); err != nil {
			return pair.FlashError(err)
		}
	}
	if s.w == nil {
		if s.w, err = s.slots.flash.writer(); err != nil {
			return pair.FlashError(err)
		}
	}
	return nil
}

// WriteAt writes whole sectors: raw flash is erased where the new bytes need it,
// and what else is in the first and the last sector comes back.
func (s *place) WriteAt(p []byte, off int64) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(p, off); err != nil {
		return 0, fmt.Errorf("write slot %s at %d: %w", s.p.Label, off, err)
	}
	return len(p), nil
}

func (s *place) write(p []byte, off int64) error {
	switch size := int64(s.p.Size); {
	case off < 0:
		return errors.New("the offset is negative")
	case int64(len(p)) > size-off:
		return fmt.Errorf("%w: %d bytes end beyond its capacity of %d", ota.ErrInsufficientSpace, len(p), size)
	case len(p) == 0:
		return nil
	}
	if err := s.writable(); err != nil {
		return err
	}
	e, ok := s.w.(durable.Eraser)
	if !ok {
		if err := writeAt(s.w, p, int64(s.p.Offset)+off); err != nil {
			return pair.FlashError(err)
		}
		return nil
	}
	begin := off / image.SectorSize * image.SectorSize
	end := (off + int64(len(p)) + image.SectorSize - 1) / image.SectorSize * image.SectorSize
	b := make([]byte, end-begin)
	at := int64(s.p.Offset) + begin
	if n, err := s.slots.flash.ReadAt(b, at); n < len(b) {
		return pair.FlashError(err)
	}
	if clears(b[off-begin:], p) {
		return flashError(writeAt(s.w, p, int64(s.p.Offset)+off))
	}
	copy(b[off-begin:], p)
	if err := e.Erase(at, int64(len(b))); err != nil {
		return pair.FlashError(err)
	}
	return flashError(writeAt(s.w, b, at))
}

// clears reports whether flash that holds old can become new without being erased.
func clears(old, new []byte) bool {
	for i, b := range new {
		if b&^old[i] != 0 {
			return false
		}
	}
	return true
}

func flashError(err error) error {
	if err == nil {
		return nil
	}
	return pair.FlashError(err)
}

// ReadAt reads what is on the medium, to the end of the partition.
func (s *place) ReadAt(p []byte, off int64) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.r == nil {
		s.r, err = s.slots.flash.reader()
	}
	if err == nil {
		n, err = section(s.r, s.p).ReadAt(p, off)
	}
	if err != nil && err != io.EOF {
		return n, fmt.Errorf("read slot %s at %d: %w", s.p.Label, off, pair.FlashError(err))
	}
	return n, err
}

func (s *place) Sync(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.sync(size); err != nil {
		return fmt.Errorf("sync %d bytes of slot %s: %w", size, s.p.Label, err)
	}
	return nil
}

func (s *place) sync(size int64) error {
	if size < 0 || size > int64(s.p.Size) {
		return fmt.Errorf("%w: it has %d", ota.ErrFlashWrite, s.p.Size)
	}
	if err := s.writable(); err != nil {
		return err
	}
	if err := s.w.Sync(); err != nil {
		s.broken = err
		return pair.FlashError(err)
	}
	return nil
}

func (s *place) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, f := range []durable.File{s.w, s.r} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	s.w, s.r = nil, nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close slot %s: %w", s.p.Label, pair.FlashError(err))
	}
	return nil
}
