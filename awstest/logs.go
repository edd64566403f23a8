package awstest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// LogsOptions configure a [Logs].
type LogsOptions struct {
	Region string           // "": eu-central-1
	Now    func() time.Time // nil: time.Now
	// EventLimit is the largest event in bytes, with its 26 of overhead. 0:
	// 262,144; AWS has raised it to 1,048,576 since, and a client should keep the
	// smaller one.
	EventLimit int
	// TLS: serve HTTPS with a certificate of this authority. nil: HTTP.
	TLS *CA
}

// LogEvent is an event that was taken.
type LogEvent struct {
	Timestamp time.Time // milliseconds
	Message   string
}

// Logs is CloudWatch Logs over HTTP: CreateLogGroup, CreateLogStream,
// PutRetentionPolicy and PutLogEvents, with its limits, and with the signature of
// every request verified. Safe for use by several goroutines.
type Logs struct {
	URL    string // http://127.0.0.1:port; https with TLS
	Region string

	keys   *Keys
	o      LogsOptions
	client *http.Client

	mu       sync.Mutex
	groups   map[string]*logGroup
	requests []LogRequest
	throttle int
	outage   int
}

type logGroup struct {
	retention int // days; 0: for ever
	streams   map[string][]LogEvent
}

// LogRequest is a request that arrived.
type LogRequest struct {
	Operation string // PutLogEvents
	Code      string // "" if it was done; ThrottlingException
	Status    int    // HTTP; 0: the connection was cut
	Events    int
	Bytes     int // of the body as sent
	Gzip      bool
	AccessKey string
}

// quiet is for what net/http has to say about clients that are refused on purpose.
var quiet = log.New(io.Discard, "", 0)

// StartLogs starts it; it ends with the test.
func StartLogs(t testing.TB, keys *Keys, o LogsOptions) *Logs {
	t.Helper()
	if o.Region == "" {
		o.Region = "eu-central-1"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.EventLimit == 0 {
		o.EventLimit = 256 << 10
	}
	l := &Logs{Region: o.Region, keys: keys, o: o, groups: map[string]*logGroup{}}
	server := httptest.NewUnstartedServer(l)
	server.Config.ErrorLog = quiet
	if o.TLS != nil {
		server.TLS = o.TLS.serverTLS(t)
		server.TLS.ClientAuth = 0 // the signature says who it is
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	l.URL, l.client = server.URL, server.Client()
	if o.TLS != nil {
		l.client = &http.Client{Transport: &http.Transport{TLSClientConfig: o.TLS.ClientTLS(t, "logs")}}
		t.Cleanup(l.client.CloseIdleConnections)
	}
	return l
}

// Client trusts the server's certificate.
func (l *Logs) Client() *http.Client { return l.client }

// Events are those of a stream in the order in which they came, nil if the stream
// does not exist.
func (l *Logs) Events(group, stream string) []LogEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.groups[group]; g != nil {
		return slices.Clone(g.streams[stream])
	}
	return nil
}

// Retention is the policy of a group in days, 0 if none.
func (l *Logs) Retention(group string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.groups[group]; g != nil {
		return g.retention
	}
	return 0
}

// Throttle refuses the next n requests with ThrottlingException.
func (l *Logs) Throttle(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.throttle = n
}

// What Outage takes beside HTTP statuses.
const (
	CutConnection      = -1 // before the request had any effect
	CutAfterTheRequest = -2 // it took effect, and the client never hears of it
)

// Outage makes every request end with this HTTP status (500, 503), or one of the
// cuts, until it is 0.
func (l *Logs) Outage(status int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outage = status
}

// Requests are the operations that arrived, with the code of the error, if any.
func (l *Logs) Requests() []LogRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.requests)
}

// awsError is an error of the JSON 1.1 protocol.
type awsError struct {
	Status int    `json:"-"`
	Code   string `json:"__type"`
	Text   string `json:"message"`
}

func bad(code, format string, args ...any) *awsError {
	return &awsError{http.StatusBadRequest, code, fmt.Sprintf(format, args...)}
}

// maxRequest is beyond what a full batch needs as JSON with everything escaped.
const maxRequest = 16 << 20

// ServeHTTP answers one request. Requests are done one at a time.
func (l *Logs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	l.mu.Lock()
	defer l.mu.Unlock()
	operation := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "Logs_20140328.")
	seen := LogRequest{Operation: operation, Bytes: len(body), Gzip: r.Header.Get("Content-Encoding") == "gzip"}
	result, failure := map[string]any{}, (*awsError)(nil)
	switch {
	case err != nil:
		failure = &awsError{http.StatusRequestEntityTooLarge, "RequestEntityTooLargeException", "Request size exceeded"}
	case l.outage == CutConnection:
		l.requests = append(l.requests, seen)
		cutHTTP(w)
		return
	case l.outage > 0:
		failure = &awsError{l.outage, "ServiceUnavailableException", "The service cannot complete the request."}
	default:
		result, failure = l.answer(r, operation, body, &seen)
	}
	if failure != nil {
		seen.Code, seen.Status = failure.Code, failure.Status
	} else {
		seen.Status = http.StatusOK
	}
	if l.outage == CutAfterTheRequest {
		seen.Status = 0
		l.requests = append(l.requests, seen)
		cutHTTP(w)
		return
	}
	l.requests = append(l.requests, seen)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", fmt.Sprintf("00000000-0000-0000-0000-%012d", len(l.requests)))
	if failure != nil {
		w.WriteHeader(failure.Status)
		_ = json.NewEncoder(w).Encode(failure)
		return
	}
	if result != nil {
		_ = json.NewEncoder(w).Encode(result)
	}
}

// cutHTTP ends the connection without an answer.
func cutHTTP(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		conn.Close()
	}
}

func (l *Logs) answer(r *http.Request, operation string, body []byte, seen *LogRequest) (map[string]any, *awsError) {
	key, failure := verify(r, body, l.keys, "logs", l.o.Region, l.o.Now())
	seen.AccessKey = key
	if failure != nil {
		return nil, failure
	}
	if l.throttle > 0 {
		l.throttle--
		return nil, bad("ThrottlingException", "Rate exceeded")
	}
	if ct := r.Header.Get("Content-Type"); r.Method != http.MethodPost || ct != "application/x-amz-json-1.1" {
		return nil, bad("SerializationException", "want POST of application/x-amz-json-1.1, got %s of %q", r.Method, ct)
	}
	if seen.Gzip {
		unpacked, err := gunzip(body)
		if err != nil {
			return nil, bad("SerializationException", "unpack the body: %v", err)
		}
		body = unpacked
	}
	var in logInput
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, bad("SerializationException", "read the body: %v", err)
	}
	seen.Events = len(in.Events)
	switch operation {
	case "CreateLogGroup":
		return nil, l.createGroup(in)
	case "CreateLogStream":
		return nil, l.createStream(in)
	case "PutRetentionPolicy":
		return nil, l.putRetention(in)
	case "PutLogEvents":
		return l.put(in)
	}
	return nil, bad("UnknownOperationException", "%q", operation)
}

func gunzip(body []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(z, maxRequest+1))
	if err == nil && len(out) > maxRequest {
		err = fmt.Errorf("got more than %d bytes", maxRequest)
	}
	return out, err
}
