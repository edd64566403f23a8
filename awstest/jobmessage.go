package awstest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// What is on the wire: names and shapes as in the developer guide ("Jobs MQTT API
// data types") and in payloads captured from the live service.

// answer marks a message for the client that asked; Receive puts its name there.
const answer = "\x00asked"

type wireExecution struct {
	JobID         string            `json:"jobId"`
	Thing         string            `json:"thingName,omitempty"`
	Document      json.RawMessage   `json:"jobDocument,omitempty"`
	Status        Status            `json:"status"`
	StatusDetails map[string]string `json:"statusDetails,omitempty"`
	QueuedAt      int64             `json:"queuedAt"`
	StartedAt     int64             `json:"startedAt,omitempty"`
	LastUpdatedAt int64             `json:"lastUpdatedAt"`
	Version       int               `json:"versionNumber"`
	Number        int               `json:"executionNumber"`
	SecondsLeft   *int64            `json:"approximateSecondsBeforeTimedOut,omitempty"`
}

type wireSummary struct {
	JobID         string `json:"jobId"`
	QueuedAt      int64  `json:"queuedAt"`
	StartedAt     int64  `json:"startedAt,omitempty"`
	LastUpdatedAt int64  `json:"lastUpdatedAt"`
	Version       int    `json:"versionNumber"`
	Number        int    `json:"executionNumber"`
}

type wireState struct {
	Status        Status            `json:"status"`
	StatusDetails map[string]string `json:"statusDetails,omitempty"`
	Version       int               `json:"versionNumber"`
}

type wireLists struct {
	InProgress []wireSummary `json:"inProgressJobs"`
	Queued     []wireSummary `json:"queuedJobs"`
	Timestamp  int64         `json:"timestamp"`
	Token      string        `json:"clientToken,omitempty"`
}

type wireAccepted struct {
	Execution *wireExecution  `json:"execution,omitempty"`
	State     *wireState      `json:"executionState,omitempty"`
	Document  json.RawMessage `json:"jobDocument,omitempty"`
	Timestamp int64           `json:"timestamp"`
	Token     string          `json:"clientToken,omitempty"`
}

type wireNotify struct {
	Timestamp int64                    `json:"timestamp"`
	Jobs      map[Status][]wireSummary `json:"jobs"`
}

type wireRejected struct {
	Code      string     `json:"code"`
	Message   string     `json:"message"`
	Token     string     `json:"clientToken,omitempty"`
	Timestamp int64      `json:"timestamp"`
	State     *wireState `json:"executionState,omitempty"`
}

func summary(e *execution) wireSummary {
	s := wireSummary{
		JobID: e.JobID, QueuedAt: e.QueuedAt.Unix(), LastUpdatedAt: e.LastUpdatedAt.Unix(),
		Version: e.Version, Number: e.Number,
	}
	if !e.StartedAt.IsZero() {
		s.StartedAt = e.StartedAt.Unix()
	}
	return s
}

func summaries(of []*execution, s Status) []wireSummary {
	list := []wireSummary{}
	for _, e := range of {
		if e.Status == s && len(list) < maxListed {
			list = append(list, summary(e))
		}
	}
	return list
}

func state(e *execution) *wireState {
	return &wireState{Status: e.Status, StatusDetails: e.StatusDetails, Version: e.Version}
}

func (c *jobCore) full(e *execution, document bool, now time.Time) (*wireExecution, error) {
	s := summary(e)
	w := &wireExecution{
		JobID: s.JobID, Thing: e.Thing, Status: e.Status, StatusDetails: e.StatusDetails,
		QueuedAt: s.QueuedAt, StartedAt: s.StartedAt, LastUpdatedAt: s.LastUpdatedAt, Version: s.Version, Number: s.Number,
	}
	if due := e.due(); !due.IsZero() {
		left := int64(due.Sub(now) / time.Second)
		w.SecondsLeft = &left
	}
	var err error
	if document {
		w.Document, err = c.fill(e)
	}
	return w, err
}

func (c *jobCore) notify(thing string, is []*execution, now time.Time) Message {
	jobs := map[Status][]wireSummary{}
	for _, s := range []Status{InProgress, Queued} {
		if list := summaries(is, s); len(list) > 0 {
			jobs[s] = list
		}
	}
	return message("", jobsTopicPrefix+thing+"/jobs/notify", wireNotify{now.Unix(), jobs})
}

// notifyNext leaves the thing's name out, as the guide's examples do: a device
// must not need it there.
func (c *jobCore) notifyNext(thing string, e *execution, now time.Time) Message {
	w := wireAccepted{Timestamp: now.Unix()}
	if e != nil {
		var err error
		if w.Execution, err = c.full(e, true, now); err != nil {
			w.Execution.Document = e.job.document // the placeholder stays; the device will ask
		}
		w.Execution.Thing = ""
	}
	return message("", jobsTopicPrefix+thing+"/jobs/notify-next", w)
}

func message(client, topic string, v any) Message {
	payload, err := json.Marshal(v)
	if err != nil { // of plain structs and decoded JSON: cannot be
		payload = fmt.Appendf(nil, `{"code":"InternalError","message":%q}`, err.Error())
	}
	return Message{Client: client, Topic: topic, Payload: payload}
}

