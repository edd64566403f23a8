package modbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// requestsRTU and answersRTU are a frame of each function.
func requestsRTU(t testing.TB) (frames [][]byte) {
	for _, v := range spec {
		frames = append(frames, AppendRTU(nil, 1, hexed(t, v.request)))
	}
	return frames
}

func answersRTU(t testing.TB) (frames [][]byte) {
	for _, v := range spec {
		frames = append(frames, AppendRTU(nil, 1, hexed(t, v.answer)), AppendRTU(nil, 1, []byte{hexed(t, v.answer)[0] | 0x80, 6}))
	}
	return frames
}

func newFramer(lengths func([]byte) int) *framer {
	return &framer{lengths: func(b []byte) (int, int) { return lengths(b), unknown }}
}

// drain takes all frames.
func drain(f *framer, silent bool) (frames [][]byte) {
	for frame := f.next(silent); frame != nil; frame = f.next(silent) {
		frames = append(frames, slices.Clone(frame))
	}
	return frames
}

// TestFramesSplitAndJoined sends every pair of frames as one run of bytes, cut at every
// position, without a silence: both are found, each as soon as it is whole.
func TestFramesSplitAndJoined(t *testing.T) {
	for name, c := range map[string]struct {
		frames  [][]byte
		lengths func([]byte) int
	}{"requests": {requestsRTU(t), rtuRequest}, "answers": {answersRTU(t), rtuAnswer}} {
		cases := 0
		for _, one := range c.frames {
			for _, two := range c.frames {
				both := slices.Concat(one, two)
				for cut := range len(both) + 1 {
					f := newFramer(c.lengths)
					var got [][]byte
					f.put(both[:cut])
					got = append(got, drain(f, false)...)
					if early := len(got); cut >= len(one) && early < 1 || cut == len(both) && early != 2 {
						t.Fatalf("%s: % X cut at %d: %d frames in the first part", name, both, cut, early)
					}
					f.put(both[cut:])
					got = append(got, drain(f, false)...)
					if len(got) != 2 || !bytes.Equal(got[0], one[:len(one)-2]) || !bytes.Equal(got[1], two[:len(two)-2]) || f.n != 0 {
						t.Fatalf("%s: % X cut at %d: got % X", name, both, cut, got)
					}
					cases++
				}
			}
		}
		t.Logf("%s: %d pairs and cuts", name, cases)
	}
}

// TestFramesByteByByte is the slowest adapter.
func TestFramesByteByByte(t *testing.T) {
	f := newFramer(rtuRequest)
	var got [][]byte
	for _, frame := range requestsRTU(t) {
		for i := range frame {
			f.put(frame[i : i+1])
			found := drain(f, false)
			if want := i == len(frame)-1; (len(found) == 1) != want {
				t.Fatalf("% X: %d frames after byte %d", frame, len(found), i)
			}
			got = append(got, found...)
		}
	}
	if len(got) != len(spec) {
		t.Errorf("got %d frames, want %d", len(got), len(spec))
	}
}

// TestFramesAfterNoise puts up to 9 bytes of every value, and damaged frames, before a
// good one: it is found at the silence, and neither less nor more than it.
func TestFramesAfterNoise(t *testing.T) {
	good := AppendRTU(nil, 1, must(AppendWriteRegisters(nil, 5, []uint16{1, 2, 3})))
	check := func(noise []byte) {
		t.Helper()
		f := newFramer(rtuRequest)
		f.put(noise)
		got := drain(f, false)
		f.put(good)
		got = append(got, drain(f, false)...)
		got = append(got, drain(f, true)...)
		if len(got) != 1 || !bytes.Equal(got[0], good[:len(good)-2]) || f.n != 0 {
			t.Errorf("after noise % X: got % X, want one frame", noise, got)
		}
	}
	for x := range 256 {
		for n := 1; n < 10; n++ {
			check(bytes.Repeat([]byte{byte(x)}, n))
		}
	}
	for _, frame := range requestsRTU(t) {
		for bit := range 8 * len(frame) {
			damaged := slices.Clone(frame)
			damaged[bit/8] ^= 1 << (bit % 8)
			check(damaged)
		}
		for n := 1; n < len(frame); n++ {
			check(frame[:n])
			check(frame[n:])
		}
	}
}

