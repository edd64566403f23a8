package isotp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/crash"
)

// Mux reads a bus once and distributes what it receives to channels: several peers, and
// physical and functional addresses, share the bus. Frames for none of them are dropped.
// What a channel sends is no input, neither to itself nor to another channel of the Mux,
// unless the bus brings it back and the other one listens there.
//
// A link that is lost ends what is under way, and is asked again: at once, and then every
// second. What the channels do next works if the link has come back, which depends on its
// kind: an SLCAN adapter that was lost stays lost, and needs another Mux.
type Mux struct {
	bus     can.Bus
	crashes *crash.Log
	stop    context.CancelFunc
	all     sync.WaitGroup // goroutines

	mu       sync.Mutex
	by       map[identifier][]*Channel // that receive
	channels []*Channel
	ended    error // no channel can be opened any more
	down     bool  // channels were told that the link is lost
}

// identifier is what frames are distributed by.
type identifier struct {
	id   uint32
	long bool
}

// NewMux starts to read the bus, which belongs to the Mux from then on.
func NewMux(bus can.Bus) *Mux { return newMux(bus, nil) }

func newMux(bus can.Bus, crashes *crash.Log) *Mux {
	ctx, stop := context.WithCancel(context.Background())
	m := &Mux{bus: bus, crashes: crashes, stop: stop, by: make(map[identifier][]*Channel)}
	m.all.Go(func() { m.read(ctx) })
	return m
}

// Open makes a channel. No two channels of a Mux receive the same.
func (m *Mux) Open(a Address, c Config) (*Channel, error) {
	channel, err := m.open(a, c)
	if err != nil {
		return nil, fmt.Errorf("open ISO-TP channel %v: %w", a, err)
	}
	return channel, nil
}

func (m *Mux) open(a Address, config Config) (*Channel, error) {
	if err := a.validate(); err != nil {
		return nil, err
	}
	s, err := config.settings()
	if err != nil {
		return nil, err
	}
	c := newChannel(m, a, s)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended != nil {
		return nil, m.ended
	}
	if a.receives() {
		on := identifier{a.rx, a.long}
		for _, other := range m.by[on] {
			if b := other.address; a.bytes != b.bytes || a.rxByte == b.rxByte {
				return nil, fmt.Errorf("channel %v receives the same: close it first", b)
			}
		}
		m.by[on] = append(m.by[on], c)
	}
	m.channels = append(m.channels, c)
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	m.all.Go(func() { c.answer(ctx) })
	return c, nil
}

// remove forgets a channel.
func (m *Mux) remove(c *Channel) {
	m.mu.Lock()
	defer m.mu.Unlock()
	is := func(other *Channel) bool { return other == c }
	m.channels = slices.DeleteFunc(m.channels, is)
	on := identifier{c.address.rx, c.address.long}
	if m.by[on] = slices.DeleteFunc(m.by[on], is); len(m.by[on]) == 0 {
		delete(m.by, on)
	}
}

// again is how long a link that stays lost is left alone.
const again = time.Second

// read distributes until the bus is closed.
func (m *Mux) read(ctx context.Context) {
	timer := time.NewTimer(again)
	defer timer.Stop()
	for {
		f, err := m.receive(ctx)
		switch {
		case err == nil:
			m.distribute(&f)
			continue
		case ctx.Err() != nil:
			return
		case errors.Is(err, can.ErrClosed):
			m.end(fmt.Errorf("read the bus: %w", err))
			return
		}
		if !m.lost(fmt.Errorf("read the bus: %w", err)) {
			continue
		}
		timer.Reset(again)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
	}
}

// receive is the bus's; a link that panics is one that is lost.
func (m *Mux) receive(ctx context.Context) (f can.Frame, err error) {
	defer m.crashes.Catch("receive from a CAN bus", func(e error) { err = fmt.Errorf("%w: %w", can.ErrDown, e) })
	return m.bus.Receive(ctx)
}

func (m *Mux) distribute(f *can.Frame) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		m.down = false
		for _, c := range m.channels {
			c.found()
		}
	}
	for _, c := range m.by[identifier{f.ID, f.Extended}] {
		if !c.address.bytes || f.Len > 0 && f.Data[0] == c.address.rxByte {
			c.frame(f)
		}
	}
}

// lost tells the channels, and whether they were told before and nothing came since.
func (m *Mux) lost(err error) (before bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before, m.down = m.down, true
	for _, c := range m.channels {
		c.lost(err)
	}
	return before
}

// end ends all channels, for ever.
func (m *Mux) end(err error) {
	m.mu.Lock()
	if m.ended == nil {
		m.ended = err
	}
	channels := slices.Clone(m.channels)
	m.mu.Unlock()
	for _, c := range channels {
		c.end(err)
	}
}

// Close ends all channels and closes the bus.
func (m *Mux) Close() error {
	m.end(can.ErrClosed)
	m.stop()
	err := m.bus.Close()
	m.all.Wait()
	return err
}
