package uds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Serve answers a tester until ctx ends or its line does, and returns after the last
// handler did: nil if ctx ended. It may be called for several testers at once. There is
// one session, as the standard wants it: while a tester holds another than the default
// one, the rest find the default session, and are told [ConditionsNotCorrect] if they ask
// for another. Whatever a tester asks while a request of another is worked on is told
// [BusyRepeatRequest]. Serve does not close t's connections.
func (s *Server) Serve(ctx context.Context, t Tester) error {
	if t.Conn == nil {
		return errors.New("serve UDS: the tester has no connection")
	}
	s.load.Do(s.loadAttempts)
	ctx, cancel := context.WithCancel(ctx)
	l := &line{s: s, t: t, ctx: ctx, in: make(chan incoming, mostWaiting), done: make(chan result), s3: stopped(), pending: stopped()}
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	readers.Go(func() { l.read(t.Conn, false) })
	if t.Functional != nil {
		readers.Go(func() { l.read(t.Functional, true) })
	}
	err := l.guarded()
	l.stop(cancel)
	if err != nil {
		return fmt.Errorf("serve UDS tester %q: %w", t.Name, err)
	}
	return nil
}

// line is one tester, and what it waits for. All but read is done by one goroutine.
type line struct {
	s    *Server
	t    Tester
	ctx  context.Context // of Serve: it ends with that call
	in   chan incoming
	done chan result
	run  *run // nil: no request is worked on
	due  bool // done will have something, once

	answer superseded

	s3      *time.Timer // runs while the tester holds a session and no request runs
	pending *time.Timer // runs while a request does
}

// mostWaiting is how many requests wait while an answer is sent: so that the one which ends
// that (see superseded) is seen behind a TesterPresent.
const mostWaiting = 4

// incoming is a message, or why there will be no more.
type incoming struct {
	pdu        []byte
	functional bool
	err        error
}

// run is the request that is worked on.
type run struct {
	service    Service
	functional bool
	quiet      bool // no positive answer is wanted
	over       bool // others may ask
	pended     bool // ResponsePending was sent: now the final answer is due in any case
	answered   bool
	since      time.Time
	cancel     context.CancelFunc
}

// result is what a request led to.
type result struct {
	answer  []byte
	after   func(context.Context) // to be done once the answer is sent
	crashed bool                  // nobody knows what is left of the session: it ends
}

func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// read hands on what arrives, until the line or Serve ends.
func (l *line) read(c Conn, functional bool) {
	hand := func(m incoming) {
		select {
		case l.in <- m:
		case <-l.ctx.Done():
		}
	}
	defer l.s.Crashes.Catch("receive from a UDS tester", func(err error) { hand(incoming{err: err}) })
	err := receive(l.ctx, c, func(pdu []byte) {
		if !functional {
			l.answer.by(pdu)
		}
		hand(incoming{pdu: pdu, functional: functional})
	})
	if err != nil {
		hand(incoming{err: err})
	}
}

// guarded is loop; a panic ends it.
func (l *line) guarded() (err error) {
	defer l.s.Crashes.Catch("serve a UDS tester", func(e error) { err = e })
	return l.loop()
}

func (l *line) loop() error {
	for {
		select {
		case <-l.ctx.Done():
			return nil
		case m := <-l.in:
			if m.err != nil {
				return m.err
			}
			l.take(m)
		case <-l.pending.C:
			l.wait()
		case r := <-l.done:
			l.due = false
			l.finish(r)
		case <-l.s3.C:
			l.silent()
		}
	}
}

// stop ends what the tester has begun. Nothing is answered any more.
func (l *line) stop(cancel context.CancelFunc) {
	cancel()
	if l.run != nil {
		if l.due {
			<-l.done
		}
		l.run.cancel()
		l.letGo()
	}
	l.s3.Stop()
	l.pending.Stop()
	l.s.leave(l, EndLine)
}

// take begins the work on a request.
func (l *line) take(m incoming) {
	if len(m.pdu) == 0 || !isRequest(m.pdu[0]) {
		return // two servers must not answer each other's answers
	}
	r := &run{service: Service(m.pdu[0]), functional: m.functional, since: time.Now()}
	r.quiet = r.service.HasSubFunction() && len(m.pdu) > 1 && m.pdu[1]&suppress != 0
	switch {
	case l.run != nil:
		// Its S3 does not run, so there is nothing that a TesterPresent would do.
		if r.service != TesterPresent || !r.quiet {
			l.send(r, refuse(r.service, BusyRepeatRequest))
		}
	case r.service == TesterPresent:
		// No handler sees it, and it keeps a session while another tester's request runs.
		l.send(r, present(m.pdu))
		l.listen()
	case !l.s.acquire():
		l.send(r, refuse(r.service, BusyRepeatRequest))
		l.listen()
	default:
		l.begin(r, m.pdu)
	}
}

func (l *line) begin(r *run, pdu []byte) {
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(l.ctx)
	l.run = r
	l.s3.Stop()
	l.pending.Reset(l.s.pendingAt())
	call := l.call(l.s.holding(l))
	call.Service, call.Functional = r.service, r.functional
	a := answering{s: l.s, l: l, ctx: ctx, call: call}
	l.due = true
	go func() { l.done <- a.result(pdu) }()
}

