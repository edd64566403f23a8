package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/gate/bms"
)

const healthTimeout = 10 * time.Second

// check is one configured check of the firmware on trial.
type check struct {
	name    string
	timeout time.Duration
	do      func(context.Context) error
}

func (a *Agent) newChecks(list []Health, tolerance bms.Tolerance) (checks []check, err error) {
	for i := range list {
		c, err := a.newCheck(&list[i], tolerance)
		if err != nil {
			return nil, fmt.Errorf("check %d: %w", i+1, err)
		}
		checks = append(checks, c)
	}
	return checks, nil
}

// newCheck makes the check that h describes. The tolerance is for as_before.
func (a *Agent) newCheck(h *Health, tolerance bms.Tolerance) (check, error) {
	c := check{name: h.Name, timeout: time.Duration(orDefault(h.Timeout, Duration(healthTimeout)))}
	kinds := 0
	add := func(name string, do func(context.Context) error) {
		kinds++
		c.name, c.do = orDefault(c.name, name), do
	}
	if len(h.Command) > 0 {
		add("command "+h.Command.String(), func(ctx context.Context) error {
			_, err := h.Command.run(ctx, c.timeout, nil)
			return err
		})
	}
	if h.HTTP != "" {
		if _, err := webURL(h.HTTP); err != nil {
			return c, fmt.Errorf("http: %w", err)
		}
		// No proxy, which may answer for firmware that is dead, and no redirects: a
		// login page somewhere else says nothing about it.
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		add("http "+h.HTTP, func(ctx context.Context) error { return getOK(ctx, client, h.HTTP) })
	}
	if h.TCP != "" {
		if _, port, err := net.SplitHostPort(h.TCP); err != nil || port == "" {
			return c, fmt.Errorf("tcp: %q is not host:port", h.TCP)
		}
		add("tcp "+h.TCP, func(ctx context.Context) error {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "tcp", h.TCP)
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}
	if h.Battery != "" {
		do, err := a.batteryCheck(h.Battery, tolerance)
		if err != nil {
			return c, fmt.Errorf("battery: %w", err)
		}
		add("battery "+h.Battery, do)
	}
	if kinds != 1 {
		return c, fmt.Errorf("%d of command, http, tcp and battery are given, want one", kinds)
	}
	return c, nil
}

func getOK(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true // each check asks anew, also for a connection
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 300))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("status %s: %q", resp.Status, body)
	}
	return err
}

// healthy asks all checks at the same time, and names every one that fails.
func healthy(ctx context.Context, checks []check) error {
	errs := make([]error, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() {
			ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("no answer within %v", c.timeout))
			defer cancel()
			began := time.Now()
			err := c.do(ctx)
			if err != nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			noteCheck(ctx, c.name, time.Since(began), err)
			if err != nil {
				errs[i] = fmt.Errorf("health check %s: %w", c.name, err)
			}
		})
	}
	wg.Wait()
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return together(errs)
}
