package awsiot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Source is an [ota.Source], [ota.Reporter] and [ota.Waker]. Its methods may be
// called from any goroutine.
type Source struct {
	cfg  Config
	line *line
	jobs *service
	wake chan struct{} // has room for one
	look chan struct{} // has room for one: ask the service what there is
	poke chan struct{} // has room for one: the device has said what it does

	// turn holds one token. Who has it may use what follows, and talk about jobs.
	turn   chan struct{}
	record record
	unsure bool   // the final status in record was perhaps sent
	offer  *offer // what was read of the job in hand; nil: nothing yet
	woken  key    // the job for which the manager was woken
	told   string // ID of the report that was published last

	mu      sync.Mutex
	live    api.Head // what the device does, as it said last
	spoken  bool     // it has said something
	changed bool     // it was not sent yet
	readers map[*reader]struct{}
	unheard int       // times that the manager was told of a job that it has not looked at; 0: it has
	againAt time.Time // when it is told again

	afr *receiving
}

// New checks cfg and reads what Dir has of the job in hand. It does not touch the
// network.
func New(cfg Config) (*Source, error) {
	t, err := cfg.complete()
	if err != nil {
		return nil, fmt.Errorf("configure the AWS IoT source: %w", err)
	}
	s := &Source{cfg: cfg, wake: make(chan struct{}, 1), look: make(chan struct{}, 1), poke: make(chan struct{}, 1),
		turn: make(chan struct{}, 1), readers: map[*reader]struct{}{}}
	s.turn <- struct{}{}
	s.record, err = loadRecord(cfg.FS, cfg.Dir)
	if err != nil { // what it said is known to the service and to the manager, too: it is worse not to start
		cfg.Log.Error("what was known of the job in hand is lost, and is asked for again", "error", err)
		s.record = record{Format: 1}
	}
	s.unsure = s.record.Hand != nil && s.record.Hand.Final != nil
	s.afr = s.newReceiving()
	s.line = newLine(&s.cfg, t, s.connected)
	s.jobs = &service{line: s.line, prefix: cfg.JobsPrefix, timeout: cfg.AnswerTimeout, waiting: map[string]question{}}
	for _, f := range s.jobs.filters() {
		s.line.subs = append(s.line.subs, &subscription{f, s.jobs.receive})
	}
	for _, f := range []string{"/notify", "/notify-next"} { // hints that nothing is concluded from
		s.line.subs = append(s.line.subs, &subscription{cfg.JobsPrefix + f, func(string, []byte) { signal(s.look) }})
	}
	if cfg.Topic != "" {
		s.line.subs = append(s.line.subs, &subscription{cfg.Topic + "/wake", func(string, []byte) { signal(s.wake) }})
	}
	return s, nil
}

// connected is called when the connection has come up.
func (s *Source) connected() {
	s.stir()
	signal(s.look)
}

// signal sends to a channel that has room for one, if it is empty.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Wake implements [ota.Waker]. It needs Run.
func (s *Source) Wake() <-chan struct{} { return s.wake }

// take takes the turn. While somebody else talks to the service, that has a limit in time.
func (s *Source) take(ctx context.Context) error {
	select {
	case <-s.turn:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ota.ErrConnectivity, context.Cause(ctx))
	}
}

func (s *Source) give() { s.turn <- struct{}{} }

// save makes r the record.
func (s *Source) save(r record) error {
	r.Format = 1
	if err := saveRecord(s.cfg.FS, s.cfg.Dir, r); err != nil {
		return coded(ota.ErrInternal, "%w", err)
	}
	s.record = r
	return nil
}

// maxRejected bounds how many jobs one check rejects, so that it ends.
const maxRejected = 16

// Latest implements [ota.Source]. It returns the release of the job in hand, or else of
// the one that is pending first. Jobs that can never be installed here are ended on the
// way. It must not be called while a release is on trial, as the manager never does.
func (s *Source) Latest(ctx context.Context) ([]byte, error) {
	signed, err := s.latest(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for a job: %w", err)
	}
	return append([]byte(nil), signed...), nil
}

