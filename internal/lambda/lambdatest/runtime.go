package lambdatest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota/internal/lambda/event"
)

// maxPayload is the greatest event or answer, "Invocation payload", 6 MB.
const maxPayload = event.MaxAnswer

const runtimePath = "/2018-06-01/runtime/"

// environment is one process of the function, and the runtime API that it sees.
type environment struct {
	api     *http.Server
	cmd     *exec.Cmd
	events  chan *invocation
	asked   chan struct{} // closed by the first next
	ask     sync.Once
	died    chan struct{} // closed when the process has ended
	exit    error         // then
	initErr chan *FunctionError
	timeout time.Duration

	mu      sync.Mutex
	current *invocation // taken by the process and not answered
}

// invocation is one event on its way.
type invocation struct {
	id       string
	payload  []byte
	deadline time.Time
	done     chan outcome
}

type outcome struct {
	answer []byte
	err    error
}

// errUntouched says that the process never saw the event.
var errUntouched = errors.New("the process ended before it took the event")

// start starts a process and waits until it asks for an event.
func start(ctx context.Context, o Options, serial int) (*environment, time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, 0, err
	}
	e := &environment{events: make(chan *invocation), asked: make(chan struct{}), died: make(chan struct{}),
		initErr: make(chan *FunctionError, 1), timeout: o.Timeout}
	e.api = &http.Server{Handler: e.runtimeAPI()}
	go e.api.Serve(l)
	e.cmd = exec.Command(o.Binary)
	e.cmd.Env = append([]string{
		"AWS_LAMBDA_RUNTIME_API=" + l.Addr().String(), "AWS_LAMBDA_FUNCTION_NAME=lambdatest", "AWS_LAMBDA_FUNCTION_VERSION=$LATEST",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128", "AWS_LAMBDA_INITIALIZATION_TYPE=on-demand", "AWS_EXECUTION_ENV=AWS_Lambda_provided.al2023",
		"_HANDLER=bootstrap", "LAMBDA_TASK_ROOT=" + filepath.Dir(o.Binary), "PATH=/usr/local/bin:/usr/bin:/bin:/opt/bin", "LANG=en_US.UTF-8", "TZ=:UTC",
		"AWS_LAMBDA_LOG_STREAM_NAME=" + strconv.Itoa(serial)}, o.Env...)
	e.cmd.Stdout, e.cmd.Stderr = o.Log, o.Log
	begin := time.Now()
	if err := e.cmd.Start(); err != nil {
		e.api.Close()
		return nil, 0, fmt.Errorf("start the function: %w", err)
	}
	go func() {
		e.exit = e.cmd.Wait()
		close(e.died)
		e.api.Close()
	}()
	select {
	case <-e.asked:
		return e, time.Since(begin), nil
	case <-e.died:
		select {
		case err := <-e.initErr:
			return nil, 0, err
		default:
		}
		return nil, 0, &FunctionError{"Runtime.ExitError", fmt.Sprintf("the process ended before it asked for an event: %v", e.exit)}
	case <-ctx.Done():
		e.end()
		return nil, 0, ctx.Err()
	}
}

func (e *environment) alive() bool {
	select {
	case <-e.died:
		return false
	default:
		return true
	}
}

func (e *environment) end() { _ = e.cmd.Process.Kill() }

// invoke gives the process an event and waits for the answer, which must come
// within the function's timeout: then the process is ended, as Lambda does it.
func (e *environment) invoke(ctx context.Context, payload []byte) ([]byte, error) {
	inv := &invocation{id: requestID(), payload: payload, deadline: time.Now().Add(e.timeout), done: make(chan outcome, 1)}
	timer := time.NewTimer(e.timeout)
	defer timer.Stop()
	select {
	case e.events <- inv:
	case <-e.died:
		return nil, errUntouched
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case o := <-inv.done:
		return o.answer, o.err
	case <-e.died:
		select {
		case o := <-inv.done: // it answered and then ended
			return o.answer, o.err
		default:
		}
		return nil, &FunctionError{"Runtime.ExitError", fmt.Sprintf("RequestId: %s Error: Runtime exited: %v", inv.id, e.exit)}
	case <-timer.C:
		e.end()
		return nil, &FunctionError{"Sandbox.Timedout", fmt.Sprintf("RequestId: %s Error: Task timed out after %.2f seconds", inv.id, e.timeout.Seconds())}
	}
}

