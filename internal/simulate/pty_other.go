//go:build !linux

package simulate

import (
	"errors"
	"fmt"
)

func openPTY() (*pty, error) {
	return nil, fmt.Errorf("on this system socat can: socat -d -d pty,raw,echo=0 pty,raw,echo=0; name one of the two it makes: %w", errors.ErrUnsupported)
}
