package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/inbox"
)

// pushed is a source into which releases are pushed over a bus.
type pushed struct {
	*inbox.Inbox
	a     *Agent
	bus   string // the kind of source
	serve func(context.Context) error
	check bool // it is made for a check of the configuration: there is no inbox behind it

	trouble func() error // why the bus is not served now; nil: it always is

	telling sync.Mutex // the inbox gets one report after the other

	asking      sync.Mutex // held while the manager is given a command: one after the other, whoever asks
	withdrawing string     // the digest of the release that is being taken back; "": none is
	withdrawal  *withdrawal
}

// withdrawal is the one that is under way, or the last.
type withdrawal struct {
	done chan struct{} // closed when err is known
	err  error
}

func (a *Agent) newPushed(box *inbox.Inbox, serve func(context.Context) error, check bool) *pushed {
	return &pushed{Inbox: box, a: a, serve: serve, check: check}
}

// settleEvery is between two looks for an outcome that some server has not taken yet.
const settleEvery = 5 * time.Second

// Run serves the bus until ctx ends.
func (p *pushed) Run(ctx context.Context) error {
	defer p.Inbox.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for pause(ctx, settleEvery) {
			p.settleAgain(ctx)
		}
	})
	for {
		err := p.guarded(ctx)
		if ctx.Err() != nil {
			return err
		}
		p.a.log.Error("a field bus is not served, and begun anew", "bus", p.bus, "error", err)
		if !pause(ctx, serveAgain) {
			return nil
		}
	}
}

// serveAgain is for a bus that ended as it never should: what breaks as a rule is opened again by itself.
const serveAgain = 10 * time.Second

// guarded is serve; a panic that nobody below has caught ends nothing but this try.
func (p *pushed) guarded(ctx context.Context) (err error) {
	defer p.a.crashes.Catch("serve a field bus", func(e error) { err = e })
	return p.serve(ctx)
}

func (p *pushed) settleAgain(ctx context.Context) {
	defer p.a.crashes.Catch("tell a bus how an update ended", nil)
	if err := p.settle(ctx); err != nil && ctx.Err() == nil {
		p.a.log.Warn("tell a bus how an update ended, trying again", "error", err)
	}
}

// warnings says what is wrong with the bus.
func (p *pushed) warnings(name string) (w []string) {
	if err := p.State().Err; errors.Is(err, inbox.ErrBroken) {
		w = append(w, fmt.Sprintf("%s: %v", name, err))
	}
	if p.trouble == nil {
		return w
	}
	if err := p.trouble(); err != nil {
		w = append(w, fmt.Sprintf("%s: %v; it is opened again by itself", name, err))
	}
	return w
}

// busWarnings are those of all buses over which releases are pushed, and of what went wrong there in
// the agent itself.
func (a *Agent) busWarnings() (w []string) {
	a.mu.Lock()
	set := a.sources
	a.mu.Unlock()
	if set != nil {
		for _, s := range set.multi.sources {
			if p, ok := s.Source.(*pushed); ok {
				w = append(w, p.warnings(s.name)...)
			}
		}
	}
	for _, log := range []*crash.Log{&a.crashes, nil} {
		if c, all := log.Last(); all > 0 {
			w = append(w, fmt.Sprintf("an internal error was kept from ending the agent, %d times, at last at %s: %s: %s; please report it with the log",
				all, c.At.UTC().Format(time.RFC3339), c.Doing, c.Text))
		}
	}
	return w
}

// close closes what Run would have closed.
func (p *pushed) close() {
	if !p.check {
		_ = p.Inbox.Close() // nobody has written to it
	}
}

// Report implements [ota.Reporter].
func (p *pushed) Report(ctx context.Context, r ota.Report) error {
	if !slices.ContainsFunc(p.unsent(), func(u ota.Report) bool { return u.ID == r.ID }) {
		p.telling.Lock()
		defer p.telling.Unlock()
		return p.Inbox.Report(ctx, r)
	}
	return p.settle(ctx)
}

