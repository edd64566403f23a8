package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/interlock-energy/ota"
)

const (
	maxBody   = 64 << 10         // bytes of a request
	prompt    = time.Second      // a command that ends within it is answered with its end, also without wait
	heartbeat = 15 * time.Second // so that a watcher notices a dead agent
)

// Serve answers requests on l until ctx ends, and closes l. Watchers are cut
// off then, and whoever waits for a command is told that the agent stops.
func Serve(ctx context.Context, l net.Listener, d Device, log *slog.Logger) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	srv := &http.Server{
		Handler:           Handler(d),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withPeer,
	}
	down := make(chan struct{})
	go func() {
		defer close(down)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(grace); err != nil {
			log.Warn("close the control connections that were left", "error", errors.Join(err, srv.Close()))
		}
	}()
	err := srv.Serve(l)
	stop()
	<-down
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the control socket: %w", err)
}

// Handler returns the API without a socket.
func Handler(d Device) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				writeError(w, err)
			}
		})
	}
	handle("GET "+PathStatus, func(w http.ResponseWriter, r *http.Request) error {
		return write(w, http.StatusOK, d.Status(r.Context()))
	})
	handle("GET "+PathInfo, func(w http.ResponseWriter, r *http.Request) error {
		in, err := infoOf(d.Status(r.Context()).Snapshot)
		if err != nil {
			return err
		}
		return write(w, http.StatusOK, in)
	})
	handle("GET "+PathSlots, func(w http.ResponseWriter, r *http.Request) error {
		s, err := d.Slots(r.Context())
		if err != nil {
			return err
		}
		return write(w, http.StatusOK, s)
	})
	handle("GET "+PathDiagnostics, func(w http.ResponseWriter, r *http.Request) error { return diagnostics(w, r, d) })
	handle("POST "+PathDiagnostics, func(w http.ResponseWriter, r *http.Request) error { return diagnostics(w, r, d) })
	handle("GET "+PathThresholds, func(w http.ResponseWriter, _ *http.Request) error {
		t, err := d.Thresholds()
		if err != nil {
			return err
		}
		return write(w, http.StatusOK, t)
	})
	handle("PUT "+PathThresholds, func(w http.ResponseWriter, r *http.Request) error {
		var change ThresholdsChange
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		dec.DisallowUnknownFields() // a misspelt limit must not be a limit that is not set
		if err := dec.Decode(&change); err != nil {
			return fmt.Errorf("set thresholds: %w: %w", ErrBadRequest, err)
		}
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return fmt.Errorf("set thresholds: %w: something follows the JSON object", ErrBadRequest)
		}
		t, err := setThresholds(r.Context(), d, change)
		if err != nil {
			return err
		}
		return write(w, http.StatusOK, t)
	})
	handle("GET "+PathEvidence, func(w http.ResponseWriter, _ *http.Request) error { return evidenceList(w, d) })
	handle("GET "+PathEvidence+"/{name}", func(w http.ResponseWriter, r *http.Request) error { return evidenceFile(w, d, r.PathValue("name")) })
	handle("GET "+PathEvents, func(w http.ResponseWriter, r *http.Request) error { return events(w, r, d) })
	handle("POST "+PathCommand, func(w http.ResponseWriter, r *http.Request) error { return command(w, r, d) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		json.NewEncoder(w).Encode(NewError(fmt.Errorf("%w: there is no %s %.100q", ErrBadRequest, r.Method, r.URL.Path)))
	})
	return mux
}

func command(w http.ResponseWriter, r *http.Request, d Device) error {
	c := Command(r.PathValue("command"))
	if !slices.Contains(Commands(), c) {
		return fmt.Errorf("%w: there is no command %.100q; want one of %v", ErrBadRequest, c, Commands())
	}
	wait := false
	switch v := r.URL.Query().Get("wait"); v {
	case "", "false", "0":
	case "true", "1":
		wait = true
	default:
		return fmt.Errorf("%w: wait is %.20q, want true or false", ErrBadRequest, v)
	}
	ctx := r.Context()
	if !wait {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, prompt)
		defer cancel()
	}
	err := give(r.Context(), d, c).Wait(ctx)
	if refusal, ok := errors.AsType[*ota.Refusal](err); ok && refusal.Code == ota.ErrNone {
		// Neither the battery nor anything else is wrong: time has to pass.
		return write(w, http.StatusAccepted, Result{Status: d.Status(r.Context())})
	}
	switch {
	case err == nil:
		return write(w, http.StatusOK, Result{Ended: true, Status: d.Status(r.Context())})
	case ctx.Err() == nil || !errors.Is(err, ctx.Err()):
		if e := NewError(err); c == Check && e.Code == ota.ErrNoUpdate && skipsNewest(d.Status(r.Context()).Snapshot) {
			e.Hint = "install takes a release again that failed or was given up here"
			return e
		}
		return err
	case r.Context().Err() == nil:
		return write(w, http.StatusAccepted, Result{Status: d.Status(r.Context())})
	}
	return fmt.Errorf("%s: %w: the agent stops; the update goes on when it is back", c, ota.ErrStopped)
}

// skipsNewest reports whether there would be an update, had it not been tried before.
func skipsNewest(s ota.Snapshot) bool {
	return slices.ContainsFunc(s.Skipped, func(k ota.Skipped) bool { return k.Version == s.Latest })
}

func events(w http.ResponseWriter, r *http.Request, d Device) error {
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	ch := d.Watch(r.Context())
	for {
		select {
		case e, ok := <-ch:
			if !ok {
				return nil
			}
			j, err := json.Marshal(e)
			if err != nil {
				return nil // the headers are out
			}
			fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e.Kind, j)
		case <-beat.C:
			io.WriteString(w, ": still here\n\n")
		}
		if err := rc.Flush(); err != nil {
			return nil // hung up
		}
	}
}

func write(w http.ResponseWriter, status int, v any) error {
	j, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(j, '\n')) // an error means that nobody listens any more
	return nil
}

func writeError(w http.ResponseWriter, err error) {
	e := NewError(err)
	status := http.StatusInternalServerError
	switch {
	case e.Kind == "bad_request":
		status = http.StatusBadRequest
	case e.Kind == "stopped":
		status = http.StatusServiceUnavailable
	case e.Kind == "not_now", e.Kind == "busy", e.Kind == "aborted":
		status = http.StatusConflict
	case e.Code == ota.ErrNoUpdate:
		status = http.StatusNotFound
	case e.Code == ota.ErrConnectivity, e.Code == ota.ErrServer, e.Code == ota.ErrAuthentication:
		status = http.StatusBadGateway
	}
	write(w, status, e)
}
