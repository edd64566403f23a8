package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/plant"
	"github.com/interlock-energy/ota/plant/der"
	planthttp "github.com/interlock-energy/ota/plant/http"
	plantmodbus "github.com/interlock-energy/ota/plant/modbus"
)

// Quiesce is one thing that is done to the plant before the restart, and undone
// after the trial. Exactly one of its sections is given.
type Quiesce struct {
	Name   string       `yaml:"name"` // for messages
	DER    *DER         `yaml:"der"`
	Modbus *WriteList   `yaml:"modbus"`
	HTTP   *QuiesceHTTP `yaml:"http"`
}

// DER configures package plant/der.
type DER struct {
	Modbus     *Modbus  `yaml:"modbus"`
	Base       *uint16  `yaml:"base"`
	Control    string   `yaml:"control"`     // 704 (default), 715 or 802
	DeadMan    Duration `yaml:"dead_man"`    // default: 10m and twice the rollback timeout
	NoDeadMan  bool     `yaml:"no_dead_man"` // needed for 715 and 802
	RatedPower float64  `yaml:"rated_power"` // W
	Ramp       float64  `yaml:"ramp"`        // %/s; default 10
	MaxPower   float64  `yaml:"max_power"`   // W that count as rest
	MaxCurrent float64  `yaml:"max_current"` // A that count as rest; default 1
	Settle     Duration `yaml:"settle"`      // default 3s
	Timeout    Duration `yaml:"timeout"`     // of each verb; default 3m
	Contactors string   `yaml:"contactors"`  // open: also disconnect the battery; default: leave them
}

// WriteList configures package plant/modbus.
type WriteList struct {
	Link    *Modbus  `yaml:"link"`
	Quiesce []Step   `yaml:"quiesce"`
	Resume  []Step   `yaml:"resume"`
	Timeout Duration `yaml:"timeout"` // of each verb; default 3m
}

// Step writes registers, and waits.
type Step struct {
	Unit    int      `yaml:"unit"` // default: that of the link
	Address uint16   `yaml:"address"`
	Values  []uint16 `yaml:"values"` // none, in resume: what was found
	Single  bool     `yaml:"single"`
	Expect  []uint16 `yaml:"expect"`
	Command bool     `yaml:"command"`
	Wait    *Wait    `yaml:"wait"`
}

// Wait is what has to be so before a list goes on.
type Wait struct {
	Unit    int      `yaml:"unit"`
	Address uint16   `yaml:"address"`
	Input   bool     `yaml:"input"`
	Mask    uint16   `yaml:"mask"`
	Signed  bool     `yaml:"signed"`
	Min     int32    `yaml:"min"`
	Max     int32    `yaml:"max"`
	Within  Duration `yaml:"within"` // default 60s
	For     Duration `yaml:"for"`
}

// QuiesceHTTP configures package plant/http.
type QuiesceHTTP struct {
	Quiesce   string   `yaml:"quiesce"`
	Resume    string   `yaml:"resume"`
	TokenFile string   `yaml:"token_file"`
	CAFile    string   `yaml:"ca_file"`
	Timeout   Duration `yaml:"timeout"` // of each verb; default 3m
}

// quiesceTimeout is for each verb of each action. No action may take for ever: the
// plant waits, and so does the restart.
const quiesceTimeout = 3 * time.Minute

func (q *Quiesce) timeout() time.Duration {
	var t Duration
	switch {
	case q.DER != nil:
		t = q.DER.Timeout
	case q.Modbus != nil:
		t = q.Modbus.Timeout
	case q.HTTP != nil:
		t = q.HTTP.Timeout
	}
	return time.Duration(orDefault(t, Duration(quiesceTimeout)))
}

// newPlant makes what is done to the plant, in the order of the configuration. It is
// nil if nothing is.
func (a *Agent) newPlant() (plant.Action, error) {
	var actions []plant.Action
	names := map[string]bool{}
	for i := range a.cfg.Quiesce {
		q := &a.cfg.Quiesce[i]
		name := orDefault(q.Name, fmt.Sprintf("plant %d", i+1))
		if strings.ContainsAny(name, "/\x00") || names[name] {
			return nil, fmt.Errorf("quiesce, entry %d: the name %q is taken, or no name for a file", i+1, name)
		}
		names[name] = true
		action, err := a.newAction(q, name)
		if err != nil {
			return nil, fmt.Errorf("quiesce, entry %d: %w", i+1, err)
		}
		actions = append(actions, plant.Bound(q.timeout(), action))
	}
	if len(actions) == 0 {
		return nil, nil
	}
	return plant.All(actions...), nil
}

