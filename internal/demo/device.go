package demo

import (
	"context"
	"path/filepath"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/agent"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/simulate"
)

const (
	waitsFor   = 10 * time.Second       // until the empty battery is charged
	chargeStep = 300 * time.Millisecond // for one percent
	chargeTo   = 34                     // %
)

// device is a simulated battery system with a real agent.
type device struct {
	plan  Planned
	plant *simulate.System
	agent *agent.Agent

	waits   time.Time // since when it is known to wait
	soc     float64
	charged time.Time // when the last percent was added

	askedAgain bool // for a release, after one has failed
}

func newDevice(ctx context.Context, st *stage, p Planned, r *releases) (*device, error) {
	low := p.temperature - 2 // of the coolest cell
	load := 8.0              // A: it works, at little power
	plant, err := simulate.Start(ctx, simulate.Config{SunSpec: "127.0.0.1:0",
		Battery: battery.Config{Start: battery.Settings{SoC: &p.soc, TemperatureMin: &low, TemperatureMax: &p.temperature, Current: &load}},
		Log:     func(err error) { st.log.Error("simulated plant", "device", p.Device, "error", err) }})
	if err != nil {
		return nil, err
	}
	modbus := &agent.Modbus{Address: plant.Where("sunspec")}
	dir := filepath.Join(st.dir, p.Device)
	duration := func(d time.Duration) *agent.Duration { return (*agent.Duration)(&d) }
	a, err := agent.New(agent.Config{
		Device:   agent.Device{ID: p.Device, Product: product, Hardware: "rev-b"},
		StateDir: filepath.Join(dir, "state"),
		Source: &agent.Source{HTTPS: &agent.HTTPS{URL: st.server.URL, CertPEMFile: st.server.CAFile,
			TokenFile: st.server.DeviceFile}},
		Keys:            agent.Keys{Files: []string{r.publicKey}},
		CheckInterval:   agent.Duration(pollInterval),
		StartupDelay:    duration(0),
		AutomaticUpdate: true,
		RollbackTimeout: agent.Duration(20 * time.Second),
		ValidationTime:  duration(2 * time.Second),
		Battery:         agent.Battery{Reader: "sunspec", Modbus: modbus},
		Quiesce:         []agent.Quiesce{{Name: "converter", DER: &agent.DER{Modbus: modbus, Settle: agent.Duration(500 * time.Millisecond)}}},
		Health:          []agent.Health{{Battery: "as_before"}},
		Dwell:           duration(3 * time.Second),
		Slot: agent.Slot{Kind: "file", Dir: filepath.Join(dir, "slots"), Run: true, Factory: r.factory,
			StartTimeout: agent.Duration(5 * time.Second)},
		Control: agent.Control{Socket: st.socket(p.Device)},
		Log:     st.log.With("at", p.Device),
		Version: "demo",
	})
	if err != nil {
		return nil, err
	}
	return &device{plan: p, plant: plant, agent: a, soc: p.soc}, nil
}

// socket is where "interlock device --socket" finds a device's agent. The path
// of a socket has at most 107 bytes (unix(7)); a longer one is no reason to fail.
func (st *stage) socket(id string) string {
	path := filepath.Join(st.dir, id, "agent.sock")
	if len(path) > 107 {
		return "none"
	}
	return path
}

// follow does what a person would on seeing a device like that: charges an empty
// battery, once everybody could see that it is waited for, and looks for a
// release again after one has failed, which must not be taken a second time.
func (d *device) follow(seen *api.Device, now time.Time) error {
	if seen.Status == ota.StatusFailed && !d.askedAgain {
		d.askedAgain = true
		d.agent.Command(control.Check)
	}
	if !d.plan.charges || d.soc >= chargeTo {
		return nil
	}
	if d.waits.IsZero() {
		if seen.Code == ota.ErrBatteryLow {
			d.waits = now
		}
		return nil
	}
	if now.Sub(d.waits) < waitsFor || now.Sub(d.charged) < chargeStep {
		return nil
	}
	d.charged = now
	d.soc++
	current := -8.0 // charging, slowly enough for an update; the percents come as in a time lapse
	if d.soc >= chargeTo {
		current = 0
	}
	return d.plant.Set(battery.Settings{SoC: &d.soc, Current: &current})
}
