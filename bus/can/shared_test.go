package can_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

var _ can.Bus = (*can.User)(nil)

// fakeLink is a fake of a link with room for one user. The test says what comes and when it
// is lost, and when a frame that is sent is through.
type fakeLink struct {
	in     chan any           // a can.Frame or an error
	out    chan can.Frame     // what is sent; nil: it goes nowhere, at once
	stop   context.CancelFunc // by Close
	closed context.Context
	slow   time.Duration // how long Close takes
	free   func()        // called by Close at its end
	once   sync.Once
}

func newFakeLink(slow time.Duration, free func()) *fakeLink {
	l := &fakeLink{in: make(chan any), slow: slow, free: free}
	l.closed, l.stop = context.WithCancel(context.Background())
	return l
}

func (l *fakeLink) Receive(ctx context.Context) (can.Frame, error) {
	select {
	case v := <-l.in:
		if err, ok := v.(error); ok {
			return can.Frame{}, err
		}
		return v.(can.Frame), nil
	case <-ctx.Done():
		return can.Frame{}, ctx.Err()
	case <-l.closed.Done():
		return can.Frame{}, can.ErrClosed
	}
}

func (l *fakeLink) Send(ctx context.Context, f can.Frame) error {
	if l.out == nil {
		return nil
	}
	select {
	case l.out <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.closed.Done():
		return can.ErrClosed
	}
}

func (l *fakeLink) Close() error {
	l.once.Do(func() {
		l.stop()
		<-time.After(l.slow)
		l.free()
	})
	return nil
}

// plug is a fake of what an adapter is plugged into: it can be opened by one at a time.
type plug struct {
	mu    sync.Mutex
	err   error         // why it cannot be opened
	slow  time.Duration // how long that takes, and closing it
	taken bool
	at    []time.Duration // when it was tried, since the first
	began time.Time
	links []*fakeLink
}

func (p *plug) open(ctx context.Context) (can.Bus, error) {
	p.mu.Lock()
	if p.began.IsZero() {
		p.began = time.Now()
	}
	p.at = append(p.at, time.Since(p.began))
	slow, err := p.slow, p.err
	if p.taken {
		p.mu.Unlock()
		return nil, errors.New("it is open already")
	}
	p.taken = true
	p.mu.Unlock()
	free := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken = false
	}
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		free()
		return nil, ctx.Err()
	}
	if err != nil {
		free()
		return (*fakeLink)(nil), err // as a func does that returns what another one returned
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := newFakeLink(slow, free)
	p.links = append(p.links, l)
	return l, nil
}

// link is the one that is open, or was last.
func (p *plug) link() *fakeLink {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.links[len(p.links)-1]
}

func (p *plug) tried() []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.at)
}

func (p *plug) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func join(t *testing.T, s *can.Shared, c can.UserConfig) *can.User {
	t.Helper()
	u, err := s.Join(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

// Every user gets what it wants to hear; one that does not listen loses its own, the oldest.
func TestSharedFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plug
		s := can.NewShared(can.SharedConfig{Open: p.open})
		quick, some, slow := join(t, s, can.UserConfig{}), join(t, s, can.UserConfig{Filters: can.Filters{{ID: 7, Mask: 0x7FF}}}), join(t, s, can.UserConfig{})
		const n = 3000
		for i := range n {
			f := can.Standard(uint32(i%10), byte(i>>8), byte(i))
			p.link().in <- f
			receive(t, quick, f)
			if i%10 == 7 {
				receive(t, some, f)
			}
		}
		if st := slow.Stats(); st.Lost != n-1024 || st.Received != n {
			t.Errorf("the slow user: got %+v, want all but 1024 of %d frames lost", st, n)
		}
		if q, o := quick.Stats(), some.Stats(); q.Lost != 0 || o.Lost != 0 {
			t.Errorf("the others lost %d and %d frames because of it", q.Lost, o.Lost)
		}
		receive(t, slow, can.Standard((n-1024)%10, (n-1024)>>8, (n-1024)&0xFF))
		if got := len(p.tried()); got != 1 {
			t.Errorf("opened %d times, want once for all", got)
		}
	})
}

