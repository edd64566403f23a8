package uds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/internal/patience"
)

// ClientConfig says how patient a client is. The zero value works.
type ClientConfig struct {
	// P2 is how long the server may take for an answer, until it says so itself in its
	// answer to DiagnosticSession; 0: 50 ms.
	P2 time.Duration
	// P2Star is the same after ResponsePending; 0: 5 s.
	P2Star time.Duration
	// Margin is what the way there and back may take, added to P2 and P2Star; 0: 500 ms.
	Margin time.Duration
	// Adapt makes Margin shorter on a line that has shown that it loses messages: from the
	// first request on that had no answer it follows what answers really take, is at least
	// 30 ms, and grows up to what is said here while that is not enough. P2 and P2Star,
	// which are the server's, stay.
	Adapt bool
	// MaxPending is how long a server may answer ResponsePending to one request; 0: 10 min.
	MaxPending time.Duration
	// KeepAlive is after how much silence the server is told that the client is there,
	// while a session other than the default one is open; 0: 2 s; negative: never.
	KeepAlive time.Duration
	// Functional is where that goes; nil: where all goes.
	Functional Conn
	// Repeats is how often a request that got no answer is sent again, if that does no
	// harm: see each call; 0: 2; negative: never.
	Repeats int
	// Busy is how often a request is sent again that was answered with
	// BusyRepeatRequest; 0: 20; negative: never. BusyPause is the time between; 0: 250 ms.
	Busy      int
	BusyPause time.Duration
}

// filled returns the configuration with its defaults.
func (c ClientConfig) filled() ClientConfig {
	c.P2 = orElse(c.P2, 50*time.Millisecond)
	c.P2Star = orElse(c.P2Star, 5*time.Second)
	c.Margin = orElse(c.Margin, 500*time.Millisecond)
	c.MaxPending = orElse(c.MaxPending, 10*time.Minute)
	c.KeepAlive = orElse(c.KeepAlive, 2*time.Second)
	c.Repeats = orElse(c.Repeats, 2)
	c.Busy = orElse(c.Busy, 20)
	c.BusyPause = orElse(c.BusyPause, 250*time.Millisecond)
	return c
}

// leastMargin is for operating systems that let a program wait.
const leastMargin = 30 * time.Millisecond

// starved is how late a timer is on a machine that is busy with something else.
const starved = 20 * time.Millisecond

// Errors of a client, besides [NegativeAnswer] and those of its Conn.
var (
	ErrNoAnswer = errors.New("no answer")
	ErrAnswer   = errors.New("the answer does not fit the request")
	ErrClosed   = errors.New("the client is closed")
)

// Client asks one server. Its methods may be called by several goroutines; there is one
// request at a time.
type Client struct {
	conn Conn
	cfg  ClientConfig

	cancel  context.CancelFunc
	ctx     context.Context // ends with Close, or with conn
	running sync.WaitGroup
	answers chan []byte
	turn    chan struct{} // a token: one request at a time
	wake    chan struct{} // the session or the time of the last request changed

	mu         sync.Mutex
	session    Session
	p2, p2Star time.Duration
	asked      time.Time      // when the server last heard of us
	way        patience.Timer // Margin
	lost       error          // of conn
}

// NewClient returns a client that reads all that comes from conn, until Close.
func NewClient(conn Conn, cfg ClientConfig) *Client {
	c := &Client{conn: conn, cfg: cfg.filled(), session: Default,
		answers: make(chan []byte, 16), turn: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	c.p2, c.p2Star = c.cfg.P2, c.cfg.P2Star
	c.way.Most = c.cfg.Margin
	if c.cfg.Adapt {
		c.way.Least = min(leastMargin, c.cfg.Margin)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.running.Go(c.read)
	if c.cfg.KeepAlive > 0 {
		c.running.Go(c.keepAlive)
	}
	return c
}

// Close stops the client and waits until nothing of it runs. It does not close conn, nor
// does it leave the session: the server does that itself after its S3.
func (c *Client) Close() error {
	c.cancel()
	c.running.Wait()
	return nil
}

// Session is the session that the server is in, as far as the client knows: a server
// that has heard nothing for its S3 is back in the default session.
func (c *Client) Session() Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

// read keeps the newest answers for whoever waits. What nobody waits for is dropped when
// the next request begins.
func (c *Client) read() {
	err := receive(c.ctx, c.conn, func(pdu []byte) {
		select {
		case c.answers <- pdu:
		default: // more than a server has a reason to say
		}
	})
	if err != nil {
		c.mu.Lock()
		c.lost = err
		c.mu.Unlock()
		c.cancel()
	}
}

// take waits for the turn to ask.
func (c *Client) take(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ctx.Done():
	}
	if c.ctx.Err() != nil {
		return c.closed()
	}
	return nil
}

func (c *Client) closed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost != nil {
		return c.lost
	}
	return ErrClosed
}

