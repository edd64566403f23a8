package can

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// A frame of the converters takes 13 bytes: info (bit 7: extended, bit 6: remote,
// bits 3 to 0: length, bits 5 and 4: zero), the identifier in 4 bytes, most significant
// first, and 8 bytes of data, filled up with zeros (USR-CANET200 manual, "Data format
// of CAN to Ethernet").
const size13 = 13

// hopeless13 is in bytes: a stream in which so much is no frame is none of these.
const hopeless13 = 4096

// append13 writes a valid frame.
func append13(b []byte, f Frame) []byte {
	info := f.Len
	if f.Extended {
		info |= 0x80
	}
	if f.Remote {
		info |= 0x40
	}
	b = binary.BigEndian.AppendUint32(append(b, info), f.ID)
	return append(b, f.Data[:]...)
}

// parse13 reads one frame from exactly 13 bytes. Bytes beyond the data that are not
// zero are the surest sign of bytes that were lost, unless the converter is loose about
// them.
func parse13(b []byte, loose bool) (Frame, bool) {
	if len(b) != size13 || b[0]&0x30 != 0 || b[0]&0x0F > MaxLen {
		return Frame{}, false
	}
	f := Frame{ID: binary.BigEndian.Uint32(b[1:]), Extended: b[0]&0x80 != 0, Remote: b[0]&0x40 != 0, Len: b[0] & 0x0F}
	data := b[5:]
	if !f.Remote {
		data = data[copy(f.Data[:f.Len], data):]
	}
	for _, c := range data {
		if c != 0 && !loose {
			return Frame{}, false
		}
	}
	return f, f.Validate() == nil
}

// stream13 cuts a stream into frames. Nothing marks their beginning: after bytes that
// cannot be a frame it goes on only where two frames follow one another, because one
// alone is too easily found in the middle of others.
type stream13 struct {
	loose   bool
	buf     []byte
	lost    bool   // looking for two frames
	dropped uint64 // bytes that were no frame
	row     int    // of these, since the last frame
}

func (s *stream13) add(b []byte) { s.buf = append(s.buf, b...) }

// next returns the next frame, if all of it has come.
func (s *stream13) next() (Frame, bool) {
	for {
		need := size13
		if s.lost {
			need = 2 * size13
		}
		if len(s.buf) < need {
			return Frame{}, false
		}
		f, ok := parse13(s.buf[:size13], s.loose)
		if ok && s.lost {
			_, ok = parse13(s.buf[size13:need], s.loose)
		}
		if ok {
			s.lost, s.row = false, 0
			s.buf = s.buf[size13:]
			return f, true
		}
		s.lost = true
		s.dropped++
		s.row++
		s.buf = s.buf[1:]
	}
}

// TCP13 is a CAN-to-Ethernet converter of the kind of USR-CANET200, Waveshare and
// ZLG: a TCP server that speaks frames of 13 bytes.
//
// It connects when something is to be received or sent. A lost connection is an
// [ErrDown] once; the next Receive or Send connects anew, at most once per
// [TCP13Config.Redial].
type TCP13 struct {
	config TCP13Config
	addr   string
	queue  *queue // the filters, echoes and counts; frames do not wait here
	pace   *pace

	mu       sync.Mutex
	conn     net.Conn
	dialing  chan struct{} // not nil: somebody dials; closed when done
	lastDial time.Time
	closed   bool

	reading chan struct{} // one reader at a time: holds a token
	stream  stream13      // of conn, the reader's
	of      net.Conn
}

// TCP13Config configures a TCP13. Its zero value works.
type TCP13Config struct {
	Filters Filters
	Pace    int           // frames/s at most; 0: 1000; negative: no limit
	Silence time.Duration // without a frame for so long the connection is given up; 0: 10 s; negative: never
	Redial  time.Duration // least time between two attempts to connect; 0: 1 s
	Loose   bool          // the converter does not clear the bytes beyond a frame's data
	Echo    bool          // the converter sends back what it is given: drop that

	// Dial connects to addr; nil: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
}

// NewTCP13 returns the converter at addr, host and port. It does not connect yet.
func NewTCP13(addr string, c TCP13Config) *TCP13 {
	if c.Silence == 0 {
		c.Silence = 10 * time.Second
	}
	if c.Redial == 0 {
		c.Redial = time.Second
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			dialer := net.Dialer{Timeout: 10 * time.Second}
			return dialer.DialContext(ctx, "tcp", addr)
		}
	}
	return &TCP13{config: c, addr: addr, queue: newQueue(c.Filters, c.Echo), pace: newPace(c.Pace), reading: make(chan struct{}, 1)}
}

