//go:build vmguest && linux

package canguest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/interlock-energy/ota/bus/can"
)

// TestNoInterface: what is not there, or not up, is an error that says what to do.
func TestNoInterface(t *testing.T) {
	if bus, err := can.DialSocketCAN("can9", nil); !errors.Is(err, can.ErrDown) || !strings.Contains(err.Error(), "can9") {
		t.Errorf("an interface that is missing: %v, %v", bus, err)
	}
	name := vcan(t)
	ip(t, "set", name, "down")
	if bus, err := can.DialSocketCAN(name, nil); !errors.Is(err, can.ErrDown) || !strings.Contains(err.Error(), "ip link set "+name+" up") {
		t.Errorf("an interface that is down: %v, %v", bus, err)
	}
	if bus, err := can.DialSocketCAN("lo", nil); err == nil {
		bus.Close()
		t.Error("lo, which is no CAN interface, was opened")
	}
}

// TestFrames: every kind of frame comes through the kernel as it was, to everybody but
// the sender.
func TestFrames(t *testing.T) {
	name := vcan(t)
	one, two, three := dial(t, name), dial(t, name), dial(t, name)
	send(t, one, samples...)
	receive(t, two, samples...)
	receive(t, three, samples...)
	send(t, two, samples...)
	receive(t, one, samples...) // and none of its own before them
	receive(t, three, samples...)
	if got, want := one.Stats(), (can.Stats{Received: uint64(len(samples)), Sent: uint64(len(samples)), Links: 1}); got != want {
		t.Errorf("Stats: got %+v, want %+v", got, want)
	}
}

// TestInOrder: ten thousand frames, as many at once as a receiver lets come.
func TestInOrder(t *testing.T) {
	const n, window = 10_000, 64
	name := vcan(t)
	from, to := dial(t, name), dial(t, name)
	frame := func(i int) can.Frame {
		f := can.Extended(uint32(i*7919)&can.MaxExtended, binary.BigEndian.AppendUint64(nil, uint64(i))...)
		if i%3 == 0 {
			f = can.Standard(uint32(i)&can.MaxStandard, binary.BigEndian.AppendUint32(nil, uint32(i))...)
		}
		return f
	}
	ack := can.Standard(0x7F0, 1)
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			for i := range n {
				if got, err := to.Receive(t.Context()); err != nil || got != frame(i) {
					return fmt.Errorf("frame %d: got %v, %v, want %v", i, got, err, frame(i))
				}
				if i%window == window-1 {
					if err := to.Send(t.Context(), ack); err != nil {
						return err
					}
				}
			}
			return nil
		}()
		to.Close()
	}()
	for i := range n {
		if i >= 2*window && i%window == 0 {
			receive(t, from, ack)
		}
		send(t, from, frame(i))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestLost: whoever does not receive loses frames, in order, and is told how many.
func TestLost(t *testing.T) {
	const n = 2000
	name := vcan(t)
	from, to := dial(t, name), dial(t, name)
	frame := func(i int) can.Frame { return can.Extended(uint32(i), 0xA5) }
	for i := range n {
		send(t, from, frame(i))
	}
	end := can.Standard(1)
	got := 0
	receive(t, to, frame(0)) // makes room for one more
	got++
	send(t, from, end)
	for {
		f, err := to.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if f == end {
			break
		}
		if f != frame(got) {
			t.Fatalf("frame %d: got %v, want %v", got, f, frame(got))
		}
		got++
	}
	if stats := to.Stats(); got == n || stats.Lost != uint64(n-got) || stats.Received != uint64(got)+1 {
		t.Errorf("received %d of %d: %+v, want the others counted as lost", got, n, stats)
	}
	t.Logf("%d of %d fit into the kernel's buffer", got, n)
}

// TestFilters: the kernel lets through exactly what Filters.Match says, and counts no
// others.
func TestFilters(t *testing.T) {
	var frames []can.Frame
	for _, id := range []uint32{0, 1, 0x100, 0x123, 0x350, 0x351, 0x355, 0x35F, 0x36F, 0x7FF} {
		frames = append(frames, can.Standard(id, 1), can.Extended(id, 2), can.Extended(id|0x1234_5000, 3), can.Extended(id|0x1FFF_F800, 4), can.Frame{ID: id, Remote: true},
			can.Frame{ID: id, Extended: true, Remote: true})
	}
	end := can.Standard(0x7F1, 0xEE)
	for i, filters := range []can.Filters{
		nil,
		{{ID: 0x355, Mask: can.MaxStandard}},
		{{ID: 0x350, Mask: 0x7F0}},
		{{ID: 0x350, Mask: 0x7F0}, {ID: 0x12345123, Mask: can.MaxExtended, Extended: true}},
		{{ID: 0x355, Mask: can.MaxExtended, Extended: true}},
		{{ID: 0xFFFF_FFFF, Mask: 0x7}}, // bits of the identifier that are the kernel's flags
		{{ID: 0xFFFF_FFFF, Mask: 0xFFFF_FFFF, Extended: true}},
		{{ID: 0, Mask: 0}},
		{{ID: 0, Mask: 0, Extended: true}},
		{{ID: 0, Mask: 0}, {ID: 0, Mask: 0, Extended: true}},
		slices.Repeat(can.Filters{{ID: 0x355, Mask: can.MaxStandard}}, 512),
	} {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			name := vcan(t)
			from := dial(t, name)
			if len(filters) > 0 {
				filters = append(filters[:len(filters):len(filters)], can.Filter{ID: end.ID, Mask: can.MaxStandard})
			}
			if len(filters) > 512 {
				if _, err := can.DialSocketCAN(name, filters); err == nil {
					t.Error("513 filters: no error")
				}
				filters = filters[1:]
			}
			to := dial(t, name, filters...)
			send(t, from, frames...)
			send(t, from, end)
			var want []can.Frame
			for _, f := range append(frames[:len(frames):len(frames)], end) {
				if filters.Match(f) {
					want = append(want, f)
				}
			}
			receive(t, to, want...)
			if got := to.Stats().Received; got != uint64(len(want)) {
				t.Errorf("%d frames came, want %d: the kernel should hold the others back", got, len(want))
			}
		})
	}
}

