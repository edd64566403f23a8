package web

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/fleet"
)

// offers keeps the JSON of what is offered: it is the same for all devices of a
// group until its URLs change.
type offers struct {
	mu       sync.Mutex
	byDigest map[string]offer
}

type offer struct {
	release *fleet.Release // a release that was signed again is another value
	expires time.Time      // of its URLs
	until   time.Time      // when it is made again, if that is earlier than with new URLs
	json    []byte
}

const (
	maxOffers = 64               // in memory, of releases that nobody asks for any more
	askTime   = 5 * time.Second  // for the store to say that it has an image
	askPause  = 30 * time.Second // before it is asked again after it did not
)

func (s *Server) offer(ctx context.Context, rel *fleet.Release) ([]byte, error) {
	expires, now := s.expiry(), s.cfg.Now()
	s.offers.mu.Lock()
	defer s.offers.mu.Unlock()
	if o, ok := s.offers.byDigest[rel.Digest()]; ok && o.release == rel && o.expires.Equal(expires) && now.Before(o.until) {
		return o.json, nil
	}
	o := offer{release: rel, expires: expires, until: expires}
	out := api.ReleaseOffer{Digest: rel.Digest(), Version: rel.Manifest.Version, Signed: rel.Envelope}
	direct, err := s.imageURLs(ctx, rel, expires.Sub(now))
	if err != nil {
		s.cfg.Log.Warn("devices are not sent to the store, but get the images from here", "version", rel.Manifest.Version, "error", err)
		if !errors.Is(err, blob.ErrNotFound) { // which stays so until it is published again
			o.until = now.Add(askPause)
		}
	}
	for i, im := range rel.Images {
		// Below the server's URL as the device knows it, see api.ImageOffer.
		url := "/" + s.downloadPath(rel.Digest(), im.Component, expires)
		if direct != nil {
			url = direct[i]
		}
		out.Images = append(out.Images, api.ImageOffer{Component: im.Component, URL: url, Size: im.Size, SHA256: im.SHA256})
	}
	if o.json, err = json.Marshal(out); err != nil {
		return nil, err
	}
	if len(s.offers.byDigest) >= maxOffers {
		clear(s.offers.byDigest)
	}
	s.offers.byDigest[rel.Digest()] = o
	return o.json, nil
}

// imageURLs returns where in the store the images are, or nil if devices are to
// ask this server, always or because the store has not got them.
func (s *Server) imageURLs(ctx context.Context, rel *fleet.Release, lifetime time.Duration) ([]string, error) {
	if !s.cfg.Direct {
		return nil, nil
	}
	// The answer is for all devices, whether or not this one waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
	defer cancel()
	var urls []string
	for i := range rel.Images {
		u, err := s.fleet.ImageURL(ctx, &rel.Images[i], lifetime)
		if errors.Is(err, blob.ErrNoURL) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		urls = append(urls, u)
	}
	return urls, nil
}

func (s *Server) checkin(w http.ResponseWriter, r *http.Request, id fleet.Identity) error {
	var req api.CheckinRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if err := speaksFor(id, req.Device); err != nil {
		return err
	}
	a, err := s.fleet.Checkin(r.Context(), req)
	if err != nil {
		return err
	}
	poll := strconv.Itoa(int(a.Poll.Seconds()))
	etag := `"none"`
	if a.Release != nil {
		etag = `"` + a.Release.Tag + `"`
	}
	h := w.Header()
	h.Set(api.HeaderPoll, poll)
	h.Set("ETag", etag)
	if sameETag(r.Header.Get("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	b := append(make([]byte, 0, 64), `{"poll_seconds":`+poll...)
	if a.Release != nil {
		o, err := s.offer(r.Context(), a.Release)
		if err != nil {
			return err
		}
		b = append(append(b, `,"release":`...), o...)
	}
	h.Set("Content-Type", "application/json")
	// The manifest of a large image is some hundred kilobytes, minutes on a modem.
	_, err = (&slowWriter{w, http.NewResponseController(w)}).Write(append(b, '}', '\n'))
	return ignoreGone(err)
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

func (s *Server) status(w http.ResponseWriter, r *http.Request, id fleet.Identity) error {
	var req api.StatusUpdate
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if err := speaksFor(id, req.Device); err != nil {
		return err
	}
	if err := s.fleet.Status(r.Context(), req.Head); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) reports(w http.ResponseWriter, r *http.Request, id fleet.Identity) error {
	var req api.ReportsRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if err := speaksFor(id, req.Device); err != nil {
		return err
	}
	out, err := s.fleet.Reports(r.Context(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}
