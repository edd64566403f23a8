package overmodbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// Send implements [push.Device].
func (d *Device) Send(ctx context.Context, f *push.File, tell push.Tell) error {
	if f.Size > int64(d.id.MaxSize) {
		return fmt.Errorf("send %s: %w: it has %d bytes, and the device takes %d", f.Name, ota.ErrInsufficientSpace, f.Size, d.id.MaxSize)
	}
	head, err := headOf(f)
	if err != nil {
		return fmt.Errorf("send %s: %w", f.Name, err)
	}
	t := &transfer{Device: d, file: f, tell: tell, blocks: newBlocks(f.Size), head: head, refused: map[uint32]int{}}
	d.offer = profile.Command{Size: uint32(f.Size), Format: profile.FormatBundle, SHA256: f.SHA256}
	if err := t.run(ctx); err != nil {
		return fmt.Errorf("send %s: %w", f.Manifest.Version, err)
	}
	tell.Done(f.Size)
	return nil
}

// headOf is how many blocks hold the header and the signed manifest of a bundle.
func headOf(f *push.File) (uint32, error) {
	header := make([]byte, bundle.HeaderSize)
	if _, err := f.ReadAt(header, 0); err != nil {
		return 0, err
	}
	envelope, err := bundle.ParseHeader(header)
	return uint32(profile.Blocks(int64(bundle.HeaderSize + envelope))), err
}

// transfer is one Send.
type transfer struct {
	*Device
	file    *push.File
	tell    push.Tell
	blocks  blocks
	head    uint32         // blocks that come first
	begun   bool           // the device has said yes to it in this Send
	refused map[uint32]int // how often the device did not want a block
	moved   bool           // a block was acknowledged since the last trouble
	closed  int            // how often CLOSE was given

	fullSince time.Time // since when no block was taken; zero: the last one was
	busySince time.Time // since when the device is occupied with somebody else; zero: it is not
}

// Trouble is told after this many attempts in a row that brought nothing: one lost frame
// is nothing that a person has to know.
const quietTroubles = 3

const (
	firstPause = 250 * time.Millisecond
	longPause  = 5 * time.Second
)

// maxCloses bounds how often a device may lose what it had, maxRefusals how often it may
// refuse the same block, and maxLooks how often its bitmap is read in a row.
const (
	maxCloses   = 5
	maxRefusals = 3
	maxLooks    = 5 // with different results; then blocks are asked about one by one
)