// TestNoFrameWithinAFrame: what a frame carries as data is no frame, not even if the
// frame around it is damaged. An image that is transferred may contain anything.
func TestNoFrameWithinAFrame(t *testing.T) {
	inner := AppendRTU(nil, 1, AppendWriteRegister(nil, 5, 0xDEAD))
	values := make([]uint16, 20)
	Registers(values[3:7], inner)
	outer := AppendRTU(nil, 1, must(AppendWriteRegisters(nil, 0x100, values)))
	if !bytes.Contains(outer, inner) {
		t.Fatal("the outer frame does not contain the inner one")
	}
	for cut := range outer {
		f := newFramer(rtuRequest)
		f.put(outer[:cut])
		got := drain(f, false)
		f.put(outer[cut:])
		if got = append(got, drain(f, false)...); len(got) != 1 || !bytes.Equal(got[0], outer[:len(outer)-2]) {
			t.Fatalf("cut at %d: got % X", cut, got)
		}
	}
	for bit := range 8 * len(outer) {
		damaged := slices.Clone(outer)
		damaged[bit/8] ^= 1 << (bit % 8)
		f := newFramer(rtuRequest)
		f.put(damaged)
		if got := append(drain(f, false), drain(f, true)...); len(got) != 0 {
			t.Fatalf("bit %d damaged: got % X", bit, got)
		}
	}
}

func TestFunctionOfUnknownLength(t *testing.T) {
	frame := AppendRTU(nil, 1, []byte{0x6D, 1, 2, 3, 4})
	f := newFramer(rtuRequest)
	f.put(frame)
	if got := f.next(false); got != nil {
		t.Errorf("before the silence: got % X", got)
	}
	if got := f.next(true); !bytes.Equal(got, frame[:len(frame)-2]) {
		t.Errorf("at the silence: got % X, want % X", got, frame[:len(frame)-2])
	}
}

func TestTimes(t *testing.T) {
	for baud, want := range map[int]time.Duration{
		9600: 4010416 * time.Nanosecond, 19200: 2005205 * time.Nanosecond, 38400: 1750 * time.Microsecond, 115200: 1750 * time.Microsecond, 0: 1750 * time.Microsecond,
	} {
		if got := silence(baud); got.Round(time.Microsecond) != want.Round(time.Microsecond) {
			t.Errorf("silence at %d baud: got %v, want %v", baud, got, want)
		}
	}
}

// fakeUnits is a fake line with units on it that a test writes by hand: it is called
// with every request frame and sends what it likes.
func fakeUnits(rwc io.ReadWriteCloser, answer func(frame []byte, send func(...byte))) {
	f := newFramer(rtuRequest)
	b := make([]byte, maxRTU)
	for {
		n, err := rwc.Read(b)
		if err != nil {
			return
		}
		f.put(b[:n])
		for frame := f.next(false); frame != nil; frame = f.next(false) {
			answer(slices.Clone(frame), func(b ...byte) { rwc.Write(b) })
		}
	}
}

// onLine runs a test of a client whose line has these fake units.
func onLine(t *testing.T, config Config, answer func(frame []byte, send func(...byte)), test func(ctx context.Context, c *Client)) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		gone := make(chan struct{})
		go func() {
			fakeUnits(theirs, answer)
			close(gone)
		}()
		c := NewRTU(ours, config)
		test(t.Context(), c)
		c.Close()
		theirs.Close()
		<-gone
	})
}

// holding answers FC 3 with registers that hold their addresses.
func holding(frame []byte) []byte {
	r, err := ParseRequest(frame[1:])
	if err != nil || r.Function != ReadHolding {
		return AppendRTU(nil, frame[0], AppendException(nil, Function(frame[1]), IllegalFunction))
	}
	values := make([]uint16, r.Count)
	for i := range values {
		values[i] = r.Address + uint16(i)
	}
	return AppendRTU(nil, frame[0], AppendRegisters(nil, ReadHolding, values))
}

