package bucket

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
)

// Report is how one update of one device ended.
type Report struct {
	Format   int        `json:"format"` // 1
	Device   string     `json:"device"`
	Received time.Time  `json:"received"`
	Report   ota.Report `json:"report"`
}

const (
	maxReportID = 128 // bytes
	maxWord     = 64  // bytes of a digest, a version and such
	maxReason   = 500 // bytes; what is longer is cut
)

// AddReports stores outcomes. What it names as stored is durable; a report whose
// id this device has used before is stored already, whatever else it says. With
// an error, reports that are in neither list of the answer are to be sent again.
func (b *Bucket) AddReports(ctx context.Context, device string, list []ota.Report) (api.ReportsResponse, error) {
	out := api.ReportsResponse{Stored: []string{}}
	if err := ota.CheckName(device); err != nil {
		return out, fmt.Errorf("store reports: device: %w: %w", ErrInvalid, err)
	}
	if len(list) > api.MaxReports {
		return out, fmt.Errorf("store reports: %w: got %d reports, want at most %d", ErrInvalid, len(list), api.MaxReports)
	}
	refused := make([]error, len(list))
	stored := make([]bool, len(list))
	err := each(ctx, len(list), func(ctx context.Context, i int) error {
		r := list[i]
		if refused[i] = checkReport(&r); refused[i] != nil {
			return nil
		}
		err := b.save(ctx, reportKey(device, r.ID), "", Report{Format, device, b.now().UTC().Round(0), r})
		if stored[i] = err == nil || errors.Is(err, errThere); stored[i] { // by its first delivery
			return nil
		}
		if errors.Is(err, errFaster) { // two deliveries at a time, and the store took none
			err = fmt.Errorf("%w: %w", blob.ErrUnavailable, err)
		}
		return err
	})
	for i, r := range list {
		switch {
		case refused[i] != nil:
			out.Rejected = append(out.Rejected, api.Rejected{ID: clip(r.ID, maxReportID), Error: refused[i].Error()})
		case stored[i]:
			out.Stored = append(out.Stored, r.ID)
		}
	}
	if err != nil {
		return out, fmt.Errorf("store reports of device %s: %w", device, err)
	}
	return out, nil
}

// reportKey returns where a report is. An id that a key cannot have as it is, or
// that looks like the hash of one, is there by its hash.
func reportKey(device, id string) string {
	safe := len(id) <= 64 && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_") == ""
	if !safe || strings.HasPrefix(id, "sha256-") {
		sum := sha256.Sum256([]byte(id))
		id = "sha256-" + hex.EncodeToString(sum[:])
	}
	return reports + device + "/" + id + ".json"
}

// checkReport cuts r's text, and returns what is wrong with the rest.
func checkReport(r *ota.Report) error {
	if r.ID == "" || len(r.ID) > maxReportID || strings.ContainsFunc(r.ID, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return fmt.Errorf("id %.40q is not 1 to %d printable ASCII characters", r.ID, maxReportID)
	}
	switch r.Result {
	case ota.Succeeded, ota.Failed, ota.RolledBack, ota.Lost, ota.Aborted:
	default:
		return fmt.Errorf("result %.40q is not known", r.Result)
	}
	for _, w := range []struct{ name, value string }{
		{"digest", r.Digest}, {"version", r.Version}, {"from", r.From}, {"running", r.Running}, {"evidence", r.Evidence},
	} {
		if len(w.value) > maxWord || strings.ContainsRune(w.value, 0) {
			return fmt.Errorf("%s is %d bytes, want at most %d, and no NUL", w.name, len(w.value), maxWord)
		}
	}
	if y := r.Time.Year(); y < 0 || y > 9999 {
		return fmt.Errorf("time is in the year %d", y)
	}
	r.Reason = clip(r.Reason, maxReason)
	return nil
}

// clip cuts s to at most n bytes of whole characters.
func clip(s string, n int) string {
	for n < len(s) && n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.ToValidUTF8(s[:min(n, len(s))], "\uFFFD")
}

// Reports returns the newest n reports of a device, or of all for "", newest
// first. It costs a request for each, and one for a thousand that there are. With
// an error that is ErrDamaged the list has all of these that are not.
func (b *Bucket) Reports(ctx context.Context, device string, n int) ([]Report, error) {
	prefix := reports
	if device != "" {
		if err := ota.CheckName(device); err != nil {
			return nil, fmt.Errorf("list reports: device: %w: %w", ErrInvalid, err)
		}
		prefix += device + "/"
	}
	var found []blob.Object
	for o, err := range b.store.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("list reports: %w", err)
		}
		if strings.HasSuffix(o.Key, ".json") {
			found = append(found, o)
		}
	}
	slices.SortStableFunc(found, func(a, b blob.Object) int { return b.ModTime.Compare(a.ModTime) })
	found = found[:min(n, len(found))]
	out, err := collect(ctx, len(found), func(ctx context.Context, i int) (r Report, err error) {
		if _, err := b.load(ctx, found[i].Key, maxSmall, &r); err != nil {
			return r, err
		}
		if r.Format != Format || ota.CheckName(r.Device) != nil || reportKey(r.Device, r.Report.ID) != found[i].Key {
			return r, fmt.Errorf("read %s: %w: it is none of device %.64q with format %d", found[i].Key, ErrDamaged, r.Device, Format)
		}
		return r, nil
	})
	if err != nil {
		err = fmt.Errorf("list reports: %w", err)
	}
	slices.SortStableFunc(out, func(a, b Report) int {
		return cmp.Or(b.Received.Compare(a.Received), b.Report.Time.Compare(a.Report.Time), cmp.Compare(a.Report.ID, b.Report.ID))
	})
	return out, err
}
