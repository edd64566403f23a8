//go:build unix

package serial

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockPort opens a port for its advisory lock and for writing. The lock is because
// TIOCEXCL, which the library sets, does not keep root out (Linux ioctl_tty(2)), and
// agents run as root. Writing is because the library's own write cannot be ended by
// Close while a device takes no bytes; that of an os.File, which polls, can.
func lockPort(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	// Not file.Fd, which would make it block.
	raw, err := file.SyscallConn()
	if err == nil {
		if failed := raw.Control(func(fd uintptr) { err = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); err == nil {
			err = failed
		}
	}
	if err == nil {
		return file, nil
	}
	file.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrBusy
	}
	return nil, err
}
