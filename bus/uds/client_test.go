package uds_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// scripted runs a test of a client in simulated time. The fake server says of each
// request what script returns, in hex; "" is nothing. A time in front is when.
func scripted(t *testing.T, cfg uds.ClientConfig, script func(n int, request string) []string, test func(t *testing.T, c *uds.Client, line *pipe)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		near, far := newPipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for n := 0; ; n++ {
				pdu, err := far.Receive(ctx)
				if err != nil {
					return
				}
				for _, answer := range script(n, fmt.Sprintf("%X", pdu)) {
					if wait, rest, ok := strings.Cut(answer, " in "); ok {
						d, err := time.ParseDuration(rest)
						if err != nil {
							t.Error(err)
						}
						time.Sleep(d)
						answer = wait
					}
					if answer != "" {
						far.Send(ctx, unhex(t, answer))
					}
				}
			}
		}()
		c := uds.NewClient(near, cfg)
		test(t, c, near)
		c.Close()
		cancel()
		<-done
	})
}

func sent(line *pipe) string {
	var all []string
	for _, pdu := range line.log() {
		all = append(all, fmt.Sprintf("%X", pdu))
	}
	return strings.Join(all, " ")
}

// TestClientPatience: how long a client waits, to the millisecond.
func TestClientPatience(t *testing.T) {
	for _, c := range []struct {
		name    string
		answers []string // to a routine, which is not repeated
		takes   time.Duration
		err     error
	}{
		{"nothing", nil, 550 * time.Millisecond, uds.ErrNoAnswer},
		{"just in time", []string{"7101FF00 in 549ms"}, 549 * time.Millisecond, nil},
		{"too late", []string{"7101FF00 in 551ms"}, 550 * time.Millisecond, uds.ErrNoAnswer},
		{"pending", []string{"7F3178 in 50ms", "7101FF00 in 5499ms"}, 5549 * time.Millisecond, nil},
		{"pending, then nothing", []string{"7F3178 in 50ms"}, 5550 * time.Millisecond, uds.ErrNoAnswer},
		{"pending, then no", []string{"7F3178", "7F3178 in 4s", "7F3172 in 4s"}, 8 * time.Second, uds.GeneralProgrammingFailure},
		{"pending for ever", slices.Repeat([]string{"7F3178 in 5s"}, 20), 65 * time.Second, uds.ResponsePending},
		{"of others", []string{"6101", "7101FF01", "7102FF00", "7F2211", "7F", "71", "7101FF00 in 10ms"}, 0, uds.ErrAnswer},
		{"of others, then ours", []string{"6101", "7101FF01", "7102FF00", "7F2211", "7F", "", "7101FF00 in 10ms"}, 10 * time.Millisecond, nil},
		{"half a refusal", []string{"7F31"}, 0, uds.ErrAnswer},
	} {
		t.Run(c.name, func(t *testing.T) {
			scripted(t, uds.ClientConfig{MaxPending: time.Minute}, func(n int, request string) []string {
				if c.name == "pending for ever" && n == 0 {
					return append([]string{"7F3178"}, c.answers...)
				}
				return c.answers
			}, func(t *testing.T, client *uds.Client, line *pipe) {
				start := time.Now()
				_, err := client.Routine(t.Context(), uds.StartRoutine, uds.EraseMemory, nil)
				if !errors.Is(err, c.err) {
					t.Errorf("got %v, want %v", err, c.err)
				}
				if got := time.Since(start); c.name != "pending for ever" && got != c.takes {
					t.Errorf("after %v, want %v", got, c.takes)
				}
				if got, want := len(line.log()), 1; got != want {
					t.Errorf("sent %d times, want %d", got, want)
				}
				time.Sleep(5 * time.Minute) // the script ends
			})
		})
	}
}

// TestClientTimes: the server's own times are used, once it has told them.
func TestClientTimes(t *testing.T) {
	scripted(t, uds.ClientConfig{KeepAlive: -1}, func(n int, request string) []string {
		if request == "1003" {
			return []string{"5003 03E8 07D0"}
		}
		return []string{"7F3178 in 1499ms", "7101FF00 in 20499ms"}
	}, func(t *testing.T, c *uds.Client, line *pipe) {
		if a, err := c.DiagnosticSession(t.Context(), uds.Extended); err != nil || a.P2 != time.Second || a.P2Star != 20*time.Second {
			t.Fatalf("got %+v, %v", a, err)
		}
		if _, err := c.Routine(t.Context(), uds.StartRoutine, uds.EraseMemory, nil); err != nil {
			t.Error(err)
		}
	})
}

