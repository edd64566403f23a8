package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/source/https"
)

// named is a source with a name for messages.
type named struct {
	name string
	ota.Source
	consents bool // when it wakes the manager, a person has asked for the installation
}

// multi is the sources of a device as one. Latest asks each, and the newest
// release that fits wins; Open goes to the source that offered it. It wakes the
// manager when a source does, and when a check is due.
type multi struct {
	sources []named
	verify  ota.Verify
	fits    func(*ota.Manifest) bool             // a release that may be installed here, as far as that is known
	skipped func(digest string) bool             // one that has failed here
	inHand  func() (digest string)               // the release that is being installed, or ""
	checked func(err error)                      // called after each Latest
	enter   func(what string) (end func())       // see alive
	install func(context.Context, *multi, named) // asks for the installation as a person does
	log     *slog.Logger
	wake    chan struct{} // has room for one
	spacing time.Duration // between checks that a server wakes the manager for, after the first few

	mu      sync.Mutex
	only    string           // the digest of the only release that is offered to the manager; "": any
	offered map[string][]int // digest to those that offered it in the last check
	from    map[string][]int // digest to all that have ever offered it to this process
}

// offer is what one source answered.
type offer struct {
	source int
	signed []byte
	man    *ota.Manifest
	rank   int // 0: installed next; greater: only if there is nothing better
}

// Latest implements [ota.Source]. A release that does not fit, or has failed
// here, is returned only if no other source has a better one: the manager then
// says what is wrong with it. An error is returned only if no source has anything,
// or if the one that offered the release in hand has taken it back.
func (m *multi) Latest(ctx context.Context) (signed []byte, err error) {
	defer m.enter("looking for a release")()
	defer func() { m.checked(err) }()
	if len(m.sources) == 1 { // the manager judges it
		return m.sources[0].Latest(ctx)
	}
	offers, withdrawn, errs := m.ask(ctx)
	m.mu.Lock()
	only := m.only
	m.mu.Unlock()
	if only != "" {
		offers = slices.DeleteFunc(offers, func(o offer) bool { return o.man.Digest != only })
	}
	// When time is up, what hangs must not hide what the others have. A person who
	// aborts, or an agent that stops, wants no answer.
	if err := ctx.Err(); err != nil && (!errors.Is(err, context.DeadlineExceeded) || len(offers) == 0) {
		return nil, err
	}
	byDigest := map[string][]int{}
	for _, o := range offers {
		byDigest[o.man.Digest] = append(byDigest[o.man.Digest], o.source)
	}
	isWithdrawn := m.note(byDigest, withdrawn)
	// Before an offer that does not fit: its refusal would let what is in hand go on.
	if isWithdrawn && !slices.ContainsFunc(offers, func(o offer) bool { return o.rank == 0 }) {
		return nil, fmt.Errorf("look for a release: %w: %w", ota.ErrNoUpdate, ota.ErrWithdrawn)
	}
	if len(offers) == 0 {
		if len(errs) == 0 {
			return nil, ota.ErrNoUpdate
		}
		return nil, together(errs)
	}
	best := slices.MinFunc(offers, func(a, b offer) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		return ota.CompareVersions(b.man.Version, a.man.Version)
	})
	for _, err := range errs {
		m.log.Warn("a source could not be asked", "error", err)
	}
	m.log.Info("newest release", "version", best.man.Version, "source", m.sources[best.source].name)
	return best.signed, nil
}

// offerOnly has the manager offered one release and no other, until end is called.
func (m *multi) offerOnly(digest string) (end func()) {
	set := func(digest string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.only = digest
	}
	set(digest)
	return func() { set("") }
}

// maxFrom bounds the memory for who offered what. Only what is in hand matters.
const maxFrom = 64

// note remembers who offers what, and reports whether the release in hand is
// withdrawn: by a source that offered it, while no other offers it. If nobody is
// known to have offered it, as after a restart of the process, each may withdraw it.
func (m *multi) note(offered map[string][]int, withdrawn []int) bool {
	digest := m.inHand()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.offered = offered
	if m.from == nil || len(m.from) > maxFrom {
		m.from = map[string][]int{digest: m.from[digest]}
	}
	for d, sources := range offered {
		for _, i := range sources {
			if !slices.Contains(m.from[d], i) {
				m.from[d] = append(m.from[d], i)
			}
		}
	}
	if digest == "" || len(offered[digest]) > 0 {
		return false
	}
	known := m.from[digest]
	return slices.ContainsFunc(withdrawn, func(i int) bool { return len(known) == 0 || slices.Contains(known, i) })
}

// ask asks all sources at the same time. Offers are in the order of the sources;
// withdrawn are those that say that what they offered must not be installed.
func (m *multi) ask(ctx context.Context) (offers []offer, withdrawn []int, errs []error) {
	type answer struct {
		signed []byte
		err    error
	}
	answers := make([]answer, len(m.sources))
	var wg sync.WaitGroup
	for i, s := range m.sources {
		wg.Go(func() { answers[i].signed, answers[i].err = s.Latest(ctx) })
	}
	wg.Wait()
	for i, a := range answers {
		var man *ota.Manifest
		if a.err == nil {
			man, a.err = m.verify(a.signed)
		}
		if errors.Is(a.err, ota.ErrWithdrawn) {
			withdrawn = append(withdrawn, i)
		}
		switch {
		case errors.Is(a.err, ota.ErrNoUpdate):
		case a.err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", m.sources[i].name, a.err))
		default:
			o := offer{source: i, signed: a.signed, man: man}
			if m.skipped(man.Digest) {
				o.rank = 1
			}
			if !m.fits(man) {
				o.rank = 2
			}
			offers = append(offers, o)
		}
	}
	return offers, withdrawn, errs
}