func wantRegisters(t *testing.T, what string, got []uint16, err error, want ...uint16) {
	t.Helper()
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s: got %v, %v, want %v", what, got, err, want)
	}
}

// TestClientOnANoisyLine: whatever comes before the answer, and however it is cut.
func TestClientOnANoisyLine(t *testing.T) {
	foreign := AppendRTU(nil, 9, AppendRegisters(nil, ReadHolding, []uint16{0xBAD, 0xBAD}))
	late := AppendRTU(nil, 1, AppendRegisters(nil, ReadHolding, []uint16{0xBAD}))
	other := AppendRTU(nil, 1, AppendRegisters(nil, ReadInput, []uint16{0xBAD, 0xBAD}))
	damaged := AppendRTU(nil, 1, AppendRegisters(nil, ReadHolding, []uint16{0xBAD, 0xBAD}))
	damaged[5] ^= 1
	for name, before := range map[string][]byte{
		"nothing": nil, "a zero": {0}, "a byte": {0xFF}, "bytes": {1, 3, 200, 7}, "half a frame": foreign[:5],
		"another unit": foreign, "another count": late, "another function": other, "a damaged frame": damaged,
		"all of it": slices.Concat(foreign, late, other, damaged, []byte{0}),
	} {
		t.Run(name, func(t *testing.T) {
			onLine(t, Config{}, func(frame []byte, send func(...byte)) {
				all := slices.Concat(before, holding(frame))
				for len(all) > 0 {
					n := min(3, len(all))
					send(all[:n]...)
					time.Sleep(10 * time.Millisecond) // as some adapters do
					all = all[n:]
				}
			}, func(ctx context.Context, c *Client) {
				got, err := c.ReadHolding(ctx, 1, 70, 2)
				wantRegisters(t, "read", got, err, 70, 71)
				got, err = c.ReadHolding(ctx, 1, 700, 2)
				wantRegisters(t, "read again", got, err, 700, 701)
			})
		})
	}
}

// TestClientCountsItsTries: reads are repeated, writes only if that is allowed, and an
// exception is an answer.
func TestClientCountsItsTries(t *testing.T) {
	for _, c := range []struct {
		name   string
		config Config
		ask    func(ctx context.Context, c *Client) error
		tries  int
		took   time.Duration // at least
	}{
		{"a read", Config{}, func(ctx context.Context, c *Client) error { return second(c.ReadHolding(ctx, 1, 0, 1)) }, 3, 3 * time.Second},
		{"a read, once", Config{Retries: -1}, func(ctx context.Context, c *Client) error { return second(c.ReadFIFO(ctx, 1, 0)) }, 1, time.Second},
		{"a file", Config{Timeout: 10 * time.Second, Retries: 4}, func(ctx context.Context, c *Client) error { return second(c.ReadFile(ctx, 1, 1, 0, 1)) }, 5, 50 * time.Second},
		{"a write", Config{}, func(ctx context.Context, c *Client) error { return c.WriteRegister(ctx, 1, 0, 1) }, 1, time.Second},
		{"a mask", Config{}, func(ctx context.Context, c *Client) error { return c.MaskWrite(ctx, 1, 0, 1, 2) }, 1, time.Second},
		{"an exchange", Config{}, func(ctx context.Context, c *Client) error { return second(c.ReadWrite(ctx, 1, 0, 1, 0, []uint16{1})) }, 1, time.Second},
		{"a write that may be repeated", Config{RepeatWrites: true}, func(ctx context.Context, c *Client) error { return c.WriteRegisters(ctx, 1, 0, []uint16{1}) }, 3, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			tries := 0
			onLine(t, c.config, func([]byte, func(...byte)) { tries++ }, func(ctx context.Context, client *Client) {
				begin := time.Now()
				if err := c.ask(ctx, client); !errors.Is(err, ErrNoAnswer) {
					t.Errorf("got %v, want %v", err, ErrNoAnswer)
				}
				synctest.Wait()
				if took := time.Since(begin); tries != c.tries || took < c.took || took > c.took+time.Second {
					t.Errorf("got %d tries in %v, want %d in %v", tries, took, c.tries, c.took)
				}
			})
		})
	}
	t.Run("an exception", func(t *testing.T) {
		tries := 0
		onLine(t, Config{}, func(frame []byte, send func(...byte)) {
			tries++
			send(AppendRTU(nil, 1, AppendException(nil, Function(frame[1]), DeviceBusy))...)
		}, func(ctx context.Context, c *Client) {
			_, err := c.ReadHolding(ctx, 1, 0, 1)
			synctest.Wait()
			if !errors.Is(err, DeviceBusy) || tries != 1 {
				t.Errorf("got %v after %d tries, want %v after 1", err, tries, DeviceBusy)
			}
		})
	})
	t.Run("lost once", func(t *testing.T) {
		tries := 0
		onLine(t, Config{}, func(frame []byte, send func(...byte)) {
			if tries++; tries > 1 {
				send(holding(frame)...)
			}
		}, func(ctx context.Context, c *Client) {
			got, err := c.ReadHolding(ctx, 1, 5, 1)
			wantRegisters(t, "read", got, err, 5)
		})
	})
}

