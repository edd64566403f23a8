package uds_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// TestSilence: a session ends after S3, not before, and whatever the tester asks
// keeps it.
func TestSilence(t *testing.T) {
	const s3 = 5 * time.Second
	for _, c := range []struct {
		name  string
		keeps func(x *tester) // at 4,999 ms
	}{
		{"asked", func(x *tester) { x.must("22 F1 95", "62 F1 95 31 2E 32 2E 33") }},
		{"refused", func(x *tester) { x.must("14", "7F 14 11") }},
		{"present", func(x *tester) { x.tell("3E 80") }},
		{"present, to all", func(x *tester) { x.functional.Send(context.Background(), []byte{0x3E, 0x80}) }},
	} {
		run(t, &uds.Server{}, func(b *bench, x *tester) {
			session := func() string { return x.ask("22 FD 00")[6:8] }
			x.must("10 03", inExtended)
			for range 3 {
				time.Sleep(s3 - time.Millisecond)
				c.keeps(x)
				synctest.Wait()
			}
			if b.d.endings() != nil {
				t.Errorf("%s: the session ended: %v", c.name, b.d.endings())
			}
			time.Sleep(s3)
			synctest.Wait()
			if want := []uds.End{uds.EndTimeout}; !slices.Equal(b.d.endings(), want) {
				t.Errorf("%s: after S3: got %v, want %v", c.name, b.d.endings(), want)
			}
			if got, want := session(), "01"; got != want {
				t.Errorf("%s: session %s, want %s", c.name, got, want)
			}
		})
	}
	// Answers to nobody do not keep it, nor do those of other testers.
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		other := b.join("F2")
		x.must("10 03", inExtended)
		time.Sleep(s3 - time.Millisecond)
		x.tell("50 03")
		other.must("3E 00", "7E 00")
		other.must("10 01", inDefault)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if want := []uds.End{uds.EndTimeout}; !slices.Equal(b.d.endings(), want) {
			t.Errorf("got %v, want %v", b.d.endings(), want)
		}
	})
}

// TestSilenceWhileBusy: the time that the server needs is not the tester's silence, nor
// is a message that takes long to arrive.
func TestSilenceWhileBusy(t *testing.T) {
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		b.d.delay = func(string) time.Duration { return time.Minute }
		x.tell("31 01 FF 00")
		time.Sleep(time.Minute + 4999*time.Millisecond)
		synctest.Wait()
		if b.d.endings() != nil {
			t.Errorf("the session ended: %v", b.d.endings())
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if len(b.d.endings()) != 1 {
			t.Errorf("the session did not end")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		near, far := newPipe()
		b := newBench(t, &uds.Server{})
		ctx, cancel := context.WithCancel(t.Context())
		b.cancel = cancel
		b.done.Go(func() { b.server.Serve(ctx, uds.Tester{Conn: far}) })
		defer b.stop()
		x := &tester{t, near, nil}
		x.must("10 03", inExtended)
		far.receiving.Store(true)
		time.Sleep(20 * time.Second)
		if b.d.endings() != nil {
			t.Errorf("the session ended while a message was arriving: %v", b.d.endings())
		}
		far.receiving.Store(false)
		time.Sleep(60 * time.Millisecond)
		synctest.Wait()
		if len(b.d.endings()) != 1 {
			t.Errorf("the session did not end")
		}
	})
}

// TestPatience: the tester hears within P2, then within P2*, for as long as it takes.
func TestPatience(t *testing.T) {
	for _, c := range []struct {
		takes   time.Duration
		pending int
	}{
		{0, 0}, {24 * time.Millisecond, 0}, {26 * time.Millisecond, 1}, {4 * time.Second, 1},
		{4026 * time.Millisecond, 2}, {60 * time.Second, 15},
	} {
		run(t, &uds.Server{}, func(b *bench, x *tester) {
			b.d.delay = func(string) time.Duration { return c.takes }
			start := time.Now()
			x.tell("31 01 FF 00")
			patience := 50 * time.Millisecond
			for range c.pending {
				if got, want := x.within(patience-1), "7F3178"; got != want {
					t.Fatalf("%v: after %v: got %q, want %q", c.takes, time.Since(start), got, want)
				}
				patience = 5 * time.Second
			}
			if got, want := x.within(patience-1), "7101FF0000"; got != want {
				t.Errorf("%v: got %q, want %q", c.takes, got, want)
			}
			if got := time.Since(start); got != c.takes {
				t.Errorf("the answer came after %v, want %v", got, c.takes)
			}
			if got := x.within(time.Minute); got != "" {
				t.Errorf("%v: one answer more: %s", c.takes, got)
			}
		})
	}
}

