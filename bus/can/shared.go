package can

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Shared is a link that several users have at the same time, although it has room for one: a
// serial adapter, or a converter that takes one connection. Start with [NewShared], and give
// each user what [Shared.Join] returns.
//
// Each user gets every frame that the bus brings, in a queue of its own: one that is slow
// loses its own oldest frames, which its [User.Stats] count, and holds up nobody. What users
// send goes out one frame after the other, of those that wait the one that would win the
// arbitration on a bus, and of equal ones the one that came first. What one user sends, the
// others do not receive: whoever listens hears what others on the bus say.
//
// The link is opened by the first user and closed by the last. When it is lost, all users
// hear why, and none of them lives on, unless it heals: they join again, and whoever comes first
// opens it for all. One that heals and is lost for good all the same is [ErrClosed] to them. Attempts are a pause apart, which grows as long as they fail.
type Shared struct {
	config SharedConfig

	mu       sync.Mutex
	life     *life     // nil: nobody uses the link
	failures int       // attempts in a row that did not last
	next     time.Time // earliest attempt
}

// SharedConfig says what is shared.
type SharedConfig struct {
	Name  string                             // for people, for example /dev/ttyACM0
	Open  func(context.Context) (Bus, error) // the link; called again after it was lost
	Retry time.Duration                      // from an attempt that did not last to the next, and twice that after each, up to 8 times; 0: 1 s

	// Heals says that the link comes back by itself after [ErrDown], as a [TCP13] does: users
	// hear of it once, and stay.
	Heals bool
}

// UserConfig says what a user of a shared link may do. The zero value hears everything and
// sends as fast as the link does.
type UserConfig struct {
	Filters    Filters
	Pace       int  // frames/s that this user sends at most; 0: no limit but the link's
	ListenOnly bool // Send is refused; the link itself acknowledges frames and sends for others
}

// life is the link from when somebody wants it until it is closed.
type life struct {
	stop  context.CancelFunc
	ready chan struct{} // closed when it is open, or could not be opened
	over  chan struct{} // closed when it is closed
	turns turns

	// Guarded by the mutex of Shared.
	link  Bus // nil: not open
	users map[*User]struct{}
	err   error // why it is no more, from the moment when that is certain
}

// User is one of those who share a link. It is a [Bus]; a link that was lost stays lost,
// unless it heals.
type User struct {
	shared *Shared
	life   *life
	config UserConfig
	queue  *queue
	pace   *pace
	gone   context.Context // done when nothing is sent any more
	leave  context.CancelFunc
	once   sync.Once
}

var _ Bus = (*User)(nil)

// steady is how long a link has to live to count as one that works.
const steady = 5 * time.Second

// NewShared returns a link without users. It opens nothing.
func NewShared(c SharedConfig) *Shared {
	if c.Retry <= 0 {
		c.Retry = time.Second
	}
	return &Shared{config: c}
}

// Heals reports whether the link comes back by itself, so that its users stay.
func (s *Shared) Heals() bool { return s.config.Heals }

// String is the link's name.
func (s *Shared) String() string { return s.config.Name }

