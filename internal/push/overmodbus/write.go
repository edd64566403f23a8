package overmodbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// landing is how a block that was written ended.
type landing struct {
	number uint32
	err    error
}

// write sends blocks that are certainly missing, the first first: window of them at once,
// most of them in all, and none from limit on. It stops at the first that is not
// acknowledged, and waits for those that are on their way then. nil: the status tells how
// to go on.
func (t *transfer) write(ctx context.Context, window, most int, limit uint32) error {
	landings := make(chan landing, window)
	flying, sent := 0, 0
	var line, refused error
	for {
		for line == nil && refused == nil && flying < window && sent < most {
			n, ok := t.blocks.take(limit)
			if !ok {
				break
			}
			registers, err := t.encode(n)
			if err != nil {
				t.blocks.landed(n, false)
				refused = err
				break
			}
			flying++
			sent++
			go func() {
				landings <- landing{n, refusal(ctx, t.Client.WriteRegisters(ctx, t.Unit, t.Base+profile.OffsetData, registers))}
			}()
		}
		if flying == 0 {
			break
		}
		l := <-landings
		flying--
		t.blocks.landed(l.number, l.err == nil)
		switch _, no := errors.AsType[*Refused](l.err); {
		case l.err == nil:
			t.moved, t.fullSince = true, time.Time{}
			t.tell.Stuck(nil)
			t.tell.Done(t.blocks.done())
		case no:
			refused = t.unwanted(l)
		default:
			line = fmt.Errorf("write block %d: %w", l.number, l.err)
		}
	}
	if line != nil { // what else there is will show
		return line
	}
	return t.refusedBlock(ctx, refused)
}

// encode returns the registers of a block.
func (t *transfer) encode(n uint32) ([]uint16, error) {
	offset := int64(n) * profile.BlockSize
	data := make([]byte, min(profile.BlockSize, t.blocks.size-offset))
	if _, err := t.file.ReadAt(data, offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s at %d: %w", t.file.Name, offset, err)
	}
	b := profile.Block{Session: t.session, Number: n, Data: data}
	return b.Append(make([]uint16, 0, profile.DataSize)), nil
}

// unwanted is a block that the device did not take, and how bad that is.
type unwanted struct {
	*Refused
	number uint32
	fatal  bool
}

func (u *unwanted) Error() string { return fmt.Sprintf("write block %d: %v", u.number, u.Refused) }
func (u *unwanted) Unwrap() error { return u.Refused }

func (t *transfer) unwanted(l landing) error {
	r, _ := errors.AsType[*Refused](l.err)
	u := &unwanted{Refused: r, number: l.number}
	switch r.Exception {
	case modbus.DeviceBusy, modbus.Acknowledge: // its time will come
	case modbus.IllegalFunction, modbus.IllegalAddress:
		u.fatal = true
	default:
		t.refused[l.number]++
		u.fatal = t.refused[l.number] > maxRefusals
	}
	return u
}

// refusedBlock decides what follows from a block that was refused: the session may be
// lost, the window full, the storage slow, or the device means it.
func (t *transfer) refusedBlock(ctx context.Context, err error) error {
	u, ok := errors.AsType[*unwanted](err)
	switch {
	case !ok:
		return err
	case u.fatal:
		t.explain(ctx, u.Refused)
		return u
	}
	s, err := t.status(ctx)
	if err != nil {
		return err
	}
	if s.Session != t.session {
		return nil // it will be resumed
	}
	wait := retryAfter(s.RetryAfter)
	if u.Exception == modbus.DeviceFailure {
		wait = time.Second
	}
	if now := time.Now(); t.fullSince.IsZero() {
		t.fullSince = now
	} else if now.Sub(t.fullSince) >= longPause {
		wait = max(wait, pollSlow)
		t.tell.Stuck(u)
	}
	return push.Wait(ctx, wait)
}