// TestMaxRun: a handler that takes too long is told to stop, and so is the tester. What
// it did all the same counts.
func TestMaxRun(t *testing.T) {
	run(t, &uds.Server{MaxRun: 10 * time.Second}, func(b *bench, x *tester) {
		x.program()
		x.must("34 00 11 00 08", "74 20 0F FF")
		var stubborn time.Duration
		b.server.Handler.(*device).fail = func(what string) error { time.Sleep(stubborn); return nil }
		stubborn = 12 * time.Second
		x.tell("36 01 AA")
		for _, want := range []string{"7F3678", "7F3678", "7F3678", "7F3610"} {
			if got := x.within(5 * time.Second); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
		x.must("22 F1 95", "7F 22 21") // it still runs
		if got := x.within(4 * time.Second); got != "" {
			t.Errorf("one answer more: %s", got)
		}
		stubborn = 0
		x.must("36 01 AA", "76 01") // taken before, and not again
		if got := len(b.d.memory); got != 1 {
			t.Errorf("%d bytes were taken, want 1", got)
		}
	})
}

// TestBusy: one request at a time; the tester is told so, and nothing is kept for later.
func TestBusy(t *testing.T) {
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		other := b.join("F2")
		x.must("10 03", inExtended)
		b.d.delay = func(string) time.Duration { return time.Second }
		x.tell("31 01 FF 00")
		synctest.Wait()
		x.must("22 F1 95", "7F 22 21")
		x.tell("3E 80")
		other.must("22 F1 95", "7F 22 21")
		other.must("3E 00", "7E 00")
		if got, want := x.within(time.Second), "7F3178"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got, want := x.within(time.Second), "7101FF0000"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		b.d.delay = nil
		other.must("22 F1 95", "62 F1 95 31 2E 32 2E 33")
		if got, want := b.d.log(), []string{"enter extended session", "routine 1 FF00", "read F195"}; !slices.Equal(got, want) {
			t.Errorf("calls: got %q, want %q", got, want)
		}
	})
}

// TestTwoTesters: one holds a session; the other finds the default one.
func TestTwoTesters(t *testing.T) {
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		other := b.join("F2")
		x.program()
		x.must("34 00 11 00 08", "74 20 0F FF")
		other.must("10 02", "7F 10 22")
		other.must("10 03", "7F 10 22")
		other.must("22 FD 00", "62 FD 00 01 00")
		other.must("36 01 00", "7F 36 7F")
		other.must("37", "7F 37 7F")
		other.must("11 01", "7F 11 7F")
		other.must("10 01", inDefault) // its own, which it never left
		x.must("36 01 00 01 02 03 04 05 06 07", "76 01")
		x.must("37", "77")
		x.must("10 01", inDefault)
		other.must("10 02", inProgramming)
		x.must("10 03", "7F 10 22")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		x.must("10 03", inExtended)
		if got, want := b.d.endings(), []uds.End{uds.EndAsked, uds.EndTimeout}; !slices.Equal(got, want) {
			t.Errorf("ends: got %v, want %v", got, want)
		}
	})
}

// TestEnterRefused: a session that may not be entered leaves all as it was.
func TestEnterRefused(t *testing.T) {
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		other := b.join("F2")
		b.d.fail = func(string) error { return uds.ConditionsNotCorrect }
		x.must("10 02", "7F 10 22")
		b.d.fail = nil
		other.must("10 02", inProgramming) // nobody holds it
		b.d.fail = func(string) error { return uds.TemperatureTooHigh }
		other.must("10 03", "7F 10 86")
		b.d.fail = nil
		other.must("22 FD 00", "62 FD 00 02 00") // it stays as it was
		if b.d.endings() != nil {
			t.Errorf("ends: %v", b.d.endings())
		}
	})
}

// TestDelay: after too many wrong keys nobody may try for the delay, to the
// millisecond, then once; also after a restart.
func TestDelay(t *testing.T) {
	kept := &attempts{}
	wrong := func(x *tester, want string) {
		x.t.Helper()
		x.must("27 01", "67 01 01 02 03 01")
		x.must("27 02 00", want)
	}
	run(t, &uds.Server{Attempts: kept, S3: time.Hour}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		wrong(x, "7F 27 35")
		wrong(x, "7F 27 35")
		wrong(x, "7F 27 36")
		for range 2 {
			x.must("27 01", "7F 27 37")
			x.must("29 05 00"+strings.Repeat("00", 16), "7F 29 37") // no way round
			time.Sleep(9999 * time.Millisecond)
			x.must("27 01", "7F 27 37")
			time.Sleep(time.Millisecond)
			wrong(x, "7F 27 36") // one more
		}
	})
	if got, want := kept.n, 3; got != want {
		t.Errorf("kept: got %d, want %d", got, want)
	}
	run(t, &uds.Server{Attempts: kept, S3: time.Hour}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		x.must("27 01", "7F 27 37")
		time.Sleep(10 * time.Second)
		x.must("27 01", "67 01 01 02 03 01")
		x.must("27 02"+keyOf(1, 2, 3, 1), "67 02")
		if got, want := kept.n, 0; got != want {
			t.Errorf("kept after the right key: got %d, want %d", got, want)
		}
	})
}