// Join adds a user, and opens the link if there is none. It waits until the link is open, or
// until that was tried without success. A user whose link was lost joins anew.
func (s *Shared) Join(ctx context.Context, c UserConfig) (*User, error) {
	rate := c.Pace
	if rate == 0 {
		rate = -1
	}
	u := &User{shared: s, config: c, queue: newQueue(c.Filters, false), pace: newPace(rate)}
	u.gone, u.leave = context.WithCancel(context.Background())
	for {
		s.mu.Lock()
		l := s.life
		if l == nil {
			l = s.begin()
		}
		if l.err == nil {
			u.life = l
			l.users[u] = struct{}{} // from now on: nothing that comes is missed
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
		select { // until the old one is closed
		case <-l.over:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case <-u.life.ready:
	case <-ctx.Done():
		_ = u.Close() // nothing was sent
		return nil, ctx.Err()
	}
	s.mu.Lock()
	link, err := u.life.link, u.life.err
	s.mu.Unlock()
	if link == nil {
		u.end(err)
		return nil, err
	}
	return u, nil
}

// begin starts a life of the link. The mutex is locked.
func (s *Shared) begin() *life {
	ctx, stop := context.WithCancel(context.Background())
	s.life = &life{stop: stop, ready: make(chan struct{}), over: make(chan struct{}), users: map[*User]struct{}{}}
	go s.run(ctx, s.life)
	return s.life
}

// run is a life of the link.
func (s *Shared) run(ctx context.Context, l *life) {
	link, err := s.open(ctx)
	s.mu.Lock()
	if l.link = link; err != nil && l.err == nil {
		l.err = err
	}
	s.mu.Unlock()
	close(l.ready)
	opened := time.Now()
	if link != nil {
		err = s.listen(ctx, l, link)
		s.mu.Lock()
		if l.err == nil {
			l.err = err
		}
		users := l.users
		l.users = nil // none is added any more
		s.mu.Unlock()
		if s.config.Heals && !errors.Is(err, ErrClosed) { // to who stays while it is down: this time it does not come back
			err = fmt.Errorf("%w: %w", ErrClosed, err)
		}
		for u := range users {
			u.end(err)
		}
		_ = link.Close() // users know already that it is lost, or nobody is there
	}
	s.mu.Lock()
	switch left := ctx.Err() != nil; {
	case left: // everybody has gone: no fault of the link
	case link != nil && time.Since(opened) >= steady:
		s.failures, s.next = 0, time.Now().Add(s.config.Retry)
	default:
		s.next = time.Now().Add(s.config.Retry << min(s.failures, 3))
		s.failures++
	}
	s.life = nil
	s.mu.Unlock()
	l.stop()
	close(l.over)
}

// open opens the link when its time has come.
func (s *Shared) open(ctx context.Context) (_ Bus, err error) {
	defer crashes.Load().Catch("open a CAN link", func(e error) { err = fmt.Errorf("%w: %w", ErrDown, e) })
	s.mu.Lock()
	wait := time.Until(s.next)
	s.mu.Unlock()
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	link, err := s.config.Open(ctx)
	if err != nil {
		return nil, err // and not a nil of another type, which would pass for a link
	}
	if link == nil {
		return nil, fmt.Errorf("open a CAN link: %w: nothing was opened", ErrDown)
	}
	return link, nil
}

// listen gives every frame to every user until the link is lost or nobody is there.
func (s *Shared) listen(ctx context.Context, l *life, link Bus) (err error) {
	defer crashes.Load().Catch("listen to a CAN link", func(e error) { err = fmt.Errorf("%w: %w", ErrDown, e) })
	for {
		f, err := link.Receive(ctx)
		switch {
		case ctx.Err() != nil:
			return ErrClosed
		case err != nil && !errors.Is(err, ErrBusOff) && !(s.config.Heals && errors.Is(err, ErrDown)):
			return err
		}
		s.give(l, f, err)
	}
}

// give gives the users a frame, or what is wrong with a link that goes on.
func (s *Shared) give(l *life, f Frame, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for u := range l.users {
		if err != nil {
			u.queue.report(err)
		} else {
			u.queue.push(f)
		}
	}
}

// Receive implements [Bus].
func (u *User) Receive(ctx context.Context) (Frame, error) { return u.queue.pop(ctx) }

// Send implements [Bus].
func (u *User) Send(ctx context.Context, f Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	if u.config.ListenOnly {
		return fmt.Errorf("send %v: this user of the link only listens", f)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(u.gone, cancel)()
	err := u.send(ctx, f)
	if ended := u.queue.ended(); err != nil && ended != nil {
		err = ended
	}
	if err != nil {
		return fmt.Errorf("send %v: %w", f, err)
	}
	return nil
}

func (u *User) send(ctx context.Context, f Frame) error {
	if err := u.queue.ended(); err != nil {
		return err
	}
	if err := u.pace.wait(ctx); err != nil { // before its turn, which others may have meanwhile
		return err
	}
	if err := u.life.turns.take(ctx, order(f)); err != nil {
		return err
	}
	defer u.life.turns.give()
	u.queue.sent(f)
	return u.life.link.Send(ctx, f)
}

// Stats counts what came for this user and what it sent.
func (u *User) Stats() Stats { return u.queue.read() }

// end makes the user useless.
func (u *User) end(err error) {
	u.queue.end(err)
	u.leave()
}

// Close implements [Bus]. The last user's closes the link, and returns when that is done.
func (u *User) Close() error {
	u.once.Do(func() {
		u.end(ErrClosed)
		s, l := u.shared, u.life
		s.mu.Lock()
		delete(l.users, u)
		last := len(l.users) == 0
		if last && l.err == nil {
			l.err = ErrClosed // who comes now waits for the next life
		}
		s.mu.Unlock()
		if last {
			l.stop()
			<-l.over
		}
	})
	return nil
}

// turns lets one sender after the other have the link: the lowest order first, and of equal
// ones the first that came.
type turns struct {
	mu      sync.Mutex
	busy    bool
	waiting []*turn
}

type turn struct {
	order uint64
	mine  chan struct{} // closed when it has come
}

func (t *turns) take(ctx context.Context, order uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	if !t.busy {
		t.busy = true
		t.mu.Unlock()
		return nil
	}
	w := &turn{order, make(chan struct{})}
	t.waiting = append(t.waiting, w)
	t.mu.Unlock()
	select {
	case <-w.mine:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	for i, other := range t.waiting {
		if other == w {
			t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
			t.mu.Unlock()
			return ctx.Err()
		}
	}
	t.mu.Unlock()
	t.give() // it has just come
	return ctx.Err()
}

func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.busy = false
		return
	}
	first := 0
	for i, w := range t.waiting {
		if w.order < t.waiting[first].order {
			first = i
		}
	}
	close(t.waiting[first].mine)
	t.waiting = append(t.waiting[:first], t.waiting[first+1:]...)
}

// order is less for the frame that wins the arbitration: bits are compared as they go
// out, and 0 wins. A frame of 29 bits has, after its first 11 bits, two bits that are 1 where
// a data frame of 11 bits has 0 (ISO 11898-1, 10.4: SRR and IDE); the bit that says
// remote comes after the identifier.
func order(f Frame) uint64 {
	remote := uint64(0)
	if f.Remote {
		remote = 1
	}
	if !f.Extended {
		return uint64(f.ID)<<21 | remote<<20
	}
	return uint64(f.ID>>18)<<21 | 3<<19 | uint64(f.ID&(1<<18-1))<<1 | remote
}
