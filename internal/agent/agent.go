// Package agent is everything that interlockd does, as a library: the daemon is
// one call of it, and the demo runs several agents in one process.
//
// Start with [Load] or a [Config] of your own, then [New] and [Agent.Run]. The
// agent reads its configuration, connects sources, slots, gate, health checks and
// hooks with a manager of package ota, answers at the control socket, and tells
// its server what it does. With slot.run it also plays the bootloader, and runs
// what is in the booted slot as a process.
//
// What is promised: a configuration that is not clear is refused before anything
// is touched, and above all one that leaves open whether the battery is looked
// at. Telling others what happens, to the console, a log, the server or a hook,
// never holds up an update, with the exception of the hooks that are there to
// hold it up.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmscan"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/logfile"
	"github.com/interlock-energy/ota/internal/sdnotify"
	"github.com/interlock-energy/ota/internal/supervise"
	"github.com/interlock-energy/ota/internal/watchdog"
	"github.com/interlock-energy/ota/plant"
	"github.com/interlock-energy/ota/plant/der"
	"github.com/interlock-energy/ota/slot/file"
	"github.com/interlock-energy/ota/store"
)

// DefaultStateDir is where the record is if the configuration names no other place.
const DefaultStateDir = "/var/lib/interlock"

const (
	noSocket       = "none"
	defaultMaxCall = 10 * time.Minute
)

// Agent is the agent of one device.
type Agent struct {
	cfg         Config
	log         *slog.Logger
	crashes     crash.Log       // panics on a field bus, which did not end the agent
	logFile     *logfile.Writer // or nil
	cloud       CloudLog        // or nil
	verify      ota.Verify
	codeSigning *bundle.CodeSigning // of raw images; nil: none are taken
	read        bms.Reader          // nil: no battery
	guard       *bms.Guard          // nil: no battery
	gate        ota.Gate
	windows     ota.Gate // the part of gate that looks at the clock; nil: always
	checks      []check  // of firmware on trial
	symptoms    []check  // of firmware in its soak
	suspend     ota.SuspendAt
	started     time.Time
	alive       alive
	witness     *witness
	counters    *counters
	metrics     []metrics // who keeps them, if anybody
	hub         control.Hub
	events      chan event
	restart     chan struct{} // the manager wants the device restarted; slot.run only
	pushNow     chan struct{} // something is worth telling the server
	record      atomic.Pointer[ota.Record]
	dog         *watchdog.Keeper // nil: no hardware watchdog

	links     links              // to the plant
	adapters  adapters           // to CAN buses
	listeners []*bmscan.Listener // to its buses
	poller    *bms.Poller        // nil: the battery is read when it is asked

	plant      plant.Action          // nil: nothing is done to it
	converters []*der.DER            // in it
	notResumed atomic.Pointer[error] // of the last attempt to resume it

	mu               sync.Mutex
	store            *store.File
	slots            ota.Slots
	player           *file.Slots  // the same, if this agent plays the bootloader
	mgr              *ota.Manager // nil: none now
	snap             ota.Snapshot // of the last manager, while there is none
	sources          *sourceSet
	reading          bms.Reading
	readErr          error
	changed          bool      // thresholds, since the start
	notStarted       string    // why firmware did not start last time
	notStartedDigest string    // of the release that was being installed then
	noUpdates        string    // why there is no manager in this boot
	notManaged       string    // why there is no manager yet
	published        time.Time // progress
	shownEvidence    shownEvidence
}

// New checks cfg and returns the agent. It reads the files that cfg names, such
// as keys, and changes nothing. Call [Agent.Run], or [Agent.Close].
func New(cfg Config) (a *Agent, err error) {
	now := time.Now()
	a = &Agent{cfg: cfg, started: now, counters: newCounters(now), events: make(chan event, maxEvents),
		restart: make(chan struct{}, 1), pushNow: make(chan struct{}, 1)}
	if a.cfg.Getenv == nil {
		a.cfg.Getenv = func(string) string { return "" }
	}
	if a.logFile, a.cloud, a.log, err = newLog(&a.cfg); err != nil {
		return nil, fmt.Errorf("configure the agent: %w", err)
	}
	a.crashes.Logger = a.log
	if a.cloud != nil {
		a.metrics = append(a.metrics, a.cloud)
	}
	if err := a.fill(); err != nil {
		a.Close()
		return nil, fmt.Errorf("configure the agent: %w", err)
	}
	return a, nil
}

