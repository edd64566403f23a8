package web

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota/api"
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
	expires time.Time
	json    []byte
}

// maxOffers bounds the memory for offers of releases that nobody asks for any more.
const maxOffers = 64

func (s *Server) offer(rel *fleet.Release) ([]byte, error) {
	expires := s.expiry()
	s.offers.mu.Lock()
	defer s.offers.mu.Unlock()
	if o, ok := s.offers.byDigest[rel.Digest()]; ok && o.release == rel && o.expires.Equal(expires) {
		return o.json, nil
	}
	out := api.ReleaseOffer{Digest: rel.Digest(), Version: rel.Manifest.Version, Signed: rel.Envelope}
	for _, im := range rel.Images {
		// Below the server's URL as the device knows it, see api.ImageOffer.
		url := "/" + s.downloadPath(rel.Digest(), im.Component, expires)
		out.Images = append(out.Images, api.ImageOffer{Component: im.Component, URL: url, Size: im.Size, SHA256: im.SHA256})
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	if len(s.offers.byDigest) >= maxOffers {
		clear(s.offers.byDigest)
	}
	s.offers.byDigest[rel.Digest()] = offer{rel, expires, b}
	return b, nil
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
		o, err := s.offer(a.Release)
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