// result answers a request, in any case.
func (a *answering) result(pdu []byte) (r result) {
	service := a.call.Service
	defer a.s.Crashes.Catch(fmt.Sprintf("serve UDS request % X", pdu[:min(len(pdu), 16)]), func(error) {
		r = result{answer: refuse(service, crashCode(service)), crashed: true}
	})
	answer, err := a.answer(pdu)
	switch {
	case err != nil:
		return result{answer: refuse(service, nrcOf(err, ConditionsNotCorrect))}
	case len(answer) > a.s.maxBlock():
		answer = refuse(service, ResponseTooLong)
	}
	return result{answer: answer, after: a.after}
}

// crashCode is what a tester is told of a panic. The services that write have a code for what went wrong
// in the server (ISO 14229-1:2020, the tables of 2E, 31, 36 and 37, from memory).
func crashCode(s Service) NRC {
	switch s {
	case WriteDataByIdentifier, RoutineControl, TransferData, RequestTransferExit:
		return GeneralProgrammingFailure
	}
	return GeneralReject
}

// call describes the tester, in the session that it holds; nil: the default one.
func (l *line) call(h *held) Call {
	c := Call{Session: Default, Tester: l.t.Name}
	if h != nil {
		c.Session, c.Level, c.Role = h.session, h.level, h.role
	}
	return c
}

// wait asks the tester for patience, or gives the request up.
func (l *line) wait() {
	r := l.run
	switch {
	case r == nil || r.answered:
	case time.Since(r.since) >= l.s.maxRun():
		l.send(r, refuse(r.service, GeneralReject))
		r.answered = true
		r.cancel()
	default:
		l.send(r, refuse(r.service, ResponsePending))
		r.pended = true
		next := l.s.p2Star() * 8 / 10
		l.pending.Reset(min(next, max(l.s.maxRun()-time.Since(r.since), 0)))
	}
}

// finish answers. What is to be done after the answer still belongs to the request;
// otherwise others may ask from before the answer on, which may take long to send.
func (l *line) finish(done result) {
	r := l.run
	l.pending.Stop()
	r.cancel()
	if done.crashed {
		l.s.leave(l, EndCrash) // before others may ask
	}
	if done.after == nil {
		l.letGo()
	}
	if !r.answered {
		l.send(r, done.answer)
		r.answered = true
	}
	if done.after == nil {
		l.run = nil
		l.listen()
		return
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(l.ctx)
	l.s.leave(l, EndReset)
	l.due = true
	go func() {
		defer func() { l.done <- result{} }()
		defer l.s.Crashes.Catch("do what a UDS tester was promised", nil)
		done.after(ctx)
	}()
}

// letGo lets others ask, once.
func (l *line) letGo() {
	if !l.run.over {
		l.run.over = true
		l.s.release()
	}
}

// listen begins to wait for the next request of a tester that holds a session.
func (l *line) listen() {
	if l.run != nil || l.s.holding(l) == nil {
		l.s3.Stop()
		return
	}
	l.s3.Reset(l.s.s3())
}

// silent ends the session of a tester from which nothing came for S3.
func (l *line) silent() {
	if l.run != nil {
		return
	}
	if receiving(l.t.Conn) || l.t.Functional != nil && receiving(l.t.Functional) {
		l.s3.Reset(l.s.p2())
		return
	}
	l.s.leave(l, EndTimeout)
}

// send sends an answer, if one is due. That it did not arrive shows in what the tester
// does next.
func (l *line) send(r *run, answer []byte) {
	if r.answered || len(answer) == 0 || !r.pended && r.isSilent(answer) {
		return
	}
	ctx, done := l.answer.begin(l.ctx, answer)
	defer done()
	_ = l.t.Conn.Send(ctx, answer) // nobody but the tester can do anything about it
}

// superseded ends the sending of a long answer when the tester asks for something: it does
// not wait for that answer any more (ISO 14229-2: one request at a time), for instance
// because the line has lost the first frame, and would not be heard for as long as the
// flow control frame is waited for.
type superseded struct {
	mu     sync.Mutex
	cancel context.CancelFunc // nil: no long answer is on its way
}

// shortest is how many bytes an answer has at least that one frame of CAN does not hold:
// shorter ones do not wait for the tester.
const shortest = 8

func (s *superseded) begin(ctx context.Context, answer []byte) (context.Context, context.CancelFunc) {
	if len(answer) < shortest {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancel = cancel
	return ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cancel = nil
		cancel()
	}
}

// by notes what the tester says.
func (s *superseded) by(pdu []byte) {
	if len(pdu) == 0 || !isRequest(pdu[0]) || Service(pdu[0]) == TesterPresent {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		s.cancel()
	}
}

// isSilent reports whether the standard wants no such answer: a positive one that was
// not wanted, or one that says only that this is not the server that was meant by a
// request to all (ISO 14229-1:2020, 8.7.5 and tables 4 to 7).
func (r *run) isSilent(answer []byte) bool {
	if answer[0] != negative {
		return r.quiet
	}
	if !r.functional {
		return false
	}
	switch NRC(answer[2]) {
	case ServiceNotSupported, SubFunctionNotSupported, RequestOutOfRange,
		SubFunctionNotSupportedInSession, ServiceNotSupportedInSession:
		return true
	}
	return false
}

func refuse(s Service, n NRC) []byte { return NegativeAnswer{s, n}.Append(nil) }