// runtimeAPI is what the process talks to.
func (e *environment) runtimeAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+runtimePath+"invocation/next", e.next)
	mux.HandleFunc("POST "+runtimePath+"invocation/{id}/response", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, maxPayload+1))
		switch {
		case err != nil:
			refuse(w, http.StatusBadRequest, "InvalidRequest", err.Error())
		case len(b) > maxPayload:
			fe := &FunctionError{"Function.ResponseSizeTooLarge", fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", maxPayload)}
			e.finish(r.PathValue("id"), outcome{err: fe})
			refuse(w, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", fe.Message)
		case r.Trailer.Get("Lambda-Runtime-Function-Error-Type") != "":
			e.accept(w, r, outcome{err: &FunctionError{r.Trailer.Get("Lambda-Runtime-Function-Error-Type"), "the answer broke off"}})
		default:
			e.accept(w, r, outcome{answer: b})
		}
	})
	mux.HandleFunc("POST "+runtimePath+"invocation/{id}/error", func(w http.ResponseWriter, r *http.Request) {
		e.accept(w, r, outcome{err: readError(r)})
	})
	mux.HandleFunc("POST "+runtimePath+"init/error", func(w http.ResponseWriter, r *http.Request) {
		select {
		case e.initErr <- readError(r):
		default:
		}
		accepted(w)
	})
	return mux
}

// next waits for an event as long as it takes.
func (e *environment) next(w http.ResponseWriter, r *http.Request) {
	e.ask.Do(func() { close(e.asked) })
	select {
	case inv := <-e.events:
		e.mu.Lock()
		e.current = inv
		e.mu.Unlock()
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Lambda-Runtime-Aws-Request-Id", inv.id)
		h.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(inv.deadline.UnixMilli(), 10))
		h.Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:lambdatest")
		h.Set("Lambda-Runtime-Trace-Id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0")
		io.Copy(w, bytes.NewReader(inv.payload))
	case <-r.Context().Done():
	}
}

// finish ends the invocation with this id, if that is the current one.
func (e *environment) finish(id string, o outcome) bool {
	e.mu.Lock()
	inv := e.current
	if inv == nil || inv.id != id {
		e.mu.Unlock()
		return false
	}
	e.current = nil
	e.mu.Unlock()
	inv.done <- o
	return true
}

func (e *environment) accept(w http.ResponseWriter, r *http.Request, o outcome) {
	if !e.finish(r.PathValue("id"), o) {
		refuse(w, http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
		return
	}
	accepted(w)
}

func accepted(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	io.WriteString(w, `{"status":"OK"}`)
}

func refuse(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(FunctionError{kind, message})
}

func readError(r *http.Request) *FunctionError {
	fe := &FunctionError{}
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(fe); err != nil {
		fe.Message = "no message: " + err.Error()
	}
	if fe.Type == "" {
		fe.Type = r.Header.Get("Lambda-Runtime-Function-Error-Type")
	}
	return fe
}

// Build builds the function's binary for this machine as file bootstrap in dir,
// with the Go command, and returns its path. It is built like scripts/lambda-zip
// does it.
func Build(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "bootstrap")
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "lambda.norpc", "-trimpath", "-ldflags", "-s -w", "-o", path,
		"github.com/interlock-energy/ota/cmd/interlock-lambda")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the function: %w\n%s", err, strings.TrimSpace(string(out)))
	}
	return path, nil
}
