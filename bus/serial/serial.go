// Package serial opens serial ports for the bus protocols: Modbus RTU and CAN
// adapters that speak SLCAN. It exists so that both share one place with clear
// errors, exclusive access and reads that end.
//
// Start with [Open]. A [Port] is raw: 8-bit clean, no flow control, no echo. One
// goroutine may read while another writes. Promised: Close ends a Read and a Write
// that wait; and a port that is open here is refused to every other program that
// asks for the usual locks, root included. Pseudo terminals are ports like any other.
package serial

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.bug.st/serial"
)

var (
	// ErrBusy is wrapped by the error of Open if somebody else has the port.
	ErrBusy = errors.New("the port is in use by another program; stop it, or take another port")
	// ErrNotPort is wrapped by the error of Open if the path is no serial port.
	ErrNotPort = errors.New("this is not a serial port")
)

// Parity is how a character is checked.
type Parity string

const (
	None Parity = "none" // what most SunSpec devices use; the zero value means it too
	Even Parity = "even" // what Modbus asks for (Modbus over serial line V1.02, 2.5.1)
	Odd  Parity = "odd"
)

// Config says which port, and how. Only Path is needed.
type Config struct {
	Path     string // /dev/ttyUSB0, COM3
	Baud     int    // bits per second; 0: 9600
	DataBits int    // 5 to 8; 0: 8
	Parity   Parity // "": None
	StopBits int    // 1 or 2; 0: 1
}

// Validate says what is wrong with c, apart from what only opening the port can tell.
func (c Config) Validate() error {
	_, _, err := c.withDefaults()
	return err
}

func (c Config) withDefaults() (Config, *serial.Mode, error) {
	if c.Baud == 0 {
		c.Baud = 9600
	}
	if c.DataBits == 0 {
		c.DataBits = 8
	}
	if c.Parity == "" {
		c.Parity = None
	}
	if c.StopBits == 0 {
		c.StopBits = 1
	}
	mode := &serial.Mode{BaudRate: c.Baud, DataBits: c.DataBits}
	switch c.Parity {
	case None:
		mode.Parity = serial.NoParity
	case Even:
		mode.Parity = serial.EvenParity
	case Odd:
		mode.Parity = serial.OddParity
	default:
		return c, nil, fmt.Errorf("parity is %q, want %q, %q or %q", c.Parity, None, Even, Odd)
	}
	switch c.StopBits {
	case 1:
		mode.StopBits = serial.OneStopBit
	case 2:
		mode.StopBits = serial.TwoStopBits
	default:
		return c, nil, fmt.Errorf("stop bits are %d, want 1 or 2", c.StopBits)
	}
	switch {
	case c.Path == "":
		return c, nil, errors.New("no path is given; name a port such as /dev/ttyUSB0")
	case c.Baud < 0:
		return c, nil, fmt.Errorf("baud is %d, want a positive number", c.Baud)
	case c.DataBits < 5 || c.DataBits > 8:
		return c, nil, fmt.Errorf("data bits are %d, want 5 to 8", c.DataBits)
	}
	return c, mode, nil
}

// Port is an open serial port.
type Port struct {
	config  Config
	port    serial.Port
	second  *os.File // the same port again, for the lock and for writes; nil where there is no need
	timeout atomic.Int64
	reading sync.Mutex
	closed  atomic.Bool
}

// Open opens a port and makes it raw. The error wraps [ErrBusy], [ErrNotPort],
// [fs.ErrNotExist] or [fs.ErrPermission] where that is the reason.
func Open(c Config) (*Port, error) {
	path := c.Path
	c, mode, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open serial port %s: %w", path, err)
	}
	second, err := lockPort(path)
	if err != nil {
		return nil, fmt.Errorf("open serial port %s: %w", path, explain(err))
	}
	port, err := serial.Open(path, mode)
	if err != nil {
		if second != nil {
			second.Close()
		}
		return nil, fmt.Errorf("open serial port %s (%d baud, %d data bits, parity %s, %d stop bits): %w",
			path, c.Baud, c.DataBits, c.Parity, c.StopBits, explain(err))
	}
	return &Port{config: c, port: port, second: second}, nil
}

