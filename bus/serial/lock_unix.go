//go:build unix

package serial

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockPort takes the advisory lock of a port. TIOCEXCL, which the library sets, does
// not keep root out (Linux ioctl_tty(2)), and agents run as root.
func lockPort(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrBusy
		}
		return nil, err
	}
	return file, nil
}
