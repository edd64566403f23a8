package bustest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// PTY makes a pseudo terminal in raw mode, and returns its device end and the path of the
// other, which a program opens as a serial port. A Read of the device ends when it is
// closed, and sees no hang-up between two programs. It is closed when the test ends.
// Without pseudo terminals the test is skipped, or fails if INTERLOCK_TOOLS is 1.
func PTY(t testing.TB) (device *os.File, path string) {
	t.Helper()
	device, line, err := openPTY()
	if err != nil && os.Getenv("INTERLOCK_TOOLS") == "1" {
		t.Fatalf("no pseudo terminals, and everything should be here: %v", err)
	}
	if err != nil {
		t.Skipf("NOT TESTED: no pseudo terminals: %v", err)
	}
	t.Cleanup(func() {
		device.Close()
		line.Close()
	})
	return device, line.Name()
}

// openPTY also returns the other end, which is open so that there is always one.
func openPTY() (device, line *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	device = os.NewFile(uintptr(fd), "/dev/ptmx") // non-blocking, so that Close ends a Read
	n := 0
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil { // pty(7), ioctl_tty(2)
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
	}
	if err == nil {
		line, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		device.Close()
		return nil, nil, fmt.Errorf("make a pseudo terminal: %w", err)
	}
	if err := raw(int(line.Fd())); err != nil {
		device.Close()
		line.Close()
		return nil, nil, fmt.Errorf("make %s raw: %w", line.Name(), err)
	}
	return device, line, nil
}

// raw turns echo, line editing and translation off (termios(3)).
func raw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}