// TestDownAndUp: an interface that goes down is an error in both directions, and the
// same socket works when it is up again.
func TestDownAndUp(t *testing.T) {
	name := vcan(t)
	one, two := dial(t, name), dial(t, name)
	for range 3 {
		failed := make(chan error, 1)
		go func() { failed <- receiveErr(t.Context(), one) }() // waits, or will
		ip(t, "set", name, "down")
		if err := <-failed; !errors.Is(err, can.ErrDown) || !strings.Contains(err.Error(), name) {
			t.Errorf("Receive while it goes down: %v", err)
		}
		if err := one.Send(t.Context(), samples[0]); !errors.Is(err, can.ErrDown) || !strings.Contains(err.Error(), name) {
			t.Errorf("Send while it is down: %v", err)
		}
		if err := receiveErr(t.Context(), two); !errors.Is(err, can.ErrDown) {
			t.Errorf("Receive after it went down: %v", err)
		}
		ip(t, "set", name, "up")
		send(t, one, samples...)
		receive(t, two, samples...)
		send(t, two, samples...)
		receive(t, one, samples...)
	}
}

// TestDownWhileSending: whichever of the two directions hears of it first, both do.
func TestDownWhileSending(t *testing.T) {
	name := vcan(t)
	for range 20 {
		bus, peer := dial(t, name), dial(t, name)
		sending, receiving := make(chan error, 1), make(chan error, 1)
		go func() { receiving <- receiveErr(t.Context(), bus) }()
		go func() {
			for {
				if err := bus.Send(t.Context(), samples[0]); err != nil {
					sending <- err
					return
				}
			}
		}()
		ip(t, "set", name, "down")
		if err := <-sending; !errors.Is(err, can.ErrDown) {
			t.Errorf("Send: %v", err)
		}
		if err := <-receiving; !errors.Is(err, can.ErrDown) {
			t.Errorf("Receive: %v", err)
		}
		ip(t, "set", name, "up")
		bus.Close()
		peer.Close()
	}
}

