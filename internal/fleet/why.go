package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
)

// Why answers the operator's question: why does this device run what it runs?
// r is the current release of its group, nil for none. Waiting means that it
// should run r, does not, and may still come to it without a person's help.
func Why(d Device, r *Release, now time.Time) (waiting bool, text string) {
	s, text := why(d, r, now)
	if !silent(d, now) {
		return s.waiting(), text
	}
	unseen := "not seen for " + Span(now.Sub(d.LastSeen))
	if s == UpToDate || s == Failed || s == Stopped {
		return s.waiting(), text + "; " + unseen
	}
	return s.waiting(), unseen + "; last: " + text
}

// Standing sums up where a device stands.
type Standing string

// Standings. Every device has one of them.
const (
	UpToDate  Standing = "up to date"
	Updating  Standing = "updating"       // something moves
	Waiting   Standing = "waiting"        // for its next check, its battery, a person
	Failed    Standing = "failed"         // the release did, and the device does not take it again by itself
	Stopped   Standing = "not updating"   // will not run the release without a person's help
	Silent    Standing = "not seen"       // missed three check-ins
	NoRelease Standing = "nothing to run" // its group has no release for it
)

func (s Standing) waiting() bool { return s == Waiting || s == Updating }

// Stand returns where a device stands; see [Why].
func Stand(d Device, r *Release, now time.Time) Standing {
	if silent(d, now) {
		return Silent
	}
	s, _ := why(d, r, now)
	return s
}

// silent: three missed polls and a minute; one lost packet is not worth a word.
func silent(d Device, now time.Time) bool { return now.Sub(d.LastSeen) > 3*d.Poll+time.Minute }

func why(d Device, r *Release, now time.Time) (Standing, string) {
	if d.Product == "" {
		return NoRelease, "has not checked in yet"
	}
	if r == nil {
		return NoRelease, fmt.Sprintf("no release for %s in group %s", d.Product, d.Group)
	}
	m := r.Manifest
	if m.Product != d.Product {
		return Stopped, fmt.Sprintf("other product: the device is %s, the release for %s", d.Product, m.Product)
	}
	reason := d.Reason
	if reason == "" && d.Code != ota.ErrNone {
		reason = d.Code.Error()
	}
	switch d.Status {
	case ota.StatusTrial:
		return Updating, with("on trial: "+d.Version+" must prove itself healthy", reason)
	case ota.StatusRollingBack:
		return Updating, with("rolling back", reason)
	}
	if isRelease(m, d.Digest, d.Version) {
		return UpToDate, "up to date"
	}
	if isRelease(m, d.UpdateDigest, d.UpdateVersion) {
		if s, text := inHand(d, reason); text != "" {
			return s, text
		}
	}
	failed := d.Outcome != nil && d.Outcome.Result != ota.Succeeded
	if i := slices.IndexFunc(d.Skipped, func(s ota.Skipped) bool { return s.Digest == m.Digest }); i >= 0 && !failed {
		return Stopped, with("skipped by the device", d.Skipped[i].Reason)
	}
	switch {
	case failed && d.Outcome.Result == ota.Aborted:
		return Stopped, with("stopped on the device", d.Outcome.Reason)
	case failed && d.Outcome.Result == ota.Failed:
		return Failed, with("failed here", outcomeReason(d.Outcome))
	case failed && d.Outcome.Result == ota.Lost: // not proven to be the release's fault
		return Stopped, with("lost here, the old firmware came back", outcomeReason(d.Outcome))
	case failed:
		return Failed, with("failed here: "+string(d.Outcome.Result), outcomeReason(d.Outcome))
	case len(m.Hardware) > 0 && !slices.Contains(m.Hardware, d.Hardware):
		return Stopped, fmt.Sprintf("other hardware: the device is %q, the release for %s", d.Hardware, strings.Join(m.Hardware, ", "))
	case !m.Expires.IsZero() && now.After(m.Expires):
		return Stopped, fmt.Sprintf("the release expired on %s", m.Expires.UTC().Format("2006-01-02 15:04 UTC"))
	case d.SecurityVersion > m.SecurityVersion:
		return Stopped, fmt.Sprintf("the device's security version is %d, the release's only %d", d.SecurityVersion, m.SecurityVersion)
	case d.Status == ota.StatusFailed:
		return Waiting, with("failed here, tried again", reason)
	}
	if ota.CheckVersion(d.Version) == nil {
		switch {
		case m.MinVersion != "" && ota.CompareVersions(d.Version, m.MinVersion) < 0:
			return Stopped, fmt.Sprintf("runs %s, the release wants at least %s first", d.Version, m.MinVersion)
		case !m.AllowDowngrade && ota.CompareVersions(d.Version, m.Version) > 0:
			return Stopped, fmt.Sprintf("runs %s, which is newer than %s", d.Version, m.Version)
		}
	}
	if d.Outcome != nil { // it succeeded here once
		return Waiting, fmt.Sprintf("%s was installed here, but the device runs %s again", m.Version, d.Version)
	}
	return Waiting, with("waits for its next check", reason)
}

// isRelease: the digest names m, or, where a device does not know it, the version.
func isRelease(m *ota.Manifest, digest, version string) bool {
	if digest == "" {
		return version == m.Version
	}
	return digest == m.Digest
}

// inHand says what the device does with the release that it should run, or "".
func inHand(d Device, reason string) (Standing, string) {
	switch d.Status {
	case ota.StatusUpdateAvailable:
		if reason == "" {
			return Waiting, "has found the release"
		}
		return Waiting, "waits: " + reason
	case ota.StatusDownloading:
		text := "downloading"
		if d.Total > 0 {
			text = fmt.Sprintf("downloading %d %%", Percent(d.Done, d.Total))
		}
		return Updating, with(text, reason)
	case ota.StatusVerifying:
		return Updating, with("verifying what was written", reason)
	case ota.StatusReadyToApply:
		if reason == "" {
			return Waiting, "written and verified"
		}
		return Waiting, "written; waits: " + reason
	case ota.StatusApplying, ota.StatusRebooting:
		return Updating, with("restarting into "+d.UpdateVersion, reason)
	}
	return "", ""
}

func outcomeReason(r *ota.Report) string {
	if r.Reason == "" && r.Code != ota.ErrNone {
		return r.Code.Error()
	}
	return r.Reason
}

func with(text, reason string) string {
	if reason == "" {
		return text
	}
	return text + ": " + reason
}

// Percent is how much of total is done, 0 to 100, and 100 only for all of it.
func Percent(done, total int64) int {
	switch {
	case total <= 0 || done <= 0:
		return 0
	case done >= total:
		return 100
	}
	return min(99, int(float64(done)/float64(total)*100))
}

// Span writes a duration for people, in its largest unit.
func Span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(max(0, d).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}
