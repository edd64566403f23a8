package lambda

import (
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/bucket"
)

// admit is an error unless the request may speak for device. Of an open function
// everybody may.
func (f *Function) admit(r *request, device string) error {
	if err := ota.CheckName(device); err != nil {
		return fail(http.StatusBadRequest, "device: "+err.Error(), "")
	}
	r.note(slog.String("device", device))
	if f.cfg.Open {
		return nil
	}
	t, err := f.bearer(r)
	if err != nil {
		return err
	}
	if !t.SpeaksFor(device) {
		return fail(http.StatusForbidden, "this token does not speak for this device", "it was made for another device")
	}
	return nil
}

func (f *Function) bearer(r *request) (bucket.Token, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if token = strings.TrimSpace(token); !strings.EqualFold(scheme, "Bearer") || token == "" {
		return bucket.Token{}, &problem{status: http.StatusUnauthorized, text: "a token is missing",
			hint: "send the header Authorization: Bearer TOKEN", challenge: `Bearer realm="interlock"`}
	}
	t, err := f.token(r.Context(), token)
	if errors.Is(err, bucket.ErrNotFound) || errors.Is(err, bucket.ErrInvalid) {
		return bucket.Token{}, &problem{status: http.StatusUnauthorized, text: "the token is not known here",
			hint: "check that it is whole, and that it was made for this bucket", challenge: `Bearer realm="interlock", error="invalid_token"`}
	}
	if err != nil {
		return bucket.Token{}, fmt.Errorf("check the token: %w", err)
	}
	return t, nil
}

// started reads a device's request. The token is looked at before anything that
// the request says but its device.
func (f *Function) started(w http.ResponseWriter, r *request, req any, device *string) error {
	if f.cfg.Bucket == nil {
		return fail(http.StatusNotFound, "this function serves one firmware file and knows no devices", "")
	}
	if err := readJSON(w, r, req); err != nil {
		return err
	}
	return f.admit(r, *device)
}

