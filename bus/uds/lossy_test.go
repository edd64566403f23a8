package uds_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// A client that adapts waits as long as any, until a request had no answer; then as long as
// answers take, but never less than the server's own P2; and longer again if that is not enough.
func TestClientAdapts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newPipe()
		near.verdict = func([]byte) int { return 0 } // the server is this test
		c := uds.NewClient(near, uds.ClientConfig{Adapt: true, Repeats: -1})
		defer c.Close()
		ask := func(takes time.Duration) (error, time.Duration) { // negative: no answer
			began := time.Now()
			if takes >= 0 {
				time.AfterFunc(takes, func() { far.Send(context.Background(), unhex(t, "62F19501")) })
			}
			_, err := c.ReadData(t.Context(), 0xF195)
			return err, time.Since(began)
		}
		for range 50 {
			if err, _ := ask(4 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		if err, _ := ask(549 * time.Millisecond); err != nil {
			t.Errorf("nothing was lost yet: %v", err)
		}
		for range 50 {
			ask(4 * time.Millisecond)
		}
		var got []string
		for range 4 {
			err, took := ask(-1)
			if !errors.Is(err, uds.ErrNoAnswer) {
				t.Fatalf("got %v, want %v", err, uds.ErrNoAnswer)
			}
			got = append(got, took.String())
		}
		if want := "[550ms 80ms 110ms 110ms]"; fmt.Sprint(got) != want {
			t.Errorf("answers were waited for %v, want %v", got, want)
		}
		for tries := 1; ; tries++ {
			err, _ := ask(400 * time.Millisecond)
			if err == nil {
				break
			}
			if tries == 10 {
				t.Fatal("a server that takes 400 ms is not waited for")
			}
			time.Sleep(time.Second) // its answer comes to nobody
		}
	})
}

// Requests that do not get through do not keep a session: the server is told between them.
func TestPresentWhileNothingGetsThrough(t *testing.T) {
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		c := uds.NewClient(x.conn, uds.ClientConfig{})
		defer c.Close()
		if _, err := c.DiagnosticSession(context.Background(), uds.Extended); err != nil {
			t.Fatal(err)
		}
		x.conn.verdict = func(pdu []byte) int { // only long ones are lost
			if len(pdu) > 2 {
				return 0
			}
			return 1
		}
		for began := time.Now(); time.Since(began) < 20*time.Second; {
			if _, err := c.ReadData(context.Background(), 0xF195); !errors.Is(err, uds.ErrNoAnswer) {
				t.Fatalf("got %v, want %v", err, uds.ErrNoAnswer)
			}
		}
		if got := b.d.endings(); got != nil {
			t.Errorf("the session has ended: %v", got)
		}
	})
}

// stuckConn is a fake line that waits for the tester, as ISO-TP does in a long message, and gives up
// only with the context.
type stuckConn struct {
	*pipe
	stuck chan string // what waits
	ended chan error  // why it does not any more
}

func (s *stuckConn) Send(ctx context.Context, pdu []byte) error {
	if len(pdu) < 8 {
		return s.pipe.Send(ctx, pdu)
	}
	s.stuck <- fmt.Sprintf("%X", pdu)
	<-ctx.Done()
	s.ended <- ctx.Err()
	return ctx.Err()
}