func (a *Agent) newAction(q *Quiesce, name string) (plant.Action, error) {
	var kinds []string
	for _, k := range []struct {
		key   string
		given bool
	}{{"der", q.DER != nil}, {"modbus", q.Modbus != nil}, {"http", q.HTTP != nil}} {
		if k.given {
			kinds = append(kinds, k.key)
		}
	}
	if len(kinds) != 1 {
		return nil, fmt.Errorf("%d of der, modbus and http are given, want one", len(kinds))
	}
	// What was found of the plant outlives this process.
	file, err := filepath.Abs(filepath.Join(a.cfg.StateDir, "quiesced-"+name))
	if err != nil {
		return nil, err
	}
	progress := func(text string) { a.plantSays(name, text) }
	switch kinds[0] {
	case "der":
		return a.newDER(q.DER, name, file, progress)
	case "modbus":
		return a.newWriteList(q.Modbus, name, file, progress)
	}
	return a.newQuiesceHTTP(q.HTTP, progress)
}

func (a *Agent) newDER(d *DER, name, file string, progress func(string)) (plant.Action, error) {
	unit, err := a.links.unit(d.Modbus)
	if err != nil {
		return nil, fmt.Errorf("der.%w", err)
	}
	if err := d.checkDeadMan(); err != nil {
		return nil, err
	}
	c := der.Config{Name: name, Registers: unit, File: file, Control: der.Control(d.Control), NoDeadMan: d.NoDeadMan,
		RatedW: d.RatedPower, Ramp: d.Ramp, MaxW: d.MaxPower, MaxA: d.MaxCurrent, Settle: time.Duration(d.Settle),
		Timeout: time.Duration(orDefault(d.Timeout, Duration(quiesceTimeout))), Progress: progress}
	if !d.NoDeadMan {
		c.DeadMan = time.Duration(orDefault(d.DeadMan, Duration(a.deadMan())))
		if least := c.Timeout + orDefault(a.cfg.rollbackTimeout(), rollbackTimeout); c.DeadMan < least {
			return nil, fmt.Errorf("der.dead_man is %v, and with der.timeout and rollback_timeout the power would come back in the middle of the trial; want at least %v",
				c.DeadMan, least)
		}
	}
	if d.Base != nil {
		c.Search = sunspec.Search{Bases: []uint16{*d.Base}}
	}
	switch d.Contactors {
	case "":
	case "open":
		c.OpenContactors = true
	default:
		return nil, fmt.Errorf("der.contactors is %q, want open or nothing", d.Contactors)
	}
	converter, err := der.New(c)
	if err != nil {
		return nil, err
	}
	a.converters = append(a.converters, converter)
	return converter, nil
}

// deadMan is how long a converter waits for this controller before it goes back to
// work by itself: two restarts of five minutes, there and back, and the trial in
// between with some time to spare.
func (a *Agent) deadMan() time.Duration {
	return 10*time.Minute + 2*orDefault(a.cfg.rollbackTimeout(), rollbackTimeout)
}

// checkDeadMan refuses what contradicts itself, in the words of the configuration.
func (d *DER) checkDeadMan() error {
	switch standby := d.Control == string(der.Standby715) || d.Control == string(der.Standby802); {
	case standby && !d.NoDeadMan:
		return fmt.Errorf("der.control %s has no dead-man in SunSpec: a controller that never comes back leaves the plant in standby; accept that with no_dead_man: true, or use control: \"704\"", d.Control)
	case d.NoDeadMan && d.DeadMan != 0:
		return errors.New("der.dead_man and der.no_dead_man are both given; keep one")
	}
	return nil
}

func (a *Agent) newWriteList(w *WriteList, name, file string, progress func(string)) (plant.Action, error) {
	unit, err := a.links.unit(w.Link)
	if err != nil {
		return nil, fmt.Errorf("modbus.link: %w", err)
	}
	steps := func(list []Step) (out []plantmodbus.Step, err error) {
		for i := range list {
			s := &list[i]
			to := plantmodbus.Step{Address: s.Address, Values: s.Values, Single: s.Single, Expect: s.Expect, Command: s.Command}
			if to.Unit, err = unitID(s.Unit, unit.ID); err != nil {
				return nil, fmt.Errorf("step %d: %w", i+1, err)
			}
			if s.Wait != nil {
				to.Wait = &plantmodbus.Condition{Address: s.Wait.Address, Input: s.Wait.Input, Mask: s.Wait.Mask, Signed: s.Wait.Signed,
					Min: s.Wait.Min, Max: s.Wait.Max, Within: time.Duration(s.Wait.Within), For: time.Duration(s.Wait.For)}
				if to.Wait.Unit, err = unitID(s.Wait.Unit, to.Unit); err != nil {
					return nil, fmt.Errorf("step %d: wait: %w", i+1, err)
				}
			}
			out = append(out, to)
		}
		return out, nil
	}
	c := plantmodbus.Config{Name: name, Bus: unit.Client, File: file, Progress: progress}
	if c.Quiesce, err = steps(w.Quiesce); err != nil {
		return nil, fmt.Errorf("modbus.quiesce: %w", err)
	}
	if c.Resume, err = steps(w.Resume); err != nil {
		return nil, fmt.Errorf("modbus.resume: %w", err)
	}
	return plantmodbus.New(c)
}

