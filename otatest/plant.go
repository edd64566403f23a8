package otatest

import (
	"context"

	"github.com/interlock-energy/ota"
)

// The plant is what a device controls, and what its hooks quiesce: an inverter with a set
// point and a contactor. It stands outside of the device and has a power supply of its
// own, so that a cut leaves it as it is: who has quiesced it must resume it, in whatever
// life. Quiescing and resuming take two steps, and the power can go before, after and
// inside each. Where the hooks quiesce before every check, they stop tasks of the device
// instead, which start again with it.

// quiesce ramps down, and opens the contactor.
func (d *Device) quiesce() error {
	if err := d.Disk.Effect("plant ramps down", func() { d.Suspended = true }); err != nil {
		return err
	}
	return d.Disk.Effect("plant opens", func() { d.still = true })
}

// resume is the opposite, in the opposite order.
func (d *Device) resume() error {
	if err := d.Disk.Effect("plant closes", func() { d.still = false }); err != nil {
		return err
	}
	return d.Disk.Effect("plant ramps up", func() { d.Suspended = false })
}

// countPlant counts a cut that somebody must make up for.
func (d *Device) countPlant() {
	if d.Suspended && !d.tasks {
		d.cutOff++
	}
}

// hear remembers when the gate last said yes to a restart.
func (d *Device) hear(cfg *ota.Config) {
	gate := cfg.Gate
	d.allowed = -1
	cfg.Gate = func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
		err := gate(ctx, m, at)
		d.allowed = -1
		if err == nil && at == ota.AtRestart {
			d.allowed = d.Disk.Effects()
		}
		return err
	}
}

// mayRestart is asked at every restart of the device by its agent. The plant is
// quiesced, if the agent can do that. Only firmware that was marked good is also left
// while the gate says yes, if that is the last thing that was asked and done.
func (d *Device) mayRestart(cfg *ota.Config) {
	if !d.watched || d.faulty || d.tasks || cfg.Hooks.Suspend == nil || d.still {
		return
	}
	if s := d.Manager().Snapshot(); s.Status != ota.StatusRollingBack || cfg.SoakTime == 0 || d.allowed != d.Disk.Effects() {
		d.fault("the device restarts in state %s, the plant is not quiesced, and the gate was not asked", s.State)
	}
}

// recordsPlant compares what is about to be stored with the plant: a record that takes a
// quiesced plant for one at work would leave it so after the next cut.
func (d *Device) recordsPlant(r ota.Record) {
	if d.watched && !d.faulty && !d.tasks && d.Suspended && !r.Quiesced {
		d.fault("the record says in state %s that the plant is at work, and it is quiesced", r.State)
	}
}
