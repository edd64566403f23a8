package modbus

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
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
type Client struct{}

// Dial connects to a TCP server, "192.168.1.5:502", with TLS if c.TLS is set (port 802).
func Dial(ctx context.Context, address string, c Config) (*Client, error) {
	return nil, errors.ErrUnsupported
}

// NewTCP returns a client of a TCP connection; nil: it is made by c.Redial when needed.
func NewTCP(conn net.Conn, c Config) *Client { return &Client{} }

// NewRTU returns a client of a serial line; nil: it is opened by c.Redial when needed.
func NewRTU(line io.ReadWriteCloser, c Config) *Client { return &Client{} }

// Close ends all calls and closes the connection.
func (c *Client) Close() error { return nil }

func (c *Client) ReadCoils(ctx context.Context, unit byte, address, count uint16) ([]bool, error) {
	return nil, errors.ErrUnsupported
}
func (c *Client) ReadDiscreteInputs(ctx context.Context, unit byte, address, count uint16) ([]bool, error) {
	return nil, errors.ErrUnsupported
}
func (c *Client) ReadHolding(ctx context.Context, unit byte, address, count uint16) ([]uint16, error) {
	return nil, errors.ErrUnsupported
}
func (c *Client) ReadInput(ctx context.Context, unit byte, address, count uint16) ([]uint16, error) {
	return nil, errors.ErrUnsupported
}
func (c *Client) ReadHoldingInto(ctx context.Context, unit byte, address uint16, dst []uint16) error {
	return errors.ErrUnsupported
}
func (c *Client) ReadInputInto(ctx context.Context, unit byte, address uint16, dst []uint16) error {
	return errors.ErrUnsupported
}
func (c *Client) WriteCoil(ctx context.Context, unit byte, address uint16, on bool) error {
	return errors.ErrUnsupported
}
func (c *Client) WriteRegister(ctx context.Context, unit byte, address, value uint16) error {
	return errors.ErrUnsupported
}
func (c *Client) WriteCoils(ctx context.Context, unit byte, address uint16, values []bool) error {
	return errors.ErrUnsupported
}
func (c *Client) WriteRegisters(ctx context.Context, unit byte, address uint16, values []uint16) error {
	return errors.ErrUnsupported
}
func (c *Client) MaskWrite(ctx context.Context, unit byte, address, and, or uint16) error {
	return errors.ErrUnsupported
}

// ReadWrite writes, then reads, in one transaction.
func (c *Client) ReadWrite(ctx context.Context, unit byte, read, count, write uint16, values []uint16) ([]uint16, error) {
	return nil, errors.ErrUnsupported
}
func (c *Client) ReadFIFO(ctx context.Context, unit byte, address uint16) ([]uint16, error) {
	return nil, errors.ErrUnsupported
}
func (c *Client) ReadFile(ctx context.Context, unit byte, file, record, count uint16) ([]uint16, error) {
	return nil, errors.ErrUnsupported
}
func (c *Client) WriteFile(ctx context.Context, unit byte, file, record uint16, values []uint16) error {
	return errors.ErrUnsupported
}

// Unit is a client's view of one device.
type Unit struct {
	Client *Client
	ID     byte
}

// Unit returns the view of one device: on TCP mostly 1 or 255, on RTU 1 to 247.
func (c *Client) Unit(id byte) Unit { return Unit{c, id} }

func (u Unit) ReadHolding(ctx context.Context, address, count uint16) ([]uint16, error) {
	return u.Client.ReadHolding(ctx, u.ID, address, count)
}
func (u Unit) ReadInput(ctx context.Context, address, count uint16) ([]uint16, error) {
	return u.Client.ReadInput(ctx, u.ID, address, count)
}
func (u Unit) WriteRegister(ctx context.Context, address, value uint16) error {
	return u.Client.WriteRegister(ctx, u.ID, address, value)
}
func (u Unit) WriteRegisters(ctx context.Context, address uint16, values []uint16) error {
	return u.Client.WriteRegisters(ctx, u.ID, address, values)
}
