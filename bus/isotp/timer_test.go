package isotp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// step is more than a timer allows.
const step = time.Millisecond

// TestFlowTimer is N_Bs: what comes just in time is in time, after the first frame, after
// a request to wait, and after a block.
func TestFlowTimer(t *testing.T) {
	for _, c := range []struct {
		name string
		flow []string // each as late as it may be
	}{
		{"first", []string{"7E8#300000"}},
		{"wait", []string{"7E8#310000", "7E8#310000", "7E8#300000"}},
		{"block", []string{"7E8#300100", "7E8#300100"}},
	} {
		for slow := -1; slow < len(c.flow); slow++ { // the one that is too late; -1: none
			synctest.Test(t, func(t *testing.T) {
				bus, peer := line()
				conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{})
				done := make(chan error, 1)
				go func() { done <- conn.Send(t.Context(), text2) }()
				for i, flow := range c.flow {
					time.Sleep(time.Second)
					if i == slow {
						time.Sleep(step)
					}
					peer.says(t, flow)
					synctest.Wait()
				}
				err := <-done
				if late := slow >= 0; late != errors.Is(err, ErrTimeout) || !late && err != nil {
					t.Errorf("%s, late %d: got %v", c.name, slow, err)
				}
				if err != nil && !strings.Contains(err.Error(), "within 1s (N_Bs)") {
					t.Errorf("got %q, want it to name N_Bs", err)
				}
				worksAfter(t, conn, peer)
			})
		}
	}
}

// worksAfter checks that the next PDU goes, both ways.
func worksAfter(t *testing.T, conn *Channel, peer *end) {
	t.Helper()
	synctest.Wait()
	for len(peer.in) > 0 {
		<-peer.in
	}
	done := make(chan error, 1)
	go func() { done <- conn.Send(t.Context(), text2) }()
	peer.hears(t, "7E0#1014303132333435")
	peer.says(t, "7E8#300000")
	peer.hears(t, "7E0#2136373839414243", "7E0#224445464748494A")
	if err := <-done; err != nil {
		t.Error(err)
	}
	peer.says(t, "7E8#1014303132333435")
	peer.hears(t, fmt.Sprintf("7E0#30%02X00CCCCCCCCCC", conn.rx.BlockSize))
	peer.says(t, "7E8#2136373839414243", "7E8#224445464748494A")
	gets(t, conn, text2)
}

// TestNextTimer is N_Cr: after our flow control, in the middle, and at the end of a block;
// and it gives the memory back.
func TestNextTimer(t *testing.T) {
	for slow := -1; slow < 3; slow++ {
		synctest.Test(t, func(t *testing.T) {
			bus, peer := line()
			conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{BlockSize: 2})
			peer.says(t, "7E8#101B303132333435")
			peer.hears(t, "7E0#300200CCCCCCCCCC")
			for i, frame := range []string{"7E8#2136373839414243", "7E8#224445464748494A", "7E8#2330313233343536"} {
				synctest.Wait()
				time.Sleep(time.Second)
				if i == slow {
					time.Sleep(step)
				}
				peer.says(t, frame)
			}
			synctest.Wait()
			if conn.Receiving() {
				t.Error("it still receives")
			}
			if slow < 0 {
				gets(t, conn, []byte(text+"0123456"))
			} else if _, err := conn.Receive(t.Context()); !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "of 27 bytes: no frame within 1s (N_Cr)") {
				t.Errorf("frame %d late: got %v, want N_Cr", slow, err)
			}
			worksAfter(t, conn, peer)
		})
	}
}

// TestNextTimerAlone: N_Cr ends a PDU of which nothing more ever comes, at its time.
func TestNextTimerAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus, peer := line()
		conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{NCr: 3 * time.Second})
		peer.says(t, "7E8#101B303132333435")
		peer.hears(t, "7E0#300000CCCCCCCCCC")
		synctest.Wait()
		if !conn.Receiving() {
			t.Error("it does not receive")
		}
		start := time.Now()
		_, err := conn.Receive(t.Context())
		if got := time.Since(start); !errors.Is(err, ErrTimeout) || got != 3*time.Second+1 {
			t.Errorf("got %v after %v, want N_Cr after 3s", err, got)
		}
		worksAfter(t, conn, peer)
	})
}

