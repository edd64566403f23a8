// Package bmshttp reads the battery over HTTP, for devices whose battery
// management system, or the program that talks to it, offers its values there.
// It is a package of its own so that devices without HTTP do not carry it.
//
// Start with [New], and give the reader to bms.New. What is promised: whatever
// is not a complete, well-formed reading with its own time is an error, and so a
// refusal.
package bmshttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/interlock-energy/ota/gate/bms"
)

// Timeout is how long one request may take, unless its context ends before.
const Timeout = 2 * time.Second

// New returns a reader that gets address, an http or https URL, and expects
// status 200 and the form of [bms.ParseReading]. The reading must carry its
// time: when a copy was fetched says nothing about when it was measured, so the
// gate refuses one without.
//
// Redirects are not followed. A nil client is one of our own that uses no proxy.
func New(address string, client *http.Client) (bms.Reader, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("read the battery over HTTP: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("read the battery over HTTP: %q is not an http or https address", u.Redacted())
	}
	c := &http.Client{Transport: &http.Transport{}}
	if client != nil {
		*c = *client // the caller's own stays as it is
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	source := u.Redacted()
	return func(ctx context.Context) (bms.Reading, error) {
		r, err := get(ctx, c, u.String())
		if err != nil {
			return bms.Reading{}, fmt.Errorf("get %s: %w", source, err)
		}
		r.Source = source
		return r, nil
	}, nil
}

func get(ctx context.Context, c *http.Client, address string) (bms.Reading, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return bms.Reading{}, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Cache-Control", "no-cache")
	resp, err := c.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the address is named by the caller, without a password
		}
		return bms.Reading{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return bms.Reading{}, fmt.Errorf("status %s, want 200", resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, bms.MaxReadingSize+1))
	if err != nil {
		return bms.Reading{}, err
	}
	return bms.ParseReading(data)
}
