// Package otatest proves devices: a disk that lies, a device on that disk which
// loses its power at every effect, and the suites that every adapter of slots
// and sources passes.
//
// To test a [ota.Slots] of your own, call [TestSlots]; for a [ota.Source],
// [TestSource]. [Cuts] takes a device with your slots through every update, and
// cuts it before, after and inside every effect.
package otatest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/store"
)

// Firmware is an image, with the behaviour of what is in it.
type Firmware struct {
	Version string
	Image   []byte
	Boots   bool // comes up at all
	Healthy bool // does its work once it is up
}

// ChunkSize of the manifests that tests make, in bytes: the smallest there is.
const ChunkSize = ota.MinChunkSize

// NewFirmware returns firmware of size bytes that differs from any other version
// in every chunk.
func NewFirmware(version string, size int, boots, healthy bool) Firmware {
	f := Firmware{Version: version, Image: make([]byte, 0, size+64), Boots: boots, Healthy: healthy}
	for i := 0; len(f.Image) < size; i++ {
		h := sha256.Sum256(fmt.Appendf(nil, "%s %v %v %d", version, boots, healthy, i))
		f.Image = append(f.Image, h[:]...)
	}
	f.Image = f.Image[:size]
	return f
}

// Manifest returns the manifest of f, for product "test" and component "controller".
func (f Firmware) Manifest() *ota.Manifest {
	im := ota.Image{Component: "controller", Size: int64(len(f.Image)), SHA256: sha256.Sum256(f.Image), ChunkSize: ChunkSize}
	for at := 0; at < len(f.Image); at += ChunkSize {
		im.Chunks = append(im.Chunks, sha256.Sum256(f.Image[at:min(at+ChunkSize, len(f.Image))]))
	}
	m := &ota.Manifest{Format: 1, Product: "test", Version: f.Version, Created: time.Unix(1e9, 0).UTC(), Images: []ota.Image{im}}
	m.Digest = digest(m)
	return m
}

func digest(m *ota.Manifest) string { return ota.Hash(sha256.Sum256(Signed(m))).String() }

// Signed returns m as the bytes that [Verify] takes. There is no signature on
// them: package bundle has its own tests.
func Signed(m *ota.Manifest) []byte {
	b, _ := json.Marshal(m) // plain data, cannot fail
	return b
}

// Verify is the [ota.Verify] for manifests from [Signed].
func Verify(signed []byte) (*ota.Manifest, error) {
	m := new(ota.Manifest)
	if err := json.Unmarshal(signed, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ota.ErrValidation, err)
	}
	m.Digest = ota.Hash(sha256.Sum256(signed)).String()
	return m, m.Validate()
}

// A Backend brings slots and their bootloader onto a disk.
type Backend interface {
	// Format makes a new device with image in its first slot.
	Format(d *Disk, image []byte) error
	// PowerOn plays the bootloader up to the choice of a slot.
	PowerOn(d *Disk) (slot string, err error)
	// Slots is called at each start of the agent, with what the kernel knows of this
	// boot. restart must be what Reboot calls.
	Slots(d *Disk, b Boot, restart func(context.Context) error) (ota.Slots, error)
	// Image returns what is in a slot. On a partition, more may follow.
	Image(d *Disk, slot string) []byte
}

// A Packer is a [Backend] whose bootloader starts images of its own format only.
type Packer interface {
	// Pack returns an image of that format, made of image: about as large, and
	// different wherever another one is.
	Pack(image []byte) []byte
}

// Impatient is a [Backend] whose bootloader leaves even a slot that was marked good if
// it is not told so again at its first start. A report of success does not have to
// survive two starts without an agent there, and may be followed by one of the loss.
type Impatient interface{ Impatient() }

// A Boot is what the kernel knows of one: the slot that [Backend.PowerOn] returned,
// as on its command line, and an id.
type Boot struct{ Slot, ID string }

