package can_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// cable is a serial line whose bytes may arrive in pieces of any size.
type cable struct {
	net.Conn
	piece int
}

func (c cable) Read(b []byte) (int, error) {
	if c.piece > 0 && len(b) > c.piece {
		b = b[:c.piece]
	}
	return c.Conn.Read(b)
}

// pair is a host and its adapter.
func pair(t *testing.T, hc can.SLCANConfig, ac can.AdapterConfig, piece int) (*can.SLCAN, *can.Adapter) {
	t.Helper()
	a, b := net.Pipe()
	adapter := can.NewAdapter(cable{b, piece}, ac)
	t.Cleanup(func() { adapter.Close() })
	host, err := can.OpenSLCAN(t.Context(), cable{a, piece}, hc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	return host, adapter
}

func receive(t *testing.T, bus can.Bus, want can.Frame) {
	t.Helper()
	got, err := bus.Receive(t.Context())
	if err != nil || got != want {
		t.Errorf("received %v, %v, want %v", got, err, want)
	}
}

// TestSLCAN sends every kind of frame in both directions, read in pieces of every size.
func TestSLCAN(t *testing.T) {
	for _, piece := range []int{0, 1, 2, 3, 5, 7, 13, 31} {
		synctest.Test(t, func(t *testing.T) {
			host, adapter := pair(t, can.SLCANConfig{}, can.AdapterConfig{}, piece)
			if rate, open := adapter.Bitrate(); rate != 500_000 || !open {
				t.Errorf("the adapter is at %d bit/s, open %v, want 500000, open", rate, open)
			}
			for _, f := range samples {
				if err := host.Send(t.Context(), f); err != nil {
					t.Error(err)
				}
				receive(t, adapter, f)
				if err := adapter.Send(t.Context(), f); err != nil {
					t.Error(err)
				}
				receive(t, host, f)
			}
			version, err := host.Version(t.Context())
			serial, err2 := host.Serial(t.Context())
			flags, err3 := host.Status(t.Context())
			if got, want := fmt.Sprint(version, " ", serial, flags, err, err2, err3), "V1013 NILCK0 <nil> <nil> <nil>"; got != want {
				t.Errorf("version, serial, flags: %s, want %s", got, want)
			}
			want := can.Stats{Received: 11, Sent: 11}
			if got := host.Stats(); got != want {
				t.Errorf("host: %+v, want %+v", got, want)
			}
			if err := host.Close(); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if _, open := adapter.Bitrate(); open {
				t.Error("the adapter is still open after Close")
			}
		})
	}
}

// script is a fake adapter: it answers commands with what a func says.
func script(t *testing.T, answer func(command string) string) (host net.Conn, say func(string)) {
	t.Helper()
	a, b := net.Pipe()
	var mu sync.Mutex
	say = func(s string) {
		mu.Lock()
		defer mu.Unlock()
		io.WriteString(b, s)
	}
	go func() {
		var line []byte
		buf := make([]byte, 64)
		for {
			n, err := b.Read(buf)
			for _, c := range buf[:n] {
				if c != '\r' {
					line = append(line, c)
					continue
				}
				if reply := answer(string(line)); reply != "" {
					say(reply)
				}
				line = line[:0]
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { b.Close() })
	return a, say
}

func accept(string) string { return "\r" }

// TestSLCANOpen: the sequence of commands, for each bit rate, and all that can be wrong.
func TestSLCANOpen(t *testing.T) {
	for rate, digit := range map[int]string{10_000: "0", 20_000: "1", 50_000: "2", 100_000: "3", 125_000: "4", 250_000: "5", 500_000: "6", 800_000: "7", 750_000: "7", 1_000_000: "8"} {
		synctest.Test(t, func(t *testing.T) {
			var said []string
			port, _ := script(t, func(c string) string {
				said = append(said, c)
				return "\r"
			})
			host, err := can.OpenSLCAN(t.Context(), port, can.SLCANConfig{Bitrate: rate, ListenOnly: rate == 10_000})
			if err != nil {
				t.Fatal(err)
			}
			open := "O"
			if rate == 10_000 {
				open = "L"
				if err := host.Send(t.Context(), samples[0]); err == nil {
					t.Error("it sends, and should only listen")
				}
			}
			host.Close()
			synctest.Wait()
			if got, want := fmt.Sprintf("%q", said), fmt.Sprintf("%q", []string{"", "", "C", "S" + digit, open, "C"}); got != want {
				t.Errorf("%d bit/s: %s, want %s", rate, got, want)
			}
		})
	}
	for _, c := range []struct {
		name   string
		answer func(string) string
		config can.SLCANConfig
		want   string // in the error; "": it works
		is     error
	}{
		{"was closed already", func(s string) string {
			if s == "C" || s == "" {
				return "\a"
			}
			return "\r"
		}, can.SLCANConfig{}, "", nil},
		{"was left in the middle of the traffic", func(s string) string {
			if s == "C" {
				return "55#garbage\rt12320102\r\a\r"
			}
			return "\r"
		}, can.SLCANConfig{}, "", nil},
		{"was closed already, and is slow", func(s string) string {
			if s == "C" || s == "" {
				<-time.After(20 * time.Millisecond)
				return "\a"
			}
			return "\r"
		}, can.SLCANConfig{}, "", nil},
		{"was closed already, and is on a busy computer", func(s string) string {
			if s == "C" {
				<-time.After(150 * time.Millisecond)
				return "\a"
			}
			return "\r"
		}, can.SLCANConfig{}, "", nil},
		{"refuses the rate", func(s string) string {
			if s == "S6" {
				return "\a"
			}
			return "\r"
		}, can.SLCANConfig{}, "command S6: the adapter refused", can.ErrRefused},
		{"refuses to open", func(s string) string {
			if s == "O" {
				return "\a"
			}
			return "\r"
		}, can.SLCANConfig{}, "command O: the adapter refused", can.ErrRefused},
		{"is no adapter", func(string) string { return "" }, can.SLCANConfig{}, "no answer within 1s", nil},
		{"never answers, and that is known", func(string) string { return "" }, can.SLCANConfig{Silent: true}, "", nil},
		{"a rate that is none", accept, can.SLCANConfig{Bitrate: 9600}, "9600 bit/s", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				port, _ := script(t, c.answer)
				host, err := can.OpenSLCAN(t.Context(), port, c.config)
				if err == nil {
					host.Close()
					<-time.After(time.Second) // the fake may still think about it
				}
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) || c.is != nil && !errors.Is(err, c.is) {
					t.Errorf("OpenSLCAN: %v, want %q", err, c.want)
				}
			})
		})
	}
	t.Run("given up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			port, _ := script(t, func(string) string { return "" })
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if _, err := can.OpenSLCAN(ctx, port, can.SLCANConfig{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("OpenSLCAN: %v, want the context's error", err)
			}
		})
	})
}

