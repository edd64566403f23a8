package cloudwatch_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota/internal/cloudwatch"
)

// fakeLogs is CloudWatch Logs as a fake without a network, so that it works in a
// bubble of synctest. It keeps the limits of PutLogEvents and believes every
// signature; the stand-in of awstest verifies them.
type fakeLogs struct {
	t testing.TB

	mu       sync.Mutex
	groups   map[string]bool
	streams  map[string][]line // by group + ":" + stream
	requests []string          // operations, with the code of the error
	sizes    []int             // events of the batches that were accepted
	// fault is asked first. It returns an answer to give, and whether the
	// operation is to be done all the same.
	fault func(n int, operation string, events []line) (*http.Response, bool, error)
	hang  bool // never answer
	noZip bool // refuse what is compressed
}

type line struct {
	Timestamp int64  `json:"timestamp"`
	Message   string `json:"message"`
}

func newFake(t testing.TB) *fakeLogs {
	return &fakeLogs{t: t, groups: map[string]bool{"/bess/logs": true}, streams: map[string][]line{}}
}

func answer(status int, v any) *http.Response {
	b, _ := json.Marshal(v)
	return &http.Response{StatusCode: status, Header: http.Header{"Date": {"Mon, 23 Nov 2026 00:00:00 GMT"}}, Body: io.NopCloser(bytes.NewReader(b))}
}

func failure(status int, code, message string) *http.Response {
	return answer(status, map[string]string{"__type": "com.amazonaws.logs#" + code, "message": message})
}

