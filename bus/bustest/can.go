package bustest

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// CANConfig says what a CAN bus is like. The zero value is one at 500 kbit/s.
type CANConfig struct {
	Bitrate int // bits per second; 0: 500,000
	// Worst gives every frame the most stuff bits that its length allows, instead of those
	// that its bits need.
	Worst bool
	// Queue is how many frames a node keeps until they are sent; a Send waits while there
	// are so many. 0: 10, as Linux's interfaces have; what one waits in goes out in its order.
	Queue int
	// Receive is how many frames that came a node keeps until they are received; the
	// oldest is dropped. 0: 1024.
	Receive int

	Faults Faults // a frame that is lost takes its time, and nobody hears it
	Tap    *Tap
}

// CAN is a bus. Of the frames that wait, that with the lowest identifier goes first; each
// takes as long as its bits do.
type CAN struct {
	config CANConfig
	work   chan struct{}
	done   chan struct{}
	once   sync.Once
	others sync.WaitGroup

	mu    sync.Mutex
	nodes []*Node
	use   map[string]*Use
	turns map[string][]turn
	sent  map[string]int
	free  time.Time // when the frame on the bus is through
	last  time.Time // ... and when it was queued
	held  []held
}

// turn is a time for which a node had the bus.
type turn struct {
	begin time.Time
	took  time.Duration
}

// held is a frame that comes after the next one.
type held struct {
	Record
	from  *Node
	until time.Time
}

// NewCAN makes a bus without nodes. Close ends it.
func NewCAN(c CANConfig) *CAN {
	if c.Bitrate <= 0 {
		c.Bitrate = 500_000
	}
	if c.Queue <= 0 {
		c.Queue = 10
	}
	if c.Receive <= 0 {
		c.Receive = 1024
	}
	b := &CAN{config: c, work: signal(), done: make(chan struct{}), use: map[string]*Use{}, turns: map[string][]turn{}, sent: map[string]int{}}
	go b.run()
	return b
}

// Time is how long a frame has the bus.
func (b *CAN) Time(f can.Frame) time.Duration {
	bits := Bits(f)
	if b.config.Worst {
		bits = WorstBits(f)
	}
	return b.bits(bits)
}

func (b *CAN) bits(n int) time.Duration {
	return time.Duration(n) * time.Second / time.Duration(b.config.Bitrate)
}

// Join adds a node, which receives all that others send from now on. A name may be used
// again once its node is closed: the counts go on.
func (b *CAN) Join(name string) *Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.use[name] == nil {
		b.use[name] = new(Use)
	}
	n := &Node{bus: b, name: name, use: b.use[name], most: b.config.Queue, room: signal(), came: signal(), done: make(chan struct{})}
	b.nodes = append(b.nodes, n)
	return n
}

// Use returns what the node of that name has done until now.
func (b *CAN) Use(name string) Use {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.use[name] == nil {
		return Use{}
	}
	use := *b.use[name]
	for _, n := range b.nodes {
		if n.name == name && len(n.queue) > 0 {
			use.Waited = max(use.Waited, time.Since(n.queue[0].at))
		}
	}
	return use
}

// Share is the greatest part of the bus, 0 to 1, that the node had in any time of that
// length until now.
func (b *CAN) Share(name string, window time.Duration) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	turns := b.turns[name]
	var had, most time.Duration
	first := 0
	for _, t := range turns { // windows that end with a frame
		had += t.took
		from := t.begin.Add(t.took - window)
		for turns[first].begin.Add(turns[first].took).Before(from) {
			had -= turns[first].took
			first++
		}
		part := max(0, from.Sub(turns[first].begin)) // of it that is not within
		most = max(most, had-part)
	}
	return math.Min(1, float64(most)/float64(window))
}

// Load is the part of the bus, 0 to 1, that all nodes together had between two times.
func (b *CAN) Load(from, to time.Time) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	var had time.Duration
	for _, turns := range b.turns {
		for _, t := range turns {
			begin, end := t.begin, t.begin.Add(t.took)
			if begin.Before(from) {
				begin = from
			}
			if end.After(to) {
				end = to
			}
			had += max(0, end.Sub(begin))
		}
	}
	return float64(had) / float64(to.Sub(from))
}

// Close ends the bus: for all nodes the link is down.
func (b *CAN) Close() error {
	b.once.Do(func() { close(b.done) })
	b.others.Wait()
	return nil
}