func (s *Source) latest(ctx context.Context) ([]byte, error) {
	if err := s.line.wait(ctx); err != nil {
		return nil, err
	}
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.give()
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	for range maxRejected {
		x, err := s.pending(ctx)
		if err != nil {
			return nil, err
		}
		if x == nil {
			s.looked(key{})
			return nil, s.nothing()
		}
		if e := s.record.ended(x.key()); e != nil { // the service hid it for a while, or has lost what it was told
			if err := s.finish(ctx, &hand{key: e.key, Digest: e.Digest, Final: &e.final, version: x.VersionNumber}, ""); err != nil {
				return nil, err
			}
			continue
		}
		s.callAgain() // unless this check comes to an end
		o, err := s.read(ctx, x)
		if err == nil {
			err = s.judge(x, o)
		}
		if v, ok := errors.AsType[*verdict](err); ok {
			if err := s.end(ctx, x, o, v); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			if errors.Is(err, ota.ErrNoUpdate) && !errors.Is(err, ota.ErrNotNow) { // its file wakes the manager
				s.looked(x.key())
			}
			return nil, fmt.Errorf("job %s: %w", x.JobID, err)
		}
		if err := s.hold(x, o); err != nil {
			return nil, err
		}
		s.looked(x.key())
		return o.signed, nil
	}
	signal(s.look)
	return nil, coded(ota.ErrNoUpdate, "%d jobs were not for this device; the rest is looked at with the next check", maxRejected)
}

// pending returns the execution to work on: the one in hand once it has begun, as long as
// the service has it, and else the one that is pending first, or nil. One that has not begun
// is not asked for by its name: outside its maintenance window it is not pending, though it exists.
func (s *Source) pending(ctx context.Context) (*execution, error) {
	h := s.record.Hand
	if h != nil && h.Started {
		x, err := s.jobs.describe(ctx, h.Job)
		if err != nil {
			return nil, err
		}
		if x != nil { // perhaps a retry, or a job of the same name
			if x.key() == h.key {
				h.version = x.VersionNumber
			}
			return x, nil
		}
		if err := s.lose("the service has it no more: it was cancelled, timed out or was removed"); err != nil {
			return nil, err
		}
		h = nil
	}
	x, err := s.jobs.next(ctx)
	if err == nil && x == nil && h != nil {
		err = s.putDown("it is not pending any more: it was cancelled or removed, or its maintenance window has ended")
	}
	if err == nil {
		err = s.tidy(ctx, x)
	}
	return x, err
}

// tidy ends the reception of a file whose job is over, and not that of one that waits for its
// maintenance window or behind x, which is pending first.
func (s *Source) tidy(ctx context.Context, x *execution) error {
	t := s.afr.task
	if t == nil || x != nil && x.key() == t.key {
		return nil
	}
	is, err := s.jobs.describe(ctx, t.Job)
	if err == nil && (is == nil || is.key() != t.key) {
		s.forget(t.key)
	}
	return err
}

// lose gives up the job in hand, which is over by the service's word.
func (s *Source) lose(why string) error {
	k := s.record.Hand.key
	err := s.putDown(why)
	if err == nil {
		s.forget(k)
	}
	return err
}

// putDown takes the job in hand out of it, and its release back from the manager. What was
// received of its file stays.
func (s *Source) putDown(why string) error {
	h := s.record.Hand
	s.cfg.Log.Info("the job in hand is over", "job", h.Job, "execution", h.Execution, "version", h.Release, "started", h.Started, "reason", why)
	r := s.record.clone()
	r.Hand = nil
	if h.Digest != "" {
		r.Withdrawn = h.Digest
	}
	if err := s.save(r); err != nil {
		return err
	}
	s.offer = nil
	s.stopReaders(h.Digest)
	signal(s.wake)
	return nil
}

// nothing is the error for no job: with ota.ErrWithdrawn if the release of one was taken back.
func (s *Source) nothing() error {
	w := s.record.Withdrawn
	if w == "" {
		return ota.ErrNoUpdate
	}
	if s.cfg.InHand != nil && s.cfg.InHand() != w {
		r := s.record.clone() // the manager has done so, or never had it in hand
		r.Withdrawn = ""
		if err := s.save(r); err != nil {
			return err
		}
		return ota.ErrNoUpdate
	}
	return coded(ota.ErrNoUpdate, "%w any more: its job is over", ota.ErrWithdrawn)
}

