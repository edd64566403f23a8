//go:build linux

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// A Board is a kind of reference device.
type Board string

// The boards.
const (
	UBoot Board = "uboot" // arm64, stock U-Boot, redundant environment on a raw partition
	GRUB  Board = "grub"  // x86 with a BIOS, GRUB with two environment blocks
)

// Partitions of every board, in bytes; deploy/reference-device/build makes them.
const (
	sector   = 512
	BootAt   = 2048 * sector
	BootSize = 131072 * sector
	EnvAt    = 133120 * sector
	EnvSize  = 2048 * sector
	SlotAAt  = 135168 * sector
	SlotBAt  = 331776 * sector
	SlotSize = 196608 * sector
)

// Product and ID are those of the device that Build makes.
const (
	Product = "reference-device"
	ID      = "ref-1"
)

// patient are the times that the watchdog gives a device, in seconds, from the
// bootloader to the initrd and from there to the agent. An emulated device on a busy
// machine needs ten times as long as it seems, and a watchdog that is too short looks
// like firmware that does not start.
var patient = []string{"BOOT_WATCHDOG=180", "WATCHDOG=60"}

// A Device is a directory with what the scripts build and release made.
type Device struct {
	Board Board
	Dir   string
}

// Build makes a device in dir, running version.
func Build(ctx context.Context, board Board, dir, version string, env ...string) (*Device, error) {
	err := script(ctx, append(env, "BOARD="+string(board), "VERSION="+version), "build", dir)
	return &Device{board, dir}, err
}

// Release makes a signed bundle with one image for the device. The fault is one of
// those that the script image knows, or empty.
func (d *Device) Release(ctx context.Context, version, fault string) (bundle string, err error) {
	return d.file(version + ".bundle"), script(ctx, []string{"FAULT=" + fault}, "release", d.Dir, version)
}

// Image is the slot image inside of a release.
func (d *Device) Image(version string) string { return d.file(version + ".img") }

// Disk is the disk as it left the factory.
func (d *Device) Disk() string { return d.file("disk.img") }

// Program is the command interlock: the one that INTERLOCK names, as for the scripts,
// or the one that they built.
func (d *Device) Program() string {
	if p := os.Getenv("INTERLOCK"); p != "" {
		return p
	}
	return d.file("interlock")
}

func (d *Device) file(name string) string { return filepath.Join(d.Dir, name) }

// Overlay makes a disk that begins as the one from the factory, and keeps what is
// written to it in a file of its own.
func (d *Device) Overlay(ctx context.Context, name string) error {
	return run(exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", d.Disk(), name))
}

// Fill overwrites n bytes of a disk that is not in use, from off on.
func Fill(ctx context.Context, disk string, off, n int64) error {
	return run(exec.CommandContext(ctx, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 0xa5 %d %d", off, n), disk))
}

func script(ctx context.Context, env []string, name string, args ...string) error {
	path, err := scriptPath(name)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = slices.Concat(os.Environ(), patient, env)
	return run(cmd)
}

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", cmd, err, out)
	}
	return nil
}
