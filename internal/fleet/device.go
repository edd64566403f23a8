package fleet

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Bounds of what a device may say about itself. Texts for people are cut there,
// because a device that is refused for a long sentence could not be updated; an
// over-long name is refused.
const (
	maxWord    = 64  // bytes of a version, a slot, a state
	maxReason  = 500 // bytes
	maxSignals = 32
	maxSkipped = 64
)

// Device is what is known of a device.
type Device struct {
	api.Head
	Skipped   []ota.Skipped
	Group     string
	FirstSeen time.Time
	LastSeen  time.Time
	Poll      time.Duration // what it was told to wait
	Outcome   *ota.Report   // how its group's current release ended here, if it did
}

// device is a device in memory, guarded by Fleet.mu.
type device struct {
	Device
	outcomes []ota.Report // the newest for each release, oldest first, at most maxOutcomes
	settled  ota.Status   // the last one that was not CHECKING
	unsaved  bool
}

func (d *device) heard(h api.Head, now time.Time) {
	if h.Status != ota.StatusChecking {
		d.settled = h.Status
	}
	d.Head, d.LastSeen, d.unsaved = h, now, true
}

// Answer is what a check-in gets.
type Answer struct {
	Release *Release      // offered; nil for none
	Poll    time.Duration // until the next check-in
}

// Checkin notes what the device says, makes it known if it is new, and returns
// what it is offered: its group's current release for its product, whatever it
// runs now, unless its hardware does not fit. Whether to take it is the device's
// own decision.
func (f *Fleet) Checkin(ctx context.Context, req api.CheckinRequest) (Answer, error) {
	if err := bound(&req); err != nil {
		return Answer{}, fmt.Errorf("check in: %w", err)
	}
	if err := f.register(ctx, req.Head); err != nil {
		return Answer{}, fmt.Errorf("check in: %w", err)
	}
	f.mu.Lock()
	d := f.devices[req.Device]
	d.Skipped = req.Skipped
	d.heard(req.Head, f.cfg.Now())
	r := f.releases[f.groups[d.Group].current[d.Product]]
	if r != nil && !fitsHardware(r, d.Hardware) {
		r = nil
	}
	d.Poll = pollInterval(f.cfg.PollInterval, req.Head)
	a := Answer{r, d.Poll}
	f.mu.Unlock()
	f.tell(Change{Kind: "device", Device: req.Device})
	return a, nil
}

// Status notes live progress.
func (f *Fleet) Status(ctx context.Context, head api.Head) error {
	req := api.CheckinRequest{Head: head}
	if err := bound(&req); err != nil {
		return fmt.Errorf("note a status: %w", err)
	}
	if err := f.register(ctx, req.Head); err != nil {
		return fmt.Errorf("note a status: %w", err)
	}
	f.mu.Lock()
	d := f.devices[req.Device]
	d.heard(req.Head, f.cfg.Now())
	f.mu.Unlock()
	f.tell(Change{Kind: "device", Device: req.Device})
	return nil
}

// pollInterval is how long a device waits: base, give or take a fifth, always the
// same for one device, so that devices which started together do not stay
// together; a tenth of it, 5 s to 30 s, while an update is under way, so that
// people see it move.
func pollInterval(base time.Duration, h api.Head) time.Duration {
	if busy(h.Status) {
		base = min(base, max(5*time.Second, min(30*time.Second, base/10)))
	}
	hash := fnv.New32a()
	hash.Write([]byte(h.Device))
	x := hash.Sum32()
	x ^= x >> 16 // FNV's high bits hardly depend on the last characters, where ids differ
	x *= 0x85ebca6b
	x ^= x >> 13
	spread := float64(x) / (1 << 32) // 0 to 1
	return max(time.Second, time.Duration(float64(base)*(0.8+0.4*spread)).Round(time.Second))
}

func busy(s ota.Status) bool {
	switch s {
	case ota.StatusUpdateAvailable, ota.StatusDownloading, ota.StatusVerifying, ota.StatusReadyToApply, ota.StatusApplying,
		ota.StatusRebooting, ota.StatusTrial, ota.StatusRollingBack:
		return true
	}
	return false
}

func fitsHardware(r *Release, hardware string) bool {
	return len(r.Manifest.Hardware) == 0 || slices.Contains(r.Manifest.Hardware, hardware)
}

