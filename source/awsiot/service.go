package awsiot

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
)

// maxAnswer is the largest message of the service's that is read: a document has at
// most 32 KiB (API reference, JobExecution), and everything at most 128 KiB.
const maxAnswer = 128 << 10

// Statuses of a job execution (API reference, JobExecution).
const (
	queued     = "QUEUED"
	inProgress = "IN_PROGRESS"
	succeeded  = "SUCCEEDED"
	failed     = "FAILED"
	rejected   = "REJECTED"
)

// over reports whether nothing can follow a status. One that is not known, or is missing,
// ends nothing: what was to be said would never be said.
func over(status string) bool {
	switch status {
	case succeeded, failed, rejected, "TIMED_OUT", "REMOVED", "CANCELED":
		return true
	}
	return false
}

// execution is a job on this thing, as the service describes it. Times are seconds
// since 1970.
type execution struct {
	JobID           string          `json:"jobId"`
	Status          string          `json:"status"`
	Document        json.RawMessage `json:"jobDocument"`
	QueuedAt        int64           `json:"queuedAt"`
	VersionNumber   int64           `json:"versionNumber"`
	ExecutionNumber int64           `json:"executionNumber"`
}

func (x *execution) key() key { return key{x.JobID, x.ExecutionNumber, x.QueuedAt} }

// check reports whether x can be worked with.
func (x *execution) check() error {
	switch {
	case !jobName.MatchString(x.JobID):
		return fmt.Errorf("job id %q: want 1 to 64 of a-z, A-Z, 0-9, _ and -", clean(x.JobID, 80))
	case x.Status == "":
		return fmt.Errorf("job %s has no status", x.JobID)
	case x.VersionNumber < 1 || x.ExecutionNumber < 1:
		return fmt.Errorf("job %s: version number %d and execution number %d, want 1 or more", x.JobID, x.VersionNumber, x.ExecutionNumber)
	}
	return nil
}

// Refused is the service's no to a request. It wraps ota.ErrServer.
type Refused struct {
	Code    string // for example VersionMismatch
	Message string
	state   *execution // what the service has instead; nil: it did not say
}

func (e *Refused) Error() string {
	return fmt.Sprintf("the service refuses: %s: %s", clean(e.Code, 64), clean(e.Message, 200))
}

// Unwrap returns the code.
func (e *Refused) Unwrap() error { return ota.ErrServer }

// gone reports whether e says that there is no such execution, or that it is over.
func (e *Refused) gone() bool {
	return e.Code == "ResourceNotFound" || e.Code == "TerminalStateReached" || e.state != nil && over(e.state.Status)
}

// answer is one message on .../accepted or .../rejected.
type answer struct {
	Token string `json:"clientToken"`

	Execution *execution `json:"execution"` // of get

	Code    string     `json:"code"` // of a rejection
	Message string     `json:"message"`
	State   *execution `json:"executionState"`

	accepted bool
}

func parseAnswer(payload []byte) (answer, error) {
	var a answer
	if len(payload) > maxAnswer {
		return a, fmt.Errorf("read an answer: it has %d bytes, want at most %d", len(payload), maxAnswer)
	}
	if err := json.Unmarshal(payload, &a); err != nil {
		return a, fmt.Errorf("read an answer: %w", err)
	}
	if a.Execution != nil {
		if err := a.Execution.check(); err != nil {
			return a, fmt.Errorf("read an answer: %w", err)
		}
		if d := bytes.TrimSpace(a.Execution.Document); len(d) > 0 && d[0] == '"' { // as over HTTP
			var text string
			if err := json.Unmarshal(d, &text); err == nil {
				a.Execution.Document = json.RawMessage(text)
			}
		}
	}
	return a, nil
}

// service asks AWS IoT Jobs, one question and its answer. Answers are known by their
// token and their topic; what nobody asked for is dropped.
type service struct {
	line    *line
	prefix  string
	timeout time.Duration

	mu      sync.Mutex
	waiting map[string]question // by token
	dropped int                 // answers, since that was said
	saidAt  time.Time           // when
}

type question struct {
	topic  string
	answer chan answer // has room for one
}

// filters are the topics of the answers. AWS delivers them even without a
// subscription, other brokers do not.
func (s *service) filters() []string {
	return []string{s.prefix + "/+/get/accepted", s.prefix + "/+/get/rejected",
		s.prefix + "/+/update/accepted", s.prefix + "/+/update/rejected"}
}

