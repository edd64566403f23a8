package bustest

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ProxyConfig says what a Proxy does.
type ProxyConfig struct {
	// Faults for frames of Modbus TCP; Record.From is "master" or "slave". TCP loses and
	// swaps nothing, so only Cut and its kin are what a network does; Lose is what a
	// gateway to a serial line does.
	Faults Faults
	Delay  time.Duration // for every frame, in each direction
	Tap    *Tap
	// Raw passes bytes on as they come, for TLS: what a Read returned counts as a frame.
	Raw bool
}

// Proxy stands between a Modbus master and its server, and cuts their connections.
type Proxy struct {
	config   ProxyConfig
	listener net.Listener
	dial     func(context.Context) (net.Conn, error)
	done     sync.WaitGroup

	mu    sync.Mutex
	pairs map[*pair]bool
	conns int
	sent  map[string]int
	over  bool
}

// NewProxy accepts on l, which belongs to it from now on, and connects to the server by
// dial.
func NewProxy(l net.Listener, dial func(context.Context) (net.Conn, error), c ProxyConfig) *Proxy {
	p := &Proxy{config: c, listener: l, dial: dial, pairs: map[*pair]bool{}, sent: map[string]int{}}
	p.done.Go(p.accept)
	return p
}

// ProxyTo accepts on a free port of this machine and connects to a server's address.
func ProxyTo(address string, c ProxyConfig) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return NewProxy(l, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}, c), nil
}

// Addr is where masters connect.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Conns is how many connections there were.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns
}

// Break cuts all connections now. New ones may be made.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.cut()
	}
}

// Close cuts all connections and accepts no more.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	err := p.listener.Close()
	p.Break()
	p.done.Wait()
	return err
}

// pair is a connection and its continuation.
type pair struct {
	master, slave net.Conn
	number        int
	once          sync.Once
	gone          atomic.Bool // it is cut: what is on its way is lost with it
}

func (c *pair) cut() {
	c.gone.Store(true)
	c.once.Do(func() {
		c.master.Close()
		c.slave.Close()
	})
}

func (p *Proxy) accept() {
	for {
		master, err := p.listener.Accept()
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		slave, err := p.dial(ctx)
		cancel()
		if err != nil {
			master.Close()
			continue
		}
		c := &pair{master: master, slave: slave}
		p.mu.Lock()
		p.conns++
		c.number = p.conns
		p.pairs[c] = true
		if p.over {
			c.cut()
		}
		p.mu.Unlock()
		var both sync.WaitGroup
		both.Go(func() { p.pass(c, Master, master, slave) })
		both.Go(func() { p.pass(c, Slave, slave, master) })
		p.done.Go(func() {
			both.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.pairs, c)
		})
	}
}

// pass takes one direction of a connection.
func (p *Proxy) pass(c *pair, name string, from, to net.Conn) {
	defer c.cut()
	r := bufio.NewReaderSize(from, 4096)
	for {
		b, err := p.read(r)
		if err != nil {
			return
		}
		came := time.Now()
		if p.config.Delay > 0 {
			<-time.After(p.config.Delay)
		}
		if !p.one(c, name, to, b, came) {
			return
		}
	}
}

// read returns the next frame, a copy.
func (p *Proxy) read(r *bufio.Reader) ([]byte, error) {
	if p.config.Raw {
		if _, err := r.Peek(1); err != nil {
			return nil, err
		}
		b := make([]byte, r.Buffered())
		_, err := io.ReadFull(r, b)
		return b, err
	}
	header, err := r.Peek(6) // transaction, protocol, length of what follows (TCP guide 3.1.3)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 6+int(binary.BigEndian.Uint16(header[4:])))
	_, err = io.ReadFull(r, b)
	return b, err
}

// one passes a frame on; false: the connection is cut.
func (p *Proxy) one(c *pair, name string, to net.Conn, frame []byte, came time.Time) bool {
	p.mu.Lock()
	if c.gone.Load() {
		p.mu.Unlock()
		return false
	}
	rec := Record{From: name, N: p.sent[name], Conn: c.number, Data: frame, Queued: came, At: time.Now()}
	p.sent[name]++
	rec.Verdict = p.config.Faults.judge(rec)
	if rec.Verdict == Cut || rec.Verdict == CutInner || rec.Verdict == CutAfter {
		c.gone.Store(true) // in both directions at once
	}
	p.config.Tap.add(rec) // before it is passed on, so that the answer comes after it
	p.mu.Unlock()
	write := func(b []byte) bool {
		_, err := to.Write(b)
		return err == nil
	}
	switch rec.Verdict {
	case Lose:
		return true
	case Cut:
		return false
	case CutInner:
		write(frame[:len(frame)/2])
		return false
	case CutAfter:
		write(frame)
		return false
	case Garble:
		return write(p.config.Faults.garble(rec))
	case Double:
		return write(frame) && write(frame)
	}
	return write(frame)
}
