package simulate

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/interlock-energy/ota/bus/serial"
)

// ptyPath is the path of a [Line] that asks for a pseudo terminal.
const ptyPath = "pty"

// openLine opens a serial line and returns where others find it, and how fast it is
// in bits per second, 0 for a pseudo terminal.
func openLine(l Line, usualBaud int) (line io.ReadWriteCloser, where string, baud int, err error) {
	if l.Path != ptyPath {
		if l.Link != "" {
			return nil, "", 0, fmt.Errorf("open serial port %s: a link is made to a pty only", l.Path)
		}
		if l.Baud == 0 {
			l.Baud = usualBaud
		}
		port, err := serial.Open(serial.Config{Path: l.Path, Baud: l.Baud, Parity: l.Parity})
		return port, l.Path, l.Baud, err
	}
	p, err := openPTY()
	if err != nil {
		return nil, "", 0, fmt.Errorf("make a pseudo terminal: %w", err)
	}
	if l.Link == "" {
		return p, p.slave, 0, nil
	}
	if err := p.linkAs(l.Link); err != nil {
		p.Close()
		return nil, "", 0, err
	}
	return p, l.Link, 0, nil
}

// pty is a pseudo terminal, of which others open the slave. The slave is kept open
// here: without anybody who has it open, reading the master is an error.
type pty struct {
	*os.File // the master
	keep     *os.File
	slave    string
	link     string
}

// linkAs makes a symbolic link to the slave, in the place of an older one.
func (p *pty) linkAs(link string) error {
	if old, err := os.Readlink(link); err == nil && strings.HasPrefix(old, "/dev/pts/") {
		if err := os.Remove(link); err != nil {
			return fmt.Errorf("make the link %s anew: %w", link, err)
		}
	}
	if err := os.Symlink(p.slave, link); err != nil {
		return fmt.Errorf("make a link to %s: %w", p.slave, err)
	}
	p.link = link
	return nil
}

// Close hangs up, and removes the link if it still is this one's.
func (p *pty) Close() error {
	if old, err := os.Readlink(p.link); err == nil && old == p.slave {
		os.Remove(p.link)
	}
	p.keep.Close()
	return p.File.Close()
}

// quietListener and quietLine swallow what is sent while the system is silent: it
// hears everything, and nobody hears from it.
type quietListener struct {
	net.Listener
	quiet func() bool
}

func (l quietListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &quietConn{conn, l.quiet}, nil // a pointer, so that connections can be compared
}

type quietConn struct {
	net.Conn
	quiet func() bool
}

func (c *quietConn) Write(b []byte) (int, error) {
	if c.quiet() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

type quietLine struct {
	io.ReadWriteCloser
	quiet func() bool
}

func (l quietLine) Write(b []byte) (int, error) {
	if l.quiet() {
		return len(b), nil
	}
	return l.ReadWriteCloser.Write(b)
}