func (f *Function) checkin(w http.ResponseWriter, r *request) error {
	var req api.CheckinRequest
	if err := f.started(w, r, &req, &req.Device); err != nil {
		return err
	}
	if err := bound(&req.Head); err != nil {
		return err
	}
	r.note(said(req.Head)...)
	rel, err := f.offered(r, req.Head)
	if err != nil {
		return err
	}
	poll := strconv.Itoa(int(pollInterval(f.cfg.PollInterval, req.Head).Seconds()))
	etag := `"none"`
	if rel != nil {
		etag = `"` + rel.Tag() + `"`
		r.note(slog.String("offered", clip(rel.Version, maxWord)))
	}
	h := w.Header()
	h.Set(api.HeaderPoll, poll)
	h.Set("ETag", etag)
	if sameETag(r.Header.Get("If-None-Match"), etag) {
		r.quiet = f.cfg.SkipIdle && idle(req.Head)
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	var out api.CheckinResponse
	if out.PollSeconds, err = strconv.Atoi(poll); err != nil {
		return err
	}
	if rel != nil {
		if out.Release, err = f.offer(r, rel); err != nil {
			return err
		}
	}
	return writeJSON(w, out)
}

// offered returns the release that a device is offered: its group's current one
// for its product, whatever it runs now, unless its hardware does not fit. Nil is
// none.
func (f *Function) offered(r *request, head api.Head) (*bucket.Release, error) {
	cur, err := f.current(r.Context(), r.group)
	switch {
	case errors.Is(err, bucket.ErrNotFound) && r.group == api.DefaultGroup:
		return nil, nil // nothing was published yet
	case errors.Is(err, bucket.ErrNotFound):
		return nil, fail(http.StatusNotFound, "there is no group "+r.group, "publish a release to it, or correct the device's URL")
	case err != nil:
		return nil, err
	}
	rel := cur.Releases[head.Product]
	if rel == nil {
		return nil, nil
	}
	e, err := f.envelope(r.Context(), rel)
	if err != nil {
		return nil, err
	}
	if len(e.hardware) > 0 && !slices.Contains(e.hardware, head.Hardware) {
		return nil, nil
	}
	return rel, nil
}

// offer returns what a device needs of a release. The URLs are for this answer.
func (f *Function) offer(r *request, rel *bucket.Release) (*api.ReleaseOffer, error) {
	e, err := f.envelope(r.Context(), rel)
	if err != nil {
		return nil, err
	}
	out := &api.ReleaseOffer{Digest: rel.Digest, Version: rel.Version, Signed: e.signed}
	for _, im := range rel.Images {
		u, err := f.presign(r.Context(), f.cfg.URLs, im.Key)
		if err != nil {
			return nil, err
		}
		out.Images = append(out.Images, api.ImageOffer{Component: im.Component, URL: u, Size: im.Size, SHA256: im.SHA256})
	}
	return out, nil
}

// idle reports whether a device has nothing to tell. Agents check in while they
// are checking, which is no news.
func idle(h api.Head) bool {
	return (h.Status == ota.StatusIdle || h.Status == ota.StatusChecking) && h.Code == 0 && h.Reason == "" && h.UpdateVersion == ""
}

// sameETag reports whether list, an If-None-Match, has etag. "*" has none: a
// device that does not say what it has gets everything.
func sameETag(list, etag string) bool {
	for tag := range strings.SplitSeq(list, ",") {
		if strings.TrimPrefix(strings.TrimSpace(tag), "W/") == etag {
			return true
		}
	}
	return false
}

// status has its line in the log, and is kept nowhere else.
func (f *Function) status(w http.ResponseWriter, r *request) error {
	var req api.StatusUpdate
	if err := f.started(w, r, &req, &req.Device); err != nil {
		return err
	}
	if err := bound(&req.Head); err != nil {
		return err
	}
	r.note(said(req.Head)...)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// reports answers 200 only once all that it names as stored is in the bucket. A
// part of them may be there after an error; they keep their ids when they are
// sent again, and are stored once.
func (f *Function) reports(w http.ResponseWriter, r *request) error {
	var req api.ReportsRequest
	if err := f.started(w, r, &req, &req.Device); err != nil {
		return err
	}
	if len(req.Reports) > api.MaxReports {
		return fail(http.StatusBadRequest, fmt.Sprintf("got %d reports, want at most %d", len(req.Reports), api.MaxReports), "")
	}
	if wait := f.cache.spend(req.Device, len(req.Reports)); wait > 0 {
		return &problem{status: http.StatusTooManyRequests, text: "this device has reported too much", hint: "keep the reports, and send them later",
			retryAfter: strconv.Itoa(int(math.Ceil(wait.Seconds())))}
	}
	r.note(slog.Any("reports", outcomes(req.Reports)))
	out, err := f.cfg.Bucket.AddReports(r.Context(), req.Device, req.Reports)
	if err != nil {
		return err
	}
	r.note(slog.Int("stored", len(out.Stored)), slog.Int("rejected", len(out.Rejected)))
	return writeJSON(w, out)
}

// outcomes is what of reports is worth a place in the log.
func outcomes(reports []ota.Report) []map[string]string {
	out := []map[string]string{}
	for _, rep := range reports {
		out = append(out, map[string]string{"id": clip(rep.ID, maxReason), "result": clip(string(rep.Result), maxWord),
			"from": clip(rep.From, maxWord), "version": clip(rep.Version, maxWord), "reason": clip(rep.Reason, maxReason)})
	}
	return out
}

// Bounds of what a device may say about itself, those of the update server: a
// long sentence is cut, a long name is refused.
const (
	maxWord    = 64  // bytes
	maxReason  = 500 // bytes
	maxSignals = 32
)

func bound(h *api.Head) error {
	if err := ota.CheckName(h.Product); err != nil {
		return fail(http.StatusBadRequest, "product: "+err.Error(), "")
	}
	if h.Hardware != "" {
		if err := ota.CheckName(h.Hardware); err != nil {
			return fail(http.StatusBadRequest, "hardware: "+err.Error(), "")
		}
	}
	for _, w := range []struct{ name, value string }{
		{"version", h.Version}, {"digest", h.Digest}, {"slot", h.Slot}, {"state", string(h.State)}, {"agent", h.Agent},
		{"update_version", h.UpdateVersion}, {"update_digest", h.UpdateDigest},
	} {
		if len(w.value) > maxWord {
			return fail(http.StatusBadRequest, fmt.Sprintf("%s is %d bytes, want at most %d", w.name, len(w.value), maxWord), "")
		}
	}
	h.Reason = clip(h.Reason, maxReason)
	h.Signals = h.Signals[:min(len(h.Signals), maxSignals)]
	return nil
}

// said is what of a head is worth a place in the log.
func said(h api.Head) []slog.Attr {
	out := []slog.Attr{slog.String("product", h.Product)}
	for _, w := range []struct{ name, value string }{
		{"hardware", h.Hardware}, {"agent", h.Agent}, {"version", h.Version}, {"slot", h.Slot}, {"device_status", h.Status.String()},
		{"state", string(h.State)}, {"reason", h.Reason}, {"update_version", h.UpdateVersion},
	} {
		if w.value != "" {
			out = append(out, slog.String(w.name, w.value))
		}
	}
	if h.Code != 0 {
		out = append(out, slog.Int("code", int(h.Code)))
	}
	if h.Total > 0 {
		out = append(out, slog.Int64("done", max(0, h.Done)), slog.Int64("total", h.Total))
	}
	var signals []slog.Attr
	for _, s := range h.Signals {
		signals = append(signals, slog.Float64(clip(s.Name, maxWord), s.Value))
	}
	return append(out, slog.GroupAttrs("signals", signals...))
}

// pollInterval is how long a device waits: base, give or take a fifth, always the
// same for one device, so that devices which started together do not stay
// together; a tenth of it, 5 s to 30 s, while an update is under way.
func pollInterval(base time.Duration, h api.Head) time.Duration {
	switch h.Status {
	case ota.StatusUpdateAvailable, ota.StatusDownloading, ota.StatusVerifying, ota.StatusReadyToApply, ota.StatusApplying,
		ota.StatusRebooting, ota.StatusTrial, ota.StatusRollingBack:
		base = min(base, max(5*time.Second, min(30*time.Second, base/10)))
	}
	hash := fnv.New64a()
	hash.Write([]byte(h.Device))
	x := hash.Sum64() * 0x9e3779b97f4a7c15 // FNV's high bits hardly depend on the last characters, where ids differ
	spread := float64(x>>11) / (1 << 53)   // 0 to 1
	return max(time.Second, time.Duration(float64(base)*(0.8+0.4*spread)).Round(time.Second))
}
