package otatest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
)

// Kind is the kind of a cut, for counting.
type Kind string

// Kinds. Killed is the agent alone; the next five are the whole device.
const (
	Killed     Kind = "killed"     // the agent's process ended, before, after or inside an effect
	CutBefore  Kind = "before"     // the power went before an effect, with everything that was written kept
	CutAfter   Kind = "after"      // the same, after an effect
	CutInside  Kind = "torn"       // the power went inside an effect
	Dropped    Kind = "dropped"    // the power went before or after an effect, and took all that was not synced
	Reordered  Kind = "reordered"  // the same, but a part of it had reached the medium, in any order
	ReadFails  Kind = "read error" // a read failed, once or until the place was written
	BitFlipped Kind = "bit rot"
)

// Kinds lists them in the order of tables.
var Kinds = []Kind{Killed, CutBefore, CutAfter, CutInside, Dropped, Reordered, ReadFails, BitFlipped}

// Kind returns the kind of c.
func (c Cut) Kind() Kind {
	switch {
	case c.How == Rotten:
		return BitFlipped
	case !c.How.power():
		return ReadFails
	case c.Agent:
		return Killed
	case c.How == Torn:
		return CutInside
	case c.Rest == DropAll:
		return Dropped
	case c.Rest == Subset:
		return Reordered
	case c.How == Before:
		return CutBefore
	}
	return CutAfter
}

// Tally counts what [Cuts] tried.
type Tally struct {
	Cuts     int          // devices with at least one fault
	ByKind   map[Kind]int // the same, by the kind of the last fault
	Twice    int          // of these, devices that were cut, and cut again while they recovered
	Plant    int          // of these, devices that were cut while the plant was quiesced, or half so
	Stuck    int          // of these, devices that never resumed it
	Missed   int          // runs that ended before their fault, which are not counted
	Effects  int          // of the scenario without a cut
	Reads    int          // of the scenario without a cut
	Failures []Failure    // the first 20
}

// A Failure is a device that did not end as it must.
type Failure struct {
	Scenario string
	Cuts     []Cut
	Err      error
	Life     []string // what happened last
}

// CutString returns the cuts in the form that [ParseCuts] reads.
func (f Failure) CutString() string {
	var s []string
	for _, c := range f.Cuts {
		s = append(s, c.String())
	}
	return strings.Join(s, ",")
}

func (f Failure) String() string {
	return fmt.Sprintf("%s, cuts %s: %v\nlife: %v", f.Scenario, f.CutString(), f.Err, f.Life[max(0, len(f.Life)-40):])
}

// Options of [Cuts].
type Options struct {
	// Step takes every Step-th of the single cuts; default 29, which takes some of
	// every way at some of the effects. 1 takes them all.
	Step int
	// Second, if not 0, also cuts the recovery: after every first cut, at every
	// Second-th of the effects that follow, in one way after the other.
	Second int
	// Weak is for boot control in one copy without a checksum, as some conventions have
	// it. A device with that must boot a whole image and end in a defined state after
	// every fault, as after one of the medium, and boot control itself is spared tears,
	// rot and sectors that cannot be read.
	Weak bool
	// Unsealed is for boot control without a checksum: a bit that rots there may change
	// which whole image boots. Where one of the two does not come up, it is spared that.
	Unsealed bool
	// Fragile is for boot control without a checksum or a second copy that can leave the
	// device dead when a bit rots in it: there is nothing to be shown, and none does.
	Fragile bool
	// Progress is told about long work; may be nil.
	Progress io.Writer
}

// quiet is how long a device must have nothing to do before it counts as settled.
// It is longer than every pause of the machine with the configuration of a Device
// that can follow a cut, except the doubling ones.
const quiet = 12 * time.Minute

