package modbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// asked is a request that a fake server got.
type asked struct {
	transaction uint16
	unit        byte
	pdu         []byte
	request     Request
}

// fakeServer is a fake that a test writes by hand: it reads requests and gives them to
// the test, which sends what it likes.
type fakeServer struct {
	conn net.Conn
	got  chan asked
	gone chan struct{}
}

func newFakeServer() (*fakeServer, net.Conn) {
	ours, theirs := net.Pipe()
	f := &fakeServer{conn: theirs, got: make(chan asked, 100), gone: make(chan struct{})}
	go func() {
		defer close(f.gone)
		for {
			header := make([]byte, headerSize)
			if _, err := io.ReadFull(theirs, header); err != nil {
				return
			}
			transaction, unit, size, err := ParseTCP(header)
			if err != nil {
				return
			}
			pdu := make([]byte, size)
			if _, err := io.ReadFull(theirs, pdu); err != nil {
				return
			}
			request, _ := ParseRequest(pdu)
			f.got <- asked{transaction, unit, pdu, request}
		}
	}()
	return f, ours
}

func (f *fakeServer) close() {
	f.conn.Close()
	<-f.gone
}

// answer sends registers that hold their addresses.
func (f *fakeServer) answer(a asked) {
	values := make([]uint16, a.request.Count)
	for i := range values {
		values[i] = a.request.Address + uint16(i)
	}
	f.send(a.transaction, a.unit, AppendRegisters(nil, a.request.Function, values))
}

func (f *fakeServer) send(transaction uint16, unit byte, pdu []byte) {
	f.conn.Write(AppendTCP(nil, transaction, unit, pdu))
}

// withServer runs a test with a client and the fake server of its one connection.
func withServer(t *testing.T, config Config, test func(t *testing.T, c *Client, f *fakeServer)) {
	synctest.Test(t, func(t *testing.T) {
		f, conn := newFakeServer()
		c := NewTCP(conn, config)
		defer f.close()
		defer c.Close()
		test(t, c, f)
	})
}

// TestAnswersInAnyOrder has many callers and a server that answers the requests in
// flight shuffled: each gets its own.
func TestAnswersInAnyOrder(t *testing.T) {
	withServer(t, Config{Window: 16}, func(t *testing.T, c *Client, f *fakeServer) {
		const callers, each = 16, 50
		most := 0
		ended := make(chan struct{})
		go func() {
			random := rand.New(rand.NewPCG(1, 2))
			for {
				synctest.Wait() // everybody has asked
				n := len(f.got)
				most = max(most, n)
				requests := make([]asked, n)
				for i := range requests {
					requests[i] = <-f.got
				}
				random.Shuffle(n, func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
				for _, r := range requests {
					f.answer(r)
				}
				select {
				case <-ended:
					return
				case <-time.After(time.Millisecond):
				}
			}
		}()
		var group sync.WaitGroup
		for caller := range callers {
			group.Go(func() {
				for i := range each {
					address := uint16(caller*1000 + i)
					got, err := c.ReadHolding(t.Context(), byte(caller), address, 2)
					wantRegisters(t, "read", got, err, address, address+1)
				}
			})
		}
		group.Wait()
		close(ended)
		if most != callers {
			t.Errorf("at most %d were in flight, want %d", most, callers)
		}
	})
}

func TestWindow(t *testing.T) {
	withServer(t, Config{Window: 3}, func(t *testing.T, c *Client, f *fakeServer) {
		var group sync.WaitGroup
		for i := range 10 {
			group.Go(func() {
				got, err := c.ReadHolding(t.Context(), 1, uint16(i), 1)
				wantRegisters(t, "read", got, err, uint16(i))
			})
		}
		for range 10 {
			synctest.Wait()
			if got := len(f.got); got > 3 {
				t.Fatalf("%d in flight, want at most 3", got)
			}
			f.answer(<-f.got)
		}
		group.Wait()
	})
}

// TestLateAndForeignAnswers: what nobody waits for any more, and what nobody asked, is
// dropped; the number decides.
func TestLateAndForeignAnswers(t *testing.T) {
	withServer(t, Config{Retries: -1}, func(t *testing.T, c *Client, f *fakeServer) {
		go func() {
			first := <-f.got // no answer in time
			second := <-f.got
			f.answer(first)
			f.send(second.transaction+1, 1, AppendRegisters(nil, ReadHolding, []uint16{0xBAD}))
			f.send(0xFFFF, 1, AppendRegisters(nil, ReadHolding, []uint16{0xBAD}))
			f.answer(second)
			f.answer(second) // twice
		}()
		if got, err := c.ReadHolding(t.Context(), 1, 5, 1); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("got %v, %v, want %v", got, err, ErrNoAnswer)
		}
		got, err := c.ReadHolding(t.Context(), 1, 6, 1)
		wantRegisters(t, "the next", got, err, 6)
		go func() { f.answer(<-f.got) }()
		got, err = c.ReadHolding(t.Context(), 1, 7, 1)
		wantRegisters(t, "and the next", got, err, 7)
	})
}

