package can

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/bus/crash/crashtest"
)

func TestMain(m *testing.M) { crashtest.Main(m) }

// crashing is a fake end of a link that panics.
type crashing struct {
	net.Conn
	reads, writes bool
}

func (c crashing) Read(p []byte) (int, error) {
	if c.reads {
		panic("on purpose")
	}
	return c.Conn.Read(p)
}

func (c crashing) Write(p []byte) (int, error) {
	if c.writes {
		panic("on purpose")
	}
	return c.Conn.Write(p)
}

// TestPanic has what is below each kind of link panic: the link is down, and that is all.
func TestPanic(t *testing.T) {
	crashes.Store(crashtest.Expected())
	defer crashes.Store(nil)
	dialed := 0
	converter := NewTCP13("converter", TCP13Config{Redial: 1, Dial: func(context.Context, string) (net.Conn, error) {
		if dialed++; dialed == 1 {
			panic("on purpose")
		}
		ours, theirs := net.Pipe()
		go io.Copy(theirs, theirs)
		return crashing{Conn: ours, reads: dialed == 2}, nil
	}})
	defer converter.Close()
	shared := NewShared(SharedConfig{Open: func(context.Context) (Bus, error) { panic("on purpose") }})
	for name, try := range map[string]func() error{
		"dial": func() error { _, err := converter.Receive(t.Context()); return err },
		"adapter reads": func() error {
			ours, theirs := net.Pipe()
			go io.Copy(io.Discard, theirs)
			_, err := OpenSLCAN(t.Context(), crashing{Conn: ours, reads: true}, SLCANConfig{})
			return err
		},
		"adapter writes": func() error {
			ours, _ := net.Pipe()
			_, err := OpenSLCAN(t.Context(), crashing{Conn: ours, writes: true}, SLCANConfig{})
			return err
		},
		"shared": func() error { _, err := shared.Join(t.Context(), UserConfig{}); return err },
	} {
		if err := try(); !errors.Is(err, ErrDown) || !errors.Is(err, crash.Err) {
			t.Errorf("%s: got %v, want ErrDown, and what panicked", name, err)
		}
	}
	if _, err := converter.Receive(t.Context()); !errors.Is(err, crash.Err) {
		t.Errorf("the converter's connection: got %v, want what panicked", err)
	}
	f := Standard(0x123, 1, 2)
	if err := converter.Send(t.Context(), f); err != nil {
		t.Fatalf("the converter's next connection: %v", err)
	}
	if got, err := converter.Receive(t.Context()); got != f || err != nil {
		t.Errorf("the converter's next connection: got %v, %v, want %v", got, err, f)
	}
}