// TestSLCANLines: what comes from an adapter, cut at every byte.
func TestSLCANLines(t *testing.T) {
	wire := "t35545" + // the end of a line is missing: too long a frame it is
		"8005E00t3554\r" + // and dropped whole
		"t355458005E00\r" +
		"t355458005e00ABCD\r" + // with the adapter's clock
		"T12345678512345678001234\r" +
		"\n" + // some end lines with both
		"r1238\rR18DAF1103\r" +
		"z\rZ\rV1013\r\r" + // answers that nobody waits for
		"t3559001122334455667788\rt35540\rT1234567\rT200000000\rt8000\rt12300\rhello\r" + // 7 that are none
		strings.Repeat("x", 5000) + "\r" +
		"t1230\a" + // cut off by a refusal
		"t1000\r"
	want := []can.Frame{samples[0], samples[0], samples[4], {ID: 0x123, Remote: true, Len: 8}, {ID: 0x18DAF110, Extended: true, Remote: true, Len: 3}, can.Standard(0x100)}
	for cut := range len(wire) {
		if cut > 150 && cut < len(wire)-20 {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			port, say := script(t, accept)
			host, err := can.OpenSLCAN(t.Context(), port, can.SLCANConfig{})
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			say(wire[:cut])
			say(wire[cut:])
			for _, f := range want {
				receive(t, host, f)
			}
			synctest.Wait()
			if got := host.Stats(); got.Garbage != 10 || got.Received != 6 {
				t.Errorf("cut at %d: %d lines of garbage, %d frames, want 10, 6", cut, got.Garbage, got.Received)
			}
		})
	}
}

// TestSLCANRefused: BEL is an error of the frame that it answers, and of no other.
func TestSLCANRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := true
		host, adapter := pair(t, can.SLCANConfig{}, can.AdapterConfig{Flags: can.FlagSendFull | can.FlagPassive, Refuse: func(c string) bool { return c[0] == 't' && full }}, 0)
		if err := host.Send(t.Context(), samples[0]); !errors.Is(err, can.ErrRefused) || !strings.Contains(err.Error(), "355#58005E00") {
			t.Errorf("Send to a full adapter: %v, want refused", err)
		}
		if flags, err := host.Status(t.Context()); err != nil || flags != can.FlagSendFull|can.FlagPassive {
			t.Errorf("Status = %#x, %v, want full and passive", flags, err)
		}
		full = false
		if err := host.Send(t.Context(), samples[0]); err != nil {
			t.Errorf("Send when there is room: %v", err)
		}
		receive(t, adapter, samples[0])
		if got := host.Stats().Refused; got != 1 {
			t.Errorf("%d refused, want 1", got)
		}
	})
}

