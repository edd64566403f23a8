package awstest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Status of an execution.
type Status string

// Statuses of an execution. A device sets InProgress, Succeeded, Failed and Rejected.
const (
	Queued     Status = "QUEUED"
	InProgress Status = "IN_PROGRESS"
	Succeeded  Status = "SUCCEEDED"
	Failed     Status = "FAILED"
	Rejected   Status = "REJECTED"
	TimedOut   Status = "TIMED_OUT"
	Removed    Status = "REMOVED" // the thing has left the dynamic group
	Canceled   Status = "CANCELED"
)

// Terminal says whether nothing can follow.
func (s Status) Terminal() bool { return s != Queued && s != InProgress }

// Job is what CreateJob takes.
type Job struct {
	ID       string   // 1 to 64 of A-Z a-z 0-9 _ -
	Things   []string // 1 to 128 of A-Z a-z 0-9 : _ - each
	Document string   // a JSON object, at most 32,768 bytes

	// InProgressTimeout ends an execution that many whole minutes (1 to 10,080)
	// after it was started. 0: never.
	InProgressTimeout time.Duration
	// Retry is how often a new execution follows one that ended like this: Failed
	// and TimedOut only, 10 together at most.
	Retry map[Status]int
}

// Execution is a job on a thing. Times are whole seconds, as everywhere in Jobs.
type Execution struct {
	JobID         string
	Thing         string
	Number        int // executionNumber, from 1
	Version       int // versionNumber, from 1
	Status        Status
	StatusDetails map[string]string
	QueuedAt      time.Time
	StartedAt     time.Time // zero: never
	LastUpdatedAt time.Time
}

// Update is one request of a device to change an execution (update, or a start-next
// that started one) as it arrived, whatever became of it.
type Update struct {
	At              time.Time
	Thing           string
	JobID           string
	Number          int    // the execution it was about; 0 if none was found
	Status          Status // as the device wrote it
	StatusDetails   map[string]string
	ExpectedVersion int    // 0: none
	Code            string // of the rejection; "" if accepted
}

// JobsOptions are optional.
type JobsOptions struct {
	// Presign makes the URL for a placeholder ${aws:iot:s3-presigned-url-v2:URL}, or
	// the older one without -v2, each time a device is given the document. It is called
	// with Jobs locked, so it must not call Jobs. nil: placeholders stay as they are.
	Presign func(thing, url string) (string, error)
}

// Jobs is AWS IoT Jobs: control in Go, the device's side over MQTT. Safe for use by
// several goroutines. Its clock is the time package's, so that in a
// testing/synctest bubble timeouts need no waiting.
type Jobs struct {
	mu      sync.Mutex
	core    *jobCore
	emit    func(Message)
	timer   *time.Timer
	changed chan struct{} // closed and made anew at every change
}

// NewJobs makes a service without jobs. Give it to [StartBroker] or [ServeClient].
func NewJobs(o JobsOptions) *Jobs {
	return &Jobs{
		core: newJobCore(o.Presign), emit: func(Message) {}, changed: make(chan struct{}),
	}
}

