package otatest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
)

// A Scenario is one update, and how it must end.
type Scenario struct {
	Name string
	// Start makes the device, once. Every run begins with a copy of it.
	Start func(b Backend) (*Device, error)
	// Installed says that it begins with the new firmware on trial, so that the size of
	// the image matters little.
	Installed bool
	// Setup, if set, prepares each copy: hooks belong here.
	Setup func(d *Device)
	// Want lists the versions that may run at the end, whatever is cut.
	Want []string
	// Results lists how the update may be reported.
	Results []ota.Result
	// Verdict, if set, judges the rest.
	Verdict func(d *Device) error
}

// Scenarios are the updates that every device must survive, with images of
// chunks chunks.
func Scenarios(chunks int) []Scenario {
	size := chunks*ChunkSize - 1000
	old := NewFirmware("1.0.0", size-ChunkSize/2, true, true)
	to := func(f Firmware) func(Backend) (*Device, error) {
		return func(b Backend) (*Device, error) { return Start(b, old, f) }
	}
	good := NewFirmware("1.0.1", size, true, true)
	succeeds := []ota.Result{ota.Succeeded}
	list := []Scenario{
		{Name: "good image", Start: to(good), Want: []string{"1.0.1"}, Results: succeeds},
		{Name: "image does not start", Start: to(NewFirmware("1.0.1", size, false, false)),
			Want: []string{"1.0.0"}, Results: []ota.Result{ota.Failed}},
		{Name: "image starts unhealthy", Start: to(NewFirmware("1.0.1", size, true, false)),
			Want: []string{"1.0.0"}, Results: []ota.Result{ota.RolledBack, ota.Failed}},
		{Name: "download cut in the middle", Start: to(good), Want: []string{"1.0.1"}, Results: succeeds,
			Setup: func(d *Device) { d.Source.CutAt = []int64{int64(size) / 3, int64(size) / 2, int64(size) - 1} }},
		{Name: "suspended before the check", Start: to(good), Want: []string{"1.0.1"}, Results: succeeds,
			Setup: func(d *Device) { d.Config = func(c *ota.Config) { c.Suspend = ota.SuspendBeforeCheck } }},
		{Name: "a person goes back", Start: updated(old, good), Setup: goBack, Want: []string{"1.0.0"}, Results: succeeds},
	}
	list = append(list, soaks(old, good)...)
	for _, when := range []string{"write", "sync", "save", "try", "suspend"} {
		list = append(list, abortAt(when, to(good)))
	}
	return list
}

// updated starts with a device that has been updated.
func updated(old, good Firmware) func(Backend) (*Device, error) {
	return func(b Backend) (*Device, error) {
		d, err := Start(b, old, good)
		if err != nil {
			return d, err
		}
		if err := d.Live(context.Background(), quiet); err != nil {
			return d, err
		}
		if d.Running.Version != good.Version {
			return d, fmt.Errorf("runs %s before the way back, want %s", d.Running.Version, good.Version)
		}
		return d, nil
	}
}

// goBack lets a person ask the device to return, until it is in the record.
func goBack(d *Device) {
	asked, from := false, d.Running.Version
	d.Config = func(c *ota.Config) {
		c.StartupDelay = time.Minute
		gate := c.Gate
		c.Gate = func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
			asked = true // from here on the record has it, and nobody needs to ask again
			return gate(ctx, m, at)
		}
	}
	d.AtStart = func(m *ota.Manager) {
		if !asked && d.Running.Version == from {
			m.RollBack()
		}
	}
}

// abortAt lets a person abort at the first call whose name begins with when.
func abortAt(when string, start func(Backend) (*Device, error)) Scenario {
	return Scenario{
		Name:  "aborted at the first " + when,
		Start: start,
		Setup: func(d *Device) {
			d.OnCall = func(call string) {
				if d.abort == nil && strings.HasPrefix(call, when) {
					d.abort = d.Manager().Abort()
				}
			}
		},
		Want:    []string{"1.0.0", "1.0.1"},
		Results: []ota.Result{ota.Aborted, ota.Succeeded},
		Verdict: func(d *Device) error {
			if d.abort == nil {
				return nil
			}
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			// Select is fair: ask often enough that an ended call is seen as ended.
			for range 32 {
				if err := d.abort.Wait(ended); err == nil && d.Running.Version != "1.0.0" {
					return fmt.Errorf("the abort was confirmed, and %s runs", d.Running.Version)
				}
			}
			return nil
		},
	}
}
