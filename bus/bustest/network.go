package bustest

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// Network is TCP in memory: connections on which what is written arrives after a while.
// It is a net.Listener for the one end; Dial is the other's. However much is written, a
// Write does not wait for who reads.
type Network struct {
	delay time.Duration
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewNetwork makes a network on which everything takes delay, in each direction.
func NewNetwork(delay time.Duration) *Network {
	return &Network{delay: delay, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Dial connects to whoever accepts.
func (n *Network) Dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := Distance(n.delay)
	select {
	case n.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		ours.Close()
		return nil, ctx.Err()
	case <-n.done:
		ours.Close()
		return nil, errors.New("connect: nobody listens")
	}
}

// Accept implements net.Listener.
func (n *Network) Accept() (net.Conn, error) {
	select {
	case c := <-n.conns:
		return c, nil
	case <-n.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Connections that are open stay so.
func (n *Network) Close() error {
	n.once.Do(func() { close(n.done) })
	return nil
}

// Addr implements net.Listener.
func (n *Network) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 502} }

// Distance makes a connection between two ends on which everything takes delay, the end of
// it too. Once both are closed, nothing is under way any more.
func Distance(delay time.Duration) (a, b net.Conn) {
	a, c := net.Pipe()
	d, b := net.Pipe()
	w := &ways{open: 2, over: make(chan struct{})}
	for _, w := range []*way{{ways: w, from: c, to: d}, {ways: w, from: d, to: c}} {
		w.delay, w.more = delay, signal()
		go w.take()
		go w.bring()
	}
	return a, b
}

// ways are the two directions of a connection.
type ways struct {
	mu   sync.Mutex
	open int
	over chan struct{} // neither is open
}

func (w *ways) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open--; w.open == 0 {
		close(w.over)
	}
}

// way is one of them.
type way struct {
	*ways
	from, to net.Conn
	delay    time.Duration
	more     chan struct{}

	mu      sync.Mutex
	parcels []parcel
}

type parcel struct {
	due   time.Time
	bytes []byte // nil: the end
}

// take takes what is written at the one end, however much.
func (w *way) take() {
	defer w.end()
	for {
		b := make([]byte, 4096)
		n, err := w.from.Read(b)
		due := time.Now().Add(w.delay)
		w.mu.Lock()
		if n > 0 {
			w.parcels = append(w.parcels, parcel{due, b[:n]})
		}
		if err != nil {
			w.parcels = append(w.parcels, parcel{due: due})
		}
		w.mu.Unlock()
		wake(w.more)
		if err != nil {
			return
		}
	}
}

// bring brings it to the other, in its time.
func (w *way) bring() {
	defer w.to.Close()
	for {
		w.mu.Lock()
		var next parcel
		if len(w.parcels) > 0 {
			next, w.parcels = w.parcels[0], w.parcels[1:]
		}
		w.mu.Unlock()
		if next.due.IsZero() {
			select {
			case <-w.more:
			case <-w.over:
				return
			}
			continue
		}
		timer := time.NewTimer(time.Until(next.due))
		select {
		case <-timer.C:
		case <-w.over:
			timer.Stop()
			return
		}
		if next.bytes == nil {
			return
		}
		if _, err := w.to.Write(next.bytes); err != nil {
			w.from.Close()
			return
		}
	}
}
