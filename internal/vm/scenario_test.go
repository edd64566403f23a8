//go:build linux && vm

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
)

// patience is for one scenario. It is not a limit on how fast a device has to be:
// the machine that runs this may be busy with anything.
const patience = 10 * time.Minute

// bad are the releases that must not survive their trial.
var bad = []struct {
	fault, version string
}{
	{fault: "panic", version: "1.1.1"},
	{fault: "hang", version: "1.1.2"},
	{fault: "no-agent", version: "1.1.3"},
	{fault: "bad-kernel", version: "1.1.4"},
}

// rotten are files of a good release that are damaged in the slot after it was
// verified, and where in them.
var rotten = []struct {
	name, file string
	at         int64
}{
	{"rotten-init", "/bin/busybox", 0},
	{"rotten-kernel", "/boot/vmlinuz", 1 << 20},
}

// TestDevice lets each board take a good release and every bad one, from a real
// server, and comes to the same end each time: it runs the new firmware only if that
// has proven itself, and otherwise the old, and the server knows which.
func TestDevice(t *testing.T) {
	t.Parallel()
	boards, quick := []Board{UBoot, GRUB}, false
	switch v := os.Getenv("VM"); v {
	case "":
	case "quick":
		boards, quick = boards[:1], true
	default:
		boards = nil
		for b := range strings.SplitSeq(v, ",") {
			boards = append(boards, Board(b))
		}
	}
	var results table
	t.Cleanup(func() { fmt.Print(results.String()) })
	for _, board := range boards {
		t.Run(string(board), func(t *testing.T) {
			d := device(t, board)
			t.Run("good", func(t *testing.T) {
				t.Parallel() // a device that hangs needs no processor; see -parallel
				results.add(board, "good", func() string { return goodRelease(t, d) })
			})
			for _, s := range bad {
				if quick && s.fault != "panic" {
					continue
				}
				t.Run(s.fault, func(t *testing.T) {
					t.Parallel()
					results.add(board, s.fault, func() string { return badRelease(t, d, s.version, s.fault) })
				})
			}
			for _, s := range rotten {
				if quick {
					continue
				}
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					results.add(board, s.name, func() string { return rottenRelease(t, d, s.file, s.at) })
				})
			}
		})
	}
}

// goodRelease ends in the other slot, also after the power was cut.
func goodRelease(t *testing.T, d *Device) string {
	b := newBench(t, d)
	b.publish(t, "1.1.0", "")
	m := b.start(t)
	r := b.report(t, m, "1.1.0")
	if r.Result != ota.Succeeded {
		t.Fatalf("report on 1.1.0: got %s (%s), want %s\n%s", r.Result, r.Reason, ota.Succeeded, m.Tail(60))
	}
	b.runs(t, "1.1.0", "B")
	m.Stop()

	m = b.start(t)
	b.wait(t, m, `initrd: slot B`)
	b.wait(t, m, `status=IDLE .*version 1\.1\.0 is running`)
	return string(r.Result)
}

// badRelease ends in the slot it came from, which goes on without it.
func badRelease(t *testing.T, d *Device, version, fault string) string {
	b := newBench(t, d)
	b.publish(t, version, fault)
	m := b.start(t)
	r := b.report(t, m, version)
	if r.Result != ota.Failed && r.Result != ota.RolledBack && r.Result != ota.Lost {
		t.Errorf("report on %s: got %s (%s), want failed, rolled back or lost\n%s", version, r.Result, r.Reason, m.Tail(60))
	}
	b.runs(t, "1.0.0", "A")
	tried := m.Count(triedB[d.Board])
	if tried == 0 {
		t.Errorf("the bootloader never chose slot B:\n%s", m.Tail(60))
	}
	m.Stop()

	m = b.start(t)
	b.wait(t, m, `initrd: slot A`)
	b.wait(t, m, `status=IDLE`)
	if n := m.Count(triedB[d.Board]); n > 0 {
		t.Errorf("slot B was chosen again after the report")
	}
	return fmt.Sprintf("%s, %d boots of B", r.Result, tried)
}

