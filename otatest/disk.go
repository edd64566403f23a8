package otatest

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"sync"
)

// Disk is a file system in memory that loses power and fails when a test says
// so. It is a fake, for faults that a real disk cannot be made to show, and
// implements the interface that all state on a device is written through.
//
// It keeps apart what a real machine keeps apart:
//
//	page cache  what reads see, at once after a write
//	medium      what has been synced; all that is left after a power cut
//	            with DropAll
//	in between  what was written but not synced: per file, in pieces of 4 KiB;
//	            a power cut keeps it, drops it or keeps any part of it
//
// and names from content: the content of a file is durable after its Sync, but
// its name, a rename or a removal only after SyncDir on the directory. A file
// whose name is durable and whose content is not is empty after a cut, as on ext4
// with delayed allocation.
//
// Everything that changes something, or syncs, is an effect. Effects are counted
// and have a name, for example
//
//	create /data/record.tmp
//	write /slots/b/controller.img 65536+65536
//	truncate /slots/b/controller.img 180000
//	sync /data/record.tmp
//	rename /data/record.tmp /data/record
//	remove /data/record.tmp
//	mkdir /data
//	syncdir /data
//
// Besides files and directories it holds block devices, see [Disk.MkDevice], raw
// flash that must be erased before it is written, see [Disk.MkFlash], and
// directories of a FAT file system, whose renames are not atomic, see [Disk.MkFAT].
//
// What it does not model: a file system that is itself damaged, permissions, links.
//
// Paths are absolute and use slashes. A Disk may be used from several goroutines.
type Disk struct {
	// OnEffect is asked before every effect, and can let it fail. It must not
	// call the disk. Nil: nothing fails.
	OnEffect func(n int, effect string) Fault
	// OnRead is called with what is about to be returned from a read, which it may
	// change, and lets the read fail if it returns an error. It must not call the disk.
	OnRead func(name string, off int64, p []byte) error
	// Handover is what software hands over to the bootloader in a register that
	// survives a restart, and no power cut.
	Handover string
	// Capacity is the sum of the sizes of all files in bytes at which the disk is
	// full: a write beyond it stores what fits, and fails with ENOSPC. 0: 1 GiB.
	Capacity int64

	mu      sync.Mutex
	names   map[string]*node // page cache
	stable  map[string]*node // medium
	changes []*nameChange    // of names, not synced, in order
	effects int              // since the last Arm
	reads   int              // since the last Arm
	cut     Cut
	fell    bool                               // the cut that was armed last has come true
	down    *PowerCut                          // set between a cut and PowerOn
	boot    int                                // files opened in an earlier one are gone
	bad     *badSector                         // or nil
	unseen  bool                               // reads are the test's own, and do not count
	seen    func(effect string)                // told every effect, in order; may be nil
	classes func(name string, off int64) Where // what may rot or be unreadable; may be nil
	spared  bool                               // InControl has no sectors that cannot be read
}

// A node is a file, a directory or a device.
type node struct {
	dir     bool
	fat     bool  // a directory of a FAT file system
	device  int64 // bytes of a block device or raw flash; 0: none
	erase   int64 // bytes that raw flash erases at once; 0: no flash
	mode    fs.FileMode
	cache   pages
	medium  pages
	pending []change // not synced, in order
}

// A nameChange is one atomic change of names, in one directory or, for a rename
// across, in two.
type nameChange struct {
	dirs []string
	set  map[string]*node // nil: the name is removed
	torn bool             // reached the medium in a sync that was cut
}

// Fault is how an operation fails. The zero Fault lets it work.
type Fault struct {
	// Err is returned. Nil: no fault.
	Err error
	// Did says that the operation was done all the same, as when the answer of a
	// disk is lost. Otherwise nothing was done, with one exception: after a Sync
	// that failed, the page cache still shows what was written, but no later Sync
	// will bring it to the medium. Linux does so since 4.13, and before it was
	// worse (https://lwn.net/Articles/752063/).
	Did bool
	// Short is the count of bytes that a write stores before it fails, if not Did.
	Short int
}

// PowerCut is what the disk panics with, as a pointer, when a [Cut] comes true, and
// at every use after it until [Disk.PowerOn]. Whoever armed the cut recovers it.
type PowerCut struct {
	Cut    Cut
	Effect string // the name of the effect
}

func (p *PowerCut) Error() string { return fmt.Sprintf("power cut %v (%s)", p.Cut, p.Effect) }

// NewDisk returns an empty disk that is on.
func NewDisk() *Disk {
	root := &node{dir: true, mode: 0o755}
	return &Disk{names: map[string]*node{"/": root}, stable: map[string]*node{"/": root}}
}

// Clone returns a copy of the disk in its present state, which costs little:
// content is shared until it is written. The copy has no cut armed, and no
// hooks. Files open on d are not open on the copy.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	copies := map[*node]*node{nil: nil}
	clone := func(n *node) *node {
		if c, ok := copies[n]; ok {
			return c
		}
		c := &node{dir: n.dir, fat: n.fat, device: n.device, erase: n.erase, mode: n.mode, cache: n.cache.clone(), medium: n.medium.clone(), pending: append([]change(nil), n.pending...)}
		copies[n] = c
		return c
	}
	all := func(m map[string]*node) map[string]*node {
		c := make(map[string]*node, len(m))
		for name, n := range m {
			c[name] = clone(n)
		}
		return c
	}
	c := &Disk{Capacity: d.Capacity, Handover: d.Handover, names: all(d.names), stable: all(d.stable), down: d.down}
	if d.bad != nil {
		c.bad = &badSector{clone(d.bad.n), d.bad.off}
	}
	for _, ch := range d.changes {
		c.changes = append(c.changes, &nameChange{dirs: ch.dirs, set: all(ch.set)})
	}
	return c
}

