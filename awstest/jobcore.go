package awstest

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"
)

// jobCore is the service without sockets, clock and goroutines: messages in,
// messages out, and the time is an argument.
type jobCore struct {
	presign func(thing, url string) (string, error)
	jobs    map[string]*job
	queue   []*execution // of all things, in the order in which they were queued
	updates []Update
}

type job struct {
	Job
	document json.RawMessage
	canceled bool
	closed   bool // the maintenance window
}

type execution struct {
	Execution
	job      *job
	deadline time.Time // of inProgressTimeout; zero: none
	step     time.Time // of the step timer; zero: none
}

func newJobCore(presign func(thing, url string) (string, error)) *jobCore {
	return &jobCore{presign: presign, jobs: map[string]*job{}}
}

// Limits of Jobs (API reference of iot and iot-jobs-data; AWS IoT Device Management
// quotas: the number of details).
const (
	maxDocument     = 32768
	maxDetails      = 10
	maxDetailKey    = 128
	maxDetailValue  = 1024
	maxToken        = 64
	maxMinutes      = 10080 // of both timers
	maxRetries      = 10
	maxListed       = 10 // of each kind in an answer to jobs/get
	jobsTopicPrefix = "$aws/things/"
)

var (
	jobPattern    = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)
	thingPattern  = regexp.MustCompile(`^[a-zA-Z0-9:_-]{1,128}$`)
	detailPattern = regexp.MustCompile(`^[a-zA-Z0-9:_-]+$`)
)

func (c *jobCore) create(j Job, now time.Time) ([]Message, error) {
	made, err := c.check(j)
	if err != nil {
		return nil, fmt.Errorf("create job %q: %w", j.ID, err)
	}
	return c.watch(now, func() []Message {
		c.jobs[j.ID] = made
		for _, thing := range j.Things {
			c.enqueue(made, thing, 1, now)
		}
		return nil
	}), nil
}

func (c *jobCore) check(j Job) (*job, error) {
	made := &job{Job: j}
	made.Things, made.Retry = slices.Clone(j.Things), maps.Clone(j.Retry)
	if !jobPattern.MatchString(j.ID) {
		return nil, fmt.Errorf("an id has 1 to 64 letters, digits, _ and -")
	}
	if c.jobs[j.ID] != nil {
		return nil, fmt.Errorf("there is one already")
	}
	if len(j.Things) == 0 {
		return nil, fmt.Errorf("it is for no thing")
	}
	for i, thing := range j.Things {
		if !thingPattern.MatchString(thing) || slices.Contains(j.Things[:i], thing) {
			return nil, fmt.Errorf("thing %q: got a wrong or a repeated name, want 1 to 128 letters, digits, :, _ and -", thing)
		}
	}
	if len(j.Document) > maxDocument {
		return nil, fmt.Errorf("got a document of %d bytes, want at most %d", len(j.Document), maxDocument)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(j.Document), &object); err != nil || object == nil {
		return nil, fmt.Errorf("read the document as a JSON object: %v", err)
	}
	made.document = json.RawMessage(j.Document)
	if t := j.InProgressTimeout; t != 0 && (t%time.Minute != 0 || t < time.Minute || t > maxMinutes*time.Minute) {
		return nil, fmt.Errorf("got an in-progress timeout of %v, want 1 to %d whole minutes", t, maxMinutes)
	}
	retries := 0
	for status, n := range j.Retry {
		if status != Failed && status != TimedOut || n < 0 {
			return nil, fmt.Errorf("retry %s %d times: only FAILED and TIMED_OUT are retried, 0 to %d times", status, n, maxRetries)
		}
		retries += n
	}
	if retries > maxRetries {
		return nil, fmt.Errorf("got %d retries, want at most %d", retries, maxRetries)
	}
	return made, nil
}

