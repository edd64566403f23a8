package awstest

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"

	"github.com/interlock-energy/ota/otatest"
)

// port is where a run of the broker listens. It wraps connections, so that faults can
// happen on them.
//
// The MQTT server's own listener lets a connection in while the server ends: the server then
// waits for its clients and does not yet count that one. This one counts
// it before the next is accepted, and its end can be waited for.
type port struct {
	net.Listener
	id      string
	broker  *Broker
	run     *run
	clients *sync.WaitGroup // the server's
}

var _ listeners.Listener = (*port)(nil)

// listenAgain listens at addr, or at the first time, "", wherever nobody does. Somebody else may have taken addr
// while the broker was down, for a moment.
func listenAgain(addr string) (net.Listener, error) {
	if addr == "" {
		return otatest.Listen()
	}
	for began := time.Now(); ; <-time.After(20 * time.Millisecond) {
		l, err := net.Listen("tcp", addr)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(began) > time.Minute {
			return l, err
		}
	}
}

// listen adds a port to the run. It accepts nothing before the server serves.
func (r *run) listen(b *Broker, id string, l net.Listener) error {
	r.open = append(r.open, l)
	r.accepting.Add(1)
	return r.server.AddListener(&port{l, id, b, r, &r.server.Listeners.ClientsWg})
}

func (p *port) ID() string              { return p.id }
func (p *port) Address() string         { return p.Addr().String() }
func (p *port) Protocol() string        { return p.Addr().Network() }
func (p *port) Init(*slog.Logger) error { return nil }

// Serve accepts connections until the port is closed.
func (p *port) Serve(establish listeners.EstablishFn) {
	defer p.run.accepting.Done()
	for {
		c, err := p.Accept()
		if err != nil {
			return
		}
		w := newWire(c, p.broker)
		if !p.broker.add(p.run, w) {
			w.Close()
			return
		}
		p.clients.Go(func() { _ = establish(p.id, w) })
	}
}

// Close ends the port's connections, and the port.
func (p *port) Close(end listeners.CloseFn) {
	end(p.id)
	p.Listener.Close()
}
