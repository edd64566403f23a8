package modbus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// The header before a PDU on TCP ("MBAP", TCP guide 3.1.3): transaction, protocol (0),
// length of what follows, and unit, which the length counts.
const (
	headerSize = 7
	minLength  = 2          // unit and function
	maxLength  = 1 + MaxPDU // unit and PDU
	maxTCP     = headerSize + MaxPDU
)

// AppendTCP adds a TCP frame: header and PDU.
func AppendTCP(dst []byte, transaction uint16, unit byte, pdu []byte) []byte {
	dst = be.AppendUint16(dst, transaction)
	dst = append(dst, 0, 0)
	dst = be.AppendUint16(dst, uint16(1+len(pdu)))
	return append(append(dst, unit), pdu...)
}

// ParseTCP reads the header of a TCP frame, which is 7 bytes, and returns how long the
// PDU after it is: 1 to 253. After an error the stream is lost, for where the next frame
// begins is not known.
func ParseTCP(header []byte) (transaction uint16, unit byte, size int, err error) {
	if len(header) < headerSize {
		return 0, 0, 0, fmt.Errorf("read Modbus header: got %d bytes, want %d", len(header), headerSize)
	}
	if protocol := be.Uint16(header[2:]); protocol != 0 {
		return 0, 0, 0, fmt.Errorf("read Modbus header: got protocol %d, want 0: this is not Modbus", protocol)
	}
	length := int(be.Uint16(header[4:]))
	if length < minLength || length > maxLength {
		return 0, 0, 0, fmt.Errorf("read Modbus header: got length %d, want %d to %d", length, minLength, maxLength)
	}
	return be.Uint16(header), header[6], length - 1, nil
}

// tcpLink is a TCP connection to a server, and the way to the next one.
type tcpLink struct {
	config  Config
	window  chan struct{} // a place for every request in flight
	dialing chan struct{} // one place
	closed  chan struct{}

	mu   sync.Mutex
	conn *tcpConn // nil: none yet
}

func newTCP(conn io.ReadWriteCloser, c Config) *tcpLink {
	t := &tcpLink{config: c, window: make(chan struct{}, c.Window), dialing: make(chan struct{}, 1), closed: make(chan struct{})}
	if conn != nil {
		t.conn = newTCPConn(conn, c)
	}
	return t
}

func (t *tcpLink) broadcasts() bool { return false } // a server is unit 0 too (TCP guide 4.4.2.1)

func (t *tcpLink) current() *tcpConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conn
}

func (t *tcpLink) heard() uint64 {
	if conn := t.current(); conn != nil {
		return conn.heard()
	}
	return 0
}

// silent drops a connection on which nothing came while a call tried all it could, so
// that the next one makes a new one. TCP itself goes on for many minutes after the other
// side lost its power.
func (t *tcpLink) silent(before uint64) {
	if conn := t.current(); conn != nil && t.config.Redial != nil && conn.heard() == before {
		conn.fail(ErrNoAnswer)
	}
}

func (t *tcpLink) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.closed:
		return
	default:
	}
	close(t.closed)
	if t.conn != nil {
		t.conn.fail(ErrClosed)
	}
}

// connect returns a connection that works, as far as is known.
func (t *tcpLink) connect(ctx context.Context) (*tcpConn, error) {
	select {
	case t.dialing <- struct{}{}:
		defer func() { <-t.dialing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.closed:
		return nil, ErrClosed
	}
	conn := t.current()
	if conn != nil && !conn.broken() {
		return conn, nil
	}
	if t.config.Redial == nil {
		if conn != nil {
			return nil, fmt.Errorf("%w: it broke: %w", errNoWay, conn.err)
		}
		return nil, fmt.Errorf("%w, and no way to make one: set Config.Redial", errNoWay)
	}
	rwc, err := redial(ctx, t.config, t.closed)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.closed:
		rwc.Close()
		return nil, ErrClosed
	default:
	}
	t.conn = newTCPConn(rwc, t.config)
	return t.conn, nil
}

// redial opens a connection or a line, unless the client is closed meanwhile.
func redial(ctx context.Context, c Config, closed <-chan struct{}) (io.ReadWriteCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case <-closed:
			cancel()
		case <-stopped:
		}
	}()
	rwc, err := c.Redial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoWay, err)
	}
	return rwc, nil
}

func (t *tcpLink) exchange(ctx context.Context, c *call) error {
	select {
	case t.window <- struct{}{}:
		defer func() { <-t.window }()
	case <-ctx.Done():
		return ctx.Err()
	case <-t.closed:
		return ErrClosed
	}
	conn := t.current()
	if conn == nil || conn.broken() {
		var err error
		if conn, err = t.connect(ctx); err != nil {
			return err
		}
	}
	return conn.exchange(ctx, c, t.config.Timeout)
}