// TestLinkTimers are N_As and N_Ar: a link that takes a frame just in time, or too late.
func TestLinkTimers(t *testing.T) {
	for _, late := range []time.Duration{0, step} {
		synctest.Test(t, func(t *testing.T) {
			bus, peer := line()
			conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{})
			stick := func() {
				stuck := make(chan struct{})
				bus.behave(stuck, nil)
				time.AfterFunc(time.Second+late, func() {
					bus.behave(nil, nil)
					close(stuck)
				})
			}
			stick()
			err := conn.Send(t.Context(), text2[:2])
			if late == 0 && err != nil || late > 0 && (!errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "N_As")) {
				t.Errorf("N_As + %v: got %v", late, err)
			}
			time.Sleep(time.Second)
			stick()
			peer.says(t, "7E8#1008303132333435")
			time.Sleep(time.Second + late)
			synctest.Wait()
			if late == 0 {
				peer.says(t, "7E8#213637")
				gets(t, conn, text2[:8])
			} else if _, err := conn.Receive(t.Context()); !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "N_Ar") {
				t.Errorf("N_Ar + %v: got %v", late, err)
			}
			time.Sleep(time.Second)
			done := make(chan error, 1)
			go func() { done <- conn.Send(t.Context(), text2) }()
			synctest.Wait()
			stick() // in the middle
			peer.says(t, "7E8#300000")
			if err := <-done; late == 0 && err != nil || late > 0 && !errors.Is(err, ErrTimeout) {
				t.Errorf("N_As + %v in the middle: got %v", late, err)
			}
			time.Sleep(time.Second)
			worksAfter(t, conn, peer)
		})
	}
}

// TestUnexpectedFlow: flow control that nobody asked for changes nothing, whatever it says.
func TestUnexpectedFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus, peer := line()
		conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{})
		peer.says(t, "7E8#320000")
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- conn.Send(t.Context(), []byte(text+"0123456")) }()
		synctest.Wait()
		peer.says(t, "7E8#30020A", "7E8#30007F") // the first one counts
		peer.hears(t, "7E0#101B303132333435", "7E0#2136373839414243")
		peer.says(t, "7E8#320000", "7E8#3F0000")
		start := time.Now()
		peer.hears(t, "7E0#224445464748494A")
		if got := time.Since(start); got != 10*time.Millisecond+defaultFrame {
			t.Errorf("a pause of %v, want 10ms and the time of a frame", got)
		}
		peer.says(t, "7E8#300000")
		peer.hears(t, "7E0#2330313233343536")
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := conn.Stats().Stray; got != 4 {
			t.Errorf("got %d stray frames, want 4", got)
		}
	})
}

// TestLateAnswer: that our flow control could not be sent says nothing of a PDU that began
// meanwhile.
func TestLateAnswer(t *testing.T) {
	s, err := Config{}.settings()
	if err != nil {
		t.Fatal(err)
	}
	r, now := receiver{settings: s}, time.Now()
	say := func(frame string) {
		f, err := can.Parse(frame)
		if err != nil {
			t.Fatal(err)
		}
		p, ok := parse(&f, 0)
		if !ok {
			t.Fatal(frame)
		}
		r.frame(now, p)
	}
	say("7E0#1014303132333435")
	_, turn, _ := r.due()
	say("7E0#1014303132333435")
	if _, _, due := r.due(); !due {
		t.Fatal("no answer to the second one is due")
	}
	r.sent(now, turn, can.ErrDown)
	say("7E0#2136373839414243")
	say("7E0#224445464748494A")
	if one, ok := r.take(); !ok || !errors.Is(one.err, ErrReplaced) {
		t.Errorf("got %v, want %v", one.err, ErrReplaced)
	}
	if one, ok := r.take(); !ok || string(one.pdu) != text {
		t.Errorf("got %q, %v, want %q", one.pdu, one.err, text)
	}
}

