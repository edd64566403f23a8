package fleet

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

const (
	maxHistory  = 100  // reports of a device that are shown
	maxStored   = 1000 // reports of a device that are kept, so that one that makes them up does not fill the disk
	maxOutcomes = 8    // releases of a device whose outcome is held in memory
	maxReportID = 128  // bytes
)

// Reports stores outcomes. It returns without an error only once all that it
// names as stored is durable. A report whose id this device has used before is
// stored already, whatever else it says. Of each device the newest thousand are
// kept.
func (f *Fleet) Reports(ctx context.Context, req api.ReportsRequest) (api.ReportsResponse, error) {
	out := api.ReportsResponse{Stored: []string{}}
	if err := ota.CheckName(req.Device); err != nil {
		return out, fmt.Errorf("store reports: device: %w: %w", ErrInvalid, err)
	}
	if len(req.Reports) > api.MaxReports {
		return out, fmt.Errorf("store reports: %w: got %d reports, want at most %d", ErrInvalid, len(req.Reports), api.MaxReports)
	}
	var good []ota.Report
	var texts []string
	for _, r := range req.Reports {
		text, err := checkReport(&r)
		if err != nil {
			out.Rejected = append(out.Rejected, api.Rejected{ID: clip(r.ID, maxReportID), Error: err.Error()})
			continue
		}
		good, texts = append(good, r), append(texts, text)
		out.Stored = append(out.Stored, r.ID)
	}
	if len(good) == 0 {
		return out, nil
	}
	if err := f.register(ctx, api.Head{Device: req.Device}); err != nil {
		return api.ReportsResponse{}, fmt.Errorf("store reports: %w", err)
	}
	var fresh []ota.Report
	err := f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for i, r := range good {
			f.serial++ // only the writer's goroutine gets here
			res, err := tx.ExecContext(ctx, `INSERT INTO reports (device, id, serial, received, digest, result, report)
				VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
				req.Device, r.ID, f.serial, f.cfg.Now().UnixMilli(), r.Digest, string(r.Result), texts[i])
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err != nil {
				return err
			} else if n == 1 {
				fresh = append(fresh, r)
			}
		}
		if len(fresh) == 0 {
			return nil
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM reports WHERE device = $1 AND serial <=
			(SELECT serial FROM reports WHERE device = $1 ORDER BY serial DESC LIMIT 1 OFFSET $2)`, req.Device, maxStored)
		return err
	}, func() {
		f.mu.Lock()
		d := f.devices[req.Device]
		d.LastSeen, d.unsaved = f.cfg.Now(), true
		for _, r := range fresh {
			d.note(r)
		}
		f.mu.Unlock()
		for _, r := range fresh {
			f.tell(Change{Kind: "report", Device: req.Device, Report: &r})
		}
	})
	if err != nil {
		return api.ReportsResponse{}, fmt.Errorf("store reports of device %s: %w", req.Device, err)
	}
	return out, nil
}

// note keeps r as the outcome of its release.
func (d *device) note(r ota.Report) {
	d.outcomes = slices.DeleteFunc(d.outcomes, func(o ota.Report) bool { return o.Digest == r.Digest })
	d.outcomes = append(d.outcomes, r)
	d.outcomes = d.outcomes[max(0, len(d.outcomes)-maxOutcomes):]
}

// checkReport cuts r's text and returns its JSON.
func checkReport(r *ota.Report) (string, error) {
	if r.ID == "" || len(r.ID) > maxReportID || strings.ContainsFunc(r.ID, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", fmt.Errorf("id %.40q is not 1 to %d printable ASCII characters", r.ID, maxReportID)
	}
	switch r.Result {
	case ota.Succeeded, ota.Failed, ota.RolledBack, ota.Lost, ota.Aborted:
	default:
		return "", fmt.Errorf("result %.40q is not known", r.Result)
	}
	for _, w := range []struct{ name, value string }{
		{"digest", r.Digest}, {"version", r.Version}, {"from", r.From}, {"running", r.Running}, {"evidence", r.Evidence},
	} {
		if len(w.value) > maxWord || strings.ContainsRune(w.value, 0) {
			return "", fmt.Errorf("%s is %d bytes, want at most %d, and no NUL", w.name, len(w.value), maxWord)
		}
	}
	r.Reason = clip(r.Reason, maxReason)
	j, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	return string(j), nil
}

// history returns a device's reports, newest first.
func (f *Fleet) history(ctx context.Context, id string) ([]ota.Report, error) {
	var out []ota.Report
	err := each(ctx, f.db, `SELECT report FROM reports WHERE device = $1 ORDER BY serial DESC LIMIT $2`, func(scan scanner) error {
		var text string
		if err := scan(&text); err != nil {
			return err
		}
		var r ota.Report
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return err
		}
		out = append(out, r)
		return nil
	}, id, maxHistory)
	return out, err
}

func (f *Fleet) loadOutcomes(ctx context.Context) error {
	if err := f.db.QueryRowContext(ctx, `SELECT COALESCE(MAX(serial), 0) FROM reports`).Scan(&f.serial); err != nil {
		return err
	}
	return each(ctx, f.db, `SELECT r.device, r.report FROM reports r
		JOIN (SELECT device, MAX(serial) AS serial FROM reports GROUP BY device, digest) newest
			ON newest.device = r.device AND newest.serial = r.serial
		ORDER BY r.serial`, func(scan scanner) error {
		var id, text string
		if err := scan(&id, &text); err != nil {
			return err
		}
		var r ota.Report
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return fmt.Errorf("device %s: %w", id, err)
		}
		f.devices[id].note(r)
		return nil
	})
}