// Of what waits, the frame goes out first that would win the arbitration; of equals that which came first.
func TestSharedArbitration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plug
		s := can.NewShared(can.SharedConfig{Open: p.open})
		one, two := join(t, s, can.UserConfig{}), join(t, s, can.UserConfig{})
		p.link().out = make(chan can.Frame)
		// In the order of a bus. 29 bits come behind 11 that begin alike, and data before what asks for it.
		want := []can.Frame{can.Standard(0), can.Standard(0x305, 1), {ID: 0x305, Remote: true}, can.Extended(0x305<<18 | 1),
			{ID: 0x305<<18 | 1, Extended: true, Remote: true}, can.Extended(0x305<<18 | 2), can.Standard(0x306), can.Extended(0x18DAF110, 1), can.Extended(0x18DAF110, 2), can.Extended(0x18DAF111), can.Standard(0x7FF)}
		var all sync.WaitGroup
		send := func(u *can.User, f can.Frame) {
			all.Go(func() {
				if err := u.Send(t.Context(), f); err != nil {
					t.Errorf("send %v: %v", f, err)
				}
			})
			synctest.Wait() // it waits now
		}
		send(two, can.Standard(0x7FE)) // has the link already
		for i := range want {          // out of order, but for equal ones
			send([]*can.User{one, two}[i%2], want[i*7%len(want)])
		}
		if got := <-p.link().out; got != can.Standard(0x7FE) {
			t.Errorf("first came %v: what is on its way is not stopped", got)
		}
		var got []can.Frame
		for synctest.Wait(); ; synctest.Wait() {
			select {
			case f := <-p.link().out:
				got = append(got, f)
				continue
			default:
			}
			break
		}
		all.Wait()
		if !slices.Equal(got, want) {
			t.Errorf("got\n%v, want\n%v", got, want)
		}
	})
}

// A link that is lost is lost for all; whoever joins first opens it for all, not more often than
// the pauses allow, which grow.
func TestSharedLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plug
		s := can.NewShared(can.SharedConfig{Open: p.open})
		one, two := join(t, s, can.UserConfig{}), join(t, s, can.UserConfig{})
		time.Sleep(time.Minute)
		p.link().in <- can.Standard(1)
		unplugged := errors.New("unplugged")
		p.link().in <- errors.Join(can.ErrDown, unplugged)
		p.fail(unplugged)
		for _, u := range []*can.User{one, two} {
			receive(t, u, can.Standard(1)) // what came before
			for range 2 {
				if _, err := u.Receive(t.Context()); !errors.Is(err, can.ErrDown) || !errors.Is(err, unplugged) {
					t.Errorf("receive: got %v, want that it is down, and why", err)
				}
			}
			if err := u.Send(t.Context(), can.Standard(2)); !errors.Is(err, can.ErrDown) {
				t.Errorf("send: got %v, want that it is down", err)
			}
		}
		lost := p.tried()
		begin := time.Now()
		var users sync.WaitGroup
		for n, u := range []*can.User{one, two} { // as readers and sources do, each at its own pace
			users.Go(func() {
				if err := u.Close(); err != nil {
					t.Error(err)
				}
				for {
					u, err := s.Join(t.Context(), can.UserConfig{})
					if err == nil {
						t.Cleanup(func() { u.Close() })
						return
					}
					if !errors.Is(err, unplugged) {
						t.Errorf("join: got %v", err)
					}
					time.Sleep(time.Duration(n+1) * 300 * time.Millisecond)
				}
			})
		}
		time.Sleep(30 * time.Second)
		p.fail(nil)
		users.Wait()
		if took := time.Since(begin); took > 39*time.Second {
			t.Errorf("both are back %v after it was lost for 30s, want at most 8 s later", took)
		}
		at := p.tried()[len(lost):]
		for i := 1; i < len(at)-1; i++ {
			if pause := at[i] - at[i-1]; pause < time.Second<<min(i-1, 3) {
				t.Errorf("attempt %d came %v after the one before: %v", i, pause, at)
			}
		}
		if len(at) > 8 {
			t.Errorf("%d attempts in 30 s: %v", len(at), at)
		}
	})
}