// TestRepeats: what may be sent again is, with the same bytes, and what must not is not.
func TestRepeats(t *testing.T) {
	for _, c := range []struct {
		name  string
		times int
		ask   func(ctx context.Context, c *uds.Client) error
	}{
		{"session", 3, func(ctx context.Context, c *uds.Client) error {
			_, err := c.DiagnosticSession(ctx, uds.Extended)
			return err
		}},
		{"reset", 1, func(ctx context.Context, c *uds.Client) error { return c.Reset(ctx, uds.HardReset) }},
		{"present", 3, func(ctx context.Context, c *uds.Client) error { return c.TesterPresent(ctx) }},
		{"read", 3, func(ctx context.Context, c *uds.Client) error { _, err := c.ReadData(ctx, 0xF195); return err }},
		{"write", 1, func(ctx context.Context, c *uds.Client) error { return c.WriteData(ctx, 0xF195, []byte{1}) }},
		{"seed", 3, func(ctx context.Context, c *uds.Client) error { _, err := c.RequestSeed(ctx, 1, nil); return err }},
		{"key", 1, func(ctx context.Context, c *uds.Client) error { return c.SendKey(ctx, 1, []byte{1}) }},
		{"challenge", 3, func(ctx context.Context, c *uds.Client) error {
			_, err := c.Challenge(ctx, uds.Algorithm{})
			return err
		}},
		{"proof", 1, func(ctx context.Context, c *uds.Client) error { return c.Prove(ctx, uds.AuthenticationRequest{}) }},
		{"deauthenticate", 3, func(ctx context.Context, c *uds.Client) error { return c.Deauthenticate(ctx) }},
		{"communication", 3, func(ctx context.Context, c *uds.Client) error {
			return c.ControlCommunication(ctx, uds.CommunicationRequest{Type: 1})
		}},
		{"dtc", 3, func(ctx context.Context, c *uds.Client) error { return c.ControlDTC(ctx, uds.DTCRequest{Setting: 2}) }},
		{"routine", 1, func(ctx context.Context, c *uds.Client) error {
			_, err := c.Routine(ctx, uds.StartRoutine, 1, nil)
			return err
		}},
		{"results", 3, func(ctx context.Context, c *uds.Client) error {
			_, err := c.Routine(ctx, uds.RoutineResults, 1, nil)
			return err
		}},
		{"download", 1, func(ctx context.Context, c *uds.Client) error {
			_, err := c.RequestDownload(ctx, uds.DownloadRequest{})
			return err
		}},
		{"block", 3, func(ctx context.Context, c *uds.Client) error {
			_, err := c.TransferData(ctx, 7, []byte{1})
			return err
		}},
		{"exit", 1, func(ctx context.Context, c *uds.Client) error { _, err := c.TransferExit(ctx, nil); return err }},
		{"file", 1, func(ctx context.Context, c *uds.Client) error {
			_, err := c.RequestFile(ctx, uds.FileRequest{Mode: uds.DeleteFile, Name: "a"})
			return err
		}},
	} {
		nothing := func(int, string) []string { return nil }
		scripted(t, uds.ClientConfig{}, nothing, func(t *testing.T, client *uds.Client, line *pipe) {
			if err := c.ask(t.Context(), client); !errors.Is(err, uds.ErrNoAnswer) {
				t.Errorf("%s: got %v, want %v", c.name, err, uds.ErrNoAnswer)
			}
			log := line.log()
			if len(log) != c.times {
				t.Errorf("%s: sent %d times, want %d", c.name, len(log), c.times)
			}
			for _, pdu := range log {
				if !bytes.Equal(pdu, log[0]) {
					t.Errorf("%s: sent % X, and then % X", c.name, log[0], pdu)
				}
			}
		})
	}
}

// TestClientBusy: a busy server is asked again, after a pause, and not for ever.
func TestClientBusy(t *testing.T) {
	scripted(t, uds.ClientConfig{}, func(n int, request string) []string {
		if n < 3 {
			return []string{"7F3121"}
		}
		return []string{"7101FF00"}
	}, func(t *testing.T, c *uds.Client, line *pipe) {
		start := time.Now()
		if _, err := c.Routine(t.Context(), uds.StartRoutine, uds.EraseMemory, nil); err != nil {
			t.Error(err)
		}
		if got, want := time.Since(start), 750*time.Millisecond; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
	})
	// The answer to a request that the line has doubled comes in the pause.
	scripted(t, uds.ClientConfig{}, func(n int, request string) []string {
		return []string{"7F3121", "7101FF00 in 249ms"}
	}, func(t *testing.T, c *uds.Client, line *pipe) {
		if _, err := c.Routine(t.Context(), uds.StartRoutine, uds.EraseMemory, nil); err != nil {
			t.Error(err)
		}
		if got, want := len(line.log()), 1; got != want {
			t.Errorf("sent %d times, want %d", got, want)
		}
	})
	busy := func(int, string) []string { return []string{"7F3121"} }
	scripted(t, uds.ClientConfig{}, busy, func(t *testing.T, c *uds.Client, line *pipe) {
		_, err := c.Routine(t.Context(), uds.StartRoutine, uds.EraseMemory, nil)
		if !errors.Is(err, uds.BusyRepeatRequest) {
			t.Errorf("got %v", err)
		}
		if got, want := len(line.log()), 21; got != want {
			t.Errorf("sent %d times, want %d", got, want)
		}
	})
}

