// Package operator is the client of an update server's operator API: what people
// and their programs ask of the server, as the paths of package api describe it.
//
// Start with [New]. Errors wrap the codes of package ota: connectivity for a
// server that is not reached, authentication for a token or a certificate that
// is not accepted, validation for a bundle that the server found wrong, server
// for everything else that it answers. A [*Error] says what
// to do about it.
package operator

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Config says which server, and who asks.
type Config struct {
	URL   string // https, or http on loopback: tokens do not travel in the clear
	Token string // an operator's
	CA    []byte // PEM; the only roots that are trusted; nil: those of the system
}

// Client talks to one server. It may be used by several goroutines.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// Error is what went wrong with one request.
type Error struct {
	Op     string        // what was being done
	Status int           // of the answer; 0: there was none
	Code   ota.ErrorCode // ErrConnectivity, ErrAuthentication, ErrValidation, ErrServer
	Err    error
	hint   string
}

func (e *Error) Error() string { return e.Op + ": " + e.Err.Error() }

// Unwrap returns the code and the cause.
func (e *Error) Unwrap() []error { return []error{e.Code, e.Err} }

// Is reports a match with ErrNotFound.
func (e *Error) Is(target error) bool {
	return target == ErrNotFound && e.Status == http.StatusNotFound
}

// Hint returns what to do about it, or "".
func (e *Error) Hint() string { return e.hint }

// ErrNotFound matches errors about something that the server does not have.
var ErrNotFound = errors.New("not found")

