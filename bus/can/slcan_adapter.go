package can

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// Adapter is an SLCAN adapter made of software: the device end of a serial line, for
// simulators on a pty. The frames that the host sends come out of Receive; those given
// to Send go to the host, if it has opened the adapter, and are lost otherwise, as they
// are on a bus where nobody listens.
type Adapter struct {
	config AdapterConfig
	rwc    io.ReadWriteCloser
	queue  *queue
	write  *writer
	since  time.Time
	closed sync.Once

	mu     sync.Mutex
	open   bool
	listen bool // opened with L
	stamps bool
	rate   int
}

// AdapterConfig configures an Adapter. The zero value works.
type AdapterConfig struct {
	Version string  // answer to V, without the V; "": 1013
	Serial  string  // answer to N; "": ILCK
	Silent  bool    // never answers, as some adapters do
	Flags   Flags   // answer to F
	Filters Filters // for Receive

	// Refuse, if not nil, is asked about each command, without CR; true answers BEL.
	Refuse func(command string) bool
}

// NewAdapter serves the host at the other end of rwc until it hangs up or Close is
// called.
func NewAdapter(rwc io.ReadWriteCloser, c AdapterConfig) *Adapter {
	if c.Version == "" {
		c.Version = "1013"
	}
	if c.Serial == "" {
		c.Serial = "ILCK"
	}
	a := &Adapter{config: c, rwc: rwc, queue: newQueue(c.Filters, false), write: newWriter(rwc), since: time.Now()}
	go a.serve()
	return a
}

// Receive implements [Bus]: frames that the host sends.
func (a *Adapter) Receive(ctx context.Context) (Frame, error) { return a.queue.pop(ctx) }

// Send implements [Bus]: to the host. Without a host that has opened the adapter the
// frame is dropped and counted as lost, which is no error.
func (a *Adapter) Send(ctx context.Context, f Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	if err := a.queue.ended(); err != nil {
		return fmt.Errorf("send %v: %w", f, err)
	}
	a.mu.Lock()
	open, stamps := a.open, a.stamps
	a.mu.Unlock()
	if !open {
		a.queue.count(func(st *Stats) { st.Lost++ })
		return nil
	}
	line := appendLine(nil, f)
	if stamps {
		ms := time.Since(a.since).Milliseconds() % 60_000 // CAN232 manual, command Z: wraps after a minute
		line = fmt.Appendf(line[:len(line)-1], "%04X\r", ms)
	}
	if err := a.write.do(ctx, line); err != nil {
		return fmt.Errorf("send %v: %w", f, err)
	}
	a.queue.sent(f)
	return nil
}

// Bitrate returns what the host has set in bit/s, and whether it has opened the
// adapter.
func (a *Adapter) Bitrate() (int, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rate, a.open
}

// Say writes something to the host that is no frame, such as garbage, "\a", or
// "sb256256\r".
func (a *Adapter) Say(ctx context.Context, s string) error { return a.write.do(ctx, []byte(s)) }

// Stats counts what happened.
func (a *Adapter) Stats() Stats { return a.queue.read() }

// Close hangs up.
func (a *Adapter) Close() error {
	err := error(nil)
	a.closed.Do(func() {
		a.queue.end(ErrClosed)
		a.write.close()
		err = a.rwc.Close()
	})
	return err
}

func (a *Adapter) serve() {
	var l lines
	buf := make([]byte, 512)
	for {
		n, err := a.rwc.Read(buf)
		for _, b := range buf[:n] {
			line, end := l.add(b)
			if !end || len(line) == 0 {
				continue
			}
			reply := a.obey(line)
			if a.config.Silent {
				continue
			}
			if a.write.do(context.Background(), []byte(reply)) != nil {
				break
			}
		}
		if err != nil {
			a.queue.end(fmt.Errorf("read the host: %w: %w", ErrDown, err))
			return
		}
	}
}

// The two answers.
const (
	yes = "\r"
	no  = "\a"
)

// obey does one command (CAN232 manual, version 1.4) and returns the answer.
func (a *Adapter) obey(line []byte) string {
	refuse := func() string {
		a.queue.count(func(st *Stats) { st.Refused++ })
		return no
	}
	if a.config.Refuse != nil && a.config.Refuse(string(line)) {
		return refuse()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch c := line[0]; {
	case c == 'C' && len(line) == 1 && a.open:
		a.open, a.listen = false, false
		return yes
	case (c == 'O' || c == 'L') && len(line) == 1 && !a.open && a.rate != 0:
		a.open, a.listen = true, c == 'L'
		return yes
	case c == 'S' && len(line) == 2 && !a.open:
		for rate, digit := range bitrates {
			if digit == line[1] && rate != 750_000 {
				a.rate = rate
				return yes
			}
		}
	case c == 's' && len(line) == 5 && !a.open:
		a.rate = -1 // register values of a chip that is not there
		return yes
	case c == 'Z' && len(line) == 2 && !a.open && (line[1] == '0' || line[1] == '1'):
		a.stamps = line[1] == '1'
		return yes
	case (c == 'M' || c == 'm') && len(line) == 9 && !a.open:
		return yes // the acceptance filter: everything passes
	case c == 'V' && len(line) == 1:
		return "V" + a.config.Version + yes
	case c == 'N' && len(line) == 1:
		return "N" + a.config.Serial + yes
	case c == 'F' && len(line) == 1:
		return fmt.Sprintf("F%02X\r", byte(a.config.Flags))
	default:
		f, ok := parseLine(line)
		if !ok || !a.open || a.listen {
			break
		}
		a.queue.push(f)
		if f.Extended {
			return "Z" + yes
		}
		return "z" + yes
	}
	return refuse()
}
