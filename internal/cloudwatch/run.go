package cloudwatch

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"
)

// run is what belongs to the one goroutine that has the token of Writer.own: the
// lines that have left the queue, and the disk. Only requests are made elsewhere,
// by client.send, so that a server that hangs keeps no line from the disk.
type run struct {
	client  *client
	spool   *spool    // nil: there is none
	pending []event   // taken from the queue, and not on disk
	began   time.Time // of the writer, by the wall clock, once that is plausible

	flight  *batch // is being sent; nil: nothing is
	results chan result

	spillAt, uploadAt time.Time
	diskOK            time.Time // after the disk could not be written, not before this
	failures          int       // uploads that did not work, in a row
	cycle             bool      // an upload of all that waits is under way
	until             uint64    // it ends before the segment of this number
}

// batch is what is sent with one request.
type batch struct {
	seg    *segment // nil: the events are the first of pending
	events []event
}

// Run writes to disk and uploads until ctx ends or Close is called. The first
// upload is after a random part of [Config.Every], so that a fleet that gets its
// power back does not come at once. When ctx ends, an upload that is under way is
// left to Close, and so are the lines in memory if it is of some of them.
// The error is about calling it at a wrong time only.
func (w *Writer) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w.mu.Lock()
	if w.closed || w.stop != nil {
		w.mu.Unlock()
		return errors.New("run the CloudWatch log: it runs already, or is closed")
	}
	w.stop = stop
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.stop = nil
		w.mu.Unlock()
	}()
	<-w.own
	defer func() { w.own <- struct{}{} }()
	w.loop(ctx)
	return nil
}

func (w *Writer) loop(ctx context.Context) {
	r := &w.run
	now := time.Now()
	r.spillAt = now.Add(spillEvery)
	if r.uploadAt.IsZero() {
		r.uploadAt = now.Add(rand.N(w.cfg.Every))
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			w.spill(true)
			return
		case <-w.wake:
			r.soon(spillSoon)
		case res := <-r.results:
			w.landed(res)
		case <-timer.C:
		}
		now := time.Now()
		if !now.Before(r.spillAt) {
			w.spill(false)
			if r.failures == 0 && !r.cycle && r.full() {
				r.uploadAt = now
			}
		}
		if r.flight == nil && !now.Before(r.uploadAt) {
			w.upload()
		}
		next := r.spillAt
		if r.flight == nil && r.uploadAt.Before(next) {
			next = r.uploadAt
		}
		timer.Reset(time.Until(next))
	}
}

// soon makes that lines are written to disk at the latest after d, if the disk
// can be written.
func (r *run) soon(d time.Duration) {
	at := time.Now().Add(d)
	if at.Before(r.diskOK) {
		at = r.diskOK
	}
	if at.Before(r.spillAt) {
		r.spillAt = at
	}
}

// full tells whether so much waits that the next upload is not to be waited for.
func (r *run) full() bool {
	if r.spool != nil && r.spool.filled {
		return true
	}
	return r.waiting() >= queueBytes/2
}

// waiting returns the bytes that are pending.
func (r *run) waiting() (size int) {
	for _, e := range r.pending {
		size += len(e.text) + overhead
	}
	return size
}

// spill takes the lines out of the queue and writes them to disk. At the end it
// does so whatever the clock shows.
func (w *Writer) spill(end bool) {
	r := &w.run
	defer w.count()
	r.spillAt = time.Now().Add(spillEvery)
	now, since := w.cfg.Now(), time.Since(w.start)
	plausible := w.cfg.Plausible(now)
	if plausible && r.began.IsZero() {
		r.began = now.Add(-since)
	}
	if !plausible && !end {
		r.spillAt = time.Now().Add(clockEvery)
		return
	}
	if r.flight != nil && r.flight.seg == nil {
		return // what is pending is being sent
	}
	saved := w.save()
	if r.waiting() >= queueBytes/2 {
		return // they can neither be written nor sent: let the queue do without the oldest
	}
	r.pending = append(r.pending, w.notice(now)...)
	for _, i := range w.queue.take() {
		if plausible {
			r.pending = append(r.pending, w.event(i, now, since))
		} else {
			r.pending = append(r.pending, event{i.at.UnixMilli(), i.text}) // see reckon
		}
	}
	if saved {
		w.save()
	}
}

// save writes what is pending to disk, and returns whether nothing is pending
// any more.
func (w *Writer) save() bool {
	r := &w.run
	if r.spool == nil || len(r.pending) == 0 {
		return len(r.pending) == 0
	}
	n, err := r.spool.append(r.pending)
	r.pending = r.pending[n:]
	w.saved(err)
	return err == nil
}