// A tester that asks for something else does not wait for the long answer that is on its
// way; TesterPresent is no such request.
func TestSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newPipe()
		conn := &stuckConn{far, make(chan string, 10), make(chan error, 10)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- (&uds.Server{Handler: &device{}}).Serve(ctx, uds.Tester{Name: "F1", Conn: conn})
		}()
		x := &tester{t: t, conn: near}
		x.tell("22 F1 95") // answered with 8 bytes
		if got, want := <-conn.stuck, "62F195312E322E33"; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		x.tell("3E 80")
		x.tell("3E 00")
		x.tell("7E 00") // nor an answer of somebody else
		synctest.Wait()
		if len(conn.ended) != 0 {
			t.Error("TesterPresent ended the answer")
		}
		x.tell("22 F1 8C")
		if err := <-conn.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
		for _, want := range []string{"7E00", "62F18C534E2D31"} {
			if got := x.within(time.Second); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// counting is a fake that makes another seed and challenge each time.
type counting struct {
	*device
	n byte
}

func (c *counting) Seed(context.Context, uds.Call, byte, []byte) ([]byte, error) {
	c.n++
	return []byte{c.n, 7}, nil
}

func (c *counting) Challenge(context.Context, uds.Call, uds.Algorithm) ([]byte, error) {
	c.n++
	return []byte{c.n, 8}, nil
}

// The same seed is said again until a key has come for it, right or wrong, or the session
// has changed, or it is asked for otherwise; and so is a challenge.
func TestSeedAgain(t *testing.T) {
	other := strings.Repeat("00", 15)
	run(t, &uds.Server{Handler: &counting{device: &device{}}}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		for _, step := range [][2]string{
			{"27 01", "67 01 01 07"},
			{"27 01", "67 01 01 07"},
			{"27 01 55", "67 01 02 07"}, // another record
			{"27 01", "67 01 03 07"},
			{"27 03", "67 03 04 07"}, // another level
			{"27 03", "67 03 04 07"},
			{"27 02 00", "7F 27 24"},
			{"27 04 00", "7F 27 35"},
			{"27 03", "67 03 05 07"}, // a key came
			{"10 03", inExtended},
			{"27 03", "67 03 06 07"},
			{"29 05 00" + other + "01", "69 05 00" + other + "01 0002 07 08 0000"},
			{"29 05 00" + other + "01", "69 05 00" + other + "01 0002 07 08 0000"},
			{"29 05 00" + other + "02", "69 05 00" + other + "02 0002 08 08 0000"},
			{"29 06" + other + "02 0001 00 0000 0000", "7F 29 51"},
			{"29 05 00" + other + "02", "69 05 00" + other + "02 0002 09 08 0000"},
		} {
			x.must(step[0], step[1])
		}
	})
}

// halfwayConn is a fake line that gives a request up after a second, as ISO-TP does; meanwhile answers come.
type halfwayConn struct {
	*pipe
	far     *pipe
	answers [][]byte
}

func (h *halfwayConn) Send(ctx context.Context, pdu []byte) error {
	for _, a := range h.answers {
		if err := h.far.Send(ctx, a); err != nil {
			return err
		}
	}
	<-time.After(time.Second)
	return errors.New("no flow control within 1s")
}

// A block that is sent again is acknowledged by a late answer to the block before, which is the same,
// even if this time it does not get through. Other answers, and refusals, are none.
func TestAnswerWhileSending(t *testing.T) {
	for name, tt := range map[string]struct {
		answers [][]byte
		want    error
	}{
		"the answer":           {[][]byte{{0x7F, 0x36, 0x78}, {0x76, 0x11}}, nil},
		"of the block before":  {[][]byte{{0x76, 0x10}}, uds.ErrNoAnswer},
		"of something else":    {[][]byte{{0x62, 0xFD, 0x03, 0}}, uds.ErrNoAnswer},
		"a refusal":            {[][]byte{{0x7F, 0x36, 0x73}}, uds.ErrNoAnswer},
		"it asks for patience": {[][]byte{{0x7F, 0x36, 0x78}}, uds.ErrNoAnswer},
		"nothing":              {nil, uds.ErrNoAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := newPipe()
				c := uds.NewClient(&halfwayConn{near, far, tt.answers}, uds.ClientConfig{})
				defer c.Close()
				got, err := c.Request(t.Context(), []byte{0x36, 0x11, 1, 2, 3})
				if !errors.Is(err, tt.want) || err == nil && !slices.Equal(got, []byte{0x76, 0x11}) {
					t.Errorf("got % X, %v, want %v", got, err, tt.want)
				}
			})
		})
	}
}
