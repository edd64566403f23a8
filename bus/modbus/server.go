package modbus

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/crash"
)

// Server answers requests. Only Handler is needed.
type Server struct {
	// Handler implements some of the interfaces of this package: HoldingReader and so on.
	Handler any
	// Authorize, if set, is asked before the handler; false is exception 1, as the
	// security specification wants it for a role that may not.
	Authorize func(Call) bool

	// MaxConnections is how many clients may be connected at once. One more takes the
	// place of the one that has been silent for longest, if that is a second or more
	// (TCP guide 4.2.1.1); otherwise it is turned away. 0: 32.
	MaxConnections int
	// IdleTimeout closes a connection from which no whole request came for so long. 0: 60 s.
	IdleTimeout time.Duration
	// WriteTimeout closes a connection that does not take its answer, or does not finish
	// its TLS handshake. 0: 5 s.
	WriteTimeout time.Duration

	// Baud and Echo describe the RTU line: see Config.
	Baud int
	Echo bool

	// Crashes keeps account of panics, of the handler above all; nil: the process's. The request
	// is answered with exception 4, and its connection goes on: the frame was whole, and nothing
	// of a request is kept for the next one. What else panics closes its connection, or line.
	Crashes *crash.Log
}

// evictable is for how long a connection must have asked nothing to make room for a
// new one: masters that poll keep theirs.
const evictable = time.Second

// Serve answers on the connections of l, those within TLS if l is a TLS listener (see
// ServerTLS), until the context ends, which closes l and all connections. It returns
// after the last handler did: nil if the context ended, or why l failed. Requests that a
// client sends without waiting are answered in their order, one after the other.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if !serves(s.Handler) {
		return fmt.Errorf("serve Modbus: the handler %T implements none of the interfaces of package modbus", s.Handler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	clients := clients{most: s.MaxConnections, all: map[*client]bool{}}
	if clients.most <= 0 {
		clients.most = 32
	}
	defer clients.done.Wait()
	defer clients.closeAll()
	defer l.Close()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case isTemporary(err):
			// Out of descriptors: those that are closed now make room.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("serve Modbus: %w", err)
		}
		c := clients.add(conn)
		if c == nil {
			conn.Close()
			continue
		}
		go func() {
			defer clients.remove(c)
			defer s.Crashes.Catch("serve a Modbus connection", nil)
			s.serveTCP(ctx, c)
		}()
	}
}

// isTemporary says whether accepting goes on after an error; net has no other way to ask.
func isTemporary(err error) bool {
	temporary, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && temporary.Temporary()
}

// clients are those that are connected.
type clients struct {
	most int
	done sync.WaitGroup

	mu  sync.Mutex
	all map[*client]bool
}

// client is a connection.
type client struct {
	conn net.Conn

	mu   sync.Mutex
	busy bool      // a request is being answered
	last time.Time // of the last request, or when it came
}

// add takes a connection in, if need be in the place of another; nil: there is none.
func (cs *clients) add(conn net.Conn) *client {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.all) >= cs.most {
		var oldest *client
		idle := time.Duration(-1)
		for c := range cs.all {
			if i := c.idle(); i >= evictable && i > idle {
				oldest, idle = c, i
			}
		}
		if oldest == nil {
			return nil
		}
		oldest.conn.Close()
		delete(cs.all, oldest)
	}
	c := &client{conn: conn, last: time.Now()}
	cs.all[c] = true
	cs.done.Add(1)
	return c
}

func (cs *clients) remove(c *client) {
	c.conn.Close()
	cs.mu.Lock()
	delete(cs.all, c)
	cs.mu.Unlock()
	cs.done.Done()
}

func (cs *clients) closeAll() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.all {
		c.conn.Close()
	}
}

// idle is for how long a client has asked nothing; 0 while it is being answered.
func (c *client) idle() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy {
		return 0
	}
	return time.Since(c.last)
}

func (c *client) working(busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy, c.last = busy, time.Now()
}

