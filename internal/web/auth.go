package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/fleet"
)

// A handler answers or returns an error, not both.
type handler func(w http.ResponseWriter, r *http.Request) error

// requestTime bounds reading a request and writing its answer. Uploads,
// downloads and event streams move their own deadline as bytes move.
const requestTime = 30 * time.Second

// serve makes an http.Handler of h.
func (s *Server) serve(h handler, answer func(http.ResponseWriter, *http.Request, *httpError)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		// Not possible in a test's recorder, which has no connection.
		_ = c.SetReadDeadline(time.Now().Add(requestTime))
		_ = c.SetWriteDeadline(time.Now().Add(requestTime))
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		err := h(w, r)
		if err == nil {
			return
		}
		if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
			return // nobody is there to read it
		}
		e := classify(err)
		if e.status >= 500 {
			s.cfg.Log.Error("a request failed", "method", r.Method, "path", r.URL.Path, "status", e.status, "error", err)
		}
		answer(w, r, e)
	})
}

// bearer returns who asks.
func (s *Server) bearer(r *http.Request) (fleet.Identity, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return fleet.Identity{}, &httpError{status: http.StatusUnauthorized, text: "a token is missing",
			hint: "send the header Authorization: Bearer TOKEN", challenge: `Bearer realm="interlock"`}
	}
	id, ok := s.fleet.Identify(strings.TrimSpace(token))
	if !ok {
		return fleet.Identity{}, &httpError{status: http.StatusUnauthorized, text: "the token is not known here",
			hint: "check that it is whole, and that it was made by this server", challenge: `Bearer realm="interlock", error="invalid_token"`}
	}
	return id, nil
}

// operator lets operators pass.
func (s *Server) operator(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := s.bearer(r)
		if err != nil {
			return err
		}
		if id.Role != fleet.Operator {
			return fail(http.StatusForbidden, "this needs an operator's token, and that is a device's", "")
		}
		return h(w, r)
	}
}

// isOperator reports whether an operator's token is still one.
func (s *Server) isOperator(r *http.Request) bool {
	id, err := s.bearer(r)
	return err == nil && id.Role == fleet.Operator
}

// agent lets devices pass; h checks for which device they speak.
func (s *Server) agent(h func(http.ResponseWriter, *http.Request, fleet.Identity) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := s.bearer(r)
		if err != nil {
			return err
		}
		if id.Role != fleet.Agent {
			return fail(http.StatusForbidden, "this needs a device's token, and that is an operator's", "make one with POST "+api.PathTokens)
		}
		return h(w, r, id)
	}
}

// speaksFor is an error unless id may speak for device.
func speaksFor(id fleet.Identity, device string) error {
	if id.SpeaksFor(device) {
		return nil
	}
	return fail(http.StatusForbidden, "this token does not speak for this device", "it was made for another device")
}

// basic asks for user and password, if there are any.
func (s *Server) basic(h handler) handler {
	if s.cfg.BasicUser == "" {
		return h
	}
	wantUser, wantPassword := sha256.Sum256([]byte(s.cfg.BasicUser)), sha256.Sum256([]byte(s.cfg.BasicPassword))
	return func(w http.ResponseWriter, r *http.Request) error {
		user, password, _ := r.BasicAuth()
		u, p := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
		if subtle.ConstantTimeCompare(u[:], wantUser[:])&subtle.ConstantTimeCompare(p[:], wantPassword[:]) != 1 {
			return &httpError{status: http.StatusUnauthorized, text: "user or password is wrong or missing",
				challenge: `Basic realm="interlock", charset="UTF-8"`}
		}
		return h(w, r)
	}
}

// readJSON reads the body into v. Unknown names are skipped, since newer
// devices say more.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxRequestSize))
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return fail(http.StatusBadRequest, "the body is empty, want JSON", "")
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fail(http.StatusBadRequest, "read the body: "+err.Error(), "")
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(b, '\n'))
	return ignoreGone(err)
}

// ignoreGone drops the error of a write after the header: the status is sent,
// and the client sees by the length that something is missing.
func ignoreGone(error) error { return nil }

const sessionTime = 12 * time.Hour

// The session cookie is a ticket over the SHA-256 of the operator's token, so
// it ends with the token, and the token itself is not in it.
const sessionCookie = "interlock_session"

// viewer lets pass who may see the dashboard.
func (s *Server) viewer(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if !s.cfg.OpenDashboard && !s.loggedIn(r) {
			return fail(http.StatusUnauthorized, "log in first", "at /login, with an operator's token")
		}
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("X-Frame-Options", "DENY")
		return h(w, r)
	}
}

func (s *Server) loggedIn(r *http.Request) bool {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return false
	}
	ticket, text, _ := strings.Cut(c.Value, ".")
	sum, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(sum) != sha256.Size || s.sessions.check(ticket, text) != nil {
		return false
	}
	id, ok := s.fleet.IdentifySum([sha256.Size]byte(sum))
	return ok && id.Role == fleet.Operator
}

// https reports whether the browser came by https, as far as can be known.
func (s *Server) https(r *http.Request) bool {
	return r.TLS != nil || strings.HasPrefix(s.cfg.PublicURL, "https://")
}

// sameSite refuses forms that a page of another site sends.
func (s *Server) sameSite(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := s.cross.Check(r); err != nil {
			return fail(http.StatusForbidden, "this form comes from another site", "open the page of this server and use its form")
		}
		return h(w, r)
	}
}

func (s *Server) login(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	if err := r.ParseForm(); err != nil {
		return fail(http.StatusBadRequest, "read the form: "+err.Error(), "")
	}
	id, ok := s.fleet.Identify(strings.TrimSpace(r.PostForm.Get("token")))
	if !ok || id.Role != fleet.Operator {
		return s.showLogin(w, http.StatusUnauthorized, "This is not an operator's token of this server.")
	}
	sum := id.Sum()
	text := base64.RawURLEncoding.EncodeToString(sum[:])
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: s.sessions.ticket(s.cfg.Now().Add(sessionTime), text) + "." + text, Path: "/",
		MaxAge: int(sessionTime.Seconds()), HttpOnly: true, Secure: s.https(r), SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) error {
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, HttpOnly: true, Secure: s.https(r), SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}
