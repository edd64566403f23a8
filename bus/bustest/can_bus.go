package bustest

import (
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// run is the wire: one frame after the other.
func (b *CAN) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		node, wait := b.arbitrate()
		if node == nil {
			timer.Reset(wait)
			select {
			case <-b.work:
			case <-timer.C:
				b.release(time.Now())
			case <-b.done:
				return
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
			b.through(node)
		case <-b.done:
			return
		}
	}
}

// arbitrate gives the bus to the node whose frame has the lowest identifier, and says how
// long that takes; nil: nobody wants to send. Frames that are held back may have to come
// before that changes.
func (b *CAN) arbitrate() (*Node, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	var first *Node
	for _, n := range b.nodes {
		if len(n.queue) > 0 && (first == nil || priority(n.queue[0].Frame) < priority(first.queue[0].Frame)) {
			first = n
		}
	}
	if first == nil {
		if len(b.held) > 0 {
			return nil, b.held[0].until.Sub(now)
		}
		return nil, time.Hour
	}
	begin := first.queue[0].at
	if begin.Before(b.free) {
		begin = b.free // right after the one before, also if a timer was late
	}
	b.free = begin.Add(b.Time(first.queue[0].Frame))
	return first, b.free.Sub(now)
}

// errorBits follow a damaged frame: the flag, here the longest, the delimiter and the
// intermission (ISO 11898-1, 10.4.4).
const errorBits = 12 + 8 + 3

// through ends the frame that a node has on the bus.
func (b *CAN) through(n *Node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(n.queue) == 0 { // broken in between
		return
	}
	f := n.queue[0]
	took := b.Time(f.Frame)
	r := Record{From: n.name, N: b.sent[n.name], Frame: f.Frame, Queued: f.at, At: b.free}
	r.Verdict = b.config.Faults.judge(r)
	b.sent[n.name]++
	if r.Verdict == Garble {
		took += b.bits(errorBits)
		b.free = b.free.Add(b.bits(errorBits))
		n.use.Garbled++
	} else {
		n.queue = n.queue[1:]
		wake(n.room)
		n.use.Frames++
		n.use.Bytes += int(f.Len)
		n.use.Waited = max(n.use.Waited, b.free.Sub(f.at))
	}
	n.use.Busy += took
	b.turns[n.name] = append(b.turns[n.name], turn{b.free.Add(-took), took})
	b.config.Tap.add(r)
	switch r.Verdict {
	case Swap:
		b.held = append(b.held, held{r, n, b.free.Add(b.config.Faults.hold())})
		return
	case Double:
		b.deliver(n, f.Frame)
	}
	if r.Verdict.arrives() {
		b.deliver(n, f.Frame)
	}
	b.releaseOf(n.name)
}

// deliver gives a frame to all but its sender.
func (b *CAN) deliver(from *Node, f can.Frame) {
	for _, n := range b.nodes {
		if n == from || n.deaf {
			continue
		}
		if len(n.received) >= b.config.Receive {
			n.received = n.received[1:]
			n.use.Lost++
		}
		n.received = append(n.received, f)
		wake(n.came)
	}
}

// releaseOf lets those frames of a node come that were held back.
func (b *CAN) releaseOf(name string) {
	rest := b.held[:0]
	for _, h := range b.held {
		if h.From == name {
			b.deliver(h.from, h.Frame)
		} else {
			rest = append(rest, h)
		}
	}
	b.held = rest
}

// release lets those come that have been held back for long enough.
func (b *CAN) release(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.held) > 0 && !b.held[0].until.After(now) {
		b.deliver(b.held[0].from, b.held[0].Frame)
		b.held = b.held[1:]
	}
}