// link returns the connection, and makes one if there is none.
func (t *TCP13) link(ctx context.Context) (net.Conn, error) {
	for {
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			return nil, ErrClosed
		}
		if conn := t.conn; conn != nil {
			t.mu.Unlock()
			return conn, nil
		}
		if dialing := t.dialing; dialing != nil {
			t.mu.Unlock()
			select {
			case <-dialing:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			continue
		}
		done := make(chan struct{})
		t.dialing = done
		wait := time.Until(t.lastDial.Add(t.config.Redial))
		t.mu.Unlock()

		conn, err := t.dial(ctx, wait)
		t.mu.Lock()
		t.dialing = nil
		close(done)
		if err == nil && t.closed {
			conn.Close()
			err = ErrClosed
		}
		if err == nil {
			t.conn = conn
			t.queue.count(func(st *Stats) { st.Links++ })
		}
		t.mu.Unlock()
		return conn, err
	}
}

func (t *TCP13) dial(ctx context.Context, wait time.Duration) (_ net.Conn, err error) {
	defer crashes.Load().Catch("connect to a CAN converter", func(e error) { err = fmt.Errorf("%w: %w", ErrDown, e) })
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	t.mu.Lock()
	t.lastDial = time.Now()
	t.mu.Unlock()
	conn, err := t.config.Dial(ctx, t.addr)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("connect to the CAN converter %s: %w: %w", t.addr, ErrDown, err)
	}
	return conn, nil
}

// drop gives up a connection, and says whether that was news.
func (t *TCP13) drop(conn net.Conn) {
	conn.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == conn {
		t.conn = nil
	}
}

// why is ctx's error, ErrClosed, or that the link is down because of err.
func (t *TCP13) why(ctx context.Context, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("CAN converter %s: %w: %w", t.addr, ErrDown, err)
}

var errSilence = errors.New("nothing came for too long")

// Receive implements [Bus].
func (t *TCP13) Receive(ctx context.Context) (f Frame, err error) {
	select {
	case t.reading <- struct{}{}:
	case <-ctx.Done():
		return Frame{}, ctx.Err()
	}
	defer func() { <-t.reading }()
	defer crashes.Load().Catch("read frames of a CAN converter", func(e error) {
		if t.of != nil { // what has come is not looked at again
			t.drop(t.of)
			t.of, t.stream = nil, stream13{}
		}
		f, err = Frame{}, t.why(ctx, e)
	})
	for {
		conn, err := t.link(ctx)
		if err != nil {
			return Frame{}, err
		}
		if conn != t.of { // what is left of an older connection fits nothing
			t.of, t.stream = conn, stream13{loose: t.config.Loose}
		}
		for {
			f, ok := t.stream.next()
			if dropped := t.stream.dropped; dropped > 0 {
				t.stream.dropped = 0
				t.queue.count(func(st *Stats) { st.Garbage += dropped })
			}
			if !ok {
				break
			}
			t.queue.push(f)
			if t.queue.waiting() {
				return t.queue.pop(ctx)
			}
		}
		if row := t.stream.row; row > hopeless13 {
			t.drop(conn)
			return Frame{}, t.why(ctx, fmt.Errorf("%d bytes without a frame: is it set to another format, or does it not clear unused bytes?", row))
		}
		if err := t.fill(ctx, conn); err != nil {
			if ctx.Err() == nil {
				t.drop(conn)
			}
			return Frame{}, t.why(ctx, err)
		}
	}
}

// fill reads what is there into the stream.
func (t *TCP13) fill(ctx context.Context, conn net.Conn) error {
	var deadline time.Time
	if t.config.Silence > 0 {
		deadline = time.Now().Add(t.config.Silence)
	}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var buf [2048]byte
	n, err := conn.Read(buf[:])
	t.stream.add(buf[:n])
	var timeout net.Error
	switch {
	case n > 0:
		return nil // an error comes again
	case errors.As(err, &timeout) && timeout.Timeout() && ctx.Err() == nil:
		if deadline.IsZero() || time.Now().Before(deadline) {
			return nil // the deadline of an earlier call, which was given up at its last moment
		}
		return fmt.Errorf("%w: %v", errSilence, t.config.Silence)
	}
	return err
}

// Send implements [Bus]. A frame that was not written whole drops the connection.
func (t *TCP13) Send(ctx context.Context, f Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	conn, err := t.link(ctx)
	if err != nil {
		return fmt.Errorf("send %v: %w", f, err)
	}
	if err := t.pace.wait(ctx); err != nil {
		return fmt.Errorf("send %v: %w", f, err)
	}
	t.queue.sent(f)
	stop := context.AfterFunc(ctx, func() { conn.SetWriteDeadline(time.Unix(1, 0)) })
	_, err = conn.Write(append13(nil, f))
	if err != nil || !stop() {
		t.drop(conn) // part of a frame may be on its way, or no more may be written
	}
	if err != nil {
		return fmt.Errorf("send %v: %w", f, t.why(ctx, err))
	}
	return nil
}

// Stats counts what happened; Garbage is in bytes.
func (t *TCP13) Stats() Stats { return t.queue.read() }

// Close implements [Bus].
func (t *TCP13) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.conn == nil {
		return nil
	}
	err := t.conn.Close()
	t.conn = nil
	return err
}