// TestLateAnswerOnRTU: the answer to a request that was given up comes before the next
// one, and is not taken for its answer.
func TestLateAnswerOnRTU(t *testing.T) {
	asked := 0
	onLine(t, Config{Retries: -1}, func(frame []byte, send func(...byte)) {
		if asked++; asked == 1 {
			time.Sleep(time.Second + 50*time.Millisecond)
		}
		send(holding(frame)...)
	}, func(ctx context.Context, c *Client) {
		if got, err := c.ReadHolding(ctx, 1, 5, 1); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("got %v, %v, want %v", got, err, ErrNoAnswer)
		}
		got, err := c.ReadHolding(ctx, 1, 6, 1)
		wantRegisters(t, "the next one", got, err, 6)
	})
}

func TestUnfitAnswerOnRTU(t *testing.T) {
	onLine(t, Config{Retries: -1}, func(frame []byte, send func(...byte)) {
		send(AppendRTU(nil, 1, AppendRegisters(nil, ReadHolding, []uint16{1, 2, 3}))...)
	}, func(ctx context.Context, c *Client) {
		if got, err := c.ReadHolding(ctx, 1, 5, 1); !errors.Is(err, ErrAnswer) {
			t.Errorf("got %v, %v, want %v", got, err, ErrAnswer)
		}
	})
}

func TestBroadcast(t *testing.T) {
	var heard [][]byte
	var times []time.Time
	onLine(t, Config{}, func(frame []byte, send func(...byte)) {
		heard, times = append(heard, frame), append(times, time.Now())
		if frame[0] != 0 {
			send(holding(frame)...)
		}
	}, func(ctx context.Context, c *Client) {
		if err := c.WriteRegister(ctx, 0, 7, 8); err != nil {
			t.Errorf("broadcast: %v", err)
		}
		got, err := c.ReadHolding(ctx, 1, 5, 1)
		wantRegisters(t, "read", got, err, 5)
		if _, err := c.ReadHolding(ctx, 0, 5, 1); !errors.Is(err, ErrRequest) {
			t.Errorf("read from everybody: got %v, want %v", err, ErrRequest)
		}
		if _, err := c.ReadWrite(ctx, 0, 5, 1, 5, []uint16{1}); !errors.Is(err, ErrRequest) {
			t.Errorf("read from everybody: got %v, want %v", err, ErrRequest)
		}
		synctest.Wait()
		if len(heard) != 2 {
			t.Fatalf("got %d requests, want 2", len(heard))
		}
		if gap := times[1].Sub(times[0]); gap < 100*time.Millisecond {
			t.Errorf("the next request came %v after a broadcast, want 100 ms or more", gap)
		}
	})
}