// explain gives the reasons of the library and of the system one set of errors.
func explain(err error) error {
	var port *serial.PortError
	if errors.As(err, &port) {
		switch port.Code() {
		case serial.PortBusy:
			return ErrBusy
		case serial.PortNotFound:
			return fs.ErrNotExist
		case serial.PermissionDenied:
			return fmt.Errorf("%w; add the user to the group of the port, often dialout", fs.ErrPermission)
		case serial.InvalidSerialPort:
			return fmt.Errorf("%w (%v)", ErrNotPort, err)
		}
	}
	switch {
	case errors.Is(err, syscall.EBUSY):
		return ErrBusy
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; is the adapter plugged in?", fs.ErrNotExist)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; add the user to the group of the port, often dialout", fs.ErrPermission)
	}
	return err
}

// Config returns how the port was opened, with the defaults filled in.
func (p *Port) Config() Config { return p.config }

// CharTime is how long one character takes on the wire.
func (p *Port) CharTime() time.Duration {
	bits := 1 + p.config.DataBits + p.config.StopBits
	if p.config.Parity != None {
		bits++
	}
	return time.Duration(bits) * time.Second / time.Duration(p.config.Baud)
}

// SetReadTimeout bounds every Read that begins later: one that gets no byte for so
// long returns [os.ErrDeadlineExceeded]. Zero means for ever, which is the default.
func (p *Port) SetReadTimeout(d time.Duration) { p.timeout.Store(int64(max(d, 0))) }

// Read waits for at least one byte. The error is [os.ErrDeadlineExceeded] after the
// read timeout and [os.ErrClosed] after Close.
func (p *Port) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	p.reading.Lock()
	defer p.reading.Unlock()
	if p.closed.Load() {
		return 0, p.fail("read", os.ErrClosed)
	}
	timeout := time.Duration(p.timeout.Load())
	if timeout == 0 {
		timeout = serial.NoTimeout
	}
	if err := p.port.SetReadTimeout(timeout); err != nil {
		return 0, p.fail("read", err)
	}
	n, err := p.port.Read(b)
	switch {
	case err == nil && n > 0:
		return n, nil
	case p.closed.Load():
		return 0, p.fail("read", os.ErrClosed)
	case err == nil:
		return 0, p.fail("read", os.ErrDeadlineExceeded)
	}
	return n, p.fail("read", err)
}

// Write returns when the system has taken all bytes, which is before they are on the
// wire. The error is [os.ErrClosed] after Close.
func (p *Port) Write(b []byte) (int, error) {
	if p.closed.Load() {
		return 0, p.fail("write", os.ErrClosed)
	}
	var out io.Writer = p.port
	if p.second != nil {
		out = p.second
	}
	n, err := out.Write(b)
	if err == nil && n < len(b) {
		err = fmt.Errorf("the port took %d of %d bytes", n, len(b))
	}
	if err != nil && p.closed.Load() {
		err = os.ErrClosed
	}
	if err != nil {
		return n, p.fail("write", err)
	}
	return n, nil
}

// Discard forgets what has arrived and was not read yet.
func (p *Port) Discard() error {
	if err := p.port.ResetInputBuffer(); err != nil {
		return p.fail("discard input of", err)
	}
	return nil
}

// Close closes the port and lets others have it. Bytes that are not on the wire yet
// are dropped. A second Close does nothing.
func (p *Port) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	if p.second != nil {
		p.second.Close() // ends a Write that waits for room
	}
	err := p.port.Close()
	if err != nil {
		return p.fail("close", err)
	}
	return nil
}

func (p *Port) fail(verb string, err error) error {
	return fmt.Errorf("%s serial port %s: %w", verb, p.config.Path, err)
}