// Broadcast sends these frames at once and then after each period, as a battery does,
// until the returned func is called. Its node is called name; Use of it says how long
// the frames waited for the bus at most, and counts as missed those that still waited when
// their turn came again.
func (b *CAN) Broadcast(name string, period time.Duration, frames ...can.Frame) (stop func()) {
	node := b.Join(name)
	b.mu.Lock()
	node.most, node.deaf = math.MaxInt, true
	b.mu.Unlock()
	tick := time.NewTicker(period)
	var once sync.Once
	b.others.Go(func() {
		defer tick.Stop()
		defer node.Close()
		for {
			for _, f := range frames {
				if node.waits(f.ID) {
					b.mu.Lock()
					node.use.Missed++
					b.mu.Unlock()
					continue
				}
				if node.Send(context.Background(), f) != nil {
					return
				}
			}
			select {
			case <-tick.C:
			case <-node.done:
				return
			case <-b.done:
				return
			}
		}
	})
	return func() { once.Do(func() { node.Close() }) }
}

// Node is a controller on a bus. It is a can.Bus; what it sends it does not receive.
type Node struct {
	bus  *CAN
	name string
	use  *Use
	room chan struct{} // the queue changed
	came chan struct{} // something to receive
	done chan struct{}
	once sync.Once

	// All guarded by the bus's mutex.
	most     int // of queue
	queue    []queued
	received []can.Frame
	broken   error // reported once
	deaf     bool  // does not receive
}

type queued struct {
	can.Frame
	at time.Time
}

var _ can.Bus = (*Node)(nil)

// Receive implements [can.Bus].
func (n *Node) Receive(ctx context.Context) (can.Frame, error) {
	for {
		n.bus.mu.Lock()
		err := n.broken
		n.broken = nil
		if err == nil && len(n.received) > 0 {
			f := n.received[0]
			n.received = n.received[1:]
			if len(n.received) > 0 {
				wake(n.came)
			}
			n.bus.mu.Unlock()
			return f, nil
		}
		n.bus.mu.Unlock()
		if err == nil {
			err = n.ended(ctx)
		}
		if err != nil {
			return can.Frame{}, fmt.Errorf("receive as %s: %w", n.name, err)
		}
		select {
		case <-n.came:
		case <-ctx.Done():
		case <-n.done:
		case <-n.bus.done:
		}
	}
}

func (n *Node) ended(ctx context.Context) error {
	select {
	case <-n.done:
		return can.ErrClosed
	case <-n.bus.done:
		return can.ErrDown
	default:
		return ctx.Err()
	}
}

// Send implements [can.Bus]: it returns when there is room for the frame in the node.
func (n *Node) Send(ctx context.Context, f can.Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	for {
		if err := n.ended(ctx); err != nil {
			return fmt.Errorf("send %v as %s: %w", f, n.name, err)
		}
		n.bus.mu.Lock()
		if len(n.queue) < n.most {
			n.queue = append(n.queue, queued{f, time.Now()})
			if len(n.queue) < n.most {
				wake(n.room)
			}
			n.bus.mu.Unlock()
			wake(n.bus.work)
			return nil
		}
		n.bus.mu.Unlock()
		select {
		case <-n.room:
		case <-ctx.Done():
		case <-n.done:
		case <-n.bus.done:
		}
	}
}

func (n *Node) waits(id uint32) bool {
	n.bus.mu.Lock()
	defer n.bus.mu.Unlock()
	for _, q := range n.queue {
		if q.ID == id {
			return true
		}
	}
	return false
}

// Break lets the next Receive of the node return err, such as can.ErrDown or
// can.ErrBusOff, and drops what waits in it: a link that was lost and is there again.
func (n *Node) Break(err error) {
	n.bus.mu.Lock()
	defer n.bus.mu.Unlock()
	n.broken, n.queue, n.received = err, nil, nil
	wake(n.came)
	wake(n.room)
}

// Use returns what this node, and those of its name before it, have done until now.
func (n *Node) Use() Use { return n.bus.Use(n.name) }

// Close takes the node off the bus. What it has not sent yet is dropped.
func (n *Node) Close() error {
	n.once.Do(func() {
		b := n.bus
		b.mu.Lock()
		defer b.mu.Unlock()
		close(n.done)
		for i, other := range b.nodes {
			if other == n {
				b.nodes = append(b.nodes[:i:i], b.nodes[i+1:]...)
				break
			}
		}
	})
	return nil
}