func (c *jobCore) enqueue(j *job, thing string, number int, now time.Time) {
	at := now.Truncate(time.Second)
	c.queue = append(c.queue, &execution{job: j, Execution: Execution{
		JobID: j.ID, Thing: thing, Number: number, Version: 1, Status: Queued, QueuedAt: at, LastUpdatedAt: at,
	}})
}

// set moves an execution on; a failed one is followed by another if the job says so.
func (c *jobCore) set(e *execution, s Status, now time.Time) {
	at := now.Truncate(time.Second)
	if s == InProgress && e.Status == Queued {
		e.StartedAt = at
		if t := e.job.InProgressTimeout; t > 0 {
			e.deadline = now.Add(t)
		}
	}
	e.Status, e.LastUpdatedAt = s, at
	e.Version++
	if !s.Terminal() {
		return
	}
	e.deadline, e.step = time.Time{}, time.Time{}
	if e.job.canceled {
		return
	}
	again := 0
	for _, o := range c.of(e.Thing, e.JobID) {
		if o.Status == s {
			again++ // this one included
		}
	}
	if again <= e.job.Retry[s] {
		c.enqueue(e.job, e.Thing, e.Number+1, now)
	}
}

func (c *jobCore) cancel(id string, force bool, now time.Time) ([]Message, error) {
	j := c.jobs[id]
	if j == nil {
		return nil, fmt.Errorf("cancel job %q: there is none", id)
	}
	if s := c.status(id); s != "IN_PROGRESS" && !(force && s == "CANCELED") {
		return nil, fmt.Errorf("cancel job %q: it is %s", id, s)
	}
	return c.watch(now, func() []Message {
		j.canceled = true
		for _, e := range c.queue {
			if e.job == j && (e.Status == Queued || force && e.Status == InProgress) {
				c.set(e, Canceled, now)
			}
		}
		return nil
	}), nil
}

func (c *jobCore) end(thing, id string, s Status, force bool, now time.Time) ([]Message, error) {
	e := c.latest(thing, id)
	switch {
	case e == nil:
		return nil, fmt.Errorf("end job %q on %s as %s: there is none", id, thing, s)
	case e.Status.Terminal():
		return nil, fmt.Errorf("end job %q on %s as %s: it is %s already", id, thing, s, e.Status)
	case e.Status == InProgress && !force:
		return nil, fmt.Errorf("end job %q on %s as %s: it is in progress, and force is not set", id, thing, s)
	}
	return c.watch(now, func() []Message { c.set(e, s, now); return nil }), nil
}

func (c *jobCore) remove(id string, force bool, now time.Time) ([]Message, error) {
	j := c.jobs[id]
	if j == nil {
		return nil, fmt.Errorf("delete job %q: there is none", id)
	}
	over := !slices.ContainsFunc(c.queue, func(e *execution) bool { return e.job == j && !e.Status.Terminal() })
	if !over && !force {
		return nil, fmt.Errorf("delete job %q: it is %s, and force is not set", id, c.status(id))
	}
	return c.watch(now, func() []Message {
		c.queue = slices.DeleteFunc(c.queue, func(e *execution) bool { return e.job == j })
		delete(c.jobs, id)
		return nil
	}), nil
}

func (c *jobCore) window(id string, open bool, now time.Time) ([]Message, error) {
	j := c.jobs[id]
	if j == nil {
		return nil, fmt.Errorf("change the window of job %q: there is none", id)
	}
	return c.watch(now, func() []Message { j.closed = !open; return nil }), nil
}

func (c *jobCore) status(id string) string {
	j := c.jobs[id]
	switch {
	case j == nil:
		return ""
	case j.canceled:
		return "CANCELED"
	}
	for _, e := range c.queue {
		if e.job == j && !e.Status.Terminal() {
			return "IN_PROGRESS"
		}
	}
	return "COMPLETED"
}

// of is a job's executions on a thing, the oldest first.
func (c *jobCore) of(thing, id string) []*execution {
	var of []*execution
	for _, e := range c.queue {
		if e.Thing == thing && e.JobID == id {
			of = append(of, e)
		}
	}
	return of
}

