//go:build unix

package control

import "syscall"

// restrict sets the mode that the socket's file is created with, so that there
// is no moment at which everybody may connect: Linux takes it from the inode of
// the socket that is not bound yet, and only then applies the umask. Other
// systems refuse, and have the moment.
func restrict(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o660) })
}
