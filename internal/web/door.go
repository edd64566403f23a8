package web

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/door"
	"github.com/interlock-energy/ota/internal/fleet"
)

// current returns the release that a front door is about: of the group in the
// path, for ?product=, which is needed only if the group has several.
func (s *Server) current(r *http.Request) (*fleet.Release, error) {
	rel, err := s.fleet.Current(cmp.Or(r.PathValue("group"), api.DefaultGroup), r.URL.Query().Get("product"))
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return nil, door.Missing("")
	case errors.Is(err, fleet.ErrConflict):
		return nil, fail(http.StatusBadRequest, "which product?", err.Error())
	}
	return rel, err
}

// firmwareDocument answers like the Lambda of the document aws-s3-ota.md.
func (s *Server) firmwareDocument(w http.ResponseWriter, r *http.Request) error {
	rel, err := s.current(r)
	if err != nil {
		return err
	}
	im, err := rel.Image(r.URL.Query().Get("component"))
	if err != nil {
		return door.Missing(err.Error())
	}
	base := s.cfg.PublicURL
	if base == "" && r.TLS != nil {
		base = "https://" + r.Host
	}
	if !strings.HasPrefix(base, "https://") {
		return door.Fail("no https URL to give out", "these devices take https only: set the server's public URL to https://...")
	}
	d := door.Document{Version: rel.Manifest.Version, URL: base + "/" + s.downloadPath(rel.Digest(), im.Component, s.expiry())}
	if err := d.Check(door.MaxURL); err != nil {
		return err
	}
	door.SetHeaders(w.Header())
	_, err = w.Write(d.JSON())
	return ignoreGone(err)
}

// firmware serves the raw image with the headers of bess-ota-manager.md.
func (s *Server) firmware(w http.ResponseWriter, r *http.Request) error {
	rel, err := s.current(r)
	if err != nil {
		return err
	}
	im, err := rel.Image(r.URL.Query().Get("component"))
	if err != nil {
		return door.Missing(err.Error())
	}
	describe(w, rel, im.MD5, im.SHA256.String())
	return s.sendFile(w, r, rel, im.Component)
}

// bundleFile serves the bundle, for agents without an account and for sticks.
func (s *Server) bundleFile(w http.ResponseWriter, r *http.Request) error {
	rel, err := s.current(r)
	if err != nil {
		return err
	}
	describe(w, rel, rel.Bundle.MD5, rel.Bundle.SHA256.String())
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s-%s.bundle"`, rel.Manifest.Product, rel.Manifest.Version))
	return s.sendFile(w, r, rel, "")
}

// describe sets the headers of bess-ota-manager.md.
func describe(w http.ResponseWriter, rel *fleet.Release, md5, sha256 string) {
	m := rel.Manifest
	door.Firmware{Version: m.Version, MD5: md5, SHA256: sha256, Notes: m.Notes, Mandatory: m.Mandatory, Reboot: !m.NoReboot,
		MinSoC: m.Limits.MinSoC, Published: rel.Published}.SetHeaders(w.Header())
}

// writeDoorError answers in the form of the document aws-s3-ota.md.
func writeDoorError(w http.ResponseWriter, r *http.Request, e *httpError) {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	e.head(w, "application/json")
	w.Write((&door.Error{Text: e.text, Details: e.hint}).JSON())
}