// register makes a device known, durably, if it is not.
func (f *Fleet) register(ctx context.Context, h api.Head) error {
	f.mu.RLock()
	known, n := f.devices[h.Device] != nil, len(f.devices)
	f.mu.RUnlock()
	if known {
		return nil
	}
	if n >= f.cfg.MaxDevices {
		return fmt.Errorf("register device %s: %w: it has %d devices, which is the limit", h.Device, ErrFull, n)
	}
	said, err := json.Marshal(api.CheckinRequest{Head: h})
	if err != nil {
		return fmt.Errorf("register device %s: %w: %w", h.Device, ErrInvalid, err)
	}
	now := f.cfg.Now()
	err = f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO devices (id, group_name, first_seen, last_seen, said)
			VALUES ($1, $2, $3, $3, $4) ON CONFLICT DO NOTHING`, h.Device, api.DefaultGroup, now.UnixMilli(), string(said))
		return err
	}, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		i, found := slices.BinarySearch(f.order, h.Device)
		if found { // two first check-ins at once
			return
		}
		f.order = slices.Insert(f.order, i, h.Device)
		f.devices[h.Device] = &device{Device: Device{Head: h, Group: api.DefaultGroup, FirstSeen: now, LastSeen: now, Poll: f.cfg.PollInterval}}
		f.groups[api.DefaultGroup].devices++
	})
	if err != nil {
		return fmt.Errorf("register device %s: %w", h.Device, err)
	}
	f.tell(Change{Kind: "group", Group: api.DefaultGroup})
	return nil
}

// bound checks and cuts what a device says.
func bound(r *api.CheckinRequest) error {
	bad := func(what string, err error) error { return fmt.Errorf("%s: %w: %w", what, ErrInvalid, err) }
	if err := ota.CheckName(r.Device); err != nil {
		return bad("device", err)
	}
	if err := ota.CheckName(r.Product); err != nil {
		return bad("product", err)
	}
	if r.Hardware != "" {
		if err := ota.CheckName(r.Hardware); err != nil {
			return bad("hardware", err)
		}
	}
	for _, w := range []struct{ name, value string }{
		{"version", r.Version}, {"digest", r.Digest}, {"slot", r.Slot}, {"state", string(r.State)}, {"agent", r.Agent},
		{"update_version", r.UpdateVersion}, {"update_digest", r.UpdateDigest},
	} {
		if len(w.value) > maxWord {
			return bad(w.name, fmt.Errorf("it is %d bytes, want at most %d", len(w.value), maxWord))
		}
		if !utf8.ValidString(w.value) {
			return bad(w.name, fmt.Errorf("it is not UTF-8"))
		}
	}
	r.Reason = clip(r.Reason, maxReason)
	r.Done, r.Total = max(0, r.Done), max(0, r.Total)
	r.Signals = r.Signals[:min(len(r.Signals), maxSignals)]
	for i := range r.Signals {
		s := &r.Signals[i]
		s.Name, s.Unit, s.Source = clip(s.Name, maxWord), clip(s.Unit, maxWord), clip(s.Source, maxReason)
	}
	r.Skipped = r.Skipped[max(0, len(r.Skipped)-maxSkipped):] // the newest are at the end
	for i := range r.Skipped {
		s := &r.Skipped[i]
		s.Digest, s.Version, s.Reason = clip(s.Digest, maxWord), clip(s.Version, maxWord), clip(s.Reason, maxReason)
	}
	return nil
}

// clip returns at most n bytes of s, as valid UTF-8 without NUL, which
// PostgreSQL does not store.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		if r, size := utf8.DecodeLastRuneInString(s); r == utf8.RuneError && size == 1 {
			s = s[:len(s)-1]
		}
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// Query selects devices. Empty fields select all.
type Query struct {
	Group, Product string
	Search         string // part of the id, without regard to case
	After          string // ids greater than this
	Limit          int    // at most so many; 0: all
}

// Devices lists devices by id, and reports whether there are more behind the limit.
func (f *Fleet) Devices(q Query) (list []api.Device, more bool) {
	now, search := f.cfg.Now(), strings.ToLower(q.Search)
	f.mu.RLock()
	defer f.mu.RUnlock()
	start := 0
	if q.After != "" {
		i, found := slices.BinarySearch(f.order, q.After)
		if start = i; found {
			start++
		}
	}
	list = []api.Device{}
	for _, id := range f.order[start:] {
		d := f.devices[id]
		if q.Group != "" && d.Group != q.Group || q.Product != "" && d.Product != q.Product ||
			search != "" && !strings.Contains(strings.ToLower(id), search) {
			continue
		}
		if q.Limit > 0 && len(list) == q.Limit {
			return list, true
		}
		list = append(list, f.describe(d, now))
	}
	return list, false
}

// describe is called with mu held.
func (f *Fleet) describe(d *device, now time.Time) api.Device {
	view, r := f.view(d)
	out := api.Device{Head: d.Head, Group: d.Group, LastSeen: d.LastSeen}
	if r != nil {
		out.Wanted = r.Manifest.Version
	}
	out.Waiting, out.Why = Why(view, r, now)
	return out
}

// view returns d as Why wants it, and its group's current release. It is called
// with mu held.
func (f *Fleet) view(d *device) (Device, *Release) {
	view := d.Device
	r := f.releases[f.groups[d.Group].current[d.Product]]
	if r != nil {
		for i := range d.outcomes {
			if d.outcomes[i].Digest == r.Digest() {
				o := d.outcomes[i]
				view.Outcome = &o
			}
		}
	}
	return view, r
}

// Device returns one device and its history, or ErrNotFound.
func (f *Fleet) Device(ctx context.Context, id string) (api.DeviceDetail, error) {
	now := f.cfg.Now()
	f.mu.RLock()
	d := f.devices[id]
	if d == nil {
		f.mu.RUnlock()
		return api.DeviceDetail{}, fmt.Errorf("device %q: %w", clip(id, maxWord), ErrNotFound)
	}
	out := api.DeviceDetail{Device: f.describe(d, now), Skipped: d.Skipped}
	f.mu.RUnlock()
	var err error
	out.Reports, err = f.history(ctx, id)
	if err != nil {
		return api.DeviceDetail{}, fmt.Errorf("read the history of device %s: %w", id, err)
	}
	return out, nil
}

// Describe returns one device without its history, or ErrNotFound.
func (f *Fleet) Describe(id string) (api.Device, error) {
	now := f.cfg.Now()
	f.mu.RLock()
	defer f.mu.RUnlock()
	d := f.devices[id]
	if d == nil {
		return api.Device{}, fmt.Errorf("device %q: %w", clip(id, maxWord), ErrNotFound)
	}
	return f.describe(d, now), nil
}

// Move puts a device into a group. Both must exist.
func (f *Fleet) Move(ctx context.Context, id, group string) error {
	if _, err := f.Describe(id); err != nil {
		return err
	}
	if _, err := f.group(group); err != nil {
		return fmt.Errorf("move device %s: %w", id, err)
	}
	err := f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE devices SET group_name = $1 WHERE id = $2`, group, id)
		return err
	}, func() {
		f.mu.Lock()
		d := f.devices[id]
		f.groups[d.Group].devices--
		f.groups[group].devices++
		d.Group = group
		f.mu.Unlock()
		f.tell(Change{Kind: "device", Device: id})
		f.tell(Change{Kind: "group", Group: group})
	})
	if err != nil {
		return fmt.Errorf("move device %s: %w", id, err)
	}
	return nil
}

