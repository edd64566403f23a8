package modbus

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
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
}

// Serve answers on the connections of l, those within TLS if l is a TLS listener
// (see ServerTLS), until the context ends, which closes l and all connections. It
// returns after the last handler did: nil if the context ended, or why l failed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return errors.ErrUnsupported }

// ServeRTU answers on a serial line as the given units, until the context ends, which
// closes the line, or the line breaks. Broadcasts, which are only acted on and not
// answered, reach the handler if 0 is among the units.
func (s *Server) ServeRTU(ctx context.Context, line io.ReadWriteCloser, units ...byte) error {
	return errors.ErrUnsupported
}