// Request sends any request once and returns the positive answer. A negative one is a
// [NegativeAnswer]. If the request wants no positive answer, it returns nil when none
// came within P2.
func (c *Client) Request(ctx context.Context, pdu []byte) ([]byte, error) {
	return c.ask(ctx, pdu, 0)
}

// ask sends a request, again if it had no answer, and again if the server was busy.
func (c *Client) ask(ctx context.Context, pdu []byte, repeats int) ([]byte, error) {
	if len(pdu) == 0 || !isRequest(pdu[0]) {
		return nil, fmt.Errorf("%w: ask: % X is no request", ErrMessage, head(pdu))
	}
	service := Service(pdu[0])
	busy := 0
	for {
		answer, err := c.once(ctx, pdu)
		switch {
		case err == nil:
			return answer, nil
		case errors.Is(err, ErrNoAnswer) && repeats > 0:
			repeats--
		case errors.Is(err, BusyRepeatRequest) && busy < c.cfg.Busy:
			busy++
		default:
			if _, ok := err.(*NegativeAnswer); ok {
				return nil, err // it says all of it
			}
			return nil, fmt.Errorf("ask for %v: %w", service, err)
		}
	}
}

// once sends a request and waits for what belongs to it.
func (c *Client) once(ctx context.Context, pdu []byte) ([]byte, error) {
	if err := c.take(ctx); err != nil {
		return nil, err
	}
	defer func() { <-c.turn }()
	// Requests of which none gets through do not keep a session.
	if c.due() <= 0 {
		c.tellPresent()
	}
	for len(c.answers) > 0 {
		<-c.answers // of earlier requests
	}
	if err := c.conn.Send(ctx, pdu); err != nil {
		if ctx.Err() != nil || isClosed(err) {
			return nil, err
		}
		if answer := c.cameMeanwhile(pdu); answer != nil {
			return answer, nil
		}
		// The server may have it all the same, if it was the last frame's turn.
		return nil, fmt.Errorf("%w: send: %w", ErrNoAnswer, err)
	}
	return c.await(ctx, pdu)
}

// cameMeanwhile returns a positive answer to pdu that came while it was sent, which is that to the same
// request before; nil: none did.
func (c *Client) cameMeanwhile(pdu []byte) []byte {
	for len(c.answers) > 0 {
		if answer := <-c.answers; belongs(answer, pdu) && answer[0] != negative {
			c.heard()
			return answer
		}
	}
	return nil
}

// heard notes that the server knows that we are there, or was told at least.
func (c *Client) heard() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = time.Now()
}

// await waits for the answer to pdu.
func (c *Client) await(ctx context.Context, pdu []byte) ([]byte, error) {
	c.mu.Lock()
	p2, p2Star, margin := c.p2, c.p2Star, c.way.Now()
	c.mu.Unlock()
	service := Service(pdu[0])
	quiet := service.HasSubFunction() && len(pdu) > 1 && pdu[1]&suppress != 0
	since, patience := time.Now(), p2+margin
	due, late := since.Add(patience), false
	first := true // nothing of the server came yet
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var busy *NegativeAnswer
	for {
		select {
		case answer := <-c.answers:
			if !belongs(answer, pdu) {
				continue
			}
			c.heard()
			if first {
				c.took(time.Since(since))
				first = false
			}
			if answer[0] != negative {
				return answer, nil
			}
			refusal, err := ParseNegativeAnswer(answer)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
			}
			switch refusal.Code {
			case ResponsePending:
			case BusyRepeatRequest:
				// The line may have brought the request twice, and the server works on
				// the first: then the pause before the next attempt brings its answer.
				busy = &refusal
				due = time.Now().Add(c.cfg.BusyPause)
				timer.Reset(c.cfg.BusyPause)
				continue
			default:
				return nil, &refusal
			}
			if time.Since(since) >= c.cfg.MaxPending {
				return nil, fmt.Errorf("the server has asked for patience for %v, too long: %w", time.Since(since), &refusal)
			}
			quiet, busy = false, nil // now the server answers in any case
			patience = p2Star + margin
			due = time.Now().Add(patience)
			timer.Reset(patience)
		case <-timer.C:
			if receiving(c.conn) && time.Since(since) < c.cfg.MaxPending {
				due = time.Now().Add(p2)
				timer.Reset(p2)
				continue
			}
			if !late && (len(c.answers) > 0 || time.Since(due) > starved) {
				late = true // this program was not given the time to read it
				timer.Reset(p2)
				continue
			}
			switch {
			case busy != nil:
				return nil, busy
			case quiet:
				return nil, nil
			}
			c.silence()
			return nil, fmt.Errorf("%w within %v", ErrNoAnswer, patience)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.ctx.Done():
			return nil, c.closed()
		}
	}
}

