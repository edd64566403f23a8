package modbus

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Config says how a client asks. Its zero value works.
type Config struct {
	// Timeout is how long one try waits for its answer. On RTU the time that the request
	// and the longest answer take on the wire is added. 0: 1 s.
	Timeout time.Duration
	// Retries is how often a request is sent again if no answer came or the connection
	// broke, where that does no harm. 0: 2; negative: never.
	Retries int
	// RepeatWrites lets writes be sent again like reads. To set registers twice is
	// harmless only if they are plain memory, or blocks that say what they are; a
	// command register may start something a second time, so the default is no. A write
	// that certainly was not sent, because there was no connection, is always repeated.
	RepeatWrites bool
	// Redial opens the connection or the line again after it broke, at the next request.
	// Dial sets it; without it a broken client stays broken.
	Redial func(ctx context.Context) (io.ReadWriteCloser, error)

	// Window is how many requests may be in flight on one TCP connection, 1 to 1000.
	// Servers that know only one simply answer in order. 0: 8.
	Window int
	// TLS is used by Dial: see ClientTLS. nil: plain TCP.
	TLS *tls.Config

	// Baud is the speed of an RTU line in bits per second, from which the silence
	// between frames and the time on the wire follow. 0: a line without speed, such as a
	// pseudo terminal or a gateway; the silence is that of fast lines, 1.75 ms.
	Baud int
	// Turnaround is how long RTU units get to digest a broadcast, and how long the line
	// has to be quiet after a request that nobody answered, so that its late answer is
	// not taken for that to the next one. RTU cannot tell them apart otherwise. 0: 100 ms
	// (serial guide 2.4.1).
	Turnaround time.Duration
	// Echo says that the RTU adapter hears what it sends; each request has to come back
	// before its answer.
	Echo bool
}

// Client asks Modbus servers. Its methods may be called by many goroutines: on TCP up
// to Config.Window of them are in flight, on RTU one waits for the other.
//
// Errors are an Exception, wrap ErrRequest, ErrAnswer, ErrNoAnswer or ErrClosed, are
// those of the context, or say how the connection broke.
type Client struct {
	config Config
	link   link
	calls  sync.Pool
}

// link is a way to a server, which is opened when it is needed.
type link interface {
	// exchange sends c.request and waits for c.answer, once.
	exchange(ctx context.Context, c *call) error
	// silent is told that no try of a call got an answer. before is what heard said first.
	silent(before uint64)
	heard() uint64
	broadcasts() bool // whether unit 0 is everybody, who do not answer
	close()
}

// call is a request and its answer. It is used again, so that asking does not allocate.
type call struct {
	unit    byte
	buffer  [MaxPDU]byte
	request []byte // a view of buffer
	answer  [MaxPDU]byte
	size    int         // of the answer
	sent    bool        // it may be on the wire, so that a write may have been done
	done    chan error  // TCP: the answer is there
	timer   *time.Timer // TCP: for how long it waits
}

// dialTimeout bounds how long a connection takes to be made, on top of the context.
const dialTimeout = 5 * time.Second

// Dial connects to a TCP server, "192.168.1.5:502", with TLS if c.TLS is set (port 802).
// The connection is made again when it breaks.
func Dial(ctx context.Context, address string, c Config) (*Client, error) {
	if c.Redial == nil {
		c.Redial = func(ctx context.Context) (io.ReadWriteCloser, error) {
			if c.TLS != nil {
				return (&tls.Dialer{Config: c.TLS}).DialContext(ctx, "tcp", address)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := c.Redial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to Modbus server %s: %w", address, err)
	}
	return newClient(c, func(c Config) link { return newTCP(conn, c) }), nil
}

// NewTCP returns a client of a TCP connection; nil: it is made by c.Redial when needed.
func NewTCP(conn io.ReadWriteCloser, c Config) *Client {
	return newClient(c, func(c Config) link { return newTCP(conn, c) })
}

// NewRTU returns a client of a serial line, whose reads have to wait for bytes; nil: it
// is opened by c.Redial when needed.
func NewRTU(line io.ReadWriteCloser, c Config) *Client {
	return newClient(c, func(c Config) link { return newRTU(line, c) })
}

func newClient(c Config, open func(Config) link) *Client {
	if c.Timeout <= 0 {
		c.Timeout = time.Second
	}
	switch {
	case c.Retries == 0:
		c.Retries = 2
	case c.Retries < 0:
		c.Retries = 0
	}
	if c.Window <= 0 {
		c.Window = 8
	}
	c.Window = min(c.Window, 1000)
	if c.Turnaround <= 0 {
		c.Turnaround = 100 * time.Millisecond
	}
	return &Client{config: c, link: open(c), calls: sync.Pool{New: func() any {
		timer := time.NewTimer(time.Hour)
		timer.Stop()
		return &call{done: make(chan error, 1), timer: timer}
	}}}
}

// Close ends all calls and closes the connection.
func (c *Client) Close() error {
	c.link.close()
	return nil
}
