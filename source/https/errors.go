package https

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Error is a request that did not bring what it was to bring. It wraps Code and
// its cause.
type Error struct {
	Op         string        // what was being done
	Code       ota.ErrorCode // ErrConnectivity, ErrAuthentication, ErrServer or ErrNoUpdate
	Status     int           // of the HTTP answer; 0: there was none, or it is not the point
	Hint       string        // what to do about it, for people
	RetryAfter time.Duration // the server asked not to be asked again before; 0: it did not. At most 1 h
	Err        error
}

func (e *Error) Error() string {
	s := e.Op + ": " + e.Err.Error()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the code and the cause.
func (e *Error) Unwrap() []error { return []error{e.Code, e.Err} }

func serverError(op, format string, a ...any) *Error {
	return &Error{Op: op, Code: ota.ErrServer, Err: fmt.Errorf(format, a...)}
}

// errChanged: the bytes of the release are no longer there.
var errChanged = errors.New("the other side has another release now; check again")

// failure says why no answer came.
func (s *Source) failure(op string, u *url.URL, err error) *Error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err // its text has the whole URL, and that may be a secret
	}
	e := &Error{Op: op, Code: ota.ErrConnectivity, Err: fmt.Errorf("reach %s: %w", redact(u), err)}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return e
	}
	now := s.cfg.Now()
	if ce, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		e.Code = ota.ErrAuthentication
		e.Hint = "the server needs another certificate"
		if c := ce.Cert; ce.Reason == x509.Expired && c != nil {
			e.Hint = fmt.Sprintf("the server's certificate is valid from %s to %s, and the clock says %s: correct the one that is wrong",
				day(c.NotBefore), day(c.NotAfter), day(now))
			if now.Before(c.NotBefore) {
				e.Hint = fmt.Sprintf("the server's certificate is not valid before %s, and the clock says %s: set the clock", day(c.NotBefore), day(now))
			}
		}
		return e
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		e.Code = ota.ErrAuthentication
		e.Hint = "the server's certificate is not signed by a CA that this system knows; configure the server's CA"
		if s.cfg.CACert != nil {
			e.Hint = fmt.Sprintf("the server's certificate is not signed by the CA%s", from(s.cfg.CAName))
		}
		return e
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		e.Code = ota.ErrAuthentication
		e.Hint = fmt.Sprintf("the server's certificate is for another name than %s", clean(u.Hostname(), 100))
		return e
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.Code = ota.ErrAuthentication
		return e
	}
	if errors.Is(err, errInside) {
		e.Code = ota.ErrServer
		return e
	}
	// crypto/tls and net/http have no types for the rest.
	text := err.Error()
	for _, c := range []struct {
		part string
		code ota.ErrorCode
		hint string
	}{
		{"tls: certificate required", ota.ErrAuthentication, "the server wants a client certificate"},
		{"tls: bad certificate", ota.ErrAuthentication, "the server does not accept the client certificate"},
		{"tls: unknown certificate", ota.ErrAuthentication, "the server does not accept the client certificate"},
		{"tls: expired certificate", ota.ErrAuthentication, "the client certificate has expired, says the server"},
		{"tls: revoked certificate", ota.ErrAuthentication, "the client certificate is revoked, says the server"},
		{"tls: access denied", ota.ErrAuthentication, "the server does not accept the client certificate"},
		{"tls: handshake failure", ota.ErrAuthentication, "server and device have no TLS settings in common, or the server wants a client certificate"},
		{"protocol version", ota.ErrAuthentication, "the server speaks no TLS 1.2 or newer"},
		{"HTTP response to HTTPS client", ota.ErrServer, "the server speaks plain HTTP at this port"},
		{"first record does not look like a TLS handshake", ota.ErrServer, "the server speaks no TLS at this port"},
		{"malformed HTTP", ota.ErrServer, "the server speaks no HTTP at this port, or something on the way answers for it"},
		{"server response headers exceeded", ota.ErrServer, ""},
		{"unsupported transfer encoding", ota.ErrServer, ""},
		{"Content-Length", ota.ErrServer, ""},
	} {
		if strings.Contains(text, c.part) {
			e.Code, e.Hint = c.code, c.hint
			break
		}
	}
	return e
}

// refusal says what an answer with an error status means, and ends it.
func (s *Source) refusal(op string, u *url.URL, resp *http.Response) *Error {
	defer resp.Body.Close()
	e := &Error{Op: op, Code: ota.ErrServer, Status: resp.StatusCode, RetryAfter: retryAfter(resp, time.Now())}
	text, hint := s.bodyText(resp)
	e.Err = fmt.Errorf("%s answered %d %s%s", redact(u), resp.StatusCode, http.StatusText(resp.StatusCode), text)
	e.Hint = hint
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		if !s.wantsCredentials(u) {
			if e.Hint == "" {
				e.Hint = "the server gave this address itself; are the clocks right?"
			}
			break
		}
		e.Code = ota.ErrAuthentication
		if e.Hint != "" {
			break
		}
		switch {
		case s.cfg.Token != "":
			e.Hint = "the server does not accept the token"
		case s.cfg.BasicUser != "":
			e.Hint = "the server does not accept this user and password"
		default:
			e.Hint = "configure a token, or a user and password"
		}
	case http.StatusProxyAuthRequired:
		e.Code, e.Hint = ota.ErrAuthentication, "the proxy wants a user and password in HTTPS_PROXY"
	case http.StatusNotFound:
		if e.Hint == "" && sameOrigin(u, s.base) {
			e.Hint = "is the url right?"
		}
	case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout:
		e.Hint = "a proxy could not reach the server"
	}
	return e
}

// wantsCredentials reports whether a refusal at u is about ours. At an address
// that the other side gave us it is not: such addresses are all that is needed.
func (s *Source) wantsCredentials(u *url.URL) bool {
	switch {
	case !sameOrigin(u, s.base):
		return false
	case s.cfg.Kind == Server:
		return strings.HasPrefix(u.Path, s.base.JoinPath("/api/").Path)
	case s.cfg.Kind == Manifest:
		return u.Path == s.base.Path
	}
	return true
}

// bodyText returns what an error's body says, for people: api.Error, or else the
// first line of a text.
func (s *Source) bodyText(resp *http.Response) (text, hint string) {
	defer s.limit(resp)()
	b, err := io.ReadAll(io.LimitReader(resp.Body, api.MaxErrorSize))
	if err != nil || len(b) == 0 {
		return "", ""
	}
	var e struct{ Error, Hint, Details string } // Details: the Lambda of the ESP32 fleet
	if json.Unmarshal(b, &e) == nil && e.Error != "" {
		if e.Details != "" {
			e.Error += ": " + e.Details
		}
		return ": " + clean(e.Error, 300), clean(e.Hint, 300)
	}
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") && !strings.HasSuffix(ct, "xml") {
		return "", ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if line == "" {
		return "", ""
	}
	return ": " + clean(line, 200), ""
}

// broken says why a body ended early.
func (s *Source) broken(op string, u *url.URL, err error) *Error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	e := &Error{Op: op, Code: ota.ErrConnectivity, Err: fmt.Errorf("read from %s: %w", redact(u), err)}
	if _, ok := errors.AsType[net.Error](err); !ok && strings.Contains(err.Error(), "malformed chunked encoding") {
		e.Code = ota.ErrServer
	}
	return e
}

// clean makes text from the other side fit for one line of a log.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > limit {
		return string(r[:limit]) + "..."
	}
	return s
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }
