package awsiot

import (
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Limits of statusDetails (API reference, JobExecutionState and UpdateJobExecution: "at
// most 10 name/value pairs", keys [a-zA-Z0-9:_-]{1,128}, values [^\p{C}]{1,1024}).
const (
	maxDetails = 10
	maxValue   = 1024 // characters
)

// details are the device's words about a job. Names never change:
//
//	state    what the device does, as ota.Status says it
//	percent  done, total: of the release's bytes, verified and written
//	reason   why it waits, or how it ended, for people
//	code     the same as a name, for example BATTERY_LOW
//	version  of the release
//	from     the version before
//	running  the version that runs
//	result   how it ended, as ota.Result says it, or the status itself
//	report   ID of the device's report
type details map[string]string

// kept says which details count most if there are too many.
var kept = []string{"state", "result", "code", "reason", "version", "running", "from", "percent", "done", "total", "report"}

// bounded returns what the service takes of d.
func (d details) bounded() map[string]string {
	out := map[string]string{}
	names := make([]string, 0, len(d))
	for n := range d {
		names = append(names, n)
	}
	rank := func(n string) int {
		if i := slices.Index(kept, n); i >= 0 {
			return i
		}
		return len(kept)
	}
	slices.SortFunc(names, func(a, b string) int {
		if c := rank(a) - rank(b); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	for _, n := range names {
		if v := value(d[n]); v != "" && len(out) < maxDetails {
			out[n] = v
		}
	}
	return out
}

// value makes a text fit for a value: letters that the pattern excludes become spaces.
func value(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || unicode.Is(unicode.C, r) {
			return ' '
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if r := []rune(s); len(r) > maxValue {
		s = string(r[:maxValue-3]) + "..."
	}
	return s
}

// reportDetails are those of a final status.
func (s *Source) reportDetails(r ota.Report, afr bool) details {
	d := details{"result": string(r.Result), "reason": r.Reason, "version": r.Version, "from": r.From, "running": r.Running, "report": r.ID}
	if r.Code != ota.ErrNone {
		d["code"] = r.Code.Name()
	}
	if afr {
		for n, v := range afrOutcome(r) { // programs look for what FreeRTOS devices say
			if d[n] == "" || n != "reason" {
				d[n] = v
			}
		}
	}
	return d
}

// liveDetails are those of a job in progress.
func liveDetails(h api.Head, running string, afr bool) details {
	d := details{"state": h.Status.String(), "version": h.UpdateVersion, "running": running, "reason": h.Reason}
	if h.Code != ota.ErrNone {
		d["code"] = h.Code.Name()
	}
	if h.Total > 0 {
		d["done"], d["total"] = strconv.FormatInt(h.Done, 10), strconv.FormatInt(h.Total, 10)
		d["percent"] = strconv.Itoa(int(100 * min(1, float64(h.Done)/float64(h.Total))))
	}
	if !afr {
		return d
	}
	var more map[string]string
	switch h.State {
	case ota.Fetching:
		more = afrReceiving(h.Done, h.Total)
	case ota.Activating:
		more = afrSelfTest(false, running)
	case ota.Trial, ota.Soak:
		more = afrSelfTest(true, running)
	}
	for n, v := range more {
		d[n] = v
	}
	return d
}