// Cuts runs sc once to count its effects and reads, and then once for every way to
// cut every effect: the agent alone or the whole device; before, after and inside; and
// for the device with everything unsynced kept, dropped, or parts of it; and once for
// every read that fails, and every bit in a list of places that rots. The device must
// then end as the scenario says; after a fault of the medium, in a defined state with
// a whole image. It must be called in a synctest bubble.
func Cuts(b Backend, sc Scenario, opt Options) Tally {
	m, err := newMatrix(b, sc)
	m.opt = opt
	t := Tally{ByKind: map[Kind]int{}, Effects: len(m.effects), Reads: m.reads}
	if err != nil {
		t.Failures = append(t.Failures, Failure{Scenario: sc.Name, Err: fmt.Errorf("without a cut: %w", err)})
		return t
	}
	try := func(cuts ...Cut) (effects, reads int) {
		r := m.run(cuts)
		if r.err != nil && len(t.Failures) < 20 {
			t.Failures = append(t.Failures, Failure{sc.Name, cuts, r.err, r.d.Events})
		}
		if !r.all {
			t.Missed++
			return r.effects, r.reads
		}
		t.Cuts++
		if r.d.cutOff > 0 {
			t.Plant++
		}
		if r.d.cutOff > 0 && r.d.Suspended {
			t.Stuck++
		}
		t.ByKind[cuts[len(cuts)-1].Kind()]++
		if len(cuts) > 1 {
			t.Twice++
		}
		return r.effects, r.reads
	}
	if opt.Step <= 0 {
		opt.Step = 29
	}
	single, pairs := 0, 0
	for at := 1; at <= t.Effects; at++ {
		for _, first := range m.ways(at) {
			if single++; single%opt.Step != 0 {
				continue
			}
			after, reads := try(first)
			for at := 1; at <= after && opt.Second > 0 && first.How.power(); at++ {
				if pairs++; pairs%opt.Second == 0 {
					if c := again(pairs/opt.Second, at, reads); !m.opt.Weak || c.How != Torn {
						try(first, c)
					}
				}
			}
		}
		if opt.Progress != nil {
			fmt.Fprintf(opt.Progress, "%s: effect %d of %d, %d cuts\n", sc.Name, at, t.Effects, t.Cuts)
		}
	}
	for at := 1; at <= t.Reads; at++ {
		for _, c := range []Cut{{At: at, How: Misread}, {At: at, How: BadSector, Seed: uint64(at)}} {
			if single++; single%opt.Step == 0 {
				try(c)
			}
		}
	}
	return t
}

// Again runs sc with these cuts, and tells log everything that the device does to its
// disk. It must be called in a synctest bubble.
func Again(b Backend, sc Scenario, opt Options, cuts []Cut, log io.Writer) error {
	m, err := newMatrix(b, sc)
	if err != nil {
		return err
	}
	m.log, m.opt = log, opt
	r := m.run(cuts)
	for _, e := range r.d.Events {
		fmt.Fprintln(log, "life:", e)
	}
	if r.err == nil && !r.all {
		return fmt.Errorf("it ended well, before the last of %d cuts came true", len(cuts))
	}
	return r.err
}

// units are the sizes of what media write at once: a byte, a word, the word of flash
// with error correction, a sector, and a page.
var units = []int{1, 4, 16, 512, 4096}

// seeds is how many subsets of what was not synced are tried at each effect.
const seeds = 3

// ways lists what is done at one effect.
func (m *matrix) ways(at int) (cuts []Cut) {
	for _, how := range []How{Before, After, Torn} {
		cuts = append(cuts, Cut{At: at, How: how, Agent: true, Seed: uint64(at)})
		if how == Torn {
			break
		}
		cuts = append(cuts, Cut{At: at, How: how, Rest: KeepAll}, Cut{At: at, How: how, Rest: DropAll})
		for seed := range uint64(seeds) {
			cuts = append(cuts, Cut{At: at, How: how, Rest: Subset, Seed: uint64(at) + seed<<32})
		}
	}
	writes := strings.HasPrefix(m.effects[at-1], "write ")
	for _, unit := range units {
		for rest := range Rest(len(rests)) {
			if m.opt.Weak && writes && m.class(m.effects[at-1]) == InControl {
				break
			}
			cuts = append(cuts, Cut{At: at, How: Torn, Rest: rest, Unit: unit, Seed: uint64(at)})
		}
		if !writes {
			break // has no units
		}
	}
	for _, where := range []Where{InRecord, InControl, InSlot} {
		if where == InControl && (m.opt.Weak || m.opt.Fragile || m.opt.Unsealed && m.dud()) {
			continue
		}
		cuts = append(cuts, Cut{At: at, How: Rotten, Where: where, Seed: uint64(at)})
	}
	return cuts
}

// dud reports whether one of the images does not come up.
func (m *matrix) dud() bool {
	return slices.ContainsFunc(m.base.Known, func(f Firmware) bool { return !f.Boots })
}

// again returns the n-th second cut: at effect at, in one way after the other, and in
// one of 32 cases at one of the agent's reads. What the medium does besides is left
// out: a second copy that rots, or cannot be read by the bootloader, while the first is
// torn, is more than two copies can bear.
func again(n, at, reads int) Cut {
	seed := uint64(n)
	way := n % 32
	switch {
	case way == 31 && reads > 0:
		return Cut{At: 1 + n/32%reads, How: Misread}
	case way < 16:
		return Cut{At: at, How: Torn, Rest: Rest(way % 3), Unit: units[n/3%len(units)], Seed: seed, Agent: way == 15}
	}
	c := Cut{At: at, How: How(way % 2), Rest: Rest(way / 2 % 3), Seed: seed}
	c.Agent = way < 20
	return c
}

// A matrix is one scenario on one kind of device.
type matrix struct {
	sc      Scenario
	base    *Device
	effects []string // of a run without a cut
	reads   int
	classes func(d *Device) func(name string, off int64) Where
	opt     Options
	log     io.Writer // of everything; nil: nobody
}

