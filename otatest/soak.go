package otatest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota"
)

// soakTime is longer than the pace at which its progress is saved, and short enough
// for a device to settle in quiet.
const (
	soakTime     = 100 * time.Second
	soakInterval = 10 * time.Second
)

// soaks are updates to firmware that is watched on after it was marked good. They
// begin on trial: the way there is that of every other update.
func soaks(old, good Firmware) []Scenario {
	start := onTrial(old, good)
	back := []ota.Result{ota.RolledBack}
	return []Scenario{
		soakedWell(start, good.Version),
		{Name: "a symptom in the soak", Start: start, Installed: true, Want: []string{old.Version}, Results: back,
			Setup: func(d *Device) {
				soak(d, good.Version, func(c *ota.Config) {
					c.Gate = refuse // the plant can be quiesced, which is enough
				})
			}},
		{Name: "a symptom and a plant at work", Start: start, Installed: true, Want: []string{old.Version}, Results: back,
			Setup: func(d *Device) {
				var first time.Time
				soak(d, good.Version, func(c *ota.Config) {
					c.Hooks.Suspend = func(context.Context) error {
						d.event("Suspend fails")
						return errors.Join(d.Disk.Effect("plant ramps down", func() { d.Suspended = true }), errors.New("the contactor does not answer"))
					}
					c.Gate = func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
						if first.IsZero() {
							first = time.Now()
						}
						if time.Since(first) < 100*time.Second {
							return refuse(ctx, m, at)
						}
						return nil
					}
				})
			}},
	}
}

func refuse(context.Context, *ota.Manifest, ota.Moment) error {
	return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "discharging at 80 kW"}
}

// onTrial starts with a device whose agent has ended in a trial.
func onTrial(old, good Firmware) func(Backend) (*Device, error) {
	return func(b Backend) (*Device, error) {
		d, err := Start(b, old, good)
		if err != nil {
			return d, err
		}
		d.Config = func(c *ota.Config) {
			c.RollbackTimeout = time.Hour
			c.Healthy = func(context.Context) error { return errors.New("not yet") }
		}
		if err := d.Live(context.Background(), quiet); err != nil {
			return d, err
		}
		if s := d.Manager().Snapshot(); s.State != ota.Trial || d.Running.Version != good.Version {
			return d, fmt.Errorf("runs %s in state %s before the soak, want %s on trial", d.Running.Version, s.State, good.Version)
		}
		return d, nil
	}
}

// soak gives firmware of this version a symptom, some time after it was first asked for
// one, and makes changes for it. Other firmware is as always.
func soak(d *Device, version string, change func(*ota.Config)) {
	var first time.Time
	d.Config = func(c *ota.Config) {
		if c.SoakTime, c.HealthInterval = soakTime, soakInterval; d.Running.Version != version {
			return
		}
		c.Symptom = func(context.Context) error {
			if first.IsZero() {
				first = time.Now()
			}
			if time.Since(first) < 45*time.Second {
				return nil
			}
			return errors.New("rack 3 is hot")
		}
		change(c)
	}
}

// soakedWell ends in a success, and not before its time.
func soakedWell(start func(Backend) (*Device, error), version string) Scenario {
	var marked, ended time.Time // the first time that it was about to be done
	return Scenario{Name: "watched for a while", Start: start, Installed: true, Want: []string{version}, Results: []ota.Result{ota.Succeeded},
		Setup: func(d *Device) {
			marked, ended = time.Time{}, time.Time{}
			d.Config = func(c *ota.Config) { c.SoakTime, c.HealthInterval = soakTime, soakInterval }
			d.OnCall = func(call string) {
				switch {
				case d.Running.Version != version:
				case call == "mark good" && marked.IsZero():
					marked = time.Now()
				case call == "save idle" && ended.IsZero():
					ended = time.Now()
				}
			}
		},
		Verdict: func(*Device) error {
			if took := ended.Sub(marked); took < soakTime {
				return fmt.Errorf("success %v after the slot was marked good, want it after %v", took, soakTime)
			}
			return nil
		},
	}
}