// TestEchoOfTheAdapter: what was sent comes back first, which for FC 6 looks like the answer.
func TestEchoOfTheAdapter(t *testing.T) {
	echoing := func(answers bool) func([]byte, func(...byte)) {
		return func(frame []byte, send func(...byte)) {
			send(AppendRTU(nil, frame[0], frame[1:])...)
			if answers {
				time.Sleep(5 * time.Millisecond)
				send(AppendRTU(nil, frame[0], frame[1:])...)
			}
		}
	}
	onLine(t, Config{Echo: true}, echoing(true), func(ctx context.Context, c *Client) {
		if err := c.WriteRegister(ctx, 1, 7, 8); err != nil {
			t.Error(err)
		}
	})
	onLine(t, Config{Echo: true}, echoing(false), func(ctx context.Context, c *Client) {
		if err := c.WriteRegister(ctx, 1, 7, 8); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("only the echo: got %v, want %v", err, ErrNoAnswer)
		}
		if err := c.WriteRegister(ctx, 0, 7, 8); err != nil {
			t.Errorf("a broadcast with its echo: %v", err)
		}
	})
	onLine(t, Config{Echo: true}, func(_ []byte, send func(...byte)) { send(0x55) }, func(ctx context.Context, c *Client) {
		if err := c.WriteRegister(ctx, 1, 7, 8); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("a damaged echo: got %v, want %v", err, ErrNoAnswer)
		}
	})
}

func TestCancelOnRTU(t *testing.T) {
	onLine(t, Config{}, func([]byte, func(...byte)) {}, func(ctx context.Context, c *Client) {
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		begin := time.Now()
		waiting := make(chan error)
		go func() { waiting <- second(c.ReadHolding(short, 2, 0, 1)) }() // waits for its turn, or for its answer
		err := second(c.ReadHolding(short, 1, 0, 1))
		for _, err := range []error{err, <-waiting} {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
			}
		}
		if took := time.Since(begin); took != 200*time.Millisecond {
			t.Errorf("took %v, want 200 ms", took)
		}
	})
	synctest.Test(t, func(t *testing.T) { // a line that takes no bytes
		ours, theirs := net.Pipe()
		defer theirs.Close()
		c := NewRTU(ours, Config{})
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		begin := time.Now()
		if err := c.WriteRegister(ctx, 1, 0, 1); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 200*time.Millisecond {
			t.Errorf("got %v after %v, want %v after 200 ms", err, time.Since(begin), context.DeadlineExceeded)
		}
	})
}

func TestLineIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opened := 0
		c := NewRTU(nil, Config{Redial: func(context.Context) (io.ReadWriteCloser, error) {
			opened++
			ours, theirs := net.Pipe()
			left := 2
			go fakeUnits(theirs, func(frame []byte, send func(...byte)) {
				if left--; left < 0 {
					theirs.Close() // unplugged
					return
				}
				send(holding(frame)...)
			})
			return ours, nil
		}})
		for i := range uint16(6) {
			got, err := c.ReadHolding(t.Context(), 1, i, 1)
			wantRegisters(t, fmt.Sprint("read ", i), got, err, i)
		}
		if opened != 3 {
			t.Errorf("opened %d times, want 3", opened)
		}
		c.Close()
		if _, err := c.ReadHolding(t.Context(), 1, 0, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: got %v, want %v", err, ErrClosed)
		}
	})
}

