// Package cloudwatch sends a device's log and its figures to Amazon CloudWatch
// Logs, for the operator who wants them in AWS: the third output of the log,
// beside console and SD card.
//
// Start with [Open]; give [Writer.Handler] to package slog, together with the
// others by way of logfile.Tee; run [Writer.Run] until the agent ends, then call
// [Writer.Close]. Figures go by [Writer.PutMetrics].
//
//	Handler ──> queue ──every 30 s──> spool ──every 5 min──> PutLogEvents
//	            memory, 1 MiB         disk, 4 MiB
//
// What is promised:
//
//   - Nobody waits for it. A line goes to a bounded queue in memory, whatever the
//     network, the server and the disk do. When the queue is full, the oldest line
//     that is no error is dropped.
//   - Lines survive being offline and restarts. A power cut loses those of the
//     last 30 s, and errors of the last second. While the disk cannot be written,
//     lines are sent from memory.
//   - The disk is bounded, and a megabyte of it stays free for others, such as the
//     record of an update; the oldest lines are dropped. Whatever is dropped is
//     counted, and a line in the log says how many and why.
//   - What CloudWatch has accepted is not sent again, unless the device loses power,
//     or the connection breaks, between the answer and the note of it, which is
//     that the file is removed; or a disk refuses to remove it and the agent restarts.
//   - While the clock is not plausible (a device without a battery for it wakes up
//     in 1970) lines are held in memory; later they get the time that they must have
//     had, and say so with the attribute clock_was.
//   - It logs nothing itself, so it cannot feed itself; see [Config.Changed]. No
//     error of it shows a secret.
package cloudwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota/internal/durable"
)

// Limits of PutLogEvents (Amazon CloudWatch Logs API Reference, PutLogEvents).
// An event may have 1 MB since April 2025, and 256 KB before and in some regions:
// the smaller one holds everywhere, and a log line never needs the larger.
const (
	maxBatchBytes  = 1_048_576 // of UTF-8, and overhead for each event
	maxBatchEvents = 10_000
	overhead       = 26
	maxEvent       = 256<<10 - overhead
	maxSpan        = 24 * time.Hour // between the first and the last event of a batch

	// An hour and five minutes less than the service allows, for our clock.
	maxAge   = 14*24*time.Hour - time.Hour
	maxAhead = 2*time.Hour - 5*time.Minute
)

// Times of our own.
const (
	spillEvery = 30 * time.Second // lines wait so long in memory before they are on disk
	spillSoon  = time.Second      // errors do
	clockEvery = 10 * time.Second // the clock is looked at, while it is not plausible
	firstWait  = 5 * time.Second  // after an upload that did not work; doubled with each
	lastWait   = 10 * time.Minute // at most
)

// Config says what to send, and where to.
type Config struct {
	Group  string // log group; default "/bess/logs"
	Stream string // log stream: the device's id; required

	Region      string                  // for example "eu-central-1"; required
	Endpoint    string                  // URL; default that of the region
	Credentials aws.CredentialsProvider // required; see package awscred
	Client      *http.Client            // default: one of its own; redirects are not followed
	CreateGroup bool                    // create the group if it is missing; the stream always is
	Retention   int                     // days that a group so created keeps lines, one of CloudWatch's numbers; 0: for ever
	Timeout     time.Duration           // of one request; default 1 min

	Level slog.Leveler  // of [Writer.Handler]; default [slog.LevelInfo]
	Every time.Duration // between uploads; default 5 min

	// Dir is a directory of its own for what waits. It is created. Empty: what
	// waits is only in memory, and a restart loses it.
	Dir      string
	MaxSpool int64      // bytes of disk; default 4 MiB, at least 256 KiB
	FS       durable.FS // default [durable.OS]

	Now func() time.Time // the wall clock; default [time.Now]
	// Plausible tells whether the clock can be right. Lines are held while it
	// cannot. Default: it shows 2026 or later.
	Plausible func(time.Time) bool

	// Changed is told why when uploads begin to fail, and nil when they work
	// again: once for each change. It must not block, and may log.
	Changed func(error)
}

// Writer sends lines. Its methods may be called from any goroutine.
type Writer struct {
	cfg   Config
	start time.Time
	queue *queue
	wake  chan struct{} // the queue wants to be looked at
	life  context.Context
	end   context.CancelFunc // of life: breaks off an upload

	own     chan struct{} // holds one token: who has it owns all of run
	run     run
	mu      sync.Mutex
	stop    context.CancelFunc // of the Run that is under way
	closed  bool
	status  Status
	lost    map[string]int64 // lines by why they were dropped, since the last notice
	gone    int64            // lines dropped in all
	failing bool             // as Changed was told last
}

// Status is what a [Writer] has done since it was opened, and has before it.
type Status struct {
	Queued      int   // lines that wait in memory
	Spooled     int   // lines that wait on disk
	SpooledSize int64 // bytes of these on disk
	Sent        int64 // lines that CloudWatch has accepted
	Dropped     int64 // lines that will never be sent, for whatever reason
	Held        int64 // bytes that wait, in memory and on disk
	Err         error // why the last upload did not work; nil: it did
	SpoolErr    error // why the disk could not be written the last time; nil: it could
}