// settle tells the inbox how the updates ended of which it has not heard. The manager hands
// over one report after the other, and the next only when every source has taken the
// one before: without this, as long as a server is not there, an update that has failed would
// look as if it were still to be installed, and be asked for again at each start.
func (p *pushed) settle(ctx context.Context) error {
	p.telling.Lock()
	defer p.telling.Unlock()
	list := p.unsent()
	if last := p.State().Last; last != nil {
		i := slices.IndexFunc(list, func(r ota.Report) bool { return r.ID == last.ID })
		list = list[i+1:] // all, if the last is not there: then everybody has taken it
	}
	for _, r := range list {
		if err := p.Inbox.Report(ctx, p.a.explain(r)); err != nil {
			return err
		}
	}
	return nil
}

// Latest implements [ota.Source]. What is being taken back is not offered any more, nor what has ended and
// is still to be told to the inbox: after a power cut in between the manager would take it up again.
func (p *pushed) Latest(ctx context.Context) ([]byte, error) {
	if err := p.settle(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ota.ErrServer, err)
	}
	p.asking.Lock()
	withdrawing := p.withdrawing
	p.asking.Unlock()
	if withdrawing != "" && p.State().Digest == withdrawing {
		return nil, ota.ErrNoUpdate
	}
	return p.Inbox.Latest(ctx)
}

// withdraw takes back the release with this digest, for whoever has pushed it and asked for its
// installation: the manager gives it up, if it has that one in hand and does not activate it yet, and then
// it goes out of the inbox. If ctx ends before, the answer is not known, and the withdrawal goes on; who asks
// again waits for the same one, so that [ota.ErrBusy] says that it is too late, and nothing else.
func (p *pushed) withdraw(ctx context.Context, digest string) error {
	p.asking.Lock()
	if p.withdrawing == "" {
		p.withdrawing, p.withdrawal = digest, &withdrawal{done: make(chan struct{})}
		go p.takeBack(digest, p.withdrawal)
	}
	of, w := p.withdrawing, p.withdrawal
	p.asking.Unlock()
	if of != digest {
		return fmt.Errorf("withdraw the release: %w: another one is being withdrawn, and the update manager has not answered yet", ota.ErrNotNow)
	}
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return fmt.Errorf("withdraw the release: the update manager has not answered yet: %w", ctx.Err())
	}
}

// takeBack is withdraw, in its own time. Until it has ended, the manager is neither offered the release nor
// asked to install it: a check that had it before comes to its end first, and its command after that.
func (p *pushed) takeBack(digest string, w *withdrawal) {
	defer func() {
		p.asking.Lock()
		defer p.asking.Unlock()
		p.withdrawing = ""
		close(w.done)
	}()
	defer p.a.crashes.Catch("withdraw a release", func(e error) { w.err = e })
	w.err = p.takenBack(digest)
}

func (p *pushed) takenBack(digest string) error {
	ctx := context.Background()                                                               // a manager that stops answers, too
	if err := p.withdrawn(digest).Wait(ctx); err != nil && !errors.Is(err, ota.ErrNoUpdate) { // which is: not in hand
		return err
	}
	return p.forget(ctx, digest)
}

// forget takes a release out of the inbox that the manager has not, or not any more, in hand. If that is because it
// was installed meanwhile, which the inbox may hear of only now, it was not taken back.
func (p *pushed) forget(ctx context.Context, digest string) error {
	if err := p.settle(ctx); err != nil { // it has ended by now
		return err
	}
	if s := p.State(); s.Phase == inbox.Ended && s.Digest == digest && s.Outcome != nil && s.Outcome.Result == ota.Succeeded {
		return fmt.Errorf("withdraw release %s: %w: it is installed, and has proven itself", s.Version, ota.ErrBusy)
	}
	if err := p.DropRelease(digest); err != nil && !errors.Is(err, inbox.ErrNone) {
		return err
	}
	p.a.log.Info("a release was withdrawn over a bus", "bus", p.bus, "digest", digest)
	return nil
}

func (p *pushed) withdrawn(digest string) control.Call {
	p.asking.Lock()
	defer p.asking.Unlock()
	return p.a.withdrawBy(control.Peer{Bus: p.bus}, digest)
}

// withdrawBy has the manager give up the release with this digest, in the name of by.
func (a *Agent) withdrawBy(by control.Peer, digest string) control.Call {
	if a.inHand() == digest {
		a.witness.asked(by, control.Abort)
	}
	a.mu.Lock()
	mgr := a.mgr
	a.mu.Unlock()
	if mgr == nil {
		return ended{fmt.Errorf("withdraw: %w: the device is starting or restarting", ota.ErrStopped)}
	}
	a.log.Info("command", "command", "withdraw", "digest", digest)
	return mgr.Withdraw(digest)
}

