package can

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// SLCAN is a serial adapter that speaks the ASCII protocol of the LAWICEL CAN232 and
// CANUSB manuals, as CANable, USBtin and many others do: lines that end with CR,
// tIIILDD.. and TIIIIIIIILDD.. for frames, rIIIL and RIIIIIIIIL for remote frames; the
// adapter accepts with CR (or z CR, Z CR for a frame) and refuses with BEL. Linux's
// slcan driver adds sX lines for the controller's state, which are understood too.
//
// A link that is lost stays lost: open the port and the adapter again.
type SLCAN struct {
	config SLCANConfig
	rwc    io.ReadWriteCloser
	queue  *queue
	pace   *pace
	write  *writer

	one     sync.Mutex // one command at a time, because answers do not say to what
	answers chan answer
	closed  sync.Once
}

// SLCANConfig configures an adapter. Its zero value listens and talks at 500 kbit/s.
type SLCANConfig struct {
	Bitrate    int           // bit/s: 10, 20, 50, 100, 125, 250, 500, 800 or 1000 thousand; 0: 500,000
	ListenOnly bool          // neither sends nor acknowledges; Send is refused
	Filters    Filters       // applied here, not in the adapter
	Pace       int           // frames/s at most; 0: 1000; negative: as fast as the adapter answers
	Answer     time.Duration // how long the adapter may think about a command; 0: 1 s
	Silent     bool          // the adapter never answers, as some do: nothing is waited for
	Echo       bool          // the adapter sends back what it is given: drop that
}

// answer is what an adapter says to a command.
type answer struct {
	text    string // without CR
	refused bool   // BEL
}

// bitrates of S0 to S8. S7 is 800 kbit/s in the manuals of LAWICEL; some adapters make
// it 750, so both ask for it.
var bitrates = map[int]byte{
	10_000: '0', 20_000: '1', 50_000: '2', 100_000: '3', 125_000: '4',
	250_000: '5', 500_000: '6', 750_000: '7', 800_000: '7', 1_000_000: '8',
}

// OpenSLCAN makes the adapter at the other end of rwc leave and enter the bus, and
// closes rwc if it does not. From then on rwc belongs to the SLCAN.
func OpenSLCAN(ctx context.Context, rwc io.ReadWriteCloser, c SLCANConfig) (*SLCAN, error) {
	if c.Bitrate == 0 {
		c.Bitrate = 500_000
	}
	if c.Answer == 0 {
		c.Answer = time.Second
	}
	rate, ok := bitrates[c.Bitrate]
	if !ok {
		return nil, errors.Join(fmt.Errorf("open the CAN adapter: %d bit/s is none of the rates that SLCAN has", c.Bitrate), rwc.Close())
	}
	s := &SLCAN{config: c, rwc: rwc, queue: newQueue(c.Filters, c.Echo), pace: newPace(c.Pace), write: newWriter(rwc), answers: make(chan answer, 1)}
	go s.listen()
	open := "O"
	if c.ListenOnly {
		open = "L"
	}
	var err error
	for _, quiet := range settled {
		// What refuses may have been a late answer to an earlier command.
		if err = s.enter(ctx, quiet, "S"+string(rate), open); !errors.Is(err, ErrRefused) {
			break
		}
	}
	if err != nil {
		s.queue.end(ErrClosed)
		s.write.close()
		return nil, errors.Join(fmt.Errorf("open the CAN adapter at %d bit/s: %w", c.Bitrate, err), rwc.Close())
	}
	return s, nil
}

// settled is how long no answer must come until all answers to older commands have: at the first try, and at those
// after a refusal.
var settled = [...]time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 800 * time.Millisecond}