// Names of groups and streams (API Reference, CreateLogGroup and CreateLogStream).
var (
	groupName  = regexp.MustCompile(`^[.\-_/#A-Za-z0-9]{1,512}$`)
	streamName = regexp.MustCompile(`^[^:*\x00-\x1f]{1,512}$`)
	regionName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
)

// retentions in days (API Reference, PutRetentionPolicy).
var retentions = []int{1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653}

// Open checks cfg. It touches neither disk nor network: a disk or a network that
// is missing is no error here. Lines are taken from now on.
func Open(cfg Config) (*Writer, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("open the CloudWatch log: %w", err)
	}
	w := &Writer{
		cfg: cfg, start: time.Now(),
		wake: make(chan struct{}, 1),
		own:  make(chan struct{}, 1),
		lost: map[string]int64{},
	}
	w.queue = &queue{lost: func() { w.drop(1, whyQueue) }}
	w.life, w.end = context.WithCancel(context.Background())
	w.run.client = newClient(cfg)
	w.run.results = make(chan result, 1)
	if cfg.Dir != "" {
		w.run.spool = &spool{fs: cfg.FS, dir: cfg.Dir, max: cfg.MaxSpool, drop: w.drop}
	}
	w.own <- struct{}{}
	return w, nil
}

func (cfg *Config) complete() error {
	if cfg.Group == "" {
		cfg.Group = "/bess/logs"
	}
	switch {
	case !groupName.MatchString(cfg.Group):
		return fmt.Errorf("log group %q: want 1 to 512 letters, digits or any of .-_/#", cfg.Group)
	case !streamName.MatchString(cfg.Stream):
		return fmt.Errorf("log stream %q: want 1 to 512 characters without colon and asterisk", cfg.Stream)
	case !regionName.MatchString(cfg.Region):
		return fmt.Errorf("region %q: want one like eu-central-1", cfg.Region)
	case cfg.Retention != 0 && !slices.Contains(retentions, cfg.Retention):
		return fmt.Errorf("retention of %d days: want one of %v", cfg.Retention, retentions)
	case cfg.Credentials == nil:
		return errors.New("the credentials are missing")
	case cfg.Every < 0 || cfg.Timeout < 0 || cfg.MaxSpool < 0:
		return fmt.Errorf("every %v, timeout %v, spool %d: want 0 or more", cfg.Every, cfg.Timeout, cfg.MaxSpool)
	case cfg.MaxSpool > 0 && cfg.MaxSpool < 256<<10:
		return fmt.Errorf("spool of %d bytes: want at least %d", cfg.MaxSpool, 256<<10)
	}
	if cfg.Endpoint == "" {
		domain := "amazonaws.com"
		if strings.HasPrefix(cfg.Region, "cn-") {
			domain += ".cn" // AWS General Reference, "Amazon CloudWatch Logs endpoints and quotas"
		}
		cfg.Endpoint = "https://logs." + cfg.Region + "." + domain
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil {
		return fmt.Errorf("endpoint %q: want a URL like https://logs.%s.amazonaws.com", cfg.Endpoint, cfg.Region)
	}
	for value, def := range map[*time.Duration]time.Duration{&cfg.Every: 5 * time.Minute, &cfg.Timeout: time.Minute} {
		if *value == 0 {
			*value = def
		}
	}
	if cfg.MaxSpool == 0 {
		cfg.MaxSpool = 4 << 20
	}
	if cfg.Level == nil {
		cfg.Level = slog.LevelInfo
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS{}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Plausible == nil {
		cfg.Plausible = func(t time.Time) bool { return t.Year() >= 2026 }
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: 20 * time.Second,
			IdleConnTimeout:     10 * time.Second, // the next request comes in minutes
		}}
	}
	return nil
}

// Status returns counts, and how the last upload went.
func (w *Writer) Status() Status {
	lines, bytes := w.queue.waiting()
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Queued += lines
	s.Held += int64(bytes) + s.SpooledSize
	s.Dropped = w.gone
	return s
}

// drop counts lines that will never be sent.
func (w *Writer) drop(lines int64, why string) {
	if lines <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone += lines
	w.lost[why] += lines
}

// Close ends Run, sends what it can until ctx ends, and leaves the rest on disk.
// It returns an error if lines are lost by that. Lines that come later are lost.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	w.closed = true
	if w.stop != nil {
		w.stop()
	}
	w.mu.Unlock()
	done := make(chan int, 1)
	go func() { // the disk may hang, and ctx cannot end that
		select {
		case <-w.own:
		case <-ctx.Done():
			return
		}
		done <- w.finish(ctx)
		w.own <- struct{}{}
	}()
	left := 0
	select {
	case left = <-done:
	case <-ctx.Done():
		left = w.Status().Queued
	}
	w.end()
	if left > 0 {
		return fmt.Errorf("close the CloudWatch log: %d lines are lost: %w", left, errors.Join(w.Status().Err, w.Status().SpoolErr, ctx.Err()))
	}
	return nil
}