// run goes on until it is done, the device says no for good, or ctx ends.
func (t *transfer) run(ctx context.Context) error {
	troubles, pause := 0, firstPause
	for {
		t.moved = false
		err := t.attempt(ctx)
		if err == nil {
			t.tell.Stuck(nil)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		r, busy := errors.AsType[*Refused](err)
		busy = busy && r.Exception == modbus.DeviceBusy
		if !busy && !errors.Is(err, push.ErrLine) {
			return err
		}
		if !busy {
			t.busySince = time.Time{}
		} else if !t.worthWaiting() {
			return err
		}
		if t.moved {
			t.tell.Stuck(nil)
			troubles, pause = 0, firstPause
		}
		troubles++
		wait := pause
		switch {
		case busy && r.RetryAfter > 0:
			wait = max(pollFast, min(r.RetryAfter, time.Minute))
		case troubles == 1:
			wait = 0 // a frame got lost
		default:
			pause = min(2*pause, longPause)
		}
		if troubles >= quietTroubles || wait >= longPause {
			t.tell.Stuck(err)
		}
		if err := push.Wait(ctx, wait); err != nil {
			return err
		}
	}
}

// worthWaiting says whether a device that is occupied will be free: a session whose
// master has gone ends after its idle timeout.
func (t *transfer) worthWaiting() bool {
	now := time.Now()
	if t.busySince.IsZero() || t.moved {
		t.busySince = now
	}
	return now.Sub(t.busySince) <= time.Duration(t.id.IdleTimeout)*time.Second+30*time.Second
}

// attempt goes as far as the line lets it, whatever was reached before, by whomever. nil:
// the device has verified the file.
func (t *transfer) attempt(ctx context.Context) error {
	for {
		s, err := t.mine(ctx)
		if err != nil {
			return err
		}
		switch s.State {
		case profile.Opening, profile.Receiving, profile.Received:
			err = t.bring(ctx, &s)
		case profile.Verifying:
			err = push.Wait(ctx, pollSlow)
		case profile.Failed, profile.Aborted, profile.RolledBack:
			return t.failed(ctx, &s)
		case profile.Idle:
			return fmt.Errorf("the device says %v after OPEN, want %v", s.State, profile.Receiving)
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// mine returns the status of this file's transfer, in a session of ours, which is made if
// there is none.
func (t *transfer) mine(ctx context.Context) (profile.Status, error) {
	s, err := t.status(ctx)
	if err != nil || t.session != 0 && s.Session == t.session {
		return s, err
	}
	if s, err = t.begin(ctx, profile.Resume); err == nil && !t.begun && ended(s.State) {
		// It went wrong in an earlier life of this program; to call it again means to try again.
		s, err = t.begin(ctx, profile.Open)
	} else if r, ok := errors.AsType[*Refused](err); ok && r.Exception == modbus.IllegalValue {
		s, err = t.begin(ctx, profile.Open) // it is not there
	}
	t.begun = t.begun || err == nil
	return s, err
}

func ended(s profile.State) bool {
	return s == profile.Failed || s == profile.Aborted || s == profile.RolledBack
}

// failed is the error of a state from which nothing comes any more.
func (d *Device) failed(ctx context.Context, s *profile.Status) error {
	display, err := d.display(ctx)
	if err != nil {
		return err
	}
	out := describe(s, &display)
	return out.Err()
}

// begin gives OPEN or RESUME for the file that was offered, and returns the status after it.
func (d *Device) begin(ctx context.Context, code profile.Code) (profile.Status, error) {
	c := d.offer
	c.Code = code
	if err := d.command(ctx, &c); err != nil {
		return profile.Status{}, err
	}
	s, err := d.status(ctx)
	if err == nil && s.Seq != d.seq {
		return s, fmt.Errorf("%v: %w: another master gave a command meanwhile", code, push.ErrOccupied)
	}
	d.session = s.Session
	return s, err
}

// bring sends what is missing, or says that nothing is.
func (t *transfer) bring(ctx context.Context, s *profile.Status) error {
	if err := t.look(ctx, s); err != nil {
		return err
	}
	limit, most := t.blocks.count, int(t.blocks.count)
	switch {
	case s.State == profile.Received:
		if t.closed++; t.closed > maxCloses {
			return push.Fail(ota.ErrFlashWrite, "all blocks were sent %d times, and each time the device lost some before it had verified them; look at its storage", maxCloses)
		}
		return t.command(ctx, &profile.Command{Code: profile.CloseAll, Session: t.session})
	case s.State == profile.Opening: // the head of the file has to be verified first
		limit, most = t.head, int(s.Window)
		if t.head > 1 && t.blocks.more(t.head-1) {
			limit-- // in its last block images begin: a device may want to have the rest before
		}
	case t.blocks.doubt:
		most = 1
	}
	if s.Window == 0 || !t.blocks.more(limit) {
		return push.Wait(ctx, retryAfter(s.RetryAfter))
	}
	return t.write(ctx, min(t.window(), int(s.Window)), most, limit)
}

// retryAfter bounds what a device says.
func retryAfter(ms uint16) time.Duration {
	return min(max(time.Duration(ms)*time.Millisecond, pollFast), time.Minute)
}

// look finds out which blocks the device has. What was on its way when a connection broke
// may still arrive meanwhile, so a bitmap counts only if the status after it is the one
// before it; s becomes that.
func (t *transfer) look(ctx context.Context, s *profile.Status) error {
	for range maxLooks {
		t.blocks.learn(s.Missing, s.Received)
		if !t.blocks.doubt || t.id.Caps&profile.CapReadBack == 0 {
			break
		}
		if err := t.readBitmap(ctx, s); err != nil {
			return err
		}
		after, err := t.status(ctx)
		if err != nil {
			return err
		}
		stable := after.Missing == s.Missing && after.Received == s.Received
		*s = after
		if stable {
			t.blocks.doubt = false
			break
		}
	}
	t.tell.Done(t.blocks.done())
	return nil
}

// readBitmap takes over which blocks the device says that it has, as far as it has any.
func (t *transfer) readBitmap(ctx context.Context, s *profile.Status) error {
	behind := s.Received - s.Missing // how many of these there are to find
	t.blocks.have.only(s.Missing)
	return t.bitmap(ctx, s.Missing, t.blocks.count, func(n uint32, there bool) bool {
		t.blocks.have.set(n, there)
		if there {
			behind--
		}
		return behind > 0
	})
}