// TestSLCANLate: the answer to a frame that was given up is not taken for the next one's.
func TestSLCANLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port, say := script(t, func(c string) string {
			if strings.HasPrefix(c, "t001") {
				return "" // for now
			}
			if strings.HasPrefix(c, "t003") {
				return "\a"
			}
			return "\r"
		})
		host, err := can.OpenSLCAN(t.Context(), port, can.SLCANConfig{})
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		before := time.Now()
		if err := host.Send(t.Context(), can.Standard(1)); err == nil || time.Since(before) != time.Second {
			t.Errorf("Send without an answer: %v after %v, want an error after 1s", err, time.Since(before))
		}
		say("\a")
		synctest.Wait()
		if err := host.Send(t.Context(), can.Standard(2)); err != nil {
			t.Errorf("the next frame: %v", err)
		}
		say("\r")
		synctest.Wait()
		if err := host.Send(t.Context(), can.Standard(3)); !errors.Is(err, can.ErrRefused) {
			t.Errorf("a frame that is refused: %v", err)
		}
	})
}

// TestSLCANUnplugged: what was received is still there; then the link is down for ever.
func TestSLCANUnplugged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, adapter := pair(t, can.SLCANConfig{}, can.AdapterConfig{}, 0)
		adapter.Send(t.Context(), samples[0])
		synctest.Wait()
		adapter.Close()
		synctest.Wait()
		receive(t, host, samples[0])
		for range 2 {
			if _, err := host.Receive(t.Context()); !errors.Is(err, can.ErrDown) || !errors.Is(err, io.EOF) {
				t.Errorf("Receive: %v, want down and EOF", err)
			}
		}
		if err := host.Send(t.Context(), samples[0]); !errors.Is(err, can.ErrDown) {
			t.Errorf("Send: %v, want down", err)
		}
		host.Close()
		if _, err := host.Receive(t.Context()); err == nil {
			t.Error("Receive after Close: no error")
		}
	})
	synctest.Test(t, func(t *testing.T) { // in the middle of a command
		hang := false
		var port net.Conn
		port, _ = script(t, func(c string) string {
			if strings.HasPrefix(c, "t") && hang {
				go port.Close()
				return ""
			}
			return "\r"
		})
		host, err := can.OpenSLCAN(t.Context(), port, can.SLCANConfig{})
		if err != nil {
			t.Fatal(err)
		}
		hang = true
		before := time.Now()
		if err := host.Send(t.Context(), samples[0]); !errors.Is(err, can.ErrDown) || time.Since(before) != 0 {
			t.Errorf("Send: %v after %v, want down, at once", err, time.Since(before))
		}
		host.Close()
	})
}

// TestSLCANBusOff: the state lines of Linux's driver and of adapters that follow it.
func TestSLCANBusOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, adapter := pair(t, can.SLCANConfig{}, can.AdapterConfig{}, 0)
		for line, want := range map[string]can.State{"sa001002\r": can.StateActive, "sw100000\r": can.StateWarning, "sp000130\r": can.StatePassive} {
			adapter.Say(t.Context(), line)
			synctest.Wait()
			if got := host.Stats().State; got != want {
				t.Errorf("after %q: %q, want %q", line, got, want)
			}
		}
		adapter.Say(t.Context(), "sb256256\r")
		if _, err := host.Receive(t.Context()); !errors.Is(err, can.ErrBusOff) {
			t.Errorf("Receive: %v, want off the bus", err)
		}
		adapter.Send(t.Context(), samples[0]) // and it came back
		receive(t, host, samples[0])
		adapter.Say(t.Context(), "sx000000\rsb1\rs\r")
		synctest.Wait()
		if got := host.Stats(); got.Garbage != 3 || got.State != can.StateBusOff {
			t.Errorf("%+v, want 3 of garbage", got)
		}
	})
}

// TestSLCANWaits: nothing waits longer than its context, not even on an adapter that
// does not read.
func TestSLCANWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		go io.CopyN(io.Discard, b, int64(len("\r\rC\rS6\rO\r"))) // and not a byte more
		host, err := can.OpenSLCAN(t.Context(), a, can.SLCANConfig{Silent: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		before := time.Now()
		if err := host.Send(ctx, samples[0]); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send: %v, want the context's error", err)
		}
		if _, err := host.Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Receive: %v, want the context's error", err)
		}
		host.Close()
		if got := time.Since(before); got > 6*time.Second {
			t.Errorf("it took %v", got)
		}
	})
	synctest.Test(t, func(t *testing.T) { // Close ends a Receive
		host, _ := pair(t, can.SLCANConfig{}, can.AdapterConfig{}, 0)
		done := make(chan error)
		go func() {
			_, err := host.Receive(context.Background())
			done <- err
		}()
		synctest.Wait()
		host.Close()
		if err := <-done; !errors.Is(err, can.ErrClosed) {
			t.Errorf("Receive: %v, want closed", err)
		}
	})
}