// TestWaits: as many requests to wait as are accepted, in a row, and one more.
func TestWaits(t *testing.T) {
	for _, c := range []struct{ config, waits int }{{0, 16}, {0, 17}, {3, 3}, {3, 4}, {-1, 0}, {-1, 1}} {
		synctest.Test(t, func(t *testing.T) {
			bus, peer := line()
			conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{WFTmax: c.config})
			done := make(chan error, 1)
			go func() { done <- conn.Send(t.Context(), text2) }()
			for range 2 { // blocks of one; the count begins again
				for range c.waits {
					synctest.Wait()
					peer.says(t, "7E8#310000")
				}
				synctest.Wait()
				peer.says(t, "7E8#300100")
			}
			most := map[int]int{0: 16, 3: 3, -1: 0}[c.config]
			if err := <-done; c.waits > most != errors.Is(err, ErrWaits) || c.waits <= most && err != nil {
				t.Errorf("WFTmax %d, %d requests: got %v", c.config, c.waits, err)
			}
			worksAfter(t, conn, peer)
		})
	}
}

// TestFlowStatus: no room, and a status that there is none of.
func TestFlowStatus(t *testing.T) {
	for flow, want := range map[string]error{"7E8#320000": ErrOverflow, "7E8#330000": ErrFlow, "7E8#3F0000": ErrFlow} {
		synctest.Test(t, func(t *testing.T) {
			bus, peer := line()
			conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{})
			done := make(chan error, 1)
			go func() { done <- conn.Send(t.Context(), text2) }()
			synctest.Wait()
			peer.says(t, flow)
			if err := <-done; !errors.Is(err, want) {
				t.Errorf("%s: got %v, want %v", flow, err, want)
			}
			worksAfter(t, conn, peer)
		})
	}
}

