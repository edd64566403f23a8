package watchdog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Open opens the watchdog at path, which arms it. One that somebody else has open
// is [unix.EBUSY].
func Open(path string) (Device, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // with O_CLOEXEC: no child keeps it open
	if err != nil {
		return nil, err
	}
	d := &device{f: f}
	err = d.control(func(fd int) error {
		info, err := unix.IoctlGetWatchdogInfo(fd)
		if err != nil {
			return os.NewSyscallError("ioctl WDIOC_GETSUPPORT", err)
		}
		status, err := unix.IoctlGetUint32(fd, unix.WDIOC_GETBOOTSTATUS)
		if err != nil {
			status = 0 // the driver does not know
		}
		d.options = info.Options
		d.info = Info{Identity: unix.ByteSliceToString(info.Identity[:]), LastReset: lastReset(info.Options, status),
			NoWayOut: noWayOut(path), Lax: info.Options&magicClose == 0}
		return nil
	})
	if err != nil { // it is no watchdog: a magic V would be written to whatever it is
		return nil, fmt.Errorf("%s is no watchdog: %w", path, errors.Join(err, d.Close(false)))
	}
	return d, nil
}

type device struct {
	f       *os.File
	options uint32
	info    Info
}

func (d *device) Info() Info { return d.info }

func (d *device) SetTimeout(t time.Duration) (actual time.Duration, err error) {
	err = d.control(func(fd int) error {
		if d.options&setTimeout != 0 {
			seconds := int((t + time.Second - 1) / time.Second)
			if err := unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, seconds); err != nil {
				return os.NewSyscallError("ioctl WDIOC_SETTIMEOUT", err)
			}
		}
		seconds, err := unix.IoctlGetUint32(fd, unix.WDIOC_GETTIMEOUT)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
			return nil // it does not tell
		}
		actual = time.Duration(seconds) * time.Second
		return os.NewSyscallError("ioctl WDIOC_GETTIMEOUT", err)
	})
	return actual, err
}

// Feed asks for it, and writes where the driver has no such request: every write
// without the letter V feeds.
func (d *device) Feed() error {
	err := d.control(unix.IoctlWatchdogKeepalive)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		_, err = d.f.Write([]byte{0})
		return err
	}
	return os.NewSyscallError("ioctl WDIOC_KEEPALIVE", err)
}

// Close writes the magic V before, or does not.
func (d *device) Close(disarm bool) error {
	var err error
	if disarm {
		_, err = d.f.Write([]byte("V"))
	}
	return errors.Join(err, d.f.Close())
}

func (d *device) control(do func(fd int) error) error {
	c, err := d.f.SyscallConn()
	if err != nil {
		return err
	}
	var derr error
	if err := c.Control(func(fd uintptr) { derr = do(int(fd)) }); err != nil {
		return err
	}
	return derr
}

// noWayOut asks the kernel, if it shows watchdogs (CONFIG_WATCHDOG_SYSFS,
// Documentation/ABI/testing/sysfs-class-watchdog). The old name /dev/watchdog is
// the first of them.
func noWayOut(path string) bool {
	name := filepath.Base(path)
	if name == "watchdog" {
		name = "watchdog0"
	}
	b, err := os.ReadFile(filepath.Join("/sys/class/watchdog", name, "nowayout"))
	return err == nil && strings.TrimSpace(string(b)) == "1"
}
