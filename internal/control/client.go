package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/interlock-energy/ota"
)

// maxAnswer bounds an answer, in bytes: release notes and 32 skipped releases fit many times.
const maxAnswer = 4 << 20

// Client talks to the agent of this device. Its errors are *[Error] if the agent
// answered, and [ota.ErrStopped] with a hint if it did not.
type Client struct {
	path string
	http *http.Client
}

// Dial returns a client of the agent at the socket path, "" for
// [DefaultSocket], and makes sure that one answers there.
func Dial(path string) (*Client, error) {
	if path == "" {
		path = DefaultSocket
	}
	c := &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 5 * time.Second}
			return d.DialContext(ctx, "unix", path)
		},
		DisableCompression: true,
	}}}
	conn, err := net.DialTimeout("unix", path, 5*time.Second)
	if err != nil {
		return nil, c.explain(err)
	}
	return c, conn.Close()
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// explain says what it means that the socket cannot be reached.
func (c *Client) explain(err error) error {
	e := &Error{Code: ota.ErrNone, Kind: "stopped", Text: fmt.Sprintf("connect to the agent at %s: %v", c.path, err)}
	e.Name = e.Code.Name()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Hint = "there is no such socket: is interlockd running, and is this the path of its control.socket?"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Hint = "nobody answers: interlockd has stopped; see journalctl -u interlockd"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = "join the group of the socket, or use sudo"
	}
	return e
}

// Status returns what the device is doing.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, PathStatus, nil)
}

// Info returns the release at hand, or an error that is [ota.ErrNoUpdate].
func (c *Client) Info(ctx context.Context) (Info, error) {
	return call[Info](ctx, c, http.MethodGet, PathInfo, nil)
}

// Slots returns what the device can boot.
func (c *Client) Slots(ctx context.Context) (Slots, error) {
	return call[Slots](ctx, c, http.MethodGet, PathSlots, nil)
}

// Thresholds returns the limits on the battery.
func (c *Client) Thresholds(ctx context.Context) (Thresholds, error) {
	return call[Thresholds](ctx, c, http.MethodGet, PathThresholds, nil)
}

// SetThresholds changes limits and returns all of them.
func (c *Client) SetThresholds(ctx context.Context, t ThresholdsChange) (Thresholds, error) {
	return call[Thresholds](ctx, c, http.MethodPut, PathThresholds, t)
}

// Command gives a command. With wait it returns once the command has ended,
// which may take hours, or has to wait for the dwell time or an update window;
// otherwise within about a second. Ending ctx ends the waiting and not the
// command. See [Client.Finish].
func (c *Client) Command(ctx context.Context, cmd Command, wait bool) (Result, error) {
	path := "/v1/" + url.PathEscape(string(cmd))
	if wait {
		path += "?wait=true"
	}
	return call[Result](ctx, c, http.MethodPost, path, nil)
}

// Watch calls f with every event, the present status first, until f returns an
// error, which Watch returns, or ctx ends, or the agent stops, which is
// [ota.ErrStopped].
func (c *Client) Watch(ctx context.Context, f func(Event) error) error {
	resp, err := c.do(ctx, http.MethodGet, PathEvents, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return readError(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("read an event of the agent: %w", err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return c.explain(errors.Join(errors.New("the agent hung up"), lines.Err()))
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.explain(err)
	}
	return resp, nil
}

func call[T any](ctx context.Context, c *Client, method, path string, in any) (out T, err error) {
	var body []byte
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return out, fmt.Errorf("ask the agent: %w", err)
		}
	}
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return out, readError(resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&out); err != nil {
		return out, fmt.Errorf("read the agent's answer to %s %s: %w", method, path, err)
	}
	return out, nil
}

func readError(resp *http.Response) error {
	var e Error
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil || e.Text == "" {
		return fmt.Errorf("the agent answered %s: %.200q", resp.Status, b)
	}
	return &e
}