// TestLateAnswer: an answer that comes after the client gave up is not taken for that of
// the next request.
func TestLateAnswer(t *testing.T) {
	scripted(t, uds.ClientConfig{Repeats: -1}, func(n int, request string) []string {
		switch request {
		case "22F195":
			return []string{"62F19501 in 600ms"}
		case "22F18C":
			return []string{"62F18C02"}
		}
		return nil
	}, func(t *testing.T, c *uds.Client, line *pipe) {
		if _, err := c.ReadData(t.Context(), 0xF195); !errors.Is(err, uds.ErrNoAnswer) {
			t.Errorf("got %v, want %v", err, uds.ErrNoAnswer)
		}
		got, err := c.ReadData(t.Context(), 0xF18C)
		if want := []byte{2}; err != nil || !bytes.Equal(got, want) {
			t.Errorf("got % X, %v; want % X", got, err, want)
		}
	})
}

// TestQuiet: a request that wants no positive answer waits for a negative one only.
func TestQuiet(t *testing.T) {
	scripted(t, uds.ClientConfig{}, func(n int, request string) []string {
		if request == "1083" {
			return []string{"7F1022 in 10ms"}
		}
		return nil
	}, func(t *testing.T, c *uds.Client, line *pipe) {
		if answer, err := c.Request(t.Context(), unhex(t, "3E80")); answer != nil || err != nil {
			t.Errorf("got % X, %v; want nothing", answer, err)
		}
		if _, err := c.Request(t.Context(), unhex(t, "1083")); !errors.Is(err, uds.ConditionsNotCorrect) {
			t.Errorf("got %v, want %v", err, uds.ConditionsNotCorrect)
		}
		if _, err := c.Request(t.Context(), unhex(t, "5003")); !errors.Is(err, uds.ErrMessage) {
			t.Errorf("got %v, want %v", err, uds.ErrMessage)
		}
	})
}

// TestKeepAlive: a session is kept every 2 s, but not while a request runs, and not in
// the default session.
func TestKeepAlive(t *testing.T) {
	script := func(n int, request string) []string {
		switch request {
		case "1003":
			return []string{"5003 0032 01F4"}
		case "1001":
			return []string{"5001 0032 01F4"}
		case "3101FF00":
			return append(slices.Repeat([]string{"7F3178 in 4s"}, 5), "7101FF00 in 4s")
		}
		return nil
	}
	cfg := uds.ClientConfig{P2: 5 * time.Second}
	scripted(t, cfg, script, func(t *testing.T, c *uds.Client, line *pipe) {
		time.Sleep(time.Minute)
		if _, err := c.DiagnosticSession(t.Context(), uds.Extended); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5900 * time.Millisecond)
		if got, want := sent(line), "1003 3E80 3E80"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if _, err := c.Request(t.Context(), unhex(t, "3101FF00")); err == nil {
			t.Error("the first ResponsePending came after P2, and that was no error")
		}
		time.Sleep(time.Minute)
		if c.Session() != uds.Extended {
			t.Errorf("session: %v", c.Session())
		}
		if _, err := c.DiagnosticSession(t.Context(), uds.Default); err != nil {
			t.Fatal(err)
		}
		before := len(line.log())
		time.Sleep(time.Minute)
		if got := len(line.log()) - before; got != 0 {
			t.Errorf("%d messages in the default session", got)
		}
	})

	// With the real server: silence of the caller does not end the session, and nothing
	// is sent in the middle of a long request.
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &uds.Server{})
		x := b.join("F1")
		defer b.stop()
		c := uds.NewClient(x.conn, uds.ClientConfig{Functional: x.functional})
		defer c.Close()
		if _, err := c.DiagnosticSession(t.Context(), uds.Extended); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*time.Minute + time.Second)
		if b.d.endings() != nil {
			t.Errorf("ended: %v", b.d.endings())
		}
		if got, want := len(x.functional.log()), 300; got != want {
			t.Errorf("%d times there, want %d", got, want)
		}
		b.d.delay = func(string) time.Duration { return time.Minute }
		if _, err := c.Routine(t.Context(), uds.StartRoutine, uds.EraseMemory, nil); err != nil {
			t.Error(err)
		}
		if got, want := len(x.functional.log()), 300; got != want {
			t.Errorf("%d times there while a request ran, want none", got-want)
		}
		b.d.delay = nil
		if err := c.Reset(t.Context(), uds.HardReset); err != nil {
			t.Error(err)
		}
		if got, want := c.Session(), uds.Default; got != want {
			t.Errorf("session: got %v, want %v", got, want)
		}
	})
}