// One user that leaves does not disturb the others; the last takes the link with it.
func TestSharedClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plug
		s := can.NewShared(can.SharedConfig{Open: p.open})
		one, two := join(t, s, can.UserConfig{}), join(t, s, can.UserConfig{})
		link := p.link()
		link.out = make(chan can.Frame)
		stuck := make(chan error, 2)
		go func() { stuck <- one.Send(t.Context(), can.Standard(1)) }()
		synctest.Wait()
		go func() { stuck <- one.Send(t.Context(), can.Standard(2)) }() // waits for its turn
		go func() {
			_, err := one.Receive(t.Context())
			stuck <- err
		}()
		synctest.Wait()
		for range 2 {
			if err := one.Close(); err != nil {
				t.Error(err)
			}
		}
		for range 3 {
			if err := <-stuck; !errors.Is(err, can.ErrClosed) {
				t.Errorf("what was under way: got %v, want that it is closed", err)
			}
		}
		link.out = nil
		if err := two.Send(t.Context(), can.Standard(3)); err != nil {
			t.Errorf("the other one: %v", err)
		}
		link.in <- can.Standard(4)
		receive(t, two, can.Standard(4))
		if link.closed.Err() != nil {
			t.Error("the link is closed although it has a user")
		}
		two.Close()
		if link.closed.Err() == nil {
			t.Error("the link is open when its last user has closed it")
		}
		join(t, s, can.UserConfig{}) // at once: nothing was wrong with it
		if at := p.tried(); len(at) != 2 || at[1] != 0 {
			t.Errorf("opened at %v, want twice, without a pause", at)
		}
	})
}

// Who comes while the last user's link is being closed waits for that.
func TestSharedJoinWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := plug{slow: 200 * time.Millisecond}
		s := can.NewShared(can.SharedConfig{Open: p.open})
		begin := time.Now()
		one := join(t, s, can.UserConfig{})
		closed := make(chan error)
		go func() { closed <- one.Close() }()
		synctest.Wait() // it is being closed
		two, err := s.Join(t.Context(), can.UserConfig{})
		if took := time.Since(begin); took != 600*time.Millisecond {
			t.Errorf("open after %v, want 200 ms each for the first time, for closing it, and for the second time", took)
		}
		if err := errors.Join(err, <-closed); err != nil {
			t.Fatal(err)
		}
		defer two.Close()
		p.link().in <- can.Standard(1)
		receive(t, two, can.Standard(1))
	})
}

// Who gives up while the link is opened does not disturb who still waits; if it was the last, nothing stays open.
func TestSharedJoinGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := plug{slow: 10 * time.Second}
		s := can.NewShared(can.SharedConfig{Open: p.open})
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		gaveUp := make(chan error, 1)
		go func() {
			_, err := s.Join(short, can.UserConfig{})
			gaveUp <- err
		}()
		join(t, s, can.UserConfig{}).Close()
		if err := <-gaveUp; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		begin := time.Now()
		short, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Join(short, can.UserConfig{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("got %v after %v, want the end of the context after 1s", err, time.Since(begin))
		}
		if got := len(p.links); got != 1 {
			t.Errorf("%d links were opened, want only that which somebody waited for", got)
		}
	})
}

// Who only listens sends nothing; others on the same link do.
func TestSharedListenOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plug
		s := can.NewShared(can.SharedConfig{Open: p.open})
		listener, sender := join(t, s, can.UserConfig{ListenOnly: true}), join(t, s, can.UserConfig{})
		p.link().out = make(chan can.Frame, 2)
		if err := listener.Send(t.Context(), can.Standard(1)); err == nil {
			t.Error("who only listens has sent")
		}
		if err := sender.Send(t.Context(), can.Standard(2)); err != nil {
			t.Error(err)
		}
		if err := sender.Send(t.Context(), can.Standard(0x800)); err == nil {
			t.Error("what is no frame was sent")
		}
		if got := <-p.link().out; got != can.Standard(2) || len(p.link().out) > 0 {
			t.Errorf("sent %v, and %d more", got, len(p.link().out))
		}
	})
}

