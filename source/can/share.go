package can

import (
	"context"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// longestSTmin is what flow control can ask for (ISO 15765-2, 9.6.5.4).
const longestSTmin = 127 * time.Millisecond

// Longest frames with eight bytes, stuff bits and the space between frames included
// (ISO 11898-1, 10.5: 111 and 131 bits, of which 98 and 118 are stuffed: at worst one more for
// each four after the first).
const (
	longest11 = 111 + (98-1)/4
	longest29 = 131 + (118-1)/4
)

// longestLine is in characters: a frame of 29 bits with eight bytes, as SLCAN has it, and its CR;
// a character has ten bits on the line.
const longestLine = 1 + 8 + 1 + 16 + 1

// frame is how long one frame is on the bus at most.
func (cfg *Config) frame() time.Duration {
	bits := time.Duration(longest29)
	if cfg.eleven() {
		bits = longest11
	}
	return bits * time.Second / time.Duration(cfg.Bitrate)
}

// carried is how long one frame keeps others waiting at most: on the bus, or on the serial line
// to it, if that is slower and has other users.
func (cfg *Config) carried() time.Duration {
	if l := cfg.Link; l.Shared != nil && l.Baud > 0 {
		return max(cfg.frame(), longestLine*10*time.Second/time.Duration(l.Baud))
	}
	return cfg.frame()
}

// pause is the STmin that testers are asked for. Of a block of BS frames, BS-1 have the
// pause before them, and one flow control frame comes in addition, so that
//
//	share = (BS+1)·carried / ((BS+1)·frame + (BS-1)·pause)
//
// at most; carried is more than frame only where a serial line is slower than the bus. What it is rounded to is what flow control can say: 0.1 to 0.9 ms, then whole
// milliseconds.
func (cfg *Config) pause() time.Duration {
	bs := time.Duration(cfg.BlockSize)
	need := (bs + 1) * (cfg.carried()*100/time.Duration(cfg.Share) - cfg.frame()) / (bs - 1)
	p := max(need, cfg.STmin, 0)
	step := time.Millisecond
	if p <= 900*time.Microsecond {
		step = 100 * time.Microsecond
	}
	return min((p+step-1)/step*step, longestSTmin)
}

// stmin codes the pause as flow control does.
func stmin(p time.Duration) byte {
	if p > 0 && p < time.Millisecond {
		return 0xF0 + byte(p/(100*time.Microsecond))
	}
	return byte(p / time.Millisecond)
}

// rate is how many frames of an answer leave in a second at most.
func (cfg *Config) rate() int {
	return max(1, int(time.Second*time.Duration(cfg.Share)/(100*cfg.carried())))
}

// shared keeps the share of the bus where flow control cannot: between requests. An
// answer waits until what request and answer have taken is within the share, so a tester
// that waits for answers cannot go faster.
type shared struct {
	uds.Conn
	frame time.Duration // on the bus
	cost  time.Duration // of a frame: what it keeps others waiting
	pause time.Duration // that frames of a request have before them
	share int
	block int           // frames for a flow control frame
	owed  time.Duration // at most

	mu   sync.Mutex
	free time.Time // when what was sent and received is paid for
}

func (cfg *Config) shared(c uds.Conn) *shared {
	s := &shared{Conn: c, frame: cfg.frame(), cost: cfg.carried(), pause: cfg.pause(), share: cfg.Share, block: cfg.BlockSize}
	s.owed = 2 * s.price(cfg.MaxBlock)
	return s
}

// frames is how many frames a message of n bytes takes, those of flow control included.
func (s *shared) frames(n int) time.Duration {
	if n <= 7 {
		return 1
	}
	consecutive := (n - 6 + 6) / 7 // the first frame has six bytes
	return time.Duration(1 + consecutive + (consecutive+s.block-1)/s.block)
}

// price is for how long a message of n bytes is to be paid for.
func (s *shared) price(n int) time.Duration {
	return s.frames(n) * s.cost * 100 / time.Duration(s.share)
}

// pay adds what a message has taken, from when it began. No more is owed than the longest
// request and the longest answer: a tester that waits for answers never owes more, and one that
// does not, for instance one that says in a loop that it is present, must not have the device
// silent for hours after it has gone.
func (s *shared) pay(n int, began time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free.Before(began) {
		s.free = began
	}
	s.free = s.free.Add(s.price(n))
	if most := time.Now().Add(s.owed); s.free.After(most) {
		s.free = most
	}
}

// Receive implements [uds.Conn].
func (s *shared) Receive(ctx context.Context) ([]byte, error) {
	b, err := s.Conn.Receive(ctx)
	if err == nil {
		took := s.frames(len(b)) * s.frame
		if len(b) > 7 {
			took += time.Duration((len(b)-6)/7) * s.pause * time.Duration(s.block-1) / time.Duration(s.block)
		}
		s.pay(len(b), time.Now().Add(-took))
	}
	return b, err
}

// Send implements [uds.Conn].
func (s *shared) Send(ctx context.Context, b []byte) error {
	s.mu.Lock()
	wait := time.Until(s.free)
	s.mu.Unlock()
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
	s.pay(len(b), time.Now())
	return s.Conn.Send(ctx, b)
}

// Receiving reports whether a request is arriving; see [uds.Conn].
func (s *shared) Receiving() bool {
	r, ok := s.Conn.(interface{ Receiving() bool })
	return ok && r.Receiving()
}