// TestUnplugged: an interface that is removed is an error from then on, also if one of
// the same name comes.
func TestUnplugged(t *testing.T) {
	name := vcan(t)
	bus := dial(t, name)
	ip(t, "del", name)
	for i := range 3 {
		if err := receiveErr(t.Context(), bus); !errors.Is(err, can.ErrDown) {
			t.Fatalf("Receive %d without the interface: %v", i, err)
		}
		if err := bus.Send(t.Context(), samples[0]); !errors.Is(err, can.ErrDown) {
			t.Errorf("Send %d without the interface: %v", i, err)
		}
	}
	ip(t, "add", "dev", name, "type", "vcan")
	ip(t, "set", name, "up")
	if err := receiveErr(t.Context(), bus); !errors.Is(err, can.ErrDown) {
		t.Errorf("Receive of an interface that has gone, with one of its name: %v", err)
	}
	one, two := dial(t, name), dial(t, name)
	send(t, one, samples...)
	receive(t, two, samples...)
}

// TestWaits: contexts and Close end what waits.
func TestWaits(t *testing.T) {
	name := vcan(t)
	one, two := dial(t, name), dial(t, name)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- receiveErr(ctx, one) }()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("Receive: %v, want canceled", err)
	}
	send(t, two, samples...)
	receive(t, one, samples...) // and nothing was lost by it
	go func() { failed <- receiveErr(t.Context(), one) }()
	one.Close()
	if err := <-failed; !errors.Is(err, can.ErrClosed) {
		t.Errorf("Receive: %v, want closed", err)
	}
	if err := one.Send(t.Context(), samples[0]); !errors.Is(err, can.ErrClosed) {
		t.Errorf("Send: %v, want closed", err)
	}
}

// TestErrorFrames: what a controller's driver tells (linux/can/error.h). vcan has no
// controller, so a socket of the test's own says it, which the kernel passes on as it
// does those of a driver: only to who asked for that class.
func TestErrorFrames(t *testing.T) {
	name := vcan(t)
	one, two := dial(t, name), dial(t, name)
	driver := rawSocket(t, name)
	tell := func(class uint32, data ...byte) {
		t.Helper()
		b := binary.NativeEndian.AppendUint32(nil, unix.CAN_ERR_FLAG|class)
		b = append(b, 8, 0, 0, 0)
		b = append(b, append(data, make([]byte, 8-len(data))...)...)
		if _, err := unix.Write(driver, b); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		controller byte
		want       can.State
	}{{0x20, can.StatePassive}, {0x08, can.StateWarning}, {0x40, can.StateActive}} {
		tell(0x004, 0, c.controller)
		send(t, two, samples[0])
		receive(t, one, samples[0])
		if got := one.Stats().State; got != c.want {
			t.Errorf("State: got %q, want %q", got, c.want)
		}
	}
	tell(0x008) // a protocol violation: nobody asked
	tell(0x040)
	if _, err := one.Receive(t.Context()); !errors.Is(err, can.ErrBusOff) {
		t.Errorf("Receive: %v, want off the bus", err)
	}
	tell(0x100)
	send(t, two, samples[0])
	receive(t, one, samples[0])
	if got := one.Stats(); got.State != can.StateActive || got.Garbage != 0 {
		t.Errorf("after a restart: %+v, want active", got)
	}
}

// rawSocket is a socket of the kernel's without package can.
func rawSocket(t *testing.T, name string) int {
	t.Helper()
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_CAN, unix.SOCK_RAW, unix.CAN_RAW)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrCAN{Ifindex: link.Index}); err != nil {
		t.Fatal(err)
	}
	return fd
}