// took notes how long the way there and back takes, with what the server needed.
func (c *Client) took(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.way.Took(d)
}

// silence notes that no answer came in time.
func (c *Client) silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.way.Over()
}

// belongs reports whether an answer is one to pdu: what came late, for an earlier
// request, differs in its service, sub-function, identifier or counter.
func belongs(answer, pdu []byte) bool {
	if len(answer) == 0 {
		return false
	}
	if answer[0] == negative {
		return len(answer) > 1 && answer[1] == pdu[0]
	}
	if answer[0] != pdu[0]+positive {
		return false
	}
	for i := range echoed(pdu) {
		if len(answer) <= i+1 || len(pdu) <= i+1 {
			break // no answer as it should be: the Parse functions say what is wrong
		}
		want := pdu[i+1]
		if i == 0 && Service(pdu[0]).HasSubFunction() {
			want &^= suppress
		}
		if answer[i+1] != want {
			return false
		}
	}
	return true
}

// echoed is how many bytes behind the service come back in a positive answer.
func echoed(pdu []byte) int {
	s := Service(pdu[0])
	switch s {
	case ReadDataByIdentifier:
		if len(pdu) > 3 {
			return 0 // the first of several may be left out
		}
		return 2
	case RoutineControl:
		return 3
	case WriteDataByIdentifier:
		return 2
	case TransferData, RequestFileTransfer:
		return 1
	}
	if s.HasSubFunction() {
		return 1
	}
	return 0
}

// keepAlive tells the server that the client is there, between requests.
func (c *Client) keepAlive() {
	timer := stopped()
	defer timer.Stop()
	for {
		select {
		case <-c.wake:
			timer.Reset(c.cfg.KeepAlive)
		case <-timer.C:
			if next := c.present(); next > 0 {
				timer.Reset(next)
			}
		case <-c.ctx.Done():
			return
		}
	}
}

// present sends TesterPresent if it is time, and returns when it will be; 0: not before
// there is another session. While a request runs, the server's S3 does not.
func (c *Client) present() time.Duration {
	if c.Session() == Default {
		return 0
	}
	if left := c.due(); left > 0 {
		return left
	}
	select {
	case c.turn <- struct{}{}:
	default:
		return c.cfg.KeepAlive
	}
	defer func() { <-c.turn }()
	c.tellPresent()
	return c.cfg.KeepAlive
}

// due is when the server must be told that the client is there.
func (c *Client) due() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == Default || c.cfg.KeepAlive < 0 {
		return time.Hour
	}
	return c.cfg.KeepAlive - time.Since(c.asked)
}

// tellPresent tells it. Nobody waits for an answer. If it does not get out, the next one may.
func (c *Client) tellPresent() {
	conn := c.cfg.Functional
	if conn == nil {
		conn = c.conn
	}
	_ = conn.Send(c.ctx, PresentRequest{Suppress: true}.Append(nil))
	c.heard()
}

// entered notes the session that the server is in now; times of 0 were not told.
func (c *Client) entered(a SessionAnswer) {
	c.mu.Lock()
	c.session = a.Session
	c.p2, c.p2Star = orElse(a.P2, c.cfg.P2), orElse(a.P2Star, c.cfg.P2Star)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