// command gives the manager a command for the release with this digest, unless its installation is no
// longer asked for.
func (p *pushed) command(by control.Peer, digest string, c control.Command) (call control.Call, ok bool) {
	p.asking.Lock()
	defer p.asking.Unlock()
	if s := p.State(); p.withdrawing == digest || s.Phase != inbox.Requested || s.Digest != digest {
		return nil, false
	}
	return p.a.CommandBy(by, c), true
}

// unsent are the reports that not all sources have taken yet, the oldest first.
func (p *pushed) unsent() []ota.Report {
	if r := p.a.record.Load(); r != nil {
		return r.Unsent
	}
	return nil
}

// Pauses before a manager is asked again that is busy.
const (
	askAgain     = time.Second
	askAgainLast = time.Minute
)

// installFor asks for the installation of what was pushed into a source, restart included, for
// whoever asked the source for it, and goes on until the manager has it in hand.
func (a *Agent) installFor(ctx context.Context, m *multi, source named) {
	p, ok := source.Source.(*pushed)
	if !ok {
		m.wakeUp()
		return
	}
	for wait := askAgain; !a.asked(ctx, m, p, source.name) && pause(ctx, wait); wait = min(2*wait, askAgainLast) {
	}
}

// asked is askFor; after a panic it is asked for again.
func (a *Agent) asked(ctx context.Context, m *multi, p *pushed, source string) (over bool) {
	defer a.crashes.Catch("ask for the installation of what was pushed", nil)
	return a.askFor(ctx, m, p, source)
}

// askFor asks once, and reports whether nothing is left to be asked for. A person's consent,
// and what it overrules, is for the release in the inbox and for no other: so no other
// is offered to the manager meanwhile, and consent is given only to what is in hand.
func (a *Agent) askFor(ctx context.Context, m *multi, p *pushed, source string) (over bool) {
	if err := p.settle(ctx); err != nil { // it may have failed here already
		a.log.Warn("tell a bus how an update ended, trying again", "source", source, "error", err)
		return ctx.Err() != nil
	}
	s := p.State()
	if s.Phase != inbox.Requested {
		return true
	}
	defer m.offerOnly(s.Digest)()
	r := a.record.Load()
	switch {
	case r == nil: // the manager has not begun
		return false
	case !replaceable(r): // another update, or this one, is past the point where anything is asked for
		return r.Digest == s.Digest
	case r.State == ota.Idle || r.Digest != s.Digest:
		command := control.Check
		if r.State == ota.Idle && a.skipped(s.Digest) { // which a person overrules
			command = control.Install
		}
		call, asked := p.command(control.Peer{Bus: source}, s.Digest, command)
		if !asked {
			return false
		}
		err := call.Wait(ctx)
		if errors.Is(err, ota.ErrBusy) || errors.Is(err, ota.ErrStopped) {
			return false
		}
		switch r = a.record.Load(); {
		case r != nil && r.State == ota.Idle && command == control.Check && a.skipped(s.Digest):
			return false // what was in its way has gone
		case r == nil || r.State == ota.Idle || r.Digest != s.Digest:
			a.log.Info("a release that was asked for over a bus is not taken up", "source", source, "version", s.Version, "error", err)
			return true
		}
	}
	if !replaceable(r) || r.Consent >= ota.ConsentApply {
		return true
	}
	call, asked := p.command(control.Peer{Bus: source}, s.Digest, control.Apply)
	if !asked {
		return false
	}
	err := call.Wait(ctx)
	if errors.Is(err, ota.ErrBusy) || errors.Is(err, ota.ErrStopped) {
		return false
	}
	if err != nil { // also a gate's no: the manager goes on when that changes
		a.log.Info("a release that was asked for over a bus waits", "source", source, "version", s.Version, "error", err)
	}
	return true
}

// replaceable reports whether the manager still looks for releases.
func replaceable(r *ota.Record) bool {
	switch r.State {
	case ota.Idle, ota.Available, ota.Fetching, ota.Staged:
		return !r.Back
	}
	return false
}
