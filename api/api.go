// Package api is what device and server say to each other: paths, headers and
// JSON bodies, and nothing else. Both sides import it, so neither can drift.
//
// A device makes one request per check, [PathCheckin], and gets the signed
// manifest and the addresses of the images with the answer. Live progress goes
// to [PathStatus] and may be lost; outcomes go to [PathReports] and may not.
// People and programs use the operator's paths.
//
// Every request but a download carries "Authorization: Bearer TOKEN". A
// download's URL is opaque to the device, is all that is needed to fetch it, and
// may stop working at any time; a new check-in gives a new one.
//
// Every error is JSON, an [Error], whatever the status.
//
// Names in JSON never change and are never used again for something else.
// Receivers ignore names that they do not know: what must not be ignored is in
// the signed manifest, not here.
package api

import (
	"time"

	"github.com/interlock-energy/ota"
)

// Paths, in the form of a [net/http.ServeMux] pattern without the method.
const (
	PathCheckin = "/api/v1/checkin" // POST CheckinRequest: 200 CheckinResponse, or 304
	PathStatus  = "/api/v1/status"  // POST StatusUpdate: 204
	PathReports = "/api/v1/reports" // POST ReportsRequest: 200 ReportsResponse

	// PathDownload is where the server's own download URLs begin.
	PathDownload = "/d/" // GET, HEAD: bytes, with Range and If-Match

	PathReleases = "/api/v1/releases"     // POST a bundle file (see Query...): 201, or 200 if known, PublishResponse; GET: ReleasesResponse
	PathDevices  = "/api/v1/devices"      // GET: DevicesResponse
	PathDevice   = "/api/v1/devices/{id}" // GET: DeviceDetail; PUT DeviceChange: DeviceDetail
	PathGroups   = "/api/v1/groups"       // GET: GroupsResponse
	PathGroup    = "/api/v1/groups/{g}"   // GET: Group; PUT GroupChange: Group
	PathTokens   = "/api/v1/tokens"       // POST TokenRequest: 201 TokenResponse
	PathEvents   = "/api/v1/events"       // GET: server-sent events, each an Event
)

// Query parameters of a POST to [PathReleases].
const (
	QueryGroup   = "group"   // make it the current release of this group; default: DefaultGroup
	QueryHold    = "hold"    // "true": store it only
	QueryReplace = "replace" // "true": it may take the place of another release with the same product and version
)

// DefaultGroup is where devices are until an operator says otherwise.
const DefaultGroup = "default"

// Headers.
const (
	// HeaderPoll is on every answer to a check-in, also 304: the seconds, a
	// decimal integer, until the server wants the next one. It is the value of
	// CheckinResponse.PollSeconds. Absent or 0 means that the server has no wish.
	HeaderPoll = "X-Poll-Seconds"

	// HeaderFirmwareVersion is on the answer to a HEAD or GET of firmware or of a
	// bundle: the version. It comes unsigned, so all that a device may conclude
	// from it is that there is nothing new.
	HeaderFirmwareVersion = "X-Firmware-Version"
)

// Greatest sizes of bodies in bytes. A server refuses more with 413, a device
// stops reading.
const (
	MaxRequestSize  = 256 << 10
	MaxResponseSize = 24 << 20 // an envelope of ota.MaxManifestSize in base64, and room for URLs
	MaxErrorSize    = 8 << 10
)

// MaxReports is how many reports one ReportsRequest may carry.
const MaxReports = 64

// Error is the body of every answer with a status from 400 on.
type Error struct {
	Error string `json:"error"`          // what was wrong, one sentence
	Hint  string `json:"hint,omitempty"` // what to do about it
}

// Head is what a device says about itself. Device and Product are required,
// the rest as far as it is known. Everything in it is the device's word: the
// server escapes it and bounds it.
type Head struct {
	Device   string `json:"device"` // unique; see ota.CheckName
	Product  string `json:"product"`
	Hardware string `json:"hardware,omitempty"`
	Agent    string `json:"agent,omitempty"` // version of the agent itself

	Version         string `json:"version,omitempty"`          // that runs now
	Digest          string `json:"digest,omitempty"`           // of the release that runs now; empty if not installed by the agent
	SecurityVersion uint64 `json:"security_version,omitempty"` // the highest that was marked good
	Slot            string `json:"slot,omitempty"`             // that runs now

	Status ota.Status    `json:"status"`
	State  ota.State     `json:"state,omitempty"`
	Code   ota.ErrorCode `json:"code,omitempty"`   // why it waits or failed
	Reason string        `json:"reason,omitempty"` // the same for people

	UpdateVersion string       `json:"update_version,omitempty"` // of the release in hand
	UpdateDigest  string       `json:"update_digest,omitempty"`
	Done          int64        `json:"done,omitempty"`    // bytes of it, verified and written
	Total         int64        `json:"total,omitempty"`   // bytes of all its images
	Course        ota.Course   `json:"course,omitzero"`   // how it goes, beyond its bytes
	Signals       []ota.Signal `json:"signals,omitempty"` // what the gate saw last
	Causes        []ota.Cause  `json:"causes,omitempty"`  // what it refused for
}