// TestServerOnALine talks to a server byte by byte, as its units and as others.
func TestServerOnALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := new(Memory)
		for _, unit := range []byte{0, 7, 8} {
			m.SetHolding(unit, 0, 1, 2, 3)
		}
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- (&Server{Handler: m}).ServeRTU(ctx, theirs, 0, 7, 8) }()
		var got []byte
		go func() {
			b := make([]byte, maxRTU)
			for {
				n, err := ours.Read(b)
				got = append(got, b[:n]...)
				if err != nil {
					return
				}
			}
		}()
		read := func(unit byte) []byte { return AppendRTU(nil, unit, must(AppendRead(nil, ReadHolding, 0, 2))) }
		answer := func(unit byte) []byte { return AppendRTU(nil, unit, AppendRegisters(nil, ReadHolding, []uint16{1, 2})) }
		damaged := read(7)
		damaged[3] ^= 1
		tooMany := AppendRTU(nil, 7, appendHead(nil, ReadHolding, 0, 126))
		for _, c := range []struct {
			name       string
			sent, want []byte
		}{
			{"ours", read(7), answer(7)},
			{"the other of ours", read(8), answer(8)},
			{"two in a row", slices.Concat(read(7), read(8)), slices.Concat(answer(7), answer(8))},
			{"another's, its answer, and ours", slices.Concat(read(9), answer(9), read(7)), answer(7)},
			{"a damaged one", damaged, nil},
			{"a damaged one, then a good one", slices.Concat(damaged, read(7)), answer(7)},
			{"noise, then a good one", slices.Concat([]byte{7, 16, 0}, read(7)), answer(7)},
			{"half of one", read(7)[:5], nil},
			{"an unknown function", AppendRTU(nil, 7, []byte{0x6D, 1, 2, 3, 4, 5}), AppendRTU(nil, 7, []byte{0xED, 1})},
			{"one too many", tooMany, AppendRTU(nil, 7, []byte{0x83, 3})},
			{"a wrong length", AppendRTU(nil, 7, []byte{3, 0, 0, 0, 1, 0}), AppendRTU(nil, 7, []byte{0x83, 3})},
			{"a broadcast", AppendRTU(nil, 0, AppendWriteRegister(nil, 0, 1)), nil},
			{"a broadcast that nobody can answer", read(0), nil},
			{"a request to another that carries one to us", AppendRTU(nil, 9, must(AppendWriteRegisters(nil, 0, []uint16{0x0703, 0, 2, 0xC4AD}))), nil},
		} {
			synctest.Wait()
			got = nil
			for _, b := range c.sent {
				ours.Write([]byte{b})
				time.Sleep(5 * time.Millisecond)
			}
			time.Sleep(200 * time.Millisecond)
			synctest.Wait()
			if !bytes.Equal(got, c.want) {
				t.Errorf("%s: got % X, want % X", c.name, got, c.want)
			}
		}
		m.SetHolding(0, 0, 0)
		ours.Write(AppendRTU(nil, 0, AppendWriteRegister(nil, 0, 99)))
		time.Sleep(time.Second)
		if got := m.Holding(0, 0, 1)[0]; got != 99 {
			t.Errorf("a broadcast was not acted on: got %d, want 99", got)
		}
		cancel()
		if err := <-served; err != nil {
			t.Errorf("served: got %v, want nil", err)
		}
	})
}

// TestServerHearsItself: on an adapter that echoes, the answer to FC 6 comes in as if it
// were a request.
func TestServerHearsItself(t *testing.T) {
	for _, echo := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			writes := 0
			m := &Memory{OnWrite: func(context.Context, Call, uint16, []uint16) error { writes++; return nil }}
			m.SetHolding(7, 0, 0)
			ours, theirs := net.Pipe()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			go func() {
				b := make([]byte, maxRTU)
				for {
					n, err := ours.Read(b)
					if err != nil {
						return
					}
					ours.Write(b[:n])
				}
			}()
			go ours.Write(AppendRTU(nil, 7, AppendWriteRegister(nil, 0, 5)))
			if err := (&Server{Handler: m, Echo: echo}).ServeRTU(ctx, theirs, 7); err != nil {
				t.Error(err)
			}
			if echo && writes != 1 || !echo && writes < 3 {
				t.Errorf("echo %v: %d writes; want 1 with it, and many without, or this test shows nothing", echo, writes)
			}
		})
	}
}
