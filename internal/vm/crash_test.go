//go:build linux && vm

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/grub/grubtest"
	"github.com/interlock-energy/ota/slot/uboot"
)

const (
	crashStates = 2000 // at least, on each board
	realBoots   = 20   // of them
)

// TestCrash records all that a good update writes to the disk, bootloader included,
// and cuts the power after every write, with any part of what was not flushed lost or
// torn. Whichever slot the bootloader then starts is whole, and the environment can
// always be read. Some of the states are really booted.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, board := range []Board{UBoot, GRUB} {
		t.Run(string(board), func(t *testing.T) {
			t.Parallel()
			if v := os.Getenv("VM"); v != "" && v != "all" && !strings.Contains(v, string(board)) {
				t.Skipf("VM=%s leaves %s out", v, board)
			}
			d := device(t, board)
			log := recordUpdate(t, d)
			c := newCrash(t, d, log)
			c.run(t)
		})
	}
}

// recordUpdate takes the good release on a disk whose writes are logged.
func recordUpdate(t *testing.T, d *Device) (log string) {
	b := newBench(t, d)
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.img")
	log = filepath.Join(dir, "writes.log")
	if err := run(exec.Command("cp", "--sparse=always", d.Disk(), disk)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.publish(t, "1.1.0", "")
	b.disk = "none"
	m := b.start(t, "-blockdev", "driver=file,node-name=disk-file,filename="+disk,
		"-blockdev", "driver=raw,node-name=disk-raw,file=disk-file",
		"-blockdev", "driver=file,node-name=log-file,filename="+log,
		"-blockdev", "driver=raw,node-name=log-raw,file=log-file",
		"-blockdev", "driver=blklogwrites,node-name=logged,file=disk-raw,log=log-raw,log-sector-size=512",
		"-device", "virtio-blk-pci,drive=logged,bootindex=0")
	if r := b.report(t, m, "1.1.0"); r.Result != ota.Succeeded {
		t.Fatalf("report on 1.1.0: got %s (%s), want %s\n%s", r.Result, r.Reason, ota.Succeeded, m.Tail(60))
	}
	m.Quit()
	return log
}

// A crash is a replay with what is known of the state of the disk.
type crash struct {
	device *Device
	replay *Replay
	image  []byte       // of the new release
	wrong  map[int]bool // sectors of slot B that are not those of the image
	fat    *os.File     // a copy of the boot partition, for mtools
	err    error        // of what Changed does

	picked  map[string]int
	oneCopy int // states in which one of the two copies was damaged
}

func newCrash(t *testing.T, d *Device, log string) *crash {
	t.Helper()
	base, err := os.ReadFile(d.Disk())
	if err != nil {
		t.Fatal(err)
	}
	c := &crash{device: d, wrong: map[int]bool{}, picked: map[string]int{}}
	if c.image, err = os.ReadFile(d.Image("1.1.0")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	writes, err := ReadLog(f)
	if err != nil {
		t.Fatal(err)
	}
	if c.fat, err = os.Create(filepath.Join(t.TempDir(), "boot.fat")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.fat.Close() })
	c.replay = NewReplay(base, f, writes)
	c.replay.Changed = c.changed
	c.changed(BootAt, BootSize)
	c.changed(SlotBAt, int64(len(c.image)))
	flushes, loaders := 0, 0
	for _, w := range writes {
		if w.Flush {
			flushes++
		}
		if w.Len > 0 && w.At < SlotAAt {
			loaders++
		}
		if w.At < SlotAAt+SlotSize && w.At+w.Len > SlotAAt && w.Len > 0 {
			t.Errorf("the update wrote %d bytes at %d, in the slot that was running", w.Len, w.At)
		}
	}
	t.Logf("%d writes and flushes, %d flushes, %d writes to the boot control", len(writes), flushes, loaders)
	if flushes == 0 || loaders == 0 {
		t.Fatal("the log shows no update")
	}
	return c
}

// changed keeps up with the disk.
func (c *crash) changed(off, n int64) {
	disk := c.replay.Disk
	if from, to := max(off, BootAt), min(off+n, BootAt+BootSize); from < to {
		if _, err := c.fat.WriteAt(disk[from:to], from-BootAt); err != nil {
			c.err = err
		}
	}
	for at := max(off, SlotBAt); at < min(off+n, SlotBAt+int64(len(c.image))); at += sector {
		i := int(at - SlotBAt)
		if bytes.Equal(disk[at:at+sector], c.image[i:i+sector]) {
			delete(c.wrong, i)
		} else {
			c.wrong[i] = true
		}
	}
}

func (c *crash) run(t *testing.T) {
	rnd := rand.New(rand.NewPCG(20261121, 7))
	states, booted := 0, 0
	every := max(1, crashStates/len(c.replay.writes)) + 1
	for {
		w, ok, err := c.replay.Step()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		control := slices.ContainsFunc(c.replay.loose, func(l Write) bool { return l.At < SlotAAt })
		cuts := every
		if control {
			cuts = 100 // what is interesting happens here
		}
		for i := range cuts {
			undo, err := c.replay.Cut(rnd)
			if err != nil {
				t.Fatal(err)
			}
			slot := c.check(t, w)
			states++
			if booted < realBoots && (control && i%50 == 0 || states%(crashStates/realBoots*2) == 0) {
				c.boot(t, slot)
				booted++
			}
			undo()
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d states after a power cut: %v picked, %d with one of two copies damaged; %d of them really booted", states, c.picked, c.oneCopy, booted)
	if states < crashStates || booted < realBoots || c.picked["A"] == 0 || c.picked["B"] == 0 {
		t.Errorf("got %d states and %d boots, want %d and %d, and both slots", states, booted, crashStates, realBoots)
	}
}

// check looks at one state, and returns the slot that the bootloader starts.
func (c *crash) check(t *testing.T, w Write) (slot string) {
	t.Helper()
	var err error
	switch c.device.Board {
	case UBoot:
		slot, err = c.ubootPicks()
	case GRUB:
		slot, err = c.grubPicks()
	}
	switch err = errors.Join(err, c.err); {
	case err != nil:
		t.Errorf("cut after a write of %d bytes at %d: %v", w.Len, w.At, err)
	case slot == "B" && len(c.wrong) > 0:
		t.Errorf("cut after a write of %d bytes at %d: slot B is started, and %d of its sectors are not those of the image", w.Len, w.At, len(c.wrong))
	}
	c.picked[slot]++
	return slot
}

// ubootPicks reads the environment as the agent does, and picks as boot.cmd does.
func (c *crash) ubootPicks() (string, error) {
	var envs []*uboot.Env
	for _, at := range []int64{EnvAt, EnvAt + envOther} {
		e, err := uboot.ParseEnv(c.replay.Disk[at:at+envCopy], uboot.Layout{Redundant: true})
		if err != nil {
			c.oneCopy++
			continue
		}
		envs = append(envs, e)
	}
	if len(envs) == 0 {
		return "", errors.New("both copies of the environment are damaged")
	}
	e := envs[0]
	if len(envs) == 2 {
		e = envs[uboot.Newest(uboot.Incremental, [2]byte{envs[0].Flags, envs[1].Flags})]
	}
	order, _ := e.Value("BOOT_ORDER")
	for _, name := range strings.Fields(order) {
		left, _ := e.Value("BOOT_" + name + "_LEFT")
		if n, err := strconv.ParseUint(left, 16, 8); err == nil && n > 0 {
			return name, nil
		}
	}
	return "", fmt.Errorf("no slot has attempts left: %v", e.All())
}

// grubPicks gets the blocks out of the file system with mtools, and asks the model of
// grub.cfg, and the agent's own reader.
func (c *crash) grubPicks() (string, error) {
	d := otatest.NewDisk()
	if err := durable.MkdirAll(d, "/boot/grub", 0o755); err != nil {
		return "", err
	}
	if err := durable.MkdirAll(d, "/dev", 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"grubenv", "grubenv2"} {
		block, err := exec.Command("mcopy", "-n", "-i", c.fat.Name(), "::/grub/"+name, "-").Output()
		if err != nil {
			return "", fmt.Errorf("read %s from the boot partition: %w", name, err)
		}
		if err := durable.WriteFile(d, "/boot/grub/"+name, block, 0o644); err != nil {
			return "", err
		}
	}
	for _, slot := range []string{grubtest.SlotA, grubtest.SlotB} {
		d.MkDevice(slot, 1<<20)
	}
	before := [2]string{string(d.Content(grubtest.Env)), string(d.Content(grubtest.Env2))}
	order := grubtest.Script(d)
	if len(order) == 0 {
		return "", fmt.Errorf("nothing is started with %q", before)
	}
	s, err := grubtest.Backend{}.Slots(d, otatest.Boot{Slot: order[0], ID: "after the cut"}, nil)
	if err != nil {
		return "", err
	}
	_, err = s.Booted(context.Background())
	return order[0], err
}

// boot really boots a state, until the agent runs.
func (c *crash) boot(t *testing.T, slot string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "state.img")
	if err := writeSparse(name, c.replay.Disk); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(name)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := Start(c.device.Board, name, 9, nil) // nobody serves at port 9
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	groups, err := m.Wait(ctx, `^initrd: slot (.)`)
	if err != nil {
		t.Fatal(err)
	}
	if groups[1] != slot {
		t.Errorf("after a cut slot %s boots, want %s:\n%s", groups[1], slot, m.Tail(20))
	}
	if _, err := m.Wait(ctx, `msg=agent `); err != nil {
		t.Fatal(err)
	}
}

func writeSparse(name string, b []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	const piece = 64 << 10
	zero := make([]byte, piece)
	for at := 0; at < len(b); at += piece {
		part := b[at:min(at+piece, len(b))]
		if bytes.Equal(part, zero[:len(part)]) {
			continue
		}
		if _, err := f.WriteAt(part, int64(at)); err != nil {
			return err
		}
	}
	return f.Truncate(int64(len(b)))
}
