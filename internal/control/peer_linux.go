package control

import (
	"net"
	"syscall"
)

// peerOf asks the kernel who connected: unix(7), SO_PEERCRED. It is who called
// connect, not whoever the socket was handed on to.
func peerOf(c *net.UnixConn) (p Peer) {
	raw, err := c.SyscallConn()
	if err != nil {
		return p
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			p = Peer{Known: true, UID: cred.Uid, PID: cred.Pid}
		}
	})
	return p
}
