package bustest

import (
	"io"
	"slices"
	"sync"
	"time"
)

// Cutter says how long the frame is with which b begins, as seen by who waits for it to be
// whole: 0 if b is too short to say, negative if only silence ends it. answer says that it
// comes from the side that answers, which is the second of a [Relay].
type Cutter func(b []byte, answer bool) int

// RelayConfig says how a Relay finds frames and what it does to them.
type RelayConfig struct {
	Cut    Cutter // RTU or Lines
	Faults Faults // Record.From is "master" or "slave"
	Tap    *Tap
	// Quiet is the silence after which what has come is passed on even if it is no frame.
	// 0: 100 ms.
	Quiet time.Duration
}

// The two sides of a Relay.
const (
	Master = "master" // who asks: the first
	Slave  = "slave"  // who answers: the second
)

// Relay passes frames on between two streams, such as ends of two wires or two pseudo
// terminals, and does to them what the faults say. It ends, and closes both, when one of
// them does, or stop is called.
func Relay(master, slave io.ReadWriteCloser, c RelayConfig) (stop func()) {
	if c.Quiet <= 0 {
		c.Quiet = 100 * time.Millisecond
	}
	var once sync.Once
	done := make(chan struct{})
	stop = func() {
		once.Do(func() {
			close(done)
			master.Close()
			slave.Close()
		})
	}
	for _, d := range []*passage{
		{name: Master, from: master, to: slave},
		{name: Slave, from: slave, to: master, answer: true},
	} {
		d.RelayConfig, d.done, d.bytes, d.stop = c, done, make(chan []byte), stop
		go d.read()
		go d.pass()
	}
	return stop
}

// passage is one direction of a relay.
type passage struct {
	RelayConfig
	name   string
	from   io.Reader
	to     io.Writer
	answer bool
	done   chan struct{}
	bytes  chan []byte
	stop   func()

	n     int
	held  []byte // comes late,
	twice bool   // for a second time
}

func (p *passage) read() {
	defer p.stop()
	for {
		b := make([]byte, 1024)
		n, err := p.from.Read(b)
		if n > 0 {
			select {
			case p.bytes <- b[:n]:
			case <-p.done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *passage) pass() {
	defer p.stop()
	timer := time.NewTimer(time.Hour) // silence
	late := time.NewTimer(time.Hour)  // of what is held back
	defer timer.Stop()
	defer late.Stop()
	var buf []byte
	for {
		select {
		case b := <-p.bytes:
			buf = append(buf, b...)
			for n := p.Cut(buf, p.answer); n > 0 && n <= len(buf); n = p.Cut(buf, p.answer) {
				if !p.one(buf[:n], late) {
					return
				}
				buf = buf[n:]
			}
			timer.Reset(p.Quiet)
		case <-timer.C:
			if len(buf) > 0 && !p.one(buf, late) {
				return
			}
			buf = nil
		case <-late.C:
			if held := p.held; held != nil {
				p.held, p.twice = nil, false
				if !p.write(held) {
					return
				}
			}
		case <-p.done:
			return
		}
	}
}

// one passes a frame on.
func (p *passage) one(frame []byte, late *time.Timer) bool {
	r := Record{From: p.name, N: p.n, Data: frame, Queued: time.Now(), At: time.Now()}
	p.n++
	r.Verdict = p.Faults.judge(r)
	p.Tap.add(r)
	switch r.Verdict {
	case Lose, Cut, CutInner:
		return true
	case Garble:
		return p.write(p.Faults.garble(r))
	case Double:
		if p.Faults.Hold <= 0 || p.held != nil {
			return p.write(frame) && p.write(frame)
		}
		p.held, p.twice = slices.Clone(frame), true
		late.Reset(p.Faults.Hold)
		return p.write(frame)
	case Swap:
		if p.held == nil {
			p.held, p.twice = slices.Clone(frame), false
			late.Reset(p.Faults.hold())
			return true
		}
	}
	if p.twice {
		return p.write(frame)
	}
	held := p.held
	p.held = nil
	return p.write(frame) && (held == nil || p.write(held))
}

func (p *passage) write(b []byte) bool {
	_, err := p.to.Write(append([]byte(nil), b...))
	return err == nil
}

// RTU cuts a stream into frames of Modbus RTU by the function code, with their CRC
// (V1.1b3, 6): those of the functions 1 to 6, 15, 16, and 20 to 23, and exceptions. It
// does not look at the CRC.
func RTU(b []byte, answer bool) int {
	if len(b) < 2 {
		return 0
	}
	count := func(at, others int) int {
		if len(b) <= at {
			return 0
		}
		return others + int(b[at])
	}
	switch f := b[1]; {
	case answer && f >= 0x80:
		return 5
	case f == 5 || f == 6, !answer && f >= 1 && f <= 4, answer && (f == 15 || f == 16):
		return 8
	case f == 15 || f == 16:
		return count(6, 9)
	case f == 20 || f == 21, answer && (f >= 1 && f <= 4 || f == 23):
		return count(2, 5)
	case f == 22:
		return 10
	case f == 23:
		return count(10, 13)
	}
	return -1
}

// Lines cuts a stream into the lines of SLCAN, which end with CR or BEL.
func Lines(b []byte, _ bool) int {
	for i, c := range b {
		if c == '\r' || c == '\a' {
			return i + 1
		}
	}
	return 0
}
