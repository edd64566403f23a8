package ota_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/file/filetest"
)

var (
	v100 = otatest.NewFirmware("1.0.0", 18000, true, true)
	v101 = otatest.NewFirmware("1.0.1", 21000, true, true)
)

// device runs f with a new device that runs v100 and is offered v101, or the
// last of other, in a bubble of its own. The gate allows everything.
func device(t *testing.T, f func(t *testing.T, d *otatest.Device), other ...otatest.Firmware) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if len(other) == 0 {
			other = []otatest.Firmware{v101}
		}
		d, err := otatest.Start(filetest.Backend{}, append([]otatest.Firmware{v100}, other...)...)
		if err != nil {
			t.Fatal(err)
		}
		configure(d, nil)
		f(t, d)
		for _, fault := range d.Faults {
			t.Error(fault)
		}
	})
}

// configure lets the gate allow everything, and then makes its own changes.
func configure(d *otatest.Device, change func(*ota.Config)) {
	d.Config = func(c *ota.Config) {
		c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error { return nil }
		if change != nil {
			change(c)
		}
	}
}

// live lets the device live until it has had nothing to do for a while.
func live(t *testing.T, d *otatest.Device) ota.Snapshot {
	t.Helper()
	if err := d.Live(t.Context(), 23*time.Minute); err != nil {
		t.Fatal(err)
	}
	return d.Manager().Snapshot()
}

// background lets the device live while f acts on it. f must not wait for a
// restart: the manager it got is gone then.
func background(t *testing.T, d *otatest.Device, f func(m *ota.Manager)) {
	t.Helper()
	started := make(chan *ota.Manager, 64)
	d.AtStart = func(m *ota.Manager) { started <- m }
	ended := make(chan error, 1)
	go func() { ended <- d.Live(t.Context(), 23*time.Minute) }()
	f(<-started)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	d.AtStart = nil
}

// powerCycle takes the power away and gives it back.
func powerCycle(t *testing.T, d *otatest.Device, rest otatest.Rest) {
	t.Helper()
	d.Disk.PowerOff(rest, 0)
	d.Disk.PowerOn()
	if err := d.PowerOn(); err != nil {
		t.Fatal(err)
	}
}

func wantRunning(t *testing.T, d *otatest.Device, version string) {
	t.Helper()
	if d.Running.Version != version {
		t.Errorf("runs %s, want %s; life: %v", d.Running.Version, version, d.Events)
	}
}

func wantReport(t *testing.T, d *otatest.Device, result ota.Result, code ota.ErrorCode, reason string) {
	t.Helper()
	if len(d.Source.Reports) != 1 {
		t.Fatalf("got %d reports %+v, want 1", len(d.Source.Reports), d.Source.Reports)
	}
	r := d.Source.Reports[0]
	if r.Result != result || r.Code != code || !strings.Contains(r.Reason, reason) {
		t.Errorf("reported %q %s %q, want %q %s %q", r.Result, r.Code.Name(), r.Reason, result, code.Name(), reason)
	}
}

// order returns the events without the gate's questions, repeated progress
// counted once.
func order(d *otatest.Device) string {
	var names []string
	for _, e := range d.Events {
		name, _, _ := strings.Cut(e, " ")
		if name == "gate" || len(names) > 0 && name == "Progress" && names[len(names)-1] == name {
			continue
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// statuses makes the device note every status, and returns where.
func statuses(d *otatest.Device) *[]string {
	var seen []string
	before := d.Config
	d.Config = func(c *ota.Config) {
		before(c)
		c.Hooks.Event = func(s ota.Status, _ ota.ErrorCode) {
			if !slices.Contains(seen[max(0, len(seen)-1):], s.String()) {
				seen = append(seen, s.String())
			}
		}
	}
	return &seen
}

// freePort returns a port on loopback where nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(otatest.FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	return port
}
