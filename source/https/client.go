package https

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/interlock-energy/ota"
)

const (
	maxRedirects   = 5
	maxHeaderBytes = 64 << 10
	maxURL         = 8 << 10
	maxRetryAfter  = time.Hour // a server that says more is believed only so far
	maxWaits       = 32        // origins, so that a server cannot fill the memory by naming ever new ones
	keepIdle       = 90 * time.Second
)

// newClient returns a client for HTTP/1.1. HTTP/2 would let the other side send
// up to 4 MiB ahead of what is read, which a dropped connection pays for twice.
func (s *Source) newClient() (*http.Client, error) {
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ClientSessionCache: tls.NewLRUClientSessionCache(8),
		Time:               s.cfg.Now,
	}
	if s.cfg.CACert != nil {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(s.cfg.CACert) {
			return nil, fmt.Errorf("CA certificate%s: no PEM certificate in %d bytes", from(s.cfg.CAName), len(s.cfg.CACert))
		}
	}
	if s.cfg.ClientCert != nil || s.cfg.ClientKey != nil {
		pair, err := tls.X509KeyPair(s.cfg.ClientCert, s.cfg.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("client certificate and key: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            s.dial,
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    s.cfg.ConnectTimeout,
			ResponseHeaderTimeout:  s.cfg.ResponseTimeout,
			MaxResponseHeaderBytes: maxHeaderBytes,
			DisableCompression:     true, // a compressed range is a range of something else
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        keepIdle,
			Protocols:              protocols,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// elsewhere marks the context of a request whose address the other side chose.
type elsewhere struct{}

func (s *Source) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: s.cfg.ConnectTimeout}
	if ctx.Value(elsewhere{}) != nil {
		// After the name is resolved, so that no name leads past the check.
		d.Control = func(_, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			if a := ap.Addr().Unmap(); a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() {
				return fmt.Errorf("%w: %s", errInside, a)
			}
			return nil
		}
	}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if t, ok := c.(*net.TCPConn); ok && s.cfg.ReadBuffer > 0 {
		if err := t.SetReadBuffer(s.cfg.ReadBuffer); err != nil {
			c.Close()
			return nil, fmt.Errorf("set the receive buffer to %d bytes: %w", s.cfg.ReadBuffer, err)
		}
	}
	return c, nil
}

// errInside: a server may send devices anywhere but to themselves and to what
// only they can reach, such as a cloud's metadata service.
var errInside = errors.New("the server points to an address inside the device or on its link")

// request is one HTTP exchange, with redirects.
type request struct {
	method string
	url    *url.URL
	header http.Header
	body   []byte
}

// do sends r and follows redirects. The answer's body is the caller's to close.
// Every status is an answer; the errors are about the way there.
func (s *Source) do(ctx context.Context, op string, r request) (*http.Response, error) {
	u, seen := r.url, []string{}
	for {
		if slices.Contains(seen, u.String()) {
			return nil, serverError(op, "redirected in a circle at %s", redact(u))
		}
		if seen = append(seen, u.String()); len(seen) > maxRedirects+1 {
			return nil, serverError(op, "redirected more than %d times, last to %s", maxRedirects, redact(u))
		}
		resp, err := s.once(ctx, op, r, u)
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
			if r.method != http.MethodGet && r.method != http.MethodHead {
				to, err := s.follow(u, resp.Header.Get("Location"))
				s.drop(resp)
				if err != nil {
					return nil, serverError(op, "redirect: %w", err)
				}
				e := serverError(op, "%s answered %d to %s, which ends a %s", redact(u), resp.StatusCode, redact(to), r.method)
				e.Hint = "set the url to where the server is now"
				return nil, e
			}
		case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		to := resp.Header.Get("Location")
		s.drop(resp)
		if u, err = s.follow(u, to); err != nil {
			return nil, serverError(op, "redirect: %w", err)
		}
	}
}

func (s *Source) once(ctx context.Context, op string, r request, u *url.URL) (*http.Response, error) {
	if err := s.mustWait(op, u); err != nil {
		return nil, err
	}
	var body io.Reader
	if r.body != nil {
		body = strings.NewReader(string(r.body)) // a type that NewRequest can read twice, for a stale connection
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, &Error{Op: op, Code: ota.ErrInternal, Err: err}
	}
	if r.header != nil {
		req.Header = r.header.Clone()
	}
	req.Header.Set("User-Agent", s.userAgent())
	req.Header.Set("Accept-Encoding", "identity")
	if sameOrigin(u, s.base) {
		switch {
		case s.cfg.Token != "":
			req.Header.Set("Authorization", "Bearer "+s.cfg.Token)
		case s.cfg.BasicUser != "":
			req.SetBasicAuth(s.cfg.BasicUser, s.cfg.BasicPassword)
		}
	} else if s.mayPointInside(req) {
		req = req.WithContext(context.WithValue(ctx, elsewhere{}, true))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, s.failure(op, u, err)
	}
	s.noteWait(u, resp)
	return resp, nil
}

// mayPointInside reports whether req's address is to be checked when it is
// dialed: not if it is the configured host, not if the configured host is this
// very device, and not if a proxy dials.
func (s *Source) mayPointInside(req *http.Request) bool {
	host := s.base.Hostname()
	if a, err := netip.ParseAddr(host); err == nil && a.IsLoopback() || host == "localhost" || host == req.URL.Hostname() {
		return false
	}
	proxy, err := http.ProxyFromEnvironment(req)
	return err != nil || proxy == nil
}

// follow returns the absolute form of ref, which the other side gave at u, if
// it is a place to go to.
func (s *Source) follow(u *url.URL, ref string) (*url.URL, error) {
	if ref == "" {
		return nil, fmt.Errorf("no address is given")
	}
	if len(ref) > maxURL {
		return nil, fmt.Errorf("the address has %d characters, want at most %d", len(ref), maxURL)
	}
	to, err := u.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("%q is not a URL", clean(ref, 100))
	}
	to.Fragment = ""
	if _, err := checkURL(to.String(), s.cfg.AllowPlain && u.Scheme == "http"); err != nil {
		return nil, err
	}
	return to, nil
}