// TestPause: the peer gets the pauses that it asks for, between frames and not before the
// first one; and no more frames per second than the configuration says.
func TestPause(t *testing.T) {
	for _, c := range []struct {
		stmin  string // and the block size, as sent
		config Config
		want   []time.Duration // between the frames, from the flow control on
	}{
		{"300000", Config{}, []time.Duration{0, 0, 0}},
		{"300001", Config{}, []time.Duration{0, 1270 * time.Microsecond, 1270 * time.Microsecond}},
		{"3000F3", Config{FrameTime: time.Millisecond}, []time.Duration{0, 1300 * time.Microsecond, 1300 * time.Microsecond}},
		{"300080", Config{FrameTime: 1}, []time.Duration{0, 127*time.Millisecond + 1, 127*time.Millisecond + 1}},
		{"300000", Config{FramesPerSecond: 100}, []time.Duration{10 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond}},
		{"300001", Config{FramesPerSecond: 100}, []time.Duration{10 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond}},
		{"300014", Config{FramesPerSecond: 100, FrameTime: 1}, []time.Duration{10 * time.Millisecond, 20*time.Millisecond + 1, 20*time.Millisecond + 1}},
	} {
		synctest.Test(t, func(t *testing.T) {
			bus, peer := line()
			conn := channel(t, bus, Normal(0x7E0, 0x7E8), c.config)
			done := make(chan error, 1)
			go func() { done <- conn.Send(t.Context(), []byte(text+"0123456")) }()
			peer.hears(t, "7E0#101B303132333435")
			peer.says(t, "7E8#"+c.stmin)
			last := time.Now()
			for i, frame := range []string{"7E0#2136373839414243", "7E0#224445464748494A", "7E0#2330313233343536"} {
				peer.hears(t, frame)
				if got := time.Since(last); got != c.want[i] {
					t.Errorf("%s, %d/s: frame %d after %v, want %v", c.stmin, c.config.FramesPerSecond, i, got, c.want[i])
				}
				last = time.Now()
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRoom: while nobody receives, a peer is asked to wait, and goes on once somebody
// does; if nobody does, it is given up.
func TestRoom(t *testing.T) {
	for _, patient := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			a, b := line()
			sender := channel(t, a, Normal(0x7E0, 0x7E8), Config{})
			conn := channel(t, b, Normal(0x7E8, 0x7E0), Config{MaxPDU: 100, WFTmax: 3})
			for i := range 2 {
				if err := sender.Send(t.Context(), pdu(100, i)); err != nil {
					t.Fatal(err)
				}
			}
			done := make(chan error, 1)
			go func() { done <- sender.Send(t.Context(), pdu(100, 2)) }()
			time.Sleep(1499 * time.Millisecond) // three requests, at 0, 500 and 1000 ms
			if patient {
				gets(t, conn, pdu(100, 0))
				synctest.Wait() // at once, not when the next request is due
				select {
				case err := <-done:
					if err != nil {
						t.Fatal(err)
					}
				default:
					t.Fatal("there is room, and the peer still waits")
				}
				for i := 1; i < 3; i++ {
					gets(t, conn, pdu(100, i))
				}
				return
			}
			if err := <-done; !errors.Is(err, ErrTimeout) {
				t.Errorf("the peer: got %v, want %v", err, ErrTimeout)
			}
			gets(t, conn, pdu(100, 0))
			gets(t, conn, pdu(100, 1))
			if _, err := conn.Receive(t.Context()); !errors.Is(err, ErrWaits) {
				t.Errorf("got %v, want %v", err, ErrWaits)
			}
			if err := sender.Send(t.Context(), pdu(100, 3)); err != nil {
				t.Fatal(err)
			}
			gets(t, conn, pdu(100, 3))
		})
	}
}

// TestNoRoom: one that does not ask to wait refuses at once, and single frames that nobody
// receives are dropped beyond 32.
func TestNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line()
		sender := channel(t, a, Normal(0x7E0, 0x7E8), Config{})
		conn := channel(t, b, Normal(0x7E8, 0x7E0), Config{WFTmax: -1})
		for i := range 40 {
			if err := sender.Send(t.Context(), pdu(7, i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := sender.Send(t.Context(), pdu(8, 0)); !errors.Is(err, ErrOverflow) {
			t.Errorf("got %v, want %v", err, ErrOverflow)
		}
		for i := range queueMost {
			gets(t, conn, pdu(7, i))
		}
		if s := conn.Stats(); s.Received != 32 || s.Refused != 9 {
			t.Errorf("got %+v, want 32 received and 9 refused", s)
		}
		if err := sender.Send(t.Context(), pdu(8, 0)); err != nil {
			t.Error(err)
		}
		gets(t, conn, pdu(8, 0))
	})
}

// TestContext: whoever gives up is told so at once, in each of the waits.
func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus, peer := line()
		conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{})
		try := func(flow string, do func(ctx context.Context) error) {
			t.Helper()
			ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("something else"))
			defer cancel()
			if flow != "" {
				time.AfterFunc(time.Millisecond, func() { peer.says(t, flow) })
			}
			start := time.Now()
			err := do(ctx)
			if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != 100*time.Millisecond {
				t.Errorf("got %v after %v", err, took)
			}
		}
		send := func(ctx context.Context) error { return conn.Send(ctx, text2) }
		try("", func(ctx context.Context) error { _, err := conn.Receive(ctx); return err })
		try("", send)                    // no flow control
		try("7E8#310000", send)          // waiting
		try("7E8#30007F", send)          // between frames
		go conn.Send(t.Context(), text2) // somebody else is sending
		try("", send)
		time.Sleep(time.Second)
		bus.behave(make(chan struct{}), nil) // the link takes nothing
		try("", send)
		burns := errors.New("the link burns")
		bus.behave(nil, burns)
		if err := conn.Send(t.Context(), text2); !errors.Is(err, burns) {
			t.Errorf("got %v, want %v", err, burns)
		}
		bus.behave(nil, nil)
		worksAfter(t, conn, peer)
	})
}