// hold makes x the job in hand, before the manager hears of it.
func (s *Source) hold(x *execution, o *offer) error {
	s.offer = o
	if h := s.record.Hand; h != nil && h.key == x.key() && h.Digest == o.man.Digest && s.record.Withdrawn == "" {
		h.version = x.VersionNumber
		return nil
	}
	r := s.record.clone()
	started := x.Status == inProgress || r.Hand != nil && r.Hand.key == x.key() && r.Hand.Started
	r.Hand = &hand{key: x.key(), Digest: o.man.Digest, Release: o.man.Version, AFR: o.doc.afr != nil, Started: started, version: x.VersionNumber}
	r.Withdrawn = ""
	if err := s.save(r); err != nil {
		return err
	}
	s.cfg.Log.Info("a job is in hand", "job", x.JobID, "execution", x.ExecutionNumber, "version", o.man.Version)
	return nil
}

// verdict is a final status that is decided without the manager.
type verdict struct {
	status string
	code   ota.ErrorCode
	reason string
}

func (v *verdict) Error() string { return v.status + ": " + v.reason }

func reject(code ota.ErrorCode, format string, a ...any) *verdict {
	return &verdict{rejected, code, fmt.Sprintf(format, a...)}
}

// judge returns a verdict if it is certain how the job ends. A job that has begun and
// whose release has failed here has failed, and was not rejected.
func (s *Source) judge(x *execution, o *offer) error {
	m := o.man
	err := s.cfg.Judge(m)
	if reason, skipped := s.cfg.Skipped(m.Digest); skipped { // also if it runs: it may be there because the device could not go back
		v := reject(ota.ErrValidation, "release %s is not taken again: %s", m.Version, reason)
		if x.Status == inProgress {
			v.status = failed
		}
		return v
	}
	if errors.Is(err, ota.ErrNoUpdate) && s.cfg.Version != "" && ota.CompareVersions(m.Version, s.cfg.Version) == 0 {
		if s.unproven() {
			return fmt.Errorf("%w: %w: version %s is running, and has not proven itself yet", ota.ErrNoUpdate, ota.ErrNotNow, m.Version)
		}
		return &verdict{succeeded, ota.ErrNone, fmt.Sprintf("version %s runs already", m.Version)}
	}
	switch code := ota.CodeOf(err); {
	case err == nil:
		return nil
	case errors.Is(err, ota.ErrNotNow):
		return fmt.Errorf("%w: %w", ota.ErrNoUpdate, err)
	case code == ota.ErrNoUpdate:
		return reject(ota.ErrIncompatible, "%v", err)
	case code == ota.ErrIncompatible, code == ota.ErrValidation, code == ota.ErrInsufficientSpace:
		return reject(code, "%v", err)
	}
	return nil // the manager will say what is wrong
}

// unproven reports whether the device said that what runs is on trial, or may go back.
func (s *Source) unproven() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.live.State {
	case ota.Activating, ota.Trial, ota.Soak, ota.RollBack:
		return true
	}
	return false
}

// end gives x its final status by a verdict.
func (s *Source) end(ctx context.Context, x *execution, o *offer, v *verdict) error {
	s.cfg.Log.Warn("a job ends without an update", "job", x.JobID, "status", v.status, "reason", v.reason)
	h := &hand{key: x.key(), Started: x.Status == inProgress, version: x.VersionNumber}
	was := ""
	if s.record.Hand != nil && v.status != succeeded {
		was = s.record.Hand.Digest // the manager may have it in hand
	}
	details := details{"result": v.status, "reason": v.reason, "running": s.cfg.Version}
	if v.code != ota.ErrNone {
		details["code"] = v.code.Name()
	}
	if o != nil && o.man != nil {
		h.Digest, h.Release = o.man.Digest, o.man.Version
		details["version"] = o.man.Version
	}
	h.Final = &final{Status: v.status, Details: details.bounded()}
	return s.finish(ctx, h, was)
}

// finish writes down how a job ends, and then says so. Withdrawn is a release that the
// manager must not go on with, or "".
func (s *Source) finish(ctx context.Context, h *hand, withdrawn string) error {
	r := s.record.clone()
	r.Hand = h
	if withdrawn != "" {
		r.Withdrawn = withdrawn
	}
	if err := s.save(r); err != nil {
		return err
	}
	s.unsure, s.offer = false, nil
	return s.settle(ctx)
}