// do is the only way to the core: what it says is sent in its order, the next
// timeout is set, and those who wait look again.
func (j *Jobs) do(work func(now time.Time) ([]Message, error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	for _, m := range j.core.expire(now) { // what is due comes first
		j.emit(m)
	}
	messages, err := work(now)
	for _, m := range messages {
		j.emit(m)
	}
	if j.timer != nil {
		j.timer.Stop()
		j.timer = nil
	}
	if next := j.core.next(); !next.IsZero() {
		j.timer = time.AfterFunc(next.Sub(now), func() {
			_ = j.do(func(time.Time) ([]Message, error) { return nil, nil })
		})
	}
	close(j.changed)
	j.changed = make(chan struct{})
	return err
}

// Create queues a job for its things.
func (j *Jobs) Create(job Job) error {
	return j.do(func(now time.Time) ([]Message, error) { return j.core.create(job, now) })
}

// Cancel cancels a job: its queued executions, and with force those in progress too.
func (j *Jobs) Cancel(id string, force bool) error {
	return j.do(func(now time.Time) ([]Message, error) { return j.core.cancel(id, force, now) })
}

// CancelExecution cancels a job for one thing; one in progress only with force.
func (j *Jobs) CancelExecution(thing, id string, force bool) error {
	return j.do(func(now time.Time) ([]Message, error) {
		return j.core.end(thing, id, Canceled, force, now)
	})
}

// Remove ends a job for a thing that has left the group the job was for.
func (j *Jobs) Remove(thing, id string) error {
	return j.do(func(now time.Time) ([]Message, error) {
		return j.core.end(thing, id, Removed, true, now)
	})
}

// Delete removes a job and its executions. One that is not over: only with force.
func (j *Jobs) Delete(id string, force bool) error {
	return j.do(func(now time.Time) ([]Message, error) { return j.core.remove(id, force, now) })
}

// Window closes or opens the maintenance window of a job. While it is closed, its
// queued executions are not shown to devices.
func (j *Jobs) Window(id string, open bool) error {
	return j.do(func(now time.Time) ([]Message, error) { return j.core.window(id, open, now) })
}

// Status is a job's: IN_PROGRESS, COMPLETED or CANCELED; "" if there is none.
func (j *Jobs) Status(id string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.core.status(id)
}

// Execution is the newest execution of a job on a thing.
func (j *Jobs) Execution(thing, id string) (Execution, bool) {
	all := j.Executions(thing, id)
	if len(all) == 0 {
		return Execution{}, false
	}
	return all[len(all)-1], true
}

// Executions are all of a job on a thing, the oldest first: several if it was retried.
func (j *Jobs) Executions(thing, id string) []Execution {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.executions(thing, id)
}

func (j *Jobs) executions(thing, id string) []Execution {
	var all []Execution
	for _, e := range j.core.of(thing, id) {
		c := e.Execution
		c.StatusDetails = maps.Clone(c.StatusDetails)
		all = append(all, c)
	}
	return all
}

// Updates is every request to change an execution of a job on a thing, in their
// order, also the refused ones.
func (j *Jobs) Updates(thing, id string) []Update {
	j.mu.Lock()
	defer j.mu.Unlock()
	var of []Update
	for _, u := range j.core.updates {
		if u.Thing == thing && u.JobID == id {
			of = append(of, u)
		}
	}
	return of
}

// Wait returns when the newest execution has one of the statuses (none: any
// terminal one). The error says how far it got.
func (j *Jobs) Wait(ctx context.Context, thing, id string, want ...Status) (Execution, error) {
	for {
		j.mu.Lock()
		all, changed := j.executions(thing, id), j.changed
		j.mu.Unlock()
		var last Execution
		if len(all) > 0 {
			last = all[len(all)-1]
			if slices.Contains(want, last.Status) || len(want) == 0 && last.Status.Terminal() {
				return last, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return last, fmt.Errorf("wait for job %s on %s to become %v: it is %q (version %d, details %v): %w",
				id, thing, want, last.Status, last.Version, last.StatusDetails, ctx.Err())
		}
	}
}

// Filters, Attach and Receive make it a [Service].
func (j *Jobs) Filters() []string { return []string{"$aws/things/+/jobs/#"} }

// Attach is part of [Service].
func (j *Jobs) Attach(emit func(Message)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.emit = emit
}

// Receive is part of [Service].
func (j *Jobs) Receive(client, topic string, payload []byte) {
	_ = j.do(func(now time.Time) ([]Message, error) {
		messages := j.core.handle(topic, payload, now)
		for i := range messages {
			if messages[i].Client == answer {
				messages[i].Client = client
			}
		}
		return messages, nil
	})
}