// attempts is a fake disk for a number. It fails on demand.
type attempts struct {
	n          int
	load, save error
	saved      []int
}

func (a *attempts) Load() (int, error) { return a.n, a.load }
func (a *attempts) Save(n int) error {
	if a.save == nil {
		a.n = n
		a.saved = append(a.saved, n)
	}
	return a.save
}

// TestAttemptsFail: without a place to count, nobody is unlocked.
func TestAttemptsFail(t *testing.T) {
	broken := errors.New("the disk is broken")
	kept := &attempts{load: broken}
	run(t, &uds.Server{Attempts: kept}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		x.must("27 01", "7F 27 22")
		kept.load = nil
		x.must("27 01", "67 01 01 02 03 01")
		kept.save = broken
		x.must("27 02"+keyOf(1, 2, 3, 1), "7F 27 22")
		if slices.Contains(b.d.log(), "key 1") {
			t.Error("a key was checked that could not be counted")
		}
		kept.save = nil
		x.must("27 01", "67 01 01 02 03 01")
		x.must("27 02"+keyOf(1, 2, 3, 1), "67 02")
		if got, want := kept.saved, []int{1, 0}; !slices.Equal(got, want) {
			t.Errorf("saved: got %v, want %v", got, want)
		}
	})
}

// TestReset: the answer comes first; then the session ends, then the handler resets.
func TestReset(t *testing.T) {
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		b.d.delay = func(what string) time.Duration {
			if strings.HasPrefix(what, "reset") {
				return time.Second
			}
			return 0
		}
		x.must("11 01", "51 01")
		synctest.Wait()
		if got, want := b.d.endings(), []uds.End{uds.EndReset}; !slices.Equal(got, want) {
			t.Errorf("ends: got %v, want %v", got, want)
		}
		x.must("22 FD 00", "7F 22 21") // while it resets
		if got, want := b.d.log(), []string{"enter extended session", "prepare reset 1", "reset 1"}; !slices.Equal(got, want) {
			t.Errorf("calls: got %q, want %q", got, want)
		}
		if got := x.within(2 * time.Second); got != "" {
			t.Errorf("one answer more: %s", got)
		}
		x.must("22 FD 00", "62 FD 00 01 00")
		b.d.fail = func(string) error { return uds.ConditionsNotCorrect }
		x.must("10 03", "7F 10 22")
		b.d.fail = nil
		x.must("10 03", inExtended)
		b.d.fail = func(string) error { return uds.ConditionsNotCorrect }
		x.must("11 01", "7F 11 22")
		b.d.fail = nil
		if got, want := len(b.d.endings()), 1; got != want {
			t.Errorf("a refused reset ended the session")
		}
	})
}

// TestLineEnds: Serve says why it ended, and leaves nothing open, even in the middle of
// a request.
func TestLineEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &uds.Server{})
		near, far := newPipe()
		done := make(chan error, 1)
		go func() { done <- b.server.Serve(t.Context(), uds.Tester{Name: "F1", Conn: far}) }()
		x := &tester{t, near, nil}
		x.program()
		x.must("34 00 11 00 08", "74 20 0F FF")
		b.d.delay = func(string) time.Duration { return time.Hour }
		x.tell("36 01 00")
		synctest.Wait()
		near.Close()
		if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v, want %v", err, io.ErrClosedPipe)
		}
		if got, want := b.d.endings(), []uds.End{uds.EndLine}; !slices.Equal(got, want) {
			t.Errorf("ends: got %v, want %v", got, want)
		}
		b.cancel = func() {}
		b.stop()
		// The next tester finds the server as it should be.
		b.d.delay = nil
		y := b.join("F2")
		defer b.stop()
		y.program()
	})
}

// TestTroubleOnTheLine: errors of Receive that are not the end are survived.
func TestTroubleOnTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newPipe()
		b := newBench(t, &uds.Server{})
		b.cancel = func() {}
		ctx, cancel := context.WithCancel(t.Context())
		conn := &troubled{pipe: far, errs: 5}
		b.done.Go(func() { b.ends = append(b.ends, b.server.Serve(ctx, uds.Tester{Conn: conn})) })
		x := &tester{t, near, nil}
		time.Sleep(time.Second)
		x.must("3E 00", "7E 00")
		cancel()
		b.stop()
	})
}

// troubled is a line whose first calls of Receive err.
type troubled struct {
	*pipe
	errs int
}

func (c *troubled) Receive(ctx context.Context) ([]byte, error) {
	if c.errs > 0 {
		c.errs--
		return nil, errors.New("a frame is missing")
	}
	return c.pipe.Receive(ctx)
}