// saved notes how using the disk went.
func (w *Writer) saved(err error) {
	if err != nil {
		w.run.diskOK = time.Now().Add(spillEvery)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.SpoolErr = err
}

// count brings the status up to date.
func (w *Writer) count() {
	r := &w.run
	lines, size := 0, int64(0)
	if r.spool != nil {
		lines, size = r.spool.waiting()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Queued, w.status.Spooled, w.status.SpooledSize = len(r.pending), lines, size
}

// upload begins to send all that waits now, or goes on with that.
func (w *Writer) upload() {
	r := &w.run
	now := w.cfg.Now()
	if !w.cfg.Plausible(now) {
		r.uploadAt = time.Now().Add(clockEvery)
		return
	}
	if !r.cycle {
		w.spill(false)
		r.cycle = true
		if r.spool != nil {
			if err := r.spool.load(); err != nil {
				w.saved(err)
			}
			r.spool.filled = false
			r.until = r.spool.next
		}
	}
	b, err := w.next(now)
	w.count()
	if err != nil {
		w.failed(err)
		return
	}
	if b == nil {
		r.cycle = false
		r.uploadAt = time.Now().Add(w.cfg.Every*9/10 + rand.N(w.cfg.Every/5+1))
		return
	}
	r.flight = b
	if r.spool != nil {
		r.spool.busy = b.seg
	}
	go func() { r.results <- r.client.send(w.life, b.events) }() // there is room: one at a time
}

// next returns the oldest lines of those that are to be sent, or nil.
func (w *Writer) next(now time.Time) (*batch, error) {
	r := &w.run
	if r.spool != nil && len(r.pending) > 0 {
		r.until = r.spool.next // all that is on disk is older
	}
	for r.spool != nil && len(r.spool.segs) > 0 && r.spool.segs[0].number < r.until {
		seg := r.spool.segs[0]
		if seg == r.spool.open { // only now: while older ones cannot be sent it may grow
			r.spool.seal()
		}
		events, err := r.spool.read(seg)
		if err != nil {
			if seg.failed++; seg.failed < 3 {
				return nil, err
			}
			w.drop(int64(seg.events-seg.done), whyRead)
			r.spool.remove(seg)
			continue
		}
		w.reckon(events, r.began)
		events = sorted(events)[seg.done:]
		old, n := plan(events, now)
		w.drop(int64(old), whyOld)
		seg.done += old
		if n > 0 {
			return &batch{seg, events[old : old+n]}, nil
		}
		w.drop(int64(len(events)-old), whyNew)
		r.spool.remove(seg)
	}
	r.pending = sorted(r.pending)
	old, n := plan(r.pending, now)
	w.drop(int64(old), whyOld)
	r.pending = r.pending[old:]
	if n > 0 {
		return &batch{nil, r.pending[:n]}, nil
	}
	w.drop(int64(len(r.pending)), whyNew)
	r.pending = nil
	return nil, nil
}

// sorted puts events in order of time, which PutLogEvents wants; those of one time
// stay in the order they were logged in.
func sorted(events []event) []event {
	slices.SortStableFunc(events, func(a, b event) int { return int(min(max(a.ms-b.ms, -1), 1)) })
	return events
}

// landed deals with the result of an upload.
func (w *Writer) landed(res result) {
	r := &w.run
	defer w.count()
	b := r.flight
	r.flight = nil
	if r.spool != nil {
		r.spool.busy = nil
	}
	if b.seg == nil {
		r.pending = r.pending[res.settled:]
	} else if b.seg.done += res.settled; b.seg.done >= b.seg.events {
		r.spool.remove(b.seg)
	}
	for why, lines := range res.dropped {
		w.drop(lines, why)
	}
	w.mu.Lock()
	w.status.Sent += res.sent
	w.mu.Unlock()
	if res.err != nil {
		w.failed(res.err)
		return
	}
	r.failures = 0
	r.uploadAt = time.Now() // the next batch
	w.changed(nil)
}

// failed makes that the next upload is later: a random time of the upper half of
// what is doubled with every failure.
func (w *Writer) failed(err error) {
	r := &w.run
	wait := lastWait
	if r.failures < 8 {
		wait = min(lastWait, firstWait<<r.failures)
	}
	r.failures++
	r.cycle = false
	r.uploadAt = time.Now().Add(wait/2 + rand.N(wait/2))
	w.changed(err)
}

func (w *Writer) changed(err error) {
	w.mu.Lock()
	tell := w.failing != (err != nil)
	w.failing = err != nil
	w.status.Err = err
	w.mu.Unlock()
	if tell && w.cfg.Changed != nil {
		w.cfg.Changed(err)
	}
}

// finish saves, sends what it can until ctx ends, and returns how many lines are
// in memory only.
func (w *Writer) finish(ctx context.Context) int {
	r := &w.run
	w.spill(true)
	if r.flight != nil {
		w.landed(<-r.results) // Close ends it with ctx
	}
	w.spill(true)
	for r.cycle = false; ctx.Err() == nil; {
		w.upload()
		if r.flight == nil {
			break
		}
		w.landed(<-r.results)
		if r.failures > 0 {
			break
		}
	}
	w.spill(true) // what came in the meantime, and what could not be sent from memory
	return len(r.pending)
}
