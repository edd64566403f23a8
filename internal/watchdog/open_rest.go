//go:build !linux

package watchdog

import (
	"errors"
	"fmt"
)

// Open is an error: other systems have other watchdogs, and devices do not run there.
func Open(path string) (Device, error) {
	return nil, fmt.Errorf("open the watchdog %s: %w on this system", path, errors.ErrUnsupported)
}
