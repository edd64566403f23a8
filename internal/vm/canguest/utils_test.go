//go:build vmguest && linux

package canguest

import (
	"errors"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// noise is sent until a program listens.
var noise = can.Standard(0x7FF, 0xAA)

// candump starts can-utils' listener. It does not say when it has begun, so it is told
// something until it repeats that.
func candump(t *testing.T, name string) *dump {
	t.Helper()
	d := &dump{lines: start(t, "candump", "-L", name), name: name}
	ready := dial(t, name)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		send(t, ready, noise)
		select {
		case <-d.lines.c:
			return d
		case <-tick.C:
		}
	}
}

type dump struct {
	lines *lines
	name  string
}

// next is what stands in the next line, without the time and the interface.
func (d *dump) next(t *testing.T) string {
	t.Helper()
	for {
		line := <-d.lines.c
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[1] != d.name {
			t.Fatalf("candump said %q", line)
		}
		if fields[2] != noise.String() {
			return fields[2]
		}
	}
}

// TestCandump: can-utils hears what package can sends.
func TestCandump(t *testing.T) {
	name := vcan(t)
	listener := candump(t, name)
	bus := dial(t, name)
	for range 20 {
		send(t, bus, samples...)
		for _, f := range samples {
			if got, want := listener.next(t), f.String(); got != want {
				t.Errorf("candump heard %s, want %s", got, want)
			}
		}
	}
}

// TestCansend: package can hears what can-utils sends, error frames included.
func TestCansend(t *testing.T) {
	name := vcan(t)
	bus := dial(t, name)
	for _, f := range samples {
		cansend(t, name, f.String())
		receive(t, bus, f)
	}
	cansend(t, name, "20000004#0020000000008000")
	cansend(t, name, noise.String())
	receive(t, bus, noise)
	if got := bus.Stats().State; got != can.StatePassive {
		t.Errorf("State: got %q, want %q", got, can.StatePassive)
	}
	cansend(t, name, "20000040#0000000000000000")
	if _, err := bus.Receive(t.Context()); !errors.Is(err, can.ErrBusOff) {
		t.Errorf("Receive: %v, want off the bus", err)
	}
}

func cansend(t *testing.T, name, frame string) {
	t.Helper()
	if out, err := exec.Command("cansend", name, frame).CombinedOutput(); err != nil {
		t.Fatalf("cansend %s %s: %v\n%s", name, frame, err, out)
	}
}

// TestCangen: of random frames, package can and can-utils hear the same.
func TestCangen(t *testing.T) {
	const n = 400
	for _, args := range [][]string{{}, {"-e"}, {"-R", "-L", "r"}} {
		name := vcan(t)
		listener := candump(t, name)
		bus := dial(t, name)
		heard := make(chan []string)
		go func() {
			var frames []string
			for len(frames) <= n {
				f, err := bus.Receive(t.Context())
				if err != nil {
					break
				}
				frames = append(frames, f.String())
			}
			heard <- frames
		}()
		args = append([]string{name, "-g", "1", "-n", strconv.Itoa(n)}, args...)
		if out, err := exec.Command("cangen", args...).CombinedOutput(); err != nil {
			t.Fatalf("cangen %q: %v\n%s", args, err, out)
		}
		send(t, dial(t, name), can.Extended(1)) // the end
		ours := <-heard
		var theirs []string
		for range ours {
			theirs = append(theirs, listener.next(t))
		}
		if !slices.Equal(ours, theirs) || len(ours) != n+1 || ours[n] != can.Extended(1).String() {
			t.Errorf("cangen %q: %d frames, want %d; package can and candump agree: %v", args, len(ours)-1, n, slices.Equal(ours, theirs))
		}
	}
}