// Device is a simulated device. It lives in the time of the synctest bubble that
// it is used in.
type Device struct {
	Disk    *Disk
	Backend Backend
	Source  Source
	Known   []Firmware         // whatever may ever run here
	Config  func(*ota.Config)  // changes the configuration of every start; may be nil
	AtStart func(*ota.Manager) // called before every Run; may be nil
	// OnCall is told what the agent is about to ask of slots and store, for example
	// "write B 4096", "sync B", "try B", "mark good" or "save staged". May be nil.
	OnCall func(call string)

	Booted    string   // the slot that runs
	Running   Firmware // what runs
	Boots     int
	Suspended bool     // the plant is quiesced, or half so; see hooks
	Events    []string // hooks and statuses, in order
	Faults    []string // what must never happen, and did

	manager atomic.Pointer[ota.Manager] // of the present life
	still   bool                        // the plant is quiesced, all of it
	tasks   bool                        // what is quiesced are tasks of the device, which start with it
	watched bool                        // a restart at the wrong moment, or a record that is wrong about the plant, is a fault
	allowed int                         // the gate said yes to a restart when there had been so many effects; -1: it did not
	cutOff  int                         // cuts that found the plant quiesced, or half so
	faulty  bool                        // the medium has a fault: whoever ends in an error is started again
	rotten  bool                        // a bit of an image may flip: such an image does not come up
	astray  bool                        // the bootloader may be led to another whole image
	unread  bool                        // reads of the bootloader do not count, and do not fail
	abort   *ota.Call                   // of the scenario
}

// restart is how the agent's life ends when it asks for a restart.
type restart struct{}

// startError is why the agent's process ended before there was a manager. Whatever
// looks after processes starts it again after startPause.
type startError struct{ error }

const startPause = 10 * time.Second

// Start formats the device with known[0], which runs, and lets the source offer
// the last of known.
func Start(b Backend, known ...Firmware) (*Device, error) {
	if p, ok := b.(Packer); ok {
		known = slices.Clone(known)
		for i := range known {
			known[i].Image = p.Pack(known[i].Image)
		}
	}
	d := &Device{Disk: NewDisk(), Backend: b, Known: known}
	d.Source.device = d
	d.Source.Firmware = known[len(known)-1]
	if err := b.Format(d.Disk, known[0].Image); err != nil {
		return nil, fmt.Errorf("format the device: %w", err)
	}
	return d, d.PowerOn()
}

