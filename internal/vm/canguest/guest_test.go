//go:build vmguest && linux

package canguest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/bus/can"
)

// TestMain refuses to run outside of the guest: these tests make and remove network
// interfaces.
func TestMain(m *testing.M) {
	if _, err := os.Stat("/guest.test"); err != nil {
		fmt.Println("these tests are for the virtual machine: make vm")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// samples are one of each kind.
var samples = []can.Frame{
	can.Standard(0x355, 0x58, 0x00, 0x5E, 0x00), can.Standard(0), can.Standard(can.MaxStandard, 1, 2, 3, 4, 5, 6, 7, 8),
	can.Extended(0x355, 0xA5), can.Extended(0), can.Extended(can.MaxExtended, 8, 7, 6, 5, 4, 3, 2, 1), can.Extended(0x18DA_F110, 0x02, 0x3E, 0x80),
	{ID: 0x123, Remote: true}, {ID: 0x123, Remote: true, Len: 8}, {ID: 0x1234_5678, Extended: true, Remote: true, Len: 3},
}

// ip does what "ip link" does.
func ip(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"link"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// vcan makes a virtual interface for this test, and sets it up.
func vcan(t *testing.T) (name string) {
	t.Helper()
	interfaces++
	name = fmt.Sprintf("vcan%d", interfaces)
	ip(t, "add", "dev", name, "type", "vcan")
	t.Cleanup(func() { exec.Command("ip", "link", "del", name).Run() }) // some tests do it themselves
	ip(t, "set", name, "up")
	return name
}

var interfaces int

func dial(t *testing.T, name string, filters ...can.Filter) *can.SocketCAN {
	t.Helper()
	bus, err := can.DialSocketCAN(name, filters)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bus.Close() })
	return bus
}

func send(t *testing.T, bus can.Bus, frames ...can.Frame) {
	t.Helper()
	for _, f := range frames {
		if err := bus.Send(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
}

// receive wants exactly these frames, next and in this order.
func receive(t *testing.T, bus can.Bus, want ...can.Frame) {
	t.Helper()
	for i, want := range want {
		if got, err := bus.Receive(t.Context()); err != nil || got != want {
			t.Fatalf("frame %d: got %v, %v, want %v", i, got, err, want)
		}
	}
}

// start starts a program that runs until the test ends, and returns its lines.
func start(t *testing.T, name string, args ...string) *lines {
	t.Helper()
	l := &lines{c: make(chan string, 20_000)}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = l, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return l
}

// lines of a program.
type lines struct {
	c    chan string
	part string
}

func (l *lines) Write(b []byte) (int, error) {
	l.part += string(b)
	for {
		line, rest, ok := strings.Cut(l.part, "\n")
		if !ok {
			return len(b), nil
		}
		l.c <- line
		l.part = rest
	}
}

// receiveErr returns the error of Receive, after whatever frames there still are.
func receiveErr(ctx context.Context, bus can.Bus) error {
	for {
		if _, err := bus.Receive(ctx); err != nil {
			return err
		}
	}
}
