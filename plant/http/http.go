// Package http quiesces and resumes a plant that has a controller of its own, by
// asking that over HTTP. It is for the agent beside such a controller.
//
// Start with [New]. Each verb is one POST with a JSON body:
//
//	{"action":"quiesce","device":"bess-17","release":"2.1.0"}
//
// Any 2xx except 202 means done. 202 means that it has begun: the same address is then
// asked with GET until it says 200, or 202 again, or something else, which is an
// error. Redirects are errors too, and proxies are not used: what stops a plant should
// be one address. The first 300 bytes of an error's body are part of the error.
//
// What is asked for is asked for again after an error, also by another process, so both
// must be idempotent on the other side, and resume without quiesce must change
// nothing there. Nothing is remembered here: what was found is the controller's to know,
// and so is going back by itself if resume never comes.
package http

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/interlock-energy/ota/plant"
)

var _ plant.Action = (*Controller)(nil)

// Config says whom to ask. Both addresses are needed.
type Config struct {
	Quiesce, Resume string        // addresses, http or https
	Device          string        // for the body
	Release         func() string // version of the release that is being installed; nil or "": unknown
	Token           string        // sent as "Authorization: Bearer"; only over https, or to this machine
	TLS             *tls.Config   // nil: the system's authorities
	Timeout         time.Duration // for each verb, within the caller's; 0: 2 min
	Poll            time.Duration // between two GETs; 0: 1 s
	Progress        func(text string)
}

// Controller is a [plant.Action].
type Controller struct {
	cfg    Config
	client *http.Client
}

// New checks the configuration. It asks nothing.
func New(cfg Config) (*Controller, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Minute
	}
	if cfg.Poll == 0 {
		cfg.Poll = time.Second
	}
	if cfg.Timeout < 0 || cfg.Poll < 0 {
		return nil, fmt.Errorf("configure the quiescing over HTTP: timeout %s, poll %s: want times greater than 0", cfg.Timeout, cfg.Poll)
	}
	for _, address := range []string{cfg.Quiesce, cfg.Resume} {
		if err := check(address, cfg.Token != ""); err != nil {
			return nil, fmt.Errorf("configure the quiescing over HTTP: address %q: %w", address, err)
		}
	}
	return &Controller{cfg: cfg, client: &http.Client{
		Transport: &http.Transport{TLSClientConfig: cfg.TLS, MaxIdleConnsPerHost: 1, IdleConnTimeout: 10 * time.Second},
		CheckRedirect: func(to *http.Request, _ []*http.Request) error {
			return fmt.Errorf("it redirects to %s; configure the address that answers itself", to.URL.Redacted())
		},
	}}, nil
}

func check(address string, secret bool) error {
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return err
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return errors.New("want http://host/path or https://host/path")
	case u.User != nil:
		return errors.New("it carries a password; use a token")
	case secret && u.Scheme == "http" && !here(u.Hostname()):
		return errors.New("the token would go over the network in the clear; use https")
	}
	return nil
}

// here says whether a host is this machine.
func here(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// Quiesce implements [plant.Action].
func (c *Controller) Quiesce(ctx context.Context) error {
	return c.do(ctx, "quiesce", c.cfg.Quiesce)
}

// Resume implements [plant.Action].
func (c *Controller) Resume(ctx context.Context) error { return c.do(ctx, "resume", c.cfg.Resume) }

func (c *Controller) do(ctx context.Context, action, address string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, fmt.Errorf("not done within %s", c.cfg.Timeout))
	defer cancel()
	release := ""
	if c.cfg.Release != nil {
		release = c.cfg.Release()
	}
	body, err := json.Marshal(struct {
		Action  string `json:"action"`
		Device  string `json:"device"`
		Release string `json:"release,omitempty"`
	}{action, c.cfg.Device, release})
	if err != nil {
		return err
	}
	busy, err := c.ask(ctx, http.MethodPost, address, body)
	for err == nil && busy {
		if err = pause(ctx, c.cfg.Poll); err == nil {
			busy, err = c.ask(ctx, http.MethodGet, address, nil)
		}
	}
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	if busy {
		err = fmt.Errorf("it said that it has begun: %w", err)
	}
	return fmt.Errorf("%s over HTTP: %w", action, err)
}

// ask returns busy for 202. A GET is done only with 200: another 2xx would be an
// answer to something else.
func (c *Controller) ask(ctx context.Context, method, address string, body []byte) (busy bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return true, err
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return method == http.MethodGet, err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // for people; the status counts
	if c.cfg.Progress != nil {
		c.cfg.Progress(fmt.Sprintf("%s %s: %s", method, address, resp.Status))
	}
	switch code := resp.StatusCode; {
	case code == http.StatusAccepted:
		return true, nil
	case code == http.StatusOK, method == http.MethodPost && code > 200 && code < 300:
		return false, nil
	}
	return false, fmt.Errorf("%s %s: got %s, want 200 or 202: %s", method, address, resp.Status, printable(text))
}

// printable is a line for a log, whatever the bytes are.
func printable(text []byte) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F || r == '\uFFFD' {
			return ' '
		}
		return r
	}, strings.TrimSpace(string(text)))
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
