package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/internal/sdnotify"
	"github.com/interlock-energy/ota/source/https"
)

const (
	pushSettle  = 200 * time.Millisecond // after a change: a check at a waiting device is three in a row
	pushPause   = time.Second            // between two messages to the server
	pushBeat    = 30 * time.Second       // between two while an update waits and nothing changes
	pushTimeout = 10 * time.Second       // for one
)

// server is a source that wants to know what this device does.
type server interface {
	Status(ctx context.Context, u api.StatusUpdate) error
}

// poller is a source whose other side may say when it wants to be asked again.
type poller interface {
	PollInterval() time.Duration
}

// sourceSet is the sources of one boot.
type sourceSet struct {
	*multi
	servers []server
	to      []ota.Reporter
	explain func(ota.Report) ota.Report
	checks  chan struct{} // has room for one; receives after each check
}

func (c *Config) allSources() []Source {
	if c.Source != nil {
		return []Source{*c.Source}
	}
	return c.Sources
}

func (a *Agent) sourceNames() (names []string) {
	for _, s := range a.cfg.allSources() {
		kind, err := s.kind()
		if err != nil {
			continue // New has refused it
		}
		switch kind {
		case "https":
			u, err := webURL(s.HTTPS.URL)
			if err != nil {
				continue
			}
			u.User, u.RawQuery = nil, "" // may be secrets
			names = append(names, fmt.Sprintf("https %s %s", orDefault(s.HTTPS.Kind, "server"), u))
		case "aws_iot":
			names = append(names, fmt.Sprintf("aws_iot %s as %s", s.AWSIoT.Endpoint, orDefault(s.AWSIoT.Thing, a.cfg.Device.ID)))
		case "modbus":
			names = append(names, "modbus "+s.Modbus.where())
		case "canbus":
			names = append(names, "canbus "+s.CANBus.where())
		case "media":
			names = append(names, "media "+s.Media.Path)
		case "sd_card":
			names = append(names, "sd_card "+s.SDCard.FilePath)
		case "usb":
			names = append(names, "usb "+s.USB.DevicePath)
		}
	}
	return names
}

// newSources makes the sources, for firmware of this version, or checks how they are configured.
func (a *Agent) newSources(version string, check bool) (set *sourceSet, err error) {
	made := &sourceSet{explain: a.explain, checks: make(chan struct{}, 1)}
	defer func() {
		if err != nil { // it is tried again, and what a bus has brought has one owner
			made.close()
		}
	}()
	set = made
	set.multi = &multi{verify: a.verify, enter: a.alive.enter, log: a.log, wake: make(chan struct{}, 1), spacing: a.wakeSpacing(),
		fits:    func(m *ota.Manifest) bool { return a.judge(m, version) == nil },
		skipped: a.skipped, inHand: a.inHand, install: a.installFor,
		checked: func(err error) {
			a.counters.checked(err)
			select {
			case set.checks <- struct{}{}:
			default:
			}
		},
	}
	configured := a.cfg.allSources()
	for i := range configured {
		s, err := a.newSource(&configured[i], version, check)
		if err != nil && len(configured) > 1 {
			return nil, fmt.Errorf("sources, entry %d: %w", i+1, err)
		}
		if err != nil {
			return nil, fmt.Errorf("source: %w", err)
		}
		kind, _ := configured[i].kind() // newSource has looked
		if slices.Contains([]string{"aws_iot", "modbus", "canbus"}, kind) && slices.ContainsFunc(set.sources, func(s named) bool { return s.name == kind }) {
			return nil, fmt.Errorf("sources, entry %d: there is another %s before it, and both would keep what they do in the same place in state_dir; keep one", i+1, kind)
		}
		set.sources = append(set.sources, named{kind, s, configured[i].consents()})
		if to, ok := s.(server); ok {
			set.servers = append(set.servers, to)
		}
		if to, ok := s.(ota.Reporter); ok && (kind != "https" || orDefault(configured[i].HTTPS.Kind, string(https.Server)) == string(https.Server)) {
			set.to = append(set.to, to)
		}
	}
	return set, nil
}

// close closes the sources of a set that is not run.
func (s *sourceSet) close() {
	for _, src := range s.sources {
		if p, ok := src.Source.(*pushed); ok {
			p.close()
		}
	}
}

