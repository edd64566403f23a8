// Package door has the words of the two documents that devices in the field
// were built from, aws-s3-ota.md and bess-ota-manager.md: the JSON of the one,
// the headers of the other, their errors and their limits. The update server and
// the Lambda both answer with it, so that a device cannot tell them apart.
//
// It is pure: values in, headers and bytes out. Names in it never change; devices
// have them in flash.
package door

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota/api"
)

// What the clients of aws-s3-ota.md have room for: characters, without the byte
// that ends a C string. The original has char version[32] and char url[512].
const (
	MaxURL     = 511
	MaxVersion = 31
)

// MaxNotes bounds the header with the notes, in bytes. The clients of
// bess-ota-manager.md have room for 255.
const MaxNotes = 200

// Lifetime is how long a URL in a [Document] works, by aws-s3-ota.md.
const Lifetime = 3600 * time.Second

// NotFound is the error of aws-s3-ota.md for a firmware that is not there.
const NotFound = "Firmware file not found"

// Document is what aws-s3-ota.md calls the manifest.
type Document struct {
	Version string `json:"version"`
	URL     string `json:"url"`
}

// CheckVersion is an [*Error] unless these devices can hold version.
func CheckVersion(version string) error {
	switch {
	case version == "":
		return Fail("no version to give out", "these devices refuse an empty version")
	case len(version) > MaxVersion:
		return Fail("version too long for these devices",
			fmt.Sprintf("version %s is %d characters, these devices take %d", clip(version, 100), len(version), MaxVersion))
	}
	return nil
}

// Check is an [*Error] unless these devices can hold d and follow its URL.
// MaxURL is in characters; 0 means that the length does not matter.
func (d Document) Check(maxURL int) error {
	if err := CheckVersion(d.Version); err != nil {
		return err
	}
	if rest, ok := strings.CutPrefix(d.URL, "https://"); !ok || rest == "" {
		return Fail("no https URL to give out", "these devices take https only")
	}
	if maxURL > 0 && len(d.URL) > maxURL {
		return Fail("URL too long for these devices", fmt.Sprintf("the URL is %d characters, these devices take %d", len(d.URL), maxURL))
	}
	return nil
}

// JSON returns the document. The characters &, < and > stay as they are: the
// clients were tested with the output of a JSON library that does not escape
// them, and six characters for a & would not fit into their buffers.
func (d Document) JSON() []byte { return encode(d) }

// Error is an answer in the form of aws-s3-ota.md.
type Error struct {
	Status  int    `json:"-"` // of HTTP
	Text    string `json:"error"`
	Details string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Text
	}
	return e.Text + ": " + e.Details
}

// JSON returns the body of the answer.
func (e *Error) JSON() []byte { return encode(e) }

// Fail returns a 500.
func Fail(text, details string) *Error {
	return &Error{http.StatusInternalServerError, text, details}
}

// Missing returns the 404 of the document.
func Missing(details string) *Error { return &Error{http.StatusNotFound, NotFound, details} }

func encode(v any) []byte {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return []byte(`{"error":"internal error"}` + "\n") // strings alone do not get here
	}
	return []byte(b.String())
}

// SetHeaders sets the headers of a [Document] and of an [Error].
func SetHeaders(h http.Header) {
	h.Set("Content-Type", "application/json")
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Cache-Control", "no-cache")
}

// Firmware is what the headers of bess-ota-manager.md say about an image.
type Firmware struct {
	Version     string
	MD5, SHA256 string // hexadecimal; empty: not known
	Notes       string // may have several lines; the header has one
	Mandatory   bool
	Reboot      bool     // needs a restart; devices assume true without the header
	MinSoC      *float64 // percent; nil: the device's own limit
	Published   time.Time

	// Size is said in a header of ours, in bytes, by who cannot promise that the
	// Content-Length of a HEAD arrives: a REST API renames it. 0: not said.
	Size int64
}

// SetHeaders sets the headers for f. Nothing in f can make a second header.
func (f Firmware) SetHeaders(h http.Header) {
	set := func(name, value string) {
		if value != "" {
			h.Set(name, value)
		}
	}
	set(api.HeaderFirmwareVersion, oneLine(f.Version, MaxNotes))
	set("X-Firmware-MD5", oneLine(f.MD5, MaxNotes))
	set("X-Firmware-SHA256", oneLine(f.SHA256, MaxNotes))
	set("X-Firmware-Notes", oneLine(f.Notes, MaxNotes))
	set("X-Firmware-Mandatory", strconv.FormatBool(f.Mandatory))
	set("X-Firmware-Reboot", strconv.FormatBool(f.Reboot))
	if f.MinSoC != nil {
		// The controllers read it with atoi, which would make a limit of 42.5 one of 42.
		// What is no percentage, and what is not even a number, becomes the strictest.
		percent := 100
		if v := math.Ceil(*f.MinSoC); v >= 0 && v <= 100 {
			percent = int(v)
		}
		set("X-Firmware-MinSoC", strconv.Itoa(percent))
	}
	if !f.Published.IsZero() {
		set("X-Firmware-Published", f.Published.UTC().Format(time.RFC3339))
	}
	if f.Size > 0 {
		set("X-Firmware-Size", strconv.FormatInt(f.Size, 10))
	}
	h.Set("Cache-Control", "no-cache")
}

// oneLine makes text fit for a header: no control characters, and so no second
// header, at most n bytes.
func oneLine(text string, n int) string {
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"), func(c rune) bool {
		return c <= ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 || c == 0x2028 || c == 0x2029
	}), " ")
	return clip(text, n)
}

// clip returns at most n bytes of s, as valid UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}
