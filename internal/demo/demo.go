// Package demo is a newcomer's first minute: a real update server and six
// simulated battery systems that update over it, in one process, with nothing to
// install and nothing left behind.
//
// Start with [Run]. Real are: the server and its page, HTTPS with a CA that the
// devices pin, the signatures, the agents (internal/agent), the slots, and the
// firmware, which runs as a process of its own out of the slot that was booted
// and says its own version. Real is also the Modbus between each agent and its plant.
// Simulated are the batteries and converters behind it, and the slow link.
//
// What must happen is in [Plan]; the summary compares it with what did.
//
// Promised: on every way out, also on an interrupt, all processes are gone and
// the directory is removed, unless it was given.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/operator"
	"github.com/interlock-energy/ota/internal/serve"
	"github.com/interlock-energy/ota/internal/web"
)

// Config says how the demo runs. The zero value but Out works.
type Config struct {
	Out      io.Writer // what happens, for people
	Terminal bool      // Out is a terminal: draw a table and keep it up to date
	Color    bool      // and in color

	Listen  string        // address of the page; default 127.0.0.1:0, a free port
	Dir     string        // where everything is, which stays; default: a temporary directory, removed in the end
	Keep    bool          // after the end, go on until the context ends
	Timeout time.Duration // for all devices to get where they should; default 80 s
}

// ErrUnexpected is wrapped by Run's error if a device did not end where it should.
var ErrUnexpected = errors.New("not everything went as planned")

// Run runs the demo. Ending ctx ends it early, with ctx's error; with
// [Config.Keep], after all is done, that is no error. The summary is complete
// whenever the error is nil or [ErrUnexpected].
func Run(ctx context.Context, cfg Config) (Summary, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 80 * time.Second
	}
	dir, remove, err := makeDir(cfg.Dir)
	if err != nil {
		return Summary{}, fmt.Errorf("run the demo: %w", err)
	}
	s, err := run(ctx, cfg, dir)
	if removeErr := remove(); removeErr != nil {
		err = errors.Join(err, removeErr)
	}
	if err != nil {
		return s, fmt.Errorf("run the demo: %w", err)
	}
	return s, nil
}

// makeDir returns an empty directory, and what to do with it in the end.
func makeDir(given string) (dir string, remove func() error, err error) {
	if given == "" {
		if dir, err = os.MkdirTemp("", "interlock-demo-"); err != nil {
			return "", nil, err
		}
		return dir, func() error { return os.RemoveAll(dir) }, nil
	}
	if dir, err = filepath.Abs(given); err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, err
	}
	if len(list) > 0 {
		return "", nil, fmt.Errorf("%s is not empty; give another directory", given)
	}
	return dir, func() error { return nil }, nil
}

// stage is everything that runs while the demo does.
type stage struct {
	cfg    Config
	dir    string
	begun  time.Time
	log    *slog.Logger
	screen *screen

	server  *serve.Server
	client  *operator.Client
	devices []*device

	running sync.WaitGroup
	failed  chan error // what must not end has ended
}