// PowerOn boots until something comes up.
func (d *Device) PowerOn() error {
	if d.tasks {
		d.Suspended, d.still = false, false
	}
	for range 8 {
		d.Boots++
		d.Disk.unseen = d.unread
		slot, err := d.Backend.PowerOn(d.Disk)
		d.Disk.unseen = false
		if err != nil && d.faulty {
			d.event("the bootloader stops, and the watchdog starts it again: %v", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("bootloader: %w", err)
		}
		f, ok := d.find(slot)
		if !ok {
			d.fault("the bootloader starts slot %s, which holds no whole image", slot)
			continue
		}
		if f.Boots {
			d.Booted, d.Running = slot, f
			return nil
		}
	}
	return errors.New("the device is dead: nothing comes up in 8 boots")
}

// find returns the firmware that is whole in slot.
func (d *Device) find(slot string) (Firmware, bool) {
	d.Disk.unseen = true
	image := d.Backend.Image(d.Disk, slot)
	d.Disk.unseen = false
	for _, f := range d.Known {
		if bytes.HasPrefix(image, f.Image) {
			return f, true
		}
	}
	for _, f := range d.Known {
		if d.rotten && oneBitFrom(image, f.Image) {
			f.Boots = false
			return f, true
		}
	}
	return Firmware{}, false
}

// oneBitFrom reports whether a begins with b but for one bit.
func oneBitFrom(a, b []byte) bool {
	if len(a) < len(b) {
		return false
	}
	flips := 0
	for i := range b {
		flips += bits.OnesCount8(a[i] ^ b[i])
	}
	return flips == 1
}

func (d *Device) fault(format string, a ...any) {
	d.Faults = append(d.Faults, fmt.Sprintf(format, a...))
}

func (d *Device) event(format string, a ...any) {
	d.Events = append(d.Events, fmt.Sprintf(format, a...))
}

// Boot returns what the kernel knows of the present boot.
func (d *Device) Boot() Boot { return Boot{d.Booted, fmt.Sprint("boot ", d.Boots)} }

// Arm sets the next cut, counted in effects or reads from now on, over restarts.
func (d *Device) Arm(c Cut) { d.Disk.Arm(c) }

// Effects counts the effects since Arm, over restarts.
func (d *Device) Effects() int { return d.Disk.Effects() }

// clone returns the device as it is between two lives, without what the test has
// hung onto it.
func (d *Device) clone() *Device {
	c := &Device{Disk: d.Disk.Clone(), Backend: d.Backend, Source: d.Source, Known: d.Known,
		Booted: d.Booted, Running: d.Running, Boots: d.Boots, Suspended: d.Suspended, still: d.still, tasks: d.tasks, faulty: d.faulty, rotten: d.rotten}
	c.Source.device = c
	c.Source.Reports = slices.Clone(d.Source.Reports)
	return c
}

// Manager returns the manager of the present life of the agent, or nil before the first.
func (d *Device) Manager() *ota.Manager { return d.manager.Load() }

// Live runs the agent, over restarts and over the cuts that are armed, until ctx
// ends or, after at most 40 lives, for the time quiet in one life. Each cut uses
// up one of then, which is called to arm the next.
func (d *Device) Live(ctx context.Context, quiet time.Duration, then ...func()) error {
	var last error
	for range 40 {
		end := d.life(ctx, quiet)
		switch cut := end.(type) {
		case nil:
			return nil
		case restart:
			d.Disk.restart()
		case *PowerCut:
			d.event("cut")
			d.countPlant()
			d.Disk.PowerOn()
			if len(then) > 0 {
				then[0]()
				then = then[1:]
			}
			if cut.Cut.Agent {
				continue
			}
		case startError:
			if !d.faulty {
				return cut
			}
			d.event("%v", cut)
			last = cut
			<-time.After(startPause) // of the bubble's time
			d.Disk.Kill()
			continue
		case error:
			return cut
		}
		if err := d.bootThroughCuts(&then); err != nil {
			return err
		}
	}
	return errors.Join(errors.New("the device never settles"), last)
}

// bootThroughCuts boots; the bootloader's own writes can be cut, too.
func (d *Device) bootThroughCuts(then *[]func()) (err error) {
	for again := true; again; {
		again = false
		func() {
			defer func() {
				if p := recover(); p != nil {
					if _, ok := p.(*PowerCut); !ok {
						panic(p)
					}
					again = true
					d.countPlant()
					d.Disk.PowerOn()
					if len(*then) > 0 {
						(*then)[0]()
						*then = (*then)[1:]
					}
				}
			}()
			err = d.PowerOn()
		}()
	}
	return err
}

// life is one life of the agent's process: from its start to a cut, a restart,
// or the end of quiet, which is nil. A panic that is none of these, and an agent that
// does not stop, are errors with the stacks that show it.
func (d *Device) life(ctx context.Context, quiet time.Duration) any {
	ended := make(chan any, 1)
	go func() {
		defer func() {
			switch p := recover().(type) {
			case nil:
			case restart, *PowerCut:
				ended <- p
			default:
				ended <- fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		ended <- d.run(ctx, quiet)
	}()
	tooLong := time.NewTimer(quiet + time.Hour)
	defer tooLong.Stop()
	select {
	case end := <-ended:
		return end
	case <-tooLong.C:
		stacks := make([]byte, 1<<16)
		return fmt.Errorf("the agent hangs: it did not stop for an hour after it was told to\n%s", stacks[:runtime.Stack(stacks, true)])
	}
}

func (d *Device) run(ctx context.Context, quiet time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	cfg, err := d.config()
	if err != nil {
		return startError{fmt.Errorf("the agent does not start: %w", err)}
	}
	m, err := ota.New(cfg)
	if err != nil {
		return err
	}
	d.manager.Store(m)
	if d.AtStart != nil {
		d.AtStart(m)
	}
	if err := m.Run(ctx); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("the manager ended: %w", err)
	}
	return nil
}

func (d *Device) config() (ota.Config, error) {
	st, err := store.OpenOn(d.Disk, "/data/record")
	if err != nil {
		return ota.Config{}, err
	}
	st.Log = slog.New(slog.DiscardHandler)
	var cfg ota.Config
	slots, err := d.Backend.Slots(d.Disk, d.Boot(), func(context.Context) error {
		d.mayRestart(&cfg)
		if err := d.Disk.Effect("restart", func() {}); err != nil {
			return err
		}
		panic(restart{})
	})
	if err != nil {
		return ota.Config{}, err
	}
	refusals := 2
	cfg = ota.Config{
		Product: "test", Version: d.Running.Version,
		Source: &d.Source, Verify: Verify, Slots: d.watch(slots), Store: watchedStore{st, d},
		Gate: func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
			d.event("gate %s", at)
			if refusals > 0 {
				refusals--
				return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "discharging at 80 kW"}
			}
			return nil
		},
		Healthy: func(context.Context) error {
			if !d.Running.Healthy {
				return errors.New("no frames from the battery")
			}
			return nil
		},
		Hooks:         d.hooks(),
		CheckInterval: 5 * time.Minute, Automatic: true, RollbackTimeout: time.Minute,
		Log: slog.New(slog.DiscardHandler),
	}
	if d.Config != nil {
		d.Config(&cfg)
	}
	d.tasks = cfg.Suspend == ota.SuspendBeforeCheck
	d.hear(&cfg)
	return cfg, nil
}