// A controller that is off the bus, and a link that heals, are told of, and everybody stays.
func TestSharedHeals(t *testing.T) {
	for _, tt := range []struct {
		heals bool
		err   error
	}{{false, can.ErrBusOff}, {true, can.ErrBusOff}, {true, can.ErrDown}} {
		synctest.Test(t, func(t *testing.T) {
			var p plug
			s := can.NewShared(can.SharedConfig{Open: p.open, Heals: tt.heals})
			users := []*can.User{join(t, s, can.UserConfig{}), join(t, s, can.UserConfig{})}
			p.link().in <- tt.err
			p.link().in <- can.Standard(1)
			synctest.Wait()
			for _, u := range users {
				if _, err := u.Receive(t.Context()); !errors.Is(err, tt.err) {
					t.Errorf("got %v, want %v", err, tt.err)
				}
				receive(t, u, can.Standard(1))
			}
			if s.Heals() != tt.heals || len(p.tried()) != 1 {
				t.Errorf("heals: %v, opened %d times, want once", s.Heals(), len(p.tried()))
			}
		})
	}
}

// A link that heals, and is lost for good all the same, is closed for its users: who stays while it is only down
// would otherwise wait for ever, and it is opened for who joins again.
func TestSharedHealsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plug
		s := can.NewShared(can.SharedConfig{Open: p.open, Heals: true})
		u := join(t, s, can.UserConfig{})
		p.link().in <- errors.New("broken")
		synctest.Wait()
		for range 2 {
			if _, err := u.Receive(t.Context()); !errors.Is(err, can.ErrClosed) {
				t.Errorf("got %v, want %v", err, can.ErrClosed)
			}
		}
		again := join(t, s, can.UserConfig{})
		p.link().in <- can.Standard(1)
		receive(t, again, can.Standard(1))
	})
}

// A user that may send so many frames a second does not keep the others from sending while it waits.
func TestSharedPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plug
		s := can.NewShared(can.SharedConfig{Open: p.open})
		slow, quick := join(t, s, can.UserConfig{Pace: 10}), join(t, s, can.UserConfig{})
		begin := time.Now()
		var all sync.WaitGroup
		all.Go(func() {
			for range 11 {
				if err := slow.Send(t.Context(), can.Standard(1)); err != nil {
					t.Error(err)
				}
			}
		})
		synctest.Wait()
		if err := quick.Send(t.Context(), can.Standard(0x7FF)); err != nil || time.Since(begin) > 0 {
			t.Errorf("the other one waited %v: %v", time.Since(begin), err)
		}
		all.Wait()
		if took := time.Since(begin); took != time.Second {
			t.Errorf("11 frames at 10/s took %v, want 1 s", took)
		}
	})
}

// Users come and go, and the link is lost again and again, all at once; nobody hangs, and the link has one owner.
func TestSharedTurmoil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := plug{slow: 3 * time.Millisecond}
		s := can.NewShared(can.SharedConfig{Open: p.open, Retry: time.Millisecond})
		var users sync.WaitGroup
		for n := range 8 {
			users.Go(func() {
				for i := range 50 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+(i*n)%50)*time.Millisecond)
					u, err := s.Join(ctx, can.UserConfig{})
					if err == nil {
						_ = u.Send(ctx, can.Standard(uint32(n)))
						_, _ = u.Receive(ctx)
						err = u.Close()
					}
					if err != nil && ctx.Err() == nil {
						t.Errorf("user %d: %v", n, err)
					}
					cancel()
				}
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var breaker sync.WaitGroup
		breaker.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(17 * time.Millisecond)
				p.mu.Lock()
				var l *fakeLink
				if n := len(p.links); n > 0 {
					l = p.links[n-1]
				}
				p.mu.Unlock()
				if l == nil {
					continue
				}
				select {
				case l.in <- can.ErrDown:
				case <-l.closed.Done():
				case <-ctx.Done():
				}
			}
		})
		users.Wait()
		cancel()
		breaker.Wait()
		if l := p.link(); l.closed.Err() == nil {
			t.Error("the link is open, and nobody has it")
		}
	})
}