// CheckinRequest asks for the release meant for this device. With If-None-Match
// and the ETag of an earlier answer, 304 means that the same release is still
// offered. (HTTP defines 304 for GET only; here it is part of the protocol.)
type CheckinRequest struct {
	Head
	Skipped []ota.Skipped `json:"skipped,omitempty"` // releases that the device does not take again
}

// CheckinResponse is the answer. Its ETag is strong and names what is offered,
// signatures included, or that nothing is; it does not depend on URLs, which may
// change with every answer. A device whose URLs stopped working asks again without
// If-None-Match.
type CheckinResponse struct {
	PollSeconds int           `json:"poll_seconds"`      // until the next check-in; 0: as the device likes
	Release     *ReleaseOffer `json:"release,omitempty"` // absent: nothing for this device
}

// ReleaseOffer is a release and where its bytes are. Only Signed is to be
// trusted, and that only after verification.
type ReleaseOffer struct {
	Digest  string       `json:"digest"`
	Version string       `json:"version"`
	Signed  []byte       `json:"signed"` // the envelope, base64 in JSON
	Images  []ImageOffer `json:"images"`
}

// ImageOffer says where an image is.
type ImageOffer struct {
	Component string `json:"component"`
	// URL is absolute, or begins with a slash and is below the server's URL as
	// the device knows it, path included: that works behind address translation
	// and proxies. It answers Range requests.
	URL    string   `json:"url"`
	Size   int64    `json:"size"` // bytes
	SHA256 ota.Hash `json:"sha256"`
}

// StatusUpdate is live progress, at best effort.
type StatusUpdate struct {
	Head
}

// ReportsRequest delivers outcomes, oldest first, at most MaxReports.
type ReportsRequest struct {
	Device  string       `json:"device"`
	Reports []ota.Report `json:"reports"`
}

// ReportsResponse says what became of each report. A report whose ID was stored
// before is stored. Status 200 comes only once all of Stored is durable; a report
// in neither list is to be sent again.
type ReportsResponse struct {
	Stored   []string   `json:"stored"`             // IDs
	Rejected []Rejected `json:"rejected,omitempty"` // these will never be taken
}

// Rejected is a report that the server cannot take, and why.
type Rejected struct {
	ID    string `json:"id"`
	Error string `json:"error"`
}

// Release is a release for operators.
type Release struct {
	Product string `json:"product"`
	ota.Update
	Published time.Time `json:"published"`
	Groups    []string  `json:"groups,omitempty"` // whose current release this is
	// SignaturesChecked says whether the server has keys and checked the
	// signatures itself. Devices always do.
	SignaturesChecked bool `json:"signatures_checked"`
}

// PublishResponse is the answer to an upload.
type PublishResponse struct {
	Release Release `json:"release"`
	Known   bool    `json:"known"`          // this very release was here before
	Note    string  `json:"note,omitempty"` // for people, for example that the signatures were not checked
}

// ReleasesResponse lists releases, newest first.
type ReleasesResponse struct {
	Releases []Release `json:"releases"`
}

// Device is a device for operators.
type Device struct {
	Head
	Group    string    `json:"group"`
	LastSeen time.Time `json:"last_seen"`
	Wanted   string    `json:"wanted,omitempty"` // what it should run: version of its group's current release
	Waiting  bool      `json:"waiting"`          // it should run another release than it does
	Why      string    `json:"why"`              // the reason for what it does or does not do
}

// DevicesResponse lists devices by id.
type DevicesResponse struct {
	Devices []Device `json:"devices"`
}

// DeviceDetail is a device and how its updates ended, newest first.
type DeviceDetail struct {
	Device
	Reports []ota.Report  `json:"reports,omitempty"`
	Skipped []ota.Skipped `json:"skipped,omitempty"`
}

// DeviceChange moves a device into a group.
type DeviceChange struct {
	Group string `json:"group"`
}

// Group is a group and its current release for each product.
type Group struct {
	Name    string    `json:"name"`
	Current []Current `json:"current,omitempty"`
	Devices int       `json:"devices"` // how many are in it
}

// Current is the release that the devices of one product in a group should run.
type Current struct {
	Product string `json:"product"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

// GroupsResponse lists groups by name.
type GroupsResponse struct {
	Groups []Group `json:"groups"`
}

// GroupChange promotes or withdraws a release. Exactly one field is set.
type GroupChange struct {
	Promote  string `json:"promote,omitempty"`  // digest of the release that becomes current for its product
	Withdraw string `json:"withdraw,omitempty"` // digest of the release that must no longer be current
}

// TokenRequest asks for a token.
type TokenRequest struct {
	Device string `json:"device,omitempty"` // the only device that it speaks for; empty: any device
	Note   string `json:"note,omitempty"`   // for people
}

// TokenResponse has the token, which is shown this once.
type TokenResponse struct {
	Token  string `json:"token"`
	Device string `json:"device,omitempty"`
}

// Event is one server-sent event: something changed. Its kind is the event's
// name as well. Slow listeners miss events and should list again after a gap.
type Event struct {
	Kind    string      `json:"kind"` // "device", "report", "release", "group"
	Device  *Device     `json:"device,omitempty"`
	Report  *ota.Report `json:"report,omitempty"` // Device is set, too
	Release *Release    `json:"release,omitempty"`
	Group   *Group      `json:"group,omitempty"`
}
