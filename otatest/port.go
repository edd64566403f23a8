package otatest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
)

// Ports that tests choose. Linux gives 32768 to 60999 to who asks for any, other systems 49152 and more.
const (
	firstPort = 20000
	lastPort  = 32000
)

// Listen listens on loopback, on a port that is none of those that the system gives to who asks for any, as every
// connection and most other tests do. So it stays free for a while after it was closed.
func Listen() (net.Listener, error) {
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", firstPort+rand.IntN(lastPort-firstPort))); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("find a free port from %d to %d: %w", firstPort, lastPort, err)
}

// FreeAddr returns host:port on loopback where nobody listens, for a program that is to listen there.
// See [Listen].
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// NobodyAddr returns host:port on loopback that refuses every connection until the test ends: nobody
// else can listen there.
func NobodyAddr(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	a, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", a.(*syscall.SockaddrInet4).Port)
}
