package web

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/fleet"
)

// What the clients of the document aws-s3-ota.md have room for, without the
// byte that ends a C string.
const (
	maxDoorURL     = 511
	maxDoorVersion = 31
)

const maxNotesHeader = 200 // bytes; the other document's clients have room for 255

// current returns the release that a front door is about: of the group in the
// path, for ?product=, which is needed only if the group has several.
func (s *Server) current(r *http.Request) (*fleet.Release, error) {
	rel, err := s.fleet.Current(cmp.Or(r.PathValue("group"), api.DefaultGroup), r.URL.Query().Get("product"))
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return nil, fail(http.StatusNotFound, "Firmware file not found", "") // the words of the document
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
		return fail(http.StatusNotFound, "Firmware file not found", err.Error())
	}
	base := s.cfg.PublicURL
	if base == "" && r.TLS != nil {
		base = "https://" + r.Host
	}
	if len(base) < 8 || base[:8] != "https://" {
		return fail(http.StatusInternalServerError, "no https URL to give out", "these devices take https only: set the server's public URL to https://...")
	}
	if v := rel.Manifest.Version; len(v) > maxDoorVersion {
		return fail(http.StatusInternalServerError, "version too long for these devices",
			fmt.Sprintf("version %s is %d characters, these devices take %d", v, len(v), maxDoorVersion))
	}
	u := base + "/" + s.downloadPath(rel.Digest(), im.Component, s.expiry())
	if len(u) > maxDoorURL {
		return fail(http.StatusInternalServerError, "URL too long for these devices",
			fmt.Sprintf("the URL is %d characters, these devices take %d", len(u), maxDoorURL))
	}
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Cache-Control", "no-cache")
	return writeJSON(w, http.StatusOK, struct {
		Version string `json:"version"`
		URL     string `json:"url"`
	}{rel.Manifest.Version, u})
}

// firmware serves the raw image with the headers of bess-ota-manager.md.
func (s *Server) firmware(w http.ResponseWriter, r *http.Request) error {
	rel, err := s.current(r)
	if err != nil {
		return err
	}
	im, err := rel.Image(r.URL.Query().Get("component"))
	if err != nil {
		return fail(http.StatusNotFound, "Firmware file not found", err.Error())
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
	m, h := rel.Manifest, w.Header()
	h.Set(api.HeaderFirmwareVersion, m.Version)
	h.Set("X-Firmware-MD5", md5)
	h.Set("X-Firmware-SHA256", sha256)
	if notes := oneLine(m.Notes, maxNotesHeader); notes != "" {
		h.Set("X-Firmware-Notes", notes)
	}
	h.Set("X-Firmware-Mandatory", strconv.FormatBool(m.Mandatory))
	h.Set("X-Firmware-Reboot", strconv.FormatBool(!m.NoReboot))
	if m.Limits.MinSoC != nil {
		h.Set("X-Firmware-MinSoC", strconv.FormatFloat(*m.Limits.MinSoC, 'f', -1, 64))
	}
	h.Set("X-Firmware-Published", rel.Published.UTC().Format(time.RFC3339))
	h.Set("Cache-Control", "no-cache")
}