// frame is a request on its way to the writer.
type frame struct {
	n int
	b [maxTCP]byte
}

// tcpConn is one connection. A goroutine reads answers and hands them to the calls that
// wait for them; another writes requests, so that a peer that takes none holds up
// nobody's context.
type tcpConn struct {
	rwc     io.ReadWriteCloser
	timeout time.Duration
	out     chan frame
	dead    chan struct{} // closed when the connection is of no more use

	mu      sync.Mutex
	pending map[uint16]*call
	next    uint16
	frames  uint64 // answers that came, whoever they were for
	err     error  // why it is dead
}

func newTCPConn(rwc io.ReadWriteCloser, c Config) *tcpConn {
	t := &tcpConn{rwc: rwc, timeout: c.Timeout, out: make(chan frame, c.Window), dead: make(chan struct{}), pending: map[uint16]*call{}}
	go t.read()
	go t.write()
	return t
}

func (t *tcpConn) broken() bool {
	select {
	case <-t.dead:
		return true
	default:
		return false
	}
}

func (t *tcpConn) heard() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.frames
}

// fail gives the connection up. Those who wait see it.
func (t *tcpConn) fail(err error) {
	t.mu.Lock()
	first := t.err == nil
	if first {
		t.err = err
		close(t.dead)
	}
	t.mu.Unlock()
	if first {
		t.rwc.Close()
	}
}

func (t *tcpConn) read() {
	r := bufio.NewReaderSize(t.rwc, 8*maxTCP)
	var header [headerSize]byte
	var pdu [MaxPDU]byte
	for {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			t.fail(fmt.Errorf("the connection broke: %w", err))
			return
		}
		transaction, unit, size, err := ParseTCP(header[:])
		if err != nil {
			t.fail(fmt.Errorf("%w: %w", ErrAnswer, err))
			return
		}
		if _, err := io.ReadFull(r, pdu[:size]); err != nil {
			t.fail(fmt.Errorf("the connection broke in an answer: %w", err))
			return
		}
		t.deliver(transaction, unit, pdu[:size])
	}
}

// deliver hands an answer to the call with its number. That call cannot be gone: it
// takes itself off the list, under the same lock, before it goes. An answer for nobody
// is dropped: it comes too late.
func (t *tcpConn) deliver(transaction uint16, unit byte, pdu []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.frames++
	c := t.pending[transaction]
	if c == nil {
		return
	}
	delete(t.pending, transaction)
	if c.unit != unit {
		c.done <- fmt.Errorf("%w: got unit %d, want %d", ErrAnswer, unit, c.unit)
		return
	}
	c.size = copy(c.answer[:], pdu)
	c.done <- nil
}

func (t *tcpConn) write() {
	deadline, _ := t.rwc.(interface{ SetWriteDeadline(time.Time) error })
	var f frame // here, because it escapes
	for {
		select {
		case f = <-t.out:
			if deadline != nil {
				deadline.SetWriteDeadline(time.Now().Add(t.timeout)) // if it cannot, the write tells
			}
			if _, err := t.rwc.Write(f.b[:f.n]); err != nil {
				t.fail(fmt.Errorf("the connection broke in a request: %w", err))
				return
			}
		case <-t.dead:
			return
		}
	}
}

var errTimeout = errors.New("timed out")

func (t *tcpConn) exchange(ctx context.Context, c *call, timeout time.Duration) error {
	t.mu.Lock()
	if t.err != nil {
		t.mu.Unlock()
		return t.err
	}
	for t.next++; t.pending[t.next] != nil; t.next++ {
	}
	transaction := t.next
	t.pending[transaction] = c
	t.mu.Unlock()

	var f frame
	f.n = len(AppendTCP(f.b[:0], transaction, c.unit, c.request))
	c.timer.Reset(timeout)
	defer c.timer.Stop()
	var err error
	select {
	case t.out <- f:
		c.sent = true
		select {
		case err := <-c.done:
			return err
		case <-c.timer.C:
			err = errTimeout
		case <-ctx.Done():
			err = ctx.Err()
		case <-t.dead:
		}
	case <-c.timer.C:
		err = errTimeout
	case <-ctx.Done():
		err = ctx.Err()
	case <-t.dead:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pending[transaction] != c {
		return <-c.done // it came in the last moment
	}
	delete(t.pending, transaction)
	switch err {
	case nil:
		return t.err
	case errTimeout:
		return fmt.Errorf("%w in %v", ErrNoAnswer, timeout)
	}
	return err
}