// serveTCP answers one client until it goes, is silent for too long, sends what is not
// Modbus, or does not take its answers. What it has sent and was not asked yet waits in
// the system's buffers: a connection holds two frames of memory here, and the scratch.
func (s *Server) serveTCP(ctx context.Context, c *client) {
	call := Call{Transport: TCP, Remote: c.conn.RemoteAddr()}
	idle, patience := s.IdleTimeout, s.WriteTimeout
	if idle <= 0 {
		idle = time.Minute
	}
	if patience <= 0 {
		patience = 5 * time.Second
	}
	if conn, ok := c.conn.(*tls.Conn); ok {
		var err error
		if call.Role, err = handshake(ctx, conn, patience); err != nil {
			return
		}
		call.Transport = TLS
	}
	r := bufio.NewReaderSize(c.conn, 2*maxTCP)
	w := bufio.NewWriterSize(c.conn, 2*maxTCP)
	var scratch scratch
	var out [maxTCP]byte
	for {
		c.conn.SetReadDeadline(time.Now().Add(idle)) // if it cannot, the read tells
		request, transaction, unit, err := readRequest(r)
		if err != nil {
			return
		}
		c.working(true)
		call.Unit = unit
		answer := s.answer(ctx, call, request, &scratch)
		c.working(false)
		r.Discard(headerSize + len(request))
		c.conn.SetWriteDeadline(time.Now().Add(patience))
		if _, err := w.Write(AppendTCP(out[:0], transaction, unit, answer)); err != nil {
			return
		}
		if !another(r) {
			if err := w.Flush(); err != nil {
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// handshake makes sure of the client and returns its role.
func handshake(ctx context.Context, conn *tls.Conn, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", err
	}
	return roleOf(conn.ConnectionState())
}

// readRequest waits for a whole frame and returns views of it.
func readRequest(r *bufio.Reader) (pdu []byte, transaction uint16, unit byte, err error) {
	header, err := r.Peek(headerSize)
	if err != nil {
		return nil, 0, 0, err
	}
	transaction, unit, size, err := ParseTCP(header)
	if err != nil {
		return nil, 0, 0, err
	}
	whole, err := r.Peek(headerSize + size)
	if err != nil {
		return nil, 0, 0, err
	}
	return whole[headerSize:], transaction, unit, nil
}

// another says whether a whole request has arrived already, so that its answer can go
// out together with the one before.
func another(r *bufio.Reader) bool {
	if r.Buffered() < headerSize {
		return false
	}
	header, err := r.Peek(headerSize)
	if err != nil {
		return false
	}
	_, _, size, err := ParseTCP(header)
	return err == nil && r.Buffered() >= headerSize+size
}

// ServeRTU answers on a serial line, whose reads have to wait for bytes, as the given
// units, until the context ends, which closes the line, or the line breaks. It returns
// nil if the context ended, or why the line broke. Broadcasts, which are acted on and
// not answered, reach the handler only if 0 is among the units.
func (s *Server) ServeRTU(ctx context.Context, rwc io.ReadWriteCloser, units ...byte) error {
	if !serves(s.Handler) {
		return fmt.Errorf("serve Modbus: the handler %T implements none of the interfaces of package modbus", s.Handler)
	}
	if len(units) == 0 {
		return errors.New("serve Modbus: no unit is given to be; name one from 1 to 247")
	}
	l := newLine(rwc)
	defer l.close(ErrClosed)
	r := rtuServer{Server: s, line: l, units: units}
	r.frames.lengths = r.lengths
	err := r.guarded(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve Modbus: the line broke: %w", err)
}

type rtuServer struct {
	*Server
	line    *line
	units   []byte
	frames  framer
	scratch scratch
	echo    []byte // what was sent and has to come back
}

// lengths are those of what begins with b: a request, or the answer of another unit.
func (r *rtuServer) lengths(b []byte) (int, int) {
	if len(b) == 0 || b[0] == 0 || slices.Contains(r.units, b[0]) {
		return rtuRequest(b), unknown
	}
	return rtuRequest(b), rtuAnswer(b)
}

// guarded is serve; a panic breaks the line.
func (r *rtuServer) guarded(ctx context.Context) (err error) {
	defer r.Crashes.Catch("serve a Modbus line", func(e error) { err = e })
	return r.serve(ctx)
}

func (r *rtuServer) serve(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var b [maxRTU]byte
		n, err := r.line.take(b[:])
		if err != nil {
			return err
		}
		r.frames.put(r.withoutEcho(b[:n]))
		silent := time.Since(r.line.lastByte()) >= quiet
		if silent {
			r.echo = nil
		}
		for frame := r.frames.next(silent); frame != nil; frame = r.frames.next(silent) {
			if err := r.handle(ctx, frame); err != nil {
				return err
			}
		}
		if n > 0 {
			continue
		}
		timer.Stop()
		if r.frames.n > 0 {
			timer.Reset(max(0, quiet-time.Since(r.line.lastByte())))
		}
		select {
		case <-r.line.ready:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// withoutEcho takes off what the adapter heard of our own answer.
func (r *rtuServer) withoutEcho(b []byte) []byte {
	for len(r.echo) > 0 && len(b) > 0 {
		if r.echo[0] != b[0] {
			r.echo = nil
			break
		}
		r.echo, b = r.echo[1:], b[1:]
	}
	return b
}

func (r *rtuServer) handle(ctx context.Context, frame []byte) error {
	unit, pdu := frame[0], frame[1:]
	if !slices.Contains(r.units, unit) {
		return nil
	}
	if unit == 0 && (!Function(pdu[0]).Writes() || Function(pdu[0]) == ReadWrite) {
		return nil // nobody may answer, so there is nothing to do
	}
	answer := r.answer(ctx, Call{Unit: unit, Transport: RTU}, pdu, &r.scratch)
	if unit == 0 {
		return nil
	}
	var b [maxRTU]byte
	out := AppendRTU(b[:0], unit, answer)
	if left := silence(r.Baud) - time.Since(r.line.lastByte()); left > 0 {
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.Echo {
		r.echo = append([]byte(nil), out...)
	}
	patience := r.WriteTimeout
	if patience <= 0 {
		patience = 5 * time.Second
	}
	return r.line.write(ctx, out, patience+charTime(r.Baud)*maxRTU)
}
