package fielddemo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
)

const (
	product  = "bess-100"
	patience = 3 * time.Minute // for anything, on a busy machine
)

// workshop has what all devices share: programs, keys, and two releases.
type workshop struct {
	dir, bin string
}

// newWorkshop builds the programs and signs a release.
func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	w := &workshop{t.TempDir(), t.TempDir()}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", w.bin+"/", "./cmd/interlock", "./cmd/interlockd")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	w.interlock(t, "keygen", "--out", "keys")
	w.interlock(t, "keygen", "--out", "technician")
	w.image(t, "1.0.0", 1000)
	for name, size := range map[string]int{tiny: 1000, small: 10_000, large: 100_000} {
		w.image(t, "1.1.0", size)
		w.interlock(t, "build", "--product", product, "--version", "1.1.0", "--image", "controller=1.1.0.img", "--key", "keys/private.pem", "--out", name)
	}
	return w
}

// interlock runs a command as a person does.
func (w *workshop) interlock(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(w.bin, "interlock"), args...)
	cmd.Dir = w.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("interlock %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The release, in sizes for lines that lose nearly all long messages, for slow and for fast ones.
const (
	tiny  = "tiny-1.1.0.bundle"
	small = "small-1.1.0.bundle"
	large = "large-1.1.0.bundle"
)

// image writes firmware that says its version and works until it is stopped.
func (w *workshop) image(t *testing.T, version string, size int) {
	t.Helper()
	b := bytes.NewBufferString(fmt.Sprintf("#!/bin/sh\necho interlock-firmware %s\nwhile read -r line; do :; done\nexit 0\n", version))
	for n := 0; b.Len() < size; n++ {
		fmt.Fprintf(b, "# %s %08d\n", version, n)
	}
	if err := os.WriteFile(filepath.Join(w.dir, version+".img"), b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// device is an interlockd with its battery, which allows updates.
type device struct {
	*testing.T
	w   *workshop
	dir string
	cmd *exec.Cmd
}

// newDevice starts a device that takes releases from the source, and ends it with the test.
func (w *workshop) newDevice(t *testing.T, source string) *device {
	t.Helper()
	d := &device{T: t, w: w, dir: t.TempDir()}
	config := fmt.Sprintf(`device: {id: bess-07, product: %s}
state_dir: state
source: {%s}
keys: {files: [%s/keys/public.pem]}
startup_delay: 0s
automatic_update: true
validation_time: 500ms
battery: {reader: file, path: bms.json, heartbeat: optional}
dwell: 500ms
slot: {kind: file, dir: slots, run: true, factory: %s/1.0.0.img, start_timeout: 30s}
control: {socket: agent.sock}
`, product, source, w.dir, w.dir)
	if err := os.WriteFile(filepath.Join(d.dir, "interlockd.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var writer sync.WaitGroup
	writer.Go(func() { d.measure(ctx) })
	d.start()
	t.Cleanup(func() {
		d.kill()
		cancel()
		writer.Wait()
	})
	return d
}

// measure is a battery that is well, as a program writes it into a file.
func (d *device) measure(ctx context.Context) {
	path := filepath.Join(d.dir, "bms.json")
	for {
		now := time.Now().UTC().Format(time.RFC3339Nano)
		reading := fmt.Sprintf(`{"time": %q, "valid": true, "soc": 61.5, "temperature_min": 21, "temperature_max": 23.5, "current": 0.4}`, now)
		if err := os.WriteFile(path+".new", []byte(reading), 0o600); err == nil {
			os.Rename(path+".new", path)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (d *device) start() {
	d.Helper()
	log, err := os.OpenFile(filepath.Join(d.dir, "interlockd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(filepath.Join(d.w.bin, "interlockd"), "--config", filepath.Join(d.dir, "interlockd.yaml"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.Fatal(err)
	}
}

// kill ends the agent without a warning.
func (d *device) kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

func (d *device) log() string {
	b, _ := os.ReadFile(filepath.Join(d.dir, "interlockd.log"))
	return string(b)
}

// status waits until what the device says is as wanted.
func (d *device) status(what string, want func(control.Status) bool) {
	d.Helper()
	ctx, cancel := context.WithTimeout(d.Context(), patience)
	defer cancel()
	var last control.Status
	for {
		if c, err := control.Dial(filepath.Join(d.dir, "agent.sock")); err == nil {
			now, err := c.Status(ctx)
			c.Close()
			if err == nil {
				if last = now; want(now) {
					return
				}
			}
		}
		select {
		case <-ctx.Done():
			d.Fatalf("wait for %s: the device is %+v\n%s", what, last.Snapshot, d.log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// runs says that the version is proven, and that its report was taken.
func runs(version string) func(control.Status) bool {
	return func(c control.Status) bool {
		return c.Snapshot.Running == version && c.Snapshot.State == ota.Idle && c.Snapshot.Unsent == 0
	}
}

// pusher is "interlock push", as a technician runs it.
type pusher struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan error
}

func (d *device) push(args ...string) *pusher {
	d.Helper()
	p := &pusher{done: make(chan error, 1)}
	p.cmd = exec.Command(filepath.Join(d.w.bin, "interlock"), append([]string{"push"}, args...)...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = d.w.dir, &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		d.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	d.Cleanup(p.kill)
	return p
}

func (p *pusher) kill() {
	p.cmd.Process.Kill()
	err := <-p.done
	p.done <- err
}

// wait returns how it ended, with what it said.
func (p *pusher) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		if err != nil {
			t.Fatalf("push: %v\n%s", err, p.out.String())
		}
	case <-time.After(patience):
		p.kill()
		t.Fatalf("push has not ended:\n%s", p.out.String())
	}
}

// errEnded says that the push was over before something was to happen to it.
var errEnded = errors.New("it has ended")

// until waits for a condition, unless the push ends before.
func (p *pusher) until(t *testing.T, what string, reached func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !reached() {
		select {
		case err := <-p.done:
			p.done <- err
			t.Fatalf("wait for %s: %v: %v\n%s", what, errEnded, err, p.out.String())
		case <-deadline:
			t.Fatalf("wait for %s: nothing\n%s", what, p.out.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