// TestAnswerAtTheLastMoment: an answer that comes just when its call gives up is that
// call's, or nobody's, and never the next one's.
func TestAnswerAtTheLastMoment(t *testing.T) {
	withServer(t, Config{Retries: -1}, func(t *testing.T, c *Client, f *fakeServer) {
		const calls = 2000
		var group sync.WaitGroup
		group.Go(func() {
			for range calls {
				a := <-f.got
				time.Sleep(time.Second)
				f.answer(a)
			}
		})
		answered := 0
		for i := range uint16(calls) {
			got, err := c.ReadHolding(t.Context(), 1, i, 1)
			if err == nil {
				answered++
				wantRegisters(t, "read", got, err, i)
			} else if !errors.Is(err, ErrNoAnswer) {
				t.Fatalf("call %d: got %v, want %v", i, err, ErrNoAnswer)
			}
		}
		group.Wait()
		t.Logf("%d of %d were answered in time", answered, calls)
	})
}

func TestAnswersThatDoNotFit(t *testing.T) {
	for name, answer := range map[string]func(f *fakeServer, a asked){
		"another unit": func(f *fakeServer, a asked) {
			f.send(a.transaction, a.unit+1, AppendRegisters(nil, ReadHolding, []uint16{1}))
		},
		"another function": func(f *fakeServer, a asked) {
			f.send(a.transaction, a.unit, AppendRegisters(nil, ReadInput, []uint16{1}))
		},
		"another count": func(f *fakeServer, a asked) {
			f.send(a.transaction, a.unit, AppendRegisters(nil, ReadHolding, []uint16{1, 2}))
		},
		"one byte":         func(f *fakeServer, a asked) { f.send(a.transaction, a.unit, []byte{3}) },
		"another protocol": func(f *fakeServer, a asked) { f.conn.Write([]byte{0, 1, 0, 1, 0, 5, 1, 3, 2, 0, 0}) },
		"length 1":         func(f *fakeServer, a asked) { f.conn.Write([]byte{0, 1, 0, 0, 0, 1, 1}) },
		"length 255":       func(f *fakeServer, a asked) { f.conn.Write([]byte{0, 1, 0, 0, 0, 255, 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			withServer(t, Config{Retries: -1}, func(t *testing.T, c *Client, f *fakeServer) {
				go func() { answer(f, <-f.got) }()
				if got, err := c.ReadHolding(t.Context(), 1, 5, 1); got != nil || !errors.Is(err, ErrAnswer) {
					t.Errorf("got %v, %v, want %v", got, err, ErrAnswer)
				}
			})
		})
	}
}

// TestLostAnswers: reads are asked again under another number, writes are not.
func TestLostAnswers(t *testing.T) {
	withServer(t, Config{}, func(t *testing.T, c *Client, f *fakeServer) {
		go func() {
			one, two, three := <-f.got, <-f.got, <-f.got
			if one.transaction == two.transaction || two.transaction == three.transaction {
				t.Errorf("asked again as %d, %d, %d, want three numbers", one.transaction, two.transaction, three.transaction)
			}
			f.answer(three)
		}()
		begin := time.Now()
		got, err := c.ReadHolding(t.Context(), 1, 5, 1)
		wantRegisters(t, "read", got, err, 5)
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("took %v, want 2 s", took)
		}
		begin = time.Now()
		if err := c.WriteRegisters(t.Context(), 1, 5, []uint16{1}); !errors.Is(err, ErrNoAnswer) || time.Since(begin) != time.Second {
			t.Errorf("write: got %v after %v, want %v after 1 s", err, time.Since(begin), ErrNoAnswer)
		}
		if len(f.got) != 1 {
			t.Errorf("the write was sent %d times, want once", len(f.got))
		}
	})
}