// New returns a client. It does not connect.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("server %q: want a URL like https://ota.example.com", cfg.URL)
	}
	if u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return nil, fmt.Errorf("server %s: everybody on the way could read the token; use https", cfg.URL)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CA != nil {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(cfg.CA) {
			return nil, errors.New("CA certificate: no certificate in PEM found")
		}
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	return &Client{base: u, token: cfg.Token, http: &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
			TLSClientConfig:       conf,
			TLSHandshakeTimeout:   15 * time.Second,
			ExpectContinueTimeout: 2 * time.Second,
			ForceAttemptHTTP2:     true,
		},
		// The answer to a redirected upload would be one to another request.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// PublishOptions say what becomes of an uploaded release.
type PublishOptions struct {
	Group   string // whose current release it becomes; empty: the default group's
	Hold    bool   // store it only
	Replace bool   // it may take the place of another release with the same product and version
}

// Publish uploads the bundle file in r, of size bytes. The same file again
// changes nothing but the group. The server compares every byte with the
// manifest before it stores anything.
func (c *Client) Publish(ctx context.Context, r io.Reader, size int64, o PublishOptions) (api.PublishResponse, error) {
	q := url.Values{}
	if o.Group != "" {
		q.Set(api.QueryGroup, o.Group)
	}
	if o.Hold {
		q.Set(api.QueryHold, "true")
	}
	if o.Replace {
		q.Set(api.QueryReplace, "true")
	}
	var out api.PublishResponse
	req, err := c.request(ctx, http.MethodPost, api.PathReleases, q, io.NopCloser(r))
	if err != nil {
		return out, err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	// So that a server that refuses says so before the upload, not by resetting it.
	req.Header.Set("Expect", "100-continue")
	return out, c.do("publish the release", req, &out)
}

// Releases lists the releases, newest first.
func (c *Client) Releases(ctx context.Context) ([]api.Release, error) {
	var out api.ReleasesResponse
	err := c.call(ctx, "list releases", http.MethodGet, api.PathReleases, nil, nil, &out)
	return out.Releases, err
}

// Devices lists the devices by id. Empty arguments select all.
func (c *Client) Devices(ctx context.Context, group, product, search string) ([]api.Device, error) {
	q := url.Values{}
	for name, v := range map[string]string{"group": group, "product": product, "q": search} {
		if v != "" {
			q.Set(name, v)
		}
	}
	var out api.DevicesResponse
	err := c.call(ctx, "list devices", http.MethodGet, api.PathDevices, q, nil, &out)
	return out.Devices, err
}

// Device returns one device and its history.
func (c *Client) Device(ctx context.Context, id string) (api.DeviceDetail, error) {
	var out api.DeviceDetail
	err := c.call(ctx, "show device "+id, http.MethodGet, fill(api.PathDevice, id), nil, nil, &out)
	return out, err
}

// Assign moves a device into a group.
func (c *Client) Assign(ctx context.Context, id, group string) (api.DeviceDetail, error) {
	var out api.DeviceDetail
	err := c.call(ctx, "assign device "+id, http.MethodPut, fill(api.PathDevice, id), nil, api.DeviceChange{Group: group}, &out)
	return out, err
}

// Groups lists the groups by name.
func (c *Client) Groups(ctx context.Context) ([]api.Group, error) {
	var out api.GroupsResponse
	err := c.call(ctx, "list groups", http.MethodGet, api.PathGroups, nil, nil, &out)
	return out.Groups, err
}

// Change promotes or withdraws a release; with neither it makes the group if
// there is none with this name.
func (c *Client) Change(ctx context.Context, group string, change api.GroupChange) (api.Group, error) {
	var out api.Group
	err := c.call(ctx, "change group "+group, http.MethodPut, fill(api.PathGroup, group), nil, change, &out)
	return out, err
}

// NewToken makes a device's token.
func (c *Client) NewToken(ctx context.Context, req api.TokenRequest) (api.TokenResponse, error) {
	var out api.TokenResponse
	err := c.call(ctx, "make a token", http.MethodPost, api.PathTokens, nil, req, &out)
	return out, err
}

// fill puts a name in the place of a path's variable.
func fill(path, name string) string {
	before, _, _ := strings.Cut(path, "{")
	return before + url.PathEscape(name)
}

// call makes a request with a JSON body, or none, and reads a JSON answer.
func (c *Client) call(ctx context.Context, op, method, path string, q url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := c.request(ctx, method, path, q, body)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.do(op, req, out)
}

func (c *Client) request(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Request, error) {
	u := c.base.String() + path
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	return req, nil
}

func (c *Client) do(op string, req *http.Request, out any) error {
	resp, err := c.http.Do(req)
	if err != nil {
		return c.failure(op, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return c.refusal(op, resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20)) // 100,000 devices are some 100 MB
	if err != nil {
		return c.failure(op, err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &Error{Op: op, Status: resp.StatusCode, Code: ota.ErrServer, Err: fmt.Errorf("read the answer: %w", err),
			hint: "is this the address of an update server? " + c.base.String()}
	}
	return nil
}

// failure says why no answer came.
func (c *Client) failure(op string, err error) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", op, err)
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	e := &Error{Op: op, Code: ota.ErrConnectivity, Err: err, hint: "does the server run at " + c.base.String() + "?"}
	switch {
	case is[x509.UnknownAuthorityError](err):
		e.Code, e.hint = ota.ErrAuthentication, "the server's certificate is not signed by a CA that is trusted here; give --ca with the ca.pem from the server's data directory"
	case is[x509.HostnameError](err):
		e.Code, e.hint = ota.ErrAuthentication, "the server's certificate is for other names; start it with --host "+c.base.Hostname()
	case is[*tls.CertificateVerificationError](err):
		e.Code, e.hint = ota.ErrAuthentication, "look at the server's certificate, and at the clocks of both sides"
	case strings.Contains(err.Error(), "HTTP response to HTTPS client"): // net/http has no type for it
		e.Code, e.hint = ota.ErrServer, "that port speaks plain HTTP; use http:// or the port for https"
	}
	return e
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// refusal says what an answer that is no success means.
func (c *Client) refusal(op string, resp *http.Response) error {
	e := &Error{Op: op, Status: resp.StatusCode, Code: ota.ErrServer, Err: fmt.Errorf("the server answered %s", resp.Status)}
	b, err := io.ReadAll(io.LimitReader(resp.Body, api.MaxErrorSize))
	var said api.Error
	if err == nil && json.Unmarshal(b, &said) == nil && said.Error != "" {
		verb, _, _ := strings.Cut(op, " ")
		text := strings.TrimPrefix(strings.TrimPrefix(said.Error, op+": "), verb+": ") // the server says it, too
		e.Err, e.hint = errors.New(text), said.Hint
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Code = ota.ErrAuthentication
		if c.token == "" || e.hint == "" {
			e.hint = "give --token-file with the operator.token from the server's data directory"
		}
	case http.StatusUnprocessableEntity: // the server's verification failed
		e.Code = ota.ErrValidation
	case http.StatusBadRequest:
		if strings.HasPrefix(string(b), "Client sent an HTTP request to an HTTPS server") {
			e.Err, e.hint = errors.New("the server speaks https at this port"), "use https:// in the server's URL"
		}
	}
	return e
}