// settle delivers the final status that is due, if any. It returns nil once the service
// has it, or has said that the execution is over.
func (s *Source) settle(ctx context.Context) error {
	h := s.record.Hand
	if h == nil || h.Final == nil {
		return nil
	}
	again := func(err error) error {
		return fmt.Errorf("tell job %s that it has %s: %w", h.Job, h.Final.Status, err)
	}
	details, asked := h.Final.Details, s.unsure || h.version == 0
	for range 4 {
		if asked { // never blindly: an answer may have been lost
			x, err := s.jobs.describe(ctx, h.Job)
			if err != nil {
				return again(err)
			}
			if x == nil || x.key() != h.key {
				return s.settled("the service says that it is over")
			}
			h.version, asked = x.VersionNumber, false
		}
		s.unsure = true
		err := s.jobs.update(ctx, h.key, h.version, h.Final.Status, details, 0)
		if err == nil {
			return s.settled("")
		}
		r, ok := errors.AsType[*Refused](err)
		switch {
		case !ok:
			return again(err)
		case r.gone():
			return s.settled(r.Error())
		case r.Code == "VersionMismatch", r.Code == "InvalidStateTransition":
			asked = true
		case r.Code == "InvalidRequest" && details != nil:
			s.cfg.Log.Error("the service does not take the details of a final status, which is sent without", "job", h.Job, "error", err, "details", details)
			details = nil
		default:
			return again(err)
		}
	}
	return again(coded(ota.ErrConnectivity, "its version changes all the time"))
}

// settled notes that the final status has arrived, or, with a reason, does not matter any more.
func (s *Source) settled(why string) error {
	h := s.record.Hand
	r := s.record.clone()
	r.Hand = nil
	r.note(ended{h.key, h.Digest, *h.Final})
	if err := s.save(r); err != nil {
		return err
	}
	s.unsure = false
	if why == "" {
		s.cfg.Log.Info("a job has its final status", "job", h.Job, "execution", h.Execution, "status", h.Final.Status)
	} else {
		s.cfg.Log.Warn("a job was over before its final status, or has it already", "job", h.Job, "execution", h.Execution,
			"status", h.Final.Status, "details", h.Final.Details, "reason", why)
	}
	s.forget(h.key)
	return nil
}

// Report implements [ota.Reporter]. A release that a job offered ends that job; others
// are nobody's. With a Topic all reports are published there, too. It returns nil once
// the service has the final status, or has said that the execution is over.
func (s *Source) Report(ctx context.Context, r ota.Report) error {
	if err := s.report(ctx, r); err != nil {
		return fmt.Errorf("report %s: %w", r.ID, err)
	}
	return nil
}

func (s *Source) report(ctx context.Context, r ota.Report) error {
	if wanted, err := s.wants(ctx, r); err != nil || !wanted {
		return err
	}
	if err := s.line.wait(ctx); err != nil {
		return err
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	// The job first: where the policy does not allow the topic, AWS ends the connection.
	if err := s.reportToJob(ctx, r); err != nil {
		return err
	}
	if s.cfg.Topic == "" || s.told == r.ID {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return coded(ota.ErrInternal, "%w", err)
	}
	if err := s.line.Publish(ctx, s.cfg.Topic+"/reports", 1, b); err != nil {
		return err
	}
	s.told = r.ID
	return nil
}

// wants reports whether there is anybody to tell r to. If not, no connection is needed for it:
// reports of other sources, and all that come after them, must not wait until this one is back.
func (s *Source) wants(ctx context.Context, r ota.Report) (bool, error) {
	if err := s.take(ctx); err != nil {
		return false, err
	}
	defer s.give()
	h := s.record.Hand
	return h != nil && h.Digest != "" && h.Digest == r.Digest || s.cfg.Topic != "" && s.told != r.ID, nil
}

// reportToJob ends the job of r, if there is one.
func (s *Source) reportToJob(ctx context.Context, r ota.Report) error {
	h := s.record.Hand
	if h == nil || h.Digest == "" || h.Digest != r.Digest {
		return nil
	}
	if h.Final != nil {
		return s.settle(ctx)
	}
	e := *h
	e.Final = &final{Status: statusOf(r, h.Staged), Details: s.reportDetails(r, h.AFR).bounded(), Report: r.ID}
	return s.finish(ctx, &e, "")
}

// statusOf is the final status of a job for how its update ended. A release that does not
// fit was refused by the device, and one that does not verify, too, unless it was whole and
// did not come up: the manager's code for both is the same.
func statusOf(r ota.Report, staged bool) string {
	switch {
	case r.Result == ota.Succeeded:
		return succeeded
	case r.Result == ota.Failed && (r.Code == ota.ErrIncompatible || r.Code == ota.ErrValidation && !staged):
		return rejected
	}
	return failed
}
