package isotp

import (
	"context"
	"errors"

	"github.com/interlock-energy/ota/bus/can"
)

// Mux reads a bus and distributes what it receives to channels.
type Mux struct{ bus can.Bus }

// NewMux starts to read the bus, which belongs to the Mux from then on.
func NewMux(bus can.Bus) *Mux { return &Mux{bus: bus} }

// Open makes a channel.
func (m *Mux) Open(a Address, c Config) (*Channel, error) {
	if err := a.validate(); err != nil {
		return nil, err
	}
	return nil, errors.ErrUnsupported
}

// Close ends all channels and closes the bus.
func (m *Mux) Close() error { return m.bus.Close() }

// Channel is a [Conn] over a Mux.
type Channel struct{}

// Send implements [Conn].
func (c *Channel) Send(ctx context.Context, pdu []byte) error { return errors.ErrUnsupported }

// Receive implements [Conn].
func (c *Channel) Receive(ctx context.Context) ([]byte, error) { return nil, errors.ErrUnsupported }

// Receiving reports whether a PDU is coming in just now: its first frame is here and its
// last is not. Whoever waits for an answer may wait longer then (ISO 14229-2, 7.2).
func (c *Channel) Receiving() bool { return false }

// Close implements [Conn].
func (c *Channel) Close() error { return nil }

// OpenKernel lets Linux do it, on the interface called ifname, such as "can0". Elsewhere,
// and where the module can_isotp is missing, the error wraps [errors.ErrUnsupported].
func OpenKernel(ifname string, a Address, c Config) (Conn, error) { return nil, errors.ErrUnsupported }