func (d *Device) hooks() ota.Hooks {
	return ota.Hooks{
		CheckStart: func() bool { d.event("CheckStart"); return true },
		Suspend: func(context.Context) error {
			d.event("Suspend")
			d.told("suspend")
			return d.quiesce()
		},
		Started:  func(*ota.Manifest) { d.event("Started") },
		Progress: func(int64, int64) { d.event("Progress") },
		Finished: func(*ota.Manifest) { d.event("Finished") },
		Failed:   func(err error) { d.event("Failed %s", ota.CodeOf(err).Name()) },
		UpToDate: func() { d.event("UpToDate") },
		Resume: func(context.Context) error {
			d.event("Resume")
			return d.resume()
		},
	}
}

// Source offers one firmware, and can be told to break off.
type Source struct {
	Firmware  Firmware
	Change    func(*ota.Manifest) // of what is offered; may be nil
	Withdrawn bool
	Err       error   // of Latest
	Sent      int64   // bytes read from it
	CutAt     []int64 // break off when Sent reaches the first of these, which is then forgotten
	Reports   []ota.Report

	device *Device
	signed []byte // of Firmware without Change
	of     *byte  // the first byte of its image
}

// Latest implements [ota.Source].
func (s *Source) Latest(context.Context) ([]byte, error) {
	switch {
	case s.Err != nil:
		return nil, s.Err
	case s.Withdrawn:
		return nil, ota.ErrNoUpdate
	}
	if s.Change != nil {
		m := s.Firmware.Manifest()
		s.Change(m)
		return Signed(m), nil
	}
	if first := &s.Firmware.Image[0]; s.of != first {
		s.signed, s.of = Signed(s.Firmware.Manifest()), first
	}
	return bytes.Clone(s.signed), nil
}

// Open implements [ota.Source].
func (s *Source) Open(_ context.Context, _ *ota.Manifest, _ *ota.Image, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(&sourceReader{s, offset}), nil
}

// Report implements [ota.Reporter]. A success that would not survive a power cut
// right now is a fault.
func (s *Source) Report(_ context.Context, r ota.Report) error {
	d := s.device
	if r.Result == ota.Succeeded {
		c := d.clone()
		var err error
		for i := range 2 { // the first boot may be the trial of the next release
			if _, ok := d.Backend.(Impatient); ok && i > 0 && c.Running.Version == r.Version {
				break
			}
			c.Disk.PowerOff(DropAll, 0)
			c.Disk.PowerOn()
			if err = c.PowerOn(); err != nil {
				break
			}
		}
		if err != nil || c.Running.Version != r.Version && !d.astray {
			d.fault("success of %s was reported, and power cuts then boot %q: %v", r.Version, c.Running.Version, err)
		}
	}
	return d.Disk.Effect("report "+string(r.Result), func() { s.Reports = append(s.Reports, r) })
}

type sourceReader struct {
	s  *Source
	at int64
}

func (r *sourceReader) Read(p []byte) (int, error) {
	img := r.s.Firmware.Image
	if r.at >= int64(len(img)) {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), int64(len(img))-r.at, 1000)] // in pieces, as networks do
	if len(r.s.CutAt) > 0 {
		left := r.s.CutAt[0] - r.s.Sent
		if left <= 0 {
			r.s.CutAt = r.s.CutAt[1:]
			return 0, io.ErrUnexpectedEOF
		}
		p = p[:min(int64(len(p)), left)]
	}
	n := copy(p, img[r.at:])
	r.at += int64(n)
	r.s.Sent += int64(n)
	return n, nil
}