// heard is a device's row to be written.
type heard struct {
	id   string
	seen int64
	said api.CheckinRequest
}

// flushBatch bounds one commit of Flush, because reports wait for it: some tens of
// milliseconds.
const flushBatch = 2000

// Flush writes what was heard of devices since the last time.
func (f *Fleet) Flush(ctx context.Context) error {
	var rows []heard
	f.mu.Lock()
	for _, id := range f.order { // neighbours share pages on the disk
		if d := f.devices[id]; d.unsaved {
			d.unsaved = false
			rows = append(rows, heard{id, d.LastSeen.UnixMilli(), api.CheckinRequest{Head: d.Head, Skipped: d.Skipped}})
		}
	}
	f.mu.Unlock()
	for len(rows) > 0 {
		n := min(len(rows), flushBatch)
		if err := f.save(ctx, rows[:n]); err != nil {
			f.mu.Lock()
			for _, r := range rows {
				f.devices[r.id].unsaved = true
			}
			f.mu.Unlock()
			return fmt.Errorf("write what %d devices said: %w", len(rows), err)
		}
		rows = rows[n:]
	}
	return nil
}

func (f *Fleet) save(ctx context.Context, rows []heard) error {
	return f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `UPDATE devices SET last_seen = $1, said = $2 WHERE id = $3`)
		if err != nil {
			return err
		}
		defer stmt.Close()
		for _, r := range rows {
			said, err := json.Marshal(r.said)
			if err != nil {
				return fmt.Errorf("device %s: %w", r.id, err)
			}
			if _, err := stmt.ExecContext(ctx, r.seen, string(said), r.id); err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

func (f *Fleet) flushRegularly(ctx context.Context) {
	t := time.NewTicker(f.cfg.FlushInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := f.Flush(ctx); err != nil && ctx.Err() == nil {
				f.cfg.Log.Error("the next round tries again", "error", err)
			}
		}
	}
}