func (s *service) receive(topic string, payload []byte) {
	asked, accepted := strings.CutSuffix(topic, "/accepted")
	if !accepted {
		var ok bool
		if asked, ok = strings.CutSuffix(topic, "/rejected"); !ok {
			return
		}
	}
	a, err := parseAnswer(payload)
	if err != nil {
		s.drop(topic, err)
		return
	}
	a.accepted = accepted
	s.mu.Lock()
	q, ok := s.waiting[a.Token]
	if ok = ok && q.topic == asked; ok {
		delete(s.waiting, a.Token)
	}
	s.mu.Unlock()
	if ok {
		q.answer <- a
	}
}

// dropPause is between two lines of the log about answers that cannot be used: a broker
// can send thousands a second, and a log wears out a card.
const dropPause = time.Minute

func (s *service) drop(topic string, err error) {
	s.mu.Lock()
	s.dropped++
	n, say := s.dropped, s.saidAt.IsZero() || time.Since(s.saidAt) >= dropPause
	if say {
		s.dropped, s.saidAt = 0, time.Now()
	}
	s.mu.Unlock()
	if say {
		s.line.log.Warn("answers of the service are dropped", "count", n, "topic", clean(topic, 200), "error", err)
	}
}

// errNoAnswer: the request may have been done or not.
var errNoAnswer = errors.New("no answer came")

// ask sends a request to a topic below the prefix, with a token, and waits for its answer.
func (s *service) ask(ctx context.Context, topic string, request map[string]any) (answer, error) {
	topic = s.prefix + "/" + topic
	_, gone, err := s.line.now()
	if err != nil {
		return answer{}, err
	}
	random := make([]byte, 12)
	rand.Read(random) // never fails, see crypto/rand
	token := hex.EncodeToString(random)
	request["clientToken"] = token
	payload, err := json.Marshal(request)
	if err != nil {
		return answer{}, coded(ota.ErrInternal, "ask %s: %w", topic, err)
	}
	q := question{topic, make(chan answer, 1)}
	s.mu.Lock()
	s.waiting[token] = q
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, token)
		s.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	// The answer may be there before the acknowledgement, which then does not matter.
	sent := make(chan error, 1)
	go func() { sent <- s.line.Publish(ctx, topic, 1, payload) }()
	for {
		select {
		case a := <-q.answer:
			if a.accepted {
				return a, nil
			}
			return a, &Refused{a.Code, a.Message, a.State}
		case err := <-sent:
			if err != nil {
				return answer{}, fmt.Errorf("%w: %w", errNoAnswer, err)
			}
			sent = nil
		case <-gone:
			return answer{}, fmt.Errorf("%w: ask %s: %w: the connection ended", ota.ErrConnectivity, topic, errNoAnswer)
		case <-ctx.Done():
			return answer{}, fmt.Errorf("%w: ask %s: %w within %v", ota.ErrConnectivity, topic, errNoAnswer, s.timeout)
		}
	}
}

// next returns the execution that is pending first, without starting it, or nil.
func (s *service) next(ctx context.Context) (*execution, error) {
	a, err := s.ask(ctx, "$next/get", map[string]any{})
	if err != nil || a.Execution == nil || over(a.Execution.Status) {
		return nil, err
	}
	return a.Execution, nil
}

// describe returns the newest execution of a job, or nil if there is none or it is over.
func (s *service) describe(ctx context.Context, id string) (*execution, error) {
	a, err := s.ask(ctx, id+"/get", map[string]any{})
	if r, ok := errors.AsType[*Refused](err); ok && r.gone() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if a.Execution == nil || over(a.Execution.Status) {
		return nil, nil
	}
	if a.Execution.JobID != id {
		return nil, coded(ota.ErrServer, "describe job %s: the service answered with job %s", id, clean(a.Execution.JobID, 64))
	}
	return a.Execution, nil
}

// update changes an execution that is at version.
func (s *service) update(ctx context.Context, k key, version int64, status string, details map[string]string, step time.Duration) error {
	request := map[string]any{"status": status, "expectedVersion": version, "executionNumber": k.Execution}
	if len(details) > 0 {
		request["statusDetails"] = details
	}
	if step > 0 && !over(status) {
		request["stepTimeoutInMinutes"] = int64(step / time.Minute)
	}
	_, err := s.ask(ctx, k.Job+"/update", request)
	return err
}