// fill sets defaults and makes what does not change while the agent runs.
func (a *Agent) fill() (err error) {
	c := &a.cfg
	c.Version = orDefault(c.Version, "dev")
	c.StateDir = orDefault(c.StateDir, DefaultStateDir)
	c.Control.Socket = orDefault(c.Control.Socket, control.DefaultSocket)
	c.Slot.Component = orDefault(c.Slot.Component, defaultComponent)
	a.alive.limit = time.Duration(orDefault(c.Watchdog.MaxCall, Duration(defaultMaxCall)))
	if err := c.check(); err != nil {
		return err
	}
	if a.suspend, err = suspendAt(c.Suspend); err != nil {
		return err
	}
	if a.verify, a.codeSigning, err = newVerify(c); err != nil {
		return err
	}
	if a.read, err = a.newBattery(&c.Battery); err != nil {
		return err
	}
	if a.read != nil {
		if a.guard, err = bms.New(a.read, thresholds(&c.Battery)); err != nil {
			return fmt.Errorf("battery: %w", err)
		}
	}
	if a.gate, a.windows, err = newGates(c, a.guard); err != nil {
		return err
	}
	if a.checks, err = a.newChecks(c.Health, bms.DefaultTolerance()); err != nil {
		return fmt.Errorf("health, %w", err)
	}
	soak := c.Soak.Checks
	if len(soak) == 0 {
		soak = c.Health
	}
	if a.symptoms, err = a.newChecks(soak, atWork); err != nil {
		return fmt.Errorf("soak.checks, %w", err)
	}
	if a.plant, err = a.newPlant(); err != nil {
		return err
	}
	if err = a.checkLines(); err != nil {
		return err
	}
	if err = a.makeSlots(); err != nil {
		return err
	}
	version := "0"
	if !c.Slot.Run {
		if version, err = c.Device.runningVersion(); err != nil {
			return err
		}
	}
	if _, err := a.newSources(version, true); err != nil {
		return err
	}
	if c.Watchdog.Device != "" {
		a.dog = a.newDog(watchdog.Open)
	}
	a.witness = newWitness(a)
	a.snap = ota.Snapshot{State: ota.Idle, Since: a.started}
	// The manager has the last word on what the values mean.
	_, err = ota.New(a.managerConfig(context.Background(), version, struct{ ota.Source }{}, nil))
	return err
}

// Close ends the log file. Run does it, too.
func (a *Agent) Close() {
	if a.logFile == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeLogs)
	defer cancel()
	if err := a.logFile.Close(ctx); err != nil {
		a.log.Warn("close the log file", "error", err)
	}
}

// closeLogs is how long a log may take for its last lines. The device restarts after it.
const closeLogs = 2 * time.Second

// Run works until ctx ends, and returns nil then. It may be called once.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer a.Close()
	if a.cloud != nil {
		defer a.closeCloud()
	}
	defer a.holdDog(ctx)()
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		stop()
		a.hub.Close()
		wg.Wait()
	}()
	st, err := store.Open(filepath.Join(a.cfg.StateDir, "record"))
	if err != nil {
		return fmt.Errorf("open the record in %s: %w", a.cfg.StateDir, err)
	}
	st.Log = a.log
	defer func() { err = errors.Join(err, st.Close()) }()
	defer a.witness.log.Close()
	a.mu.Lock()
	a.store = st
	a.mu.Unlock()
	slots, err := a.lockSlots()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, slots.Close()) }()
	if err := a.makeDevice(); err != nil {
		return err
	}
	if r, err := st.Load(); err == nil { // the manager says what is wrong with a record
		removeLeft(durable.OS{}, a.cfg.StateDir, a.cfg.allSources(), &r, a.log)
	}
	defer a.closePlant()
	a.openPlant()
	if a.cfg.Control.Socket != noSocket {
		l, err := control.Listen(a.cfg.Control.Socket)
		if err != nil {
			return err
		}
		wg.Go(func() {
			if err := control.Serve(ctx, l, a, a.log); err != nil {
				a.log.Error("the control socket does not answer any more", "error", err)
			}
		})
	}
	for _, w := range a.Warnings() {
		a.log.Warn(w)
	}
	a.log.Info("agent", "device", a.cfg.Device.ID, "product", a.cfg.Device.Product, "version", a.cfg.Version, "sources", a.sourceNames())
	notify := sdnotify.FromEnv(a.cfg.Getenv)
	wg.Go(func() { a.feed(ctx, notify) })
	wg.Go(func() { a.push(ctx) })
	if a.poller != nil {
		wg.Go(func() { a.poller.Run(ctx) })
	}
	wg.Go(func() { a.observe(ctx) })
	if a.cloud != nil {
		wg.Go(func() { a.runCloud(ctx) })
	}
	wg.Go(func() { a.runEvents(ctx) })
	a.notify(notify, sdnotify.Ready)
	defer a.notify(notify, sdnotify.Stopping)
	if a.cfg.Slot.Run {
		return a.powered(ctx)
	}
	version, err := a.cfg.Device.runningVersion()
	if err != nil {
		return err
	}
	err = a.manage(ctx, version, nil)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// lockSlots keeps a second agent, which may have a record of its own, away from
