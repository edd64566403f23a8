package ota

import (
	"slices"
	"time"
)

// State is where an update stands. It is stored, so a value is never renamed.
type State string

// States. The drawing is in docs/states.md.
const (
	Idle       State = "idle"       // nothing to do
	Available  State = "available"  // a release is known; waiting for consent and gate
	Fetching   State = "fetching"   // writing images into the other slot
	Staged     State = "staged"     // written and read back; waiting for consent and gate
	Activating State = "activating" // the bootloader is told to try the slot
	Trial      State = "trial"      // running the new slot, not yet marked good
	Soak       State = "soak"       // running the new slot, marked good, watched for longer; see Config.SoakTime
	RollBack   State = "rollback"   // the trial or the soak failed; going back to the old slot
)

// Record is all that a manager remembers across restarts. It is a value, saved
// whole. Names in its JSON never change.
type Record struct {
	Format  int       `json:"format"` // 1
	State   State     `json:"state"`
	Release *Manifest `json:"release,omitempty"` // the release being installed
	Digest  string    `json:"digest,omitempty"`  // its digest
	Attempt string    `json:"attempt,omitempty"` // names this attempt, in reports
	From    string    `json:"from,omitempty"`    // the version that it started from
	Consent Consent   `json:"consent,omitempty"` // what a person has said yes to
	Back    bool      `json:"back,omitempty"`    // an asked-for return to the previous release

	Slot     string `json:"slot,omitempty"`      // where the images are
	OldSlot  string `json:"old_slot,omitempty"`  // where to return to
	BootID   string `json:"boot_id,omitempty"`   // the boot that asked for the trial, or in which the trial runs
	Tries    int    `json:"tries,omitempty"`     // restarts into the new slot so far
	FellBack bool   `json:"fell_back,omitempty"` // the bootloader said at least once that it tried
	Starts   int    `json:"starts,omitempty"`    // starts of the process within this trial, or this boot of the soak
	Good     bool   `json:"good,omitempty"`      // the slot was marked good: leaving it restarts a controller at work
	Soaked   int    `json:"soaked,omitempty"`    // seconds of the soak that are over, never too many
	Returns  int    `json:"returns,omitempty"`   // restarts to get back so far
	Abort    bool   `json:"abort,omitempty"`     // a person asked to stop while activating
	Quiesced bool   `json:"quiesced,omitempty"`  // Suspend was called and Resume has not returned
	Code     int    `json:"code,omitempty"`      // why it is rolled back; in a soak without a reason, it is not
	Reason   string `json:"reason,omitempty"`    // the same for people

	Running         Installed `json:"running,omitzero"`           // what was marked good last
	Previous        Installed `json:"previous,omitzero"`          // what is whole in the other slot, if anything
	SecurityVersion uint64    `json:"security_version,omitempty"` // the highest that was marked good
	NewestTime      time.Time `json:"newest_time,omitzero"`       // the newest signed time seen
	Skipped         []Skipped `json:"skipped,omitempty"`          // releases not to be taken again
	Unsent          []Report  `json:"unsent,omitempty"`           // reports that the source has not confirmed
	Last            *Report   `json:"last,omitempty"`             // how the last update ended
}

// Consent is what a person, or the configuration, has said yes to.
type Consent int

// Consents, each including those before it.
const (
	ConsentNone Consent = iota
	ConsentInstall
	ConsentApply
)

// Installed is an image set that once was marked good.
type Installed struct {
	Slot            string  `json:"slot"`
	Version         string  `json:"version"`
	Digest          string  `json:"digest,omitempty"`           // empty: not installed by us
	SecurityVersion uint64  `json:"security_version,omitempty"` //
	Images          []Image `json:"images,omitempty"`           // without the chunks
}

// Skipped is a release that is not taken again.
type Skipped struct {
	Digest  string `json:"digest"`
	Version string `json:"version"`
	Reason  string `json:"reason"`
}

// Result is how an update ended.
type Result string

// Results.
const (
	Succeeded  Result = "succeeded"   // proven and marked good
	Failed     Result = "failed"      // given up; the device runs what it ran before
	RolledBack Result = "rolled back" // the new firmware ran, was not healthy, and the device went back
	Lost       Result = "lost"        // the old slot came back and nothing says that the new one was tried
	Aborted    Result = "aborted"     // a person stopped it
)

// Report is how one update ended. It is kept until the source confirms it.
type Report struct {
	ID      string    `json:"id"` // the same at every delivery
	Digest  string    `json:"digest"`
	Version string    `json:"version"` // the release's
	From    string    `json:"from"`    // the version before
	Running string    `json:"running"` // the version that runs now
	Result  Result    `json:"result"`
	Code    ErrorCode `json:"code"`
	Reason  string    `json:"reason,omitempty"`
	Tried   bool      `json:"tried,omitempty"` // the device has restarted into the release: all its hashes were right
	Time    time.Time `json:"time"`            // by the device's clock

	// FailedImage is at which image, from 1 in the manifest's order, fetching or reading
	// back ended the update; 0: at none. Firmware that is not healthy names no image.
	FailedImage int `json:"failed_image,omitempty"`

	// Evidence is the head hash of what the device has written down about this update,
	// if it does: noted elsewhere, it shows that nobody has changed that since.
	Evidence string `json:"evidence,omitempty"`
}

// skipped returns why the release with this digest is not taken, if so.
func (r *Record) skipped(digest string) (Skipped, bool) {
	i := slices.IndexFunc(r.Skipped, func(s Skipped) bool { return s.Digest == digest })
	if i < 0 {
		return Skipped{}, false
	}
	return r.Skipped[i], true
}
