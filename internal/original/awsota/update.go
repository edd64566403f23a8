package awsota

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// maxManifest bounds what is read of a manifest, in bytes. The device has no bound
// but its heap.
const maxManifest = 64 << 10

// maxRedirects is that of Arduino's HTTPClient.
const maxRedirects = 10

// Update looks for an update and installs it: checkNow of the document, with the
// callbacks in its order. That there is none is no error.
func (c *Client) Update(ctx context.Context) (Result, error) {
	on := c.cfg.Callbacks
	for _, may := range []func() bool{on.OnCheckStart, on.OnSuspendTasks} {
		if may != nil && !may() {
			return Result{}, fmt.Errorf("update from %s: %w", c.cfg.Version, ErrDenied)
		}
	}
	result, err := c.update(ctx)
	switch {
	case err != nil:
		if on.OnOtaFailed != nil {
			on.OnOtaFailed(err.Error())
		}
	case !result.Updated:
		call(on.OnOtaUpToDate)
	default:
		call(on.OnOtaFinished)
		return result, nil // and the device restarts: nothing is resumed
	}
	call(on.OnResumeTasks)
	return result, err
}

func call(f func()) {
	if f != nil {
		f()
	}
}

func (c *Client) update(ctx context.Context) (Result, error) {
	var r Result
	m, err := c.manifest(ctx, &r.Tries)
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	r.Version = cut(m.Version, MaxVersion)
	if r.Version == c.cfg.Version {
		return r, nil
	}
	call(c.cfg.Callbacks.OnOtaStarted)
	r.Size, err = c.download(ctx, cut(m.URL, MaxURL))
	if err != nil {
		if n := len(m.URL); n > MaxURL {
			err = fmt.Errorf("%w (the URL of %d characters was cut to the %d that the device has room for)", err, n, MaxURL)
		}
		return r, fmt.Errorf("%w: %w", ErrDownload, err)
	}
	r.Updated = true
	return r, nil
}

type manifest struct{ Version, URL string }

// manifest returns the first answer that is one.
func (c *Client) manifest(ctx context.Context, tries *int) (m manifest, err error) {
	for *tries < c.cfg.Tries {
		if *tries > 0 {
			if waitErr := c.cfg.Wait(ctx, betweenTries); waitErr != nil {
				return m, waitErr
			}
		}
		*tries++
		if m, err = c.ask(ctx); err == nil {
			return m, nil
		}
	}
	return m, err
}

func (c *Client) ask(ctx context.Context) (m manifest, err error) {
	t := c.timer(ctx)
	defer t.end()
	resp, err := c.request(t.ctx, c.cfg.ManifestURL, c.http(func(_ *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return http.ErrUseLastResponse
		}
		return nil
	}))
	if err != nil {
		return m, t.why(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest))
	if resp.StatusCode != http.StatusOK {
		return m, fmt.Errorf("the server answered %s: %.200s", resp.Status, body)
	}
	if err != nil {
		return m, fmt.Errorf("read the manifest: %w", t.why(err))
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, fmt.Errorf("read the manifest: %w", err)
	}
	if m.Version == "" || m.URL == "" {
		return m, errors.New("the manifest has no version or no url")
	}
	if !strings.HasPrefix(m.URL, "https://") {
		return m, fmt.Errorf("the url of the manifest is not https: %.60s", m.URL)
	}
	return m, nil
}

func (c *Client) request(ctx context.Context, url string, client *http.Client) (*http.Response, error) {
	if !strings.HasPrefix(url, "https://") {
		return nil, fmt.Errorf("ask for %.60s: the device takes https only", url)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "ESP32HTTPClient")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Cache-Control", "no-cache")
	req.Header.Set("Accept-Encoding", "identity;q=1,chunked;q=0.1,*;q=0")
	req.Close = true // sends Connection: close
	return client.Do(req)
}

// download writes the image to the flash and returns how many bytes arrived.
func (c *Client) download(ctx context.Context, url string) (int64, error) {
	t := c.timer(ctx)
	defer t.end()
	resp, err := c.request(t.ctx, url, c.http(func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }))
	if err != nil {
		return 0, t.why(err)
	}
	defer resp.Body.Close()
	size := resp.ContentLength
	switch {
	case resp.StatusCode != http.StatusOK:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 200)) // for the message only
		return 0, fmt.Errorf("the server answered %s: %s", resp.Status, body)
	case size <= 0:
		return 0, fmt.Errorf("the answer has Content-Length %d, want that of the image", size)
	case c.cfg.FlashSize > 0 && size > c.cfg.FlashSize:
		return 0, fmt.Errorf("the image is %d bytes, the partition %d", size, c.cfg.FlashSize)
	}
	return c.flash(resp.Body, size, t)
}

// flash copies in the pieces of the device. Percent are told once each, those that
// end in 0 only, and the first and the last are 0 and 100.
func (c *Client) flash(body io.Reader, size int64, t *timer) (written int64, err error) {
	piece := make([]byte, 512)
	last := -1
	for written < size {
		n, err := body.Read(piece)
		if n > 0 {
			t.progress()
			if k, err := c.cfg.Flash.Write(piece[:n]); err != nil || k != n {
				return written, fmt.Errorf("write the flash at byte %d: %d of %d bytes: %w", written, k, n, err)
			}
			written += int64(n)
			if percent := int(written * 100 / size); percent != last && percent%10 == 0 {
				last = percent
				if c.cfg.Callbacks.OnOtaProgress != nil {
					c.cfg.Callbacks.OnOtaProgress(percent)
				}
			}
		}
		if written < size && err != nil {
			return written, fmt.Errorf("the download ended after %d of %d bytes: %w", written, size, t.why(err))
		}
	}
	return written, nil
}

var errTimeout = errors.New("hard timeout reached")

// timer ends a request when nothing has arrived for the timeout.
type timer struct {
	ctx   context.Context
	t     *time.Timer
	after time.Duration
	end   func()
}

func (c *Client) timer(ctx context.Context) *timer {
	ctx, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(c.cfg.Timeout, func() { cancel(fmt.Errorf("%w: no byte for %v", errTimeout, c.cfg.Timeout)) })
	return &timer{ctx: ctx, t: t, after: c.cfg.Timeout, end: func() { t.Stop(); cancel(nil) }}
}

func (t *timer) progress() { t.t.Reset(t.after) }

// why returns the reason for an error of a request that was ended.
func (t *timer) why(err error) error {
	if cause := context.Cause(t.ctx); cause != nil {
		return cause
	}
	return err
}
