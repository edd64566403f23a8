package can_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// vectors13 are of the USR-CANET200 manual, and made like them.
var vectors13 = []struct {
	wire  string
	frame can.Frame
}{
	{"85 12345678 1234567800 000000", can.Extended(0x12345678, 0x12, 0x34, 0x56, 0x78, 0x00)},
	{"05 00000678 1234567800 000000", can.Standard(0x678, 0x12, 0x34, 0x56, 0x78, 0x00)},
	{"08 00000100 0102030405060708", can.Standard(0x100, 1, 2, 3, 4, 5, 6, 7, 8)},
	{"44 00000123 0000000000000000", can.Frame{ID: 0x123, Remote: true, Len: 4}},
	{"C3 18DAF110 0000000000000000", can.Frame{ID: 0x18DAF110, Extended: true, Remote: true, Len: 3}},
	{"00 00000000 0000000000000000", can.Standard(0)},
}

func bytesOf(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// converter is a fake converter: each connection is handed to the test.
func converter(t *testing.T, c can.TCP13Config) (*can.TCP13, chan net.Conn) {
	t.Helper()
	links := make(chan net.Conn, 16)
	c.Dial = func(context.Context, string) (net.Conn, error) {
		a, b := net.Pipe()
		links <- b
		return a, nil
	}
	bus := can.NewTCP13("192.0.2.1:20001", c)
	t.Cleanup(func() { bus.Close() })
	return bus, links
}

func TestTCP13(t *testing.T) {
	var all []byte
	for _, v := range vectors13 {
		all = append(all, bytesOf(t, v.wire)...)
	}
	for cut := range len(all) {
		synctest.Test(t, func(t *testing.T) {
			bus, links := converter(t, can.TCP13Config{})
			go func() {
				link := <-links
				link.Write(all[:cut])
				link.Write(all[cut:])
			}()
			for _, v := range vectors13 {
				receive(t, bus, v.frame)
			}
			if got := bus.Stats(); got.Received != uint64(len(vectors13)) || got.Garbage != 0 || got.Links != 1 {
				t.Errorf("cut at %d: %+v", cut, got)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		bus, links := converter(t, can.TCP13Config{})
		wire := make(chan []byte)
		go func() {
			link := <-links
			for {
				b := make([]byte, 13)
				if _, err := io.ReadFull(link, b); err != nil {
					return
				}
				wire <- b
			}
		}()
		for _, v := range vectors13 {
			if err := bus.Send(t.Context(), v.frame); err != nil {
				t.Error(err)
			}
			if got, want := <-wire, bytesOf(t, v.wire); !bytes.Equal(got, want) {
				t.Errorf("%v: sent % X, want % X", v.frame, got, want)
			}
		}
	})
}

// TestTCP13Resync: bytes were lost. What follows is either a frame that was sent, or
// nothing.
func TestTCP13Resync(t *testing.T) {
	sent := []can.Frame{can.Standard(0x355, 0x58, 0, 0x5E, 0), can.Standard(0x356, 0x7A, 0x13, 0xF2, 0xFE, 0x6B, 1), can.Extended(0x4210, 0xA5, 9, 0x94, 0x74, 0x9D, 4, 0x2E, 0x64),
		can.Standard(0x351, 0x14, 2, 0xC0, 0x12, 0xC0, 0x12, 0xC2, 1)}
	wires := []string{"04 00000355 58005E0000000000", "06 00000356 7A13F2FE6B010000", "88 00004210 A50994749D042E64", "08 00000351 1402C012C012C201"}
	var cycle []byte
	for _, w := range wires {
		cycle = append(cycle, bytesOf(t, w)...)
	}
	for missing := 1; missing < 13; missing++ {
		synctest.Test(t, func(t *testing.T) {
			bus, links := converter(t, can.TCP13Config{Silence: -1})
			go func() {
				link := <-links
				link.Write(cycle)
				link.Write(cycle[missing:])
				for range 3 {
					link.Write(cycle)
				}
				link.Close()
			}()
			good, bad := 0, 0
			for {
				f, err := bus.Receive(t.Context())
				if errors.Is(err, can.ErrDown) {
					break
				}
				ok := false
				for _, s := range sent {
					ok = ok || f == s
				}
				if ok {
					good++
				} else {
					bad++
					t.Logf("%d missing: %v was never sent", missing, f)
				}
			}
			// At most the frame that is cut short can come out wrong: its bytes are plausible.
			if bad > 1 || good < 16 {
				t.Errorf("%d missing: %d frames good, %d bad, want 16 of 20 and at most 1", missing, good, bad)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // bytes that look like a frame, once
		bus, links := converter(t, can.TCP13Config{})
		go func() {
			link := <-links
			link.Write(bytesOf(t, "10 00000355 88 00000001 000000")) // and the next five bytes: a frame with identifier 1
			for range 2 {
				link.Write(bytesOf(t, "08 00000356 FFFFFFFFFFFFFFFF"))
			}
		}()
		receive(t, bus, can.Standard(0x356, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF))
	})
	synctest.Test(t, func(t *testing.T) { // reserved bits, and more than 8 bytes
		for _, info := range []byte{0x10, 0x20, 0x34, 0x09, 0x0F, 0x89} {
			bus, links := converter(t, can.TCP13Config{})
			go func() {
				link := <-links
				wrong := bytes.Clone(cycle[:13])
				wrong[0] = info
				link.Write(wrong)
				link.Write(cycle)
				link.Write(cycle)
			}()
			for _, f := range sent {
				receive(t, bus, f)
			}
			if got := bus.Stats().Garbage; got != 13 {
				t.Errorf("info %#x: %d bytes dropped, want 13", info, got)
			}
		}
	})
}

// TestTCP13Loose: some converters leave old data behind what a frame has.
func TestTCP13Loose(t *testing.T) {
	for _, loose := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			bus, links := converter(t, can.TCP13Config{Loose: loose})
			go func() {
				link := <-links
				for range 500 {
					link.Write(bytesOf(t, "02 00000355 5800112233445566"))
				}
			}()
			f, err := bus.Receive(t.Context())
			if loose && (err != nil || f != can.Standard(0x355, 0x58, 0)) || !loose && !errors.Is(err, can.ErrDown) {
				t.Errorf("loose %v: %v, %v", loose, f, err)
			}
		})
	}
}

// TestTCP13Hopeless: a converter that is set to another format is an error, not
// silence.
func TestTCP13Hopeless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus, links := converter(t, can.TCP13Config{})
		go func() {
			link := <-links
			for range 200 {
				io.WriteString(link, "t355458005E00 and other text, for ever\r")
			}
		}()
		if _, err := bus.Receive(t.Context()); !errors.Is(err, can.ErrDown) || !strings.Contains(err.Error(), "another format") {
			t.Errorf("Receive: %v, want down, because of another format", err)
		}
	})
}

