package can

import (
	"context"
	"errors"
	"fmt"
	"sync"

	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
	"github.com/interlock-energy/ota/bus/uds"
)

// patient is a connection for a server: a message that was lost on the way is no reason
// to stop listening. A link that is lost is, unless it comes back by itself.
type patient struct {
	isotp.Conn
	heals bool

	lost *lost
}

// lost keeps why a link was given up.
type lost struct {
	mu  sync.Mutex
	err error
}

func (l *lost) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
}

func (l *lost) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

var _ uds.Conn = patient{}

// Receive implements [uds.Conn].
func (p patient) Receive(ctx context.Context) ([]byte, error) {
	for {
		b, err := p.Conn.Receive(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			return b, err
		case errors.Is(err, bus.ErrClosed), errors.Is(err, bus.ErrDown) && !p.heals:
			p.lost.set(err)
			return nil, fmt.Errorf("%w: %w", bus.ErrClosed, err) // for the server: nothing will come any more
		}
	}
}

// Receiving reports whether a message is arriving; see [uds.Conn].
func (p patient) Receiving() bool {
	r, ok := p.Conn.(interface{ Receiving() bool })
	return ok && r.Receiving()
}
