package modbus

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// listen serves on a socket of this machine until the test ends.
func listen(t testing.TB, server *Server, config *tls.Config) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := l
	if config != nil {
		served = tls.NewListener(l, config)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, served) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: got %v, want nil", err)
		}
	})
	return l
}

// pipes is a fake listener whose connections are pipes, so that time can be the test's.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	gone  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), gone: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.gone:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.gone) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

// served runs a test with a server whose clients are pipes.
func served(t *testing.T, server *Server, test func(t *testing.T, l *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- server.Serve(ctx, l) }()
		test(t, l)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: got %v, want nil", err)
		}
	})
}

func readFrame(conn net.Conn) ([]byte, error) {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(conn, header); err != nil {
		return nil, err
	}
	_, _, size, err := ParseTCP(header)
	if err != nil {
		return nil, err
	}
	pdu := make([]byte, size)
	_, err = io.ReadFull(conn, pdu)
	return append(header, pdu...), err
}

// ask sends FC 3 and says whether the right answer came.
func ask(conn net.Conn, transaction uint16) error {
	if _, err := conn.Write(AppendTCP(nil, transaction, 1, []byte{3, 0, 0, 0, 1})); err != nil {
		return err
	}
	got, err := readFrame(conn)
	if want := AppendTCP(nil, transaction, 1, []byte{3, 2, 0, 0}); err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("got % X, want % X", got, want)
	}
	return err
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	served(t, &Server{Handler: zeros{}}, func(t *testing.T, l *pipes) {
		conn := l.dial()
		defer conn.Close()
		const n = 200
		var stream []byte
		for i := range uint16(n) {
			stream = AppendTCP(stream, i, 1, []byte{3, 0, 0, 0, byte(1 + i%125)})
		}
		go func() { // in pieces that end anywhere
			for len(stream) > 0 {
				k := min(37, len(stream))
				conn.Write(stream[:k])
				stream = stream[k:]
			}
		}()
		for i := range uint16(n) {
			got, err := readFrame(conn)
			if err != nil || be.Uint16(got) != i || int(got[8]) != 2*int(1+i%125) {
				t.Fatalf("answer %d: got % X, %v", i, got, err)
			}
		}
	})
}

func TestAnswerDoesNotWaitForTheNextRequest(t *testing.T) {
	served(t, &Server{Handler: zeros{}}, func(t *testing.T, l *pipes) {
		conn := l.dial()
		defer conn.Close()
		request := AppendTCP(nil, 1, 1, []byte{3, 0, 0, 0, 1})
		go conn.Write(slices.Concat(request, request[:9]))
		begin := time.Now()
		if _, err := readFrame(conn); err != nil || time.Since(begin) > 0 {
			t.Errorf("the answer to a request with half of another after it came after %v, %v", time.Since(begin), err)
		}
	})
}

func TestWhatIsNotModbusIsHungUpOn(t *testing.T) {
	for name, sent := range map[string][]byte{
		"another protocol": {0, 1, 0, 1, 0, 6, 1, 3, 0, 0, 0, 1}, "length 0": {0, 1, 0, 0, 0, 0, 1}, "length 1": {0, 1, 0, 0, 0, 1, 1},
		"length 255": {0, 1, 0, 0, 0, 255, 1}, "HTTP": []byte("GET / HTTP/1.1\r\n\r\n"), "TLS": {22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			served(t, &Server{Handler: zeros{}}, func(t *testing.T, l *pipes) {
				conn := l.dial()
				go conn.Write(sent)
				if got, err := io.ReadAll(conn); len(got) > 0 || err != nil {
					t.Errorf("got % X, %v, want nothing and the end", got, err)
				}
			})
		})
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	served(t, &Server{Handler: zeros{}}, func(t *testing.T, l *pipes) {
		conn := l.dial()
		for range 3 {
			time.Sleep(50 * time.Second)
			if err := ask(conn, 1); err != nil {
				t.Fatalf("asking every 50 s: %v", err)
			}
		}
		begin := time.Now()
		var group sync.WaitGroup
		group.Go(func() { // bytes that become no request keep nothing alive
			for range 20 {
				time.Sleep(10*time.Second - time.Millisecond)
				conn.Write([]byte{0})
			}
		})
		if _, err := io.ReadAll(conn); err != nil || time.Since(begin) != time.Minute {
			t.Errorf("closed after %v, %v, want 1 min", time.Since(begin), err)
		}
		conn.Close()
		group.Wait()
	})
}

