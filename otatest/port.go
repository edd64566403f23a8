package otatest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
)

// FreeAddr returns host:port on loopback where nobody listens, for a program that is to listen there.
// It is none of those that the system gives to who asks for any port, as every connection and
// most other tests do: one of them would take it before the program does.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const from, to = 20000, 32000 // Linux gives 32768 to 60999, other systems 49152 and more
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", from+rand.IntN(to-from)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatalf("find a free port from %d to %d: there is none", from, to)
	return ""
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