func run(ctx context.Context, cfg Config, dir string) (s Summary, err error) {
	// What runs here ends before run returns, whatever happens.
	ctx, cancel := context.WithCancel(ctx)
	logFile, err := os.OpenFile(filepath.Join(dir, "demo.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		cancel()
		return s, err
	}
	st := &stage{cfg: cfg, dir: dir, begun: time.Now(), screen: newScreen(cfg), failed: make(chan error, 16),
		log: slog.New(slog.NewTextHandler(logFile, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	defer func() {
		cancel()
		st.running.Wait()
		err = errors.Join(err, logFile.Close())
	}()
	if err := st.build(ctx); err != nil {
		return s, err
	}
	s, err = st.play(ctx)
	if err != nil && !errors.Is(err, ErrUnexpected) {
		return s, err
	}
	st.screen.summary(s)
	if cfg.Keep {
		st.screen.keep(st)
		select {
		case <-ctx.Done():
		case failed := <-st.failed:
			err = errors.Join(err, failed)
		}
	}
	return s, err
}

// build makes keys, releases, server and devices.
func (st *stage) build(ctx context.Context) error {
	releases, err := makeReleases(st.dir)
	if err != nil {
		return err
	}
	keys, err := bundle.LoadKeys(1, releases.publicKey)
	if err != nil {
		return err
	}
	if err := st.startServer(ctx, keys); err != nil {
		return err
	}
	st.screen.begin(st.server.PlainURL)
	for _, p := range Plan() {
		d, err := newDevice(ctx, st, p, releases)
		if err != nil {
			return fmt.Errorf("make device %s: %w", p.Device, err)
		}
		st.devices = append(st.devices, d)
	}
	for _, d := range st.devices {
		st.start(ctx, "device "+d.plan.Device, func() error { return d.agent.Run(ctx) })
	}
	return st.publish(ctx, releases)
}

// start runs f until ctx ends. To end before that is a failure of the demo.
func (st *stage) start(ctx context.Context, what string, f func() error) {
	st.running.Go(func() {
		err := f()
		if ctx.Err() != nil {
			st.log.Info("ended", "what", what, "error", err)
			return
		}
		if err == nil {
			err = errors.New("ended by itself")
		}
		select {
		case st.failed <- fmt.Errorf("%s: %w", what, err):
		default: // one reason is enough
		}
	})
}

func (st *stage) startServer(ctx context.Context, keys *bundle.Keys) error {
	server, err := serve.Open(serve.Config{
		Data: filepath.Join(st.dir, "server"), Listen: "127.0.0.1:0", Plain: st.cfg.Listen,
		Wrap: func(l net.Listener) net.Listener { return slow{l} },
		Web:  web.Config{Keys: keys, PollInterval: pollInterval, OpenDashboard: true, Log: st.log.With("at", "server")},
	})
	if err != nil {
		return err
	}
	st.server = server
	st.start(ctx, "server", func() error { return server.Run(ctx) })
	st.client, err = operator.New(operator.Config{URL: server.URL, Token: server.Tokens.Operator, CA: server.CA})
	return err
}

// publish does what an operator does: puts one device into another group, and
// gives each group a release.
func (st *stage) publish(ctx context.Context, r *releases) error {
	if err := st.await(ctx, "wait for all devices to check in", func(list []api.Device) (bool, error) {
		strange := func(d api.Device) bool { return d.Version != oldVersion }
		return len(list) == len(st.devices) && !slices.ContainsFunc(list, strange), nil
	}); err != nil {
		return err
	}
	st.screen.note(time.Since(st.begun), fmt.Sprintf("%d devices have checked in, they run %s", len(st.devices), oldVersion))
	if _, err := st.client.Change(ctx, canary, api.GroupChange{}); err != nil {
		return err
	}
	for _, d := range st.devices {
		if d.plan.Group == api.DefaultGroup {
			continue
		}
		if _, err := st.client.Assign(ctx, d.plan.Device, d.plan.Group); err != nil {
			return err
		}
	}
	for group, file := range map[string]string{api.DefaultGroup: r.good, canary: r.broken} {
		if err := st.upload(ctx, file, group); err != nil {
			return err
		}
	}
	st.screen.note(time.Since(st.begun), fmt.Sprintf("published %s to %s, and %s to %s", goodVersion, api.DefaultGroup, brokenOne, canary))
	for _, d := range st.devices { // nobody wants to sit out a poll interval
		d.agent.Command(control.Check)
	}
	return nil
}

func (st *stage) upload(ctx context.Context, file, group string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = st.client.Publish(ctx, f, info.Size(), operator.PublishOptions{Group: group})
	return err
}

// await shows the devices until over says that there is nothing left to wait for.
func (st *stage) await(ctx context.Context, what string, over func([]api.Device) (bool, error)) error {
	deadline := time.NewTimer(st.cfg.Timeout - time.Since(st.begun))
	defer deadline.Stop()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := st.show(ctx)
		if err != nil {
			return err
		}
		if ok, err := over(list); err != nil {
			return err
		} else if ok {
			_, err = st.show(ctx) // what over has seen may be newer
			return err
		}
		select {
		case <-tick.C:
		case err := <-st.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return fmt.Errorf("%s: %w, %v", what, errTime, st.cfg.Timeout)
		}
	}
}

// show brings the display up to date.
func (st *stage) show(ctx context.Context) ([]api.Device, error) {
	list, err := st.client.Devices(ctx, "", "", "")
	if err != nil {
		return nil, err
	}
	st.screen.show(time.Since(st.begun), list)
	if st.screen.err != nil {
		return nil, fmt.Errorf("print: %w", st.screen.err)
	}
	return list, nil
}

var errTime = errors.New("not within the time given")

// play waits until every device is where it should be, or the time is over, and
// says what has become of each.
func (st *stage) play(ctx context.Context) (Summary, error) {
	var s Summary
	err := st.await(ctx, "wait for all devices to end as planned", func(list []api.Device) (bool, error) {
		for i := range list {
			if d := st.device(list[i].Device); d != nil {
				if err := d.follow(&list[i], time.Now()); err != nil {
					return false, err
				}
			}
		}
		var err error
		s, err = st.judge(ctx)
		// The report comes a moment before the status: nobody should read of a trial in the end.
		return s.OK && !slices.ContainsFunc(list, func(d api.Device) bool { return d.Status == ota.StatusTrial || d.Status == ota.StatusChecking }), err
	})
	s.Seconds = time.Since(st.begun).Round(100 * time.Millisecond).Seconds()
	if errors.Is(err, errTime) {
		s.OK = false
		err = fmt.Errorf("%w within %v", ErrUnexpected, st.cfg.Timeout)
	}
	return s, err
}

// judge compares what the server knows of each device with the plan.
func (st *stage) judge(ctx context.Context) (Summary, error) {
	s := Summary{OK: true}
	for _, d := range st.devices {
		detail, err := st.client.Device(ctx, d.plan.Device)
		if err != nil {
			return s, err
		}
		o := d.plan.judge(&detail)
		s.OK = s.OK && o.OK
		s.Devices = append(s.Devices, o)
	}
	return s, nil
}

func (st *stage) device(id string) *device {
	for _, d := range st.devices {
		if d.plan.Device == id {
			return d
		}
	}
	return nil
}