func TestCancelOnTCP(t *testing.T) {
	for name, reads := range map[string]bool{"no answer": true, "a server that reads nothing": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				defer theirs.Close()
				if reads {
					go io.Copy(io.Discard, theirs)
				}
				c := NewTCP(ours, Config{Window: 2, Timeout: time.Hour})
				defer c.Close()
				ctx, cancel := context.WithCancel(t.Context())
				begin := time.Now()
				var group sync.WaitGroup
				for range 10 {
					group.Go(func() {
						if _, err := c.ReadHolding(ctx, 1, 0, 1); !errors.Is(err, context.Canceled) {
							t.Errorf("got %v, want %v", err, context.Canceled)
						}
					})
				}
				time.Sleep(time.Minute)
				cancel()
				group.Wait()
				if took := time.Since(begin); took != time.Minute {
					t.Errorf("took %v, want 1 min", took)
				}
			})
		})
	}
}

func TestCloseEndsCalls(t *testing.T) {
	withServer(t, Config{Timeout: time.Hour}, func(t *testing.T, c *Client, f *fakeServer) {
		ended := make(chan error)
		go func() { ended <- c.WriteRegister(t.Context(), 1, 0, 1) }()
		<-f.got
		c.Close()
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want %v", err, ErrClosed)
		}
		if err := c.WriteRegister(t.Context(), 1, 0, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("afterwards: got %v, want %v", err, ErrClosed)
		}
	})
}

// TestConnectionIsMadeAgain: a connection that broke is noticed, and a write that was not
// sent on it is sent on the next one; one that may have been sent is not repeated.
func TestConnectionIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var servers []*fakeServer
		var writes atomic.Int32
		c := NewTCP(nil, Config{Redial: func(context.Context) (io.ReadWriteCloser, error) {
			f, conn := newFakeServer()
			servers = append(servers, f)
			go func() {
				for {
					select {
					case a := <-f.got:
						if a.request.Function == WriteRegister {
							writes.Add(1)
							f.conn.Close() // done, and gone before the answer
							return
						}
						f.answer(a)
					case <-f.gone:
						return
					}
				}
			}()
			return conn, nil
		}})
		defer c.Close()
		got, err := c.ReadHolding(t.Context(), 1, 5, 1)
		wantRegisters(t, "first", got, err, 5)
		servers[0].conn.Close() // the server's idle timeout
		synctest.Wait()
		if err := c.WriteRegister(t.Context(), 1, 0, 1); err == nil || errors.Is(err, ErrNoAnswer) {
			t.Errorf("write that broke the connection: got %v", err)
		}
		if writes.Load() != 1 || len(servers) != 2 {
			t.Errorf("got %d writes on %d connections, want 1 on the second", writes.Load(), len(servers))
		}
		got, err = c.ReadHolding(t.Context(), 1, 6, 1)
		wantRegisters(t, "after it", got, err, 6)
	})
}

// TestDeadPeer: a peer that lost its power closes nothing. After a call that got nothing
// at all, the next one gets a new connection.
func TestDeadPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dialled := 0
		c := NewTCP(nil, Config{Redial: func(context.Context) (io.ReadWriteCloser, error) {
			dialled++
			f, conn := newFakeServer()
			alive := dialled > 1
			go func() {
				for {
					select {
					case a := <-f.got:
						if alive {
							f.answer(a)
						}
					case <-f.gone:
						return
					}
				}
			}()
			return conn, nil
		}})
		defer c.Close()
		if _, err := c.ReadHolding(t.Context(), 1, 5, 1); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("got %v, want %v", err, ErrNoAnswer)
		}
		got, err := c.ReadHolding(t.Context(), 1, 6, 1)
		wantRegisters(t, "the next", got, err, 6)
		if dialled != 2 {
			t.Errorf("dialled %d times, want 2", dialled)
		}
	})
}

func TestNoWayToTheServer(t *testing.T) {
	refused := errors.New("connection refused")
	tries := 0
	c := NewTCP(nil, Config{Redial: func(context.Context) (io.ReadWriteCloser, error) { tries++; return nil, refused }})
	if _, err := c.ReadHolding(t.Context(), 1, 0, 1); !errors.Is(err, refused) || tries != 1 {
		t.Errorf("got %v after %d tries, want %v after 1", err, tries, refused)
	}
	if _, err := NewTCP(nil, Config{}).ReadHolding(t.Context(), 1, 0, 1); err == nil {
		t.Error("without a connection and a way to make one: got nil")
	}
	if _, err := Dial(t.Context(), "127.0.0.1:1", Config{}); err == nil {
		t.Error("Dial of a closed port: got nil")
	}
}

