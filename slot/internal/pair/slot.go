package pair

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

// earlyStep is how many bytes are written before the medium is asked to begin
// with them. Measured on a virtual disk for 64 MiB: 58 ms of CPU and 60 ms in all
// in steps of 1 MiB, 59 and 79 ms with one fsync at the end, 75 and 130 ms with
// O_DIRECT in pieces of 64 KiB.
const earlyStep = 1 << 20

// Options of [Pair.Open].
type Options struct {
	Running bool // the slot runs, and may only be read

	// Prepare is called before something is written or synced for the first time
	// through this slot: the bootloader must not boot what is half written. Nothing is
	// written after its error. May be nil.
	Prepare func() error

	// Writable is asked before every write and sync, and refuses it with an error:
	// whoever plays the bootloader may have started the slot by now. May be nil.
	Writable func() error
}

// Open opens component's place in slot. It changes nothing: a file is created by
// the first write to it. A block device that is mounted cannot be written.
func (p *Pair) Open(component, slot string, o Options) (ota.Slot, error) {
	s, err := p.open(component, slot, o)
	if err != nil {
		return nil, fmt.Errorf("open slot %s: %w", slot, err)
	}
	return s, nil
}

func (p *Pair) open(component, name string, o Options) (*slot, error) {
	paths, ok := p.cfg.Components[component]
	if !ok {
		return nil, fmt.Errorf("%w: there is no component %s, only %q", ota.ErrIncompatible, component, p.Components())
	}
	i, err := p.Index(name)
	if err != nil {
		return nil, err
	}
	sl := &slot{pair: p, Options: o, name: fmt.Sprintf("slot %s of %s", name, component), path: paths[i]}
	return sl, sl.measure()
}

// slot is an [ota.Slot] in a file or a block device.
type slot struct {
	Options
	pair     *Pair
	name     string // for messages
	path     string
	device   bool // a block device
	capacity int64

	mu     sync.Mutex
	ready  bool         // Prepare has returned
	w      durable.File // nil: not written yet
	r      durable.File // past the page cache; nil: not read since the last write
	early  int64        // where what the medium was not yet asked to write begins
	next   int64        // where the last write ended
	broken error        // of a Sync
}

// measure finds out what the place is and how much it takes.
func (s *slot) measure() error {
	fsys := s.pair.fsys
	info, err := fsys.Stat(s.path)
	var size int64
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case info.Mode().IsRegular():
		size = info.Size()
	case info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice:
		s.device = true
		f, err := fsys.OpenFile(s.path, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		s.capacity, err = f.Size()
		return errors.Join(err, f.Close())
	default:
		return fmt.Errorf("%s is %v, want a file or a block device", s.path, info.Mode().Type())
	}
	if s.capacity = s.pair.cfg.Capacity; s.capacity > 0 {
		return nil
	}
	free, err := fsys.Free(filepath.Dir(s.path))
	if err != nil {
		return fmt.Errorf("find out how much is free: %w", err)
	}
	s.capacity = size + free
	return nil
}

func (s *slot) Capacity() int64 { return s.capacity }

// writable refuses to write where something runs, or may run by now.
func (s *slot) writable() error {
	switch {
	case s.Running:
		return fmt.Errorf("%w: it is running", ota.ErrFlashWrite)
	case s.broken != nil:
		return fmt.Errorf("%w: an earlier sync ended in an error, so it is not known what is on the medium: open it again and read: %w", ota.ErrFlashWrite, s.broken)
	}
	if s.Writable != nil {
		if err := s.Writable(); err != nil {
			return fmt.Errorf("%w: %w", ota.ErrFlashWrite, err)
		}
	}
	if !s.ready && s.Prepare != nil {
		if err := s.Prepare(); err != nil {
			return err
		}
	}
	s.ready = true
	return nil
}

func (s *slot) WriteAt(p []byte, off int64) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(err error) error { return fmt.Errorf("write %s at %d: %w", s.name, off, err) }
	if err := s.writable(); err != nil {
		return 0, fail(err)
	}
	if off < 0 {
		return 0, fail(errors.New("the offset is negative"))
	}
	if room := s.capacity - off; int64(len(p)) > room {
		return 0, fail(fmt.Errorf("%w: %d bytes end beyond its capacity of %d", ota.ErrInsufficientSpace, len(p), s.capacity))
	}
	if err := s.openToWrite(true); err != nil {
		return 0, fail(FlashError(err))
	}
	if err := s.stopReading(); err != nil {
		return 0, fail(FlashError(err))
	}
	n, err = s.w.WriteAt(p, off)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return n, fail(FlashError(err))
	}
	s.begin(off, int64(n))
	return n, nil
}

// begin asks the medium to begin with what was written in sequence.
func (s *slot) begin(off, n int64) {
	if off != s.next {
		s.early = off
	}
	s.next = off + n
	if s.next-s.early < earlyStep {
		return
	}
	if w, ok := s.w.(durable.EarlyWriter); ok {
		_ = w.WriteEarly(s.early, s.next-s.early) // only makes Sync quicker, which reports what goes wrong
	}
	s.early = s.next
}

func (s *slot) openToWrite(create bool) (err error) {
	if s.w != nil {
		return nil
	}
	flag := os.O_RDWR
	switch {
	case s.device:
		flag |= os.O_EXCL // Linux refuses it if the device is mounted (open(2))
	case create:
		flag |= os.O_CREATE
	}
	s.w, err = s.pair.fsys.OpenFile(s.path, flag, 0o600)
	return err
}

func (s *slot) stopReading() error {
	if s.r == nil {
		return nil
	}
	r := s.r
	s.r = nil // it has read ahead
	return r.Close()
}

// ReadAt reads past the page cache where that is possible. What is not there ends
// with io.EOF, also if nothing was ever written.
func (s *slot) ReadAt(p []byte, off int64) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.r == nil {
		s.r, err = s.pair.fsys.OpenFile(s.path, os.O_RDONLY|durable.Direct, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, io.EOF
		}
	}
	if err == nil {
		n, err = s.r.ReadAt(p, off)
	}
	if err != nil && err != io.EOF {
		return n, fmt.Errorf("read %s at %d: %w", s.name, off, FlashError(err))
	}
	return n, err
}

func (s *slot) Sync(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.sync(size); err != nil {
		return fmt.Errorf("sync %d bytes of %s: %w", size, s.name, err)
	}
	return nil
}

func (s *slot) sync(size int64) error {
	if err := s.writable(); err != nil {
		return err
	}
	if err := s.openToWrite(false); err != nil {
		return FlashError(err)
	}
	if err := s.stopReading(); err != nil {
		return FlashError(err)
	}
	there, err := s.w.Size()
	if err != nil {
		return FlashError(err)
	}
	if size < 0 || size > there {
		return fmt.Errorf("%w: only %d bytes were written", ota.ErrFlashWrite, there)
	}
	if !s.device && size < there {
		if err := s.w.Truncate(size); err != nil {
			return FlashError(err)
		}
	}
	err = s.w.Sync()
	if err == nil && !s.device {
		// Also if this process has not created it: an earlier one that was killed may have.
		err = s.pair.fsys.SyncDir(filepath.Dir(s.path))
	}
	if err != nil {
		s.broken = err
		return FlashError(err)
	}
	return nil
}

func (s *slot) Close() error {
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
		return fmt.Errorf("close %s: %w", s.name, FlashError(err))
	}
	return nil
}
