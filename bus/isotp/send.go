package isotp

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// Send implements [Conn].
func (c *Channel) Send(ctx context.Context, pdu []byte) error {
	if err := c.send(ctx, pdu); err != nil {
		return fmt.Errorf("send %d bytes to %v: %w", len(pdu), c.address, err)
	}
	return nil
}

// check says whether a PDU of n bytes can go to the address.
func (a Address) check(n, single int) error {
	switch {
	case a.functional && !a.sends:
		return fmt.Errorf("%w: the address only receives", ErrLength)
	case n == 0:
		return fmt.Errorf("%w: want at least 1", ErrLength)
	case a.functional && n > single:
		return fmt.Errorf("%w: to all at once, want at most %d", ErrLength, single)
	case int64(n) > math.MaxUint32:
		return fmt.Errorf("%w: want at most %d", ErrLength, int64(math.MaxUint32))
	}
	return nil
}

func (c *Channel) send(ctx context.Context, pdu []byte) error {
	if err := c.address.check(len(pdu), c.format.most()); err != nil {
		return err
	}
	select {
	case c.sending <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.sending }()
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := c.begin(cancel); err != nil {
		return err
	}
	t := transfer{Channel: c, of: ctx, ctx: inner}
	t.link = time.AfterFunc(c.rx.NAs+1, func() {
		cancel(fmt.Errorf("%w: the link took no frame within %v (N_As)", ErrTimeout, c.rx.NAs))
	})
	defer t.link.Stop()
	err := t.run(pdu)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed, c.cancel = false, nil
	if err == nil {
		c.rx.stats.Sent++
	}
	return err
}

// begin lets the link, and the end of the channel, end the transfer.
func (c *Channel) begin(cancel context.CancelCauseFunc) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel = cancel
	return c.ended
}

// transfer is the sending of one PDU.
type transfer struct {
	*Channel
	of   context.Context // the caller's
	ctx  context.Context // ends with it, with the link, or with the channel
	link *time.Timer     // N_As
}

func (t *transfer) run(pdu []byte) error {
	if len(pdu) <= t.format.most() {
		return t.frame(t.format.single(pdu), false)
	}
	f, n := t.format.first(pdu)
	if err := t.frame(f, true); err != nil {
		return err
	}
	for sn := byte(1); n < len(pdu); {
		fc, err := t.clearance()
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", n, err)
		}
		pause := decodeSTmin(fc.stmin)
		if pause > 0 {
			pause += t.rx.FrameTime
		}
		for sent := 1; n < len(pdu); sent++ {
			f, more := t.format.consecutive(sn, pdu[n:])
			n, sn = n+more, sn+1
			last := sent == int(fc.block) // never with 0
			if sent > 1 && pause > 0 {
				err = t.until(time.Now().Add(pause))
			}
			if err == nil {
				err = t.frame(f, last && n < len(pdu))
			}
			if err != nil {
				return fmt.Errorf("after %d bytes: %w", n-more, err)
			}
			if last {
				break
			}
		}
	}
	return nil
}

// frame hands one to the link, at the pace of the configuration. It may be one that flow
// control answers.
func (t *transfer) frame(f can.Frame, asks bool) error {
	if t.rx.gap > 0 {
		now := time.Now()
		turn := t.pace
		if turn.Before(now) {
			turn = now
		}
		t.pace = turn.Add(t.rx.gap)
		if err := t.until(turn); err != nil {
			return err
		}
	}
	if t.ctx.Err() != nil {
		return t.cause()
	}
	if asks {
		t.arm()
	}
	t.link.Reset(t.rx.NAs + 1) // what takes just as long is in time
	err := t.mux.bus.Send(t.ctx, f)
	t.link.Stop()
	if err != nil && t.ctx.Err() != nil {
		return t.cause()
	}
	return err
}

// cause is why ctx has ended.
func (t *transfer) cause() error {
	if err := t.of.Err(); err != nil {
		return err
	}
	return context.Cause(t.ctx)
}

// until waits.
func (t *transfer) until(when time.Time) error {
	d := time.Until(when)
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.ctx.Done():
		return t.cause()
	}
}

// arm says that flow control is expected from now on. It is called before the frame that
// asks for it is sent: the answer may be there before the link says that it was. What
// came earlier is ignored.
func (t *transfer) arm() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.flows) > 0 {
		<-t.flows
	}
	t.armed = true
}

// clearance waits for the peer to say go on.
func (t *transfer) clearance() (part, error) {
	limit, began := t.flow.Now(), time.Now()
	timer := time.NewTimer(limit + 1) // what comes just in time is in time
	defer timer.Stop()
	for waits := 0; ; {
		var fc part
		select {
		case fc = <-t.flows:
		case <-t.ctx.Done():
			return fc, t.cause()
		case <-timer.C:
			select {
			case fc = <-t.flows: // it came, and this goroutine was late
			default:
				t.flow.Over()
				return fc, fmt.Errorf("%w: no flow control within %v (N_Bs)", ErrTimeout, limit)
			}
		}
		t.flow.Took(time.Since(began))
		switch fc.flow {
		case proceed:
			return fc, nil
		case wait:
			if waits++; waits > t.rx.WFTmax {
				return fc, fmt.Errorf("%w: %d", ErrWaits, waits)
			}
			limit, began = t.rx.NBs, time.Now() // it is there, and says so itself
			timer.Reset(limit + 1)
		case overflow:
			return fc, ErrOverflow
		default:
			return fc, fmt.Errorf("%w: %d", ErrFlow, fc.flow)
		}
	}
}
