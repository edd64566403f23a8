package web

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/fleet"
)

// flag reads a query parameter that is true or false.
func flag(q url.Values, name string) (bool, error) {
	switch v := q.Get(name); v {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, fail(http.StatusBadRequest, fmt.Sprintf("%s is %.20q, want true or false", name, v), "")
	}
}

func (s *Server) publish(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	o := fleet.PublishOptions{Group: q.Get(api.QueryGroup)}
	var err error
	if o.Hold, err = flag(q, api.QueryHold); err != nil {
		return err
	}
	if o.Replace, err = flag(q, api.QueryReplace); err != nil {
		return err
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/") {
		return fail(http.StatusUnsupportedMediaType, "the body is a form, want the bundle file itself", "with curl: --data-binary @FILE or -T FILE, not -F")
	}
	if r.ContentLength > s.cfg.MaxUpload {
		return &http.MaxBytesError{Limit: s.cfg.MaxUpload} // before a byte of it is sent
	}
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	default:
		return &httpError{status: http.StatusServiceUnavailable, text: fmt.Sprintf("%d uploads are under way, which is the limit", s.cfg.Uploads),
			hint: "try again in a minute", retryAfter: "60"}
	}
	c := http.NewResponseController(w)
	body := &slowReader{http.MaxBytesReader(w, r.Body, s.cfg.MaxUpload), c}
	out, err := s.fleet.Publish(r.Context(), body, o)
	_ = c.SetWriteDeadline(time.Now().Add(requestTime)) // the old one may have passed during the upload
	if errors.Is(err, blob.ErrUnavailable) {
		return &httpError{status: http.StatusServiceUnavailable, text: err.Error(), retryAfter: "30"} // the words are for the operator
	}
	if err != nil {
		return err
	}
	s.cfg.Log.Info("release published", "product", out.Release.Product, "version", out.Release.Version, "digest", out.Release.Digest,
		"known", out.Known, "groups", out.Release.Groups, "signatures_checked", out.Release.SignaturesChecked)
	if out.Known {
		return writeJSON(w, http.StatusOK, out)
	}
	return writeJSON(w, http.StatusCreated, out)
}

func (s *Server) listReleases(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, api.ReleasesResponse{Releases: s.fleet.Releases()})
}

// listDevices understands group, product, q (part of the id), and after and
// limit for paging: the header Link leads to the next page.
func (s *Server) listDevices(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	query := fleet.Query{Group: q.Get("group"), Product: q.Get("product"), Search: q.Get("q"), After: q.Get("after")}
	if text := q.Get("limit"); text != "" {
		var err error
		if query.Limit, err = strconv.Atoi(text); err != nil || query.Limit < 1 {
			return fail(http.StatusBadRequest, fmt.Sprintf("limit is %.20q, want a number from 1", text), "")
		}
	}
	list, more := s.fleet.Devices(query)
	if more {
		q.Set("after", list[len(list)-1].Device)
		w.Header().Set("Link", "<"+api.PathDevices+"?"+q.Encode()+`>; rel="next"`)
	}
	return writeJSON(w, http.StatusOK, api.DevicesResponse{Devices: list})
}

func (s *Server) showDevice(w http.ResponseWriter, r *http.Request) error {
	d, err := s.fleet.Device(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, d)
}

func (s *Server) moveDevice(w http.ResponseWriter, r *http.Request) error {
	var req api.DeviceChange
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if err := s.fleet.Move(r.Context(), r.PathValue("id"), req.Group); err != nil {
		return err
	}
	s.cfg.Log.Info("device moved", "device", r.PathValue("id"), "group", req.Group)
	return s.showDevice(w, r)
}

func (s *Server) listGroups(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, api.GroupsResponse{Groups: s.fleet.Groups()})
}

func (s *Server) showGroup(w http.ResponseWriter, r *http.Request) error {
	g, err := s.fleet.Group(r.PathValue("g"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, g)
}

// changeGroup promotes or withdraws. With neither it makes the group, if there
// is none with this name.
func (s *Server) changeGroup(w http.ResponseWriter, r *http.Request) error {
	var req api.GroupChange
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	name := r.PathValue("g")
	var err error
	switch {
	case req.Promote != "" && req.Withdraw != "":
		return fail(http.StatusBadRequest, "promote and withdraw are both set", "do one after the other")
	case req.Promote != "":
		err = s.fleet.Promote(r.Context(), name, req.Promote)
	case req.Withdraw != "":
		err = s.fleet.Withdraw(r.Context(), name, req.Withdraw)
	default:
		err = s.fleet.CreateGroup(r.Context(), name)
	}
	if err != nil {
		return err
	}
	s.cfg.Log.Info("group changed", "group", name, "promote", req.Promote, "withdraw", req.Withdraw)
	return s.showGroup(w, r)
}

func (s *Server) makeToken(w http.ResponseWriter, r *http.Request) error {
	var req api.TokenRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if req.Device != "" {
		if err := ota.CheckName(req.Device); err != nil {
			return fail(http.StatusBadRequest, "device: "+err.Error(), "")
		}
	}
	token, err := s.fleet.NewToken(r.Context(), fleet.Agent, req.Device, req.Note)
	if err != nil {
		return err
	}
	s.cfg.Log.Info("token made", "device", req.Device, "note", req.Note)
	return writeJSON(w, http.StatusCreated, api.TokenResponse{Token: token, Device: req.Device})
}

// listTokens answers {"tokens": [...]}, each without its secret.
func (s *Server) listTokens(w http.ResponseWriter, r *http.Request) error {
	list, err := s.fleet.Tokens(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Tokens []fleet.Token `json:"tokens"`
	}{list})
}

func (s *Server) revokeToken(w http.ResponseWriter, r *http.Request) error {
	if err := s.fleet.Revoke(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	s.cfg.Log.Info("token revoked", "id", r.PathValue("id"))
	w.WriteHeader(http.StatusNoContent)
	return nil
}
