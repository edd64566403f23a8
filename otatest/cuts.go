package otatest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
)

// A Scenario is one update, and how it must end.
type Scenario struct {
	Name  string
	Start func(b Backend) (*Device, error)
	// Want lists the versions that may run at the end, whatever is cut.
	Want []string
	// Results lists how the update may be reported.
	Results []ota.Result
	// Verdict, if set, judges the rest.
	Verdict func(d *Device) error
}

// Tally counts what [Cuts] tried.
type Tally struct {
	Cuts     int // devices that lost power or agent at least once
	Effects  int // of the scenario without a cut
	Failures []string
}

// Options of [Cuts].
type Options struct {
	// Second, if not 0, also cuts the recovery: after every first cut, at every
	// Second-th of the effects that follow, in one way after the other.
	Second int
	// Progress is told about long work; may be nil.
	Progress io.Writer
}

// quiet is how long a device must have nothing to do before it counts as settled.
// It is longer than every pause of the machine with the configuration of a Device
// that can follow a cut, except the doubling ones.
const quiet = 12 * time.Minute

// Cuts runs sc once to count its effects, and then once for every way to cut
// every effect: the agent alone or the whole device; before, after and inside; and
// for the device with everything unsynced kept, dropped, or a part of it. The
// device must then end as the scenario says. It must be called in a synctest bubble.
func Cuts(b Backend, sc Scenario, opt Options) Tally {
	var t Tally
	try := func(cuts ...Cut) (effects int) {
		d, effects, err := run(b, sc, cuts)
		if len(cuts) > 0 {
			t.Cuts++
		}
		if err == nil {
			err = judge(d, sc)
		}
		if err != nil && len(t.Failures) < 20 {
			t.Failures = append(t.Failures, fmt.Sprintf("%s, %v: %v\nlife: %v", sc.Name, cuts, err, tail(d)))
		}
		return effects
	}
	t.Effects = try()
	pairs := 0
	for at := 1; at <= t.Effects; at++ {
		for _, first := range ways(at) {
			after := try(first)
			for at := 1; at <= after && opt.Second > 0; at++ {
				if pairs++; pairs%opt.Second == 0 {
					w := ways(at)
					try(first, w[pairs/opt.Second%len(w)])
				}
			}
		}
		if opt.Progress != nil {
			fmt.Fprintf(opt.Progress, "%s: effect %d of %d, %d cuts\n", sc.Name, at, t.Effects, t.Cuts)
		}
	}
	return t
}

// ways lists the cuts at one effect.
func ways(at int) (cuts []Cut) {
	for _, how := range []How{Before, After, Torn} {
		cuts = append(cuts, Cut{At: at, How: how, Agent: true, Seed: uint64(at)})
		for _, rest := range []Rest{KeepAll, DropAll, Subset} {
			cuts = append(cuts, Cut{At: at, How: how, Rest: rest, Seed: uint64(at)})
		}
	}
	return cuts
}

// run takes a new device through sc. It returns the count of effects after the
// last cut.
func run(b Backend, sc Scenario, cuts []Cut) (d *Device, effects int, err error) {
	d, err = sc.Start(b)
	if err != nil {
		return d, 0, err
	}
	arm := func() {
		if len(cuts) > 0 {
			d.Arm(cuts[0])
			cuts = cuts[1:]
		} else {
			d.Arm(Cut{})
		}
	}
	arm()
	err = d.Live(context.Background(), quiet, arm, arm)
	return d, d.Effects(), err
}

// judge compares how the device ended with how it must end.
func judge(d *Device, sc Scenario) error {
	if len(d.Faults) > 0 {
		return fmt.Errorf("%q", d.Faults)
	}
	if !slices.Contains(sc.Want, d.Running.Version) {
		return fmt.Errorf("runs %s, want one of %q", d.Running.Version, sc.Want)
	}
	if d.Suspended {
		return fmt.Errorf("the application was never resumed")
	}
	s := d.Manager().Snapshot()
	if s.State != ota.Idle && s.State != ota.Available {
		return fmt.Errorf("ended in state %s: %s", s.State, s.Reason)
	}
	if s.Unsent != 0 {
		return fmt.Errorf("%d reports were not delivered", s.Unsent)
	}
	var ids []string
	for _, r := range d.Source.Reports {
		if slices.Contains(ids, r.ID) {
			continue // delivered again, and known by its ID
		}
		ids = append(ids, r.ID)
		if !slices.Contains(sc.Results, r.Result) {
			return fmt.Errorf("reported %q (%s), want one of %q", r.Result, r.Reason, sc.Results)
		}
	}
	if len(ids) != 1 && !(len(ids) == 0 && slices.Contains(sc.Results, "")) {
		return fmt.Errorf("%d reports %v, want 1", len(ids), d.Source.Reports)
	}
	if sc.Verdict != nil {
		if err := sc.Verdict(d); err != nil {
			return err
		}
	}
	// What runs now must be what runs after any other power cut.
	version := d.Running.Version
	d.Disk.PowerOff(DropAll, 0)
	d.Disk.PowerOn()
	if err := d.PowerOn(); err != nil {
		return err
	}
	if d.Running.Version != version {
		return fmt.Errorf("runs %s, and after one more power cut %s", version, d.Running.Version)
	}
	return nil
}