// TestTCP13Lost: a lost connection is an error once; then it connects anew, but not
// all the time.
func TestTCP13Lost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus, links := converter(t, can.TCP13Config{Redial: 5 * time.Second})
		vector := vectors13[0]
		go func() {
			link := <-links
			link.Write(bytesOf(t, vector.wire))
			link.Write(bytesOf(t, vector.wire)[:7]) // half a frame of the old connection
			link.Close()
			link = <-links
			link.Write(bytesOf(t, vector.wire))
		}()
		receive(t, bus, vector.frame)
		before := time.Now()
		if _, err := bus.Receive(t.Context()); !errors.Is(err, can.ErrDown) || !strings.Contains(err.Error(), "192.0.2.1:20001") {
			t.Errorf("Receive: %v, want down", err)
		}
		receive(t, bus, vector.frame)
		if got := time.Since(before); got != 5*time.Second {
			t.Errorf("connected again after %v, want 5s", got)
		}
		before = time.Now()
		if _, err := bus.Receive(t.Context()); !errors.Is(err, can.ErrDown) || time.Since(before) != 10*time.Second {
			t.Errorf("Receive: %v after %v, want down after 10s of silence", err, time.Since(before))
		}
		if got := bus.Stats(); got.Links != 2 || got.Garbage != 0 {
			t.Errorf("%+v, want 2 links", got)
		}
		bus.Close()
		if _, err := bus.Receive(t.Context()); !errors.Is(err, can.ErrClosed) {
			t.Errorf("Receive after Close: %v", err)
		}
		if err := bus.Send(t.Context(), vector.frame); !errors.Is(err, can.ErrClosed) {
			t.Errorf("Send after Close: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // nobody there
		bus := can.NewTCP13("192.0.2.1:1", can.TCP13Config{Dial: func(context.Context, string) (net.Conn, error) { return nil, errors.New("no route") }})
		before := time.Now()
		for range 3 {
			if _, err := bus.Receive(t.Context()); !errors.Is(err, can.ErrDown) {
				t.Errorf("Receive: %v, want down", err)
			}
		}
		if got := time.Since(before); got != 2*time.Second {
			t.Errorf("3 attempts took %v, want 2s", got)
		}
	})
}

// TestTCP13Waits: nothing waits longer than its context, and a context that ended is
// not the connection's fault.
func TestTCP13Waits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus, links := converter(t, can.TCP13Config{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := bus.Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Receive: %v, want the context's error", err)
		}
		go func() { (<-links).Write(bytesOf(t, vectors13[0].wire)) }()
		receive(t, bus, vectors13[0].frame)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := bus.Send(ctx, samples[0]); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send to one that does not read: %v, want the context's error", err)
		}
		if got := bus.Stats().Links; got != 1 {
			t.Errorf("%d links, want 1", got)
		}
		done := make(chan error)
		go func() {
			_, err := bus.Receive(context.Background())
			done <- err
		}()
		synctest.Wait()
		bus.Close()
		if err := <-done; !errors.Is(err, can.ErrClosed) {
			t.Errorf("Receive, when it was closed: %v", err)
		}
	})
}

// TestTCP13Real is over a real socket.
func TestTCP13Real(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.CopyN(conn, conn, 3*13) // an echo, and the end
			conn.Close()
		}
	}()
	bus := can.NewTCP13(l.Addr().String(), can.TCP13Config{Redial: time.Millisecond})
	defer bus.Close()
	for range 2 {
		for _, f := range samples[:3] {
			if err := bus.Send(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			receive(t, bus, f)
		}
		if _, err := bus.Receive(t.Context()); !errors.Is(err, can.ErrDown) {
			t.Errorf("Receive at the end: %v, want down", err)
		}
	}
}
