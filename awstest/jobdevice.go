package awstest

import (
	"maps"
	"time"
)

// handle is the device's side of Jobs: what one published message leads to.
func (c *jobCore) handle(topic string, payload []byte, now time.Time) []Message {
	op, ok := parseTopic(topic)
	if !ok {
		return nil
	}
	r, bad := parseRequest(payload)
	switch {
	case op.verb == "": // first, as the service does not know what to read
		bad = refuse("InvalidTopic", "The topic %s does not map to any API operation", topic)
	case !thingPattern.MatchString(op.thing):
		bad = refuse("InvalidRequest", "The thing's name is not valid")
	case op.job != "" && !jobPattern.MatchString(op.job) && !(op.job == "$next" && op.verb == "get"):
		bad = refuse("InvalidRequest", "The job id %q is not valid", op.job)
	}
	if bad != nil && op.verb == "update" {
		c.updates = append(c.updates, Update{At: now, Thing: op.thing, JobID: op.job, Code: bad.code})
	}
	return c.watch(now, func() []Message {
		var accepted any
		if bad == nil {
			accepted, bad = c.do(op, r, now)
		}
		if bad == nil {
			return []Message{message(answer, topic+"/accepted", accepted)}
		}
		w := wireRejected{Code: bad.code, Message: bad.text, Token: r.token, Timestamp: now.Unix()}
		if bad.about != nil {
			w.State = state(bad.about)
		}
		return []Message{message(answer, topic+"/rejected", w)}
	})
}

func (c *jobCore) do(op operation, r request, now time.Time) (any, *refusal) {
	switch {
	case op.verb == "update":
		return c.update(op, r, now)
	case op.verb == "start-next":
		return c.startNext(op.thing, r, now)
	case op.job == "":
		pending := c.pending(op.thing)
		return wireLists{summaries(pending, InProgress), summaries(pending, Queued), now.Unix(), r.token}, nil
	}
	return c.describe(op, r, now)
}

func (c *jobCore) describe(op operation, r request, now time.Time) (any, *refusal) {
	w := wireAccepted{Timestamp: now.Unix(), Token: r.token}
	e := first(c.pending(op.thing))
	if op.job != "$next" {
		var bad *refusal
		if e, bad = c.find(op, r); bad != nil {
			return nil, bad
		}
		if e.Status.Terminal() {
			return nil, refuse("TerminalStateReached", "The job execution is in the terminal state %s", e.Status)
		}
	}
	return c.execution(w, e, r.withDoc == nil || *r.withDoc, now)
}

func (c *jobCore) execution(w wireAccepted, e *execution, document bool, now time.Time) (any, *refusal) {
	if e == nil {
		return w, nil // nothing is pending: an answer without an execution
	}
	var err error
	if w.Execution, err = c.full(e, document, now); err != nil {
		return nil, refuse("InternalError", "presign a URL of the job document: %v", err)
	}
	return w, nil
}

func (c *jobCore) find(op operation, r request) (*execution, *refusal) {
	e := c.latest(op.thing, op.job)
	if r.number != 0 {
		e = nil
		for _, o := range c.of(op.thing, op.job) {
			if o.Number == r.number {
				e = o
			}
		}
	}
	if e == nil {
		return nil, refuse("ResourceNotFound", "There is no such execution of job %s on thing %s", op.job, op.thing)
	}
	return e, nil
}

// startNext starts the oldest queued execution, unless one is in progress already:
// that one is told again, and neither its details nor its version change
// (StartNextPendingJobExecution).
func (c *jobCore) startNext(thing string, r request, now time.Time) (any, *refusal) {
	e := first(c.pending(thing))
	if e != nil {
		if e.Status == Queued {
			c.set(e, InProgress, now)
			if r.details != nil {
				e.StatusDetails = maps.Clone(r.details)
			}
			c.updates = append(c.updates, Update{
				At: now, Thing: thing, JobID: e.JobID, Number: e.Number, Status: InProgress, StatusDetails: r.details,
			})
		}
		e.setStep(r.stepMinutes, now)
	}
	return c.execution(wireAccepted{Timestamp: now.Unix(), Token: r.token}, e, true, now)
}

// setStep starts the step timer again, or drops it. An update that does not say a
// timeout leaves the timer alone (UpdateJobExecution, stepTimeoutInMinutes).
func (e *execution) setStep(minutes int, now time.Time) {
	switch {
	case minutes < 0:
		e.step = time.Time{}
	case minutes > 0:
		e.step = now.Add(time.Duration(minutes) * time.Minute)
	}
}

func (c *jobCore) update(op operation, r request, now time.Time) (any, *refusal) {
	u := Update{
		At: now, Thing: op.thing, JobID: op.job, Status: r.status,
		StatusDetails: maps.Clone(r.details), ExpectedVersion: r.expected,
	}
	e, bad := c.find(op, r)
	if e != nil {
		u.Number = e.Number
	}
	if refused := c.mayUpdate(e, r, bad); refused != nil {
		u.Code = refused.code
		c.updates = append(c.updates, u)
		return nil, refused
	}
	c.updates = append(c.updates, u)
	c.set(e, r.status, now)
	if r.details != nil { // the whole of them; without, they stay
		e.StatusDetails = maps.Clone(r.details)
	}
	if r.status == InProgress {
		e.setStep(r.stepMinutes, now)
	}
	w := wireAccepted{Timestamp: now.Unix(), Token: r.token}
	if r.withState {
		w.State = state(e)
	}
	if r.withDoc != nil && *r.withDoc {
		var err error
		if w.Document, err = c.fill(e); err != nil {
			return nil, refuse("InternalError", "presign a URL of the job document: %v", err)
		}
	}
	return w, nil
}

// mayUpdate asks in this order: is the request whole, does the execution exist, is
// the version the expected one, may the status follow.
func (c *jobCore) mayUpdate(e *execution, r request, missing *refusal) *refusal {
	if !r.hasStatus {
		return refuse("InvalidRequest", "status: it is missing")
	}
	switch r.status {
	case InProgress, Succeeded, Failed, Rejected:
	default:
		return refuse("InvalidRequest", "status: a device may not set %q", r.status)
	}
	if missing != nil {
		return missing
	}
	if r.expected != 0 && r.expected != e.Version {
		bad := refuse("VersionMismatch", "Expected version %d but found version %d", r.expected, e.Version)
		bad.about = e
		return bad
	}
	if e.Status.Terminal() {
		bad := refuse("InvalidStateTransition", "The status cannot change from %s to %s", e.Status, r.status)
		bad.about = e
		return bad
	}
	return nil
}
