package awstest

import (
	"regexp"
	"slices"
	"time"
	"unicode/utf8"
)

// Limits of CloudWatch Logs (API reference, PutLogEvents, CreateLogGroup,
// CreateLogStream).
const (
	maxBatch      = 1048576 // bytes of the messages and eventOverhead for each
	eventOverhead = 26
	maxEvents     = 10000
	maxSpan       = 24 * time.Hour
	maxAge        = 14 * 24 * time.Hour
	maxFuture     = 2 * time.Hour
)

var (
	groupPattern  = regexp.MustCompile(`^[.\-_/#A-Za-z0-9]{1,512}$`)
	streamPattern = regexp.MustCompile(`^[^:*]{1,512}$`)
	retentions    = []int{1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653}
)

// logInput is what the operations take; each reads its own fields.
type logInput struct {
	Group     string     `json:"logGroupName"`
	Stream    string     `json:"logStreamName"`
	Retention int        `json:"retentionInDays"`
	Events    []putEvent `json:"logEvents"`
}

type putEvent struct {
	Timestamp *int64  `json:"timestamp"` // milliseconds
	Message   *string `json:"message"`
}

func (l *Logs) createGroup(in logInput) *awsError {
	if !groupPattern.MatchString(in.Group) {
		return bad("InvalidParameterException", "Invalid log group name: %q", in.Group)
	}
	if l.groups[in.Group] != nil {
		return bad("ResourceAlreadyExistsException", "The specified log group already exists")
	}
	l.groups[in.Group] = &logGroup{streams: map[string][]LogEvent{}}
	return nil
}

func (l *Logs) group(name string) (*logGroup, *awsError) {
	if g := l.groups[name]; g != nil {
		return g, nil
	}
	return nil, bad("ResourceNotFoundException", "The specified log group does not exist.")
}

func (l *Logs) createStream(in logInput) *awsError {
	if !streamPattern.MatchString(in.Stream) {
		return bad("InvalidParameterException", "Invalid log stream name: %q", in.Stream)
	}
	g, failure := l.group(in.Group)
	if failure != nil {
		return failure
	}
	if _, ok := g.streams[in.Stream]; ok {
		return bad("ResourceAlreadyExistsException", "The specified log stream already exists")
	}
	g.streams[in.Stream] = []LogEvent{}
	return nil
}

func (l *Logs) putRetention(in logInput) *awsError {
	g, failure := l.group(in.Group)
	if failure != nil {
		return failure
	}
	if !slices.Contains(retentions, in.Retention) {
		return bad("InvalidParameterException", "retentionInDays: got %d, want one of %v", in.Retention, retentions)
	}
	g.retention = in.Retention
	return nil
}

// put takes a batch, or refuses all of it; events that are too old or too new are
// left out of one that is taken, and the answer says which.
func (l *Logs) put(in logInput) (map[string]any, *awsError) {
	if failure := l.checkBatch(in.Events); failure != nil {
		return nil, failure
	}
	g, failure := l.group(in.Group)
	if failure != nil {
		return nil, failure
	}
	have, ok := g.streams[in.Stream]
	if !ok {
		return nil, bad("ResourceNotFoundException", "The specified log stream does not exist.")
	}
	now := l.o.Now()
	rejected := map[string]int{}
	for i, e := range in.Events {
		at := time.UnixMilli(*e.Timestamp)
		switch {
		case now.Sub(at) > maxAge:
			rejected["tooOldLogEventEndIndex"] = i + 1
		case g.retention > 0 && now.Sub(at) > time.Duration(g.retention)*24*time.Hour:
			rejected["expiredLogEventEndIndex"] = i + 1
		case at.Sub(now) > maxFuture:
			if _, ok := rejected["tooNewLogEventStartIndex"]; !ok {
				rejected["tooNewLogEventStartIndex"] = i
			}
		default:
			have = append(have, LogEvent{at, *e.Message})
		}
	}
	g.streams[in.Stream] = have
	out := map[string]any{"nextSequenceToken": "0"} // ignored since 2023, and still sent
	if len(rejected) > 0 {
		out["rejectedLogEventsInfo"] = rejected
	}
	return out, nil
}

func (l *Logs) checkBatch(events []putEvent) *awsError {
	if len(events) == 0 || len(events) > maxEvents {
		return bad("InvalidParameterException", "logEvents: got %d, want 1 to %d", len(events), maxEvents)
	}
	size, last := 0, int64(0)
	for i, e := range events {
		if e.Timestamp == nil || *e.Timestamp < 0 || e.Message == nil || *e.Message == "" {
			return bad("InvalidParameterException", "logEvents.%d: want a timestamp and a message that is not empty", i+1)
		}
		n := len(*e.Message) + eventOverhead
		if n > l.o.EventLimit {
			return bad("InvalidParameterException", "Log event too large: %d bytes exceeds limit of %d", n, l.o.EventLimit)
		}
		if !utf8.ValidString(*e.Message) {
			return bad("InvalidParameterException", "logEvents.%d: not UTF-8", i+1)
		}
		if *e.Timestamp < last {
			return bad("InvalidParameterException", "Log events in a single PutLogEvents request must be in chronological order.")
		}
		size, last = size+n, *e.Timestamp
	}
	if size > maxBatch {
		return bad("InvalidParameterException", "Upload too large: %d bytes exceeds limit of %d", size, maxBatch)
	}
	if span := time.Duration(last-*events[0].Timestamp) * time.Millisecond; span > maxSpan {
		return bad("InvalidParameterException", "The batch of log events in a single PutLogEvents request cannot span more than 24 hours.")
	}
	return nil
}
