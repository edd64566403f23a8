// Package cloudwatch sends a device's log and its figures to Amazon CloudWatch Logs.
package cloudwatch

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota/internal/durable"
)

// Config says what to send, and where to.
type Config struct {
	Group  string // log group; default "/bess/logs"
	Stream string // log stream: the device's id; required

	Region      string                  // for example "eu-central-1"; required
	Endpoint    string                  // URL; default "https://logs.REGION.amazonaws.com"
	Credentials aws.CredentialsProvider // required
	Client      *http.Client            // default: one of its own
	CreateGroup bool                    // create the group, too, if it is missing; the stream always is

	Level slog.Leveler  // of [Writer.Handler]; default [slog.LevelInfo]
	Every time.Duration // between uploads; default 5 min

	// Dir is a directory of its own for what waits. It is created. Empty: what
	// waits is in memory only, and a restart loses it.
	Dir      string
	MaxSpool int64      // bytes in Dir; default 4 MiB
	FS       durable.FS // default [durable.OS]

	Now func() time.Time // default [time.Now]
	// Plausible tells whether the clock can be right. Lines are held while it is
	// not. Default: the clock shows 2026 or later.
	Plausible func(time.Time) bool

	// Changed is told when uploads begin to fail, and why, and with nil when they
	// work again. It may log.
	Changed func(error)
}

// Writer sends lines. Its methods may be called from any goroutine.
type Writer struct{ cfg Config }

// Status is what a [Writer] has done since it was opened, and has before it.
type Status struct {
	Queued     int   // lines that wait in memory
	Spooled    int   // lines that wait on disk
	SpoolBytes int64 // of disk
	Sent       int64 // lines that CloudWatch has accepted
	Dropped    int64 // lines that will never be sent, for whatever reason
	Err        error // why the last upload did not work; nil: it did
}

// Open checks cfg.
func Open(cfg Config) (*Writer, error) { return nil, errors.New("open the CloudWatch log: not built yet") }

// Handler returns a handler that queues lines of JSON, from [Config.Level] on.
func (w *Writer) Handler() slog.Handler { return slog.DiscardHandler }

// PutMetrics queues figures as one line of CloudWatch's embedded metric format.
func (w *Writer) PutMetrics(m Metrics) error { return errors.New("send figures: not built yet") }

// Run uploads until ctx ends or Close is called.
func (w *Writer) Run(ctx context.Context) error { return nil }

// Status returns counts.
func (w *Writer) Status() Status { return Status{} }

// Close sends what it can until ctx ends, and leaves the rest on disk.
func (w *Writer) Close(ctx context.Context) error { return nil }