// the slots: both would play the bootloader, and write where the other's firmware
// runs. Boot control on a block device has no place for a lock.
func (a *Agent) lockSlots() (io.Closer, error) {
	boot := orDefault(a.cfg.Slot.BootFile, filepath.Join(a.cfg.Slot.Dir, "boot"))
	if a.cfg.Slot.Kind != "file" || strings.HasPrefix(boot, "/dev/") {
		return io.NopCloser(nil), nil
	}
	if err := os.MkdirAll(filepath.Dir(boot), 0o700); err != nil {
		return nil, fmt.Errorf("lock the slots: %w", err)
	}
	lock, err := durable.Lock(boot + ".lock")
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("lock the slots: %w; stop the other agent, or give this one other slots", err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the slots: %w", err)
	}
	return lock, nil
}

// makeDevice puts the factory image into a directory that is no device yet.
func (a *Agent) makeDevice() error {
	s := &a.cfg.Slot
	if s.Factory == "" {
		return nil
	}
	c := a.fileConfig(nil)
	boot := orDefault(c.BootFile, filepath.Join(c.Dir, "boot"))
	if _, err := os.Stat(boot); err == nil {
		return nil
	}
	if a.hasLived() {
		a.log.Error("boot control is gone, and this is no new device: what is in the slots is not written over with the factory image", "boot", boot)
		return nil // PowerOn picks a slot
	}
	f, err := os.Open(s.Factory)
	if err != nil {
		return fmt.Errorf("open the factory image: %w", err)
	}
	defer f.Close()
	a.log.Info("making a new device", "factory", s.Factory, "boot", boot)
	return file.Format(c, map[string]io.Reader{s.Component: f})
}

// hasLived reports whether a manager has run here before, and there is something in
// a slot: then the loss of the boot control makes no new device of it. The factory
// image may be years old, and a security version that was passed by.
func (a *Agent) hasLived() bool {
	if r, err := a.store.Load(); err == nil && r.Running.Slot == "" {
		return false
	}
	return slices.ContainsFunc([]string{file.SlotA, file.SlotB}, func(slot string) bool {
		info, err := os.Stat(a.slotPath(slot))
		return err == nil && (info.Size() > 0 || !info.Mode().IsRegular())
	})
}

// manage runs a manager for firmware of this version until ctx ends, a restart is
// asked for, or the firmware ends by itself; what happened is the error.
func (a *Agent) manage(ctx context.Context, version string, firmware *supervise.Firmware) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	src, err := a.newSources(version, false)
	if err != nil {
		return unmadeError{err}
	}
	mgr, err := ota.New(a.managerConfig(ctx, version, src.asSource(), firmware))
	if err != nil {
		src.close()
		return unmadeError{err}
	}
	wg.Go(func() { src.run(ctx) })
	wg.Go(func() { src.due(ctx, src.checks, a.interval) })
	a.mu.Lock()
	a.mgr, a.sources, a.noUpdates, a.notManaged = mgr, src, "", ""
	a.mu.Unlock()
	a.publish(control.KindStatus)
	ended := make(chan error, 1)
	wg.Go(func() { ended <- mgr.Run(ctx) })
	defer func() {
		a.mu.Lock()
		a.snap, a.mgr = mgr.Snapshot(), nil
		a.mu.Unlock()
	}()
	var gone <-chan struct{}
	if firmware != nil {
		gone = firmware.Done()
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	case <-a.restart:
		cancel(errRestart)
	case <-gone:
		cancel(firmware.Err())
	}
	<-ended
	return context.Cause(ctx)
}