// class returns what an effect is about.
func (m *matrix) class(effect string) Where {
	f := append(strings.Fields(effect), "", "")
	off, _, _ := strings.Cut(f[2], "+")
	at, _ := strconv.ParseInt(off, 10, 64) // of names, 0
	return m.classes(m.base)(f[1], at-at%pageSize)
}

func newMatrix(b Backend, sc Scenario) (*matrix, error) {
	m := &matrix{sc: sc}
	var err error
	if m.base, err = sc.Start(b); err != nil {
		return m, err
	}
	r := m.run(nil)
	m.effects, m.reads = r.names, r.reads
	if r.err == nil {
		m.classes = classify(m.base, r.d)
	}
	return m, r.err
}

// outcome is how one run ended.
type outcome struct {
	d       *Device
	err     error
	all     bool     // every cut came true
	effects int      // since the last power cut
	reads   int      // since the last power cut
	names   []string // of the effects, of a run without a cut
}

// run takes a new device through the scenario, and judges it.
func (m *matrix) run(cuts []Cut) (r outcome) {
	d := m.base.clone()
	r.d = d
	switch {
	case m.log != nil:
		d.Disk.seen = func(effect string) { fmt.Fprintf(m.log, "%4d %s\n", d.Disk.effects, effect) }
	case len(cuts) == 0:
		d.Disk.seen = func(effect string) { r.names = append(r.names, effect) }
	}
	if m.sc.Setup != nil {
		m.sc.Setup(d)
	}
	d.watched = true
	d.unread, d.faulty = len(cuts) > 1, m.opt.Weak
	if len(cuts) > 0 {
		last := cuts[len(cuts)-1]
		d.faulty, d.rotten = m.opt.Weak || !last.How.power(), last.How == Rotten
		d.astray = m.opt.Unsealed && last.Where == InControl
		if d.faulty {
			d.Disk.classes, d.Disk.spared = m.classes(d), m.opt.Weak
		}
	}
	left, fell := cuts, 0
	arm := func() {
		if len(left) > 0 {
			d.Arm(left[0])
			left = left[1:]
		} else {
			d.Arm(Cut{})
		}
	}
	arm()
	next := func() { fell++; arm() }
	r.err = d.Live(context.Background(), quiet, next, next)
	r.effects, r.reads = d.Effects(), d.Disk.Reads()
	d.Disk.seen = nil
	if d.Disk.Fell() {
		fell++
	}
	r.all = fell == len(cuts)
	if r.err == nil {
		r.err = judge(d, m.sc, m.base)
	}
	return r
}

// judge compares how the device ended with how it must end.
func judge(d *Device, sc Scenario, base *Device) error {
	if len(d.Faults) > 0 {
		return fmt.Errorf("%q", d.Faults)
	}
	if !d.faulty && !slices.Contains(sc.Want, d.Running.Version) {
		return fmt.Errorf("runs %s, want one of %q", d.Running.Version, sc.Want)
	}
	if d.Suspended {
		return fmt.Errorf("the application was never resumed")
	}
	s := d.Manager().Snapshot()
	if s.State != ota.Idle && s.State != ota.Available {
		return fmt.Errorf("ended in state %s: %s", s.State, s.Reason)
	}
	if err := judgeReports(d, sc, s, base); err != nil {
		return err
	}
	if sc.Verdict != nil && !d.faulty {
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
	if d.Running.Version != version && !d.astray {
		return fmt.Errorf("runs %s, and after one more power cut %s", version, d.Running.Version)
	}
	return nil
}

// judgeReports wants exactly one report beside those that were there before, and a true
// one. After a fault of the medium every result will do, and none, if the device runs
// what it ran.
func judgeReports(d *Device, sc Scenario, s ota.Snapshot, base *Device) error {
	if s.Unsent != 0 {
		return fmt.Errorf("%d reports were not delivered", s.Unsent)
	}
	var ids []string
	for _, r := range base.Source.Reports {
		ids = append(ids, r.ID)
	}
	before := len(ids)
	for _, r := range d.Source.Reports[before:] {
		if slices.Contains(ids, r.ID) {
			continue // delivered again, and known by its ID
		}
		if _, ok := d.Backend.(Impatient); ok && r.Result == ota.Lost && len(ids) > before {
			continue // starts that were cut off before the agent ran ended in the other slot, and it says so
		}
		ids = append(ids, r.ID)
		if !d.faulty && !slices.Contains(sc.Results, r.Result) {
			return fmt.Errorf("reported %q (%s), want one of %q", r.Result, r.Reason, sc.Results)
		}
	}
	none := slices.Contains(sc.Results, "") || d.faulty && d.Running.Version == base.Running.Version
	if n := len(ids) - before; n != 1 && !(n == 0 && none) {
		return fmt.Errorf("%d reports %v, want 1", n, d.Source.Reports[before:])
	}
	return nil
}
