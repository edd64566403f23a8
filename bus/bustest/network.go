package bustest

import (
	"context"
	"errors"
	"io"
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
// it too.
func Distance(delay time.Duration) (a, b net.Conn) {
	a, c := net.Pipe()
	d, b := net.Pipe()
	go travel(d, c, delay)
	go travel(c, d, delay)
	return a, b
}

type parcel struct {
	due   time.Time
	bytes []byte
}

// travel takes what comes from one end to the other, which takes it when it wants.
func travel(to, from net.Conn, delay time.Duration) {
	var mu sync.Mutex
	var way []parcel
	more, gone := signal(), make(chan struct{})
	go func() {
		defer to.Close()
		for {
			mu.Lock()
			var next parcel
			if len(way) > 0 {
				next, way = way[0], way[1:]
			}
			mu.Unlock()
			if next.due.IsZero() {
				select {
				case <-more:
				case <-gone:
					return
				}
				continue
			}
			if left := time.Until(next.due); left > 0 {
				timer := time.NewTimer(left)
				select {
				case <-timer.C:
				case <-gone:
					timer.Stop()
					return
				}
			}
			if next.bytes == nil {
				return
			}
			if _, err := to.Write(next.bytes); err != nil {
				from.Close()
				return
			}
		}
	}()
	for {
		b := make([]byte, 4096)
		n, err := from.Read(b)
		mu.Lock()
		if n > 0 {
			way = append(way, parcel{time.Now().Add(delay), b[:n]})
		}
		if err != nil {
			way = append(way, parcel{due: time.Now().Add(delay)})
		}
		mu.Unlock()
		wake(more)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				close(gone) // the other direction closed it
			}
			return
		}
	}
}