// TestPaceAndEcho: no faster than configured, and own frames do not come back.
func TestPaceAndEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var say func(string)
		var port net.Conn
		port, say = script(t, func(c string) string {
			if strings.HasPrefix(c, "t") {
				return c + "\rz\r" // the echo comes before the answer
			}
			return "\r"
		})
		host, err := can.OpenSLCAN(t.Context(), port, can.SLCANConfig{Echo: true, Pace: 100})
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		before := time.Now()
		for i := range 11 {
			if err := host.Send(t.Context(), can.Standard(uint32(i), 1)); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := time.Since(before), 100*time.Millisecond; got != want {
			t.Errorf("11 frames took %v, want %v", got, want)
		}
		say("t003101\r") // somebody else's, with the same bytes
		receive(t, host, can.Standard(3, 1))
		if got := host.Stats(); got.Echoes != 11 || got.Sent != 11 {
			t.Errorf("%d echoes of %d, want 11", got.Echoes, got.Sent)
		}
	})
}

// TestNoEcho: a frame of somebody else is not taken for an echo that has yet to come.
func TestNoEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port, say := script(t, accept)
		host, err := can.OpenSLCAN(t.Context(), port, can.SLCANConfig{Echo: true})
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		if err := host.Send(t.Context(), can.Standard(1, 1)); err != nil {
			t.Fatal(err)
		}
		say("t001102\rT00000001101\r")
		receive(t, host, can.Standard(1, 2))
		receive(t, host, can.Extended(1, 1))
		<-time.After(time.Second) // too late for an echo
		say("t001101\r")
		receive(t, host, can.Standard(1, 1))
	})
}

// TestQueue: whoever does not receive gets the newest frames, and filters hold.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port, say := script(t, accept)
		host, err := can.OpenSLCAN(t.Context(), port, can.SLCANConfig{Filters: can.Filters{{ID: 0, Mask: 0}}})
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		for i := range 1500 {
			say(fmt.Sprintf("t%03X0\rT%08X0\r", i, i))
		}
		synctest.Wait()
		receive(t, host, can.Standard(1500-1024))
		if got := host.Stats(); got.Lost != 1500-1024 || got.Received != 3000 {
			t.Errorf("%d lost of %d, want %d of 3000", got.Lost, got.Received, 1500-1024)
		}
	})
}

// TestAdapter: what the adapter says to commands in a wrong state or shape.
func TestAdapter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		adapter := can.NewAdapter(b, can.AdapterConfig{})
		defer adapter.Close()
		var said []string
		say := func(s string) {
			io.WriteString(a, s+"\r")
			buf := make([]byte, 64)
			n, _ := a.Read(buf)
			said = append(said, string(buf[:n]))
		}
		var want []string
		for _, c := range []struct{ say, want string }{
			{"O", "\a"}, // without a rate
			{"S6", "\r"}, {"S9", "\a"}, {"S", "\a"}, {"O", "\r"}, {"O", "\a"}, {"L", "\a"}, {"S6", "\a"}, {"Z1", "\a"},
			{"t1000", "z\r"}, {"T000001000", "Z\r"}, {"r1002", "z\r"}, {"R000001002", "Z\r"}, {"t1001", "\a"}, {"d1000", "\a"}, {"?", "\a"},
			{"V", "V1013\r"}, {"N", "NILCK\r"}, {"F", "F00\r"}, {"C", "\r"}, {"C", "\a"}, {"t1000", "\a"}, {"Z1", "\r"}, {"Z2", "\a"},
			{"s0123", "\r"}, {"M00000000", "\r"}, {"mFFFFFFFF", "\r"}, {"M0", "\a"}, {"L", "\r"}, {"t1000", "\a"},
		} {
			say(c.say)
			want = append(want, c.want)
		}
		if !slices.Equal(said, want) {
			t.Errorf("said %q\nwant %q", said, want)
		}
		synctest.Wait()
		go adapter.Send(t.Context(), can.Standard(0x123, 0xAB))
		buf := make([]byte, 64)
		n, _ := a.Read(buf)
		if got := string(buf[:n]); got != "t1231AB0000\r" {
			t.Errorf("with a clock: %q", got)
		}
	})
	synctest.Test(t, func(t *testing.T) { // nobody has opened it
		_, b := net.Pipe()
		adapter := can.NewAdapter(b, can.AdapterConfig{})
		defer adapter.Close()
		if err := adapter.Send(t.Context(), samples[0]); err != nil || adapter.Stats().Lost != 1 {
			t.Errorf("Send: %v, lost %d, want none, 1", err, adapter.Stats().Lost)
		}
	})
}