// checkURL accepts absolute https URLs, and http ones if plain is set.
func checkURL(raw string, plain bool) (*url.URL, error) {
	if raw == "" {
		return nil, fmt.Errorf("is missing")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%q is not a URL", clean(raw, 100))
	}
	switch {
	case u.Scheme == "http" && plain:
	case u.Scheme == "http":
		return nil, fmt.Errorf("%s is not https, so everybody on the way could read and change it", redact(u))
	case u.Scheme != "https":
		return nil, fmt.Errorf("%s has the scheme %q, want https", redact(u), clean(u.Scheme, 20))
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("%s names no host", redact(u))
	}
	if u.User != nil {
		return nil, fmt.Errorf("%s holds a user name; give user and password apart from it", redact(u))
	}
	return u, nil
}

// redact returns u for messages: without user, query and fragment.
func redact(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Opaque: clean(u.Opaque, 60), Host: u.Host, Path: u.Path}
	return clean(c.String(), 200)
}

func sameOrigin(a, b *url.URL) bool { return origin(a) == origin(b) }

func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}

func (s *Source) userAgent() string {
	if s.cfg.Agent == "" {
		return "interlock"
	}
	return "interlock/" + clean(s.cfg.Agent, 40)
}

// noteWait remembers a Retry-After (RFC 9110, section 10.2.3).
func (s *Source) noteWait(u *url.URL, resp *http.Response) {
	d := retryAfter(resp, time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waits, origin(u))
	if d > 0 && len(s.waits) < maxWaits {
		s.waits[origin(u)] = time.Now().Add(d)
	}
}

// mustWait keeps requests away from a server that asked for that, so that a
// fleet's quick retries do not hold it down.
func (s *Source) mustWait(op string, u *url.URL) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := time.Until(s.waits[origin(u)])
	if d <= 0 {
		delete(s.waits, origin(u))
		return nil
	}
	e := serverError(op, "the server asked to wait, for %v more", d.Round(time.Second))
	e.RetryAfter = d
	return e
}

func retryAfter(resp *http.Response, now time.Time) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return min(time.Duration(n)*time.Second, maxRetryAfter)
	}
	if at, err := http.ParseTime(v); err == nil {
		if sent, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			now = sent // the server's clock against itself, as ours may start in 1970
		}
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// drop ends an answer whose body is of no interest, reading a little so that the
// connection can be used again.
func (s *Source) drop(resp *http.Response) {
	defer s.limit(resp)()
	io.CopyN(io.Discard, resp.Body, 4<<10)
	resp.Body.Close()
}

// limit ends a body that is read for its own sake when it takes too long.
func (s *Source) limit(resp *http.Response) (stop func() bool) {
	return time.AfterFunc(s.cfg.StallTimeout, func() { resp.Body.Close() }).Stop
}

func from(name string) string {
	if name == "" {
		return ""
	}
	return " in " + name
}