// enter takes the adapter from whatever state it was left in onto the bus, once it has been quiet for so long.
func (s *SLCAN) enter(ctx context.Context, settled time.Duration, commands ...string) error {
	// Empty lines end what is left in the adapter's buffer. Adapters answer them or not,
	// and refuse C if they are not open, so these answers mean nothing; but they must not
	// be taken for answers to what follows.
	if err := s.write.do(ctx, []byte("\r\rC\r")); err != nil {
		return err
	}
	for quiet := s.config.Silent; !quiet; {
		timer := time.NewTimer(settled)
		select {
		case <-s.answers:
		case <-timer.C:
			quiet = true
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
	for _, command := range commands {
		if _, err := s.command(ctx, command); err != nil {
			return err
		}
	}
	return nil
}

// command writes one line and waits for what the adapter says to it.
func (s *SLCAN) command(ctx context.Context, line string) (string, error) {
	s.one.Lock()
	defer s.one.Unlock()
	select {
	case <-s.answers: // to a command that was given up
	default:
	}
	if err := s.write.do(ctx, []byte(line+"\r")); err != nil {
		return "", fmt.Errorf("command %s: %w", line, err)
	}
	if s.config.Silent {
		return "", nil
	}
	timer := time.NewTimer(s.config.Answer)
	defer timer.Stop()
	for {
		s.queue.mu.Lock()
		wake, err := s.queue.wake, s.queue.err
		s.queue.mu.Unlock()
		if err != nil {
			return "", fmt.Errorf("command %s: %w", line, err)
		}
		select {
		case a := <-s.answers:
			if a.refused {
				s.queue.count(func(st *Stats) { st.Refused++ })
				return "", fmt.Errorf("command %s: %w", line, ErrRefused)
			}
			return a.text, nil
		case <-ctx.Done():
			return "", fmt.Errorf("command %s: %w", line, ctx.Err())
		case <-timer.C:
			return "", fmt.Errorf("command %s: no answer within %v: is it an SLCAN adapter, and this its speed? If it never answers, say so", line, s.config.Answer)
		case <-wake:
		}
	}
}

// Receive implements [Bus].
func (s *SLCAN) Receive(ctx context.Context) (Frame, error) { return s.queue.pop(ctx) }

// Send implements [Bus]. That the adapter refuses, because its buffer is full or the
// controller is not on the bus, is [ErrRefused].
func (s *SLCAN) Send(ctx context.Context, f Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	if s.config.ListenOnly {
		return fmt.Errorf("send %v: the adapter only listens", f)
	}
	if err := s.queue.ended(); err != nil {
		return fmt.Errorf("send %v: %w", f, err)
	}
	if err := s.pace.wait(ctx); err != nil {
		return fmt.Errorf("send %v: %w", f, err)
	}
	s.queue.sent(f)
	line := appendLine(nil, f)
	if _, err := s.command(ctx, string(line[:len(line)-1])); err != nil {
		return fmt.Errorf("send %v: %w", f, err)
	}
	return nil
}

// Version asks for the adapter's version, such as "V1013".
func (s *SLCAN) Version(ctx context.Context) (string, error) { return s.command(ctx, "V") }

// Serial asks for the adapter's serial number, such as "NA123".
func (s *SLCAN) Serial(ctx context.Context) (string, error) { return s.command(ctx, "N") }

// Flags are what an adapter says of itself (CAN232 manual, command F).
type Flags byte

// Flags.
const (
	FlagReceiveFull Flags = 1 << 0 // its queue of received frames: some were lost
	FlagSendFull    Flags = 1 << 1
	FlagWarning     Flags = 1 << 2
	FlagOverrun     Flags = 1 << 3
	FlagPassive     Flags = 1 << 5
	FlagArbitration Flags = 1 << 6 // lost
	FlagBusError    Flags = 1 << 7
)

// Status asks for the adapter's flags. Asking clears them there.
func (s *SLCAN) Status(ctx context.Context) (Flags, error) {
	text, err := s.command(ctx, "F")
	if err != nil {
		return 0, err
	}
	if len(text) != 3 || text[0] != 'F' {
		return 0, fmt.Errorf("command F: answer %q, want F and two hexadecimal digits", text)
	}
	high, ok := unhex(text[1])
	low, ok2 := unhex(text[2])
	if !ok || !ok2 {
		return 0, fmt.Errorf("command F: answer %q, want F and two hexadecimal digits", text)
	}
	return Flags(high<<4 | low), nil
}

// Stats counts what happened. The state is known only from adapters that tell it.
func (s *SLCAN) Stats() Stats { return s.queue.read() }

// closing is how long the last command may take to get out of the way.
const closing = 200 * time.Millisecond

// Close takes the adapter off the bus, if it still can, and closes the port.
func (s *SLCAN) Close() error {
	err := error(nil)
	s.closed.Do(func() {
		if s.queue.ended() == nil {
			ctx, cancel := context.WithTimeout(context.Background(), closing)
			_ = s.write.do(ctx, []byte("C\r")) // the adapter may be gone
			cancel()
		}
		s.queue.end(ErrClosed)
		s.write.close()
		err = s.rwc.Close()
	})
	return err
}

// listen reads what the adapter says until the link is lost.
func (s *SLCAN) listen() {
	defer crashes.Load().Catch("read the CAN adapter", func(err error) { s.queue.end(fmt.Errorf("%w: %w", ErrDown, err)) })
	var l lines
	buf := make([]byte, 512)
	for {
		n, err := s.rwc.Read(buf)
		for _, b := range buf[:n] {
			if line, end := l.add(b); end {
				s.heard(line, b)
			}
		}
		if l.dropped > 0 {
			s.queue.count(func(st *Stats) { st.Garbage += l.dropped })
			l.dropped = 0
		}
		if err != nil {
			s.queue.end(fmt.Errorf("read the CAN adapter: %w (is it unplugged?): %w", ErrDown, err))
			return
		}
	}
}

// heard takes one line without its end, which is CR or BEL.
func (s *SLCAN) heard(line []byte, end byte) {
	defer crashes.Load().Catch("read a line of a CAN adapter", nil) // the next line is another one
	if end == bel {
		if len(line) > 0 {
			s.queue.count(func(st *Stats) { st.Garbage++ })
		}
		s.answered(answer{refused: true})
		return
	}
	if len(line) == 0 {
		s.answered(answer{})
		return
	}
	switch line[0] {
	case 't', 'T', 'r', 'R':
		if f, ok := parseLine(line); ok {
			s.queue.push(f)
			return
		}
	case 'z', 'Z', 'V', 'v', 'N', 'F':
		if len(line) == 1 || line[0] != 'z' && line[0] != 'Z' {
			s.answered(answer{text: string(line)})
			return
		}
	case 's':
		if state, ok := states[line[min(1, len(line)-1)]]; ok && len(line) == 8 {
			s.queue.count(func(st *Stats) { st.State = state })
			if state == StateBusOff {
				s.queue.report(fmt.Errorf("read the CAN adapter: %w (counters %s)", ErrBusOff, line[2:]))
			}
			return
		}
	}
	s.queue.count(func(st *Stats) { st.Garbage++ })
}

// states in Linux's lines sX and two counters of three digits
// (drivers/net/can/slcan/slcan-core.c, since 6.0).
var states = map[byte]State{'a': StateActive, 'w': StateWarning, 'p': StatePassive, 'b': StateBusOff}

// answered hands an answer to the command that waits. Without one it is dropped.
func (s *SLCAN) answered(a answer) {
	select {
	case s.answers <- a:
	default:
	}
}
