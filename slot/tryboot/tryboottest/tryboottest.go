// Package tryboottest puts tryboot slots on the disks of package otatest, with a model
// of the firmware of a Raspberry Pi.
//
// The model is written from the Raspberry Pi documentation (autoboot.txt; raspberry-pi,
// fail-safe OS updates) and knows nothing of package tryboot's own reader. Real firmware
// is closed, so this is as near as a test without the hardware comes.
package tryboottest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/tryboot"
)

// Places on the disk.
const (
	Autoboot = "/boot/autoboot.txt"
	State    = "/data/tryboot"

	slotA = "/dev/mmcblk0p2"
	slotB = "/dev/mmcblk0p3"
	tree  = "/proc/device-tree/chosen/bootloader"

	// tried is what the model keeps in the register while a slot runs that was booted
	// with the flag: there is no better place for what the device tree says.
	tried = "running with tryboot"
)

// Text is autoboot.txt as Format writes it.
const Text = "# slots of this device\n[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"

// Backend is an [otatest.Backend] of tryboot slots. The zero value is ready.
type Backend struct {
	// Deaf is a kernel, or an init, that drops the argument of a restart.
	Deaf bool
}

// Config of the slots on the disk.
func Config(bootID string, restart func(context.Context, string) error) tryboot.Config {
	return tryboot.Config{Components: map[string][2]string{"controller": {slotA, slotB}}, Autoboot: Autoboot, State: State,
		BootID: func() (string, error) { return bootID, nil }, Restart: restart, Log: slog.New(slog.DiscardHandler)}
}

// Format implements [otatest.Backend]. Each slot is a boot partition with root file
// system, in one.
func (Backend) Format(d *otatest.Disk, image []byte) error {
	d.MkDevice(slotA, 1<<20)
	d.MkDevice(slotB, 1<<20)
	d.MkFAT(path.Dir(Autoboot))
	if err := durable.MkdirAll(d, path.Dir(State), 0o755); err != nil { // where the record is, too
		return err
	}
	if err := durable.WriteFile(d, Autoboot, []byte(Text), 0o644); err != nil {
		return err
	}
	return durable.WriteRange(d, slotA, 0, image)
}

// PowerOn implements [otatest.Backend]: it is the firmware.
func (Backend) PowerOn(d *otatest.Disk) (string, error) {
	flag := d.Handover == "0 tryboot"
	d.Handover = "" // before anything is started
	want := 0
	if b, err := durable.ReadFile(d, Autoboot, 512); err == nil {
		var swaps bool
		if want, swaps = choose(string(b), flag); flag && !swaps {
			want = 0 // it looks for tryboot.txt, which nobody has
			flag = false
		}
	}
	// PARTITION_WALK=1: what cannot be booted leads to the first that can.
	for _, n := range []int{want, 2, 3} {
		if p, ok := map[int]string{2: slotA, 3: slotB}[n]; ok && bootable(d, p) {
			if flag {
				d.Handover = tried
			}
			return string(rune('A' + n - 2)), nil
		}
	}
	return "", fmt.Errorf("no partition with boot files")
}

// choose reads autoboot.txt, and ignores what it does not understand.
func choose(text string, flag bool) (partition int, swaps bool) {
	applies := true
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "[") {
			applies = line == "[all]" || line == "[tryboot]" && flag
			continue
		}
		if !applies {
			continue
		}
		if n := 0; strings.HasPrefix(line, "boot_partition=") {
			if _, err := fmt.Sscanf(line, "boot_partition=%d", &n); err == nil {
				partition = n
			}
		}
		if strings.HasPrefix(line, "tryboot_a_b=") {
			swaps = line == "tryboot_a_b=1"
		}
	}
	return partition, swaps
}

// bootable is a partition with boot files: here, with anything.
func bootable(d *otatest.Disk, p string) bool {
	b, err := durable.ReadRange(d, p, 0, 512)
	return err == nil && len(bytes.Trim(b, "\x00")) > 0
}

// Slots implements [otatest.Backend].
func (b Backend) Slots(d *otatest.Disk, boot otatest.Boot, restart func(context.Context) error) (ota.Slots, error) {
	return tryboot.OpenOn(On(d, boot.Slot, d.Handover == tried), Config(boot.ID, func(ctx context.Context, arg string) error {
		was := d.Handover
		if d.Handover = arg; b.Deaf {
			d.Handover = ""
		}
		err := restart(ctx)
		if err != nil {
			d.Handover = was
		}
		return err
	}))
}

// Image implements [otatest.Backend].
func (Backend) Image(d *otatest.Disk, slot string) []byte {
	name := slotA
	if slot == tryboot.SlotB {
		name = slotB
	}
	content, err := durable.ReadRange(d, name, 0, 1<<20)
	if err != nil {
		return nil
	}
	return content
}

// On returns the disk with the device tree of a boot.
func On(d *otatest.Disk, slot string, tryboot bool) durable.FS {
	cell := func(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
	flag := 0
	if tryboot {
		flag = 1
	}
	partition := 0
	if slot != "" {
		partition = int(slot[0]-'A') + 2
	}
	return WithTree{d, map[string][]byte{"partition": cell(partition), "tryboot": cell(flag)}}
}

// WithTree is a file system with the firmware's answers.
type WithTree struct {
	durable.FS
	Answers map[string][]byte
}

// OpenFile implements [durable.FS].
func (t WithTree) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if path.Dir(name) != tree {
		return t.FS.OpenFile(name, flag, perm)
	}
	b, ok := t.Answers[path.Base(name)]
	if !ok || flag&^durable.Direct != os.O_RDONLY {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return answer{Reader: bytes.NewReader(b)}, nil
}

// answer is a file of the device tree, which says nothing of its size.
type answer struct {
	*bytes.Reader
	durable.File
}

func (a answer) ReadAt(p []byte, off int64) (int, error) { return a.Reader.ReadAt(p, off) }
func (a answer) Size() (int64, error)                    { return 0, nil }
func (a answer) Close() error                            { return nil }

var _ io.ReaderAt = answer{}