// refusal is a rejected request.
type refusal struct {
	code, text string
	about      *execution // whose state is told; nil: none
}

func refuse(code, format string, args ...any) *refusal {
	return &refusal{code: code, text: fmt.Sprintf(format, args...)}
}

// request is a device's message, with what any operation may carry.
type request struct {
	token       string
	status      Status
	hasStatus   bool
	details     map[string]string // nil: none given
	expected    int               // 0: none
	number      int               // 0: none
	withState   bool
	withDoc     *bool // nil: not said
	stepMinutes int   // 0: none, -1: drop the timer
}

// parseRequest reads a device's message. With a refusal, the token is what could be
// read of it.
func parseRequest(payload []byte) (request, *refusal) {
	var r request
	var fields map[string]json.RawMessage
	if !utf8.Valid(payload) {
		return r, refuse("InvalidJson", "The request is not valid UTF-8")
	}
	// An empty message is not a JSON object either. Whether AWS lets it pass is not documented.
	if err := json.Unmarshal(payload, &fields); err != nil || fields == nil {
		return r, refuse("InvalidJson", "The request could not be interpreted as a JSON object")
	}
	if raw, ok := fields["clientToken"]; ok {
		var token string
		if json.Unmarshal(raw, &token) != nil || utf8.RuneCountInString(token) > maxToken {
			return r, refuse("InvalidRequest", "clientToken: got no string of at most %d characters", maxToken)
		}
		r.token = token
	}
	for name, raw := range fields {
		if bad := r.field(name, raw); bad != "" {
			return request{token: r.token}, refuse("InvalidRequest", "%s: %s", name, bad)
		}
	}
	return r, nil
}

// field reads one field; unknown ones are let pass.
func (r *request) field(name string, raw json.RawMessage) (bad string) {
	var err error
	switch name {
	case "status":
		r.hasStatus = true
		err = json.Unmarshal(raw, &r.status)
	case "statusDetails":
		r.details, bad = parseDetails(raw)
	case "expectedVersion":
		r.expected, bad = wholeNumber(raw, 1, math.MaxInt32)
	case "executionNumber":
		r.number, bad = wholeNumber(raw, 1, math.MaxInt32)
	case "stepTimeoutInMinutes":
		if r.stepMinutes, bad = wholeNumber(raw, -1, maxMinutes); bad == "" && r.stepMinutes == 0 {
			bad = fmt.Sprintf("got 0, want 1 to %d, or -1", maxMinutes)
		}
	case "includeJobExecutionState":
		err = json.Unmarshal(raw, &r.withState)
	case "includeJobDocument":
		err = json.Unmarshal(raw, &r.withDoc)
	}
	if err != nil {
		return "got a value of the wrong type"
	}
	return bad
}

// wholeNumber reads a number, also a quoted one: AWS's own C library sends the
// expected version that way.
func wholeNumber(raw json.RawMessage, least, most int) (n int, bad string) {
	text := string(raw)
	if s := ""; json.Unmarshal(raw, &s) == nil && bytes.HasPrefix(raw, []byte(`"`)) {
		text = s
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fmt.Sprintf("got %s, want a whole number from %d to %d", raw, least, most)
	}
	return n, ""
}

// control characters (and other \p{C}) are not allowed in a detail.
var unprintable = regexp.MustCompile(`\p{C}`)

func parseDetails(raw json.RawMessage) (map[string]string, string) {
	var details map[string]string
	if err := json.Unmarshal(raw, &details); err != nil {
		return nil, "got something else than an object of strings"
	}
	if len(details) > maxDetails {
		return nil, fmt.Sprintf("got %d pairs, want at most %d", len(details), maxDetails)
	}
	for key, value := range details {
		switch {
		case len(key) > maxDetailKey || !detailPattern.MatchString(key):
			return nil, fmt.Sprintf("got the key %q, want 1 to %d letters, digits, :, _ and -", key, maxDetailKey)
		case value == "" || utf8.RuneCountInString(value) > maxDetailValue || unprintable.MatchString(value):
			return nil, fmt.Sprintf("%s: got %d characters, want 1 to %d, none of them a control character",
				key, utf8.RuneCountInString(value), maxDetailValue)
		}
	}
	if details == nil { // null: none given
		return nil, ""
	}
	return details, ""
}

// operation is what a topic asks for.
type operation struct {
	thing, job, verb string // job: "" for get and start-next
}

// parseTopic reads $aws/things/{thing}/jobs/...; ok is false for topics on which the
// service itself speaks, and for those of others.
func parseTopic(topic string) (op operation, ok bool) {
	rest, found := strings.CutPrefix(topic, jobsTopicPrefix)
	thing, rest, cut := strings.Cut(rest, "/jobs/")
	if !found || !cut || thing == "" || strings.Contains(thing, "/") {
		return operation{}, false
	}
	op.thing = thing
	last := rest[strings.LastIndexByte(rest, '/')+1:]
	switch last {
	case "accepted", "rejected":
		return operation{}, false
	}
	switch parts := strings.Split(rest, "/"); {
	case rest == "notify" || rest == "notify-next":
		return operation{}, false
	case rest == "get" || rest == "start-next":
		op.verb = rest
	case len(parts) == 2 && (parts[1] == "get" || parts[1] == "update"):
		op.job, op.verb = parts[0], parts[1]
	}
	return op, true
}
