//go:build !linux

package can

import (
	"context"
	"errors"
	"fmt"
)

// SocketCAN is a CAN interface of Linux, which this system is not.
type SocketCAN struct{}

// DialSocketCAN always errs.
func DialSocketCAN(name string, _ Filters) (*SocketCAN, error) {
	return nil, fmt.Errorf("open CAN interface %s: SocketCAN: %w", name, errors.ErrUnsupported)
}

// Receive errs.
func (*SocketCAN) Receive(context.Context) (Frame, error) { return Frame{}, errors.ErrUnsupported }

// Send errs.
func (*SocketCAN) Send(context.Context, Frame) error { return errors.ErrUnsupported }

// Stats are empty.
func (*SocketCAN) Stats() Stats { return Stats{} }

// Close does nothing.
func (*SocketCAN) Close() error { return nil }
