package isotp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/internal/patience"
)

// Channel is a [Conn] over a Mux.
type Channel struct {
	mux     *Mux
	address Address
	format  format
	stop    context.CancelFunc // of answer
	wake    chan struct{}      // answer has something to do

	sending chan struct{}  // a token: one PDU at a time
	pace    time.Time      // when Settings.gap lets the next frame go; of whoever has the token
	flows   chan part      // flow control that the transfer waits for
	flow    patience.Timer // N_Bs; of whoever has the token

	mu     sync.Mutex
	rx     receiver
	ready  chan struct{} // closed and replaced when Receive has something new
	down   error         // of the link, to be told to Receive
	ended  error
	armed  bool // a transfer waits for flow control
	cancel context.CancelCauseFunc
}

// flowsMost is how many flow control frames wait for a transfer that is slow to look:
// requests to wait, and then the one to go on.
const flowsMost = 32

func newChannel(m *Mux, a Address, s settings) *Channel {
	f := newFormat(a, s)
	return &Channel{
		mux: m, address: a, format: f,
		wake: make(chan struct{}, 1), sending: make(chan struct{}, 1), flows: make(chan part, flowsMost),
		ready: make(chan struct{}),
		rx:    receiver{settings: s, offset: f.offset(), only: a.functional, gaps: s.timer(s.NCr)},
		flow:  s.timer(s.NBs),
	}
}

// Receive implements [Conn]. Up to 32 PDUs, and of long ones two, wait for it; while
// there is no more room, a peer is asked to wait, and what comes unasked is dropped.
func (c *Channel) Receive(ctx context.Context) ([]byte, error) {
	pdu, err := c.receive(ctx)
	if err != nil {
		return nil, fmt.Errorf("receive from %v: %w", c.address, err)
	}
	return pdu, nil
}

func (c *Channel) receive(ctx context.Context) ([]byte, error) {
	for {
		one, ready := c.next()
		if ready == nil {
			return one.pdu, one.err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ready:
		}
	}
}

// next returns what there is to be told, or what is closed when there is something.
func (c *Channel) next() (one result, ready <-chan struct{}) {
	c.locked(func() {
		if one.err = c.ended; one.err != nil {
			return
		}
		var ok bool
		if one, ok = c.rx.take(); ok {
			c.changed()
			return
		}
		if one.err, c.down = c.down, nil; one.err == nil {
			ready = c.ready
		}
	})
	return one, ready
}

// locked calls f, which changes what is received, under the lock. What panics in it ends what is coming
// in and what waits, of which nobody knows any more whether it is right, and nothing else.
func (c *Channel) locked(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.rx.Crashes.Catch("receive an ISO-TP message", func(err error) {
		c.rx.reset(err)
		c.signal()
	})
	f()
}

// Receiving reports whether a PDU is coming in just now: its first frame is here and its
// last is not. Whoever waits for an answer may wait longer then (ISO 14229-2, 7.2).
func (c *Channel) Receiving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rx.phase != idle
}

// Stats counts what happened.
func (c *Channel) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rx.stats
}

// Close implements [Conn].
func (c *Channel) Close() error {
	c.end(can.ErrClosed)
	c.mux.remove(c)
	return nil
}

func (c *Channel) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return
	}
	c.ended = err
	c.signal()
	if c.cancel != nil {
		c.cancel(err)
	}
	c.stop()
}

// signal lets Receive look.
func (c *Channel) signal() {
	ready := c.ready
	c.ready = make(chan struct{})
	close(ready)
}

// changed lets whoever waits look, if there is something to see.
func (c *Channel) changed() {
	if len(c.rx.results) > 0 {
		c.signal()
	}
	if c.rx.owed {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// frame takes a frame of the peer. It never waits.
func (c *Channel) frame(f *can.Frame) { c.locked(func() { c.take(f) }) }

func (c *Channel) take(f *can.Frame) {
	p, ok := parse(f, c.rx.offset)
	switch {
	case !ok:
		c.rx.stats.Stray++
	case p.kind != flow:
		before := len(c.rx.results)
		c.rx.frame(time.Now(), p)
		if len(c.rx.results) != before || c.rx.owed {
			c.changed()
		}
	case c.armed:
		c.armed = p.flow == wait // until something else comes
		p.data = nil             // part of the frame
		select {
		case c.flows <- p:
		default: // a flood of them
		}
	default: // unexpected flow control is ignored (ISO 15765-2, table 23)
		c.rx.stats.Stray++
	}
}

// lost ends what is under way because the link is.
func (c *Channel) lost(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rx.phase != idle {
		c.rx.end(err)
	} else {
		c.down = err
	}
	c.signal()
	if c.cancel != nil {
		c.cancel(err)
	}
}

// found takes back what Receive was not told yet of a link that is there again.
func (c *Channel) found() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = nil
}

// answer sends flow control and watches over the peer's time until ctx is done. It is a
// goroutine of its own so that nobody who reads the bus waits for the bus.
func (c *Channel) answer(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var status status
		var turn uint64
		var due bool
		var deadline time.Time
		c.locked(func() {
			status, turn, due = c.rx.due()
			deadline = c.rx.deadline
		})
		if due {
			err := c.sendFlow(ctx, status)
			c.locked(func() {
				c.rx.sent(time.Now(), turn, err)
				c.changed()
			})
			continue
		}
		timer.Stop()
		if !deadline.IsZero() {
			timer.Reset(time.Until(deadline) + 1) // what comes just in time is in time
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
			c.locked(func() {
				c.rx.expire(time.Now())
				c.changed()
			})
		}
	}
}

func (c *Channel) sendFlow(ctx context.Context, s status) (err error) {
	defer c.rx.Crashes.Catch("send an ISO-TP flow control frame", func(e error) { err = e })
	limited, cancel := context.WithTimeout(ctx, c.rx.NAr+1)
	defer cancel()
	err = c.mux.bus.Send(limited, c.format.flow(s, c.rx.BlockSize, c.rx.stmin))
	if err != nil && errors.Is(limited.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: the link took no frame within %v (N_Ar)", ErrTimeout, c.rx.NAr)
	}
	return err
}