func TestSlowReaderIsCutOff(t *testing.T) {
	served(t, &Server{Handler: zeros{}}, func(t *testing.T, l *pipes) {
		conn := l.dial()
		begin := time.Now()
		request := AppendTCP(nil, 1, 1, []byte{3, 0, 0, 0, 125})
		for {
			if _, err := conn.Write(request); err != nil {
				break // and reads nothing
			}
		}
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("cut off after %v, want 5 s", took)
		}
	})
}

func TestMostConnections(t *testing.T) {
	served(t, &Server{Handler: zeros{}, MaxConnections: 3}, func(t *testing.T, l *pipes) {
		var conns []net.Conn
		for range 3 {
			conns = append(conns, l.dial())
		}
		closed := func(conn net.Conn) bool {
			conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			defer conn.SetReadDeadline(time.Time{})
			_, err := conn.Read(make([]byte, 1))
			return errors.Is(err, io.EOF)
		}
		if extra := l.dial(); !closed(extra) {
			t.Error("a fourth was let in while three were new")
		}
		time.Sleep(2 * time.Second)
		for i, conn := range conns[:2] {
			if err := ask(conn, uint16(i)); err != nil {
				t.Error(err)
			}
		}
		extra := l.dial()
		if err := ask(extra, 9); err != nil {
			t.Errorf("a fourth, with one silent for 2 s: %v", err)
		}
		if !closed(conns[2]) || closed(conns[0]) || closed(conns[1]) {
			t.Error("it took the place of another than the silent one")
		}
		for _, conn := range append(conns, extra) {
			conn.Close()
		}
		synctest.Wait()
		last := l.dial()
		if err := ask(last, 10); err != nil {
			t.Errorf("after all have gone: %v", err)
		}
		last.Close()
	})
}

// busy is a fake handler that waits until it may go on.
type busy struct{ going chan struct{} }