// TestClientEnds: whoever waits is told that the line, the client or the context ended.
func TestClientEnds(t *testing.T) {
	nothing := func(int, string) []string { return nil }
	for _, c := range []struct {
		name string
		end  func(c *uds.Client, line *pipe, cancel context.CancelFunc)
		want error
	}{
		{"line", func(c *uds.Client, line *pipe, _ context.CancelFunc) { line.Close() }, io.ErrClosedPipe},
		{"client", func(c *uds.Client, _ *pipe, _ context.CancelFunc) { c.Close() }, uds.ErrClosed},
		{"context", func(_ *uds.Client, _ *pipe, cancel context.CancelFunc) { cancel() }, context.Canceled},
	} {
		scripted(t, uds.ClientConfig{P2: time.Hour}, nothing, func(t *testing.T, client *uds.Client, line *pipe) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			time.AfterFunc(time.Second, func() { c.end(client, line, cancel) })
			if _, err := client.ReadData(ctx, 1); !errors.Is(err, c.want) {
				t.Errorf("%s: got %v, want %v", c.name, err, c.want)
			}
			if _, err := client.ReadData(ctx, 1); !errors.Is(err, c.want) {
				t.Errorf("%s: the next: got %v, want %v", c.name, err, c.want)
			}
		})
	}
}

// TestClientCalls: each call against the real server.
func TestClientCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &uds.Server{})
		x := b.join("F1")
		defer b.stop()
		c := uds.NewClient(x.conn, uds.ClientConfig{})
		defer c.Close()
		ctx := t.Context()
		check := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		_, err := c.DiagnosticSession(ctx, uds.Programming)
		check("session", err)
		records, err := c.ReadSeveral(ctx, func(uds.DID) int { return 5 }, 0, 0xF195)
		if check("read", err); len(records) != 1 || string(records[0].Data) != "1.2.3" {
			t.Errorf("read: got %v", records)
		}
		challenge, err := c.Challenge(ctx, uds.Algorithm{6, 3, 43, 101, 112})
		check("challenge", err)
		check("prove", c.Prove(ctx, uds.AuthenticationRequest{Algorithm: uds.Algorithm{6, 3, 43, 101, 112}, Proof: key(challenge)}))
		check("write", c.WriteData(ctx, 0xFD10, []byte{1}))
		check("communication", c.ControlCommunication(ctx, uds.CommunicationRequest{Control: 1, Type: 1}))
		check("dtc", c.ControlDTC(ctx, uds.DTCRequest{Setting: 2}))
		payload, err := c.RequestDownload(ctx, uds.DownloadRequest{Size: 4093})
		if check("download", err); payload != 4093 {
			t.Errorf("payload: got %d, want 4093", payload)
		}
		_, err = c.TransferData(ctx, 1, make([]byte, payload))
		check("block", err)
		_, err = c.TransferExit(ctx, nil)
		check("exit", err)
		a, err := c.RequestFile(ctx, uds.FileRequest{Mode: uds.ResumeFile, Name: "x", Size: 20, Compressed: 20})
		if check("file", err); a.Position != 10 {
			t.Errorf("position: got %d, want 10", a.Position)
		}
		check("deauthenticate", c.Deauthenticate(ctx))
		if err := c.WriteData(ctx, 0xFD10, []byte{1}); !errors.Is(err, uds.SecurityAccessDenied) {
			t.Errorf("got %v, want %v", err, uds.SecurityAccessDenied)
		}
		seed, err := c.RequestSeed(ctx, 3, nil)
		check("seed", err)
		check("key", c.SendKey(ctx, 3, key(seed)))
		check("present", c.TesterPresent(ctx))
		refusal, ok := errors.AsType[*uds.NegativeAnswer](c.WriteData(ctx, 1, []byte{1}))
		if want := (uds.NegativeAnswer{Service: uds.WriteDataByIdentifier, Code: uds.RequestOutOfRange}); !ok || *refusal != want {
			t.Errorf("got %v, want %v", refusal, want)
		}
	})
}
