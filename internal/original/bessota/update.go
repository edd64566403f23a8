package bessota

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Update looks for an update and installs it: check_for_update and begin_update of
// the document. That there is none is [NoUpdates]: the document has it as an error.
func (c *Client) Update(ctx context.Context) (Result, error) {
	info, err := c.check(ctx)
	if err != nil {
		return Result{Info: info}, err
	}
	if err := c.allowed(info); err != nil {
		return Result{Info: info}, err
	}
	n, err := c.download(ctx, info)
	if err != nil {
		return Result{Info: info, Size: n}, err
	}
	return Result{Info: info, Size: n, Updated: true}, nil
}

// check is the HEAD request.
func (c *Client) check(ctx context.Context) (Info, error) {
	t := newTimer(ctx, c.cfg.Timeout)
	defer t.end()
	resp, err := c.perform(t, http.MethodHead, nil)
	if err != nil {
		return Info{}, err
	}
	defer resp.Body.Close()
	h := resp.Header
	info := Info{
		Version: cut(h.Get("X-Firmware-Version"), MaxVersion), Notes: cut(h.Get("X-Firmware-Notes"), MaxNotes),
		Size: resp.ContentLength, MD5: cut(h.Get("X-Firmware-MD5"), 32), SHA256: cut(h.Get("X-Firmware-SHA256"), 64),
		Mandatory: cut(h.Get("X-Firmware-Mandatory"), maxFlag) == "true",
		Reboot:    cut(h.Get("X-Firmware-Reboot"), maxFlag) != "false",
		MinSoC:    c.cfg.MinSoC,
	}
	if text := cut(h.Get("X-Firmware-MinSoC"), maxFlag); text != "" {
		info.MinSoC = atoi(text)
	}
	switch info.Version {
	case c.cfg.Version:
		return info, fail(NoUpdates, "%s runs already", info.Version)
	case "":
		return info, fail(IncompatibleVersion, "the answer has no X-Firmware-Version")
	}
	return info, nil
}

// allowed is what the document asks before the first byte is written.
func (c *Client) allowed(info Info) error {
	if c.cfg.FlashSize > 0 && info.Size > c.cfg.FlashSize {
		return fail(InsufficientSpace, "the image is %d bytes, the partition %d", info.Size, c.cfg.FlashSize)
	}
	if soc := c.cfg.SoC(); soc < info.MinSoC {
		return fail(BatteryLow, "the battery is at %d %%, the update needs %d", soc, info.MinSoC)
	}
	if !c.cfg.Safe() {
		return fail(BMSUnsafe, "the BMS says that now is not safe")
	}
	return nil
}

// download is the GET request.
func (c *Client) download(ctx context.Context, info Info) (int64, error) {
	t := newTimer(ctx, c.cfg.Timeout)
	defer t.end()
	w := &flash{w: c.cfg.Flash, size: c.cfg.FlashSize, md5: md5.New(), sha256: sha256.New(), progress: t.progress}
	resp, err := c.perform(t, http.MethodGet, w)
	if err != nil {
		return w.n, err
	}
	defer resp.Body.Close()
	if err := w.take(resp.Body, t); err != nil {
		return w.n, err
	}
	if resp.ContentLength >= 0 && info.Size >= 0 && resp.ContentLength != info.Size {
		return w.n, fail(ValidationFailed, "got %d bytes, the check said %d", resp.ContentLength, info.Size)
	}
	for _, sum := range []struct {
		name, want string
		h          hash.Hash
	}{{"SHA-256", info.SHA256, w.sha256}, {"MD5", info.MD5, w.md5}} {
		if got := hex.EncodeToString(sum.h.Sum(nil)); sum.want != "" && got != sum.want {
			return w.n, fail(ValidationFailed, "the %s of what was written is %s, want %s", sum.name, got, sum.want)
		}
	}
	return w.n, nil
}