func (c *jobCore) latest(thing, id string) *execution {
	of := c.of(thing, id)
	if len(of) == 0 {
		return nil
	}
	return of[len(of)-1]
}

// pending is what a device is shown: those in progress, then the queued ones, each
// the oldest first.
func (c *jobCore) pending(thing string) []*execution {
	var started, queued []*execution
	for _, e := range c.queue {
		switch {
		case e.Thing != thing:
		case e.Status == InProgress:
			started = append(started, e)
		case e.Status == Queued && !e.job.closed:
			queued = append(queued, e)
		}
	}
	return append(started, queued...)
}

// watch does some work and adds the notifications that follow from it: notify if
// what is pending for a thing has become more or less, notify-next if another
// execution comes first now (developer guide, "Jobs device MQTT API").
func (c *jobCore) watch(now time.Time, work func() []Message) []Message {
	before := map[string][]*execution{}
	for _, thing := range c.things() {
		before[thing] = c.pending(thing)
	}
	messages := work()
	for _, thing := range c.things() {
		if before[thing] == nil {
			before[thing] = []*execution{}
		}
	}
	for _, thing := range slices.Sorted(maps.Keys(before)) {
		was, is := before[thing], c.pending(thing)
		if !sameSet(was, is) {
			messages = append(messages, c.notify(thing, is, now))
		}
		if first(was) != first(is) {
			messages = append(messages, c.notifyNext(thing, first(is), now))
		}
	}
	return messages
}

func (c *jobCore) things() []string {
	seen := map[string]bool{}
	for _, e := range c.queue {
		seen[e.Thing] = true
	}
	return slices.Collect(maps.Keys(seen))
}

func first(of []*execution) *execution {
	if len(of) == 0 {
		return nil
	}
	return of[0]
}

func sameSet(a, b []*execution) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(e *execution) bool { return !slices.Contains(b, e) })
}

// next is when expire has something to do; zero: never.
func (c *jobCore) next() time.Time {
	var next time.Time
	for _, e := range c.queue {
		if due := e.due(); !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	return next
}

// due is the earlier of the two timers: the step timer never reaches beyond the other.
func (e *execution) due() time.Time {
	if e.step.IsZero() || !e.deadline.IsZero() && e.deadline.Before(e.step) {
		return e.deadline
	}
	return e.step
}

// expire times out what is due. AWS may be up to a minute late; this is not.
func (c *jobCore) expire(now time.Time) []Message {
	if next := c.next(); next.IsZero() || next.After(now) {
		return nil
	}
	return c.watch(now, func() []Message {
		for _, e := range slices.Clone(c.queue) {
			if due := e.due(); !due.IsZero() && !due.After(now) {
				c.set(e, TimedOut, now)
			}
		}
		return nil
	})
}

// placeholder is what a document may contain in any string (developer guide,
// "Presigned URLs").
var placeholder = regexp.MustCompile(`\$\{aws:iot:s3-presigned-url(?:-v2)?:([^}"]*)\}`)

// fill is the document as a device gets it, otherwise as it was written. The
// placeholders are filled in wherever the document is sent, so also in notify-next.
func (c *jobCore) fill(e *execution) (json.RawMessage, error) {
	if c.presign == nil {
		return e.job.document, nil
	}
	var failed error
	filled := placeholder.ReplaceAllFunc(e.job.document, func(found []byte) []byte {
		var url string
		if err := json.Unmarshal(fmt.Appendf(nil, `"%s"`, placeholder.FindSubmatch(found)[1]), &url); err != nil {
			failed = err
			return found
		}
		signed, err := c.presign(e.Thing, url)
		if err != nil {
			failed = err
			return found
		}
		quoted, _ := json.Marshal(signed) // a string: cannot fail
		return quoted[1 : len(quoted)-1]
	})
	return filled, failed
}