func (b *busy) ReadHolding(ctx context.Context, _ Call, _ uint16, _ []uint16) error {
	select {
	case <-b.going:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestNobodyWhoWaitsForAnAnswerMakesRoom(t *testing.T) {
	b := &busy{}
	served(t, &Server{Handler: b, MaxConnections: 1}, func(t *testing.T, l *pipes) {
		b.going = make(chan struct{})
		conn := l.dial()
		defer conn.Close()
		answered := make(chan error)
		go func() { answered <- ask(conn, 1) }()
		time.Sleep(time.Hour)
		if err := ask(l.dial(), 2); err == nil {
			t.Error("another took the place")
		}
		b.going <- struct{}{}
		if err := <-answered; err != nil {
			t.Error(err)
		}
	})
}

func TestEndOfContextEndsHandlers(t *testing.T) {
	served(t, &Server{Handler: &busy{}}, func(t *testing.T, l *pipes) {
		conn := l.dial()
		go conn.Write(AppendTCP(nil, 1, 1, []byte{3, 0, 0, 0, 1}))
		synctest.Wait()
	}) // which waits for Serve
}

// mini is a fake handler with one ability, and an error of the test's.
type mini struct{ err error }

func (m mini) ReadInput(context.Context, Call, uint16, []uint16) error { return m.err }

func TestWhatTheHandlerLacksIsExceptionOne(t *testing.T) {
	for _, v := range spec {
		request := hexed(t, v.request)
		got := (&Server{Handler: mini{}}).answer(t.Context(), Call{}, request, new(scratch))
		want := []byte{request[0] | 0x80, 1}
		if request[0] == 4 {
			want = []byte{4, 2, 0, 0}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got % X, want % X", v.name, got, want)
		}
	}
	if err := (&Server{Handler: struct{}{}}).Serve(t.Context(), newPipes()); err == nil {
		t.Error("a handler that implements nothing: got nil")
	}
	if err := (&Server{}).ServeRTU(t.Context(), nil, 1); err == nil {
		t.Error("no handler: got nil")
	}
	if err := (&Server{Handler: mini{}}).ServeRTU(t.Context(), nil); err == nil {
		t.Error("no unit: got nil")
	}
}

func TestErrorsOfTheHandler(t *testing.T) {
	for err, want := range map[error]byte{
		nil: 0, DeviceBusy: 6, Acknowledge: 5, errors.New("disk on fire"): 4, Exception(0): 4, context.Canceled: 4,
	} {
		for _, err := range []error{err, fmt.Errorf("store block: %w", err)} {
			if errors.Unwrap(err) == nil && want == 0 && err != nil {
				continue // "%w" of nil
			}
			answer := (&Server{Handler: mini{err}}).answer(t.Context(), Call{}, []byte{4, 0, 0, 0, 1}, new(scratch))
			if want == 0 && answer[0] != 4 || want != 0 && !bytes.Equal(answer, []byte{0x84, want}) {
				t.Errorf("%v: got % X, want exception %d", err, answer, want)
			}
		}
	}
}

// TestNothingOfOneAnswerIsInTheNext: a handler that fills less than it was asked for
// answers zeros, not what somebody else has read before.
func TestNothingOfOneAnswerIsInTheNext(t *testing.T) {
	room := new(scratch)
	m := new(Memory)
	m.SetInput(1, 0, 0xDEAD, 0xBEEF)
	m.SetCoils(1, 0, true, true)
	(&Server{Handler: m}).answer(t.Context(), Call{Unit: 1}, []byte{4, 0, 0, 0, 2}, room)
	(&Server{Handler: m}).answer(t.Context(), Call{Unit: 1}, []byte{1, 0, 0, 0, 2}, room)
	if got, want := (&Server{Handler: mini{}}).answer(t.Context(), Call{}, []byte{4, 0, 0, 0, 2}, room), []byte{4, 4, 0, 0, 0, 0}; !bytes.Equal(got, want) {
		t.Errorf("got % X, want % X", got, want)
	}
}

func TestQueueLongerThanAnAnswer(t *testing.T) {
	m := new(Memory)
	m.SetFIFO(1, 0, make([]uint16, 32)...)
	if got, want := (&Server{Handler: m}).answer(t.Context(), Call{Unit: 1}, []byte{24, 0, 0}, new(scratch)), []byte{0x98, 3}; !bytes.Equal(got, want) {
		t.Errorf("got % X, want % X", got, want)
	}
}

func TestAuthorize(t *testing.T) {
	m := new(Memory)
	m.SetHolding(1, 0, 5)
	server := &Server{Handler: m, Authorize: func(c Call) bool { return !c.Function.Writes() || c.Role == "Installer" }}
	for _, c := range []struct {
		call Call
		pdu  []byte
		want []byte
	}{
		{Call{Unit: 1}, []byte{3, 0, 0, 0, 1}, []byte{3, 2, 0, 5}},
		{Call{Unit: 1}, []byte{6, 0, 0, 0, 1}, []byte{0x86, 1}},
		{Call{Unit: 1, Role: "Viewer"}, []byte{6, 0, 0, 0, 1}, []byte{0x86, 1}},
		{Call{Unit: 1, Role: "Installer"}, []byte{6, 0, 0, 0, 1}, []byte{6, 0, 0, 0, 1}},
	} {
		before := m.Holding(1, 0, 1)[0]
		if got := server.answer(t.Context(), c.call, c.pdu, new(scratch)); !bytes.Equal(got, c.want) {
			t.Errorf("role %q, FC %d: got % X, want % X", c.call.Role, c.pdu[0], got, c.want)
		}
		if after := m.Holding(1, 0, 1)[0]; c.want[0]&0x80 != 0 && after != before {
			t.Errorf("role %q: refused and done", c.call.Role)
		}
	}
}

func TestMemoryHooks(t *testing.T) {
	m := new(Memory)
	m.SetHolding(1, 0, 1, 2)
	reads := uint16(0)
	m.OnRead = func(_ context.Context, c Call, address uint16, count int) error {
		reads++
		m.SetHolding(c.Unit, 0, reads)
		return nil
	}
	m.OnWrite = func(_ context.Context, _ Call, _ uint16, values []uint16) error {
		if values[0] > 100 {
			return IllegalValue
		}
		return nil
	}
	c, _ := loopback(t, &Server{Handler: m}, Config{})
	got, err := c.ReadHolding(t.Context(), 1, 0, 2)
	wantRegisters(t, "read", got, err, 1, 2)
	got, err = c.ReadHolding(t.Context(), 1, 0, 2)
	wantRegisters(t, "read again", got, err, 2, 2)
	if err := c.WriteRegister(t.Context(), 1, 1, 101); !errors.Is(err, IllegalValue) {
		t.Errorf("got %v, want %v", err, IllegalValue)
	}
	if err := c.MaskWrite(t.Context(), 1, 1, 0, 101); !errors.Is(err, IllegalValue) {
		t.Errorf("mask: got %v, want %v", err, IllegalValue)
	}
	if err := c.WriteRegister(t.Context(), 1, 1, 100); err != nil || m.Holding(1, 1, 1)[0] != 100 {
		t.Errorf("got %v, %d", err, m.Holding(1, 1, 1)[0])
	}
}