func unitID(given int, byDefault byte) (byte, error) {
	if given == 0 {
		return byDefault, nil
	}
	if given < 1 || given > 255 {
		return 0, fmt.Errorf("unit is %d, want 1 to 255", given)
	}
	return byte(given), nil
}

func (a *Agent) newQuiesceHTTP(h *QuiesceHTTP, progress func(string)) (plant.Action, error) {
	c := planthttp.Config{Quiesce: h.Quiesce, Resume: h.Resume, Device: a.cfg.Device.ID, Release: a.releaseInHand,
		Timeout: time.Duration(orDefault(h.Timeout, Duration(quiesceTimeout))), Progress: progress}
	if h.TokenFile != "" {
		b, err := readSmall(h.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("http.token_file: %w", err)
		}
		c.Token = firstLine(b)
	}
	if h.CAFile != "" {
		b, err := readSmall(h.CAFile)
		if err != nil {
			return nil, fmt.Errorf("http.ca_file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("http.ca_file: %s has no certificate", h.CAFile)
		}
		c.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return planthttp.New(c)
}

func (a *Agent) releaseInHand() string {
	if r := a.record.Load(); r != nil && r.Release != nil {
		return r.Release.Version
	}
	return ""
}

// plantSays is told the steps of quiescing and resuming.
func (a *Agent) plantSays(name, text string) {
	a.log.Info("plant", "name", name, "step", text)
	a.witness.step(name + ": " + text)
}

// suspendPlant runs the hook, which tells the application, and then brings the plant
// to rest.
func (a *Agent) suspendPlant(ctx context.Context) error {
	a.notResumed.Store(nil)
	if len(a.cfg.Hooks.Suspend.Command) > 0 {
		if err := a.runHook(ctx, "suspend", &a.cfg.Hooks.Suspend); err != nil {
			return err
		}
	}
	if a.plant == nil {
		return nil
	}
	defer a.alive.enter("quiescing the plant")()
	return a.plant.Quiesce(ctx)
}

// resumePlant does the opposite, in the opposite order, all of it.
func (a *Agent) resumePlant(ctx context.Context) error {
	var errs []error
	if a.plant != nil {
		leave := a.alive.enter("resuming the plant")
		errs = append(errs, a.plant.Resume(ctx))
		leave()
	}
	if len(a.cfg.Hooks.Resume.Command) > 0 {
		errs = append(errs, a.runHook(ctx, "resume", &a.cfg.Hooks.Resume))
	}
	err := errors.Join(errs...)
	a.notResumed.Store(&err)
	return err
}

// plantState says for people how the plant is while it is not at work; "" while it is.
func (a *Agent) plantState() string {
	if r := a.record.Load(); r == nil || !r.Quiesced {
		return ""
	}
	if err := a.notResumed.Load(); err != nil && *err != nil {
		return "QUIESCED, AND CANNOT BE RESUMED, trying again: " + (*err).Error()
	}
	return "quiesced for the update"
}

// plantWarnings say what of the configuration keeps a plant that works from updates.
func (a *Agent) plantWarnings() (w []string) {
	b := &a.cfg.Battery
	if len(a.cfg.Quiesce) == 0 || a.read == nil {
		return nil
	}
	if b.Standby == nil && thresholds(b).Standby {
		w = append(w, "battery.rules recommended wants the system off or in standby, and the gate is asked before quiesce brings it there: a plant at work is never updated; "+
			"set battery.standby: false, or true if only an idle plant is to be updated")
	}
	if a.suspend == ota.SuspendBeforeCheck && valueOr(a.cfg.Dwell, 1) != 0 {
		w = append(w, "suspend is before_check: every check brings the plant to rest, and the gate's first no puts it back to work, also while it only waits for the dwell time; "+
			"a battery that is not within its limits at work stays without updates; set suspend: before_restart")
	}
	return w
}
