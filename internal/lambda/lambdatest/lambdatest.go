// Package lambdatest runs a Lambda function as AWS does, on this machine: it
// starts the real binary, gives it events by the Lambda runtime API, and has HTTPS
// addresses in front of it that make events of requests as an API Gateway REST
// API, an HTTP API and a function URL do.
//
// It is for tests and demonstrations. Start with [Start].
//
// It is not AWS. The runtime API is that of "Using the Lambda runtime API for
// custom runtimes", version 2018-06-01: next, response, error and init/error. An
// environment handles one event at a time, is started when none is free, stays,
// and is started anew after it died. The gateways have the quirks that are
// documented or commonly seen: the stage in the path, lower-case and joined
// headers, renamed headers, base64, limits of size. Nothing is frozen or metered;
// there are no authorizers, no throttling, no access logs, and no IAM.
package lambdatest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/interlock-energy/ota/internal/lambda/event"
)

// Options say what to run. Binary is required.
type Options struct {
	Binary string   // path; see Build
	Env    []string // NAME=value; the function sees these and what Lambda sets, nothing of this process

	Stage       string        // of the REST API; default "prod"
	HTTPStage   string        // of the HTTP API; default "$default", which is in no path
	BinaryTypes bool          // the REST API has */* among its binary media types; default: none
	Timeout     time.Duration // of one invocation; default 30 s, as the gateways have at most
	Concurrency int           // environments at a time; default 4. More requests wait
	Log         io.Writer     // what the function prints; default: nowhere
}

// Function is a running function. Its methods may be called from any goroutine.
type Function struct {
	opts Options
	ctx  context.Context
	stop context.CancelFunc
	fronts
	slots chan struct{} // one for each environment that may be

	mu     sync.Mutex
	idle   []*environment
	all    map[*environment]bool
	starts int
	init   time.Duration
	closed bool
	serial int
}

// Start opens the addresses. The function itself is started by the first request,
// as in Lambda, or by [Function.Warm]. It ends with ctx or [Function.Close].
func Start(ctx context.Context, o Options) (*Function, error) {
	if _, err := os.Stat(o.Binary); err != nil {
		return nil, fmt.Errorf("start a Lambda function: %w", err)
	}
	if o.Stage == "" {
		o.Stage = "prod"
	}
	if o.HTTPStage == "" {
		o.HTTPStage = "$default"
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Concurrency <= 0 {
		o.Concurrency = 4
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	o.Log = &lockedWriter{w: o.Log}
	f := &Function{opts: o, slots: make(chan struct{}, o.Concurrency), all: map[*environment]bool{}}
	f.ctx, f.stop = context.WithCancel(ctx)
	if err := f.listen(f); err != nil {
		f.stop()
		return nil, fmt.Errorf("start a Lambda function: %w", err)
	}
	context.AfterFunc(ctx, func() { f.Close() })
	return f, nil
}

// URL returns the address of a kind of gateway, without a slash at its end; that
// of a REST API, and of an HTTP API with a stage, has the stage in it.
func (f *Function) URL(kind event.Kind) string { return f.url(kind, f.opts) }

// Client returns an HTTP client that trusts the gateways' certificates. It does
// not follow redirects.
func (f *Function) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: f.pool, MinVersion: tls.VersionTLS12}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// InitTime returns how long the last cold start took: from the start of the
// process until it asked for the first event. 0 before.
func (f *Function) InitTime() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.init
}

// Starts returns how often a process was started.
func (f *Function) Starts() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts
}

// FunctionError is what a function says, or Lambda says of it, instead of an answer.
type FunctionError struct {
	Type    string `json:"errorType"`
	Message string `json:"errorMessage"`
}

func (e *FunctionError) Error() string { return e.Type + ": " + e.Message }

// Warm starts an environment if none is free.
func (f *Function) Warm() error {
	e, err := f.take(f.ctx)
	if err != nil {
		return err
	}
	f.give(e)
	return nil
}

// Invoke gives the function an event and returns its answer. An error that is a
// [*FunctionError] is the function's.
func (f *Function) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	for {
		e, err := f.take(ctx)
		if err != nil {
			return nil, err
		}
		answer, err := e.invoke(ctx, payload)
		f.give(e)
		if errors.Is(err, errUntouched) { // it had died before; the next one is new
			continue
		}
		return answer, err
	}
}

// take returns a free environment, or a new one, for this caller alone.
func (f *Function) take(ctx context.Context) (*environment, error) {
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-f.ctx.Done():
		return nil, errors.New("the function is closed")
	}
	f.mu.Lock()
	for len(f.idle) > 0 {
		e := f.idle[len(f.idle)-1]
		f.idle = f.idle[:len(f.idle)-1]
		if e.alive() {
			f.mu.Unlock()
			return e, nil
		}
		delete(f.all, e)
	}
	f.serial++
	n := f.serial
	f.starts++
	f.mu.Unlock()
	e, took, err := start(f.ctx, f.opts, n)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.closed {
		e.end()
		err = errors.New("the function is closed")
	}
	if err != nil {
		<-f.slots
		return nil, err
	}
	f.all[e], f.init = true, took
	return e, nil
}

func (f *Function) give(e *environment) {
	f.mu.Lock()
	if e.alive() {
		f.idle = append(f.idle, e)
	} else {
		delete(f.all, e)
	}
	f.mu.Unlock()
	<-f.slots
}

// Kill ends all processes at once, in the middle of what they do.
func (f *Function) Kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for e := range f.all {
		e.end()
	}
	clear(f.all)
	f.idle = nil
}

// Close ends the processes and closes the addresses.
func (f *Function) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.Kill()
	return f.closeListeners()
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}