// RoundTrip implements [http.RoundTripper].
func (f *fakeLogs) RoundTrip(r *http.Request) (*http.Response, error) {
	defer r.Body.Close()
	f.mu.Lock()
	hang := f.hang
	f.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	zipped := r.Header.Get("Content-Encoding") == "gzip"
	if zipped {
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			f.t.Errorf("gzip: %v", err)
		} else if body, err = io.ReadAll(z); err != nil {
			f.t.Errorf("gzip: %v", err)
		}
	}
	if ok, _ := regexp.MatchString(`^AWS4-HMAC-SHA256 Credential=\w+/\d{8}/eu-central-1/logs/aws4_request, SignedHeaders=\S*content-type;`, r.Header.Get("Authorization")); !ok {
		f.t.Errorf("Authorization: got %q", r.Header.Get("Authorization"))
	}
	var in struct {
		Group  string `json:"logGroupName"`
		Stream string `json:"logStreamName"`
		Token  string `json:"sequenceToken"`
		Events []line `json:"logEvents"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Errorf("body: %v", err)
	}
	operation, _ := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "Logs_20140328.")
	f.mu.Lock()
	defer f.mu.Unlock()
	res, do, err := (*http.Response)(nil), true, error(nil)
	if f.noZip && zipped {
		res, do = failure(400, "SerializationException", "start of structure expected"), false
	} else if f.fault != nil {
		res, do, err = f.fault(len(f.requests), operation, in.Events)
	}
	if do {
		done := f.do(operation, in.Group, in.Stream, in.Events)
		if res == nil {
			res = done
		}
	}
	var what struct {
		Type string `json:"__type"`
	}
	if res != nil {
		b, _ := io.ReadAll(res.Body)
		json.Unmarshal(b, &what)
		res.Body = io.NopCloser(bytes.NewReader(b))
	}
	if err != nil {
		what.Type = "connection"
		res = nil
	}
	name := operation
	if what.Type != "" {
		name += " " + strings.TrimPrefix(what.Type, "com.amazonaws.logs#")
	}
	f.requests = append(f.requests, name)
	return res, err
}

func (f *fakeLogs) do(operation, group, stream string, events []line) *http.Response {
	key := group + ":" + stream
	_, there := f.streams[key]
	switch {
	case operation == "CreateLogGroup" && f.groups[group], operation == "CreateLogStream" && there:
		return failure(400, "ResourceAlreadyExistsException", "it exists")
	case operation == "CreateLogGroup":
		f.groups[group] = true
	case !f.groups[group]:
		return failure(400, "ResourceNotFoundException", "The specified log group does not exist.")
	case operation == "CreateLogStream":
		f.streams[key] = []line{}
	case !there:
		return failure(400, "ResourceNotFoundException", "The specified log stream does not exist.")
	default:
		return f.put(key, events)
	}
	return answer(200, struct{}{})
}

// put keeps the limits of the API Reference, the older and stricter ones.
func (f *fakeLogs) put(key string, events []line) *http.Response {
	refuse := func(format string, args ...any) *http.Response {
		f.t.Errorf("PutLogEvents: "+format, args...)
		return failure(400, "InvalidParameterException", fmt.Sprintf(format, args...))
	}
	if len(events) == 0 || len(events) > 10_000 {
		return refuse("%d events", len(events))
	}
	size, now := 0, time.Now()
	for i, e := range events {
		size += len(e.Message) + 26
		at := time.UnixMilli(e.Timestamp)
		switch {
		case len(e.Message)+26 > 256<<10 || e.Message == "":
			return refuse("event %d has %d bytes", i, len(e.Message))
		case i > 0 && e.Timestamp < events[i-1].Timestamp:
			return refuse("event %d is not in order", i)
		case at.Sub(time.UnixMilli(events[0].Timestamp)) >= 24*time.Hour:
			return refuse("event %d is of another day", i)
		case now.Sub(at) > 14*24*time.Hour || at.Sub(now) > 2*time.Hour:
			return refuse("event %d is of %v, it is %v", i, at, now)
		}
	}
	if size > 1_048_576 {
		return refuse("%d bytes", size)
	}
	f.streams[key] = append(f.streams[key], events...)
	f.sizes = append(f.sizes, len(events))
	return answer(200, map[string]string{"nextSequenceToken": "t"})
}

func (f *fakeLogs) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// messages returns the msg of the lines of the device in order.
func (f *fakeLogs) messages() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, l := range f.streams["/bess/logs:bess-7"] {
		var m struct {
			Msg string `json:"msg"`
		}
		if err := json.Unmarshal([]byte(l.Message), &m); err != nil {
			f.t.Errorf("line %.100q: %v", l.Message, err)
		}
		out = append(out, m.Msg)
	}
	return out
}

func (f *fakeLogs) took() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.requests, ", ")
}

var credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: "AKIA", SecretAccessKey: "very/secret", SessionToken: "long+token"}, nil
})

// config returns one that logs to f. synctest's time begins in 2000.
func config(f *fakeLogs, more ...func(*cloudwatch.Config)) cloudwatch.Config {
	cfg := cloudwatch.Config{
		Stream: "bess-7", Region: "eu-central-1", Credentials: credentials,
		Client:    &http.Client{Transport: f},
		Plausible: func(t time.Time) bool { return t.Year() >= 2000 },
	}
	for _, change := range more {
		change(&cfg)
	}
	return cfg
}

func open(t testing.TB, cfg cloudwatch.Config) *cloudwatch.Writer {
	t.Helper()
	w, err := cloudwatch.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// running runs w and returns what ends that, by Close with a deadline.
func running(t testing.TB, w *cloudwatch.Writer) (end func(time.Duration) error) {
	done := make(chan error, 1)
	go func() { done <- w.Run(context.Background()) }()
	return func(d time.Duration) error {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		err := w.Close(ctx)
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		return err
	}
}

func closed(t testing.TB, end func(time.Duration) error) {
	t.Helper()
	if err := end(time.Minute); err != nil {
		t.Error(err)
	}
}

func logger(w *cloudwatch.Writer) *slog.Logger { return slog.New(w.Handler()) }

var errCable = errors.New("the cable is cut")

func offline(int, string, []line) (*http.Response, bool, error) { return nil, false, errCable }

// numbered returns "line 0", "line 1" and so on.
func numbered(from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf("line %d", i))
	}
	return out
}