// rottenRelease comes back from the slot in which something is damaged, finds that it
// no longer holds what was written, and writes that again before it tries once more.
func rottenRelease(t *testing.T, d *Device, file string, at int64) string {
	b := newBench(t, d)
	b.publish(t, "1.1.0", "")
	m := b.start(t, "-no-reboot")
	b.wait(t, m, `status=REBOOTING`)
	select {
	case <-m.Off():
	case <-b.ctx.Done():
		t.Fatalf("the device does not restart:\n%s", m.Tail(40))
	}
	damage(b.ctx, t, b.disk, d.Image("1.1.0"), file, at)

	m = b.start(t)
	b.wait(t, m, triedB[d.Board])
	b.wait(t, m, `^initrd: slot A`)
	r := b.report(t, m, "1.1.0")
	if r.Result != ota.Succeeded {
		t.Errorf("report on 1.1.0: got %s (%s), want %s\n%s", r.Result, r.Reason, ota.Succeeded, m.Tail(60))
	}
	b.runs(t, "1.1.0", "B")
	m.Quit()
	raw := filepath.Join(t.TempDir(), "disk.img")
	if err := run(exec.CommandContext(b.ctx, "qemu-img", "convert", "-O", "raw", b.disk, raw)); err != nil {
		t.Fatal(err)
	}
	image, err := os.Stat(d.Image("1.1.0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := run(exec.CommandContext(b.ctx, "cmp", "-n", fmt.Sprint(image.Size()), "-i", fmt.Sprintf("%d:0", SlotBAt), raw, d.Image("1.1.0"))); err != nil {
		t.Errorf("slot B is not the image: %v", err)
	}
	return fmt.Sprintf("came back, written again, %s", r.Result)
}

// triedB is what the bootloaders say when they choose slot B.
var triedB = map[Board]string{
	UBoot: `^boot: .*, slot B$`,
	GRUB:  `^boot: slot B$`,
}

// A bench is a device's disk, and a server for it alone.
type bench struct {
	ctx    context.Context
	device *Device
	disk   string
	server *Server
	log    *os.File
}

func newBench(t *testing.T, d *Device) *bench {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	b := &bench{ctx: ctx, device: d, disk: filepath.Join(t.TempDir(), "disk.qcow2")}
	if err := d.Overlay(ctx, b.disk); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.server, err = StartServer(ctx, d, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.server.Stop)
	name := filepath.Join(d.Dir, "console-"+filepath.Base(t.Name())+".log")
	if b.log, err = os.Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.log.Close() })
	return b
}

func (b *bench) publish(t *testing.T, version, fault string) {
	t.Helper()
	if err := b.server.Publish(b.ctx, release(t, b.device, version, fault)); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) start(t *testing.T, args ...string) *Machine {
	t.Helper()
	m, err := Start(b.device.Board, b.disk, b.server.Port, b.log, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Stop)
	return m
}

func (b *bench) wait(t *testing.T, m *Machine, expr string) []string {
	t.Helper()
	groups, err := m.Wait(b.ctx, expr)
	if err != nil {
		t.Fatal(err)
	}
	return groups
}

func (b *bench) report(t *testing.T, m *Machine, version string) ota.Report {
	t.Helper()
	r, err := b.server.Report(b.ctx, version)
	if err != nil {
		t.Fatalf("%v\n%s", err, m.Tail(60))
	}
	return r
}

// runs checks what the server believes the device to run.
func (b *bench) runs(t *testing.T, version, slot string) {
	t.Helper()
	d, err := b.server.Device(b.ctx)
	for err == nil && d.Version == "" { // just started, and has not said yet
		d, err = b.server.Device(b.ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	if d.Version != version || d.Slot != slot {
		t.Errorf("the server's device: got version %s in slot %s, want %s in %s", d.Version, d.Slot, version, slot)
	}
	succeeded := slices.ContainsFunc(d.Reports, func(r ota.Report) bool { return r.Result == ota.Succeeded })
	if want := version != "1.0.0"; succeeded != want {
		t.Errorf("the server has a report of success: got %v, want %v: %+v", succeeded, want, d.Reports)
	}
}

// damage overwrites a block of a file in slot B, as a medium does that does not keep
// what it was given.
func damage(ctx context.Context, t *testing.T, disk, image, file string, at int64) {
	t.Helper()
	const block = 4096 // the script image says so to mkfs.ext4
	out, err := exec.CommandContext(ctx, "debugfs", "-R", "blocks "+file, image).Output()
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Fields(string(out))
	if int64(len(blocks)) <= at/block {
		t.Fatalf("%s has %d blocks, want more than %d", file, len(blocks), at/block)
	}
	n, err := strconv.ParseInt(blocks[at/block], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := Fill(ctx, disk, SlotBAt+n*block, block); err != nil {
		t.Fatal(err)
	}
}

var made sync.Map // what is made once: func() (string, error) by key

func once(t *testing.T, key string, make func(context.Context) (string, error)) string {
	t.Helper()
	f, _ := made.LoadOrStore(key, sync.OnceValues(func() (string, error) { return make(context.Background()) }))
	v, err := f.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// device builds a board once. With VM_DIR set, everything stays there, consoles
// included; otherwise it is deleted at the end.
func device(t *testing.T, board Board) *Device {
	t.Helper()
	dir := once(t, string(board), func(ctx context.Context) (string, error) {
		dir := filepath.Join(scratch, string(board))
		_, err := Build(ctx, board, dir, "1.0.0")
		return dir, err
	})
	return &Device{board, dir}
}

func release(t *testing.T, d *Device, version, fault string) string {
	t.Helper()
	return once(t, string(d.Board)+" "+version, func(ctx context.Context) (string, error) { return d.Release(ctx, version, fault) })
}

var scratch string

func TestMain(m *testing.M) {
	code := 1
	if scratch = os.Getenv("VM_DIR"); scratch != "" {
		code = m.Run()
	} else if dir, err := os.MkdirTemp("", "interlock-vm."); err == nil {
		scratch = dir
		code = m.Run()
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// A table collects what was run.
type table struct {
	mu   sync.Mutex
	rows []string
}

func (x *table) add(board Board, what string, scenario func() string) {
	began := time.Now()
	result := scenario()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rows = append(x.rows, fmt.Sprintf("%-8s %-14s %6.0f s  %s", board, what, time.Since(began).Seconds(), result))
}

func (x *table) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	slices.Sort(x.rows)
	return "\n" + strings.Join(x.rows, "\n") + "\n\n"
}
