package demo

import (
	"net"
	"sync"
	"time"
)

// A connection of the demo's link carries this many bytes per second towards
// the device, after a burst in which all but images fit.
const (
	linkRate  = 550 << 10
	linkBurst = 64 << 10
)

// slow is a listener whose connections send no faster than a cellular link, so
// that a person sees the progress.
type slow struct{ net.Listener }

func (l slow) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &slowConn{Conn: c, closed: make(chan struct{}), credit: linkBurst, at: time.Now()}, nil
}

type slowConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}

	mu     sync.Mutex
	credit float64 // bytes that may be sent at once
	at     time.Time
}

// Write sends b, and first waits until so much may be sent.
func (c *slowConn) Write(b []byte) (int, error) {
	if wait := c.spend(len(b), time.Now()); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	return c.Conn.Write(b)
}

// spend takes n bytes from the credit, and returns how long until it is paid back.
func (c *slowConn) spend(n int, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credit = min(linkBurst, c.credit+now.Sub(c.at).Seconds()*linkRate)
	c.at = now
	c.credit -= float64(n)
	if c.credit >= 0 {
		return 0
	}
	return time.Duration(-c.credit / linkRate * float64(time.Second))
}

func (c *slowConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
