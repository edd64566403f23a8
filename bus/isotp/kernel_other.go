//go:build !linux

package isotp

import (
	"errors"
	"fmt"
)

// OpenKernel needs Linux, which this system is not.
func OpenKernel(ifname string, a Address, _ Config) (Conn, error) {
	return nil, fmt.Errorf("open ISO-TP socket %v on %s: %w", a, ifname, errors.ErrUnsupported)
}
