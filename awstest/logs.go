package awstest

import (
	"net/http"
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
}

// StartLogs starts it; it ends with the test.
func StartLogs(t testing.TB, keys *Keys, o LogsOptions) *Logs { t.Helper(); return &Logs{} }

// Client trusts the server's certificate.
func (l *Logs) Client() *http.Client { return nil }

// Events are those of a stream in the order in which they came, nil if the stream
// does not exist.
func (l *Logs) Events(group, stream string) []LogEvent { return nil }

// Retention is the policy of a group in days, 0 if none.
func (l *Logs) Retention(group string) int { return 0 }

// Throttle refuses the next n requests with ThrottlingException.
func (l *Logs) Throttle(n int) {}

// Outage makes every request fail with this HTTP status (500, 503) until it is 0;
// -1 cuts the connections instead. A negative status below that: the request is
// done first, then the connection is cut (-2).
func (l *Logs) Outage(status int) {}

// Requests are the operations that arrived, with the code of the error, if any.
func (l *Logs) Requests() []LogRequest { return nil }

// LogRequest is a request that arrived.
type LogRequest struct {
	Operation string // PutLogEvents
	Code      string // "" if it was done; ThrottlingException
	Status    int    // HTTP
	Events    int
	Bytes     int // of the body as sent
	Gzip      bool
	AccessKey string
}
