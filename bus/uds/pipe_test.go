package uds_test

import (
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// pipe is a fake line between two, in memory. It loses no message unless it is told to.
type pipe struct {
	in, out chan []byte
	closed  chan struct{}
	once    *sync.Once

	// verdict, if set, says how often a message that is sent arrives.
	verdict   func(pdu []byte) int
	late      func(pdu []byte) time.Duration // by how much it is late, if set
	receiving atomic.Bool                    // what Receiving says

	mu   sync.Mutex
	sent [][]byte // messages that left this end, those that are lost too
}

func newPipe() (a, b *pipe) {
	x, y := make(chan []byte, 64), make(chan []byte, 64)
	closed, once := make(chan struct{}), new(sync.Once)
	return &pipe{in: x, out: y, closed: closed, once: once}, &pipe{in: y, out: x, closed: closed, once: once}
}

func (p *pipe) Send(ctx context.Context, pdu []byte) error {
	select {
	case <-p.closed:
		return io.ErrClosedPipe
	default:
	}
	times := 1
	if p.verdict != nil {
		times = p.verdict(pdu)
	}
	p.mu.Lock()
	p.sent = append(p.sent, slices.Clone(pdu))
	p.mu.Unlock()
	if p.late != nil {
		if d := p.late(pdu); d > 0 {
			late := slices.Clone(pdu)
			time.AfterFunc(d, func() {
				select {
				case p.out <- late:
				case <-p.closed:
				}
			})
			return nil
		}
	}
	for range times {
		select {
		case p.out <- slices.Clone(pdu):
		case <-ctx.Done():
			return ctx.Err()
		case <-p.closed:
			return io.ErrClosedPipe
		}
	}
	return nil
}

func (p *pipe) Receive(ctx context.Context) ([]byte, error) {
	select {
	case pdu := <-p.in:
		return pdu, nil
	default:
	}
	select {
	case pdu := <-p.in:
		return pdu, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.closed:
		return nil, io.ErrClosedPipe
	}
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipe) Receiving() bool { return p.receiving.Load() }

func (p *pipe) log() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sent)
}

var _ uds.Conn = (*pipe)(nil)
