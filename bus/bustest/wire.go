package bustest

import (
	"io"
	"os"
	"sync"
	"time"
)

// WireConfig says what a serial line is like. Only Baud is needed.
type WireConfig struct {
	Baud     int // bits per second; 0: 9600
	CharBits int // bits of a character on the wire, with start, parity and stop; 0: 11, as Modbus wants
	// Turnaround is how long the line is at least quiet between what one end sends and
	// what another does: what transceivers need to change over, and slow devices to think.
	Turnaround time.Duration
	// Burst is how many bytes a receiver hands over at once, as a UART with a buffer does;
	// 0: 1. What is less is handed over Latency after its first byte came; 0: when the
	// sender pauses. FTDI's USB adapters: 62 bytes and 16 ms (FTDI AN232B-04); a 16550 in
	// Linux: 8 bytes, and about at once.
	Burst   int
	Latency time.Duration
	// Queue is how many bytes a Write may leave in the sender without waiting. 0: 4096, as
	// in Linux; negative: a Write returns when its last byte is on the wire.
	Queue int
}

// Wire is a serial line with several ends: what one sends, all others hear. If two send at
// once, all hear something else. It is half-duplex, as RS-485 is.
type Wire struct {
	config WireConfig

	mu   sync.Mutex
	ends []*End
	last time.Time // when the last byte of the line was over
	from *End      // whose it was
	use  map[string]*Use
}

// Use is what an end of a bus has done with it.
type Use struct {
	Frames  int           // CAN only
	Bytes   int           // serial lines: those that were sent; CAN: bytes of data
	Busy    time.Duration // how long what it sent took
	Garbled int           // bytes that met those of another end; CAN: frames that were sent again
	Lost    int           // what came and was not read in time: bytes, or frames
	// Waited is the longest time from when a frame was handed over until it was through, or
	// until now if it still waits. CAN only.
	Waited time.Duration
	Missed int // frames of a Broadcast that were left out, because that before still waited
}

// NewWire makes a line without ends.
func NewWire(c WireConfig) *Wire {
	if c.Baud <= 0 {
		c.Baud = 9600
	}
	if c.CharBits <= 0 {
		c.CharBits = 11
	}
	if c.Burst <= 0 {
		c.Burst = 1
	}
	if c.Queue == 0 {
		c.Queue = 4096
	}
	return &Wire{config: c, use: map[string]*Use{}}
}

// Pair makes a line between two ends, "a" and "b".
func Pair(c WireConfig) (a, b *End) {
	w := NewWire(c)
	return w.Join("a"), w.Join("b")
}

// Time is how long n bytes take.
func (w *Wire) Time(n int) time.Duration {
	return time.Duration(n) * time.Duration(w.config.CharBits) * time.Second / time.Duration(w.config.Baud)
}

// Join adds an end, which hears what is sent from now on. A name may be used again once
// its end is closed: the counts go on.
func (w *Wire) Join(name string) *End {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.use[name] == nil {
		w.use[name] = new(Use)
	}
	e := &End{wire: w, name: name, use: w.use[name], sent: signal(), came: signal(), idle: signal(), done: make(chan struct{})}
	w.ends = append(w.ends, e)
	go e.send()
	if w.config.Latency > 0 {
		go e.hear()
	}
	return e
}

// Use returns what the end of that name has done until now.
func (w *Wire) Use(name string) Use {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.use[name] == nil {
		return Use{}
	}
	return *w.use[name]
}

func signal() chan struct{} { return make(chan struct{}, 1) }

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// heardMost is in bytes: what nobody reads is lost.
const heardMost = 64 << 10

// End is a port at a line. One goroutine may read while another writes.
type End struct {
	wire *Wire
	name string
	use  *Use
	sent chan struct{} // the queue changed
	came chan struct{} // ready changed
	idle chan struct{} // heard changed
	done chan struct{}
	once sync.Once

	// All guarded by the wire's mutex.
	queue []byte
	now   burst     // what is on the wire, or was last
	more  bool      // the next burst follows it without a gap
	heard []byte    // not handed over yet
	first time.Time // when the first of these came
	ready []byte    // what Read returns
}

// burst is what an end has on the wire.
type burst struct {
	begin, end time.Time
	bytes      []byte // as others hear them
	garbled    []bool
}

// Wire returns the line.
func (e *End) Wire() *Wire { return e.wire }

// Use returns what this end, and those of its name before it, have done until now.
func (e *End) Use() Use { return e.wire.Use(e.name) }

// Close takes the end off the line: what it has not sent yet is dropped, and a Read or
// Write that waits ends. The others do not notice.
func (e *End) Close() error {
	e.once.Do(func() {
		w := e.wire
		w.mu.Lock()
		defer w.mu.Unlock()
		close(e.done)
		for i, other := range w.ends {
			if other == e {
				w.ends = append(w.ends[:i:i], w.ends[i+1:]...)
				break
			}
		}
	})
	return nil
}

func (e *End) closed() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// Read waits for at least one byte. The error is [os.ErrClosed] after Close.
func (e *End) Read(b []byte) (int, error) {
	for {
		e.wire.mu.Lock()
		n := copy(b, e.ready)
		e.ready = e.ready[n:]
		if len(e.ready) > 0 {
			wake(e.came)
		}
		e.wire.mu.Unlock()
		switch {
		case e.closed():
			return 0, os.ErrClosed
		case n > 0 || len(b) == 0:
			return n, nil
		}
		select {
		case <-e.came:
		case <-e.done:
		}
	}
}

// Write sends bytes after those that still wait. The error is [os.ErrClosed] after Close.
func (e *End) Write(b []byte) (int, error) {
	e.wire.mu.Lock()
	e.queue = append(e.queue, b...)
	e.wire.mu.Unlock()
	wake(e.sent)
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		e.wire.mu.Lock()
		left := len(e.queue) + len(e.now.bytes)
		e.wire.mu.Unlock()
		if e.closed() {
			return max(0, len(b)-left), os.ErrClosed
		}
		over := left - max(0, e.wire.config.Queue)
		if over <= 0 {
			return len(b), nil
		}
		tick.Reset(e.wire.Time(over))
		select {
		case <-tick.C:
		case <-e.done:
		}
	}
}

var _ io.ReadWriteCloser = (*End)(nil)
