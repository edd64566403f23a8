//go:build vmguest && linux

package canguest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
)

// kernelMost is in bytes: the longest PDU of Linux 6.1 (net/can/isotp.c, MAX_MSG_LENGTH).
// Since 6.4 it is the module's parameter max_pdu_size, 8300 if nobody says otherwise.
const kernelMost = 66_000

// pdu is of that length, and of its own bytes.
func pdu(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*31 + n)
	}
	return b
}

// user opens our own ISO-TP on a socket of the interface.
func user(t *testing.T, name string, a isotp.Address, c isotp.Config) isotp.Conn {
	t.Helper()
	mux := isotp.NewMux(dial(t, name))
	t.Cleanup(func() { mux.Close() })
	conn, err := mux.Open(a, c)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func kernel(t *testing.T, name string, a isotp.Address, c isotp.Config) isotp.Conn {
	t.Helper()
	conn, err := isotp.OpenKernel(name, a, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// carry sends a PDU and wants exactly it at the other end.
func carry(t *testing.T, from, to isotp.Conn, b []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sent := make(chan error, 1)
	go func() { sent <- from.Send(ctx, b) }()
	got, err := to.Receive(ctx)
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%d bytes: got %d bytes, %v", len(b), len(got), err)
	}
	if err := <-sent; err != nil {
		t.Fatalf("send %d bytes: %v", len(b), err)
	}
}

// lengths are all that one or two frames carry, and some of each larger size.
func lengths() []int {
	var list []int
	for n := 1; n <= 70; n++ {
		list = append(list, n)
	}
	for n := 131; n < 4095; n += 331 {
		list = append(list, n)
	}
	return append(list, 4093, 4094, 4095)
}

// TestISOTPKernel: PDUs go from our ISO-TP to the kernel's and back, with every kind of
// address and filling, and with flow control that asks for pauses and blocks.
func TestISOTPKernel(t *testing.T) {
	fill := byte(0x55)
	for _, c := range []struct {
		name    string
		address isotp.Address
		config  isotp.Config
		lengths []int
	}{
		{"11 bits", isotp.Normal(0x7E0, 0x7E8), isotp.Config{}, lengths()},
		{"29 bits", isotp.Fixed29(0x42, 0xF1), isotp.Config{}, lengths()},
		{"extended", isotp.Normal(0x6F1, 0x612).WithBytes(0x12, 0xF1), isotp.Config{}, lengths()},
		{"unfilled", isotp.Normal(0x7E0, 0x7E8), isotp.Config{Unpadded: true}, lengths()},
		{"filled otherwise", isotp.Normal(0x7E0, 0x7E8), isotp.Config{Padding: &fill}, []int{1, 7, 8, 13, 14, 62, 63}},
		{"blocks of 1", isotp.Normal(0x7E0, 0x7E8), isotp.Config{BlockSize: 1}, []int{6, 7, 8, 13, 14, 20, 21, 700}},
		{"blocks of 8, 1 ms", isotp.Normal(0x7E0, 0x7E8), isotp.Config{BlockSize: 8, STmin: time.Millisecond}, []int{8, 62, 63, 64, 118, 1000, 4095}},
		{"300 us", isotp.Normal(0x7E0, 0x7E8), isotp.Config{STmin: 300 * time.Microsecond}, []int{62, 1000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := vcan(t)
			ours := user(t, name, c.address, c.config)
			theirs := kernel(t, name, c.address.Peer(), c.config)
			begin, n := time.Now(), 0
			for _, length := range c.lengths {
				carry(t, ours, theirs, pdu(length))
				carry(t, theirs, ours, pdu(length))
				n += 2
			}
			t.Logf("%d PDUs in %v", n, time.Since(begin))
		})
	}
}

// TestISOTPLong: more than 12 bits of length. The kernel takes up to kernelMost, and says
// so of more, after which the next one works; our own take as much as they are told to.
func TestISOTPLong(t *testing.T) {
	name := vcan(t)
	const most = 80 << 10
	address := isotp.Normal(0x7E0, 0x7E8)
	ours := user(t, name, address, isotp.Config{MaxPDU: most})
	theirs := kernel(t, name, address.Peer(), isotp.Config{MaxPDU: kernelMost})
	for _, n := range []int{4096, 5000, 30 << 10, kernelMost} {
		carry(t, ours, theirs, pdu(n))
		carry(t, theirs, ours, pdu(n))
	}
	if err := ours.Send(t.Context(), pdu(kernelMost+1)); !errors.Is(err, isotp.ErrOverflow) {
		t.Errorf("%d bytes to the kernel: %v, want %v", kernelMost+1, err, isotp.ErrOverflow)
	}
	carry(t, ours, theirs, pdu(100))

	one, two := user(t, name, isotp.Normal(0x700, 0x708), isotp.Config{MaxPDU: most, BlockSize: 64}), user(t, name, isotp.Normal(0x708, 0x700), isotp.Config{MaxPDU: most, BlockSize: 64})
	for _, n := range []int{4095, 4096, 30 << 10} {
		carry(t, one, two, pdu(n))
		carry(t, two, one, pdu(n))
	}
	small := user(t, name, isotp.Normal(0x710, 0x718), isotp.Config{MaxPDU: 1000})
	big := kernel(t, name, isotp.Normal(0x718, 0x710), isotp.Config{})
	if err := big.Send(t.Context(), pdu(1001)); !errors.Is(err, isotp.ErrOverflow) {
		t.Errorf("1001 bytes from the kernel to who takes 1000: %v, want %v", err, isotp.ErrOverflow)
	}
	carry(t, big, small, pdu(1000))
}

// TestISOTPMany: several channels of one socket, with kernel peers that all talk at once.
func TestISOTPMany(t *testing.T) {
	const channels = 6
	name := vcan(t)
	mux := isotp.NewMux(dial(t, name))
	defer mux.Close()
	failed := make(chan error, 2*channels)
	for i := range uint32(channels) {
		a := isotp.Normal(0x700+i, 0x780+i)
		ours, err := mux.Open(a, isotp.Config{BlockSize: 8})
		if err != nil {
			t.Fatal(err)
		}
		theirs := kernel(t, name, a.Peer(), isotp.Config{})
		echo := func(c isotp.Conn) error {
			for range 10 {
				b, err := c.Receive(t.Context())
				if err == nil {
					err = c.Send(t.Context(), b)
				}
				if err != nil {
					return fmt.Errorf("answer as %v: %w", a.Peer(), err)
				}
			}
			return nil
		}
		ask := func(c isotp.Conn) error {
			for k := range 10 {
				want := pdu(1 + k*37 + int(i)*101)
				err := c.Send(t.Context(), want)
				var got []byte
				if err == nil {
					got, err = c.Receive(t.Context())
				}
				if err != nil || !bytes.Equal(got, want) {
					return fmt.Errorf("%v: got %d bytes, %w, want %d", a, len(got), err, len(want))
				}
			}
			return nil
		}
		if i%2 == 0 {
			go func() { failed <- echo(theirs) }()
			go func() { failed <- ask(ours) }()
		} else {
			go func() { failed <- echo(ours) }()
			go func() { failed <- ask(theirs) }()
		}
	}
	for range 2 * channels {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// TestISOTPFunctional: single frames to all, from the kernel and to it.
func TestISOTPFunctional(t *testing.T) {
	name := vcan(t)
	a := isotp.Functional(0x7DF)
	hears := user(t, name, a.Peer(), isotp.Config{})
	carry(t, kernel(t, name, a, isotp.Config{}), hears, []byte{0x3E, 0x80})
	if err := kernel(t, name, a, isotp.Config{}).Send(t.Context(), pdu(8)); !errors.Is(err, isotp.ErrLength) {
		t.Errorf("8 bytes to all: %v, want %v", err, isotp.ErrLength)
	}
	hearsToo := kernel(t, name, a.Peer(), isotp.Config{})
	says := user(t, name, a, isotp.Config{})
	for _, c := range []isotp.Conn{hears, hearsToo} {
		carry(t, says, c, []byte{0x10, 0x83})
	}
}

// TestISOTPSilence: a peer that stops in the middle is a timeout on either side, and the
// next PDU works.
func TestISOTPSilence(t *testing.T) {
	name := vcan(t)
	a := isotp.Normal(0x7E0, 0x7E8)
	theirs := kernel(t, name, a.Peer(), isotp.Config{})
	raw := dial(t, name)
	begin := time.Now()
	send(t, raw, can.Standard(0x7E0, 0x10, 20, 1, 2, 3, 4, 5, 6))
	if _, err := theirs.Receive(t.Context()); !errors.Is(err, isotp.ErrTimeout) {
		t.Errorf("Receive of half a PDU: %v, want %v", err, isotp.ErrTimeout)
	}
	if err := theirs.Send(t.Context(), pdu(20)); !errors.Is(err, isotp.ErrTimeout) {
		t.Errorf("Send without flow control: %v, want %v", err, isotp.ErrTimeout)
	}
	send(t, raw, can.Standard(0x7E0, 0x10, 20, 1, 2, 3, 4, 5, 6), can.Standard(0x7E0, 0x22, 7, 8, 9, 10, 11, 12, 13))
	if _, err := theirs.Receive(t.Context()); !errors.Is(err, isotp.ErrSequence) {
		t.Errorf("Receive of frames out of order: %v, want %v", err, isotp.ErrSequence)
	}
	ours := user(t, name, a, isotp.Config{})
	carry(t, ours, theirs, pdu(100))
	carry(t, theirs, ours, pdu(100))
	t.Logf("took %v", time.Since(begin))
}

// TestISOTPUtils: can-utils' isotpsend and isotprecv, which use the kernel on their own.
func TestISOTPUtils(t *testing.T) {
	for _, n := range []int{1, 7, 8, 62, 63, 4095} {
		name := vcan(t)
		ours := user(t, name, isotp.Normal(0x7E0, 0x7E8), isotp.Config{})
		isotpsend := exec.Command("isotpsend", "-s", "7E8", "-d", "7E0", name)
		isotpsend.Stdin = strings.NewReader(fmt.Sprintf("% X\n", pdu(n)))
		failed := make(chan error, 1)
		go func() {
			out, err := isotpsend.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s: %w\n%s", isotpsend, err, out)
			}
			failed <- err
		}()
		if got, err := ours.Receive(t.Context()); err != nil || !bytes.Equal(got, pdu(n)) {
			t.Errorf("%d bytes from isotpsend: got %d bytes, %v", n, len(got), err)
		}
		if err := <-failed; err != nil {
			t.Error(err)
		}

		isotprecv := start(t, "isotprecv", "-s", "7E8", "-d", "7E0", name)
		want := strings.TrimSpace(fmt.Sprintf("% X", pdu(n)))
		// It does not say when it has begun to listen, so it is told until it repeats.
		tick := time.NewTicker(20 * time.Millisecond)
		for heard := false; !heard; {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			err := ours.Send(ctx, pdu(n))
			cancel()
			if err != nil && !errors.Is(err, isotp.ErrTimeout) {
				t.Fatal(err)
			}
			select {
			case line := <-isotprecv.c:
				heard = true
				if got := strings.TrimSpace(line); got != want {
					t.Errorf("%d bytes to isotprecv: it heard %d characters, want %d", n, len(got), len(want))
				}
			case <-tick.C:
			}
		}
		tick.Stop()
	}
}

// TestISOTPSLCAN: over the slcan driver and a serial line to our ISO-TP at the host, which
// sends back what comes: from the kernel's, and from ours on a socket.
func TestISOTPSLCAN(t *testing.T) {
	slcand(t)
	// The kernel's ISO-TP does not wait for a queue that is full: it loses the frame, and
	// with it the PDU (net/can/isotp.c: "tx queue is full"). This one holds all of one.
	if err := os.WriteFile("/sys/class/net/slcan0/tx_queue_len", []byte("5000"), 0o644); err != nil {
		t.Fatal(err)
	}
	a := isotp.Normal(Tester, Device)
	for _, name := range []string{"kernel", "ours"} {
		var conn isotp.Conn
		if name == "kernel" {
			conn = kernel(t, "slcan0", a, isotp.Config{MaxPDU: Most})
		} else {
			conn = user(t, "slcan0", a, Patient(isotp.Config{MaxPDU: Most, BlockSize: 32}))
		}
		for _, n := range []int{1, 7, 8, 62, 63, 1000, 4095, 30 << 10} {
			for try := 0; ; try++ {
				err := sentBack(t, conn, n)
				if err == nil {
					break
				}
				// The kernel's timers are a second, and a busy host may not run this machine for longer.
				if name != "kernel" || !errors.Is(err, isotp.ErrTimeout) || try == 20 {
					t.Fatalf("%s: %d bytes: %v", name, n, err)
				}
				t.Logf("%s: %d bytes: %v; once more", name, n, err)
			}
		}
		conn.Close()
	}
}

// sentBack sends a PDU and wants exactly it back.
func sentBack(t *testing.T, conn isotp.Conn, n int) error {
	begin := time.Now()
	if err := conn.Send(t.Context(), pdu(n)); err != nil {
		return err
	}
	there := time.Since(begin)
	for late := true; late; {
		got, err := conn.Receive(t.Context())
		if err != nil {
			return err
		}
		if !bytes.Equal(got, pdu(len(got))) {
			return fmt.Errorf("got %d other bytes back", len(got))
		}
		late = len(got) != n // an answer that was given up
	}
	if n >= 4095 {
		t.Logf("%d bytes in %v and back in %v", n, there, time.Since(begin)-there)
	}
	return nil
}
