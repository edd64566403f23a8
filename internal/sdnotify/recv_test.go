package sdnotify_test

import "syscall"

// recv reads one message without waiting for it.
func recv(fd uintptr, b []byte) (int, error) {
	n, _, err := syscall.Recvfrom(int(fd), b, syscall.MSG_DONTWAIT)
	return n, err
}