// Open implements [ota.Source]. It asks the sources that offered m, and after a
// restart, when that is not known, all of them; the first that has it counts.
func (m *multi) Open(ctx context.Context, man *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	defer m.enter("opening the source")()
	m.mu.Lock()
	order := slices.Clone(m.offered[man.Digest])
	m.mu.Unlock()
	for i := range m.sources {
		if !slices.Contains(order, i) {
			order = append(order, i)
		}
	}
	var errs []error
	for _, i := range order {
		r, err := m.sources[i].Open(ctx, man, im, offset)
		if err == nil {
			return r, nil
		}
		if len(m.sources) > 1 {
			err = fmt.Errorf("%s: %w", m.sources[i].name, err)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, together(errs)
}

// together is one error on one line, that is each of errs.
func together(errs []error) error {
	err := errs[0]
	for _, e := range errs[1:] {
		err = fmt.Errorf("%w; %w", err, e)
	}
	return err
}

// Wake implements [ota.Waker].
func (m *multi) Wake() <-chan struct{} { return m.wake }

func (m *multi) wakeUp() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// run passes on what wakes the sources, and lets those run that watch something,
// until ctx ends.
func (m *multi) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, s := range m.sources {
		if w, ok := s.Source.(ota.Waker); ok {
			wg.Go(func() { m.passOn(ctx, s, w.Wake()) })
		}
		if r, ok := s.Source.(interface{ Run(context.Context) error }); ok {
			wg.Go(func() {
				if err := r.Run(ctx); err != nil && ctx.Err() == nil {
					m.log.Error("watching for releases ended", "source", s.name, "error", err)
				}
			})
		}
	}
}

// wakeBurst is how often a server may wake the manager without a pause.
const wakeBurst = 5

// passOn passes on what wakes a source. What a server sends, or a master or tester on a bus, comes
// after a while no more than once in m.spacing: it must neither keep a plant quiesced that is
// suspended for each check, nor the device busy. Nothing is lost by that, for a wake says only that it is worth while to look. Who
// puts in a stick is never held up.
func (m *multi) passOn(ctx context.Context, s named, wake <-chan struct{}) {
	_, remote := s.Source.(server)
	if _, ok := s.Source.(*pushed); ok {
		remote = true
	}
	var full time.Time // when all of the burst may be used again
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-wake:
			if !ok { // it wakes nobody any more
				return
			}
		}
		if now := time.Now(); remote {
			if full.Before(now) {
				full = now
			}
			if !pause(ctx, max(0, full.Sub(now)-(wakeBurst-1)*m.spacing)) {
				return
			}
			full = full.Add(m.spacing)
		}
		m.log.Info("something may be new", "source", s.name)
		if s.consents {
			m.install(ctx, m, s)
			continue
		}
		m.wakeUp()
	}
}

// reportingMulti is a multi of which at least one source takes reports.
type reportingMulti struct {
	*multi
	to      []ota.Reporter
	explain func(ota.Report) ota.Report // adds what only the agent knows
}

// Report implements [ota.Reporter]: every source that takes reports must have it.
// All are told, also when one before them is not there; they know a report that
// comes again by its id.
func (m *reportingMulti) Report(ctx context.Context, r ota.Report) error {
	defer m.enter("delivering a report")()
	r = m.explain(r)
	errs := make([]error, len(m.to))
	var wg sync.WaitGroup
	for i, to := range m.to { // at the same time, for one that hangs takes all there is
		wg.Go(func() {
			if errs[i] = to.Report(ctx, r); errors.Is(errs[i], https.ErrRejected) {
				// Kept here, for all that come after it would wait for ever.
				m.log.Error("a report that the server will never take is given up", "error", errs[i], "id", r.ID, "version", r.Version,
					"from", r.From, "running", r.Running, "result", r.Result, "code", int(r.Code), "reason", r.Reason, "digest", r.Digest, "time", r.Time)
				errs[i] = nil
			}
		})
	}
	wg.Wait()
	if errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil }); len(errs) > 0 {
		return together(errs)
	}
	return nil
}

// spread returns d and up to a tenth more. A fleet that was started at one moment, as
// after a power failure in a region, would ask at one moment for ever; and nobody
// comes before the time that a server has asked for.
func spread(d time.Duration) time.Duration { return d + rand.N(d/10+1) }

// due waits until interval has passed since the last check, again and again, and
// wakes the manager. Interval may change with every check; 0 is never.
func (m *multi) due(ctx context.Context, checks <-chan struct{}, interval func() time.Duration) {
	for {
		var timer <-chan time.Time
		if d := interval(); d > 0 {
			timer = time.After(spread(d))
		}
		select {
		case <-ctx.Done():
			return
		case <-checks:
		case <-timer:
			m.wakeUp()
		}
	}
}