// asSource is what the manager gets: it takes reports if one of the sources does.
func (s *sourceSet) asSource() ota.Source {
	if len(s.to) == 0 {
		return s.multi
	}
	return &reportingMulti{s.multi, s.to, s.explain}
}

// explain adds to a report the head of its evidence, and to that of a failure why the firmware did not stay up, as
// far as this process has seen it.
func (a *Agent) explain(r ota.Report) ota.Report {
	r.Evidence = a.evidenceOf(r.ID)
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Result == ota.Failed && a.notStarted != "" && r.Digest == a.notStartedDigest {
		r.Reason = fmt.Sprintf("%s; %.1000s", r.Reason, a.notStarted)
	}
	return r
}

// judge is the manager's judgement, as far as it is known here: nil if a release
// fits. It only decides which of several offers the manager is shown.
func (a *Agent) judge(m *ota.Manifest, version string) error {
	d := &a.cfg.Device
	newer := ota.CompareVersions(m.Version, version)
	floor := d.SecurityVersion
	if r := a.record.Load(); r != nil {
		floor = max(floor, r.SecurityVersion)
	}
	switch {
	case m.Product != d.Product:
		return fmt.Errorf("%w: release %s is for product %s", ota.ErrIncompatible, m.Version, m.Product)
	case len(m.Hardware) > 0 && !slices.Contains(m.Hardware, d.Hardware):
		return fmt.Errorf("%w: release %s is for hardware %v", ota.ErrIncompatible, m.Version, m.Hardware)
	case newer == 0:
		return fmt.Errorf("%w: version %s is running", ota.ErrNoUpdate, version)
	case newer < 0 && !m.AllowDowngrade:
		return fmt.Errorf("%w: release %s is older than the running %s", ota.ErrNoUpdate, m.Version, version)
	case m.SecurityVersion < floor:
		return fmt.Errorf("%w: release %s has security version %d, and this device has had %d", ota.ErrIncompatible, m.Version, m.SecurityVersion, floor)
	case m.MinVersion != "" && ota.CompareVersions(version, m.MinVersion) < 0:
		return fmt.Errorf("%w: release %s updates from %s or newer, this runs %s", ota.ErrIncompatible, m.Version, m.MinVersion, version)
	case !m.Expires.IsZero() && a.now().After(m.Expires):
		return fmt.Errorf("%w: release %s expired on %s", ota.ErrValidation, m.Version, m.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

func (a *Agent) skipped(digest string) bool {
	_, skipped := a.skippedWhy(digest)
	return skipped
}

// skippedWhy returns why the release with this digest is not taken again, if so.
func (a *Agent) skippedWhy(digest string) (reason string, skipped bool) {
	r := a.record.Load()
	if r == nil {
		return "", false
	}
	i := slices.IndexFunc(r.Skipped, func(s ota.Skipped) bool { return s.Digest == digest })
	if i < 0 {
		return "", false
	}
	return r.Skipped[i].Reason, true
}

// inHand returns the digest of the release that is being installed, or "".
func (a *Agent) inHand() string {
	if r := a.record.Load(); r != nil && r.State != ota.Idle {
		return r.Digest
	}
	return ""
}

// interval is how long after a check the next one is due: as long as the server
// wants, if it wants anything, or else check_interval. Of several servers each is
// asked as often as it is due. If each check suspends the plant, check_interval is
// the least, or a server could keep it suspended. With a check_interval of 0 nothing
// is checked by itself, whatever the server wants.
func (a *Agent) interval() time.Duration {
	d := a.cfg.checkInterval()
	if d <= 0 {
		return 0
	}
	a.mu.Lock()
	set := a.sources
	a.mu.Unlock()
	if set == nil {
		return d
	}
	wish := time.Duration(0)
	for _, s := range set.servers {
		p := d
		if h, ok := s.(poller); ok && h.PollInterval() > 0 {
			p = h.PollInterval()
		}
		if wish == 0 || p < wish {
			wish = p
		}
	}
	if a.suspend == ota.SuspendBeforeCheck {
		return max(wish, d)
	}
	return orDefault(wish, d)
}

// wakeSpacing is the least time between two checks for which a server has woken the
// manager, after the first few.
func (a *Agent) wakeSpacing() time.Duration {
	if a.suspend == ota.SuspendBeforeCheck {
		return max(a.cfg.checkInterval(), 10*time.Minute)
	}
	return 10 * time.Second
}

// checkin says what the server is told at each check.
func (a *Agent) checkin() api.CheckinRequest {
	h := a.head()
	return api.CheckinRequest{Head: h, Skipped: a.Snapshot().Skipped}
}

// head says what this device is and does.
func (a *Agent) head() api.Head {
	d, s := &a.cfg.Device, a.Snapshot()
	h := api.Head{Device: d.ID, Product: d.Product, Hardware: d.Hardware, Agent: a.cfg.Version, Version: s.Running, Slot: s.Slot,
		Status: s.Status, State: s.State, Code: s.Code, Reason: s.Reason, Signals: s.Signals, Causes: s.Causes}
	if r := a.record.Load(); r != nil {
		h.SecurityVersion = r.SecurityVersion
		if r.Running.Version == s.Running && r.Running.Slot == s.Slot {
			h.Digest = r.Running.Digest
		}
	}
	if u := s.Update; u != nil {
		h.UpdateVersion, h.UpdateDigest, h.Done, h.Total = u.Version, u.Digest, s.Done, u.Size
		h.Course = s.Course
	}
	if len(h.Signals) == 0 {
		a.mu.Lock()
		if a.readErr == nil {
			h.Signals = signals(a.reading)
		}
		a.mu.Unlock()
	}
	return h
}

// signals is a reading for display. A zero reading, and what is not available, is none.
func signals(r bms.Reading) []ota.Signal {
	if r.At.IsZero() {
		return nil
	}
	return r.Tell()
}

// push tells the servers what the device does, whenever something is worth
// telling and at most once a second, and while an update is under way every half
// minute, so that who looks at the page sees the battery charge that a device
// waits for. It is at best effort: what could not be told is not told later,
// because something newer is.
func (a *Agent) push(ctx context.Context) {
	beat := time.NewTicker(pushBeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.pushNow:
		case <-beat.C:
			if a.Snapshot().Update == nil {
				continue
			}
		}
		if !pause(ctx, pushSettle) {
			return
		}
		a.mu.Lock()
		set := a.sources
		a.mu.Unlock()
		if set != nil {
			for _, to := range set.servers {
				a.pushTo(ctx, to)
			}
		}
		if !pause(ctx, pushPause) {
			return
		}
	}
}

// pause waits for d, and reports false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (a *Agent) pushTo(ctx context.Context, to server) {
	head := a.head()
	if head.Slot == "" && head.Reason == "" {
		return // nobody has looked yet at what is booted; a device that runs nothing is no news
	}
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	if err := to.Status(ctx, api.StatusUpdate{Head: head}); err != nil {
		a.log.Debug("tell the server the status", "error", err)
	}
}

// feed keeps systemd informed: what the agent does, and that it is not stuck.
func (a *Agent) feed(ctx context.Context, n sdnotify.Notifier) {
	feeder := sdnotify.NewFeeder(n, 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		feeder.Run(ctx, func(err error) { a.log.Warn("feed the watchdog", "error", err) })
	}()
	defer func() { <-done }()
	every := observeEvery
	if n.Watchdog > 0 {
		every = min(every, n.Watchdog/4)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	shown, complained := "", false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		text := statusLine(a.Snapshot()) // a manager that never lets go of its lock stops us here
		err := a.alive.stuck()
		if err == nil {
			feeder.Alive()
		} else if !complained {
			a.log.Error("the agent is stuck, the watchdog is not fed any more", "error", err)
		}
		complained = err != nil
		if text != shown {
			shown = text
			a.notify(n, sdnotify.Status(text))
		}
	}
}

func statusLine(s ota.Snapshot) string {
	text := fmt.Sprintf("%s, version %s", s.Status, s.Running)
	if s.Update != nil {
		text += fmt.Sprintf(", update %s", s.Update.Version)
	}
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	return text
}

func (a *Agent) notify(n sdnotify.Notifier, state string) {
	if err := n.Notify(state); err != nil {
		a.log.Debug("tell systemd", "error", err)
	}
}
