package awstest

import (
	"context"
	"errors"
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
	Removed    Status = "REMOVED"
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

// Update is one request of a device to change an execution (update or start-next)
// as it arrived, whatever became of it.
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
	// Presign makes the URL for a placeholder ${aws:iot:s3-presigned-url:URL}, each
	// time a device is given the document. nil: placeholders stay as they are.
	Presign func(thing, url string) (string, error)
}

// Jobs is AWS IoT Jobs: control in Go, the device's side over MQTT. Safe for use by
// several goroutines. Its clock is the time package's, so that in a
// testing/synctest bubble timeouts need no waiting.
type Jobs struct {
}

// NewJobs makes a service without jobs. Give it to [StartBroker] or [ServeClient].
func NewJobs(o JobsOptions) *Jobs { return &Jobs{} }

// Create queues a job for its things.
func (j *Jobs) Create(job Job) error { return errStub }

// Cancel cancels a job: its queued executions, and with force those in progress too.
func (j *Jobs) Cancel(id string, force bool) error { return errStub }

// CancelExecution cancels a job for one thing; one in progress only with force.
func (j *Jobs) CancelExecution(thing, id string, force bool) error { return errStub }

// Delete removes a job and its executions. One that is not over: only with force.
func (j *Jobs) Delete(id string, force bool) error { return errStub }

// Window closes or opens the maintenance window of a job. While it is closed, its
// queued executions are not shown to devices.
func (j *Jobs) Window(id string, open bool) error { return errStub }

// Status is a job's: IN_PROGRESS, COMPLETED or CANCELED; "" if there is none.
func (j *Jobs) Status(id string) string { return "" }

// Execution is the newest execution of a job on a thing.
func (j *Jobs) Execution(thing, id string) (Execution, bool) { return Execution{}, false }

// Executions are all of a job on a thing, the oldest first: several if it was retried.
func (j *Jobs) Executions(thing, id string) []Execution { return nil }

// Updates is every request to change an execution of a job on a thing, in their
// order, also the refused ones.
func (j *Jobs) Updates(thing, id string) []Update { return nil }

// Wait returns when the newest execution has one of the statuses (none: any
// terminal one). The error says how far it got.
func (j *Jobs) Wait(ctx context.Context, thing, id string, want ...Status) (Execution, error) {
	return Execution{}, errStub
}

// Filters, Attach and Receive make it a [Service].
func (j *Jobs) Filters() []string { return []string{"$aws/things/+/jobs/#"} }

// Attach is part of [Service].
func (j *Jobs) Attach(emit func(Message)) {}

// Receive is part of [Service].
func (j *Jobs) Receive(client, topic string, payload []byte) {}

var errStub = errors.New("not written yet")