func tail(d *Device) []string {
	if d == nil {
		return nil
	}
	return d.Events[max(0, len(d.Events)-40):]
}

// Scenarios are the updates that every device must survive, with images of
// chunks chunks.
func Scenarios(chunks int) []Scenario {
	size := chunks*ChunkSize - 1000
	old := NewFirmware("1.0.0", size-ChunkSize/2, true, true)
	to := func(f Firmware, change func(*Device)) func(Backend) (*Device, error) {
		return func(b Backend) (*Device, error) {
			d, err := Start(b, old, f)
			if err == nil && change != nil {
				change(d)
			}
			return d, err
		}
	}
	good := NewFirmware("1.0.1", size, true, true)
	list := []Scenario{
		{Name: "good image", Start: to(good, nil), Want: []string{"1.0.1"}, Results: []ota.Result{ota.Succeeded}},
		{Name: "image does not start", Start: to(NewFirmware("1.0.1", size, false, false), nil),
			Want: []string{"1.0.0"}, Results: []ota.Result{ota.Failed}},
		{Name: "image starts unhealthy", Start: to(NewFirmware("1.0.1", size, true, false), nil),
			Want: []string{"1.0.0"}, Results: []ota.Result{ota.RolledBack, ota.Failed}},
		{Name: "download cut in the middle", Want: []string{"1.0.1"}, Results: []ota.Result{ota.Succeeded},
			Start: to(good, func(d *Device) { d.Source.CutAt = []int64{int64(size) / 3, int64(size) / 2, int64(size) - 1} })},
		{Name: "suspended before the check", Want: []string{"1.0.1"}, Results: []ota.Result{ota.Succeeded},
			Start: to(good, func(d *Device) { d.Config = func(c *ota.Config) { c.Suspend = ota.SuspendBeforeCheck } })},
		{Name: "a person goes back", Want: []string{"1.0.0"}, Results: []ota.Result{ota.Succeeded}, Start: goBack(old, good)},
	}
	for _, when := range []string{"write", "sync", "save", "try", "suspend"} {
		list = append(list, abortAt(when, to(good, nil)))
	}
	return list
}

// goBack starts on a device that has been updated, and is asked to return.
func goBack(old, good Firmware) func(Backend) (*Device, error) {
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
		d.Source.Reports, d.Events = nil, nil
		asked := false
		d.Config = func(c *ota.Config) {
			c.StartupDelay = time.Minute
			gate := c.Gate
			c.Gate = func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
				asked = true // from here on the record has it, and nobody needs to ask again
				return gate(ctx, m, at)
			}
		}
		d.AtStart = func(m *ota.Manager) {
			if !asked && d.Running.Version == good.Version {
				m.RollBack()
			}
		}
		return d, nil
	}
}

// abortAt lets a person abort at the first effect whose name begins with when.
func abortAt(when string, start func(Backend) (*Device, error)) Scenario {
	calls := map[*Device]*ota.Call{}
	return Scenario{
		Name: "aborted at the first " + when,
		Start: func(b Backend) (*Device, error) {
			d, err := start(b)
			if err != nil {
				return d, err
			}
			d.Disk.OnEffect = func(_ int, effect string) Fault {
				if calls[d] == nil && d.Manager() != nil && matches(effect, when) {
					calls[d] = d.Manager().Abort()
				}
				return Fault{}
			}
			return d, nil
		},
		Want:    []string{"1.0.0", "1.0.1"},
		Results: []ota.Result{ota.Aborted, ota.Succeeded},
		Verdict: func(d *Device) error {
			d.Disk.OnEffect = nil
			call := calls[d]
			delete(calls, d)
			if call == nil {
				return nil
			}
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			// Select is fair: ask often enough that an ended call is seen as ended.
			for range 32 {
				if err := call.Wait(ended); err == nil && d.Running.Version != "1.0.0" {
					return fmt.Errorf("the abort was confirmed, and %s runs", d.Running.Version)
				}
			}
			return nil
		},
	}
}

// matches compares the name of an effect with a short word for it: the machine's
// effects are files on a disk here.
func matches(effect, when string) bool {
	switch when {
	case "save":
		return strings.HasPrefix(effect, "rename /data/record") || strings.HasPrefix(effect, "sync /data/record")
	case "try":
		return strings.HasPrefix(effect, "write /device/boot")
	case "write":
		return strings.HasPrefix(effect, "write /device/b/")
	case "sync":
		return strings.HasPrefix(effect, "sync /device/b/")
	}
	return strings.HasPrefix(effect, when)
}