// TestLink: a link that is lost ends what is under way, says so to whoever asks, and
// afterwards everything works again.
func TestLink(t *testing.T) {
	for _, down := range []error{can.ErrDown, can.ErrBusOff} {
		synctest.Test(t, func(t *testing.T) {
			bus, peer := line()
			conn := channel(t, bus, Normal(0x7E0, 0x7E8), Config{})
			done := make(chan error, 1)
			go func() { done <- conn.Send(t.Context(), text2) }()
			peer.hears(t, "7E0#1014303132333435")
			peer.says(t, "7E8#1014303132333435")
			peer.hears(t, "7E0#300000CCCCCCCCCC")
			synctest.Wait()
			start := time.Now()
			bus.errs <- down
			if err := <-done; !errors.Is(err, down) || time.Since(start) != 0 {
				t.Errorf("Send: got %v after %v, want %v", err, time.Since(start), down)
			}
			if _, err := conn.Receive(t.Context()); !errors.Is(err, down) || conn.Receiving() {
				t.Errorf("Receive: got %v, want %v", err, down)
			}
			worksAfter(t, conn, peer)

			// It stays lost: Receive says so once a second and not more often.
			for range 5 {
				bus.errs <- down
			}
			synctest.Wait()
			for range 4 { // the second came with the first
				if _, err := conn.Receive(t.Context()); !errors.Is(err, down) {
					t.Errorf("Receive: got %v, want %v", err, down)
				}
			}
			if got := time.Since(start); got != 3*time.Second {
				t.Errorf("they took %v, want 3s", got)
			}
			worksAfter(t, conn, peer)

			// Nobody asked while it was lost: that is not told later.
			bus.errs <- down
			worksAfter(t, conn, peer)
		})
	}
}

// TestClose: whoever waits is told, and nobody is left.
func TestClose(t *testing.T) {
	closers := map[string]func(bus *end, m *Mux, c *Channel) error{
		"channel": func(_ *end, _ *Mux, c *Channel) error { return c.Close() },
		"mux":     func(_ *end, m *Mux, _ *Channel) error { return m.Close() },
		"bus":     func(b *end, _ *Mux, _ *Channel) error { return b.Close() },
	}
	for name, closer := range closers {
		synctest.Test(t, func(t *testing.T) {
			bus, peer := line()
			m := NewMux(bus)
			defer m.Close()
			conn, err := m.Open(Normal(0x7E0, 0x7E8), Config{})
			if err != nil {
				t.Fatal(err)
			}
			errs := make(chan error, 2)
			go func() { errs <- conn.Send(t.Context(), text2) }()
			go func() { _, err := conn.Receive(t.Context()); errs <- err }()
			synctest.Wait()
			if err := closer(bus, m, conn); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := <-errs; !errors.Is(err, can.ErrClosed) {
					t.Errorf("%s closed: got %v, want %v", name, err, can.ErrClosed)
				}
			}
			if err := conn.Send(t.Context(), text2); !errors.Is(err, can.ErrClosed) {
				t.Errorf("%s closed, Send: got %v, want %v", name, err, can.ErrClosed)
			}
			peer.says(t, "7E8#0131")
			synctest.Wait()
			if _, err := conn.Receive(t.Context()); !errors.Is(err, can.ErrClosed) {
				t.Errorf("%s closed, Receive: got %v, want %v", name, err, can.ErrClosed)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			again, err := m.Open(Normal(0x7E0, 0x7E8), Config{})
			if name != "channel" {
				if !errors.Is(err, can.ErrClosed) {
					t.Errorf("%s closed, Open: got %v, want %v", name, err, can.ErrClosed)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			worksAfter(t, again, peer)
		})
	}
}