// TestEveryMethod asks a server everything, over TCP and over a line.
func TestEveryMethod(t *testing.T) {
	for _, transport := range []Transport{TCP, RTU} {
		t.Run(string(transport), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := new(Memory)
				server := &Server{Handler: m}
				ctx, cancel := context.WithCancel(t.Context())
				ours, theirs := net.Pipe()
				served := make(chan struct{})
				var c *Client
				go func() {
					defer close(served)
					if transport == RTU {
						server.ServeRTU(ctx, theirs, 7)
						return
					}
					server.serveTCP(ctx, &client{conn: theirs})
				}()
				if transport == RTU {
					c = NewRTU(ours, Config{Baud: 19200})
				} else {
					c = NewTCP(ours, Config{})
				}
				everything(t, ctx, c, m)
				c.Close()
				cancel()
				theirs.Close()
				<-served
			})
		})
	}
}

// everything uses each method of a client of unit 7 of a server with this memory, at its
// limit where it has one.
func everything(t *testing.T, ctx context.Context, c *Client, m *Memory) {
	ramp := func(n, from int) []uint16 {
		values := make([]uint16, n)
		for i := range values {
			values[i] = uint16(from + i)
		}
		return values
	}
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	pattern := make([]bool, 2000)
	for i := range pattern {
		pattern[i] = i%3 == 0 || i%7 == 0
	}
	m.SetCoils(7, 100, pattern...)
	m.SetDiscreteInputs(7, 200, pattern...)
	m.SetHolding(7, 300, ramp(300, 1)...)
	m.SetInput(7, 400, ramp(125, 9000)...)
	m.SetFIFO(7, 500, ramp(31, 70)...)

	gotBits, err := c.ReadCoils(ctx, 7, 100, 2000)
	if err != nil || !slices.Equal(gotBits, pattern) {
		t.Errorf("ReadCoils: %v", err)
	}
	gotBits, err = c.ReadDiscreteInputs(ctx, 7, 201, 1999)
	if err != nil || !slices.Equal(gotBits, pattern[1:]) {
		t.Errorf("ReadDiscreteInputs: %v", err)
	}
	got, err := c.ReadHolding(ctx, 7, 300, 125)
	wantRegisters(t, "ReadHolding", got, err, ramp(125, 1)...)
	got, err = c.Unit(7).ReadHolding(ctx, 301, 3)
	wantRegisters(t, "Unit.ReadHolding", got, err, 2, 3, 4)
	got, err = c.ReadInput(ctx, 7, 400, 125)
	wantRegisters(t, "ReadInput", got, err, ramp(125, 9000)...)
	got, err = c.Unit(7).ReadInput(ctx, 400, 1)
	wantRegisters(t, "Unit.ReadInput", got, err, 9000)
	into := make([]uint16, 2)
	check("ReadHoldingInto", c.ReadHoldingInto(ctx, 7, 302, into))
	wantRegisters(t, "ReadHoldingInto", into, nil, 3, 4)
	check("ReadInputInto", c.ReadInputInto(ctx, 7, 401, into))
	wantRegisters(t, "ReadInputInto", into, nil, 9001, 9002)

	check("WriteCoil", c.WriteCoil(ctx, 7, 101, true))
	check("WriteCoils", c.WriteCoils(ctx, 7, 102, slices.Repeat([]bool{true}, 1968)))
	if coils := m.Coils(7, 101, 1970); slices.Contains(coils[:1969], false) {
		t.Error("WriteCoils: not all are on")
	}
	check("WriteRegister", c.WriteRegister(ctx, 7, 300, 0xABCD))
	check("Unit.WriteRegister", c.Unit(7).WriteRegister(ctx, 301, 0xBCDE))
	check("WriteRegisters", c.WriteRegisters(ctx, 7, 302, ramp(123, 5000)))
	check("Unit.WriteRegisters", c.Unit(7).WriteRegisters(ctx, 425, []uint16{1, 2}))
	wantRegisters(t, "what was written", m.Holding(7, 300, 127), nil, slices.Concat([]uint16{0xABCD, 0xBCDE}, ramp(123, 5000), []uint16{1, 2})...)
	check("MaskWrite", c.MaskWrite(ctx, 7, 300, 0x00FF, 0x1200))
	wantRegisters(t, "what was masked", m.Holding(7, 300, 1), nil, 0x12CD)
	got, err = c.ReadWrite(ctx, 7, 302, 125, 300, ramp(121, 0))
	wantRegisters(t, "ReadWrite", got, err, m.Holding(7, 302, 125)...)
	wantRegisters(t, "what ReadWrite wrote", m.Holding(7, 300, 121), nil, ramp(121, 0)...)

	got, err = c.ReadFIFO(ctx, 7, 500)
	wantRegisters(t, "ReadFIFO", got, err, ramp(31, 70)...)
	check("WriteFile", c.WriteFile(ctx, 7, 0xFFFF, 9878, ramp(122, 3)))
	got, err = c.ReadFile(ctx, 7, 0xFFFF, 9879, 121)
	wantRegisters(t, "ReadFile", got, err, ramp(121, 4)...)

	for what, err := range map[string]error{
		"ReadHolding": second(c.ReadHolding(ctx, 7, 9999, 1)), "ReadInput": second(c.ReadInput(ctx, 7, 9999, 1)), "ReadCoils": second(c.ReadCoils(ctx, 7, 9999, 1)),
		"ReadDiscreteInputs": second(c.ReadDiscreteInputs(ctx, 7, 9999, 1)), "ReadFIFO": second(c.ReadFIFO(ctx, 7, 9999)), "ReadFile": second(c.ReadFile(ctx, 7, 9, 0, 1)),
		"WriteCoil": c.WriteCoil(ctx, 7, 9999, true), "WriteRegister": c.WriteRegister(ctx, 7, 9999, 1), "MaskWrite": c.MaskWrite(ctx, 7, 9999, 1, 1),
	} {
		if !errors.Is(err, IllegalAddress) {
			t.Errorf("%s of what is not there: got %v, want %v", what, err, IllegalAddress)
		}
	}
	for what, err := range map[string]error{
		"ReadHolding": second(c.ReadHolding(ctx, 7, 0, 126)), "ReadInputInto": c.ReadInputInto(ctx, 7, 0, make([]uint16, 70000)), "ReadCoils": second(c.ReadCoils(ctx, 7, 0, 0)),
		"WriteRegisters": c.WriteRegisters(ctx, 7, 0, make([]uint16, 124)), "WriteFile": c.WriteFile(ctx, 7, 0, 0, make([]uint16, 1)), "WriteCoils": c.WriteCoils(ctx, 7, 0, nil),
		"ReadWrite": second(c.ReadWrite(ctx, 7, 0, 1, 0, nil)), "ReadFile": second(c.ReadFile(ctx, 7, 1, 10000, 1)),
	} {
		if !errors.Is(err, ErrRequest) {
			t.Errorf("%s past a limit: got %v, want %v", what, err, ErrRequest)
		}
	}
}

