package modbus

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/bus/crash/crashtest"
)

func TestMain(m *testing.M) { crashtest.Main(m) }

// expected is a log for tests that panic on purpose, and how many it has.
func expected() (l *crash.Log, count func() int) {
	l = crashtest.Expected()
	return l, func() int { return crashtest.Count(l) }
}

// crasher is a fake handler that panics for address 13, file 13, and serves all else. It takes its lock as
// a careful handler does.
type crasher struct {
	mu sync.Mutex
}

func (c *crasher) serve(address uint16) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if address == 13 {
		panic("on purpose")
	}
	return nil
}

func (c *crasher) ReadCoils(_ context.Context, _ Call, a uint16, _ []bool) error { return c.serve(a) }
func (c *crasher) ReadDiscreteInputs(_ context.Context, _ Call, a uint16, _ []bool) error {
	return c.serve(a)
}
func (c *crasher) ReadHolding(_ context.Context, _ Call, a uint16, dst []uint16) error {
	for i := range dst {
		dst[i] = 0xAAAA
	}
	return c.serve(a)
}
func (c *crasher) ReadInput(_ context.Context, _ Call, a uint16, _ []uint16) error {
	return c.serve(a)
}
func (c *crasher) WriteCoils(_ context.Context, _ Call, a uint16, _ []bool) error { return c.serve(a) }
func (c *crasher) WriteHolding(_ context.Context, _ Call, a uint16, _ []uint16) error {
	return c.serve(a)
}
func (c *crasher) MaskHolding(_ context.Context, _ Call, a, _, _ uint16) error { return c.serve(a) }
func (c *crasher) ReadFile(_ context.Context, _ Call, file, _ uint16, _ []uint16) error {
	return c.serve(file)
}
func (c *crasher) WriteFile(_ context.Context, _ Call, file, _ uint16, _ []uint16) error {
	return c.serve(file)
}
func (c *crasher) ReadFIFO(_ context.Context, _ Call, a uint16, _ []uint16) (int, error) {
	return 0, c.serve(a)
}

// crashes are requests for 13, one for each function.
var crashes = map[string][]byte{
	"01": {1, 0, 13, 0, 1}, "02": {2, 0, 13, 0, 1}, "03": {3, 0, 13, 0, 100}, "04": {4, 0, 13, 0, 1},
	"05": {5, 0, 13, 0xFF, 0}, "06": {6, 0, 13, 0, 1}, "15": {15, 0, 13, 0, 1, 1, 1}, "16": {16, 0, 13, 0, 1, 2, 0, 1},
	"20": {20, 7, 6, 0, 13, 0, 0, 0, 1}, "21": {21, 9, 6, 0, 13, 0, 0, 0, 1, 0, 1}, "22": {22, 0, 13, 0, 1, 0, 1},
	"23 reads": {23, 0, 13, 0, 1, 0, 1, 0, 1, 2, 0, 1}, "23 writes": {23, 0, 1, 0, 1, 0, 13, 0, 1, 2, 0, 1}, "24": {24, 0, 13},
}

// TestPanic has the handler panic in each function, over TCP: exception 4, and the same connection, and another
// one, are served as before.
func TestPanic(t *testing.T) {
	log, count := expected()
	l := listen(t, &Server{Handler: new(crasher), Crashes: log}, nil)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	one, other := dial(), dial()
	ask := func(c net.Conn, pdu []byte) []byte {
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.Write(AppendTCP(nil, 7, 1, pdu)); err != nil {
			t.Fatal(err)
		}
		header := make([]byte, headerSize)
		if _, err := io.ReadFull(c, header); err != nil {
			t.Fatalf("asked % x: %v", pdu, err)
		}
		_, _, size, err := ParseTCP(header)
		if err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, size)
		if _, err := io.ReadFull(c, answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	n := 0
	for name, pdu := range crashes {
		if got := ask(one, pdu); len(got) != 2 || got[0] != pdu[0]|0x80 || got[1] != 4 {
			t.Errorf("%s: got % x, want exception 4", name, got)
		}
		if n++; count() != n {
			t.Errorf("%s: %d crashes are noted, want %d", name, count(), n)
		}
		for _, c := range []net.Conn{one, other} {
			if got := ask(c, []byte{3, 0, 1, 0, 1}); len(got) != 4 || got[0] != 3 {
				t.Errorf("after %s: got % x, want a register", name, got)
			}
		}
	}
}

// TestPanicOnLine is the same on a serial line.
func TestPanicOnLine(t *testing.T) {
	log, count := expected()
	master, device := net.Pipe()
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	server := Server{Handler: new(crasher), Crashes: log}
	go func() { served <- server.ServeRTU(ctx, device, 1) }()
	c := NewRTU(master, Config{Timeout: time.Minute})
	defer c.Close()
	for range 3 {
		if _, err := c.ReadHolding(t.Context(), 1, 13, 1); !errors.Is(err, DeviceFailure) {
			t.Errorf("got %v, want exception 4", err)
		}
		if _, err := c.ReadHolding(t.Context(), 1, 1, 1); err != nil {
			t.Errorf("the next request: %v", err)
		}
	}
	if count() != 3 {
		t.Errorf("%d crashes are noted, want 3", count())
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// badConn is a fake connection that panics.
type badConn struct{ net.Conn }

func (badConn) RemoteAddr() net.Addr { panic("on purpose") }

// TestPanicOutside is one that belongs to no request: it costs the connection, and nobody else.
func TestPanicOutside(t *testing.T) {
	log, count := expected()
	p := newPipes()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	server := Server{Handler: new(crasher), Crashes: log}
	go func() { served <- server.Serve(ctx, p) }()
	ours, theirs := net.Pipe()
	p.conns <- badConn{theirs}
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read what a connection says that crashed: got %v, want EOF", err)
	}
	ours, theirs = net.Pipe()
	p.conns <- theirs
	c := NewTCP(ours, Config{Timeout: time.Minute})
	defer c.Close()
	if _, err := c.ReadHolding(t.Context(), 1, 1, 1); err != nil {
		t.Errorf("the next connection: %v", err)
	}
	if count() != 1 {
		t.Errorf("%d crashes are noted, want 1", count())
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
