package modbus

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// A SunSpec device may take 1,000 ms until what was written reads back (Device
	// Information Model Specification, edition of 2025); others are given as much.
	readBack     = 1500 * time.Millisecond
	readBackPoll = 250 * time.Millisecond

	usualWithin = time.Minute
)

func (l *List) read(ctx context.Context, unit byte, address uint16, count int) ([]uint16, error) {
	values, err := l.cfg.Bus.ReadHolding(ctx, unit, address, uint16(count))
	if err == nil && len(values) != count {
		err = fmt.Errorf("got %d registers, want %d", len(values), count)
	}
	if err != nil {
		return nil, fmt.Errorf("read unit %d, address %d: %w", unit, address, err)
	}
	return values, nil
}

// write returns once want reads back; nil wants nothing.
func (l *List) write(ctx context.Context, s Step, values, want []uint16) error {
	var err error
	if s.Single {
		for i := 0; i < len(values) && err == nil; i++ {
			err = l.cfg.Bus.WriteRegister(ctx, s.Unit, s.Address+uint16(i), values[i])
		}
	} else {
		err = l.cfg.Bus.WriteRegisters(ctx, s.Unit, s.Address, values)
	}
	if err != nil {
		return fmt.Errorf("write %v to unit %d, address %d; the device may have it or not: %w", values, s.Unit, s.Address, err)
	}
	if want == nil {
		return nil
	}
	for waited := time.Duration(0); ; waited += readBackPoll {
		got, err := l.read(ctx, s.Unit, s.Address, len(want))
		if err != nil {
			return err
		}
		if slices.Equal(got, want) {
			return nil
		}
		if waited >= readBack {
			return fmt.Errorf("write %v to unit %d, address %d: it reads %v after %s, want %v; the device does not take it: is it in local mode, or does another controller write too?",
				values, s.Unit, s.Address, got, readBack, want)
		}
		if err := pause(ctx, readBackPoll); err != nil {
			return fmt.Errorf("read back unit %d, address %d: %w: it reads %v, want %v", s.Unit, s.Address, err, got, want)
		}
	}
}

// await waits for a condition. A read that fails is a break, like a value that does
// not fit.
func (l *List) await(ctx context.Context, w *Condition) error {
	within := w.Within
	if within == 0 {
		within = usualWithin
	}
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not so within %s", within))
	defer cancel()
	var since time.Time // zero: it is not so
	last := "nothing was read yet"
	for told := ""; ; {
		v, err := l.look(ctx, w)
		switch {
		case ctx.Err() != nil: // a reading that was cut short says nothing of the plant
		case err != nil:
			since, last = time.Time{}, err.Error()
		case v < w.Min || v > w.Max:
			since, last = time.Time{}, fmt.Sprintf("it is %d, want %d to %d", v, w.Min, w.Max)
		default:
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) >= w.For {
				return nil
			}
			last = fmt.Sprintf("it is %d, and has to stay so for %s", v, w.For)
		}
		if last != told {
			l.tell("wait for unit %d, address %d: %s", w.Unit, w.Address, last)
			told = last
		}
		if err := pause(ctx, l.cfg.Poll); err != nil {
			return fmt.Errorf("wait for unit %d, address %d: %w: %s", w.Unit, w.Address, err, last)
		}
	}
}

func (l *List) look(ctx context.Context, w *Condition) (int32, error) {
	read := l.cfg.Bus.ReadHolding
	if w.Input {
		read = l.cfg.Bus.ReadInput
	}
	values, err := read(ctx, w.Unit, w.Address, 1)
	if err != nil {
		return 0, err
	}
	if len(values) != 1 {
		return 0, fmt.Errorf("got %d registers, want 1", len(values))
	}
	v := values[0]
	if w.Mask != 0 {
		v &= w.Mask
	}
	if w.Signed {
		return int32(int16(v)), nil
	}
	return int32(v), nil
}

func (l *List) tell(format string, args ...any) {
	if l.cfg.Progress != nil {
		l.cfg.Progress(fmt.Sprintf(format, args...))
	}
}

// pause waits, or says why it could not.
func pause(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil { // which a timer that is over too would hide half of the time
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