// TestReadingIntoDoesNotAllocate counts what the client does for a read, with the
// goroutines of its connection, and a peer that answers without allocating either.
func TestReadingIntoDoesNotAllocate(t *testing.T) {
	if racing {
		t.Skip("the race detector makes sync.Pool forget on purpose")
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		var in, out, pdu [maxTCP]byte
		values := make([]uint16, 125)
		for {
			if _, err := io.ReadFull(theirs, in[:headerSize+5]); err != nil {
				return
			}
			theirs.Write(AppendTCP(out[:0], be.Uint16(in[:]), in[6], AppendRegisters(pdu[:0], ReadHolding, values)))
		}
	}()
	c := NewTCP(struct{ io.ReadWriteCloser }{ours}, Config{}) // without the pipe's deadlines, which allocate; those of a socket do not
	defer c.Close()
	dst := make([]uint16, 125)
	ctx := t.Context()
	got := testing.AllocsPerRun(500, func() {
		if err := c.ReadHoldingInto(ctx, 1, 0, dst); err != nil {
			t.Fatal(err)
		}
	})
	if got != 0 {
		t.Errorf("got %v allocations for a read, want 0", got)
	}
}

func BenchmarkReadHoldingInto(b *testing.B) {
	c, _ := loopback(b, &Server{Handler: zeros{}}, Config{})
	dst := make([]uint16, 125)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.ReadHoldingInto(b.Context(), 1, 0, dst); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWindow writes 246 bytes a request, as a firmware transfer would.
func BenchmarkWindow(b *testing.B) {
	for _, window := range []int{1, 8} {
		b.Run(fmt.Sprint(window), func(b *testing.B) {
			c, _ := loopback(b, &Server{Handler: zeros{}}, Config{Window: window})
			b.SetBytes(2 * MaxWriteRegisters)
			b.SetParallelism(window)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				values := make([]uint16, MaxWriteRegisters)
				for p.Next() {
					if err := c.WriteRegisters(b.Context(), 1, 0, values); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// zeros is a fake handler: all registers are 0 and can be written.
type zeros struct{}

func (zeros) ReadHolding(context.Context, Call, uint16, []uint16) error  { return nil }
func (zeros) WriteHolding(context.Context, Call, uint16, []uint16) error { return nil }

// loopback serves on a socket until the test ends, and connects a client.
func loopback(t testing.TB, server *Server, config Config) (*Client, net.Listener) {
	t.Helper()
	l := listen(t, server, nil)
	c, err := Dial(t.Context(), l.Addr().String(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, l
}