// Arm sets the next cut, and counts effects and reads from 0 again. Arm(Cut{}) disarms.
func (d *Disk) Arm(c Cut) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arm(c)
}

func (d *Disk) arm(c Cut) { d.cut, d.fell, d.effects, d.reads = c, false, 0, 0 }

// Fell reports whether the cut that was armed last has come true.
func (d *Disk) Fell() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fell
}

// Reads returns the count of reads since the last Arm.
func (d *Disk) Reads() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reads
}

// Effects returns the count of effects since the last Arm.
func (d *Disk) Effects() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.effects
}

// Effect counts something that is no file operation but can be cut and can fail
// like one, for example the restart of the device. do is not called if the cut
// falls before it, or it fails without having happened; Torn leaves it to chance.
func (d *Disk) Effect(name string, do func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.effect(name, operation{do: func() error { do(); return nil }})
}

// PowerOff cuts the power between two effects. Files must be opened anew after PowerOn.
func (d *Disk) PowerOff(rest Rest, seed uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := Cut{Rest: rest, Seed: seed}
	d.lose(c, c.chance())
	d.Handover = ""
	d.down = &PowerCut{c, "power off"}
}

// Kill ends the process between two effects: the page cache survives, and files
// must be opened anew.
func (d *Disk) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.boot++
}

// PowerOn ends a cut. The disk then shows what survived. It disarms.
func (d *Disk) PowerOn() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.boot++
	d.down = nil
	d.arm(Cut{})
}

// restart is a warm one: what was not synced is lost, and Handover and the cut that
// is armed stay.
func (d *Disk) restart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lose(Cut{Rest: DropAll}, nil)
	d.boot++
}

// An operation is one effect.
type operation struct {
	do     func() error
	torn   func(Cut, *rand.Rand) // what a Torn cut does of it, to cache or changes; nil: all or nothing
	failed func(Fault)           // what a fault that did nothing does all the same; may be nil
}

func (d *Disk) effect(name string, op operation) error {
	d.alive()
	d.effects++
	d.bounded()
	var fault Fault
	if d.OnEffect != nil {
		fault = d.OnEffect(d.effects, name)
	}
	if d.seen != nil {
		d.seen(name)
	}
	cut := d.cut.At == d.effects && d.cut.How.power()
	if cut && d.cut.How != After {
		d.fall(name, op)
	}
	if d.cut.How == Rotten && d.cut.At == d.effects {
		d.fell = d.decay(d.cut)
	}
	var err error
	if fault.Err == nil || fault.Did {
		err = op.do()
	} else if op.failed != nil {
		op.failed(fault)
	}
	if cut {
		d.fall(name, op)
	}
	if fault.Err != nil {
		return fault.Err
	}
	return err
}

// fall makes the armed cut come true.
func (d *Disk) fall(name string, op operation) {
	c := d.cut
	r := c.chance()
	if c.How == Torn {
		switch {
		case op.torn != nil:
			op.torn(c, r)
		case r.IntN(2) == 1:
			_ = op.do() // whoever asked for it does not hear of it
		}
	}
	if !c.Agent {
		d.lose(c, r)
		d.Handover = ""
	}
	d.fell, d.down = true, &PowerCut{c, name}
	panic(d.down)
}

// enough is more than the effects and reads of any update with the images of tests.
const enough = 1_000_000

// bounded ends a program that goes round in circles.
func (d *Disk) bounded() {
	if d.effects+d.reads > enough {
		panic(fmt.Sprintf("%d effects and %d reads, and no end", d.effects, d.reads))
	}
}

func (d *Disk) alive() {
	if d.down != nil {
		panic(d.down)
	}
}

// lose takes the power away: cache and medium are the same afterwards.
func (d *Disk) lose(c Cut, r *rand.Rand) {
	keep := func(torn bool) bool {
		return torn || c.Rest == KeepAll || c.Rest == Subset && r.IntN(2) == 1
	}
	for _, ch := range d.changes {
		if keep(ch.torn) {
			maps.Copy(d.stable, ch.set)
		}
	}
	d.changes = nil
	// Every file has its own chance, drawn in the order of names, because the
	// order of a map would not be the same twice.
	for _, name := range sortedKeys(d.stable) {
		n := d.stable[name]
		if n == nil {
			delete(d.stable, name)
			continue
		}
		for _, ch := range n.pending {
			if keep(ch.torn) {
				ch.apply(&n.medium)
			}
		}
		n.pending = nil
	}
	d.settle()
}

// settle makes the page cache show what is on the medium.
func (d *Disk) settle() {
	d.names = maps.Clone(d.stable)
	for _, name := range sortedKeys(d.names) { // parents come before what is in them
		if _, ok := d.names[path.Dir(name)]; !ok {
			delete(d.names, name)
			delete(d.stable, name)
			continue
		}
		n := d.names[name]
		n.cache = n.medium.clone()
	}
}

// rename and its like change names in the page cache, and remember it for the medium.
func (d *Disk) change(set map[string]*node, dirs ...string) {
	d.changes = append(d.changes, &nameChange{dirs: dirs, set: set})
	for name, n := range set {
		if n == nil {
			delete(d.names, name)
		} else {
			d.names[name] = n
		}
	}
}

func (d *Disk) find(op, name string) (*node, error) {
	if n, ok := d.names[path.Clean(name)]; ok {
		return n, nil
	}
	return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

func (d *Disk) used() (n int64) {
	for _, f := range d.names {
		if f.device == 0 {
			n += f.cache.size
		}
	}
	return n
}

func (d *Disk) room() int64 {
	capacity := d.Capacity
	if capacity == 0 {
		capacity = 1 << 30
	}
	return max(capacity-d.used(), 0)
}
