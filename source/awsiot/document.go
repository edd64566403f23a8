package awsiot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/interlock-energy/ota"
)

// maxDocument is the largest job document that is read, in bytes; AWS's limit is 32 KiB
// (API reference, JobExecution), and addresses that the service fills in come on top.
const maxDocument = 96 << 10

const maxURL = 8 << 10 // bytes

// placeholder begins what the service replaces by a presigned address before the device
// sees it (AWS IoT Developer Guide, "Presigned URLs").
const placeholder = "${aws:iot:"

// document is what a job says. One of bundle, manifest and afr is set:
//
//	{"interlock": {"bundle": "https://..."}}
//	{"interlock": {"manifest": "https://...", "images": {"controller": "https://..."}}}
//	{"afr_ota": {...}}, see parseAFR
//
// The first two may say product, version and digest for people; what they say must then
// be so. Other names are ignored.
type document struct {
	bundle   string            // URL of a bundle file
	manifest string            // URL of an envelope
	images   map[string]string // component: URL, with manifest
	afr      *afrJob

	product string
	version string
	digest  string
}

// parseDocument reads a job document. Errors are for the operator who made the job, and
// final: it will never say anything else.
func parseDocument(j json.RawMessage, allowPlain bool) (*document, error) {
	if len(j) == 0 {
		return nil, errors.New("the job has no document")
	}
	if len(j) > maxDocument {
		return nil, fmt.Errorf("the job document has %d bytes, want at most %d", len(j), maxDocument)
	}
	if isAFR(j) {
		afr, err := parseAFR(j)
		if err != nil {
			return nil, err
		}
		if n := len(afr.Files); n != 1 {
			return nil, fmt.Errorf("the job has %d files, and this device takes one; put all images into one bundle", n)
		}
		return &document{afr: afr}, nil
	}
	var top struct {
		Interlock json.RawMessage `json:"interlock"`
	}
	if err := json.Unmarshal(j, &top); err != nil {
		return nil, fmt.Errorf("the job document cannot be read: %s", clean(err.Error(), 200))
	}
	if len(top.Interlock) == 0 || bytes.Equal(top.Interlock, []byte("null")) {
		return nil, errors.New(`the job document says nothing to this device; want {"interlock":{"bundle":"https://..."}}`)
	}
	var d struct {
		Bundle   string            `json:"bundle"`
		Manifest string            `json:"manifest"`
		Images   map[string]string `json:"images"`
		Product  string            `json:"product"`
		Version  string            `json:"version"`
		Digest   string            `json:"digest"`
	}
	if err := json.Unmarshal(top.Interlock, &d); err != nil {
		return nil, fmt.Errorf(`"interlock" in the job document cannot be read: %s`, clean(err.Error(), 200))
	}
	doc := &document{bundle: d.Bundle, manifest: d.Manifest, images: d.Images, product: d.Product, version: d.Version, digest: d.Digest}
	return doc, doc.check(allowPlain)
}

func (d *document) check(allowPlain bool) error {
	switch {
	case d.bundle == "" && d.manifest == "":
		return errors.New(`"interlock" in the job document has neither bundle nor manifest; want the address of one`)
	case d.bundle != "" && (d.manifest != "" || len(d.images) > 0):
		return errors.New(`"interlock" in the job document has a bundle and a manifest or images; want one of the two forms`)
	case d.bundle != "":
		return checkURL("bundle", d.bundle, allowPlain)
	case len(d.images) == 0 || len(d.images) > ota.MaxImages:
		return fmt.Errorf(`"interlock" in the job document has a manifest and %d images, want 1 to %d`, len(d.images), ota.MaxImages)
	}
	if err := checkURL("manifest", d.manifest, allowPlain); err != nil {
		return err
	}
	for component, u := range d.images {
		if err := checkURL("images, "+clean(component, 64), u, allowPlain); err != nil {
			return err
		}
	}
	return nil
}

// checkURL reports whether u is an address to read from. Errors hold no query, which may be a secret.
func checkURL(what, u string, allowPlain bool) error {
	if i := strings.Index(u, placeholder); i >= 0 {
		return fmt.Errorf("%s: the service did not fill in %s; does the job have a presigned-URL configuration with a role that may read the object?",
			what, clean(u[i:], 120))
	}
	if len(u) > maxURL {
		return fmt.Errorf("%s: the address has %d bytes, want at most %d", what, len(u), maxURL)
	}
	shown, _, _ := strings.Cut(u, "?")
	p, err := url.Parse(u)
	if err != nil || p.Host == "" || p.User != nil {
		return fmt.Errorf("%s: %q is no address with a host, and without user and password", what, clean(shown, 120))
	}
	if p.Scheme != "https" && !(p.Scheme == "http" && allowPlain) {
		return fmt.Errorf("%s: %q does not begin with https://", what, clean(shown, 120))
	}
	return nil
}

// agrees reports whether what the document says for people is what the manifest says.
func (d *document) agrees(m *ota.Manifest) error {
	for _, f := range []struct{ name, says, is string }{
		{"product", d.product, m.Product}, {"version", d.version, m.Version}, {"digest", d.digest, m.Digest}} {
		if f.says != "" && f.says != f.is {
			return fmt.Errorf("the job document says %s %q, and the release that it names has %q", f.name, clean(f.says, 80), f.is)
		}
	}
	if d.manifest == "" {
		return nil
	}
	for i := range m.Images {
		if c := m.Images[i].Component; d.images[c] == "" {
			return fmt.Errorf("the release has an image for %s, and the job document says no address for it", c)
		}
	}
	return nil
}