// perform sends a request, and again where a redirect or a challenge says so. The
// bodies of those answers go to the flash, if there is one, as in the original.
func (c *Client) perform(t *timer, method string, w *flash) (*http.Response, error) {
	at := c.cfg.URL
	for range maxRedirects + 1 {
		resp, err := c.send(t, method, at)
		if err != nil {
			return nil, err
		}
		next := at
		switch resp.StatusCode {
		case http.StatusOK:
			return resp, nil
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			if next, err = redirect(at, resp.Header.Get("Location")); err != nil {
				resp.Body.Close()
				return nil, err
			}
		case http.StatusUnauthorized:
			scheme, _, _ := strings.Cut(resp.Header.Get("WWW-Authenticate"), " ")
			if c.authorize || c.cfg.User == "" || !strings.EqualFold(scheme, "Basic") {
				return nil, refused(resp)
			}
			c.authorize = true
		default:
			return nil, refused(resp)
		}
		if w != nil && next != at {
			err = w.take(resp.Body, t)
		}
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		at = next
	}
	return nil, fail(Connectivity, "%s: more than %d redirects", c.cfg.URL, maxRedirects)
}

func redirect(from, to string) (string, error) {
	base, err := url.Parse(from)
	if err != nil {
		return "", fail(Internal, "%w", err)
	}
	if to == "" {
		return "", fail(Connectivity, "a redirect of %s says nowhere", from)
	}
	u, err := base.Parse(to)
	if err != nil {
		return "", fail(Connectivity, "a redirect of %s: %w", from, err)
	}
	return u.String(), nil
}

func (c *Client) send(t *timer, method, at string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(t.ctx, method, at, nil)
	if err != nil {
		return nil, fail(Internal, "%w", err)
	}
	if req.URL.Scheme != "https" {
		return nil, fail(Connectivity, "%s %.60s: want https", method, at)
	}
	if n := len(method + " " + req.URL.RequestURI() + " HTTP/1.1\r\n"); n > MaxRequestLine {
		return nil, fail(Connectivity, "%s %.60s...: the request line is %d bytes, there is room for %d", method, at, n, MaxRequestLine)
	}
	req.Header.Set("User-Agent", "ESP32 HTTP Client/1.0")
	if c.authorize {
		req.SetBasicAuth(c.cfg.User, c.cfg.Password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fail(Connectivity, "%w", t.why(err))
	}
	return resp, nil
}

// refused returns the error for a status that is not 200.
func refused(resp *http.Response) error {
	defer resp.Body.Close()
	code := Connectivity
	switch {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		code = Authentication
	case resp.StatusCode >= 500:
		code = Server
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 200)) // for the message only
	return fail(code, "%s %.60s: %s %s", resp.Request.Method, resp.Request.URL, resp.Status, body)
}

// flash is the partition, and the hashes of what is written to it.
type flash struct {
	w           io.Writer
	n, size     int64
	md5, sha256 hash.Hash
	progress    func()
}

func (f *flash) take(body io.Reader, t *timer) error {
	_, err := io.Copy(f, body)
	var e *Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	}
	return fail(Connectivity, "the download ended after %d bytes: %w", f.n, t.why(err))
}

func (f *flash) Write(p []byte) (int, error) {
	f.progress()
	if f.size > 0 && f.n+int64(len(p)) > f.size {
		return 0, fail(InsufficientSpace, "more than the %d bytes of the partition", f.size)
	}
	n, err := f.w.Write(p)
	f.n += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return n, fail(FlashWrite, "write the flash at byte %d: %w", f.n, err)
	}
	f.md5.Write(p)
	f.sha256.Write(p)
	return n, nil
}

// timer ends a request when nothing has arrived for a while.
type timer struct {
	ctx   context.Context
	t     *time.Timer
	after time.Duration
	end   func()
}

func newTimer(ctx context.Context, after time.Duration) *timer {
	ctx, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(after, func() { cancel(fmt.Errorf("no byte for %v", after)) })
	return &timer{ctx: ctx, t: t, after: after, end: func() { t.Stop(); cancel(nil) }}
}

func (t *timer) progress() { t.t.Reset(t.after) }

// why returns the reason for an error of a request that was ended.
func (t *timer) why(err error) error {
	if cause := context.Cause(t.ctx); cause != nil {
		return cause
	}
	return err
}

// atoi is that of C: leading digits, and 0 without any.
func atoi(s string) (n int) {
	s = strings.TrimLeft(s, " \t")
	negative := strings.HasPrefix(s, "-")
	s = strings.TrimPrefix(strings.TrimPrefix(s, "-"), "+")
	for _, d := range s {
		if d < '0' || d > '9' {
			break
		}
		n = n*10 + int(d-'0')
	}
	if negative {
		return -n
	}
	return n
}
