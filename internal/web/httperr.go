package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/door"
	"github.com/interlock-energy/ota/internal/fleet"
)

// httpError is an error that knows its status.
type httpError struct {
	status     int
	text, hint string
	retryAfter string // seconds, if not empty
	challenge  string // WWW-Authenticate, if not empty
}

func (e *httpError) Error() string { return e.text }

func fail(status int, text, hint string) error {
	return &httpError{status: status, text: text, hint: hint}
}

// classify is the one place where errors become statuses.
func classify(err error) *httpError {
	var tooLarge *http.MaxBytesError
	if e, ok := errors.AsType[*httpError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*door.Error](err); ok {
		return &httpError{status: e.Status, text: e.Text, hint: e.Details}
	}
	e := &httpError{text: err.Error()}
	switch {
	case errors.As(err, &tooLarge):
		e.status = http.StatusRequestEntityTooLarge
	case errors.Is(err, fleet.ErrNotFound):
		e.status = http.StatusNotFound
	case errors.Is(err, fleet.ErrInvalid):
		e.status = http.StatusBadRequest
	case errors.Is(err, fleet.ErrConflict):
		e.status = http.StatusConflict
	case errors.Is(err, ota.ErrValidation):
		e.status, e.hint = http.StatusUnprocessableEntity, "check the file with: interlock verify --key PUBLIC.pem FILE"
	case errors.Is(err, fleet.ErrFull), errors.Is(err, syscall.ENOSPC):
		e.status = http.StatusInsufficientStorage
	case errors.Is(err, os.ErrDeadlineExceeded):
		e.status = http.StatusRequestTimeout
	case errors.Is(err, blob.ErrUnavailable):
		e.status, e.text, e.hint, e.retryAfter = http.StatusServiceUnavailable, blob.ErrUnavailable.Error(), "the server's log has the details", "30"
	default:
		e.status, e.text, e.hint = http.StatusInternalServerError, "internal error", "the server's log has the details"
	}
	return e
}

// head sets what all kinds of answers share.
func (e *httpError) head(w http.ResponseWriter, contentType string) {
	h := w.Header()
	for _, name := range []string{"Etag", "Last-Modified", "Content-Length", "Content-Disposition"} {
		h.Del(name) // set for the answer that did not come
	}
	h.Set("Content-Type", contentType)
	if e.retryAfter != "" {
		h.Set("Retry-After", e.retryAfter)
	}
	if e.challenge != "" {
		h.Set("WWW-Authenticate", e.challenge)
	}
	w.WriteHeader(e.status)
}

func writeError(w http.ResponseWriter, r *http.Request, e *httpError) {
	e.head(w, "application/json")
	json.NewEncoder(w).Encode(api.Error{Error: e.text, Hint: e.hint})
}

// writePageError answers people: those who are not logged in go to the form.
func writePageError(w http.ResponseWriter, r *http.Request, e *httpError) {
	if e.status == http.StatusUnauthorized && strings.Contains(r.Header.Get("Accept"), "text/html") {
		http.Redirect(w, r, "/login", http.StatusSeeOther)
		return
	}
	e.head(w, "text/plain; charset=utf-8")
	w.Write([]byte(e.text + "\n" + e.hint + "\n"))
}