// managerConfig is the manager's part of the configuration.
func (a *Agent) managerConfig(ctx context.Context, version string, src ota.Source, firmware *supervise.Firmware) ota.Config {
	c := &a.cfg
	out := ota.Config{
		Product: c.Device.Product, Hardware: c.Device.Hardware, Version: version, SecurityVersion: c.Device.SecurityVersion,
		Source: src, Verify: a.verify, Slots: watchedSlots{a.slots, &a.alive}, Store: watchedStore{a.store, a},
		Gate: func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
			defer a.alive.enter("asking the gate")()
			if err := a.gate(ctx, m, at); err != nil || at != ota.AtRestart {
				return err
			}
			return a.keepBaseline(m)
		},
		Hooks: a.hooks(ctx), Suspend: a.suspend,
		StartupDelay: time.Duration(valueOr(c.StartupDelay, Duration(10*time.Second))), Automatic: c.AutomaticUpdate,
		NoRollback: !valueOr(c.AllowRollback, true), Unprotected: c.Slot.Unprotected, RollbackTimeout: c.rollbackTimeout(),
		ValidationTime: time.Duration(valueOr(c.ValidationTime, Duration(validationTime))), MaxTries: c.MaxTries,
		Retries: valueOr(c.Retries, 3), RetryDelay: time.Duration(c.RetryDelay), StallTimeout: time.Duration(c.StallTimeout),
		SoakTime: time.Duration(c.Soak.Time), SymptomTime: time.Duration(c.Soak.SymptomTime),
		MaxBackoff: time.Duration(c.MaxBackoff), VerifyMD5: c.VerifyMD5, BuildTime: c.Built, Log: a.log,
	}
	if out.StartupDelay == 0 {
		out.StartupDelay = 1 // 0 is the default of the manager, 10 s
	}
	if out.Retries == 0 {
		out.Retries = -1 // none
	}
	if len(a.checks) > 0 || firmware != nil {
		// Firmware that ended is noticed by manage; that it said its version and
		// runs is what is asked of it without any check.
		out.Healthy = func(ctx context.Context) error {
			defer a.alive.enter("asking whether the firmware is healthy")()
			return healthy(ctx, a.checks)
		}
	}
	if c.Soak.Time > 0 {
		out.Symptom = func(ctx context.Context) error {
			defer a.alive.enter("asking for symptoms in the soak")()
			return healthy(ctx, a.symptoms)
		}
	}
	return a.witness.watch(out)
}

// askRestart restarts the device: by the configured command, with more arguments
// behind its own, or in this process.
func (a *Agent) askRestart(ctx context.Context, more ...string) error {
	if a.cfg.Slot.Run {
		select {
		case a.restart <- struct{}{}:
		default:
		}
		return nil
	}
	// A restart stops this agent among the first, and with it, as systemd does, all
	// that it has started: often before the command has ended. To kill the command
	// ourselves could stop the restart half-way, and to call it failed would take the
	// try back: the device would restart into the old slot, and again and again.
	_, err := slices.Concat(a.cfg.Slot.Reboot, more).run(context.WithoutCancel(ctx), time.Minute, nil)
	if err != nil && !pause(ctx, stopSoon) {
		a.log.Info("the agent is stopped while the device restarts", "error", err)
		return nil
	}
	return err
}

// stopSoon is how much later than a command's we may get our own signal to stop.
const stopSoon = time.Second

// now is the time, by the latest that is known for sure, see [ota.Config.BuildTime].
func (a *Agent) now() time.Time {
	now := time.Now()
	if a.cfg.Built.After(now) {
		now = a.cfg.Built
	}
	if r := a.record.Load(); r != nil && r.NewestTime.After(now) {
		now = r.NewestTime
	}
	return now
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
